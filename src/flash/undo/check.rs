//! Reads kept chunks and checks each as the writer would.

use std::sync::Mutex;

use super::area;
use crate::flash::target::BlockTarget;
use crate::flash::threads::{self, lock};
use crate::flash::write::content::decode;
use crate::release::index::{ChunkContent, ChunkNo, Index, StoredChunkNo};

/// Bytes of frames that are read at a time.
const READ_BYTES: u32 = 1024 * 1024;

/// Returns the stored chunks of `places` whose frames are not what they should be. A place is an offset and a length.
pub(super) fn damaged(
    target: &dyn BlockTarget,
    index: &Index,
    mut places: Vec<(StoredChunkNo, u64, u32)>,
) -> Vec<StoredChunkNo> {
    places.sort_unstable_by_key(|(_, offset, _)| *offset);
    let mut chunk_of: Vec<ChunkNo> = vec![ChunkNo::MAX; index.stored_count() as usize];
    for chunk in 0..index.chunk_count() {
        if let ChunkContent::Stored(stored) = index.chunk_content(chunk) {
            chunk_of[stored as usize] = chunk;
        }
    }
    let runs = runs(&places);
    let (next, found) = (Mutex::new(runs.into_iter()), Mutex::new(Vec::new()));
    let work = || {
        let mut content = vec![0; index.chunk_bytes() as usize];
        // Without a decompressor nothing can be shown to be right.
        let mut zstd = zstd::bulk::Decompressor::new().ok();
        loop {
            let Some(run) = lock(&next).next() else { return };
            let (start, end) = (run[0].1, run[run.len() - 1].1 + u64::from(run[run.len() - 1].2));
            let bytes = area::read_bytes(target, start, end - start);
            for (stored, offset, length) in run {
                let at = usize::try_from(offset - start).unwrap_or(usize::MAX);
                let frame = bytes.as_deref().ok().and_then(|bytes| bytes.get(at..at + *length as usize));
                let chunk = chunk_of[*stored as usize];
                let is_right = frame
                    .zip(zstd.as_mut())
                    .is_some_and(|(frame, zstd)| decode(index, zstd, chunk, frame, &mut content).is_ok());
                if !is_right {
                    lock(&found).push(*stored);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads::count_with_buffers((index.chunk_bytes() + 2 * READ_BYTES) as usize) {
            threads::spawn(scope, "check-kept", work);
        }
    });
    found.into_inner().unwrap_or_default()
}

/// Cuts places in the order of their offsets into runs that are read in one transfer.
fn runs(mut places: &[(StoredChunkNo, u64, u32)]) -> Vec<&[(StoredChunkNo, u64, u32)]> {
    let mut runs = Vec::new();
    while let Some((_, start, _)) = places.first() {
        let far = |(_, offset, length): &(StoredChunkNo, u64, u32)| {
            offset + u64::from(*length) > start + u64::from(READ_BYTES)
        };
        let count = places.iter().position(far).unwrap_or(places.len()).max(1);
        let (run, rest) = places.split_at(count);
        runs.push(run);
        places = rest;
    }
    runs
}
