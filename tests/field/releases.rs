//! Releases that are signed and cannot be right: by a builder with a fault, or with a stolen key. What contradicts
//! itself is refused by name before the first write, and what only the content shows is the release's fault, never the
//! disk's. `xtask release --check` refuses all of them.

use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use reflash::chain::chain;
use reflash::fetch::{Check, Directory, FetchError, Sink, Source};
use reflash::flash::write::WriteError;
use reflash::jobs::recovery::{self, RecoveryError};
use reflash::record::journal::Journal;
use reflash::release::deltas::{Delta, Deltas};
use reflash::release::digest::Digest;
use reflash::release::index::outline::Outline;
use reflash::release::index::{Builder, ChunkContent, Pack};
use reflash::release::manifest::{DeltaObjects, IndexParts, Manifest, Object, object_path};
use reflash::release::weak_hashes::{WeakHash, WeakHashes};
use reflash_release::check::check;
use reflash_release::keygen::{self, KeyFiles};

use super::raw_index::RawIndex;
use crate::support::{Faults, Fixture, MemoryTarget};

const CHUNK: usize = 16 * 1024;
const LEVEL: i32 = 3;

/// Four full chunks and a short one of 4 KiB, all different and none of zeros.
fn image() -> Vec<u8> {
    (0..17_u8).flat_map(|block| (0..4096_u32).map(move |at| (block + 1) ^ (at % 97) as u8)).collect()
}

/// A signed release that a test changes and signs again.
struct Release {
    fixture: Fixture,
    index: RawIndex,
}

impl Release {
    fn new() -> Self {
        let fixture = Fixture::with(image(), |_| {});
        let object = std::fs::read(fixture.index_path()).unwrap();
        Self { index: RawIndex::of(&zstd::stream::decode_all(&object[..]).unwrap()), fixture }
    }

    fn put(&self, content: &[u8]) -> Object {
        let object = Object { blake3: Digest::of(content), size_bytes: content.len() as u64 };
        std::fs::write(self.fixture.tree().join(object_path(&object.blake3)), content).unwrap();
        object
    }

    fn sign(&self, manifest: &Manifest) {
        let key = keygen::load_secret(&KeyFiles::within(&self.fixture.dir.path().join("keys")).secret).unwrap();
        reflash_release::publish(manifest, &key, &self.fixture.tree().join("stable/manifest.json")).unwrap();
    }

    fn sign_index_object(&self, object: &[u8]) {
        let mut manifest = self.fixture.released.manifest.clone();
        // The index alone is to say what it says.
        manifest.images[0].parts = None;
        manifest.images[0].frames = None;
        manifest.images[0].index = self.put(object);
        self.sign(&manifest);
    }

    fn sign_index(&self) {
        self.sign_index_object(&zstd::bulk::compress(&self.index.encode(), LEVEL).unwrap());
    }

    /// Stores other bytes for one chunk, in a pack of its own, and signs that.
    fn sign_chunk(&mut self, stored: usize, bytes: &[u8]) {
        let old = std::fs::read(self.fixture.pack_path()).unwrap();
        let starts: Vec<usize> =
            self.index.lengths.iter().scan(0, |at, len| Some(std::mem::replace(at, *at + *len as usize))).collect();
        let mut pack = Vec::new();
        for (number, (start, len)) in starts.into_iter().zip(self.index.lengths.clone()).enumerate() {
            let content = if number == stored { bytes } else { &old[start..start + len as usize] };
            pack.extend_from_slice(content);
            self.index.lengths[number] = content.len() as u32;
        }
        let object = self.put(&pack);
        self.index.packs = vec![(object.blake3.0, object.size_bytes)];
        self.sign_index();
    }

    fn source(&self) -> Directory {
        Directory::new(self.fixture.tree())
    }

    fn check(&self) -> Result<Manifest, String> {
        check(&self.fixture.tree(), "stable", &self.fixture.keys).map_err(|error| format!("{error:#}"))
    }

    /// Nothing is written, with read-back or without, and the reason has `expected` in it.
    fn is_refused(&self, expected: &str) {
        let target = MemoryTarget::new(vec![0x5a; 2 * self.fixture.image.len()]);
        let source = self.source();
        let journal = Journal::silent();
        let job = self.fixture.job(&source, &target, None, &journal);
        for refused in [recovery::run(&job, None).map(drop), recovery::write_only(&job, None).map(drop)] {
            let error = refused.unwrap_err();
            let text = chain(&error);
            assert!(text.contains(expected), "{expected}: {text}");
            assert!(error.is_of_the_release() && !text.contains("disk"), "{text}");
        }
        assert!(target.log.lock().unwrap().is_empty(), "{expected}");
        let text = self.check().unwrap_err();
        assert!(text.contains(expected), "release --check, {expected}: {text}");
    }

