//! Which of several cards the default route leads through: one that reaches a source. Pure.
//!
//! With one card nothing is tried until requests fail. With several, the first that has an address is used and tried at
//! once; the others get their turn when it has not reached a source after a moment, and the first that does is used
//! from then on. A card that reaches a source stays in use until it does not any more; requests that are served are
//! worth more than any trial. Where no card reaches one, it may be what a card was given that leads nowhere: another
//! DHCP server of its network, or another router, gets its turn.

use std::collections::BTreeMap;
use std::time::Duration;

/// Card with the settings that it is used with: number of the settings, and the kernel's index of the card.
pub(super) type CardKey = (usize, u32);

/// Head start of the card in use over the others.
const HEAD_START: Duration = Duration::from_secs(1);
/// Time after which a card that reached a source is tried again, unless bytes come in by it. It doubles each time: a
/// fleet that waits for a release must not become a load, and requests that fail bring the next trial forward.
const CHECK: Duration = Duration::from_secs(30);
const MOST_CHECK: Duration = Duration::from_secs(600);
/// Bytes since the last look that show by themselves that something is reached.
const BUSY_BYTES: u64 = 64 << 10;
/// Pauses between trials of a card that reaches nothing.
const FAILED_PAUSE: Duration = Duration::from_secs(5);
const MOST_FAILED_PAUSE: Duration = Duration::from_secs(60);
/// Pause before a card that reached a source until now is given up.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// Least time between looks around that failed requests cause.
const TROUBLE_PAUSE: Duration = Duration::from_secs(10);
/// Looks around after which another card that seems as good gets its turn.
const MOST_TROUBLES: u32 = 3;
/// Bytes that show that the card in use is not at fault for failed requests.
const USEFUL_BYTES: u64 = 1 << 20;
/// Time for which a request that was served outweighs trials in vain: a source may be slower than a trial is patient,
/// or behind others that do not answer.
const SERVED: Duration = Duration::from_secs(60);
/// Time without any source after which a card is to be given something else, while requests fail. It doubles each time:
/// when the servers are down it is nobody's fault here.
const FRUITLESS: Duration = Duration::from_secs(60);
const MOST_FRUITLESS: Duration = Duration::from_secs(960);
/// Longest wait for a card that reaches a source, before the caller goes on with one that does not.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of the way from a card to the sources, in the order in which cards are preferred.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// No source can be connected to.
    No,
    /// Nothing was tried yet.
    #[default]
    Unknown,
    /// Something answers that does not look like a source.
    Doubtful,
    /// A source answers.
    Yes,
}

/// Card that has an address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) key: CardKey,
    /// How much its network gives: gateway and name servers, more is better.
    pub(super) rank: u8,
    /// Whether its cable is there.
    pub(super) carrier: bool,
}

/// What the choice depends on at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look<'a> {
    /// Time since a beginning that the caller chooses.
    pub(super) now: Duration,
    pub(super) candidates: &'a [Candidate],
    /// Cards with a cable, also those without an address.
    pub(super) carriers: usize,
    /// Bytes that came in by the card in use since it exists.
    pub(super) received: u64,
    /// Whether a request failed since the last look.
    pub(super) trouble: bool,
    /// Whether a request was served since the last look.
    pub(super) served: bool,
}

#[derive(Debug)]
struct Entry {
    candidate: Candidate,
    arrived: u64,
    reach: Reach,
    tried_at: Option<Duration>,
    trying: bool,
    due: Duration,
    failures: u32,
    successes: u32,
    /// Times that it was left although it seemed to reach a source.
    blamed: u32,
    /// Time since which it reaches nothing, or since it was to be given something else, and how often it was.
    fruitless_since: Option<Duration>,
    turns: u32,
}

