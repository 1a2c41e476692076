//! One card with a cable: the threads that ask for its addresses, and what they got.

mod lines;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::choice::{Candidate, CardKey};
use super::conflict;
use super::console::{Console, Topic};
use super::dhcp::Lease;
use super::error::NetError;
use super::ipv6::{self, Ipv6Network};
use super::lease::{self, Keeper};
use super::reach::ReachTrial;
use super::routing::LinkFacts;
use super::settings::Up;
use crate::chain::chain;
use crate::mac;
use crate::machine::config::InterfaceSettings;
use crate::sys::net::items::Route;
use crate::sys::net::link::{Ipv6OnLink, Link, keep_addresses_apart, switch_on_ipv6};
use crate::sys::thread::background;
use lines::{AddressFacts, Said};

/// Time that an IPv6 address alone waits for the IPv4 address of the same card.
const LEASE_PATIENCE: Duration = Duration::from_secs(5);

/// News of the threads of a card. The number says which start of the card it is of.
pub(super) struct News {
    pub(super) key: CardKey,
    pub(super) start: u64,
    pub(super) what: NewsKind,
}

pub(super) enum NewsKind {
    /// A lease was granted or renewed.
    Lease(Box<Lease>),
    /// What the network gives by IPv6 has changed.
    Ipv6(Box<Ipv6Network>),
    /// The card was tried.
    Tried(ReachTrial),
    /// DHCP cannot go on.
    Ended(String),
}

/// Switches that the threads of a card look at.
#[derive(Debug, Default)]
struct Switches {
    stop: AtomicBool,
    cable_moved: AtomicBool,
    cable_moved_for_ipv6: AtomicBool,
    wants_other: AtomicBool,
    wants_other_for_ipv6: AtomicBool,
}

/// Card with a cable. Its threads end when it is dropped.
#[derive(Debug)]
pub(super) struct Card {
    pub(super) key: CardKey,
    pub(super) start: u64,
    /// Number of the card, unlike that of any other at the time.
    pub(super) slot: u32,
    /// Card whose cable matters.
    pub(super) card: Link,
    /// Link that gets the addresses: the card or a VLAN on it.
    pub(super) link: Link,
    settings: InterfaceSettings,
    pub(super) lease: Option<Lease>,
    ipv6: Ipv6Network,
    usable_ipv6: Vec<Ipv6OnLink>,
    /// IPv6 addresses that another machine on the link has too.
    taken_ipv6: Vec<Ipv6Addr>,
    pub(super) trial: Option<ReachTrial>,
    /// Number of what the card was given: it grows when that changes.
    pub(super) given: u64,
    /// Number of the router whose turn it is, of those that the network names.
    pub(super) turn: usize,
    pub(super) since: Instant,
    /// Time since which the cable is away.
    pub(super) lost: Option<Instant>,
    switches: Arc<Switches>,
    said: Said,
}

impl Drop for Card {
    fn drop(&mut self) {
        self.switches.stop.store(true, Ordering::SeqCst);
    }
}

impl Card {
    /// Starts to ask for addresses on a link that has a cable.
    pub(super) fn start(
        (key, start, slot): (CardKey, u64, u32),
        (card, link): (Link, Link),
        settings: InterfaceSettings,
        news: &Sender<News>,
        console: &Arc<Console>,
    ) -> Result<Self, NetError> {
        let this = Self {
            key,
            start,
            slot,
            card,
            link,
            settings,
            lease: None,
            ipv6: Ipv6Network::default(),
            usable_ipv6: Vec::new(),
            taken_ipv6: Vec::new(),
            trial: None,
            given: 0,
            turn: 0,
            since: Instant::now(),
            lost: None,
            switches: Arc::default(),
            said: Said::default(),
        };
        keep_addresses_apart(&this.link.name);
        let by_dhcp = this.settings.addresses.is_empty();
        if by_dhcp {
            this.keep_lease(news.clone(), Arc::clone(console))?;
        } else {
            this.look_for_other_holders(Arc::clone(console))?;
        }
        if switch_on_ipv6(&this.link.name, this.makes_ipv6_addresses()) {
            this.keep_ipv6(by_dhcp, news.clone(), Arc::clone(console))?;
        }
        Ok(this)
    }

    /// Whether a DHCP server may still answer: servers try an address for seconds before they offer it.
    pub(super) fn awaits_lease(&self) -> bool {
        self.settings.addresses.is_empty() && self.lease.is_none() && self.since.elapsed() < LEASE_PATIENCE
    }

    /// Whether the kernel makes addresses of what routers advertise.
    fn makes_ipv6_addresses(&self) -> bool {
        !self.settings.addresses.iter().any(|one| one.address.is_ipv6())
    }

