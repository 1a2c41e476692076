//! The memory of addresses that do not serve although they may take connections: the race of [`super::tcp`] goes by
//! which address takes a connection first, and middleboxes, dead balancers and login pages take every one.
//!
//! An answer alone is no service: the address that a lying name server gives answers everything with a page, and one
//! broken machine behind a balanced name with 404. Only what its receiver had a use for makes an address a good one.
//!
//! And the memory of paths that lose large packets without a word, as tunnels do whose routers send no ICMP.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ureq::http::Uri;

use crate::order;
use crate::sys::thread::lock;

/// The time for which an address that failed is asked after the others of its host.
const MEMORY: Duration = Duration::from_secs(600);
/// The time for which what a name server said is used again: ureq asks before each request, on kept connections too,
/// and a name server that is slow or gone would cost its whole time for each.
const LOOKUP_MEMORY: Duration = Duration::from_secs(30);
/// The most hosts and the most addresses that are remembered; beyond that everything is forgotten.
const MOST: usize = 256;

thread_local! {
    /// The address that this thread asked last. A request and its answer are handled by one thread, and ureq does not
    /// say which connection it took.
    static ASKED: Cell<Option<SocketAddr>> = const { Cell::new(None) };
}

/// The most bytes in a packet of a connection: whatever the link carries at first, then what any path of IPv6 carries,
/// and at last any path of IPv4.
const SEGMENTS: [Option<u32>; 3] = [None, Some(1220), Some(536)];
/// The bytes that came when a connection did more than connect: less fits into packets that are not large.
const LARGE: usize = 1200;

/// The memory of all requests to one source.
#[derive(Debug, Default)]
pub(super) struct AddressMemory {
    state: Mutex<State>,
    /// Connections that were taken and not served.
    unserved: AtomicU64,
    /// Times at which all kept connections were given up.
    given_up: AtomicU64,
    /// The place in [`SEGMENTS`] of the next connection.
    narrowness: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    failed: BTreeMap<SocketAddr, Instant>,
    hosts: BTreeMap<String, (Vec<SocketAddr>, Instant)>,
    /// Hosts that all name servers were asked for.
    everywhere: BTreeMap<String, Instant>,
}

impl State {
    fn failure(&self, address: &SocketAddr, now: Instant) -> Option<Instant> {
        self.failed.get(address).copied().filter(|failed| now.saturating_duration_since(*failed) < MEMORY)
    }

    fn fail(&mut self, address: SocketAddr, now: Instant) {
        if self.failed.len() >= MOST {
            self.failed.clear();
        }
        self.failed.insert(address, now);
    }

    fn learn(&mut self, host: String, addresses: &[SocketAddr], now: Instant) {
        if self.hosts.len() >= MOST {
            self.hosts.clear();
        }
        self.hosts.insert(host, (addresses.to_vec(), now));
    }

    fn may_look_everywhere(&mut self, host: String, now: Instant) -> bool {
        let is_due = |before: &Instant| now.saturating_duration_since(*before) >= LOOKUP_MEMORY;
        let may = self.everywhere.get(&host).is_none_or(is_due);
        if may {
            if self.everywhere.len() >= MOST {
                self.everywhere.clear();
            }
            self.everywhere.insert(host, now);
        }
        may
    }

    fn order(&self, mut addresses: Vec<SocketAddr>, now: Instant) -> Vec<SocketAddr> {
        // Stable: of those without a failure, the order of the lookup is kept; the oldest failure comes next.
        order::by_key(&mut addresses, |address| self.failure(address, now));
        addresses
    }

    /// Whether a host of this address has another one that did not fail of late.
    fn has_other(&self, address: &SocketAddr, now: Instant) -> bool {
        let mut lists = self.hosts.values().map(|(all, _)| all).filter(|all| all.contains(address));
        lists.any(|all| all.iter().any(|other| other != address && self.failure(other, now).is_none()))
    }
}

