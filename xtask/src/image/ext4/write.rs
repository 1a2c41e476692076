//! Writer that makes an image of content and places. The file system exists already, made empty by mke2fs:
//! superblock,
//! descriptors and the inodes that belong to ext4 itself stay as they are, except for their counts.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use super::attributes;
use super::bytes::{checksum, halves, halves_64, put, split_48, u16_at};
use super::content::{Content, ContentSource, Inode};
use super::directory;
use super::extents;
use super::geometry::{BLOCK, DESCRIPTOR, EXTENTS_FLAG, GROUP, Geometry, INODE, RESERVED_INODES, SUPERBLOCK};
use super::place::BlockPlan;
use super::placed::InodePlace;
use super::tree::NodeKind;
use crate::size::to_usize;

/// Flag of a group whose inode table is initialised (`EXT4_BG_INODE_ZEROED`).
const TABLE_ZEROED: u16 = 4;
/// Bytes of an inode in use beyond the 128 of ext2.
const EXTRA: u16 = 32;
/// Largest number of links of a directory; with more the number is 1, which means unknown (`dir_nlink`).
const MOST_SUBDIRECTORIES: u32 = 65_000;
/// Blocks written at a time.
const STRETCH: u64 = 256;

/// Every time in the image, in seconds since 1970. It is constant so that a file that did not change keeps its inode
/// block, which a robot then need not fetch; OSTree's checkouts have no times either. 0 would mean "now" to e2fsprogs.
pub const TIME: u32 = 1;

/// Fills an empty file system.
///
/// # Errors
/// Fails when content cannot be read any more, or the image cannot be written.
pub fn write(image: &File, geometry: &Geometry, content: &Content, layout: &BlockPlan) -> Result<()> {
    let writer = ImageWriter { image, geometry, content, layout, seed: geometry.checksum_seed() };
    for at in 0..content.inodes.len() {
        writer.inode(at).with_context(|| match &content.inodes[at].source {
            ContentSource::File(path) => format!("write {}", path.display()),
            ContentSource::Bytes(_) => format!("write inode {}", layout.places[at].number),
        })?;
    }
    writer.groups().context("write the tables of the file system")
}

struct ImageWriter<'a> {
    image: &'a File,
    geometry: &'a Geometry,
    content: &'a Content,
    layout: &'a BlockPlan,
    /// Seed that every checksum starts with.
    seed: u32,
}

