//! What is configured for a link: addresses, routes and rules, and the netlink messages that set them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// Network that a route leads to, and the router on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Network that it leads to.
    pub destination: IpAddr,
    /// Prefix length of the network; 0 for the default route.
    pub prefix_len: u8,
    /// Router to send through; `None` for a network that is on the link itself.
    pub gateway: Option<IpAddr>,
}

impl Route {
    /// Returns the default route through a router.
    #[must_use]
    pub fn default_through(gateway: IpAddr) -> Self {
        let destination = if gateway.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        Self { destination, prefix_len: 0, gateway: Some(gateway) }
    }

    /// Returns the route to the network of an address, which is on the link itself.
    #[must_use]
    pub fn to_network_of(address: IpAddr, prefix_len: u8) -> Self {
        Self { destination: network_of(address, prefix_len), prefix_len, gateway: None }
    }

    /// Whether it is the default route.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.prefix_len == 0
    }
}

/// Returns the first address of the network that an address lies in.
#[must_use]
pub fn network_of(address: IpAddr, prefix_len: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0);
            Ipv4Addr::from(u32::from(address) & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix_len.min(128))).unwrap_or(0);
            Ipv6Addr::from(u128::from(address) & mask).into()
        }
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.destination, self.prefix_len)?;
        self.gateway.map_or(Ok(()), |gateway| write!(f, " through {gateway}"))
    }
}

/// Thing that is configured in the kernel for a link: an address, a route in one of the routing tables, or a rule that
/// says which table counts. They are in the order in which they have to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetworkItem {
    /// Address of a link. The route to its network is an item of its own, so that its metric can be chosen.
    Address {
        /// Index of the link.
        index: u32,
        /// Address of this machine.
        address: IpAddr,
        /// Prefix length of its network.
        prefix_len: u8,
    },
    /// Route through a link.
    Route {
        /// Whether a router is on the way: such routes need the others first.
        through_router: bool,
        /// Index of the link.
        index: u32,
        /// Routing table; [`MAIN_TABLE`] is the one that counts where no rule says otherwise.
        table: u32,
        /// Of several routes to the same network in a table, the one with the lowest number counts.
        metric: u32,
        /// Whether the route stands beside others to the same network with the same metric. Of IPv4 routers that do,
        /// the kernel takes another when the first does not answer on the link.
        beside: bool,
        /// Whether the router is on the link although no address says so.
        onlink: bool,
        /// Network and router.
        route: Route,
    },
    /// Rule that a table counts before the main one.
    Rule {
        /// Of several rules that fit, the one with the lowest number is asked first.
        priority: u32,
        /// Whether the rule is about packets from this address, and not about those to it.
        from: bool,
        /// Address that the rule is about.
        address: IpAddr,
        /// Routing table to look in.
        table: u32,
    },
}

/// Number of the routing table that counts where no rule says otherwise.
pub const MAIN_TABLE: u32 = 254;

/// Names an item in an error.
pub(super) fn describe(item: NetworkItem) -> String {
    match item {
        NetworkItem::Address { address, prefix_len, .. } => format!("the address {address}/{prefix_len}"),
        NetworkItem::Route { route, .. } => format!("the route to {route}"),
        NetworkItem::Rule { from, address, .. } => {
            format!("the rule for packets {} {address}", if from { "from" } else { "to" })
        }
    }
}

/// Makes the request that sets or removes an item.
pub(super) fn message(item: NetworkItem, set: bool) -> RouteNetlinkMessage {
    match item {
        NetworkItem::Address { index, address, prefix_len } => {
            let message = address_message(index, address, prefix_len);
            if set { RouteNetlinkMessage::NewAddress(message) } else { RouteNetlinkMessage::DelAddress(message) }
        }
        NetworkItem::Route { index, table, metric, onlink, route, .. } => {
            let mut message = route_message(index, route);
            // The header has no room for a larger number; the attribute counts.
            message.header.table = u8::try_from(table).unwrap_or(0);
            message.attributes.push(RouteAttribute::Table(table));
            // Metric 0 means "any" to the kernel when a route is removed, and is the same as none for IPv4.
            if metric > 0 {
                message.attributes.push(RouteAttribute::Priority(metric));
            }
            if onlink {
                message.header.flags = RouteFlags::Onlink;
            }
            if set { RouteNetlinkMessage::NewRoute(message) } else { RouteNetlinkMessage::DelRoute(message) }
        }
        NetworkItem::Rule { priority, from, address, table } => {
            let message = rule_message(priority, from, address, table);
            if set { RouteNetlinkMessage::NewRule(message) } else { RouteNetlinkMessage::DelRule(message) }
        }
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn rule_message(priority: u32, from: bool, address: IpAddr, table: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(address);
    message.header.action = RuleAction::ToTable;
    let one = if from {
        message.header.src_len = bits(address);
        RuleAttribute::Source(address)
    } else {
        message.header.dst_len = bits(address);
        RuleAttribute::Destination(address)
    };
    message.attributes = vec![one, RuleAttribute::Priority(priority), RuleAttribute::Table(table)];
    message
}

/// Makes the request that removes a rule of this priority, whatever it is about.
pub(super) fn rules_of_priority(priority: u32, ipv6: bool) -> RouteNetlinkMessage {
    let mut message = RuleMessage::default();
    message.header.family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.attributes = vec![RuleAttribute::Priority(priority)];
    RouteNetlinkMessage::DelRule(message)
}

fn route_message(index: u32, to: Route) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: family(to.destination),
        destination_prefix_length: to.prefix_len,
        protocol: RouteProtocol::Static,
        scope: if to.gateway.is_some() || to.destination.is_ipv6() { RouteScope::Universe } else { RouteScope::Link },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    if to.prefix_len > 0 {
        route.attributes.push(RouteAttribute::Destination(route_address(to.destination)));
    }
    if let Some(gateway) = to.gateway {
        route.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
    }
    route.attributes.push(RouteAttribute::Oif(index));
    route
}

fn address_message(index: u32, address: IpAddr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.index = index;
    message.header.prefix_len = prefix_len;
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
    if let IpAddr::V4(address) = address
        && prefix_len < 31
    {
        // The kernel does not work it out by itself when asked over netlink.
        let broadcast = u32::from(address) | (u32::MAX >> prefix_len);
        message.attributes.push(AddressAttribute::Broadcast(broadcast.into()));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::network_of;

    #[test]
    fn the_network_of_an_address_has_every_length() {
        let network = |text: &str, prefix_len| network_of(text.parse().unwrap(), prefix_len).to_string();
        assert_eq!(network("192.0.2.200", 24), "192.0.2.0");
        assert_eq!((network("192.0.2.200", 0), network("192.0.2.200", 32)), ("0.0.0.0".into(), "192.0.2.200".into()));
        assert_eq!(network("192.0.2.200", 25), "192.0.2.128");
        assert_eq!((network("2001:db8::7", 0), network("2001:db8::7", 128)), ("::".into(), "2001:db8::7".into()));
        assert_eq!(network("2001:db8:1:2:3::7", 64), "2001:db8:1:2::");
        // Longer than the kind has.
        assert_eq!(network("192.0.2.200", 255), "192.0.2.200");
    }
}
