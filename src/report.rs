//! Tells a server how the last attempts went, once there is a network. Best effort: nothing waits long for it, and
//! nothing is lost by it, since the black box keeps what was not reported.

use std::time::Duration;

use serde_json::json;

use crate::blackbox::{Attempt, BlackBox, Marks};
use crate::fetch::{self, FetchError, Options};
use crate::sys::dmi;

/// Whoever is to be told has this long to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Attempts that ended and were not reported yet.
pub struct Pending {
    through: u64,
    document: String,
}

impl Pending {
    /// What there is to report, if anything.
    #[must_use]
    pub fn of(open: &BlackBox, product: &str) -> Option<Self> {
        let reported = open.marks().reported_through;
        let new: Vec<&Attempt> =
            open.attempts().iter().filter(|attempt| attempt.id > reported && attempt.is_over(open.next_id())).collect();
        let through = new.last()?.id;
        let identity = dmi::identity();
        let document = json!({
            "machine": {
                "product": product,
                "hardware": identity.product_name,
                "serial_number": identity.product_serial,
                "uuid": identity.product_uuid,
                "mac": identity.mac,
            },
            "attempts": new,
        });
        Some(Self { through, document: document.to_string() })
    }

    /// Posts it.
    ///
    /// # Errors
    /// What the transfer met. The attempts are reported with the next ones.
    pub fn post(&self, url: &str, options: &Options) -> Result<(), FetchError> {
        let quick = Options { connect_timeout: TIMEOUT, stall_timeout: TIMEOUT, ..options.clone() };
        fetch::post_json(url, &self.document, &quick)
    }

    /// Remembers that it was posted. A mark that is lost repeats a report; the attempts have numbers.
    pub fn mark(&self, open: &mut BlackBox) {
        let _ = open.mark(Marks { reported_through: self.through, ..open.marks() });
    }
}
