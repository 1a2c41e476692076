//! What IPv6 routers advertise (RFC 4861, RFC 4191, RFC 8106), and what follows from it. Pure.
//!
//! The kernel makes addresses of the prefixes. The routes and the name servers are ours: with several cards, the kernel
//! would give the default routes of all of them the same rank, and it hands on no name server.

use std::net::Ipv6Addr;
use std::time::Duration;

use super::super::dhcp::search_domains;
use crate::order;
use crate::sys::net::items::{Route, network_of};

/// Fixed part of an advertisement.
const FIXED_BYTES: usize = 16;
/// Largest number of entries of each kind that is kept for a link; a hostile peer may advertise any number.
const MOST_ENTRIES: usize = 8;
/// Lifetime of what lasts for ever.
const FOR_EVER: u32 = u32::MAX;
/// Longest time between two messages to a neighbour that a router may ask for, milliseconds; the usual one is 1000 (RFC
/// 4861, 10). An address is checked for that long before it can be used, and some routers have anything there.
const MOST_RETRANSMIT_MS: u32 = 5_000;

mod option {
    pub(super) const PREFIX: u8 = 3;
    pub(super) const ROUTE: u8 = 24;
    pub(super) const NAME_SERVERS: u8 = 25;
    pub(super) const SEARCH: u8 = 31;
}

/// One advertisement, as it was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Advert {
    /// Preference as a default router: 1, 0 or -1.
    preference: i8,
    /// Whether addresses are given by DHCPv6.
    managed: bool,
    /// Whether name servers are given by DHCPv6.
    other: bool,
    lifetime_s: u32,
    /// Time between two messages to a neighbour, milliseconds; 0 leaves it to the host.
    retransmit_ms: u32,
    prefixes: Vec<Prefix>,
    /// Further networks with the lifetimes of the routes to them.
    routes: Vec<(Ipv6Addr, u8, u32)>,
    name_servers: Vec<(Ipv6Addr, u32)>,
    search: Vec<(String, u32)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Prefix {
    network: Ipv6Addr,
    prefix_len: u8,
    on_link: bool,
    autonomous: bool,
    lifetime_s: u32,
}

/// Reads an advertisement, whose first byte gives the type. `None` for bytes that are none; an option that makes no
/// sense is left out.
pub(super) fn read(bytes: &[u8]) -> Option<Advert> {
    let head = bytes.get(..FIXED_BYTES)?;
    if head[0] != 134 || head[1] != 0 {
        return None;
    }
    let flags = head[5];
    let mut advert = Advert {
        preference: preference(flags),
        managed: flags & 0x80 != 0,
        other: flags & 0x40 != 0,
        lifetime_s: u16::from_be_bytes([head[6], head[7]]).into(),
        retransmit_ms: number(head, 12)?,
        ..Advert::default()
    };
    let mut rest = &bytes[FIXED_BYTES..];
    while let [kind, units, ..] = *rest {
        let length = usize::from(units) * 8;
        // A length of zero would never end (RFC 4861, 4.6).
        let Some((one, after)) = rest.split_at_checked(length).filter(|_| length > 0) else { break };
        let _ = advert.take(kind, one);
        rest = after;
    }
    Some(advert)
}

/// RFC 4191, 2.1: two bits, of which 10 is reserved and stands for the middle.
fn preference(flags: u8) -> i8 {
    match flags >> 3 & 3 {
        1 => 1,
        3 => -1,
        _ => 0,
    }
}

impl Advert {
    /// Whether it asks for pauses between messages to a neighbour that cost the link its addresses.
    pub(super) fn has_odd_timer(&self) -> bool {
        self.retransmit_ms > MOST_RETRANSMIT_MS
    }

