//! Limits of the machine itself, measured in the same run: no tool can be faster.

use std::fs::{self, File};
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::{IntoParallelRefIterator, ParallelIterator};
use reflash::flash::target::{AlignedBuf, BlockTarget, DeviceTarget};
use reflash::release::index::{ChunkContent, Index};
use reflash::release::manifest::object_path;
use serde::Serialize;

use super::device::{Before, LoopDevice, Memory};
use super::median::median;
use crate::size::{to_range, to_usize};

/// Limits of the machine, in seconds for the whole image.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Limits {
    /// Time of decompressing every chunk, on all cores.
    pub decompress_wall_s: f64,
    /// Time of hashing every chunk, on all cores.
    pub hash_wall_s: f64,
    /// CPU time of all threads for decompressing and hashing what is not zero, on all cores.
    pub decompress_and_hash_cpu_s: f64,
    /// CPU time of decompressing and hashing on one core while the others are idle: less, where cores share execution
    /// units or their clock.
    pub decompress_and_hash_one_core_cpu_s: f64,
    /// Time of writing the image's content past the cache, 4 MiB at a time.
    pub direct_write_wall_s: f64,
    /// Time of reading the device past the cache.
    pub direct_read_wall_s: f64,
    /// Time of reading everything and hashing every chunk, on all cores.
    pub read_and_hash_wall_s: f64,
    /// Time of fetching the compressed image over loopback and discarding it.
    pub loopback_get_wall_s: f64,
}

impl Limits {
    /// Returns the median of each figure over several measurements.
    pub fn median(of: &[Self]) -> Self {
        let median = |figure: fn(&Self) -> f64| median(of.iter().map(figure).collect()).unwrap_or_default();
        Self {
            decompress_wall_s: median(|limits| limits.decompress_wall_s),
            hash_wall_s: median(|limits| limits.hash_wall_s),
            decompress_and_hash_cpu_s: median(|limits| limits.decompress_and_hash_cpu_s),
            decompress_and_hash_one_core_cpu_s: median(|limits| limits.decompress_and_hash_one_core_cpu_s),
            direct_write_wall_s: median(|limits| limits.direct_write_wall_s),
            direct_read_wall_s: median(|limits| limits.direct_read_wall_s),
            read_and_hash_wall_s: median(|limits| limits.read_and_hash_wall_s),
            loopback_get_wall_s: median(|limits| limits.loopback_get_wall_s),
        }
    }

    /// Returns the least time in seconds of a tool that checks what it writes, when everything that can overlap does. A
    /// fresh image is decompressed, hashed and written, perhaps read and hashed again; an update reads and hashes what
    /// is there.
    pub fn least_s(&self, case: &str) -> f64 {
        let unpack_s = self.decompress_wall_s + self.hash_wall_s;
        let longest = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
        match case {
            "fresh" => longest(&[unpack_s, self.direct_write_wall_s, self.loopback_get_wall_s]),
            "fresh_readback" | "everything_changed" | "random_bytes_before" => longest(&[
                unpack_s + self.hash_wall_s,
                self.direct_write_wall_s + self.direct_read_wall_s,
                self.loopback_get_wall_s,
            ]),
            _ => self.read_and_hash_wall_s,
        }
    }
}

/// Returns the seconds that this thread has run so far; the first number of `schedstat` is nanoseconds (Linux'
/// Documentation/scheduler/sched-stats.rst).
fn cpu_s() -> Result<f64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").context("read this thread's CPU time")?;
    let nanoseconds = text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    Ok(nanoseconds.context("the kernel counts no CPU time in /proc/thread-self/schedstat")? / 1e9)
}

/// Returns the CPU seconds of all threads together for work whose results are checked.
fn on_threads(
    threads: usize,
    stored: &[u32],
    chunk_bytes: usize,
    is_right: impl Fn(u32, &mut zstd::bulk::Decompressor<'_>, &mut [u8]) -> bool + Sync,
) -> Result<f64> {
    let next = AtomicUsize::new(0);
    let one = || {
        let started = cpu_s()?;
        let (mut zstd, mut content) = (zstd::bulk::Decompressor::new()?, vec![0; chunk_bytes]);
        while let Some(stored) = stored.get(next.fetch_add(1, Ordering::Relaxed)) {
            ensure!(is_right(*stored, &mut zstd, &mut content), "a pack is damaged");
        }
        Ok(cpu_s()? - started)
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        running.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked"))).sum()
    })
}

const STEP_BYTES: usize = 4 * 1024 * 1024;

