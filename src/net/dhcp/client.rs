//! The DHCP client of one link as a state machine: frames and times in, frames and a lease out. Pure.
//!
//! At most one DISCOVER is sent in a second and at most one line is reported in ten seconds, whatever comes in. A
//! refusal (NAK) counts only from the server that was asked, and makes the client wait longer each time: two servers on
//! a segment that refuse each other's addresses, or one whose addresses have run out, then cost neither the network nor
//! the console. A server that offers and then says nothing is one that refuses: it may be the first to answer for ever.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::net::jitter::Jitter;
use crate::net::passed_over::PassedOver;

use super::message::{self, Ask, Lease, MessageKind, Sender, ServerAnswer};

/// Waits after the first, second, ... unanswered DISCOVER; the last one repeats. RFC 2131 starts with 4 s, and that
/// matters: servers ping a fresh address for up to 3 s before they offer it. The RFC goes on to 64 s; we stop at 30,
/// which is what a switch port takes to forward at last.
const DISCOVER_WAITS_S: [u64; 4] = [4, 8, 16, 30];
/// Waits after each REQUEST. It goes to a server that has just answered.
const REQUEST_WAITS_S: [u64; 4] = [2, 2, 4, 4];
/// DISCOVERs without an offer after which the answer of a server older than DHCP is taken.
const BOOTP_AFTER: usize = 3;
/// Requests to keep an address in which only the server of the lease is listened to: what a stranger grants is worth
/// less than what works.
const OWN_SERVER_TRIES: usize = 2;
/// Least time between two DISCOVERs.
const DISCOVER_PAUSE: Duration = Duration::from_secs(1);
/// Longest time that refusals make the client wait.
const MOST_REFUSAL_PAUSE: Duration = Duration::from_secs(64);
/// Least time between two reports.
const REPORT_PAUSE: Duration = Duration::from_secs(10);
/// Time in which what was asked for before is still taken when it is granted: a relay over a slow line, or a server
/// that checks its other half first, may take longer than all waits for one request.
const LATE: Duration = Duration::from_secs(60);
/// Requests before the current one that are remembered.
const MOST_EARLIER: usize = 4;
/// Requests for an offer after which another address from another server is taken too: of a pair of servers, one may
/// offer and the other grant.
const OFFER_TRIES: usize = 2;

/// Next thing for the caller to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClientStep {
    /// Send this frame.
    Send(Vec<u8>),
    /// Wait for frames, for at most so long.
    Wait(Duration),
}

#[derive(Debug)]
enum State {
    Discovering,
    Requesting(Asked),
}

/// A server was asked for an address: one that it offered, or one that is held.
#[derive(Debug)]
struct Asked {
    ask: Ask,
    address: Ipv4Addr,
    server: Ipv4Addr,
    tries: usize,
    /// The lease as it was offered or is held.
    known: Box<Lease>,
}

impl Asked {
    /// The lease that was asked for, if this answer grants it.
    fn granted_by(&self, answer: ServerAnswer) -> Option<Lease> {
        if answer.kind != MessageKind::Ack {
            return None;
        }
        let (is_own, is_same) = (answer.server == self.server, answer.lease.address == self.address);
        // Relays and odd servers grant with another identifier than they offered with: the address decides. Some grant
        // another address than they offered, and mean it.
        let is_meant = match self.ask {
            Ask::Keep { .. } => is_same && (is_own || self.tries > OWN_SERVER_TRIES),
            _ => is_same || is_own || self.tries >= OFFER_TRIES,
        };
        is_meant.then(|| if is_own { answer.lease.completed(&self.known) } else { answer.lease })
    }
}

/// A request that nothing is expected of any more.
#[derive(Debug)]
struct Earlier {
    transaction: u32,
    asked: Asked,
    /// Time until which it may be granted after all.
    until: Duration,
}

/// DHCP client of one card. All times count from its creation.
#[derive(Debug)]
pub(super) struct DhcpClient {
    mac: [u8; 6],
    /// For transaction numbers and pauses; no secret depends on it.
    random: Jitter,
    transaction: u32,
    exchange_began: Duration,
    state: State,
    earlier: Vec<Earlier>,
    /// Time at which the next frame is due.
    due: Duration,
    last_discover: Option<Duration>,
    unanswered: usize,
    wants_broadcast: bool,
    refusals: u32,
    /// Servers that refused, or whose leases are of no use.
    refusers: PassedOver<Ipv4Addr>,
    last_report: Option<Duration>,
    report: Option<String>,
}

impl DhcpClient {
    /// Makes a client for the card with this address. With `held` it first asks to keep that lease's address. Offers of
    /// the servers in `passed_over` are left until these times.
    pub(super) fn new(mac: [u8; 6], random: u64, held: Option<&Lease>, passed_over: &[(Ipv4Addr, Duration)]) -> Self {
        let state = held.map_or(State::Discovering, |lease| {
            State::Requesting(Asked {
                ask: Ask::Keep { address: lease.address },
                address: lease.address,
                server: lease.server,
                tries: 0,
                known: Box::new(lease.clone()),
            })
        });
        let mut client = Self {
            mac,
            random: Jitter::new(random),
            transaction: 0,
            exchange_began: Duration::ZERO,
            state,
            earlier: Vec::new(),
            due: Duration::ZERO,
            last_discover: None,
            unanswered: 0,
            wants_broadcast: false,
            refusals: 0,
            refusers: PassedOver::until(passed_over),
            last_report: None,
            report: None,
        };
        client.transaction = client.next_transaction();
        client
    }

