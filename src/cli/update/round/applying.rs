//! What a round does with a release: it is fetched, or written to the other system, then asked for, or taken back.

use std::path::Path;

use super::{Machine, Restart, Round, later};
use crate::chain::chain;
use crate::cli::answer::{Failure, failure};
use crate::cli::drill;
use crate::cli::mounted::{MountedState, turn_to_renew};
use crate::cli::other_system::{self, Obstacle, OtherUse, note_switch};
use crate::flash::write::WriteError;
use crate::jobs::recovery::{RecoveryError, RecoveryJob, RecoveryPartition, SlotStorage};
use crate::jobs::state::{InstalledRecord, Release};
use crate::jobs::systems;
use crate::jobs::update::beside::{switch, write_beside};
use crate::jobs::update::stage::{OtherParts, stage};
use crate::jobs::update::standing::UpdateState;
use crate::jobs::update::{UpdateError, UpdateStore, permission, store};
use crate::machine::config::Config;
use crate::sys::clock::now_unix_s;
use crate::sys::special;

impl Round<'_> {
    /// Fetches what is missing of a release, or writes it to the other system.
    pub(super) fn fetch(&mut self, job: &RecoveryJob<'_>, machine: &Machine, release: &Release) -> Result<(), Failure> {
        if machine.other.is_some() {
            self.check_other()?;
        }
        let others = {
            let mounted = MountedState::open_configuration(self.options)?;
            let slots = mounted.recovery.as_deref().map(RecoveryPartition::directory);
            let slots = slots.as_ref().map(|slots| slots as &dyn SlotStorage);
            OtherParts::of(&release.manifest, slots, machine.boot_code.as_ref())
        };
        let (file, mut standing) = (self.places.standing(), self.standing.clone());
        let doing = if machine.other.is_some() { "written to the other system" } else { "fetched" };
        let begun = |store: &UpdateStore, totals| {
            standing.state = UpdateState::Fetching;
            standing.bytes = store.bytes();
            standing.sentence = format!("{} is being {doing}: {totals}", release.manifest.version);
            let _ = file.write(&standing);
        };
        let done = match &machine.other {
            None => stage(job, Some(&machine.record), release, &others, self.store(), begun).map(|_| true),
            Some(other) => self.on_other(machine, other, |job, record| {
                write_beside(job, record, release, &others, self.store(), begun)
            })?,
        };
        if let Ok(store) = UpdateStore::open(self.store(), Path::new("")) {
            self.standing.bytes = store.bytes();
        }
        match done {
            Ok(true) => Ok(()),
            Ok(false) => failure("the release does not belong on the other system: see reflash status"),
            Err(UpdateError::Release(error)) if matches!(&error, RecoveryError::Write(WriteError::TooLarge { .. })) => {
                self.refuse(&machine.context.config, chain(&error))
            }
            Err(error) => Err(Failure::of(&error, error.is_retryable())),
        }
    }

    /// Ends the round where the other system must not be written now: that is gone after a restart, or once this boot
    /// is good.
    fn check_other(&mut self) -> Result<(), Failure> {
        let mounted = MountedState::open(self.options)?;
        let Some(why) = other_system::obstacle(&mounted)? else { return Ok(()) };
        drop(mounted);
        if why == Obstacle::NotGoodYet {
            let good = "this boot to call itself good";
            self.set(UpdateState::Waiting, &format!("the update waits for {good}, before it writes the other system"));
            self.standing.waits_for = vec![good.to_owned()];
        }
        later(&why.to_string())
    }

    /// Calls `work` with a recovery to the other system.
    fn on_other<T>(
        &self,
        machine: &Machine,
        other: &Path,
        work: impl FnOnce(&RecoveryJob<'_>, Option<&InstalledRecord>) -> Result<T, UpdateError>,
    ) -> Result<Result<T, UpdateError>, Failure> {
        let mounted = MountedState::open(self.options)?;
        other_system::with_job(&machine.context, &mounted, other, OtherUse::Write, false, |job, record| {
            Ok(work(job, record))
        })
    }

    /// Has GRUB start the other system, which holds the release, and asks for the restart.
    pub(super) fn switch(
        &mut self,
        machine: &Machine,
        other: &Path,
        release: &Release,
    ) -> Result<Option<Restart>, Failure> {
        self.check_other()?;
        let _turn = turn_to_renew(self.options)?;
        let switched = self.on_other(machine, other, |job, record| {
            note_switch();
            switch(job, record, release, self.store())
        })?;
        if switched.map_err(|error| Failure::of(&error, error.is_retryable()))?.is_none() {
            return failure("the release does not belong on the other system any more: see reflash status");
        }
        self.is_asked = true;
        self.set(UpdateState::Requested, &self.next_start());
        Ok(self.is_this_machine().then_some(drill::restart as Restart))
    }

    /// Ends the round with what is waited for.
    pub(super) fn not_now(&self) -> Result<Option<Restart>, Failure> {
        if self.options.apply { later(&self.standing.sentence) } else { Ok(None) }
    }

    /// Asks for the restart once more, which was asked for before and did not come.
    pub(super) fn restart_again(&mut self, config: &Config) -> Result<Option<Restart>, Failure> {
        if self.waits(config) {
            return self.not_now();
        }
        self.set(UpdateState::Requested, &self.next_start());
        Ok(self.is_this_machine().then_some(drill::restart as Restart))
    }

    /// Takes back what has the next start apply a release, or be of it: one write.
    pub(super) fn take_back(&mut self, machine: &Machine) -> Result<(), Failure> {
        let mounted = MountedState::open(self.options)?;
        if machine.is_switched {
            systems::switch_back(&mounted.state, machine.context.job(&machine.target, false).resources.keys)?;
        }
        permission::take_back(&mounted.state.boot_env())?;
        self.is_asked = false;
        Ok(())
    }

    /// Whether recovery finds the store: it follows no link, and looks at the data partition alone.
    fn is_seen_by_recovery(&self, mounted: &mut MountedState, release: &Release) -> bool {
        let store = mounted.mount_data().map(|data| UpdateStore::open(&data, Path::new(store::PATH_ON_DATA)));
        matches!(store, Ok(Ok(store)) if store.release_id() == release.id())
    }

    /// Asks for the restart, in which recovery applies the release.
    pub(super) fn apply(&mut self, config: &Config, release: &Release) -> Result<Option<Restart>, Failure> {
        // Recovery replays no journal.
        special::flush_file_system(self.store())?;
        let granted = permission::of(release.id(), now_unix_s(), config.update_permit_h);
        let mut mounted = MountedState::open(self.options)?;
        permission::grant(&mounted.state.boot_env(), granted)?;
        let is_hidden = self.is_this_machine() && !self.is_seen_by_recovery(&mut mounted, release);
        drop(mounted);
        self.is_asked = true;
        self.set(UpdateState::Requested, &self.next_start());
        if is_hidden {
            let hidden = "; recovery does not find it there and needs a network, since it is not on the data partition, or \
                          a link leads to it";
            self.standing.sentence += hidden;
        }
        Ok(self.is_this_machine().then_some(drill::restart as Restart))
    }
}
