//! An update that is fetched while the system works: what the store holds is enough for a recovery without a network,
//! whatever happened to it meanwhile.

mod by_hand;
mod partition;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use reflash::chain::chain;
use reflash::fetch::{Check, Directory, FetchError, FetchErrorKind, Sink, SinkError, Source};
use reflash::jobs::recovery;
use reflash::jobs::state::{Release, StatePartition};
use reflash::jobs::update::stage::{OtherParts, stage};
use reflash::jobs::update::{UpdateError, UpdateStore};
use reflash::record::journal::Journal;
use reflash::release::digest::Digest;
use reflash::release::groups::Groups;
use reflash::release::index::Index;
use reflash::release::manifest::object_path;
use reflash_release::Spec;

use crate::support::{Fixture, MemoryTarget, sample_image};

const BLOCK: usize = 4096;

/// A server that counts what it sends, and is gone after so many bytes.
struct Server {
    tree: Directory,
    sent: AtomicU64,
    limit: u64,
    asked: Mutex<Vec<String>>,
}

impl Server {
    fn new(fixture: &Fixture) -> Self {
        Self::until(fixture, u64::MAX)
    }

    fn until(fixture: &Fixture, limit: u64) -> Self {
        Self { tree: Directory::new(fixture.tree()), sent: AtomicU64::new(0), limit, asked: Mutex::default() }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    fn is_gone(&self) -> bool {
        self.sent() >= self.limit
    }

    fn gone() -> FetchError {
        FetchError::new(FetchErrorKind::Unreachable, "test", "the server is gone")
    }
}

impl Source for Server {
    fn describe(&self) -> String {
        "a server".into()
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        if self.is_gone() {
            return Err(Self::gone());
        }
        self.asked.lock().unwrap().extend(wanted.iter().map(|(path, _)| (*path).to_owned()));
        let files = self.tree.get_checked(wanted, check)?;
        self.sent.fetch_add(files.iter().map(|file| file.len() as u64).sum(), Ordering::SeqCst);
        Ok(files)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        self.asked.lock().unwrap().push(path.to_owned());
        self.tree
            .get_range(path, range, &mut |part| {
                for part in part.chunks(4000) {
                    if self.is_gone() {
                        return Err(SinkError::Local("the server is gone".into()));
                    }
                    self.sent.fetch_add(part.len() as u64, Ordering::SeqCst);
                    sink(part)?;
                }
                Ok(())
            })
            .map_err(|error| if self.is_gone() { Self::gone() } else { error })
    }
}

/// A robot with an installed release, of which the next one is published.
struct Robot {
    fixture: Fixture,
    installed: Vec<u8>,
    dir: tempfile::TempDir,
}

impl Robot {
    fn new(next: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        let mut fixture = Fixture::with(sample_image(1500, 3), |_| ());
        let installed = fixture.image.clone();
        let robot_dir = tempfile::tempdir().unwrap();
        let state = StatePartition::new(&robot_dir.path().join("state"));
        std::fs::create_dir(robot_dir.path().join("state")).unwrap();
        let target = MemoryTarget::new(vec![0; installed.len() + 400 * BLOCK]);
        fixture.recover(&Server::new(&fixture), &target, Some(&state)).unwrap();
        fixture.publish(next(&installed), |spec| spec.version = "2".into());
        Self { fixture, installed: target.content(), dir: robot_dir }
    }

    fn state(&self) -> StatePartition {
        StatePartition::new(&self.dir.path().join("state"))
    }

    fn directory(&self) -> PathBuf {
        self.dir.path().join("update")
    }

    fn offered(&self) -> Release {
        let (source, target) = (Server::new(&self.fixture), MemoryTarget::new(vec![0; BLOCK]));
        let journal = Journal::silent();
        recovery::fetch_release(&self.fixture.job(&source, &target, None, &journal), None).unwrap()
    }

