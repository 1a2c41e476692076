//! Options of the network room, and the switches that other rooms use.

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

/// Note of what became of requests to sources: where they fail, another card may do better, and where they are served,
/// none need be looked for. Clones are the same note.
#[derive(Debug, Clone, Default)]
pub struct RequestOutcomes(Arc<[AtomicBool; 2]>);

impl RequestOutcomes {
    /// Notes that a request to a source failed.
    pub fn failed(&self) {
        self.0[0].store(true, Ordering::SeqCst);
    }

    /// Notes that a request to a source over the network brought what it should.
    pub fn served(&self) {
        self.0[1].store(true, Ordering::SeqCst);
    }

    /// Whether a request failed since the last call.
    pub(crate) fn take_failed(&self) -> bool {
        self.0[0].swap(false, Ordering::SeqCst)
    }

    /// Whether a request was served since the last call.
    pub(crate) fn take_served(&self) -> bool {
        self.0[1].swap(false, Ordering::SeqCst)
    }
}

/// Options for PID 1, for tests, and for callers outside PID 1.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// Path of the file that gets the name servers.
    pub resolv_conf: PathBuf,
    /// URLs of which one should be reached, of the manifests of all sources. Of several cards, the one that reaches one
    /// is used; without any, the one whose network has a gateway.
    pub sources: Vec<String>,
    /// Names of cards that are left out while another one has a cable.
    pub left_out: Vec<String>,
    /// Switch that ends the network room.
    pub stop: Stop,
    /// Note of what became of requests.
    pub outcomes: RequestOutcomes,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            sources: Vec::new(),
            left_out: Vec::new(),
            stop: Stop::default(),
            outcomes: RequestOutcomes::default(),
        }
    }
}

/// Callback for the first events and later ones, such as `eth0: link up`.
pub(crate) type OnEvent = Arc<dyn Fn(&str) + Send + Sync>;
