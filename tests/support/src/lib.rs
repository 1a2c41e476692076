//! What the tests share: a small signed release, a target in memory that can be made to fail.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small, and tests run on 64 bits")]
#![allow(clippy::new_without_default, reason = "making keys, files and directories is no default")]

pub mod attached;
pub mod clock;
pub mod isolated;
pub mod resident;
pub mod server;
pub mod tls;

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use reflash::cli::answer::Exit;
use reflash::fetch::Source;
use reflash::flash::target::BlockTarget;
use reflash::jobs::recovery::{self, Identity, Policy, RecoveryError, RecoveryJob, RecoveryReport, Resources};
use reflash::jobs::state::StatePartition;
use reflash::record::journal::Journal;
use reflash::release::manifest::TrustedKeys;
use reflash_release::{self as release, Released, Spec, keygen};

/// A release tree with its keys, in a directory of its own.
pub struct Fixture {
    /// Keeps the directory.
    pub dir: tempfile::TempDir,
    /// The image that was released.
    pub image: Vec<u8>,
    /// What was released.
    pub released: Released,
    /// The key it was signed with.
    pub keys: TrustedKeys,
}

/// An image of `blocks` blocks of 4 KiB: a superblock, pseudo-random content, zeros, repeats.
pub fn sample_image(blocks: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut image = Vec::with_capacity(blocks * 4096);
    for block in 0..blocks {
        let kind = block / 16 % 4;
        let mut content = vec![0_u8; 4096];
        if kind != 1 || block == 0 {
            for byte in content.iter_mut().take(if kind == 2 { 100 } else { 4096 }) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = (state >> 32) as u8;
            }
        }
        image.extend_from_slice(&content);
    }
    image
}

impl Fixture {
    /// `reflash flash` by hand, from `urls`, with `more` options, onto a file, which is made when it is not there.
    /// Whether it then holds the image.
    pub fn flash_by_hand(&self, urls: &[String], file: &Path, more: &[&str]) -> bool {
        if !file.exists() {
            std::fs::File::create(file).unwrap().set_len(self.image.len() as u64).unwrap();
        }
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        std::fs::write(path("machine.toml"), "[machine]\nproduct = \"demo\"\nhardware = \"unit-a\"\n").unwrap();
        let (target, config, keys) = (file.display().to_string(), path("machine.toml"), path("keys"));
        let mut arguments = vec!["flash", "--target", &target, "--config", &config, "--keys", &keys];
        arguments.extend(urls.iter().flat_map(|url| ["--url", url]));
        let exit = reflash::cli::run(arguments.iter().chain(more).map(Into::into));
        assert_ne!(exit, Exit::Usage, "{arguments:?} {more:?}");
        exit == Exit::Done && std::fs::read(file).unwrap() == self.image
    }

    /// Releases an image of 300 blocks with chunks of 16 KiB.
    pub fn new() -> Self {
        Self::with(sample_image(300, 1), |_| {})
    }

    /// Releases `image` after `change`.
    pub fn with(image: Vec<u8>, change: impl FnOnce(&mut Spec)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        keygen::generate(&dir.path().join("keys"), None).unwrap();
        let (released, keys) = publish(dir.path(), &image, change);
        Self { dir, image, released, keys }
    }

    /// Publishes another image in the same tree with the same key.
    pub fn publish(&mut self, image: Vec<u8>, change: impl FnOnce(&mut Spec)) {
        (self.released, self.keys) = publish(self.dir.path(), &image, change);
        self.image = image;
    }

    /// Root of the release tree.
    pub fn tree(&self) -> PathBuf {
        self.dir.path().join("release")
    }

    /// All objects of the tree, largest last.
    pub fn objects(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.tree().join("objects")).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort_by_key(|path| path.metadata().unwrap().len());
        paths
    }

    /// The object that is the chunk index.
    pub fn index_path(&self) -> PathBuf {
        let digest = self.released.manifest.images[0].index.blake3;
        self.tree().join(reflash::release::manifest::object_path(&digest))
    }

    /// The (first) pack.
    pub fn pack_path(&self) -> PathBuf {
        let index = reflash::release::index::Index::from_object(&std::fs::read(self.index_path()).unwrap()).unwrap();
        self.tree().join(reflash::release::manifest::object_path(&index.packs()[0].digest))
    }

    /// Runs a recovery of `target` from `source`.
    pub fn recover(
        &self,
        source: &dyn Source,
        target: &dyn BlockTarget,
        state: Option<&StatePartition>,
    ) -> Result<RecoveryReport, RecoveryError> {
        self.recover_as(source, target, state, |_| {})
    }

    /// Runs a recovery after `change` of what [`job`](Self::job) gives.
    pub fn recover_as(
        &self,
        source: &dyn Source,
        target: &dyn BlockTarget,
        state: Option<&StatePartition>,
        change: impl FnOnce(&mut RecoveryJob<'_>),
    ) -> Result<RecoveryReport, RecoveryError> {
        let journal = Journal::silent();
        let mut job = self.job(source, target, state, &journal);
        change(&mut job);
        recovery::run(&job, job.read_record().as_ref())
    }

    /// The recovery of a machine that the release fits.
    pub fn job<'a>(
        &'a self,
        source: &'a dyn Source,
        target: &'a dyn BlockTarget,
        state: Option<&'a StatePartition>,
        journal: &'a Journal,
    ) -> RecoveryJob<'a> {
        RecoveryJob {
            identity: Identity { product: "demo".into(), hardware: "unit-a".into(), channel: "stable".into() },
            policy: Policy::default(),
            resources: Resources { state, ..Resources::new(&self.keys, source, target) },
            journal,
        }
    }
}

