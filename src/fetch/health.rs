//! The health of each source, shared by all requests under way.
//!
//! Several connections to one server meet its troubles together, and must not answer them apart: a server that is down
//! is asked once a round and not by every connection, a pause is agreed on, and the console reports it once. A server
//! that says it has too much to do (429, 503) gets half as many requests at a time, and one more again for each round
//! that goes well.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::clock::Clock;
use super::error::{FetchError, FetchErrorKind};
use super::speed::Speed;
use crate::order;

/// The time for which a source that failed is asked after the others. It is short, as the first one is first for a
/// reason (nearest, cheapest), but long enough not to run into the connect timeout of a dead one for every range.
pub(super) const MEMORY: Duration = Duration::from_secs(60);
/// The longest time for which a source that failed again and again is asked after the others.
const LONGEST_MEMORY: Duration = Duration::from_secs(600);
/// The most requests that are made of a source at a time; in effect no limit, until the source complains.
const MOST_AT_ONCE: u32 = 16;

/// The memory of all sources.
pub(super) struct Health {
    clock: Arc<dyn Clock>,
    state: Mutex<SourceHealth>,
    left: Condvar,
}

#[derive(Default)]
struct SourceHealth {
    sources: Vec<OneSource>,
    /// By source and object: the time at which the source lacked the object, or sent wrong or useless bytes.
    unfit: HashMap<(usize, String), Instant>,
    /// The end of the pause that was agreed on; gone with the next sign of life.
    pause: Option<Instant>,
}

struct OneSource {
    /// The time of the last failure, whatever the object: the order goes by it.
    failed: Option<Instant>,
    /// Failures since the last sign of life.
    failures: u32,
    /// The time of the last sign of life, if there ever was one.
    alive: Option<Instant>,
    /// Whether it could be asked when that was last looked at.
    is_there: bool,
    speed: Speed,
    /// The last failure, for the requests that would otherwise meet it themselves; gone with the next sign of life.
    trouble: Option<Trouble>,
    inside: u32,
    most: u32,
    /// Requests that went well since `most` last changed.
    good: u32,
}

struct Trouble {
    at: Instant,
    error: FetchError,
}

impl OneSource {
    fn fresh() -> Self {
        let (failed, failures, alive, is_there, speed) = (None, 0, None, true, Speed::default());
        Self { failed, failures, alive, is_there, speed, trouble: None, inside: 0, most: MOST_AT_ONCE, good: 0 }
    }

    /// The time of the last failure, while it is remembered: twice as long each time it fails again, so that a dead
    /// source costs a transfer less and less.
    fn recent_failure(&self, now: Instant) -> Option<Instant> {
        let memory = MEMORY.saturating_mul(1 << self.failures.saturating_sub(1).min(8)).min(LONGEST_MEMORY);
        self.failed.filter(|failed| now.saturating_duration_since(*failed) < memory)
    }
}

impl SourceHealth {
    fn new(sources: usize) -> Self {
        let fresh = OneSource::fresh;
        Self { sources: (0..sources).map(|_| fresh()).collect(), ..Self::default() }
    }

    /// The sources in the order in which to ask for `path`: the ones without a recent failure as configured, then the
    /// others, the oldest failure first.
    fn order(&mut self, path: &str, now: Instant) -> Vec<usize> {
        let recent = |when: Instant| now.saturating_duration_since(when) < MEMORY;
        self.unfit.retain(|_, when| recent(*when));
        let mut order: Vec<usize> = (0..self.sources.len()).collect();
        order::by_key(&mut order, |&index| {
            let unfit = self.unfit.get(&(index, path.to_owned())).copied();
            let source = &self.sources[index];
            (unfit, source.recent_failure(now), source.speed.place(now), index)
        });
        order
    }

    /// Adds what a transfer of `path` received, and decides whether another source is to be asked instead: one that
    /// is there, did not fail of late, and does not lack the object. See [`Speed::received`].
    fn received(
        &mut self,
        index: usize,
        path: &str,
        bytes: u64,
        waited: Duration,
        (began, now): (Instant, Instant),
    ) -> Option<(u64, Option<u64>)> {
        let mut speed = std::mem::take(&mut self.sources[index].speed);
        let others = self.sources.iter().enumerate().filter(|(other, source)| {
            let is_fit = !self.unfit.contains_key(&(*other, path.to_owned()));
            *other != index && source.is_there && is_fit && source.recent_failure(now).is_none()
        });
        let left = speed.received(bytes, waited, (began, now), others.map(|(_, source)| &source.speed));
        self.sources[index].speed = speed;
        left
    }

    /// The failure that another request met since `began`, so that it need not be met again.
    fn met_since(&self, index: usize, began: Instant) -> Option<FetchError> {
        let trouble = self.sources[index].trouble.as_ref().filter(|trouble| trouble.at >= began)?;
        Some(trouble.error.clone_for_peer())
    }

