//! What is kept behind an image, with bytes changed and digests made right again: an undo leads to the old image, or is
//! refused before the first write, and a new release can be installed whatever is there.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use reflash::chain::chain;
use reflash::flash::undo;
use reflash::jobs::recovery::{self, Identity, Keep, Policy, RecoveryError, RecoveryJob, Resources};
use reflash::jobs::state::StatePartition;
use reflash::record::journal::Journal;
use reflash::release::digest::Digest;
use reflash::release::index::{Builder, ChunkContent, Pack};
use reflash::release::manifest::{FORMAT, Image, Manifest, Object, object_path};

use super::manifest::Signer;
use super::memory::{Objects, Partition, block};

const BLOCK: usize = 4096;
const CHUNK: usize = 4 * BLOCK;
const PARTITION: usize = 64 * BLOCK;

/// A robot after an update of which everything is kept that it destroyed.
struct Updated {
    old: Vec<u8>,
    new: Vec<u8>,
    /// The release that is installed.
    objects: HashMap<String, Vec<u8>>,
    partition: Vec<u8>,
}

impl Updated {
    fn get() -> &'static Self {
        static UPDATED: OnceLock<Updated> = OnceLock::new();
        UPDATED.get_or_init(|| {
            let old = image(1);
            let mut new = image(1);
            for at in [5, 9, 10, 22] {
                new[at * BLOCK..(at + 1) * BLOCK].copy_from_slice(&block(200 + at as u8));
            }
            let directory = std::env::temp_dir().join(format!("reflash-fuzz-undo-{}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            let state = StatePartition::new(&directory);
            let target = Partition::new(vec![0; PARTITION]);
            install(&release(&old, 1), &target, Some(&state), Keep::Kept).unwrap();
            let objects = release(&new, 2);
            install(&objects, &target, Some(&state), Keep::Installed).unwrap();
            std::fs::remove_dir_all(directory).unwrap();
            assert_eq!(undo::possible(&target, &Signer::get().keys).unwrap().serial, 1);
            Self { old, new, objects, partition: target.content() }
        })
    }
}

fn image(first: u8) -> Vec<u8> {
    (first..first + 30).flat_map(block).collect()
}

/// A signed release of an image.
fn release(image: &[u8], serial: u64) -> HashMap<String, Vec<u8>> {
    let mut objects = HashMap::new();
    let mut builder = Builder::new(image.len() as u64, CHUNK as u32).unwrap();
    let mut pack = Vec::new();
    for content in image.chunks(CHUNK) {
        let frame = zstd::bulk::compress(content, 1).unwrap();
        let stored = builder.store(Digest::of(content), frame.len() as u32);
        builder.push_chunk(ChunkContent::Stored(stored));
        pack.extend(frame);
    }
    builder.push_extent(0, Pack { digest: Digest::of(&pack), size_bytes: pack.len() as u64 }, 0);
    let index = zstd::bulk::compress(&builder.finish().unwrap().encode(), 1).unwrap();
    let described = Image {
        name: "system".to_owned(),
        size_bytes: image.len() as u64,
        sha256: String::new(),
        index: Object { blake3: Digest::of(&index), size_bytes: index.len() as u64 },
        weak_hashes: None,
        parts: None,
        deltas: Vec::new(),
        groups: None,
        frames: None,
        ostree_commit: None,
        ostree_ref: None,
    };
    let manifest = Manifest {
        format: FORMAT,
        product: "demo".to_owned(),
        hardware: vec!["unit-a".to_owned()],
        channel: "stable".to_owned(),
        version: serial.to_string(),
        serial,
        created_unix_s: 1_700_000_000,
        minimum_agent: "0.1.0".to_owned(),
        images: vec![described],
        layout: None,
        files: Vec::new(),
    };
    let json = serde_json::to_vec(&manifest).unwrap();
    objects.insert(object_path(&Digest::of(&pack)), pack);
    objects.insert(object_path(&Digest::of(&index)), index);
    objects.insert("stable/manifest.json.minisig".to_owned(), Signer::get().sign(&json).into_bytes());
    objects.insert("stable/manifest.json".to_owned(), json);
    objects
}

fn job<'a>(
    source: &'a Objects,
    target: &'a Partition,
    state: Option<&'a StatePartition>,
    keep: Keep,
    journal: &'a Journal,
) -> RecoveryJob<'a> {
    RecoveryJob {
        identity: Identity { product: "demo".into(), hardware: "unit-a".into(), channel: "stable".into() },
        policy: Policy { keep, ..Policy::default() },
        resources: Resources { state, ..Resources::new(&Signer::get().keys, source, target) },
        journal,
    }
}

fn install(
    objects: &HashMap<String, Vec<u8>>,
    target: &Partition,
    state: Option<&StatePartition>,
    keep: Keep,
) -> Result<(), RecoveryError> {
    let source = Objects { objects: objects.clone(), ..Objects::default() };
    let journal = Journal::silent();
    let job = job(&source, target, state, keep, &journal);
    recovery::run(&job, job.read_record().as_ref()).map(drop)
}

pub fn run(data: &[u8]) {
    let Some((&how, changes)) = data.split_first() else { return };
    let updated = Updated::get();
    let mut content = updated.partition.clone();
    let behind = updated.new.len();
    for change in changes.as_chunks::<3>().0 {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]])) % (PARTITION - behind);
        // Counted from the end, where most of it lies.
        content[PARTITION - 1 - place] ^= change[2];
    }
    seal(&mut content, how);
    let target = Partition::new(content.clone());
    let possible = undo::possible(&target, &Signer::get().keys);
    let (nothing, journal) = (Objects::default(), Journal::silent());
    match recovery::undo(&job(&nothing, &target, None, Keep::Kept, &journal), None) {
        Ok(_) => assert!(target.content().starts_with(&updated.old), "undone to something else"),
        Err(RecoveryError::Undo(_)) => {
            assert_eq!(target.writes.load(Ordering::Relaxed), 0, "refused, and written before");
        }
        Err(error) => panic!("{possible:?}, and then: {}", chain(&error)),
    }
    // The partition holds something else by now, if the undo was done.
    install(&updated.objects, &target, None, if how & 4 == 0 { Keep::Kept } else { Keep::Nothing }).unwrap();
    assert!(target.content().starts_with(&updated.new), "another image was installed");
}

/// Makes the digests of both headers right, and that of the directory that each names.
fn seal(content: &mut [u8], how: u8) {
    for header in [PARTITION - 2 * BLOCK, PARTITION - BLOCK] {
        let number = |content: &[u8], at: usize| {
            usize::try_from(u64::from_le_bytes(*content[header + at..].first_chunk().unwrap())).unwrap_or(usize::MAX)
        };
        let (start, length) = (number(content, 64 + 3 * 48), number(content, 64 + 3 * 48 + 8));
        let directory = start.checked_add(length).and_then(|end| content.get(start..end)).map(Digest::of);
        if let Some(digest) = directory.filter(|_| how & 2 != 0) {
            content[header + 64 + 3 * 48 + 16..][..32].copy_from_slice(&digest.0);
        }
        if how & 1 != 0 {
            let digest = Digest::of(&content[header..header + BLOCK - 32]);
            content[header + BLOCK - 32..header + BLOCK].copy_from_slice(&digest.0);
        }
    }
}
