//! IPv6 of one link: what its routers advertise and what DHCPv6 gives, for as long as the link is used.
//!
//! The kernel makes addresses of the advertised prefixes and checks them for a second owner. Everything else is read
//! here, since with several cards it has to be ranked: default routes, other routes, name servers and domains.

mod advert;
mod client;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod message;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::sys::net::bound;
use crate::sys::net::icmp6::RouterSocket;
use crate::sys::net::items::Route;
use crate::sys::net::link::{Link, ipv6_addresses, reset_neighbour_timer};
use advert::Advertised;
use client::{Dhcp6Client, Dhcp6Need, Dhcp6Step};

/// Ports of DHCPv6 (RFC 8415, 7.2).
const CLIENT_PORT: u16 = 546;
const SERVER_PORT: u16 = 547;
/// All DHCPv6 servers and relays on the link.
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Waits after each question for routers; the last one repeats (RFC 4861, 10 has the first ones, RFC 7559 the rest).
/// A router that is there advertises itself now and then in any case.
const SOLICIT_WAITS_S: [u64; 6] = [2, 4, 4, 8, 16, 60];
/// Questions for routers without an answer, after which DHCPv6 is asked all the same: a network may have one without
/// the other.
const QUESTIONS_FIRST: usize = 3;
/// Time after a router was heard in which the kernel makes an address of what it advertises: a second of waiting at
/// random, and one for the check for a second owner. After that DHCPv6 is asked, whatever the router says.
const OWN_ADDRESS: Duration = Duration::from_secs(5);
/// Time that what was heard stays in use after the cable was away.
const DOUBT: Duration = Duration::from_secs(12);
/// Interval at which the stop condition is checked.
const STOP_CHECK: Duration = Duration::from_millis(200);
/// Messages that are taken at a time; beyond it there is a flood, of which the kernel may drop some.
const MOST_MESSAGES: usize = 64;
const FLOOD_PAUSE: Duration = Duration::from_millis(50);
/// Largest message that is taken: no link that a card has carries more without fragments.
const MOST_BYTES: usize = 1500;

/// What a network gives by IPv6 at a time, beside the addresses that the kernel makes by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ipv6Network {
    /// Addresses by DHCPv6.
    pub(super) addresses: Vec<Ipv6Addr>,
    /// Default routers, the preferred ones first.
    pub(super) routers: Vec<Ipv6Addr>,
    /// Routes but the default ones.
    pub(super) routes: Vec<Route>,
    /// Name servers, those of the routers first.
    pub(super) name_servers: Vec<Ipv6Addr>,
    /// Domains for short names.
    pub(super) search: Vec<String>,
}

/// What is asked of the caller all the time.
pub(super) struct Switches<'a> {
    /// Whether to end.
    pub(super) stop: &'a dyn Fn() -> bool,
    /// Whether the cable was away since the last call.
    pub(super) cable_moved: &'a dyn Fn() -> bool,
    /// Whether another DHCP server was asked for since the last call: what this one gave leads nowhere.
    pub(super) wants_other: &'a dyn Fn() -> bool,
}

/// Listens to the network of a link until it is to end, and hands on what it gives whenever that changes. With
/// `by_dhcp`, servers are asked too where the routers want it.
///
/// # Errors
/// The link is gone, or the kernel has no IPv6.
pub(super) fn keep(
    link: &Link,
    by_dhcp: bool,
    switches: &Switches<'_>,
    on_change: &dyn Fn(Ipv6Network),
    on_event: &dyn Fn(&str),
) -> io::Result<()> {
    let mut listener = Listener::new(link, by_dhcp)?;
    let mut last = Ipv6Network::default();
    while !(switches.stop)() {
        if (switches.cable_moved)() {
            listener.begin_again();
        }
        if (switches.wants_other)()
            && let Some(client) = &mut listener.client
        {
            client.ask_others(listener.began.elapsed());
        }
        listener.decline_taken();
        let patience = listener.send()?;
        listener.routers.wait_or(listener.dhcp_socket.as_ref(), patience.min(STOP_CHECK));
        listener.receive()?;
        let report = listener.client.as_mut().and_then(Dhcp6Client::take_report);
        // Where no router speaks IPv6, a server that is silent is no news.
        if let Some(report) = report.filter(|_| listener.advertised.is_heard()) {
            on_event(&format!("{}: {report}", link.name));
        }
        let now = listener.network();
        if now != last {
            last = now.clone();
            on_change(now);
        }
    }
    Ok(())
}

