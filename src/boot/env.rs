//! The environment block on disk, which is read, changed in place and made durable. The codec is
//! [`crate::boot::grubenv`].
//!
//! GRUB reads and writes the blocks of this file without Linux' journal. So a change never truncates, renames or moves
//! the file: its one block is overwritten and flushed. Only where GRUB or the disk cannot use that block, a new file
//! takes its place. `grub-editenv` is not used, because it truncates first, and a power cut then leaves an empty file.

mod changes;
mod permit;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::discriminant;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::boot::decide::Recoveries;
use crate::boot::grubenv::{self, GrubEnv, GrubEnvError, SIZE_BYTES, names};
use crate::boot::request::{self, RecoveryRequest};
use crate::boot::slots::{Slot, SlotState, Trial};
use crate::sys::{files, turn};
use changes::{give_way, slot_changes, slot_state, with_changes};

pub use permit::{PermitRequest, WritePermit};

/// The error of a disk that cannot read or write a sector (Linux' include/uapi/asm-generic/errno-base.h).
const EIO: i32 = 5;

/// The environment file of one machine.
#[derive(Debug, Clone)]
pub struct BootEnv {
    path: PathBuf,
}

/// The environment as it was found when it was read.
#[derive(Debug)]
pub enum LoadedEnv {
    /// The environment can be read.
    Good(GrubEnv),
    /// The environment is missing or damaged, for this reason, and a new one has to be written.
    Lost(String),
}

/// The error for an environment that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BootEnvError {
    /// The file or its disk failed.
    #[error("cannot {doing} the boot environment {path}")]
    Io {
        /// The operation that failed, as a verb.
        doing: &'static str,
        /// Path of the environment file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The variables do not fit, or a name is wrong.
    #[error("cannot change the boot environment {path}")]
    Content {
        /// Path of the environment file.
        path: PathBuf,
        /// The fault in the variables.
        source: GrubEnvError,
    },
    /// The next start is asked for something else, which only whoever asked for it takes back.
    #[error("the next start is asked for something else, {what}, which stays")]
    Asked {
        /// The request, or the entry.
        what: String,
    },
}

impl BootEnv {
    /// Names the environment in `path`, usually `grubenv` on the state partition. Nothing is read yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Reads the variables. Damaged content is not an error: it yields [`LoadedEnv::Lost`].
    ///
    /// # Errors
    /// [`BootEnvError::Io`] when the file is there and cannot be read, other than for a bad sector.
    pub fn load(&self) -> Result<LoadedEnv, BootEnvError> {
        let mut content = Vec::new();
        // The limit protects the memory from a file that has grown by some fault.
        match files::open(&self.path).and_then(|file| file.take(64 * 1024).read_to_end(&mut content)) {
            Ok(_) => {}
            // GRUB would follow a link, and wait for nothing; `save` puts a file in its place.
            Err(error) if files::is_other_kind(&error) => {
                return Ok(LoadedEnv::Lost(format!("there is no grubenv file but {error}")));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(LoadedEnv::Lost("there is no grubenv file".to_owned()));
            }
            // GRUB cannot read it either. `save` will write it to another place.
            Err(error) if error.raw_os_error() == Some(EIO) => {
                return Ok(LoadedEnv::Lost("its sector cannot be read".to_owned()));
            }
            Err(source) => return Err(self.io("read", source)),
        }
        Ok(match GrubEnv::parse(&content) {
            Ok(env) => LoadedEnv::Good(env.without_absurd_values()),
            Err(error) => LoadedEnv::Lost(error.to_string()),
        })
    }

    /// Reads the variables, and returns an empty environment where it is lost.
    ///
    /// # Errors
    /// The errors of [`load`](Self::load).
    pub fn load_or_empty(&self) -> Result<GrubEnv, BootEnvError> {
        Ok(match self.load()? {
            LoadedEnv::Good(env) => env,
            LoadedEnv::Lost(_) => GrubEnv::default(),
        })
    }

