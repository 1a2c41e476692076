//! Pauses of a recovery that waits before it tries again what was in vain ([`crate::jobs::pause`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::jobs::pause;
use crate::jobs::state::StatePartition;
use crate::pid1::background::background;
use crate::record::journal::Journal;

/// Time between two notes: what a power cut costs of a pause. A day of them is 144 small writes.
const STEP: Duration = Duration::from_secs(600);
/// Time between two looks whether the pause is over, or given up.
const LOOK: Duration = Duration::from_secs(10);

/// A pause that is going on. Until it is dropped, the time that is over is noted.
pub(super) struct Pause {
    name: String,
    /// The end of the pause.
    pub until: Instant,
    dropped: Arc<AtomicBool>,
}

impl Pause {
    /// Begins a pause, or goes on with it after a power cut.
    pub(super) fn begin(state: &StatePartition, journal: &Journal, name: &str, length: Duration) -> Self {
        let state = state.clone();
        let (before, began) = (pause::elapsed(&state, name), Instant::now());
        let this = Self {
            name: name.to_owned(),
            until: began + length.saturating_sub(before),
            dropped: Arc::new(AtomicBool::new(false)),
        };
        let (name, until, dropped) = (this.name.clone(), this.until, Arc::clone(&this.dropped));
        background(journal, "pause-note", move || {
            let mut next = began + STEP;
            while !dropped.load(Ordering::Relaxed) && Instant::now() < until + LOOK {
                std::thread::sleep(LOOK);
                if Instant::now() >= next.min(until) {
                    // Without the note the pause is only longer after a power cut.
                    let _ = pause::note(&state, &name, before + began.elapsed());
                    next += STEP;
                }
            }
        });
        this
    }

    /// Whether this is the pause of that name.
    pub(super) fn is(&self, name: &str) -> bool {
        self.name == name
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::Relaxed);
    }
}
