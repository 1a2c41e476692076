//! Mends the recovery partition, in the running system, which has e2fsck: its file system, and then what is on it.
//!
//! A file system that mounts may have lost what it is for. So it is judged by what GRUB and a recovery read: the slots
//! with all their files, and the files that are there once. What no directory leads to any more is brought back from
//! `lost+found`, the rest from the other slot and from the copy on the state partition. One that is beyond repair is
//! made anew from the release.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitStatus;

use super::error::MendError;
use super::{loader, lost_found, made_anew, slot_files};
use crate::boot::slots::{FILES, RELEASE_FOLDER, Slot};
use crate::disk::ext4_groups;
use crate::disk::filesystem::{BACKUP_STEP_BYTES, Superblock, backup_superblock};
use crate::jobs::floor;
use crate::jobs::site_copy::{self, CONFIG, Kind, Originals, SiteCopy};
use crate::jobs::state::{StatePartition, replace_durably};
use crate::record::event::Event;
use crate::record::journal::Journal;
use crate::sys::block::in_use;
use crate::sys::mount::{self, Mount};
use crate::sys::{files, process};

pub use made_anew::FetchFiles;
pub use slot_files::Thoroughness;

/// The program that repairs file systems. It looks for a second superblock only where file systems of the usual kind
/// have one.
const FSCK: &str = "/usr/sbin/e2fsck";
/// Bytes that are searched at once.
const READ_BYTES: usize = 1024 * 1024;
/// Most superblocks that are tried: a recovery partition has two or three.
const MAX_SUPERBLOCKS: usize = 8;
/// Exit statuses of e2fsck after which the file system is whole (e2fsck(8)), and the one that says that it was before.
const WHOLE: [i32; 3] = [UNCHANGED, 1, 2];
const UNCHANGED: i32 = 0;
/// The part in events.
const FILE_SYSTEM: &str = "file system of the recovery partition";

/// The recovery partition of a running system.
#[derive(Clone, Copy)]
pub struct RecoveryPlace<'a> {
    /// Device of the partition.
    pub device: &'a Path,
    /// Directory on which it is mounted while it is looked at.
    pub at: &'a Path,
    /// State partition, with the copy of what the recovery partition has once.
    pub state: &'a StatePartition,
    /// Thoroughness of the look at the slots.
    pub thoroughness: Thoroughness,
    /// Source of what is lost and has no copy on this machine.
    pub fetch: Option<&'a FetchFiles<'a>>,
}

/// Mends the recovery partition, and reports each part that was mended. Where it was mounted (for reading) it is so
/// again afterwards.
///
/// # Errors
/// [`MendError::RecoveryPartition`]: it is in use elsewhere or beyond repair, or something of it is lost of which there
/// is no copy. What could be mended is.
pub fn mend(place: &RecoveryPlace<'_>, is_mounted: bool, journal: &Journal) -> Result<(), MendError> {
    let copy = SiteCopy::read(place.state);
    // A loader that is lost may be a directory that is lost, on a robot that has noted nothing yet.
    let was_damaged = !is_mounted || place.fault(&copy).is_some() || loader::is_lost(place.at);
    if was_damaged {
        if is_mounted {
            mount::unmount(place.at).map_err(|error| place.failed(error.to_string()))?;
        }
        let repaired = repair(place.device);
        let mounted = fs::create_dir_all(place.at).map_err(|error| place.failed(error.to_string()));
        let mounted = mounted.and_then(|()| place.mount());
        let repaired = match (repaired, mounted) {
            (Ok(repaired), Ok(())) => repaired,
            (Err(error), Ok(())) => {
                place.leave(is_mounted);
                return Err(error);
            }
            (Err(damage), Err(_)) => {
                let Some(fetch) = place.fetch else { return Err(damage) };
                made_anew::make(place.device, &copy, fetch).map_err(|why| {
                    place.failed(format!("nothing of it can be read, and it is not made anew: {why}"))
                })?;
                place.mount()?;
                Repaired::Changed
            }
            (Ok(_), Err(error)) => return Err(error),
        };
        if repaired == Repaired::Changed || !is_mounted {
            journal.report(Event::Mended(FILE_SYSTEM));
        }
    }
    let mended = place.mend_content(&copy, was_damaged, journal);
    let kept = mended.and_then(|()| {
        site_copy::keep_as_found(place.state, place.at)
            .map(drop)
            .map_err(|error| place.failed(format!("no copy of its files can be kept on the state partition: {error}")))
    });
    place.leave(is_mounted);
    kept
}

