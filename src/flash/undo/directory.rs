//! The directory of the kept chunks. Pure: [`super`] has the format.

use super::header::ENTRY_BYTES;
use crate::flash::plan::FramePlace;
use crate::release::digest::Digest;
use crate::release::index::{Index, MAX_CHUNK_BYTES, MAX_CHUNKS, compressed_limit};

const DIGEST_BYTES: usize = 32;

/// A kept chunk: one zstd frame on the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeptFrame {
    /// BLAKE3 of the content.
    pub(super) digest: Digest,
    /// Offset of the frame on the partition, bytes.
    pub(super) offset: u64,
    /// Length of the frame, bytes.
    pub(super) length: u32,
}

impl KeptFrame {
    fn read(entry: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let (digest, rest) = entry.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (offset, length) = (u64::from_le_bytes(*offset), u32::from_le_bytes(*rest.first_chunk()?));
        Some(Self { digest: Digest(*digest), offset, length })
    }

    fn write_to(&self, entries: &mut Vec<u8>) {
        entries.extend_from_slice(&self.digest.0);
        entries.extend_from_slice(&self.offset.to_le_bytes());
        entries.extend_from_slice(&self.length.to_le_bytes());
    }
}

/// All kept chunks, in the order of their digests. They are held as they are on the partition: there may be as many as
/// an index has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct KeptDirectory {
    entries: Vec<u8>,
}

impl KeptDirectory {
    /// Reads a directory whose digest has been checked. Each frame has to lie between `low` and `end`.
    pub(super) fn decode(entries: Vec<u8>, low: u64, end: u64) -> Option<Self> {
        let directory = Self { entries };
        if !directory.entries.len().is_multiple_of(ENTRY_BYTES) || directory.len() as u64 > MAX_CHUNKS {
            return None;
        }
        let limit = compressed_limit(MAX_CHUNK_BYTES);
        let fits = |frame: &KeptFrame| {
            let last = frame.offset.checked_add(u64::from(frame.length));
            frame.offset >= low && last.is_some_and(|last| last <= end) && (1..=limit).contains(&frame.length)
        };
        let is_sorted = directory.raw().is_sorted_by(|one, next| one[..DIGEST_BYTES] < next[..DIGEST_BYTES]);
        // What reads several frames at once subtracts one place from another.
        let mut places: Vec<(u64, u32)> = directory.frames().map(|frame| (frame.offset, frame.length)).collect();
        if !is_sorted || !directory.frames().all(|frame| fits(&frame)) {
            return None;
        }
        places.sort_unstable();
        let overlap = places.windows(2).any(|pair| pair[0].0 + u64::from(pair[0].1) > pair[1].0);
        (!overlap).then_some(directory)
    }

    /// The bytes of the directory, as they are written.
    pub(super) fn encoded(&self) -> &[u8] {
        &self.entries
    }

    /// Returns the directory with more chunks, which come in the order of their digests. Of two entries for one
    /// content, either will do.
    pub(super) fn with(&self, more: impl ExactSizeIterator<Item = KeptFrame>) -> Self {
        let mut entries = Vec::with_capacity(self.entries.len() + more.len() * ENTRY_BYTES);
        let mut known = self.frames().peekable();
        for frame in more {
            while let Some(known) = known.next_if(|known| known.digest < frame.digest) {
                known.write_to(&mut entries);
            }
            if known.peek().is_none_or(|known| known.digest != frame.digest) {
                frame.write_to(&mut entries);
            }
        }
        known.for_each(|frame| frame.write_to(&mut entries));
        Self { entries }
    }

    /// Returns the directory without the chunks of these digests.
    pub(super) fn without(&self, digests: &[Digest]) -> Self {
        let mut digests = digests.to_vec();
        digests.sort_unstable();
        let mut entries = Vec::new();
        for frame in self.frames().filter(|frame| digests.binary_search(&frame.digest).is_err()) {
            frame.write_to(&mut entries);
        }
        Self { entries }
    }

