//! Memory of the agent, measured by the kernel on the real binary.
//!
//! The largest case has three releases of as many chunks as there may be, with no chunk in common: the one that is
//! installed, the one that is kept for an undo, and the new one. Nothing takes more memory for each chunk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use reflash::boot::env::BootEnv;
use reflash::flash::plan::{Blocks, Comparison, FoundBlocks, Plan, Reuse};
use reflash::flash::target::DeviceTarget;
use reflash::flash::undo;
use reflash::release::digest::Digest;
use reflash::release::index::{Builder, ChunkContent, Index, MAX_CHUNKS, MIN_CHUNK_BYTES, Pack};
use reflash::release::manifest::{TrustedKeys, object_path};
use reflash::release::weak_hashes::{MAX_BLOCKS, WeakHash, WeakHashes};
use reflash_release::{self as release, Spec, keygen};
use tempfile::TempDir;

use crate::support::resident::{own_peak_resident_kib, peak_resident_kib};
use crate::support::server::{TestServer, object, status};

/// Memory that all processes of the agent together may take, KiB: what the design allows on a machine with 512 MiB.
const MAX_RESIDENT_KIB: u64 = 128 * 1024;
/// Memory of PID 1 beside the worker that writes, KiB: hardly more than what it has touched of the program, whose whole
/// file has at most 4.5 MiB.
const PID1_KIB: u64 = 6 * 1024;
/// Memory for each chunk, bytes: 200 to 300 were measured here, where few chunks do not yet fill all buffers, and 475
/// while an index was held more than once.
const MAX_BYTES_PER_CHUNK: u64 = 400;

/// A robot with a disk image, and a server that has its releases.
struct Bench {
    dir: TempDir,
    /// One block in each chunk, and a disk may take long to free so many pieces of a file.
    images: TempDir,
    server: TestServer,
    chunks: u64,
    releases: u64,
}

