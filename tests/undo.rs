//! Undo: what is kept while a release is written over another one, and that it leads back, wherever the power is cut.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Mutex;

use reflash::boot::worth::Worth;
use reflash::chain::chain;
use reflash::fetch::{Check, Directory, FetchError, FetchErrorKind, Sink, Source};
use reflash::flash::target::{BlockTarget, DeviceTarget};
use reflash::flash::undo::{self, UndoObstacle};
use reflash::jobs::floor::Floor;
use reflash::jobs::recovery::{self, InstalledRelease, Keep, RecoveryError, RecoveryReport};
use reflash::jobs::state::StatePartition;
use reflash::record::journal::Journal;
use reflash::release::digest::Digest;
use reflash::release::index::{Index, Pack};
use reflash::release::manifest::object_path;

use crate::frames::flags;
use crate::groups::Watched;
use crate::support::{Faults, Fixture, MemoryTarget, sample_image};

const BLOCK: usize = 4096;
const CHUNK: usize = 16 * 1024;

/// A robot in memory: partition, state, and the releases that it can get.
struct Robot {
    fixture: Rc<Fixture>,
    target: MemoryTarget,
    state: StatePartition,
    _dir: tempfile::TempDir,
}

impl Robot {
    /// A robot with `image` installed on a partition of so many bytes.
    fn with(image: Vec<u8>, partition_bytes: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StatePartition::new(dir.path());
        let fixture = Rc::new(Fixture::with(image, |_| ()));
        let target = MemoryTarget::new(vec![0xee; partition_bytes]);
        let robot = Self { fixture, target, state, _dir: dir };
        robot.install(Keep::Kept).unwrap();
        robot
    }

    fn publish(&mut self, image: Vec<u8>, version: &str) {
        self.fixture_mut().publish(image, |spec| spec.version = version.into());
    }

    fn fixture_mut(&mut self) -> &mut Fixture {
        Rc::get_mut(&mut self.fixture).expect("no copy of the robot is in use")
    }

    /// Installs what is published.
    fn install(&self, keep: Keep) -> Result<RecoveryReport, RecoveryError> {
        install(&self.fixture, &self.target, &self.state, keep)
    }

    fn undo(&self) -> Result<RecoveryReport, RecoveryError> {
        undo(&self.fixture, &self.target, Some(&self.state), None)
    }

    fn begins_with(&self, image: &[u8]) -> bool {
        self.target.content()[..image.len()] == *image
    }

    /// Puts other bytes on the partition.
    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut content = self.target.content();
        change(&mut content);
        self.with_content(content)
    }

    /// The same robot with another content of its partition, and a state of its own.
    fn with_content(&self, content: Vec<u8>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_tree(self._dir.path(), dir.path());
        let fixture = Rc::clone(&self.fixture);
        Self { fixture, target: MemoryTarget::new(content), state: StatePartition::new(dir.path()), _dir: dir }
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry.unwrap();
        let path = to.join(entry.path().strip_prefix(from).unwrap());
        if entry.file_type().is_dir() {
            std::fs::create_dir_all(path).unwrap();
        } else {
            std::fs::copy(entry.path(), path).unwrap();
        }
    }
}

fn install(
    fixture: &Fixture,
    target: &dyn BlockTarget,
    state: &StatePartition,
    keep: Keep,
) -> Result<RecoveryReport, RecoveryError> {
    let source = Directory::new(fixture.tree());
    fixture.recover_as(&source, target, Some(state), |job| job.policy.keep = keep)
}

fn undo(
    fixture: &Fixture,
    target: &dyn BlockTarget,
    state: Option<&StatePartition>,
    network: Option<&dyn Source>,
) -> Result<RecoveryReport, RecoveryError> {
    let journal = Journal::silent();
    recovery::undo(&fixture.job(&Unplugged, target, state, &journal), network)
}

/// A network that must not be used.
struct Unplugged;

impl Source for Unplugged {
    fn describe(&self) -> String {
        "unplugged".into()
    }

    fn get_checked(&self, wanted: &[(&str, u64)], _check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        panic!("{wanted:?} was asked for")
    }

    fn get_range(&self, path: &str, range: Range<u64>, _sink: Sink<'_>) -> Result<(), FetchError> {
        panic!("{path} {range:?} was asked for")
    }
}

/// What an image becomes by a small update: some blocks have changed in place.
fn updated(image: &[u8], every: usize, seed: u64) -> Vec<u8> {
    let mut new = image.to_vec();
    let fresh = sample_image(16, seed);
    for at in (every / 2..image.len() / BLOCK).step_by(every) {
        new[at * BLOCK..(at + 1) * BLOCK].copy_from_slice(&fresh[..BLOCK]);
        new[at * BLOCK] = at as u8;
        new[at * BLOCK + 1] = (at >> 8) as u8;
    }
    new
}

const IMAGE_BLOCKS: usize = 800;
const PARTITION: usize = 3 * IMAGE_BLOCKS * BLOCK;