    /// Overwrites the block and returns when it is on the medium. If its sector is bad, the block is written to another
    /// place, as [`renew`](Self::renew) does.
    ///
    /// # Errors
    /// [`BootEnvError::Content`] when the variables do not fit (nothing is written), [`BootEnvError::Io`] otherwise.
    pub fn save(&self, env: &GrubEnv) -> Result<(), BootEnvError> {
        let block = env.encode().map_err(|source| BootEnvError::Content { path: self.path.clone(), source })?;
        match std::fs::symlink_metadata(&self.path) {
            Ok(found) if found.is_file() => {
                files::open_to_write(&self.path).and_then(|file| self.overwrite(&file, &block))
            }
            Ok(_) => files::put_aside(&self.path).and_then(|_| self.create(&block)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.create(&block),
            Err(error) => Err(error),
        }
        // Overwriting does not heal the bad sector: the file system's block is larger than 512 bytes, and the kernel
        // reads the rest of it first.
        .or_else(|error| if error.raw_os_error() == Some(EIO) { self.replace_file(&block) } else { Err(error) })
        .map_err(|source| self.io("write", source))
    }

    /// Loads the variables, changes them and saves them. `None` removes a variable. Those of other programs give way
    /// where ours do not fit beside them: a good boot must be recorded.
    ///
    /// # Errors
    /// The errors of [`load`](Self::load) and [`save`](Self::save), and [`BootEnvError::Content`] for a wrong name.
    pub fn update(&self, changes: &[(&str, Option<&str>)]) -> Result<(), BootEnvError> {
        self.update_unless(&|_| None, changes).map(drop)
    }

    /// Updates the variables unless the next start is asked for something else than `is_ours` means. Nothing comes in
    /// between: a request that was made a moment before is not lost.
    ///
    /// # Errors
    /// [`BootEnvError::Asked`], and the errors of [`update`](Self::update).
    pub fn update_unless_asked(
        &self,
        is_ours: &dyn Fn(RecoveryRequest) -> bool,
        changes: &[(&str, Option<&str>)],
    ) -> Result<(), BootEnvError> {
        match self.update_unless(&|env| request::asked_otherwise(env, is_ours), changes)? {
            None => Ok(()),
            Some(what) => Err(BootEnvError::Asked { what }),
        }
    }

    /// Has the next start be a recovery for `request`, unless it is asked for something of another kind.
    ///
    /// # Errors
    /// As [`update_unless_asked`](Self::update_unless_asked).
    pub fn ask(&self, request: RecoveryRequest) -> Result<(), BootEnvError> {
        let text = request.to_string();
        let is_ours = |other| discriminant(&request) == discriminant(&other);
        self.update_unless_asked(&is_ours, &[(names::NEXT_ENTRY, Some("recovery")), (names::REQUEST, Some(&text))])
    }

    /// Updates the variables if they are still as `is_so` wants them, and returns whether they are: what was read
    /// before may have been changed since.
    ///
    /// # Errors
    /// The errors of [`update`](Self::update).
    pub fn update_if(
        &self,
        is_so: &dyn Fn(&GrubEnv) -> bool,
        changes: &[(&str, Option<&str>)],
    ) -> Result<bool, BootEnvError> {
        let obstacle = self.update_unless(&|env| (!is_so(env)).then(String::new), changes)?;
        Ok(obstacle.is_none())
    }

    /// Updates the variables unless there is an obstacle in them by now, which it returns.
    fn update_unless(
        &self,
        obstacle: &dyn Fn(&GrubEnv) -> Option<String>,
        changes: &[(&str, Option<&str>)],
    ) -> Result<Option<String>, BootEnvError> {
        let _turn = turn::beside(&self.path);
        let env = self.load_or_empty()?;
        if let Some(obstacle) = obstacle(&env) {
            return Ok(Some(obstacle));
        }
        if let Some((name, _)) = changes.iter().find(|(name, _)| !grubenv::is_name(name)) {
            let source = GrubEnvError::Name { name: (*name).to_owned() };
            return Err(BootEnvError::Content { path: self.path.clone(), source });
        }
        let mut env = with_changes(&env, changes);
        match self.save(&env) {
            Err(BootEnvError::Content { source: GrubEnvError::Full { .. }, .. })
                if changes.iter().all(|(name, _)| names::OURS.contains(name)) =>
            {
                give_way(&mut env);
                self.save(&env)
            }
            saved => saved,
        }
        .map(|()| None)
    }

    /// Removes variables of other programs where ours might not fit, and returns their names.
    ///
    /// # Errors
    /// The errors of [`update`](Self::update).
    pub fn make_room(&self) -> Result<Vec<String>, BootEnvError> {
        let _turn = turn::beside(&self.path);
        let mut env = self.load_or_empty()?;
        let dropped = give_way(&mut env);
        if !dropped.is_empty() {
            self.save(&env)?;
        }
        Ok(dropped)
    }

    /// Writes the variables, as far as they can be read, to a new file with blocks of its own, because GRUB may be
    /// unable to read or write the old blocks. Where there is no room for a second file, the old one is written in
    /// place.
    ///
    /// GRUB does not replay a journal, so it sees the new file only after the file system was unmounted. Until then it
    /// sees the old file and starts recovery again.
    ///
    /// # Errors
    /// The errors of [`save`](Self::save).
    pub fn renew(&self) -> Result<(), BootEnvError> {
        let _turn = turn::beside(&self.path);
        let env = self.load_or_empty()?;
        let content = |source| BootEnvError::Content { path: self.path.clone(), source };
        match self.replace_file(&env.encode().map_err(content)?) {
            Ok(()) => Ok(()),
            Err(_) => self.save(&env),
        }
    }

    /// Reads the count of the loop brake.
    ///
    /// # Errors
    /// The errors of [`load`](Self::load).
    pub fn recoveries(&self) -> Result<Recoveries, BootEnvError> {
        Ok(Recoveries::parse(self.load_or_empty()?.get(names::RECOVERIES)))
    }

    /// Reads the state of the recovery slots.
    ///
    /// # Errors
    /// The errors of [`load`](Self::load).
    pub fn slots(&self) -> Result<SlotState, BootEnvError> {
        Ok(slot_state(&self.load_or_empty()?))
    }

    /// Ends the trial of the slot `booted`, if it is on trial: its recovery has shown that it works.
    ///
    /// # Errors
    /// The errors of [`update`](Self::update).
    pub fn end_trial(&self, booted: Slot) -> Result<(), BootEnvError> {
        let slots = self.slots()?;
        if slots.trial == Some(Trial::Tried(booted)) {
            self.update(&slot_changes(slots.with_proven(booted)))
        } else {
            Ok(())
        }
    }

    /// Names the release that an undo leads back to, or none, so that GRUB's menu offers it. Writes nothing where that
    /// is known already, or where the environment is lost, which has its meaning.
    ///
    /// # Errors
    /// The errors of [`update`](Self::update).
    pub fn offer_undo(&self, serial: Option<u64>) -> Result<(), BootEnvError> {
        let LoadedEnv::Good(env) = self.load()? else { return Ok(()) };
        let serial = serial.map(|serial| serial.to_string());
        match env.get(names::UNDO) == serial.as_deref() {
            true => Ok(()),
            false => self.update(&[(names::UNDO, serial.as_deref())]),
        }
    }

    /// Gives the system one try, though nothing shows that it is whole, and counts that as a recovery.
    ///
    /// # Errors
    /// The errors of [`update`](Self::update).
    pub fn try_once(&self, recoveries: Recoveries) -> Result<(), BootEnvError> {
        let recoveries = recoveries.one_more().to_string();
        self.update(&[
            (names::RECOVERING, None),
            (names::NEXT_ENTRY, None),
            (names::BOOT_OK, Some("0")),
            (names::TRIES, Some("1")),
            (names::RECOVERIES, Some(&recoveries)),
        ])
    }

    fn overwrite(&self, file: &File, block: &[u8; SIZE_BYTES]) -> io::Result<()> {
        file.write_all_at(block, 0)?;
        if file.metadata()?.len() != SIZE_BYTES as u64 {
            file.set_len(SIZE_BYTES as u64)?;
        }
        file.sync_all()
    }

    /// Creates the file, which only provisioning or a person can have lost. A crash in here leaves no file, and GRUB
    /// then starts recovery.
    fn create(&self, block: &[u8; SIZE_BYTES]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&self.path)?;
        file.write_all(block)?;
        file.sync_all()?;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }

    /// Writes the block to a new file and renames it over the old one.
    fn replace_file(&self, block: &[u8; SIZE_BYTES]) -> io::Result<()> {
        let new = self.path.with_added_extension("new");
        let _ = std::fs::remove_file(&new);
        for path in [&new, &self.path] {
            // Neither is removed, nor replaced by a rename.
            if std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
                files::put_aside(path)?;
            }
        }
        Self::new(&new).create(block)?;
        std::fs::rename(&new, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }

    fn io(&self, doing: &'static str, source: io::Error) -> BootEnvError {
        BootEnvError::Io { doing, path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::{BootEnv, BootEnvError, LoadedEnv, PermitRequest, with_changes};
    use crate::boot::decide::Recoveries;
    use crate::boot::slots::{ReadySlot, Slot, SlotState};
    use crate::boot::systems::{Switch, SystemNumber};

    const INSTALL: PermitRequest = PermitRequest {
        recoveries: Recoveries { serial: 7, count: 0 },
        recoveries_on_success: Recoveries { serial: 7, count: 1 },
        proven: None,
        good: None,
        replaces: true,
        good_is_another: false,
        safe_start: None,
        slots_stay: false,
        requests_stay: false,
    };

    fn variables(env: &BootEnv) -> Vec<(String, String)> {
        env.load_or_empty().unwrap().iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

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
        env.begin_recovering(INSTALL).unwrap().finish(3, None).unwrap();
        let after = std::fs::metadata(&path).unwrap();
        assert_eq!((after.ino(), after.len()), (inode, 512));
        let LoadedEnv::Good(read) = env.load().unwrap() else { panic!("lost") };
        let pairs: Vec<_> = read.iter().collect();
        assert_eq!(
            pairs,
            [
                ("saved_entry", "0"),
                ("reflash_tries", "3"),
                ("reflash_boot_ok", "0"),
                ("reflash_recoveries", "7:1"),
                ("reflash_max_tries", "3"),
                ("reflash_was_good", "0")
            ]
        );
    }

    #[test]
    fn what_was_good_stays_bound_to_its_release() {
        let dir = tempfile::tempdir().unwrap();
        let env = BootEnv::new(&dir.path().join("grubenv"));
        let get = |name: &str| env.load_or_empty().unwrap().get(name).map(str::to_owned);
        let good = |name| get(name).unwrap_or_default();
        env.update(&[("reflash_boot_ok", Some("1")), ("reflash_safe", Some("2")), ("reflash_undo", Some("5"))])
            .unwrap();
        // A cut right after the new release is recorded must not leave a word that it was good.
        let permit = env.begin_recovering(PermitRequest { good: Some(6), ..INSTALL }).unwrap();
        assert_eq!((good("reflash_good"), good("reflash_boot_ok")), ("6".to_owned(), "0".to_owned()));
        permit.finish(3, None).unwrap();
        assert_eq!((good("reflash_good"), good("reflash_was_good")), ("6".to_owned(), "0".to_owned()));
        assert_eq!((get("reflash_safe"), get("reflash_undo")), (None, None));
        // Another manifest of the same serial is another release.
        let other = BootEnv::new(&dir.path().join("other"));
        let six = Recoveries { serial: 6, count: 1 };
        let request = PermitRequest { good: Some(6), recoveries_on_success: six, good_is_another: true, ..INSTALL };
        other.begin_recovering(request).unwrap().finish(3, None).unwrap();
        let read = other.load_or_empty().unwrap();
        assert_eq!((read.get("reflash_good"), read.get("reflash_was_good")), (None, Some("0")));
        // Back to the good one.
        let back = Recoveries { serial: 6, count: 0 };
        let request = PermitRequest { recoveries: back, recoveries_on_success: back, ..INSTALL };
        env.update(&[("reflash_request", Some("undo:7"))]).unwrap();
        let permit = env.begin_recovering(request).unwrap();
        assert_eq!(good("reflash_request"), "undo:7");
        permit.finish(3, None).unwrap();
        assert_eq!((get("reflash_was_good"), get("reflash_request")), (None, None));
        // A start of the same release, and a safe one, change nothing of that.
        let again = PermitRequest { replaces: false, safe_start: Some(3), ..request };
        env.begin_recovering(again).unwrap().finish(3, None).unwrap();
        let after = variables(&env);
        for pair in [("reflash_good", "6"), ("reflash_safe", "3"), ("next_entry", "safe"), ("reflash_tries", "3")] {
            assert!(after.contains(&(pair.0.to_owned(), pair.1.to_owned())), "{after:?}");
        }
        let again = PermitRequest { safe_start: None, ..again };
        env.begin_recovering(again).unwrap().finish(3, None).unwrap();
        assert_eq!((get("next_entry"), good("reflash_safe")), (None, "3".to_owned()));
    }

    #[test]
    fn an_undo_is_offered_without_a_write_where_it_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grubenv");
        let env = BootEnv::new(&path);
        env.offer_undo(Some(6)).unwrap();
        assert!(matches!(env.load().unwrap(), LoadedEnv::Lost(_)));
        env.update(&[("reflash_tries", Some("3"))]).unwrap();
        let written = || std::fs::metadata(&path).unwrap().modified().unwrap();
        for (serial, value) in [(Some(6), Some("6")), (Some(u64::MAX), Some("18446744073709551615")), (None, None)] {
            env.offer_undo(serial).unwrap();
            assert_eq!(env.load_or_empty().unwrap().get("reflash_undo"), value);
            let before = written();
            env.offer_undo(serial).unwrap();
            assert_eq!(written(), before);
        }
    }

    #[test]
    fn while_recovering_the_system_has_no_tries() {
        let dir = tempfile::tempdir().unwrap();
        let env = BootEnv::new(&dir.path().join("grubenv"));
        assert!(matches!(env.load().unwrap(), LoadedEnv::Lost(_)));
        let _permit = env.begin_recovering(INSTALL).unwrap();
        let read = env.load_or_empty().unwrap();
        assert_eq!((read.get("reflash_recovering"), read.get("reflash_tries")), (Some("1"), Some("0")));
    }

    #[test]
    fn the_slots_are_switched_at_the_end_and_kept_without_a_new_state() {
        let dir = tempfile::tempdir().unwrap();
        let env = BootEnv::new(&dir.path().join("grubenv"));
        let permit = env.begin_recovering(PermitRequest { proven: Some(Slot::A), ..INSTALL }).unwrap();
        let began = SlotState { active: Some(Slot::A), trial: None };
        assert_eq!(env.slots().unwrap(), began);
        let to_b = began.leading_to(ReadySlot::Written(Slot::B), Some(Slot::A));
        permit.finish(3, Some(to_b)).unwrap();
        assert_eq!(env.slots().unwrap(), to_b);
        // This agent does not know its own slot and has not checked the other one, so the other one is no longer
        // trusted.
        env.begin_recovering(INSTALL).unwrap().finish(3, None).unwrap();
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
        assert_eq!(env.slots().unwrap(), SlotState { active: Some(Slot::B), trial: None });
    }

    #[test]
    fn a_full_environment_gives_way_to_a_recovery() {
        let dir = tempfile::tempdir().unwrap();
        let env = BootEnv::new(&dir.path().join("grubenv"));
        env.update(&[("reflash_max_tries", Some("5")), ("mine", Some(&"x".repeat(440)))]).unwrap();
        env.begin_recovering(INSTALL).unwrap().finish(3, None).unwrap();
        let read = env.load_or_empty().unwrap();
        assert_eq!((read.get("mine"), read.get("reflash_tries")), (None, Some("3")));
        // Room for the beginning but not for the end: that must not be found out when it is too late.
        let dir = tempfile::tempdir().unwrap();
        let env = BootEnv::new(&dir.path().join("grubenv"));
        env.update(&[("mine", Some(&"x".repeat(400)))]).unwrap();
        env.begin_recovering(INSTALL).unwrap().finish(3, None).unwrap();
    }

    #[test]
    fn a_full_environment_has_room_for_all_that_an_undo_writes() {
        let dir = tempfile::tempdir().unwrap();
        let env = BootEnv::new(&dir.path().join("grubenv"));
        env.update(&[("first", Some("x")), ("mine", Some(&"x".repeat(440)))]).unwrap();
        let serial = u64::MAX.to_string();
        let undo = format!("undo:{serial}");
        let changes = [("reflash_good", Some(&*serial)), ("reflash_request", Some(&*undo))];
        let full = with_changes(&env.load_or_empty().unwrap(), &changes);
        assert!(env.save(&full).is_err(), "else this shows nothing");
        assert_eq!(env.make_room().unwrap(), ["mine"]);
        env.update(&changes).unwrap();
        let recoveries = Recoveries { serial: u64::MAX, count: u32::MAX };
        let request = PermitRequest { recoveries, recoveries_on_success: recoveries, safe_start: Some(999), ..INSTALL };
        env.begin_recovering(request).unwrap().finish(9, None).unwrap();
        env.offer_undo(Some(u64::MAX)).unwrap();
        assert!(env.make_room().unwrap().is_empty());
    }

    #[test]
    fn a_switch_is_one_write_and_the_other_system_is_let_go_before() {
        let dir = tempfile::tempdir().unwrap();
        let env = BootEnv::new(&dir.path().join("grubenv"));
        env.update(&[("reflash_tries", Some("2")), ("reflash_before", Some("2")), ("reflash_undo", Some("5"))])
            .unwrap();
        env.update(&[("mine", Some(&"x".repeat(360)))]).unwrap();
        let request = PermitRequest { good: Some(6), safe_start: None, ..INSTALL };
        let permit = env.begin_other(request).unwrap();
        assert_eq!(permit.dropped, ["mine"], "room for the end is made at the beginning");
        let get = |name: &str| env.load_or_empty().unwrap().get(name).map(str::to_owned);
        // The active system goes on as before, and nothing leads to the other one.
        assert_eq!(["reflash_before", "reflash_undo", "reflash_recovering"].map(get), [None, None, None]);
        assert_eq!(get("reflash_tries").as_deref(), Some("2"));
        permit.with_switch(Switch { to: SystemNumber::Second, can_go_back: true }).finish(3, None).unwrap();
        let after = ["reflash_system", "reflash_before", "reflash_tries", "reflash_good", "reflash_was_good"].map(get);
        assert_eq!(after.map(Option::unwrap), ["2", "1", "3", "6", "0"]);
        // A recovery that was just renewed stays on trial while nothing is switched.
        env.update(&[("reflash_slot", Some("a")), ("reflash_trial", Some("b"))]).unwrap();
        drop(env.begin_other(PermitRequest { slots_stay: true, ..request }).unwrap());
        assert_eq!(["reflash_slot", "reflash_trial"].map(get).map(Option::unwrap), ["a", "b"]);
        drop(env.begin_other(request).unwrap());
        assert_eq!(get("reflash_trial"), None);
    }

    #[test]
    fn what_somebody_asks_for_while_the_other_system_is_written_is_not_lost() {
        let switch = Switch { to: SystemNumber::Second, can_go_back: true };
        let running = PermitRequest { requests_stay: true, ..INSTALL };
        let asked = |entry, request| [("next_entry", Some(entry)), ("reflash_request", request)];
        for (entry, request) in [("recovery", None), ("recovery", Some("undo:6")), ("factory-reset", None)] {
            let dir = tempfile::tempdir().unwrap();
            let env = BootEnv::new(&dir.path().join("grubenv"));
            let permit = env.begin_other(running).unwrap().with_switch(switch);
            env.update(&asked(entry, request)).unwrap();
            let before = variables(&env);
            assert!(matches!(permit.finish(3, None), Err(BootEnvError::Asked { .. })));
            assert!(matches!(env.begin_other(running), Err(BootEnvError::Asked { .. })), "and nothing is begun");
            assert_eq!(variables(&env), before);
            // In a recovery it is what is carried out: on trial, GRUB keeps the entry.
            env.begin_other(INSTALL).unwrap().with_switch(switch).finish(3, None).unwrap();
            let after = env.load_or_empty().unwrap();
            assert_eq!((after.get("next_entry"), after.get("reflash_request")), (None, None));
        }
        // An update that was fetched for a recovery is what the switch does.
        let dir = tempfile::tempdir().unwrap();
        let env = BootEnv::new(&dir.path().join("grubenv"));
        env.update(&asked("recovery", Some("update:7:0123456789abcdef:1:24"))).unwrap();
        env.begin_other(running).unwrap().with_switch(switch).finish(3, None).unwrap();
        assert_eq!(env.load_or_empty().unwrap().get("next_entry"), None);
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
    fn an_environment_on_a_bad_sector_counts_as_lost() {
        // The first byte of a process's memory opens, and answers every read with EIO.
        let LoadedEnv::Lost(why) = BootEnv::new(Path::new("/proc/self/mem")).load().unwrap() else { panic!("read") };
        assert!(why.contains("sector"), "{why}");
    }

    #[test]
    fn a_link_in_the_place_of_the_environment_counts_as_lost_and_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grubenv");
        let link = || std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        let env = BootEnv::new(&path);
        link();
        assert!(matches!(env.load().unwrap(), LoadedEnv::Lost(_)));
        env.renew().unwrap();
        assert!(matches!(env.load().unwrap(), LoadedEnv::Good(_)));
        std::fs::remove_file(&path).unwrap();
        link();
        env.begin_recovering(INSTALL).unwrap().finish(3, None).unwrap();
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
