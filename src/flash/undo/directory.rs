//! The directory of the kept chunks. Pure: [`super`] has the format.

use super::header::ENTRY_BYTES;
use crate::release::digest::Digest;
use crate::release::index::{Index, MAX_CHUNK_BYTES, MAX_CHUNKS, StoredChunkNo, compressed_limit};

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

/// All kept chunks, in the order of their digests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct KeptDirectory(Vec<KeptFrame>);

impl KeptDirectory {
    /// Reads a directory whose digest has been checked. Each frame has to lie between `low` and `end`.
    pub(super) fn decode(bytes: &[u8], low: u64, end: u64) -> Option<Self> {
        let (entries, rest) = bytes.as_chunks::<ENTRY_BYTES>();
        if !rest.is_empty() || entries.len() as u64 > MAX_CHUNKS {
            return None;
        }
        let limit = compressed_limit(MAX_CHUNK_BYTES);
        let entry = |bytes: &[u8; ENTRY_BYTES]| {
            let (digest, rest) = bytes.split_first_chunk()?;
            let (offset, rest) = rest.split_first_chunk()?;
            let (offset, length) = (u64::from_le_bytes(*offset), u32::from_le_bytes(*rest.first_chunk()?));
            let fits = offset >= low && offset.checked_add(u64::from(length))? <= end;
            (fits && (1..=limit).contains(&length)).then_some(KeptFrame { digest: Digest(*digest), offset, length })
        };
        let entries: Vec<KeptFrame> = entries.iter().map(entry).collect::<Option<_>>()?;
        let is_sorted = entries.is_sorted_by(|one, next| one.digest < next.digest);
        // What reads several frames at once subtracts one place from another.
        let mut places: Vec<(u64, u32)> = entries.iter().map(|entry| (entry.offset, entry.length)).collect();
        places.sort_unstable();
        let overlap = places.windows(2).any(|pair| pair[0].0 + u64::from(pair[0].1) > pair[1].0);
        (is_sorted && !overlap).then_some(Self(entries))
    }

    /// Writes the directory.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * ENTRY_BYTES);
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.digest.0);
            bytes.extend_from_slice(&entry.offset.to_le_bytes());
            bytes.extend_from_slice(&entry.length.to_le_bytes());
        }
        bytes
    }

    /// Returns the directory with more chunks. Of two entries for one content, either will do.
    pub(super) fn with(&self, more: &[KeptFrame]) -> Self {
        let mut entries = [&self.0, more].concat();
        entries.sort_unstable();
        entries.dedup_by_key(|entry| entry.digest);
        Self(entries)
    }

    /// Returns the directory without the chunks of these digests.
    pub(super) fn without(&self, digests: &[Digest]) -> Self {
        let mut digests = digests.to_vec();
        digests.sort_unstable();
        Self(self.0.iter().filter(|entry| digests.binary_search(&entry.digest).is_err()).copied().collect())
    }

    /// Whether a content is kept.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.find(digest).is_some()
    }

    fn find(&self, digest: &Digest) -> Option<&KeptFrame> {
        let at = self.0.binary_search_by(|entry| entry.digest.cmp(digest)).ok()?;
        self.0.get(at)
    }

    /// Number of kept chunks.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Iterates over the stored chunks of an index that are kept, each with the place of its frame. A frame that is
    /// longer than the index allows is none of its chunks.
    pub(super) fn places<'a>(&'a self, index: &'a Index) -> impl Iterator<Item = (StoredChunkNo, u64, u32)> + 'a {
        (0..index.stored_count()).filter_map(move |stored| {
            let entry = self.find(index.digest(stored)).filter(|entry| index.is_length(entry.length))?;
            Some((stored, entry.offset, entry.length))
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

    #[test]
    fn what_is_encoded_is_decoded_and_found() {
        let directory = KeptDirectory::default().with(&[entry(3, 8192, 100), entry(1, 4096, 50)]);
        let directory = directory.with(&[entry(2, 9000, 7), entry(3, 9500, 100)]);
        assert_eq!(KeptDirectory::decode(&directory.encode(), 4096, 10_000), Some(directory.clone()));
        assert_eq!(directory.len(), 3);
        assert!(directory.has(&Digest([2; 32])) && !directory.has(&Digest([4; 32])));
        assert!(!directory.without(&[Digest([2; 32])]).has(&Digest([2; 32])));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |entries: &[KeptFrame]| {
            KeptDirectory::decode(&KeptDirectory(entries.to_vec()).encode(), 4096, 8192).is_none()
        };
        assert!(!refused(&[entry(1, 4096, 50), entry(2, 8191, 1)]));
        assert!(refused(&[entry(2, 4096, 50), entry(1, 5000, 1)]), "out of order");
        assert!(refused(&[entry(1, 4096, 50), entry(1, 5000, 1)]), "twice");
        assert!(refused(&[entry(1, 4095, 50)]), "below");
        assert!(refused(&[entry(1, 8191, 2)]), "beyond");
        assert!(refused(&[entry(1, u64::MAX, 2)]), "wraps");
        assert!(refused(&[entry(1, 4096, 0)]), "empty");
        assert!(refused(&[entry(1, 5000, 50), entry(2, 4999, 2)]), "two frames share a byte");
        assert!(!refused(&[entry(1, 5000, 50), entry(2, 4999, 1)]));
        let bytes = KeptDirectory(vec![entry(1, 4096, 50)]).encode();
        assert!(KeptDirectory::decode(&bytes[..43], 4096, 8192).is_none());
        assert_eq!(KeptDirectory::decode(&[], 4096, 8192), Some(KeptDirectory::default()));
    }
}
