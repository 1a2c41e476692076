//! A table that was copied with its disk to a larger one: its backup goes to the end, and the data partition gets the
//! room behind it. Pure.

use crate::disk::gpt_copies::{
    CRC, DiskBlocks, ENTRY_BYTES, GptState, MBR_ENTRIES, PRIMARY_LBA, ReadBlocks, TableCopy, examine, protect, u64_at,
};
use crate::release::layout::Role;

/// Alignment of the new end of a partition, bytes, which is that of all partitions. Less room is not worth a write.
const ALIGNMENT_BYTES: u64 = 1 << 20;

/// Plan of the writes that make the table that of the larger disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedGrowth {
    /// Offset on the disk, bytes, and content, in the order in which they are written. At each cut one whole copy
    /// describes the partitions, as they were or as they will be.
    pub writes: Vec<(u64, Vec<u8>)>,
    /// Bytes by which the data partition grows; 0 where it is not the last one, or did not reach to the end before.
    pub gained_bytes: u64,
}

/// Plans the growth of a robot's table that is otherwise whole; `None` where the disk is not larger than the one that
/// the table was made for.
#[must_use]
pub fn grown(disk: DiskBlocks, read: &mut ReadBlocks<'_>) -> Option<PlannedGrowth> {
    if examine(disk, read) != GptState::Whole {
        return None;
    }
    let old = TableCopy::read(disk, PRIMARY_LBA, read)?;
    let (_, entry_blocks) = old.entry_blocks(disk)?;
    let (last, bytes) = (disk.count.checked_sub(1)?, u64::from(disk.bytes));
    let (old_last, alignment) = (old.alternate_lba(), ALIGNMENT_BYTES / bytes);
    if last.checked_sub(old_last)? < alignment {
        return None;
    }
    let usable_end = last - entry_blocks;
    let (entries, gained) = old.with_data_to(usable_end, alignment)?;
    let mut primary = TableCopy { header: old.header.clone(), entries };
    primary.header[48..56].copy_from_slice(&(usable_end - 1).to_le_bytes());
    let sum = CRC.checksum(primary.used_entries()?);
    primary.header[88..92].copy_from_slice(&sum.to_le_bytes());
    // It also gives the header its checksum.
    let primary = primary.moved_to(PRIMARY_LBA, last, u64_at(&old.header, 72));
    let backup = primary.moved_to(last, PRIMARY_LBA, usable_end);
    let mut writes = backup.differing_blocks(disk, read);
    writes.extend(primary.differing_blocks(disk, read));
    // A hybrid MBR keeps what else is in it.
    let is_alone = |first: &Vec<u8>| first[MBR_ENTRIES].chunks_exact(16).filter(|entry| entry[4] != 0).count() == 1;
    writes.extend(read(0, 1).filter(is_alone).map(|first| (0, protect(first, disk))));
    // The old backup would be taken for one as long as nothing is written over it.
    writes.push((old_last * bytes, vec![0; disk.bytes as usize]));
    Some(PlannedGrowth { writes, gained_bytes: gained * bytes })
}

impl TableCopy {
    /// The entries, in which data reaches up to `end` if it reached to the end before, and the blocks it gains.
    fn with_data_to(&self, end: u64, alignment: u64) -> Option<(Vec<u8>, u64)> {
        let name: Vec<u8> = Role::Data.name().encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        let place = self
            .used_entries()?
            .chunks_exact(ENTRY_BYTES)
            .position(|entry| entry[..16] != [0; 16] && entry[56..].starts_with(&name))?
            * ENTRY_BYTES;
        let data_last = u64_at(&self.entries, place + 40);
        let is_behind_all = self.extents().all(|(_, last)| last <= data_last);
        // Layouts align the end of a partition too.
        let reached_to_the_end = data_last + alignment >= self.usable().end;
        let new_last = (end / alignment * alignment).checked_sub(1)?;
        let mut entries = self.entries.clone();
        if !is_behind_all || !reached_to_the_end || new_last <= data_last {
            return Some((entries, 0));
        }
        entries[place + 40..place + 48].copy_from_slice(&new_last.to_le_bytes());
        Some((entries, new_last - data_last))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{ALIGNMENT_BYTES, grown};
    use crate::disk::gpt_copies::{DiskBlocks, GptState, examine};
    use crate::disk::table;
    use std::io::Cursor;

    const MIB: u64 = 1 << 20;

    /// The image of a robot's disk of 12 MiB, with so many for data, which is the last partition but for `behind`.
    pub(in crate::disk) fn image(data_mib: u64, behind: bool, sector: u32) -> Vec<u8> {
        let mut disk = Cursor::new(vec![0; 12 << 20]);
        let blocks = disk.get_ref().len() as u64 / u64::from(sector) - 1;
        let protective = gpt::mbr::ProtectiveMBR::with_lb_size(u32::try_from(blocks).unwrap());
        protective.overwrite_lba0(&mut disk).unwrap();
        let size = if sector == 512 { gpt::disk::LogicalBlockSize::Lb512 } else { gpt::disk::LogicalBlockSize::Lb4096 };
        let config = gpt::GptConfig::new().writable(true).logical_block_size(size);
        let mut table = config.create_from_device(disk, None).unwrap();
        let lba = |mib: u64| mib * MIB / u64::from(sector);
        let mut start = 1;
        let more = behind.then_some(("more", 1));
        let parts = [("state", 1), ("recovery", 2), ("system", 4), ("data", data_mib)].into_iter().chain(more);
        for (number, (name, mib)) in (3..).zip(parts) {
            table.add_partition_at(name, number, lba(start), lba(mib), gpt::partition_types::LINUX_FS, 0).unwrap();
            start += mib;
        }
        table.write().unwrap().into_inner()
    }

    /// The blocks of a disk, and what reads them.
    pub(in crate::disk) fn on_disk(
        content: &[u8],
        sector: u32,
    ) -> (DiskBlocks, impl FnMut(u64, u64) -> Option<Vec<u8>>) {
        let blocks = DiskBlocks { count: content.len() as u64 / u64::from(sector), bytes: sector };
        let read = move |lba: u64, count: u64| {
            let (from, to) = (lba * u64::from(sector), (lba + count) * u64::from(sector));
            content.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?).map(<[u8]>::to_vec)
        };
        (blocks, read)
    }

