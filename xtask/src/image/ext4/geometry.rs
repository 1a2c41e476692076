//! Geometry of an ext4 file system, read from an image: sizes, groups and where their tables lie.
//!
//! Offsets and meanings are those of the kernel's Documentation/filesystems/ext4.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use super::bytes::{self, u16_at, u32_at};
use crate::size::to_usize;

/// Bytes of a block: a size that suits every disk, and that of a page.
pub const BLOCK: u64 = 4096;
/// Bytes of an inode, with room for attributes of ordinary size.
pub const INODE: u64 = 256;
/// Blocks of a group: what one bitmap block covers.
pub const GROUP: u64 = 8 * BLOCK;
/// Inodes of a group at most: what one bitmap block covers.
pub const MOST_INODES: u64 = 8 * BLOCK;
/// Bytes of a group's descriptor, with the feature `64bit`.
pub const DESCRIPTOR: u64 = 64;
/// Inodes up to this number belong to ext4 itself, except for the root; number 11 is lost+found.
pub const RESERVED_INODES: u32 = 11;
/// The root directory.
pub const ROOT: u32 = 2;
/// Offset of the superblock, bytes.
pub const SUPERBLOCK: u64 = 1024;

/// Flag of an inode whose blocks are listed in a tree of extents (`EXT4_EXTENTS_FL`).
pub const EXTENTS_FLAG: u32 = 0x80000;

const MAGIC: u16 = 0xef53;

/// Block group: the places of its tables, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// The bitmap of blocks.
    pub block_bitmap: u64,
    /// The bitmap of inodes.
    pub inode_bitmap: u64,
    /// The first block of the inode table.
    pub inode_table: u64,
}

/// Sizes and tables of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks of the file system.
    pub blocks: u64,
    /// Inodes of each group.
    pub inodes_per_group: u32,
    /// Words of compatible, incompatible and read-only compatible features.
    pub features: [u32; 3],
    /// UUID: every checksum of metadata starts with it.
    pub uuid: [u8; 16],
    /// Block groups in order.
    pub groups: Vec<Group>,
}

