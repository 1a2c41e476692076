//! Name servers of a safe start whose image has nothing that takes them: systemd-networkd learns them and writes no
//! `/etc/resolv.conf`, which is the work of systemd-resolved.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::sys::files;

/// File in which systemd-networkd keeps what it learned (sd-network's `network-util.c`).
const LEARNED: &str = "/run/systemd/netif/state";
/// File that the C library reads.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Size of the largest one that is read, bytes.
const MAX_BYTES: u64 = 64 * 1024;
/// Time that whatever the image has for it is given first.
const PATIENCE: Duration = Duration::from_secs(60);
/// First line of a file that this program wrote.
const HEADER: &str = "# Written in a safe start of reflash, from what systemd-networkd knows.\n";

/// Writes the file where nothing else has, `now` after the system took over.
pub(super) fn keep(now: Duration) {
    if now < PATIENCE {
        return;
    }
    // A link that leads nowhere, to a resolver that does not run, counts as missing.
    let current = files::read(Path::new(RESOLV_CONF), MAX_BYTES).ok();
    let current = current.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let learned = files::read_text(Path::new(LEARNED), MAX_BYTES).unwrap_or_default();
    if let Some(text) = wanted(current.as_deref(), &learned) {
        let new = Path::new(RESOLV_CONF).with_added_extension("new");
        // Where /etc cannot be written, addresses work all the same.
        let _ = fs::write(&new, text).and_then(|()| fs::rename(&new, RESOLV_CONF));
    }
}

/// The content that the file is to have, if it is to be written.
fn wanted(current: Option<&str>, learned: &str) -> Option<String> {
    let current = current.unwrap_or_default();
    let is_ours = current.starts_with(HEADER);
    if !is_ours && current.lines().any(|line| line.trim_start().starts_with("nameserver")) {
        return None;
    }
    let value = |key: &str| learned.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or("");
    // As `address`, `address%interface` or `address#name`, of which the C library takes the first two.
    let servers = value("DNS").split_ascii_whitespace().filter_map(|server| server.split('#').next());
    let lines: Vec<String> = servers.map(|server| format!("nameserver {server}\n")).collect();
    if lines.is_empty() {
        return None;
    }
    let search = Some(value("DOMAINS")).filter(|domains| !domains.is_empty());
    let search = search.map(|domains| format!("search {domains}\n")).unwrap_or_default();
    let text = format!("{HEADER}{search}{}", lines.concat());
    (text != current).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::{HEADER, wanted};

    #[test]
    fn name_servers_are_written_where_nothing_else_has_written_any() {
        let learned =
            "# This is private data.\nOPER_STATE=routable\nDNS=192.0.2.53 2001:db8::53#dns.example\nDOMAINS=site\n";
        let text = format!("{HEADER}search site\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n");
        for current in [None, Some(""), Some("# nothing\noptions edns0\n")] {
            assert_eq!(wanted(current, learned), Some(text.clone()), "{current:?}");
        }
        assert_eq!(wanted(Some(&text), learned), None, "written once");
        assert!(wanted(Some(&text), "DNS=192.0.2.54\n").unwrap().ends_with("nameserver 192.0.2.54\n"));
        assert_eq!(wanted(Some("nameserver 127.0.0.53\n"), learned), None, "somebody else's");
        assert_eq!(wanted(None, "OPER_STATE=off\n"), None, "nothing is known");
        assert_eq!(wanted(None, ""), None);
    }
}
