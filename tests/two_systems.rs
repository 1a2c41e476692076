//! Two systems: a release is written beside the active one, GRUB is switched to it, and goes back, wherever the power
//! is cut.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Mutex;

use reflash::boot::decide::System;
use reflash::boot::grubenv::{GrubEnv, names};
use reflash::boot::systems::{SystemNumber, Systems, VARIABLES};
use reflash::boot::worth::Worth;
use reflash::chain::chain;
use reflash::fetch::{Check, Directory, FetchError, Sink, Source};
use reflash::flash::target::BlockTarget;
use reflash::jobs::floor::{Floor, FloorPlaces};
use reflash::jobs::recovery::other::{self, OtherSystem, scripts_know_two};
use reflash::jobs::recovery::{self, InstalledRelease, RecoveryError, RecoveryReport};
use reflash::jobs::state::StatePartition;
use reflash::jobs::systems;
use reflash::jobs::update::UpdateStore;
use reflash::jobs::update::beside::{switch, write_beside};
use reflash::jobs::update::stage::OtherParts;
use reflash::record::blackbox::BlackBox;
use reflash::record::journal::Journal;
use reflash::release::manifest::ManifestError;

use crate::support::{Faults, Fixture, MemoryTarget, sample_image};
use crate::undo::Recording;

const BLOCK: usize = 4096;
const IMAGE_BLOCKS: usize = 200;
const PARTITION: usize = 320 * BLOCK;
use SystemNumber::{First, Second};

/// A robot in memory with two systems, and the releases that it can get.
struct Robot {
    fixture: Rc<Fixture>,
    images: Vec<Vec<u8>>,
    targets: [MemoryTarget; 2],
    dir: tempfile::TempDir,
}

fn at(number: SystemNumber) -> usize {
    usize::from(number == Second)
}

/// What an image becomes by an update: every few blocks another one, and some moved.
fn updated(image: &[u8], seed: u64) -> Vec<u8> {
    let mut new = image.to_vec();
    let fresh = sample_image(IMAGE_BLOCKS, seed);
    for block in (seed as usize % 5..IMAGE_BLOCKS).step_by(9) {
        new[block * BLOCK..(block + 1) * BLOCK].copy_from_slice(&fresh[block * BLOCK..(block + 1) * BLOCK]);
    }
    // Some files lie elsewhere.
    let moved = new[40 * BLOCK..70 * BLOCK].to_vec();
    new[43 * BLOCK..73 * BLOCK].copy_from_slice(&moved);
    new
}

/// A source that counts what is asked of it.
struct Counting(Directory, Mutex<u64>);

impl Source for Counting {
    fn describe(&self) -> String {
        self.0.describe()
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        self.0.get_checked(wanted, check)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        *self.1.lock().unwrap() += range.end - range.start;
        self.0.get_range(path, range, sink)
    }
}

impl Robot {
    /// A robot with the first release on its first system, which called itself good, and nothing on the second.
    fn new() -> Self {
        let image = sample_image(IMAGE_BLOCKS, 3);
        let fixture = Fixture::with(image.clone(), |_| ());
        let targets = [MemoryTarget::new(vec![0xee; PARTITION]), MemoryTarget::new(vec![0; PARTITION])];
        let fixture = Rc::new(fixture);
        let robot = Self { fixture, images: vec![image], targets, dir: tempfile::tempdir().unwrap() };
        for slot in ["a", "b"] {
            robot.script(slot, "set script=3\n");
        }
        let source = Directory::new(robot.fixture.tree());
        robot.fixture.recover(&source, &robot.targets[0], Some(&robot.state(First))).unwrap();
        robot.call_good();
        robot
    }

