//! The network links of this machine, from sysfs.
//!
//! Read from sysfs and not by a netlink dump: a dump has dozens of attributes per link which differ between kernels
//! and drivers, and one that the decoder does not know must not cost the machine its network.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::card_names::names_by_udev;
use crate::mac;
use crate::order;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::SockaddrStorage;

const CLASS: &str = "/sys/class/net";
const PCI_SLOTS: &str = "/sys/bus/pci/slots";

/// One Ethernet link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    /// Number of times that the carrier came or went: a cable may move faster than anybody looks.
    pub carrier_changes: u64,
    /// Whether the link is a network card, or what looks like one to a container, and not a VLAN, bond, bridge or
    /// tunnel.
    pub card: bool,
    /// Names that a card may have in the running system.
    pub other_names: Vec<String>,
}

/// Switches IPv6 off for a link, which takes away its addresses and routes.
pub fn switch_off_ipv6(name: &str) {
    let _ = fs::write(Path::new("/proc/sys/net/ipv6/conf").join(name).join("disable_ipv6"), "1");
}

/// Returns the kernel's index of a link, if there is one of this name.
#[must_use]
pub fn index(name: &str) -> Option<u32> {
    // The name may be from a file that anything was written to.
    if name.contains('/') {
        return None;
    }
    fs::read_to_string(Path::new(CLASS).join(name).join("ifindex")).ok()?.trim().parse().ok()
}

/// Returns the largest packet that a link carries, bytes, if it is known and no larger than any Ethernet's.
#[must_use]
pub fn mtu(name: &str) -> Option<u16> {
    fs::read_to_string(Path::new(CLASS).join(name).join("mtu")).ok()?.trim().parse().ok()
}

/// Sets the largest packet that a link carries, bytes. Beyond what its driver allows, the link is left as it is.
///
/// # Errors
/// The driver's refusal.
pub fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    fs::write(Path::new(CLASS).join(name).join("mtu"), mtu.to_string())
}

/// Prepares a link for a machine with several: an address is answered for, and used, only on the link that has it, and
/// packets may come in by another link than they would leave by. And no router sends it to another one: it would stay
/// there for minutes, whatever becomes of that one, while the router itself passes on what it gets.
pub fn keep_addresses_apart(name: &str) {
    // A kernel without one of these works as it did.
    let set =
        |name: &str, key: &str, value: &str| _ = fs::write(format!("/proc/sys/net/ipv4/conf/{name}/{key}"), value);
    set(name, "arp_ignore", "1");
    set(name, "arp_announce", "2");
    set(name, "rp_filter", "2");
    // Of this one the kernel takes the more permissive of the two.
    set(name, "accept_redirects", "0");
    set("all", "accept_redirects", "0");
}

/// Lets TCP, of IPv6 too, send smaller packets where large ones vanish without a word. What the peer sends depends on
/// the peer: `fetch` asks it for smaller ones.
pub fn probe_path_mtu() {
    // A kernel without it works as it did.
    let _ = fs::write("/proc/sys/net/ipv4/tcp_mtu_probing", "1");
}

/// Switches IPv6 on for a link: the kernel makes addresses of the prefixes that routers advertise, if `autoconf` says
/// so, and leaves the default route to us. Whether the kernel has IPv6.
#[must_use]
pub fn switch_on_ipv6(name: &str, autoconf: bool) -> bool {
    let directory = Path::new("/proc/sys/net/ipv6/conf").join(name);
    let set = |key: &str, value: &str| _ = fs::write(directory.join(key), value);
    set("accept_ra_defrtr", "0");
    set("accept_ra_pinfo", "1");
    set("use_tempaddr", "0");
    set("accept_redirects", "0");
    set("autoconf", if autoconf { "1" } else { "0" });
    // Also on a machine that forwards, as one with containers does.
    set("accept_ra", "2");
    set("disable_ipv6", "0");
    directory.exists()
}

/// Takes back the time between two messages to a neighbour that a router asked for. The kernel believes any, and checks
/// an address for that long.
pub fn reset_neighbour_timer(name: &str) {
    // RFC 4861, 10. A kernel that refuses it works as it did.
    let _ = fs::write(Path::new("/proc/sys/net/ipv6/neigh").join(name).join("retrans_time_ms"), "1000");
}

