//! Fetches once more what came wrong, or did not come at all.

use super::content::decode;
use super::error::WriteError;
use super::pipeline::{download, local_error};
use super::splitter::{Parcel, Splitter};
use super::writer::Writer;
use crate::fetch::{FetchErrorKind, SinkError};
use crate::flash::frames;
use crate::flash::plan::{ChunkPlaces, coalesce};
use crate::release::frames::FrameDigests;
use crate::release::index::{ChunkNo, StoredChunkNo};
use crate::sys::block::AlignedBuf;

/// Downloads the damaged chunks, and those that could not be made by a delta, once more and whole.
///
/// They are checked one by one, each before the next byte is taken. The source then knows which of its copies sent
/// wrong bytes, and asks another one.
pub(super) fn fetch_again(writer: &Writer<'_>) -> Result<(), WriteError> {
    let mut wanted = writer.take_damaged();
    wanted.sort_unstable();
    let mut stored: Vec<StoredChunkNo> = wanted.iter().map(|(stored, _)| *stored).collect();
    stored.dedup();
    let places = ChunkPlaces::of(writer.index);
    // What a group or a delta should have made was not to be fetched by itself.
    let mut frames = writer.work.plan.frames.clone();
    let _ = frames::learn(&mut frames, writer.work.source, stored.iter().copied());
    let mut repeat = Repeat {
        writer,
        wanted,
        frames,
        zstd: zstd::bulk::Decompressor::new().map_err(WriteError::Decompressor)?,
        content: AlignedBuf::zeroed(writer.index.chunk_bytes() as usize),
        failure: None,
    };
    for request in coalesce(places, &stored) {
        let mut splitter = Splitter::new(places, &request, 1, Parcel::default());
        let result = download(writer, places, &request, &mut |bytes: &[u8]| {
            let pushed = splitter.push(bytes, |parcel| repeat.check_and_write(&parcel).map(|()| parcel.emptied()));
            if let Err(SinkError::Wrong { from, .. }) = &pushed {
                splitter.rewind(*from);
            }
            pushed
        });
        repeat.failure.take().map_or(result, Err).map_err(blame_the_content)?;
    }
    Ok(())
}

/// A source that was asked for every chunk by itself, and still has only wrong ones, has another release.
fn blame_the_content(error: WriteError) -> WriteError {
    match error {
        WriteError::Fetch { pack, start, end, source } if source.kind() == FetchErrorKind::Corrupt => {
            WriteError::Content { pack, start, end, source }
        }
        other => other,
    }
}

/// The state of [`fetch_again`].
struct Repeat<'w, 'a> {
    writer: &'w Writer<'a>,
    /// Stored chunks that are fetched again, each with a chunk of the image that needs it, sorted.
    wanted: Vec<(StoredChunkNo, ChunkNo)>,
    frames: FrameDigests,
    zstd: zstd::bulk::Decompressor<'static>,
    content: AlignedBuf,
    /// The error of the target, which a sink cannot return.
    failure: Option<WriteError>,
}

impl Repeat<'_, '_> {
    fn check_and_write(&mut self, parcel: &Parcel) -> Result<(), SinkError> {
        let index = self.writer.index;
        for (stored, bytes) in parcel.chunks() {
            let wrong = |reason| SinkError::Wrong { from: index.location(stored).range.start, reason };
            if !self.frames.allows(stored, bytes) {
                return Err(wrong("the chunk there is not compressed as in the release".to_owned()));
            }
            decode(index, &mut self.zstd, stored, bytes, &mut self.content).map_err(|flaw| wrong(flaw.to_string()))?;
            let first = self.wanted.partition_point(|(other, _)| *other < stored);
            for (_, chunk) in self.wanted[first..].iter().take_while(|(other, _)| *other == stored) {
                if let Err(error) = self.writer.write(&mut [(*chunk, 0)], &self.content) {
                    self.failure = Some(error);
                    return Err(local_error("the writer stopped"));
                }
            }
        }
        Ok(())
    }
}
