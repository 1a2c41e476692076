//! The EFI system partition of a robot of today: another GRUB comes onto it, and what is lost of it comes back.

use std::fs;
use std::path::Path;
use std::process::Command;

use reflash::disk::list::{Partition, PartitionTable};
use reflash::disk::table::TableEntry;
use reflash::disk::{Scheme, fat};
use reflash::jobs::mend::esp::{EspMended, bring};
use reflash::jobs::mend::pieces::BootPieces;
use reflash::jobs::provision::bootstrap::names;

use super::recording::Recording;

const START: usize = 1 << 20;
const SIZE: usize = 34 << 20;

fn tool(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).env("MTOOLS_SKIP_CHECK", "1").output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
}

/// An EFI system partition as the builder makes it.
fn esp(directory: &Path, loader: &[u8]) -> Vec<u8> {
    let (image, file) = (directory.join("esp"), directory.join("loader"));
    let path = image.to_str().unwrap();
    fs::write(&image, vec![0; SIZE]).unwrap();
    fs::write(&file, loader).unwrap();
    tool("mkfs.vfat", &["--invariant", "-S", "512", "-s", "1", "-n", "ESP", "-F", "32", path]);
    tool("mmd", &["-i", path, "::/EFI", "::/EFI/BOOT"]);
    tool("mcopy", &["-i", path, file.to_str().unwrap(), "::/EFI/BOOT/BOOTX64.EFI"]);
    fs::read(image).unwrap()
}

fn table() -> PartitionTable {
    let (first_lba, size_bytes) = (START as u64 / 512, SIZE as u64);
    let entry = TableEntry { number: 2, name: Some("esp".into()), partuuid: "x".into(), first_lba, size_bytes };
    let partitions = vec![Partition { entry, node: None }];
    PartitionTable { scheme: Scheme::Gpt, damaged_copy: false, damaged_primary: false, overlap: None, partitions }
}

fn loader(version: u8) -> Vec<u8> {
    (0..600_000_u32).map(|at| (at % 241) as u8 ^ version).collect()
}

fn holds(disk: &[u8], loader: &[u8]) -> bool {
    let mut read = |offset: u64, length: u64| {
        let start = START + offset as usize;
        disk.get(start..start + length as usize).map(<[u8]>::to_vec)
    };
    fat::holds(loader, &mut read)
}

/// <https://github.com/coreos/fedora-coreos-tracker/issues/1149>: firmware finds no loader after a cut or a lost block.
#[test]
#[ignore = "needs root: to install mkfs.vfat and mtools; cargo xtask test --tier root"]
fn firmware_finds_the_old_or_the_new_grub_after_a_cut_and_a_partition_without_a_file_system_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let disk_of = |esp: &[u8]| [&vec![0xd1; START][..], esp, &[0xd1; 4096]].concat();
    let (before, new) = (disk_of(&esp(directory.path(), &loader(1))), loader(2));
    let template = esp(directory.path(), &new);
    let compressed = zstd::bulk::compress(&template, 1).unwrap();
    let pieces = BootPieces::new(1, vec![(names::EFI.into(), new.clone()), (names::ESP_512.into(), compressed)]);
    let disk = Recording::new(before.clone());
    assert_eq!(bring(&disk, &table(), &pieces).unwrap(), EspMended::File);
    for (number, cut) in disk.cuts(&before, 400).into_iter().enumerate() {
        assert!(holds(&cut, &loader(1)) || holds(&cut, &new), "cut {number}");
    }
    assert!(holds(&disk.content(), &new));
    assert_eq!(bring(&disk, &table(), &pieces).unwrap(), EspMended::Nothing);

    for (what, from, to) in [("the first 64 KiB", 0, 65536), ("all of it", 0, SIZE)] {
        let mut lost = before.clone();
        lost[START + from..START + to].fill(0);
        let disk = Recording::new(lost);
        assert_eq!(bring(&disk, &table(), &pieces).unwrap(), EspMended::Whole, "{what}");
        assert!(disk.content() == disk_of(&template), "{what}");
        let written: usize = disk.writes().iter().map(|(_, content)| content.len()).sum();
        assert!(written < 4 << 20, "only what differs is written: {written}");
    }
}
