//! Writes the chunks of zeros: by the device's command to zero, for as long as that does what it says.
//!
//! Some devices answer that they have zeroed and keep what was there, all of it or what does not fill their own larger
//! blocks; bridges and virtual disks do too. So the first command is tried on one chunk, which held something else, and
//! is read back at once; the read-back behind the writer looks at all others. After the first lie the rest of the run
//! is written. Writing all zeros from the start was rejected: most devices zero a partition within a second, and flash
//! memory lasts longer for it.

use std::ops::Range;

use super::writer::Writer;
use crate::release::index::{ChunkNo, Index};
use crate::sys::block::AlignedBuf;

/// The most bytes that one command zeroes. A device without such a command has the zeros written by the kernel, in one
/// call, during which nothing feeds the watchdog: at 1 MB/s so many bytes take a minute.
const COMMAND_BYTES: u64 = 64 * 1024 * 1024;

/// Zeroes the chunks of the plan in long ranges, each as soon as nothing there is needed any more.
pub(super) fn zero(writer: &Writer<'_>) {
    let plan = writer.work.plan;
    for chunks in ranges(writer.index, plan.zero.iter().copied().filter(|chunk| *chunk != 0)) {
        let free_after = chunks.clone().map(|chunk| plan.moves.free_after(chunk)).max();
        writer.gate.wait(free_after.unwrap_or_default());
        let (first, rest) = if writer.zeroing.is_trial() {
            (Some(chunks.start..chunks.start + 1), chunks.start + 1..chunks.end)
        } else {
            (None, chunks)
        };
        for (chunks, is_trial) in first.map(|first| (first, true)).into_iter().chain([(rest, false)]) {
            if writer.is_stopped() {
                return;
            }
            if !chunks.is_empty() && !zero_chunks(writer, chunks, is_trial) {
                return;
            }
        }
    }
}

/// Zeroes neighbouring chunks. Returns whether the work goes on.
fn zero_chunks(writer: &Writer<'_>, chunks: Range<ChunkNo>, is_trial: bool) -> bool {
    let (target, range) = (writer.work.target, bytes_of(writer.index, &chunks));
    let zeroed = if is_trial {
        let mut buffer = AlignedBuf::zeroed(writer.index.chunk_len(chunks.start));
        writer.zeroing.try_command(target, range.clone(), &mut buffer)
    } else {
        writer.zeroing.zero(target, range.clone())
    };
    match zeroed {
        Ok(()) => writer.count_written(chunks, range.end - range.start),
        Err(source) => writer.fail(writer.error("zero", range.start, source)),
    }
    !writer.is_stopped()
}

fn bytes_of(index: &Index, chunks: &Range<ChunkNo>) -> Range<u64> {
    index.chunk_range(chunks.start).start..index.chunk_range(chunks.end - 1).end
}

/// Joins neighbouring chunks, up to what one command zeroes.
fn ranges(index: &Index, chunks: impl Iterator<Item = ChunkNo>) -> Vec<Range<ChunkNo>> {
    let at_most = u32::try_from(COMMAND_BYTES / u64::from(index.chunk_bytes())).unwrap_or(1).max(1);
    let mut ranges: Vec<Range<ChunkNo>> = Vec::new();
    for chunk in chunks {
        match ranges.last_mut() {
            Some(last) if last.end == chunk && last.end - last.start < at_most => last.end += 1,
            _ => ranges.push(chunk..chunk + 1),
        }
    }
    ranges
}
