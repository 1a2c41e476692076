//! A clock for tests: waiting for it takes no time.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reflash::fetch::Clock;

/// A clock that stands still until it is waited for, and then is at once where it should be. Clones are the same clock.
#[derive(Clone)]
pub struct FakeClock(Arc<Mutex<State>>);

struct State {
    now: Instant,
    pauses: Vec<Duration>,
}

impl FakeClock {
    /// Makes a clock that stands at the present.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State { now: Instant::now(), pauses: Vec::new() })))
    }

    /// How long the clock was waited for each time, in order.
    pub fn pauses(&self) -> Vec<Duration> {
        self.0.lock().unwrap().pauses.clone()
    }

    /// A handle to the same clock, for what takes any clock.
    pub fn shared(&self) -> Arc<dyn Clock> {
        Arc::new(self.clone())
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Instant {
        self.0.lock().unwrap().now
    }

    fn sleep_until(&self, end: Instant) {
        let mut state = self.0.lock().unwrap();
        let pause = end.saturating_duration_since(state.now);
        state.pauses.push(pause);
        state.now += pause;
    }
}