    fn script(&self, slot: &str, text: &str) {
        let folder = self.recovery().join("slots").join(slot);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("grub.cfg"), text).unwrap();
    }

    fn recovery(&self) -> PathBuf {
        self.dir.path().join("recovery")
    }

    fn state(&self, number: SystemNumber) -> StatePartition {
        StatePartition::new(self.dir.path()).of_system(number)
    }

    fn env(&self) -> GrubEnv {
        self.state(First).boot_env().load_or_empty().unwrap()
    }

    fn systems(&self) -> Systems {
        Systems::of(&self.env())
    }

    fn floor(&self) -> Floor {
        let recovery = self.recovery();
        let state = Some(self.dir.path().to_owned());
        Floor::open(FloorPlaces { state, recovery: Some((recovery.clone(), recovery)), firmware: None })
    }

    fn publish(&mut self, seed: u64) {
        let image = updated(self.images.last().unwrap(), seed);
        Rc::get_mut(&mut self.fixture).unwrap().publish(image.clone(), |spec| spec.version = format!("{seed}"));
        self.images.push(image);
    }

    /// Carries out `work` with the recovery of this robot.
    fn with_job<T>(
        &self,
        source: &dyn Source,
        other: &dyn BlockTarget,
        worth: Option<Worth>,
        work: impl FnOnce(&recovery::RecoveryJob<'_>) -> T,
    ) -> T {
        let (systems, floor, journal) = (self.systems(), self.floor(), Journal::silent());
        let (state, beside) = (self.state(systems.active), self.state(systems.active.other()));
        let active = &self.targets[at(systems.active)];
        let mut job = self.fixture.job(source, active, Some(&state), &journal);
        job.resources.floor = Some(&floor);
        let (recovery, keys) = (self.recovery(), &self.fixture.keys);
        job.resources.other = Some(OtherSystem::look(other, &beside, systems, Some(&recovery), keys, &floor));
        let record = job.read_record();
        job.policy.installed = record.as_ref().map(|record| {
            let judged = InstalledRelease::judge(record, &self.env(), &floor.record(), Worth::Unknown);
            InstalledRelease { worth: worth.unwrap_or(judged.worth), ..judged }
        });
        (job.policy.active, job.policy.two_systems) = (System::Intact, true);
        work(&job)
    }

    fn update_on(&self, other: &dyn BlockTarget) -> Result<Option<RecoveryReport>, RecoveryError> {
        let source = Directory::new(self.fixture.tree());
        self.with_job(&source, other, None, |job| recovery::update_other(job, job.read_record().as_ref()))
    }

    /// What `reflash flash` does while the active system works.
    fn update(&self) -> Result<Option<RecoveryReport>, RecoveryError> {
        self.update_on(&self.targets[at(self.systems().active.other())])
    }

    /// What `reflash good` does to environment and records.
    fn call_good(&self) {
        let active = self.systems().active;
        let state = self.state(active);
        systems::settle(&state, &self.fixture.keys, &self.floor(), &Journal::silent()).unwrap();
        let record = state.record(&self.fixture.keys).unwrap();
        state.note_good_system(&record).unwrap();
        let _ = self.floor().note_good(record.as_good().unwrap());
        let serial = record.manifest().serial.to_string();
        let changes = [(names::TRIES, Some("3")), (names::BOOT_OK, Some("1")), (names::GOOD, Some(&*serial))];
        state
            .boot_env()
            .update(&[&changes[..], &[(names::BEFORE, None), (names::WAS_GOOD, Some("1"))]].concat())
            .unwrap();
    }

    /// What GRUB does when the active system has used up its tries: `None` is a recovery.
    fn exhaust(&self) -> Option<SystemNumber> {
        let systems = self.systems();
        let env = self.state(First).boot_env();
        if !systems.on_trial {
            env.update(&[(names::TRIES, Some("0"))]).unwrap();
            return None;
        }
        let back = systems.active.other();
        env.update(&[
            (names::SYSTEM, Some(back.name())),
            (names::BEFORE, Some("failed")),
            (names::BOOT_OK, Some("0")),
            (names::TRIES, Some("3")),
        ])
        .unwrap();
        Some(back)
    }

    fn holds(&self, number: SystemNumber, release: usize) -> bool {
        self.targets[at(number)].content()[..IMAGE_BLOCKS * BLOCK] == self.images[release][..]
    }

    /// The same robot with another content of one system, and a state of its own.
    fn after_cut(&self, state: &Path, number: SystemNumber, content: Vec<u8>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_tree(state, dir.path());
        let mut targets = [0, 1].map(|at| self.targets[at].content());
        targets[at(number)] = content;
        let fixture = Rc::clone(&self.fixture);
        Self { fixture, images: self.images.clone(), targets: targets.map(MemoryTarget::new), dir }
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry.unwrap();
        let path = to.join(entry.path().strip_prefix(from).unwrap());
        if entry.file_type().is_dir() {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::copy(entry.path(), path).unwrap();
        }
    }
}

