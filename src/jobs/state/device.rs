//! The state partition as a device: mounted, tried out, and made anew where it is damaged.
//!
//! It holds nothing of a person's, and its file system cannot be checked here: a recovery has no e2fsck. So one that is
//! seen to be damaged is made anew from a template, and what could be read of it is put back.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use crate::boot::env::{BootEnvError, LoadedEnv};
use crate::boot::grubenv::GrubEnv;
use crate::chain::chain;
use crate::flash::target::DeviceTarget;
use crate::flash::template::WholeTemplate;
use crate::jobs::floor::FILE as FLOOR;
use crate::jobs::mend::pieces::BootPieces;
use crate::jobs::state::installed::{FIRST, MAX_GOOD_BYTES, SECOND};
use crate::jobs::state::{
    MAX_EVENTS_BYTES, MAX_INDEX_BYTES, MAX_PAUSE_BYTES, MAX_SITE_BYTES, PAUSE, SITE, StatePartition,
};
use crate::record::blackbox;
use crate::record::journal::Journal;
use crate::release::manifest;
use crate::sys::files;
use crate::sys::mount::{self, Mount, MountError};

/// A file system that does not mount is tried again once after this, in case its disk was still waking up.
const MOUNT_AGAIN: Duration = Duration::from_secs(2);
/// File that is made, renamed and removed to see whether that works. Two names, since a directory is part of it.
const TRIAL: [&str; 2] = ["trial", "trial.new"];
/// Size of that file, bytes: one block.
const TRIAL_BYTES: usize = 4096;
/// Most bytes of the file of the floor, which has two blocks.
const MAX_FLOOR_BYTES: u64 = 64 * 1024;

/// A state partition and what it can be made anew from.
#[derive(Debug, Clone)]
pub struct StateDevice<'a> {
    /// Device of the partition.
    pub partition: &'a Path,
    /// Directory that it is mounted on.
    pub root: &'a Path,
    /// Image of an empty one, compressed as one zstd frame.
    pub template: &'a Path,
}

