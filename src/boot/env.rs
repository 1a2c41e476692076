//! The environment block on disk: read, changed in place, made durable. The codec is [`crate::boot::grubenv`].
//!
//! GRUB reads and writes the blocks of this file without Linux' journal, so the file is never truncated, renamed
//! over or moved: its one block is overwritten and flushed. `grub-editenv` truncates first, and a power cut then
//! leaves an empty file; that is why it is not used.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::boot::decide::Recoveries;
use crate::boot::grubenv::{self, GrubEnv, GrubEnvError, SIZE_BYTES, names};
use crate::boot::slots::{Pointers, Slot, Trial};

/// What a disk that cannot read or write a sector answers (Linux' include/uapi/asm-generic/errno-base.h).
const EIO: i32 = 5;

/// The environment file of one machine.
#[derive(Debug, Clone)]
pub struct BootEnv {
    path: PathBuf,
}

/// What is known about the environment when it is read.
#[derive(Debug)]
pub enum LoadedEnv {
    /// As it should be.
    Good(GrubEnv),
    /// Missing or damaged; a fresh one is to be written.
    Lost(String),
}

/// Why the environment could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BootEnvError {
    /// The file or its disk failed.
    #[error("cannot {doing} the boot environment {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The variables do not fit, or a name is wrong.
    #[error("cannot change the boot environment {path}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: GrubEnvError,
    },
}

/// Proof that the next boot goes to recovery: nothing of /system is changed without it.
#[derive(Debug)]
pub struct WritePermit {
    env: Option<BootEnv>,
    /// What the environment is to say once the recovery has come to its end.
    recoveries_on_success: Recoveries,
    /// Variables of others that had to go, because the block was full.
    pub dropped: Vec<String>,
}

/// The variables after some changes, whose names are names.
fn with(env: &GrubEnv, changes: &[(&str, Option<&str>)]) -> GrubEnv {
    let mut env = env.clone();
    for (name, value) in changes {
        match value {
            Some(value) => drop(env.set(name, value)),
            None => drop(env.unset(name)),
        }
    }
    env
}

/// What the variables say about the slots.
fn pointers(env: &GrubEnv) -> Pointers {
    Pointers { named: Slot::parse(env.get(names::SLOT)), trial: Trial::parse(env.get(names::TRIAL)) }
}

fn slot_changes<'a>(to: Pointers) -> [(&'a str, Option<&'a str>); 2] {
    [(names::SLOT, to.named.map(Slot::name)), (names::TRIAL, to.trial.map(Trial::word))]
}