#[test]
fn an_update_is_written_beside_the_active_system_and_an_undo_is_the_way_back() {
    let mut robot = Robot::new();
    robot.publish(11);
    let source = Counting(Directory::new(robot.fixture.tree()), Mutex::new(0));
    let report = robot.with_job(&source, &robot.targets[1], None, |job| {
        recovery::update_other(job, job.read_record().as_ref()).unwrap().unwrap()
    });
    assert!(robot.holds(First, 0) && robot.holds(Second, 1));
    // The second system was blank: what the first one holds was copied, at any place.
    let packed = robot.fixture.released.packed_bytes;
    let fetched = source.1.into_inner().unwrap();
    assert!(fetched < packed / 2 && report.totals.download_bytes < packed / 2, "{fetched} of {packed}");
    assert_eq!(robot.systems(), Systems { active: Second, on_trial: true, went_back: false });
    let env = robot.env();
    let values = [names::TRIES, names::BOOT_OK, names::GOOD, names::WAS_GOOD].map(|name| env.get(name).unwrap());
    assert_eq!(values, ["3", "0", "1", "0"]);
    assert_eq!((env.get(names::RECOVERING), env.get(names::UNDO)), (None, None));
    robot.call_good();
    assert_eq!(robot.systems(), Systems { active: Second, on_trial: false, went_back: false });
    // Nothing new: the active system has it.
    assert!(robot.update().unwrap().is_none());
    // The next one goes to the first system, whose release is given up.
    robot.publish(12);
    robot.update().unwrap().unwrap();
    assert!(robot.holds(First, 2) && robot.holds(Second, 1));
    robot.call_good();
    let back = other::possible(&robot.state(Second), &robot.fixture.keys, &robot.floor()).unwrap();
    assert_eq!((back.serial, back.kept_bytes), (2, 0));
    // Without a network, and without a write.
    let writes = robot.targets.each_ref().map(|target| target.writes().len());
    robot.with_job(&Directory::new("/nowhere"), &robot.targets[1], None, |job| recovery::undo(job, None).unwrap());
    assert_eq!(robot.systems(), Systems { active: Second, on_trial: false, went_back: false });
    assert_eq!(robot.targets.each_ref().map(|target| target.writes().len()), writes);
}

/// A release that was halted, or that a person does not want, after GRUB was switched to it and before the restart.
#[test]
fn a_switch_that_was_not_started_is_taken_back_by_one_write() {
    let mut robot = Robot::new();
    let before = robot.env();
    assert!(!systems::is_switched(robot.systems(), First));
    robot.publish(11);
    robot.update().unwrap().unwrap();
    assert!(systems::is_switched(robot.systems(), First) && !systems::is_switched(robot.systems(), Second));
    systems::switch_back(&robot.state(First), &robot.fixture.keys).unwrap();
    assert_eq!(robot.systems(), Systems::default());
    for name in [names::SYSTEM, names::BEFORE, names::TRIES, names::BOOT_OK, names::GOOD] {
        assert_eq!(robot.env().get(name), before.get(name), "{name}");
    }
    // As after each good boot.
    assert_eq!((robot.env().get(names::WAS_GOOD), robot.env().get(names::RECOVERIES)), (Some("1"), None));
    // The release is still there, and nothing of it is fetched or written again.
    let writes = robot.targets[1].writes().len();
    robot.update().unwrap().unwrap();
    assert!(systems::is_switched(robot.systems(), First) && robot.targets[1].writes().len() == writes);
    robot.call_good();
    assert!(!systems::is_switched(robot.systems(), Second));
}

