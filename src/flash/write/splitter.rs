//! Cuts the bytes of one request into its chunks, leaves out the gaps, and collects neighbours into parcels.

use crate::fetch::SinkError;
use crate::flash::plan::{ChunkPlaces, Request};
use crate::release::index::StoredChunkNo;

/// Bytes of content that are decoded, checked and written together.
pub(super) const PARCEL_BYTES: usize = 1024 * 1024;

/// Compressed chunks on their way to a decoder.
#[derive(Default)]
pub(super) struct Parcel {
    bytes: Vec<u8>,
    /// Stored chunks of the parcel, and where the bytes of each end.
    chunks: Vec<(StoredChunkNo, usize)>,
}

impl Parcel {
    /// Returns an empty parcel with the memory of this one.
    pub(super) fn emptied(mut self) -> Self {
        self.bytes.clear();
        self.chunks.clear();
        self
    }

    /// Iterates over the stored chunks and their bytes.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (StoredChunkNo, &[u8])> {
        let starts = std::iter::once(0).chain(self.chunks.iter().map(|(_, end)| *end));
        self.chunks.iter().zip(starts).map(|((stored, end), start)| (*stored, &self.bytes[start..*end]))
    }
}

/// What a decoder gets.
pub(super) enum Load {
    /// Chunks, each compressed by itself: as the release has them, or by the robot, which kept them.
    Chunks { parcel: Parcel, is_kept: bool },
    /// A group with its number in the table, whose bytes have their digest.
    Group(u32, Vec<u8>),
}

/// The state of one request while its bytes arrive.
pub(super) struct Splitter<'a> {
    places: ChunkPlaces<'a>,
    request: &'a Request,
    /// Number of chunks in a full parcel.
    per_parcel: usize,
    /// Offset in the pack of the next byte.
    position: u64,
    /// The next chunk, as a position in the request.
    next: usize,
    /// The parcel that is being filled.
    parcel: Parcel,
}

impl<'a> Splitter<'a> {
    /// Starts at the beginning of `request`. Parcels of `per_parcel` chunks are handed on; `parcel` is an empty one to
    /// start with.
    pub(super) fn new(places: ChunkPlaces<'a>, request: &'a Request, per_parcel: usize, parcel: Parcel) -> Self {
        Self { places, request, per_parcel, position: request.range.start, next: 0, parcel }
    }

    /// Goes back to the start of a chunk of this request.
    pub(super) fn rewind(&mut self, position: u64) {
        self.position = position;
        self.next = self.request.stored.partition_point(|stored| self.places.location(*stored).range.start < position);
        self.parcel = std::mem::take(&mut self.parcel).emptied();
    }

    /// Takes the next bytes of the answer. `send` gets every full parcel and the last one, and returns an empty one.
    pub(super) fn push(
        &mut self,
        mut bytes: &[u8],
        mut send: impl FnMut(Parcel) -> Result<Parcel, SinkError>,
    ) -> Result<(), SinkError> {
        while let Some(stored) = self.request.stored.get(self.next) {
            let place = self.places.location(*stored).range;
            let gap = place.start.saturating_sub(self.position);
            let (_, rest) = self.advance(bytes, gap);
            if rest.is_empty() {
                return Ok(());
            }
            let (content, rest) = self.advance(rest, place.end - self.position);
            self.parcel.bytes.extend_from_slice(content);
            bytes = rest;
            if self.position == place.end {
                self.next += 1;
                self.parcel.chunks.push((*stored, self.parcel.bytes.len()));
                if self.parcel.chunks.len() == self.per_parcel || self.next == self.request.stored.len() {
                    self.parcel = send(std::mem::take(&mut self.parcel))?;
                }
            }
        }
        Ok(())
    }

    /// The chunks that did not come to their ends, came and were refused, or were not sent on.
    pub(super) fn undelivered(&self) -> &[StoredChunkNo] {
        &self.request.stored[self.next - self.parcel.chunks.len()..]
    }

    /// Moves on by up to `count` bytes, and splits `bytes` there.
    fn advance<'b>(&mut self, bytes: &'b [u8], count: u64) -> (&'b [u8], &'b [u8]) {
        let (head, rest) =
            usize::try_from(count).ok().and_then(|count| bytes.split_at_checked(count)).unwrap_or((bytes, &[]));
        self.position += head.len() as u64;
        (head, rest)
    }
}
