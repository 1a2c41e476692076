//! The addresses, routes and rules that the cards need, all at a time. Pure.
//!
//! Every card has a routing table of its own, and packets from its addresses follow that one: an answer leaves by the
//! card that the question came in by, and a connection stays on its card when another one becomes the default. The main
//! table has the routes of all cards, those of the card in use before the others. With one card there is only the main
//! table.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use crate::sys::net::items::{MAIN_TABLE, NetworkItem, Route, network_of};

/// Metric of the routes of the card in use. The kernel's own IPv6 routes to a network on the link have 256.
const METRIC: u32 = 50;
/// Metric of the routes of the first other card; the next ones follow.
const METRIC_OF_OTHERS: u32 = 100;
/// Room for the routers of a card.
const METRICS_EACH: u32 = 16;
/// Number of the first table that is ours.
const FIRST_TABLE: u32 = 1000;
/// Priorities of rules; the kernel's own table of local addresses is 0, the main one 32766.
const MOST_SLOTS: u32 = 32;
const PRIORITY_FROM: u32 = 1000;
const PRIORITY_FROM_OTHERS: u32 = 1100;
const PRIORITY_TO: u32 = 2000;
const PRIORITY_TO_OTHERS: u32 = 2100;

/// Priorities of every rule that may be ours: an earlier process of this boot may have left some.
pub(super) fn priorities() -> impl Iterator<Item = u32> {
    let of = |chosen, others| std::iter::once(chosen).chain(others..others + MOST_SLOTS);
    of(PRIORITY_FROM, PRIORITY_FROM_OTHERS).chain(of(PRIORITY_TO, PRIORITY_TO_OTHERS))
}

/// Settings of one link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LinkFacts {
    pub(super) name: String,
    pub(super) index: u32,
    /// Number of the card, unlike that of any other at the time.
    pub(super) slot: u32,
    /// Whether the card is the one in use.
    pub(super) chosen: bool,
    /// Addresses to set, with the prefix lengths of their networks.
    pub(super) addresses: Vec<(IpAddr, u8)>,
    /// Addresses that the kernel made by itself.
    pub(super) made_by_kernel: Vec<Ipv6Addr>,
    /// Routes but those to the networks of the addresses.
    pub(super) routes: Vec<Route>,
    /// Number of times that the routers changed their order.
    pub(super) turn: usize,
    /// Addresses that were reached through this link, and its name servers.
    pub(super) destinations: Vec<IpAddr>,
}

/// Returns everything to configure, each with the name of its link.
pub(super) fn items(links: &[LinkFacts]) -> BTreeMap<NetworkItem, String> {
    let mut all = BTreeMap::new();
    for link in links {
        let mut put = |item| _ = all.entry(item).or_insert_with(|| link.name.clone());
        let (index, table) = (link.index, FIRST_TABLE + link.slot);
        for &(address, prefix_len) in &link.addresses {
            put(NetworkItem::Address { index, address, prefix_len });
        }
        let metric = if link.chosen { METRIC } else { METRIC_OF_OTHERS + METRICS_EACH * link.slot };
        let several = links.len() > 1;
        for (place, route) in routes(link) {
            let item = |table, metric| NetworkItem::Route {
                through_router: route.gateway.is_some(),
                index,
                table,
                // Equal IPv6 routes would share the load, half of it on a router that may be dead.
                metric: metric + if route.destination.is_ipv4() { turn(link, &route) } else { place },
                beside: route.destination.is_ipv4() && place > 0,
                onlink: is_onlink(link, &route),
                route,
            };
            put(item(MAIN_TABLE, metric));
            if several {
                put(item(table, METRIC));
            }
        }
        if !several {
            continue;
        }
        let (from, to) = if link.chosen {
            (PRIORITY_FROM, PRIORITY_TO)
        } else {
            (PRIORITY_FROM_OTHERS + link.slot, PRIORITY_TO_OTHERS + link.slot)
        };
        let own = link.addresses.iter().map(|(address, _)| *address);
        for address in own.chain(link.made_by_kernel.iter().copied().map(IpAddr::V6)) {
            put(NetworkItem::Rule { priority: from, from: true, address, table });
        }
        for &address in link.destinations.iter().filter(|address| can_be_routed(address)) {
            put(NetworkItem::Rule { priority: to, from: false, address, table });
        }
    }
    all
}

