//! The watch over the rates of all sources, from the place where bytes arrive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::health::Health;

/// The place where a source reports what it receives, and learns that another one is to be asked instead.
pub struct SpeedWatch {
    health: Arc<Health>,
    index: usize,
}

impl SpeedWatch {
    pub(super) fn new(health: Arc<Health>, index: usize) -> Self {
        Self { health, index }
    }

    /// Takes what a transfer of the object at `path`, which `began` then, received after it waited that long. The
    /// answer is the reason for which the transfer is to be ended.
    pub(super) fn received(&self, path: &str, bytes: u64, waited: Duration, began: Instant) -> Option<String> {
        let (rate, best) = self.health.received(self.index, path, bytes, waited, began)?;
        let better =
            best.map_or_else(|| "another source is tried".to_owned(), |best| format!("another gave {best} B/s"));
        Some(format!("only {rate} B/s on one connection, {better}"))
    }
}