/// `reflash request undo` between the switch and the restart, and the timer of `reflash update` after it.
#[test]
fn what_a_person_takes_back_before_the_restart_is_not_switched_to_again() {
    let mut robot = Robot::new();
    let before = robot.env();
    robot.publish(11);
    robot.update().unwrap().unwrap();
    let unwanted = robot.state(Second).record(&robot.fixture.keys).unwrap().id();
    let undone = systems::undo_switch(&robot.state(First), &robot.fixture.keys, &robot.floor()).unwrap();
    assert!(undone.unwrap().failed.is_empty() && robot.floor().refuses(&unwanted));
    assert_eq!(robot.systems(), Systems::default());
    assert_eq!(robot.env().get(names::TRIES), before.get(names::TRIES));
    // A power cut after that changes nothing, and the next round refuses it without a write.
    let writes = robot.targets[1].writes().len();
    assert!(matches!(robot.update(), Err(RecoveryError::Manifest(ManifestError::Refused { .. }))));
    assert!(robot.systems() == Systems::default() && robot.targets[1].writes().len() == writes);
    // The one that comes after it is taken, and a record that is gone is said.
    robot.publish(12);
    robot.update().unwrap().unwrap();
    fs::remove_dir_all(robot.dir.path().join("installed2")).unwrap();
    assert!(systems::undo_switch(&robot.state(First), &robot.fixture.keys, &robot.floor()).unwrap().is_none());
    assert_eq!(robot.systems(), Systems::default());
}

#[test]
fn an_update_is_prepared_at_leisure_and_the_switch_has_only_to_compare() {
    let mut robot = Robot::new();
    robot.publish(11);
    let store = robot.dir.path().join("store");
    let tree = Directory::new(robot.fixture.tree());
    let release = robot.with_job(&tree, &robot.targets[1], None, |job| {
        recovery::fetch_release(job, job.read_record().as_ref()).unwrap()
    });
    let others = OtherParts::default();
    let write = |source: &dyn Source, other: &dyn BlockTarget| {
        robot.with_job(source, other, None, |job| {
            write_beside(job, job.read_record().as_ref(), &release, &others, &store, |_, totals| {
                assert!(totals.download_bytes > 0);
            })
        })
    };
    // A disk that ends in the middle of it, and a network that does.
    let faults = Faults { fail_writes_from: Some(4), ..Faults::default() };
    write(&tree, &MemoryTarget::faulty(vec![0; PARTITION], faults)).unwrap_err();
    assert_eq!(assert_whole(&robot, "a disk that fails"), First);
    let none = Directory::new("/nowhere");
    write(&none, &robot.targets[1]).unwrap_err();
    assert!(write(&tree, &robot.targets[1]).unwrap());
    assert!(robot.holds(First, 0) && robot.holds(Second, 1));
    // GRUB goes on starting the active one, and nothing leads to the other.
    assert_eq!(robot.systems(), Systems::default());
    assert_eq!((robot.env().get(names::UNDO), robot.env().get(names::RECOVERING)), (None, None));
    let kept = UpdateStore::open(&store, Path::new("")).unwrap();
    assert!(kept.is_complete() && kept.is_whole().unwrap());
    assert!(kept.bytes().1 < 100_000, "only what is small is stored: {:?}", kept.bytes());
    // A block that only the new image has and that went bad meanwhile is fetched again. Without a network nothing is
    // switched.
    let switched = |source: &dyn Source| {
        robot.with_job(source, &robot.targets[1], None, |job| switch(job, job.read_record().as_ref(), &release, &store))
    };
    robot.targets[1].write_at(118 * BLOCK as u64, &[0xdb; BLOCK]).unwrap();
    switched(&none).unwrap_err();
    assert_eq!(assert_whole(&robot, "a switch that failed"), First);
    let writes = robot.targets[1].writes().len();
    let report = switched(&tree).unwrap().unwrap();
    assert!(report.totals.changed_bytes() <= 64 * BLOCK as u64, "{:?}", report.totals);
    assert!(robot.targets[1].writes().len() > writes && robot.holds(Second, 1));
    assert_eq!(robot.systems(), Systems { active: Second, on_trial: true, went_back: false });
}

