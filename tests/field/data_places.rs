//! Data partitions on which something else lies where a directory of the machine should be, and those whose file system
//! does not fit to its partition or to the kernel.

use std::fs;

use reflash::disk::filesystem::ext4_modules;
use reflash::record::start::{DataUse, EtcFrom, VarFrom};

use super::data::{Options, Robot, WHOLE, forms};
use crate::isolated::{isolated, run};

/// A directory that is no part of the robot's partitions, as those of the initramfs are none.
const OUTSIDE: &str = "/run/outside";

fn make_outside() {
    fs::create_dir_all(format!("{OUTSIDE}/lib")).unwrap();
    fs::write(format!("{OUTSIDE}/passwd"), "eve:x:0:0::/:/bin/sh\n").unwrap();
    fs::write(format!("{OUTSIDE}/shadow"), "eve:$y$x:20000:0:99999:7:::\n").unwrap();
}

fn outside() -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(OUTSIDE).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn robot_with(damage: &str) -> Robot {
    let robot = Robot::new();
    robot.on_data(|data| run("sh", &["-e", "-c", damage, data.to_str().unwrap()]));
    robot
}

/// Whoever moves `/var` to a larger disk leaves a link there. In the initramfs an absolute one leads to a directory of
/// the initramfs, which then was the system's `/var`.
#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn what_lies_where_a_directory_of_the_machine_should_be_is_put_aside() {
    isolated("field::data_places::what_lies_where_a_directory_of_the_machine_should_be_is_put_aside", || {
        make_outside();
        let before = outside();
        for place in ["var", "etc-overlay", "etc-overlay/upper", "etc-overlay/work"] {
            for make in [
                "ln -s /run/outside",
                "ln -s ../../../../../../../../../run/outside",
                "ln -s /no/such",
                "ln -s /",
                "echo x >",
                "mkfifo",
            ] {
                let case = format!("{make} {place}");
                let robot = robot_with(&format!("rm -rf $0/{place}; {make} $0/{place}"));
                let record = robot.assert_starts(&case, Options::default());
                assert_eq!(forms(&record), WHOLE, "{case}: {record:#?}");
                let told = format!("/{place} of the data partition is no directory of it");
                assert!(record.lost.iter().any(|loss| loss.starts_with(&told)), "{case}: {record:#?}");
                assert_eq!(outside(), before, "{case}");
                // It is told once, and what was written since is there.
                robot.start(|root, record| {
                    assert!(record.is_whole(), "{case}: {record:#?}");
                    assert!(root.join("etc/new").exists() && root.join("var/lib/service/file").exists(), "{case}");
                });
                robot.on_data(|data| {
                    assert!(data.join(format!("{place}.odd0")).symlink_metadata().is_ok(), "{case}");
                });
            }
        }
        // A link to a directory of the same partition leads there in the running system too.
        let robot = robot_with("mv $0/var $0/elsewhere; ln -s elsewhere $0/var");
        robot.start(|root, record| {
            assert!(record.is_whole(), "{record:#?}");
            assert_eq!(fs::read_to_string(root.join("var/lib/map")).unwrap(), "map");
        });
    });
}

#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn a_link_of_data_that_can_only_be_read_leads_nowhere_either() {
    isolated("field::data_places::a_link_of_data_that_can_only_be_read_leads_nowhere_either", || {
        make_outside();
        let read_only = Options { is_read_only: true, ..Options::default() };
        let robot = robot_with("rm -rf $0/var; ln -s /run/outside $0/var");
        let record = robot.assert_starts("var", read_only);
        assert_eq!(forms(&record), (DataUse::ReadOnly, VarFrom::Memory, EtcFrom::MemoryOverData), "{record:#?}");
        for damage in [
            "rm -rf $0/etc-overlay/upper; ln -s /run/outside $0/etc-overlay/upper",
            "rm -rf $0/etc-overlay; ln -s /run $0/etc-overlay; mkdir -p /run/upper; cp /run/outside/* /run/upper 2>&- || :",
        ] {
            let robot = robot_with(damage);
            let record = robot.assert_starts("upper", read_only);
            assert_eq!(forms(&record), (DataUse::ReadOnly, VarFrom::MemoryOverData, EtcFrom::Memory), "{record:#?}");
            // A safe start takes no accounts from there.
            let safe = Options { safe: Some(1), ..Options::default() };
            robot.start_with(safe, |root, record| {
                assert_eq!(record.logins.as_deref(), Some(&[][..]), "{record:#?}");
                assert!(!root.join("etc/passwd").exists());
            });
        }
    });
}

