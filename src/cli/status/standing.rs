//! The part of `reflash status` on the installed release: whether it was ever good, what an undo would lead back to,
//! and which releases are refused.

use serde_json::{Value, json};

use crate::boot::grubenv::{GrubEnv, names};
use crate::boot::worth::Worth;
use crate::chain::chain;
use crate::cli::mounted::MountedState;
use crate::flash::target::DeviceTarget;
use crate::flash::undo::{self, UndoTarget};
use crate::jobs::floor::ReleaseId;
use crate::jobs::recovery::InstalledRelease;
use crate::jobs::recovery::other;
use crate::jobs::state::InstalledRecord;
use crate::record::blackbox::BlackBox;
use crate::record::progress::bytes;
use crate::release::digest::hex;
use crate::release::manifest::TrustedKeys;

/// How the installed release stands.
pub(super) struct StandingReport {
    pub worth: Worth,
    /// Safe starts since the last good boot.
    pub safe_starts: u64,
    undo: Result<UndoTarget, String>,
    refused: Vec<ReleaseId>,
    /// Number of the attempt, and of what it took back version, serial and reason.
    undone: Vec<(u64, Option<String>, Option<u64>, String)>,
}

impl StandingReport {
    pub(super) fn of(
        mounted: &MountedState,
        keys: &TrustedKeys,
        record: Option<&InstalledRecord>,
        env: &GrubEnv,
        recorded: Option<&BlackBox>,
    ) -> Self {
        let floor = mounted.floor().record();
        let witness = |serial| recorded.map(|open| open.worth(serial)).unwrap_or_default();
        let judge = |record: &InstalledRecord| {
            InstalledRelease::judge(record, env, &floor, witness(record.manifest().serial)).worth
        };
        let undone = recorded.into_iter().flat_map(BlackBox::undone);
        Self {
            worth: record.map(judge).unwrap_or_default(),
            safe_starts: env.get(names::SAFE).and_then(|made| made.parse().ok()).unwrap_or(0),
            undo: look_for_undo(mounted, keys, record),
            refused: floor.refused,
            undone: undone
                .map(|(attempt, undone)| (attempt.id, undone.version.clone(), undone.serial, undone.why.clone()))
                .collect(),
        }
    }

    pub(super) fn undo_json(&self) -> Value {
        match &self.undo {
            Ok(kept) => json!({
                "possible": kept.is_complete(), "version": kept.version, "serial": kept.serial,
                "kept_bytes": kept.kept_bytes, "missing_chunks": kept.missing_chunks,
                "obstacle": kept.obstacle().map(|obstacle| obstacle.to_string()),
            }),
            Err(obstacle) => json!({ "possible": false, "obstacle": obstacle }),
        }
    }

    pub(super) fn refused_json(&self) -> Value {
        let release = |refused: &ReleaseId| json!({ "serial": refused.serial, "manifest": hex(&refused.digest) });
        self.refused.iter().map(release).collect()
    }

    pub(super) fn undone_json(&self) -> Value {
        let release = |(attempt, version, serial, why): &(u64, Option<String>, Option<u64>, String)| json!({ "attempt": attempt, "version": version, "serial": serial, "why": why });
        self.undone.iter().map(release).collect()
    }

    /// The same for people, a line for each.
    pub(super) fn lines(&self) -> String {
        let worth = match self.worth {
            Worth::Before => "a boot of it called itself good",
            Worth::SameImage => "no boot of it called itself good yet, but one of a release with the same image did",
            Worth::Never => "no boot of it called itself good yet",
            Worth::Unknown => "whether a boot of it ever called itself good is not known",
        };
        let mut lines = vec![worth.to_owned()];
        lines.push(match &self.undo {
            Ok(UndoTarget { version, serial, kept_bytes, missing_chunks, .. }) => format!(
                "undo: `reflash request undo` leads back to {version} (serial {serial}); {}{}",
                match kept_bytes {
                    0 => "it is the other system".to_owned(),
                    kept_bytes => format!("{} are kept for it", bytes(*kept_bytes)),
                },
                match missing_chunks {
                    0 => String::new(),
                    missing => format!(", and a network has to give {missing} chunks that were damaged"),
                }
            ),
            Err(obstacle) => format!("undo: none is possible, {obstacle}"),
        });
        if self.safe_starts > 0 {
            lines.push(format!("safe starts since the last good boot: {}", self.safe_starts));
        }
        if !self.refused.is_empty() {
            let serials: Vec<String> = self.refused.iter().map(|refused| refused.serial.to_string()).collect();
            lines.push(format!("refused releases, by serial: {}", serials.join(", ")));
        }
        lines.join("\n")
    }
}

/// The release on the other of two systems, if an undo would start it: an older boot script starts the one that it
/// knows, whatever is asked for.
pub(in crate::cli) fn other_to_go_back_to(mounted: &MountedState, keys: &TrustedKeys) -> Option<UndoTarget> {
    if mounted.other.is_none() || !mounted.recovery.as_deref().is_some_and(other::scripts_know_two) {
        return None;
    }
    let state = mounted.state.of_system(mounted.state.system().other());
    other::possible(&state, keys, &mounted.floor()).ok()
}

/// Looks which release an undo would lead back to from the installed one, or why there is none.
pub(in crate::cli) fn look_for_undo(
    mounted: &MountedState,
    keys: &TrustedKeys,
    installed: Option<&InstalledRecord>,
) -> Result<UndoTarget, String> {
    if let Some(back) = other_to_go_back_to(mounted, keys) {
        return Ok(back);
    }
    let path =
        mounted.system_partition().map_err(|_| "which partition holds the system is not known here".to_owned())?;
    let target = DeviceTarget::open_read_only(&path).map_err(|error| chain(&error))?;
    let kept = undo::possible(&target, keys).map_err(|obstacle| chain(&obstacle))?;
    let digest: [u8; 8] = std::array::from_fn(|at| kept.manifest_digest.0[at]);
    if installed.is_some_and(|record| record.id() == ReleaseId { serial: kept.serial, digest }) {
        return Err(format!("the release that is kept is the installed one, {}", kept.version));
    }
    Ok(kept)
}
