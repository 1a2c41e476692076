//! From one release to the next: what is moved, what is downloaded, and that neither a cut nor a lie changes the end.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use reflash::fetch::{Check, Directory, FetchError, Sink, Source};
use reflash::flash::target::BlockTarget;
use reflash::jobs::state::StatePartition;
use reflash::release::index::{ChunkContent, Index};
use reflash::release::manifest::{DeltaObjects, object_path};

use crate::support::{Faults, Fixture, MemoryTarget, sample_image};

const BLOCK: usize = 4096;
const CHUNK: usize = 16 * 1024;

/// The tree of a fixture, noting what is asked for beside the digests of frames.
struct Noting {
    tree: Directory,
    digests: Vec<String>,
    ranges: Mutex<Vec<(String, Range<u64>)>>,
    small: Mutex<Vec<String>>,
}

impl Noting {
    fn new(fixture: &Fixture) -> Self {
        let frames = fixture.released.manifest.images[0].frames.unwrap();
        let digests = [frames.sums, frames.digests].map(|object| object_path(&object.blake3)).to_vec();
        Self { tree: Directory::new(fixture.tree()), digests, ranges: Mutex::default(), small: Mutex::default() }
    }

    fn downloaded(&self) -> u64 {
        self.ranges.lock().unwrap().iter().map(|(_, range)| range.end - range.start).sum()
    }
}

impl Source for Noting {
    fn describe(&self) -> String {
        self.tree.describe()
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        self.small.lock().unwrap().extend(wanted.iter().map(|(path, _)| (*path).to_owned()));
        self.tree.get_checked(wanted, check)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        if !self.digests.iter().any(|digests| digests == path) {
            self.ranges.lock().unwrap().push((path.to_owned(), range.clone()));
        }
        self.tree.get_range(path, range, sink)
    }
}

/// What an image becomes when it is built again: most of it lies elsewhere, some is new, some is gone.
fn rebuilt(old: &[u8]) -> Vec<u8> {
    let fresh = sample_image(64, 999);
    let mut new = old[..40 * BLOCK].to_vec();
    new.extend_from_slice(&fresh[..13 * BLOCK]);
    new.extend_from_slice(&old[40 * BLOCK..300 * BLOCK]);
    new.extend_from_slice(&old[350 * BLOCK..900 * BLOCK]);
    new.extend_from_slice(&fresh[20 * BLOCK..30 * BLOCK]);
    new.extend_from_slice(&old[900 * BLOCK..]);
    new[..100].fill(0x77);
    new
}

/// A fixture of which `rebuilt` is published, and the image before.
fn pair(blocks: usize) -> (Fixture, Vec<u8>) {
    let mut fixture = Fixture::with(sample_image(blocks, 3), |_| ());
    let old = fixture.image.clone();
    fixture.publish(rebuilt(&old), |spec| spec.version = "2".into());
    (fixture, old)
}

/// Whether the partition begins with the image.
fn holds(target: &MemoryTarget, fixture: &Fixture) -> bool {
    target.content()[..fixture.image.len()] == fixture.image[..]
}

fn partition(content: &[u8], bytes: usize) -> Vec<u8> {
    let mut partition = content.to_vec();
    partition.resize(bytes.max(content.len()), 0);
    partition
}

#[test]
fn a_rebuilt_image_is_put_together_from_the_old_one() {
    let (fixture, old) = pair(4000);
    let target = MemoryTarget::new(partition(&old, fixture.image.len()));
    let source = Noting::new(&fixture);
    let report = fixture.recover(&source, &target, None).unwrap();
    assert!(holds(&target, &fixture));
    let totals = report.totals;
    assert_eq!(totals.download_bytes, source.downloaded());
    // 23 new blocks, chunk 0, and what lies in the chunks around them.
    assert!(totals.download_bytes <= (23 * BLOCK + 6 * CHUNK) as u64, "{totals}");
    assert_eq!(totals.right_bytes + totals.changed_bytes(), fixture.image.len() as u64);
}

