//! Groups: a first flash downloads less, an update does not ask for them, and without them, or with damaged ones,
//! everything ends as before.

use std::ops::Range;
use std::sync::Mutex;

use reflash::fetch::{Check, Directory, FetchError, Sink, SinkError, Source};
use reflash::release::digest::Digest;
use reflash::release::groups::Groups;
use reflash::release::index::Index;
use reflash::release::manifest::object_path;
use reflash_release::check;

use crate::support::{Faults, Fixture, MemoryTarget};

const BLOCK: usize = 4096;
const CHUNK: usize = 16 * 1024;

/// Lines, each of them many times but seldom twice in a chunk, and a few chunks of zeros.
fn text(blocks: usize, seed: u8) -> Vec<u8> {
    const LINE: usize = 64;
    let mut noise = vec![0; blocks * BLOCK / LINE * 2];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut noise);
    let mut lines = vec![0; 2048 * LINE];
    blake3::Hasher::new().update(&[seed, 1]).finalize_xof().fill(&mut lines);
    let (lines, numbers) = (lines.as_chunks::<LINE>().0, noise.as_chunks::<2>().0);
    let line = |number: &[u8; 2]| lines[usize::from(u16::from_le_bytes(*number)) % lines.len()];
    let mut content: Vec<u8> = numbers.iter().flat_map(line).collect();
    content[40 * CHUNK..44 * CHUNK].fill(0);
    content
}

/// Chunks enough for three groups, and a short last one.
const BLOCKS: usize = 4701;

pub fn fixture() -> Fixture {
    Fixture::with(text(BLOCKS, 1), |_| ())
}

fn index(fixture: &Fixture) -> Index {
    Index::from_object(&std::fs::read(fixture.index_path()).unwrap()).unwrap()
}

pub fn groups(fixture: &Fixture) -> Groups {
    let object = fixture.released.manifest.images[0].groups.unwrap();
    Groups::from_object(&std::fs::read(fixture.tree().join(object_path(&object.blake3))).unwrap(), &index(fixture))
        .unwrap()
}

/// The tree of a fixture, noting what is asked for; what lies at some places comes with a wrong byte.
pub struct Watched {
    tree: Directory,
    pub ranges: Mutex<Vec<(String, Range<u64>)>>,
    wrong: Vec<(String, u64)>,
    /// Paths of the digests of the index and of frames, and of what these are checked by.
    digests: Vec<String>,
}

impl Watched {
    pub fn new(fixture: &Fixture, wrong: &[(Digest, u64)]) -> Self {
        let wrong = wrong.iter().map(|(pack, at)| (object_path(pack), *at)).collect();
        let image = &fixture.released.manifest.images[0];
        let of_frames = image.frames.iter().flat_map(|frames| [frames.sums, frames.digests]);
        let objects = image.parts.iter().map(|parts| parts.digests).chain(of_frames);
        let digests = objects.map(|object| object_path(&object.blake3)).collect();
        Self { tree: Directory::new(fixture.tree()), ranges: Mutex::default(), wrong, digests }
    }

    /// Bytes of packs that were asked for.
    fn downloaded(&self) -> u64 {
        let ranges = self.ranges.lock().unwrap();
        ranges.iter().filter(|(path, _)| !self.digests.contains(path)).map(|(_, range)| range.end - range.start).sum()
    }
}

impl Source for Watched {
    fn describe(&self) -> String {
        self.tree.describe()
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        self.tree.get_checked(wanted, check)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        self.ranges.lock().unwrap().push((path.to_owned(), range.clone()));
        let mut position = range.start;
        self.tree.get_range(path, range, &mut |bytes| {
            let mut bytes = bytes.to_vec();
            for (_, at) in self.wrong.iter().filter(|(wrong, _)| wrong == path) {
                if (position..position + bytes.len() as u64).contains(at) {
                    bytes[(at - position) as usize] ^= 0x10;
                }
            }
            position += bytes.len() as u64;
            sink(&bytes)
        })
    }
}

fn blank(fixture: &Fixture) -> MemoryTarget {
    MemoryTarget::new(vec![0; fixture.image.len()])
}

/// Bytes that chunk by chunk would be downloaded.
fn frame_bytes(fixture: &Fixture) -> u64 {
    let index = index(fixture);
    (0..index.stored_count()).map(|stored| index.location(stored).range).map(|range| range.end - range.start).sum()
}