/// The choice among the cards.
#[derive(Debug)]
pub(super) struct CardChoice {
    has_sources: bool,
    entries: BTreeMap<CardKey, Entry>,
    chosen: Option<CardKey>,
    arrivals: u64,
    first_at: Option<Duration>,
    carriers: usize,
    /// Bytes of the card in use at the last trial, and when it was chosen.
    received_at_trial: u64,
    received_when_chosen: Option<u64>,
    troubles: u32,
    last_trouble: Option<Duration>,
    /// Time at which a request was last served, and whether that was by the card in use, and none failed since.
    served_at: Option<Duration>,
    is_served: bool,
}

impl CardChoice {
    pub(super) fn new(has_sources: bool) -> Self {
        Self {
            has_sources,
            entries: BTreeMap::new(),
            chosen: None,
            arrivals: 0,
            first_at: None,
            carriers: 0,
            received_at_trial: 0,
            received_when_chosen: None,
            troubles: 0,
            last_trouble: None,
            served_at: None,
            is_served: false,
        }
    }

    /// The card that the default route leads through.
    pub(super) fn chosen(&self) -> Option<CardKey> {
        self.chosen
    }

    pub(super) fn reach(&self, key: CardKey) -> Reach {
        self.entries.get(&key).map(|entry| entry.reach).unwrap_or_default()
    }

    /// Whether the card is being tried.
    pub(super) fn is_trying(&self, key: CardKey) -> bool {
        self.entries.get(&key).is_some_and(|entry| entry.trying)
    }

    /// Whether the caller need not wait longer: a source is reached, or there is nothing to choose from, or it took too
    /// long.
    pub(super) fn is_settled(&self, now: Duration) -> bool {
        let Some(chosen) = self.chosen else { return false };
        !self.is_open()
            || self.reach(chosen) == Reach::Yes
            || self.first_at.is_some_and(|first| now >= first + PATIENCE)
    }

    /// Whether there is more than one way, so that cards have to be tried.
    fn is_open(&self) -> bool {
        self.has_sources && (self.entries.len() > 1 || self.carriers > 1)
    }

    /// Takes the cards as they are now, and returns those to try.
    pub(super) fn look(&mut self, look: &Look<'_>) -> Vec<CardKey> {
        self.take_candidates(look);
        if !self.has_sources {
            self.prefer_rank();
            return Vec::new();
        }
        self.is_served &= !look.trouble;
        if look.served {
            self.served(look.now);
        }
        let is_fruitless = self.entries.values().any(|entry| entry.fruitless_since.is_some());
        if !self.is_open() && !look.trouble && !is_fruitless {
            return Vec::new();
        }
        if self.received_when_chosen.is_none() {
            self.received_when_chosen = Some(look.received);
            self.received_at_trial = look.received;
        }
        if look.trouble {
            self.look_around(look);
        }
        self.due(look)
    }

    fn take_candidates(&mut self, look: &Look<'_>) {
        self.carriers = look.carriers;
        self.entries.retain(|key, _| look.candidates.iter().any(|candidate| candidate.key == *key));
        let mut cable_lost = false;
        for candidate in look.candidates {
            let arrivals = &mut self.arrivals;
            let entry = self.entries.entry(candidate.key).or_insert_with(|| {
                *arrivals += 1;
                Entry {
                    candidate: *candidate,
                    arrived: *arrivals,
                    reach: Reach::Unknown,
                    tried_at: None,
                    trying: false,
                    due: look.now,
                    failures: 0,
                    successes: 0,
                    blamed: 0,
                    fruitless_since: None,
                    turns: 0,
                }
            });
            cable_lost |= self.chosen == Some(candidate.key) && entry.candidate.carrier && !candidate.carrier;
            if entry.candidate.rank != candidate.rank {
                // Its network gives something else than before.
                entry.due = entry.due.min(look.now);
            }
            entry.candidate = *candidate;
        }
        if cable_lost {
            self.entries.values_mut().for_each(|entry| entry.due = look.now);
        }
        if !self.entries.is_empty() {
            self.first_at.get_or_insert(look.now);
        }
        if self.chosen.is_none_or(|chosen| !self.entries.contains_key(&chosen)) {
            self.choose(self.best(|_, _| true));
        }
    }