impl Bench {
    fn new(chunks: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        keygen::generate(&dir.path().join("keys"), None).unwrap();
        fs::write(dir.path().join("machine.toml"), "[machine]\nproduct = \"demo\"\nhardware = \"unit-a\"\n").unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        // Room for what is kept: a small frame, and an entry of the directory, for each chunk.
        let undo_bytes = 64 * 1024 * 1024 + chunks * 1024;
        let target = File::create(dir.path().join("target")).unwrap();
        target.set_len(chunks * u64::from(MIN_CHUNK_BYTES) + undo_bytes).unwrap();
        let served = dir.path().to_owned();
        let server =
            TestServer::start(move |request| match fs::read(served.join(request.target().trim_start_matches('/'))) {
                Ok(content) => object(request, &content),
                Err(_) => status("404 Not Found"),
            });
        Self { dir, images: tempfile::tempdir_in("/dev/shm").unwrap(), server, chunks, releases: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Publishes a release that has no chunk of another one, writes it, and returns the peak memory of that, KiB.
    fn update(&mut self) -> u64 {
        self.releases += 1;
        self.publish();
        let mut command = Command::new(env!("CARGO_BIN_EXE_reflash"));
        command.arg("flash").args(["--url", &self.server.url()]);
        // The library of the tests keeps what is freed once it has seen large pieces; that of the agent never does.
        command.env("MALLOC_MMAP_THRESHOLD_", "131072");
        for (option, name) in
            [("--target", "target"), ("--state", "state"), ("--config", "machine.toml"), ("--keys", "keys")]
        {
            command.arg(option).arg(self.path(name));
        }
        let peak_kib = peak_resident_kib(&mut command);
        eprintln!("{} chunks, release {}: {peak_kib} KiB", self.chunks, self.releases);
        assert!(peak_kib > 0);
        peak_kib
    }

    /// Writes what `reflash good` writes: the next release is written over a good one, which is kept.
    fn call_good(&self) {
        let env = BootEnv::new(&self.path("state").join("grubenv"));
        env.update(&[("reflash_good", Some(&*self.releases.to_string())), ("reflash_boot_ok", Some("1"))]).unwrap();
    }

    /// Version of the release that an undo would go back to.
    fn kept(&self) -> Option<String> {
        let mut keys = TrustedKeys::default();
        let public = keygen::KeyFiles::within(&self.path("keys")).public;
        keys.add("test", &fs::read_to_string(public).unwrap()).unwrap();
        let target = DeviceTarget::open(&self.path("target")).unwrap();
        undo::possible(&target, &keys).map(|kept| kept.version).ok()
    }

    fn publish(&self) {
        let image = self.images.path().join("system.img");
        let file = File::create(&image).unwrap();
        file.set_len(self.chunks * u64::from(MIN_CHUNK_BYTES)).unwrap();
        for chunk in 0..self.chunks {
            let content = [self.releases.to_le_bytes(), (chunk + 1).to_le_bytes()].concat();
            file.write_all_at(&content, chunk * u64::from(MIN_CHUNK_BYTES)).unwrap();
        }
        let spec = Spec {
            product: "demo".into(),
            hardware: vec!["unit-a".into()],
            channel: "stable".into(),
            version: self.releases.to_string(),
            serial: Some(self.releases),
            image,
            ostree: None,
            files: Vec::new(),
            layout: None,
            chunk_bytes: Some(MIN_CHUNK_BYTES),
            level: 1,
            created_unix_s: None,
            allow: Vec::new(),
        };
        let key = keygen::load_secret(&keygen::KeyFiles::within(&self.path("keys")).secret).unwrap();
        let released = release::build(&spec, &key, &self.path("release")).unwrap();
        let index =
            fs::read(self.path("release").join(object_path(&released.manifest.images[0].index.blake3))).unwrap();
        assert_eq!(u64::from(Index::from_object(&index).unwrap().stored_count()), self.chunks);
    }

    /// Writes three releases. The first two are good, so that the third is written while the second is kept in place of
    /// the first. Returns the most memory that the third took, KiB.
    fn third(&mut self) -> u64 {
        self.update();
        self.call_good();
        self.update();
        self.call_good();
        let peak_kib = self.update();
        assert_eq!(self.kept().as_deref(), Some("2"));
        peak_kib
    }

    /// Writes a fourth: the third was not good, so that what is kept of the second stays.
    fn fourth(&mut self) -> u64 {
        let peak_kib = self.update();
        assert_eq!(self.kept().as_deref(), Some("2"));
        peak_kib
    }
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_an_update_of_as_many_chunks_as_there_may_be_fits_into_memory() {
    let peak_kib = Bench::new(MAX_CHUNKS).third();
    assert!(peak_kib + PID1_KIB <= MAX_RESIDENT_KIB, "{peak_kib} KiB, and {PID1_KIB} for PID 1");
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_update_that_is_kept_for_an_undo_takes_little_memory_for_each_chunk() {
    // Far apart: how many buffers are in use at a time is chance, and makes a difference of 2 MiB.
    let (few, many) = (2 * 1024, 18 * 1024);
    let peaks = |chunks| {
        let mut bench = Bench::new(chunks);
        [bench.third(), bench.fourth()]
    };
    for (of_few, of_many) in peaks(few).into_iter().zip(peaks(many)) {
        let per_chunk = of_many.saturating_sub(of_few) * 1024 / (many - few);
        eprintln!("{per_chunk} bytes a chunk");
        assert!(per_chunk <= MAX_BYTES_PER_CHUNK, "{per_chunk} bytes a chunk: {of_few} and {of_many} KiB");
    }
}

/// Name of the test that plans, and what it finds in its environment when it is the only one in its process.
const PLANNING: &str = "memory::a_plan_that_moves_every_block_fits_into_memory";
const ALONE: &str = "REFLASH_TEST_ALONE";
/// Memory that a plan may take at most, KiB: what is left of the design's bound beside PID 1 and 34 MiB for the object
/// of the release's index, and for index and directory of what is kept for an undo.
const MAX_PLANNING_KIB: u64 = MAX_RESIDENT_KIB - PID1_KIB - 34 * 1024;

/// Every block of an image of 8 GiB moved by one. More blocks than that are not looked for.
#[test]
fn a_plan_that_moves_every_block_fits_into_memory() {
    const PER_CHUNK: u64 = 8;
    if std::env::var_os(ALONE).is_none() {
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", PLANNING]).env(ALONE, "").env("MALLOC_MMAP_THRESHOLD_", "131072");
        return assert!(alone.status().unwrap().success());
    }
    let chunk_bytes = 4096 * u32::try_from(PER_CHUNK).unwrap();
    let block = |number: u64| WeakHash::from_bits(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut builder = Builder::new(MAX_CHUNKS * u64::from(chunk_bytes), chunk_bytes).unwrap();
    let mut weak_hashes = WeakHashes::builder(chunk_bytes);
    for chunk in 0..MAX_CHUNKS {
        let stored = builder.store(Digest::of(&chunk.to_le_bytes()), 10_000);
        builder.push_chunk(ChunkContent::Stored(stored));
        let of_chunk: Vec<WeakHash> = (chunk * PER_CHUNK..(chunk + 1) * PER_CHUNK).map(block).collect();
        weak_hashes.push(&of_chunk);
    }
    builder.push_extent(0, Pack { digest: Digest::of(b"pack"), size_bytes: MAX_CHUNKS * 10_000 }, 0);
    let index = builder.finish().unwrap();
    let comparison = Comparison::nothing_right(&index);
    let blocks = Blocks::new((1..=MAX_BLOCKS as u64).map(block).collect());
    let plan =
        Plan::new(&index, &comparison, Reuse { found: Some(FoundBlocks { weak_hashes, blocks }), ..Reuse::default() });
    // The first chunk is never moved.
    assert_eq!(plan.totals.move_bytes, index.image_bytes() - u64::from(chunk_bytes));
    let peak_kib = own_peak_resident_kib();
    eprintln!("a plan that moves every block: {peak_kib} KiB");
    assert!(peak_kib <= MAX_PLANNING_KIB, "{peak_kib} KiB");
}
