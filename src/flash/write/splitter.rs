//! Cuts the bytes of one request into its chunks, leaving out the gaps, and collects neighbours to parcels.

use crate::fetch::SinkError;
use crate::flash::plan::Request;
use crate::release::index::{Index, StoredChunkNo};

/// Bytes of content that are decoded, checked and written together.
pub(super) const PARCEL_BYTES: usize = 1024 * 1024;

/// Compressed chunks on their way to a decoder.
#[derive(Default)]
pub(super) struct Parcel {
    bytes: Vec<u8>,
    /// Each chunk and where its bytes end.
    chunks: Vec<(StoredChunkNo, usize)>,
}

impl Parcel {
    /// An empty parcel with the memory of a used one.
    pub(super) fn emptied(mut self) -> Self {
        self.bytes.clear();
        self.chunks.clear();
        self
    }

    /// The chunks and their bytes.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (StoredChunkNo, &[u8])> {
        let starts = std::iter::once(0).chain(self.chunks.iter().map(|(_, end)| *end));
        self.chunks.iter().zip(starts).map(|((stored, end), start)| (*stored, &self.bytes[start..*end]))
    }
}

pub(super) struct Splitter<'a> {
    index: &'a Index,
    request: &'a Request,
    /// Chunks of a full parcel.
    per_parcel: usize,
    /// Offset in the pack of the next byte.
    position: u64,
    next: usize,
    parcel: Parcel,
}

impl<'a> Splitter<'a> {
    /// `parcel` is an emptied one; a parcel of `per_parcel` chunks is handed on.
    pub(super) fn new(index: &'a Index, request: &'a Request, per_parcel: usize, parcel: Parcel) -> Self {
        Self { index, request, per_parcel, position: request.range.start, next: 0, parcel }
    }

    /// Goes back to the start of a chunk of this request.
    pub(super) fn rewind(&mut self, position: u64) {
        self.position = position;
        self.next = self.request.stored.partition_point(|stored| self.index.location(*stored).range.start < position);
        self.parcel = std::mem::take(&mut self.parcel).emptied();
    }

    /// Takes the next bytes. `send` gets full parcels, and the last one, and returns an emptied one.
    pub(super) fn take(
        &mut self,
        mut bytes: &[u8],
        mut send: impl FnMut(Parcel) -> Result<Parcel, SinkError>,
    ) -> Result<(), SinkError> {
        while let Some(stored) = self.request.stored.get(self.next) {
            let place = self.index.location(*stored).range;
            let gap = place.start.saturating_sub(self.position).min(bytes.len() as u64);
            bytes = &bytes[gap as usize..];
            self.position += gap;
            if bytes.is_empty() {
                return Ok(());
            }
            let wanted = (place.end - self.position).min(bytes.len() as u64) as usize;
            let (head, rest) = bytes.split_at(wanted);
            self.parcel.bytes.extend_from_slice(head);
            self.position += wanted as u64;
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
}
