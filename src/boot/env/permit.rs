//! The beginning and the end of a recovery in the environment: what may be written in between is proven by a permit.

use super::changes::{give_way, slot_changes, slots_from, with_changes};
use super::{BootEnv, BootEnvError};
use crate::boot::decide::Recoveries;
use crate::boot::grubenv::names;
use crate::boot::request::{self, RecoveryRequest};
use crate::boot::slots::{Slot, SlotState};
use crate::boot::systems::Switch;
use crate::sys::turn;

/// The intention of a recovery, as far as the environment has to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PermitRequest {
    /// Count that the loop brake has from now on, and serial of the release that is about to be installed or started.
    pub recoveries: Recoveries,
    /// Count that the loop brake has once this recovery has succeeded.
    pub recoveries_on_success: Recoveries,
    /// The slot that this recovery was started from, if that is known and the recovery has found a release: GRUB is
    /// pointed at that slot, which works, so that the other one is free.
    pub proven: Option<Slot>,
    /// Serial of the installed release, if it is known to have been good.
    pub good: Option<u64>,
    /// Whether the installed release gives way to another one.
    pub replaces: bool,
    /// Whether it was another manifest with the same serial that called itself good: the new release inherits nothing.
    pub good_is_another: bool,
    /// Number of the safe start that is to follow, if one is.
    pub safe_start: Option<u16>,
    /// Whether no slot of the recovery is going to be written, so that one on trial stays on trial.
    pub slots_stay: bool,
    /// Whether this is the running system, in which somebody may ask for something else at any time: that stays, and
    /// GRUB is not switched.
    pub requests_stay: bool,
}

/// Proof that the next boot goes to recovery. Without it, nothing of `/system` is changed.
#[derive(Debug)]
pub struct WritePermit {
    env: Option<BootEnv>,
    request: PermitRequest,
    /// The system that GRUB starts once this is finished, where that is to change.
    switch: Option<Switch>,
    /// Variables of other programs that were removed, because the block was full.
    pub dropped: Vec<String>,
}

impl BootEnv {
    /// Makes sure that the next boot goes to recovery until the permit is finished after a verified write.
    ///
    /// That the installed release was good is bound to its serial from now on: `reflash_boot_ok` would speak of
    /// whatever is installed next.
    ///
    /// # Errors
    /// The errors of [`update`](Self::update).
    pub fn begin_recovering(&self, request: PermitRequest) -> Result<WritePermit, BootEnvError> {
        let _turn = turn::beside(&self.path);
        let mut env = self.load_or_empty()?;
        let dropped = give_way(&mut env);
        let (recoveries, good) = (request.recoveries.to_string(), request.good.map(|serial| serial.to_string()));
        let mut changes = vec![
            (names::RECOVERING, Some("1")),
            (names::TRIES, Some("0")),
            (names::BOOT_OK, Some("0")),
            (names::RECOVERIES, Some(&*recoveries)),
        ];
        if good.is_some() {
            changes.extend([(names::GOOD, good.as_deref()), (names::WAS_GOOD, None)]);
        }
        changes.extend(slot_changes(slots_from(&env, request.proven)));
        self.save(&with_changes(&env, &changes))?;
        Ok(WritePermit { env: Some(self.clone()), request, switch: None, dropped })
    }

    /// Makes sure that GRUB starts the active system, and no other, while the other one is written. Nothing is said of
    /// a recovery: after a cut the active system is started as it was before.
    ///
    /// # Errors
    /// [`BootEnvError::Asked`] where requests stay and there is one; the errors of [`update`](Self::update).
    pub fn begin_other(&self, permit: PermitRequest) -> Result<WritePermit, BootEnvError> {
        let _turn = turn::beside(&self.path);
        let mut env = self.load_or_empty()?;
        if let Some(what) = request::asked_otherwise(&env, &RecoveryRequest::is_update)
            && permit.requests_stay
        {
            return Err(BootEnvError::Asked { what });
        }
        // Room for them is kept from here on, and `finish` writes them.
        drop(env.set(names::BEFORE, ""));
        let dropped = give_way(&mut env);
        let good = permit.good.map(|serial| serial.to_string());
        let mut changes = vec![(names::BEFORE, None), (names::UNDO, None)];
        if good.is_some() {
            changes.push((names::GOOD, good.as_deref()));
        }
        if !permit.slots_stay {
            changes.extend(slot_changes(slots_from(&env, permit.proven)));
        }
        self.save(&with_changes(&env, &changes))?;
        Ok(WritePermit { env: Some(self.clone()), request: permit, switch: None, dropped })
    }
}

impl WritePermit {
    /// Returns a permit for a target that no boot environment of ours starts: a disk image, or a disk on a bench.
    #[must_use]
    pub fn without_environment() -> Self {
        Self { env: None, request: PermitRequest::default(), switch: None, dropped: Vec::new() }
    }

    /// Returns the permit with a change of the system that GRUB starts, which takes effect with
    /// [`finish`](Self::finish).
    pub(crate) fn with_switch(self, switch: Switch) -> Self {
        Self { switch: Some(switch), ..self }
    }

    /// Whether this changes the system that GRUB starts.
    pub(crate) fn is_switch(&self) -> bool {
        self.switch.is_some()
    }

    /// Gives the new system its tries and sets the slots of the next recovery, in one write. `None` keeps the slots as
    /// they are. The caller has verified the system and the recovery that GRUB will start.
    pub(crate) fn finish(self, tries: u8, slots: Option<SlotState>) -> Result<(), BootEnvError> {
        let Some(env) = self.env else { return Ok(()) };
        let PermitRequest { recoveries_on_success, replaces, good_is_another, safe_start, .. } = self.request;
        let (tries, recoveries) = (tries.to_string(), recoveries_on_success.to_string());
        let safe_start = safe_start.map(|number| number.to_string());
        let mut changes = vec![
            (names::RECOVERING, None),
            (names::NEXT_ENTRY, safe_start.as_ref().map(|_| "safe")),
            (names::REQUEST, None),
            (names::BOOT_OK, Some("0")),
            (names::MAX_TRIES, Some(&*tries)),
            (names::TRIES, Some(&*tries)),
            (names::RECOVERIES, Some(&recoveries)),
        ];
        if replaces {
            let has_serial = env.load_or_empty()?.get(names::GOOD) == Some(&*recoveries_on_success.serial.to_string());
            let is_good = has_serial && !good_is_another;
            if has_serial && !is_good {
                changes.push((names::GOOD, None));
            }
            // Not merely removed: what is missing may have been lost.
            let was_good = if is_good { None } else { Some("0") };
            changes.extend([(names::WAS_GOOD, was_good), (names::SAFE, None), (names::UNDO, None)]);
        }
        if safe_start.is_some() {
            changes.push((names::SAFE, safe_start.as_deref()));
        }
        changes.extend(slots.into_iter().flat_map(slot_changes));
        for (name, value) in self.switch.map(Switch::changes).into_iter().flatten() {
            changes.push((name, value));
        }
        match self.request.requests_stay {
            true => env.update_unless_asked(&RecoveryRequest::is_update, &changes),
            false => env.update(&changes),
        }
    }
}