    fn keep_lease(&self, news: Sender<News>, console: Arc<Console>) -> Result<(), NetError> {
        let (key, start, link, switches) = (self.key, self.start, self.link.clone(), Arc::clone(&self.switches));
        background(&format!("dhcp {}", self.link.name), move || {
            let name = link.name.clone();
            // The receiver is gone when the network room has ended.
            let report = |what| _ = news.send(News { key, start, what });
            let say = |text: &str| console.say(&name, Topic::Search, text.to_owned());
            say(&format!("{name}: asking for an address by DHCP"));
            let keeper = Keeper {
                stop: &|| switches.stop.load(Ordering::SeqCst),
                cable_moved: &|| switches.cable_moved.swap(false, Ordering::SeqCst),
                wants_other: &|| switches.wants_other.swap(false, Ordering::SeqCst),
                on_lease: &|lease| report(NewsKind::Lease(Box::new(lease))),
                on_event: &say,
            };
            if let Err(error) = lease::keep(&link, &keeper) {
                report(NewsKind::Ended(chain(&error)));
            }
        })
        .map_err(NetError::Thread)
    }

    /// Says so if another machine has an IPv4 address of the configuration. It is used in any case: nobody else knows a
    /// better one. The kernel looks for other holders of IPv6 addresses by itself.
    fn look_for_other_holders(&self, console: Arc<Console>) -> Result<(), NetError> {
        let (link, addresses) = (self.link.clone(), self.settings.addresses.clone());
        background(&format!("arp {}", self.link.name), move || {
            for one in addresses {
                let IpAddr::V4(address) = one.address else { continue };
                let Some(holder) = conflict::holder(&link, address).ok().flatten() else { continue };
                let (name, mac) = (&link.name, mac::text(holder));
                let text = format!(
                    "{name}: another machine ({mac}) has the configured address {address} too; packets of both get \
                     lost until one of them has another"
                );
                console.say(name, Topic::Trouble, text);
            }
        })
        .map_err(NetError::Thread)
    }

    fn keep_ipv6(&self, by_dhcp: bool, news: Sender<News>, console: Arc<Console>) -> Result<(), NetError> {
        let (key, start, link, switches) = (self.key, self.start, self.link.clone(), Arc::clone(&self.switches));
        background(&format!("ipv6 {}", self.link.name), move || {
            let on_change = |network| _ = news.send(News { key, start, what: NewsKind::Ipv6(Box::new(network)) });
            let say = |text: &str| console.say(&link.name, Topic::Search, text.to_owned());
            let stop = || switches.stop.load(Ordering::SeqCst);
            // It ends when the link is gone, which the next look at the links finds as well.
            let cable_moved = || switches.cable_moved_for_ipv6.swap(false, Ordering::SeqCst);
            let wants_other = || switches.wants_other_for_ipv6.swap(false, Ordering::SeqCst);
            let switches = ipv6::Switches { stop: &stop, cable_moved: &cable_moved, wants_other: &wants_other };
            let _ = ipv6::keep(&link, by_dhcp, &switches, &on_change, &say);
        })
        .map_err(NetError::Thread)
    }

    /// Notes that the cable was away, so that it may lead to another network now.
    pub(super) fn cable_is_back(&mut self) {
        self.lost = None;
        self.switches.cable_moved.store(true, Ordering::SeqCst);
        self.switches.cable_moved_for_ipv6.store(true, Ordering::SeqCst);
    }

    /// Looks for another DHCP server, and gives the next router its turn: what the card was given leads nowhere.
    pub(super) fn give_other(&mut self) {
        self.turn += 1;
        self.given += 1;
        self.switches.wants_other.store(true, Ordering::SeqCst);
        self.switches.wants_other_for_ipv6.store(true, Ordering::SeqCst);
    }

    /// Takes a lease. Whether it gives anything else than the one before.
    pub(super) fn take_lease(&mut self, lease: Lease) -> bool {
        let before = self.lease.take();
        if before.as_ref().is_some_and(|before| before.server != lease.server) {
            self.turn = 0;
        }
        let gives_other = !before.is_some_and(|before| before.configures_as(&lease));
        self.given += u64::from(gives_other);
        self.lease = Some(lease);
        gives_other
    }

    pub(super) fn take_ipv6(&mut self, network: Ipv6Network) {
        self.ipv6 = network;
    }

    /// Takes those of the IPv6 addresses of this machine that are on this link.
    pub(super) fn take_ipv6_addresses(&mut self, all: &[Ipv6OnLink]) {
        let here = all.iter().filter(|one| one.index == self.link.index);
        self.taken_ipv6 = here.clone().filter(|one| one.taken).map(|one| one.address).collect();
        self.usable_ipv6 = here.filter(|one| !one.taken).copied().collect();
    }

    /// Addresses to set.
    fn addresses(&self) -> Vec<(IpAddr, u8)> {
        let fixed = self.settings.addresses.iter().map(|one| (one.address, one.prefix_len));
        let leased = self.lease.iter().map(|lease| (lease.address.into(), lease.prefix_len));
        fixed.chain(leased).chain(self.ipv6.addresses.iter().map(|address| ((*address).into(), 128))).collect()
    }

    /// The address that the machine is known by here, that of IPv4 if it has one.
    fn address(&self) -> Option<(IpAddr, u8)> {
        let four = self.addresses().into_iter().find(|(address, _)| address.is_ipv4());
        four.or_else(|| self.usable_ipv6.first().map(|one| (one.address.into(), one.prefix_len)))
    }