fn publish(dir: &Path, image: &[u8], change: impl FnOnce(&mut Spec)) -> (Released, TrustedKeys) {
    let image_path = dir.join("system.img");
    std::fs::write(&image_path, image).unwrap();
    let files = keygen::KeyFiles::within(&dir.join("keys"));
    let mut spec = Spec {
        product: "demo".into(),
        hardware: vec!["unit-a".into()],
        channel: "stable".into(),
        version: "1".into(),
        serial: None,
        image: image_path,
        ostree: None,
        files: Vec::new(),
        layout: None,
        chunk_bytes: Some(16 * 1024),
        level: 3,
        created_unix_s: Some(1_700_000_000),
        allow: Vec::new(),
    };
    change(&mut spec);
    let key = keygen::load_secret(&files.secret).unwrap();
    let released = release::build(&spec, &key, &dir.join("release")).unwrap();
    let mut keys = TrustedKeys::default();
    keys.add("test", &std::fs::read_to_string(&files.public).unwrap()).unwrap();
    (released, keys)
}

/// A target in memory that counts what is written and fails where a test wants it.
pub struct MemoryTarget {
    data: Mutex<Vec<u8>>,
    /// Every write and flush in order, `None` for a flush.
    pub log: Mutex<Vec<Option<Range<u64>>>>,
    faults: Mutex<Faults>,
}

/// What goes wrong with a target.
#[derive(Default)]
pub struct Faults {
    /// The write with this number, from 0, and all later ones fail.
    pub fail_writes_from: Option<usize>,
    /// With this error; 0 is EIO.
    pub errno: i32,
    /// Writes that reach these blocks of 4 KiB flip a bit there, so many times.
    pub corrupt: Vec<(u64, u32)>,
    /// Blocks that cannot be read until they are written.
    pub unreadable: BTreeSet<u64>,
}

impl MemoryTarget {
    /// A target of this content.
    pub fn new(content: Vec<u8>) -> Self {
        Self { data: Mutex::new(content), log: Mutex::default(), faults: Mutex::default() }
    }

    /// A target of this content with faults.
    pub fn faulty(content: Vec<u8>, faults: Faults) -> Self {
        Self { faults: Mutex::new(faults), ..Self::new(content) }
    }

    /// What it holds.
    pub fn content(&self) -> Vec<u8> {
        self.data.lock().unwrap().clone()
    }

    /// Ranges written, without flushes.
    pub fn writes(&self) -> Vec<Range<u64>> {
        self.log.lock().unwrap().iter().flatten().cloned().collect()
    }
}

impl BlockTarget for MemoryTarget {
    fn name(&self) -> &str {
        "memory"
    }

    fn size_bytes(&self) -> u64 {
        self.data.lock().unwrap().len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let blocks = offset / 4096..(offset + buffer.len() as u64).div_ceil(4096);
        if self.faults.lock().unwrap().unreadable.range(blocks).next().is_some() {
            return Err(io::Error::from_raw_os_error(5));
        }
        let data = self.data.lock().unwrap();
        let from = data.get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(4096) && content.len().is_multiple_of(4096), "{offset} {}", content.len());
        let mut faults = self.faults.lock().unwrap();
        let mut log = self.log.lock().unwrap();
        let number = log.iter().flatten().count();
        if faults.fail_writes_from.is_some_and(|from| number >= from) {
            return Err(io::Error::from_raw_os_error(if faults.errno == 0 { 5 } else { faults.errno }));
        }
        log.push(Some(offset..offset + content.len() as u64));
        let mut data = self.data.lock().unwrap();
        data[offset as usize..offset as usize + content.len()].copy_from_slice(content);
        for block in offset / 4096..(offset + content.len() as u64) / 4096 {
            faults.unreadable.remove(&block);
            for (wrong, times) in &mut faults.corrupt {
                if *wrong == block && *times > 0 {
                    *times -= 1;
                    data[block as usize * 4096 + 17] ^= 4;
                }
            }
        }
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.write_at(range.start, &vec![0; (range.end - range.start) as usize])
    }

    fn flush(&self) -> io::Result<()> {
        self.log.lock().unwrap().push(None);
        Ok(())
    }
}
