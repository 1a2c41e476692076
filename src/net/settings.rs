//! The settings of a link: from a DHCP lease, or static.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::dhcp::Lease;
use crate::machine::config::{Network, StaticAddress};
use crate::sys::net::link::Link;
use crate::sys::net::rtnl::Route;

/// Network as it was first configured.
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
    /// Link that gets the address: the card or a VLAN on it.
    pub(super) link: Link,
    pub(super) address: Ipv4Addr,
    pub(super) prefix_len: u8,
    pub(super) routes: Vec<Route>,
    pub(super) dns: Vec<IpAddr>,
    pub(super) search: Vec<String>,
    /// Largest packet, bytes, where the network gives one.
    pub(super) mtu: Option<u16>,
    /// Lease to renew; `None` for a static address.
    pub(super) lease: Option<Lease>,
}

impl Settings {
    /// Makes the settings of a lease, with the configuration's name servers in place of those of the lease.
    pub(super) fn leased(network: &Network, card: Link, link: Link, lease: Lease) -> Self {
        let own = lease.dns.iter().copied().map(IpAddr::V4).collect();
        Self {
            card,
            link,
            address: lease.address,
            prefix_len: lease.prefix_len,
            routes: lease.routes.clone(),
            dns: if network.dns.is_empty() { own } else { network.dns.clone() },
            search: lease.search.clone(),
            mtu: lease.mtu,
            lease: Some(lease),
        }
    }

    /// Makes the settings of a static address. The gateway is the only route in the configuration.
    pub(super) fn fixed(network: &Network, card: Link, link: Link, fixed: &StaticAddress) -> Self {
        let default = |gateway| Route { destination: Ipv4Addr::UNSPECIFIED, prefix_len: 0, gateway: Some(gateway) };
        Self {
            card,
            link,
            address: fixed.address,
            prefix_len: fixed.prefix_len,
            routes: network.gateway.map(default).into_iter().collect(),
            dns: network.dns.clone(),
            search: Vec::new(),
            mtu: None,
            lease: None,
        }
    }

    pub(super) fn gateway(&self) -> Option<Ipv4Addr> {
        self.routes.iter().find(|route| route.is_default())?.gateway
    }

    /// Returns the time after which the lease is renewed: the server's value, if it lies within the lease, or half of
    /// the lease, and never less than `least`.
    pub(super) fn renew_after(&self, least: Duration) -> Option<Duration> {
        let lease = self.lease.as_ref()?;
        let duration = lease.duration?;
        let asked = lease.renew_after.filter(|after| !after.is_zero() && *after < duration);
        Some(asked.unwrap_or(duration / 2).max(least))
    }

    /// Returns the part that callers see.
    pub(super) fn up(&self) -> Up {
        let duration = self.lease.as_ref().and_then(|lease| lease.duration);
        Up {
            interface: self.link.name.clone(),
            address: self.address,
            prefix_len: self.prefix_len,
            gateway: self.gateway(),
            dns: self.dns.clone(),
            lease_seconds: duration.and_then(|lease| u32::try_from(lease.as_secs()).ok()),
        }
    }
}