    /// The release is at fault for what it has, and the disk is not.
    fn is_blamed(&self, expected: &str) {
        let size = self.fixture.image.len();
        let (read_back, written) = (MemoryTarget::new(vec![0x5a; size]), MemoryTarget::new(vec![0x5a; size]));
        let (source, journal) = (self.source(), Journal::silent());
        let errors = [
            recovery::run(&self.fixture.job(&source, &read_back, None, &journal), None).map(drop).unwrap_err(),
            recovery::write_only(&self.fixture.job(&source, &written, None, &journal), None).map(drop).unwrap_err(),
        ];
        for error in errors {
            let text = chain(&error);
            assert!(matches!(error, RecoveryError::Write(WriteError::Content { .. })), "{text}");
            assert!(text.contains(expected) && text.contains("the disk is not at fault"), "{expected}: {text}");
            assert!(error.is_of_the_release());
        }
        for target in [read_back, written] {
            assert_eq!(target.content()[..4096], [0; 4096], "the superblock stays blank");
        }
        let text = self.check().unwrap_err();
        assert!(text.contains("check chunk"), "release --check, {expected}: {text}");
    }
}

/// Declared sizes that the data does not have: https://github.com/folbricht/desync/pull/350 (a reader of indexes that
/// panics, or goes round in a circle). The rest are all other ways in which the numbers of an index can contradict each
/// other.
#[test]
fn an_index_whose_numbers_contradict_each_other_is_refused_before_the_first_write() {
    type Change = fn(&mut RawIndex);
    let cases: &[(&str, Change)] = &[
        ("two extents share bytes", |index| index.extents = vec![(0, 0, 0), (1, 0, 10)]),
        ("two extents share bytes", |index| {
            // The same place twice.
            index.lengths = vec![20; 5];
            index.extents = vec![(0, 0, 0), (2, 0, 0)];
        }),
        ("does not end in its pack", |index| {
            index.extents.push((4, 0, u64::MAX - 5));
            index.packs[0].1 = u64::MAX;
        }),
        ("does not end in its pack", |index| index.packs[0].1 -= 1),
        ("does not end in its pack", |index| index.packs[0].1 = 0),
        ("does not end in its pack", |index| index.extents[0].2 = 1),
        ("does not end in its pack", |index| *index.lengths.last_mut().unwrap() += 1),
        ("empty or out of order", |index| index.extents = vec![(0, 0, 0), (3, 0, 0), (2, 0, 0)]),
        ("empty or out of order", |index| index.extents.push((0, 0, 0))),
        ("empty or out of order", |index| index.extents.push((5, 0, 0))),
        ("empty or out of order", |index| index.extents.push((u32::MAX, 0, 0))),
        ("does not begin at stored chunk 0", |index| index.extents[0].0 = 1),
        ("does not begin at stored chunk 0", |index| {
            index.extents.clear();
            index.packs.clear();
        }),
        ("pack 1 of 1 is named", |index| index.extents[0].1 = 1),
        ("pack 4294967295 of 1 is named", |index| index.extents[0].1 = u32::MAX),
        ("stored chunk 5 of 5 is named", |index| index.chunks[2] = 5),
        ("stored chunk 4294967294 of 5 is named", |index| index.chunks[2] = u32::MAX - 1),
        ("stored chunk 2 is in no place", |index| index.chunks[2] = 1),
        ("stored chunk 2 is in no place", |index| index.chunks[2] = u32::MAX),
        ("the short last chunk is shared", |index| {
            // Four stored chunks are left, and the last one is in a full place and in the short one.
            index.chunks[4] = 3;
            index.lengths.pop();
            index.digests.pop();
        }),
        ("a compressed length of 0", |index| index.lengths[1] = 0),
        ("a compressed length of 17537", |index| index.lengths[1] = 17537),
        ("a compressed length of 4294967295", |index| index.lengths[1] = u32::MAX),
        ("stored chunks 1 and 3 have the same digest", |index| index.digests[3] = index.digests[1]),
        ("stored chunks 0 and 4 have the same digest", |index| index.digests[4] = index.digests[0]),
        ("packs 0 and 1 have the same digest", |index| {
            index.packs.push((index.packs[0].0, 1 << 30));
            index.extents.push((4, 1, 0));
        }),
        ("no chunk lies in pack 1 of 2", |index| {
            index.packs.push(([7; 32], 100));
            index.extents.push((4, 0, u64::from(index.lengths[..4].iter().sum::<u32>())));
        }),
        ("4 chunks, and the sizes ask for 5", |index| index.chunks.truncate(4)),
        ("6 chunks, and the sizes ask for 5", |index| index.chunks.push(u32::MAX)),
        ("4294967295 chunks, and the sizes ask for 5", |index| index.counts[0] = Some(u32::MAX)),
        ("4294967295 stored chunks for 5 chunks", |index| index.counts[1] = Some(u32::MAX)),
        ("4294967295 extents", |index| index.counts[2] = Some(u32::MAX)),
        ("4294967295 packs", |index| index.counts[3] = Some(u32::MAX)),
        ("its header asks for", |index| index.counts[1] = Some(4)),
        ("image size 0 is not", |index| index.image_bytes = 0),
        ("image size 65537 is not", |index| index.image_bytes = 65537),
        ("has more than 262144 chunks", |index| index.image_bytes = u64::MAX - 4095),
        ("describes 65536 bytes and the manifest 69632", |index| {
            // Four chunks that fit each other, of an image that the manifest does not have.
            index.image_bytes = 65536;
            index.chunks.pop();
            index.lengths.pop();
            index.digests.pop();
        }),
        ("chunk size 0 is not", |index| index.chunk_bytes = 0),
        ("chunk size 16385 is not", |index| index.chunk_bytes = 16385),
        ("chunk size 8388608 is not", |index| index.chunk_bytes = 1 << 23),
        ("5 chunks, and the sizes ask for 3", |index| index.chunk_bytes = 32768),
    ];
    for (expected, change) in cases {
        let mut release = Release::new();
        change(&mut release.index);
        release.sign_index();
        release.is_refused(expected);
    }
    Release::new().check().unwrap();
}

