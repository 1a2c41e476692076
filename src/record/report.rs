//! Tells a server who this machine is, what it is doing ([`Poster`]) and how its last attempts went ([`Pending`]), once
//! there is a network. Best effort: nothing waits long for it, and nothing is lost by it, since the black box keeps
//! what was not reported.

mod poster;

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use crate::fetch::{self, FetchError, FetchOptions};
use crate::machine::hostname;
use crate::machine::identity;
use crate::record::blackbox::{Attempt, BlackBox, Marks};
use crate::release::digest::{block_hash, hex};

pub use poster::{Ending, Poster};

/// Whoever is to be told has this long to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Who tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReportedMachine {
    /// The same in every post of this machine, 16 hex digits. A machine that knows nothing of its own has none.
    pub id: Option<String>,
    /// As its system is called, where a template says so.
    pub hostname: Option<String>,
    /// Product it is configured for.
    pub product: String,
    /// Product name of its hardware.
    pub hardware: Option<String>,
    /// Serial number of its hardware.
    pub serial_number: Option<String>,
    /// UUID of its hardware.
    pub uuid: Option<String>,
    /// Hardware address of its first network card.
    pub mac: Option<String>,
}

impl ReportedMachine {
    /// This one, which has the host name that `template` gives, if there is one. `asset` is what it was called when it
    /// was provisioned.
    #[must_use]
    pub fn this(product: &str, template: Option<&str>, asset: Option<&str>) -> Self {
        Self::of(identity::identity(), product, template, asset)
    }

    fn of(identity: identity::HardwareIdentity, product: &str, template: Option<&str>, asset: Option<&str>) -> Self {
        let value = |key: &str| if key == "asset" { asset.map(str::to_owned) } else { identity.value(key) };
        let known = identity.product_serial.is_some() || identity.product_uuid.is_some() || identity.mac.is_some();
        Self {
            id: known.then(|| hex(&hash(&identity).to_be_bytes())),
            // The system says what is wrong with a template that gives none.
            hostname: template.and_then(|template| hostname::expand(template, value).ok()),
            product: product.to_owned(),
            hardware: identity.product_name,
            serial_number: identity.product_serial,
            uuid: identity.product_uuid,
            mac: identity.mac,
        }
    }
}

/// The same at every start of this machine, and another for every other.
#[must_use]
pub fn hardware_id() -> u64 {
    hash(&identity::identity())
}

fn hash(identity: &identity::HardwareIdentity) -> u64 {
    block_hash(format!("{:?} {:?} {:?}", identity.product_serial, identity.product_uuid, identity.mac).as_bytes())
}

/// Attempts that ended and were not reported yet.
pub struct Pending {
    through: u64,
    document: String,
}

impl Pending {
    /// What there is to report, if anything.
    #[must_use]
    pub fn of(open: &BlackBox, machine: &ReportedMachine) -> Option<Self> {
        let reported = open.marks().reported_through;
        let new: Vec<&Attempt> =
            open.attempts().iter().filter(|attempt| attempt.id > reported && attempt.is_over(open.next_id())).collect();
        let through = new.last()?.id;
        Some(Self { through, document: json!({ "machine": machine, "attempts": new }).to_string() })
    }

    /// Posts it.
    ///
    /// # Errors
    /// What the transfer met. The attempts are reported with the next ones.
    pub fn post(&self, url: &str, options: &FetchOptions) -> Result<(), FetchError> {
        let quick = FetchOptions { connect_timeout: TIMEOUT, stall_timeout: TIMEOUT, ..options.clone() };
        fetch::Http::new(url, &quick)?.post_json(&self.document)
    }

    /// Remembers that it was posted. A mark that is lost repeats a report; the attempts have numbers.
    pub fn mark(&self, open: &mut BlackBox) {
        let _ = open.mark(Marks { reported_through: self.through, ..open.marks() });
    }
}

#[cfg(test)]
mod tests {
    use super::ReportedMachine;
    use crate::machine::identity::HardwareIdentity;

    #[test]
    fn a_machine_is_told_from_others_by_its_hardware_alone() {
        let with =
            |serial: &str| HardwareIdentity { product_serial: Some(serial.to_owned()), ..HardwareIdentity::default() };
        let one = ReportedMachine::of(with("A1"), "demo", Some("robot-{serial}"), None);
        let renamed = ReportedMachine::of(with("A1"), "other", Some("{asset}"), Some("arm 3"));
        assert_eq!((one.hostname.as_deref(), renamed.hostname.as_deref()), (Some("robot-a1"), Some("arm-3")));
        assert!(one.id == renamed.id && one.id.as_ref().unwrap().len() == 16);
        assert_ne!(one.id, ReportedMachine::of(with("A2"), "demo", None, None).id);
        // Two machines without any identity are not one machine, and a name that cannot be made is none.
        let nobody = ReportedMachine::of(HardwareIdentity::default(), "demo", Some("robot-{serial}"), None);
        assert_eq!((nobody.id, nobody.hostname), (None, None));
    }
}