impl AddressMemory {
    /// The addresses of a host in the order in which to try them.
    pub(super) fn order(&self, addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
        lock(&self.state).order(addresses, Instant::now())
    }

    /// Notes an address that did not take a connection in time.
    pub(super) fn not_reached(&self, address: SocketAddr) {
        lock(&self.state).fail(address, Instant::now());
    }

    /// The number of connections so far that were taken and not served.
    pub(super) fn unserved(&self) -> u64 {
        self.unserved.load(Ordering::Relaxed)
    }

    /// The place in [`SEGMENTS`] of the next connection, and the most bytes in its packets.
    pub(super) fn segments(&self) -> (usize, Option<u32>) {
        let narrowness = self.narrowness.load(Ordering::Relaxed);
        (narrowness, SEGMENTS[narrowness])
    }

    /// The addresses that a host had when it was last asked: the name server may be gone since.
    pub(super) fn known(&self, uri: &Uri) -> Vec<SocketAddr> {
        lock(&self.state).hosts.get(&host(uri)).map(|(addresses, _)| addresses.clone()).unwrap_or_default()
    }

    /// The addresses that a host had a moment ago, unless all of them have failed.
    pub(super) fn known_of_late(&self, uri: &Uri) -> Option<Vec<SocketAddr>> {
        let (state, now) = (lock(&self.state), Instant::now());
        let (addresses, learned) = state.hosts.get(&host(uri))?;
        let is_fit = addresses.iter().any(|address| state.failure(address, now).is_none());
        (is_fit && now.saturating_duration_since(*learned) < LOOKUP_MEMORY).then(|| addresses.clone())
    }

    /// Notes the addresses of a host.
    pub(super) fn learn(&self, uri: &Uri, addresses: &[SocketAddr]) {
        lock(&self.state).learn(host(uri), addresses, Instant::now());
    }

    /// Whether all of these failed of late.
    pub(super) fn have_failed(&self, addresses: &[SocketAddr]) -> bool {
        let (state, now) = (lock(&self.state), Instant::now());
        !addresses.is_empty() && addresses.iter().all(|address| state.failure(address, now).is_some())
    }

    /// Whether all name servers are to be asked for a host. Not again while a lookup is remembered: each time costs
    /// seconds where one of them is dead, and an address may have failed only in that a file is not there.
    pub(super) fn may_look_everywhere(&self, uri: &Uri) -> bool {
        lock(&self.state).may_look_everywhere(host(uri), Instant::now())
    }

    /// Whether the address is left alone for another one of its host: connections to it are not kept either.
    pub(super) fn is_left(&self, address: SocketAddr) -> bool {
        let (state, now) = (lock(&self.state), Instant::now());
        state.failure(&address, now).is_some() && state.has_other(&address, now)
    }

    /// Gives up all kept connections: what forgot one of them, as a router in a pause, forgot the others too.
    pub(super) fn give_up_kept(&self) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins a request of this thread: nothing is asked yet.
    pub(super) fn begin(&self) {
        ASKED.set(None);
    }

    /// Notes that what this thread asked for came, and was of use.
    pub(super) fn served(&self) {
        if let Some(address) = ASKED.get() {
            lock(&self.state).failed.remove(&address);
        }
    }

    /// Notes that what this thread was answered is of no use. Whether another address of the host may know better.
    pub(super) fn served_badly(&self) -> bool {
        let Some(address) = ASKED.get() else { return false };
        let (mut state, now) = (lock(&self.state), Instant::now());
        state.fail(address, now);
        state.has_other(&address, now)
    }

    /// Whether the host that this thread asked last has an address that did not fail of late.
    pub(super) fn has_other(&self) -> bool {
        ASKED.get().is_some_and(|address| lock(&self.state).has_other(&address, Instant::now()))
    }
}

