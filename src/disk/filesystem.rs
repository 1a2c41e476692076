//! Recognition of the file system that a device holds, by magic numbers, and of its label. Pure.

/// Bytes from the beginning of the device that have to be looked at for a file system that a driver here reads.
pub const HEAD_BYTES: usize = 32 * 1024 + 2048;
/// Bytes from the beginning of the device that have to be looked at for every other one, too.
pub const FOREIGN_HEAD_BYTES: usize = 68 * 1024;

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

/// Signatures of what a drive may have and no driver here reads: offset, bytes, and name for people.
///
/// Sources: libblkid of util-linux, `libblkid/src/superblocks/`; ECMA-167, 2/9.1.2 (UDF).
const FOREIGN: [(usize, &[u8], &str); 12] = [
    (64 * 1024 + 0x40, b"_BHRfS_M", "Btrfs"),
    (512 + 24, b"LVM2 001", "LVM"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS"),
    (4096, b"\xfc\x4e\x2b\xa9", "Linux RAID"),
    (4096 - 10, b"SWAPSPACE2", "swap"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"-FVE-FS-", "BitLocker"),
    (1024, b"H+\x00\x04", "HFS+"),
    (32, b"NXSB", "APFS"),
    (0, b"XFSB", "XFS"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (32 * 1024 + 1, b"BEA01", "UDF"),
];

/// Name of the driver for what begins with `head`, of [`HEAD_BYTES`].
#[must_use]
pub fn kind(head: &[u8]) -> Option<&'static str> {
    kinds(head).next()
}

/// Names of the drivers for what may begin with `head`, the likeliest first: a program that makes a file system leaves
/// signatures of an earlier one where it writes nothing itself.
pub fn kinds(head: &[u8]) -> impl Iterator<Item = &'static str> {
    named(&SIGNATURES, head)
}

/// Name, for people, of what begins with `head`, of [`FOREIGN_HEAD_BYTES`] or as much as there is, where nothing here
/// reads it.
#[must_use]
pub fn foreign(head: &[u8]) -> Option<&'static str> {
    named(&FOREIGN, head).next().filter(|_| kind(head).is_none())
}

fn named(signatures: &'static [(usize, &[u8], &str)], head: &[u8]) -> impl Iterator<Item = &'static str> {
    let has = |(at, signature, _): &&(usize, &[u8], &str)| {
        head.get(*at..).is_some_and(|content| content.starts_with(signature))
    };
    signatures.iter().filter(has).map(|(.., name)| *name)
}

/// Returns the label of the ext4 file system that begins with `head`: `s_volume_name`, 16 bytes.
#[must_use]
pub fn ext4_label(head: &[u8]) -> Option<&str> {
    let name = head.get(1024 + 0x78..1024 + 0x88).filter(|_| kind(head) == Some("ext4"))?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    std::str::from_utf8(&name[..end]).ok()
}

/// One life of an ext4 file system: its identity, and when it was last mounted for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ext4Life {
    /// Identity of the file system, `s_uuid`.
    pub uuid: [u8; 16],
    /// Time of the last mount by the clock of the machine, seconds since 1970: `s_mtime`. 0 before the first one.
    pub mounted_unix_s: u64,
}

/// Returns the life of the ext4 file system that begins with `head`, of which 4096 bytes are enough.
#[must_use]
pub fn ext4_life(head: &[u8]) -> Option<Ext4Life> {
    let superblock = head.get(1024..2048).filter(|_| kind(head) == Some("ext4"))?;
    let low = u32::from_le_bytes(*superblock.get(0x2c..)?.first_chunk()?);
    let high = *superblock.get(0x275)?;
    let mounted_unix_s = u64::from(high) << 32 | u64::from(low);
    Some(Ext4Life { uuid: *superblock.get(0x68..)?.first_chunk()?, mounted_unix_s })
}

