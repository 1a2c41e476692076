//! When a boot is restarted: a pure decision of times, sessions, and whether the boot called itself good.

use std::time::Duration;

use crate::boot::this_boot::pause_before_normal_start;

/// Longest time that a person's session holds a restart after its last key.
pub const HOLD: Duration = Duration::from_secs(3600);
/// Time between the announcement of a restart and the restart, for a person who is about to log in.
pub const NOTICE: Duration = Duration::from_secs(60);

/// Terms on which a boot may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terms {
    /// A counted boot: it calls itself good within this time, or is restarted. `None`: nothing is watched.
    GoodWithin(Option<Duration>),
    /// A safe start, of this number. It is never good, and ends by itself after a pause.
    Safe(u32),
}

/// Look at the boot at one moment. All times count from when the system took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sight {
    /// The moment of the look.
    pub now: Duration,
    /// The boot called itself good.
    pub good: bool,
    /// The last key of a person who is still logged in.
    pub last_key: Option<Duration>,
    /// A newer release is waiting, and recovery was asked for.
    pub newer_release: bool,
}

/// Cause of a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The boot did not call itself good in time.
    NotGood(Duration),
    /// The pause of a safe start is over.
    PauseOver(Duration),
    /// There is a release that is newer than the one that had to be started safely.
    NewerRelease,
}

/// Next act of the watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextAct {
    /// Nothing is to be done: look again.
    Wait,
    /// Announce a restart after [`NOTICE`], then look again.
    Announce(Cause),
    /// Say that a person's session holds the restart, then look again.
    Held(Cause),
    /// The machine is to be restarted now.
    Restart(Cause),
    /// Nothing is left to watch for.
    Done,
}

/// The decision with what it has said so far.
#[derive(Debug)]
pub struct WatchPolicy {
    terms: Terms,
    announced: Option<Duration>,
    held: bool,
}