#[test]
fn an_update_is_undone_without_a_network_byte_for_byte() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    assert!(matches!(undo::possible(&robot.target, &robot.fixture.keys), Err(UndoObstacle::Nothing)));
    let before = robot.fixture.released.manifest.clone();
    robot.publish(updated(&old, 50, 77), "2");
    let report = robot.install(Keep::Installed).unwrap();
    assert!(robot.begins_with(&robot.fixture.image));
    assert!(report.totals.undo_needed_bytes > 0 && report.totals.undo_needed_bytes < report.totals.undo_room_bytes);
    let possible = undo::possible(&robot.target, &robot.fixture.keys).unwrap();
    assert_eq!((possible.version.as_str(), possible.serial), ("1", before.serial));
    // 16 chunks of 200 change, and the first one.
    assert!(possible.kept_bytes < (18 * CHUNK + 32 * 1024) as u64, "{possible:?}");
    assert!(possible.kept_bytes <= report.totals.undo_needed_bytes, "the estimate is a bound");

    let journal = Journal::silent();
    let job = robot.fixture.job(&Unplugged, &robot.target, None, &journal);
    let (manifest, estimated) = recovery::estimate_undo(&job).unwrap();
    let report = robot.undo().unwrap();
    assert!(robot.begins_with(&old));
    assert_eq!((report.version.as_str(), report.totals.download_bytes), ("1", 0));
    assert_eq!((manifest, estimated), (before.clone(), report.totals));
    assert!(report.totals.kept_bytes > 0);
    let installed = robot.state.installed(&robot.fixture.keys).unwrap();
    assert_eq!(installed.manifest, before);
    let env = robot.state.boot_env().load_or_empty().unwrap();
    assert_eq!((env.get("reflash_tries"), env.get("reflash_recovering")), (Some("3"), None));
    // It is still kept: the same once more costs nothing.
    let writes = robot.target.writes().len();
    robot.undo().unwrap();
    assert_eq!(robot.target.writes().len(), writes);
}

#[test]
fn nothing_is_kept_for_nothing() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    robot.publish(updated(&old, 50, 77), "2");
    robot.install(Keep::Kept).unwrap();
    let behind = robot.target.content()[old.len()..].to_vec();
    assert!(behind.iter().all(|byte| *byte == 0xee), "nothing was good, so nothing is kept");
    // A repair destroys nothing of what it repairs.
    let robot = robot.change(|content| content[5 * CHUNK] ^= 1);
    robot.install(Keep::Installed).unwrap();
    assert!(robot.begins_with(&robot.fixture.image));
    assert!(robot.target.content()[old.len()..].iter().all(|byte| *byte == 0xee));
}

#[test]
fn the_last_good_release_stays_the_target_through_updates_that_are_never_good() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    robot.publish(updated(&old, 50, 77), "2");
    robot.install(Keep::Installed).unwrap();
    let first = undo::possible(&robot.target, &robot.fixture.keys).unwrap();
    robot.publish(updated(&old, 33, 78), "3");
    robot.install(Keep::Kept).unwrap();
    robot.publish(updated(&old, 7, 79), "4");
    robot.install(Keep::Kept).unwrap();
    let last = undo::possible(&robot.target, &robot.fixture.keys).unwrap();
    assert_eq!((first.version, &last.version), ("1".into(), &"1".to_owned()));
    assert!(last.kept_bytes > first.kept_bytes);
    robot.undo().unwrap();
    assert!(robot.begins_with(&old));
    // And on from there: what is kept already is not kept twice.
    let before = undo::possible(&robot.target, &robot.fixture.keys).unwrap().kept_bytes;
    robot.install(Keep::Installed).unwrap();
    assert_eq!(undo::possible(&robot.target, &robot.fixture.keys).unwrap().kept_bytes, before);
    robot.undo().unwrap();
    assert!(robot.begins_with(&old));
}

#[test]
fn what_was_good_last_takes_the_place_of_what_was_kept() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    let second = updated(&old, 5, 77);
    robot.publish(second.clone(), "2");
    robot.install(Keep::Installed).unwrap();
    let large = undo::possible(&robot.target, &robot.fixture.keys).unwrap();
    robot.publish(updated(&second, 100, 78), "3");
    robot.install(Keep::Installed).unwrap();
    let possible = undo::possible(&robot.target, &robot.fixture.keys).unwrap();
    assert_eq!(possible.version, "2");
    assert!(possible.kept_bytes * 3 < large.kept_bytes, "it begins anew: {possible:?} {large:?}");
    robot.undo().unwrap();
    assert!(robot.begins_with(&second));
}

#[test]
fn what_was_overwritten_comes_back_from_the_disk_in_a_later_release_too() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    robot.publish(updated(&old, 10, 77), "2");
    robot.install(Keep::Installed).unwrap();
    // A release that takes everything back but one block.
    let mut third = old.clone();
    third[300 * BLOCK..301 * BLOCK].fill(9);
    robot.publish(third, "3");
    let report = robot.install(Keep::Kept).unwrap();
    assert!(robot.begins_with(&robot.fixture.image));
    assert!(report.totals.kept_bytes > 10 * report.totals.download_bytes, "{}", report.totals);
    // A damaged chunk comes from the disk, if it is there, although no server has it any more.
    let robot = robot.change(|content| content[15 * BLOCK] ^= 1);
    let index = Index::from_object(&std::fs::read(robot.fixture.index_path()).unwrap()).unwrap();
    for pack in index.packs() {
        std::fs::remove_file(robot.fixture.tree().join(object_path(&pack.digest))).unwrap();
    }
    robot.install(Keep::Kept).unwrap();
    assert!(robot.begins_with(&robot.fixture.image));
    robot.undo().unwrap();
    assert!(robot.begins_with(&old));
}

