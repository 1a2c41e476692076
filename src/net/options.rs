//! Options of the network room, and the switch that ends it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends [`bring_up_with`](super::bring_up_with) and the thread that it leaves behind. Clones are the same switch.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends the search and the thread within a second. Addresses stay.
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
    /// Switch that ends the network room.
    pub stop: Stop,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), stop: Stop::default() }
    }
}

/// Callback for the first events and later ones, such as `eth0: link up`.
pub(crate) type OnEvent = Arc<dyn Fn(&str) + Send + Sync>;
