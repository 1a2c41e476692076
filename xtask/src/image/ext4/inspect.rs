//! What an inode of an image says beside its content: owner, permissions and capabilities; and the content itself.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use super::bytes::{u16_at, u32_at};
use super::geometry::{BLOCK, EXTENTS_FLAG, Geometry, INODE};
use super::placed::InodePlace;
use crate::size::to_usize;

/// Number of the attributes whose names begin with `security.`.
const SECURITY: u8 = 6;
const ATTRIBUTES_MAGIC: u32 = 0xea02_0000;
/// Bytes of an inode before the length of its further fields, behind which the attributes lie.
const GOOD_OLD: usize = 128;
const BLOCK_HEADER: usize = 32;
const ENTRY: usize = 16;

/// Owner, permissions and size of an inode.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InodeFacts {
    /// Permissions, with setuid, setgid and the sticky bit.
    pub mode: u32,
    /// User ID of the owner.
    pub uid: u32,
    /// Group ID of the owner.
    pub gid: u32,
    /// Bytes of the content.
    pub bytes: u64,
    /// Value of the attribute `security.capability`, where there is one: rights that a program has of its own.
    pub capability: Option<Vec<u8>>,
}

/// Reads what an inode says beside its content.
///
/// # Errors
/// Fails when the image cannot be read, or its attributes are damaged.
pub fn facts(image: &File, geometry: &Geometry, place: &InodePlace) -> Result<InodeFacts> {
    let inode = inode(image, geometry, place)?;
    let mut capability = None;
    let in_inode = GOOD_OLD + usize::from(u16_at(&inode, GOOD_OLD));
    if let Some(area) = inode.get(in_inode..).filter(|area| area.len() >= 4 && u32_at(area, 0) == ATTRIBUTES_MAGIC) {
        // Values in the inode are counted from behind the magic number, those in a block from its beginning.
        capability = find_capability(&area[4..], &area[4..])?;
    }
    if let (None, Some(number)) = (&capability, place.attribute_block) {
        let mut block = vec![0; to_usize(BLOCK)];
        ensure!(number < geometry.blocks, "the block of attributes lies outside of the file system");
        image.read_exact_at(&mut block, number * BLOCK).context("read the attributes")?;
        ensure!(u32_at(&block, 0) == ATTRIBUTES_MAGIC, "the block of attributes is damaged");
        capability = find_capability(&block[BLOCK_HEADER..], &block)?;
    }
    Ok(InodeFacts {
        mode: u32::from(u16_at(&inode, 0)) & 0o7777,
        uid: u32::from(u16_at(&inode, 2)) | u32::from(u16_at(&inode, 0x78)) << 16,
        gid: u32::from(u16_at(&inode, 0x18)) | u32::from(u16_at(&inode, 0x7a)) << 16,
        bytes: bytes_of(&inode),
        capability,
    })
}

/// Reads the content of a file, or the target of a link, of at most `most` bytes.
///
/// # Errors
/// Fails when it is larger, or when the image cannot be read.
pub fn content(image: &File, geometry: &Geometry, place: &InodePlace, most: u64) -> Result<Vec<u8>> {
    let inode = inode(image, geometry, place)?;
    let bytes = bytes_of(&inode);
    ensure!(bytes <= most, "it has {bytes} bytes, and at most {most} are read");
    if u32_at(&inode, 0x20) & EXTENTS_FLAG == 0 {
        let target = inode.get(0x28..0x28 + to_usize(bytes).min(60));
        return Ok(target.unwrap_or_default().to_vec());
    }
    // Blocks that are in no run are zeros.
    let mut content = vec![0; to_usize(bytes)];
    for run in &place.runs {
        let from = to_usize(run.logical * BLOCK).min(content.len());
        let to = to_usize((run.logical + run.blocks) * BLOCK).min(content.len());
        image.read_exact_at(&mut content[from..to], run.physical * BLOCK).context("read the content")?;
    }
    Ok(content)
}

fn inode(image: &File, geometry: &Geometry, place: &InodePlace) -> Result<[u8; to_usize(INODE)]> {
    let mut inode = [0; to_usize(INODE)];
    image.read_exact_at(&mut inode, geometry.inode_at(place.number)).context("read the inode")?;
    Ok(inode)
}

fn bytes_of(inode: &[u8]) -> u64 {
    u64::from(u32_at(inode, 4)) | u64::from(u32_at(inode, 0x6c)) << 32
}

fn find_capability(entries: &[u8], values: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut at = 0;
    // The list ends with four zeros, or with its area.
    while entries.len() >= at + ENTRY && u32_at(entries, at) != 0 {
        let (length, index) = (usize::from(entries[at]), entries[at + 1]);
        let (offset, size) = (usize::from(u16_at(entries, at + 2)), to_usize(u64::from(u32_at(entries, at + 8))));
        let name = entries.get(at + ENTRY..at + ENTRY + length).context("the name of an attribute is cut off")?;
        if index == SECURITY && name == b"capability" {
            let value = values.get(offset..).and_then(|rest| rest.get(..size));
            return Ok(Some(value.context("the value of an attribute is cut off")?.to_vec()));
        }
        at += ENTRY + length.next_multiple_of(4);
    }
    Ok(None)
}
