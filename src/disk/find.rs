//! Finding the one disk that GRUB booted from.

use std::fmt::{self, Write};
use std::io;
use std::time::{Duration, Instant};

use crate::chain::chain;
use crate::disk::identity::Agreement;
use crate::disk::list::{Disk, PartitionTable};
use crate::disk::look::{DiskSearch, Looked, Looks};
use crate::disk::raw::WholeDisk;
use crate::disk::smaller;
use crate::order;

/// Interval at which the disks are looked at again while waiting. Reading a handful of tables takes milliseconds.
const POLL: Duration = Duration::from_millis(250);

/// The same once a disk is late.
const LATE_POLL: Duration = Duration::from_secs(1);
/// Time after which what is there is taken as it is: USB disks take up to 20 s to spin up and answer, and one that
/// takes longer is late.
const SETTLED: Duration = Duration::from_secs(30);
/// Interval at which a search that goes on says so.
const SAY: Duration = Duration::from_secs(60);

/// Time after which the kernel is told to read a table once more of which it has taken nothing.
const RESCAN: Duration = Duration::from_millis(500);

/// How long a look at one disk may take. A disk that is still waking up answers a later look.
const LOOK: Duration = Duration::from_secs(3);
/// How long a person, who typed a command, waits for it.
const LOOK_BY_HAND: Duration = Duration::from_secs(20);
/// How long to wait for a better one where the disk is attached from outside or not the one that the robot remembers:
/// a slow disk controller takes so long to bring up its second port.
const DOUBTFUL: Duration = Duration::from_secs(8);
/// How long to wait for a better one where both apply, as for a copy of the robot's disk.
const UNLIKELY: Duration = Duration::from_secs(15);

/// The disk that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDisk {
    /// Disk that has the partition.
    pub disk: Disk,
    /// Partition table of the disk, with the devices of its partitions.
    pub layout: PartitionTable,
    /// Number of the partition that has the PARTUUID.
    pub number: u32,
    /// List, for people, of the other disks that have the partition, each with the reason for which it is passed over.
    pub passed_over: Vec<String>,
    /// Whether this disk is the one that the robot remembers.
    pub is_remembered: bool,
}

/// What speaks for a disk that has the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Evidence {
    /// The running system is mounted from it.
    is_in_use: bool,
    /// The kernel has a device for each of its partitions: a copy of the table alone ends before them.
    is_complete: bool,
    memory: Memory,
    /// It is not attached from outside.
    is_internal: bool,
    /// GRUB has noted there that it starts the system now.
    is_starting: bool,
}

/// What the robot has written on the disk about the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Nothing, and there are no file systems of a robot either.
    Foreign,
    /// It is another disk: this is a copy, or the disk was moved.
    Other,
    /// Nothing, as on a robot that has not started since it remembers its disk.
    Nothing,
    /// It was attached at the same port.
    Port,
    /// It is this disk, attached elsewhere.
    Moved,
    /// It is this disk.
    Same,
}

impl Evidence {
    fn of(disk: &Disk, layout: &PartitionTable, looked: &Looked) -> Self {
        let memory = match looked.record.identity.map(|remembered| disk.identity().agreement(&remembered)) {
            Some(Agreement::Same) => Memory::Same,
            Some(Agreement::Serial) => Memory::Moved,
            Some(Agreement::Port) => Memory::Port,
            Some(Agreement::Other) => Memory::Other,
            None if looked.labels.is_empty() => Memory::Foreign,
            None => Memory::Nothing,
        };
        Self {
            is_in_use: looked.is_in_use,
            // Without its first copy of the table, the kernel has no devices of a disk that is all there.
            is_complete: layout.partitions.iter().all(|partition| match partition.node {
                Some(_) => true,
                None => layout.damaged_primary && partition.entry.ends_within(disk),
            }),
            memory,
            is_internal: !disk.is_external(),
            is_starting: looked.record.is_starting,
        }
    }

