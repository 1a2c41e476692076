//! Scan back behind the writer: what was written is flushed and read while the rest is on its way.

use std::ops::Range;
use std::sync::{Condvar, Mutex};

use super::{Writer, lock};
use crate::flash::readback::ReadBack;
use crate::release::index::ChunkNo;

/// Written bytes that are flushed and read back together. A flush makes some devices wait, so not too often; what is
/// read without one may come from the device's own memory and prove nothing.
pub(super) const STEP_BYTES: u64 = 128 * 1024 * 1024;

/// What was written and not read back.
#[derive(Default)]
pub(super) struct Behind {
    state: Mutex<ReadBehindState>,
    changed: Condvar,
}

#[derive(Default)]
struct ReadBehindState {
    chunks: Vec<Range<ChunkNo>>,
    bytes: u64,
    is_over: bool,
}

impl Behind {
    pub(super) fn wrote(&self, chunks: Range<ChunkNo>, bytes: u64) {
        let mut state = lock(&self.state);
        state.chunks.push(chunks);
        state.bytes += bytes;
        if state.bytes >= STEP_BYTES {
            self.changed.notify_one();
        }
    }

    /// Nothing more is written. What is left is read by all cores after the last flush.
    pub(super) fn end(&self) {
        lock(&self.state).is_over = true;
        self.changed.notify_one();
    }

    pub(super) fn run(&self, writer: &Writer<'_>, read_back: &ReadBack<'_>) {
        loop {
            let waiting = |state: &mut ReadBehindState| state.bytes < STEP_BYTES && !state.is_over;
            let Ok(mut state) = self.changed.wait_while(lock(&self.state), waiting) else { return };
            if state.is_over {
                return;
            }
            let mut chunks: Vec<ChunkNo> = std::mem::take(&mut state.chunks).into_iter().flatten().collect();
            state.bytes = 0;
            drop(state);
            if let Err(source) = writer.work.target.flush() {
                return writer.fail(writer.error("flush", 0, source));
            }
            chunks.sort_unstable();
            read_back.read(writer.work.target, &chunks, writer.work.done);
        }
    }
}
