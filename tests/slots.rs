//! The recovery renews itself: a recovery through the library, with a directory for the recovery partition that fails
//! as told, and a real ext4 on a loop device.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use reflash::boot::slots::{FILES, Slot, SlotState, Trial};
use reflash::chain::chain;
use reflash::fetch::{Directory, Mirrors, RetryPolicy, Source};
use reflash::jobs::recovery::{self, RecoveryError, RecoveryPartition, RecoveryReport, Renewal, SlotStorage};
use reflash::jobs::state::StatePartition;
use reflash::record::journal::Journal;
use reflash::sys::mount::{self, Mount};

use crate::isolated::{isolated, run};
use crate::support::clock::FakeClock;
use crate::support::{Fixture, MemoryTarget, sample_image};

/// The files of a recovery, each different in every release; longer than a step of the transfer.
fn recovery_of(version: &str) -> [(&'static str, Vec<u8>); 3] {
    FILES
        .map(|name| (name, format!("{name} of {version}\n").repeat(if name == "vmlinuz" { 20_000 } else { 50 }).into()))
}

/// A partition whose calls are counted, and fail from one on: what was done before is what a cut would leave.
struct Failing {
    inner: RecoveryPartition,
    left: Mutex<usize>,
    /// Half of the last write takes place.
    torn: bool,
}

impl Failing {
    fn take(&self) -> io::Result<()> {
        let mut left = self.left.lock().unwrap();
        *left = left.checked_sub(1).ok_or_else(|| io::Error::from_raw_os_error(28))?;
        Ok(())
    }
}

impl SlotStorage for Failing {
    fn open(&self, slot: Slot, file: &str) -> io::Result<Box<dyn Read>> {
        self.inner.open(slot, file)
    }

    fn clear(&self, slot: Slot) -> io::Result<()> {
        self.take()?;
        self.inner.clear(slot)
    }

    fn write(&self, slot: Slot, file: &str, offset: u64, content: &[u8]) -> io::Result<()> {
        self.take().inspect_err(|_| {
            if self.torn {
                self.inner.write(slot, file, offset, &content[..content.len() / 2]).unwrap();
            }
        })?;
        self.inner.write(slot, file, offset, content)
    }

    fn sync(&self, slot: Slot, file: &str) -> io::Result<()> {
        self.take()?;
        self.inner.sync(slot, file)
    }

    fn settle(&self) -> io::Result<()> {
        self.take()?;
        self.inner.settle()
    }
}

/// A robot whose recovery partition has slot a of version 1, and a release with the recovery of version 2.
struct Robot {
    fixture: Fixture,
    recovery: tempfile::TempDir,
    state: tempfile::TempDir,
    target: MemoryTarget,
}

impl Robot {
    fn new() -> Self {
        let mut fixture = Fixture::new();
        let target = MemoryTarget::new(fixture.image.clone());
        publish(&mut fixture, "2");
        let recovery = tempfile::tempdir().unwrap();
        fill(recovery.path(), Slot::A, "1");
        Self { fixture, recovery, state: tempfile::tempdir().unwrap(), target }
    }

    fn state(&self) -> StatePartition {
        StatePartition::new(self.state.path())
    }

    fn recover(
        &self,
        medium: &dyn SlotStorage,
        source: &dyn Source,
        booted: Slot,
    ) -> Result<RecoveryReport, RecoveryError> {
        let (state, journal) = (self.state(), Journal::silent());
        let mut job = self.fixture.job(source, &self.target, Some(&state), &journal);
        job.resources.renewal = Some(Renewal { medium, source, booted: Some(booted) });
        recovery::run(&job, job.read_record().as_ref())
    }

    /// Recovers as it should be.
    fn recover_from(&self, booted: Slot) {
        self.recover(&RecoveryPartition::directory(self.recovery.path()), &self.source(), booted).unwrap();
    }

    fn source(&self) -> Directory {
        Directory::new(self.fixture.tree())
    }

    fn slots(&self) -> SlotState {
        self.state().boot_env().slots().unwrap()
    }

    /// Where the next recovery begins, as `grub/slot.cfg` has it.
    fn next(&self) -> Option<Slot> {
        match self.slots().trial {
            Some(Trial::Due(slot)) => Some(slot),
            _ => self.slots().active,
        }
    }

    /// GRUB starts it; of a trial it first takes note.
    fn start_next(&self) -> Slot {
        let slot = self.next().unwrap_or(Slot::A);
        if self.slots().trial == Some(Trial::Due(slot)) {
            self.state().boot_env().update(&[("reflash_trial", Some(Trial::Tried(slot).value()))]).unwrap();
        }
        slot
    }

    fn holds(&self, slot: Slot, version: &str) -> bool {
        let folder = self.recovery.path().join(slot.folder());
        recovery_of(version).iter().all(|(name, content)| fs::read(folder.join(name)).is_ok_and(|it| it == *content))
    }
}

/// A release of the same image with the recovery of `version`.
fn publish(fixture: &mut Fixture, version: &str) {
    let folder = fixture.dir.path().join("recovery");
    fs::create_dir_all(&folder).unwrap();
    let files = recovery_of(version).map(|(name, content)| {
        fs::write(folder.join(name), content).unwrap();
        (format!("recovery/{name}"), folder.join(name))
    });
    fixture.publish(sample_image(300, 1), |spec| spec.files = files.into());
}

fn fill(root: &Path, slot: Slot, version: &str) {
    fs::create_dir_all(root.join(slot.folder())).unwrap();
    for (name, content) in recovery_of(version) {
        fs::write(root.join(slot.folder()).join(name), content).unwrap();
    }
}

#[test]
fn the_free_slot_is_written_and_becomes_the_one_to_start() {
    let mut robot = Robot::new();
    robot.recover_from(Slot::A);
    assert!(robot.holds(Slot::A, "1") && robot.holds(Slot::B, "2"));
    assert_eq!(robot.next(), Some(Slot::B));
    // The same release costs nothing, from whichever slot it is installed.
    for name in fs::read_dir(robot.recovery.path().join("slots/b")).unwrap() {
        fs::File::options()
            .write(true)
            .open(name.unwrap().path())
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
    }
    for booted in [Slot::B, Slot::A] {
        robot.recover_from(booted);
        assert_eq!(robot.next(), Some(Slot::B));
    }
    for name in FILES {
        let written = fs::metadata(robot.recovery.path().join("slots/b").join(name)).unwrap();
        assert_eq!(written.modified().unwrap(), std::time::UNIX_EPOCH, "{name}");
    }
    // The next one goes to the other slot.
    publish(&mut robot.fixture, "3");
    robot.recover_from(Slot::B);
    assert!(robot.holds(Slot::A, "3") && robot.holds(Slot::B, "2"));
    assert_eq!(robot.next(), Some(Slot::A));
}

#[test]
fn a_new_recovery_is_trusted_when_it_has_found_a_release() {
    let mut robot = Robot::new();
    robot.recover_from(Slot::A);
    assert_eq!(robot.slots(), SlotState { active: Some(Slot::A), trial: Some(Trial::Due(Slot::B)) });
    assert_eq!(robot.start_next(), Slot::B);
    // The release does not even fit: that is no fault of the recovery.
    let (state, journal, source) = (robot.state(), Journal::silent(), robot.source());
    let medium = RecoveryPartition::directory(robot.recovery.path());
    let mut job = robot.fixture.job(&source, &robot.target, Some(&state), &journal);
    job.resources.renewal = Some(Renewal { medium: &medium, source: &source, booted: Some(Slot::B) });
    job.identity.product = "another".into();
    recovery::run(&job, job.read_record().as_ref()).unwrap_err();
    assert_eq!(robot.slots(), SlotState { active: Some(Slot::B), trial: None });
    // From then on it renews the other one.
    publish(&mut robot.fixture, "3");
    robot.recover_from(Slot::B);
    assert_eq!(robot.slots(), SlotState { active: Some(Slot::B), trial: Some(Trial::Due(Slot::A)) });
}

#[test]
fn a_new_recovery_is_trusted_while_another_source_is_still_asked_in_vain() {
    let robot = Robot::new();
    robot.recover_from(Slot::A);
    assert_eq!(robot.start_next(), Slot::B);
    // The first source has a release for another machine, the second one does not answer and may be asked for hours.
    let (during, env) = (Arc::new(Mutex::new(Vec::new())), robot.state().boot_env());
    let slots = Arc::clone(&during);
    let sources: Vec<Box<dyn Source>> = vec![Box::new(robot.source()), Box::new(Directory::new("/nonexistent"))];
    let clock = FakeClock::new();
    let mirrors = Mirrors::with_clock(sources, RetryPolicy::Rounds(2), clock.shared()).on_retry(move |retry| {
        if !retry.wait.is_zero() {
            slots.lock().unwrap().push(env.slots().unwrap());
        }
    });
    let (state, journal, times) = (robot.state(), Journal::silent(), Mutex::new(Vec::new()));
    let medium = RecoveryPartition::directory(robot.recovery.path());
    let learn_time = |created_unix_s| times.lock().unwrap().push(created_unix_s);
    let mut job = robot.fixture.job(&mirrors, &robot.target, Some(&state), &journal);
    job.resources.renewal = Some(Renewal { medium: &medium, source: &mirrors, booted: Some(Slot::B) });
    job.resources.learn_time = &learn_time;
    job.identity.product = "another".into();
    let error = recovery::run(&job, job.read_record().as_ref()).unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert_eq!(*during.lock().unwrap(), [SlotState { active: Some(Slot::B), trial: None }]);
    assert_eq!(*times.lock().unwrap(), [0; 0], "a release for another machine says nothing about the time");
}

#[test]
fn a_new_recovery_that_does_not_come_up_is_not_tried_again() {
    let mut robot = Robot::new();
    robot.recover_from(Slot::A);
    assert_eq!(robot.start_next(), Slot::B);
    // It panics, hangs, or finds no network. The same files are not started again, however often the release is
    // installed.
    for _ in 0..2 {
        assert_eq!(robot.start_next(), Slot::A);
        robot.recover_from(Slot::A);
        assert_eq!(robot.slots(), SlotState { active: Some(Slot::A), trial: Some(Trial::Tried(Slot::B)) });
    }
    // What the next release brings is.
    publish(&mut robot.fixture, "3");
    robot.recover_from(Slot::A);
    assert!(robot.holds(Slot::B, "3"));
    assert_eq!(robot.start_next(), Slot::B);
    robot.recover_from(Slot::B);
    assert_eq!(robot.slots(), SlotState { active: Some(Slot::B), trial: None });
}

#[test]
fn a_new_recovery_that_only_compared_the_system_is_still_on_trial() {
    let robot = Robot::new();
    robot.recover_from(Slot::A);
    assert_eq!(robot.start_next(), Slot::B);
    let (state, journal, nowhere) = (robot.state(), Journal::silent(), Directory::new("/nonexistent"));
    let medium = RecoveryPartition::directory(robot.recovery.path());
    let mut job = robot.fixture.job(&nowhere, &robot.target, Some(&state), &journal);
    job.resources.renewal = Some(Renewal { medium: &medium, source: &nowhere, booted: Some(Slot::B) });
    let installed = state.installed(&robot.fixture.keys).unwrap();
    let proof = recovery::compare(&job, &installed).unwrap();
    recovery::start_again(&job, proof, &installed).unwrap();
    assert_eq!(robot.slots(), SlotState { active: Some(Slot::A), trial: Some(Trial::Due(Slot::B)) });
}

#[test]
fn a_release_without_a_recovery_changes_nothing() {
    let mut robot = Robot::new();
    robot.fixture.publish(sample_image(300, 1), |_| {});
    robot.recover_from(Slot::A);
    assert!(robot.holds(Slot::A, "1") && !robot.recovery.path().join("slots/b").exists());
    assert_eq!(robot.next(), Some(Slot::A));
    // Nor does one with half of one, and the system is installed all the same.
    let file = robot.fixture.dir.path().join("recovery/vmlinuz");
    robot.fixture.publish(sample_image(300, 1), |spec| spec.files = vec![("recovery/vmlinuz".into(), file)]);
    robot.recover_from(Slot::A);
    assert_eq!((robot.next(), robot.recovery.path().join("slots/b").exists()), (Some(Slot::A), false));
}

#[test]
fn a_cut_or_error_at_every_step_leaves_the_slot_in_use_and_the_pointer() {
    let mut steps = 0;
    loop {
        for torn in [false, true] {
            let robot = Robot::new();
            let inner = RecoveryPartition::directory(robot.recovery.path());
            let failing = Failing { inner, left: Mutex::new(steps), torn };
            // The system is installed whatever becomes of the recovery.
            let report = robot.recover(&failing, &robot.source(), Slot::A).unwrap();
            assert_eq!(report.serial, 2);
            assert!(robot.holds(Slot::A, "1"), "step {steps}");
            let env = robot.state().boot_env().load_or_empty().unwrap();
            assert_eq!(env.get("reflash_tries"), Some("3"));
            if *failing.left.lock().unwrap() > 0 {
                assert!(robot.holds(Slot::B, "2") && robot.next() == Some(Slot::B) && steps > 8, "{steps}");
                return;
            }
            // All of it may be there when the last step succeeds as the last one allowed.
            assert!(robot.next() == Some(Slot::A) || robot.holds(Slot::B, "2"), "step {steps}");
            // The next recovery mends what was left.
            robot.recover_from(Slot::A);
            assert!(robot.holds(Slot::A, "1") && robot.holds(Slot::B, "2") && robot.next() == Some(Slot::B));
        }
        steps += 1;
    }
}

#[test]
fn what_the_medium_does_not_keep_is_never_pointed_at() {
    /// Has lost a bit of everything when it is read again.
    struct Forgetful(RecoveryPartition);
    impl SlotStorage for Forgetful {
        fn open(&self, slot: Slot, file: &str) -> io::Result<Box<dyn Read>> {
            let mut content = Vec::new();
            self.0.open(slot, file)?.read_to_end(&mut content)?;
            content[0] ^= 1;
            Ok(Box::new(io::Cursor::new(content)))
        }
        fn clear(&self, slot: Slot) -> io::Result<()> {
            self.0.clear(slot)
        }
        fn write(&self, slot: Slot, file: &str, offset: u64, content: &[u8]) -> io::Result<()> {
            self.0.write(slot, file, offset, content)
        }
        fn sync(&self, slot: Slot, file: &str) -> io::Result<()> {
            self.0.sync(slot, file)
        }
        fn settle(&self) -> io::Result<()> {
            self.0.settle()
        }
    }
    let robot = Robot::new();
    let medium = Forgetful(RecoveryPartition::directory(robot.recovery.path()));
    robot.recover(&medium, &robot.source(), Slot::A).unwrap();
    assert!(robot.holds(Slot::A, "1") && robot.next() == Some(Slot::A));
}

#[test]
fn damaged_and_missing_objects_leave_the_recovery_as_it_is() {
    let robot = Robot::new();
    let object = robot.fixture.released.manifest.files.iter().find(|file| file.name == "recovery/vmlinuz").unwrap();
    let path = robot.fixture.tree().join(reflash::release::manifest::object_path(&object.object.blake3));
    let good = fs::read(&path).unwrap();
    let clock = FakeClock::new();
    let mirrors = || Mirrors::with_clock(vec![Box::new(robot.source())], RetryPolicy::Rounds(3), clock.shared());
    let medium = RecoveryPartition::directory(robot.recovery.path());
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 1;
    for bad in [Some(damaged), Some(good[..good.len() / 2].to_vec()), None] {
        match bad {
            Some(bad) => fs::write(&path, bad).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        robot.recover(&medium, &mirrors(), Slot::A).unwrap();
        assert!(robot.holds(Slot::A, "1") && robot.next() == Some(Slot::A));
        // The script is written last: the loader does not take the slot for whole.
        assert!(!robot.recovery.path().join("slots/b/grub.cfg").exists());
    }
    fs::write(&path, good).unwrap();
    robot.recover(&medium, &mirrors(), Slot::A).unwrap();
    assert!(robot.holds(Slot::B, "2") && robot.next() == Some(Slot::B));
}

#[test]
fn a_lost_environment_finds_its_slot_again_without_the_source() {
    let robot = Robot::new();
    robot.recover_from(Slot::A);
    fs::write(robot.state.path().join("grubenv"), [0; 512]).unwrap();
    // GRUB took the first slot; the system is intact and started again.
    let (state, journal, nowhere) = (robot.state(), Journal::silent(), Directory::new("/nonexistent"));
    let medium = RecoveryPartition::directory(robot.recovery.path());
    let start = || {
        let mut job = robot.fixture.job(&nowhere, &robot.target, Some(&state), &journal);
        job.resources.renewal = Some(Renewal { medium: &medium, source: &nowhere, booted: Some(Slot::A) });
        let installed = state.installed(&robot.fixture.keys).unwrap();
        let proof = recovery::compare(&job, &installed).unwrap();
        recovery::start_again(&job, proof, &installed).unwrap_or_else(|error| panic!("{}", chain(&error)));
    };
    start();
    assert_eq!(robot.next(), Some(Slot::B));
    // A slot that was spoiled meanwhile is not the one.
    fs::write(robot.recovery.path().join("slots/b/vmlinuz"), "spoiled").unwrap();
    start();
    assert_eq!(robot.start_next(), Slot::A);
    // And is written anew when there is a source again.
    robot.recover_from(Slot::A);
    assert!(robot.holds(Slot::B, "2") && robot.next() == Some(Slot::B));
}

/// A file as GRUB's own file system code reads it, which replays no journal and checks no checksum.
fn seen_by_grub(image: &Path, path: &str) -> Vec<u8> {
    let read = Command::new("grub-fstest").arg(image).args(["cat", path]).output().unwrap();
    assert!(read.status.success(), "{path}: {}", String::from_utf8_lossy(&read.stderr));
    read.stdout
}

#[test]
#[ignore = "needs root: also to install grub-fstest; cargo xtask test --tier root"]
fn grub_sees_the_new_slot_on_a_real_partition_before_it_is_pointed_at() {
    isolated("slots::grub_sees_the_new_slot_on_a_real_partition_before_it_is_pointed_at", || {
        let robot = Robot::new();
        let image = robot.fixture.dir.path().join("recovery.img");
        let text = image.to_str().unwrap();
        let tree = robot.recovery.path().to_str().unwrap();
        run("mke2fs", &["-q", "-t", "ext4", "-O", "^inline_data", "-d", tree, text, "32m"]);
        let attached = Command::new("losetup").args(["--find", "--show", text]).output().unwrap();
        let device = String::from_utf8(attached.stdout).unwrap().trim().to_owned();
        let root = Path::new("/run/recovery");
        Mount::device(&device, "ext4").read_only().on(root).unwrap();
        let medium = RecoveryPartition::mounted(Path::new(&device), root);
        robot.recover(&medium, &robot.source(), Slot::A).unwrap();
        assert_eq!(robot.next(), Some(Slot::B));
        assert!(fs::write(root.join("x"), "x").is_err(), "left open for writing");
        // Still mounted: what GRUB would see if the power were cut now.
        for (slot, version) in [(Slot::A, "1"), (Slot::B, "2")] {
            for (name, content) in recovery_of(version) {
                let seen = seen_by_grub(&image, &format!("/{}/{name}", slot.folder()));
                assert!(seen == content, "{slot} {name}");
            }
        }
        // A file is open: the partition cannot be settled, and nothing is pointed at what is not.
        let busy = fs::File::open(root.join("slots/b/vmlinuz")).unwrap();
        let mut robot = robot;
        publish(&mut robot.fixture, "3");
        robot.recover(&medium, &robot.source(), Slot::B).unwrap();
        assert_eq!(robot.next(), Some(Slot::B));
        assert!(fs::write(root.join("x"), "x").is_err(), "left open for writing");
        drop(busy);
        robot.recover(&medium, &robot.source(), Slot::B).unwrap();
        assert_eq!(robot.next(), Some(Slot::A));
        mount::unmount(root).unwrap();
        // A partition without room.
        let filler = tempfile::NamedTempFile::new().unwrap();
        fs::write(filler.path(), vec![0x55; 40 << 20]).unwrap();
        let fill = format!("write {} filler", filler.path().display());
        run("debugfs", &["-w", "-R", &fill, &device]);
        Mount::device(&device, "ext4").read_only().on(root).unwrap();
        publish(&mut robot.fixture, "4-is-longer");
        robot.recover(&medium, &robot.source(), Slot::A).unwrap();
        assert_eq!(robot.next(), Some(Slot::A));
        mount::unmount(root).unwrap();
        for (name, content) in recovery_of("3") {
            let seen = seen_by_grub(&image, &format!("/slots/a/{name}"));
            assert!(seen == content, "{name}");
        }
        run("losetup", &["--detach", &device]);
    });
}

#[test]
#[ignore = "needs root: to install grub-script-check; cargo xtask test --tier root"]
fn grub_takes_the_scripts_for_scripts() {
    let checkout = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap());
    for name in ["first.cfg", "grub.cfg", "slot.cfg"] {
        run("grub-script-check", &[checkout.join("grub").join(name).to_str().unwrap()]);
    }
}

/// Two releases later, the slot of the first one is spare again, and what it holds is known.
#[test]
fn a_recovery_that_was_renewed_stays_as_the_spare_one_of_the_next() {
    let mut robot = Robot::new();
    robot.recover_from(Slot::A);
    robot.recover_from(Slot::B);
    publish(&mut robot.fixture, "3");
    robot.recover_from(Slot::B);
    robot.recover_from(Slot::A);
    robot.recover_from(Slot::A);
    assert!(robot.holds(Slot::A, "3") && robot.holds(Slot::B, "2"));
    assert_eq!((robot.next(), robot.slots().trial), (Some(Slot::A), None));
}

/// A robot of today that has the recovery of the release in slot a, and nothing in slot b.
fn robot_with_one_slot() -> Robot {
    let robot = Robot::new();
    fill(robot.recovery.path(), Slot::A, "2");
    robot
}

#[test]
fn the_spare_slot_is_filled_and_mended_from_the_other_one_and_nothing_points_at_it() {
    let robot = robot_with_one_slot();
    robot.recover_from(Slot::A);
    assert!(robot.holds(Slot::B, "2"), "it was never filled");
    assert_eq!((robot.next(), robot.slots().trial), (Some(Slot::A), None));
    for file in FILES {
        let path = robot.recovery.path().join("slots/b").join(file);
        let mut content = fs::read(&path).unwrap();
        content[100] ^= 1;
        fs::write(&path, content).unwrap();
        robot.recover_from(Slot::A);
        assert!(robot.holds(Slot::B, "2"), "{file}");
        fs::remove_file(&path).unwrap();
        robot.recover_from(Slot::A);
        assert!(robot.holds(Slot::B, "2"), "{file} is missing");
    }
}

#[test]
fn an_older_recovery_in_the_spare_slot_stays_until_it_is_damaged() {
    let robot = robot_with_one_slot();
    fill(robot.recovery.path(), Slot::B, "1");
    robot.recover_from(Slot::A);
    robot.recover_from(Slot::A);
    assert!(robot.holds(Slot::B, "1"), "it worked once, and is whole");
    let path = robot.recovery.path().join("slots/b/vmlinuz");
    let mut content = fs::read(&path).unwrap();
    content[5000..6000].fill(0);
    fs::write(&path, content).unwrap();
    robot.recover_from(Slot::A);
    assert!(robot.holds(Slot::B, "2"), "what it was is nowhere, so it gets the recovery of the release");
    // The slot that this recovery was started from is never written.
    fill(robot.recovery.path(), Slot::B, "1");
    fs::remove_file(robot.recovery.path().join("slots/b/initramfs.img")).unwrap();
    robot.recover_from(Slot::B);
    assert!(robot.holds(Slot::A, "2") && !robot.recovery.path().join("slots/b/initramfs.img").exists());
}

#[test]
fn a_cut_while_the_spare_slot_is_mended_leaves_the_slot_in_use() {
    for (calls, torn) in (0..60).flat_map(|calls| [(calls, false), (calls, true)]) {
        let robot = robot_with_one_slot();
        let inner = RecoveryPartition::directory(robot.recovery.path());
        let medium = Failing { inner, left: Mutex::new(calls), torn };
        robot.recover(&medium, &robot.source(), Slot::A).unwrap();
        assert!(robot.holds(Slot::A, "2") && robot.next() == Some(Slot::A), "after {calls} calls");
        let is_done = *medium.left.lock().unwrap() > 0;
        assert!(!is_done || robot.holds(Slot::B, "2"), "after {calls} calls");
        robot.recover_from(Slot::A);
        assert!(robot.holds(Slot::B, "2"), "the next recovery goes on");
        if is_done {
            return;
        }
    }
    panic!("it never came to an end");
}