impl BootEnv {
    /// The environment in `path`, usually `grubenv` on the state partition.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Reads the variables. Damaged content is an answer, not an error.
    ///
    /// # Errors
    /// [`BootEnvError::Io`] when the file is there and cannot be read.
    pub fn load(&self) -> Result<LoadedEnv, BootEnvError> {
        let mut content = Vec::new();
        // A file that grew by a fault must not be read whole.
        match File::open(&self.path).and_then(|file| file.take(64 * 1024).read_to_end(&mut content)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(LoadedEnv::Lost("there is no grubenv file".to_owned()));
            }
            // GRUB cannot read it either; `save` then takes another place.
            Err(error) if error.raw_os_error() == Some(EIO) => {
                return Ok(LoadedEnv::Lost("its sector cannot be read".to_owned()));
            }
            Err(source) => return Err(self.io("read", source)),
        }
        Ok(match GrubEnv::parse(&content) {
            Ok(env) => LoadedEnv::Good(env),
            Err(error) => LoadedEnv::Lost(error.to_string()),
        })
    }

    /// The variables, or none where the environment is lost.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_or_empty(&self) -> Result<GrubEnv, BootEnvError> {
        Ok(match self.load()? {
            LoadedEnv::Good(env) => env,
            LoadedEnv::Lost(_) => GrubEnv::default(),
        })
    }

    /// Overwrites the block and returns when it is on the medium. Where the disk refuses that, the block is written to
    /// another place, as [`renew`](Self::renew) does.
    ///
    /// # Errors
    /// [`BootEnvError::Content`] when the variables do not fit (nothing is written), [`BootEnvError::Io`] otherwise.
    pub fn save(&self, env: &GrubEnv) -> Result<(), BootEnvError> {
        let block = env.encode().map_err(|source| BootEnvError::Content { path: self.path.clone(), source })?;
        match OpenOptions::new().write(true).open(&self.path) {
            Ok(file) => self.overwrite(&file, &block),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.create(&block),
            Err(error) => Err(error),
        }
        // A bad sector cannot be overwritten in part of its block: the kernel reads the rest of the block first.
        .or_else(|error| if error.raw_os_error() == Some(EIO) { self.elsewhere(&block) } else { Err(error) })
        .map_err(|source| self.io("write", source))
    }

    /// Loads, changes and saves.
    ///
    /// # Errors
    /// As [`load`](Self::load) and [`save`](Self::save), and [`BootEnvError::Content`] for a wrong name.
    pub fn update(&self, changes: &[(&str, Option<&str>)]) -> Result<(), BootEnvError> {
        let env = self.load_or_empty()?;
        if let Some((name, _)) = changes.iter().find(|(name, _)| !grubenv::is_name(name)) {
            let source = GrubEnvError::Name { name: (*name).to_owned() };
            return Err(BootEnvError::Content { path: self.path.clone(), source });
        }
        self.save(&with(&env, changes))
    }

    /// Makes sure that the next boot goes to recovery until [`WritePermit::finish`].
    ///
    /// `recoveries_before` is what the loop brake counts from now on; `recoveries_on_success` what it counts once this recovery has come to its end.
    /// `proven` is the slot this recovery was started from, if that is known, and if the recovery has found a release: GRUB
    /// is pointed at what works, so that the other one is free.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn begin_recovering(
        &self,
        recoveries_before: Recoveries,
        recoveries_on_success: Recoveries,
        proven: Option<Slot>,
    ) -> Result<WritePermit, BootEnvError> {
        let mut env = self.load_or_empty()?;
        let mut dropped = Vec::new();
        // Also what `finish` will write must fit: to find out then would be too late.
        let longest = Recoveries { serial: u64::MAX, count: u32::MAX }.to_string();
        let at_most =
            names::OURS.map(|name| (name, if name == names::RECOVERIES { longest.as_str() } else { "recovery" }));
        while with(&env, &at_most.map(|(name, value)| (name, Some(value)))).encode().is_err() {
            // What others keep there must not keep a machine from recovering.
            match env.drop_last_foreign() {
                Some(name) => dropped.push(name),
                None => break,
            }
        }
        let recoveries_before = recoveries_before.to_string();
        let mut changes = vec![
            (names::RECOVERING, Some("1")),
            (names::TRIES, Some("0")),
            (names::RECOVERIES, Some(&*recoveries_before)),
        ];
        let slots = pointers(&env);
        changes.extend(slot_changes(proven.map_or(slots.begun(), |slot| slots.proven(slot))));
        self.save(&with(&env, &changes))?;
        Ok(WritePermit { env: Some(self.clone()), recoveries_on_success, dropped })
    }

    /// Writes the variables, as far as they can be read, to a new file with blocks of its own: the old ones may be what
    /// GRUB cannot read or write. Where there is no room for a second file, the old one is written in place.
    ///
    /// GRUB does not replay a journal, so the new file counts for it once the file system was unmounted; before that it
    /// sees the old one, and comes here again.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub fn renew(&self) -> Result<(), BootEnvError> {
        let env = self.load_or_empty()?;
        let content = |source| BootEnvError::Content { path: self.path.clone(), source };
        match self.elsewhere(&env.encode().map_err(content)?) {
            Ok(()) => Ok(()),
            Err(_) => self.save(&env),
        }
    }

    /// What the loop brake counts.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn recoveries(&self) -> Result<Recoveries, BootEnvError> {
        Ok(Recoveries::parse(self.load_or_empty()?.get(names::RECOVERIES)))
    }

    /// What is said about the slots of the recovery.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn slots(&self) -> Result<Pointers, BootEnvError> {
        Ok(pointers(&self.load_or_empty()?))
    }

    /// The recovery in `booted`, if it is on trial, has shown that it works.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn end_trial(&self, booted: Slot) -> Result<(), BootEnvError> {
        let slots = self.slots()?;
        if slots.trial == Some(Trial::Tried(booted)) {
            self.update(&slot_changes(slots.proven(booted)))
        } else {
            Ok(())
        }
    }

    fn overwrite(&self, file: &File, block: &[u8; SIZE_BYTES]) -> io::Result<()> {
        file.write_all_at(block, 0)?;
        if file.metadata()?.len() != SIZE_BYTES as u64 {
            file.set_len(SIZE_BYTES as u64)?;
        }
        file.sync_all()
    }

    /// Only where provisioning or a person lost the file; a crash in here leaves none, which GRUB answers with
    /// recovery.
    fn create(&self, block: &[u8; SIZE_BYTES]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&self.path)?;
        file.write_all(block)?;
        file.sync_all()?;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }

    fn elsewhere(&self, block: &[u8; SIZE_BYTES]) -> io::Result<()> {
        let new = self.path.with_added_extension("new");
        let _ = std::fs::remove_file(&new);
        Self::new(&new).create(block)?;
        std::fs::rename(&new, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }

    fn io(&self, doing: &'static str, source: io::Error) -> BootEnvError {
        BootEnvError::Io { doing, path: self.path.clone(), source }
    }
}