    /// The best of the cards that `may` be taken: by what is reached, then by what its network gives, then the first.
    fn best(&self, may: impl Fn(CardKey, &Entry) -> bool) -> Option<CardKey> {
        let able = self.entries.iter().filter(|(key, entry)| may(**key, entry));
        able.max_by_key(|(_, entry)| {
            let Candidate { rank, carrier, .. } = entry.candidate;
            (carrier, entry.reach, std::cmp::Reverse(entry.blamed), rank, std::cmp::Reverse(entry.arrived))
        })
        .map(|(key, _)| *key)
    }

    fn choose(&mut self, key: Option<CardKey>) {
        if self.chosen != key {
            self.chosen = key;
            self.troubles = 0;
            self.is_served = false;
            self.received_when_chosen = None;
        }
    }

    /// Requests are served: the card in use reaches a source.
    fn served(&mut self, now: Duration) {
        (self.served_at, self.is_served) = (Some(now), true);
        self.troubles = 0;
        if let Some(entry) = self.chosen.and_then(|chosen| self.entries.get_mut(&chosen)) {
            entry.reach = Reach::Yes;
            (entry.failures, entry.fruitless_since, entry.turns) = (0, None, 0);
        }
    }

    /// Without sources to try, a card with a gateway is better than one without.
    fn prefer_rank(&mut self) {
        let value = |entry: &Entry| (entry.candidate.carrier, entry.candidate.rank);
        let now = self.chosen.and_then(|chosen| self.entries.get(&chosen)).map(value);
        let better = self.best(|_, _| true);
        if better.and_then(|key| self.entries.get(&key)).map(value) > now {
            self.choose(better);
        }
    }

    /// Requests fail: everything is tried again, and after a few times another card that seems as good gets its turn.
    /// What answers may be something else than a source.
    fn look_around(&mut self, look: &Look<'_>) {
        if self.last_trouble.is_some_and(|last| look.now < last + TROUBLE_PAUSE) {
            return;
        }
        self.last_trouble = Some(look.now);
        for entry in self.entries.values_mut() {
            entry.due = entry.due.min(look.now);
            entry.successes = 0;
        }
        let useful = self.received_when_chosen.is_some_and(|then| look.received >= then.saturating_add(USEFUL_BYTES));
        self.troubles = if useful { 0 } else { self.troubles + 1 };
        let Some(chosen) = self.chosen.filter(|_| self.troubles >= MOST_TROUBLES) else { return };
        let reach = self.reach(chosen);
        let rank = self.entries.get(&chosen).map(|entry| entry.candidate.rank);
        // Where nothing is reached, it may be the trials that are at fault.
        let is_as_good = |entry: &Entry| match entry.reach {
            Reach::Unknown => false,
            Reach::No => reach == Reach::No && Some(entry.candidate.rank) >= rank,
            other => other >= reach,
        };
        let other = self.best(|key, entry| key != chosen && is_as_good(entry));
        if other.is_some() {
            if let Some(entry) = self.entries.get_mut(&chosen) {
                entry.blamed += 1;
            }
            self.choose(other);
        }
    }

    /// Cards to try now.
    fn due(&mut self, look: &Look<'_>) -> Vec<CardKey> {
        let now = look.now;
        let Some(chosen) = self.chosen else { return Vec::new() };
        let in_trouble = self.last_trouble.is_some_and(|last| now < last + TROUBLE_PAUSE);
        let busy = look.received >= self.received_at_trial.saturating_add(BUSY_BYTES);
        let Some(entry) = self.entries.get_mut(&chosen) else { return Vec::new() };
        if entry.reach == Reach::Yes && busy && now >= entry.due && !in_trouble && entry.candidate.carrier {
            entry.due = now + CHECK;
            self.received_at_trial = look.received;
        }
        let in_order = entry.reach == Reach::Yes && entry.candidate.carrier;
        let had_head_start = entry.tried_at.is_some_and(|tried| now >= tried + HEAD_START) || !entry.candidate.carrier;
        let others_too =
            in_trouble || !in_order && (had_head_start || matches!(entry.reach, Reach::No | Reach::Doubtful));
        let mut due = Vec::new();
        for (key, entry) in &mut self.entries {
            let its_turn = *key == chosen || others_too && entry.candidate.carrier;
            if its_turn && !entry.trying && now >= entry.due {
                entry.trying = true;
                entry.tried_at = Some(now);
                due.push(*key);
            }
        }
        if due.contains(&chosen) {
            self.received_at_trial = look.received;
        }
        due
    }

