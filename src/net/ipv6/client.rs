//! The DHCPv6 client of one link as a state machine: messages and times in, messages and what is given out. Pure.
//!
//! Waits are those of RFC 8415 with one exception: a solicitation is repeated at least every two minutes (the limit of
//! RFC 3315), since a robot that recovers should not find a server an hour after it is back. Nothing is sent twice
//! within a second, whatever comes in.
//!
//! The first answer wins only if no better one comes within a second: where somebody has plugged in a router with a
//! server of its own, the preference that the right one has is what tells them apart.

use std::net::Ipv6Addr;
use std::time::Duration;

use crate::net::jitter::Jitter;
use crate::net::passed_over::PassedOver;

use super::message::{self, Dhcp6Answer, Dhcp6AnswerKind, Dhcp6Ask, Dhcp6Given, Dhcp6Sender};

/// Waits after the first message of a kind, and the longest ones, seconds (RFC 8415, 7.6).
const SOLICIT_WAITS_S: (u64, u64) = (1, 120);
const REQUEST_WAITS_S: (u64, u64) = (1, 30);
const RENEW_WAITS_S: (u64, u64) = (10, 600);
/// Times that a server is told that another machine has the address that it gave: it may not hear the first.
const MOST_DECLINES: u32 = 3;
/// Preference of a server that no other need be waited for (RFC 8415, 18.2.9).
const BEST: u8 = 255;
/// Requests to a server that has advertised, half a minute; after that others are asked. RFC 8415 has 10, 3 minutes.
const MOST_REQUESTS: u32 = 5;
/// Solicitations without an answer after which every other message asks for name servers alone: some routers say that
/// there are addresses, and have a server that gives none.
const NAMES_AFTER: u32 = 3;
/// Longest pause after refusals.
const MOST_REFUSAL_PAUSE: Duration = Duration::from_secs(120);
/// Time after which name servers are asked for again, and its least value (RFC 8415, 7.6).
const REFRESH: Duration = Duration::from_secs(86_400);
const LEAST_REFRESH: Duration = Duration::from_secs(600);
/// Least time until a renewal: a server with a lifetime of seconds would keep us and the network busy.
const RENEW_AFTER_MIN: Duration = Duration::from_secs(20);
/// Unanswered messages after which the wait is reported.
const QUIET: u32 = 4;

/// What the client is to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dhcp6Need {
    /// An address, and name servers with it.
    Address,
    /// Name servers only.
    Information,
}

/// Next thing for the caller to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dhcp6Step {
    /// Send this message to all servers.
    Send(Vec<u8>),
    /// Wait for messages, for at most so long.
    Wait(Duration),
}

#[derive(Debug)]
enum State {
    /// Asking whichever server there is.
    Asking,
    /// A server has advertised, and is asked for what it offers.
    Requesting { server: Vec<u8>, offered: Dhcp6Given },
    /// Something was given: at this time, by this server.
    Bound { at: Duration, server: Vec<u8> },
    /// A server gave what another machine has, and is told so.
    Declining { server: Vec<u8>, taken: Vec<Ipv6Addr> },
}

/// DHCPv6 client of one link. All times count from a beginning that the caller chooses.
#[derive(Debug)]
pub(super) struct Dhcp6Client {
    mac: [u8; 6],
    wanted: Dhcp6Need,
    /// For transaction numbers and pauses; no secret depends on it.
    random: Jitter,
    transaction: u32,
    exchange_began: Duration,
    state: State,
    /// What was given last. It stays in use while the servers are away.
    given: Option<Dhcp6Given>,
    due: Duration,
    wait: Duration,
    unanswered: u32,
    refusals: u32,
    /// Addresses that another machine had, since the cable was last away.
    declines: u32,
    /// Best of the offers that came before the first wait is over.
    best: Option<Dhcp6Answer>,
    /// Servers that did not give what they had advertised, or that gave what is of no use.
    unhelpful: PassedOver<Vec<u8>>,
    report: Option<String>,
}

impl Dhcp6Client {
    /// Makes a client for the card with this address, at `now`.
    pub(super) fn new(mac: [u8; 6], wanted: Dhcp6Need, random: u64, now: Duration) -> Self {
        let mut client = Self {
            mac,
            wanted,
            random: Jitter::new(random),
            transaction: 0,
            exchange_began: now,
            state: State::Asking,
            given: None,
            due: Duration::ZERO,
            wait: Duration::ZERO,
            unanswered: 0,
            refusals: 0,
            declines: 0,
            best: None,
            unhelpful: PassedOver::default(),
            report: None,
        };
        // Machines that lost power together do not ask in step (RFC 8415, 18.2.1).
        client.due = now + Duration::from_millis(client.random.next() % 500);
        client.transaction = client.next_transaction();
        client
    }

