//! `[network]`: how the machine gets an address, and how patient it is.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, seconds, value_error};

/// `[network]`: without any key, DHCP on every interface that has a link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkLayer {
    /// Only this interface: a name (`enp1s0`) or a MAC address.
    pub interface: Option<String>,
    /// Static address with prefix length, such as `192.0.2.7/24`; switches DHCP off.
    pub address: Option<String>,
    /// Default gateway; only with `address`.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers; with DHCP they replace the ones of the lease.
    pub dns: Option<Vec<IpAddr>>,
    /// 802.1Q VLAN ID, 1 to 4094.
    pub vlan: Option<u16>,
    /// `http://[user:password@]host:port` of a proxy for all requests.
    pub proxy: Option<String>,
    /// PEM file with the only CA roots to trust for HTTPS. Default: the bundled Mozilla roots.
    pub ca_file: Option<String>,
    /// Seconds to establish a connection, TLS included. Default 15.
    pub connect_timeout_s: Option<u64>,
    /// Seconds without one byte before a transfer is cut and resumed. Default 30.
    pub stall_timeout_s: Option<u64>,
    /// The most to download, KiB per second, all connections together; 16 to 16777216. Default: no limit.
    pub max_rate_kib_s: Option<u64>,
}

/// The checked network settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Only this interface, by name or MAC address.
    pub interface: Option<InterfaceSelector>,
    /// Static address; `None` means DHCP.
    pub address: Option<StaticAddress>,
    /// Name servers that replace those of the lease.
    pub dns: Vec<IpAddr>,
    /// 802.1Q VLAN ID.
    pub vlan: Option<u16>,
    /// Proxy for all requests.
    pub proxy: Option<String>,
    /// PEM file with the only CA roots to trust.
    pub ca_file: Option<String>,
    /// Time to establish a connection.
    pub connect_timeout: Duration,
    /// Time without one byte before a transfer is cut and resumed.
    pub stall_timeout: Duration,
    /// The most to download, bytes per second, all connections together.
    pub max_bytes_per_s: Option<u64>,
}

/// How one interface is named in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceSelector {
    /// Kernel name.
    Name(String),
    /// Hardware address.
    Mac([u8; 6]),
}

/// Address, prefix length and gateway of a statically configured interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// Prefix length, 0 to 32.
    pub prefix_len: u8,
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
}

impl NetworkLayer {
    /// Takes every key that `later` sets.
    pub(super) fn overridden_by(self, later: Self) -> Self {
        Self {
            interface: later.interface.or(self.interface),
            address: later.address.or(self.address),
            gateway: later.gateway.or(self.gateway),
            dns: later.dns.or(self.dns),
            vlan: later.vlan.or(self.vlan),
            proxy: later.proxy.or(self.proxy),
            ca_file: later.ca_file.or(self.ca_file),
            connect_timeout_s: later.connect_timeout_s.or(self.connect_timeout_s),
            stall_timeout_s: later.stall_timeout_s.or(self.stall_timeout_s),
            max_rate_kib_s: later.max_rate_kib_s.or(self.max_rate_kib_s),
        }
    }
}

impl Network {
    /// Checks the `[network]` section alone, for callers that need no release.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the key at fault.
    pub fn resolve(layer: NetworkLayer) -> Result<Self, ConfigError> {
        let interface = layer.interface.map(|text| match parse_mac(&text) {
            Some(mac) => InterfaceSelector::Mac(mac),
            None => InterfaceSelector::Name(text),
        });
        let address = layer.address.map(|text| static_address(&text, layer.gateway)).transpose()?;
        if let (None, Some(gateway)) = (&address, layer.gateway) {
            return Err(value_error("network.gateway", &gateway.to_string(), "network.address beside it"));
        }
        if let Some(vlan) = layer.vlan
            && !(1..=4094).contains(&vlan)
        {
            return Err(value_error("network.vlan", &vlan.to_string(), "a VLAN ID from 1 to 4094"));
        }
        Ok(Self {
            interface,
            address,
            dns: layer.dns.unwrap_or_default(),
            vlan: layer.vlan,
            proxy: layer.proxy.map(checked_proxy).transpose()?,
            ca_file: layer.ca_file,
            connect_timeout: seconds("network.connect_timeout_s", layer.connect_timeout_s, 15)?,
            stall_timeout: seconds("network.stall_timeout_s", layer.stall_timeout_s, 30)?,
            max_bytes_per_s: layer.max_rate_kib_s.map(checked_rate).transpose()?,
        })
    }
}

/// In bytes per second. Below the least, one connection of several could look stalled to a server.
fn checked_rate(kib_s: u64) -> Result<u64, ConfigError> {
    if !(16..=16 << 20).contains(&kib_s) {
        return Err(value_error("network.max_rate_kib_s", &kib_s.to_string(), "KiB per second from 16 to 16777216"));
    }
    Ok(kib_s * 1024)
}

fn checked_proxy(url: String) -> Result<String, ConfigError> {
    if !url.starts_with("http://") {
        return Err(value_error("network.proxy", &url, "http://[user:password@]host:port"));
    }
    Ok(url)
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = parts.next().filter(|part| part.len() == 2).and_then(|part| u8::from_str_radix(part, 16).ok())?;
    }
    parts.next().is_none().then_some(mac)
}

fn static_address(text: &str, gateway: Option<Ipv4Addr>) -> Result<StaticAddress, ConfigError> {
    let error = || value_error("network.address", text, "ADDRESS/PREFIX such as 192.0.2.7/24");
    let (address, prefix) = text.split_once('/').ok_or_else(error)?;
    let prefix_len: u8 = prefix.parse().map_err(|_| error())?;
    if prefix_len > 32 {
        return Err(error());
    }
    Ok(StaticAddress { address: address.parse().map_err(|_| error())?, prefix_len, gateway })
}
