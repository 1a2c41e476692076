//! What is known of the installed release before anything is decided: whether it was ever good, what is kept of another
//! one, what was asked for, and which safe starts were made.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;

use super::robot_disk::RECOVERY;
use crate::boot::boot_scripts;
use crate::boot::decide::{KeptRelease, Reason, SafeStarts};
use crate::boot::grubenv::{GrubEnv, names};
use crate::boot::request::RecoveryRequest;
use crate::boot::slots;
use crate::boot::worth::Worth;
use crate::flash::target::BlockTarget;
use crate::flash::undo::{self, UndoObstacle, UndoTarget};
use crate::jobs::floor::{FloorRecord, ReleaseId};
use crate::jobs::recovery::{InstalledRelease, Keep};
use crate::jobs::state::{InstalledRecord, StatePartition};
use crate::pid1::link::{Handover, WorkPart};
use crate::pid1::worker;
use crate::record::blackbox::Recorder;
use crate::record::journal::Journal;
use crate::release::manifest::TrustedKeys;

/// Highest number of a safe start that GRUB takes from the environment.
const MAX_SAFE_STARTS: u16 = 999;

/// The installed release and what could take its place without a network.
pub(super) struct Standing {
    /// What this recovery was asked for, beyond its reason.
    pub request: Option<RecoveryRequest>,
    /// The installed release, if its record counts.
    pub installed: Option<InstalledRelease>,
    /// The release that is kept on the machine, or why there is none. An installation changes it before it writes.
    undo: RefCell<Result<UndoTarget, UndoObstacle>>,
    /// Safe starts of the installed release.
    pub safe_starts: SafeStarts,
    /// How the undo went in this recovery, so far.
    undo_course: Cell<UndoCourse>,
}

/// How an undo went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UndoCourse {
    /// None was tried.
    Untried,
    /// Something is missing on the machine, and nothing was written: it needs a network.
    NeedsNetwork,
    /// It failed, and is not tried again.
    Failed,
}

impl Standing {
    pub(super) fn find(
        reason: Reason,
        force: bool,
        state: &StatePartition,
        record: Option<&InstalledRecord>,
        recorder: Option<&Recorder>,
        floor: &FloorRecord,
        undo: Result<UndoTarget, UndoObstacle>,
    ) -> Self {
        let env = state.boot_env().load_or_empty().unwrap_or_default();
        let installed = record.map(|record| {
            let serial = record.manifest().serial;
            let recorded = recorder.map(|recorder| recorder.with(|open| open.worth(serial))).unwrap_or_default();
            InstalledRelease::judge(record, &env, floor, recorded)
        });
        let asked = RecoveryRequest::parse(env.get(names::REQUEST));
        let serial = installed.map(|installed| installed.id.serial);
        Self {
            // Whoever chose "Recover/Reflash" at the machine means that.
            request: asked.filter(|_| !force).and_then(|asked| asked.that_counts(reason, serial)),
            installed,
            undo: RefCell::new(undo),
            safe_starts: SafeStarts { known: scripts_know_safe_start(Path::new(RECOVERY)), made: made(&env) },
            undo_course: Cell::new(UndoCourse::Untried),
        }
    }

    /// Takes what is kept on the machine by now.
    pub(super) fn look_again(&self, undo: Result<UndoTarget, UndoObstacle>) {
        *self.undo.borrow_mut() = undo;
    }

    /// The release that is kept on the machine, if there is one.
    pub(super) fn kept_release(&self) -> Option<UndoTarget> {
        self.undo.borrow().as_ref().ok().cloned()
    }

    /// What an undo can bring back. `online` says whether there is a network, which may have what is missing.
    pub(super) fn kept(&self, online: bool) -> KeptRelease {
        let course = self.undo_course.get();
        let undo = self.undo.borrow();
        let Some(kept) = undo.as_ref().ok().filter(|_| course != UndoCourse::Failed) else {
            return KeptRelease::Nothing;
        };
        let is_whole = kept.is_complete() && course == UndoCourse::Untried;
        match self.installed.is_some_and(|installed| id_of(kept) == installed.id) {
            true if is_whole => KeptRelease::Installed,
            // To fetch what is missing of it is what a recovery does anyway.
            true => KeptRelease::Nothing,
            false if is_whole || online => KeptRelease::Another,
            false => KeptRelease::Part,
        }
    }