struct Listener<'a> {
    link: &'a Link,
    by_dhcp: bool,
    began: Instant,
    routers: RouterSocket,
    advertised: Advertised,
    questions: usize,
    ask_routers_at: Duration,
    /// Whether routers are asked although one is known, since it may be that of another network.
    asks_all_routers: bool,
    /// Time at which a router was first heard, until the kernel has made an address.
    without_address_since: Option<Duration>,
    has_own_address: bool,
    client: Option<Dhcp6Client>,
    dhcp_socket: Option<UdpSocket>,
}

impl<'a> Listener<'a> {
    fn new(link: &'a Link, by_dhcp: bool) -> io::Result<Self> {
        Ok(Self {
            link,
            by_dhcp,
            began: Instant::now(),
            routers: RouterSocket::open(&link.name, link.index)?,
            advertised: Advertised::default(),
            questions: 0,
            ask_routers_at: Duration::ZERO,
            asks_all_routers: false,
            without_address_since: None,
            has_own_address: false,
            client: None,
            dhcp_socket: None,
        })
    }

    /// Asks everything anew. What was heard stays in use for a moment, in which the same network repeats it.
    fn begin_again(&mut self) {
        let now = self.began.elapsed();
        self.advertised.doubt_until(now + DOUBT);
        self.questions = 0;
        self.ask_routers_at = now;
        self.asks_all_routers = true;
        (self.without_address_since, self.has_own_address) = (None, false);
        if let Some(client) = &mut self.client {
            client.ask_again(now);
        }
    }

    /// Sends what is due, and returns the time until the next message.
    fn send(&mut self) -> io::Result<Duration> {
        let now = self.began.elapsed();
        self.advertised.expire(now);
        if (self.asks_all_routers || !self.advertised.has_router()) && now >= self.ask_routers_at {
            self.routers.solicit()?;
            self.asks_all_routers = self.asks_all_routers && self.questions < QUESTIONS_FIRST;
            let wait_s = SOLICIT_WAITS_S[self.questions.min(SOLICIT_WAITS_S.len() - 1)];
            self.questions += 1;
            self.ask_routers_at = now + Duration::from_secs(wait_s);
        }
        self.choose_client();
        let Some(client) = &mut self.client else { return Ok(STOP_CHECK) };
        match client.step(now) {
            Dhcp6Step::Wait(time) => Ok(time),
            Dhcp6Step::Send(message) => {
                self.send_to_servers(&message)?;
                Ok(Duration::ZERO)
            }
        }
    }

    /// Starts the DHCPv6 client that the routers want, if it is another than the one that runs.
    fn choose_client(&mut self) {
        if !self.by_dhcp {
            return;
        }
        let heard = self.advertised.is_heard();
        let wanted = match () {
            () if heard && (self.advertised.needs_address() || self.lacks_address()) => Dhcp6Need::Address,
            () if heard && self.advertised.needs_information() => Dhcp6Need::Information,
            () if !heard && self.questions > QUESTIONS_FIRST => Dhcp6Need::Address,
            // A client that runs goes on: what it got is in use.
            () => return,
        };
        let running = self.client.as_ref().map(Dhcp6Client::wanted);
        // One that got an address before a router was heard goes on too.
        if running.is_none() || running == Some(Dhcp6Need::Information) && wanted == Dhcp6Need::Address {
            let random = RandomState::new().hash_one(0_u8);
            self.client = Some(Dhcp6Client::new(self.link.mac, wanted, random, self.began.elapsed()));
        }
    }