/// What a decompressor is willing to take is more than what a release may have: skippable frames
/// (https://github.com/facebook/zstd/issues/904), and windows that are allocated before a byte is decompressed
/// (https://github.com/skbkontur/ZstdNet/issues/32).
#[test]
fn an_index_in_another_wrapping_than_one_bounded_frame_is_refused() {
    const SKIPPABLE: [u8; 11] = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let release = Release::new();
    let bytes = release.index.encode();
    let frame = zstd::bulk::compress(&bytes, LEVEL).unwrap();
    let mut wide = zstd::stream::write::Encoder::new(Vec::new(), LEVEL).unwrap();
    wide.window_log(27).unwrap();
    wide.write_all(&bytes).unwrap();
    wide.flush().unwrap();
    let halves = bytes.split_at(60);
    let halves = [halves.0, halves.1].map(|half| zstd::bulk::compress(half, LEVEL).unwrap());
    let mut dictionary = frame.clone();
    // One more byte in the header, with a dictionary's number.
    dictionary[4] |= 1;
    dictionary.insert(if dictionary[4] & 0x20 == 0 { 6 } else { 5 }, 9);
    let swollen = [&bytes[..], &vec![0; 40 << 20]].concat();
    for (object, expected) in [
        ([&frame[..], &SKIPPABLE].concat(), "11 follow it"),
        ([&SKIPPABLE[..], &frame].concat(), "does not begin with a zstd frame"),
        ([&frame[..], b"\n"].concat(), "1 follow it"),
        (halves.concat(), "follow it"),
        (frame[..frame.len() - 1].to_vec(), "is not whole"),
        (dictionary, "asks for the dictionary 9"),
        (wide.finish().unwrap(), "too much memory"),
        (zstd::bulk::compress(&swollen, LEVEL).unwrap(), "at most 25165872 are allowed"),
        (zstd::stream::encode_all(&swollen[..], LEVEL).unwrap(), "its header asks for"),
        (bytes, "does not begin with a zstd frame"),
    ] {
        release.sign_index_object(&object);
        release.is_refused(expected);
    }
}

