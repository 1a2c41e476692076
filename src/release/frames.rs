//! Digests of frames, the chunks of an image as they are compressed one by one: bytes from a server are compared with
//! them before zstd looks at them. Pure.
//!
//! Two objects, neither of them compressed. `digests` has the first 16 bytes of the BLAKE3 of each stored chunk's
//! frame, in the order of the index; `sums` has the first 16 bytes of the BLAKE3 of each page, 128 of these digests. A
//! robot fetches the sums, and only the pages in which there are frames that it downloads: what is new in a release
//! lies together.
//!
//! What a frame makes is compared with the digest of its chunk in any case.

use std::ops::Range;

use crate::release::digest::{Digest, HalfDigest};
use crate::release::index::{Index, StoredChunkNo};
use crate::release::manifest::FrameObjects;

/// Digests in a page. With 128 of them the sums and the few pages of an update are together the least: about 15 KB
/// where there are 50,000 frames.
const PAGE_FRAMES: u32 = 128;
const DIGEST_BYTES: u64 = 16;
const PAGE_BYTES: u64 = PAGE_FRAMES as u64 * DIGEST_BYTES;

/// A digest that is not known.
const UNKNOWN: HalfDigest = [0; 16];

/// Digests of the frames of an image, as far as they are known. The default knows none, and cannot know any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FrameDigests {
    objects: Option<FrameObjects>,
    /// Sums of the pages; empty until they are known, as is the list of digests.
    sums: Vec<HalfDigest>,
    digests: Vec<HalfDigest>,
}

impl FrameDigests {
    /// Knows no digest yet, and where those of the frames of `index` are. Objects of other sizes are not used.
    #[must_use]
    pub fn new(objects: Option<FrameObjects>, index: &Index) -> Self {
        let stored = index.stored_count();
        let sizes = [stored.div_ceil(PAGE_FRAMES), stored].map(|count| u64::from(count) * DIGEST_BYTES);
        let objects = objects.filter(|objects| [objects.sums, objects.digests].map(|it| it.size_bytes) == sizes);
        Self { objects, ..Self::default() }
    }

    /// Objects that have the digests, unless there are none, or they were given up.
    #[must_use]
    pub fn objects(&self) -> Option<FrameObjects> {
        self.objects
    }

    /// Has no more digests looked for. Those that are known stay.
    pub fn give_up(&mut self) {
        self.objects = None;
    }

    /// Whether the sums are known, without which no page is.
    #[must_use]
    pub fn has_sums(&self) -> bool {
        !self.sums.is_empty()
    }

    /// Places in the object of digests, ascending, of the pages that are lacking for these stored chunks.
    #[must_use]
    pub fn lacking_pages(&self, wanted: impl Iterator<Item = StoredChunkNo>) -> Vec<Range<u64>> {
        let Some(FrameObjects { digests, .. }) = self.objects else { return Vec::new() };
        let unknown = wanted.filter(|stored| self.digest(*stored) == UNKNOWN);
        let mut pages: Vec<u32> = unknown.map(|stored| stored / PAGE_FRAMES).collect();
        pages.sort_unstable();
        pages.dedup();
        let place = |page: u32| {
            let start = u64::from(page) * PAGE_BYTES;
            start..(start + PAGE_BYTES).min(digests.size_bytes)
        };
        pages.into_iter().map(place).collect()
    }

    /// Takes the object of sums, if that is what `bytes` are.
    pub fn take_sums(&mut self, bytes: &[u8]) -> bool {
        let Some(objects) = self.objects.filter(|objects| Digest::of(bytes) == objects.sums.blake3) else {
            return false;
        };
        self.sums = bytes.as_chunks().0.to_vec();
        self.digests = vec![UNKNOWN; position(objects.digests.size_bytes, DIGEST_BYTES)];
        true
    }

    /// Takes the page that begins at this byte of the object of digests, if `bytes` have its sum.
    pub fn take_page(&mut self, start: u64, bytes: &[u8]) -> bool {
        let is_it = self.sums.get(position(start, PAGE_BYTES)) == Some(&Digest::of(bytes).half());
        if is_it {
            let known = self.digests.iter_mut().skip(position(start, DIGEST_BYTES));
            known.zip(bytes.as_chunks().0).for_each(|(known, digest)| *known = *digest);
        }
        is_it
    }

    /// Whether `frame` may be that of a stored chunk: it is, or its digest is not known.
    #[must_use]
    pub fn allows(&self, stored: StoredChunkNo, frame: &[u8]) -> bool {
        let expected = self.digest(stored);
        expected == UNKNOWN || expected == Digest::of(frame).half()
    }

