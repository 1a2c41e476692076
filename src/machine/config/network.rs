//! `[network]`: how the machine gets its addresses, and how long it waits for an answer. Pure.

use std::net::IpAddr;

use super::error::ConfigError;
use super::interface_kinds::{AddressWithPrefix, Interface, StaticAddress};
use super::interfaces::{InterfaceSettings, InterfaceTables, check_gateways};
use super::keys::keys;
use super::kinds::{Address, Addresses, KibPerSecond, Number, Seconds, Text};
use super::proxy_kinds::{DirectHostList, ProxyUrl};

keys! {
    /// The checked network settings.
    #[derive(Debug, Clone, PartialEq, Eq)]
    checked Network

    /// How the machine gets its addresses, and how long it waits for an answer. Without any key, it uses every
    /// interface that has a link, each with DHCP and with what IPv6 routers advertise; the default route is that of the
    /// interface through which a release source answers. Wi-Fi, 802.1X and PPPoE are not supported.
    ["network"] network: NetworkLayer {
        /// Only this interface, by its MAC address or by the name that the running system shows (`enp1s0`). A name that
        /// a rule of the image gives is unknown in recovery, which has no udev, and of several cards `eth0` may be
        /// another one there. If it is not there within 30 s, the others are used in its place.
        interface as interface: Interface, optional "every interface that has a link", argument "interface";
        /// Static address with prefix length, such as `192.0.2.7/24` or `2001:db8::7/64`. It switches DHCP off.
        address as address: AddressWithPrefix, optional "DHCP", argument "address";
        /// Default gateway. It needs `network.address`, of the same kind, and may lie outside of its subnet.
        gateway as gateway: Address, optional "that of the lease", argument "gateway";
        /// Name servers. They come before those of the network, which are asked beside them.
        dns as dns: Addresses, default "", argument "dns";
        /// 802.1Q VLAN ID.
        vlan as vlan: Number<u16, 1, 4094>, optional "untagged frames", argument "vlan";
        /// Proxy for all requests.
        proxy as proxy: ProxyUrl, optional "no proxy", argument "proxy";
        /// Hosts of URLs that are reached without the proxy: names, with all below them, addresses, and networks of
        /// them.
        no_proxy as no_proxy: DirectHostList, default "", argument "no-proxy", newer_than "0.1.0";
        /// Path of a PEM file with the only CA roots to trust for HTTPS.
        ca_file as ca_file: Text, optional "the bundled Mozilla roots";
        /// Seconds to establish a connection, TLS included.
        connect_timeout_s as connect_timeout: Seconds<1, 3600>, default "15";
        /// Seconds without one byte before a transfer is cut and resumed.
        stall_timeout_s as stall_timeout: Seconds<1, 3600>, default "30";
        /// The most to download, all connections together. Below the least value, one connection of several could look
        /// stalled to a server.
        max_rate_kib_s as max_bytes_per_s: KibPerSecond<16, 16_777_216>, optional "no limit", argument "max-rate";
        /// Several interfaces, each with settings of its own. Where `network.interface`, `address`, `gateway` or `vlan`
        /// is set, the list is left out: those describe the only interface, as at a boot prompt.
        interfaces as interfaces: InterfaceTables, default "", newer_than "0.1.0";
    }
}

impl Network {
    /// Checks the `[network]` section alone, for callers that need no release.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the key at fault.
    pub fn resolve(layer: NetworkLayer) -> Result<Self, ConfigError> {
        let network = Self::checked(layer)?;
        let gateways: Vec<IpAddr> = network.gateway.into_iter().collect();
        let addresses: Vec<StaticAddress> = network.address.into_iter().collect();
        check_gateways("network.gateway", "network.address", &addresses, &gateways)?;
        Ok(network)
    }

    /// Whether keys of `[network]` itself describe the only interface, so that the list of interfaces is left out.
    #[must_use]
    pub fn describes_one_interface(&self) -> bool {
        self.interface.is_some() || self.address.is_some() || self.gateway.is_some() || self.vlan.is_some()
    }

    /// The proxy to a host, if there is one and it is not reached without it.
    #[must_use]
    pub fn proxy_to(&self, host: &str) -> Option<&str> {
        self.proxy.as_deref().filter(|_| !self.no_proxy.iter().any(|hosts| hosts.has(host)))
    }

    /// Returns the settings of every interface: those of the list, or the only ones. Name servers of the whole machine
    /// count where an interface has none of its own.
    #[must_use]
    pub fn all_interfaces(&self) -> Vec<InterfaceSettings> {
        let mut all = self.interfaces.clone();
        if all.is_empty() || self.describes_one_interface() {
            all = vec![InterfaceSettings {
                interface: self.interface.clone(),
                addresses: self.address.into_iter().collect(),
                gateways: self.gateway.into_iter().collect(),
                dns: Vec::new(),
                vlan: self.vlan,
            }];
        }
        for one in &mut all {
            if one.dns.is_empty() {
                one.dns.clone_from(&self.dns);
            }
        }
        all
    }
}