impl Geometry {
    /// Reads the superblock and the descriptors of the groups.
    ///
    /// # Errors
    /// Fails when the image has no ext4 file system, or one of another kind than the builder makes.
    pub fn read(image: &File) -> Result<Self> {
        let mut block = [0; 1024];
        image.read_exact_at(&mut block, SUPERBLOCK).context("read the superblock")?;
        ensure!(u16_at(&block, 0x38) == MAGIC, "the image has no ext4 file system");
        let block_bytes = 1024_u64 << u32_at(&block, 0x18).min(10);
        let (inode_bytes, descriptor_bytes) = (u16_at(&block, 0x58), u16_at(&block, 0xfe));
        ensure!(
            block_bytes == BLOCK && u64::from(inode_bytes) == INODE && u64::from(descriptor_bytes) == DESCRIPTOR,
            "the file system has blocks of {block_bytes} bytes, inodes of {inode_bytes} and descriptors of \
             {descriptor_bytes}; \
             the builder makes them of {BLOCK}, {INODE} and {DESCRIPTOR}"
        );
        ensure!(
            u64::from(u32_at(&block, 0x20)) == GROUP,
            "the groups of the file system have {} blocks, not {GROUP}",
            u32_at(&block, 0x20)
        );
        let checksum = u32_at(&block, 0x3fc);
        ensure!(bytes::checksum(!0, &block[..0x3fc]) == checksum, "the checksum of the superblock is wrong");
        let blocks = u64::from(u32_at(&block, 4)) | u64::from(u32_at(&block, 0x150)) << 32;
        let bytes = image.metadata().context("ask for the size of the image")?.len();
        ensure!(
            blocks.checked_mul(BLOCK).is_some_and(|needed| needed <= bytes),
            "the file system has {blocks} blocks of {BLOCK} bytes, but the file only {bytes} bytes"
        );
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&block[0x68..0x78]);
        let mut table = vec![0; to_usize(blocks.div_ceil(GROUP) * DESCRIPTOR)];
        image.read_exact_at(&mut table, BLOCK).context("read the descriptors of the groups")?;
        let address = |group: &[u8], low, high| u64::from(u32_at(group, low)) | u64::from(u32_at(group, high)) << 32;
        let groups = table.chunks_exact(to_usize(DESCRIPTOR)).map(|group| Group {
            block_bitmap: address(group, 0, 0x20),
            inode_bitmap: address(group, 4, 0x24),
            inode_table: address(group, 8, 0x28),
        });
        let geometry = Self {
            blocks,
            inodes_per_group: u32_at(&block, 0x28),
            features: [u32_at(&block, 0x5c), u32_at(&block, 0x60), u32_at(&block, 0x64)],
            uuid,
            groups: groups.collect(),
        };
        let inodes = u64::from(geometry.inodes_per_group);
        // One bitmap block must cover them, and the table must fill whole blocks.
        let sound = (1..=MOST_INODES).contains(&inodes) && (inodes * INODE).is_multiple_of(BLOCK);
        ensure!(sound, "the groups of the file system cannot have {inodes} inodes");
        let all_inodes = inodes * geometry.groups.len() as u64;
        ensure!(
            u32::try_from(all_inodes).is_ok(),
            "the file system has {all_inodes} inodes, more than ext4 can number"
        );
        ensure!(geometry.tables().all(|block| block < blocks), "tables of the groups lie outside of the file system");
        Ok(geometry)
    }

    /// Returns the seed of every metadata checksum.
    #[must_use]
    pub fn checksum_seed(&self) -> u32 {
        bytes::checksum(!0, &self.uuid)
    }

    /// Returns the number of inodes of the whole file system.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the product was checked when the geometry was read")]
    pub fn inodes(&self) -> u32 {
        self.inodes_per_group * self.groups.len() as u32
    }

    /// Returns the number of blocks of a group's inode table.
    #[must_use]
    pub fn inode_table_blocks(&self) -> u64 {
        u64::from(self.inodes_per_group) * INODE / BLOCK
    }

    /// Returns the number of blocks of the descriptors of all groups.
    #[must_use]
    pub fn descriptor_blocks(&self) -> u64 {
        (self.groups.len() as u64 * DESCRIPTOR).div_ceil(BLOCK)
    }

    /// Lists every block of the superblocks, descriptors, bitmaps and inode tables.
    pub fn tables(&self) -> impl Iterator<Item = u64> + '_ {
        self.groups.iter().enumerate().flat_map(|(number, group)| {
            let start = number as u64 * GROUP;
            let copies = if has_superblock(number as u64) { 1 + self.descriptor_blocks() } else { 0 };
            let table = group.inode_table..group.inode_table.saturating_add(self.inode_table_blocks());
            (start..start + copies).chain([group.block_bitmap, group.inode_bitmap]).chain(table)
        })
    }

    /// Returns the offset of an inode, bytes.
    #[must_use]
    pub fn inode_at(&self, number: u32) -> u64 {
        let (group, index) = ((number - 1) / self.inodes_per_group, (number - 1) % self.inodes_per_group);
        self.groups[group as usize].inode_table * BLOCK + u64::from(index) * INODE
    }

    /// Checks that everything that `old` has in common with this file system lies in the same place.
    ///
    /// # Errors
    /// Fails with the difference, for a person.
    pub fn continues(&self, old: &Self) -> Result<()> {
        ensure!(self.features == old.features, "the previous image has other ext4 features than the builder uses");
        ensure!(self.uuid == old.uuid, "the previous image has another UUID: it belongs to another ostree.branch");
        ensure!(
            self.inodes_per_group == old.inodes_per_group && self.groups.starts_with(&old.groups),
            "the tables of the file system lie elsewhere than in the previous image"
        );
        Ok(())
    }
}

/// Whether a group has a copy of the superblock. With the feature `sparse_super` only some have: 0, 1, and the powers
/// of 3, 5 and 7.
fn has_superblock(group: u64) -> bool {
    let power_of = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || power_of(3) || power_of(5) || power_of(7)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::{Geometry, MAGIC, bytes, has_superblock};

    /// The checksum of a superblock can be right and its numbers wrong: a previous image comes from wherever a person
    /// kept it.
    #[test]
    fn a_file_system_that_says_it_is_larger_than_the_file_is_refused() {
        for blocks in [2, 1 << 52, u64::MAX] {
            let mut block = [0; 1024];
            let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
            put(0x04, &blocks.to_le_bytes()[..4]);
            put(0x18, &2_u32.to_le_bytes());
            put(0x20, &0x8000_u32.to_le_bytes());
            put(0x38, &MAGIC.to_le_bytes());
            put(0x58, &256_u16.to_le_bytes());
            put(0xfe, &64_u16.to_le_bytes());
            put(0x150, &blocks.to_le_bytes()[4..]);
            let checksum = bytes::checksum(!0, &block[..0x3fc]);
            block[0x3fc..].copy_from_slice(&checksum.to_le_bytes());
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&block, 1024).unwrap();
            let text = Geometry::read(&file).unwrap_err().to_string();
            assert!(text.contains(&format!("{blocks} blocks")), "{text}");
        }
    }

    #[test]
    fn superblocks_are_where_ext4_has_them() {
        let groups: Vec<u64> = (0..100).filter(|group| has_superblock(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81]);
    }
}