/// Routes of a link, each with its place among those to the same network: routers that are preferred come first.
fn routes(link: &LinkFacts) -> Vec<(u32, Route)> {
    let longest = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let networks = link.addresses.iter().filter(|(address, prefix_len)| *prefix_len < longest(address));
    let networks = networks.map(|(address, prefix_len)| Route::to_network_of(*address, *prefix_len));
    let mut placed: Vec<(u32, Route)> = Vec::new();
    for route in networks.chain(link.routes.iter().copied()) {
        if placed.iter().any(|(_, known)| *known == route) {
            continue;
        }
        let same = |known: &Route| (known.destination, known.prefix_len) == (route.destination, route.prefix_len);
        let place = placed.iter().filter(|(_, known)| same(known)).count();
        if let Some(place) = u32::try_from(place).ok().filter(|place| *place < METRICS_EACH) {
            placed.push((place, route));
        }
    }
    placed
}

/// IPv4 routers that change their order take another metric: the kernel would refuse to put one before the others that
/// stands beside them already.
fn turn(link: &LinkFacts, route: &Route) -> u32 {
    let beside = link.routes.iter().filter(|other| other.is_default() && other.destination.is_ipv4()).count();
    if route.is_default() { u32::try_from(link.turn % beside.max(1)).unwrap_or(0) % METRICS_EACH } else { 0 }
}

/// Whether a router lies outside of the networks of the link's addresses, as some providers have it.
fn is_onlink(link: &LinkFacts, route: &Route) -> bool {
    let Some(gateway) = route.gateway else { return false };
    if matches!(gateway, IpAddr::V6(gateway) if gateway.is_unicast_link_local()) {
        return false;
    }
    let within = |network: IpAddr, prefix_len| {
        network.is_ipv4() == gateway.is_ipv4() && network_of(gateway, prefix_len) == network_of(network, prefix_len)
    };
    let by_address = link.addresses.iter().any(|(address, prefix_len)| within(*address, *prefix_len));
    let by_route = gateway.is_ipv6()
        && link.routes.iter().any(|route| route.gateway.is_none() && within(route.destination, route.prefix_len));
    !(by_address || by_route)
}