impl WritePermit {
    /// For a target that no boot environment of ours starts: a disk image, a disk on a bench.
    #[must_use]
    pub fn without_environment() -> Self {
        Self { env: None, recoveries_on_success: Recoveries::default(), dropped: Vec::new() }
    }

    /// Gives the new system its tries, and points GRUB at the slots of the next recovery, unless that is to stay as it
    /// is, in one write. The caller has verified what both will start.
    pub(crate) fn finish(self, tries: u8, slots: Option<Pointers>) -> Result<(), BootEnvError> {
        let Some(env) = self.env else { return Ok(()) };
        let (tries, recoveries) = (tries.to_string(), self.recoveries_on_success.to_string());
        let mut changes = vec![
            (names::RECOVERING, None),
            (names::NEXT_ENTRY, None),
            (names::BOOT_OK, Some("0")),
            (names::MAX_TRIES, Some(&*tries)),
            (names::TRIES, Some(&*tries)),
            (names::RECOVERIES, Some(&recoveries)),
        ];
        changes.extend(slots.into_iter().flat_map(slot_changes));
        env.update(&changes)
    }
}

#[cfg(test)]
mod tests {
    use super::{BootEnv, LoadedEnv};
    use crate::boot::decide::Recoveries;
    use crate::boot::slots::{Pointers, Ready, Slot};

