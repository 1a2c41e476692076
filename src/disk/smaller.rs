//! A partition table on a disk that is smaller than the one that it was made for.

use std::os::unix::fs::FileExt;

use crate::disk::gpt_copies::disk_blocks_of_header;
use crate::disk::list::{Disk, PartitionTable};
use crate::disk::table::Scheme;
use crate::sys::block::device::{Access, Caching, Device};

/// Returns the bytes that a disk needs for this table, where it has fewer and the kernel therefore lacks partitions.
pub(super) fn needed_bytes(disk: &Disk, layout: &PartitionTable) -> Option<u64> {
    if layout.partitions.iter().all(|partition| partition.node.is_some()) {
        return None;
    }
    let block_bytes = u64::from(disk.logical_block_size);
    let ends = layout.partitions.iter().map(|partition| {
        partition.entry.first_lba.saturating_mul(block_bytes).saturating_add(partition.entry.size_bytes)
    });
    let announced = (layout.scheme == Scheme::Gpt).then(|| announced_blocks(disk)).flatten();
    let announced = announced.map(|blocks| blocks.saturating_mul(block_bytes));
    ends.chain(announced).max().filter(|needed| *needed > disk.size_bytes)
}

/// Blocks of the disk that the GPT was made for, as its first header says.
fn announced_blocks(disk: &Disk) -> Option<u64> {
    let device = Device::open(&disk.path, Access::Read, Caching::Buffered).ok()?;
    let mut header = vec![0; disk.logical_block_size as usize];
    device.as_file().read_exact_at(&mut header, disk.logical_block_size.into()).ok()?;
    disk_blocks_of_header(&header)
}