    /// What it amounts to, the heaviest first.
    fn weight(self) -> (bool, bool, u8, bool, bool) {
        let memory = match (self.memory, self.is_internal) {
            (Memory::Same, _) => 6,
            (Memory::Moved, _) => 5,
            (Memory::Port | Memory::Nothing, true) => 4,
            (Memory::Other, true) => 3,
            (Memory::Port | Memory::Nothing, false) => 2,
            (Memory::Other, false) => 1,
            (Memory::Foreign, _) => 0,
        };
        (self.is_in_use, self.is_complete, memory, self.is_internal, self.is_starting)
    }

    /// How long to wait for a better disk than this one.
    fn doubt(self) -> Duration {
        match (self.memory, self.is_internal) {
            _ if self.is_in_use => Duration::ZERO,
            (Memory::Same | Memory::Moved, _) | (Memory::Nothing | Memory::Foreign, true) => Duration::ZERO,
            (Memory::Other | Memory::Foreign, false) => UNLIKELY,
            _ => DOUBTFUL,
        }
    }

    /// Why this disk is passed over.
    fn against(self) -> &'static str {
        match self.memory {
            Memory::Other | Memory::Port => "a copy of another disk",
            Memory::Foreign => "it has this partition table and no file system of a robot",
            _ if !self.is_complete => "it ends before its partitions do",
            _ if !self.is_internal => "it is attached from outside",
            _ => "less speaks for it",
        }
    }
}

/// Failure to find exactly one disk with the partition.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No disk has the partition.
    #[error("no disk has a partition with PARTUUID {partuuid}{}", listed("Disks present", .disks))]
    None {
        /// PARTUUID that was looked for.
        partuuid: String,
        /// Every disk, with the error of reading it if there was one.
        disks: Vec<String>,
    },
    /// More than one disk has the partition: a copy of the disk is attached.
    #[error(
        "more than one disk has a partition with PARTUUID {partuuid}, so none is touched; detach all but one{}",
        listed("Candidates", .disks)
    )]
    Several {
        /// PARTUUID that was looked for.
        partuuid: String,
        /// Every disk that has the partition.
        disks: Vec<String>,
    },
    /// The table was made for a larger disk, so that the kernel takes none of its partitions, or not all.
    #[error(
        "the partition table of {disk} is for a disk of at least {needed_bytes} bytes, and this one has {size_bytes}: \
         it is the image of a larger disk; write that to a disk that is as large, or provision this one"
    )]
    Smaller {
        /// The disk, with its model.
        disk: String,
        /// Size of the disk, bytes.
        size_bytes: u64,
        /// Size that the table needs, bytes.
        needed_bytes: u64,
    },
    /// Two partitions share blocks, so that what is written to one would change the other.
    #[error(
        "partitions {} and {} of {disk} overlap, so that writing one would destroy the other, and none is written; \
         correct the table, or provision the disk anew", .numbers[0], .numbers[1]
    )]
    Overlap {
        /// The disk, for people.
        disk: String,
        /// Numbers of the partitions.
        numbers: [u32; 2],
    },
    /// Disks cannot be listed.
    #[error("cannot list the disks of this machine")]
    List(#[source] io::Error),
}

/// Makes a list for the end of a message, with each item on a line of its own.
pub(crate) fn listed(title: &str, disks: &[String]) -> String {
    if disks.is_empty() {
        return format!(". {title}: none; is the driver's module in the initramfs?");
    }
    disks.iter().fold(format!(". {title}:"), |mut text, disk| {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {disk}");
        text
    })
}