#[test]
fn images_of_every_size_are_undone() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let larger = [old.clone(), sample_image(200, 5)].concat();
    let smaller = updated(&old[..500 * BLOCK], 20, 6);
    let other = sample_image(IMAGE_BLOCKS + 3, 99);
    let (block, zeros) = (sample_image(1, 7), vec![0; IMAGE_BLOCKS * BLOCK]);
    for (version, new) in
        [("larger", larger), ("smaller", smaller), ("other", other), ("one block", block), ("zeros", zeros)]
    {
        let mut robot = Robot::with(old.clone(), PARTITION);
        robot.publish(new.clone(), "2");
        robot.install(Keep::Installed).unwrap();
        assert!(robot.begins_with(&new), "{version}");
        robot.undo().unwrap();
        assert!(robot.begins_with(&old), "{version}");
    }
}

#[test]
fn the_size_that_a_release_names_is_enough_for_any_update() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let named = Fixture::with(old.clone(), |_| ()).released.partition_bytes as usize;
    let mut robot = Robot::with(old.clone(), named.next_multiple_of(BLOCK));
    robot.publish(sample_image(IMAGE_BLOCKS, 99), "2");
    robot.install(Keep::Installed).unwrap();
    robot.undo().unwrap();
    assert!(robot.begins_with(&old));
}

#[test]
fn chunks_of_another_size_are_undone() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    robot.fixture_mut().publish(updated(&old, 50, 7), |spec| {
        (spec.version, spec.chunk_bytes) = ("2".into(), Some(64 * 1024));
    });
    robot.install(Keep::Installed).unwrap();
    robot.undo().unwrap();
    assert!(robot.begins_with(&old));
}

#[test]
fn without_room_the_update_goes_on_and_says_how_much_it_would_take() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    for room in [0, 1, 2, 3, 40] {
        let mut robot = Robot::with(old.clone(), old.len() + room * BLOCK);
        robot.publish(updated(&old, 10, 77), "2");
        let report = robot.install(Keep::Installed).unwrap();
        assert!(robot.begins_with(&robot.fixture.image));
        let totals = report.totals;
        assert!(totals.undo_needed_bytes > totals.undo_room_bytes, "{totals}");
        let obstacle = undo::possible(&robot.target, &robot.fixture.keys).unwrap_err();
        match room {
            0 | 1 => assert!(matches!(obstacle, UndoObstacle::Nothing), "{obstacle}"),
            _ => assert!(matches!(obstacle, UndoObstacle::NoRoom(room) if !room.is_enough()), "{obstacle}"),
        }
        let error = robot.undo().unwrap_err();
        assert!(matches!(error, RecoveryError::Undo(_)), "{}", chain(&error));
        assert!(robot.begins_with(&robot.fixture.image));
    }
}

#[test]
fn a_larger_image_takes_the_room_only_if_it_must() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    robot.publish(updated(&old, 50, 77), "2");
    robot.install(Keep::Installed).unwrap();
    let kept = undo::possible(&robot.target, &robot.fixture.keys).unwrap().kept_bytes as usize;
    // Up to what is kept, less what has to be added.
    let larger = |bytes: usize| [old.clone(), vec![7; (bytes - old.len()) / BLOCK * BLOCK]].concat();
    robot.publish(larger(PARTITION - kept - 16 * BLOCK), "3");
    robot.install(Keep::Kept).unwrap();
    let copy = robot.with_content(robot.target.content());
    copy.undo().unwrap();
    assert!(copy.begins_with(&old));
    drop(copy);
    robot.publish(larger(PARTITION - 2 * BLOCK), "4");
    robot.install(Keep::Kept).unwrap();
    assert!(robot.begins_with(&robot.fixture.image));
    assert!(matches!(undo::possible(&robot.target, &robot.fixture.keys), Err(UndoObstacle::NoRoom(_))));
    robot.publish(larger(PARTITION), "5");
    robot.install(Keep::Kept).unwrap();
    assert!(robot.begins_with(&robot.fixture.image));
}

/// A robot after an update, and the image before.
fn updated_robot() -> (Robot, Vec<u8>) {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    robot.publish(updated(&old, 50, 77), "2");
    robot.install(Keep::Installed).unwrap();
    (robot, old)
}

