//! Several sources within one flash: a USB drive first, the server for what the USB drive has not.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reflash::fetch::{Check, Directory, FetchError, Http, Mirrors, RetryPolicy, Sink, Source};
use reflash::flash::target::DeviceTarget;
use reflash::jobs::recovery::RecoveryError;
use reflash::jobs::state::StatePartition;
use reflash::release::index::{ChunkContent, Index, StoredChunkNo};
use reflash::release::manifest::object_path;
use reflash_release::Allow;

use crate::support::clock::FakeClock;
use crate::support::server::{TestServer, answer, object, status};
use crate::support::{Fixture, MemoryTarget, sample_image};

/// The server of a tree, and what it sent, by path.
struct Origin {
    server: TestServer,
    sent: Arc<Mutex<Vec<(String, u64)>>>,
}

impl Origin {
    fn of(tree: PathBuf) -> Self {
        let sent = Arc::<Mutex<Vec<(String, u64)>>>::default();
        let log = Arc::clone(&sent);
        let server = TestServer::start(move |request| {
            let path = request.target().trim_start_matches("/release/").to_owned();
            let Ok(content) = std::fs::read(tree.join(&path)) else { return status("404 Not Found") };
            let bytes = request.range().map_or(content.len(), |(first, last)| last + 1 - first);
            log.lock().unwrap().push((path, bytes as u64));
            object(request, &content)
        });
        Self { server, sent }
    }

    fn sent(&self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }
}

/// Two releases in one tree, so that the second one has two packs; and a copy of the tree on a USB drive.
struct Scene {
    fixture: Fixture,
    index: Index,
    origin: Origin,
    drive: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let mut fixture = Fixture::with(sample_image(1024, 7), |_| {});
        let mut image = fixture.image.clone();
        image[400 * 4096..500 * 4096].copy_from_slice(&sample_image(200, 99)[100 * 4096..]);
        fixture.publish(image, |spec| spec.version = "2".into());
        let index = Index::from_object(&std::fs::read(fixture.index_path()).unwrap()).unwrap();
        assert_eq!(index.packs().len(), 2, "the release before, and what is new");
        let drive = fixture.dir.path().join("drive");
        copy(&fixture.tree(), &drive);
        let origin = Origin::of(fixture.tree());
        Self { fixture, index, origin, drive }
    }

    fn urls(&self) -> [String; 2] {
        [format!("file://{}", self.drive.display()), self.origin.server.url()]
    }

    /// A first flash of a new file, from the USB drive and then the server; what the server sent.
    fn flash(&self) -> Vec<(String, u64)> {
        let file = self.fixture.dir.path().join("disk");
        let _ = std::fs::remove_file(&file);
        assert!(self.fixture.flash_by_hand(&self.urls(), &file, &[]));
        self.origin.sent()
    }

    fn pack(&self, number: usize) -> String {
        object_path(&self.index.packs()[number].digest)
    }

    /// Stored chunks that the image needs of a pack, by place.
    fn needed(&self, pack: usize) -> Vec<(StoredChunkNo, Range<u64>)> {
        let chunks = (0..self.index.chunk_count()).filter_map(|chunk| match self.index.chunk_content(chunk) {
            ChunkContent::Stored(stored) => Some(stored),
            ChunkContent::Zero => None,
        });
        let mut stored: Vec<StoredChunkNo> = chunks.collect();
        stored.sort_unstable();
        stored.dedup();
        let located = stored.into_iter().map(|stored| (stored, self.index.location(stored)));
        located.filter(|(_, at)| at.pack as usize == pack).map(|(stored, at)| (stored, at.range)).collect()
    }
}

pub fn copy(tree: &Path, to: &Path) {
    for entry in walkdir::WalkDir::new(tree) {
        let entry = entry.unwrap();
        let there = to.join(entry.path().strip_prefix(tree).unwrap());
        if entry.file_type().is_dir() {
            std::fs::create_dir_all(&there).unwrap();
        } else {
            std::fs::copy(entry.path(), &there).unwrap();
        }
    }
}

#[test]
fn a_complete_usb_drive_leaves_the_server_alone() {
    let scene = Scene::new();
    assert_eq!(scene.flash(), []);
}

#[test]
fn what_the_usb_drive_lacks_and_only_that_comes_from_the_server() {
    let scene = Scene::new();
    let new = scene.pack(1);
    std::fs::remove_file(scene.drive.join(&new)).unwrap();
    let size = scene.index.packs()[1].size_bytes;
    assert_eq!(scene.flash(), [(new.clone(), size)], "the new pack, whole, once");
    // The outline of the index too: then that, and still no other.
    let outline = scene.fixture.released.manifest.images[0].parts.as_ref().unwrap().outline;
    let path = object_path(&outline.blake3);
    std::fs::remove_file(scene.drive.join(&path)).unwrap();
    assert_eq!(scene.flash(), [(path, outline.size_bytes), (new, size)]);
}