impl ImageWriter<'_> {
    fn put_block(&self, place: u64, block: &[u8]) -> Result<()> {
        self.image.write_all_at(block, place * BLOCK).with_context(|| format!("write block {place}"))
    }

    fn inode(&self, at: usize) -> Result<()> {
        let (node, inode, place) = (&self.content.nodes[at], &self.content.inodes[at], &self.layout.places[at]);
        // Checksums of everything that belongs to an inode start with its number and its generation, which is 0.
        let seed = checksum(checksum(self.seed, &place.number.to_le_bytes()), &[0; 4]);
        let mut bytes = [0; to_usize(INODE)];
        let size = if node.kind == NodeKind::Directory { place.pages.len() as u64 * BLOCK } else { inode.bytes };
        let (tree, tree_blocks) = extents::encode(&place.runs, &place.tree_blocks, seed);
        for (place, block) in tree_blocks {
            self.put_block(place, &block)?;
        }
        let short = match &inode.source {
            ContentSource::Bytes(target) if node.kind == NodeKind::Symlink && place.runs.is_empty() => Some(target),
            _ => None,
        };
        match short {
            Some(target) => bytes[0x28..0x28 + target.len()].copy_from_slice(target),
            None => {
                put(&mut bytes, 0x28, tree);
                put(&mut bytes, 0x20, EXTENTS_FLAG.to_le_bytes());
            }
        }
        attributes::into_inode(self.attributes(inode, place)?, &mut bytes);
        encode(inode, size, place, &mut bytes);
        let sum = checksum(seed, &bytes);
        let [sum, sum_high] = halves(sum);
        put(&mut bytes, 0x7c, sum);
        put(&mut bytes, 0x82, sum_high);
        self.image.write_all_at(&bytes, self.geometry.inode_at(place.number)).context("write the inode")?;
        match node.kind {
            NodeKind::Directory => self.directory(at, seed),
            _ => self.data(inode, place),
        }
    }

    /// Returns the attributes that stay in the inode; those that need a block are written.
    fn attributes<'b>(&self, inode: &'b Inode, place: &InodePlace) -> Result<&'b [attributes::Attribute]> {
        let Some(block) = place.attribute_block else { return Ok(&inode.attributes) };
        self.put_block(block, &attributes::into_block(&inode.attributes, block, self.seed))?;
        Ok(&[])
    }

    fn directory(&self, at: usize, seed: u32) -> Result<()> {
        let (node, place) = (&self.content.nodes[at], &self.layout.places[at]);
        let number_of = |node: usize| self.layout.places[node].number;
        let blocks = place.runs.iter().flat_map(|run| run.physical..run.physical + run.blocks);
        for (page, (names, block)) in place.pages.iter().zip(blocks).enumerate() {
            let mut entries: Vec<(u32, NodeKind, &[u8])> = Vec::with_capacity(names.len() + 2);
            if page == 0 {
                entries.push((place.number, NodeKind::Directory, b"."));
                entries.push((number_of(self.content.inodes[at].parent), NodeKind::Directory, b".."));
            }
            for name in names {
                let child =
                    *node.children.get(name).context("a directory block has a name that the tree does not have")?;
                entries.push((number_of(child), self.content.nodes[child].kind, name));
            }
            self.put_block(block, &directory::encode(&entries, seed))?;
        }
        Ok(())
    }

    fn data(&self, inode: &Inode, place: &InodePlace) -> Result<()> {
        let mut buffer = vec![0; to_usize((STRETCH * BLOCK).min(inode.bytes))];
        let file = match &inode.source {
            ContentSource::File(path) if !place.runs.is_empty() => Some(File::open(path).context("open the file")?),
            _ => None,
        };
        for run in &place.runs {
            let mut done = 0;
            while done < run.blocks {
                let blocks = STRETCH.min(run.blocks - done);
                let from = (run.logical + done) * BLOCK;
                let length = (blocks * BLOCK).min(inode.bytes.saturating_sub(from));
                let stretch = &mut buffer[..to_usize(length)];
                match (&file, &inode.source) {
                    (Some(file), _) => {
                        file.read_exact_at(stretch, from).context("the file changed while it was read")?
                    }
                    (None, ContentSource::Bytes(target)) => stretch.copy_from_slice(target),
                    (None, ContentSource::File(_)) => {}
                }
                // The rest of a last block is a hole in the image file, which reads as zeros.
                self.image
                    .write_all_at(stretch, (run.physical + done) * BLOCK)
                    .context("write the content to the image")?;
                done += blocks;
            }
        }
        Ok(())
    }

    /// Writes bitmaps, descriptors and superblock.
    fn groups(&self) -> Result<()> {
        let geometry = self.geometry;
        let inodes_per_group = geometry.inodes_per_group as usize;
        let mut used = vec![false; geometry.inodes() as usize];
        let mut directories = vec![0_u32; geometry.groups.len()];
        used[..RESERVED_INODES as usize - 1].fill(true);
        for (place, node) in self.layout.places.iter().zip(&self.content.nodes) {
            let index = place.number as usize - 1;
            used[index] = true;
            directories[index / inodes_per_group] += u32::from(node.kind == NodeKind::Directory);
        }
        let table_bytes = geometry.groups.len() as u64 * DESCRIPTOR;
        let mut table = vec![0; to_usize(table_bytes)];
        self.image.read_exact_at(&mut table, BLOCK).context("read the descriptors")?;
        let (mut free_blocks, mut free_inodes) = (0, 0);
        let descriptors = table.chunks_exact_mut(to_usize(DESCRIPTOR));
        for ((number, group), descriptor) in (0_u32..).zip(&geometry.groups).zip(descriptors) {
            let (at, first) = (number as usize, u64::from(number) * GROUP);
            // Blocks behind the end count as used.
            let blocks = bitmap((first..first + GROUP).map(|block| self.layout.space.is_used(block)));
            let mine = &used[at * inodes_per_group..(at + 1) * inodes_per_group];
            let inodes = bitmap(mine.iter().copied());
            self.put_block(group.block_bitmap, &blocks)?;
            self.put_block(group.inode_bitmap, &inodes)?;
            let free = (first..first + GROUP).map(|block| u32::from(!self.layout.space.is_used(block))).sum::<u32>();
            let unused = mine.iter().map(|used| u32::from(!used)).sum::<u32>();
            free_blocks += u64::from(free);
            free_inodes += unused;
            // Nothing is left to be initialised later, and the count of inodes never used, at 0x1c, stays 0: otherwise
            // it would change whenever a file is added.
            put(descriptor, 0x12, TABLE_ZEROED.to_le_bytes());
            let block_sum = checksum(self.seed, &blocks);
            let inode_sum = checksum(self.seed, &inodes[..inodes_per_group / 8]);
            for (low, high, value) in [
                (0x0c, 0x2c, free),
                (0x0e, 0x2e, unused),
                (0x10, 0x30, directories[at]),
                (0x18, 0x38, block_sum),
                (0x1a, 0x3a, inode_sum),
                (0x1c, 0x32, 0),
            ] {
                let [value, value_high] = halves(value);
                put(descriptor, low, value);
                put(descriptor, high, value_high);
            }
            put(descriptor, 0x1e, [0; 2]);
            let sum = checksum(checksum(self.seed, &number.to_le_bytes()), descriptor);
            let [sum, _] = halves(sum);
            put(descriptor, 0x1e, sum);
        }
        // Copies in other groups stay as mke2fs made them: they serve a repair, which never happens to an image, and
        // e2fsck counts anew when it starts from one.
        self.image.write_all_at(&table, BLOCK).context("write the descriptors")?;
        let mut superblock = [0; 1024];
        self.image.read_exact_at(&mut superblock, SUPERBLOCK).context("read the superblock")?;
        let [free_blocks, free_blocks_high] = halves_64(free_blocks);
        put(&mut superblock, 0x0c, free_blocks);
        put(&mut superblock, 0x158, free_blocks_high);
        put(&mut superblock, 0x10, free_inodes.to_le_bytes());
        let sum = checksum(!0, &superblock[..0x3fc]);
        put(&mut superblock, 0x3fc, sum.to_le_bytes());
        self.image.write_all_at(&superblock, SUPERBLOCK).context("write the superblock")
    }
}