    fn take(&mut self, kind: u8, option: &[u8]) -> Option<()> {
        match kind {
            option::PREFIX => {
                let prefix_len = option[2];
                let network = address(option, 16)?;
                if prefix_len <= 128 && is_network(network) {
                    self.prefixes.push(Prefix {
                        network: masked(network, prefix_len),
                        prefix_len,
                        on_link: option[3] & 0x80 != 0,
                        autonomous: option[3] & 0x40 != 0,
                        lifetime_s: number(option, 4)?,
                    });
                }
            }
            option::ROUTE => {
                let prefix_len = option[2];
                let mut network = [0; 16];
                let given = &option[8..];
                let length = given.len().min(16);
                network[..length].copy_from_slice(&given[..length]);
                if prefix_len <= 128 && usize::from(prefix_len).div_ceil(8) <= length {
                    self.routes.push((masked(network.into(), prefix_len), prefix_len, number(option, 4)?));
                }
            }
            option::NAME_SERVERS => {
                let lifetime_s = number(option, 4)?;
                let servers = option[8..].chunks_exact(16).filter_map(|bytes| address(bytes, 0));
                self.name_servers.extend(servers.filter(|server| is_host(*server)).map(|server| (server, lifetime_s)));
            }
            option::SEARCH => {
                let lifetime_s = number(option, 4)?;
                self.search.extend(search_domains(&[], &option[8..]).into_iter().map(|domain| (domain, lifetime_s)));
            }
            _ => {}
        }
        Some(())
    }
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    let bytes: [u8; 16] = bytes.get(at..at.checked_add(16)?)?.try_into().ok()?;
    Some(bytes.into())
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Whether a prefix can be that of a network of machines.
fn is_network(network: Ipv6Addr) -> bool {
    !network.is_unicast_link_local() && !network.is_multicast()
}

/// Whether an address can be that of a machine.
pub(super) fn is_host(address: Ipv6Addr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
}

fn masked(network: Ipv6Addr, prefix_len: u8) -> Ipv6Addr {
    match network_of(network.into(), prefix_len) {
        std::net::IpAddr::V6(network) => network,
        std::net::IpAddr::V4(_) => network,
    }
}

/// An entry that lasts until a time, or for ever.
#[derive(Debug, Clone)]
struct Lasting<T> {
    what: T,
    until: Option<Duration>,
    /// Whether it may be of another network, since the cable was away.
    doubted: bool,
    /// Whether its time is over, and it is used in want of a better one.
    over: bool,
}

/// Time at which an entry ends that was withdrawn.
const WITHDRAWN: Duration = Duration::ZERO;

/// Entries of one kind, in the order in which they were heard first.
#[derive(Debug, Clone)]
struct Entries<T>(Vec<Lasting<T>>);

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: PartialEq> Entries<T> {
    /// Adds or renews an entry. A lifetime of zero takes it away.
    fn hear(&mut self, what: T, lifetime_s: u32, now: Duration, same: impl Fn(&T, &T) -> bool) {
        let at = self.0.iter().position(|entry| same(&entry.what, &what));
        let until = (lifetime_s != FOR_EVER).then(|| now + Duration::from_secs(lifetime_s.into()));
        let entry = Lasting { what, until, doubted: false, over: false };
        match at {
            Some(at) if lifetime_s == 0 => _ = self.0.remove(at),
            Some(at) => self.0[at] = entry,
            None if lifetime_s > 0 => self.add(entry),
            None => {}
        }
    }

    /// [`hear`](Self::hear) for what is used until there is another: some routers withdraw the only one by mistake.
    fn hear_or_keep(&mut self, what: T, lifetime_s: u32, now: Duration) {
        if lifetime_s > 0 {
            return self.hear(what, lifetime_s, now, PartialEq::eq);
        }
        self.0.retain(|entry| entry.what != what);
        self.add(Lasting { what, until: Some(WITHDRAWN), doubted: false, over: true });
    }

    fn add(&mut self, entry: Lasting<T>) {
        if self.0.len() == MOST_ENTRIES
            && let Some(at) = self.0.iter().position(|entry| entry.over)
        {
            self.0.remove(at);
        }
        if self.0.len() < MOST_ENTRIES {
            self.0.push(entry);
        }
    }

    fn doubt_until(&mut self, time: Duration) {
        for entry in &mut self.0 {
            entry.until = Some(entry.until.map_or(time, |until| until.min(time)));
            entry.doubted = true;
        }
    }

    fn expire(&mut self, now: Duration) {
        self.0.retain(|entry| entry.until.is_none_or(|until| until > now));
    }

    /// Puts what is over behind the rest. It goes only with the network that it was of, or where it was withdrawn and
    /// there is another.
    fn expire_or_keep(&mut self, now: Duration) {
        self.0.iter_mut().for_each(|entry| entry.over = entry.until.is_some_and(|until| until <= now));
        let is_lone = !self.has_live();
        self.0.retain(|entry| !entry.over || !entry.doubted && (is_lone || entry.until != Some(WITHDRAWN)));
        order::by_key(&mut self.0, |entry| entry.over);
    }

    fn has_live(&self) -> bool {
        self.0.iter().any(|entry| !entry.over)
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|entry| &entry.what)
    }
}