/// Lists the IPv4 addresses that a link has, with the prefix lengths of their networks.
#[must_use]
pub fn ipv4_addresses(name: &str) -> Vec<(Ipv4Addr, u8)> {
    let of_link = |entry: &InterfaceAddress| entry.interface_name == name;
    let ip = |address: Option<SockaddrStorage>| Some(address?.as_sockaddr_in()?.ip());
    let entries = getifaddrs().into_iter().flatten().filter(of_link);
    entries
        .filter_map(|entry| {
            let mask = ip(entry.netmask).map(u32::from)?;
            Some((ip(entry.address)?, u8::try_from(mask.leading_ones()).ok()?))
        })
        .collect()
}

/// Returns the number of bytes that came in by a link since it exists; 0 for a link that is gone.
#[must_use]
pub fn received_bytes(name: &str) -> u64 {
    let text = fs::read_to_string(Path::new(CLASS).join(name).join("statistics/rx_bytes")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// IPv6 address that a link has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6OnLink {
    /// Index of the link.
    pub index: u32,
    /// The address: one that reaches beyond the link, unless it is taken.
    pub address: Ipv6Addr,
    /// Prefix length of its network.
    pub prefix_len: u8,
    /// Whether another machine on the link has it, so that the kernel does not use it.
    pub taken: bool,
}

/// Lists the IPv6 addresses of all links that can be used beyond their link, and all that are taken; not those that are
/// still being checked for a second owner. The list is empty where the kernel has no IPv6.
#[must_use]
pub fn ipv6_addresses() -> Vec<Ipv6OnLink> {
    let text = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    text.lines().filter_map(ipv6_address).collect()
}

/// Reads a line of `if_inet6`: address, index, prefix length, scope and flags in hexadecimal, and the name.
fn ipv6_address(line: &str) -> Option<Ipv6OnLink> {
    const GLOBAL: u32 = 0;
    const DAD_FAILED: u32 = 0x08;
    const TENTATIVE: u32 = 0x40;
    let mut words = line.split_whitespace();
    let address = Ipv6Addr::from(u128::from_str_radix(words.next()?, 16).ok()?);
    let mut number = || u32::from_str_radix(words.next()?, 16).ok();
    let (index, prefix_len, scope, flags) = (number()?, number()?, number()?, number()?);
    let taken = flags & DAD_FAILED != 0;
    let usable = scope == GLOBAL && flags & TENTATIVE == 0;
    (usable || taken).then_some(Ipv6OnLink { index, address, prefix_len: prefix_len.try_into().ok()?, taken })
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
    order::by_key(&mut links, |link| link.index);
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
    let (mac, card) = (mac::parse(&text("address")?)?, is_card(directory));
    Some(Link {
        name: directory.file_name()?.to_str()?.to_owned(),
        index,
        mac,
        up: flags & IFF_UP != 0,
        // Reading it fails with EINVAL while the link is switched off.
        carrier: text("carrier").as_deref() == Some("1"),
        carrier_changes: text("carrier_changes").and_then(|count| count.parse().ok()).unwrap_or(0),
        card,
        other_names: if card { names_by_udev(directory, Path::new(PCI_SLOTS), mac) } else { Vec::new() },
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

#[cfg(test)]
mod tests {
    use super::{ipv6_address, links_in};
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
    fn an_ipv6_address_counts_once_the_kernel_has_checked_it() {
        let read = |line| {
            ipv6_address(line).map(|found| (found.index, found.address.to_string(), found.prefix_len, found.taken))
        };
        let global = "20010db8000000000000000000000007 02 40 00 80     eth0";
        assert_eq!(read(global), Some((2, "2001:db8::7".to_owned(), 64, false)));
        // A taken one keeps the mark of those that are being checked.
        for taken in [
            "20010db8000000000000000000000007 02 40 00 c8     eth0",
            "fe800000000000005054000000000001 02 40 20 c8     eth0",
        ] {
            assert!(ipv6_address(taken).is_some_and(|found| found.taken), "{taken}");
        }
        for other in [
            "20010db8000000000000000000000007 02 40 00 c0     eth0",
            "fe800000000000005054000000000001 02 40 20 80     eth0",
            "00000000000000000000000000000001 01 80 10 80       lo",
            "",
            "xyz 02 40 00 80 eth0",
            "20010db8000000000000000000000007 02 fff 00 80     eth0",
        ] {
            assert_eq!(read(other), None, "{other}");
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
