//! What a release can be without: an object that spares downloads and is nowhere, refused, cut or damaged on the only
//! server costs bytes, and never the recovery.

use std::time::Duration;

use reflash::chain::chain;
use reflash::fetch::{FetchOptions, RetryPolicy, open_all};
use reflash::release::digest::Digest;
use reflash::release::groups::Groups;
use reflash::release::index::Index;
use reflash::release::manifest::object_path;

use crate::support::clock::FakeClock;
use crate::support::server::{TestServer, object, status};
use crate::support::{Fixture, MemoryTarget, sample_image};

const BLOCK: usize = 4096;

/// A first image, and one after it of which some moved, some changed a little, and some is new: it has everything that
/// spares downloads.
fn release() -> (Fixture, Vec<u8>) {
    let lines: Vec<u8> = sample_image(16, 5)[..2 * BLOCK].to_vec();
    let mut old = sample_image(800, 3);
    for (number, line) in old[400 * BLOCK..700 * BLOCK].chunks_mut(64).enumerate() {
        let from = (number * 37 + number / 64 * 11) % 128 * 64;
        line.copy_from_slice(&lines[from..from + 64]);
    }
    let mut new = old.clone();
    new.copy_within(4 * BLOCK..100 * BLOCK, 105 * BLOCK);
    (210 * BLOCK..390 * BLOCK).step_by(5 * BLOCK).for_each(|at| new[at..at + 9].fill(0x5a));
    new[720 * BLOCK..760 * BLOCK].copy_from_slice(&sample_image(800, 77)[..40 * BLOCK]);
    let mut fixture = Fixture::with(old.clone(), |_| ());
    fixture.publish(new, |spec| spec.version = "2".into());
    (fixture, old)
}

/// The optional objects of a release by name.
fn optional(fixture: &Fixture) -> Vec<(&'static str, Digest)> {
    let image = &fixture.released.manifest.images[0];
    let index = Index::from_object(&std::fs::read(fixture.index_path()).unwrap()).unwrap();
    let (table, deltas, parts) = (image.groups.unwrap(), &image.deltas[0], image.parts.as_ref().unwrap());
    let frames = image.frames.unwrap();
    let groups = std::fs::read(fixture.tree().join(object_path(&table.blake3))).unwrap();
    let groups = Groups::from_object(&groups, &index).unwrap();
    vec![
        ("table of groups", table.blake3),
        ("pack of groups", groups.packs()[0].digest),
        ("weak hashes", image.weak_hashes.unwrap().blake3),
        ("table of deltas", deltas.table.blake3),
        ("pack of deltas", deltas.pack.blake3),
        ("changed digests", deltas.digests.unwrap().blake3),
        ("outline", parts.outline.blake3),
        ("digests", parts.digests.blake3),
        ("sums of digests of frames", frames.sums.blake3),
        ("digests of frames", frames.digests.blake3),
    ]
}

#[test]
fn each_optional_object_may_be_missing_refused_cut_or_damaged() {
    let (fixture, old) = release();
    for (name, digest) in optional(&fixture) {
        for how in ["404 Not Found", "403 Forbidden", "cut", "flipped"] {
            for before in [vec![0; old.len()], old.clone()] {
                let (tree, bad) = (fixture.tree(), object_path(&digest));
                let server = TestServer::start(move |request| {
                    let path = request.target().split("/release/").nth(1).unwrap_or_default().to_owned();
                    let Ok(mut data) = std::fs::read(tree.join(&path)) else { return status("404 Not Found") };
                    match (path == bad, how) {
                        (false, _) => {}
                        (true, "cut") => data.truncate(data.len() - 3),
                        (true, "flipped") => {
                            let middle = data.len() / 2;
                            data[middle] ^= 4;
                        }
                        (true, refusal) => return status(refusal),
                    }
                    object(request, &data)
                });
                let clock = FakeClock::new();
                let options = FetchOptions { clock: clock.shared(), ..crate::fetch::options() };
                let mirrors = open_all(&[server.url()], &options, RetryPolicy::Forever).unwrap();
                let target = MemoryTarget::new(before.clone());
                let done = fixture.recover(&mirrors, &target, None).map_err(|error| chain(&error));
                assert!(done.is_ok(), "{name}, {how}: {}", done.unwrap_err());
                assert!(target.content() == fixture.image, "{name}, {how}");
                let waited: Duration = clock.pauses().iter().sum();
                assert!(waited < Duration::from_secs(300), "{name}, {how}: {waited:?} of pauses");
            }
        }
    }
}
