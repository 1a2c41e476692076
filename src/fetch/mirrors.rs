//! Several copies of the release tree behind one [`Source`]: their order, the memory of failures, resume and retry.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backoff::backoff;
use super::clock::{Clock, SystemClock};
use super::error::{FetchError, FetchErrorKind};
use super::health::{Health, Visit};
use super::{Check, Sink, SinkError, Source};
use crate::chain::chain;

/// Wrong answers after which a call stops asking a source for that object. A broken
/// cache can heal, but a wrong copy stays wrong.
const MAX_STRIKES: u32 = 3;
/// The bytes by which a transfer must come further to start counting rounds anew: the line is then bad, not dead. Less
/// does not count, or a server that cuts after every byte could hold the agent for ever.
const PROGRESS: u64 = 64 << 10;
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
}

impl Mirrors {
    /// Makes mirrors of sources in order of preference: at least one, or every call fails.
    pub fn new(sources: Vec<Box<dyn Source>>, retry_policy: RetryPolicy) -> Self {
        Self::with_clock(sources, retry_policy, Arc::new(SystemClock))
    }

    /// Makes mirrors whose pauses and memory of failures go by the given clock.
    pub fn with_clock(sources: Vec<Box<dyn Source>>, retry_policy: RetryPolicy, clock: Arc<dyn Clock>) -> Self {
        Self {
            health: Arc::new(Health::new(sources.len(), Arc::clone(&clock))),
            sources: sources.into(),
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
        mut attempt: impl FnMut(&dyn Source, &Visit<'_>) -> (u64, Result<T, FetchError>),
    ) -> Result<T, FetchError> {
        let mut tally = Tally::new(self.sources.len());
        let mut round = 0;
        let mut began = self.clock.now();
        loop {
            let order = self.order(path, &tally);
            let mut hope = false;
            let mut asked_to_wait: Option<Duration> = None;
            for (place, &index) in order.iter().enumerate() {
                let error = match self.health.enter(index, began) {
                    Err(met_by_another) => met_by_another,
                    Ok(visit) => {
                        let (reached, result) = attempt(&*self.sources[index], &visit);
                        let error = match result {
                            Ok(value) => {
                                visit.went_well();
                                return Ok(value);
                            }
                            Err(error) if error.kind() == FetchErrorKind::Local => return Err(error),
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
                hope |= error.is_retryable() && tally.strikes[index] < MAX_STRIKES;
                // The pause is the shortest any source asked for; one that asked for none counts as zero.
                let asked = error.asked_to_wait().unwrap_or_default();
                asked_to_wait = Some(asked_to_wait.map_or(asked, |least| least.min(asked)));
                tally.latest = index;
                tally.errors[index] = Some(error);
            }
            let wait = backoff(round, self.seed).max(asked_to_wait.unwrap_or_default());
            round = round.saturating_add(1);
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
        let mut order = self.health.order(path);
        order.retain(|index| tally.strikes[*index] < MAX_STRIKES && self.sources[*index].is_there());
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

/// The failures that one call has met so far.
struct Tally {
    errors: Vec<Option<FetchError>>,
    strikes: Vec<u32>,
    latest: usize,
    attempts: u32,
    furthest: u64,
}

impl Tally {
    fn new(sources: usize) -> Self {
        let errors = (0..sources).map(|_| None).collect();
        Self { errors, strikes: vec![0; sources], latest: 0, attempts: 0, furthest: 0 }
    }

    /// Counts a failed attempt; true when it came further than any before it.
    fn failed(&mut self, index: usize, error: &FetchError, reached: u64) -> bool {
        self.attempts += 1;
        let progress = reached >= self.furthest + PROGRESS;
        if progress {
            self.furthest = reached;
            self.strikes[index] = 0;
        }
        if matches!(error.kind(), FetchErrorKind::Protocol | FetchErrorKind::Corrupt) {
            self.strikes[index] += 1;
        }
        progress
    }

    fn last(&self) -> Option<&FetchError> {
        self.errors.get(self.latest)?.as_ref()
    }

    fn into_error(self, path: &str) -> FetchError {
        let attempts = self.attempts;
        FetchError::summary(path, self.errors.into_iter().flatten().collect())
            .unwrap_or_else(|| FetchError::new(FetchErrorKind::Settings, path, "there is no source to ask"))
            .given_up(attempts)
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
        self.retry(path, self.retry_policy, |source, _| (0, source.get_checked(wanted, check)))
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        let Range { start, end } = range;
        let mut at = start;
        let retry_policy = match self.retry_policy {
            RetryPolicy::Until(_) => RetryPolicy::Forever,
            retry_policy => retry_policy,
        };
        self.retry(path, retry_policy, |source, visit| {
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
            let result = source.get_range(path, rest, &mut counting);
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
