//! Partition tables and the beginnings of file systems, as any stick may have them.

use std::io::Cursor;

use reflash::disk::{filesystem, table};
use reflash::machine::media::MediaId;

/// Makes the checksums right, so that the reader looks at what is behind them.
fn repair(disk: &mut [u8], at: usize, block_bytes: usize) {
    if at + 92 > disk.len() {
        return;
    }
    let u32_at = |disk: &[u8], at: usize| u32::from_le_bytes(disk[at..at + 4].try_into().unwrap());
    let first = u64::from_le_bytes(disk[at + 72..at + 80].try_into().unwrap()) as usize;
    let bytes = (u32_at(disk, at + 80) as usize).checked_mul(u32_at(disk, at + 84) as usize);
    let entries =
        first.checked_mul(block_bytes).zip(bytes).and_then(|(start, len)| Some(start..start.checked_add(len)?));
    if let Some(sum) = entries.and_then(|entries| disk.get(entries)).map(crc32fast::hash) {
        disk[at + 88..at + 92].copy_from_slice(&sum.to_le_bytes());
    }
    disk[at + 16..at + 20].fill(0);
    let header_bytes = (u32_at(disk, at + 12) as usize).clamp(92, 512).min(disk.len() - at);
    let sum = crc32fast::hash(&disk[at..at + header_bytes]);
    disk[at + 16..at + 20].copy_from_slice(&sum.to_le_bytes());
}

pub fn run(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    let has = |bit: u8| kind & bit != 0;
    let block_bytes = if has(1) { 4096 } else { 512 };
    let mut disk = vec![0; 64 * 1024];
    let len = rest.len().min(disk.len());
    disk[..len].copy_from_slice(&rest[..len]);
    let last = disk.len() - block_bytes;
    if !has(64) {
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    }
    if !has(2) {
        disk[450] = 0xee;
    }
    if !has(4) {
        disk[block_bytes..block_bytes + 8].copy_from_slice(b"EFI PART");
    }
    if !has(8) {
        disk[block_bytes + 84..block_bytes + 88].copy_from_slice(&128_u32.to_le_bytes());
    }
    if has(16) {
        disk.copy_within(block_bytes..2 * block_bytes, last);
    }
    if !has(32) {
        repair(&mut disk, block_bytes, block_bytes);
        repair(&mut disk, last, block_bytes);
    }
    if let Ok(Some(read)) = table::read(&mut Cursor::new(&mut disk), block_bytes as u32) {
        let _ = (read.named("system"), read.number(5), read.partuuid("x"));
        for entry in &read.partitions {
            assert!(entry.number > 0, "{entry:?}");
        }
    }
    let _ = (filesystem::kind(&disk), filesystem::ext4_label(&disk), filesystem::kind(rest));
    let _ = (filesystem::ext4_label(rest), MediaId::of_descriptor(rest));
}