impl RecoveryPlace<'_> {
    fn failed(&self, why: String) -> MendError {
        MendError::RecoveryPartition { device: self.device.to_owned(), why }
    }

    fn mount(&self) -> Result<(), MendError> {
        Mount::device(self.device, "ext4")
            .read_only()
            .data_only()
            .on_shared(self.at)
            .map_err(|error| self.failed(error.to_string()))
    }

    fn leave(&self, is_mounted: bool) {
        if !is_mounted {
            // What keeps it busy is reported by the next command that needs it.
            let _ = mount::unmount(self.at);
        }
    }

    fn slot_fault(&self, slot: Slot) -> Option<String> {
        let known = self.state.slot_digests();
        slot_files::check(self.at, slot, known.get(slot.name()).map(Vec::as_slice), self.thoroughness).err()
    }

    fn slots_are_lost(&self) -> bool {
        [Slot::A, Slot::B].into_iter().all(|slot| self.slot_fault(slot).is_some())
    }

    /// What a check of the file system may bring back or make room for: a slot, a directory that has lost its names, or
    /// a name that leads to nothing.
    fn fault(&self, copy: &SiteCopy) -> Option<String> {
        let has_names = |path: &str| copy.places().any(|(other, _)| Path::new(other).parent() == Some(Path::new(path)));
        let is_lost = |path: &str| match fs::read_dir(self.at.join(path)) {
            Ok(mut entries) => has_names(path) && !entries.any(|entry| entry.is_ok()),
            Err(_) => true,
        };
        let directories = copy.places().filter(|(_, place)| place.kind == Kind::Directory);
        let mut lost =
            directories.filter(|(path, _)| is_lost(path)).map(|(path, _)| format!("{path} has no names left"));
        let leads_nowhere = |path: &str| {
            let found = files::open_below(self.at, Path::new(path)).err();
            found.filter(|error| error.kind() != io::ErrorKind::NotFound).map(|error| format!("{path}: {error}"))
        };
        let mut broken = copy.places().filter(|(_, place)| matches!(place.kind, Kind::File(_)));
        [Slot::A, Slot::B]
            .into_iter()
            .find_map(|slot| self.slot_fault(slot))
            .or_else(|| lost.next())
            .or_else(|| broken.find_map(|(path, _)| leads_nowhere(path)))
    }

    fn lost_templates(&self, copy: &SiteCopy) -> Vec<&'static str> {
        made_anew::lost_templates(self.at, copy, self.thoroughness)
    }

    /// Whether the place of the floor is gone. One that holds nothing that can be read is for the floor itself.
    fn has_lost_floor(&self, copy: &SiteCopy) -> bool {
        copy.places().any(|(path, _)| path == floor::FILE) && !self.at.join(floor::FILE).is_file()
    }

    fn mend_content(&self, copy: &SiteCopy, was_damaged: bool, journal: &Journal) -> Result<(), MendError> {
        let is_whole = self.fault(copy).is_none()
            && copy.lost(&Originals::read(self.at), was_damaged).is_empty()
            && !loader::is_lost(self.at)
            && !self.has_lost_floor(copy)
            && (self.fetch.is_none() || self.lost_templates(copy).is_empty());
        if !is_whole {
            mount::remount_writable(self.at).map_err(|error| self.failed(error.to_string()))?;
            let mended = self.put_back(copy, was_damaged, journal);
            // GRUB replays no journal: what is made read-only has every block at its place.
            let settled = mount::remount_read_only(self.at)
                .and_then(|()| mount::unmount(self.at))
                .map_err(|error| self.failed(error.to_string()));
            let mounted = settled.and_then(|()| self.mount());
            mended.and(mounted)?;
        }
        self.verdict()
    }

    /// Brings back what is lost of the mounted file system, which can be written.
    fn put_back(&self, copy: &SiteCopy, was_damaged: bool, journal: &Journal) -> Result<(), MendError> {
        let failed = |what: &str, error: &io::Error| self.failed(format!("{what} cannot be brought back: {error}"));
        for path in
            lost_found::bring_back(self.at, copy, was_damaged).map_err(|error| failed(lost_found::NAME, &error))?
        {
            journal.report(Event::Mended(&format!("{path} of the recovery partition, from {}", lost_found::NAME)));
        }
        for name in copy.lost(&Originals::read(self.at), was_damaged) {
            copy.put_back(name, self.at).map_err(|error| failed(name, &error))?;
            journal.report(Event::Mended(&format!("{name} of the recovery partition, from its copy")));
        }
        if loader::is_lost(self.at) {
            loader::put_back(self.at).map_err(|error| failed(loader::PATH, &error))?;
            journal.report(Event::Mended("grub/grub.cfg of the recovery partition"));
        }
        if let Some(fetch) = self.fetch.filter(|_| self.slots_are_lost()) {
            match fetch(&FILES.map(|file| format!("{RELEASE_FOLDER}/{file}"))) {
                Ok(files) => {
                    self.state.forget_slot(Slot::A.name());
                    slot_files::write(self.at, Slot::A, &files).map_err(|error| failed(&Slot::A.folder(), &error))?;
                    journal.report(Event::Mended("slot a of the recovery partition, from the release"));
                }
                Err(why) => journal.warn(&format!("the recovery of the installed release cannot be fetched: {why}")),
            }
        }
        if self.has_lost_floor(copy) {
            // It is overwritten in place from then on, by the next good boot: its other places have the floor.
            replace_durably(&self.at.join(floor::FILE), &floor::new_file())
                .map_err(|error| failed(floor::FILE, &error))?;
            journal.report(Event::Mended("file for the floor on the recovery partition"));
        }
        for (name, fetch) in self.lost_templates(copy).into_iter().zip(self.fetch.into_iter().cycle()) {
            match made_anew::bring_template(self.at, name, fetch) {
                Ok(()) => journal.report(Event::Mended(&format!("{name} of the recovery partition, from the release"))),
                Err(why) => journal.warn(&format!("{name} of the recovery partition is damaged: {why}")),
            }
        }
        for (slot, other) in [(Slot::A, Slot::B), (Slot::B, Slot::A)] {
            if self.slot_fault(slot).is_some() && self.slot_fault(other).is_none() {
                self.state.forget_slot(slot.name());
                slot_files::copy(self.at, other, slot).map_err(|error| failed(&slot.folder(), &error))?;
                journal.report(Event::Mended(&format!("slot {slot} of the recovery partition, from slot {other}")));
            }
        }
        Ok(())
    }

    /// Judges what is there in the end.
    fn verdict(&self) -> Result<(), MendError> {
        let faults = [Slot::A, Slot::B].map(|slot| self.slot_fault(slot));
        if let [Some(first), Some(second)] = &faults {
            let what = "no slot has all its files, so that no recovery can be started";
            let help = "request a recovery while this system still runs, or provision the disk anew";
            return Err(self.failed(format!("{what} ({first}; {second}); {help}")));
        }
        if let Some(fault) = faults.into_iter().flatten().next() {
            return Err(self.failed(fault));
        }
        if Originals::read(self.at).is_damaged(CONFIG) {
            return Err(self.failed(format!("{CONFIG} is damaged, and there is no copy of it; write it anew")));
        }
        Ok(())
    }
}

