//! Looks at what the disks hold, of which one that is failing, or a stranger's, may take any time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::disk::filesystem;
use crate::disk::identity::DiskIdentity;
use crate::disk::list::{Disk, PartitionTable, Which, disks};
use crate::disk::roles::Role;
use crate::disk::table::TableError;
use crate::sys::block::in_use;
use crate::sys::thread::Questions;

/// Partitions of a robot that have an ext4 file system with a label.
const LABELLED: [Role; 3] = [Role::State, Role::Recovery, Role::Data];

/// Record that a robot keeps on its disk, as far as it distinguishes the disk from a copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RobotRecord {
    /// Identity of the disk that the robot started from when it wrote it.
    pub identity: Option<DiskIdentity>,
    /// Whether GRUB has noted that it starts the system now.
    pub is_starting: bool,
}

/// Reads the record in a state partition, given with the name of its disk.
pub type ReadRecord = fn(&Path, &str) -> RobotRecord;

/// Manner of a search for a disk.
#[derive(Debug, Clone, Copy)]
pub struct DiskSearch {
    /// Kinds of disk that are looked at.
    pub which: Which,
    /// Reader of what the robot remembers; without one nothing is remembered.
    pub read_record: Option<ReadRecord>,
    /// Whether disks that are attached from outside are looked at only where no other is found.
    pub avoid_external: bool,
}

impl DiskSearch {
    /// A search that looks at all disks, with this reader.
    #[must_use]
    pub fn with(which: Which, read_record: Option<ReadRecord>) -> Self {
        Self { which, read_record, avoid_external: false }
    }
}

/// Result of a look at one disk.
#[derive(Debug)]
pub struct Looked {
    /// The partition table, if there is one.
    pub layout: Result<Option<PartitionTable>, TableError>,
    /// Roles whose partitions have the file system that reflash makes there.
    pub labels: Vec<Role>,
    /// Record that the robot keeps there.
    pub record: RobotRecord,
    /// Whether something of the disk is mounted.
    pub is_in_use: bool,
}

/// Looks at disks that remember which of them have not answered yet.
#[derive(Default)]
pub struct Looks {
    questions: Questions<(String, Option<u64>), Looked>,
}

impl Looks {
    /// Lists the disks with what they hold. Each has so much time to answer; one without an answer is asked again when
    /// it has answered.
    ///
    /// # Errors
    /// The disks cannot be listed.
    pub fn at_all(&mut self, search: DiskSearch, limit: Duration) -> io::Result<Vec<(Disk, Option<Looked>)>> {
        let look = |disk: Disk| {
            let (asked, key) = (disk.clone(), (disk.name.clone(), disk.sequence()));
            let looked = self.questions.ask("look-at-disk", key, limit, move || look_at(&asked, search.read_record));
            (disk, looked)
        };
        let looked_at = |disk: &Disk| !(search.avoid_external && disk.is_external());
        Ok(disks(search.which)?.into_iter().filter(looked_at).map(look).collect())
    }
}

fn look_at(disk: &Disk, read_record: Option<ReadRecord>) -> Looked {
    let layout = disk.layout();
    let table = layout.as_ref().ok().and_then(Option::as_ref);
    let device_of = |role| table.and_then(|table| table.device_of(role));
    // The kernel has no devices where the first copy of the table is damaged.
    let place_of = |role| {
        let entry = &table?.of_role(role)?.entry;
        entry.first_lba.checked_mul(disk.logical_block_size.into())
    };
    let is_labelled = |role| match device_of(role) {
        Some(node) => has_label(node, 0, role),
        None => place_of(role).is_some_and(|offset| has_label(&disk.path, offset, role)),
    };
    let labels = LABELLED.into_iter().filter(|role| is_labelled(*role)).collect();
    let record = read_record.zip(device_of(Role::State)).map(|(read, node)| read(node, &disk.name));
    // A disk whose use cannot be determined is none that is preferred.
    let is_in_use = in_use(&disk.path).is_ok_and(|usage| usage.is_some());
    Looked { labels, record: record.unwrap_or_default(), is_in_use, layout }
}

/// Whether the device has, at this offset, the ext4 file system of a partition with this role.
fn has_label(node: &Path, offset: u64, role: Role) -> bool {
    let mut head = vec![0; filesystem::HEAD_BYTES];
    let read = File::open(node).and_then(|file| file.read_exact_at(&mut head, offset));
    read.is_ok() && filesystem::ext4_label(&head) == Some(role.name())
}
