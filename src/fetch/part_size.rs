//! How much to ask for at a time of a server, or of a middlebox before it, that refuses what is large: filters that
//! look through every answer have a limit, refuse with 403, 413 or 502 what is beyond it, or never come to its end.

use std::sync::Mutex;

use super::error::{FetchErrorKind, passes};
use crate::sys::thread::lock;

/// Nothing smaller is asked for: the filters in question let web pages pass.
pub(super) const LEAST: u64 = 64 << 10;
/// Failures in a row without a byte, from which on the size may be what fails.
const PASSING: u32 = 2;
/// How much smaller the next one is: few failures until something comes count for more than the best size.
const STEP: u64 = 16;
/// Parts that came, after which twice as much is tried: the failures may have been of the moment.
const GROW_AFTER: u32 = 32;

/// The most bytes to ask a server for at a time, as far as is known.
#[derive(Debug)]
pub(super) struct PartSize(Mutex<State>);

#[derive(Debug)]
struct State {
    most_bytes: u64,
    failures: u32,
    came: u32,
    grow_after: u32,
    /// Whether the size was doubled and nothing of that size came yet.
    is_trial: bool,
    /// Whether anything ever came.
    is_served: bool,
}

impl Default for PartSize {
    fn default() -> Self {
        let (most_bytes, grow_after) = (u64::MAX, GROW_AFTER);
        Self(Mutex::new(State { most_bytes, failures: 0, came: 0, grow_after, is_trial: false, is_served: false }))
    }
}

impl PartSize {
    pub(super) fn most_bytes(&self) -> u64 {
        lock(&self.0).most_bytes
    }

    /// Notes that so many bytes were asked for, and that it failed after so many. What looks through an answer before
    /// it passes it on sends some bytes of it meanwhile, so that the connection looks alive.
    pub(super) fn failed(&self, asked_bytes: u64, came_bytes: u64, kind: FetchErrorKind) {
        use FetchErrorKind::{Broken, Protocol, Refused, Stalled};
        let mut state = lock(&self.0);
        let may_be_of_the_size = match kind {
            // A server with too much to do says so; but some filters say it of what is large, and what is small comes.
            Refused(503) => state.is_served,
            // What is denied may be missing: a part of it is asked for before that is held against its size.
            Refused(status) => status != 429 && passes(status),
            Stalled => came_bytes < asked_bytes / 2,
            kind => matches!(kind, Broken | Protocol) && came_bytes < LEAST,
        };
        if asked_bytes <= LEAST || !may_be_of_the_size {
            return;
        }
        state.came = 0;
        if std::mem::take(&mut state.is_trial) {
            state.most_bytes = (state.most_bytes / 2).max(LEAST);
            state.grow_after = state.grow_after.saturating_mul(4);
            return;
        }
        state.failures += 1;
        if state.failures >= PASSING {
            state.most_bytes = (asked_bytes.min(state.most_bytes) / STEP).max(LEAST);
        }
    }

    /// Notes that so many bytes are refused of which the beginning comes.
    pub(super) fn is_too_large(&self, asked_bytes: u64) {
        let mut state = lock(&self.0);
        state.most_bytes = state.most_bytes.min((asked_bytes / STEP).max(LEAST));
    }

    /// Notes that so many bytes came of one answer.
    pub(super) fn came(&self, bytes: u64) {
        let mut state = lock(&self.0);
        (state.failures, state.is_served) = (0, true);
        if state.most_bytes == u64::MAX || bytes < state.most_bytes / 2 {
            return;
        }
        if std::mem::take(&mut state.is_trial) {
            state.grow_after = GROW_AFTER;
        }
        state.came += 1;
        if state.came >= state.grow_after {
            (state.came, state.is_trial) = (0, true);
            state.most_bytes = state.most_bytes.saturating_mul(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LEAST, PartSize};
    use crate::fetch::FetchErrorKind;

    /// Asks for so many bytes of a server that refuses what is larger than `limit`: its answers, and its refusals.
    fn asked(size: &PartSize, bytes: u64, limit: u64, kind: FetchErrorKind) -> (u64, u64) {
        let (mut left, mut came, mut refused) = (bytes, 0, 0);
        while left > 0 && refused < 1000 {
            let part = left.min(size.most_bytes());
            if part > limit {
                refused += 1;
                size.failed(part, 7, kind);
            } else {
                came += 1;
                left -= part;
                size.came(part);
            }
        }
        (came, refused)
    }

    #[test]
    fn a_limit_is_found_in_a_few_steps_and_tried_seldom() {
        use FetchErrorKind::{Broken, Refused, Stalled};
        for kind in [Refused(502), Broken, Stalled, Refused(503)] {
            for limit in [100_000, 1 << 20, 5_000_000] {
                let size = PartSize::default();
                size.came(1000);
                let (_, refused) = asked(&size, 8 << 20, limit, kind);
                assert!(refused <= 4, "{limit}: {refused}");
                let (came, refused) = asked(&size, 300 << 20, limit, kind);
                assert!(refused <= 4, "{limit}: {refused}");
                assert!(came <= (300 << 20) / (limit / 2).max(LEAST) + 200, "{limit}: {came}");
            }
        }
    }

    #[test]
    fn what_is_no_matter_of_size_changes_nothing() {
        let size = PartSize::default();
        for _ in 0..100 {
            size.failed(8 << 20, 0, FetchErrorKind::Missing);
            size.failed(8 << 20, 0, FetchErrorKind::Refused(503));
            size.failed(8 << 20, 0, FetchErrorKind::Unreachable);
            size.failed(LEAST, 0, FetchErrorKind::Broken);
            size.failed(8 << 20, LEAST, FetchErrorKind::Broken);
            size.failed(8 << 20, 4 << 20, FetchErrorKind::Stalled);
        }
        size.failed(8 << 20, 0, FetchErrorKind::Broken);
        size.came(8 << 20);
        size.failed(8 << 20, 0, FetchErrorKind::Broken);
        assert_eq!(size.most_bytes(), u64::MAX);
    }

    #[test]
    fn a_server_that_recovers_is_asked_for_more_again() {
        let size = PartSize::default();
        asked(&size, 1 << 20, 0, FetchErrorKind::Refused(502));
        assert_eq!(size.most_bytes(), LEAST);
        let (came, refused) = asked(&size, 300 << 20, u64::MAX, FetchErrorKind::Broken);
        assert!(refused == 0 && came < 500, "{came}");
    }
}
