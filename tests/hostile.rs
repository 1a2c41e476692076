//! What a signer with a fault, or with a stolen key, can make: numbers that are signed and cannot be right.

use reflash::boot::env::WritePermit;
use reflash::chain::chain;
use reflash::fetch::Directory;
use reflash::flash::plan::{Comparison, Plan, Reuse};
use reflash::flash::write::{Work, apply};
use reflash::record::progress::Done;
use reflash::release::digest::Digest;
use reflash::release::index::{Builder, ChunkContent, MIN_CHUNK_BYTES, Pack};
use reflash::release::manifest::object_path;

use reflash_release::keygen::{self, KeyFiles};
use reflash_release::{self as release, Allow, Spec};

use crate::support::MemoryTarget;

#[test]
fn numbers_that_end_a_channel_are_refused_before_they_are_signed() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("system.img");
    std::fs::write(&image, vec![1; 1 << 16]).unwrap();
    keygen::generate(&dir.path().join("keys"), None).unwrap();
    let key = keygen::load_secret(&KeyFiles::within(&dir.path().join("keys")).secret).unwrap();
    let build = |created_unix_s, serial| {
        let spec = Spec {
            product: "demo".into(),
            hardware: vec!["unit-a".into()],
            channel: "stable".into(),
            version: "1".into(),
            serial,
            image: image.clone(),
            ostree: None,
            files: Vec::new(),
            layout: None,
            chunk_bytes: Some(MIN_CHUNK_BYTES),
            level: 3,
            created_unix_s: Some(created_unix_s),
            allow: vec![Allow::FutureDate, Allow::SerialJump],
        };
        release::build(&spec, &key, &dir.path().join("release"))
    };
    let refusal = |created_unix_s, serial| format!("{:#}", build(created_unix_s, serial).unwrap_err());
    let text = refusal(1 << 63, None);
    assert!(text.contains("no clock can be set to that"), "{text}");
    let text = refusal(1_700_000_000, Some(u64::MAX));
    assert!(text.contains("hardly a release could follow it"), "{text}");
    let manifest = dir.path().join("release/stable/manifest.json");
    assert!(!manifest.exists());
    // Older builders signed such serials.
    build(1_700_000_000, None).unwrap();
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("\"serial\": 1,", &format!("\"serial\": {},", u64::MAX))).unwrap();
    let text = refusal(1_700_000_001, None);
    assert!(text.contains("no release can follow it"), "{text}");
}

/// The second chunk of the image is a whole one, and the content stored for it has 4 KiB with the right digest.
#[test]
fn content_shorter_than_its_chunk_is_a_fault_of_the_release_and_is_not_written() {
    let whole = vec![7; MIN_CHUNK_BYTES as usize];
    let contents = [whole.as_slice(), &[8; 4096]];
    let compressed = contents.map(|content| zstd::bulk::compress(content, 3).unwrap());
    let bytes = compressed.concat();
    let pack = Pack { digest: Digest::of(&bytes), size_bytes: bytes.len() as u64 };
    let mut builder = Builder::new(2 * u64::from(MIN_CHUNK_BYTES), MIN_CHUNK_BYTES).unwrap();
    for (content, compressed) in contents.iter().zip(&compressed) {
        let stored = builder.store(Digest::of(content), u32::try_from(compressed.len()).unwrap());
        builder.push_chunk(ChunkContent::Stored(stored));
    }
    builder.push_extent(0, pack, 0);
    let index = builder.finish().unwrap();

    let tree = tempfile::tempdir().unwrap();
    let path = tree.path().join(object_path(&pack.digest));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let target = MemoryTarget::new(vec![0x5a; 2 * whole.len()]);
    let comparison = Comparison::nothing_right(&index);
    let plan = Plan::new(&index, &comparison, Reuse::default());
    let (source, done) = (Directory::new(tree.path()), Done::default());
    let work = Work { plan: &plan, source: &source, target: &target, done: &done, read_behind: false };
    let error = apply(&index, &comparison, work, &WritePermit::without_environment()).err().unwrap();

    let text = chain(&error);
    assert!(text.contains(&pack.digest.to_string()) && text.contains("the release was built wrong"), "{text}");
    assert!(text.contains("has 4096 bytes of content, and its place has 16384"), "{text}");
    assert_eq!(target.content()[whole.len()..], vec![0x5a; whole.len()]);
}