/// Finds the disk with this partition UUID. Of several, the one for which most speaks: the running system is mounted
/// from it, it is the one that the robot remembers, it is not attached from outside.
///
/// Disks that cannot be read do not stand in the way; their errors are in the list of [`FindError::None`].
///
/// # Errors
/// [`FindError`]; [`FindError::Several`] when as much speaks for another one.
pub fn find_disk_by_partuuid(partuuid: &str, search: DiskSearch) -> Result<FoundDisk, FindError> {
    // The running system's disk is mounted, so that nothing has to be read from the others.
    let quick = DiskSearch { read_record: None, ..search };
    match look(&mut Looks::default(), partuuid, LOOK_BY_HAND, quick) {
        Err(FindError::Several { .. }) if search.read_record.is_some() => {
            look(&mut Looks::default(), partuuid, LOOK_BY_HAND, search)
        }
        result => result,
    }
    .and_then(|(found, _)| found.if_large_enough())
}

impl PartitionTable {
    /// Refuses a table of `disk` by which what is written to one partition would change another one.
    ///
    /// # Errors
    /// [`FindError::Overlap`].
    pub fn check_overlap(&self, disk: impl fmt::Display) -> Result<(), FindError> {
        match self.overlap {
            None => Ok(()),
            Some(numbers) => Err(FindError::Overlap { disk: disk.to_string(), numbers }),
        }
    }
}

impl FoundDisk {
    /// Whether the kernel has taken none of its partitions.
    fn has_no_devices(&self) -> bool {
        self.layout.partitions.iter().all(|partition| partition.node.is_none())
    }

    /// Has the kernel read the table once more. Its own look is interrupted where the process is killed that loads the
    /// driver, and then it has no partitions for as long as nobody asks.
    fn rescan(&self) {
        if let Err(error) = WholeDisk::open_read_only(&self.disk.path).and_then(|disk| disk.reread_partitions()) {
            log::debug!("{}", chain(&error));
        }
    }

    /// This disk, unless it is smaller than its table.
    fn if_large_enough(self) -> Result<Self, FindError> {
        match smaller::needed_bytes(&self.disk, &self.layout) {
            None => Ok(self),
            Some(needed_bytes) => {
                let (disk, size_bytes) = (self.disk.to_string(), self.disk.size_bytes);
                Err(FindError::Smaller { disk, size_bytes, needed_bytes })
            }
        }
    }
}

fn look(
    looks: &mut Looks,
    partuuid: &str,
    limit: Duration,
    search: DiskSearch,
) -> Result<(FoundDisk, Evidence), FindError> {
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for (disk, looked) in looks.at_all(search, limit).map_err(FindError::List)? {
        let Some(looked) = looked else {
            seen.push(format!("{disk}: it does not answer"));
            continue;
        };
        match &looked.layout {
            Ok(Some(layout)) => {
                seen.push(format!("{disk}: {}, {} partitions", layout.scheme, layout.partitions.len()));
                if let Some(number) = layout.partuuid(partuuid).map(|partition| partition.entry.number) {
                    let evidence = Evidence::of(&disk, layout, &looked);
                    let is_remembered = evidence.memory == Memory::Same;
                    let layout = layout.clone();
                    found.push((FoundDisk { disk, layout, number, passed_over: Vec::new(), is_remembered }, evidence));
                }
            }
            Ok(None) => seen.push(format!("{disk}: no partition table")),
            Err(error) => seen.push(format!("{disk}: {}", chain(error))),
        }
    }
    best_of(found, partuuid)?.ok_or_else(|| FindError::None { partuuid: partuuid.to_owned(), disks: seen })
}

/// The disk for which most speaks, which passes the others over; `None` of none.
fn best_of(mut found: Vec<(FoundDisk, Evidence)>, partuuid: &str) -> Result<Option<(FoundDisk, Evidence)>, FindError> {
    order::by_key(&mut found, |(_, evidence)| evidence.weight());
    let Some((mut best, evidence)) = found.pop() else { return Ok(None) };
    if found.last().is_some_and(|(_, other)| other.weight() == evidence.weight()) {
        let disks = found.iter().map(|(one, _)| one).chain([&best]).map(|one| one.disk.to_string()).collect();
        return Err(FindError::Several { partuuid: partuuid.to_owned(), disks });
    }
    best.passed_over =
        found.iter().map(|(other, evidence)| format!("{}: {}", other.disk, evidence.against())).collect();
    Ok(Some((best, evidence)))
}

