//! Recognition of the file system that a device holds, by magic numbers, and of its label. Pure.

/// Bytes from the beginning of the device that have to be looked at.
pub const HEAD_BYTES: usize = 32 * 1024 + 2048;

/// Signatures of file systems: offset, bytes, and name of the driver. ISO 9660 comes first: a medium that starts from
/// USB and disc alike has it beside a boot sector.
///
/// Sources: ECMA-119, 8.1.2; Linux' Documentation/filesystems/ext4/super.rst, `s_magic`; Microsoft's exFAT
/// specification, 3.1.2; Microsoft's FAT specification, `BS_FilSysType`, which every file system made today has.
const SIGNATURES: [(usize, &[u8], &str); 6] = [
    (32 * 1024 + 1, b"CD001", "iso9660"),
    (1024 + 0x38, &[0x53, 0xef], "ext4"),
    (3, b"EXFAT   ", "exfat"),
    (82, b"FAT32   ", "vfat"),
    (54, b"FAT16   ", "vfat"),
    (54, b"FAT12   ", "vfat"),
];

/// Name of the driver for what begins with `head`, of [`HEAD_BYTES`].
#[must_use]
pub fn kind(head: &[u8]) -> Option<&'static str> {
    let has = |(at, signature, _): &&(usize, &[u8], &str)| {
        head.get(*at..).is_some_and(|content| content.starts_with(signature))
    };
    SIGNATURES.iter().find(has).map(|(.., driver)| *driver)
}

/// Returns the label of the ext4 file system that begins with `head`: `s_volume_name`, 16 bytes.
#[must_use]
pub fn ext4_label(head: &[u8]) -> Option<&str> {
    let name = head.get(1024 + 0x78..1024 + 0x88).filter(|_| kind(head) == Some("ext4"))?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    std::str::from_utf8(&name[..end]).ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{HEAD_BYTES, ext4_label, kind};

    #[test]
    fn an_empty_or_short_device_has_no_file_system() {
        for head in [vec![], vec![0; 512], vec![0; HEAD_BYTES], vec![0xff; HEAD_BYTES]] {
            assert_eq!((kind(&head), ext4_label(&head)), (None, None));
        }
    }

    #[test]
    #[ignore = "needs root: to install mke2fs, mkfs.vfat and mkfs.exfat; cargo xtask test --tier root"]
    fn what_the_usual_tools_make_is_recognised() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        for (command, expected, label) in [
            ("mke2fs -q -t ext4", "ext4", Some("")),
            ("mke2fs -q -t ext4 -L sixteen-letters-", "ext4", Some("sixteen-letters-")),
            ("mkfs.vfat -F 12", "vfat", None),
            ("mkfs.vfat -F 16", "vfat", None),
            ("mkfs.vfat -F 32", "vfat", None),
            ("mkfs.exfat", "exfat", None),
        ] {
            let _ = std::fs::remove_file(&image);
            std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
            let mut words = command.split(' ');
            let mut make = Command::new(words.next().unwrap());
            assert!(make.args(words).arg(&image).output().unwrap().status.success(), "{command}");
            let head = std::fs::read(&image).unwrap()[..HEAD_BYTES].to_vec();
            assert_eq!((kind(&head), ext4_label(&head)), (Some(expected), label), "{command}");
        }
    }
}
