//! Reads kept chunks and checks each as the writer would.

use std::sync::Mutex;

use super::area;
use crate::flash::plan::FramePlace;
use crate::flash::target::BlockTarget;
use crate::flash::threads::{self, lock};
use crate::flash::write::content::decode;
use crate::release::index::{Index, StoredChunkNo};

/// Bytes of frames that are read at a time.
const READ_BYTES: u32 = 1024 * 1024;

/// Returns the stored chunks of `places` whose frames are not what they should be.
pub(super) fn damaged(target: &dyn BlockTarget, index: &Index, mut places: Vec<FramePlace>) -> Vec<StoredChunkNo> {
    places.sort_unstable_by_key(|place| place.offset);
    let (next, found) = (Mutex::new(runs(&places)), Mutex::new(Vec::new()));
    let work = || {
        let mut content = vec![0; index.chunk_bytes() as usize];
        // Without a decompressor nothing can be shown to be right.
        let mut zstd = zstd::bulk::Decompressor::new().ok();
        loop {
            let Some(run) = lock(&next).next() else { return };
            let (start, end) = (run[0].offset, end_of(&run[run.len() - 1]));
            let bytes = area::read_bytes(target, start, end - start);
            for FramePlace { stored, offset, length } in run {
                let at = usize::try_from(offset - start).unwrap_or(usize::MAX);
                let frame = bytes.as_deref().ok().and_then(|bytes| bytes.get(at..at + *length as usize));
                let is_right = frame
                    .zip(zstd.as_mut())
                    .is_some_and(|(frame, zstd)| decode(index, zstd, *stored, frame, &mut content).is_ok());
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

fn end_of(place: &FramePlace) -> u64 {
    place.offset + u64::from(place.length)
}

/// Cuts places in the order of their offsets into runs that are read in one transfer.
fn runs(mut places: &[FramePlace]) -> impl Iterator<Item = &[FramePlace]> {
    std::iter::from_fn(move || {
        let start = places.first()?.offset;
        let is_far = |place: &FramePlace| end_of(place) > start + u64::from(READ_BYTES);
        let count = places.iter().position(is_far).unwrap_or(places.len()).max(1);
        let (run, rest) = places.split_at(count);
        places = rest;
        Some(run)
    })
}
