//! Digests of frames: of two frames with the same content, zstd sees only the one that was released.

use reflash::chain::chain;
use reflash::fetch::{Mirrors, RetryPolicy, Source};
use reflash::flash::write::WriteError;
use reflash::jobs::recovery::RecoveryError;
use reflash::release::digest::Digest;
use reflash::release::index::Index;
use reflash::release::manifest::{FrameObjects, Image, object_path};
use reflash_release::{check, keygen};

use crate::groups::Watched;
use crate::support::clock::FakeClock;
use crate::support::{Fixture, MemoryTarget, sample_image};

const CHUNK: usize = 16 * 1024;

fn index(fixture: &Fixture) -> Index {
    Index::from_object(&std::fs::read(fixture.index_path()).unwrap()).unwrap()
}

/// Places of the flags in the headers of all frames. [`Watched`] flips the bit there that no version of zstd reads:
/// what comes is a frame of the right content, and has a byte that was not released.
pub fn flags(index: &Index) -> Vec<(Digest, u64)> {
    let place = |stored| {
        let place = index.location(stored);
        (index.packs()[place.pack as usize].digest, place.range.start + 4)
    };
    (0..index.stored_count()).map(place).collect()
}

/// Signs the release again after a change of what it says of its image.
fn sign_with(fixture: &Fixture, change: impl FnOnce(&mut Image)) {
    let mut manifest = fixture.released.manifest.clone();
    change(&mut manifest.images[0]);
    let key = keygen::load_secret(&fixture.dir.path().join("keys/reflash.key")).unwrap();
    reflash_release::publish(&manifest, &key, &fixture.tree().join("stable/manifest.json")).unwrap();
}

fn objects(fixture: &Fixture) -> FrameObjects {
    fixture.released.manifest.images[0].frames.unwrap()
}

fn blank(fixture: &Fixture) -> MemoryTarget {
    MemoryTarget::new(vec![0; fixture.image.len()])
}

#[test]
fn what_zstd_would_take_is_refused_unless_it_is_what_was_released() {
    let fixture = Fixture::new();
    check::check(&fixture.tree(), "stable", &fixture.keys).unwrap();
    for flipped in [flags(&index(&fixture)), flags(&index(&fixture))[20..21].to_vec()] {
        let target = blank(&fixture);
        let error = fixture.recover(&Watched::new(&fixture, &flipped), &target, None).unwrap_err();
        let text = chain(&error);
        assert!(matches!(error, RecoveryError::Write(WriteError::Content { .. })), "{text}");
        assert!(text.contains("not compressed as in the release"), "{text}");
        assert_eq!(target.content()[..4096], [0; 4096], "the superblock stays blank");
        // Another mirror has it.
        let [liar, honest] =
            [&flipped[..], &[]].map(|wrong| Box::new(Watched::new(&fixture, wrong)) as Box<dyn Source>);
        let mirrors = Mirrors::with_clock(vec![liar, honest], RetryPolicy::Rounds(1), FakeClock::new().shared());
        let target = blank(&fixture);
        fixture.recover(&mirrors, &target, None).unwrap();
        assert!(target.content() == fixture.image);
    }
    // A release without digests is installed as ever. So that is what zstd would have taken.
    sign_with(&fixture, |image| image.frames = None);
    let target = blank(&fixture);
    fixture.recover(&Watched::new(&fixture, &flags(&index(&fixture))), &target, None).unwrap();
    assert!(target.content() == fixture.image);
}

/// What takes the place of groups was not to be fetched by itself: its digests are fetched then.
#[test]
fn what_takes_the_place_of_groups_is_compared_too() {
    let fixture = crate::groups::fixture();
    let groups = crate::groups::groups(&fixture);
    let group = |number| {
        let group = groups.get(number);
        (groups.packs()[group.pack as usize].digest, group.range.start)
    };
    let mut wrong: Vec<_> = (0..groups.len()).map(group).collect();
    let target = blank(&fixture);
    fixture.recover(&Watched::new(&fixture, &wrong), &target, None).unwrap();
    wrong.extend(flags(&index(&fixture)));
    let error = fixture.recover(&Watched::new(&fixture, &wrong), &blank(&fixture), None).unwrap_err();
    assert!(chain(&error).contains("not compressed as in the release"), "{}", chain(&error));
}

#[test]
fn only_the_pages_of_what_is_fetched_are_asked_for() {
    let fixture = Fixture::with(sample_image(2800, 9), |_| ());
    let (index, objects) = (index(&fixture), objects(&fixture));
    let stored = u64::from(index.stored_count());
    assert_eq!((objects.digests.size_bytes, objects.sums.size_bytes), (stored * 16, stored.div_ceil(128) * 16));
    let [sums, digests] = [objects.sums, objects.digests].map(|object| object_path(&object.blake3));
    let asked = |target: &MemoryTarget| {
        let source = Watched::new(&fixture, &[]);
        fixture.recover(&source, target, None).unwrap();
        assert!(target.content() == fixture.image);
        let ranges = source.ranges.lock().unwrap().clone();
        ranges.into_iter().filter(|(path, _)| [&sums, &digests].contains(&path)).collect::<Vec<_>>()
    };
    let target = blank(&fixture);
    assert_eq!(asked(&target), [(sums.clone(), 0..objects.sums.size_bytes), (digests.clone(), 0..stored * 16)]);
    assert_eq!(asked(&target), [], "nothing changed");
    let chunk = (0..index.chunk_count()).find(|chunk| {
        let content = index.chunk_content(*chunk);
        content == reflash::release::index::ChunkContent::Stored(300)
    });
    let mut damaged = fixture.image.clone();
    damaged[chunk.unwrap() as usize * CHUNK + 5000] ^= 1;
    let found = asked(&MemoryTarget::new(damaged));
    assert_eq!(found, [(sums.clone(), 0..objects.sums.size_bytes), (digests.clone(), 4096..6144)]);
}

/// Whoever copies a release, or deletes what none needs, knows the objects, and whoever publishes it is told of damage.
#[test]
fn the_builder_lists_and_checks_digests_of_frames() {
    let fixture = Fixture::new();
    let FrameObjects { sums, digests } = objects(&fixture);
    let listed = check::objects(&fixture.tree(), &fixture.released.manifest).unwrap();
    assert!(listed.contains(&sums.blake3) && listed.contains(&digests.blake3));
    let read = |digest: &Digest| std::fs::read(fixture.tree().join(object_path(digest))).unwrap();
    let put = |content: &[u8]| {
        let object = reflash::release::manifest::Object { blake3: Digest::of(content), ..digests };
        std::fs::write(fixture.tree().join(object_path(&object.blake3)), content).unwrap();
        reflash::release::manifest::Object { size_bytes: content.len() as u64, ..object }
    };
    let mut other = read(&digests.blake3);
    other[50] ^= 1;
    let cut = &read(&digests.blake3)[16..];
    for (objects, expected) in [
        (FrameObjects { sums, digests: put(&other) }, "frame 3 has another digest"),
        (FrameObjects { sums, digests: put(cut) }, "digests of frames"),
        (FrameObjects { sums: put(&[0; 16]), digests }, "the sums are not those"),
    ] {
        sign_with(&fixture, |image| image.frames = Some(objects));
        let text = format!("{:#}", check::check(&fixture.tree(), "stable", &fixture.keys).unwrap_err());
        assert!(text.contains(expected), "{expected}: {text}");
        // A robot that cannot use them goes on without.
        let target = blank(&fixture);
        fixture.recover(&Watched::new(&fixture, &[]), &target, None).unwrap();
        assert!(target.content() == fixture.image, "{expected}");
    }
}