    /// Takes the result of a trial. Whether another card is used from now on.
    pub(super) fn tried(&mut self, key: CardKey, reach: Reach, now: Duration) -> bool {
        let is_served = self.chosen == Some(key) && self.is_served && self.was_served(now);
        let Some(entry) = self.entries.get_mut(&key) else { return false };
        let before = entry.reach;
        entry.trying = false;
        if is_served && reach != Reach::Yes {
            entry.due = now + FAILED_PAUSE;
            return false;
        }
        if reach == Reach::Yes {
            entry.failures = 0;
            entry.due = now + (CHECK * 2_u32.saturating_pow(entry.successes.min(8))).min(MOST_CHECK);
            entry.successes += 1;
            (entry.fruitless_since, entry.turns) = (None, 0);
        } else {
            entry.fruitless_since.get_or_insert(now);
            let pause = FAILED_PAUSE * 2_u32.saturating_pow(entry.failures.min(8));
            entry.failures += 1;
            entry.successes = 0;
            entry.due = now + if before == Reach::Yes { SECOND_LOOK } else { pause.min(MOST_FAILED_PAUSE) };
        }
        entry.reach = reach;
        let Some(chosen) = self.chosen else { return false };
        if key == chosen {
            if before == Reach::Yes && reach != Reach::Yes {
                // What the others reached earlier may have ended as well.
                for (_, other) in self.entries.iter_mut().filter(|(other, _)| **other != chosen) {
                    other.reach = Reach::Unknown;
                    other.due = now;
                }
            }
            return false;
        }
        let better = self.is_better(key, chosen);
        if better {
            self.choose(Some(key));
        }
        better
    }

    /// Whether a card that was tried in vain is to be given something else: no card reaches a source for long, and
    /// requests fail.
    pub(super) fn is_fruitless(&mut self, key: CardKey, now: Duration) -> bool {
        let in_vain = self.entries.values().all(|entry| entry.reach != Reach::Yes) && !self.was_served(now);
        let fails = self.last_trouble.is_some_and(|last| now < last + MOST_CHECK);
        let Some(entry) = self.entries.get_mut(&key).filter(|_| in_vain && fails) else { return false };
        let patience = (FRUITLESS * 2_u32.saturating_pow(entry.turns)).min(MOST_FRUITLESS);
        let is_over = entry.fruitless_since.is_some_and(|since| now >= since + patience);
        if is_over {
            entry.fruitless_since = Some(now);
            entry.turns += 1;
        }
        is_over
    }

    fn was_served(&self, now: Duration) -> bool {
        self.served_at.is_some_and(|served| now < served + SERVED)
    }

    /// Notes that a card was given something else: it is to be tried at once, whatever trial is under way.
    pub(super) fn changed(&mut self, key: CardKey, now: Duration) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.due = entry.due.min(now);
            entry.trying = false;
        }
    }

    /// Whether a card is so much better than the one in use that it takes its place.
    fn is_better(&self, key: CardKey, chosen: CardKey) -> bool {
        let (Some(one), Some(in_use)) = (self.entries.get(&key), self.entries.get(&chosen)) else { return true };
        // Where neither reaches a source, what their networks give decides.
        let gives_more = one.reach == in_use.reach
            && in_use.reach != Reach::Yes
            && one.candidate.rank > in_use.candidate.rank
            && one.blamed <= in_use.blamed;
        one.reach > in_use.reach || gives_more || one.reach > Reach::Unknown && !in_use.candidate.carrier
    }
}

#[cfg(test)]
mod tests;
