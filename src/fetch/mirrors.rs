//! Several copies of the release tree behind one [`Source`]: their order, the memory of failures, resume and retry.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::backoff::backoff;
use super::clock::{Clock, SystemClock};
use super::error::{FetchError, FetchErrorKind};
use super::health::{Health, Visit};
use super::survey::{self, Surveyed};
use super::tally::Tally;
use super::watch::SpeedWatch;
use super::{Check, CheckFound, Sink, SinkError, Source, SourceAnswer};
use crate::chain::chain;

/// The time after which a source that was not there is noticed during a pause.
const NOTICE: Duration = Duration::from_secs(1);

/// The limit of retrying while all sources fail in ways that can pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryPolicy {
    /// Each source is asked this many times, with a pause after each round but the last.
    Rounds(u32),
    /// Sources are asked until one works or all fail in ways that cannot pass.
    Forever,
    /// Small objects are asked for until this instant, and ranges as with [`RetryPolicy::Forever`]: what comes before
    /// the first write may be given up, a transfer that has begun may not.
    Until(Instant),
}

/// A failed attempt that will be followed by another, for the console.
#[derive(Debug)]
pub struct Retry<'a> {
    /// The error of the attempt.
    pub error: &'a FetchError,
    /// The pause before the next attempt; zero when another source is asked at once.
    pub wait: Duration,
    /// The source that is asked next.
    pub next: &'a str,
}

impl fmt::Display for Retry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; asking {}", chain(self.error), self.next)?;
        match self.wait.as_secs() {
            0 => Ok(()),
            seconds => write!(f, " in {seconds} s"),
        }
    }
}