/// The modules that the kernel needs beside ext4 for the file system that begins with `head`, of which 4096 bytes are
/// enough. It would have a program load them, which neither initramfs has. With the feature `quota` (fs/ext4/ext4.h,
/// `EXT4_FEATURE_RO_COMPAT_QUOTA`) it does not mount otherwise, for reading either from some version on.
#[must_use]
pub fn ext4_modules(head: &[u8]) -> &'static [&'static str] {
    const QUOTA: u32 = 0x100;
    let superblock = head.get(1024..2048).filter(|_| kind(head) == Some("ext4")).unwrap_or_default();
    let features = superblock.get(0x64..).and_then(|field| field.first_chunk().copied()).map_or(0, u32::from_le_bytes);
    if features & QUOTA != 0 { &["quota_v2"] } else { &[] }
}

/// Distance of the places at which a backup superblock may lie, bytes: the smallest block of ext4.
pub const BACKUP_STEP_BYTES: usize = 1024;

/// Place of a superblock of ext4, as e2fsck wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Number of the block.
    pub block: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
}

/// Whether the bytes at this offset of a device are a backup superblock of a file system on it: one that says of itself
/// that it lies there. The content of a file that holds another file system does not.
#[must_use]
pub fn backup_superblock(offset: u64, bytes: &[u8]) -> Option<Superblock> {
    let word = |at: usize| bytes.get(at..at + 2).map(|field| u64::from(u16::from_le_bytes([field[0], field[1]])));
    let long = |at: usize| Some(word(at)? | word(at + 2)? << 16);
    if word(0x38)? != 0xef53 {
        return None;
    }
    let (first_block, size, blocks_per_group, group) = (long(0x14)?, long(0x18)?, long(0x20)?, word(0x5a)?);
    let block_bytes = 1024_u64 << Some(size).filter(|size| *size <= 2)?;
    let block = group.checked_mul(blocks_per_group)?.checked_add(first_block)?;
    (group > 0 && block.checked_mul(block_bytes)? == offset).then_some(Superblock { block, block_bytes })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{HEAD_BYTES, Superblock, backup_superblock, ext4_label, ext4_modules, foreign, kind, kinds};

    #[test]
    fn an_empty_or_short_device_has_no_file_system() {
        for head in [vec![], vec![0; 512], vec![0; HEAD_BYTES], vec![0xff; HEAD_BYTES]] {
            assert_eq!((kind(&head), ext4_label(&head)), (None, None));
        }
    }

    #[test]
    fn a_module_is_asked_for_by_an_ext4_with_its_feature_alone() {
        let mut head = vec![0; 2048];
        head[1024 + 0x65] = 1;
        assert!(ext4_modules(&head).is_empty(), "no ext4");
        head[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(ext4_modules(&head), ["quota_v2"]);
        assert!(ext4_modules(&head[..2000]).is_empty() && ext4_modules(&[]).is_empty());
        head[1024 + 0x65] = 0;
        assert!(ext4_modules(&head).is_empty());
    }

    #[test]
    fn what_an_earlier_file_system_left_comes_first_and_not_alone() {
        let mut head = vec![0; HEAD_BYTES];
        head[3..11].copy_from_slice(b"EXFAT   ");
        head[32 * 1024 + 1..][..5].copy_from_slice(b"CD001");
        assert_eq!(kinds(&head).collect::<Vec<_>>(), ["iso9660", "exfat"]);
        head[3..11].copy_from_slice(b"NTFS    ");
        assert_eq!((kind(&head), foreign(&head)), (Some("iso9660"), None));
        head[32 * 1024 + 1] = 0;
        assert_eq!((kind(&head), foreign(&head)), (None, Some("NTFS")));
    }

    #[test]
    fn a_backup_superblock_says_where_it_lies() {
        let mut bytes = vec![0; 1024];
        bytes[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        bytes[0x18] = 2;
        bytes[0x20..0x24].copy_from_slice(&8192_u32.to_le_bytes());
        bytes[0x5a] = 3;
        let found = Superblock { block: 3 * 8192, block_bytes: 4096 };
        assert_eq!(backup_superblock(3 * 8192 * 4096, &bytes), Some(found));
        assert_eq!(backup_superblock(4096, &bytes), None, "a copy in a file");
        bytes[0x5a] = 0;
        assert_eq!(backup_superblock(0, &bytes), None, "the first one");
        bytes[0x18..0x1c].fill(0xff);
        assert_eq!(backup_superblock(0, &bytes), None);
        assert_eq!(backup_superblock(0, &[]), None);
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