#[test]
fn a_release_that_was_replaced_while_it_waited_gives_way_to_the_next() {
    let mut robot = Robot::new();
    robot.publish(11);
    let store = robot.dir.path().join("store");
    let source = Directory::new(robot.fixture.tree());
    let release = robot.with_job(&source, &robot.targets[1], None, |job| {
        recovery::fetch_release(job, job.read_record().as_ref()).unwrap()
    });
    let others = OtherParts::default();
    let prepared = robot.with_job(&source, &robot.targets[1], None, |job| {
        write_beside(job, job.read_record().as_ref(), &release, &others, &store, |_, _| ()).unwrap()
    });
    assert!(prepared);
    // The next one takes its place: the other system is written over, from what is there.
    robot.publish(12);
    let next = robot.with_job(&source, &robot.targets[1], None, |job| {
        recovery::fetch_release(job, job.read_record().as_ref()).unwrap()
    });
    let prepared = robot.with_job(&source, &robot.targets[1], None, |job| {
        write_beside(job, job.read_record().as_ref(), &next, &others, &store, |_, totals| {
            assert!(totals.changed_bytes() < (IMAGE_BLOCKS / 2 * BLOCK) as u64, "{totals:?}");
        })
    });
    assert!(prepared.unwrap() && robot.holds(Second, 2) && robot.holds(First, 0));
    robot.with_job(&Directory::new(robot.fixture.tree()), &robot.targets[1], None, |job| {
        let report = switch(job, job.read_record().as_ref(), &next, &store).unwrap().unwrap();
        assert_eq!(report.totals.changed_bytes(), 0, "nothing was left to do");
    });
    assert_eq!(robot.systems(), Systems { active: Second, on_trial: true, went_back: false });
}

#[test]
fn a_system_that_does_not_come_up_is_gone_back_from_and_its_release_is_refused() {
    let mut robot = Robot::new();
    robot.publish(11);
    robot.update().unwrap().unwrap();
    assert_eq!(robot.exhaust(), Some(First));
    assert_eq!(robot.systems(), Systems { active: First, on_trial: false, went_back: true });
    // What is gone back to was good, whatever the environment says of the boots since.
    robot.with_job(&Directory::new("/nowhere"), &robot.targets[1], None, |job| {
        assert_eq!(job.policy.installed.unwrap().worth, Worth::Before);
        assert!(!job.resources.other.unwrap().is_good);
    });
    let (state, keys) = (robot.state(First), &robot.fixture.keys);
    let sentence = systems::settle(&state, keys, &robot.floor(), &Journal::silent()).unwrap().unwrap();
    assert!(sentence.starts_with("11 (serial 2) was taken back"), "{sentence}");
    assert_eq!(systems::settle(&state, keys, &robot.floor(), &Journal::silent()).unwrap(), None);
    let black_box = BlackBox::open_read_only(&state.blackbox_path()).unwrap();
    let undone = black_box.attempts().last().unwrap().undone.clone().unwrap();
    assert_eq!((undone.serial, undone.version.as_deref()), (Some(2), Some("11")));
    robot.call_good();
    // It is not taken again by itself; the next one is.
    let error = robot.update().unwrap_err();
    assert!(chain(&error).contains("serial 2"), "{}", chain(&error));
    assert!(other::possible(&robot.state(Second), keys, &robot.floor()).is_err(), "no undo leads to it");
    robot.publish(12);
    robot.update().unwrap().unwrap();
    assert!(robot.holds(Second, 2) && robot.holds(First, 0));
}

#[test]
fn a_recovery_repairs_the_active_system_and_never_writes_the_only_good_one() {
    let mut robot = Robot::new();
    robot.publish(11);
    robot.update().unwrap().unwrap();
    robot.call_good();
    // Damage of the release that is offered is repaired where it is.
    robot.targets[1].write_at(20 * BLOCK as u64, &[0xdb; 4 * BLOCK]).unwrap();
    let source = Directory::new(robot.fixture.tree());
    robot.with_job(&source, &robot.targets[0], None, |job| recovery::run(job, job.read_record().as_ref()).unwrap());
    assert!(robot.holds(First, 0) && robot.holds(Second, 1));
    assert_eq!(robot.systems(), Systems { active: Second, on_trial: false, went_back: false });
    // A release that never came up gives way to the next one, and GRUB goes back to the good one if that fails too.
    robot.publish(12);
    let worth = Some(Worth::Never);
    robot.with_job(&source, &robot.targets[0], worth, |job| recovery::run(job, job.read_record().as_ref()).unwrap());
    assert!(robot.holds(First, 0) && robot.holds(Second, 2));
    assert_eq!(robot.systems(), Systems { active: Second, on_trial: true, went_back: false });
    // The good one lost a block: it is not switched to.
    robot.targets[0].write_at(30 * BLOCK as u64, &[0xdb; BLOCK]).unwrap();
    let error = robot.with_job(&source, &robot.targets[0], None, |job| recovery::undo(job, None).unwrap_err());
    assert!(chain(&error).contains("damaged"), "{}", chain(&error));
    assert_eq!(robot.systems().active, Second);
}

