//! Carries out a plan: move, fetch, decode, check, write. What comes out is [`Written`], not yet proven by read-back.
//!
//! Chunk 0 holds the superblock. It is blanked before anything else changes and written last, after a flush, so
//! that a half-written system never looks like one, whoever looks.

mod moving;
mod pipeline;
mod read_behind;
mod splitter;

use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::boot::env::WritePermit;
use crate::fetch::{FetchError, Source};
use crate::flash::plan::{Comparison, Plan};
use crate::flash::readback::ReadBack;
use crate::flash::target::BlockTarget;
use crate::record::progress::{Bytes, Done};
use crate::release::digest::{BLOCK_SIZE_BYTES, Digest, is_zero};
use crate::release::index::{ChunkContent, ChunkNo, Index, StoredChunkNo};
use crate::sys::block::AlignedBuf;
use read_behind::Behind;

/// The plan was carried out and flushed. Only [`crate::flash::verify`] can make more of it.
#[derive(Debug)]
pub struct Written<'i> {
    /// What was written, and what of it was read back already.
    pub(crate) read_back: ReadBack<'i>,
    /// Bytes written, for the report.
    pub bytes: u64,
}

/// What a plan is carried out with.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Where content comes from.
    pub source: &'a dyn Source,
    /// Where it goes.
    pub target: &'a dyn BlockTarget,
    /// Counts what is done.
    pub done: &'a Done,
    /// Read back behind the writer, while the rest is written.
    pub read_behind: bool,
}

/// Why a plan could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// No source delivers it.
    #[error("cannot download pack {pack}, bytes {start} to {end}")]
    Fetch {
        /// Digest of the pack.
        pack: Digest,
        /// First byte.
        start: u64,
        /// End.
        end: u64,
        /// Why.
        source: FetchError,
    },
    /// The image does not fit.
    #[error(
        "the image needs {image_bytes} bytes and {target} has {target_bytes}; the release is for a larger partition"
    )]
    TooLarge {
        /// Size of the image.
        image_bytes: u64,
        /// Device.
        target: String,
        /// Its size.
        target_bytes: u64,
    },
    /// The device failed.
    #[error("cannot {doing} {target} at byte {offset} (sector {})", offset / 512)]
    Target {
        /// What was being done.
        doing: &'static str,
        /// Device.
        target: String,
        /// Byte offset on it.
        offset: u64,
        /// What it says.
        source: io::Error,
    },
    /// zstd could not be set up.
    #[error("cannot start decompression")]
    Decompressor(#[source] io::Error),
}

impl WriteError {
    /// Whether the cause can pass by itself, so that trying again later makes sense.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Fetch { source, .. } => source.is_retryable(),
            Self::TooLarge { .. } | Self::Target { .. } | Self::Decompressor(_) => false,
        }
    }
}

/// Refuses an image that does not fit, before anything is written.
///
/// # Errors
/// [`WriteError::TooLarge`] with both sizes.
pub fn check_size(image_bytes: u64, target: &dyn BlockTarget) -> Result<(), WriteError> {
    let target_bytes = target.size_bytes();
    if image_bytes > target_bytes {
        return Err(WriteError::TooLarge { image_bytes, target: target.name().to_owned(), target_bytes });
    }
    Ok(())
}

/// What [`apply`] is going to count.
#[must_use]
pub fn expected_work(plan: &Plan, read_behind: bool) -> Bytes {
    let changed = plan.totals.changed_bytes();
    let behind = if read_behind { changed - changed % read_behind::STEP_BYTES } else { 0 };
    Bytes { disk: plan.totals.move_bytes + changed + behind, network: plan.totals.download_bytes }
}