    /// Whether no address came of what the routers advertise, for longer than it takes: the prefix has a length or
    /// lifetimes that the kernel makes none of, or another machine has the address.
    fn lacks_address(&mut self) -> bool {
        if self.has_own_address {
            return false;
        }
        let now = self.began.elapsed();
        let since = *self.without_address_since.get_or_insert(now);
        if now < since + OWN_ADDRESS {
            return false;
        }
        self.has_own_address = ipv6_addresses().iter().any(|one| one.index == self.link.index && !one.taken);
        !self.has_own_address
    }

    /// Gives back the addresses of a DHCPv6 server that another machine has. The kernel found that out when they were
    /// set, and does not use them.
    fn decline_taken(&mut self) {
        let now = self.began.elapsed();
        let Some(client) = &mut self.client else { return };
        if client.given().is_some_and(|given| !given.addresses.is_empty()) {
            let taken = ipv6_addresses().into_iter().filter(|one| one.taken && one.index == self.link.index);
            client.decline(&taken.map(|one| one.address).collect::<Vec<_>>(), now);
        }
    }

    fn send_to_servers(&mut self, message: &[u8]) -> io::Result<()> {
        if self.dhcp_socket.is_none() {
            let local = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), CLIENT_PORT);
            // The port may be taken by another client outside of an initramfs: routers are listened to all the same.
            let Ok(socket) = bound::udp_at(Some(&self.link.name), local) else { return Ok(()) };
            socket.set_nonblocking(true)?;
            self.dhcp_socket = Some(socket);
        }
        if let Some(socket) = &self.dhcp_socket {
            // A link that has no address yet, or a full queue, loses it, as a cable may.
            let _ = socket.send_to(message, bound::on_link(ALL_SERVERS, SERVER_PORT, self.link.index));
        }
        Ok(())
    }

    /// Takes what has come in.
    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; MOST_BYTES];
        let mut taken = 0;
        while taken < MOST_MESSAGES {
            let Some(message) = self.routers.receive(&mut buffer)? else { break };
            taken += 1;
            if let Some((length, router)) = message
                && let Some(advert) = advert::read(&buffer[..length])
            {
                if advert.has_odd_timer() {
                    reset_neighbour_timer(&self.link.name);
                }
                self.advertised.hear(router, advert, self.began.elapsed());
            }
        }
        while taken < MOST_MESSAGES {
            let (Some(socket), Some(client)) = (&self.dhcp_socket, &mut self.client) else { break };
            let Ok((length, _)) = socket.recv_from(&mut buffer) else { break };
            taken += 1;
            client.receive(&buffer[..length], self.began.elapsed());
        }
        if taken == MOST_MESSAGES {
            std::thread::sleep(FLOOD_PAUSE);
        }
        Ok(())
    }

    fn network(&self) -> Ipv6Network {
        let given = self.client.as_ref().and_then(Dhcp6Client::given).cloned().unwrap_or_default();
        let mut network = Ipv6Network {
            addresses: given.addresses,
            routers: self.advertised.routers(),
            routes: self.advertised.routes(),
            name_servers: self.advertised.name_servers(),
            search: self.advertised.search(),
        };
        if !self.advertised.is_heard() {
            // Without a router, nothing says how far the link goes; clients have long taken the usual length.
            let of = |address: &Ipv6Addr| Route::to_network_of((*address).into(), 64);
            network.routes.extend(network.addresses.iter().map(of));
        }
        for server in given.name_servers {
            if !network.name_servers.contains(&server) {
                network.name_servers.push(server);
            }
        }
        for domain in given.search {
            if !network.search.contains(&domain) {
                network.search.push(domain);
            }
        }
        network
    }
}
