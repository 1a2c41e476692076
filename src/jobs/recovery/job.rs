//! What a recovery works with: which machine it is, what was decided beforehand, and the resources it uses.

use crate::boot::decide::{Recoveries, System};
use crate::boot::grubenv::GrubEnv;
use crate::boot::worth::{Witnesses, Worth};
use crate::fetch::Source;
use crate::flash::target::BlockTarget;
use crate::flash::undo::UndoTarget;
use crate::jobs::floor::{Floor, FloorRecord, ReleaseId, SeenRollout};
use crate::jobs::recovery::left_out::LeftOut;
use crate::jobs::recovery::other::OtherSystem;
use crate::jobs::recovery::partition::{BootChain, Renewal};
use crate::jobs::state::{InstalledRecord, StatePartition};
use crate::record::journal::Journal;
use crate::release::manifest::TrustedKeys;
use crate::release::rollout::Robot;

/// Tries of the new system, unless `boot.tries` says otherwise.
const DEFAULT_TRIES: u8 = 3;

/// Identity of the machine, which the release must fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Product that the release must be for.
    pub product: String,
    /// Hardware name that the release must list.
    pub hardware: String,
    /// Channel that the machine follows.
    pub channel: String,
}

/// The release that is kept on the partition while another one is written, so that an undo can go back to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// The installed release, which was good: from now on an undo goes back to it.
    Installed,
    /// The release that is kept already, if any: the installed one was never good, or nobody knows.
    #[default]
    Kept,
    /// No release: what is kept is given up.
    Nothing,
}

/// The installed release, as far as decisions depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstalledRelease {
    /// Serial and manifest of the release.
    pub id: ReleaseId,
    /// Whether a boot of it ever called itself good.
    pub worth: Worth,
}

impl InstalledRelease {
    /// Judges the installed release by all that the machine keeps of it. `recorded` is what the black box has of
    /// releases with that serial.
    #[must_use]
    pub fn judge(record: &InstalledRecord, env: &GrubEnv, floor: &FloorRecord, recorded: Worth) -> Self {
        let (id, as_good) = (record.id(), record.as_good());
        let good = floor.good;
        let witnesses = Witnesses {
            recorded,
            is_of_another_manifest: good.is_some_and(|good| good.release.serial == id.serial && good.release != id),
            has_image: good.zip(as_good).is_some_and(|(good, own)| good.image == own.image),
        };
        Self { id, worth: Worth::judge(id.serial, env, witnesses) }
    }
}

impl Keep {
    /// The rule: the last release that was good stays within reach of an undo, and `kept` is what is kept now.
    ///
    /// Of an installed release of which nothing is known, it is kept only where no whole release is: what is kept was
    /// good.
    #[must_use]
    pub fn by_worth(worth: Worth, kept: Option<&UndoTarget>) -> Self {
        match worth {
            Worth::Before | Worth::SameImage => Self::Installed,
            Worth::Unknown if !kept.is_some_and(UndoTarget::is_complete) => Self::Installed,
            Worth::Never | Worth::Unknown => Self::Kept,
        }
    }
}

/// Decisions that were made before the recovery began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Boots that the new system may try.
    pub tries: u8,
    /// Whether an older release than the installed one is accepted, as a person may ask for.
    pub allow_older: bool,
    /// Whether a person or the running system asked for this recovery, so that it does not count as an automatic one.
    pub requested: bool,
    /// Automatic recoveries before this one.
    pub recoveries: Recoveries,
    /// Only a release with a higher serial than this one is wanted. A parked machine waits for it.
    pub above: Option<u64>,
    /// Release that no source has all of, as one that is being published: any other is wanted.
    pub incomplete: Option<ReleaseId>,
    /// Release that stays within reach of an undo.
    pub keep: Keep,
    /// The installed release, if that is known.
    pub installed: Option<InstalledRelease>,
    /// State of the partition of the active system, as far as it was compared.
    pub active: System,
    /// Whether this robot has two systems, so that every boot script has to know them.
    pub two_systems: bool,
    /// Whether the running system does this, so that somebody may ask for something else meanwhile: that stays.
    pub in_running_system: bool,
    /// Number of the safe start that follows, if one is to.
    pub safe_start: Option<u16>,
    /// Serial of a release whose writing was begun and cut short.
    pub begun: Option<u64>,
    /// Whether content is fetched chunk by chunk alone, without deltas and groups: some of them turned out wrong.
    pub chunks_alone: bool,
    /// Whether the running system asked shortly before if the release still stands, so that no server is asked again.
    pub asked_before: bool,
}

