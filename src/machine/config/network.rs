//! `[network]`: how the machine gets an address, and how long it waits for an answer. Pure.

use std::net::Ipv4Addr;

use super::error::ConfigError;
use super::keys::{Shape, ValueKind, keys, refused};
use super::kinds::{ANY, Address, Addresses, KibPerSecond, Number, ProxyUrl, Seconds, Text};

keys! {
    /// The checked network settings.
    #[derive(Debug, Clone, PartialEq, Eq)]
    checked Network

    /// How the machine gets an address, and how long it waits for an answer. Without any key, it uses DHCP on every
    /// interface that has a link.
    ["network"] network: NetworkLayer {
        /// Only this interface, by its name (`enp1s0`) or its MAC address.
        interface as interface: Interface, optional "every interface that has a link", argument "interface";
        /// Static address with prefix length, such as `192.0.2.7/24`. It switches DHCP off.
        address as address: AddressWithPrefix, optional "DHCP", argument "address";
        /// Default gateway. It needs `network.address`, and may lie outside of its subnet.
        gateway as gateway: Address, optional "that of the lease", argument "gateway";
        /// Name servers. With DHCP they replace those of the lease.
        dns as dns: Addresses, default "", argument "dns";
        /// 802.1Q VLAN ID.
        vlan as vlan: Number<u16, 1, 4094>, optional "untagged frames", argument "vlan";
        /// Proxy for all requests.
        proxy as proxy: ProxyUrl, optional "no proxy", argument "proxy";
        /// Path of a PEM file with the only CA roots to trust for HTTPS.
        ca_file as ca_file: Text, optional "the bundled Mozilla roots";
        /// Seconds to establish a connection, TLS included.
        connect_timeout_s as connect_timeout: Seconds<1, 3600>, default "15";
        /// Seconds without one byte before a transfer is cut and resumed.
        stall_timeout_s as stall_timeout: Seconds<1, 3600>, default "30";
        /// The most to download, all connections together. Below the least value, one connection of several could look
        /// stalled to a server.
        max_rate_kib_s as max_bytes_per_s: KibPerSecond<16, 16_777_216>, optional "no limit", argument "max-rate";
    }
}

/// Name of one interface, of either kind that the configuration takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceSelector {
    /// The name that the kernel gives it.
    Name(String),
    /// The hardware address.
    Mac([u8; 6]),
}

/// Address and prefix length of a statically configured interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticAddress {
    /// The address of the machine.
    pub address: Ipv4Addr,
    /// The length of the network's prefix, 0 to 32 bits.
    pub prefix_len: u8,
}

impl Network {
    /// Checks the `[network]` section alone, for callers that need no release.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the key at fault.
    pub fn resolve(layer: NetworkLayer) -> Result<Self, ConfigError> {
        let network = Self::checked(layer)?;
        match (network.address, network.gateway) {
            (None, Some(gateway)) => {
                Err(ConfigError::value("network.gateway", &gateway.to_string(), "network.address beside it"))
            }
            _ => Ok(network),
        }
    }
}

/// An interface, by its name or its MAC address.
#[derive(Debug)]
pub struct Interface;

impl ValueKind for Interface {
    type Written = String;
    type Checked = InterfaceSelector;
    const SHAPE: Shape = Shape::Text(ANY);

    fn expected() -> String {
        "a name or a MAC address".to_owned()
    }

    fn example() -> String {
        "enp1s0".to_owned()
    }

    fn from_text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn check(_key: &'static str, written: String) -> Result<InterfaceSelector, ConfigError> {
        Ok(match parse_mac(&written) {
            Some(mac) => InterfaceSelector::Mac(mac),
            None => InterfaceSelector::Name(written),
        })
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = parts.next().filter(|part| part.len() == 2).and_then(|part| u8::from_str_radix(part, 16).ok())?;
    }
    parts.next().is_none().then_some(mac)
}

/// An IPv4 address with the length of its network's prefix.
#[derive(Debug)]
pub struct AddressWithPrefix;

impl ValueKind for AddressWithPrefix {
    type Written = String;
    type Checked = StaticAddress;
    const SHAPE: Shape = Shape::Text("^[0-9]+[.][0-9]+[.][0-9]+[.][0-9]+/[0-9]+$");

    fn expected() -> String {
        "ADDRESS/PREFIX such as 192.0.2.7/24".to_owned()
    }

    fn example() -> String {
        "192.0.2.7/24".to_owned()
    }

    fn from_text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn check(key: &'static str, written: String) -> Result<StaticAddress, ConfigError> {
        let parts = written.split_once('/').and_then(|(address, prefix)| {
            let prefix_len = prefix.parse().ok().filter(|len| *len <= 32)?;
            Some(StaticAddress { address: address.parse().ok()?, prefix_len })
        });
        parts.ok_or_else(|| refused::<Self>(key, &written))
    }
}