    pub(super) fn wanted(&self) -> Dhcp6Need {
        self.wanted
    }

    /// Returns the next thing to do at `now`. A message that is returned counts as sent.
    pub(super) fn step(&mut self, now: Duration) -> Dhcp6Step {
        if now < self.due {
            return Dhcp6Step::Wait(self.due - now);
        }
        if let State::Requesting { server, .. } = &self.state
            && self.unanswered >= MOST_REQUESTS
        {
            let server = server.clone();
            self.pass_over(server, now);
            self.report = Some("a DHCPv6 server advertises an address and does not give it".to_owned());
            self.begin(State::Asking, now);
        }
        if matches!(self.state, State::Declining { .. }) && self.unanswered >= MOST_DECLINES {
            self.ask_after_decline(now);
            return Dhcp6Step::Wait(self.due.saturating_sub(now));
        }
        if let Some(offer) = self.best.take() {
            self.request(offer, now);
        }
        if let State::Bound { at, .. } = self.state {
            if self.unanswered == 0 {
                self.new_exchange(now);
            }
            // Without an answer until the end, whichever server there is may give another address.
            let ended = self.given.as_ref().and_then(|given| given.duration).is_some_and(|time| now >= at + time);
            if ended && self.wanted == Dhcp6Need::Address {
                self.begin(State::Asking, now);
            }
        }
        let held = self.given.as_ref().map(|given| given.addresses.as_slice()).unwrap_or_default();
        let (ask, server, addresses, waits) = match &self.state {
            _ if self.wanted == Dhcp6Need::Information => (Dhcp6Ask::Information, None, &[][..], SOLICIT_WAITS_S),
            State::Asking if self.given.is_none() && self.unanswered >= NAMES_AFTER && self.unanswered % 2 == 1 => {
                (Dhcp6Ask::Information, None, &[][..], SOLICIT_WAITS_S)
            }
            State::Asking => (Dhcp6Ask::Solicit, None, held, SOLICIT_WAITS_S),
            State::Requesting { server, offered } => {
                (Dhcp6Ask::Request, Some(server.as_slice()), offered.addresses.as_slice(), REQUEST_WAITS_S)
            }
            State::Bound { at, server } => {
                let rebind = self.given.as_ref().is_some_and(|given| now >= *at + rebind_after(given));
                let (ask, server) =
                    if rebind { (Dhcp6Ask::Rebind, None) } else { (Dhcp6Ask::Renew, Some(server.as_slice())) };
                (ask, server, held, RENEW_WAITS_S)
            }
            State::Declining { server, taken } => {
                (Dhcp6Ask::Decline, Some(server.as_slice()), taken.as_slice(), SOLICIT_WAITS_S)
            }
        };
        let message = message::message(self.sender(now), ask, server, addresses);
        let limit = self.next_phase(now);
        self.sent(now, waits);
        if let Some(limit) = limit.filter(|limit| self.due > *limit) {
            // The waits begin anew with the next kind of message.
            self.due = limit.max(now + Duration::from_secs(1));
            self.wait = Duration::ZERO;
        }
        Dhcp6Step::Send(message)
    }

    /// Time at which another kind of message has its turn: to any server at T2, for any address at the end.
    fn next_phase(&self, now: Duration) -> Option<Duration> {
        let (State::Bound { at, .. }, Some(given), Dhcp6Need::Address) = (&self.state, &self.given, self.wanted) else {
            return None;
        };
        let end = given.duration.map(|duration| *at + duration);
        end.map(|end| end.min(*at + rebind_after(given))).filter(|rebind| *rebind > now).or(end)
    }