impl Default for Policy {
    /// The policy of an automatic recovery that is the first one.
    fn default() -> Self {
        Self {
            tries: DEFAULT_TRIES,
            allow_older: false,
            requested: false,
            recoveries: Recoveries::default(),
            above: None,
            incomplete: None,
            keep: Keep::default(),
            installed: None,
            safe_start: None,
            begun: None,
            chunks_alone: false,
            asked_before: false,
            active: System::Unknown,
            two_systems: false,
            in_running_system: false,
        }
    }
}

impl Policy {
    /// The policy of what a person does by hand.
    #[must_use]
    pub fn requested(tries: u8, allow_older: bool) -> Self {
        Self { tries, allow_older, requested: true, ..Self::default() }
    }
}

/// Resources that a recovery uses.
#[derive(Clone, Copy)]
pub struct Resources<'a> {
    /// Keys of which one must have signed the release.
    pub keys: &'a TrustedKeys,
    /// Source of the release.
    pub source: &'a dyn Source,
    /// Source of the release that gives up by itself: for what a recovery can do without.
    pub brief_source: &'a dyn Source,
    /// The system partition.
    pub target: &'a dyn BlockTarget,
    /// The state partition, where there is one.
    pub state: Option<&'a StatePartition>,
    /// The floor of the machine, and the releases that are refused on it, where they are kept.
    pub floor: Option<&'a Floor>,
    /// The recovery partition, on a machine whose recovery is to be renewed.
    pub renewal: Option<Renewal<'a>>,
    /// The whole disk, on a machine whose boot chain is to be mended.
    pub boot_chain: Option<BootChain<'a>>,
    /// The other system, on a robot with two.
    pub other: Option<OtherSystem<'a>>,
    /// Sets a clock that may be behind, by the creation time of an authentic manifest in seconds since 1970.
    pub learn_time: &'a dyn Fn(u64),
    /// Reads what the machine knows of itself, which roll-outs ask for.
    pub robot: &'a dyn Fn() -> Robot,
    /// Takes the numbers of authentic roll-out files, behind which the machine never goes.
    pub learn_rollout: &'a dyn Fn(SeenRollout),
    /// Takes what a roll-out keeps from this robot, where it has nothing to take.
    pub learn_left_out: &'a dyn Fn(LeftOut),
}

impl<'a> Resources<'a> {
    /// Resources of a bench: no state, no recovery to renew, a clock that is right, and no robot of a roll-out.
    pub fn new(keys: &'a TrustedKeys, source: &'a dyn Source, target: &'a dyn BlockTarget) -> Self {
        Self {
            keys,
            source,
            brief_source: source,
            target,
            state: None,
            floor: None,
            renewal: None,
            boot_chain: None,
            other: None,
            learn_time: &|_| {},
            robot: &Robot::default,
            learn_rollout: &|_| {},
            learn_left_out: &|_| {},
        }
    }
}

/// A recovery to be carried out.
#[derive(Clone)]
pub struct RecoveryJob<'a> {
    /// Identity of the machine.
    pub identity: Identity,
    /// Decisions that were made beforehand.
    pub policy: Policy,
    /// Resources that are used.
    pub resources: Resources<'a>,
    /// Journal that the recovery reports to.
    pub journal: &'a Journal,
}

impl<'a> RecoveryJob<'a> {
    /// A copy of this recovery with another source of the release.
    #[must_use]
    pub fn with_source<'b>(&self, source: &'b dyn Source) -> RecoveryJob<'b>
    where
        'a: 'b,
    {
        RecoveryJob { resources: Resources { source, ..self.resources }, ..self.clone() }
    }

    /// The same recovery, for the other system alone. Nothing is kept for an undo: the active system is what is gone
    /// back to.
    pub(super) fn on_other<'b>(&self, target: &'b dyn BlockTarget, state: &'b StatePartition) -> RecoveryJob<'b>
    where
        'a: 'b,
    {
        let resources = Resources { target, state: Some(state), other: None, ..self.resources };
        RecoveryJob { resources, policy: Policy { keep: Keep::Nothing, ..self.policy }, ..self.clone() }
    }

    /// Reads the record of the installed release from the state partition, if there are both.
    #[must_use]
    pub fn read_record(&self) -> Option<InstalledRecord> {
        self.resources.state.and_then(|state| state.record(self.resources.keys))
    }
}
