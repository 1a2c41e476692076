//! The settings of a link: from a DHCP lease, or static.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::dhcp::Lease;
use crate::machine::config::Network;
use crate::sys::net::link::Link;

/// The network as it was configured first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Up {
    /// The link with the address: a card, or the VLAN on it.
    pub interface: String,
    /// Address of this machine.
    pub address: Ipv4Addr,
    /// Prefix length of the address.
    pub prefix_len: u8,
    /// Address of the default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers, as written to `resolv.conf`.
    pub dns: Vec<IpAddr>,
    /// Lease time; `None` for a static address and for a lease without end.
    pub lease_seconds: Option<u32>,
}

/// A link and the address it is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// The card whose cable matters.
    pub(super) card: Link,
    /// Where the address goes: the card or a VLAN on it.
    pub(super) link: Link,
    pub(super) address: Ipv4Addr,
    pub(super) prefix_len: u8,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) dns: Vec<IpAddr>,
    /// `None`: nothing to renew.
    pub(super) lease: Option<Duration>,
}

impl Settings {
    /// A lease, with the configuration's name servers in place of its own.
    pub(super) fn leased(network: &Network, card: Link, link: Link, lease: Lease) -> Self {
        let own = lease.dns.into_iter().map(IpAddr::V4).collect();
        Self {
            card,
            link,
            address: lease.address,
            prefix_len: lease.prefix_len,
            gateway: lease.gateway,
            dns: if network.dns.is_empty() { own } else { network.dns.clone() },
            lease: lease.duration,
        }
    }

    /// The part that callers see.
    pub(super) fn up(&self) -> Up {
        Up {
            interface: self.link.name.clone(),
            address: self.address,
            prefix_len: self.prefix_len,
            gateway: self.gateway,
            dns: self.dns.clone(),
            lease_seconds: self.lease.and_then(|lease| u32::try_from(lease.as_secs()).ok()),
        }
    }
}
