//! Where on the partition a weak hash is found.

use crate::release::deltas::BlockNo;
use crate::release::weak_hashes::WeakHash;

/// A table of where on the partition each weak hash is found. It is an open-addressing table of block numbers, and
/// takes a quarter of the memory of a `HashMap` of weak hashes.
pub(super) struct Places<'a> {
    blocks: &'a [WeakHash],
    /// Block numbers, and `u32::MAX` in free slots.
    slots: Vec<BlockNo>,
}

impl<'a> Places<'a> {
    /// Builds the table. Of equal blocks the first is kept.
    pub fn new(blocks: &'a [WeakHash]) -> Self {
        let slots = vec![u32::MAX; (blocks.len() * 2).next_power_of_two()];
        let mut places = Self { blocks, slots };
        // Block 0 is the superblock, which is blanked before anything is moved.
        for (block, weak_hash) in (0..).zip(blocks).skip(1).filter(|(_, weak_hash)| **weak_hash != WeakHash::NONE) {
            let slot = places.slot(*weak_hash);
            if places.slots[slot] == u32::MAX {
                places.slots[slot] = block;
            }
        }
        places
    }

    /// Returns the slot that holds a block with this weak hash, or the free slot where it would be.
    fn slot(&self, weak_hash: WeakHash) -> usize {
        // XXH3's low bits are as good as random.
        let mask = self.slots.len() - 1;
        #[expect(clippy::cast_possible_truncation, reason = "the mask keeps only bits that a usize has")]
        let mut slot = weak_hash.bits() as usize & mask;
        while self.slots[slot] != u32::MAX && self.blocks[self.slots[slot] as usize] != weak_hash {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// Returns a block with this weak hash, if there is one, and one of `preferred` if such a block is among them.
    pub fn find(&self, weak_hash: WeakHash, preferred: &[BlockNo]) -> Option<BlockNo> {
        let is_there = |block: &&BlockNo| **block != 0 && self.blocks.get(**block as usize) == Some(&weak_hash);
        if let Some(block) = preferred.iter().find(is_there) {
            return Some(*block);
        }
        Some(self.slots[self.slot(weak_hash)]).filter(|block| *block != u32::MAX)
    }
}