/// Host and port as one key.
fn host(uri: &Uri) -> String {
    let port = uri.port_u16().map_or_else(|| uri.scheme_str().unwrap_or_default().to_owned(), |port| port.to_string());
    format!("{}:{port}", uri.host().unwrap_or_default().to_ascii_lowercase())
}

/// The trial of one connection: it ends once an answer came to what was sent, of whatever worth. What ends before that,
/// for whatever reason, is noted when it is dropped.
#[derive(Debug)]
pub(super) struct AddressTrial {
    addresses: Arc<AddressMemory>,
    address: SocketAddr,
    /// Answers that it takes: with TLS, the first one is the server's part of the handshake, which may be refused here.
    needed: u32,
    was_asked: bool,
    /// What [`AddressMemory::given_up`] was at its beginning.
    born: u64,
    /// The place of its packets in [`SEGMENTS`].
    narrowness: usize,
    /// Bytes that came since something was sent, and whether the wait for more was in vain.
    received: usize,
    is_silent: bool,
}

impl AddressTrial {
    pub(super) fn new(addresses: &Arc<AddressMemory>, address: SocketAddr, is_tls: bool, narrowness: usize) -> Self {
        ASKED.set(Some(address));
        let (addresses, needed) = (Arc::clone(addresses), if is_tls { 2 } else { 1 });
        let born = addresses.given_up.load(Ordering::Relaxed);
        Self { addresses, address, needed, was_asked: false, born, narrowness, received: 0, is_silent: false }
    }

    /// Whether a connection to this address may be kept for another request.
    pub(super) fn may_be_kept(&self) -> bool {
        self.born == self.addresses.given_up.load(Ordering::Relaxed) && !self.addresses.is_left(self.address)
    }

    /// Notes that something was sent.
    pub(super) fn asked(&mut self) {
        ASKED.set(Some(self.address));
        (self.was_asked, self.received) = (true, 0);
    }

    /// Notes that the wait for an answer was in vain.
    pub(super) fn waited(&mut self) {
        self.is_silent = true;
    }

    /// Notes that so many bytes came.
    pub(super) fn answered(&mut self, bytes: usize) {
        (self.is_silent, self.received) = (false, self.received.saturating_add(bytes));
        if self.needed > 0 && std::mem::take(&mut self.was_asked) {
            self.needed -= 1;
        }
    }
}