    /// Lets nothing be decided by what is kept any more, after an undo that failed.
    pub(super) fn give_up_undo(&self, may_need_network: bool) {
        self.undo_course.set(if may_need_network { UndoCourse::NeedsNetwork } else { UndoCourse::Failed });
    }

    /// Whether a boot of the installed release was ever good.
    pub(super) fn worth(&self) -> Worth {
        self.installed.map(|installed| installed.worth).unwrap_or_default()
    }

    /// What stays within reach of an undo while another release is installed.
    pub(super) fn keep(&self) -> Keep {
        Keep::by_worth(self.worth(), self.undo.borrow().as_ref().ok())
    }

    /// Number of the next safe start.
    pub(super) fn next_safe_start(&self) -> u16 {
        self.safe_starts.made.saturating_add(1).min(MAX_SAFE_STARTS)
    }

    /// Reports in one line what decides.
    pub(super) fn report(&self, journal: &Journal) {
        let worth = match self.worth() {
            Worth::Before => "was good before",
            Worth::SameImage => "has the image of one that was good before",
            Worth::Never => "was never good",
            Worth::Unknown => "may have been good or not",
        };
        let kept = match (&*self.undo.borrow(), self.kept(false)) {
            (Ok(UndoTarget { version, serial, .. }), KeptRelease::Another) => {
                format!("{version} (serial {serial}) is kept")
            }
            (Ok(UndoTarget { version, serial, missing_chunks, .. }), KeptRelease::Part) => format!(
                "{version} (serial {serial}) is kept, but for {missing_chunks} chunks that only a network may have"
            ),
            (Ok(_), _) => "it is kept on the machine itself".to_owned(),
            (Err(obstacle), _) => format!("no undo: {obstacle}"),
        };
        if self.installed.is_some() {
            journal.note(&format!("the installed release {worth}; {kept}"));
        } else {
            journal.note(&format!("which release is installed is not known; {kept}"));
        }
    }
}

/// Reads what is kept on the machine. What the recovery died of before is left out.
pub(super) fn find_kept(
    target: &dyn BlockTarget,
    keys: &TrustedKeys,
    handover: &Handover,
) -> Result<UndoTarget, UndoObstacle> {
    if handover.leaves_out(&WorkPart::Undo) {
        return Err(UndoObstacle::Read(io::Error::other("the recovery died of it before")));
    }
    worker::within(&WorkPart::Undo, || undo::possible(target, keys))
}

/// Serial and manifest of the release that is kept.
pub(super) fn id_of(kept: &UndoTarget) -> ReleaseId {
    let digest = kept.manifest_digest.0;
    ReleaseId { serial: kept.serial, digest: std::array::from_fn(|at| digest[at]) }
}

/// Safe starts since the last good boot.
fn made(env: &GrubEnv) -> u16 {
    env.get(names::SAFE).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Whether every boot script on the recovery partition makes a safe start. A slot without a script does not count.
pub(super) fn scripts_know_safe_start(recovery: &Path) -> bool {
    let scripts = boot_scripts::read(recovery);
    let generations: Vec<u32> = scripts.iter().map(|(_, text)| slots::generation(text)).collect();
    slots::all_know_safe_start(&generations)
}

#[cfg(test)]
mod tests {
    use super::scripts_know_safe_start;
    use std::fs;

    #[test]
    fn an_older_script_in_either_slot_keeps_the_robot_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let slot = |name: &str, text: &str| {
            let folder = dir.path().join("slots").join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("grub.cfg"), text).unwrap();
        };
        assert!(!scripts_know_safe_start(dir.path()));
        slot("a", "set script=2\n");
        assert!(scripts_know_safe_start(dir.path()));
        slot("b", "set script=whole\n");
        assert!(!scripts_know_safe_start(dir.path()));
        slot("b", "set script=3\n");
        assert!(scripts_know_safe_start(dir.path()));
        // A script that was cut short is passed over by the loader, and may be anything.
        slot("b", "set scr");
        assert!(!scripts_know_safe_start(dir.path()));
    }
}
