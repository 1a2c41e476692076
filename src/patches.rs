//! Patches: stored frames that are compressed with what the release before has in their place as the dictionary. A robot
//! that still holds that downloads these instead of the frames. Pure.
//!
//! Only the very place of the frame serves as dictionary, which nothing but the frame itself overwrites: no order of
//! writes has to be kept, and after a cut the patches of what was not written yet still fit. A wider window would save a
//! quarter more and lose both. Whether a patch fits is seen from a hash of what is there; that it was right, as
//! always, from the digest of what comes out. If it was not, the frame itself is fetched.
//!
//! Two objects. The pack has the patches back to back, each one zstd frame. The table is one zstd frame around the
//! following, all numbers little endian:
//!
//! | section | entries | entry |
//! |---|---|---|
//! | header | 1 | 8 bytes `RFLASHPT`; u32 version 1; u32 entries E |
//! | patches | E | u32 stored frame, ascending; u32 frame of the image that it is in; u32 compressed length; u64 XXH3-64 (seed 0) over the hints, 6 bytes each, of the blocks that are there before |

use std::io::{self, Read};
use std::ops::Range;

use crate::digest::{BLOCK_SIZE_BYTES, block_hash};
use crate::hints::Hint;
use crate::index::{FrameContent, FrameNo, Index, MAX_FRAMES, Pack, StoredNo};
use crate::plan::{Blocks, Survey};

const MAGIC: &[u8; 8] = b"RFLASHPT";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 20;

/// The largest table there is, before compression; hashes do not compress.
pub const MAX_TABLE_BYTES: u64 = HEADER_BYTES as u64 + MAX_FRAMES * ENTRY_BYTES as u64;

/// One patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch {
    /// What it makes.
    pub stored: StoredNo,
    /// Whose place holds the dictionary.
    pub frame: FrameNo,
    /// Its compressed length, bytes.
    pub length: u32,
    /// [`fingerprint`] of the dictionary.
    pub base: u64,
}

/// The patches of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patches {
    pack: Pack,
    patches: Vec<Patch>,
}

