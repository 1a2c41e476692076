//! Where stored chunks lie, derived from the extents and the compressed lengths.

use super::{Index, IndexError, Location, Pack, StoredChunkNo, inconsistent};

/// Stored chunks of which one has its offset written down. The others are found by adding lengths: an offset and a pack
/// for each would make an index a quarter larger in memory, where up to three are held.
pub(super) const MARK_EVERY: u32 = 16;

impl Index {
    /// Returns where a stored chunk lies.
    #[must_use]
    pub fn location(&self, stored: StoredChunkNo) -> Location {
        // There is one that begins at stored chunk 0.
        let extent = &self.extents[self.extents.partition_point(|extent| extent.first <= stored) - 1];
        let marked = stored - stored % MARK_EVERY;
        let (from, offset) = if extent.first >= marked {
            (extent.first, extent.offset_bytes)
        } else {
            (marked, self.marks[(marked / MARK_EVERY) as usize])
        };
        let between = &self.lengths[from as usize..stored as usize];
        let start = offset + between.iter().map(|length| u64::from(*length)).sum::<u64>();
        Location { pack: extent.pack, range: start..start + u64::from(self.lengths[stored as usize]) }
    }

    /// Lays the stored chunks of every extent out one after the other. Afterwards every chunk ends within its pack and
    /// no two share a byte, so that the code which plans and splits a download needs no further checks to subtract one
    /// place from another.
    pub(super) fn derive_locations(&mut self) -> Result<(), IndexError> {
        let stored_count = self.digests.len();
        if self.extents.first().map_or(stored_count != 0, |extent| extent.first != 0) {
            return inconsistent("the first extent does not begin at stored chunk 0");
        }
        let ends = self.extents.iter().skip(1).map(|extent| extent.first as usize).chain([stored_count]);
        let mut covered = Vec::with_capacity(self.extents.len());
        let mut marks = Vec::with_capacity(stored_count.div_ceil(MARK_EVERY as usize));
        for (extent, end) in self.extents.iter().zip(ends) {
            let first = extent.first as usize;
            let Some(pack) = self.packs.get(extent.pack as usize) else {
                return inconsistent(&format!("pack {} of {} is named", extent.pack, self.packs.len()));
            };
            if first >= end || end > stored_count {
                return inconsistent("extents are empty or out of order");
            }
            let mut offset = extent.offset_bytes;
            for (stored, length) in (extent.first..).zip(&self.lengths[first..end]) {
                if stored.is_multiple_of(MARK_EVERY) {
                    marks.push(offset);
                }
                offset = end_in(pack, offset, *length)?;
            }
            covered.push((extent.pack, extent.offset_bytes, offset));
        }
        self.marks = marks;
        covered.sort_unstable();
        let mut named = vec![false; self.packs.len()];
        covered.iter().for_each(|(pack, ..)| named[*pack as usize] = true);
        if let Some(unused) = named.iter().position(|named| !named) {
            return inconsistent(&format!("no chunk lies in pack {unused} of {}", self.packs.len()));
        }
        for pair in covered.windows(2) {
            let ((pack, _, end), (next_pack, next_start, _)) = (pair[0], pair[1]);
            if pack == next_pack && next_start < end {
                return inconsistent(&format!("two extents share bytes {next_start} to {end} of pack {pack}"));
            }
        }
        Ok(())
    }
}

/// Where a chunk ends that begins at `offset`. An offset near 2^64 must not wrap to a small one.
fn end_in(pack: &Pack, offset: u64, length: u32) -> Result<u64, IndexError> {
    match offset.checked_add(u64::from(length)) {
        Some(end) if end <= pack.size_bytes => Ok(end),
        _ => inconsistent(&format!(
            "a chunk of {length} bytes at {offset} does not end in its pack of {} bytes",
            pack.size_bytes
        )),
    }
}

#[cfg(test)]
mod tests {
    use crate::release::digest::Digest;
    use crate::release::index::{Builder, ChunkContent, Index, IndexError, Location, MIN_CHUNK_BYTES, Pack};

    /// A signed index whose only extent begins 5 bytes before 2^64 and has 10.
    const OFFSET_WRAPS: &[u8] = include_bytes!("../../../tests/hostile/index-offset-wraps.bin");
    /// A signed index of three extents in one pack: bytes 0 to 100, 10 to 30 and 150 to 250.
    const EXTENTS_OVERLAP: &[u8] = include_bytes!("../../../tests/hostile/index-extents-overlap.bin");

    fn refusal(bytes: &[u8]) -> String {
        match Index::decode(bytes) {
            Err(IndexError::Inconsistent(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_place_is_added_up_from_the_beginning_of_its_extent_or_from_a_mark() {
        // 100 stored chunks of 1, 2, 3 ... bytes; extents begin at 0, 5, 16, 17, 48 and 90, in two packs by turns.
        let packs = [b"one", b"two"].map(|name| Pack { digest: Digest::of(name), size_bytes: 1 << 40 });
        let mut builder = Builder::new(100 * u64::from(MIN_CHUNK_BYTES), MIN_CHUNK_BYTES).unwrap();
        let (mut expected, mut offset, mut pack) = (Vec::new(), 0, 1);
        for number in 0..100_u32 {
            let stored = builder.store(Digest::of(&number.to_le_bytes()), number + 1);
            builder.push_chunk(ChunkContent::Stored(stored));
            if [0, 5, 16, 17, 48, 90].contains(&number) {
                (pack, offset) = (1 - pack, 1_000_000 * u64::from(number));
                builder.push_extent(stored, packs[pack as usize], offset);
            }
            expected.push(Location { pack, range: offset..offset + u64::from(number) + 1 });
            offset += u64::from(number) + 1;
        }
        let index = builder.finish().unwrap();
        assert_eq!((0..100).map(|stored| index.location(stored)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_extent_that_wraps_is_refused() {
        let reason = refusal(OFFSET_WRAPS);
        assert_eq!(
            reason,
            "a chunk of 10 bytes at 18446744073709551611 does not end in its pack of 18446744073709551615 bytes"
        );
    }

    #[test]
    fn extents_that_overlap_are_refused_and_neighbours_are_not() {
        assert_eq!(refusal(EXTENTS_OVERLAP), "two extents share bytes 10 to 100 of pack 0");
        // The second extent, whose offset is at byte 112 of the object, moved to where the first ends.
        let mut neighbours = EXTENTS_OVERLAP.to_vec();
        neighbours[112] = 100;
        assert_eq!(Index::decode(&neighbours).unwrap().location(1).range, 100..120);
    }
}