#[test]
fn new_chunks_lie_together_in_a_pack_of_their_own() {
    // A layout-stable image: what changed, changed in place.
    let old = sample_image(4000, 3);
    let mut changed = old.clone();
    for at in [100, 1100, 2100, 3100] {
        changed[at * BLOCK..(at + 1) * BLOCK].copy_from_slice(&sample_image(8, at as u64)[..BLOCK]);
    }
    let mut fixture = Fixture::with(old.clone(), |_| ());
    fixture.publish(changed, |spec| spec.version = "2".into());
    let index = Index::from_object(&std::fs::read(fixture.index_path()).unwrap()).unwrap();
    assert_eq!(index.packs().len(), 2, "the pack of the release before is used again");
    assert!(fixture.released.new_bytes * 100 < fixture.released.packed_bytes);
    let source = Noting::new(&fixture);
    let target = MemoryTarget::new(old);
    fixture.recover(&source, &target, None).unwrap();
    assert!(holds(&target, &fixture));
    // Deltas come in one request, and what is new altogether in another.
    assert!(source.ranges.lock().unwrap().len() <= 2);
}

/// Two images of which the second has changed in place: a few bytes in each of some blocks. And how many chunks that
/// are.
fn changed_pair() -> (Fixture, Vec<u8>, usize) {
    let old = sample_image(4000, 3);
    let mut fixture = Fixture::with(old.clone(), |_| ());
    let mut new = old.clone();
    let changed = (3..4000).step_by(50);
    changed.clone().for_each(|at| new[at * BLOCK + 700..at * BLOCK + 708].fill(0x5a));
    fixture.publish(new, |spec| spec.version = "2".into());
    let chunks: std::collections::BTreeSet<usize> = changed.map(|at| at * BLOCK / CHUNK).collect();
    (fixture, old, chunks.len())
}

fn deltas_of(fixture: &Fixture) -> DeltaObjects {
    fixture.released.manifest.images[0].deltas[0].clone()
}

#[test]
fn what_changed_in_place_is_made_by_deltas_and_nothing_else_is_asked_for() {
    let (fixture, old, chunks) = changed_pair();
    let source = Noting::new(&fixture);
    let target = MemoryTarget::new(old);
    let report = fixture.recover(&source, &target, None).unwrap();
    assert!(holds(&target, &fixture));
    let deltas = object_path(&deltas_of(&fixture).pack.blake3);
    let ranges = source.ranges.lock().unwrap();
    // The first chunk comes as it is, of all others a handful of bytes.
    let (small, whole): (Vec<_>, Vec<_>) = ranges.iter().partition(|(path, _)| *path == deltas);
    // But for chunks that are a handful of bytes by themselves.
    let whole: Vec<u64> = whole.iter().map(|(_, range)| range.end - range.start).filter(|bytes| *bytes > 30).collect();
    assert_eq!((small.len(), whole.len()), (1, 1), "{ranges:?}");
    let bytes = small[0].1.end - small[0].1.start;
    assert!(bytes < chunks as u64 * 100, "{bytes} bytes for {chunks} chunks");
    assert_eq!(report.totals.write_bytes, (chunks * CHUNK) as u64);
    let weak_hashes = object_path(&fixture.released.manifest.images[0].weak_hashes.unwrap().blake3);
    assert!(!source.small.lock().unwrap().contains(&weak_hashes), "deltas are enough");
}

#[test]
fn an_update_by_deltas_that_was_cut_goes_on_with_deltas() {
    let (fixture, old, chunks) = changed_pair();
    let complete = MemoryTarget::new(old.clone());
    fixture.recover(&Noting::new(&fixture), &complete, None).unwrap();
    let deltas = object_path(&deltas_of(&fixture).pack.blake3);
    for cut in 0..complete.writes().len() {
        let faults = Faults { fail_writes_from: Some(cut), ..Faults::default() };
        let target = MemoryTarget::faulty(old.clone(), faults);
        fixture.recover(&Noting::new(&fixture), &target, None).unwrap_err();
        let target = MemoryTarget::new(target.content());
        let source = Noting::new(&fixture);
        fixture.recover(&source, &target, None).unwrap();
        assert!(holds(&target, &fixture), "cut at write {cut}");
        let ranges = source.ranges.lock().unwrap();
        let whole = ranges.iter().filter(|(path, _)| *path != deltas).map(|(_, range)| range.end - range.start);
        assert!(whole.sum::<u64>() <= CHUNK as u64 + 1024, "cut at write {cut} of {chunks} chunks: {ranges:?}");
    }
}

