//! What callers of the network room may choose, and how they end it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends [`bring_up_with`](super::bring_up_with) and the thread that it leaves behind. Clones are the same switch.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends everything within a second. Addresses stay.
    pub fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(crate) fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Options for tests and for callers outside PID 1.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// Path of the file that gets the name servers.
    pub resolv_conf: PathBuf,
    /// Ends it all.
    pub stop: Stop,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), stop: Stop::default() }
    }
}

/// Gets the first events and later ones: `eth0: link up`.
pub(crate) type OnEvent = Arc<dyn Fn(&str) + Send + Sync>;