    /// Whether a content is kept.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.find(digest).is_some()
    }

    fn raw(&self) -> &[[u8; ENTRY_BYTES]] {
        self.entries.as_chunks().0
    }

    fn frames(&self) -> impl Iterator<Item = KeptFrame> {
        self.raw().iter().filter_map(KeptFrame::read)
    }

    fn find(&self, digest: &Digest) -> Option<KeptFrame> {
        let at = self.raw().binary_search_by(|entry| entry[..DIGEST_BYTES].cmp(&digest.0)).ok()?;
        KeptFrame::read(self.raw().get(at)?)
    }

    /// Number of kept chunks.
    pub(super) fn len(&self) -> usize {
        self.raw().len()
    }

    /// Iterates over the stored chunks of an index that are kept, each with the place of its frame. A frame that is
    /// longer than the index allows is none of its chunks.
    pub(super) fn places<'a>(&'a self, index: &'a Index) -> impl Iterator<Item = FramePlace> + 'a {
        (0..index.stored_count()).filter_map(move |stored| {
            let KeptFrame { offset, length, .. } =
                self.find(index.digest(stored)).filter(|frame| index.is_length(frame.length))?;
            Some(FramePlace { stored, length, offset })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{KeptDirectory, KeptFrame};
    use crate::release::digest::Digest;

    fn entry(number: u8, offset: u64, length: u32) -> KeptFrame {
        KeptFrame { digest: Digest([number; 32]), offset, length }
    }

    fn directory(entries: &[KeptFrame]) -> KeptDirectory {
        let mut directory = KeptDirectory::default();
        entries.iter().for_each(|entry| entry.write_to(&mut directory.entries));
        directory
    }

    #[test]
    fn what_is_encoded_is_decoded_and_found() {
        let first = KeptDirectory::default().with([entry(1, 4096, 50), entry(3, 8192, 100)].into_iter());
        let kept = first.with([entry(2, 9000, 7), entry(3, 9500, 100), entry(4, 9700, 1)].into_iter());
        assert_eq!(kept, directory(&[entry(1, 4096, 50), entry(2, 9000, 7), entry(3, 8192, 100), entry(4, 9700, 1)]));
        assert_eq!(KeptDirectory::decode(kept.encoded().to_vec(), 4096, 10_000), Some(kept.clone()));
        assert_eq!(kept.len(), 4);
        assert!(kept.has(&Digest([2; 32])) && !kept.has(&Digest([5; 32])));
        let rest = kept.without(&[Digest([2; 32]), Digest([9; 32])]);
        assert_eq!((rest.has(&Digest([2; 32])), rest.len()), (false, 3));
        assert_eq!(rest.with([].into_iter()), rest);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |entries: &[KeptFrame]| KeptDirectory::decode(directory(entries).entries, 4096, 8192).is_none();
        assert!(!refused(&[entry(1, 4096, 50), entry(2, 8191, 1)]));
        assert!(refused(&[entry(2, 4096, 50), entry(1, 5000, 1)]), "out of order");
        assert!(refused(&[entry(1, 4096, 50), entry(1, 5000, 1)]), "twice");
        assert!(refused(&[entry(1, 4095, 50)]), "below");
        assert!(refused(&[entry(1, 8191, 2)]), "beyond");
        assert!(refused(&[entry(1, u64::MAX, 2)]), "wraps");
        assert!(refused(&[entry(1, 4096, 0)]), "empty");
        assert!(refused(&[entry(1, 5000, 50), entry(2, 4999, 2)]), "two frames share a byte");
        assert!(!refused(&[entry(1, 5000, 50), entry(2, 4999, 1)]));
        let bytes = directory(&[entry(1, 4096, 50)]).entries;
        assert!(KeptDirectory::decode(bytes[..43].to_vec(), 4096, 8192).is_none());
        assert_eq!(KeptDirectory::decode(Vec::new(), 4096, 8192), Some(KeptDirectory::default()));
    }
}
