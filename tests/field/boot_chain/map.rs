//! The disk map of robots that were provisioned before there was one, and of those that have lost it.

use reflash::boot::disk_map::OFFSET_BYTES;
use reflash::boot::grubenv::GrubEnv;
use reflash::disk::Scheme;
use reflash::disk::list::PartitionTable;
use reflash::jobs::mend::{self, MendError, map};
use reflash::record::journal::Journal;

use super::boot_code::{DISK_BYTES, provisioned_with};
use super::recording::Recording;

const OFFSET: usize = OFFSET_BYTES as usize;

fn robot(block_bytes: u32) -> (Vec<u8>, PartitionTable) {
    provisioned_with(Scheme::Gpt, 1, block_bytes)
}

fn on_disk(content: Vec<u8>, block_bytes: u32) -> Recording {
    let mut disk = Recording::new(content);
    disk.block_bytes = block_bytes;
    disk
}

/// <https://github.com/pbatard/rufus/issues/1507>: where the first copy of the table is overwritten, GRUB finds the
/// recovery by the map alone, and a map that is lost must not be missing then.
#[test]
fn a_disk_without_a_map_and_one_with_a_damaged_map_get_that_of_their_table() {
    for block_bytes in [512, 4096] {
        let (whole, table) = robot(block_bytes);
        let map = GrubEnv::parse(&whole[OFFSET..OFFSET + 512]).unwrap();
        assert!(map.get("map_recovery").is_some() && map.get("map_data_uuid").is_some());
        for (what, damage) in [("none", vec![0; 512]), ("noise", vec![0xdb; 512]), ("a torn map", vec![b'#'; 100])] {
            let mut without = whole.clone();
            without[OFFSET..OFFSET + damage.len()].copy_from_slice(&damage);
            let disk = on_disk(without, block_bytes);
            mend::mend(&disk, Some(&table), None, &Journal::silent());
            assert!(disk.content() == whole, "{what}, {block_bytes}");
            assert_eq!(disk.writes().len(), 1, "one block is written");
            assert!(!map::bring(&disk, &table).unwrap(), "nothing is written twice");
        }
    }
}

#[test]
fn a_map_is_made_after_the_table_was_mended_and_never_from_a_table_in_doubt() {
    let (whole, table) = robot(512);
    let mut without = whole.clone();
    without[OFFSET..OFFSET + 512].fill(0);
    // One copy of the table is lost too: it is mended first.
    let mut one_copy = without.clone();
    one_copy[512..1024].fill(0);
    let disk = Recording::new(one_copy);
    mend::mend(&disk, Some(&table), None, &Journal::silent());
    assert!(disk.content() == whole);
    // Both are lost.
    let mut no_copy = without.clone();
    no_copy[512..1024].fill(0);
    no_copy[DISK_BYTES - 512..].fill(0);
    let disk = Recording::new(no_copy);
    mend::mend(&disk, Some(&table), None, &Journal::silent());
    assert_eq!(disk.writes(), []);
    // Another table is the table of the disk: an MBR has no map, and a GPT below one is a stale one.
    let (_, mbr) = provisioned_with(Scheme::Mbr, 1, 512);
    let disk = Recording::new(without);
    assert!(!map::bring(&disk, &mbr).unwrap());
    assert_eq!(disk.writes(), []);
}

#[test]
fn a_place_that_holds_anything_else_is_left_alone() {
    let (whole, table) = robot(512);
    let mut without = whole.clone();
    without[OFFSET..OFFSET + 512].fill(0xd1);
    // A partition of the owner's before the first one of ours, as some tools place it.
    for first_lba in [34, 2032, 2039] {
        let mut other = table.clone();
        other.partitions[0].entry.first_lba = first_lba;
        let disk = Recording::new(without.clone());
        assert!(!map::bring(&disk, &other).unwrap(), "{first_lba}");
        assert_eq!(disk.writes(), []);
    }
    // Boot code that another installer put between the table and the first partition.
    for (lba, is_free) in [(1600_u64, true), (1700, false), (2036, false)] {
        let mut disk = without.clone();
        let core = u64::from_le_bytes(disk[0x5c..0x64].try_into().unwrap()) as usize * 512;
        let mut head = disk[core..core + 512].to_vec();
        head[0x1f4..0x1fc].copy_from_slice(&(lba + 1).to_le_bytes());
        disk[lba as usize * 512..][..512].copy_from_slice(&head);
        disk[0x5c..0x64].copy_from_slice(&lba.to_le_bytes());
        let disk = Recording::new(disk);
        assert_eq!(map::bring(&disk, &table).unwrap(), is_free, "{lba}");
    }
}

#[test]
fn a_disk_that_does_not_keep_the_map_is_called_that() {
    let (mut without, table) = robot(512);
    without[OFFSET..OFFSET + 512].fill(0);
    let mut disk = Recording::new(without);
    disk.lying = Some(0..DISK_BYTES as u64);
    assert!(matches!(map::bring(&disk, &table), Err(MendError::ReadBack { .. })));
}