    /// Returns the next thing to do at `now`. A frame that is returned counts as sent.
    pub(super) fn step(&mut self, now: Duration) -> ClientStep {
        if now < self.due {
            return ClientStep::Wait(self.due - now);
        }
        match &mut self.state {
            State::Requesting(Asked { ask, tries, .. }) if *tries < REQUEST_WAITS_S.len() => {
                let ask = *ask;
                self.due = now + Duration::from_secs(REQUEST_WAITS_S[*tries]);
                *tries += 1;
                ClientStep::Send(message::frame(self.sender(now), ask))
            }
            State::Requesting(Asked { ask, server, .. }) => {
                match (ask, *server) {
                    (Ask::Select { .. }, server) => {
                        self.refused(server, "offers an address and does not grant it", now)
                    }
                    _ => self.begin_again(now, Duration::ZERO),
                }
                ClientStep::Wait(self.due.saturating_sub(now))
            }
            State::Discovering => self.discover(now),
        }
    }

    fn discover(&mut self, now: Duration) -> ClientStep {
        let wait_s = DISCOVER_WAITS_S[self.unanswered.min(DISCOVER_WAITS_S.len() - 1)];
        self.unanswered += 1;
        // Some wireless bridges and relays lose an answer to an address that nobody has yet, and some filters one to
        // everybody: each way is tried in turn.
        self.wants_broadcast = self.unanswered.is_multiple_of(2);
        // A second of jitter either way (RFC 2131, 4.1): machines that lost power together do not ask in step.
        let jitter = Duration::from_millis(self.random.next() % 2000);
        self.due = now + Duration::from_secs(wait_s - 1) + jitter;
        self.last_discover = Some(now);
        // A card of an inner network may have no server for ever: its lines become rare.
        if self.unanswered > 1 && (self.unanswered <= 4 || self.unanswered.is_power_of_two()) {
            let attempt = self.unanswered;
            self.say(now, format!("no DHCP answer yet (attempt {attempt}), next in {wait_s} s"));
        }
        ClientStep::Send(message::frame(self.sender(now), Ask::Discover))
    }

    /// Takes a frame from the link, and returns the lease once a server has granted one.
    pub(super) fn receive(&mut self, frame: &[u8], now: Duration) -> Option<Lease> {
        let Some(answer) = message::answer(frame, self.sender(now)) else { return self.granted_late(frame, now) };
        match (&self.state, answer.kind) {
            (State::Discovering, MessageKind::Offer) if self.last_discover.is_some() => {
                if !self.refusers.has(&answer.server, now) {
                    self.unanswered = 0;
                    self.due = now;
                    let (address, server) = (answer.lease.address, answer.server);
                    let (ask, known) = (Ask::Select { address, server }, Box::new(answer.lease));
                    self.state = State::Requesting(Asked { ask, address, server, tries: 0, known });
                }
                None
            }
            (State::Discovering, MessageKind::Bootp)
                if self.unanswered >= BOOTP_AFTER && !self.refusers.has(&answer.server, now) =>
            {
                Some(Lease { duration: None, ..answer.lease })
            }
            (State::Requesting(asked), MessageKind::Ack) => asked.granted_by(answer),
            (State::Requesting(asked), MessageKind::Nak) if answer.server == asked.server => {
                self.refused(answer.server, "refuses its own offer", now);
                None
            }
            // These are late offers, refusals of servers that were not asked, and anything else.
            _ => None,
        }
    }

    /// Takes a frame that answers nothing that is open: what was asked for before may be granted now, or right behind a
    /// refusal that somebody else made up.
    fn granted_late(&self, frame: &[u8], now: Duration) -> Option<Lease> {
        let earlier = self.earlier.iter().filter(|earlier| now < earlier.until);
        let granted = |earlier: &Earlier| {
            let sender = Sender { transaction: earlier.transaction, ..self.sender(now) };
            earlier.asked.granted_by(message::answer(frame, sender)?)
        };
        earlier.rev().find_map(granted)
    }

    /// Returns a line for the console, if there is one.
    pub(super) fn take_report(&mut self) -> Option<String> {
        self.report.take()
    }

    fn refused(&mut self, server: Ipv4Addr, how: &str, now: Duration) {
        let pause = (DISCOVER_PAUSE * 2_u32.saturating_pow(self.refusals)).min(MOST_REFUSAL_PAUSE);
        self.refusals += 1;
        self.begin_again(now, pause);
        self.refusers.add(server, self.due, now);
        let wait_s = self.due.saturating_sub(now).as_secs();
        self.say(now, format!("the DHCP server {server} {how}; asking again in {wait_s} s"));
    }

    /// Begins another exchange, with a number of its own.
    fn begin_again(&mut self, now: Duration, pause: Duration) {
        let earliest = self.last_discover.map_or(now, |last| last + DISCOVER_PAUSE);
        if let State::Requesting(asked) = std::mem::replace(&mut self.state, State::Discovering) {
            self.earlier.drain(..(self.earlier.len() + 1).saturating_sub(MOST_EARLIER));
            self.earlier.push(Earlier { transaction: self.transaction, asked, until: now + LATE });
        }
        self.transaction = self.next_transaction();
        self.exchange_began = now;
        self.due = (now + pause).max(earliest);
    }

    fn sender(&self, now: Duration) -> Sender {
        let elapsed_s = u16::try_from(now.saturating_sub(self.exchange_began).as_secs()).unwrap_or(u16::MAX);
        Sender { mac: self.mac, transaction: self.transaction, elapsed_s, wants_broadcast: self.wants_broadcast }
    }

    fn say(&mut self, now: Duration, text: String) {
        if self.last_report.is_none_or(|last| now >= last + REPORT_PAUSE) {
            self.last_report = Some(now);
            self.report = Some(text);
        }
    }

    fn next_transaction(&mut self) -> u32 {
        (self.random.next() & 0xffff_ffff) as u32
    }
}

#[cfg(test)]
mod tests;
