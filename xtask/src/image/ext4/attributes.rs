//! Extended attributes: in the inode where they fit, else in one block.

use anyhow::{Result, bail, ensure};

use super::bytes::{checksum, put};
use super::geometry::{BLOCK, INODE};
use crate::size::to_usize;

/// Offset of the attributes in an inode: after 128 bytes of ext2 and 32 more.
pub const IN_INODE_AT: usize = 160;

const MAGIC: u32 = 0xea02_0000;
const BLOCK_HEADER: usize = 32;
const ENTRY: usize = 16;
/// Bytes of the end of the list, which are zeros.
const END: usize = 4;

/// One attribute, in the form that the medium has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attribute {
    /// Number that stands for the first part of the name.
    index: u8,
    /// Length of the rest of the name: the kernel expects attributes sorted by it.
    length: usize,
    /// The rest of the name.
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Attribute {
    /// Makes an attribute from the name and value that the kernel gives.
    ///
    /// # Errors
    /// Fails when the name is of no known kind, or when an access control list is damaged.
    pub fn new(name: &str, value: Vec<u8>) -> Result<Self> {
        let kinds: [(&str, u8); 6] = [
            ("system.posix_acl_access", 2),
            ("system.posix_acl_default", 3),
            ("user.", 1),
            ("trusted.", 4),
            ("security.", 6),
            ("system.", 7),
        ];
        let known = kinds.iter().find_map(|(kind, index)| Some((name.strip_prefix(kind)?, *index)));
        let Some((rest, index)) = known else { bail!("attribute {name} is of a kind that ext4 does not have") };
        ensure!(rest.len() < 256, "the name of attribute {name} has more than 255 bytes");
        let value = if matches!(index, 2 | 3) { short_list(&value)? } else { value };
        Ok(Self { index, length: rest.len(), name: rest.as_bytes().to_vec(), value })
    }

    fn entry_bytes(&self) -> usize {
        ENTRY + self.name.len().next_multiple_of(4)
    }

    fn value_bytes(&self) -> usize {
        self.value.len().next_multiple_of(4)
    }

    fn hash(&self) -> u32 {
        let name = self.name.iter().fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        self.value.chunks(4).fold(name, |hash, chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

/// Converts an access control list from version 2, that of the kernel's interface, to version 1, that of ext4, which
/// leaves out the number of a user or group where an entry names none.
fn short_list(list: &[u8]) -> Result<Vec<u8>> {
    ensure!(list.starts_with(&2_u32.to_le_bytes()) && list.len() % 8 == 4, "an access control list is damaged");
    let mut short = 1_u32.to_le_bytes().to_vec();
    for entry in list[4..].chunks_exact(8) {
        // Tag 2 names a user, tag 8 a group.
        let named = matches!(u16::from_le_bytes([entry[0], entry[1]]), 2 | 8);
        short.extend(&entry[..if named { 8 } else { 4 }]);
    }
    Ok(short)
}

/// Whether attributes need a block of their own.
///
/// # Errors
/// Fails when the attributes do not even fit into a block.
pub fn need_block(attributes: &[Attribute]) -> Result<bool> {
    let bytes: usize = attributes.iter().map(|one| one.entry_bytes() + one.value_bytes()).sum::<usize>() + END;
    let room = to_usize(BLOCK) - BLOCK_HEADER;
    ensure!(bytes <= room, "its attributes have {bytes} bytes; ext4 has room for {room}");
    Ok(bytes > to_usize(INODE) - IN_INODE_AT - 4)
}

/// Writes sorted attributes into what is left of an inode.
pub fn into_inode(attributes: &[Attribute], inode: &mut [u8]) {
    if !attributes.is_empty() {
        put(inode, IN_INODE_AT, MAGIC.to_le_bytes());
        entries(attributes, &mut inode[IN_INODE_AT + 4..], 0);
    }
}

/// Returns the bytes of a block of attributes that lies at `place`. All checksums start with `seed`.
#[must_use]
pub fn into_block(attributes: &[Attribute], place: u64, seed: u32) -> Vec<u8> {
    let mut block = vec![0; to_usize(BLOCK)];
    for (offset, value) in [(0, MAGIC), (4, 1), (8, 1)] {
        put(&mut block, offset, value.to_le_bytes());
    }
    entries(attributes, &mut block, BLOCK_HEADER);
    let hash = attributes.iter().fold(0_u32, |hash, one| hash.rotate_left(16) ^ one.hash());
    put(&mut block, 12, hash.to_le_bytes());
    let sum = checksum(checksum(seed, &place.to_le_bytes()), &block);
    put(&mut block, 16, sum.to_le_bytes());
    block
}

/// Writes entries from `at` upwards, and values from the end downwards.
#[expect(
    clippy::cast_possible_truncation,
    reason = "names have at most 255 bytes, and values lie in an area of at most one block"
)]
fn entries(attributes: &[Attribute], area: &mut [u8], mut at: usize) {
    let mut end = area.len();
    for one in attributes {
        end -= one.value_bytes();
        area[end..end + one.value.len()].copy_from_slice(&one.value);
        area[at] = one.name.len() as u8;
        area[at + 1] = one.index;
        // An empty value has no place.
        let offset = if one.value.is_empty() { 0 } else { end };
        put(area, at + 2, (offset as u16).to_le_bytes());
        put(area, at + 8, (one.value.len() as u32).to_le_bytes());
        put(area, at + 12, one.hash().to_le_bytes());
        area[at + ENTRY..at + ENTRY + one.name.len()].copy_from_slice(&one.name);
        at += one.entry_bytes();
    }
}