#[test]
fn damage_of_what_is_kept_is_found_before_anything_is_written() {
    let (robot, old) = updated_robot();
    let kept = undo::possible(&robot.target, &robot.fixture.keys).unwrap().kept_bytes as usize;
    let (mut refused, mut harmless) = (0, 0);
    for at in (PARTITION - kept..PARTITION).step_by(BLOCK / 2) {
        let robot = robot.change(|content| content[at + 100] ^= 0x10);
        match robot.undo() {
            Ok(_) => {
                harmless += 1;
                assert!(robot.begins_with(&old), "byte {at}");
            }
            Err(error) => {
                refused += 1;
                assert!(matches!(&error, RecoveryError::Undo(_)), "byte {at}: {}", chain(&error));
                assert!(!error.is_retryable() && robot.target.writes().is_empty(), "byte {at}: {}", chain(&error));
                // With a network, only what is damaged is fetched, if the rest can be read.
                let network = Directory::new(robot.fixture.tree());
                if let Ok(report) = undo(&robot.fixture, &robot.target, Some(&robot.state), Some(&network)) {
                    assert!(robot.begins_with(&old), "byte {at}");
                    assert_eq!(report.totals.download_bytes, 0, "what was fetched is kept first");
                }
            }
        }
    }
    // Padding, the older header, and whatever is there twice; but of chunks there is one copy.
    assert!(refused > 20 && harmless > 20, "{refused} {harmless}");
}

#[test]
fn an_unreadable_block_of_what_is_kept_never_costs_the_undo() {
    let (robot, old) = updated_robot();
    let kept = undo::possible(&robot.target, &robot.fixture.keys).unwrap().kept_bytes;
    let network = Directory::new(robot.fixture.tree());
    let mut local = 0;
    for block in (PARTITION as u64 - kept) / 4096..PARTITION as u64 / 4096 {
        let faults = Faults { unreadable: [block].into(), ..Faults::default() };
        let target = MemoryTarget::faulty(robot.target.content(), faults);
        // Headers, manifest, signature, index and directory are there twice.
        if undo(&robot.fixture, &target, None, None).is_ok() {
            local += 1;
        } else {
            let report = undo(&robot.fixture, &target, None, Some(&network));
            let of = PARTITION as u64 / 4096 - block;
            let report = report.unwrap_or_else(|error| panic!("{of} blocks before the end: {}", chain(&error)));
            assert_eq!(report.totals.download_bytes, 0, "what was fetched is kept first");
        }
        assert!(target.content()[..old.len()] == old[..], "block {block}");
    }
    assert!(local >= 10, "{local}");
}

#[test]
fn what_is_damaged_where_it_is_kept_is_kept_again_while_the_partition_has_it() {
    let (mut robot, old) = updated_robot();
    robot.undo().unwrap();
    let kept = undo::possible(&robot.target, &robot.fixture.keys).unwrap().kept_bytes as usize;
    robot.publish(updated(&old, 50, 78), "3");
    // The server has nothing of the release before any more.
    hide_packs_of_installed(&robot);
    for at in (PARTITION - kept..PARTITION).step_by(BLOCK) {
        let robot = robot.change(|content| content[at..at + BLOCK].iter_mut().for_each(|byte| *byte ^= 0x10));
        robot.install(Keep::Installed).unwrap();
        assert!(robot.begins_with(&robot.fixture.image));
        robot.undo().unwrap_or_else(|error| panic!("byte {at}: {}", chain(&error)));
        assert!(robot.begins_with(&old), "byte {at}");
    }
}

#[test]
fn headers_that_cannot_be_read_cost_no_undo_of_the_next_update() {
    let (mut robot, _) = updated_robot();
    let second = robot.fixture.image.clone();
    robot.publish(updated(&second, 50, 78), "3");
    let last = PARTITION as u64 / 4096;
    for unreadable in [last - 2..last, last - 1..last] {
        let faults = Faults { unreadable: unreadable.collect(), ..Faults::default() };
        let target = MemoryTarget::faulty(robot.target.content(), faults);
        install(&robot.fixture, &target, &robot.with_content(Vec::new()).state, Keep::Installed).unwrap();
        assert_eq!(undo::possible(&target, &robot.fixture.keys).unwrap().version, "2");
        undo(&robot.fixture, &target, None, None).unwrap();
        assert!(target.content()[..second.len()] == second[..]);
    }
}

#[test]
fn a_disk_that_does_not_take_what_is_kept_costs_the_undo_and_not_the_update() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    robot.publish(updated(&old, 50, 77), "2");
    let last = PARTITION as u64 / 4096;
    // One bad block: what is kept is written once more, below it. All blocks bad: there is no undo.
    for (bad, is_kept) in [(last - 3..last - 2, true), (last - 12..last - 11, true), (last - 700..last - 2, false)] {
        let faults = Faults { corrupt: bad.map(|block| (block, u32::MAX)).collect(), ..Faults::default() };
        let target = MemoryTarget::faulty(robot.target.content(), faults);
        install(&robot.fixture, &target, &robot.with_content(Vec::new()).state, Keep::Installed).unwrap();
        assert!(target.content()[..old.len()] == robot.fixture.image[..]);
        match undo::possible(&target, &robot.fixture.keys) {
            Ok(_) => {
                assert!(is_kept);
                undo(&robot.fixture, &target, None, None).unwrap();
                assert!(target.content()[..old.len()] == old[..]);
            }
            Err(obstacle) => assert!(!is_kept && matches!(obstacle, UndoObstacle::NotKept), "{obstacle}"),
        }
    }
}