/// <https://github.com/wendylabsinc/WendyOS-Builder/pull/116>: a partition that is smaller than it was, of which the
/// kernel says no more than `Invalid argument`.
#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn a_file_system_that_is_larger_than_its_partition_is_called_that_and_stays() {
    isolated("field::data_places::a_file_system_that_is_larger_than_its_partition_is_called_that_and_stays", || {
        let robot = Robot::new();
        let image = fs::File::options().write(true).open(robot.image()).unwrap();
        let whole = fs::read(robot.image()).unwrap();
        let cut = whole.len() / 2;
        image.set_len(cut as u64).unwrap();
        let record = robot.assert_starts("smaller", Options::default());
        assert_eq!(record.data, DataUse::Lost, "{record:#?}");
        assert!(record.lost.iter().any(|loss| loss.contains("is as large as it was")), "{record:#?}");
        assert!(fs::read(robot.image()).unwrap() == whole[..cut], "not one bit was changed");
        fs::write(robot.image(), &whole).unwrap();
        robot.start(|root, record| {
            assert!(record.is_whole(), "{record:#?}");
            assert_eq!(fs::read_to_string(root.join("var/lib/map")).unwrap(), "map");
        });
    });
}

/// An owner who encrypts data, or prefers another file system, does so on the robot's own partition. Copies of the
/// earlier superblock lie between the new blocks, where a repair of everything finds them.
#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn another_file_system_in_place_of_data_stays_as_it_is_bit_for_bit() {
    isolated("field::data_places::another_file_system_in_place_of_data_stays_as_it_is_bit_for_bit", || {
        for (name, at, signature) in [
            ("LUKS", 0, &b"LUKS\xba\xbe\0\x02"[..]),
            ("XFS", 0, b"XFSB"),
            ("Btrfs", 65600, b"_BHRfS_M"),
            ("LVM", 536, b"LVM2 001"),
            ("F2FS", 1024, b"\x10\x20\xf5\xf2"),
            ("Linux RAID", 4096, b"\xfc\x4e\x2b\xa9"),
            ("swap", 4086, b"SWAPSPACE2"),
        ] {
            // Of more than one block group: the first copy of the superblock lies 128 MiB behind it.
            let robot = Robot::blank_of(300 << 20, &[]).with_files().with_renewal();
            // What those who make a file system write at the least.
            let mut content = vec![0; 1 << 20];
            content[at..at + signature.len()].copy_from_slice(signature);
            robot.overwrite(&content);
            let before = fs::read(robot.image()).unwrap();
            // At the third start a lost one would be made anew.
            for _ in 0..4 {
                let record = robot.assert_starts(name, Options::default());
                assert_eq!(record.data, DataUse::Lost, "{name}: {record:#?}");
                let told = format!("the data partition has {name} in place of ext4");
                assert!(record.lost.iter().any(|loss| loss.starts_with(&told)), "{name}: {record:#?}");
                assert!(fs::read(robot.image()).unwrap() == before, "{name}: not one bit was changed");
            }
        }
    });
}

/// <https://github.com/gardenlinux/gardenlinux/issues/3921>, <https://github.com/jikig-ai/soleur/pull/7197>: a file system
/// with the feature `quota` does not mount where nothing loads the module for it.
#[test]
#[ignore = "needs root: to install mke2fs; cargo xtask test --tier root"]
fn the_module_for_quotas_is_known_from_what_mke2fs_makes() {
    for (features, modules) in [("^quota", &[][..]), ("quota", &["quota_v2"]), ("quota,project", &["quota_v2"])] {
        let robot = Robot::blank(&["-O", features]);
        let head = fs::read(robot.image()).unwrap()[..4096].to_vec();
        assert_eq!(ext4_modules(&head), modules, "{features}");
    }
}
