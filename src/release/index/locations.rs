//! Where stored chunks lie, derived from the extents and the compressed lengths.

use super::{Index, IndexError, Pack, inconsistent};

impl Index {
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
        for (extent, end) in self.extents.iter().zip(ends) {
            let first = extent.first as usize;
            let Some(pack) = self.packs.get(extent.pack as usize) else {
                return inconsistent(&format!("pack {} of {} is named", extent.pack, self.packs.len()));
            };
            if first >= end || end > stored_count {
                return inconsistent("extents are empty or out of order");
            }
            let mut offset = extent.offset_bytes;
            for length in &self.lengths[first..end] {
                self.offsets.push(offset);
                self.pack_of.push(extent.pack);
                offset = end_in(pack, offset, *length)?;
            }
            covered.push((extent.pack, extent.offset_bytes, offset));
        }
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
    use crate::release::index::{Index, IndexError};

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
