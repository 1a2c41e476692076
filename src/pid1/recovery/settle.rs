//! Waiting until no further disk appears: the first that answers need not be the only one.

use std::time::{Duration, Instant};

/// Pause between two looks at the disks.
pub(super) const POLL: Duration = Duration::from_millis(500);
/// Time that a slow disk controller takes to bring up its second port.
const SETTLE: Duration = Duration::from_secs(4);

/// The disks that were seen last, and since when.
pub(super) struct Settling {
    seen: Vec<String>,
    since: Instant,
}

impl Settling {
    pub(super) fn new() -> Self {
        Self { seen: Vec::new(), since: Instant::now() }
    }

    /// Takes what is seen now. Returns whether an earlier look saw something else.
    pub(super) fn update(&mut self, seen: Vec<String>) -> bool {
        if seen == self.seen {
            return false;
        }
        self.since = Instant::now();
        !std::mem::replace(&mut self.seen, seen).is_empty()
    }

    /// Whether nothing has changed for long enough.
    pub(super) fn is_over(&self) -> bool {
        self.since.elapsed() >= SETTLE
    }
}