    fn stage(&self, source: &dyn Source) -> Result<UpdateStore, UpdateError> {
        let target = MemoryTarget::new(self.installed.clone());
        let (state, journal) = (self.state(), Journal::silent());
        let job = self.fixture.job(source, &target, Some(&state), &journal);
        let record = job.read_record();
        let staged =
            stage(&job, record.as_ref(), &self.offered(), &OtherParts::default(), &self.directory(), |_, _| ());
        assert!(target.log.lock().unwrap().is_empty(), "nothing of the running system is written");
        staged
    }

    /// Applies what is stored, without a server.
    fn apply(&self) -> Result<Vec<u8>, String> {
        let store = UpdateStore::open(self.dir.path(), Path::new("update")).map_err(|error| error.to_string())?;
        let target = MemoryTarget::new(self.installed.clone());
        let (state, journal) = (self.state(), Journal::silent());
        let job = self.fixture.job(&store, &target, Some(&state), &journal);
        let release = store.release(&self.fixture.keys).map_err(|error| chain(&error))?;
        // The record is that of the installed release in each attempt.
        let record = job.read_record();
        recovery::install(&job, record.as_ref(), release).map_err(|error| chain(&error))?;
        Ok(target.content()[..self.fixture.image.len()].to_vec())
    }
}

/// What an image becomes when it is built again: some lies elsewhere, some is new, some is gone.
fn rebuilt(old: &[u8]) -> Vec<u8> {
    let fresh = sample_image(300, 999);
    let mut new = old[..40 * BLOCK].to_vec();
    new.extend_from_slice(&fresh[..133 * BLOCK]);
    new.extend_from_slice(&old[40 * BLOCK..300 * BLOCK]);
    new.extend_from_slice(&old[350 * BLOCK..900 * BLOCK]);
    new.extend_from_slice(&fresh[140 * BLOCK..]);
    new.extend_from_slice(&old[900 * BLOCK..]);
    new[..100].fill(0x77);
    new
}

/// What an image becomes when a few bytes change here and there, so that deltas are made.
fn changed(old: &[u8]) -> Vec<u8> {
    let mut new = old.to_vec();
    (3..1450).step_by(50).for_each(|at| new[at * BLOCK + 700..at * BLOCK + 708].fill(0x5a));
    new
}

#[test]
fn what_is_staged_is_enough_without_a_network_and_no_more_than_that() {
    for (name, next) in
        [("rebuilt", rebuilt as fn(&[u8]) -> Vec<u8>), ("changed", changed), ("other", |_| sample_image(900, 7))]
    {
        let robot = Robot::new(next);
        let server = Server::new(&robot.fixture);
        let store = robot.stage(&server).unwrap();
        let (have, all) = store.bytes();
        assert!(have == all && store.is_complete() && store.is_whole().unwrap(), "{name}: {have} of {all}");
        // The manifest and its signature lie in the store beside what was fetched for it.
        assert!(server.sent() <= all && all < server.sent() + 4096, "{name}: {} sent, {all} stored", server.sent());
        assert_eq!(robot.apply().unwrap(), robot.fixture.image, "{name}");
        // A second time there is nothing to fetch.
        let again = Server::new(&robot.fixture);
        assert!(robot.stage(&again).unwrap().is_complete());
        assert_eq!(again.sent(), 0, "{name}: {:?}", again.asked.lock().unwrap());
    }
}

/// Chunks that compress well together and not by themselves.
fn of_lines(old: &[u8]) -> Vec<u8> {
    let lines = sample_image(16, 5)[..2 * BLOCK].to_vec();
    let mut new = old.to_vec();
    for (number, line) in new[BLOCK..].chunks_mut(64).enumerate() {
        let from = (number * 37 + number / 64 * 11 + number / 9000 * 5) % 128 * 64;
        line.copy_from_slice(&lines[from..][..line.len()]);
        line[..8].copy_from_slice(&((number / 256) as u64).to_le_bytes());
    }
    new
}

/// The digests of frames are no more than that, and are not missed: neither by who fills the store nor by who uses it.
#[test]
fn an_update_is_complete_without_the_digests_of_frames() {
    for (which, is_missing) in [(0, false), (0, true), (1, false), (1, true)] {
        let robot = Robot::new(rebuilt);
        let frames = robot.fixture.released.manifest.images[0].frames.unwrap();
        let path = robot.fixture.tree().join(object_path(&[frames.sums, frames.digests][which].blake3));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.iter_mut().for_each(|byte| *byte ^= 0x10);
        std::fs::write(&path, bytes).unwrap();
        if is_missing {
            std::fs::remove_file(&path).unwrap();
        }
        let store = robot.stage(&Server::new(&robot.fixture)).unwrap();
        assert!(store.is_complete() && store.is_whole().unwrap(), "object {which}, missing {is_missing}");
        assert_eq!(robot.apply().unwrap(), robot.fixture.image, "object {which}, missing {is_missing}");
    }
}

/// What spares downloads is damaged or nowhere: what is fetched in its place is stored in its place.
#[test]
fn an_update_is_complete_without_the_deltas_or_groups_that_are_wrong() {
    for (next, with_groups) in [(changed as fn(&[u8]) -> Vec<u8>, false), (of_lines, true)] {
        for is_missing in [false, true] {
            let robot = Robot::new(next);
            let image = &robot.fixture.released.manifest.images[0];
            let object = |digest: &Digest| robot.fixture.tree().join(object_path(digest));
            let pack = if with_groups {
                let index = Index::from_object(&std::fs::read(robot.fixture.index_path()).unwrap()).unwrap();
                let table = std::fs::read(object(&image.groups.unwrap().blake3)).unwrap();
                object(&Groups::from_object(&table, &index).unwrap().packs()[0].digest)
            } else {
                object(&image.deltas[0].pack.blake3)
            };
            let mut bytes = std::fs::read(&pack).unwrap();
            if is_missing {
                std::fs::remove_file(&pack).unwrap();
            } else {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x10;
                std::fs::write(&pack, bytes).unwrap();
            }
            let store = robot.stage(&Server::new(&robot.fixture)).unwrap();
            assert!(store.is_complete() && store.is_whole().unwrap(), "groups {with_groups}, missing {is_missing}");
            assert_eq!(robot.apply().unwrap(), robot.fixture.image, "groups {with_groups}, missing {is_missing}");
        }
    }
}

#[test]
fn a_transfer_that_is_cut_anywhere_goes_on_where_it_was() {
    let robot = Robot::new(rebuilt);
    let whole = Server::new(&robot.fixture);
    robot.stage(&whole).unwrap();
    let all = whole.sent();
    UpdateStore::remove(&robot.directory()).unwrap();
    let mut sent = 0;
    let mut rounds = 0;
    loop {
        let server = Server::until(&robot.fixture, all / 4);
        let staged = robot.stage(&server);
        sent += server.sent();
        rounds += 1;
        match staged {
            Ok(store) => break assert!(store.is_complete() && store.is_whole().unwrap()),
            Err(error) => assert!(error.is_retryable(), "{}", chain(&error)),
        }
        assert!(rounds < 20 && robot.apply().is_err());
    }
    assert!(rounds >= 4 && sent < all + all / 4, "{rounds} rounds, {sent} bytes in place of {all}");
    assert_eq!(robot.apply().unwrap(), robot.fixture.image);
}

#[test]
fn a_damaged_store_is_noticed_and_only_what_is_wrong_is_fetched_again() {
    let robot = Robot::new(rebuilt);
    let whole = Server::new(&robot.fixture);
    let (_, all) = robot.stage(&whole).unwrap().bytes();
    let content = robot.directory().join("content");
    for place in (0..all).step_by(all as usize / 4) {
        let mut bytes = std::fs::read(&content).unwrap();
        let at = (place as usize).min(bytes.len() - 1);
        bytes[at] ^= 0x10;
        std::fs::write(&content, bytes).unwrap();
        let store = UpdateStore::open(robot.dir.path(), Path::new("update")).unwrap();
        assert!(store.is_complete() && !store.is_whole().unwrap(), "byte {at}");
        let server = Server::new(&robot.fixture);
        let store = robot.stage(&server).unwrap();
        assert!(store.is_whole().unwrap() && server.sent() < all / 3, "byte {at}: {} of {all}", server.sent());
        assert_eq!(robot.apply().unwrap(), robot.fixture.image);
    }
}

#[test]
fn a_store_of_which_something_is_gone_is_filled_again() {
    let robot = Robot::new(rebuilt);
    let whole = Server::new(&robot.fixture);
    let (_, all) = robot.stage(&whole).unwrap().bytes();
    let (map, content) = (robot.directory().join("map"), robot.directory().join("content"));
    let lose: [(&str, &dyn Fn()); 5] = [
        ("the list", &|| std::fs::remove_file(&map).unwrap()),
        ("the contents", &|| std::fs::remove_file(&content).unwrap()),
        ("half of the contents", &|| {
            std::fs::File::options().write(true).open(&content).unwrap().set_len(all / 2).unwrap();
        }),
        ("half of the list", &|| {
            std::fs::File::options().write(true).open(&map).unwrap().set_len(100).unwrap();
        }),
        ("all of it, and a link in its place", &|| {
            std::fs::remove_file(&content).unwrap();
            std::os::unix::fs::symlink("/dev/zero", &content).unwrap();
        }),
    ];
    for (what, lose) in lose {
        lose();
        assert!(robot.apply().is_err(), "{what}");
        let server = Server::new(&robot.fixture);
        assert!(robot.stage(&server).unwrap().is_whole().unwrap(), "{what}");
        let limit = if what.starts_with("half of the contents") { all * 3 / 4 } else { all };
        assert!(server.sent() <= limit, "{what}: {} of {all}", server.sent());
        assert_eq!(robot.apply().unwrap(), robot.fixture.image, "{what}");
    }
}

#[test]
fn a_release_that_takes_the_place_of_another_uses_what_both_have() {
    // Content that is fetched whole: a delta is for one release alone.
    let mut robot = Robot::new(|_| {
        let mut content = vec![0; 1500 * BLOCK];
        blake3::Hasher::new().finalize_xof().fill(&mut content);
        content
    });
    let first = Server::until(&robot.fixture, 400_000);
    let _ = robot.stage(&first);
    robot.stage(&Server::new(&robot.fixture)).unwrap();
    let mut next = robot.fixture.image.clone();
    let kept = next[..40 * BLOCK].iter().map(|byte| byte ^ 0xa5).collect::<Vec<_>>();
    next[60 * BLOCK..100 * BLOCK].copy_from_slice(&kept);
    robot.fixture.publish(next, |spec: &mut Spec| spec.version = "3".into());
    let server = Server::new(&robot.fixture);
    let store = robot.stage(&server).unwrap();
    let (_, all) = store.bytes();
    assert!(server.sent() * 2 < all, "{} of {all}", server.sent());
    assert_eq!(store.release(&robot.fixture.keys).unwrap().manifest.version, "3");
    assert_eq!(robot.apply().unwrap(), robot.fixture.image);
    // What the other one needed and this one does not is not kept.
    let fresh = Robot { fixture: robot.fixture, installed: robot.installed, dir: tempfile::tempdir().unwrap() };
    let alone = fresh.stage(&Server::new(&fresh.fixture)).unwrap().bytes().1;
    assert!(all < alone + alone / 4, "{all} bytes in place of {alone}");
}

#[test]
fn a_release_that_does_not_fit_is_refused_before_anything_is_stored() {
    let robot = Robot::new(|_| sample_image(2500, 9));
    let server = Server::new(&robot.fixture);
    let error = robot.stage(&server).err().unwrap();
    assert!(chain(&error).contains("does not fit") || chain(&error).contains("bytes"), "{}", chain(&error));
    assert!(!error.is_retryable() && !robot.directory().exists());
}
