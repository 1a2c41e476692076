use std::io::Cursor;

use gpt::disk::LogicalBlockSize;

use super::{DamagedPart, DiskBlocks, GptState, PlannedRepair, examine};
use crate::disk::table;

const NAMES: [&str; 6] = ["biosboot", "esp", "state", "recovery", "system", "data"];

fn image(blocks: u64, bytes: u32, names: &[&str]) -> Vec<u8> {
    let mut disk = Cursor::new(vec![0; usize::try_from(blocks).unwrap() * bytes as usize]);
    gpt::mbr::ProtectiveMBR::with_lb_size(u32::try_from(blocks - 1).unwrap()).overwrite_lba0(&mut disk).unwrap();
    let size = if bytes == 512 { LogicalBlockSize::Lb512 } else { LogicalBlockSize::Lb4096 };
    let mut table =
        gpt::GptConfig::new().writable(true).logical_block_size(size).create_from_device(disk, None).unwrap();
    for (number, name) in (0..).zip(names) {
        let kind = gpt::partition_types::LINUX_FS;
        table.add_partition_at(name, number + 1, 64 + u64::from(number) * 16, 16, kind, 1 << 60).unwrap();
    }
    table.write().unwrap().into_inner()
}

fn state(disk: &[u8], bytes: u32) -> GptState {
    state_without(disk, bytes, &[])
}

/// The state where these blocks cannot be read.
fn state_without(disk: &[u8], bytes: u32, unreadable: &[u64]) -> GptState {
    let size = DiskBlocks { count: disk.len() as u64 / u64::from(bytes), bytes };
    examine(size, &mut |lba, count| {
        let at = |lba: u64| usize::try_from(lba * u64::from(bytes)).unwrap();
        let is_lost = unreadable.iter().any(|block| (lba..lba + count).contains(block));
        disk.get(at(lba)..at(lba.checked_add(count)?)).filter(|_| !is_lost).map(<[u8]>::to_vec)
    })
}

fn repairs(disk: &[u8], bytes: u32) -> Vec<PlannedRepair> {
    match state(disk, bytes) {
        GptState::Damaged(repairs) => repairs,
        other => panic!("{other:?}"),
    }
}

fn apply(disk: &mut [u8], (offset, content): &(u64, Vec<u8>)) {
    disk[usize::try_from(*offset).unwrap()..][..content.len()].copy_from_slice(content);
}

/// Damage of every kind to every copy: byte for byte the same afterwards, and whatever of it is cut short is mended by
/// the next run.
#[test]
fn one_damaged_copy_becomes_what_it_was_also_when_mending_is_cut() {
    for bytes in [512_u32, 4096] {
        let whole = image(256, bytes, &NAMES);
        assert_eq!(state(&whole, bytes), GptState::Whole);
        let block = bytes as usize;
        let entries = 128 * 128 / block;
        let last = whole.len() - block;
        for (what, at, len, part) in [
            ("primary header", block, block, DamagedPart::Primary),
            ("primary entries", 2 * block, block, DamagedPart::Primary),
            ("all of the primary entries", 2 * block, entries * block, DamagedPart::Primary),
            ("the first 4 KiB but for the first sector", block, 4096.max(block), DamagedPart::Primary),
            ("all of the primary copy", block, (1 + entries) * block, DamagedPart::Primary),
            ("backup header", last, block, DamagedPart::Backup),
            ("backup entries", last - entries * block, block, DamagedPart::Backup),
            ("all of the backup", last - entries * block, (1 + entries) * block, DamagedPart::Backup),
            ("table of the first sector", 446, 64, DamagedPart::Protective),
            ("signature of the first sector", 510, 2, DamagedPart::Protective),
        ] {
            for fill in [0_u8, 0xff, 0x5a] {
                if part == DamagedPart::Protective && fill != 0 {
                    continue;
                }
                let mut damaged = whole.clone();
                damaged[at..at + len].fill(fill);
                let repairs = repairs(&damaged, bytes);
                assert_eq!(repairs.iter().map(|repair| repair.part).collect::<Vec<_>>(), [part], "{what}");
                let writes: Vec<_> = repairs.into_iter().flat_map(|repair| repair.writes).collect();
                for cut in 0..=writes.len() {
                    let mut disk = damaged.clone();
                    writes[..cut].iter().for_each(|write| apply(&mut disk, write));
                    if let GptState::Damaged(again) = state(&disk, bytes) {
                        again.iter().flat_map(|repair| &repair.writes).for_each(|write| apply(&mut disk, write));
                    }
                    assert!(
                        disk[..446] == whole[..446] && disk[512..] == whole[512..],
                        "{what} of blocks of {bytes}, cut after {cut} writes"
                    );
                    assert_eq!(state(&disk, bytes), GptState::Whole, "{what}");
                }
            }
        }
    }
}