/// Makes the target equal to the image as far as the plan goes, and flushes it. The permit proves that a cut from here
/// on leads back into recovery.
///
/// # Errors
/// [`WriteError`]; the target then holds some of the chunks and no superblock, and running again goes on from there.
pub fn apply<'i>(
    index: &'i Index,
    comparison: &Comparison,
    work: Work<'_>,
    _permit: &WritePermit,
) -> Result<Written<'i>, WriteError> {
    check_size(index.image_bytes(), work.target)?;
    if work.plan.is_empty() {
        return Ok(Written { read_back: ReadBack::of_nothing(index, comparison), bytes: 0 });
    }
    let read_back = ReadBack::new(index, comparison);
    let writer = Writer::new(index, work);
    writer.withhold_head(comparison)?;
    writer.run(&read_back);
    if let Some(failure) = writer.take_failure() {
        return Err(failure);
    }
    pipeline::fetch_again(&writer)?;
    writer.finish()?;
    Ok(Written { read_back, bytes: work.plan.totals.changed_bytes() })
}

/// Puts checked chunks where they belong and keeps the head back. Shared by all threads.
struct Writer<'a> {
    index: &'a Index,
    work: Work<'a>,
    /// Chunk 0 of the image, once it is there.
    head: Mutex<Option<AlignedBuf>>,
    /// How many batches of moves have been read.
    gate: Gate,
    behind: Behind,
    /// Stored chunks that were not what they should be, with the chunk that wants them; they are fetched once more.
    damaged: Mutex<Vec<(StoredChunkNo, ChunkNo)>>,
    stop: AtomicBool,
    failure: Mutex<Option<WriteError>>,
}

impl<'a> Writer<'a> {
    fn new(index: &'a Index, work: Work<'a>) -> Self {
        Self {
            index,
            work,
            head: Mutex::default(),
            gate: Gate::default(),
            behind: Behind::default(),
            damaged: Mutex::default(),
            stop: AtomicBool::new(false),
            failure: Mutex::default(),
        }
    }

    /// Takes the superblock off the medium before anything else changes. A head that is right already is kept in
    /// memory and put back at the end.
    fn withhold_head(&self, comparison: &Comparison) -> Result<(), WriteError> {
        let target = self.work.target;
        let range = self.index.chunk_range(0);
        let mut head = AlignedBuf::zeroed((range.end - range.start) as usize);
        match target.read_at(0, &mut head[..]) {
            Ok(()) if comparison.is_right(0) => *lock(&self.head) = Some(head),
            // Already blank: a run that was cut. Do not write the block again on every attempt.
            Ok(()) if is_zero(&head[..BLOCK_SIZE_BYTES]) => return Ok(()),
            // Unreadable, and about to be written: that is how a disk heals a bad sector.
            _ => {}
        }
        let blank = AlignedBuf::zeroed(BLOCK_SIZE_BYTES);
        target.write_at(0, &blank[..]).map_err(|source| self.error("blank the superblock of", 0, source))?;
        target.flush().map_err(|source| self.error("flush", 0, source))
    }

    /// Everything but the head, on several threads. A failure is left for [`take_failure`](Self::take_failure).
    fn run(&self, read_back: &ReadBack<'_>) {
        std::thread::scope(|scope| {
            if self.work.read_behind {
                scope.spawn(|| self.behind.run(self, read_back));
            }
            std::thread::scope(|scope| {
                moving::spawn(self, scope);
                pipeline::spawn(self, scope);
                self.zero();
            });
            self.behind.end();
        });
    }

    /// Zeroes what has to be, in long ranges, once nothing there is needed any more.
    fn zero(&self) {
        let mut ranges: Vec<std::ops::Range<ChunkNo>> = Vec::new();
        for chunk in self.work.plan.zero.iter().copied().filter(|chunk| *chunk != 0) {
            match ranges.last_mut() {
                Some(last) if last.end == chunk => last.end += 1,
                _ => ranges.push(chunk..chunk + 1),
            }
        }
        for chunks in ranges {
            let free_after = chunks.clone().map(|chunk| self.work.plan.moves.free_after(chunk)).max();
            self.gate.wait(free_after.unwrap_or_default());
            if self.is_stopped() {
                return;
            }
            let range = self.index.chunk_range(chunks.start).start..self.index.chunk_range(chunks.end - 1).end;
            match self.work.target.zero(range.clone()) {
                Ok(()) => self.wrote(chunks, range.end - range.start),
                Err(source) => return self.fail(self.error("zero", range.start, source)),
            }
        }
    }

