//! The network of a safe start: what the recovery is configured with, as files for systemd-networkd
//! (systemd.network(5)).
//!
//! The image's own settings may lead nowhere on this site: what the site needs was written into the machine's `/etc`,
//! which a safe start does without, and into the recovery's configuration, without which no recovery would work there.

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::mac;
use crate::machine::config::{InterfaceSelector, InterfaceSettings, Network};

/// Directory in memory in which systemd-networkd looks too.
const DIRECTORY: &str = "/run/systemd/network";

/// Writes the files, where systemd-networkd finds them at its start.
///
/// # Errors
/// The file system's.
pub(super) fn write(network: &Network) -> io::Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    files(network).iter().try_for_each(|(name, text)| fs::write(Path::new(DIRECTORY).join(name), text))
}

/// The files by their names. Of all files that match an interface systemd-networkd takes the first by name: settings
/// of the recovery come before the image's, its default behind them, for interfaces that the image says nothing of.
fn files(network: &Network) -> Vec<(String, String)> {
    let all = network.all_interfaces();
    let mut files = Vec::new();
    for (number, settings) in all.iter().enumerate() {
        let is_default = *settings == InterfaceSettings { dns: network.dns.clone(), ..InterfaceSettings::default() };
        let order = match (is_default, &settings.interface) {
            (true, _) => "95",
            (false, Some(_)) => "05",
            (false, None) => "06",
        };
        let name = format!("{order}-reflash-safe-{number}");
        let matches = matching(settings.interface.as_ref());
        match settings.vlan {
            None => files.push((format!("{name}.network"), format!("{matches}{}", addresses(settings)))),
            Some(id) => {
                let device = format!("safe{number}.{id}");
                files.push((
                    format!("{name}.netdev"),
                    format!("[NetDev]\nName={device}\nKind=vlan\n\n[VLAN]\nId={id}\n"),
                ));
                let parent = format!("{matches}\n[Network]\nVLAN={device}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n");
                files.push((format!("{name}.network"), parent));
                let own = format!("[Match]\nName={device}\n{}", addresses(settings));
                files.push((format!("{name}-vlan.network"), own));
            }
        }
    }
    files
}

fn matching(interface: Option<&InterfaceSelector>) -> String {
    match interface {
        Some(InterfaceSelector::Name(name)) => format!("[Match]\nName={name}\n"),
        // A VLAN on the card has the card's address too, but not as its permanent one.
        Some(InterfaceSelector::Mac(mac)) => format!("[Match]\nPermanentMACAddress={}\n", mac::text(*mac)),
        None => "[Match]\nType=ether\n".to_owned(),
    }
}

fn addresses(settings: &InterfaceSettings) -> String {
    let mut text = String::from("\n[Network]\n");
    if settings.addresses.is_empty() {
        text += "DHCP=yes\nIPv6AcceptRA=yes\n";
    }
    for address in &settings.addresses {
        let _ = writeln!(text, "Address={}/{}", address.address, address.prefix_len);
    }
    for server in &settings.dns {
        let _ = writeln!(text, "DNS={server}");
    }
    // They may lie outside of the subnet.
    for gateway in &settings.gateways {
        let _ = writeln!(text, "\n[Route]\nGateway={gateway}\nGatewayOnLink=yes");
    }
    if !settings.addresses.is_empty() && settings.addresses.iter().any(|one| matches!(one.address, IpAddr::V6(_))) {
        // Routes and name servers are taken from routers all the same, addresses are not.
        text += "\n[IPv6AcceptRA]\nUseAutonomousPrefix=no\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::files;
    use crate::machine::config::{Network, NetworkLayer};

    fn of(text: &str) -> Vec<(String, String)> {
        let layer: NetworkLayer = toml::from_str(text).unwrap();
        files(&Network::resolve(layer).unwrap())
    }

    #[test]
    fn the_default_stands_behind_the_settings_of_the_image() {
        let files = of("");
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].0, "95-reflash-safe-0.network");
        assert_eq!(files[0].1, "[Match]\nType=ether\n\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\n");
    }

    #[test]
    fn a_static_address_comes_before_them() {
        let files = of(
            "interface = '52:54:00:12:34:56'\naddress = '192.0.2.7/24'\ngateway = '192.0.2.1'\ndns = ['192.0.2.53']",
        );
        assert_eq!(files[0].0, "05-reflash-safe-0.network");
        assert_eq!(
            files[0].1,
            "[Match]\nPermanentMACAddress=52:54:00:12:34:56\n\n[Network]\nAddress=192.0.2.7/24\nDNS=192.0.2.53\n\n\
             [Route]\nGateway=192.0.2.1\nGatewayOnLink=yes\n"
        );
    }

    #[test]
    fn a_vlan_gets_a_device_of_its_own_and_interfaces_their_order() {
        let files = of(
            "[[interfaces]]\ninterface = 'eth1'\nvlan = 42\n[[interfaces]]\naddresses = ['2001:db8::7/64']\n[[interfaces]]\ndns = ['192.0.2.53']",
        );
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "05-reflash-safe-0.netdev",
                "05-reflash-safe-0.network",
                "05-reflash-safe-0-vlan.network",
                "06-reflash-safe-1.network",
                "06-reflash-safe-2.network",
            ]
        );
        assert!(files[0].1.contains("Name=safe0.42\nKind=vlan") && files[1].1.contains("VLAN=safe0.42"));
        assert!(files[2].1.starts_with("[Match]\nName=safe0.42\n\n[Network]\nDHCP=yes"), "{}", files[2].1);
        assert!(files[3].1.contains("Address=2001:db8::7/64") && files[3].1.contains("UseAutonomousPrefix=no"));
        assert!(files[4].1.ends_with("DHCP=yes\nIPv6AcceptRA=yes\nDNS=192.0.2.53\n"), "beside those of the network");
    }
}