#[test]
fn a_first_flash_downloads_groups() {
    let fixture = fixture();
    check::check(&fixture.tree(), "stable", &fixture.keys).unwrap();
    assert_eq!(groups(&fixture).len(), 3);
    let (source, target) = (Watched::new(&fixture, &[]), blank(&fixture));
    let totals = fixture.recover(&source, &target, None).unwrap().totals;
    assert!(target.content() == fixture.image);
    assert_eq!(totals.download_bytes, source.downloaded());
    assert!(totals.download_bytes * 2 < frame_bytes(&fixture), "{totals}, chunks {}", frame_bytes(&fixture));
    // A partition full of something else is no different.
    let target = MemoryTarget::new(text(BLOCKS, 9));
    let again = fixture.recover(&Watched::new(&fixture, &[]), &target, None).unwrap().totals;
    assert!(target.content() == fixture.image);
    assert!(again.download_bytes <= totals.download_bytes + CHUNK as u64, "{again}");
}

#[test]
fn a_group_that_is_wrong_everywhere_is_replaced_by_its_chunks() {
    let fixture = fixture();
    let groups = groups(&fixture);
    let plan = blank(&fixture);
    let planned = fixture.recover(&Watched::new(&fixture, &[]), &plan, None).unwrap().totals.download_bytes;
    for number in 0..groups.len() {
        let group = groups.get(number);
        let pack = groups.packs()[group.pack as usize].digest;
        for at in [group.range.start, (group.range.start + group.range.end) / 2, group.range.end - 1] {
            let (source, target) = (Watched::new(&fixture, &[(pack, at)]), blank(&fixture));
            fixture.recover(&source, &target, None).unwrap();
            assert!(target.content() == fixture.image, "byte {at}");
            assert!(source.downloaded() > planned, "byte {at}");
        }
    }
    let all: Vec<_> = (0..groups.len())
        .map(|number| groups.get(number))
        .map(|group| (groups.packs()[group.pack as usize].digest, group.range.start))
        .collect();
    let target = blank(&fixture);
    fixture.recover(&Watched::new(&fixture, &all), &target, None).unwrap();
    assert!(target.content() == fixture.image, "every group is wrong");
}

#[test]
fn without_groups_or_their_table_the_chunks_are_downloaded() {
    let fixture = fixture();
    let remove = |digest: &Digest| std::fs::remove_file(fixture.tree().join(object_path(digest))).unwrap();
    remove(&groups(&fixture).packs()[0].digest);
    let target = blank(&fixture);
    fixture.recover(&Watched::new(&fixture, &[]), &target, None).unwrap();
    assert!(target.content() == fixture.image);
    remove(&fixture.released.manifest.images[0].groups.unwrap().blake3);
    let (source, target) = (Watched::new(&fixture, &[]), blank(&fixture));
    let totals = fixture.recover(&source, &target, None).unwrap().totals;
    assert!(target.content() == fixture.image);
    assert_eq!((totals.download_bytes, source.downloaded()), (frame_bytes(&fixture), frame_bytes(&fixture)));
}

/// A table that a trusted key signed for groups of other content: a slip of whoever made it.
#[test]
fn groups_of_other_content_are_replaced_by_the_chunks() {
    let fixture = fixture();
    let groups = groups(&fixture);
    let object = fixture.released.manifest.images[0].groups.unwrap();
    // Each group says that it is the next.
    let mut other = Groups::default();
    other.push_pack(groups.packs()[0]);
    for number in 0..groups.len() {
        let members = groups.get((number + 1) % groups.len()).members;
        let group = groups.get(number);
        other.push_to_last(group.range, group.digest, members);
    }
    let table = zstd::bulk::compress(&other.encode(), 3).unwrap();
    let mut manifest = fixture.released.manifest.clone();
    manifest.images[0].groups =
        Some(reflash::release::manifest::Object { blake3: Digest::of(&table), size_bytes: table.len() as u64 });
    std::fs::write(fixture.tree().join(object_path(&Digest::of(&table))), &table).unwrap();
    let key = reflash_release::keygen::load_secret(&fixture.dir.path().join("keys/reflash.key")).unwrap();
    reflash_release::publish(&manifest, &key, &fixture.tree().join("stable/manifest.json")).unwrap();
    let target = blank(&fixture);
    fixture.recover(&Watched::new(&fixture, &[]), &target, None).unwrap();
    assert!(target.content() == fixture.image);
    assert_ne!(Digest::of(&table), object.blake3);
    check::check(&fixture.tree(), "stable", &fixture.keys).unwrap_err();
}

