//! The robot's disk: found, its recovery and state partitions mounted, its system partition opened.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::boot_medium::{self, BootMedium, StartedFrom};
use super::drivers::look_again;
use super::error::SetupError;
use crate::boot::decide::Reason;
use crate::boot::disk_record;
use crate::boot::efivars::EfiVars;
use crate::boot::grubenv::{GrubEnv, names};
use crate::boot::systems::{SystemNumber, Systems};
use crate::chain::chain;
use crate::disk::gpt_copies::DamagedPart;
use crate::disk::list::PartitionTable;
use crate::disk::raw::WholeDisk;
use crate::disk::roles::Role;
use crate::disk::{DiskSearch, FoundDisk, ReadRecord, Scheme, Waiting, Which, wait_for_disk_by_partuuid};
use crate::flash::target::DeviceTarget;
use crate::jobs::floor::{Floor, FloorPlaces};
use crate::jobs::mend;
use crate::jobs::recovery::RecoveryPartition;
use crate::jobs::state::StatePartition;
use crate::jobs::state::device::StateDevice;
use crate::jobs::systems;
use crate::machine::config::BootArgs;
use crate::pid1::link::{Handover, WorkPart};
use crate::pid1::worker;
use crate::record::journal::Journal;
use crate::record::progress::bytes;
use crate::sys::mount::Mount;

/// Mount point of the recovery partition, which is read-only.
pub(super) const RECOVERY: &str = "/recovery";
/// Mount point of the state partition.
pub(super) const STATE: &str = "/state";
/// Template of an empty state partition, for one that was destroyed.
const STATE_TEMPLATE: &str = "/recovery/templates/state.ext4.zst";

/// A recovery partition that does not mount is tried again once after this, in case its disk was still waking up.
const MOUNT_AGAIN: Duration = Duration::from_secs(2);
/// Time until the machine is restarted because its disk is not there. Nothing else can be done without the disk, so it
/// is looked for all the while; but a controller that hangs may need a reset, which only a restart gives it. No disk is
/// known that takes so long after each reset.
const DISK_WAIT: Duration = Duration::from_secs(30 * 60);

/// The other system of a robot with two.
pub(super) struct OtherDisk {
    pub target: DeviceTarget,
    /// State partition, with the record of that system.
    pub state: StatePartition,
    /// What the environment says of the two.
    pub systems: Systems,
}

/// The disk of this robot, ready to be recovered.
pub(super) struct RobotDisk {
    /// The recovery partition, mounted.
    pub recovery: RecoveryPartition,
    /// The state partition, mounted.
    pub state: StatePartition,
    /// Why nothing can be stored on the state partition, if that is so: it is then mounted for reading, or nothing is.
    pub unwritable: Option<String>,
    /// Places in which the floor of the robot is kept.
    pub floor_places: FloorPlaces,
    /// The system partition: of two, the one that GRUB starts.
    pub target: DeviceTarget,
    /// The other system, on a robot with two.
    pub other: Option<OtherDisk>,
    /// Device of the data partition. `None` where its owner has made it anew without its name: nothing but a factory
    /// reset and a fetched update needs it.
    pub data: Option<PathBuf>,
    /// The disk with its model and size, for people.
    pub description: String,
    /// Kernel name of the disk.
    pub name: String,
    /// The whole disk, if it can be opened, and its partitions: what firmware and GRUB read.
    pub whole: Option<WholeDisk>,
    pub layout: PartitionTable,
    /// Damage of the partition table that was mended.
    pub mended: Vec<String>,
    /// Whether GRUB was loaded from a copy of this disk, and goes by what it counts there.
    pub grub_is_elsewhere: bool,
}

