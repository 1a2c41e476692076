//! The file system of the recovery partition without its first superblock.

use std::fs;
use std::os::unix::fs::FileExt;

use reflash::jobs::mend::{MendError, recovery_partition};
use reflash::sys::mount::{self, Mount};

use crate::isolated::{isolated, run};
use crate::support::attached::Attached;

/// <https://github.com/coreos/fedora-coreos-tracker/issues/1149>: one lost block of the partition that GRUB reads, and
/// the machine stands at a prompt. The running system brings the superblock back where the file system has a second
/// one.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_lost_superblock_comes_back_from_the_second_one() {
    isolated("field::boot_chain::recovery_partition::a_lost_superblock_comes_back_from_the_second_one", || {
        let directory = tempfile::tempdir().unwrap();
        let (image, at) = (directory.path().join("recovery"), directory.path().join("at"));
        fs::create_dir(&at).unwrap();
        for (groups, is_mended) in [("8192", true), ("32768", false)] {
            fs::write(&image, vec![0; 64 << 20]).unwrap();
            let tree = directory.path().join("tree/slots/a");
            fs::create_dir_all(&tree).unwrap();
            fs::write(tree.join("vmlinuz"), vec![7; 300_000]).unwrap();
            let tree = directory.path().join("tree").display().to_string();
            let path = image.to_str().unwrap();
            run("mke2fs", &["-q", "-t", "ext4", "-b", "4096", "-g", groups, "-d", &tree, path]);
            fs::OpenOptions::new().write(true).open(&image).unwrap().write_all_at(&[0; 4096], 0).unwrap();
            let attached = Attached::new(&image, 512);
            let mounted = || Mount::device(attached.path(), "ext4").read_only().on(&at);
            mounted().unwrap_err();
            let mended = recovery_partition::repair(attached.path());
            if is_mended {
                mended.unwrap();
                mounted().unwrap();
                assert!(fs::read(at.join("slots/a/vmlinuz")).unwrap() == vec![7; 300_000]);
                assert!(matches!(
                    recovery_partition::repair(attached.path()),
                    Err(MendError::RecoveryPartition { .. })
                ));
                mount::unmount(&at).unwrap();
            } else {
                // A file system of one group has no second superblock: this is said, and nothing is made up.
                assert!(matches!(mended, Err(MendError::RecoveryPartition { .. })), "{mended:?}");
            }
        }
    });
}