#[test]
fn a_first_flash_that_was_cut_downloads_no_more_than_what_is_left() {
    let fixture = fixture();
    let complete = blank(&fixture);
    let planned = fixture.recover(&Watched::new(&fixture, &[]), &complete, None).unwrap().totals.download_bytes;
    for cut in 0..complete.writes().len() {
        let faults = Faults { fail_writes_from: Some(cut), ..Faults::default() };
        let target = MemoryTarget::faulty(vec![0; fixture.image.len()], faults);
        fixture.recover(&Watched::new(&fixture, &[]), &target, None).unwrap_err();
        let target = MemoryTarget::new(target.content());
        let source = Watched::new(&fixture, &[]);
        fixture.recover(&source, &target, None).unwrap();
        assert!(target.content() == fixture.image, "cut at write {cut}");
        assert!(source.downloaded() <= planned, "cut at write {cut}");
    }
}

#[test]
fn an_update_does_not_ask_for_groups_and_takes_them_over() {
    let mut fixture = fixture();
    let (old, before) = (fixture.image.clone(), groups(&fixture));
    let mut new = old.clone();
    (0..BLOCKS).step_by(200).for_each(|at| new[at * BLOCK + 5..at * BLOCK + 50].fill(b'x'));
    fixture.publish(new, |spec| spec.version = "2".into());
    let now = groups(&fixture);
    assert_eq!(&now.packs()[..before.packs().len()], before.packs(), "the packs of before are used again");
    assert!(now.len() > before.len() && now.packs()[1].size_bytes * 5 < now.packs()[0].size_bytes);
    check::check(&fixture.tree(), "stable", &fixture.keys).unwrap();
    let packs: Vec<String> = now.packs().iter().map(|pack| object_path(&pack.digest)).collect();
    // Whoever copies the release, or deletes what none needs, knows them.
    let listed = check::objects(&fixture.tree(), &fixture.released.manifest).unwrap();
    assert!(now.packs().iter().all(|pack| listed.contains(&pack.digest)));
    let (source, target) = (Watched::new(&fixture, &[]), MemoryTarget::new(old));
    fixture.recover(&source, &target, None).unwrap();
    assert!(target.content() == fixture.image);
    assert!(source.ranges.lock().unwrap().iter().all(|(path, _)| !packs.contains(path)));
    // A first flash of it takes old and new ones.
    let (source, target) = (Watched::new(&fixture, &[]), blank(&fixture));
    fixture.recover(&source, &target, None).unwrap();
    assert!(target.content() == fixture.image);
    let asked: Vec<String> = source.ranges.lock().unwrap().iter().map(|(path, _)| path.clone()).collect();
    assert!(packs.iter().all(|pack| asked.contains(pack)), "{asked:?}");
    // What is hardly of use any more is left behind.
    fixture.publish(text(BLOCKS, 7), |spec| spec.version = "3".into());
    assert!(groups(&fixture).packs().iter().all(|pack| !now.packs().contains(pack)));
    check::check(&fixture.tree(), "stable", &fixture.keys).unwrap();
}

/// The source is told which bytes are wrong, so that it can ask another copy for them.
#[test]
fn a_damaged_group_is_refused_before_the_next_byte_is_taken() {
    let fixture = fixture();
    let groups = groups(&fixture);
    let group = groups.get(1);
    struct Told(Watched, Mutex<Vec<u64>>);
    impl Source for Told {
        fn describe(&self) -> String {
            self.0.describe()
        }
        fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
            self.0.get_checked(wanted, check)
        }
        fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
            let (mut end, mut position) = (None, range.start);
            let fetched = self.0.get_range(path, range.clone(), &mut |bytes| {
                position += bytes.len() as u64;
                sink(bytes).inspect_err(|error| {
                    if let SinkError::Wrong { from, .. } = error {
                        self.1.lock().unwrap().push(*from);
                        end = Some(*from);
                    }
                })
            });
            match end {
                // Another copy has it.
                Some(from) => self.0.tree.get_range(path, from..range.end, sink),
                None => fetched,
            }
        }
    }
    let pack = groups.packs()[group.pack as usize].digest;
    let source = Told(Watched::new(&fixture, &[(pack, group.range.start + 9)]), Mutex::default());
    let target = blank(&fixture);
    let totals = fixture.recover(&source, &target, None).unwrap().totals;
    assert!(target.content() == fixture.image);
    assert_eq!(*source.1.lock().unwrap(), [group.range.start]);
    assert_eq!(totals.download_bytes, source.0.downloaded(), "no chunk was fetched by itself");
}
