//! The failures that one call has met so far, and whether there is hope left. Pure.

use super::error::{FetchError, FetchErrorKind};

/// Wrong answers after which a call stops asking a source for that object. A broken
/// cache can heal, but a wrong copy stays wrong.
const MAX_STRIKES: u32 = 3;
/// Refusals in doubt after which a call takes a source at its word. With the pauses between them this is half a minute:
/// longer than a cache keeps what it should not have kept, or a limit for single clients lasts.
const MAX_DOUBTS: u32 = 6;
/// Refusals after which a call takes a source at its word that has not delivered anything yet: a wrong URL costs a
/// person some seconds, and a content network that refuses one request in a hundred does not cost an update.
const MAX_REFUSALS: u32 = 3;
/// The bytes by which a transfer must come further to start counting rounds anew: the line is then bad, not dead. Less
/// does not count, or a server that cuts after every byte could hold the agent for ever.
const PROGRESS: u64 = 64 << 10;

/// The failures of one call, by source.
pub(super) struct Tally {
    errors: Vec<Option<FetchError>>,
    strikes: Vec<u32>,
    doubts: Vec<u32>,
    refusals: Vec<u32>,
    latest: usize,
    attempts: u32,
    furthest: u64,
}

impl Tally {
    pub(super) fn new(sources: usize) -> Self {
        let errors = (0..sources).map(|_| None).collect();
        let none = || vec![0; sources];
        Self { errors, strikes: none(), doubts: none(), refusals: none(), latest: 0, attempts: 0, furthest: 0 }
    }

    /// Counts a failed attempt; true when it came further than any before it.
    pub(super) fn failed(&mut self, index: usize, error: &FetchError, reached: u64) -> bool {
        self.attempts += 1;
        let progress = reached >= self.furthest + PROGRESS;
        if progress {
            self.furthest = reached;
            (self.strikes[index], self.doubts[index]) = (0, 0);
        }
        if matches!(error.kind(), FetchErrorKind::Protocol | FetchErrorKind::Corrupt) {
            self.strikes[index] += 1;
        }
        self.doubts[index] += u32::from(error.is_doubted());
        self.refusals[index] += u32::from(error.is_denied() && !error.is_doubted());
        progress
    }

    /// Keeps the failure of a source, be it met by another call. Returns whether asking that source again can help.
    pub(super) fn keep(&mut self, index: usize, error: FetchError) -> bool {
        let may_pass = match (error.is_denied(), error.is_doubted()) {
            (true, false) => self.refusals[index] < MAX_REFUSALS,
            _ => error.is_retryable() && self.doubts[index] < MAX_DOUBTS,
        };
        let hope = may_pass && !self.is_hopeless(index);
        (self.latest, self.errors[index]) = (index, Some(error));
        hope
    }

    /// Whether a source showed that it has wrong bytes and no others.
    pub(super) fn is_hopeless(&self, index: usize) -> bool {
        self.strikes[index] >= MAX_STRIKES
    }

    pub(super) fn last(&self) -> Option<&FetchError> {
        self.errors.get(self.latest)?.as_ref()
    }

    pub(super) fn into_error(self, path: &str) -> FetchError {
        let attempts = self.attempts;
        FetchError::summary(path, self.errors.into_iter().flatten().collect())
            .unwrap_or_else(|| FetchError::new(FetchErrorKind::Settings, path, "there is no source to ask"))
            .given_up(attempts)
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_DOUBTS, MAX_REFUSALS, MAX_STRIKES, PROGRESS, Tally};
    use crate::fetch::{FetchError, FetchErrorKind};

    #[test]
    fn hope_ends_after_a_few_wrong_answers_or_refusals_unless_there_is_progress() {
        let error = |kind| FetchError::new(kind, "http://a/x", "it failed");
        let doubted = || error(FetchErrorKind::Refused(403)).denied().doubted();
        let hopes = |error: &dyn Fn() -> FetchError, step: u64| {
            let mut tally = Tally::new(1);
            let mut hope = |number: &u32| {
                tally.failed(0, &error(), u64::from(*number) * step);
                tally.keep(0, error())
            };
            (1..100).find(|number| !hope(number)).unwrap_or(100)
        };
        assert_eq!(hopes(&|| error(FetchErrorKind::Corrupt), 0), MAX_STRIKES);
        assert_eq!(hopes(&doubted, 1), MAX_DOUBTS);
        assert_eq!(hopes(&doubted, PROGRESS), 100, "each of them came further");
        assert_eq!(hopes(&|| error(FetchErrorKind::Refused(403)).denied(), 0), MAX_REFUSALS);
        assert_eq!(hopes(&|| error(FetchErrorKind::Missing), 0), 1, "a directory knows what it has");
        assert_eq!(hopes(&|| error(FetchErrorKind::Broken), 0), 100);
    }
}