    fn digest(&self, stored: StoredChunkNo) -> HalfDigest {
        self.digests.get(stored as usize).copied().unwrap_or(UNKNOWN)
    }
}

/// Number of whole units before a byte.
fn position(byte: u64, unit: u64) -> usize {
    usize::try_from(byte / unit).unwrap_or(usize::MAX)
}

/// Makes the sums of an object of digests.
#[must_use]
pub fn sums(digests: &[HalfDigest]) -> Vec<u8> {
    digests.chunks(PAGE_FRAMES as usize).flat_map(|page| Digest::of(page.as_flattened()).half()).collect()
}

#[cfg(test)]
mod tests {
    use super::{FrameDigests, sums};
    use crate::release::digest::{Digest, HalfDigest};
    use crate::release::index::{Builder, ChunkContent, Index, MIN_CHUNK_BYTES, Pack};
    use crate::release::manifest::{FrameObjects, Object};

    fn frame(stored: u32) -> Vec<u8> {
        stored.to_le_bytes().repeat(5)
    }

    /// 300 stored chunks, their digests and the sums.
    fn release() -> (Index, FrameObjects, Vec<HalfDigest>, Vec<u8>) {
        let mut builder = Builder::new(300 * u64::from(MIN_CHUNK_BYTES), MIN_CHUNK_BYTES).unwrap();
        for number in 0..300_u32 {
            let stored = builder.store(Digest::of(&number.to_le_bytes()), 20);
            builder.push_chunk(ChunkContent::Stored(stored));
        }
        builder.push_extent(0, Pack { digest: Digest::of(b"p"), size_bytes: 6000 }, 0);
        let digests: Vec<HalfDigest> = (0..300).map(|stored| Digest::of(&frame(stored)).half()).collect();
        let sums = sums(&digests);
        let object = |bytes: &[u8]| Object { blake3: Digest::of(bytes), size_bytes: bytes.len() as u64 };
        let objects = FrameObjects { sums: object(&sums), digests: object(digests.as_flattened()) };
        (builder.finish().unwrap(), objects, digests, sums)
    }

    #[test]
    fn frames_are_compared_with_the_digests_of_the_pages_that_were_fetched() {
        let (index, objects, digests, sums) = release();
        let mut known = FrameDigests::new(Some(objects), &index);
        assert_eq!(known.objects(), Some(objects));
        let lacking = known.lacking_pages([299, 3, 127, 0].into_iter());
        assert_eq!(lacking, [0..2048, 4096..4800]);
        let page = |known: &mut FrameDigests, place: std::ops::Range<usize>| {
            known.take_page(place.start as u64, &digests.as_flattened()[place])
        };
        // Without sums, no page is right, and nothing is known of a frame.
        assert!(!page(&mut known, 0..2048) && known.allows(3, b"anything") && !known.has_sums());
        assert!(!known.take_sums(&sums[16..]) && known.take_sums(&sums) && known.has_sums());
        assert!(!known.take_page(2048, &digests.as_flattened()[..2048]), "the page of another place");
        assert!(page(&mut known, 0..2048) && page(&mut known, 4096..4800));
        assert!(known.lacking_pages([299, 3, 127, 0].into_iter()).is_empty());
        for stored in [0, 127, 256, 299] {
            assert!(known.allows(stored, &frame(stored)) && !known.allows(stored, &frame(stored + 1)), "{stored}");
        }
        assert!(known.allows(128, b"anything") && known.allows(300, b"anything"));
        known.give_up();
        assert!(known.objects().is_none() && !known.allows(3, b"anything"));
    }

    #[test]
    fn a_changed_page_or_objects_of_another_size_are_not_taken() {
        let (index, objects, digests, sums) = release();
        let mut known = FrameDigests::new(Some(objects), &index);
        assert!(known.take_sums(&sums));
        for position in (0..2048).step_by(37) {
            let mut changed = digests.as_flattened()[..2048].to_vec();
            changed[position] ^= 0x20;
            assert!(!known.take_page(0, &changed) && !known.take_page(u64::MAX, &changed));
        }
        assert!(!known.take_page(0, &digests.as_flattened()[..2047]));
        let other = |sums: u64, digests: u64| {
            let mut objects = objects;
            (objects.sums.size_bytes, objects.digests.size_bytes) = (sums, digests);
            FrameDigests::new(Some(objects), &index)
        };
        assert!(other(48, 4800).objects().is_some());
        assert!(
            [(32, 4800), (64, 4800), (48, 4784), (0, u64::MAX)]
                .into_iter()
                .all(|(s, d)| other(s, d).objects().is_none())
        );
        assert!(FrameDigests::new(None, &index).lacking_pages([0].into_iter()).is_empty());
    }
}