    fn alive(&mut self, index: usize, now: Instant) {
        let source = &mut self.sources[index];
        (source.trouble, source.failures, source.alive) = (None, 0, Some(now));
        self.pause = None;
    }

    fn went_well(&mut self, index: usize, now: Instant) {
        self.alive(index, now);
        let source = &mut self.sources[index];
        source.good += 1;
        if source.good >= source.most {
            (source.most, source.good) = ((source.most + 1).min(MOST_AT_ONCE), 0);
        }
    }

    /// Notes a failure of a request that began at `entered`. False when a request made at the same time has met the
    /// same one.
    fn failed(&mut self, index: usize, path: &str, error: &FetchError, entered: Instant, now: Instant) -> bool {
        let kind = error.kind();
        if matches!(
            kind,
            FetchErrorKind::Missing | FetchErrorKind::Protocol | FetchErrorKind::Corrupt | FetchErrorKind::Unsuitable
        ) {
            let before = self.unfit.insert((index, path.to_owned()), now);
            return before.is_none_or(|before| before < entered);
        }
        let source = &mut self.sources[index];
        if kind == FetchErrorKind::Slow {
            // It works, and its rate puts it behind the others.
            return true;
        }
        let news = source.trouble.as_ref().is_none_or(|trouble| trouble.at < entered || trouble.error.kind() != kind);
        match kind {
            // Requests that were refused together count once: half of four is two, and not none.
            FetchErrorKind::Refused(429 | 503) if news => (source.most, source.good) = ((source.inside / 2).max(1), 0),
            // It was silent to one request and lively to another: some serve so many connections of a client.
            FetchErrorKind::Stalled
                if news && !error.has_progress() && source.alive.is_some_and(|at| at >= entered) =>
            {
                (source.most, source.good) = ((source.inside / 2).max(1), 0);
            }
            // One request is enough to see whether the source is back.
            FetchErrorKind::Unreachable => (source.most, source.good) = (1, 0),
            _ => {}
        }
        source.failures = source.failures.saturating_add(u32::from(news));
        source.failed = Some(now);
        source.trouble = Some(Trouble { at: now, error: error.clone_for_peer() });
        news
    }

    /// The pause after a failed round that began at `began`: `wait`, or what is left of the pause that another request
    /// has begun, be it before this round, unless a source has shown signs of life since. Returns the end of the pause,
    /// and whether the pause is a new one.
    fn agree(&mut self, began: Instant, now: Instant, wait: Duration) -> (Instant, bool) {
        match self.pause.filter(|until| *until > now.max(began)) {
            Some(until) => (until, false),
            None => (*self.pause.insert(now + wait), true),
        }
    }
}

impl Health {
    pub(super) fn new(sources: usize, clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::new(SourceHealth::new(sources)), left: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, SourceHealth> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sources in the order in which to ask for `path`.
    pub(super) fn order(&self, path: &str) -> Vec<usize> {
        self.state().order(path, self.clock.now())
    }

    /// Waits until one more request may be made of a source, in a round that began at `began`.
    ///
    /// # Errors
    /// The failure that another request has met since then: there is no need to meet it too.
    pub(super) fn enter(&self, index: usize, began: Instant) -> Result<Visit<'_>, FetchError> {
        let mut state = self.state();
        loop {
            if let Some(error) = state.met_since(index, began) {
                return Err(error);
            }
            if state.sources[index].inside < state.sources[index].most {
                state.sources[index].inside += 1;
                return Ok(Visit { health: self, index, entered: self.clock.now() });
            }
            // A place always becomes free: every transfer has timeouts.
            state = self.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Notes which sources can be asked now.
    pub(super) fn note_there(&self, there: &[bool]) {
        self.state().sources.iter_mut().zip(there).for_each(|(source, is_there)| source.is_there = *is_there);
    }

    /// Adds what a transfer received; see [`SourceHealth::received`].
    pub(super) fn received(
        &self,
        index: usize,
        path: &str,
        bytes: u64,
        waited: Duration,
        began: Instant,
    ) -> Option<(u64, Option<u64>)> {
        self.state().received(index, path, bytes, waited, (began, self.clock.now()))
    }

    /// Enters for a request that belongs to no round.
    pub(super) fn enter_now(&self, index: usize) -> Result<Visit<'_>, FetchError> {
        self.enter(index, self.clock.now())
    }

    /// Whether a source did not answer at all of late.
    pub(super) fn is_away(&self, index: usize) -> bool {
        let (state, now) = (self.state(), self.clock.now());
        let source = &state.sources[index];
        let silent =
            |trouble: &Trouble| matches!(trouble.error.kind(), FetchErrorKind::Unreachable | FetchErrorKind::Stalled);
        source.recent_failure(now).is_some() && source.trouble.as_ref().is_some_and(silent)
    }

    /// Agrees on the pause after a failed round; see [`SourceHealth::agree`].
    pub(super) fn agree(&self, began: Instant, wait: Duration) -> (Instant, bool) {
        self.state().agree(began, self.clock.now(), wait)
    }
}

/// One request being made of a source.
pub(super) struct Visit<'h> {
    health: &'h Health,
    index: usize,
    entered: Instant,
}

