//! Extents: where the blocks of an inode lie, and how ext4 encodes that. Up to four runs of blocks are in the inode
//! itself, more in a tree of blocks.

use anyhow::{Result, ensure};

use super::bytes::{checksum, halves_64, put, split_48, u16_at, u32_at};
use super::geometry::BLOCK;
use crate::size::to_usize;

/// Blocks that follow each other both in the file and on the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRun {
    /// Block of the file.
    pub logical: u64,
    /// Block of the medium.
    pub physical: u64,
    /// Number of blocks.
    pub blocks: u64,
}

const MAGIC: u16 = 0xf30a;
const HEADER: usize = 12;
const ENTRY: usize = 12;
/// Entries that fit into an inode.
const IN_INODE: usize = 4;
/// Entries that fit into a block beside the checksum.
const IN_BLOCK: usize = (to_usize(BLOCK) - HEADER) / ENTRY;
/// Largest number of blocks that one entry describes; larger numbers mean blocks that are not initialised.
const LONGEST: u64 = 32768;
/// Largest number of levels, more than any file needs: a damaged image must not keep the reader busy.
const DEEPEST: u16 = 5;

/// Adds one block, to the last run if the block follows that run.
pub fn push(runs: &mut Vec<BlockRun>, logical: u64, physical: u64) {
    match runs.last_mut() {
        Some(last)
            if last.logical + last.blocks == logical
                && last.physical + last.blocks == physical
                && last.blocks < LONGEST =>
        {
            last.blocks += 1;
        }
        _ => runs.push(BlockRun { logical, physical, blocks: 1 }),
    }
}

/// Returns the number of blocks that the tree of so many runs needs beside the inode.
#[must_use]
pub fn tree_blocks(runs: usize) -> usize {
    let (mut level, mut total) = (runs, 0);
    while level > IN_INODE {
        level = level.div_ceil(IN_BLOCK);
        total += level;
    }
    total
}

/// Encodes a tree: the 60 bytes in the inode, and the content of the blocks at `places`, of which there are as many as
/// [`tree_blocks`] says. The inode's checksums start with `seed`.
#[must_use]
pub fn encode(runs: &[BlockRun], places: &[u64], seed: u32) -> ([u8; 60], Vec<(u64, Vec<u8>)>) {
    let mut level: Vec<[u8; ENTRY]> = runs.iter().map(leaf).collect();
    let mut firsts: Vec<u64> = runs.iter().map(|run| run.logical).collect();
    let (mut depth, mut places, mut blocks) = (0, places.iter(), Vec::new());
    while level.len() > IN_INODE {
        let (mut above, mut above_firsts) = (Vec::new(), Vec::new());
        for (entries, starts) in level.chunks(IN_BLOCK).zip(firsts.chunks(IN_BLOCK)) {
            let Some(&place) = places.next() else { break };
            let mut block = node(entries, IN_BLOCK, depth, to_usize(BLOCK));
            let tail = HEADER + IN_BLOCK * ENTRY;
            let sum = checksum(seed, &block[..tail]);
            put(&mut block, tail, sum.to_le_bytes());
            blocks.push((place, block));
            above.push(index(starts[0], place));
            above_firsts.push(starts[0]);
        }
        (level, firsts, depth) = (above, above_firsts, depth + 1);
    }
    let mut root = [0; 60];
    root.copy_from_slice(&node(&level, IN_INODE, depth, 60));
    (root, blocks)
}

#[expect(clippy::cast_possible_truncation, reason = "a node has at most IN_BLOCK entries, which are 340")]
fn node(entries: &[[u8; ENTRY]], max: usize, depth: u16, bytes: usize) -> Vec<u8> {
    let mut node = vec![0; bytes];
    for (offset, value) in [(0, MAGIC), (2, entries.len() as u16), (4, max as u16), (6, depth)] {
        put(&mut node, offset, value.to_le_bytes());
    }
    for (at, entry) in entries.iter().enumerate() {
        put(&mut node, HEADER + at * ENTRY, *entry);
    }
    node
}

#[expect(clippy::cast_possible_truncation, reason = "a run has at most LONGEST blocks")]
fn leaf(run: &BlockRun) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    let (physical, physical_high) = split_48(run.physical);
    put(&mut entry, 0, number_in_file(run.logical));
    put(&mut entry, 4, (run.blocks as u16).to_le_bytes());
    put(&mut entry, 6, physical_high);
    put(&mut entry, 8, physical);
    entry
}