#[test]
fn a_chunk_that_was_damaged_before_the_update_is_missed_and_named() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    robot.publish(updated(&old, 50, 77), "2");
    // Block 125 changes with the update; what its chunk held before is damaged.
    let robot = robot.change(|content| content[126 * BLOCK] ^= 1);
    let installed = robot.state.installed(&robot.fixture.keys).unwrap();
    let aside = hide_packs_of_installed(&robot);
    robot.install(Keep::Installed).unwrap();
    let possible = undo::possible(&robot.target, &robot.fixture.keys).unwrap();
    assert_eq!((possible.missing_chunks, possible.is_complete()), (1, false));
    assert!(matches!(possible.obstacle(), Some(UndoObstacle::Incomplete { chunks: 1, .. })), "{possible:?}");
    let writes = robot.target.writes().len();
    assert!(robot.undo().is_err() && robot.target.writes().len() == writes);
    // A server that does not have it any more changes nothing on the system either.
    let network = Directory::new(robot.fixture.tree());
    let error = undo(&robot.fixture, &robot.target, Some(&robot.state), Some(&network)).unwrap_err();
    assert!(matches!(error, RecoveryError::Undo(UndoObstacle::Incomplete { chunks: 1, .. })), "{}", chain(&error));
    assert!(robot.begins_with(&robot.fixture.image));
    for (path, hidden) in aside {
        std::fs::rename(hidden, path).unwrap();
    }
    // One that changes a byte which zstd passes over is not believed.
    let liar = Watched::new(&robot.fixture, &flags(&installed.index));
    let error = undo(&robot.fixture, &robot.target, Some(&robot.state), Some(&liar)).unwrap_err();
    assert!(matches!(error, RecoveryError::Undo(UndoObstacle::Incomplete { chunks: 1, .. })), "{}", chain(&error));
    // One that has it gives that one chunk, and no more.
    let report = undo(&robot.fixture, &robot.target, Some(&robot.state), Some(&network)).unwrap();
    assert!(robot.begins_with(&old));
    assert_eq!(report.totals.download_bytes, 0, "it was fetched and kept before the undo began");
    assert!(undo::possible(&robot.target, &robot.fixture.keys).unwrap().is_complete());
}

/// Takes the packs of the installed release away from the server, which has the next one already.
fn hide_packs_of_installed(robot: &Robot) -> Vec<(PathBuf, PathBuf)> {
    let installed = robot.state.installed(&robot.fixture.keys).unwrap();
    let hide = |pack: &Pack| {
        let path = robot.fixture.tree().join(object_path(&pack.digest));
        let hidden = path.with_extension("hidden");
        std::fs::rename(&path, &hidden).unwrap();
        (path, hidden)
    };
    installed.index.packs().iter().map(hide).collect()
}

#[test]
fn a_chunk_that_was_damaged_before_the_update_is_fetched_while_the_release_is_kept() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    robot.publish(updated(&old, 50, 77), "2");
    // In the middle and at the end of the image, one that changes and the first one, which has to be kept for a cut.
    let robot = robot.change(|content| [0, 126 * BLOCK, 775 * BLOCK].iter().for_each(|at| content[*at] ^= 1));
    robot.install(Keep::Installed).unwrap();
    assert!(undo::possible(&robot.target, &robot.fixture.keys).unwrap().is_complete());
    robot.undo().unwrap();
    assert!(robot.begins_with(&old));
}

#[test]
fn a_lost_chunk_that_the_new_release_has_elsewhere_needs_no_pack_of_the_old_one() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut new = updated(&old, 50, 77);
    // What chunk 31 held moves to the end, and something else takes its place.
    let moved = old[31 * CHUNK..32 * CHUNK].to_vec();
    new[31 * CHUNK..32 * CHUNK].fill(0x77);
    new.extend_from_slice(&moved);
    let mut robot = Robot::with(old.clone(), PARTITION);
    robot.publish(new, "2");
    let robot = robot.change(|content| content[31 * CHUNK + 5] ^= 1);
    hide_packs_of_installed(&robot);
    // The same pack holds both, if the second release took it over.
    let index = Index::from_object(&std::fs::read(robot.fixture.index_path()).unwrap()).unwrap();
    for pack in index.packs() {
        let path = robot.fixture.tree().join(object_path(&pack.digest));
        if path.with_extension("hidden").exists() {
            std::fs::rename(path.with_extension("hidden"), path).unwrap();
        }
    }
    robot.install(Keep::Installed).unwrap();
    assert!(undo::possible(&robot.target, &robot.fixture.keys).unwrap().is_complete());
    robot.undo().unwrap();
    assert!(robot.begins_with(&old));
}

#[test]
fn what_no_source_had_is_asked_for_again_with_the_next_release() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    robot.publish(updated(&old, 50, 77), "2");
    let mut content = robot.target.content();
    content[126 * BLOCK] ^= 1;
    robot.target = MemoryTarget::new(content);
    let aside = hide_packs_of_installed(&robot);
    robot.install(Keep::Installed).unwrap();
    for (path, hidden) in aside {
        std::fs::rename(hidden, path).unwrap();
    }
    robot.publish(updated(&old, 33, 78), "3");
    robot.install(Keep::Kept).unwrap();
    let possible = undo::possible(&robot.target, &robot.fixture.keys).unwrap();
    assert_eq!((possible.version.as_str(), possible.missing_chunks), ("1", 0));
    robot.undo().unwrap();
    assert!(robot.begins_with(&old));
}