#[test]
fn a_pack_that_was_cut_off_on_the_usb_drive_comes_from_the_server() {
    let scene = Scene::new();
    let new = scene.pack(1);
    let size = scene.index.packs()[1].size_bytes;
    let file = std::fs::OpenOptions::new().write(true).open(scene.drive.join(&new)).unwrap();
    file.set_len(size - 1).unwrap();
    assert_eq!(scene.flash(), [(new, size)]);
}

#[test]
fn of_a_pack_with_wrong_bytes_on_the_usb_drive_the_wrong_chunk_comes_from_the_server() {
    let scene = Scene::new();
    let old = scene.pack(0);
    let needed = scene.needed(0);
    let (_, at) = &needed[needed.len() / 2];
    let mut content = std::fs::read(scene.drive.join(&old)).unwrap();
    content[(at.start + at.end) as usize / 2] ^= 0x10;
    std::fs::write(scene.drive.join(&old), content).unwrap();
    assert_eq!(scene.flash(), [(old, at.end - at.start)]);
}

#[test]
fn a_usb_drive_with_another_release_than_the_manifest_says_is_no_harm() {
    // Copied while the release was being made: the new manifest, the objects of the old release.
    let scene = Scene::new();
    let objects = scene.drive.join("objects");
    let keep = scene.drive.join(scene.pack(0));
    for entry in std::fs::read_dir(&objects).unwrap() {
        let path = entry.unwrap().path();
        if path != keep {
            std::fs::remove_file(path).unwrap();
        }
    }
    let sent = scene.flash();
    assert!(sent.iter().all(|(path, _)| *path != scene.pack(0)), "{sent:?}");
    assert!(sent.contains(&(scene.pack(1), scene.index.packs()[1].size_bytes)), "{sent:?}");
}

/// A USB drive that is pulled out in the middle of the packs.
struct Pulled {
    drive: Directory,
    path: PathBuf,
    ranges: AtomicUsize,
}

impl Source for Pulled {
    fn describe(&self) -> String {
        self.drive.describe()
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        self.drive.get_checked(wanted, check)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        // Three are for digests. Then four are asked for at once, so that one of them has come when the fifth is.
        if self.ranges.fetch_add(1, Ordering::SeqCst) == 7 {
            // What was opened before can be read to its end here, which a real USB drive does not allow.
            std::fs::rename(&self.path, self.path.with_extension("gone")).unwrap();
        }
        self.drive.get_range(path, range, sink)
    }
}

#[test]
fn a_usb_drive_that_is_pulled_in_the_middle_costs_no_byte_twice() {
    // 24 MiB that do not compress: a pack that is read in several requests.
    let image = sample_image(16 * 1024, 5);
    let fixture = Fixture::with(image, |spec| spec.chunk_bytes = Some(64 * 1024));
    let drive = fixture.dir.path().join("drive");
    copy(&fixture.tree(), &drive);
    let origin = Origin::of(fixture.tree());
    let pulled = Pulled { drive: Directory::new(&drive), path: drive, ranges: AtomicUsize::new(0) };
    let server = Http::new(&origin.server.url(), &crate::fetch::options()).unwrap();
    let retries = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&retries);
    let clock = FakeClock::new();
    let mirrors = Mirrors::with_clock(vec![Box::new(pulled), Box::new(server)], RetryPolicy::Rounds(2), clock.shared())
        .on_retry(move |retry| all.lock().unwrap().push(retry.error.chain()));
    let disk = fixture.dir.path().join("disk");
    std::fs::File::create(&disk).unwrap().set_len(fixture.image.len() as u64).unwrap();
    let report = fixture.recover(&mirrors, &DeviceTarget::open(&disk).unwrap(), None).unwrap();
    assert!(std::fs::read(&disk).unwrap() == fixture.image);
    let sent: u64 = origin.sent().iter().map(|(_, bytes)| bytes).sum();
    let download = report.totals.download_bytes;
    assert!(sent > 0 && sent < download * 9 / 10, "{sent} of {download}");
    let retries = retries.lock().unwrap();
    assert!((1..=2).contains(&retries.len()) && retries[0].contains("is not there"), "{retries:?}");
    assert!(clock.pauses().is_empty(), "the server is asked at once");
}

/// A USB drive that is there as soon as its directory is.
struct Plugged(PathBuf);

impl Source for Plugged {
    fn describe(&self) -> String {
        Directory::new(&self.0).describe()
    }

    fn is_there(&self) -> bool {
        self.0.exists()
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        Directory::new(&self.0).get_checked(wanted, check)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        Directory::new(&self.0).get_range(path, range, sink)
    }
}