#[test]
fn an_older_boot_script_in_either_slot_keeps_the_first_system_the_only_one() {
    let mut robot = Robot::new();
    robot.publish(11);
    for old in ["set script=2\n", "set script=whole\n", "set scr"] {
        robot.script("b", old);
        assert!(!scripts_know_two(&robot.recovery()));
        assert!(robot.update().unwrap().is_none(), "{old:?}");
        assert_eq!(robot.env().get(names::SYSTEM), None);
    }
    let writes = robot.targets[1].writes().len();
    // A recovery then does what it does with one system, and the environment is that of such a robot.
    let source = Directory::new(robot.fixture.tree());
    robot.with_job(&source, &robot.targets[1], None, |job| recovery::run(job, job.read_record().as_ref()).unwrap());
    assert!(robot.holds(First, 1) && robot.targets[1].writes().len() == writes);
    assert!(robot.env().iter().all(|(name, _)| !VARIABLES.contains(&name)));
    robot.script("b", "set script=3\n");
    robot.call_good();
    robot.publish(12);
    assert!(robot.update().unwrap().is_some());
}

#[test]
fn a_lost_environment_leads_to_the_system_that_was_good_last() {
    let mut robot = Robot::new();
    robot.publish(11);
    let active = |robot: &Robot| {
        let good = robot.floor().record().good.map(|good| good.release);
        systems::look(&robot.state(First), good).unwrap().active
    };
    let lose = |robot: &Robot| fs::write(robot.dir.path().join("grubenv"), [0; 512]).unwrap();
    robot.update().unwrap().unwrap();
    let before = fs::read(robot.dir.path().join("grubenv")).unwrap();
    lose(&robot);
    assert_eq!(active(&robot), First, "the second one never called itself good");
    fs::write(robot.dir.path().join("grubenv"), before).unwrap();
    robot.call_good();
    lose(&robot);
    assert_eq!(active(&robot), Second);
}

/// What GRUB may start of this robot, and that all of it is whole: the active system, and the one that it goes back to.
fn assert_whole(robot: &Robot, what: &str) -> SystemNumber {
    let systems = robot.systems();
    let is_whole = |number| (0..robot.images.len()).any(|release| robot.holds(number, release));
    assert_ne!(robot.env().get(names::RECOVERING), Some("1"), "{what}");
    assert!(is_whole(systems.active), "{what}: the active system {:?} is half written", systems.active);
    assert!(!systems.on_trial || is_whole(systems.active.other()), "{what}: GRUB goes back to half a system");
    // What its record names is what it holds, or it has none.
    for number in [First, Second] {
        let keys = &robot.fixture.keys;
        if let Some(record) = robot.state(number).record(keys) {
            let release = record.manifest().serial as usize - 1;
            assert!(robot.holds(number, release), "{what}: system {number:?} does not hold what its record names");
        }
    }
    systems.active
}

/// Goes on from a state that a cut left: the update is done again, comes up, and the one after that does too.
fn assert_goes_on(robot: &Robot, what: &str) {
    if robot.systems().on_trial {
        robot.call_good();
    }
    robot.update().unwrap_or_else(|error| panic!("{what}: {}", chain(&error)));
    robot.call_good();
    let active = assert_whole(robot, what);
    assert!(robot.holds(active, robot.images.len() - 1), "{what}");
}