#[test]
fn another_key_or_another_machine_is_refused() {
    let (mut robot, _) = updated_robot();
    let journal = Journal::silent();
    let mut job = robot.fixture.job(&Unplugged, &robot.target, None, &journal);
    job.identity.hardware = "unit-z".into();
    let error = recovery::undo(&job, None).unwrap_err();
    assert!(chain(&error).contains("unit-z"), "{}", chain(&error));
    robot.fixture_mut().keys = Fixture::new().keys;
    let error = robot.undo().unwrap_err();
    assert!(chain(&error).contains("trusted key"), "{}", chain(&error));
}

/// Every write and flush in order, `None` for a flush.
pub type Log = Vec<Option<(u64, Vec<u8>)>>;

/// A target that remembers every write with its content, so that any of what was not flushed can be lost.
pub struct Recording {
    pub medium: MemoryTarget,
    pub log: Mutex<Log>,
}

impl Recording {
    pub fn of(content: Vec<u8>) -> Self {
        Self { medium: MemoryTarget::new(content), log: Mutex::default() }
    }
}

impl BlockTarget for Recording {
    fn name(&self) -> &str {
        "recording"
    }

    fn size_bytes(&self) -> u64 {
        self.medium.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.medium.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        self.log.lock().unwrap().push(Some((offset, content.to_vec())));
        self.medium.write_at(offset, content)
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.write_at(range.start, &vec![0; (range.end - range.start) as usize])
    }

    fn flush(&self) -> io::Result<()> {
        self.log.lock().unwrap().push(None);
        Ok(())
    }
}

/// States that a cut could leave of `before` and what was written: after each write and, of what was not flushed by
/// then, some lost, by blocks.
pub fn cuts(before: &[u8], log: &Log, seed: u64) -> Vec<(usize, Vec<u8>)> {
    let mut random = seed | 1;
    let mut chance = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random >> 32 & 3
    };
    let put = |content: &mut Vec<u8>, offset: u64, bytes: &[u8]| {
        content[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
    };
    let (mut durable, mut flushed) = (before.to_vec(), 0);
    let mut states = Vec::new();
    for end in 0..=log.len() {
        if end > 0 && log[end - 1].is_none() {
            log[flushed..end].iter().flatten().for_each(|(offset, bytes)| put(&mut durable, *offset, bytes));
            flushed = end;
        }
        let mut state = durable.clone();
        for (offset, bytes) in log[flushed..end].iter().flatten() {
            for (block, at) in bytes.chunks(BLOCK).zip((*offset..).step_by(BLOCK)) {
                // Lost, whole, or torn after some sectors.
                match chance() {
                    0 => put(&mut state, at, &block[..1024]),
                    1 => (),
                    _ => put(&mut state, at, block),
                }
            }
        }
        states.push((end, state));
        // Everything but the end of the last write.
        if let Some(Some((offset, bytes))) = end.checked_sub(1).map(|last| &log[last]) {
            let mut state = durable.clone();
            log[flushed..end - 1].iter().flatten().for_each(|(offset, bytes)| put(&mut state, *offset, bytes));
            put(&mut state, *offset, &bytes[..bytes.len() / 4]);
            states.push((end, state));
        }
    }
    states
}

/// Checks one state that a cut left: undo without a network, and the install going on, and undo after that.
fn check_cut(robot: &Robot, content: Vec<u8>, old: &[u8], keep: Keep, what: &str) {
    let cut = robot.with_content(content.clone());
    let possible = undo::possible(&cut.target, &cut.fixture.keys);
    // Before anything of the system is written, an undo may lead to the release before, or nowhere.
    if !cut.begins_with(old) {
        cut.undo().unwrap_or_else(|error| panic!("{what}: {}", chain(&error)));
        assert!(cut.begins_with(old), "{what}");
    } else if possible.is_ok() {
        cut.undo().unwrap_or_else(|error| panic!("{what}: {}", chain(&error)));
    }
    let cut = robot.with_content(content);
    cut.install(keep).unwrap_or_else(|error| panic!("{what}: {}", chain(&error)));
    assert!(cut.begins_with(&cut.fixture.image), "{what}");
    cut.undo().unwrap_or_else(|error| panic!("{what}, then installed: {}", chain(&error)));
    assert!(cut.begins_with(old), "{what}, then installed");
}

#[test]
fn a_cut_at_any_instant_of_an_update_leaves_a_way_back_and_a_way_on() {
    let old = sample_image(200, 3);
    let mut robot = Robot::with(old.clone(), 600 * BLOCK);
    // What was kept before, for a release that was good before this one.
    let second = updated(&old, 9, 70);
    robot.publish(second.clone(), "2");
    robot.install(Keep::Installed).unwrap();
    robot.publish(updated(&second, 20, 77), "3");
    let before = robot.target.content();
    let recording = Recording::of(before.clone());
    let copy = robot.with_content(Vec::new());
    install(&copy.fixture, &recording, &copy.state, Keep::Installed).unwrap();
    let log = recording.log.into_inner().unwrap();
    for seed in 1..3 {
        for (end, content) in cuts(&before, &log, seed * 7919) {
            check_cut(&robot, content, &second, Keep::Installed, &format!("seed {seed}, {end} of {}", log.len()));
        }
    }
}

