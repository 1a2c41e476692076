//! The partitions of this machine that a command works with.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::answer::{Exit, Failure, complain, failure};
use super::options::Options;
use crate::boot::disk_record;
use crate::boot::efivars::EfiVars;
use crate::boot::systems::{SystemNumber, Systems};
use crate::chain::chain;
use crate::disk::list::PartitionTable;
use crate::disk::roles::Role;
use crate::disk::{DiskIdentity, DiskSearch, FindError, Which};
use crate::jobs::floor::{Floor, FloorPlaces};
use crate::jobs::state::StatePartition;
use crate::sys::mount::{self, Mount, MountError};
use crate::sys::own_mounts;
use crate::sys::turn;

/// Directory below which partitions are mounted while a command needs them.
pub(super) const MOUNTS: &str = "/run/reflash";

/// Name of the directory on which the whole data partition is mounted.
const DATA: &str = "whole-data";
/// Longest wait for another command that writes the recovery partition.
const TURN_LIMIT: Duration = Duration::from_secs(30);

/// The state partition, and the recovery partition for reading, mounted only while a command needs them: GRUB reads and
/// writes the blocks of the former, so nothing else should keep it busy.
pub(super) struct MountedState {
    pub state: StatePartition,
    system: Option<PathBuf>,
    /// Device of the other system, on a robot with two.
    pub other: Option<PathBuf>,
    /// Identity of the disk, on a machine that was started from it.
    pub disk: Option<DiskIdentity>,
    pub recovery: Option<PathBuf>,
    /// Places of this machine's floor.
    floor: FloorPlaces,
    /// Device of the recovery partition.
    pub recovery_device: Option<PathBuf>,
    /// Device and partitions of the disk that this machine was started from.
    pub boot_disk: Option<(PathBuf, PartitionTable)>,
    mounted: Vec<PathBuf>,
}

impl MountedState {
    pub(super) fn open(options: &Options) -> Result<Self, Failure> {
        Self::open_with(options, true)
    }

    /// The recovery partition for reading alone, so that nothing is written by a look at the configuration: to mount
    /// the state partition is to write to it.
    pub(super) fn open_configuration(options: &Options) -> Result<Self, Failure> {
        Self::open_with(options, false)
    }

    fn open_with(options: &Options, with_state: bool) -> Result<Self, Failure> {
        if let Some(directory) = &options.state {
            return Ok(Self {
                state: StatePartition::new(directory),
                system: None,
                other: None,
                disk: None,
                recovery: None,
                // What somebody mounted elsewhere says nothing about the firmware of this machine.
                floor: FloorPlaces { state: Some(directory.clone()), ..FloorPlaces::default() },
                recovery_device: None,
                boot_disk: None,
                mounted: Vec::new(),
            });
        }
        let Some(partuuid) = own_partuuid() else {
            return failure(
                "this machine was not started by reflash's GRUB (no reflash.system= on the kernel command line); \
                 give the mounted state partition with --state DIR",
            );
        };
        let directory = |name: &str| Path::new(MOUNTS).join(name);
        // Before there are threads. No other command is in the way then, and none of before that was ended.
        own_mounts::begin(&["state", "recovery", DATA].map(directory)).map_err(|error| Failure {
            text: match error.kind() {
                ErrorKind::PermissionDenied => "this command looks at the disk: run it as root, with sudo".to_owned(),
                _ => format!("cannot make a mount namespace for this command: {error}"),
            },
            exit: Exit::Failed,
        })?;
        let found =
            crate::disk::find_disk_by_partuuid(&partuuid, DiskSearch::with(Which::Physical, Some(disk_record::read)))?;
        let partition = |role| found.layout.device_of(role).map(Path::to_owned);
        let Some(state) = partition(Role::State) else {
            return failure(format!("{} has no state partition", found.disk));
        };
        let booted = |number: SystemNumber| {
            let own = found.layout.of_role(number.role());
            own.is_some_and(|own| own.entry.partuuid.eq_ignore_ascii_case(&partuuid))
        };
        let mut number = if booted(SystemNumber::Second) { SystemNumber::Second } else { SystemNumber::First };
        let mut this = Self {
            state: StatePartition::new(&directory("state")),
            system: None,
            other: None,
            disk: Some(found.disk.identity()),
            recovery: None,
            floor: FloorPlaces::default(),
            recovery_device: None,
            boot_disk: Some((found.disk.path.clone(), found.layout.clone())),
            mounted: Vec::new(),
        };
        let recovery = partition(Role::Recovery);
        this.recovery_device.clone_from(&recovery);
        this.floor = FloorPlaces {
            state: Some(directory("state")),
            recovery: recovery.clone().map(|device| (directory("recovery"), device)),
            firmware: EfiVars::open(),
        };
        if with_state {
            this.mount_state(&state, &directory("state"))?;
        }
        if with_state
            && partition(Role::System2).is_some()
            && !booted(SystemNumber::First)
            && !booted(SystemNumber::Second)
        {
            // In recovery: the one that GRUB starts.
            number = Systems::of(&this.state.boot_env().load_or_empty()?).active;
        }
        this.state = this.state.of_system(number);
        this.system = partition(number.role());
        this.other = partition(number.other().role()).filter(|_| partition(Role::System2).is_some());
        if let Some(recovery) = recovery {
            let mount = Mount::device(&recovery, "ext4").read_only().data_only();
            match this.mount(&mount, directory("recovery")) {
                Ok(()) => this.recovery = Some(directory("recovery")),
                // The boot is good all the same.
                Err(error) => complain(&format!("going on without the recovery partition: {}", chain(&error))),
            }
        }
        Ok(this)
    }

