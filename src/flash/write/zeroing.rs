//! Writes the chunks of zeros.

use std::ops::Range;

use super::writer::Writer;
use crate::release::index::ChunkNo;

/// Zeroes the chunks of the plan in long ranges, each as soon as nothing there is needed any more.
pub(super) fn zero(writer: &Writer<'_>) {
    let plan = writer.work.plan;
    for chunks in ranges(plan.zero.iter().copied().filter(|chunk| *chunk != 0)) {
        let free_after = chunks.clone().map(|chunk| plan.moves.free_after(chunk)).max();
        writer.gate.wait(free_after.unwrap_or_default());
        if writer.is_stopped() {
            return;
        }
        let range = writer.index.chunk_range(chunks.start).start..writer.index.chunk_range(chunks.end - 1).end;
        match writer.work.target.zero(range.clone()) {
            Ok(()) => writer.count_written(chunks, range.end - range.start),
            Err(source) => return writer.fail(writer.error("zero", range.start, source)),
        }
    }
}

/// Joins neighbouring chunks.
fn ranges(chunks: impl Iterator<Item = ChunkNo>) -> Vec<Range<ChunkNo>> {
    let mut ranges: Vec<Range<ChunkNo>> = Vec::new();
    for chunk in chunks {
        match ranges.last_mut() {
            Some(last) if last.end == chunk => last.end += 1,
            _ => ranges.push(chunk..chunk + 1),
        }
    }
    ranges
}