type OnRetry = Arc<dyn Fn(&Retry<'_>) + Send + Sync>;

/// Several sources of the same tree, asked in order. Clones share what was learnt about the sources.
#[derive(Clone)]
pub struct Mirrors {
    sources: Arc<[Box<dyn Source>]>,
    health: Arc<Health>,
    retry_policy: RetryPolicy,
    on_retry: OnRetry,
    clock: Arc<dyn Clock>,
    seed: u64,
    /// The source of the last small objects.
    delivered: Arc<AtomicUsize>,
}

impl Mirrors {
    /// Makes mirrors of sources in order of preference: at least one, or every call fails.
    pub fn new(sources: Vec<Box<dyn Source>>, retry_policy: RetryPolicy) -> Self {
        Self::with_clock(sources, retry_policy, Arc::new(SystemClock))
    }

    /// Makes mirrors whose pauses and memory of failures go by the given clock.
    pub fn with_clock(mut sources: Vec<Box<dyn Source>>, retry_policy: RetryPolicy, clock: Arc<dyn Clock>) -> Self {
        let health = Arc::new(Health::new(sources.len(), Arc::clone(&clock)));
        for (index, source) in sources.iter_mut().enumerate() {
            source.watch_speed(SpeedWatch::new(Arc::clone(&health), index));
        }
        Self {
            health,
            sources: sources.into(),
            delivered: Arc::default(),
            retry_policy,
            on_retry: Arc::new(|_| ()),
            clock,
            // The hasher's keys are random in every process, which is all that jitter needs.
            seed: RandomState::new().build_hasher().finish(),
        }
    }

    /// Sets another retry policy: a manifest that is only polled needs less than a transfer that has begun.
    #[must_use]
    pub fn with_retry_policy(mut self, retry_policy: RetryPolicy) -> Self {
        self.retry_policy = retry_policy;
        self
    }

    /// Sets the subscriber of failed attempts that are followed by another.
    #[must_use]
    pub fn on_retry(mut self, subscriber: impl Fn(&Retry<'_>) + Send + Sync + 'static) -> Self {
        self.on_retry = Arc::new(subscriber);
        self
    }

    /// Asks the sources until one attempt succeeds. An attempt returns how far it came, which distinguishes progress
    /// from standing still.
    fn retry<T>(
        &self,
        path: &str,
        retry_policy: RetryPolicy,
        attempt: impl FnMut(usize, &Visit<'_>) -> (u64, Result<T, FetchError>),
    ) -> Result<T, FetchError> {
        self.retry_unless_bare(path, retry_policy, attempt, |_| false)
    }

    /// Asks as [`Mirrors::retry`] does. An answer that is bare, in that the source only lacks what it was asked for, is
    /// no sign that it ever delivers anything.
    fn retry_unless_bare<T>(
        &self,
        path: &str,
        retry_policy: RetryPolicy,
        mut attempt: impl FnMut(usize, &Visit<'_>) -> (u64, Result<T, FetchError>),
        is_bare: fn(&T) -> bool,
    ) -> Result<T, FetchError> {
        let mut tally = Tally::new(self.sources.len());
        let mut round = 0;
        let mut began = self.clock.now();
        loop {
            let order = self.order(path, &tally);
            let (mut hope, mut slow) = (false, false);
            let mut asked_to_wait: Option<Duration> = None;
            for (place, &index) in order.iter().enumerate() {
                let error = match self.health.enter(index, began) {
                    Err(met_by_another) => met_by_another,
                    Ok(visit) => {
                        let (reached, result) = attempt(index, &visit);
                        let error = match result {
                            Ok(value) => {
                                if !is_bare(&value) {
                                    visit.went_well();
                                }
                                return Ok(value);
                            }
                            Err(error) if error.kind() == FetchErrorKind::Local => return Err(error),
                            Err(error) if visit.has_served() => error.doubted(),
                            Err(error) => error,
                        };
                        let news = visit.failed(path, &error);
                        if let Some(&next) = order.get(place + 1).filter(|_| news) {
                            self.report(&error, Duration::ZERO, next);
                        }
                        if tally.failed(index, &error, reached) {
                            round = 0;
                        }
                        error
                    }
                };
                slow |= error.kind() == FetchErrorKind::Slow;
                // The pause is the shortest any source asked for; one that asked for none counts as zero.
                let asked = error.asked_to_wait().unwrap_or_default();
                asked_to_wait = Some(asked_to_wait.map_or(asked, |least| least.min(asked)));
                hope |= tally.keep(index, error);
            }
            let wait = backoff(round, self.seed).max(asked_to_wait.unwrap_or_default());
            // A source that was left although it delivers is not worth giving up for.
            round = round.saturating_add(u32::from(!slow));
            let (until, is_new) = self.health.agree(began, wait);
            let enough = match retry_policy {
                RetryPolicy::Rounds(most) => round >= most,
                RetryPolicy::Until(end) => until > end,
                RetryPolicy::Forever => false,
            };
            if !hope || enough {
                return Err(tally.into_error(path));
            }
            let wait = if is_new { wait } else { until.saturating_duration_since(self.clock.now()) };
            let there = self.there();
            // Only the first call to begin the shared pause reports it.
            if let (Some(&next), Some(error), true) = (self.order(path, &tally).first(), tally.last(), is_new) {
                self.report(error, wait, next);
            }
            self.wait_until(until, &there);
            began = until;
        }
    }

    /// The sources to ask for `path`, in order, without those that are not there and those that showed to be hopeless
    /// in this call.
    fn order(&self, path: &str, tally: &Tally) -> Vec<usize> {
        let there = self.there();
        self.health.note_there(&there);
        let mut order = self.health.order(path);
        order.retain(|index| there[*index] && !tally.is_hopeless(*index));
        order
    }

    /// Whether each source can be asked now.
    fn there(&self) -> Vec<bool> {
        self.sources.iter().map(|source| source.is_there()).collect()
    }

    /// Waits until `end`, or until a source is there that was not `before`: a drive that was just plugged in does not
    /// wait because of a server.
    fn wait_until(&self, end: Instant, before: &[bool]) {
        if before.iter().all(|is_there| *is_there) {
            return self.clock.sleep_until(end);
        }
        while self.clock.now() < end {
            if self.there().iter().zip(before).any(|(now, before)| *now && !before) {
                return;
            }
            self.clock.sleep_until(end.min(self.clock.now() + NOTICE));
        }
    }

    fn report(&self, error: &FetchError, wait: Duration, next: usize) {
        (self.on_retry)(&Retry { error, wait, next: &self.sources[next].describe() });
    }
}

impl Source for Mirrors {
    fn describe(&self) -> String {
        let there = self.sources.iter().filter(|source| source.is_there());
        there.map(|source| source.describe()).collect::<Vec<_>>().join(", ")
    }

    fn is_there(&self) -> bool {
        self.sources.iter().any(|source| source.is_there())
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        let path = wanted.first().map_or("", |(path, _)| path);
        self.retry(path, self.retry_policy, |index, _| {
            let result = self.sources[index].get_checked(wanted, check);
            if result.is_ok() {
                self.delivered.store(index, Ordering::Relaxed);
            }
            (0, result)
        })
    }

    fn get_if_there(
        &self,
        wanted: &[(&str, u64)],
        witness: (&str, u64),
        check: CheckFound<'_>,
    ) -> Result<(), FetchError> {
        let path = wanted.first().map_or("", |(path, _)| path);
        let attempt = |index: usize, _: &Visit<'_>| {
            let mut came = false;
            let result = self.sources[index].get_if_there(wanted, witness, &mut |answer| {
                came = matches!(answer, SourceAnswer::Files { .. });
                check(answer)
            });
            if result.is_ok() {
                self.delivered.store(index, Ordering::Relaxed);
            }
            (0, result.map(|()| came))
        };
        self.retry_unless_bare(path, self.retry_policy, attempt, |came| !came).map(drop)
    }

    fn survey_others(&self, wanted: &[(&str, u64)], patience: Duration) -> Vec<Surveyed> {
        let delivered = self.delivered.load(Ordering::Relaxed);
        if self.sources.get(delivered).is_some_and(|source| source.is_chosen()) {
            return Vec::new();
        }
        let is_asked =
            |index: &usize| *index != delivered && self.sources[*index].is_there() && !self.health.is_away(*index);
        let asked: Vec<usize> = (0..self.sources.len()).filter(is_asked).collect();
        survey::survey(&self.sources, &self.health, &asked, wanted, patience)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        let Range { start, end } = range;
        let mut at = start;
        let retry_policy = match self.retry_policy {
            RetryPolicy::Until(_) => RetryPolicy::Forever,
            retry_policy => retry_policy,
        };
        self.retry(path, retry_policy, |index, visit| {
            let rest = at..end;
            let mut first = true;
            let mut counting = |bytes: &[u8]| match sink(bytes) {
                Ok(()) => {
                    at += bytes.len() as u64;
                    if std::mem::take(&mut first) {
                        visit.alive();
                    }
                    Ok(())
                }
                Err(SinkError::Wrong { from, reason }) => {
                    let now = at + bytes.len() as u64;
                    if from < start || from >= now {
                        let problem = format!("bytes from {from} refused while {start} to {now} were delivered");
                        return Err(SinkError::Local(problem.into()));
                    }
                    at = from;
                    Err(SinkError::Wrong { from, reason })
                }
                Err(local) => Err(local),
            };
            let result = self.sources[index].get_range(path, rest, &mut counting);
            let result = match result {
                // All bytes are here, whatever came after them; the caller's digests are the judge of them.
                Err(error)
                    if at == end
                        && error.kind() != FetchErrorKind::Corrupt
                        && error.kind() != FetchErrorKind::Local =>
                {
                    Ok(())
                }
                Err(error) if at > start => Err(error.after(at - start, end - start)),
                result => result,
            };
            (at - start, result)
        })
    }
}