#[test]
fn a_cut_of_a_second_bad_update_and_of_the_undo_itself_leaves_a_way_back() {
    let old = sample_image(200, 3);
    let mut robot = Robot::with(old.clone(), 600 * BLOCK);
    robot.publish(updated(&old, 20, 77), "2");
    robot.install(Keep::Installed).unwrap();
    robot.publish(updated(&old, 6, 78), "3");
    let before = robot.target.content();
    let recording = Recording::of(before.clone());
    let copy = robot.with_content(Vec::new());
    install(&copy.fixture, &recording, &copy.state, Keep::Kept).unwrap();
    let log = recording.log.into_inner().unwrap();
    for (end, content) in cuts(&before, &log, 4242) {
        check_cut(&robot, content, &old, Keep::Kept, &format!("second update, {end} of {}", log.len()));
    }
    let before = recording.medium.content();
    let recording = Recording::of(before.clone());
    undo(&robot.fixture, &recording, None, None).unwrap();
    let log = recording.log.into_inner().unwrap();
    assert!(log.len() > 10);
    for (end, content) in cuts(&before, &log, 4343) {
        check_cut(&robot, content, &old, Keep::Kept, &format!("undo, {end} of {}", log.len()));
    }
}

#[test]
fn a_disk_that_gets_another_life_forgets_what_it_kept() {
    let (robot, _) = updated_robot();
    robot.install(Keep::Nothing).unwrap();
    assert!(matches!(undo::possible(&robot.target, &robot.fixture.keys), Err(UndoObstacle::Nothing)));
    // An image that reaches into the headers is not touched for it.
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    robot.publish(updated(&old, 50, 77), "2");
    robot.install(Keep::Installed).unwrap();
    robot.publish([old, vec![7; PARTITION - IMAGE_BLOCKS * BLOCK]].concat(), "3");
    robot.install(Keep::Nothing).unwrap();
    assert!(robot.begins_with(&robot.fixture.image));
}

#[test]
fn what_is_installed_stays_whole_until_something_else_is_written() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let large = [updated(&old, 50, 77), sample_image(200, 5)].concat();
    let mut robot = Robot::with(old.clone(), large.len() + 40 * BLOCK + 17 * CHUNK);
    robot.publish(large.clone(), "2");
    robot.install(Keep::Installed).unwrap();
    assert_eq!(undo::possible(&robot.target, &robot.fixture.keys).unwrap().version, "1");
    robot.publish(updated(&old, 4, 78), "3");
    let recording = Recording::of(robot.target.content());
    let report = install(&robot.fixture, &recording, &robot.state, Keep::Kept).unwrap();
    assert!(report.totals.undo_needed_bytes > report.totals.undo_room_bytes, "{}", report.totals);
    // There would be room behind the new image, which is smaller, but what is there now may still have to start.
    let log = recording.log.into_inner().unwrap();
    let tail = old.len() as u64..large.len() as u64;
    assert!(log.iter().flatten().all(|(offset, _)| !tail.contains(offset)));
}

/// Writes a header again after a change of its bytes, so that its digest is right.
fn seal(content: &mut [u8], header: usize) {
    let digest = Digest::of(&content[header..header + 4064]);
    content[header + 4064..header + 4096].copy_from_slice(&digest.0);
}

/// Offset of the header that counts.
fn header_of(content: &[u8]) -> usize {
    let sequence = |at: &usize| u64::from_le_bytes(content[at + 16..at + 24].try_into().unwrap());
    let places = [content.len() - 8192, content.len() - 4096].into_iter();
    places.filter(|at| content[*at..].starts_with(b"RFLASHUN")).max_by_key(sequence).unwrap()
}

/// Whatever the disk says with right digests, the end is a refusal before the first write, or the old image.
fn lies_do_no_harm(robot: &Robot, content: Vec<u8>, old: &[u8], what: &str) {
    let robot = robot.with_content(content);
    let _ = undo::possible(&robot.target, &robot.fixture.keys);
    match robot.undo() {
        Ok(_) => assert!(robot.begins_with(old), "{what}"),
        Err(RecoveryError::Undo(_)) => assert!(robot.target.writes().is_empty(), "{what}"),
        Err(error) => panic!("{what}: {}", chain(&error)),
    }
}

#[test]
fn headers_and_directories_that_lie_with_right_digests_do_no_harm() {
    let old = sample_image(100, 3);
    let mut robot = Robot::with(old.clone(), 300 * BLOCK);
    robot.publish(updated(&old, 9, 77), "2");
    robot.install(Keep::Installed).unwrap();
    let whole = robot.target.content();
    let header = header_of(&whole);
    let number = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().unwrap()) as usize;
    for at in 8..288 {
        for flip in [1, 0xff] {
            let mut content = whole.clone();
            content[header + at] ^= flip;
            seal(&mut content, header);
            lies_do_no_harm(&robot, content, &old, &format!("byte {at} of the header"));
        }
    }
    let part = header + 64 + 3 * 48;
    let (directory, length) = (number(part), number(part + 8));
    for at in (0..length).step_by(3) {
        let mut content = whole.clone();
        content[directory + at] ^= if at % 2 == 0 { 0xff } else { 1 };
        let digest = Digest::of(&content[directory..directory + length]);
        content[part + 16..part + 48].copy_from_slice(&digest.0);
        seal(&mut content, header);
        lies_do_no_harm(&robot, content, &old, &format!("byte {at} of the directory"));
    }
}