impl WatchPolicy {
    /// Begins to watch a boot.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self { terms, announced: None, held: false }
    }

    /// Decides by what is seen.
    pub fn judge(&mut self, sight: &Sight) -> NextAct {
        let Some(cause) = self.cause(sight) else {
            // What was announced no longer holds, as of a release that was withdrawn.
            (self.announced, self.held) = (None, false);
            return if self.is_over(sight) { NextAct::Done } else { NextAct::Wait };
        };
        if sight.last_key.is_some_and(|key| sight.now.saturating_sub(key) < HOLD) {
            self.announced = None;
            return if std::mem::replace(&mut self.held, true) { NextAct::Wait } else { NextAct::Held(cause) };
        }
        self.held = false;
        match self.announced {
            None => {
                self.announced = Some(sight.now);
                NextAct::Announce(cause)
            }
            Some(announced) if sight.now.saturating_sub(announced) < NOTICE => NextAct::Wait,
            Some(_) => NextAct::Restart(cause),
        }
    }

    fn is_over(&self, sight: &Sight) -> bool {
        match self.terms {
            Terms::GoodWithin(limit) => sight.good || limit.is_none(),
            Terms::Safe(_) => false,
        }
    }

    /// The cause for a restart that is due, or is to be announced by now.
    fn cause(&self, sight: &Sight) -> Option<Cause> {
        let is_near = |limit: Duration| sight.now >= limit.saturating_sub(NOTICE);
        match self.terms {
            Terms::GoodWithin(Some(limit)) if !sight.good && is_near(limit) => Some(Cause::NotGood(limit)),
            Terms::GoodWithin(_) => None,
            Terms::Safe(_) if sight.newer_release => Some(Cause::NewerRelease),
            Terms::Safe(number) => {
                let pause = pause_before_normal_start(number);
                is_near(pause).then_some(Cause::PauseOver(pause))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cause, NextAct, Sight, Terms, WatchPolicy};
    use std::time::Duration;

    const LIMIT: Duration = Duration::from_secs(600);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn at(now: u64) -> Sight {
        Sight { now: seconds(now), ..Sight::default() }
    }

    fn keyed(now: u64, key: u64) -> Sight {
        Sight { last_key: Some(seconds(key)), ..at(now) }
    }

    #[test]
    fn a_boot_that_is_not_good_in_time_is_announced_and_restarted() {
        let mut policy = WatchPolicy::new(Terms::GoodWithin(Some(LIMIT)));
        let cause = Cause::NotGood(LIMIT);
        assert_eq!(policy.judge(&at(539)), NextAct::Wait);
        assert_eq!(policy.judge(&at(540)), NextAct::Announce(cause));
        assert_eq!(policy.judge(&at(599)), NextAct::Wait);
        assert_eq!(policy.judge(&at(600)), NextAct::Restart(cause));
    }

    #[test]
    fn a_good_boot_is_left_alone_also_in_the_last_minute_and_so_is_one_that_is_not_watched() {
        let good = |now| Sight { good: true, ..at(now) };
        assert_eq!(WatchPolicy::new(Terms::GoodWithin(Some(LIMIT))).judge(&good(30)), NextAct::Done);
        let mut late = WatchPolicy::new(Terms::GoodWithin(Some(LIMIT)));
        assert_eq!(late.judge(&at(550)), NextAct::Announce(Cause::NotGood(LIMIT)));
        assert_eq!(late.judge(&good(580)), NextAct::Done);
        assert_eq!(WatchPolicy::new(Terms::GoodWithin(None)).judge(&at(0)), NextAct::Done);
    }

    #[test]
    fn a_session_holds_a_restart_for_an_hour_after_its_last_key_and_not_longer() {
        let mut policy = WatchPolicy::new(Terms::GoodWithin(Some(LIMIT)));
        let cause = Cause::NotGood(LIMIT);
        assert_eq!(policy.judge(&keyed(100, 90)), NextAct::Wait);
        assert_eq!(policy.judge(&keyed(540, 90)), NextAct::Held(cause));
        assert_eq!(policy.judge(&keyed(3000, 90)), NextAct::Wait, "said once");
        assert_eq!(policy.judge(&keyed(4000, 3900)), NextAct::Wait);
        assert_eq!(policy.judge(&keyed(7499, 3900)), NextAct::Wait);
        assert_eq!(policy.judge(&keyed(7500, 3900)), NextAct::Announce(cause));
        // A key in the last minute holds it again.
        assert_eq!(policy.judge(&keyed(7550, 7549)), NextAct::Held(cause));
        // The session is closed: there is time to open another one.
        assert_eq!(policy.judge(&at(7560)), NextAct::Announce(cause));
        assert_eq!(policy.judge(&at(7619)), NextAct::Wait);
        assert_eq!(policy.judge(&at(7620)), NextAct::Restart(cause));
    }

    #[test]
    fn a_safe_start_is_never_good_and_ends_after_its_pause_or_with_a_newer_release() {
        let (hour, two) = (seconds(3600), seconds(7200));
        let mut first = WatchPolicy::new(Terms::Safe(1));
        assert_eq!(first.judge(&Sight { good: true, ..at(700) }), NextAct::Wait);
        assert_eq!(first.judge(&at(3540)), NextAct::Announce(Cause::PauseOver(hour)));
        assert_eq!(first.judge(&at(3600)), NextAct::Restart(Cause::PauseOver(hour)));
        let mut second = WatchPolicy::new(Terms::Safe(2));
        assert_eq!(second.judge(&at(3600)), NextAct::Wait);
        assert_eq!(second.judge(&keyed(7150, 7000)), NextAct::Held(Cause::PauseOver(two)));
        let newer = |now| Sight { newer_release: true, ..at(now) };
        let mut updated = WatchPolicy::new(Terms::Safe(6));
        assert_eq!(updated.judge(&newer(100)), NextAct::Announce(Cause::NewerRelease));
        assert_eq!(updated.judge(&at(130)), NextAct::Wait, "it was withdrawn");
        assert_eq!(updated.judge(&newer(140)), NextAct::Announce(Cause::NewerRelease));
        assert_eq!(updated.judge(&newer(200)), NextAct::Restart(Cause::NewerRelease));
    }
}