/// Fault of a state partition that is mounted.
#[derive(Debug, thiserror::Error)]
pub enum StateFault {
    /// Journal that is damaged: the partition does not mount for writing, and can be read.
    #[error("it can only be read without its journal")]
    Journal(#[source] MountError),
    /// Error that the kernel has recorded in the file system, now or at an earlier time.
    #[error("its file system has {0} recorded errors")]
    Recorded(u64),
    /// The boot environment cannot be read.
    #[error(transparent)]
    Environment(#[from] BootEnvError),
    /// A file cannot be written.
    #[error("nothing can be written to it")]
    Unwritable(#[source] io::Error),
}

impl StateDevice<'_> {
    /// Mounts the partition, and makes it anew where it does not mount or is seen to be damaged.
    ///
    /// # Errors
    /// [`io::Error`] when there is no state partition afterwards, neither the old one nor a new one.
    pub fn open(&self, journal: &Journal) -> io::Result<()> {
        let mounted = self.mount().or_else(|_| {
            std::thread::sleep(MOUNT_AGAIN);
            self.mount()
        });
        if let Err(error) = mounted {
            // GRUB reads it in this way too, and all that it holds may be there.
            if self.mount_to_read().is_ok() {
                return self.replace(&StateFault::Journal(error), journal);
            }
            journal.warn(&format!("the state partition is lost: {}", chain(&error)));
            return self.renew(journal);
        }
        match self.try_out() {
            Ok(()) => Ok(()),
            Err(StateFault::Unwritable(error)) if error.kind() == io::ErrorKind::StorageFull => {
                // What is overwritten in place needs no room: environment, black box, floor.
                journal.warn(&format!("the state partition is full: {error}"));
                Ok(())
            }
            Err(fault) => self.replace(&fault, journal),
        }
    }

    /// Makes the partition anew from the template, whatever it holds, and mounts it.
    ///
    /// # Errors
    /// The template cannot be read, or the partition cannot be written or mounted.
    pub fn renew(&self, journal: &Journal) -> io::Result<()> {
        self.make()?;
        self.mount().map_err(io::Error::other)?;
        journal.warn("the state partition was recreated; there is no record of the installed release any more");
        Ok(())
    }

    /// Makes a damaged partition anew, with all of the old one that can be read. Where that does not work, the old one
    /// is better than none: what is overwritten in place may still be written.
    fn replace(&self, fault: &StateFault, journal: &Journal) -> io::Result<()> {
        journal.warn(&format!("the state partition is damaged: {}", chain(fault)));
        let kept = Kept::read(&StatePartition::new(self.root));
        let made = mount::unmount(self.root)
            .or_else(|_| mount::detach(self.root))
            .map_err(io::Error::other)
            .and_then(|()| self.make());
        self.mount().map_err(io::Error::other)?;
        match made {
            Ok(()) => {
                let summary = kept.put_back(&StatePartition::new(self.root));
                journal.warn(&format!("the state partition was made anew, with {summary} of the old one"));
            }
            Err(error) => journal.warn(&format!("the state partition cannot be made anew: {error}")),
        }
        Ok(())
    }

    fn mount(&self) -> Result<(), MountError> {
        Mount::device(self.partition, "ext4").data_only().on(self.root)
    }

    fn mount_to_read(&self) -> Result<(), MountError> {
        Mount::device(self.partition, "ext4").read_only().no_load().data_only().on(self.root)
    }

    fn make(&self) -> io::Result<()> {
        let template = WholeTemplate::read(|| files::open(self.template))?;
        template.write_over(&DeviceTarget::open(self.partition).map_err(io::Error::other)?)
    }

    /// Uses the mounted partition as a recovery will: a file system can mount whose inode of grubenv is lost, which
    /// could be neither read nor replaced, or whose bitmaps are.
    ///
    /// # Errors
    /// [`StateFault`].
    pub fn try_out(&self) -> Result<(), StateFault> {
        let state = StatePartition::new(self.root);
        // These files are this program's alone: a mark keeps it out, and protects them from nothing.
        let ours = KEPT.map(|(path, _)| path).into_iter().chain(["grubenv", FIRST.directory, SECOND.directory, ""]);
        ours.for_each(|path| drop(files::make_changeable(&self.root.join(path))));
        state.boot_env().load()?;
        let written = self.write_trial();
        let full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
        let written = written.or_else(|error| {
            if !full(&error) {
                return Err(error);
            }
            state.make_room();
            self.write_trial()
        });
        // The kernel goes on after most faults that it sees, and counts them.
        match self.recorded_errors() {
            0 => written.map_err(StateFault::Unwritable),
            errors => Err(StateFault::Recorded(errors)),
        }
    }

    fn write_trial(&self) -> io::Result<()> {
        let [first, second] = TRIAL.map(|name| self.root.join(name));
        for path in [&first, &second] {
            match fs::symlink_metadata(path) {
                Ok(found) if found.is_dir() => drop(files::put_aside(path)?),
                Ok(_) => fs::remove_file(path)?,
                Err(_) => {}
            }
        }
        let mut file = File::create_new(&first)?;
        file.write_all(&[0x5a; TRIAL_BYTES])?;
        file.sync_all()?;
        fs::rename(&first, &second)?;
        fs::remove_file(&second)?;
        File::open(self.root)?.sync_all()
    }

    /// Errors that the file system has in its superblock, 0 where the kernel does not say.
    fn recorded_errors(&self) -> u64 {
        let device = fs::canonicalize(self.partition).unwrap_or_else(|_| self.partition.to_owned());
        let name = device.file_name().unwrap_or_default();
        let count = Path::new("/sys/fs/ext4").join(name).join("errors_count");
        fs::read_to_string(count).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
    }
}

/// Content of a damaged state partition, as far as it can be read. Each reader judges again what it is worth.
struct Kept {
    environment: Option<GrubEnv>,
    /// The robot's own copy of its boot code, which without a network comes from nowhere else.
    boot_pieces: Option<BootPieces>,
    files: Vec<(&'static str, Vec<u8>)>,
}

/// Files that are put back, each with its largest size in bytes. The events are for people, and come last.
const KEPT: [(&str, u64); 13] = [
    (FLOOR, MAX_FLOOR_BYTES),
    (PAUSE, MAX_PAUSE_BYTES),
    (SITE, MAX_SITE_BYTES),
    ("blackbox", blackbox::SIZE_BYTES),
    (FIRST.index, MAX_INDEX_BYTES),
    (FIRST.signature, manifest::MAX_SIGNATURE_BYTES),
    (FIRST.manifest, manifest::MAX_SIZE_BYTES),
    (FIRST.good, MAX_GOOD_BYTES),
    (SECOND.index, MAX_INDEX_BYTES),
    (SECOND.signature, manifest::MAX_SIGNATURE_BYTES),
    (SECOND.manifest, manifest::MAX_SIZE_BYTES),
    (SECOND.good, MAX_GOOD_BYTES),
    ("events.jsonl", 2 * MAX_EVENTS_BYTES),
];

impl Kept {
    fn read(state: &StatePartition) -> Self {
        let environment = match state.boot_env().load() {
            Ok(LoadedEnv::Good(environment)) => Some(environment),
            _ => None,
        };
        let read = |(path, limit_bytes)| {
            files::read_below(&state.root, Path::new(path), limit_bytes).ok().map(|content| (path, content))
        };
        Self { environment, boot_pieces: BootPieces::read(state), files: KEPT.into_iter().filter_map(read).collect() }
    }

    /// Writes all that can be written, and returns what that is, for people.
    fn put_back(self, state: &StatePartition) -> String {
        let mut done = Vec::new();
        if self.environment.is_some_and(|environment| state.boot_env().save(&environment).is_ok()) {
            done.push("grubenv");
        }
        for (path, content) in self.files {
            if let Some(directory) = state.root.join(path).parent() {
                let _ = fs::create_dir(directory);
            }
            if overwrite(&state.root.join(path), &content).is_ok() {
                done.push(path);
            }
        }
        // It takes the most room, and a network can bring it back.
        if self.boot_pieces.is_some_and(|pieces| pieces.keep(state).is_ok()) {
            done.push("boot code");
        }
        if done.is_empty() { "nothing".to_owned() } else { done.join(", ") }
    }
}

/// Overwrites a file of the template in place, so that its blocks stay the ones that it has.
fn overwrite(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = files::open_to_write(path)?;
    if file.metadata()?.len() != content.len() as u64 {
        file.set_len(0)?;
    }
    file.write_all(content)?;
    file.sync_all()
}