#[test]
fn a_delta_that_does_not_fit_or_is_damaged_is_replaced_by_the_whole_chunk() {
    let (fixture, old, _) = changed_pair();
    // Another byte in one place: that chunk is fetched whole, without a try.
    let mut other = old.clone();
    other[1153 * BLOCK + 9] ^= 1;
    let target = MemoryTarget::new(other);
    let source = Noting::new(&fixture);
    let report = fixture.recover(&source, &target, None).unwrap();
    assert!(holds(&target, &fixture));
    assert_eq!(source.downloaded(), report.totals.download_bytes);
    // It changes after it was looked at, or cannot be read any more when it is wanted.
    let target = MemoryTarget::new(old.clone());
    let target = Changing { target, block: 1153, reads_left: AtomicUsize::new(1) };
    let source = Noting::new(&fixture);
    let report = fixture.recover(&source, &target, None).unwrap();
    assert!(holds(&target.target, &fixture));
    assert!(source.downloaded() > report.totals.download_bytes, "the chunk was fetched beyond the plan");
    // A byte of the pack is wrong.
    let pack = fixture.tree().join(object_path(&deltas_of(&fixture).pack.blake3));
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&pack, bytes).unwrap();
    let target = MemoryTarget::new(old);
    fixture.recover(&Noting::new(&fixture), &target, None).unwrap();
    assert!(holds(&target, &fixture));
}

/// Whoever copied the release forgot it, or a cleaner took it for old.
#[test]
fn a_pack_of_deltas_that_is_nowhere_costs_bytes_and_not_the_update() {
    let (fixture, old, _) = changed_pair();
    std::fs::remove_file(fixture.tree().join(object_path(&deltas_of(&fixture).pack.blake3))).unwrap();
    let target = MemoryTarget::new(old);
    fixture.recover(&Noting::new(&fixture), &target, None).unwrap();
    assert!(holds(&target, &fixture));
}

#[test]
fn deltas_are_made_only_where_they_pay() {
    // A new image is fetched, and a first release has nothing before it.
    let mut fixture = Fixture::with(noise(2000, 3), |_| ());
    assert_eq!(fixture.released.manifest.images[0].deltas, []);
    fixture.publish(noise(2000, 4), |spec| spec.version = "2".into());
    assert_eq!(fixture.released.manifest.images[0].deltas, []);
    let (fixture, ..) = changed_pair();
    reflash_release::check::check(&fixture.tree(), "stable", &fixture.keys).unwrap();
}

/// A robot that was off for one release and has lost its record: the deltas that fit are found by trying.
#[test]
fn deltas_from_the_release_before_the_last_are_found_without_a_record() {
    let mut fixture = Fixture::with(sample_image(4000, 3), |_| ());
    let old = fixture.image.clone();
    for (version, byte) in [("2", 0x5a), ("3", 0x6b)] {
        let mut new = fixture.image.clone();
        (3..4000).step_by(50).for_each(|at| new[at * BLOCK + 700..at * BLOCK + 708].fill(byte));
        fixture.publish(new, |spec| spec.version = version.into());
    }
    assert_eq!(fixture.released.manifest.images[0].deltas.len(), 2);
    let source = Noting::new(&fixture);
    let target = MemoryTarget::new(old);
    let totals = fixture.recover(&source, &target, None).unwrap().totals;
    assert!(holds(&target, &fixture));
    // The first chunk comes whole.
    assert!(totals.download_bytes < 3 * CHUNK as u64, "{totals}");
}

/// Blocks of bytes that do not compress.
fn noise(blocks: usize, seed: u8) -> Vec<u8> {
    let mut content = vec![0; blocks * BLOCK];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut content);
    content
}

/// A file that moved to where another one was, and changed a little everywhere: its old place is found, and neither is
/// fetched.
#[test]
fn what_moved_and_changed_is_made_of_its_old_place() {
    let (first, second) = (noise(300, 1), noise(300, 2));
    let start = noise(8, 9);
    let old = [&start[..], &first, &second].concat();
    let changed = |content: &[u8]| {
        let mut content = content.to_vec();
        content.iter_mut().step_by(1500).for_each(|byte| *byte = byte.wrapping_add(1));
        content
    };
    let new = [&start[..], &changed(&second), &changed(&first)].concat();
    let mut fixture = Fixture::with(old.clone(), |_| ());
    fixture.publish(new, |spec| spec.version = "2".into());
    let target = MemoryTarget::new(old.clone());
    let source = Noting::new(&fixture);
    let totals = fixture.recover(&source, &target, None).unwrap().totals;
    assert!(holds(&target, &fixture));
    assert!(totals.download_bytes * 20 < totals.write_bytes, "{totals}");
    assert_eq!(totals.download_bytes, source.downloaded());
    // What was cut in the middle is made of what is left, and the rest is fetched.
    for cut in (0..target.writes().len()).step_by(3) {
        let faults = Faults { fail_writes_from: Some(cut), ..Faults::default() };
        let target = MemoryTarget::faulty(old.clone(), faults);
        fixture.recover(&Noting::new(&fixture), &target, None).unwrap_err();
        let target = MemoryTarget::new(target.content());
        fixture.recover(&Noting::new(&fixture), &target, None).unwrap();
        assert!(holds(&target, &fixture), "cut at write {cut}");
    }
}

