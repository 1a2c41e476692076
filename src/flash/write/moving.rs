//! Carries out the moves: chunks are put together from blocks of the partition, some of them with deltas.
//!
//! One thread reads, in the order of the plan; others apply deltas, check digests and write. The reader never waits for
//! the writers: the plan tells it which blocks to save before a write destroys them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::Scope;

use super::deltas::places;
use super::writer::Writer;
use crate::flash::plan::{Batch, MovePiece, ZERO_SOURCE};
use crate::flash::threads::{self, lock};
use crate::release::deltas::BlockNo;
use crate::release::digest::BLOCK_SIZE_BYTES;
use crate::release::index::{ChunkContent, ChunkNo};
use crate::sys::block::AlignedBuf;

/// The most threads that check and write batches. Each has a batch in flight, and the threads that decode run beside
/// them.
const MAX_WRITERS: usize = 3;

/// A batch whose sources have been read.
struct Assembled<'p> {
    batch: Batch<'p>,
    content: AlignedBuf,
    /// Ranges of blocks in `content` that could not be read.
    unread: Vec<Range<usize>>,
}

/// Starts the threads that carry out the moves.
pub(super) fn spawn<'s>(writer: &'s Writer<'_>, scope: &'s Scope<'s, '_>) {
    if writer.work.plan.moves.is_empty() {
        return writer.gate.open();
    }
    // A delta may need nothing of the partition.
    let batch_bytes = writer.work.plan.moves.largest_read_bytes().max(BLOCK_SIZE_BYTES);
    let (to_write, assembled) = sync_channel::<Assembled<'s>>(1);
    let (recycle, recycled) = channel::<AlignedBuf>();
    let assembled = Arc::new(Mutex::new(assembled));
    for _ in 0..threads::count_with_buffers(batch_bytes).min(MAX_WRITERS) {
        let (assembled, recycle) = (assembled.clone(), recycle.clone());
        threads::spawn(scope, "move-write", move || {
            let mut made = AlignedBuf::zeroed(0);
            while let Some(batch) = receive(&assembled) {
                check_and_write(writer, &batch, &mut made);
                let _ = recycle.send(batch.content);
            }
        });
    }
    threads::spawn(scope, "move-read", move || {
        let mut reader = Reader::new(writer, batch_bytes);
        read_all(&mut reader, batch_bytes, &to_write, &recycled);
        writer.gate.open();
    });
}

fn receive<T>(receiver: &Mutex<Receiver<T>>) -> Option<T> {
    lock(receiver).recv().ok()
}

fn read_all<'s>(
    reader: &mut Reader<'s, '_>,
    batch_bytes: usize,
    to_write: &SyncSender<Assembled<'s>>,
    recycled: &Receiver<AlignedBuf>,
) {
    let writer = reader.writer;
    for (number, batch) in (0..).zip(writer.work.plan.moves.batches()) {
        if writer.is_stopped() {
            return;
        }
        let content = recycled.try_recv().unwrap_or_else(|_| AlignedBuf::zeroed(batch_bytes));
        let assembled = reader.read(batch, number, content);
        // Only now may other threads overwrite what this batch has read.
        writer.gate.advance(number + 1);
        if to_write.send(assembled).is_err() {
            return;
        }
    }
}

/// Reads the sources of the batches, and saves blocks that a later batch needs and an earlier one overwrites.
struct Reader<'s, 'w> {
    writer: &'s Writer<'w>,
    /// Saved blocks: the offset of each in `buffer`, and the last batch that needs it.
    saved: HashMap<BlockNo, (usize, u32)>,
    /// Room for as many blocks as the plan says.
    buffer: Vec<u8>,
    /// Offsets in `buffer` that are free.
    free: Vec<usize>,
    /// Buffer for reading neighbouring blocks in one transfer.
    transfer: AlignedBuf,
}

impl<'s, 'w> Reader<'s, 'w> {
    fn new(writer: &'s Writer<'w>, transfer_bytes: usize) -> Self {
        let places = writer.work.plan.moves.peak_blocks;
        Self {
            writer,
            saved: HashMap::new(),
            buffer: vec![0; places * BLOCK_SIZE_BYTES],
            free: (0..places).map(|place| place * BLOCK_SIZE_BYTES).collect(),
            transfer: AlignedBuf::zeroed(transfer_bytes),
        }
    }

    fn save(&mut self, saves: &[(BlockNo, u32)]) {
        let most = self.transfer.len() / BLOCK_SIZE_BYTES;
        let mut rest = saves;
        while let Some(&(first, _)) = rest.first() {
            let len = (first..).zip(rest).take_while(|(expected, (block, _))| expected == block).count().min(most);
            let (run, more) = rest.split_at(len);
            rest = more;
            let content = &mut self.transfer[..len * BLOCK_SIZE_BYTES];
            // A block that cannot be read is missing later, and the chunk that needs it is fetched.
            if self.writer.work.target.read_at(offset_of(first), content).is_err() {
                continue;
            }
            for ((block, until), content) in run.iter().zip(content.chunks(BLOCK_SIZE_BYTES)) {
                let Some(place) = self.free.pop() else { return };
                self.buffer[place..place + BLOCK_SIZE_BYTES].copy_from_slice(content);
                self.saved.insert(*block, (place, *until));
            }
        }
    }