#[test]
fn a_usb_drive_that_is_plugged_in_ends_the_wait_for_the_server() {
    let fixture = Fixture::with(sample_image(300, 1), |_| {});
    let drive = fixture.dir.path().join("drive");
    let busy =
        TestServer::start(|_| vec![answer("503 Service Unavailable", &["Content-Length: 0", "Retry-After: 300"], b"")]);
    let server = Http::new(&busy.url(), &crate::fetch::options()).unwrap();
    let (tree, plugging) = (fixture.tree(), drive.clone());
    let clock = FakeClock::new();
    let sources: Vec<Box<dyn Source>> = vec![Box::new(Plugged(drive)), Box::new(server)];
    let mirrors = Mirrors::with_clock(sources, RetryPolicy::Forever, clock.shared()).on_retry(
        // While the server is busy, a person plugs in the USB drive.
        move |retry| {
            assert!(retry.wait.as_secs() >= 200, "{retry:?}");
            copy(&tree, &plugging.with_extension("half"));
            std::fs::rename(plugging.with_extension("half"), &plugging).unwrap();
        },
    );
    fixture.recover(&mirrors, &MemoryTarget::new(vec![0; fixture.image.len()]), None).unwrap();
    let paused: Duration = clock.pauses().iter().sum();
    assert!(paused <= Duration::from_secs(1), "{paused:?}");
}

#[test]
fn an_old_usb_drive_or_one_for_another_machine_does_not_hide_what_the_server_has() {
    let mut fixture = Fixture::with(sample_image(300, 1), |spec| spec.serial = Some(4));
    let [old, foreign] = ["old", "foreign"].map(|name| fixture.dir.path().join(name));
    copy(&fixture.tree(), &old);
    fixture.publish(sample_image(300, 2), |spec| {
        (spec.serial, spec.hardware) = (Some(9), vec!["unit-b".into()]);
        spec.allow = vec![Allow::FewerHardware];
    });
    copy(&fixture.tree(), &foreign);
    std::fs::remove_dir_all(fixture.tree()).unwrap();
    fixture.publish(sample_image(300, 3), |spec| spec.serial = Some(6));
    let state = StatePartition::new(fixture.dir.path());
    let target = MemoryTarget::new(vec![0; fixture.image.len()]);
    fixture.recover(&Directory::new(fixture.tree()), &target, Some(&state)).unwrap();
    fixture.publish(sample_image(300, 4), |spec| spec.serial = Some(7));

    let retries = Arc::new(Mutex::new(Vec::new()));
    let clock = FakeClock::new();
    let of = |paths: &[&Path]| {
        let all = Arc::clone(&retries);
        let sources = paths.iter().map(|path| Box::new(Directory::new(*path)) as Box<dyn Source>).collect();
        Mirrors::with_clock(sources, RetryPolicy::Rounds(2), clock.shared())
            .on_retry(move |retry| all.lock().unwrap().push(retry.error.chain()))
    };
    // Where nothing else is to be had, the reason is that of the release, at once.
    let error = fixture.recover(&of(&[&foreign, &old]), &target, Some(&state)).unwrap_err();
    assert!(matches!(error, RecoveryError::Manifest(_)), "{error:?}");
    assert!(clock.pauses().is_empty());
    assert!(reflash::chain::chain(&error).contains("serial 4, older than the installed 6"), "{error:?}");
    // What is not there now may be later, and have it.
    let error = fixture.recover(&of(&[&old, Path::new("/nowhere")]), &target, Some(&state)).unwrap_err();
    assert!(matches!(error, RecoveryError::Fetch { .. }) && error.is_retryable(), "{error:?}");
    retries.lock().unwrap().clear();

    fixture.recover(&of(&[&old, &foreign, &fixture.tree()]), &target, Some(&state)).unwrap();
    assert!(target.content() == fixture.image);
    // They have no roll-out either, for which the others are asked.
    let mut retries = retries.lock().unwrap();
    retries.retain(|text| !text.contains("it has no roll-out"));
    assert!(retries[0].contains("serial 4, older than the installed 6"), "{retries:?}");
    assert!(retries[1].contains("unit-b"), "{retries:?}");
    // Objects may well be there, as packs of the release before.
    assert!(retries[2..].iter().all(|text| text.contains("/objects/")), "{retries:?}");
}

#[test]
fn a_cap_by_hand_holds_for_the_whole_flash() {
    let fixture = Fixture::with(sample_image(4096, 5), |_| {});
    let origin = Origin::of(fixture.tree());
    let started = std::time::Instant::now();
    let file = fixture.dir.path().join("disk");
    assert!(fixture.flash_by_hand(&[origin.server.url()], &file, &["--max-rate", "4096"]));
    let took = started.elapsed().as_secs_f64();
    let bytes: u64 = origin.sent().iter().map(|(_, bytes)| bytes).sum();
    let least = bytes as f64 / f64::from(4 << 20);
    assert!(least > 1.0 && took > least * 0.95, "{bytes} bytes in {took} s");
}