/// Whether a rule can lead to an address: those of a link have no route, and those of this machine need none.
fn can_be_routed(address: &IpAddr) -> bool {
    let of_link = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !of_link && !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::{LinkFacts, items};
    use crate::sys::net::items::{MAIN_TABLE, NetworkItem, Route};
    use std::net::IpAddr;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link(slot: u32, address: &str, prefix_len: u8, gateway: &str) -> LinkFacts {
        LinkFacts {
            name: format!("eth{slot}"),
            index: slot + 2,
            slot,
            addresses: vec![(ip(address), prefix_len)],
            routes: vec![Route::default_through(ip(gateway))],
            ..LinkFacts::default()
        }
    }

    /// Routes of a table as text, those that count first.
    fn routes(links: &[LinkFacts], wanted: u32) -> Vec<String> {
        let mut found: Vec<(u32, String)> = items(links)
            .into_iter()
            .filter_map(|(item, name)| match item {
                NetworkItem::Route { table, metric, route, .. } if table == wanted => {
                    Some((metric, format!("{route} {name}")))
                }
                _ => None,
            })
            .collect();
        found.sort();
        found.into_iter().map(|(_, text)| text).collect()
    }

    /// Rules as text, those that count first.
    fn rules(links: &[LinkFacts]) -> Vec<String> {
        let found = items(links).into_iter().filter_map(|(item, name)| match item {
            NetworkItem::Rule { from, address, .. } => {
                Some(format!("{} {address} {name}", if from { "from" } else { "to" }))
            }
            _ => None,
        });
        found.collect()
    }

    #[test]
    fn one_card_has_the_main_table_only() {
        let one = [LinkFacts { chosen: true, ..link(0, "192.0.2.7", 24, "192.0.2.1") }];
        assert_eq!(routes(&one, MAIN_TABLE), ["0.0.0.0/0 through 192.0.2.1 eth0", "192.0.2.0/24 eth0"]);
        assert_eq!(items(&one).len(), 3);
    }

    #[test]
    fn the_card_in_use_comes_first_in_the_same_subnet_and_with_the_same_gateway() {
        let mut links = [link(0, "192.168.1.50", 24, "192.168.1.1"), link(1, "192.168.1.50", 24, "192.168.1.1")];
        links[1].chosen = true;
        let main = routes(&links, MAIN_TABLE);
        assert!(main[0].ends_with("eth1") && main[1].ends_with("eth1") && main[2].ends_with("eth0"), "{main:?}");
        assert_eq!(main.len(), 4);
        // Even the address is the same: packets from it follow the card in use.
        assert_eq!(rules(&links), ["from 192.168.1.50 eth1", "from 192.168.1.50 eth0"]);
        assert_eq!(routes(&links, 1000).len(), 2);
        assert!(routes(&links, 1001).iter().all(|route| route.ends_with("eth1")));
    }

    #[test]
    fn what_was_reached_through_a_card_leads_through_it_whatever_the_networks_of_others() {
        let mut links = [link(0, "10.9.0.50", 8, "10.9.0.1"), link(1, "192.168.7.50", 24, "192.168.7.1")];
        links[1].chosen = true;
        links[1].destinations = vec![ip("10.8.8.8"), ip("127.0.0.1"), ip("fe80::1"), ip("169.254.1.1")];
        links[0].destinations = vec![ip("10.8.8.8")];
        let rules = rules(&links);
        assert_eq!(rules[2..], ["to 10.8.8.8 eth1", "to 10.8.8.8 eth0"]);
    }

    #[test]
    fn routers_of_a_card_are_ranked_and_those_outside_are_on_the_link() {
        let mut one = link(0, "2001:db8::7", 64, "fe80::1");
        one.routes.push(Route::default_through(ip("fe80::2")));
        one.routes.push(Route::default_through(ip("2001:db8:9::1")));
        let main = routes(std::slice::from_ref(&one), MAIN_TABLE);
        let defaults: Vec<&String> = main.iter().filter(|route| route.starts_with("::/0")).collect();
        assert_eq!(
            defaults,
            ["::/0 through fe80::1 eth0", "::/0 through fe80::2 eth0", "::/0 through 2001:db8:9::1 eth0"]
        );
        let onlink: Vec<bool> = items(&[one])
            .into_keys()
            .filter_map(|item| match item {
                NetworkItem::Route { onlink, through_router: true, .. } => Some(onlink),
                _ => None,
            })
            .collect();
        assert_eq!(onlink, [false, false, true]);
    }

    #[test]
    fn routers_that_change_their_order_are_others_to_the_kernel() {
        let mut one = link(0, "192.0.2.7", 24, "192.0.2.1");
        one.routes.push(Route::default_through(ip("192.0.2.2")));
        let before = items(std::slice::from_ref(&one));
        one.routes.swap(0, 1);
        one.turn = 1;
        let after = items(std::slice::from_ref(&one));
        let kept: Vec<_> = after.keys().filter(|item| before.contains_key(item)).collect();
        assert_eq!((before.len(), after.len(), kept.len()), (4, 4, 2), "{kept:?}");
        // One router alone stays as it is.
        let lone = |turn| items(&[LinkFacts { turn, ..link(0, "192.0.2.7", 24, "192.0.2.1") }]);
        assert_eq!(lone(0), lone(3));
    }

    #[test]
    fn an_address_of_one_machine_has_no_network() {
        let one = LinkFacts { routes: Vec::new(), ..link(0, "2001:db8::7", 128, "fe80::1") };
        assert_eq!(items(&[one]).len(), 1);
    }
}
