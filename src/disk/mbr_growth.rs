//! An MBR that was copied with its disk to a larger one: the data partition gets the room behind it. Pure.
//!
//! An MBR does not say how large the disk is that it was made for, and room behind data may have been left there on
//! purpose. So the robot remembers the size of its disk, and data grows only where it reached to the end of that disk,
//! as on a disk with a GPT. Logical partitions are no part of any layout: a table with one is left alone.

use crate::disk::gpt_copies::{DiskBlocks, MBR_ENTRIES, MBR_SIGNATURE, ReadBlocks};
use crate::disk::roles::{MBR_ROLES, Role};
use crate::release::fields::u32_at;

/// Type of a Linux file system, which provisioning gives every partition.
const LINUX: u8 = 0x83;
/// Bytes of an entry.
const ENTRY_BYTES: usize = 16;
/// Offsets in an entry of the first sector and of the number of sectors.
const FIRST_AT: usize = 8;
const COUNT_AT: usize = 12;
/// Alignment of the end of a partition, bytes. So much stays free at the end of the disk too, as in every layout:
/// controllers keep their own records there.
const ALIGNMENT_BYTES: u64 = 1 << 20;
/// MiB that an MBR can describe: 2^32 sectors, but for one that stays free.
const MOST_MIB: u64 = (1 << 21) - 1;

/// First sector of the disk with a larger data partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MbrGrowth {
    /// Content of the sector. Writing it is the whole change, so that a cut leaves the one before or this one.
    pub first_sector: Vec<u8>,
    /// Bytes by which the data partition grows.
    pub gained_bytes: u64,
}

/// Plans the growth of a robot's data partition, up to what an MBR can say; `None` where there is no room for it, where
/// data did not end where the disk of so many MiB ended, or where the table is not that of a robot.
#[must_use]
pub fn grown(disk: DiskBlocks, made_for_mib: u64, read: &mut ReadBlocks<'_>) -> Option<MbrGrowth> {
    let mut first_sector = read(0, 1)?;
    // Provisioning makes no MBR on other disks, and what these numbers count there is not agreed upon.
    if disk.bytes != 512 || first_sector.get(510..512)? != MBR_SIGNATURE {
        return None;
    }
    let entries: Vec<_> = first_sector.get(MBR_ENTRIES)?.chunks_exact(ENTRY_BYTES).collect();
    let extents: Vec<_> = entries.iter().map(|entry| extent(entry)).collect::<Option<_>>()?;
    let is_in_order = extents.windows(2).all(|pair| pair[0].1 <= pair[1].0);
    let (start, end) = *extents.get(MBR_ROLES.iter().position(|role| *role == Role::Data)?)?;
    if !is_in_order || end > disk.count {
        return None;
    }
    let alignment = ALIGNMENT_BYTES / u64::from(disk.bytes);
    let usable_mib = |disk_mib: u64| disk_mib.checked_sub(1).map(|mib| mib.min(MOST_MIB));
    let old_end = usable_mib(made_for_mib)? * alignment;
    // A person who has moved the end of data since then had a reason too.
    if !(old_end..=old_end + alignment).contains(&end) {
        return None;
    }
    let new_end = usable_mib(disk.count / alignment)? * alignment;
    let gained = new_end.checked_sub(end).filter(|gained| *gained >= alignment)?;
    let count = u32::try_from(new_end - start).ok()?;
    let at = MBR_ENTRIES.end - ENTRY_BYTES + COUNT_AT;
    first_sector[at..at + 4].copy_from_slice(&count.to_le_bytes());
    Some(MbrGrowth { first_sector, gained_bytes: gained * u64::from(disk.bytes) })
}

/// First sector of a primary of a robot, and the one behind it.
fn extent(entry: &[u8]) -> Option<(u64, u64)> {
    let (start, count) = (u64::from(u32_at(entry, FIRST_AT)?), u64::from(u32_at(entry, COUNT_AT)?));
    let is_ours = entry[0] & 0x7f == 0 && entry[4] == LINUX && start > 0 && count > 0;
    is_ours.then_some((start, start + count))
}

#[cfg(test)]
mod tests {
    use super::{LINUX, MbrGrowth, grown};
    use crate::disk::gpt_copies::DiskBlocks;
    use crate::disk::table;
    use std::io::Cursor;

    const MIB: u64 = 1 << 20;

    /// First sector of a disk with primaries of these types, first MiB and number of MiB.
    fn table(entries: [(u8, u32, u32); 4]) -> Vec<u8> {
        let mut sector = vec![0x90; 512];
        sector[446..510].fill(0);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        for (entry, (kind, mib, count)) in sector[446..510].chunks_exact_mut(16).zip(entries) {
            entry[4] = kind;
            entry[8..12].copy_from_slice(&(mib * 2048).to_le_bytes());
            entry[12..16].copy_from_slice(&(count * 2048).to_le_bytes());
        }
        sector
    }