/// A search that goes on, for a person who wants to know why.
#[derive(Debug, Clone, Copy)]
pub struct Waiting<'a> {
    /// Time for which the disk has been waited for.
    pub waited: Duration,
    /// Whether it is time to say so: at first, and then every minute.
    pub is_news: bool,
    /// Error of the last look; `None` where a better disk than the one that is there is waited for.
    pub error: Option<&'a FindError>,
}

impl fmt::Display for Waiting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waited = self.waited.as_secs();
        match self.error {
            Some(error) if waited > 0 => write!(f, "still waiting for the disk, after {waited} s: {error}"),
            _ => f.write_str("waiting for the disk"),
        }
    }
}

/// Finds a disk as [`find_disk_by_partuuid`] does, but waits up to `limit` for the disk and for the kernel's devices
/// of all its partitions: USB disks take seconds to appear, and some bridges minutes. Where the one that is there may
/// be a copy, a better one is waited for. `on_wait` is called after each look that leaves something to wait for.
///
/// # Errors
/// [`FindError`], at once when as much speaks for two disks, otherwise after the time.
pub fn wait_for_disk_by_partuuid(
    partuuid: &str,
    mut search: DiskSearch,
    limit: Duration,
    mut on_wait: impl FnMut(&Waiting<'_>),
) -> Result<FoundDisk, FindError> {
    let started = Instant::now();
    let mut say_at = Duration::ZERO;
    let mut looks = Looks::default();
    let mut best: Option<(Disk, Instant)> = None;
    let mut rescanned: Option<Disk> = None;
    loop {
        let result = look(&mut looks, partuuid, LOOK, search);
        let waited = started.elapsed();
        if let Ok((found, _)) = &result
            && waited >= RESCAN
            && rescanned.as_ref() != Some(&found.disk)
            && found.has_no_devices()
        {
            found.rescan();
            rescanned = Some(found.disk.clone());
        }
        let is_over = match &result {
            Ok((found, evidence)) => {
                // The doubt is about this disk, from the moment at which it was the best. One that comes late gets its
                // time too: the kernel has no devices of its partitions yet.
                let since = match &best {
                    Some((disk, since)) if *disk == found.disk => *since,
                    _ => best.insert((found.disk.clone(), Instant::now())).1,
                };
                evidence.is_complete && since.elapsed() >= evidence.doubt() || since.elapsed() >= SETTLED
            }
            Err(FindError::None { .. }) => false,
            Err(_) => true,
        };
        let is_none = matches!(result, Err(FindError::None { .. }));
        if is_none && search.avoid_external && waited >= limit.min(SETTLED) {
            // The robot may live on such a disk.
            search.avoid_external = false;
            continue;
        }
        if is_over || waited >= limit {
            return result.and_then(|(found, _)| found.if_large_enough());
        }
        let is_news = waited >= say_at;
        if is_news {
            say_at = if say_at.is_zero() { SAY } else { waited + SAY };
        }
        on_wait(&Waiting { waited, is_news, error: result.as_ref().err() });
        std::thread::sleep(if waited < SETTLED { POLL } else { LATE_POLL });
    }
}

#[cfg(test)]
mod tests {
    use super::{DOUBTFUL, Disk, Evidence, FindError, FoundDisk, Memory, PartitionTable, UNLIKELY, best_of};
    use crate::disk::{Scheme, Transport};
    use std::time::Duration;

    fn disk(name: &str, memory: Memory, is_internal: bool) -> (FoundDisk, Evidence) {
        let disk = Disk {
            name: name.into(),
            path: format!("/dev/{name}").into(),
            size_bytes: 1 << 30,
            logical_block_size: 512,
            model: None,
            serial: None,
            transport: if is_internal { Transport::Ata } else { Transport::Usb },
            removable: false,
            read_only: false,
        };
        let layout = PartitionTable {
            scheme: Scheme::Gpt,
            damaged_copy: false,
            damaged_primary: false,
            overlap: None,
            partitions: Vec::new(),
        };
        let evidence = Evidence { is_in_use: false, is_complete: true, memory, is_internal, is_starting: false };
        (FoundDisk { disk, layout, number: 1, passed_over: Vec::new(), is_remembered: false }, evidence)
    }

    /// The name of the disk that is taken, whatever the order in which they are listed.
    fn best(disks: &[(FoundDisk, Evidence)]) -> Option<String> {
        let of = |disks: Vec<_>| best_of(disks, "x").map(|best| best.unwrap().0.disk.name);
        let (one, other) = (of(disks.to_vec()), of(disks.iter().rev().cloned().collect()));
        assert_eq!(one.as_ref().ok(), other.as_ref().ok());
        match one {
            Err(FindError::Several { disks, .. }) => {
                assert_eq!(disks.len(), 2);
                None
            }
            result => Some(result.unwrap()),
        }
    }

    #[test]
    fn the_robots_own_disk_is_taken_and_its_copy_passed_over() {
        use Memory::{Foreign, Moved, Nothing, Other, Port, Same};
        for (own, copy) in [
            // Remembered, and copied whole, on the same kind of port.
            (disk("own", Same, false), disk("copy", Other, false)),
            (disk("own", Same, true), disk("copy", Other, true)),
            // The copy was put where the robot's disk was.
            (disk("own", Moved, false), disk("copy", Port, false)),
            // Not remembered yet: the table alone was copied, or the copy is attached from outside.
            (disk("own", Nothing, false), disk("copy", Foreign, false)),
            (disk("own", Nothing, true), disk("copy", Nothing, false)),
            (disk("own", Other, true), disk("copy", Foreign, false)),
            (disk("own", Other, true), disk("copy", Nothing, false)),
            // A robot that lives on a USB disk, beside an internal copy.
            (disk("own", Same, false), disk("copy", Other, true)),
        ] {
            assert_eq!(best(&[own.clone(), copy.clone()]).as_deref(), Some("own"), "{own:?} {copy:?}");
            let (found, _) = best_of(vec![copy, own], "x").unwrap().unwrap();
            assert!(found.passed_over.len() == 1 && found.passed_over[0].contains("/dev/copy"));
        }
    }

    #[test]
    fn what_is_mounted_counts_most_and_a_table_beyond_its_disk_least() {
        let (mut own, copy) = (disk("own", Memory::Other, false), disk("copy", Memory::Same, true));
        own.1.is_in_use = true;
        assert_eq!(best(&[own, copy]).as_deref(), Some("own"));
        let (own, mut copy) = (disk("own", Memory::Other, false), disk("copy", Memory::Same, true));
        copy.1.is_complete = false;
        assert_eq!(best(&[own, copy]).as_deref(), Some("own"));
        // Not remembered, the same everywhere: GRUB has written to the one that it starts.
        let (mut own, copy) = (disk("own", Memory::Nothing, false), disk("copy", Memory::Nothing, false));
        assert_eq!(best(&[own.clone(), copy.clone()]), None);
        own.1.is_starting = true;
        assert_eq!(best(&[own, copy]).as_deref(), Some("own"));
    }

    #[test]
    fn nothing_is_waited_for_where_nothing_is_doubtful() {
        use Memory::{Foreign, Nothing, Other, Port, Same};
        for (memory, is_internal, doubt) in [
            (Same, true, Duration::ZERO),
            (Same, false, Duration::ZERO),
            (Nothing, true, Duration::ZERO),
            (Nothing, false, DOUBTFUL),
            (Port, true, DOUBTFUL),
            (Other, true, DOUBTFUL),
            (Other, false, UNLIKELY),
            (Foreign, false, UNLIKELY),
        ] {
            assert_eq!(disk("x", memory, is_internal).1.doubt(), doubt, "{memory:?} {is_internal}");
        }
    }
}
