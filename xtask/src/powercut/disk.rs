//! Regions of a disk that a recovery writes, as they are after a cut: changed and changed back in place, with a
//! fingerprint that follows each change.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::disk as robot_disk;
use crate::size::to_usize;
use anyhow::{Result, bail};
use reflash::release::digest::block_hash;

/// Bytes of a block of the fingerprint. They are the blocks of the index, so that chunks can be looked up by their
/// hashes.
pub const BLOCK_BYTES: usize = 4096;

/// One region of the disk.
#[derive(Debug, Clone)]
pub struct Region {
    /// First byte on the disk.
    pub start: u64,
    /// Content of the region; whole blocks.
    pub content: Vec<u8>,
    /// Hash of each block.
    pub blocks: Vec<u64>,
    /// Fingerprint of the whole region.
    pub fingerprint: u64,
}

/// Disk of a robot, as far as it may change.
#[derive(Debug, Clone)]
pub struct DiskState {
    /// The state partition.
    pub state: Region,
    /// The image's part of the system partition.
    pub system: Region,
    /// The recovery partition, which a recovery renews.
    pub recovery: Region,
    /// The end of the system partition, where what an undo needs is kept.
    pub kept: Region,
}

/// Content that a write replaced.
pub struct Undo {
    offset: u64,
    before: Vec<u8>,
}

impl Region {
    /// Makes a region with its content.
    #[must_use]
    pub fn new(start: u64, content: Vec<u8>) -> Self {
        let blocks: Vec<u64> = content.chunks(BLOCK_BYTES).map(block_hash).collect();
        let fingerprint = (0..).zip(&blocks).fold(0, |sum, (number, hash)| sum ^ mixed(number, *hash));
        Self { start, content, blocks, fingerprint }
    }

    /// Whether GRUB finds an ext4 file system, which it does by the magic number (Linux'
    /// Documentation/filesystems/ext4/super.rst: 0xEF53 at offset 0x38 of the superblock, which lies at 1024); without
    /// it no kernel can be read.
    #[must_use]
    pub fn has_superblock(&self) -> bool {
        self.content[1024 + 0x38..][..2] == [0x53, 0xef]
    }

    fn end(&self) -> u64 {
        self.start + self.content.len() as u64
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let from = to_usize(offset - self.start);
        self.content[from..from + data.len()].copy_from_slice(data);
        for block in from / BLOCK_BYTES..(from + data.len()).div_ceil(BLOCK_BYTES) {
            let content = &self.content[block * BLOCK_BYTES..((block + 1) * BLOCK_BYTES).min(self.content.len())];
            let hash = block_hash(content);
            self.fingerprint ^= mixed(block as u64, self.blocks[block]) ^ mixed(block as u64, hash);
            self.blocks[block] = hash;
        }
    }
}

/// Returns a block's part of a fingerprint, which depends on where the block lies.
fn mixed(number: u64, hash: u64) -> u64 {
    block_hash(&[number.to_le_bytes(), hash.to_le_bytes()].concat())
}

impl DiskState {
    /// Writes to the region at `offset`; a write to anywhere else must never happen.
    ///
    /// # Errors
    /// Fails when the write touches something that a recovery may not touch.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<Undo> {
        let end = offset + data.len() as u64;
        for region in [&mut self.state, &mut self.system, &mut self.recovery, &mut self.kept] {
            if offset >= region.start && end <= region.end() {
                let from = to_usize(offset - region.start);
                let before = region.content[from..from + data.len()].to_vec();
                region.write(offset, data);
                return Ok(Undo { offset, before });
            }
        }
        bail!(
            "bytes {offset} to {end} of the disk were written, which are neither state nor recovery, nor the image of the system or what is kept behind it"
        )
    }

    /// Reads the content; nothing where no recovery may write.
    #[must_use]
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut regions = [&self.state, &self.system, &self.recovery, &self.kept].into_iter();
        let holder = regions.find(|region| offset >= region.start && offset + len as u64 <= region.end());
        holder.map_or_else(Vec::new, |region| region.content[to_usize(offset - region.start)..][..len].to_vec())
    }

    /// Takes a write back. Several writes must be taken back in reverse order.
    pub fn undo(&mut self, undo: &Undo) {
        for region in [&mut self.state, &mut self.system, &mut self.recovery, &mut self.kept] {
            if undo.offset >= region.start && undo.offset < region.end() {
                region.write(undo.offset, &undo.before);
            }
        }
    }

    /// Returns what distinguishes this state of the disk from others.
    #[must_use]
    pub fn fingerprint(&self) -> [u64; 4] {
        [&self.state, &self.system, &self.recovery, &self.kept].map(|region| region.fingerprint)
    }
}

/// Reads one partition of a disk image, or the beginning of it.
///
/// # Errors
/// Fails when the image cannot be read.
pub fn region(disk: &Path, partition: &str, at_most_bytes: u64) -> Result<Region> {
    let range = robot_disk::partition_range(disk, partition)?;
    let mut content = vec![0; to_usize((range.end - range.start).min(at_most_bytes))];
    File::open(disk)?.read_exact_at(&mut content, range.start)?;
    Ok(Region::new(range.start, content))
}

#[cfg(test)]
mod tests {
    use super::{DiskState, Region};

    #[test]
    fn what_is_taken_back_leaves_no_trace() {
        let disk = DiskState {
            state: Region::new(4096, vec![1; 8192]),
            system: Region::new(65536, vec![2; 8192]),
            recovery: Region::new(32768, vec![3; 8192]),
            kept: Region::new(131_072, vec![4; 4096]),
        };
        let mut changed = disk.clone();
        let first = changed.write(4096 + 512, &[9; 512]).unwrap();
        let second = changed.write(4096, &[8; 8192]).unwrap();
        let third = changed.write(65536 + 4096, &[7; 4096]).unwrap();
        assert_ne!(changed.fingerprint(), disk.fingerprint());
        assert_eq!(Region::new(4096, changed.state.content.clone()).fingerprint, changed.state.fingerprint);
        for undo in [third, second, first] {
            changed.undo(&undo);
        }
        assert_eq!(changed.fingerprint(), disk.fingerprint());
        assert!(changed.state.content == disk.state.content && changed.system.blocks == disk.system.blocks);
        assert!(changed.write(0, &[0; 512]).is_err() && changed.write(65536 + 8000, &[0; 512]).is_err());
    }
}
