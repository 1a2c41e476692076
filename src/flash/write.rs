//! Carries out a plan: move, patch, fetch, decode, check, write. The result is [`Written`], which is not yet proven by
//! read-back.
//!
//! Chunk 0 holds the superblock. It is blanked before anything else changes and written last, after a flush, so
//! that no program can take a half-written system for a system.
//!
//! | file | what it does |
//! |---|---|
//! | `writer` | the state that all threads share: it writes checked chunks and keeps the first failure |
//! | `gate` | holds writes back until the moves have read what lies there |
//! | `head` | blanks the superblock and puts it back |
//! | `deltas` | fetches deltas, and makes chunks with them |
//! | `moving` | puts chunks together from blocks of the partition |
//! | `pipeline`, `splitter` | fetch, decode and write chunks of the release |
//! | `groups`, `bad_packs` | fetch and decode chunks that are compressed together |
//! | `content` | decompresses a chunk and checks that it is what belongs in its place |
//! | `again` | fetches once more what came wrong, or not at all |
//! | `zeroing`, `zero_command` | writes the chunks of zeros, by the device's command as long as that does what it says |
//! | `read_behind` | reads back what was written while the rest is written |

mod again;
mod bad_packs;
pub(in crate::flash) mod content;
mod deltas;
mod error;
mod gate;
mod groups;
mod head;
mod moving;
mod pipeline;
mod read_behind;
mod splitter;
mod writer;
mod zero_command;
mod zeroing;

use crate::boot::env::WritePermit;
use crate::flash::plan::{Comparison, Plan};
use crate::flash::readback::ReadBack;
use crate::flash::target::BlockTarget;
use crate::flash::threads;
use crate::record::progress::Bytes;
use crate::release::index::{ChunkNo, Index};

use deltas::HeldDeltas;
pub use error::WriteError;
pub use writer::Work;
use writer::Writer;

/// A plan that was carried out and flushed. Only [`crate::flash::verify`] can turn it into a proof.
#[derive(Debug)]
pub struct Written<'i> {
    /// The chunks that were written, and those of them that were read back already.
    pub(crate) read_back: ReadBack<'i>,
    /// Number of bytes that were written, for the report.
    pub bytes: u64,
    /// Whether the target said that it had zeroed and had not. Zeros were written instead from then on.
    pub zeroing_lied: bool,
    /// Whether deltas or groups of the plan are wrong in every copy, so that chunks were fetched in their place.
    pub lacked_savings: bool,
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

/// Returns the bytes that [`apply`] is going to count as done.
#[must_use]
pub fn expected_work(plan: &Plan, read_behind: bool) -> Bytes {
    let changed = plan.totals.changed_bytes();
    let read_early = if read_behind { changed - changed % read_behind::STEP_BYTES } else { 0 };
    Bytes { disk: plan.totals.move_bytes + changed + read_early, network: plan.totals.download_bytes }
}

/// Makes the target equal to the image as far as the plan goes, and flushes it. The permit proves that a power cut from
/// here on leads back into recovery.
///
/// # Errors
/// [`WriteError`]; the target then holds some of the chunks and no superblock, and the next run goes on from there.
pub fn apply<'i>(
    index: &'i Index,
    comparison: &Comparison,
    work: Work<'_>,
    _permit: &WritePermit,
) -> Result<Written<'i>, WriteError> {
    check_size(index.image_bytes(), work.target)?;
    if work.plan.is_empty() {
        return Ok(Written {
            read_back: ReadBack::of_nothing(index, comparison),
            bytes: 0,
            zeroing_lied: false,
            lacked_savings: false,
        });
    }
    let read_back = ReadBack::new(index, comparison);
    let writer = Writer::new(index, work, HeldDeltas::fetch(work.plan, work.source, work.done)?);
    head::withhold(&writer, comparison)?;
    write_all_but_the_head(&writer, &read_back);
    if let Some(failure) = writer.take_failure() {
        return Err(failure);
    }
    again::fetch_again(&writer)?;
    check_complete(&writer, comparison)?;
    head::put_back(&writer)?;
    let zeroing_lied = writer.zeroing.has_lied();
    let lacked_savings = writer.bad_packs.are_any() || !writer.deltas.are_all(work.plan);
    Ok(Written { read_back, bytes: work.plan.totals.changed_bytes(), zeroing_lied, lacked_savings })
}

/// Makes sure that every chunk that was wrong has been written with content that has its digest. Without it a source
/// that says "done" too early would leave a system that only the read-back finds wrong, and the blame would be the
/// disk's.
fn check_complete(writer: &Writer<'_>, comparison: &Comparison) -> Result<(), WriteError> {
    let index = writer.index;
    let is_missing = |chunk: &ChunkNo| match chunk {
        0 => !head::is_known(writer),
        chunk => !comparison.is_right(*chunk) && !writer.is_written(*chunk),
    };
    let mut missing = (0..index.chunk_count()).filter(is_missing);
    let Some(first) = missing.next() else { return Ok(()) };
    Err(WriteError::NotDelivered {
        missing: missing.count() + 1,
        chunks: index.chunk_count(),
        offset: index.chunk_range(first).start,
    })
}

/// Moves, fetches and zeroes on several threads. A failure is kept for [`Writer::take_failure`].
fn write_all_but_the_head(writer: &Writer<'_>, read_back: &ReadBack<'_>) {
    let Work { target, done, read_behind, .. } = writer.work;
    std::thread::scope(|scope| {
        if read_behind {
            threads::spawn(scope, "read-behind", || {
                if let Err(source) = writer.unread.read_back(read_back, target, done, &writer.zeroing) {
                    writer.fail(writer.error("flush", 0, source));
                }
            });
        }
        std::thread::scope(|scope| {
            moving::spawn(writer, scope);
            pipeline::spawn(writer, scope);
            zeroing::zero(writer);
        });
        writer.unread.end();
    });
}
