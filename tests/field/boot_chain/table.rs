//! Lost blocks of the partition table.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use reflash::disk::gpt_copies::DamagedPart;
use reflash::disk::raw::WholeDisk;
use reflash::disk::{Disk, DiskSearch, Which, disks, wait_for_disk_by_partuuid};
use reflash::jobs::mend;

use crate::isolated::isolated;
use crate::support::attached::Attached;

const DISK_BYTES: usize = 64 << 20;

/// A disk image with the partitions of a robot, made by another tool. Loop devices are shared with everything that runs
/// on this machine, so the PARTUUID of the recovery partition is new.
fn robot(file: &Path) -> String {
    let random = RandomState::new().hash_one(0);
    let partuuid = format!("7b1c54e2-0002-4000-{:04x}-{:012x}", random >> 48, random & 0xffff_ffff_ffff);
    let table = format!(
        "label: gpt\nfirst-lba: 34\nstart=2048, size=2048, name=biosboot, type=21686148-6449-6E6F-744E-656564454649\n\
         size=2048, name=esp, type=U\nsize=8192, name=state\nsize=8192, name=recovery, uuid={partuuid}\n\
         size=8192, name=system\nname=data\n"
    );
    sfdisk(file, &table);
    partuuid
}

fn sfdisk(file: &Path, table: &str) {
    fs::write(file, vec![0; DISK_BYTES]).unwrap();
    let mut tool = Command::new("sfdisk").arg("-q").arg(file).stdin(Stdio::piped()).spawn().unwrap();
    tool.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
    assert!(tool.wait().unwrap().success());
}

fn sgdisk_finds(file: &Path) -> String {
    let output = Command::new("sgdisk").arg("-v").arg(file).output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// <https://github.com/pbatard/rufus/issues/1507>: the primary header is overwritten, and some boot chains use the
/// backup while some do not. What the field loses is one sector, or the 4 KiB that a drive has in one.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_lost_sector_of_either_copy_of_the_table_is_mended_to_the_last_byte() {
    isolated("field::boot_chain::table::a_lost_sector_of_either_copy_of_the_table_is_mended_to_the_last_byte", || {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("disk");
        let partuuid = robot(&file);
        let whole = fs::read(&file).unwrap();
        let last = DISK_BYTES - 512;
        for (what, at, len, part) in [
            ("primary header", 512, 512, DamagedPart::Primary),
            ("first sector of the primary entries", 1024, 512, DamagedPart::Primary),
            ("4 KiB of the primary copy", 512, 4096 - 512, DamagedPart::Primary),
            ("backup header", last, 512, DamagedPart::Backup),
            ("backup entries", last - 32 * 512, 512, DamagedPart::Backup),
        ] {
            fs::OpenOptions::new().write(true).open(&file).unwrap().write_all_at(&vec![0; len], at as u64).unwrap();
            assert!(sgdisk_finds(&file).contains("invalid") || sgdisk_finds(&file).contains("damaged"), "{what}");
            {
                let attached = Attached::new(&file, 512);
                let search = DiskSearch::with(Which::WithLoop, None);
                let found = wait_for_disk_by_partuuid(&partuuid, search, Duration::from_secs(10), |_| ()).unwrap();
                assert_eq!((found.disk.path.as_path(), found.number), (attached.path(), 4), "{what}");
                assert_eq!(found.layout.damaged_primary, part == DamagedPart::Primary, "{what}");
                let disk = WholeDisk::open(&found.disk.path).unwrap();
                assert_eq!(mend::table::mend(&disk).unwrap(), [part], "{what}");
                assert_eq!(mend::table::mend(&disk).unwrap(), [], "{what}");
            }
            assert!(fs::read(&file).unwrap() == whole, "{what}");
            let verdict = sgdisk_finds(&file);
            assert!(verdict.contains("No problems found") && !verdict.contains("invalid"), "{what}: {verdict}");
        }
    });
}

fn disk_of(attached: &Attached) -> Disk {
    disks(Which::WithLoop).unwrap().into_iter().find(|disk| disk.path == attached.path()).unwrap()
}

/// The first sector of a disk is lost while the machine runs from it; <https://github.com/canonical/core-base/issues/26>
/// has a protective MBR that is wrong. Of an MBR there is no second copy, but the kernel still has its partitions.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_lost_first_sector_is_mended_while_the_kernel_still_has_the_partitions() {
    isolated(
        "field::boot_chain::table::a_lost_first_sector_is_mended_while_the_kernel_still_has_the_partitions",
        || {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("disk");
            let gpt = robot(&file);
            let mbr =
                "label: dos\nlabel-id: 0x0eadbeef\nstart=2048, size=8192\nsize=8192, bootable\nsize=8192\nsize=8192\n";
            for (partuuid, number, part) in
                [(gpt.as_str(), 4, DamagedPart::Protective), ("0eadbeef-02", 2, DamagedPart::Mbr)]
            {
                if part == DamagedPart::Mbr {
                    sfdisk(&file, mbr);
                }
                let attached = Attached::new(&file, 512);
                let disk = disk_of(&attached);
                let before = disk.layout().unwrap().unwrap();
                assert_eq!(mend::table::mend_first_sector(&disk, partuuid).unwrap(), [], "it is whole");
                fs::OpenOptions::new().write(true).open(attached.path()).unwrap().write_all_at(&[0; 512], 0).unwrap();
                assert_eq!(disk.layout().unwrap(), None);
                assert_eq!(mend::table::mend_first_sector(&disk, partuuid).unwrap(), [part]);
                let after = disk.layout().unwrap().unwrap();
                assert_eq!(after, before);
                assert_eq!(after.partuuid(partuuid).unwrap().entry.number, number);
            }
        },
    );
}
