//! Reports to a server: who this machine is, what it is doing ([`Poster`]), and how its last attempts went
//! ([`Pending`]). Best effort, once there is a network: nothing waits long for it, and nothing is lost by it, since the
//! black box keeps what was not reported.

mod poster;

use std::path::Path;
use std::time::Duration;

use crate::fetch::{self, FetchError, FetchErrorKind, FetchOptions};
use crate::machine::hostname;
use crate::machine::identity;
use crate::record::blackbox::{Attempt, BlackBox, Marks};
use crate::record::marks;
use crate::record::start::StartRecord;
use crate::record::wire;
use crate::release::digest::{block_hash, hex};

pub use crate::record::wire::{Ending, ReportedMachine};
pub use poster::Poster;

/// Time that the server has for a connection, and again for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

impl ReportedMachine {
    /// Identity of this machine. `template` gives its host name, if there is one; `asset` is the name that the machine
    /// got when it was provisioned.
    #[must_use]
    pub fn this(product: &str, template: Option<&str>, asset: Option<&str>) -> Self {
        Self::of(identity::identity(), product, template, asset)
    }

    fn of(identity: identity::HardwareIdentity, product: &str, template: Option<&str>, asset: Option<&str>) -> Self {
        let value = |key: &str| if key == "asset" { asset.map(str::to_owned) } else { identity.value(key) };
        let known = identity.product_serial.is_some() || identity.product_uuid.is_some() || identity.mac.is_some();
        Self {
            id: known.then(|| hex(&hash(&identity).to_be_bytes())),
            // What is wrong with a template that gives no name is reported by the system at its start.
            hostname: template.and_then(|template| hostname::expand(template, value).ok()),
            product: product.to_owned(),
            hardware: identity.product_name,
            serial_number: identity.product_serial,
            uuid: identity.product_uuid,
            mac: identity.mac,
        }
    }
}

/// Hash of this machine's hardware identity: equal at every start, and different for every other machine.
#[must_use]
pub fn hardware_id() -> u64 {
    hash(&identity::identity())
}

fn hash(identity: &identity::HardwareIdentity) -> u64 {
    block_hash(format!("{:?} {:?} {:?}", identity.product_serial, identity.product_uuid, identity.mac).as_bytes())
}

/// Posts how the running system was put together.
///
/// # Errors
/// What the transfer met. The next start posts its own record.
pub fn post_start(
    url: &str,
    machine: &ReportedMachine,
    boot: &StartRecord,
    options: &FetchOptions,
) -> Result<(), FetchError> {
    post(url, wire::start_post(machine, boot), options)
}

/// Posts how an update stands that is prepared while the system works.
///
/// # Errors
/// What the transfer met. The next state is posted all the same.
pub fn post_update(
    url: &str,
    machine: &ReportedMachine,
    update: &serde_json::Value,
    options: &FetchOptions,
) -> Result<(), FetchError> {
    post(url, wire::update_post(machine, update), options)
}

fn post(url: &str, document: serde_json::Result<String>, options: &FetchOptions) -> Result<(), FetchError> {
    let quick = FetchOptions { connect_timeout: TIMEOUT, stall_timeout: TIMEOUT, ..options.clone() };
    let document = document.map_err(|cause| {
        FetchError::new(FetchErrorKind::Local, url, "the report cannot be formatted").because(cause)
    })?;
    fetch::Http::new(url, &quick)?.post_json(&document)
}

/// Attempts that ended and were not reported yet.
pub struct Pending {
    /// Number of the last of them.
    through: u64,
    machine: ReportedMachine,
    attempts: Vec<Attempt>,
}

impl Pending {
    /// Collects what there is to report, if anything.
    #[must_use]
    pub fn of(open: &BlackBox, machine: &ReportedMachine) -> Option<Self> {
        let reported = open.marks().reported_through;
        let is_new = |attempt: &&Attempt| attempt.id > reported && attempt.is_over(open.next_id());
        let attempts: Vec<Attempt> = open.attempts().iter().filter(is_new).cloned().collect();
        Some(Self { through: attempts.last()?.id, machine: machine.clone(), attempts })
    }

    /// Posts the attempts.
    ///
    /// # Errors
    /// What the transfer met. The attempts are reported with the next ones.
    pub fn post(&self, url: &str, options: &FetchOptions) -> Result<(), FetchError> {
        post(url, wire::attempts_post(&self.machine, &self.attempts), options)
    }

    /// Records that the attempts were posted. A mark that is lost repeats a report, which the numbers of the attempts
    /// show.
    pub fn mark(&self, open: &mut BlackBox) {
        let _ = open.mark(self.marks(open));
    }

    /// Records that the attempts were posted, beside other processes.
    pub fn mark_in(&self, path: &Path) {
        let _ = marks::change(path, &|open| self.marks(open));
    }

    fn marks(&self, open: &BlackBox) -> Marks {
        Marks { reported_through: self.through, ..open.marks() }
    }
}

#[cfg(test)]
mod tests {
    use super::ReportedMachine;
    use crate::machine::identity::HardwareIdentity;

    #[test]
    fn a_machine_is_identified_by_its_hardware_alone() {
        let with =
            |serial: &str| HardwareIdentity { product_serial: Some(serial.to_owned()), ..HardwareIdentity::default() };
        let one = ReportedMachine::of(with("A1"), "demo", Some("robot-{serial}"), None);
        let renamed = ReportedMachine::of(with("A1"), "other", Some("{asset}"), Some("arm 3"));
        assert_eq!((one.hostname.as_deref(), renamed.hostname.as_deref()), (Some("robot-a1"), Some("arm-3")));
        assert!(one.id == renamed.id && one.id.as_ref().unwrap().len() == 16);
        assert_ne!(one.id, ReportedMachine::of(with("A2"), "demo", None, None).id);
        // Two machines without any identity are not one machine, and a template without its value gives no name.
        let unknown = ReportedMachine::of(HardwareIdentity::default(), "demo", Some("robot-{serial}"), None);
        assert_eq!((unknown.id, unknown.hostname), (None, None));
    }
}