    /// Mounts the state partition: as it should be, else for reading what is there, whatever its journal says. Where
    /// neither works, an empty directory that cannot be written takes its place, so that what needs no state works on,
    /// and what would change it fails. One that something else uses is none of those: a moment later it is free.
    fn mount_state(&mut self, device: &Path, at: &Path) -> Result<(), Failure> {
        let in_use = |busy: &MountError| Failure::of(busy, true);
        let plain = Mount::device(device, "ext4").data_only();
        match self.mount(&plain, at.to_owned()) {
            Ok(()) => return Ok(()),
            Err(busy) if busy.is_busy() => return Err(in_use(&busy)),
            Err(failed) => complain(&format!("the state partition cannot be written: {}", chain(&failed))),
        }
        match self.mount(&plain.read_only().no_load(), at.to_owned()) {
            Ok(()) => return Ok(()),
            Err(busy) if busy.is_busy() => return Err(in_use(&busy)),
            Err(failed) => complain(&format!("nor can it be read: {}", chain(&failed))),
        }
        Ok(self.mount(&Mount::virtual_fs("tmpfs").read_only().data_only(), at.to_owned())?)
    }

    fn mount(&mut self, what: &Mount, at: PathBuf) -> Result<(), MountError> {
        what.on_shared(&at)?;
        self.mounted.push(at);
        Ok(())
    }

    /// Makes the whole data partition visible, for reading, and returns where. The running system goes on using it
    /// as it does.
    pub(super) fn mount_data(&mut self) -> Result<PathBuf, Failure> {
        let device = self.boot_disk.as_ref().and_then(|(_, layout)| layout.device_of(Role::Data));
        let Some(device) = device.map(Path::to_owned) else { return failure("this machine has no data partition") };
        let at = Path::new(MOUNTS).join(DATA);
        self.mount(&Mount::device(&device, "ext4").read_only().data_only(), at.clone())?;
        Ok(at)
    }

    /// Reads the floor of this machine from all places in which it is kept.
    pub(super) fn floor(&self) -> Floor {
        Floor::open(self.floor.clone())
    }

    /// Refuses to write on a disk on which that would change another partition too.
    pub(super) fn check_overlap(&self) -> Result<(), FindError> {
        self.boot_disk.iter().try_for_each(|(disk, layout)| layout.check_overlap(disk.display()))
    }

    pub(super) fn system_partition(&self) -> Result<PathBuf, Failure> {
        match &self.system {
            Some(path) => Ok(path.clone()),
            None => failure("which partition holds the system is not known here; give it with --target"),
        }
    }
}

/// Waits for the turn to write the recovery partition, which one command does at a time: a slot that another one renews
/// would look damaged.
pub(super) fn turn_to_renew(options: &Options) -> Result<Option<fs::File>, Failure> {
    if options.state.is_some() {
        return Ok(None);
    }
    fs::create_dir_all(MOUNTS)?;
    let turn = turn::of_file(&Path::new(MOUNTS).join("renewal.lock"), TURN_LIMIT)?;
    let text = "another command of reflash writes the recovery partition; try again later";
    turn.map(Some).ok_or_else(|| Failure { text: text.to_owned(), exit: Exit::Later })
}

/// PARTUUID of a partition of the disk that this machine was started from, if GRUB said so.
pub(super) fn own_partuuid() -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    let value = |key: &str| line.split_ascii_whitespace().find_map(|argument| argument.strip_prefix(key));
    value("reflash.system=").or_else(|| value("reflash.recovery=")).map(str::to_owned)
}

impl Drop for MountedState {
    fn drop(&mut self) {
        for directory in self.mounted.iter().rev() {
            // What is still open there keeps it until this process ends, and is in nobody's way.
            if let Err(error) = mount::unmount(directory).or_else(|_| mount::detach(directory)) {
                complain(&chain(&error));
            }
        }
    }
}