impl RobotDisk {
    /// Finds the disk that GRUB started from, or the only disk of a robot when GRUB was on a boot medium.
    pub(super) fn open(
        args: &BootArgs,
        medium: Option<&BootMedium>,
        handover: &Handover,
        journal: &Journal,
    ) -> Result<Self, SetupError> {
        let partuuid = match (&args.recovery_partuuid, medium) {
            (Some(partuuid), _) => partuuid.clone(),
            (None, medium) => {
                if medium.is_none() {
                    // GRUB's first script cannot name a partition where the table is damaged.
                    journal.warn("GRUB did not say which disk it started from: looking for the disk of a robot");
                }
                let started_from = if medium.is_some() { StartedFrom::Medium } else { StartedFrom::Disk };
                boot_medium::robot_partuuid(disk_search(handover), started_from, DISK_WAIT, journal)?
            }
        };
        let waiting = |waiting: &Waiting<'_>| {
            // A wait on purpose, which a reset would only repeat.
            journal.progressed();
            if waiting.is_news {
                journal.note(&waiting.to_string());
                if waiting.error.is_some() && !waiting.waited.is_zero() {
                    look_again(journal);
                }
            }
        };
        let search = disk_search(handover);
        let look = || wait_for_disk_by_partuuid(&partuuid, search, DISK_WAIT, waiting);
        let found = worker::within(&WorkPart::RemovableDisks, look)?;
        for other in &found.passed_over {
            journal.warn(&format!("not the disk of this robot: {other}"));
        }
        let TableMended { found, mended, is_settled } = mend_table(found, handover, journal);
        let description = found.disk.to_string();
        found.layout.check_overlap(&description)?;
        let partition = |role: Role| {
            let node = found.layout.device_of(role).map(Path::to_owned);
            node.ok_or_else(|| SetupError::Partition { disk: description.clone(), role })
        };
        let slot = args.slot.as_ref().map(|slot| format!(", recovery slot {slot}"));
        journal.note(&format!("disk {description}{}", slot.unwrap_or_default()));
        let recovery = partition(Role::Recovery)?;
        mount_recovery(&recovery, journal);
        let state_partition = partition(Role::State)?;
        let unwritable = match open_state(&state_partition, handover, journal) {
            Ok(()) => None,
            // A person who started a medium repairs the robot, or learns why not.
            Err(source) if medium.is_some() => return Err(SetupError::State { path: state_partition, source }),
            Err(source) => {
                open_state_to_read(&state_partition)?;
                Some(chain(&SetupError::State { path: state_partition, source }))
            }
        };
        let state = StatePartition::new(Path::new(STATE));
        // With another candidate, it is the running system that will know.
        if unwritable.is_none()
            && found.passed_over.is_empty()
            && !found.is_remembered
            && let Err(error) = disk_record::remember(&state.boot_env(), found.disk.identity())
        {
            journal.warn(&format!("this disk cannot be remembered: {}", chain(&error)));
        }
        if unwritable.is_none()
            && is_settled
            && let Err(error) = disk_record::remember_size(&state.boot_env(), found.disk.size_bytes)
        {
            journal.warn(&format!("the size of this disk cannot be remembered: {}", chain(&error)));
        }
        let floor_places = FloorPlaces {
            state: Some(PathBuf::from(STATE)),
            recovery: Some((PathBuf::from(RECOVERY), recovery.clone())),
            firmware: EfiVars::open(),
        };
        let open = |number: SystemNumber| -> Result<DeviceTarget, SetupError> {
            Ok(open_system(&partition(number.role())?, unwritable.is_some())?.on_disk(&description))
        };
        let systems = match found.layout.of_role(Role::System2) {
            Some(_) => look_at_systems(&state, &floor_places, journal),
            None => Systems::default(),
        };
        let other = found.layout.of_role(Role::System2).and_then(|_| {
            let number = systems.active.other();
            let target = open(number).inspect_err(|error| {
                journal.warn(&format!("going on without the other of two systems: {}", chain(error)));
            });
            Some(OtherDisk { target: target.ok()?, state: state.of_system(number), systems })
        });
        let env = state.boot_env().load_or_empty().unwrap_or_default();
        let grub_is_elsewhere =
            !found.passed_over.is_empty() && contradicts(Reason::parse(args.reason.as_deref()), &env);
        Ok(Self {
            grub_is_elsewhere,
            recovery: RecoveryPartition::mounted(&recovery, Path::new(RECOVERY)),
            state: state.of_system(systems.active),
            floor_places,
            target: open(systems.active)?,
            other,
            unwritable,
            data: partition(Role::Data).inspect_err(|error| journal.warn(&chain(error))).ok(),
            description,
            whole: WholeDisk::open(&found.disk.path)
                .inspect_err(|error| journal.warn(&format!("the boot chain cannot be mended: {}", chain(error))))
                .ok(),
            layout: found.layout,
            name: found.disk.name,
            mended,
        })
    }
}

/// Mounts the recovery partition, as far as that is possible. GRUB, which looks at no checksum and no journal, started
/// this recovery from it; without it, the copy of the configuration, a medium, and what is in memory are left.
fn mount_recovery(device: &Path, journal: &Journal) {
    let usual = Mount::device(device, "ext4").read_only().data_only();
    let mounted = usual.on(RECOVERY).or_else(|_| {
        std::thread::sleep(MOUNT_AGAIN);
        usual.on(RECOVERY)
    });
    let Err(error) = mounted else { return };
    journal.warn(&format!("the recovery partition is damaged: {}", chain(&error)));
    if let Err(error) = usual.no_load().on(RECOVERY) {
        journal.warn(&format!("going on without the recovery partition: {}", chain(&error)));
    }
}

/// Whether GRUB cannot have read this environment, from which it has the reason.
fn contradicts(reason: Reason, env: &GrubEnv) -> bool {
    match reason {
        // It gives this one only where there is no such digit.
        Reason::Tries => matches!(env.get(names::TRIES).map(str::as_bytes), Some([b'1'..=b'9'])),
        Reason::Recovering => env.get(names::RECOVERING) != Some("1"),
        _ => false,
    }
}

/// A disk after the look at its table.
struct TableMended {
    found: FoundDisk,
    /// Damage that was mended, for people.
    mended: Vec<String>,
    /// Whether the disk has an MBR in which the data partition reaches as far as a disk of this size allows.
    is_settled: bool,
}

