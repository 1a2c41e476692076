//! The state that all threads of a write share.

use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::bad_packs::BadPacks;
use super::deltas::HeldDeltas;
use super::error::WriteError;
use super::gate::Gate;
use super::read_behind::Unread;
use super::zero_command::Zeroing;
use crate::fetch::Source;
use crate::flash::plan::Plan;
use crate::flash::target::BlockTarget;
use crate::flash::threads::lock;
use crate::record::progress::Done;
use crate::release::index::{ChunkNo, Index, StoredChunkNo};
use crate::sys::block::AlignedBuf;

/// A plan, and what it is carried out with.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// The plan to carry out.
    pub plan: &'a Plan,
    /// Source of the content that has to be fetched.
    pub source: &'a dyn Source,
    /// Device or file that is written.
    pub target: &'a dyn BlockTarget,
    /// Counter of the bytes that are done.
    pub done: &'a Done,
    /// Whether written chunks are read back while the rest is written.
    pub read_behind: bool,
}

/// Writes checked chunks where they belong, and keeps the head back.
pub(super) struct Writer<'a> {
    pub(super) index: &'a Index,
    pub(super) work: Work<'a>,
    /// Deltas that the moves use.
    pub(super) deltas: HeldDeltas,
    /// Content of chunk 0, once it is known.
    pub(super) head: Mutex<Option<AlignedBuf>>,
    /// Packs of groups that are damaged or nowhere.
    pub(super) bad_packs: BadPacks,
    /// Holds writes back until the moves have read what lies there.
    pub(super) gate: Gate,
    /// Chunks that were written and not read back yet.
    pub(super) unread: Unread,
    /// What is known of the target's command to zero.
    pub(super) zeroing: Zeroing,
    /// For each chunk, whether checked content was handed to the target.
    written: Vec<AtomicBool>,
    /// Stored chunks whose content was wrong or did not come, each with a chunk that needs it. They are fetched once
    /// more.
    damaged: Mutex<Vec<(StoredChunkNo, ChunkNo)>>,
    is_stopped: AtomicBool,
    failure: Mutex<Option<WriteError>>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(index: &'a Index, work: Work<'a>, deltas: HeldDeltas) -> Self {
        let zeroing = if work.plan.zero_by_writing { Zeroing::by_writing() } else { Zeroing::default() };
        Self {
            index,
            work,
            deltas,
            zeroing,
            head: Mutex::default(),
            bad_packs: BadPacks::default(),
            gate: Gate::default(),
            unread: Unread::default(),
            written: (0..index.chunk_count()).map(|_| AtomicBool::new(false)).collect(),
            damaged: Mutex::default(),
            is_stopped: AtomicBool::new(false),
            failure: Mutex::default(),
        }
    }

    /// Writes checked chunks, neighbours together. Each comes with its place in `content`, a multiple of 4096 bytes.
    pub(super) fn write(&self, chunks: &mut [(ChunkNo, usize)], content: &[u8]) -> Result<(), WriteError> {
        chunks.sort_unstable();
        let mut rest: &[(ChunkNo, usize)] = chunks;
        while let Some((&(first, from), more)) = rest.split_first() {
            let (mut end, mut next) = (from + self.index.chunk_len(first), first + 1);
            rest = more;
            if first == 0 {
                let mut head = AlignedBuf::zeroed(end - from);
                head.copy_from_slice(&content[from..end]);
                *lock(&self.head) = Some(head);
                continue;
            }
            while let Some((&(chunk, from), more)) = rest.split_first()
                && (chunk, from) == (next, end)
            {
                (end, next, rest) = (end + self.index.chunk_len(chunk), next + 1, more);
            }
            let offset = self.index.chunk_range(first).start;
            self.write_at(offset, &content[from..end])?;
            self.count_written(first..next, (end - from) as u64);
        }
        Ok(())
    }

    pub(super) fn write_at(&self, offset: u64, content: &[u8]) -> Result<(), WriteError> {
        self.work.target.write_at(offset, content).map_err(|source| self.error("write to", offset, source))
    }

    /// Counts chunks as written, and has them read back if that is wanted.
    pub(super) fn count_written(&self, chunks: Range<ChunkNo>, bytes: u64) {
        self.work.done.disk(bytes);
        chunks.clone().for_each(|chunk| self.written[chunk as usize].store(true, Ordering::Relaxed));
        if self.work.read_behind {
            self.unread.push(chunks, bytes);
        }
    }

    /// Whether checked content of a chunk was handed to the target. The head is not counted here.
    pub(super) fn is_written(&self, chunk: ChunkNo) -> bool {
        self.written[chunk as usize].load(Ordering::Relaxed)
    }

    pub(super) fn error(&self, doing: &'static str, offset: u64, source: io::Error) -> WriteError {
        WriteError::Target { doing, target: self.work.target.identity(), offset, source }
    }

    /// Ends the work of all threads. Only the first failure is kept: it is the cause of the others.
    pub(super) fn fail(&self, error: WriteError) {
        lock(&self.failure).get_or_insert(error);
        self.is_stopped.store(true, Ordering::Relaxed);
        self.gate.open();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    pub(super) fn take_failure(&self) -> Option<WriteError> {
        lock(&self.failure).take()
    }

    /// Notes that a stored chunk has to be fetched once more, for `chunk`.
    pub(super) fn add_damaged(&self, stored: StoredChunkNo, chunk: ChunkNo) {
        lock(&self.damaged).push((stored, chunk));
    }

    /// Notes that a stored chunk has to be fetched once more, for all that need it.
    pub(super) fn add_all_damaged(&self, stored: StoredChunkNo) {
        self.work.plan.destinations(stored).for_each(|chunk| self.add_damaged(stored, chunk));
    }

    pub(super) fn take_damaged(&self) -> Vec<(StoredChunkNo, ChunkNo)> {
        std::mem::take(&mut *lock(&self.damaged))
    }
}