    fn read(&mut self, batch: Batch<'s>, number: u32, mut content: AlignedBuf) -> Assembled<'s> {
        self.save(batch.saves);
        let mut unread = Vec::new();
        let mut at = 0;
        while let Some(&source) = batch.sources.get(at) {
            let len = self.run_length(&batch.sources[at..], source);
            let place = &mut content[at * BLOCK_SIZE_BYTES..(at + len) * BLOCK_SIZE_BYTES];
            if !self.fill(source, place) {
                unread.push(at..at + len);
            }
            at += len;
        }
        let moved =
            batch.pieces().filter(|piece| piece.delta.is_none()).map(|piece| piece.sources.len()).sum::<usize>();
        self.writer.work.done.disk((moved * BLOCK_SIZE_BYTES) as u64);
        self.release_after(number);
        Assembled { batch, content, unread }
    }

    /// Frees the saved blocks that no batch after `number` needs.
    fn release_after(&mut self, number: u32) {
        let free = &mut self.free;
        self.saved.retain(|_, (place, until)| {
            let is_needed = *until > number;
            if !is_needed {
                free.push(*place);
            }
            is_needed
        });
    }

    /// Counts the sources that can be filled at once: zeros, or neighbours on the partition.
    fn run_length(&self, sources: &[BlockNo], first: BlockNo) -> usize {
        if first == ZERO_SOURCE {
            return sources.iter().take_while(|source| **source == ZERO_SOURCE).count();
        }
        if self.saved.contains_key(&first) {
            return 1;
        }
        let neighbours = (first..).zip(sources).take_while(|(expected, source)| expected == *source);
        neighbours.take_while(|(_, source)| !self.saved.contains_key(source)).count()
    }

    /// Fills `place` from a run of sources that begins with `source`. Returns whether they could be read.
    fn fill(&self, source: BlockNo, place: &mut [u8]) -> bool {
        if source == ZERO_SOURCE {
            place.fill(0);
        } else if let Some((saved, _)) = self.saved.get(&source) {
            place.copy_from_slice(&self.buffer[*saved..saved + BLOCK_SIZE_BYTES]);
        } else {
            return self.writer.work.target.read_at(offset_of(source), place).is_ok();
        }
        true
    }
}

fn offset_of(block: BlockNo) -> u64 {
    u64::from(block) * BLOCK_SIZE_BYTES as u64
}

/// Writes the chunks whose content is right. A weak hash that was wrong, a block that cannot be read, or a delta that
/// does not make what it should, costs a fetch of the chunk.
fn check_and_write(writer: &Writer<'_>, assembled: &Assembled<'_>, made: &mut AlignedBuf) {
    let mut moved = Vec::with_capacity(assembled.batch.chunks.len());
    let mut at = 0;
    for piece in assembled.batch.pieces() {
        if writer.is_stopped() {
            return;
        }
        let sources = at..at + piece.sources.len();
        at = sources.end;
        let is_read = !assembled.unread.iter().any(|unread| unread.start < sources.end && sources.start < unread.end);
        let from = sources.start * BLOCK_SIZE_BYTES;
        let read = &assembled.content[from..sources.end * BLOCK_SIZE_BYTES];
        match piece.delta {
            None => {
                for chunk in piece.chunks {
                    let is_right = is_read && writer.index.matches(*chunk, &read[..writer.index.chunk_len(*chunk)]);
                    take(writer, *chunk, is_right.then_some(from), &mut moved);
                }
            }
            Some(delta) => make_and_write(writer, piece, delta, is_read.then_some(read), made),
        }
    }
    if let Err(error) = writer.write(&mut moved, &assembled.content) {
        writer.fail(error);
    }
}

/// Makes the chunks of a piece with its delta, and writes those that are right.
fn make_and_write(writer: &Writer<'_>, piece: MovePiece<'_>, delta: u32, old: Option<&[u8]>, made: &mut AlignedBuf) {
    let Some(deltas) = &writer.work.plan.deltas else { return };
    let of_delta = deltas.table().get(delta);
    let len = of_delta.content_bytes(writer.index);
    if made.len() < len {
        *made = AlignedBuf::zeroed(len);
    }
    let is_made = old.is_some_and(|old| writer.deltas.make(delta, old, &mut made[..len]));
    let mut right = Vec::with_capacity(piece.chunks.len());
    let places = places(writer.index, of_delta.chunks);
    for (chunk, place) in places.filter(|(chunk, _)| piece.chunks.binary_search(chunk).is_ok()) {
        let is_right = is_made && writer.index.matches(chunk, &made[place.clone()]);
        take(writer, chunk, is_right.then_some(place.start), &mut right);
    }
    if let Err(error) = writer.write(&mut right, made) {
        writer.fail(error);
    }
}

/// Notes where the content of a chunk is, or that it has to be fetched.
fn take(writer: &Writer<'_>, chunk: ChunkNo, place: Option<usize>, right: &mut Vec<(ChunkNo, usize)>) {
    if let Some(place) = place {
        right.push((chunk, place));
    } else if let ChunkContent::Stored(stored) = writer.index.chunk_content(chunk) {
        writer.add_damaged(stored, chunk);
    }
}