#[test]
fn a_partition_in_a_file_is_written_past_the_cache() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    robot.publish(updated(&old, 20, 77), "2");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("partition");
    // A partition need not be whole blocks.
    std::fs::write(&path, [&robot.target.content()[..], &[0; 1024]].concat()).unwrap();
    let target = DeviceTarget::open(&path).unwrap();
    install(&robot.fixture, &target, &robot.state, Keep::Installed).unwrap();
    assert!(std::fs::read(&path).unwrap()[..old.len()] == robot.fixture.image[..]);
    let reader = DeviceTarget::open_read_only(&path).unwrap();
    assert_eq!(undo::possible(&reader, &robot.fixture.keys).unwrap().version, "1");
    undo(&robot.fixture, &target, Some(&robot.state), None).unwrap();
    assert!(std::fs::read(&path).unwrap()[..old.len()] == old[..]);
}

#[test]
fn an_estimate_writes_nothing_and_has_the_room() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    robot.publish(updated(&old, 20, 77), "2");
    let (source, journal) = (Directory::new(robot.fixture.tree()), Journal::silent());
    let mut job = robot.fixture.job(&source, &robot.target, Some(&robot.state), &journal);
    job.policy.keep = Keep::Installed;
    let writes = robot.target.writes().len();
    let (_, totals) = recovery::estimate(&job, job.read_record().as_ref()).unwrap();
    assert_eq!(robot.target.writes().len(), writes);
    assert!(totals.undo_needed_bytes > 0 && totals.to_string().contains("to keep for an undo"), "{totals}");
}

#[test]
fn the_network_is_not_needed_but_may_be_what_is_missing() {
    let (robot, _) = updated_robot();
    let error = robot.change(|content| content[PARTITION - 8192..].fill(0)).undo().unwrap_err();
    assert!(matches!(error, RecoveryError::Undo(UndoObstacle::Nothing)), "{}", chain(&error));
    let nothing = Directory::new(robot.fixture.dir.path().join("nowhere"));
    let kind = nothing.get_small("x", 1).unwrap_err().kind();
    assert_eq!(kind, FetchErrorKind::Unreachable);
}

/// The installed release as a recovery judges it.
fn judged(robot: &Robot, floor: &Floor) -> Worth {
    let record = robot.state.record(&robot.fixture.keys).unwrap();
    let env = robot.state.boot_env().load_or_empty().unwrap();
    InstalledRelease::judge(&record, &env, &floor.record(), Worth::Unknown).worth
}

/// Installs what is published as a recovery does that knows what is installed, and how good that is.
fn install_over(robot: &Robot, floor: &Floor) {
    let record = robot.state.record(&robot.fixture.keys).unwrap();
    let installed = InstalledRelease { id: record.id(), worth: judged(robot, floor) };
    let source = Directory::new(robot.fixture.tree());
    let change = |job: &mut recovery::RecoveryJob<'_>| {
        job.policy.installed = Some(installed);
        job.policy.keep = Keep::by_worth(installed.worth, None);
    };
    robot.fixture.recover_as(&source, &robot.target, Some(&robot.state), change).unwrap();
}

#[test]
fn what_was_good_is_bound_to_manifest_and_image() {
    let old = sample_image(IMAGE_BLOCKS, 3);
    let mut robot = Robot::with(old.clone(), PARTITION);
    let floor = Floor::nowhere();
    assert_eq!(judged(&robot, &floor), Worth::Never);
    // What `reflash good` writes.
    let record = robot.state.record(&robot.fixture.keys).unwrap();
    let serial = record.manifest().serial;
    let good = serial.to_string();
    robot.state.boot_env().update(&[("reflash_good", Some(&*good)), ("reflash_boot_ok", Some("1"))]).unwrap();
    assert!(floor.note_good(record.as_good().unwrap()).changed);
    assert_eq!(judged(&robot, &floor), Worth::Before);
    // Another image under the same serial inherits nothing.
    robot.fixture_mut().publish(updated(&old, 50, 77), |spec| {
        (spec.version, spec.serial) = ("other".into(), Some(serial));
    });
    install_over(&robot, &floor);
    assert_eq!(robot.state.record(&robot.fixture.keys).unwrap().manifest().serial, serial);
    assert_eq!(judged(&robot, &floor), Worth::Never);
    robot.undo().unwrap();
    // The same image under another serial is worth as much, and does not call itself good.
    robot.publish(old.clone(), "same");
    robot.install(Keep::Kept).unwrap();
    assert!(robot.state.record(&robot.fixture.keys).unwrap().manifest().serial > serial);
    assert_eq!(judged(&robot, &floor), Worth::SameImage);
    assert_eq!(Keep::by_worth(Worth::SameImage, None), Keep::Installed);
}