#[test]
fn a_pack_that_is_hardly_used_any_more_is_left_behind() {
    let old = sample_image(2000, 3);
    let mut fixture = Fixture::with(old.clone(), |_| ());
    let mut new = sample_image(2000, 4);
    new[..400 * BLOCK].copy_from_slice(&old[..400 * BLOCK]);
    fixture.publish(new, |spec| spec.version = "2".into());
    let index = Index::from_object(&std::fs::read(fixture.index_path()).unwrap()).unwrap();
    assert_eq!((index.packs().len(), fixture.released.new_bytes), (1, fixture.released.packed_bytes));
}

#[test]
fn a_cut_at_any_write_of_an_update_downloads_nothing_that_is_right_already() {
    let (fixture, old) = pair(1200);
    let start = partition(&old, fixture.image.len());
    let complete = MemoryTarget::new(start.clone());
    fixture.recover(&Noting::new(&fixture), &complete, None).unwrap();
    let index = Index::from_object(&std::fs::read(fixture.index_path()).unwrap()).unwrap();
    for cut in 0..complete.writes().len() {
        let faults = Faults { fail_writes_from: Some(cut), ..Faults::default() };
        let target = MemoryTarget::faulty(start.clone(), faults);
        fixture.recover(&Noting::new(&fixture), &target, None).unwrap_err();
        let left = target.content();
        let target = MemoryTarget::new(left.clone());
        let source = Noting::new(&fixture);
        let report = fixture.recover(&source, &target, None).unwrap();
        assert!(holds(&target, &fixture), "cut at write {cut}");
        let is_right = |chunk: u32| {
            let range = index.chunk_range(chunk);
            let range = range.start as usize..range.end as usize;
            left[range.clone()] == fixture.image[range]
        };
        let wrong = (0..index.chunk_count()).filter(|chunk| !is_right(*chunk)).count() * CHUNK;
        assert!(report.totals.changed_bytes() <= wrong as u64, "cut at write {cut}");
        for (path, range) in &*source.ranges.lock().unwrap() {
            let inside = |chunk: &u32| match index.chunk_content(*chunk) {
                ChunkContent::Stored(stored) => {
                    let place = index.location(stored);
                    let pack = object_path(&index.packs()[place.pack as usize].digest);
                    pack == *path && range.start <= place.range.start && place.range.end <= range.end
                }
                ChunkContent::Zero => false,
            };
            let asked: Vec<u32> = (0..index.chunk_count()).filter(inside).collect();
            // Gaps that are cheaper taken along than asked around.
            let needless: u64 = asked.iter().filter(|chunk| is_right(**chunk)).count() as u64 * CHUNK as u64;
            assert!(needless <= asked.len() as u64 * CHUNK as u64 / 2 + CHUNK as u64, "cut at write {cut}: {asked:?}");
        }
    }
}

/// A target on which one block changes after it was looked at.
struct Changing {
    target: MemoryTarget,
    block: usize,
    reads_left: AtomicUsize,
}

impl BlockTarget for Changing {
    fn name(&self) -> &str {
        self.target.name()
    }

