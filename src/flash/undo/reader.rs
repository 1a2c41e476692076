//! Reads contents from the partition and compresses them, to be kept.

use std::sync::mpsc::SyncSender;

use super::need::{Wanted, WantedChunk};
use crate::flash::target::{AlignedBuf, BlockTarget};
use crate::release::index::{ChunkNo, Index};

/// zstd level of the kept frames: the robot waits for it. Of a Debian image in chunks of 32 KiB, levels 1, 3 and 5
/// leave 26.5, 26.3 and 25.4 %, and take 1, 1.4 and 4 times as long.
const LEVEL: i32 = 1;
/// Bytes that one thread reads at a time.
pub(super) const READ_BYTES: u32 = 1024 * 1024;

/// A content on its way to the disk; `None` where no place holds it.
pub(super) struct Frame<'w> {
    pub(super) content: &'w WantedChunk,
    pub(super) bytes: Option<Vec<u8>>,
}

/// Joins contents whose first places are neighbours. `order` has their numbers, in the order of these places.
pub(super) fn runs<'r>(wanted: &'r Wanted, mut order: &'r [u32], most: usize) -> impl Iterator<Item = &'r [u32]> {
    let place = |number: &u32| first_place(wanted, &wanted.contents()[*number as usize]);
    std::iter::from_fn(move || {
        let first = place(order.first()?);
        let is_next = |(at, number): &(usize, &u32)| {
            let expected = first.and_then(|first| first.checked_add(ChunkNo::try_from(*at).ok()?));
            expected.is_some() && place(number) == expected
        };
        let count = order.iter().enumerate().take(most).take_while(is_next).count().max(1);
        let (run, rest) = order.split_at(count);
        order = rest;
        Some(run)
    })
}

pub(super) fn first_place(wanted: &Wanted, content: &WantedChunk) -> Option<ChunkNo> {
    wanted.places(content).first().copied()
}

/// Reads contents from their places, checks and compresses them.
pub(super) struct Reader<'a> {
    target: &'a dyn BlockTarget,
    index: &'a Index,
    wanted: &'a Wanted,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    buffer: AlignedBuf,
}

impl<'a> Reader<'a> {
    pub(super) fn new(target: &'a dyn BlockTarget, index: &'a Index, wanted: &'a Wanted) -> Self {
        let buffer = AlignedBuf::zeroed(READ_BYTES.max(index.chunk_bytes()) as usize);
        Self { target, index, wanted, zstd: zstd::bulk::Compressor::new(LEVEL).ok(), buffer }
    }

    /// Reads a run and hands its frames on. Returns whether they are still wanted.
    pub(super) fn read(&mut self, run: &[u32], to: &SyncSender<Frame<'a>>) -> bool {
        let wanted = self.wanted;
        let contents = || run.iter().map(|number| &wanted.contents()[*number as usize]);
        let chunks = || contents().filter_map(|content| first_place(wanted, content));
        let length: usize = chunks().map(|chunk| self.index.chunk_len(chunk)).sum();
        let start = chunks().next().map(|first| self.index.chunk_range(first).start);
        let is_read = start.is_some_and(|start| self.target.read_at(start, &mut self.buffer[..length]).is_ok());
        let mut frames = Vec::with_capacity(run.len());
        let mut at = 0;
        for content in contents() {
            let mut bytes = None;
            if let Some(chunk) = first_place(wanted, content).filter(|_| is_read) {
                let range = at..at + self.index.chunk_len(chunk);
                at = range.end;
                bytes = self.compress(chunk, range);
            }
            frames.push(Frame { content, bytes });
        }
        // The buffer is used again for those that were not where they were looked for first.
        for frame in frames.iter_mut().filter(|frame| frame.bytes.is_none()) {
            frame.bytes = wanted.places(frame.content).iter().find_map(|chunk| self.read_alone(*chunk));
        }
        frames.into_iter().all(|frame| to.send(frame).is_ok())
    }

    fn read_alone(&mut self, chunk: ChunkNo) -> Option<Vec<u8>> {
        let length = self.index.chunk_len(chunk);
        self.target.read_at(self.index.chunk_range(chunk).start, &mut self.buffer[..length]).ok()?;
        self.compress(chunk, 0..length)
    }

    fn compress(&mut self, chunk: ChunkNo, range: std::ops::Range<usize>) -> Option<Vec<u8>> {
        let content = &self.buffer[range];
        if !self.index.matches(chunk, content) {
            return None;
        }
        self.zstd.as_mut()?.compress(content).ok()
    }
}