#[test]
fn only_blocks_that_differ_or_cannot_be_read_are_written() {
    let whole = image(256, 512, &NAMES);
    let mut damaged = whole.clone();
    damaged[2 * 512 + 56] ^= 1;
    let writes = &repairs(&damaged, 512)[0].writes;
    assert_eq!(*writes, [(1024, whole[1024..1536].to_vec())]);
    let GptState::Damaged(unreadable) = state_without(&whole, 512, &[3]) else { panic!("it counts as whole") };
    assert_eq!(unreadable[0].writes, [(3 * 512, whole[3 * 512..4 * 512].to_vec())]);
}

#[test]
fn a_table_of_which_no_copy_is_whole_is_never_made_up() {
    let mut disk = image(256, 512, &NAMES);
    let last = disk.len() - 512;
    disk[600] ^= 1;
    disk[last + 100 - 50] ^= 1;
    assert_eq!(state(&disk, 512), GptState::Lost);
}

#[test]
fn a_table_that_is_not_a_robots_is_left_alone() {
    let mut foreign = image(256, 512, &["state", "recovery", "data"]);
    foreign[512..1024].fill(0);
    assert_eq!(state(&foreign, 512), GptState::Foreign);
    let twice = image(256, 512, &["state", "recovery", "system", "system", "data"]);
    assert_eq!(state(&twice, 512), GptState::Foreign);
    // Nor does its owner's work on data make a robot's disk another one.
    let mut nameless = image(256, 512, &["state", "recovery", "system", ""]);
    nameless[512..1024].fill(0);
    assert!(matches!(state(&nameless, 512), GptState::Damaged(_)));
    // An MBR that a tool made later is the table of the disk.
    let mut mbr = image(256, 512, &NAMES);
    mbr[446 + 4] = 0x83;
    mbr[512..1024].fill(0);
    assert_eq!(state(&mbr, 512), GptState::Absent);
    assert_eq!(state(&[0; 1 << 16], 512), GptState::Absent);
}

#[test]
fn the_backup_of_a_disk_that_was_copied_to_a_larger_one_is_found_by_the_first_sector() {
    let small = image(256, 512, &NAMES);
    let mut large = small.clone();
    large.resize(2 * small.len(), 0);
    assert_eq!(state(&large, 512), GptState::Whole, "the copies are whole, wherever the second one lies");
    large[512..1024].fill(0);
    repairs(&large, 512).iter().flat_map(|repair| &repair.writes).for_each(|write| apply(&mut large, write));
    assert!(large[..small.len()] == small);
}

#[test]
fn the_table_of_an_earlier_life_at_the_end_of_a_larger_disk_is_not_that_of_the_image_on_it() {
    let small = image(256, 512, &NAMES);
    let earlier = image(512, 512, &["esp", "biosboot", "state", "recovery", "data", "system"]);
    let partitions = |disk: &[u8]| table::read(&mut Cursor::new(disk), 512).unwrap().unwrap().partitions;
    // The first header, and the first block of entries.
    for damaged in [512..1024, 1024..1536] {
        let mut disk = [&small[..], &earlier[small.len()..]].concat();
        disk[damaged].fill(0xff);
        assert_eq!(partitions(&disk), partitions(&small));
        repairs(&disk, 512).iter().flat_map(|repair| &repair.writes).for_each(|write| apply(&mut disk, write));
        assert!(disk[..small.len()] == small);
    }
}

#[test]
fn a_copy_never_overwrites_a_partition() {
    let mut disk = image(256, 512, &NAMES);
    // The primary says that its backup lies in the data partition.
    let mut header = disk[512..1024].to_vec();
    header[32..40].copy_from_slice(&150_u64.to_le_bytes());
    let sum = super::header_checksum(&header).unwrap();
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    disk[512..1024].copy_from_slice(&header);
    assert_eq!(state(&disk, 512), GptState::Whole);
}

#[test]
fn random_damage_never_panics_and_never_reaches_a_partition() {
    let whole = image(256, 512, &NAMES);
    let mut random = 1_u32;
    for _ in 0..2000 {
        let mut disk = whole.clone();
        for _ in 0..3 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (random >> 8) as usize % 1600;
            let at = if random & 64 == 0 { at } else { disk.len() - 1 - at };
            disk[at] = random.to_le_bytes()[1];
        }
        if let GptState::Damaged(repairs) = state(&disk, 512) {
            for (offset, content) in repairs.iter().flat_map(|repair| &repair.writes) {
                let end = offset + content.len() as u64;
                assert!(end <= 64 * 512 || *offset >= (64 + 6 * 16) * 512, "{offset}");
            }
        }
    }
}