    fn size_bytes(&self) -> u64 {
        self.target.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.target.read_at(offset, buffer)?;
        let place = (self.block * BLOCK) as u64;
        let holds = (offset..offset + buffer.len() as u64).contains(&place);
        if holds && self.reads_left.fetch_sub(1, Ordering::Relaxed) == 1 {
            let mut content = vec![0; BLOCK];
            self.target.read_at(place, &mut content)?;
            content[5] ^= 1;
            self.target.write_at(place, &content)?;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, content: &[u8]) -> std::io::Result<()> {
        self.target.write_at(offset, content)
    }

    fn zero(&self, range: Range<u64>) -> std::io::Result<()> {
        self.target.zero(range)
    }

    fn flush(&self) -> std::io::Result<()> {
        self.target.flush()
    }
}

#[test]
fn a_weak_hash_that_does_not_hold_costs_a_download_and_nothing_else() {
    let (fixture, old) = pair(1200);
    let target = MemoryTarget::new(partition(&old, fixture.image.len()));
    let target = Changing { target, block: 645, reads_left: AtomicUsize::new(1) };
    let source = Noting::new(&fixture);
    let report = fixture.recover(&source, &target, None).unwrap();
    assert!(holds(&target.target, &fixture));
    assert!(source.downloaded() > report.totals.download_bytes, "the chunk was fetched beyond the plan");
}

#[test]
fn what_cannot_be_read_is_not_moved() {
    let (fixture, old) = pair(1200);
    let faults = Faults { unreadable: (500..560).collect(), ..Faults::default() };
    let target = MemoryTarget::faulty(partition(&old, fixture.image.len()), faults);
    let report = fixture.recover(&Noting::new(&fixture), &target, None).unwrap();
    assert!(holds(&target, &fixture));
    assert!(report.totals.write_bytes >= 60 * BLOCK as u64 && report.totals.move_bytes > 0, "{}", report.totals);
}

#[test]
fn weak_hashes_are_downloaded_only_where_there_is_something_to_find() {
    let (fixture, old) = pair(1200);
    let weak_hashes = object_path(&fixture.released.manifest.images[0].weak_hashes.unwrap().blake3);
    let asked_for_weak_hashes = |content: Vec<u8>| {
        let source = Noting::new(&fixture);
        let target = MemoryTarget::new(content);
        fixture.recover(&source, &target, None).unwrap();
        assert!(holds(&target, &fixture));
        let small = source.small.into_inner().unwrap();
        small.contains(&weak_hashes)
    };
    let bytes = fixture.image.len();
    assert!(!asked_for_weak_hashes(vec![0; bytes]), "a blank disk");
    assert!(!asked_for_weak_hashes(fixture.image.clone()), "an equal one");
    assert!(asked_for_weak_hashes(partition(&old, bytes)));
    assert!(asked_for_weak_hashes(sample_image(bytes / BLOCK, 77)), "random content");
}

#[test]
fn tables_that_are_larger_than_what_they_could_spare_are_not_downloaded() {
    let image = sample_image(8000, 3);
    let mut fixture = Fixture::with(image.clone(), |_| ());
    let mut next = image.clone();
    next[500 * BLOCK] ^= 1;
    fixture.publish(next, |spec| spec.version = "2".into());
    let published = fixture.released.manifest.image("system").unwrap().clone();
    let mut damaged = partition(&image, image.len());
    damaged[700 * BLOCK..701 * BLOCK].fill(0xdb);
    let target = MemoryTarget::new(damaged);
    let source = Noting::new(&fixture);
    fixture.recover(&source, &target, None).unwrap();
    assert!(holds(&target, &fixture));
    let hints = object_path(&published.weak_hashes.unwrap().blake3);
    assert!(source.downloaded() <= 2 * CHUNK as u64, "{}", source.downloaded());
    assert!(!source.small.lock().unwrap().contains(&hints));
}

#[test]
fn a_release_without_hints_or_with_those_of_another_one_is_installed() {
    let (fixture, old) = pair(1200);
    let weak_hashes = fixture.released.manifest.images[0].weak_hashes.unwrap();
    let start = partition(&old, fixture.image.len());
    let install = |manifest_of: &Fixture| {
        let target = MemoryTarget::new(start.clone());
        let report = manifest_of.recover(&Noting::new(manifest_of), &target, None);
        report.map(|report| (report.totals.move_bytes, holds(&target, manifest_of)))
    };
    // Wrong bytes under the name are no weak hashes: nothing is moved, and the rest of the release is as good as ever.
    std::fs::write(fixture.tree().join(object_path(&weak_hashes.blake3)), b"others").unwrap();
    assert_eq!(install(&fixture).unwrap(), (0, true));
}

#[test]
fn what_a_larger_image_left_behind_is_found_too() {
    let dir = tempfile::tempdir().unwrap();
    let state = StatePartition::new(dir.path());
    let large = sample_image(3000, 5);
    let mut fixture = Fixture::with(large.clone(), |_| ());
    let target = MemoryTarget::new(vec![0; 3200 * BLOCK]);
    fixture.recover(&Noting::new(&fixture), &target, Some(&state)).unwrap();
    // The next image is smaller, and much of it lay where it ends no more.
    let small = [&large[..200 * BLOCK], &large[2000 * BLOCK..2800 * BLOCK]].concat();
    fixture.publish(small, |spec| spec.version = "2".into());
    let report = fixture.recover(&Noting::new(&fixture), &target, Some(&state)).unwrap();
    assert!(target.content()[..fixture.image.len()] == fixture.image[..]);
    assert!(report.totals.download_bytes <= 2 * CHUNK as u64, "{}", report.totals);
}
