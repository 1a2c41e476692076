//! Keeps the head, chunk 0 with the superblock, off the medium until everything else is there.

use super::error::WriteError;
use super::writer::Writer;
use crate::flash::plan::Comparison;
use crate::flash::target::write_zeros;
use crate::flash::threads::lock;
use crate::release::digest::{BLOCK_SIZE_BYTES, is_zero};
use crate::release::index::ChunkContent;
use crate::sys::block::AlignedBuf;

/// Takes the superblock off the medium before anything else changes. A head that is right already is kept in memory and
/// put back at the end. It is checked once more: a disk may read differently from one time to the next, and only what
/// has the right digest may be written.
pub(super) fn withhold(writer: &Writer<'_>, comparison: &Comparison) -> Result<(), WriteError> {
    let target = writer.work.target;
    let mut head = AlignedBuf::zeroed(writer.index.chunk_len(0));
    match target.read_at(0, &mut head[..]) {
        Ok(()) if writer.index.matches(0, &head[..]) => *lock(&writer.head) = Some(head),
        // The block is blank because an earlier run was cut. It is not written again on every attempt.
        Ok(()) if is_zero(&head[..BLOCK_SIZE_BYTES]) && !comparison.is_right(0) => return Ok(()),
        // The block may be unreadable. It is about to be written, and that is how a disk heals a bad sector.
        _ => {}
    }
    if comparison.is_right(0) && lock(&writer.head).is_none() {
        // The plan does not have it, since it was right a moment ago.
        if let ChunkContent::Stored(stored) = writer.index.chunk_content(0) {
            writer.add_damaged(stored, 0);
        }
    }
    let blank = AlignedBuf::zeroed(BLOCK_SIZE_BYTES);
    target.write_at(0, &blank[..]).map_err(|source| writer.error("blank the superblock of", 0, source))?;
    target.flush().map_err(|source| writer.error("flush", 0, source))
}

/// Whether there is a head to put back.
pub(super) fn is_known(writer: &Writer<'_>) -> bool {
    lock(&writer.head).is_some() || writer.index.chunk_content(0) == ChunkContent::Zero
}

/// Flushes what was written, writes the head, and flushes that.
pub(super) fn put_back(writer: &Writer<'_>) -> Result<(), WriteError> {
    let target = writer.work.target;
    target.flush().map_err(|source| writer.error("flush", 0, source))?;
    let range = writer.index.chunk_range(0);
    if let Some(head) = lock(&writer.head).take() {
        writer.write_at(0, &head[..])?;
    } else if writer.index.chunk_content(0) == ChunkContent::Zero {
        write_zeros(target, range.clone()).map_err(|source| writer.error("zero", 0, source))?;
    }
    writer.work.done.disk(range.end);
    target.flush().map_err(|source| writer.error("flush", 0, source))
}