    fn sent(&mut self, now: Duration, (first_s, most_s): (u64, u64)) {
        self.unanswered = self.unanswered.saturating_add(1);
        self.wait =
            if self.unanswered == 1 || self.wait.is_zero() { Duration::from_secs(first_s) } else { self.wait * 2 };
        self.wait = self.wait.min(Duration::from_secs(most_s));
        // A tenth either way; the first one is never shorter (RFC 8415, 15).
        let tenth = u64::try_from(self.wait.as_millis()).unwrap_or(u64::MAX) / 10;
        let jitter = Duration::from_millis(self.random.next() % tenth.max(1));
        let shorter = self.unanswered > 1 && self.random.next() & 1 == 0;
        self.due = now + if shorter { self.wait - jitter } else { self.wait + jitter };
        if self.wanted == Dhcp6Need::Address && self.unanswered >= QUIET && self.unanswered.is_power_of_two() {
            let attempt = self.unanswered;
            self.report = Some(format!("no DHCPv6 answer yet (attempt {attempt}), next in {} s", self.wait.as_secs()));
        }
    }

    /// Takes a message. Whether it changed what is given.
    pub(super) fn receive(&mut self, bytes: &[u8], now: Duration) -> bool {
        let Some(answer) = message::answer(bytes, self.sender(now)) else { return false };
        // Nothing was sent in this exchange, so that nothing can answer it.
        if self.unanswered == 0 {
            return false;
        }
        match (&self.state, self.wanted, answer.kind) {
            (_, Dhcp6Need::Information, Dhcp6AnswerKind::Reply) if !self.unhelpful.has(&answer.server, now) => {
                self.inform(answer, now)
            }
            (State::Asking, Dhcp6Need::Address, Dhcp6AnswerKind::Advertise) => {
                if answer.given.addresses.is_empty() {
                    self.report_refusal(answer.refusal);
                    return self.take_names(answer.given);
                }
                if self.unhelpful.has(&answer.server, now) {
                    return false;
                }
                // The first wait is there to compare offers; who answers after it has waited long enough.
                if answer.preference == BEST || self.unanswered > 1 {
                    self.request(answer, now);
                } else if self.best.as_ref().is_none_or(|best| best.preference < answer.preference) {
                    self.best = Some(answer);
                }
                false
            }
            (State::Declining { server, .. }, _, Dhcp6AnswerKind::Reply) if *server == answer.server => {
                self.ask_after_decline(now);
                false
            }
            (State::Requesting { server, .. }, Dhcp6Need::Address, Dhcp6AnswerKind::Reply)
                if *server == answer.server =>
            {
                self.grant(answer, now)
            }
            (State::Bound { .. }, Dhcp6Need::Address, Dhcp6AnswerKind::Reply) => self.grant(answer, now),
            (State::Asking, Dhcp6Need::Address, Dhcp6AnswerKind::Reply) => self.take_names(answer.given),
            _ => false,
        }
    }

    /// Asks a server for what it offers.
    fn request(&mut self, offer: Dhcp6Answer, now: Duration) {
        let least = Duration::from_secs(1).saturating_sub(now.saturating_sub(self.exchange_began));
        self.begin(State::Requesting { server: offer.server, offered: offer.given }, now);
        // The first request follows at once, and only the first.
        self.due = if self.refusals == 0 { now } else { now + least };
    }

    /// Gives up those of the addresses that another machine has, and tells the server, which marks them and gives
    /// others.
    pub(super) fn decline(&mut self, taken: &[Ipv6Addr], now: Duration) {
        let Some(given) = &mut self.given else { return };
        let (taken, free): (Vec<_>, Vec<_>) = given.addresses.iter().partition(|address| taken.contains(address));
        let Some(first) = taken.first() else { return };
        self.report = Some(format!("the DHCPv6 server gives {first}, which another machine has: it is declined"));
        given.addresses = free;
        self.declines = self.declines.saturating_add(1);
        if let State::Bound { server, .. } = &self.state {
            let server = server.clone();
            self.begin(State::Declining { server, taken }, now);
            self.due = now;
        }
    }

    /// Asks anew once the server knows that its address is taken, with pauses that grow: what claims every address must
    /// not make a storm. The server may have another address, and from the second time on others are asked first.
    fn ask_after_decline(&mut self, now: Duration) {
        let pause = pause_after(self.declines.saturating_sub(1));
        if let State::Declining { server, .. } = &self.state
            && self.declines > 1
        {
            self.unhelpful.add(server.clone(), now + pause, now);
        }
        self.begin(State::Asking, now);
        self.due = now + pause;
    }

    /// Takes the name servers of one that gives no address, while nobody gives any.
    fn take_names(&mut self, given: Dhcp6Given) -> bool {
        let has_addresses = self.given.as_ref().is_some_and(|given| !given.addresses.is_empty());
        if has_addresses || given.name_servers.is_empty() {
            return false;
        }
        let named = Dhcp6Given { addresses: Vec::new(), duration: None, ..given };
        self.given.replace(named.clone()).as_ref() != Some(&named)
    }

