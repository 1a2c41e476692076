//! Blocks of a directory: which name lies in which block, and how a block is encoded.
//!
//! Names stay in the block they were in, and new ones go where there is room: another order would change every block.
//! There is no tree of hashes: the kernel searches a linear directory fast enough for what images have, and GRUB reads
//! it too.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

use super::bytes::{checksum, put, u16_at, u32_at};
use super::geometry::BLOCK;
use super::tree::{Name, NodeKind};
use crate::size::to_usize;

/// Bytes of an entry before its name.
const HEADER: usize = 8;
/// Bytes of the checksum at the end of a block, which looks like an entry without a name.
const TAIL: usize = 12;
const TAIL_TYPE: u8 = 0xde;
/// Bytes of a block that entries can use.
const ROOM: usize = to_usize(BLOCK) - TAIL;
/// Bytes of `.` and `..`, which lie in the first block.
const DOTS: usize = 24;

/// Page of a directory: the names that share one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Number of the block that these names were in before.
    pub before: Option<usize>,
    /// Names in their order, without `.` and `..`.
    pub names: Vec<Name>,
}

/// Spreads `names` over blocks, starting from those of the directory before. The result has at least one block.
#[must_use]
pub fn pages<'a>(before: &[Vec<Name>], names: impl Iterator<Item = &'a Name>) -> Vec<Page> {
    let mut missing: BTreeSet<&Name> = names.collect();
    let mut pages: Vec<Page> = Vec::new();
    for (at, old) in before.iter().enumerate() {
        let mut page = Page { before: Some(at), names: Vec::new() };
        for name in old {
            // A block of another builder, or a damaged one, may hold more names than fit here.
            let fits = used(pages.len(), &page) + entry_bytes(name.len()) <= ROOM;
            if fits && missing.remove(name) {
                page.names.push(name.clone());
            }
        }
        // The first block has the dots, so it stays.
        if at == 0 || !page.names.is_empty() {
            pages.push(page);
        }
    }
    if pages.is_empty() {
        pages.push(Page { before: None, names: Vec::new() });
    }
    let mut free: Vec<usize> = pages.iter().enumerate().map(|(at, page)| ROOM.saturating_sub(used(at, page))).collect();
    let changed = |page: &Page| page.before.is_none_or(|at| before[at].len() != page.names.len());
    // Blocks that lost names change anyway, so they come first.
    let mut order: Vec<usize> = (0..pages.len()).collect();
    order.sort_by_key(|at| !changed(&pages[*at]));
    let mut first = 0;
    for name in missing {
        // Blocks without room even for a short name are not searched again.
        while order.get(first).is_some_and(|at| free[*at] < entry_bytes(1)) {
            first += 1;
        }
        let bytes = entry_bytes(name.len());
        let at = order[first..].iter().copied().find(|at| free[*at] >= bytes).unwrap_or_else(|| {
            pages.push(Page { before: None, names: Vec::new() });
            free.push(ROOM);
            order.push(free.len() - 1);
            free.len() - 1
        });
        pages[at].names.push(name.clone());
        free[at] -= bytes;
    }
    pages
}

fn used(at: usize, page: &Page) -> usize {
    let names: usize = page.names.iter().map(|name| entry_bytes(name.len())).sum();
    names + if at == 0 { DOTS } else { 0 }
}

/// Returns the bytes of an entry with a name of so many bytes, rounded up to four.
fn entry_bytes(name: usize) -> usize {
    HEADER + name.next_multiple_of(4)
}

/// Encodes a block: `entries` are inode, kind and name; the directory's checksums start with `seed`.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "an entry lies in a block of 4096 bytes, and no file system of Linux has names of more than 255 bytes"
)]
pub fn encode(entries: &[(u32, NodeKind, &[u8])], seed: u32) -> Vec<u8> {
    let mut block = vec![0; to_usize(BLOCK)];
    let mut at = 0;
    for (number, (inode, kind, name)) in entries.iter().enumerate() {
        // The last entry reaches to the end.
        let last = number + 1 == entries.len();
        let bytes = if last { ROOM - at } else { entry_bytes(name.len()) };
        put(&mut block, at, inode.to_le_bytes());
        put(&mut block, at + 4, (bytes as u16).to_le_bytes());
        block[at + 6] = name.len() as u8;
        block[at + 7] = match kind {
            NodeKind::File => 1,
            NodeKind::Directory => 2,
            NodeKind::Symlink => 7,
        };
        block[at + HEADER..at + HEADER + name.len()].copy_from_slice(name);
        at += bytes;
    }
    if entries.is_empty() {
        put(&mut block, 4, (ROOM as u16).to_le_bytes());
    }
    let sum = checksum(seed, &block[..ROOM]);
    put(&mut block, ROOM + 4, (TAIL as u16).to_le_bytes());
    block[ROOM + 7] = TAIL_TYPE;
    put(&mut block, ROOM + 8, sum.to_le_bytes());
    block
}