/// Outcome of a repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repaired {
    /// The file system was whole.
    Unchanged,
    /// Something of it was repaired.
    Changed,
}

/// Repairs the file system on this device, which is not mounted: by its own superblock, then by each of the others.
///
/// # Errors
/// [`MendError::RecoveryPartition`]: it is in use, or nothing of the file system can be found.
pub fn repair(device: &Path) -> Result<Repaired, MendError> {
    let failed = |why: String| MendError::RecoveryPartition { device: device.to_owned(), why };
    if in_use(device).is_ok_and(|usage| usage.is_some()) {
        return Err(failed("it is in use".to_owned()));
    }
    let path = device.to_string_lossy();
    let check = |more: &[&str]| -> Result<Result<Repaired, ExitStatus>, MendError> {
        let arguments: Vec<&str> = ["-f", "-y"].into_iter().chain(more.iter().copied()).chain([&*path]).collect();
        let status = process::run_and_wait(Path::new(FSCK), &arguments)
            .map_err(|error| failed(format!("{FSCK} cannot be started: {error}")))?;
        Ok(match status.code() {
            Some(UNCHANGED) => Ok(Repaired::Unchanged),
            Some(code) if WHOLE.contains(&code) => Ok(Repaired::Changed),
            _ => Err(status),
        })
    };
    // By its own superblock it would believe descriptors that are damaged, and clear what they should lead to.
    if let Ok(Some(Superblock { block, block_bytes })) = ext4_groups::copy_to_begin_with(device)
        && check(&["-b", &block.to_string(), "-B", &block_bytes.to_string()])?.is_ok()
    {
        return Ok(Repaired::Changed);
    }
    let mut status = match check(&[])? {
        Ok(repaired) => return Ok(repaired),
        Err(status) => status,
    };
    let others = other_superblocks(device).map_err(|error| failed(error.to_string()))?;
    if others.is_empty() {
        let why = "it has no superblock left; `reflash mend` makes it anew where there is a network";
        return Err(failed(why.to_owned()));
    }
    for Superblock { block, block_bytes } in others {
        let (block, block_bytes) = (block.to_string(), block_bytes.to_string());
        match check(&["-b", &block, "-B", &block_bytes])? {
            Ok(_) => return Ok(Repaired::Changed),
            Err(other) => status = other,
        }
    }
    Err(failed(format!("{FSCK} ended with {status}; `reflash mend` makes it anew where there is a network")))
}

/// The other superblocks of the file system on this device.
fn other_superblocks(device: &Path) -> io::Result<Vec<Superblock>> {
    let file = File::open(device)?;
    let mut buffer = vec![0; READ_BYTES];
    let (mut offset, mut found) = (0, Vec::new());
    loop {
        let length = match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(found),
            Ok(length) => length,
            // A part that cannot be read has no superblock.
            Err(_) => READ_BYTES,
        };
        let blocks = (offset..).step_by(BACKUP_STEP_BYTES).zip(buffer[..length].chunks(BACKUP_STEP_BYTES));
        found.extend(blocks.filter_map(|(at, block)| backup_superblock(at, block)));
        if found.len() >= MAX_SUPERBLOCKS {
            return Ok(found);
        }
        buffer.fill(0);
        offset += length as u64;
    }
}