    fn pass_over(&mut self, server: Vec<u8>, now: Duration) {
        self.unhelpful.add(server, now + pause_after(self.refusals), now);
    }

    fn inform(&mut self, answer: Dhcp6Answer, now: Duration) -> bool {
        let after = answer.given.refresh_after.unwrap_or(REFRESH).max(LEAST_REFRESH);
        let given = Dhcp6Given { addresses: Vec::new(), ..answer.given };
        self.bind(given, answer.server, now, Some(after))
    }

    fn grant(&mut self, answer: Dhcp6Answer, now: Duration) -> bool {
        if answer.given.addresses.is_empty() {
            self.report_refusal(answer.refusal);
            self.pass_over(answer.server, now);
            let pause = pause_after(self.refusals);
            self.refusals = self.refusals.saturating_add(1);
            self.begin(State::Asking, now);
            self.due = now + pause;
            return false;
        }
        let after = renew_after(&answer.given);
        self.refusals = 0;
        self.bind(answer.given, answer.server, now, after)
    }

    fn bind(&mut self, given: Dhcp6Given, server: Vec<u8>, now: Duration, again_after: Option<Duration>) -> bool {
        let changed = self.given.as_ref().is_none_or(|before| {
            (&before.addresses, &before.name_servers, &before.search)
                != (&given.addresses, &given.name_servers, &given.search)
        });
        self.given = Some(given);
        self.begin(State::Bound { at: now, server }, now);
        self.due = again_after.map_or(Duration::MAX, |after| now + after);
        changed
    }

    /// Asks anew: the cable was away and may lead to another network now. What was given stays until there is an
    /// answer.
    pub(super) fn ask_again(&mut self, now: Duration) {
        self.declines = 0;
        self.begin(State::Asking, now);
        self.due = now.max(self.exchange_began + Duration::from_secs(1));
    }

    /// Asks anew, and another server than before if there is one: what that one gave leads nowhere.
    pub(super) fn ask_others(&mut self, now: Duration) {
        if let State::Bound { server, .. } = &self.state {
            self.pass_over(server.clone(), now);
            self.ask_again(now);
        }
    }

    /// What the servers give at this time.
    pub(super) fn given(&self) -> Option<&Dhcp6Given> {
        self.given.as_ref()
    }

    /// Returns a line for the console, if there is one.
    pub(super) fn take_report(&mut self) -> Option<String> {
        self.report.take()
    }

    fn report_refusal(&mut self, status: Option<u16>) {
        let why = status.map_or("it has none".to_owned(), |status| format!("status {status}"));
        self.report = Some(format!("a DHCPv6 server gives no address: {why}"));
    }

    fn begin(&mut self, state: State, now: Duration) {
        self.state = state;
        self.best = None;
        self.unanswered = 0;
        self.new_exchange(now);
    }

    fn new_exchange(&mut self, now: Duration) {
        self.transaction = self.next_transaction();
        self.exchange_began = now;
    }

    fn sender(&self, now: Duration) -> Dhcp6Sender {
        let elapsed = now.saturating_sub(self.exchange_began).as_millis() / 10;
        Dhcp6Sender {
            mac: self.mac,
            transaction: self.transaction,
            elapsed_cs: u16::try_from(elapsed).unwrap_or(u16::MAX),
        }
    }

    fn next_transaction(&mut self) -> u32 {
        (self.random.next() & 0x00ff_ffff) as u32
    }
}

/// Pause after so many earlier refusals.
fn pause_after(earlier: u32) -> Duration {
    Duration::from_secs(1 << earlier.min(7)).min(MOST_REFUSAL_PAUSE)
}

/// T1, or half of the lifetime; `None` when it lasts for ever.
fn renew_after(given: &Dhcp6Given) -> Option<Duration> {
    let duration = given.duration?;
    Some(given.renew_after.filter(|time| *time < duration).unwrap_or(duration / 2).max(RENEW_AFTER_MIN))
}

/// T2, or four fifths of the lifetime.
fn rebind_after(given: &Dhcp6Given) -> Duration {
    let duration = given.duration.unwrap_or(Duration::MAX);
    given.rebind_after.filter(|time| *time < duration).unwrap_or(duration / 5 * 4)
}

#[cfg(test)]
mod tests;