    fn sizes(content: &[u8], sector: u32) -> Vec<(String, u64)> {
        let table = table::read(&mut Cursor::new(content.to_vec()), sector).unwrap().unwrap();
        table.partitions.into_iter().map(|entry| (entry.name.unwrap(), entry.size_bytes)).collect()
    }

    /// <https://github.com/home-assistant/operating-system/pull/508>: the image of a disk on a larger one.
    #[test]
    fn the_backup_goes_to_the_end_of_a_larger_disk_and_data_grows_wherever_it_is_cut() {
        for sector in [512, 4096] {
            let mut disk = image(3, false, sector);
            let before = sizes(&disk, sector);
            disk.resize(32 << 20, 0);
            let (blocks, mut read) = on_disk(&disk, sector);
            let growth = grown(blocks, &mut read).unwrap();
            let after: Vec<_> = before
                .iter()
                .map(|(name, size)| (name.clone(), size + if name == "data" { growth.gained_bytes } else { 0 }))
                .collect();
            assert!(growth.gained_bytes == 20 * MIB && ALIGNMENT_BYTES == MIB);
            let mut cut = disk.clone();
            for (offset, content) in &growth.writes {
                let at = usize::try_from(*offset).unwrap();
                cut[at..at + content.len()].copy_from_slice(content);
                // One whole copy, by which the other is mended, describes the old partitions or the new ones.
                let found = sizes(&cut, sector);
                assert!(found == before || found == after, "{found:?}");
                let (blocks, mut read) = on_disk(&cut, sector);
                assert!(matches!(examine(blocks, &mut read), GptState::Whole | GptState::Damaged(_)));
            }
            assert_eq!(sizes(&cut, sector), after);
            let (blocks, mut read) = on_disk(&cut, sector);
            assert_eq!((examine(blocks, &mut read), grown(blocks, &mut read)), (GptState::Whole, None));
            let read_again = table::read(&mut Cursor::new(cut.clone()), sector).unwrap().unwrap();
            assert!(!read_again.damaged_copy);
        }
    }

    #[test]
    fn data_that_left_room_or_has_a_neighbour_keeps_its_size() {
        for (data_mib, behind) in [(1, false), (1, true)] {
            let mut disk = image(data_mib, behind, 512);
            disk.resize(32 << 20, 0);
            let (blocks, mut read) = on_disk(&disk, 512);
            assert_eq!(grown(blocks, &mut read).unwrap().gained_bytes, 0, "{data_mib} {behind}");
        }
    }

    #[test]
    fn a_disk_of_the_same_size_or_with_a_damaged_table_is_left_alone() {
        let disk = image(3, false, 512);
        let (blocks, mut read) = on_disk(&disk, 512);
        assert_eq!(grown(blocks, &mut read), None);
        let mut damaged = disk.clone();
        damaged.resize(32 << 20, 0);
        damaged[1024 + 7] ^= 1;
        let (blocks, mut read) = on_disk(&damaged, 512);
        assert_eq!(grown(blocks, &mut read), None);
        let smaller = &image(3, false, 512)[..10 << 20];
        let (blocks, mut read) = on_disk(smaller, 512);
        assert_eq!(grown(blocks, &mut read), None);
    }
}