/// Why bytes are not the table of an index's patches.
#[derive(Debug, thiserror::Error)]
pub enum PatchesError {
    /// Other content, or a later format.
    #[error("not a table of patches of version {VERSION}")]
    Magic,
    /// Made for another index or pack, or cut.
    #[error("the table of patches does not fit: {0}")]
    Unfit(&'static str),
    /// Not a zstd frame.
    #[error("the table of patches cannot be decompressed")]
    Compressed(#[source] io::Error),
}

/// Tells what lies in the place of a frame, by the hints of its blocks.
#[must_use]
pub fn fingerprint(hints: impl Iterator<Item = Hint>) -> u64 {
    let bytes: Vec<u8> = hints.flat_map(|hint| hint.bits().to_le_bytes().into_iter().take(6)).collect();
    block_hash(&bytes)
}

impl Patches {
    /// Patches in the order in which they lie in the pack.
    #[must_use]
    pub fn new(pack: Pack, patches: Vec<Patch>) -> Self {
        Self { pack, patches }
    }

    /// The content of the table.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for number in [VERSION, self.patches.len() as u32] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for patch in &self.patches {
            for number in [patch.stored, patch.frame, patch.length] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&patch.base.to_le_bytes());
        }
        out
    }

    /// Reads the object of a table that belongs to `index` and `pack`.
    ///
    /// # Errors
    /// [`PatchesError`].
    pub fn from_object(object: &[u8], pack: Pack, index: &Index) -> Result<Self, PatchesError> {
        let limit = HEADER_BYTES as u64 + u64::from(index.stored_count()) * ENTRY_BYTES as u64;
        let content = zstd::stream::read::Decoder::new(object).map_err(PatchesError::Compressed)?;
        let mut bytes = Vec::new();
        content.take(limit + 1).read_to_end(&mut bytes).map_err(PatchesError::Compressed)?;
        Self::decode(&bytes, pack, index)
    }

    fn decode(bytes: &[u8], pack: Pack, index: &Index) -> Result<Self, PatchesError> {
        let number = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?)) };
        if !bytes.starts_with(MAGIC) || number(8) != Some(VERSION) {
            return Err(PatchesError::Magic);
        }
        let expected = number(12).map(|count| HEADER_BYTES as u64 + u64::from(count) * ENTRY_BYTES as u64);
        if expected != Some(bytes.len() as u64) {
            return Err(PatchesError::Unfit("its length is not what its header says"));
        }
        let mut patches: Vec<Patch> = Vec::new();
        let mut end = 0;
        for entry in bytes[HEADER_BYTES..].chunks(ENTRY_BYTES) {
            let mut fields =
                entry.chunks(4).map(|field| field.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte)));
            let mut next = || fields.next().unwrap_or_default();
            let (stored, frame, length) = (next(), next(), next());
            let base = u64::from(next()) | u64::from(next()) << 32;
            if patches.last().is_some_and(|last| last.stored >= stored) {
                return Err(PatchesError::Unfit("its frames do not ascend"));
            }
            // The superblock is blanked before anything else is written.
            if frame == 0 || frame >= index.frame_count() || index.frame_content(frame) != FrameContent::Stored(stored)
            {
                return Err(PatchesError::Unfit("a patch is not for the frame in whose place it is used"));
            }
            end += u64::from(length);
            patches.push(Patch { stored, frame, length, base });
        }
        if end != pack.size_bytes || patches.iter().any(|patch| !index.is_length(patch.length)) {
            return Err(PatchesError::Unfit("a length cannot be right"));
        }
        Ok(Self { pack, patches })
    }

    /// The patches that make wrong frames right on a partition with these blocks.
    #[must_use]
    pub fn fitting(&self, index: &Index, survey: &Survey, blocks: &Blocks) -> Patched {
        let per_frame = index.frame_bytes() as usize / BLOCK_SIZE_BYTES;
        let fits = |(patch, _): &(&Patch, Range<u64>)| {
            let range = index.frame_range(patch.frame);
            let count = ((range.end - range.start) as usize).div_ceil(BLOCK_SIZE_BYTES);
            let there = blocks.range(patch.frame as usize * per_frame, count);
            !survey.is_right(patch.frame) && there.is_some_and(|there| fingerprint(there) == patch.base)
        };
        let fitting: Vec<(&Patch, Range<u64>)> = self.places().filter(fits).collect();
        let bases = fitting.iter().map(|(patch, _)| (patch.stored, patch.frame)).collect();
        let places = fitting.into_iter().map(|(patch, place)| (patch.stored, place));
        Patched { index: index.relocated(self.pack, places), bases }
    }

    /// Each patch with its place in the pack.
    pub fn places(&self) -> impl Iterator<Item = (&Patch, Range<u64>)> {
        let mut end = 0;
        self.patches.iter().map(move |patch| {
            let start = end;
            end += u64::from(patch.length);
            (patch, start..end)
        })
    }
}

/// An index of which some frames are fetched as patches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patched {
    /// It, with the places of the patches.
    pub index: Index,
    /// Patched stored frames, ascending, and the frame whose place holds the dictionary.
    bases: Vec<(StoredNo, FrameNo)>,
}

impl Patched {
    /// The frame whose place holds the dictionary of a stored frame, if that is patched.
    #[must_use]
    pub fn base(&self, stored: StoredNo) -> Option<FrameNo> {
        let at = self.bases.binary_search_by_key(&stored, |(stored, _)| *stored).ok()?;
        Some(self.bases[at].1)
    }