/// Mends the table of the robot's disk, of which nothing is mounted yet, and has the kernel read it again. What fails
/// is a warning: the other copy may be enough.
fn mend_table(found: FoundDisk, handover: &Handover, journal: &Journal) -> TableMended {
    if handover.leaves_out(&WorkPart::Mending) {
        return TableMended { found, mended: Vec::new(), is_settled: false };
    }
    let is_mbr = found.layout.scheme == Scheme::Mbr;
    let leaves_out_state = handover.leaves_out(&WorkPart::State);
    let work = || -> Result<Vec<DamagedPart>, SetupError> {
        let disk = WholeDisk::open(&found.disk.path)?;
        let mended = mend::table::mend(&disk).map_err(SetupError::Mend)?;
        let state = found.layout.device_of(Role::State).filter(|_| is_mbr && !leaves_out_state);
        let remembered_mib = state.and_then(|state| disk_record::read_disk_mib(state, &found.disk.name));
        let gained_bytes = mend::table::grow(&disk, remembered_mib).map_err(SetupError::Mend)?;
        if let Some(gained_bytes) = gained_bytes {
            let moved = if found.layout.scheme == Scheme::Gpt { "the table is moved to its end, and " } else { "" };
            journal.note(&format!(
                "the disk is larger than the one that its table was made for: {moved}data gets {} more when the \
                 system starts",
                bytes(gained_bytes)
            ));
        }
        if gained_bytes.is_some()
            || !mended.is_empty()
            || found.layout.partitions.iter().any(|partition| partition.node.is_none())
        {
            disk.reread_partitions()?;
        }
        Ok(mended)
    };
    let done = worker::within(&WorkPart::Mending, work)
        .inspect_err(|error| journal.warn(&format!("the partition table stays as it is: {}", chain(error))));
    let is_settled = is_mbr && !leaves_out_state && done.is_ok();
    let mended: Vec<_> =
        done.unwrap_or_default().into_iter().map(|part| format!("the {} of {}", part.name(), found.disk)).collect();
    mended.iter().for_each(|what| journal.note(&format!("mended {what}")));
    // The devices are there as soon as the kernel has read the table.
    let layout = found.disk.layout().ok().flatten().unwrap_or_else(|| found.layout.clone());
    TableMended { found: FoundDisk { layout, ..found }, mended, is_settled }
}

/// How the disk is searched for, without what earlier workers died of.
fn disk_search(handover: &Handover) -> DiskSearch {
    let read_record = (!handover.leaves_out(&WorkPart::State)).then_some(disk_record::read as ReadRecord);
    let avoid_external = handover.leaves_out(&WorkPart::RemovableDisks);
    DiskSearch { avoid_external, ..DiskSearch::with(Which::Physical, read_record) }
}

/// Finds out which of two systems is active, and writes it to the environment again where that was lost.
fn look_at_systems(state: &StatePartition, floor: &FloorPlaces, journal: &Journal) -> Systems {
    let good = || Floor::open(floor.clone()).record().good.map(|good| good.release);
    let systems = worker::within(&WorkPart::State, || systems::look(state, good())).unwrap_or_else(|error| {
        journal.warn(&chain(&error));
        Systems::default()
    });
    journal.note(&format!("two systems: GRUB starts number {}", systems.active.name()));
    // Where the environment was lost, it says so again from here on.
    let lost = systems.active == SystemNumber::Second
        && state.boot_env().load_or_empty().is_ok_and(|env| env.get(names::SYSTEM).is_none());
    if lost && let Err(error) = state.boot_env().update(&[(names::SYSTEM, Some(systems.active.name()))]) {
        journal.warn(&chain(&error));
    }
    systems
}

/// Opens the system partition; for reading alone, where nothing is written any more and that is all it allows.
fn open_system(path: &Path, is_enough_to_read: bool) -> Result<DeviceTarget, SetupError> {
    match DeviceTarget::open(path) {
        Err(_) if is_enough_to_read => DeviceTarget::open_read_only(path).map_err(SetupError::System),
        opened => opened.map_err(SetupError::System),
    }
}

/// Mounts a state partition that can be neither written nor made anew, for reading. Where that does not work either,
/// nothing is known: an empty directory that cannot be written takes its place.
fn open_state_to_read(partition: &Path) -> Result<(), SetupError> {
    let readable = Mount::device(partition, "ext4").read_only().no_load().data_only().on(STATE);
    Ok(readable.or_else(|_| Mount::virtual_fs("tmpfs").read_only().data_only().on(STATE))?)
}

/// Mounts the state partition. A destroyed one is made anew, and so is one that earlier workers died of: it holds
/// nothing of a person's, what is installed is found out again by comparison with the release, and an empty environment
/// leads back here.
fn open_state(partition: &Path, handover: &Handover, journal: &Journal) -> std::io::Result<()> {
    let device = StateDevice { partition, root: Path::new(STATE), template: Path::new(STATE_TEMPLATE) };
    if handover.leaves_out(&WorkPart::State) {
        device.renew(journal)
    } else {
        worker::within(&WorkPart::State, || device.open(journal))
    }
}