/// A default router.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Router {
    address: Ipv6Addr,
    preference: i8,
}

/// What is advertised on one link at a time. All times count from a beginning that the caller chooses.
#[derive(Debug, Clone, Default)]
pub(super) struct Advertised {
    heard: bool,
    managed: bool,
    other: bool,
    autonomous: bool,
    routers: Entries<Router>,
    on_link: Entries<(Ipv6Addr, u8)>,
    routes: Entries<(Ipv6Addr, u8, Ipv6Addr)>,
    name_servers: Entries<Ipv6Addr>,
    search: Entries<String>,
}

impl Advertised {
    /// Takes an advertisement of a router into account.
    pub(super) fn hear(&mut self, router: Ipv6Addr, advert: Advert, now: Duration) {
        self.heard = true;
        // Routers that disagree must not start and stop a client with each of their messages.
        self.managed |= advert.managed;
        self.other |= advert.other;
        let entry = Router { address: router, preference: advert.preference };
        self.routers.hear(entry, advert.lifetime_s, now, |one, other| one.address == other.address);
        self.autonomous |= advert.prefixes.iter().any(|prefix| prefix.autonomous && prefix.lifetime_s > 0);
        for prefix in advert.prefixes.into_iter().filter(|prefix| prefix.on_link) {
            self.on_link.hear((prefix.network, prefix.prefix_len), prefix.lifetime_s, now, PartialEq::eq);
        }
        for (network, prefix_len, lifetime_s) in advert.routes {
            // The default route in this form overrides the router's own lifetime (RFC 4191, 3.1).
            if prefix_len == 0 {
                let entry = Router { address: router, preference: advert.preference };
                self.routers.hear(entry, lifetime_s, now, |one, other| one.address == other.address);
            } else {
                self.routes.hear((network, prefix_len, router), lifetime_s, now, PartialEq::eq);
            }
        }
        for (server, lifetime_s) in advert.name_servers {
            self.name_servers.hear_or_keep(server, lifetime_s, now);
        }
        for (domain, lifetime_s) in advert.search {
            self.search.hear_or_keep(domain, lifetime_s, now);
        }
        self.expire(now);
    }

    /// Doubts everything: the cable was away and may lead to another network now. What is not advertised again by this
    /// time is over then.
    pub(super) fn doubt_until(&mut self, time: Duration) {
        self.routers.doubt_until(time);
        self.on_link.doubt_until(time);
        self.routes.doubt_until(time);
        self.name_servers.doubt_until(time);
        self.search.doubt_until(time);
    }

    /// Forgets what is over, but for routers, name servers and domains: a lifetime may be shorter than the time between
    /// two advertisements (RFC 8106, 5.1), and switches lose some. What still answers must not vanish from a recovery.
    pub(super) fn expire(&mut self, now: Duration) {
        self.routers.expire_or_keep(now);
        self.on_link.expire(now);
        self.routes.expire(now);
        self.name_servers.expire_or_keep(now);
        self.search.expire_or_keep(now);
    }

    /// Whether any router was heard, be it no default router.
    pub(super) fn is_heard(&self) -> bool {
        self.heard
    }

    /// Whether there is a default router whose time is not over.
    pub(super) fn has_router(&self) -> bool {
        self.routers.has_live()
    }

    /// Whether an address has to come from DHCPv6: the routers say so, or give no prefix to make one of.
    pub(super) fn needs_address(&self) -> bool {
        self.managed || !self.autonomous
    }

    /// Whether name servers have to come from DHCPv6: the routers say so, or name none.
    pub(super) fn needs_information(&self) -> bool {
        self.other || !self.name_servers.has_live()
    }

