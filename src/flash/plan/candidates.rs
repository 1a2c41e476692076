//! What can be made from blocks of the partition, before its order is known.

use crate::release::deltas::BlockNo;
use crate::release::digest::BLOCK_SIZE_U32;
use crate::release::index::ChunkNo;

/// Stands in place of a source when the block is all zeros.
pub const ZERO_SOURCE: BlockNo = u32::MAX;

/// Bytes of the partition that one batch writes: large transfers, and little memory for the few batches in flight.
pub const BATCH_BYTES: u32 = 2 * 1024 * 1024;

/// The most blocks that one batch reads, unless one piece needs more: what [`BATCH_BYTES`] has, or a delta with all
/// that it may need.
const BATCH_BLOCKS: u32 = BATCH_BYTES / BLOCK_SIZE_U32;

/// One piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MovePiece<'a> {
    /// Chunks that it writes, ascending: one, unless there is a delta.
    pub chunks: &'a [ChunkNo],
    /// Blocks that it is made of: those of its chunk, or those that the delta needs.
    pub sources: &'a [BlockNo],
    /// The delta that makes the chunks. Without it the sources are the content.
    pub delta: Option<u32>,
}

/// Pieces that can be made from blocks of the partition, ascending by their chunks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Candidates {
    /// The chunks of all pieces, ascending.
    pub(super) chunks: Vec<ChunkNo>,
    /// The blocks that all pieces need.
    pub(super) sources: Vec<BlockNo>,
    /// For each piece, where its chunks and its sources end, and the number of its delta or [`NO_DELTA`].
    pieces: Vec<(u32, u32, u32)>,
}

/// Stands for the number of a delta in a piece that has none.
const NO_DELTA: u32 = u32::MAX;

impl Candidates {
    /// Starts an empty list with room for so many sources.
    pub fn with_capacity(sources: usize) -> Self {
        Self { sources: Vec::with_capacity(sources), ..Self::default() }
    }

    /// Number of all sources.
    pub fn source_count(&self) -> usize {
        self.sources.len()
    }

    /// Adds the next piece, whose chunks come after all others.
    pub fn push(&mut self, chunks: &[ChunkNo], sources: impl IntoIterator<Item = BlockNo>, delta: Option<u32>) {
        self.chunks.extend_from_slice(chunks);
        self.sources.extend(sources);
        self.end_piece(delta);
    }

    /// Adds one chunk whose every block `source` finds. A chunk of which one is not found is left out.
    pub fn push_found(&mut self, chunk: ChunkNo, sources: impl Iterator<Item = Option<BlockNo>>) {
        let start = self.sources.len();
        for source in sources {
            let Some(source) = source else { return self.sources.truncate(start) };
            self.sources.push(source);
        }
        self.chunks.push(chunk);
        self.end_piece(None);
    }

    #[expect(clippy::cast_possible_truncation, reason = "blocks and chunks are counted in u32")]
    fn end_piece(&mut self, delta: Option<u32>) {
        self.pieces.push((self.chunks.len() as u32, self.sources.len() as u32, delta.unwrap_or(NO_DELTA)));
    }

    #[expect(clippy::cast_possible_truncation, reason = "chunks are counted in u32")]
    pub fn count(&self) -> u32 {
        self.pieces.len() as u32
    }

    /// Returns where the chunks and the sources of the pieces before one end.
    pub fn ends_before(&self, number: u32) -> (u32, u32) {
        match number.checked_sub(1) {
            None => (0, 0),
            Some(before) => (self.pieces[before as usize].0, self.pieces[before as usize].1),
        }
    }

    pub fn get(&self, number: u32) -> MovePiece<'_> {
        let (chunks, sources) = self.ends_before(number);
        let (chunk_end, source_end, delta) = self.pieces[number as usize];
        MovePiece {
            chunks: &self.chunks[chunks as usize..chunk_end as usize],
            sources: &self.sources[sources as usize..source_end as usize],
            delta: Some(delta).filter(|delta| *delta != NO_DELTA),
        }
    }

    /// Gives each piece the number of its batch, in one direction over the partition.
    pub fn batches(&self, per_chunk: u32, descending: bool) -> Vec<u32> {
        let per_batch = (BATCH_BYTES / (per_chunk * BLOCK_SIZE_U32)).max(1) as usize;
        let count = self.count();
        let mut batch_of = vec![0; count as usize];
        let (mut batch, mut chunks, mut sources) = (0, 0, 0);
        for position in 0..count {
            let number = if descending { count - 1 - position } else { position };
            let piece = self.get(number);
            let is_full =
                chunks + piece.chunks.len() > per_batch || sources + piece.sources.len() > BATCH_BLOCKS as usize;
            if is_full && chunks > 0 {
                (batch, chunks, sources) = (batch + 1, 0, 0);
            }
            chunks += piece.chunks.len();
            sources += piece.sources.len();
            batch_of[number as usize] = batch;
        }
        batch_of
    }

    /// Takes pieces out, in place: the list may have two million sources.
    pub fn drop_pieces(&mut self, dropped: &[bool]) {
        let (mut chunk_end, mut source_end, mut left) = (0, 0, 0);
        let (mut chunk_start, mut source_start) = (0, 0);
        for (number, dropped) in dropped.iter().enumerate() {
            let (chunks, sources, delta) = self.pieces[number];
            let (chunks, sources) = (chunks as usize, sources as usize);
            if !dropped {
                self.chunks.copy_within(chunk_start..chunks, chunk_end);
                self.sources.copy_within(source_start..sources, source_end);
                chunk_end += chunks - chunk_start;
                source_end += sources - source_start;
                #[expect(clippy::cast_possible_truncation, reason = "no larger than before")]
                let ends = (chunk_end as u32, source_end as u32);
                self.pieces[left] = (ends.0, ends.1, delta);
                left += 1;
            }
            (chunk_start, source_start) = (chunks, sources);
        }
        self.chunks.truncate(chunk_end);
        self.sources.truncate(source_end);
        self.pieces.truncate(left);
    }
}