/// Two entries for one artefact: https://github.com/oxidecomputer/omicron/pull/3990.
#[test]
fn a_manifest_whose_objects_contradict_each_other_is_refused() {
    type Change = fn(&mut Manifest);
    let cases: &[(&str, Change)] = &[
        ("two images have the name", |manifest| manifest.images.push(manifest.images[0].clone())),
        ("in one place and", |manifest| {
            let index = manifest.images[0].index;
            let object = Object { size_bytes: index.size_bytes + 1, ..index };
            manifest.files.push(reflash::release::manifest::File { name: "copy".into(), object });
        }),
        ("the chunk index of image", |manifest| manifest.images[0].index.size_bytes = 1 << 40),
    ];
    for (expected, change) in cases {
        let release = Release::new();
        let mut manifest = release.fixture.released.manifest.clone();
        change(&mut manifest);
        release.sign(&manifest);
        release.is_refused(expected);
    }
}

/// A version that no record has room for, or that a console obeys: https://github.com/openSUSE/osc/issues/1490 (what a
/// server sends moves the cursor), https://github.com/rfc1036/whois/pull/214.
#[test]
fn a_version_that_cannot_be_shown_or_recorded_is_refused() {
    for version in ["", "\u{1b}[2J1.0", "1.0\u{9b}2J", &"1".repeat(101), &"\u{1f916}".repeat(500)] {
        let release = Release::new();
        let manifest = Manifest { version: version.to_owned(), ..release.fixture.released.manifest.clone() };
        release.sign(&manifest);
        release.is_refused("1 to 100 bytes of text are allowed");
    }
}

/// The size that an index declares and that of the data: https://github.com/folbricht/desync/pull/350. A failure that
/// blames the wrong side: https://github.com/raspberrypi/rpi-imager/issues/323, and
/// https://github.com/clearlinux/swupd-client/pull/1570, where the person cannot see which side it was.
#[test]
fn content_that_is_not_what_the_index_says_is_the_fault_of_the_release() {
    let whole = |fill: u8, len: usize| zstd::bulk::compress(&vec![fill; len], LEVEL).unwrap();
    let raw = |content: &[u8]| {
        // One raw block, the last one, in a frame that does not declare its size.
        let header = (content.len() as u32) << 3 | 1;
        [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x60][..], &header.to_le_bytes()[..3], content].concat()
    };
    let right = zstd::bulk::compress(&image()[CHUNK..2 * CHUNK], LEVEL).unwrap();
    for (bytes, digest, expected) in [
        (whole(7, 4096), Some(vec![7; 4096]), "has 4096 bytes of content, and its place has 16384"),
        (whole(7, 2 * CHUNK), Some(vec![7; 2 * CHUNK]), "has 32768 bytes of content, and its place has 16384"),
        (raw(&[7; 4096]), Some(vec![7; 4096]), "has 4096 bytes of content, and its place has 16384"),
        (raw(&[7; CHUNK + 1]), Some(vec![7; CHUNK + 1]), "cannot be decompressed"),
        (whole(7, CHUNK), None, "has the digest"),
        (vec![0; 100], None, "does not begin with a zstd frame"),
        (right[..right.len() - 1].to_vec(), None, "is not whole"),
        ([&right[..], &right].concat(), None, "follow it"),
        ([&right[..], b"\0"].concat(), None, "1 follow it"),
    ] {
        let mut release = Release::new();
        if let Some(content) = digest {
            release.index.digests[1] = Digest::of(&content).0;
        }
        release.sign_chunk(1, &bytes);
        release.is_blamed(expected);
    }
}

/// The text of a run that installs the image all the same.
fn installs_with_warnings(release: &Release) -> String {
    // Not blank, or there would be nothing to move and nothing to patch.
    let target = MemoryTarget::new(vec![0x5a; release.fixture.image.len()]);
    let (source, journal) = (release.source(), Journal::silent());
    let text = Arc::new(Mutex::new(String::new()));
    let lines = Arc::clone(&text);
    journal.tee(Box::new(move |line| *lines.lock().unwrap() += &format!("{line}\n")));
    recovery::run(&release.fixture.job(&source, &target, None, &journal), None).unwrap();
    assert!(target.content() == release.fixture.image);
    std::mem::take(&mut *text.lock().unwrap())
}

