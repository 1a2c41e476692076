//! The network links of this machine, from sysfs.
//!
//! Read from sysfs and not by a netlink dump: a dump has dozens of attributes per link which differ between kernels
//! and drivers, and one that the decoder does not know must not cost the machine its network.

use std::fs;
use std::io;
use std::path::Path;

const CLASS: &str = "/sys/class/net";

/// One Ethernet link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Name given by the kernel.
    pub name: String,
    /// Kernel index; a new one when the same card is plugged in again.
    pub index: u32,
    /// Hardware (MAC) address.
    pub mac: [u8; 6],
    /// Whether the link is switched on.
    pub up: bool,
    /// Whether there is a cable with something at its other end, which is known only when the link is switched on.
    pub carrier: bool,
    /// Whether the link is a network card, or what looks like one to a container, and not a VLAN, bond, bridge or
    /// tunnel.
    pub card: bool,
}

/// Sets the largest packet that a link carries, bytes. Beyond what its driver allows, the link is left as it is.
///
/// # Errors
/// The driver's refusal.
pub fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    fs::write(Path::new(CLASS).join(name).join("mtu"), mtu.to_string())
}

/// Lists every Ethernet link by index, the order in which the kernel found them. The loopback link is not one of them.
///
/// # Errors
/// sysfs cannot be read.
pub fn links() -> io::Result<Vec<Link>> {
    links_in(Path::new(CLASS))
}

fn links_in(class: &Path) -> io::Result<Vec<Link>> {
    let entries = fs::read_dir(class)?;
    // Links come and go: one that is half gone is left out.
    let mut links: Vec<Link> = entries.flatten().filter_map(|entry| read(&entry.path())).collect();
    links.sort_by_key(|link| link.index);
    Ok(links)
}

fn read(directory: &Path) -> Option<Link> {
    const ETHERNET: &str = "1";
    const IFF_UP: u32 = 1;
    let text = |name: &str| fs::read_to_string(directory.join(name)).map(|text| text.trim().to_owned()).ok();
    if text("type")? != ETHERNET {
        return None;
    }
    let index = text("ifindex")?.parse().ok()?;
    let flags = u32::from_str_radix(text("flags")?.trim_start_matches("0x"), 16).ok()?;
    Some(Link {
        name: directory.file_name()?.to_str()?.to_owned(),
        index,
        mac: parse_mac(&text("address")?)?,
        up: flags & IFF_UP != 0,
        // Reading it fails with EINVAL while the link is switched off.
        carrier: text("carrier").as_deref() == Some("1"),
        card: is_card(directory),
    })
}

/// Whether the link is a network card. Software links name their kind, except for the ends of veth pairs, which are the
/// cards of containers.
fn is_card(directory: &Path) -> bool {
    if directory.join("device").exists() {
        return true;
    }
    let kind = fs::read_to_string(directory.join("uevent")).unwrap_or_default();
    let stacked = fs::read_dir(directory)
        .is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| is_sign_of_software(&entry.file_name()))));
    !stacked && !kind.lines().any(|line| line.starts_with("DEVTYPE="))
}

fn is_sign_of_software(file: &std::ffi::OsStr) -> bool {
    let file = file.to_string_lossy();
    file.starts_with("lower_") || ["bridge", "bonding", "tun_flags"].contains(&&*file)
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::links_in;
    use std::fs;
    use std::path::Path;

    fn link(class: &Path, name: &str, files: &[(&str, &str)], directories: &[&str]) {
        for directory in directories {
            fs::create_dir_all(class.join(name).join(directory)).unwrap();
        }
        fs::create_dir_all(class.join(name)).unwrap();
        for (file, text) in files {
            fs::write(class.join(name).join(file), format!("{text}\n")).unwrap();
        }
    }

    #[test]
    fn cards_are_distinguished_from_links_stacked_on_them() {
        let class = tempfile::tempdir().unwrap();
        let mac = ("address", "52:54:00:12:34:56");
        let on = ("flags", "0x1003");
        let ether = ("type", "1");
        let c = class.path();
        link(c, "lo", &[("type", "772"), ("ifindex", "1"), ("flags", "0x9"), ("address", "00:00:00:00:00:00")], &[]);
        link(c, "eth1", &[ether, ("ifindex", "9"), ("flags", "0x1002"), mac], &["device"]);
        link(c, "eth0", &[ether, ("ifindex", "2"), on, mac, ("carrier", "1")], &["device"]);
        link(c, "vlan", &[ether, ("ifindex", "3"), on, mac, ("carrier", "1"), ("uevent", "DEVTYPE=vlan")], &[]);
        link(c, "br0", &[ether, ("ifindex", "4"), on, mac, ("carrier", "0")], &["bridge"]);
        link(c, "veth0", &[ether, ("ifindex", "5"), on, mac, ("carrier", "1")], &[]);
        link(c, "half-gone", &[ether], &[]);

        let links = links_in(c).unwrap();
        let seen: Vec<_> = links.iter().map(|link| (link.name.as_str(), link.up, link.carrier, link.card)).collect();
        assert_eq!(
            seen,
            [
                ("eth0", true, true, true),
                ("vlan", true, true, false),
                ("br0", true, false, false),
                ("veth0", true, true, true),
                ("eth1", false, false, true),
            ]
        );
    }
}