    const BEGUN: Recoveries = Recoveries { serial: 7, count: 0 };
    const THEN: Recoveries = Recoveries { serial: 7, count: 1 };
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_change_is_made_in_place_and_keeps_what_others_set() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grubenv");
        // As grub-editenv makes it: 1024 bytes.
        let mut foreign = b"# GRUB Environment Block\nsaved_entry=0\nreflash_tries=2\n".to_vec();
        foreign.resize(1024, b'#');
        std::fs::write(&path, foreign).unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        let env = BootEnv::new(&path);
        env.begin_recovering(BEGUN, THEN, None).unwrap().finish(3, None).unwrap();
        let after = std::fs::metadata(&path).unwrap();
        assert_eq!((after.ino(), after.len()), (inode, 512));
        let LoadedEnv::Good(read) = env.load().unwrap() else { panic!("lost") };
        let pairs: Vec<_> = read.iter().collect();
        assert_eq!(
            pairs,
            [
                ("saved_entry", "0"),
                ("reflash_tries", "3"),
                ("reflash_recoveries", "7:1"),
                ("reflash_boot_ok", "0"),
                ("reflash_max_tries", "3")
            ]
        );
    }

    #[test]
    fn while_recovering_no_boot_of_the_system_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let env = BootEnv::new(&dir.path().join("grubenv"));
        assert!(matches!(env.load().unwrap(), LoadedEnv::Lost(_)));
        let _permit = env.begin_recovering(BEGUN, THEN, None).unwrap();
        let read = env.load_or_empty().unwrap();
        assert_eq!((read.get("reflash_recovering"), read.get("reflash_tries")), (Some("1"), Some("0")));
    }

    #[test]
    fn the_slots_are_switched_with_the_end_and_kept_where_nothing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let env = BootEnv::new(&dir.path().join("grubenv"));
        let permit = env.begin_recovering(BEGUN, THEN, Some(Slot::A)).unwrap();
        let began = Pointers { named: Some(Slot::A), trial: None };
        assert_eq!(env.slots().unwrap(), began);
        let to_b = began.leading_to(Ready::Written(Slot::B), Some(Slot::A));
        permit.finish(3, Some(to_b)).unwrap();
        assert_eq!(env.slots().unwrap(), to_b);
        // What runs does not know its slot, and finds nothing about the other: nobody says that it is whole any more.
        env.begin_recovering(BEGUN, THEN, None).unwrap().finish(3, None).unwrap();
        assert_eq!(env.slots().unwrap(), began);
    }

    #[test]
    fn only_a_trial_that_grub_has_begun_can_be_ended() {
        let dir = tempfile::tempdir().unwrap();
        let env = BootEnv::new(&dir.path().join("grubenv"));
        env.end_trial(Slot::B).unwrap();
        assert!(matches!(env.load().unwrap(), LoadedEnv::Lost(_)));
        for trial in ["b", "a-tried"] {
            env.update(&[("reflash_slot", Some("a")), ("reflash_trial", Some(trial))]).unwrap();
            let before = env.slots().unwrap();
            env.end_trial(Slot::B).unwrap();
            assert_eq!(env.slots().unwrap(), before);
        }
        env.update(&[("reflash_trial", Some("b-tried"))]).unwrap();
        env.end_trial(Slot::B).unwrap();
        assert_eq!(env.slots().unwrap(), Pointers { named: Some(Slot::B), trial: None });
    }

    #[test]
    fn a_full_environment_gives_way_to_a_recovery() {
        let dir = tempfile::tempdir().unwrap();
        let env = BootEnv::new(&dir.path().join("grubenv"));
        env.update(&[("reflash_max_tries", Some("5")), ("mine", Some(&"x".repeat(440)))]).unwrap();
        env.begin_recovering(BEGUN, THEN, None).unwrap().finish(3, None).unwrap();
        let read = env.load_or_empty().unwrap();
        assert_eq!((read.get("mine"), read.get("reflash_tries")), (None, Some("3")));
        // Room for the beginning but not for the end: that must not be found out when it is too late.
        let dir = tempfile::tempdir().unwrap();
        let env = BootEnv::new(&dir.path().join("grubenv"));
        env.update(&[("mine", Some(&"x".repeat(400)))]).unwrap();
        env.begin_recovering(BEGUN, THEN, None).unwrap().finish(3, None).unwrap();
    }

    #[test]
    fn a_renewed_environment_lies_elsewhere_and_keeps_what_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grubenv");
        let env = BootEnv::new(&path);
        env.renew().unwrap();
        env.update(&[("kept", Some("1"))]).unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        env.renew().unwrap();
        assert_ne!(std::fs::metadata(&path).unwrap().ino(), inode);
        assert_eq!(env.load_or_empty().unwrap().get("kept"), Some("1"));
        std::fs::write(&path, [0; 512]).unwrap();
        env.renew().unwrap();
        assert!(matches!(env.load().unwrap(), LoadedEnv::Good(_)));
    }

    #[test]
    fn an_environment_on_a_bad_sector_counts_as_lost_and_is_written_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grubenv");
        // The first byte of a process's memory opens, and answers every read and write with EIO.
        let bad = || std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
        let env = BootEnv::new(&path);
        bad();
        assert!(matches!(env.load().unwrap(), LoadedEnv::Lost(_)));
        env.renew().unwrap();
        assert!(matches!(env.load().unwrap(), LoadedEnv::Good(_)));
        std::fs::remove_file(&path).unwrap();
        bad();
        env.begin_recovering(BEGUN, THEN, None).unwrap().finish(3, None).unwrap();
        assert_eq!(env.load_or_empty().unwrap().get("reflash_tries"), Some("3"));
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grubenv");
        let env = BootEnv::new(&path);
        env.update(&[("a", Some("1"))]).unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(env.update(&[("b", Some(&"x".repeat(600)))]).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