/// Weak hashes and deltas only save downloads: tables that contradict themselves or the index are refused by name, and
/// the release is installed without them. `release --check` does not let them be published.
#[test]
fn tables_that_contradict_the_index_are_refused_by_name_and_not_used() {
    let header = |numbers: [u32; 4]| [&b"RFLASHBH"[..], &numbers.map(u32::to_le_bytes).concat()].concat();
    let blocks = |count: usize| WeakHash::of(&[1; 4096]).bits().to_le_bytes()[..6].repeat(count);
    for (object, expected) in [
        ([header([1, 4, 6, 0]), blocks(24)].concat(), "covers 6 chunks of 4 blocks and the index has 5 of 4"),
        ([header([1, 8, 5, 0]), blocks(40)].concat(), "covers 5 chunks of 8 blocks"),
        ([header([1, 1 << 31, 1 << 31, 0]), blocks(20)].concat(), "covers 2147483648 chunks"),
        ([header([1, 4, 5, 0]), blocks(19)].concat(), "its header asks for 144"),
        ([header([1, 4, 5, 0]), blocks(21)].concat(), "its header asks for 144"),
        ([header([1, 4, 5, 0]), blocks(20)].concat(), "a block behind the last 1 of stored chunk 4"),
        ([header([1, 4, 5, 1]), blocks(20)].concat(), "reserved field is not 0"),
        (header([2, 4, 0, 0]), "not weak block hashes of version 1"),
        (b"RFLASHBH".to_vec(), "not weak block hashes of version 1"),
    ] {
        let release = Release::new();
        let mut manifest = release.fixture.released.manifest.clone();
        manifest.images[0].weak_hashes = Some(release.put(&object));
        release.sign(&manifest);
        let text = installs_with_warnings(&release);
        assert!(text.contains(expected), "{expected}: {text}");
        assert!(release.check().unwrap_err().contains(expected), "{expected}");
    }

    #[expect(clippy::single_range_in_vec_init, reason = "ranges of blocks, one of them")]
    for (deltas, size_bytes, expected) in [
        (vec![(vec![2], vec![], 50), (vec![2], vec![], 50)], 100, "do not ascend"),
        (vec![(vec![2], vec![], 50), (vec![1], vec![], 50)], 100, "do not ascend"),
        (vec![(vec![0], vec![], 100)], 100, "chunk 0 is none that a delta can make"),
        (vec![(vec![9], vec![], 100)], 100, "chunk 9 is none that a delta can make"),
        (vec![(vec![], vec![], 100)], 100, "makes 0 bytes of 0 blocks"),
        (vec![(vec![1], vec![1..600], 100)], 100, "of 599 blocks"),
        (vec![(vec![1], vec![0..1], 100)], 100, "or the first one"),
        (vec![(vec![1], vec![7..7], 100)], 100, "has no blocks"),
        (vec![(vec![1], vec![], 0)], 0, "has 0 bytes"),
        (vec![(vec![1], vec![], u32::MAX)], u64::from(u32::MAX), "has 4294967295 bytes"),
        (vec![(vec![1], vec![], 99)], 100, "99 bytes, of 1, 0 and 100"),
    ] {
        let release = Release::new();
        let mut manifest = release.fixture.released.manifest.clone();
        let pack = Object { size_bytes, ..release.put(&[1; 100]) };
        let mut table = Deltas::new(Pack { digest: pack.blake3, size_bytes });
        for (chunks, sources, length) in &deltas {
            table.push(Delta { chunks, sources, base: 0, length: *length, digest: Digest::of(&[1; 100]).half() });
        }
        let table = zstd::bulk::compress(&table.encode(), LEVEL).unwrap();
        manifest.images[0].deltas =
            vec![DeltaObjects { from: String::new(), digests: None, table: release.put(&table), pack }];
        release.sign(&manifest);
        let text = installs_with_warnings(&release);
        assert!(text.contains(expected), "{expected}: {text}");
        let text = release.check().unwrap_err();
        assert!(text.contains(expected) || size_bytes != 100, "{expected}: {text}");
    }
}

