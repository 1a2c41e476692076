//! The file with the name servers of the whole machine.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

/// Name server with the name of the link that it is on.
pub(super) type ServerOnLink = (IpAddr, String);

/// Returns the text of `resolv.conf`. The address of a name server that is of a link only gets the link's name.
pub(super) fn text(servers: &[ServerOnLink], search: &[String]) -> String {
    let mut text = String::new();
    let mut known = Vec::new();
    for (server, link) in servers {
        let line = match server {
            IpAddr::V6(address) if address.is_unicast_link_local() => format!("nameserver {address}%{link}\n"),
            _ => format!("nameserver {server}\n"),
        };
        if !known.contains(&line) {
            text += &line;
            known.push(line);
        }
    }
    if !search.is_empty() {
        _ = writeln!(text, "search {}", search.join(" "));
    }
    text
}

/// Writes the file under another name and renames it, so that a resolver never reads half a file.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&beside, text)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn every_server_stands_once_and_those_of_a_link_with_its_name() {
        let servers = [("192.0.2.53", "eth0"), ("fe80::1", "eth1"), ("192.0.2.53", "eth1"), ("2001:db8::53", "eth1")]
            .map(|(address, link)| (address.parse().unwrap(), link.to_owned()));
        let expected = "nameserver 192.0.2.53\nnameserver fe80::1%eth1\nnameserver 2001:db8::53\nsearch a.example b\n";
        assert_eq!(text(&servers, &["a.example".to_owned(), "b".to_owned()]), expected);
        assert_eq!(text(&[], &[]), "");
    }
}