    /// Default routers, the preferred ones first.
    pub(super) fn routers(&self) -> Vec<Ipv6Addr> {
        let mut routers: Vec<&Lasting<Router>> = self.routers.0.iter().collect();
        order::by_key(&mut routers, |entry| (entry.over, -entry.what.preference));
        routers.into_iter().map(|entry| entry.what.address).collect()
    }

    /// Routes but the default ones: to the networks on the link, then to those behind a router.
    pub(super) fn routes(&self) -> Vec<Route> {
        let on_link = self.on_link.iter().map(|(network, prefix_len)| (network, prefix_len, None));
        let beyond = self.routes.iter().map(|(network, prefix_len, router)| (network, prefix_len, Some(*router)));
        on_link
            .chain(beyond)
            .map(|(network, prefix_len, router)| Route {
                destination: (*network).into(),
                prefix_len: *prefix_len,
                gateway: router.map(Into::into),
            })
            .collect()
    }

    /// Name servers, in the order in which they were heard.
    pub(super) fn name_servers(&self) -> Vec<Ipv6Addr> {
        self.name_servers.iter().copied().collect()
    }

    /// Domains for short names.
    pub(super) fn search(&self) -> Vec<String> {
        self.search.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Advert, Advertised, read};
    use std::net::Ipv6Addr;
    use std::time::Duration;

    const NOW: Duration = Duration::from_secs(100);

