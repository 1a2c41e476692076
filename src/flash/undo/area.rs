//! The part of the partition behind the image, read and written without trust in what is there.

use std::io;

use super::header::{Header, KeptPart, State};
use crate::flash::target::{AlignedBuf, BlockTarget};
use crate::release::digest::{BLOCK_SIZE_BYTES, Digest};

const BLOCK: u64 = BLOCK_SIZE_BYTES as u64;
/// Bytes that are read at a time.
const PIECE_BYTES: usize = 1024 * 1024;

/// Returns the offset where what is kept ends: the last two blocks of the partition are the headers.
pub(super) fn end_of(target: &dyn BlockTarget) -> u64 {
    let blocks = target.size_bytes() / BLOCK;
    blocks.saturating_sub(2) * BLOCK
}

/// Reads the header that counts: the later one of two that are whole. Without any, nothing was ever kept.
///
/// # Errors
/// Neither block can be read.
pub(super) fn read_header(target: &dyn BlockTarget) -> io::Result<Header> {
    let end = end_of(target);
    let nothing = Header { sequence: 0, state: State::Nothing };
    if end == 0 {
        return Ok(nothing);
    }
    let mut block = AlignedBuf::zeroed(BLOCK_SIZE_BYTES);
    let mut read = |offset| target.read_at(offset, &mut block).map(|()| Header::decode(&block, end));
    match (read(end), read(end + BLOCK)) {
        (Err(error), Err(_)) => Err(error),
        (one, other) => {
            let whole = [one, other].into_iter().filter_map(|header| header.ok().flatten());
            Ok(whole.max_by_key(|header| header.sequence).unwrap_or(nothing))
        }
    }
}

/// Writes the header that follows `before`, in place of the one before that, makes it durable, and then writes it once
/// more in place of `before`, so that the loss of one of the two blocks costs nothing. Whatever was written earlier is
/// made durable first.
///
/// # Errors
/// The device's, or the block reads back wrong: the header before it counts.
pub(super) fn write_header(target: &dyn BlockTarget, before: &Header, state: State) -> io::Result<Header> {
    let header = write_one_header(target, before, state)?;
    // A bad block there takes nothing from the header that counts.
    Ok(write_one_header(target, &header, state).unwrap_or(header))
}

fn write_one_header(target: &dyn BlockTarget, before: &Header, state: State) -> io::Result<Header> {
    let end = end_of(target);
    let header = Header { sequence: before.sequence.saturating_add(1), state };
    let mut block = AlignedBuf::zeroed(BLOCK_SIZE_BYTES);
    block.copy_from_slice(&header.encode(end));
    let offset = end + header.sequence % 2 * BLOCK;
    target.flush()?;
    target.write_at(offset, &block)?;
    target.flush()?;
    block.fill(0);
    target.read_at(offset, &mut block)?;
    match Header::decode(&block, end) {
        Some(found) if found == header => Ok(header),
        _ => Err(io::Error::other("the header reads back wrong")),
    }
}

/// Reads bytes that need not be aligned. The caller has checked that there are not too many.
///
/// # Errors
/// The device's.
pub(super) fn read_bytes(target: &dyn BlockTarget, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    // The headers bound every length that is read at once.
    let mut bytes = Vec::with_capacity(index(length));
    let (mut at, end) = (offset, offset.saturating_add(length));
    let mut piece = AlignedBuf::zeroed(PIECE_BYTES.min(span(offset, length)));
    while at < end {
        let start = at - at % BLOCK;
        let wanted = span(at, end - at).min(piece.len());
        target.read_at(start, &mut piece[..wanted])?;
        let from = index(at - start);
        let count = (wanted - from).min(index(end - at));
        bytes.extend_from_slice(&piece[from..from + count]);
        at += count as u64;
    }
    Ok(bytes)
}

/// Reads a part from the first of its copies that is right; `None` when each has another digest than it should have.
///
/// # Errors
/// The device's, where no copy is right.
pub(super) fn read_part(target: &dyn BlockTarget, part: &KeptPart) -> io::Result<Option<Vec<u8>>> {
    let read = |offset| {
        let bytes = read_bytes(target, offset, part.length)?;
        Ok((Digest::of(&bytes) == part.digest).then_some(bytes))
    };
    match read(part.offset) {
        Ok(Some(bytes)) => Ok(Some(bytes)),
        first if part.copy == 0 => first,
        first => match read(part.copy) {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            second => first.and(second),
        },
    }
}

/// Whether every copy of a part is there twice, and right.
pub(super) fn is_twice(target: &dyn BlockTarget, part: &KeptPart) -> bool {
    let is_right =
        |offset| read_bytes(target, offset, part.length).is_ok_and(|bytes| Digest::of(&bytes) == part.digest);
    part.copy != 0 && is_right(part.offset) && is_right(part.copy)
}

/// Bytes of the whole blocks around some bytes.
pub(super) fn span(offset: u64, length: u64) -> usize {
    index((offset % BLOCK + length).next_multiple_of(BLOCK))
}

/// A count of bytes that fits into memory, since the header's limits were checked.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