/// Cuts the power at each write of the other system, with what was not flushed lost, whole or torn, and between the
/// changes of the state partition. Returns the number of states.
fn cut_everywhere(seeds: u64, go_on_every: usize) -> usize {
    let mut states = 0;
    for first_seed in [11, 21] {
        let mut robot = Robot::new();
        if first_seed == 21 {
            // The other way round, over a release that is given up.
            robot.publish(20);
            robot.update().unwrap().unwrap();
            robot.call_good();
        }
        robot.publish(first_seed);
        let target = robot.systems().active.other();
        let before = robot.targets[at(target)].content();
        let copy = robot.after_cut(robot.dir.path(), target, before.clone());
        let recording = Recording::of(before.clone());
        // What the state partition has from the first byte on.
        let failing = MemoryTarget::faulty(before.clone(), Faults { fail_writes_from: Some(0), ..Faults::default() });
        let begun = robot.after_cut(robot.dir.path(), target, before.clone());
        begun.update_on(&failing).unwrap_err();
        copy.update_on(&recording).unwrap().unwrap();
        let log = recording.log.into_inner().unwrap();
        let written = recording.medium.content();
        for seed in 1..=seeds {
            for (end, content) in crate::undo::cuts(&before, &log, seed * 7919) {
                let cut = robot.after_cut(begun.dir.path(), target, content);
                let what = format!("to {target:?}, seed {seed}, {end} of {}", log.len());
                assert_eq!(assert_whole(&cut, &what), target.other(), "{what}");
                states += 1;
                if states % go_on_every == 0 {
                    assert_goes_on(&cut, &what);
                }
            }
        }
        // The record is removed file by file while the system is what it was, and made file by file once it is written.
        let directory = if target == First { "installed" } else { "installed2" };
        let files = ["good", "manifest.json", "manifest.json.minisig", "system.idx"];
        let state_of = |files: &[&str], from: &Robot, env: &Robot, content: &[u8]| {
            let cut = robot.after_cut(env.dir.path(), target, content.to_vec());
            let _ = fs::remove_dir_all(cut.dir.path().join(directory));
            fs::create_dir(cut.dir.path().join(directory)).unwrap();
            for file in files {
                let name = Path::new(directory).join(file);
                let _ = fs::copy(from.dir.path().join(&name), cut.dir.path().join(&name));
            }
            cut
        };
        for removed in 0..=files.len() {
            let what = format!("{removed} files of the record are removed");
            let cut = state_of(&files[removed..], &robot, &begun, &before);
            assert_eq!(assert_whole(&cut, &what), target.other());
            assert_goes_on(&cut, &what);
            let made = &["system.idx", "manifest.json.minisig", "manifest.json"][..removed.min(3)];
            let what = format!("{made:?} of the record are made");
            let cut = state_of(made, &copy, &begun, &written);
            assert_eq!(assert_whole(&cut, &what), target.other());
            assert_goes_on(&cut, &what);
            states += 2;
        }
        let done = robot.after_cut(copy.dir.path(), target, written);
        assert_eq!(assert_whole(&done, "the end"), target);
        assert_goes_on(&done, "the end");
    }
    states
}

#[test]
fn a_cut_at_any_instant_leaves_the_active_system_and_a_way_on() {
    let states = cut_everywhere(2, 40);
    assert!(states > 200, "{states}");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_ten_thousand_states_of_a_cut_leave_the_active_system_and_a_way_on() {
    let states = cut_everywhere(120, 40);
    assert!(states > 10_000, "{states}");
}

#[test]
fn a_disk_that_does_not_take_the_other_system_leaves_the_active_one() {
    let mut robot = Robot::new();
    robot.publish(11);
    for fail_from in [0, 1, 3] {
        let faults = Faults { fail_writes_from: Some(fail_from), ..Faults::default() };
        let failing = MemoryTarget::faulty(vec![0; PARTITION], faults);
        robot.update_on(&failing).unwrap_err();
        assert_eq!(assert_whole(&robot, "a disk that fails"), First);
    }
    // One that is too small is refused before anything is changed.
    let env = fs::read(robot.dir.path().join("grubenv")).unwrap();
    let error = robot.update_on(&MemoryTarget::new(vec![0; 100 * BLOCK])).unwrap_err();
    assert!(chain(&error).contains("larger"), "{}", chain(&error));
    assert_eq!(fs::read(robot.dir.path().join("grubenv")).unwrap(), env);
}