/// Parts of the index only save downloads: where they contradict the index, or are not there, it is fetched whole.
#[test]
fn parts_that_are_not_those_of_the_index_cost_a_download_and_nothing_else() {
    type Change = fn(&Release, &mut IndexParts);
    let changes: [(Change, &str); 7] = [
        (|_, parts| parts.chunk_bytes = 0, "the chunks have"),
        (|_, parts| parts.chunk_bytes = 3 << 14, "the chunks have"),
        (|_, parts| parts.chunk_bytes *= 2, "the chunks have"),
        (|release, parts| parts.outline = release.put(b"no outline"), "read the outline"),
        (
            |release, parts| {
                // Of another image: fewer chunks, and every sum wrong.
                let mut builder = Builder::new(4 * CHUNK as u64, CHUNK as u32).unwrap();
                let stored = builder.store(Digest::of(b"other"), 9);
                (0..4).for_each(|_| builder.push_chunk(ChunkContent::Stored(stored)));
                builder.push_extent(0, Pack { digest: Digest::of(b"pack"), size_bytes: 9 }, 0);
                let outline = Outline::encode(&builder.finish().unwrap());
                parts.outline = release.put(&zstd::bulk::compress(&outline, LEVEL).unwrap());
            },
            "the outline is not that",
        ),
        (|release, parts| parts.digests = release.put(&[7; 5 * 32]), "the digests are not those"),
        (|_, parts| parts.digests.blake3 = Digest::of(b"gone"), "read"),
    ];
    for (change, expected) in changes {
        let release = Release::new();
        let mut manifest = release.fixture.released.manifest.clone();
        change(&release, manifest.images[0].parts.as_mut().unwrap());
        release.sign(&manifest);
        installs_with_warnings(&release);
        let text = release.check().unwrap_err();
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

/// Weak hashes of other content fit the index by their numbers. A robot loses a download by them; whoever publishes
/// them should know.
#[test]
fn weak_hashes_of_other_content_are_not_published() {
    let release = Release::new();
    let mut weak_hashes = WeakHashes::builder(CHUNK as u32);
    weak_hashes.push(&[WeakHash::of(&[1; 4096]); 4]);
    let mut manifest = release.fixture.released.manifest.clone();
    manifest.images[0].weak_hashes = Some(release.put(&weak_hashes.encode()));
    release.sign(&manifest);
    installs_with_warnings(&release);
    let text = release.check().unwrap_err();
    assert!(text.contains("check chunk 0: its weak hashes are of other content"), "{text}");
}

/// A source that reports success before the last byte, so many times.
struct Hasty {
    tree: Directory,
    times: AtomicU32,
}

impl Source for Hasty {
    fn describe(&self) -> String {
        "a hasty source".into()
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        self.tree.get_checked(wanted, check)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        let is_hasty =
            self.times.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        let end = if is_hasty { range.start + 30 } else { range.end };
        self.tree.get_range(path, range.start..end, sink)
    }
}

/// Chunks that a store has lost: https://github.com/folbricht/desync/issues/92. Whatever says "done" without them is
/// not believed, and a system without them is neither "written" nor the disk's fault.
#[test]
fn chunks_that_never_came_are_counted_and_asked_for_once_more() {
    let release = Release::new();
    // The first two requests are for digests of the index, which is then fetched whole, and for the sums of digests of
    // frames, which are asked for again with the chunks that did not come.
    for (times, is_installed) in [(3, true), (5, false), (u32::MAX, false)] {
        for reads_back in [true, false] {
            let source = Hasty { tree: release.source(), times: AtomicU32::new(times) };
            let target = MemoryTarget::new(vec![0x5a; release.fixture.image.len()]);
            let journal = Journal::silent();
            let job = release.fixture.job(&source, &target, None, &journal);
            let result = if reads_back {
                recovery::run(&job, None).map(drop)
            } else {
                recovery::write_only(&job, None).map(drop)
            };
            if is_installed {
                result.unwrap();
                assert!(target.content() == release.fixture.image);
                continue;
            }
            let error = result.unwrap_err();
            let text = chain(&error);
            assert!(matches!(error, RecoveryError::Write(WriteError::NotDelivered { .. })), "{text}");
            assert!(text.contains("of 5 chunks were asked for and never delivered"), "{text}");
            assert!(error.is_retryable() && !error.is_of_the_release());
            assert_eq!(target.content()[..4096], [0; 4096], "the superblock stays blank");
        }
    }
}

/// A card that does not hold what was written: https://github.com/raspberrypi/rpi-imager/issues/856. The sentence about
/// the disk is for this case, and only for it.
#[test]
fn a_disk_that_does_not_hold_what_was_written_is_named_as_failing() {
    let release = Release::new();
    let faults = Faults { corrupt: vec![(9, u32::MAX)], ..Faults::default() };
    let target = MemoryTarget::faulty(vec![0x5a; release.fixture.image.len()], faults);
    let error = release.fixture.recover(&release.source(), &target, None).unwrap_err();
    let text = chain(&error);
    assert!(matches!(error, RecoveryError::ReadBack { .. }) && text.contains("the disk is failing"), "{text}");
}