/// Measures all limits for the image of one release.
pub fn measure(image: &Path, index: &Index, tree: &Path, memory: &Memory, compressed_url: &str) -> Result<Limits> {
    let packs: Vec<Vec<u8>> = index
        .packs()
        .iter()
        .map(|pack| fs::read(tree.join(object_path(&pack.digest))).context("read a pack"))
        .collect::<Result<_>>()?;
    let stored: Vec<u32> = (0..index.stored_count()).collect();
    let chunk_bytes = index.chunk_bytes() as usize;
    let bytes_of = |stored: u32| {
        let place = index.location(stored);
        &packs[place.pack as usize][to_range(&place.range)]
    };
    let decode = |stored: u32, zstd: &mut zstd::bulk::Decompressor<'_>, content: &mut [u8]| {
        zstd.decompress_to_buffer(bytes_of(stored), content).map(|len| len as u64).unwrap_or_default()
    };
    let fresh = || (zstd::bulk::Decompressor::new(), vec![0; chunk_bytes]);

    let started = Instant::now();
    let total: u64 = stored
        .par_iter()
        .map_init(fresh, |(zstd, content), stored| zstd.as_mut().map_or(0, |zstd| decode(*stored, zstd, content)))
        .sum();
    let decompress_wall_s = started.elapsed().as_secs_f64();

    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let [decompress_and_hash_cpu_s, decompress_and_hash_one_core_cpu_s] = [cores, 1].map(|threads| {
        on_threads(threads, &stored, chunk_bytes, |stored, zstd, content| {
            let len = to_usize(decode(stored, zstd, content));
            reflash::release::digest::Digest::of(&content[..len]) == *index.digest(stored)
        })
    });
    let (decompress_and_hash_cpu_s, decompress_and_hash_one_core_cpu_s) =
        (decompress_and_hash_cpu_s?, decompress_and_hash_one_core_cpu_s?);

    let file = File::open(image).with_context(|| format!("open {}", image.display()))?;
    let bytes = file.metadata()?.len();
    let chunks: Vec<u32> = (0..index.chunk_count())
        .filter(|chunk| matches!(index.chunk_content(*chunk), ChunkContent::Stored(_)))
        .collect();
    let content: Vec<u8> = fs::read(image)?;
    let started = Instant::now();
    let right = chunks.par_iter().all(|chunk| {
        let range = index.chunk_range(*chunk);
        index.matches(*chunk, &content[to_range(&range)])
    });
    let hash_wall_s = started.elapsed().as_secs_f64();
    ensure!(right && total > 0, "the release does not hold the image");
    drop(content);

    let device = LoopDevice::new(memory, bytes, &Before::Zeros, 512)?;
    let target = DeviceTarget::open(Path::new(&device.node))?;
    let mut buffer = AlignedBuf::zeroed(STEP_BYTES);
    let mut direct_write_wall_s = 0.0;
    for offset in (0..bytes).step_by(STEP_BYTES) {
        let len = to_usize((bytes - offset).min(STEP_BYTES as u64));
        file.read_exact_at(&mut buffer[..len], offset)?;
        if reflash::release::digest::is_zero(&buffer[..len]) {
            continue;
        }
        let started = Instant::now();
        target.write_at(offset, &buffer[..len])?;
        direct_write_wall_s += started.elapsed().as_secs_f64();
    }
    let started = Instant::now();
    for offset in (0..bytes).step_by(STEP_BYTES) {
        let len = to_usize((bytes - offset).min(STEP_BYTES as u64));
        target.read_at(offset, &mut buffer[..len])?;
    }
    let direct_read_wall_s = started.elapsed().as_secs_f64();
    let steps: Vec<u64> = (0..bytes).step_by(STEP_BYTES / 4).collect();
    let started = Instant::now();
    let hashed = steps.par_iter().map_init(
        || AlignedBuf::zeroed(STEP_BYTES / 4),
        |buffer, offset| {
            let len = to_usize((bytes - offset).min(buffer.len() as u64));
            let read = target.read_at(*offset, &mut buffer[..len]).is_ok();
            let chunks = buffer[..len].chunks(chunk_bytes);
            chunks.map(|chunk| u64::from(reflash::release::digest::Digest::of(chunk).0[0])).sum::<u64>()
                + u64::from(read)
        },
    );
    ensure!(hashed.sum::<u64>() > 0, "nothing was read");
    let read_and_hash_wall_s = started.elapsed().as_secs_f64();

    let get = format!("curl -sf {compressed_url} -o /dev/null");
    let started = Instant::now();
    ensure!(
        std::process::Command::new("sh").args(["-c", &get]).status()?.success(),
        "curl cannot fetch {compressed_url}"
    );
    let loopback_get_wall_s = started.elapsed().as_secs_f64();
    Ok(Limits {
        decompress_wall_s,
        hash_wall_s,
        decompress_and_hash_cpu_s,
        decompress_and_hash_one_core_cpu_s,
        direct_write_wall_s,
        direct_read_wall_s,
        read_and_hash_wall_s,
        loopback_get_wall_s,
    })
}