    fn routes(&self) -> Vec<Route> {
        let gateways = &self.settings.gateways;
        let mut routes: Vec<Route> = gateways.iter().copied().map(Route::default_through).collect();
        routes.extend(self.lease.iter().flat_map(|lease| lease.routes.iter().copied()));
        routes.extend(self.ipv6.routes.iter().copied());
        if !gateways.iter().any(IpAddr::is_ipv6) {
            routes.extend(self.ipv6.routers.iter().map(|router| Route::default_through((*router).into())));
        }
        for is_ipv4 in [true, false] {
            let is_one = |route: &&mut Route| route.is_default() && route.destination.is_ipv4() == is_ipv4;
            let mut gateways: Vec<Option<IpAddr>> =
                routes.iter_mut().filter(is_one).map(|route| route.gateway).collect();
            let turn = self.turn % gateways.len().max(1);
            gateways.rotate_left(turn);
            routes.iter_mut().filter(is_one).zip(gateways).for_each(|(route, gateway)| route.gateway = gateway);
        }
        routes
    }

    /// Default gateway, that of IPv4 if there is one.
    fn gateway(&self, ipv4: bool) -> Option<IpAddr> {
        let gateways = self.routes().into_iter().filter(Route::is_default).filter_map(|route| route.gateway);
        gateways.into_iter().find(|gateway| gateway.is_ipv4() == ipv4)
    }

    /// Name servers: those of the configuration before those of the network, which may be all that is left where a
    /// site's server is retired. The answers of the first ones count before those of the others.
    pub(super) fn servers(&self) -> Vec<IpAddr> {
        let four = self.lease.iter().flat_map(|lease| lease.dns.iter().copied().map(IpAddr::V4));
        let of_network = four.chain(self.ipv6.name_servers.iter().copied().map(IpAddr::V6));
        let mut servers = self.settings.dns.clone();
        for server in of_network {
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        servers
    }

    pub(super) fn search(&self) -> Vec<String> {
        let mut search = self.lease.as_ref().map(|lease| lease.search.clone()).unwrap_or_default();
        for domain in &self.ipv6.search {
            if !search.contains(domain) {
                search.push(domain.clone());
            }
        }
        search
    }

    /// The card as one to choose, once it has an address.
    pub(super) fn candidate(&self) -> Option<Candidate> {
        let (address, _) = self.address()?;
        let has_gateway =
            self.gateway(address.is_ipv4()).is_some() || !self.usable_ipv6.is_empty() && self.gateway(false).is_some();
        let rank = u8::from(has_gateway) * 2 + u8::from(!self.servers().is_empty());
        Some(Candidate { key: self.key, rank, carrier: self.lost.is_none() })
    }

    /// What has to be configured for the card.
    pub(super) fn facts(&self, chosen: bool) -> LinkFacts {
        let addresses = self.addresses();
        let mut destinations = self.servers();
        if let Some(trial) = self.trial.as_ref().filter(|_| chosen) {
            destinations.splice(0..0, trial.addresses.iter().copied());
        }
        LinkFacts {
            name: self.link.name.clone(),
            index: self.link.index,
            slot: self.slot,
            chosen,
            made_by_kernel: self
                .usable_ipv6
                .iter()
                .map(|one| one.address)
                .filter(|address| !addresses.iter().any(|(own, _)| own == address))
                .collect(),
            addresses,
            routes: self.routes(),
            turn: self.turn,
            destinations,
        }
    }

    /// Returns the part that callers see, with the name servers that are written.
    pub(super) fn up(&self, dns: Vec<IpAddr>) -> Option<Up> {
        let (address, prefix_len) = self.address()?;
        let duration = self.lease.as_ref().and_then(|lease| lease.duration);
        Some(Up {
            interface: self.link.name.clone(),
            address,
            prefix_len,
            gateway: self.gateway(address.is_ipv4()).or_else(|| self.gateway(false)),
            dns,
            lease_seconds: duration.and_then(|lease| u32::try_from(lease.as_secs()).ok()),
        })
    }

    /// Lines about addresses, if they have changed.
    pub(super) fn news_of_addresses(&mut self) -> Vec<String> {
        let facts = AddressFacts {
            name: &self.link.name,
            addresses: self.addresses(),
            usable_ipv6: self.usable_ipv6.iter().map(|one| (one.address, one.prefix_len)).collect(),
            taken_ipv6: &self.taken_ipv6,
            gateway: self.gateway(true),
            ipv6_router: self.gateway(false),
            name_servers: self.servers(),
            mtu: self.lease.as_ref().and_then(|lease| lease.mtu),
            duration: self.lease.as_ref().and_then(|lease| lease.duration),
        };
        self.said.news_of_addresses(&facts)
    }

    /// Line about the use of the card, if it has changed.
    pub(super) fn news_of_use(&mut self, line: String) -> Option<String> {
        self.said.news_of_use(line)
    }
}