/// Decodes the inodes and names in a block, by their offset, without `.` and `..`. An index of hashes, as a kernel
/// makes it in a large directory, looks like a block without names.
///
/// # Errors
/// Fails when the block is damaged.
pub fn decode(block: &[u8]) -> Result<BTreeMap<usize, (u32, Name)>> {
    let (mut found, mut at) = (BTreeMap::new(), 0);
    while at + HEADER <= block.len() {
        let bytes = usize::from(u16_at(block, at + 4));
        let end = at + HEADER + usize::from(block[at + 6]);
        ensure!(bytes >= HEADER && end <= at + bytes && at + bytes <= block.len(), "a directory is damaged");
        let (inode, name) = (u32_at(block, at), &block[at + HEADER..end]);
        if inode != 0 && name != b"." && name != b".." {
            found.insert(at, (inode, name.to_vec()));
        }
        at += bytes;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{Page, decode, encode, pages};
    use crate::image::ext4::tree::{Name, NodeKind};

    fn names(numbers: std::ops::Range<u32>) -> Vec<Name> {
        numbers.map(|number| format!("{number:0>60}").into_bytes()).collect()
    }

    fn spread(before: &[Vec<Name>], all: &[Name]) -> Vec<Page> {
        let pages = pages(before, all.iter());
        let mut found: Vec<&Name> = pages.iter().flat_map(|page| &page.names).collect();
        found.sort();
        assert!(found.iter().copied().eq(all.iter()), "every name once");
        for (at, page) in pages.iter().enumerate() {
            assert!(super::used(at, page) <= super::ROOM);
        }
        pages
    }

    #[test]
    fn names_stay_in_their_blocks() {
        let old: Vec<Vec<Name>> = spread(&[], &names(0..200)).into_iter().map(|page| page.names).collect();
        assert_eq!(old.len(), 4);
        assert_eq!(
            spread(&old, &names(0..200)).iter().map(|page| page.before).collect::<Vec<_>>(),
            (0..4).map(Some).collect::<Vec<_>>()
        );
        // One name goes and one comes: only the block with the gap changes.
        let mut changed = names(0..200);
        changed.remove(70);
        changed.push(vec![b'x'; 50]);
        let new = spread(&old, &changed);
        let same: Vec<bool> = new.iter().zip(&old).map(|(page, old)| page.names == *old).collect();
        assert_eq!((same, new.len()), (vec![true, false, true, true], 4));
    }

    #[test]
    fn a_block_that_became_empty_goes_but_for_the_first() {
        let old = [names(0..50), names(50..100), names(100..150)];
        let new = spread(&old, &names(100..150));
        let before: Vec<Option<usize>> = new.iter().map(|page| page.before).collect();
        assert_eq!(before, [Some(0), Some(2)]);
        assert_eq!(spread(&[], &[]), [Page { before: None, names: Vec::new() }]);
    }

    #[test]
    fn a_block_is_read_as_it_was_written() {
        let entries =
            [(2, NodeKind::Directory, &b"."[..]), (2, NodeKind::Directory, b".."), (12, NodeKind::File, b"a b\n\"c\"")];
        let read = decode(&encode(&entries, 1)).unwrap();
        assert_eq!(read.into_values().collect::<Vec<_>>(), [(12, b"a b\n\"c\"".to_vec())]);
        assert!(decode(&encode(&[], 1)).unwrap().is_empty());
        assert!(decode(&[1; 4096]).is_err());
        assert!(decode(&[0; 4096]).is_err());
    }
}