impl Drop for AddressTrial {
    fn drop(&mut self) {
        if self.needed > 0 {
            self.addresses.not_reached(self.address);
            self.addresses.unserved.fetch_add(1, Ordering::Relaxed);
        }
        if self.is_silent && self.received < LARGE {
            // The path may lose large packets; where it is the server that is silent, small ones do no harm.
            let narrower = (self.narrowness + 1).min(SEGMENTS.len() - 1);
            self.addresses.narrowness.fetch_max(narrower, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::{AddressMemory, AddressTrial, LOOKUP_MEMORY, MEMORY, MOST, State};

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn addresses_that_failed_come_last_for_a_while() {
        let (mut state, start) = (State::default(), Instant::now());
        let all: Vec<SocketAddr> = (1..5).map(address).collect();
        state.learn("h:80".into(), &all, start);
        let mut order = |failed: Option<u16>, second: u64| {
            let now = start + Duration::from_secs(second);
            failed.into_iter().for_each(|port| state.fail(address(port), now));
            let order = state.order(all.clone(), now);
            (order.iter().map(SocketAddr::port).collect::<Vec<_>>(), state.has_other(&address(4), now))
        };
        assert_eq!(order(None, 0), (vec![1, 2, 3, 4], true));
        assert_eq!(order(Some(1), 1), (vec![2, 3, 4, 1], true));
        assert_eq!(order(Some(3), 2), (vec![2, 4, 1, 3], true));
        order(Some(2), 3);
        assert_eq!(order(Some(4), 4), (vec![1, 3, 2, 4], false));
        assert_eq!(order(None, MEMORY.as_secs() + 2), (vec![1, 3, 2, 4], true));
        assert!(!State::default().has_other(&address(4), start));
    }

    #[test]
    fn all_name_servers_are_asked_for_a_host_no_oftener_than_one() {
        let (mut state, start) = (State::default(), Instant::now());
        let mut may = |host: &str, time| state.may_look_everywhere(host.to_owned(), start + time);
        let second = Duration::from_secs(1);
        assert!(may("h:80", second) && may("other:80", second));
        assert!(!may("h:80", second * 2) && !may("h:80", LOOKUP_MEMORY));
        assert!(may("h:80", LOOKUP_MEMORY + second) && !may("h:80", LOOKUP_MEMORY + second));
        (0..2_000).for_each(|number| assert!(may(&number.to_string(), second)));
        assert!(state.everywhere.len() <= MOST);
    }

    #[test]
    fn an_answer_of_no_use_leaves_an_address_for_another_one_until_it_is_of_use() {
        let (addresses, uri) = (Arc::new(AddressMemory::default()), "http://h.example/".parse().unwrap());
        let all = vec![address(80), address(81)];
        assert!(addresses.known(&uri).is_empty());
        addresses.learn(&uri, &all);
        assert_eq!(addresses.order(all.clone()), all);
        let mut trial = AddressTrial::new(&addresses, all[0], false, 0);
        trial.asked();
        trial.answered(10);
        addresses.served();
        assert!(trial.may_be_kept() && addresses.has_other());
        assert!(addresses.served_badly(), "the other one may know better");
        assert!(!trial.may_be_kept() && !addresses.have_failed(&all));
        assert_eq!(addresses.order(all.clone()), [all[1], all[0]]);
        // The other one is no better: there is nothing to leave the first one for.
        let mut other = AddressTrial::new(&addresses, all[1], false, 0);
        other.asked();
        other.answered(10);
        assert!(!addresses.served_badly() && addresses.have_failed(&all));
        assert!(trial.may_be_kept() && other.may_be_kept());
        trial.asked();
        addresses.served();
        assert!(trial.may_be_kept() && !other.may_be_kept());
        assert_eq!(addresses.known(&uri), all);
        addresses.begin();
        assert!(!addresses.served_badly() && !addresses.has_other(), "nothing was asked");
    }

    #[test]
    fn a_connection_is_good_once_what_was_sent_is_answered() {
        let addresses = Arc::new(AddressMemory::default());
        for (is_tls, turns, unserved) in [(false, 0, 1), (false, 1, 0), (true, 0, 1), (true, 1, 1), (true, 2, 0)] {
            let before = addresses.unserved();
            let mut trial = AddressTrial::new(&addresses, address(1), is_tls, 0);
            trial.answered(1);
            for _ in 0..turns {
                trial.asked();
                trial.answered(1);
                trial.answered(1);
            }
            drop(trial);
            assert_eq!(addresses.unserved() - before, unserved, "{is_tls} {turns}");
        }
        for port in 0..2_000 {
            addresses.not_reached(address(port));
        }
        assert!(super::lock(&addresses.state).failed.len() <= MOST);
    }

    #[test]
    fn silence_before_a_large_packet_makes_the_next_ones_smaller() {
        let addresses = Arc::new(AddressMemory::default());
        let silent_after = |bytes: usize, answers_at_last: bool| {
            let (narrowness, _) = addresses.segments();
            // Two at a time are one step.
            for _ in 0..2 {
                let mut trial = AddressTrial::new(&addresses, address(1), false, narrowness);
                trial.answered(1_000_000);
                trial.asked();
                trial.answered(bytes);
                trial.waited();
                if answers_at_last {
                    trial.answered(1);
                }
            }
            addresses.segments().1
        };
        assert_eq!((silent_after(300, true), silent_after(1300, false)), (None, None));
        assert_eq!(silent_after(300, false), Some(1220));
        assert_eq!((silent_after(0, false), silent_after(0, false)), (Some(536), Some(536)));
    }
}