    /// Writes checked chunks, neighbours together. Each comes with its place in `content`, a multiple of 4096 bytes.
    fn write(&self, chunks: &mut [(ChunkNo, usize)], content: &[u8]) -> Result<(), WriteError> {
        chunks.sort_unstable();
        let length = |chunk: ChunkNo| {
            let range = self.index.chunk_range(chunk);
            (range.end - range.start) as usize
        };
        let mut rest: &[(ChunkNo, usize)] = chunks;
        while let Some((&(first, from), more)) = rest.split_first() {
            if first == 0 {
                let mut head = AlignedBuf::zeroed(length(0));
                head.copy_from_slice(&content[from..from + length(0)]);
                *lock(&self.head) = Some(head);
                rest = more;
                continue;
            }
            let (mut end, mut next) = (from + length(first), first + 1);
            rest = more;
            while let Some((&(chunk, from), more)) = rest.split_first()
                && (chunk, from) == (next, end)
            {
                (end, next, rest) = (end + length(chunk), next + 1, more);
            }
            let offset = self.index.chunk_range(first).start;
            self.put(offset, &content[from..end])?;
            self.wrote(first..next, (end - from) as u64);
        }
        Ok(())
    }

    fn wrote(&self, chunks: std::ops::Range<ChunkNo>, bytes: u64) {
        self.work.done.disk(bytes);
        if self.work.read_behind {
            self.behind.wrote(chunks, bytes);
        }
    }

    /// Flush, head, flush.
    fn finish(&self) -> Result<(), WriteError> {
        let target = self.work.target;
        target.flush().map_err(|source| self.error("flush", 0, source))?;
        let range = self.index.chunk_range(0);
        if let Some(head) = lock(&self.head).take() {
            self.put(0, &head[..])?;
        } else if self.index.chunk_content(0) == ChunkContent::Zero {
            target.zero(range.clone()).map_err(|source| self.error("zero", 0, source))?;
        }
        self.work.done.disk(range.end);
        target.flush().map_err(|source| self.error("flush", 0, source))
    }

    fn put(&self, offset: u64, content: &[u8]) -> Result<(), WriteError> {
        self.work.target.write_at(offset, content).map_err(|source| self.error("write to", offset, source))
    }

    fn error(&self, doing: &'static str, offset: u64, source: io::Error) -> WriteError {
        WriteError::Target { doing, target: self.work.target.identity(), offset, source }
    }

    /// Ends the work of all threads. The first failure is the one that is told.
    fn fail(&self, error: WriteError) {
        lock(&self.failure).get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
        self.gate.open();
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn take_failure(&self) -> Option<WriteError> {
        lock(&self.failure).take()
    }

    fn damaged(&self, stored: StoredChunkNo, chunk: ChunkNo) {
        lock(&self.damaged).push((stored, chunk));
    }
}

/// Holds back who would overwrite what a move still has to read.
#[derive(Default)]
struct Gate {
    read: Mutex<u32>,
    changed: Condvar,
}

impl Gate {
    /// Returns once that many batches were read.
    fn wait(&self, batches: u32) {
        let read = lock(&self.read);
        drop(self.changed.wait_while(read, |read| *read < batches));
    }

    fn advance(&self, batches: u32) {
        let mut read = lock(&self.read);
        *read = batches.max(*read);
        self.changed.notify_all();
    }

    fn open(&self) {
        self.advance(u32::MAX);
    }
}

/// A thread that panicked must not hide what the others did.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads that decode, or put together, each with a buffer of `bytes`: some more than cores, as they also wait for the
/// disk, and no more than memory allows.
fn workers(bytes: usize) -> usize {
    const MEMORY_BYTES: usize = 16 * 1024 * 1024;
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    (cores + 2).min(MEMORY_BYTES / bytes).max(1)
}