impl Visit<'_> {
    /// Notes that the source sends bytes.
    pub(super) fn alive(&self) {
        self.health.state().alive(self.index, self.health.clock.now());
    }

    /// Whether the source has ever delivered anything.
    pub(super) fn has_served(&self) -> bool {
        self.health.state().sources[self.index].alive.is_some()
    }

    /// Notes that the whole answer came.
    pub(super) fn went_well(&self) {
        self.health.state().went_well(self.index, self.health.clock.now());
    }

    /// Notes a failure; false when it is known already.
    pub(super) fn failed(&self, path: &str, error: &FetchError) -> bool {
        let now = self.health.clock.now();
        self.health.state().failed(self.index, path, error, self.entered, now)
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.health.state().sources[self.index].inside -= 1;
        self.health.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{FetchError, FetchErrorKind, MEMORY, MOST_AT_ONCE, SourceHealth};

    fn note(state: &mut SourceHealth, index: usize, path: &str, kind: FetchErrorKind, at: Instant) -> bool {
        state.failed(index, path, &FetchError::new(kind, "http://a/x", "it failed"), at, at)
    }

    #[test]
    fn a_source_that_failed_comes_last_for_a_while() {
        let mut state = SourceHealth::new(3);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(state.order("a", start), [0, 1, 2]);
        note(&mut state, 0, "a", FetchErrorKind::Unreachable, at(1));
        assert_eq!(state.order("b", at(2)), [1, 2, 0]);
        note(&mut state, 1, "a", FetchErrorKind::Stalled, at(3));
        assert_eq!(state.order("a", at(3)), [2, 0, 1]);
        assert_eq!(state.order("a", at(1) + MEMORY), [0, 2, 1], "the first one gets its chance again");
        assert_eq!(state.order("a", at(3) + MEMORY), [0, 1, 2]);
    }

    #[test]
    fn a_source_that_fails_again_and_again_is_asked_more_and_more_seldom() {
        let mut state = SourceHealth::new(2);
        let mut now = Instant::now();
        let mut memory = Vec::new();
        for _ in 0..7 {
            note(&mut state, 0, "a", FetchErrorKind::Unreachable, now);
            let failed = now;
            while state.order("a", now) == [1, 0] {
                now += Duration::from_secs(1);
            }
            memory.push((now - failed).as_secs());
        }
        assert_eq!(memory, [60, 120, 240, 480, 600, 600, 600]);
        state.alive(0, Instant::now());
        note(&mut state, 0, "a", FetchErrorKind::Unreachable, now);
        assert_eq!(state.order("a", now + MEMORY), [0, 1]);
    }

    #[test]
    fn a_slow_source_is_left_for_one_that_is_there_and_well_and_has_the_object() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let left = |state: &mut SourceHealth| {
            (1..100).find(|second| state.received(0, "a", 300, Duration::from_secs(1), (start, at(*second))).is_some())
        };
        assert!(left(&mut SourceHealth::new(2)).is_some());
        assert_eq!(left(&mut SourceHealth::new(1)), None);
        let mut state = SourceHealth::new(2);
        state.sources[1].is_there = false;
        assert_eq!(left(&mut state), None, "it is not plugged in");
        let mut state = SourceHealth::new(2);
        note(&mut state, 1, "a", FetchErrorKind::Missing, at(0));
        assert_eq!(left(&mut state), None, "it lacks the object");
        let mut state = SourceHealth::new(2);
        note(&mut state, 1, "b", FetchErrorKind::Unreachable, at(0));
        let when = left(&mut state).unwrap();
        assert!(when >= MEMORY.as_secs(), "{when}");
        let slow = FetchError::new(FetchErrorKind::Slow, "http://a/x", "300 B/s");
        assert!(state.failed(0, "a", &slow, at(0), at(when)));
        assert_eq!(state.order("a", at(when)), [1, 0]);
        assert!(state.met_since(0, at(0)).is_none(), "it is no trouble that others would meet");
    }

    #[test]
    fn a_source_that_lacks_one_object_stays_first_for_the_others() {
        let mut state = SourceHealth::new(2);
        let now = Instant::now();
        note(&mut state, 0, "a", FetchErrorKind::Missing, now);
        note(&mut state, 1, "b", FetchErrorKind::Corrupt, now);
        assert_eq!(state.order("a", now), [1, 0]);
        assert_eq!(state.order("b", now), [0, 1]);
        assert_eq!(state.order("c", now), [0, 1]);
    }

    #[test]
    fn those_who_asked_together_tell_a_failure_once() {
        let mut state = SourceHealth::new(1);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let error = |kind| FetchError::new(kind, "http://a/x", "it failed");
        assert!(state.failed(0, "a", &error(FetchErrorKind::Broken), at(0), at(5)));
        assert!(!state.failed(0, "b", &error(FetchErrorKind::Broken), at(1), at(6)), "asked before it was known");
        assert!(state.failed(0, "b", &error(FetchErrorKind::Stalled), at(1), at(6)), "something else");
        assert!(state.failed(0, "a", &error(FetchErrorKind::Stalled), at(7), at(8)), "tried again");
        assert!(state.failed(0, "a", &error(FetchErrorKind::Missing), at(0), at(5)));
        assert!(!state.failed(0, "a", &error(FetchErrorKind::Missing), at(0), at(5)));
        assert!(state.failed(0, "b", &error(FetchErrorKind::Missing), at(0), at(5)), "of another object");
    }

    #[test]
    fn a_failure_is_met_by_one_until_there_is_a_sign_of_life() {
        let mut state = SourceHealth::new(1);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let error = FetchError::new(FetchErrorKind::Unreachable, "http://u:p@a/x?y", "the port is closed");
        state.failed(0, "a", &error, at(1), at(2));
        let met = state.met_since(0, at(1)).unwrap();
        assert_eq!((met.kind(), met.chain()), (FetchErrorKind::Unreachable, error.chain()));
        assert!(state.met_since(0, at(3)).is_none(), "a later round asks again");
        assert_eq!(state.sources[0].most, 1);
        state.alive(0, Instant::now());
        assert!(state.met_since(0, at(1)).is_none());
    }

    #[test]
    fn an_overloaded_source_gets_half_as_much_and_slowly_more_again() {
        let mut state = SourceHealth::new(1);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        state.sources[0].inside = 4;
        note(&mut state, 0, "a", FetchErrorKind::Refused(503), at(1));
        assert_eq!(state.sources[0].most, 2);
        // Two more of the four that were under way: their refusals say the same.
        for _ in 0..2 {
            let error = FetchError::new(FetchErrorKind::Refused(503), "http://a/x", "busy");
            assert!(!state.failed(0, "b", &error, at(0), at(2)));
        }
        assert_eq!(state.sources[0].most, 2);
        state.sources[0].inside = 2;
        note(&mut state, 0, "a", FetchErrorKind::Refused(429), at(3));
        note(&mut state, 0, "a", FetchErrorKind::Refused(429), at(4));
        assert_eq!(state.sources[0].most, 1, "never none");
        let mut steps = Vec::new();
        for _ in 0..6 {
            state.went_well(0, Instant::now());
            steps.push(state.sources[0].most);
        }
        assert_eq!(steps, [2, 2, 3, 3, 3, 4]);
        for _ in 0..1000 {
            state.went_well(0, Instant::now());
        }
        assert_eq!(state.sources[0].most, MOST_AT_ONCE);
    }

    #[test]
    fn a_source_that_is_silent_to_one_request_and_serves_another_gets_fewer_at_a_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let silent = FetchError::new(FetchErrorKind::Stalled, "http://a/x", "silent");
        for (alive_s, most) in [(None, MOST_AT_ONCE), (Some(3), MOST_AT_ONCE), (Some(7), 2)] {
            let mut state = SourceHealth::new(1);
            state.sources[0].inside = 4;
            alive_s.into_iter().for_each(|second| state.alive(0, at(second)));
            state.failed(0, "a", &silent, at(5), at(35));
            assert_eq!(state.sources[0].most, most, "{alive_s:?}");
        }
        let mut state = SourceHealth::new(1);
        state.alive(0, at(7));
        state.failed(0, "a", &silent.after(10, 20), at(5), at(35));
        assert_eq!(state.sources[0].most, MOST_AT_ONCE, "it was the one that was served");
    }

    #[test]
    fn a_pause_is_agreed_on_by_all_who_fail_until_it_ends_or_a_source_lives() {
        let mut state = SourceHealth::new(1);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(state.agree(at(0), at(2), Duration::from_secs(8)), (at(10), true));
        assert_eq!(state.agree(at(1), at(3), Duration::from_secs(60)), (at(10), false), "failed with the first one");
        assert_eq!(state.agree(at(3), at(4), Duration::from_secs(1)), (at(10), false), "came during the pause");
        assert_eq!(state.agree(at(10), at(11), Duration::from_secs(8)), (at(19), true), "the next round");
        state.alive(0, Instant::now());
        assert_eq!(state.agree(at(12), at(13), Duration::from_secs(1)), (at(14), true), "the line was back meanwhile");
    }
}