fn index(logical: u64, place: u64) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    let (place, place_high) = split_48(place);
    put(&mut entry, 0, number_in_file(logical));
    put(&mut entry, 4, place);
    put(&mut entry, 8, place_high);
    entry
}

/// Encodes the number of a block in its file, which has 32 bits: no larger file gets into an image.
fn number_in_file(logical: u64) -> [u8; 4] {
    let [number, _] = halves_64(logical);
    number
}

/// Decodes a tree into its runs, and the blocks that the tree itself takes. `load` reads a block.
///
/// # Errors
/// Fails when the tree is damaged, or a block cannot be read.
pub fn decode(root: &[u8], load: &mut dyn FnMut(u64) -> Result<Vec<u8>>) -> Result<(Vec<BlockRun>, Vec<u64>)> {
    let (mut runs, mut places) = (Vec::new(), Vec::new());
    walk(root, DEEPEST, load, &mut runs, &mut places)?;
    Ok((runs, places))
}

fn walk(
    node: &[u8],
    deepest: u16,
    load: &mut dyn FnMut(u64) -> Result<Vec<u8>>,
    runs: &mut Vec<BlockRun>,
    places: &mut Vec<u64>,
) -> Result<()> {
    let (entries, depth) = (usize::from(u16_at(node, 2)), u16_at(node, 6));
    let fits = HEADER + entries * ENTRY <= node.len();
    ensure!(u16_at(node, 0) == MAGIC && fits && depth <= deepest, "a tree of extents is damaged");
    for entry in node[HEADER..HEADER + entries * ENTRY].chunks_exact(ENTRY) {
        let logical = u64::from(u32_at(entry, 0));
        if depth == 0 {
            let (blocks, high) = (u64::from(u16_at(entry, 4)), u64::from(u16_at(entry, 6)));
            ensure!(blocks > 0 && blocks <= LONGEST, "an extent is not initialised");
            runs.push(BlockRun { logical, physical: u64::from(u32_at(entry, 8)) | high << 32, blocks });
        } else {
            let place = u64::from(u32_at(entry, 4)) | u64::from(u16_at(entry, 8)) << 32;
            places.push(place);
            // Every level leads to the one below, so this ends.
            walk(&load(place)?, depth - 1, load, runs, places)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{BlockRun, decode, encode, push, tree_blocks};
    use std::collections::HashMap;

    #[test]
    fn a_tree_of_any_size_is_read_as_it_was_written() {
        for count in [0, 1, 4, 5, 340, 341, 1360, 1361, 120_000] {
            let runs: Vec<BlockRun> =
                (0..count).map(|at| BlockRun { logical: at * 3, physical: (1 << 33) + at * 7, blocks: 2 }).collect();
            let places: Vec<u64> = (0..tree_blocks(runs.len()) as u64).map(|at| 1000 + at).collect();
            let (root, blocks) = encode(&runs, &places, 7);
            assert_eq!(blocks.len(), places.len(), "{count}");
            let blocks: HashMap<u64, Vec<u8>> = blocks.into_iter().collect();
            let (read, mut used) = decode(&root, &mut |place| Ok(blocks[&place].clone())).unwrap();
            used.sort_unstable();
            assert!(read == runs && used == places, "{count}");
        }
    }

    #[test]
    fn runs_grow_to_what_one_entry_can_say() {
        let mut runs = Vec::new();
        for at in 0..40_000 {
            push(&mut runs, at, 5 + at);
        }
        push(&mut runs, 40_001, 40_006);
        let lengths: Vec<u64> = runs.iter().map(|run| run.blocks).collect();
        assert_eq!(lengths, [32768, 40_000 - 32768, 1]);
    }

    #[test]
    fn a_damaged_tree_is_refused() {
        let (mut root, _) = encode(&[BlockRun { logical: 0, physical: 9, blocks: 1 }], &[], 0);
        let mut none = |_| anyhow::bail!("nothing to load");
        assert!(decode(&root, &mut none).is_ok());
        root[2] = 5;
        assert!(decode(&root, &mut none).is_err());
        assert!(decode(&[0; 60], &mut none).is_err());
        // A root that claims to be its own child many levels down.
        root[2] = 1;
        root[6] = 6;
        assert!(decode(&root, &mut none).is_err());
    }
}