    fn router(number: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, number)
    }

    fn address(text: &str) -> [u8; 16] {
        text.parse::<Ipv6Addr>().unwrap().octets()
    }

    /// An advertisement with these flags, lifetime and options.
    fn bytes(flags: u8, lifetime_s: u16, options: &[Vec<u8>]) -> Vec<u8> {
        let mut out = vec![134, 0, 0, 0, 64, flags];
        out.extend_from_slice(&lifetime_s.to_be_bytes());
        out.extend_from_slice(&[0; 8]);
        options.iter().for_each(|option| out.extend_from_slice(option));
        out
    }

    fn prefix(network: &str, prefix_len: u8, flags: u8, lifetime_s: u32) -> Vec<u8> {
        let mut out = vec![3, 4, prefix_len, flags];
        out.extend_from_slice(&lifetime_s.to_be_bytes());
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&address(network));
        out
    }

    fn name_server(server: &str, lifetime_s: u32) -> Vec<u8> {
        let mut out = vec![25, 3, 0, 0];
        out.extend_from_slice(&lifetime_s.to_be_bytes());
        out.extend_from_slice(&address(server));
        out
    }

    fn route(network: &str, prefix_len: u8, units: u8, lifetime_s: u32) -> Vec<u8> {
        let mut out = vec![24, units, prefix_len, 0];
        out.extend_from_slice(&lifetime_s.to_be_bytes());
        out.extend_from_slice(&address(network)[..usize::from(units - 1) * 8]);
        out
    }

    fn heard(adverts: &[Vec<u8>]) -> Advertised {
        let mut all = Advertised::default();
        adverts.iter().for_each(|advert| all.hear(router(1), read(advert).unwrap(), NOW));
        all
    }

    #[test]
    fn a_usual_advertisement_gives_router_prefix_and_name_servers() {
        let mut search = vec![31, 3, 0, 0, 0, 0, 0, 60];
        search.extend_from_slice(b"\x03lab\x07example\x00\x00\x00\x00");
        let all = heard(&[bytes(
            0x40,
            1800,
            &[prefix("2001:db8:1::9", 64, 0xc0, 3600), name_server("2001:db8:1::53", 60), search],
        )]);
        assert_eq!(all.routers(), [router(1)]);
        let routes: Vec<String> = all.routes().iter().map(ToString::to_string).collect();
        assert_eq!(routes, ["2001:db8:1::/64"]);
        assert_eq!(all.name_servers(), ["2001:db8:1::53".parse::<Ipv6Addr>().unwrap()]);
        assert_eq!(all.search(), ["lab.example"]);
        assert!(!all.needs_address() && all.needs_information() && all.has_router());
    }

    #[test]
    fn what_is_withdrawn_or_over_goes() {
        let options = |lifetime| {
            vec![prefix("2001:db8:1::", 64, 0xc0, lifetime), name_server("2001:db8:1::53", lifetime), {
                route("fd00:2::", 48, 2, lifetime)
            }]
        };
        // A router that is no default router any more still gives the rest.
        let all = heard(&[bytes(0, 1800, &options(60)), bytes(0, 0, &options(60))]);
        assert!(!all.has_router() && all.routes().len() == 2 && all.name_servers().len() == 1);
        assert_eq!(heard(&[bytes(0, 1800, &options(60)), bytes(0, 1800, &options(0))]).routes(), []);

        let mut all = heard(&[bytes(0, 30, &options(60))]);
        all.expire(NOW + Duration::from_secs(31));
        assert!(!all.has_router() && all.routes().len() == 2);
        all.expire(NOW + Duration::from_secs(61));
        assert!(all.routes().is_empty() && all.is_heard());
        let mut endless = heard(&[bytes(0, 30, &options(u32::MAX))]);
        endless.expire(Duration::MAX);
        assert_eq!(endless.routes().len(), 2);
    }

    fn servers(all: &Advertised) -> Vec<String> {
        all.name_servers().iter().map(|server| server.to_string().replace("2001:db8:1::", "")).collect()
    }

    /// RFC 8106, 5.1 allows lifetimes that end before the next advertisement, and some routers send 0 or 1 by mistake.
    #[test]
    fn a_name_server_is_used_beyond_its_time_until_there_is_another() {
        for lifetime_s in [0, 1, 200] {
            let mut all = heard(&[bytes(0, 1800, &[name_server("2001:db8:1::a", lifetime_s)])]);
            all.expire(NOW + Duration::from_secs(3600));
            assert_eq!(servers(&all), ["a"], "{lifetime_s}");
            assert!(all.needs_information(), "a better one is asked for by DHCPv6");
            // Repeated as it is, it stays.
            let again = bytes(0, 1800, &[name_server("2001:db8:1::a", lifetime_s)]);
            all.hear(router(1), read(&again).unwrap(), NOW + Duration::from_secs(3600));
            assert_eq!(servers(&all), ["a"]);
            // Another one that lasts comes first, and takes the place of one that was withdrawn.
            let other = bytes(0, 1800, &[name_server("2001:db8:1::b", 7200)]);
            all.hear(router(1), read(&other).unwrap(), NOW + Duration::from_secs(3900));
            assert_eq!(servers(&all), if lifetime_s == 0 { vec!["b"] } else { vec!["b", "a"] });
            assert!(!all.needs_information());
            // And both go with their network.
            all.doubt_until(NOW + Duration::from_secs(3910));
            all.expire(NOW + Duration::from_secs(3911));
            assert_eq!(servers(&all), [""; 0]);
        }
        let live = [name_server("2001:db8:1::b", 600), name_server("2001:db8:1::a", 600)];
        let all = heard(&[bytes(0, 1800, &live), bytes(0, 1800, &[name_server("2001:db8:1::b", 0)])]);
        assert_eq!(servers(&all), ["a"]);
    }

    #[test]
    fn servers_whose_time_is_over_make_room() {
        let mut all = Advertised::default();
        for number in 1..20_u32 {
            let now = NOW + Duration::from_secs((number * 100).into());
            let advert = bytes(0, 1800, &[name_server(&format!("2001:db8:1::{number:x}"), 1)]);
            all.hear(router(1), read(&advert).unwrap(), now);
            assert_eq!(servers(&all)[0], format!("{number:x}"));
        }
        assert_eq!(servers(&all).len(), 8);
    }

    /// A switch that loses advertisements takes the default route of every host after half an hour.
    #[test]
    fn a_router_that_falls_silent_is_used_behind_the_others() {
        let mut all = heard(&[bytes(0x08, 30, &[])]);
        let later = NOW + Duration::from_secs(31);
        all.expire(later);
        assert!(!all.has_router(), "it is asked for again");
        assert_eq!(all.routers(), [router(1)]);
        all.hear(router(2), read(&bytes(0x18, 30, &[])).unwrap(), later);
        assert_eq!(all.routers(), [router(2), router(1)]);
        all.hear(router(1), read(&bytes(0, 0, &[])).unwrap(), later);
        assert_eq!(all.routers(), [router(2)]);
    }

    #[test]
    fn a_cable_that_moved_leaves_only_what_is_advertised_again() {
        let mut all = Advertised::default();
        let options = |network| [prefix(network, 64, 0xc0, u32::MAX), name_server("2001:db8:1::53", 600)];
        all.hear(router(1), read(&bytes(0, 1800, &options("2001:db8:1::"))).unwrap(), NOW);
        all.doubt_until(NOW + Duration::from_secs(10));
        assert!(all.has_router(), "it is used until it is known to be gone");
        all.hear(router(2), read(&bytes(0, 1800, &options("2001:db8:2::"))).unwrap(), NOW);
        all.expire(NOW + Duration::from_secs(11));
        assert_eq!((all.routers(), all.routes().len(), all.name_servers().len()), (vec![router(2)], 1, 1));
    }

    #[test]
    fn preferred_routers_come_first_and_a_route_may_be_the_default() {
        let mut all = Advertised::default();
        for (number, flags) in [(1, 0x18), (2, 0), (3, 0x08), (4, 0x10)] {
            all.hear(router(number), read(&bytes(flags, 600, &[])).unwrap(), NOW);
        }
        assert_eq!(all.routers(), [router(3), router(2), router(4), router(1)]);
        let all = heard(&[bytes(0, 0, &[route("::", 0, 1, 600)])]);
        assert_eq!(all.routers(), [router(1)]);
        assert!(all.needs_address(), "no prefix to make an address of");
    }

    #[test]
    fn a_retransmission_time_of_minutes_is_odd() {
        for (time_ms, is_odd) in [(0_u32, false), (1000, false), (5000, false), (10_000, true), (u32::MAX, true)] {
            let mut advert = bytes(0, 1800, &[]);
            advert[12..16].copy_from_slice(&time_ms.to_be_bytes());
            assert_eq!(read(&advert).unwrap().has_odd_timer(), is_odd, "{time_ms}");
        }
    }

    #[test]
    fn a_flood_of_routers_and_prefixes_is_bounded() {
        let mut all = Advertised::default();
        for number in 0..5_000 {
            let options = [prefix(&format!("2001:db8:{number:x}::"), 64, 0xc0, 60), name_server("2001:db8::1", 60)];
            all.hear(router(number), read(&bytes(0, 600, &options)).unwrap(), NOW);
        }
        assert_eq!((all.routers().len(), all.routes().len()), (8, 8));
    }

    #[test]
    fn no_bytes_panic_and_what_makes_no_sense_is_left_out() {
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[135; 40]), None);
        // An option without a length, and one that reaches beyond the end.
        assert_eq!(read(&bytes(0, 0, &[vec![3, 0, 1, 1]])), Some(Advert::default()));
        assert_eq!(read(&bytes(0, 0, &[vec![3, 9, 64, 0xc0]])), Some(Advert::default()));
        // Prefixes of the link itself and of multicast, a route shorter than its length says, odd lengths.
        let odd = [
            prefix("fe80::", 64, 0xc0, 60),
            prefix("ff02::", 16, 0xc0, 60),
            prefix("2001:db8::", 129, 0xc0, 60),
            route("fd00:2::", 96, 2, 60),
            vec![25, 1, 0, 0, 0, 0, 0, 60],
            vec![31, 1, 0, 0, 0, 0, 0, 60],
            vec![3, 1, 64, 0xc0, 0, 0, 0, 60],
        ];
        assert_eq!(read(&bytes(0, 0, &odd)), Some(Advert::default()));
        let whole = bytes(0xc0, 1800, &[prefix("2001:db8:1::", 64, 0xc0, 3600), route("fd00:2::", 48, 2, 9)]);
        let mut state = 7_u64;
        for _ in 0..100_000 {
            let mut bytes = whole.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let [value, at, ..] = state.to_be_bytes();
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            if let Some(advert) = read(&bytes) {
                Advertised::default().hear(router(1), advert, NOW);
            }
        }
        (0..whole.len()).for_each(|length| _ = read(&whole[..length]));
    }
}