    fn robot(data_mib: u32) -> Vec<u8> {
        table([(LINUX, 1, 4), (LINUX, 5, 4), (LINUX, 9, 8), (LINUX, 17, data_mib)])
    }

    /// Growth of the table that was made for a disk of 64 MiB.
    fn grow(sector: &[u8], disk_bytes: u64) -> Option<MbrGrowth> {
        grow_from(64, sector, disk_bytes)
    }

    fn grow_from(made_for_mib: u64, sector: &[u8], disk_bytes: u64) -> Option<MbrGrowth> {
        let disk = DiskBlocks { count: disk_bytes / 512, bytes: 512 };
        grown(disk, made_for_mib, &mut |lba, count| (lba == 0 && count == 1).then(|| sector.to_vec()))
    }

    /// <https://github.com/home-assistant/operating-system/pull/508>: the image of a disk on a larger one.
    #[test]
    fn data_gets_the_room_behind_it_and_nothing_else_of_the_sector_changes() {
        // A layout leaves the last MiB of the disk.
        let before = robot(46);
        assert_eq!(grow(&before, 64 * MIB), None, "this is the disk that it was made for");
        let growth = grow(&before, 160 * MIB).unwrap();
        assert_eq!(growth.gained_bytes, 96 * MIB);
        let changed: Vec<_> = (0..512).filter(|at| before[*at] != growth.first_sector[*at]).collect();
        assert!(changed.iter().all(|at| (506..510).contains(at)), "{changed:?}");
        let found = table::read(&mut Cursor::new(&growth.first_sector), 512).unwrap().unwrap();
        assert_eq!(found.number(4).unwrap().size_bytes, 142 * MIB);
        assert_eq!(grow(&growth.first_sector, 160 * MIB), None, "it is done once");
        assert!(grow_from(160, &growth.first_sector, 200 * MIB).is_some(), "and once more on a larger one still");
        // A disk of an odd size.
        assert_eq!(grow(&before, 160 * MIB + 12_800).unwrap(), growth);
    }

    #[test]
    fn data_ends_where_an_mbr_ends() {
        let growth = grow(&robot(46), 5 << 40).unwrap();
        let found = table::read(&mut Cursor::new(&growth.first_sector), 512).unwrap().unwrap();
        let data = found.number(4).unwrap();
        assert_eq!(data.first_lba * 512 + data.size_bytes, (2 << 40) - MIB);
        assert_eq!(grow(&growth.first_sector, 5 << 40), None);
        assert_eq!(grow_from(5 << 20, &growth.first_sector, 6 << 40), None);
    }

    #[test]
    fn room_that_was_left_behind_data_stays_free() {
        // On the disk that the table was made for, and on a larger one.
        assert_eq!(grow_from(160, &robot(46), 160 * MIB), None);
        assert_eq!(grow_from(160, &robot(46), 320 * MIB), None);
        // A person gave data a part of the room of the larger disk.
        assert_eq!(grow(&robot(56), 160 * MIB), None);
        // A partition that ends where the disk ends, as other tools make it.
        assert!(grow(&robot(47), 160 * MIB).is_some());
        assert_eq!(grow_from(0, &robot(46), 160 * MIB), None);
        assert_eq!(grow_from(u64::MAX, &robot(46), 160 * MIB), None);
    }

    #[test]
    fn any_other_table_is_left_alone() {
        let with = |at: usize, byte: u8| {
            let mut sector = robot(46);
            sector[at] = byte;
            sector
        };
        for (what, sector) in [
            ("no signature", with(510, 0)),
            ("a protective entry", with(450, 0xee)),
            ("an extended partition in place of data", with(498, 0x05)),
            ("no data partition", table([(LINUX, 1, 4), (LINUX, 5, 4), (LINUX, 9, 8), (0, 0, 0)])),
            ("data is not the last one", table([(LINUX, 1, 4), (LINUX, 40, 4), (LINUX, 9, 8), (LINUX, 17, 9)])),
            ("partitions overlap", table([(LINUX, 1, 4), (LINUX, 5, 4), (LINUX, 9, 10), (LINUX, 17, 46)])),
            ("the boot sector of a file system", vec![0xeb; 512]),
        ] {
            assert_eq!(grow(&sector, 160 * MIB), None, "{what}");
        }
        assert_eq!(grow(&robot(46), 40 * MIB), None, "a smaller disk");
        let large_blocks = DiskBlocks { count: 1 << 20, bytes: 4096 };
        assert_eq!(grown(large_blocks, 64, &mut |_, _| Some(robot(46))), None);
    }
}