    /// Whether nothing else is needed to make a partition right.
    #[must_use]
    pub fn is_enough(&self, survey: &Survey) -> bool {
        (0..self.index.frame_count()).filter(|frame| !survey.is_right(*frame)).all(|frame| {
            match self.index.frame_content(frame) {
                FrameContent::Zero => true,
                // The first frame is never patched, and always small work.
                FrameContent::Stored(stored) => frame == 0 || self.base(stored).is_some(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{HEADER_BYTES, Patch, Patches, PatchesError, fingerprint};
    use crate::digest::Digest;
    use crate::hints::Hint;
    use crate::index::{Index, MIN_FRAME_BYTES, Pack};
    use crate::plan::tests::index;
    use crate::plan::{Blocks, Plan, Survey};

    /// Blocks of a frame.
    const PER: usize = MIN_FRAME_BYTES as usize / 4096;

    fn hint(number: u64) -> Hint {
        Hint::from_bits(number)
    }

    fn pack(size_bytes: u64) -> Pack {
        Pack { digest: Digest::of(b"patches"), size_bytes }
    }

    fn patch(stored: u32, frame: u32, base: u64) -> Patch {
        Patch { stored, frame, length: 100, base: fingerprint((0..PER as u64).map(|block| hint(base + block))) }
    }

    /// Frames 1 to 4 hold the stored frames 1 to 4; frame 0 the stored frame 0.
    fn image() -> Index {
        index(&[Some(0), Some(1), Some(2), Some(3), Some(4)])
    }

    fn decode(patches: &Patches, index: &Index) -> Result<Patches, PatchesError> {
        Patches::from_object(&zstd::bulk::compress(&patches.encode(), 3).unwrap(), patches.pack, index)
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let patches = Patches::new(pack(200), vec![patch(1, 1, 10), patch(3, 3, 30)]);
        assert_eq!(decode(&patches, &image()).unwrap(), patches);
        let none = Patches::new(pack(0), Vec::new());
        assert_eq!(decode(&none, &image()).unwrap(), none);
    }

    #[test]
    fn what_does_not_fit_the_index_is_refused() {
        for (size_bytes, entries) in [
            (100, vec![patch(1, 1, 0), patch(3, 3, 0)]),
            (300, vec![patch(1, 1, 0), patch(3, 3, 0)]),
            (200, vec![patch(3, 3, 0), patch(1, 1, 0)]),
            (200, vec![patch(1, 1, 0), patch(1, 1, 0)]),
            (100, vec![patch(0, 0, 0)]),
            (100, vec![patch(1, 2, 0)]),
            (100, vec![patch(1, 5, 0)]),
            (100, vec![patch(5, 5, 0)]),
            (0, vec![Patch { length: 0, ..patch(1, 1, 0) }]),
            (1 << 30, vec![Patch { length: 1 << 30, ..patch(1, 1, 0) }]),
        ] {
            let patches = Patches::new(pack(size_bytes), entries);
            assert!(matches!(decode(&patches, &image()), Err(PatchesError::Unfit(_))), "{patches:?}");
        }
        let whole = Patches::new(pack(100), vec![patch(1, 1, 0)]).encode();
        for len in 0..whole.len() {
            let cut = zstd::bulk::compress(&whole[..len], 3).unwrap();
            assert!(Patches::from_object(&cut, pack(100), &image()).is_err(), "cut to {len}");
        }
        let longer = zstd::bulk::compress(&[&whole[..], &[0; 1 << 20]].concat(), 3).unwrap();
        assert!(Patches::from_object(&longer, pack(100), &image()).is_err());
        assert!(matches!(Patches::from_object(&whole, pack(100), &image()), Err(PatchesError::Compressed(_))));
        assert_eq!(whole.len(), HEADER_BYTES + super::ENTRY_BYTES);
    }

    #[test]
    fn only_what_is_wrong_and_was_what_it_should_have_been_is_patched() {
        let index = image();
        // Frame 1 is right; in the place of frame 2 is what the release before had, in that of frame 3 something else.
        let patches = Patches::new(pack(400), vec![patch(1, 1, 10), patch(2, 2, 20), patch(3, 3, 30), patch(4, 4, 40)]);
        let survey = Survey::new(&index, vec![true, true, false, false, true]);
        let there = |frame: u64| (0..PER as u64).map(move |block| hint(frame * 10 + block));
        let blocks = Blocks::new([0, 0, 2, 9, 0].into_iter().flat_map(there).collect());
        let patched = patches.fitting(&index, &survey, &blocks);
        assert_eq!((1..5).map(|stored| patched.base(stored)).collect::<Vec<_>>(), [None, Some(2), None, None]);
        assert!(!patched.is_enough(&survey));
        let plan = Plan::new(&index, &survey, None, Some(patched.clone()));
        let asked: Vec<_> = plan.requests.iter().map(|request| (request.pack, request.range.clone())).collect();
        assert_eq!(asked, [(0, 30_000..40_000), (1, 100..200)], "one whole, one as a patch from its own pack");
        assert_eq!(plan.totals.download_bytes, 10_100);
        assert_eq!(patched.index.packs()[1], pack(400));
        // Without frame 3 patches are enough, also where the first frame is wrong; on a short partition nothing fits.
        let survey = Survey::new(&index, vec![false, true, false, true, true]);
        assert!(patches.fitting(&index, &survey, &blocks).is_enough(&survey));
        let short = Blocks::new(there(2).take(3).collect());
        assert!(!patches.fitting(&index, &survey, &short).is_enough(&survey));
    }
}