/// Encodes everything of an inode but its content, its attributes and its checksum.
fn encode(inode: &Inode, size: u64, place: &InodePlace, bytes: &mut [u8]) {
    let data: u64 = place.runs.iter().map(|run| run.blocks).sum();
    let blocks = data + place.tree_blocks.len() as u64 + u64::from(place.attribute_block.is_some());
    let sectors = blocks * (BLOCK / 512);
    let attributes = place.attribute_block.unwrap_or_default();
    let links = if inode.links > MOST_SUBDIRECTORIES { 1 } else { inode.links };
    let ([uid, uid_high], [gid, gid_high]) = (halves(inode.uid), halves(inode.gid));
    let ([links, _], [size, size_high]) = (halves(links), halves_64(size));
    let ((sectors, sectors_high), (attributes, attributes_high)) = (split_48(sectors), split_48(attributes));
    for (offset, value) in [
        (0, inode.mode.to_le_bytes()),
        (2, uid),
        (0x18, gid),
        (0x1a, links),
        (0x74, sectors_high),
        (0x76, attributes_high),
        (0x78, uid_high),
        (0x7a, gid_high),
        (0x80, EXTRA.to_le_bytes()),
    ] {
        put(bytes, offset, value);
    }
    for (offset, value) in [
        (4, size),
        (0x6c, size_high),
        (0x1c, sectors),
        (0x68, attributes),
        // These are the times of access, change, modification and creation.
        (8, TIME.to_le_bytes()),
        (0xc, TIME.to_le_bytes()),
        (0x10, TIME.to_le_bytes()),
        (0x90, TIME.to_le_bytes()),
    ] {
        put(bytes, offset, value);
    }
    debug_assert_eq!(u16_at(bytes, 0x7c), 0, "the checksum comes last");
}

/// Makes a block of bits; those beyond the last are ones.
fn bitmap(bits: impl Iterator<Item = bool>) -> Vec<u8> {
    let mut block = vec![0xff; to_usize(BLOCK)];
    for (at, used) in bits.enumerate() {
        if !used {
            block[at / 8] &= !(1 << (at % 8));
        }
    }
    block
}
