//! Group descriptors of ext4: whether those that are in use are damaged, and where the first good copy is.
//!
//! e2fsck has to be told. Its preening takes damaged descriptors for true: it writes them over their copies and deletes
//! the journal, and nothing is left to repair the file system from. Even without preening it believes a descriptor of
//! which one bit is wrong, looks for inodes where none are, and clears all of a group.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crc::{Algorithm, CRC_32_ISCSI, Crc, NoTable};

use super::filesystem::{Superblock, backup_superblock};

/// Offset of the first superblock, bytes, and the size of each.
const SUPERBLOCK: (u64, usize) = (1024, 1024);
/// Size of the largest table that is read, bytes: that of 16 TiB.
const MAX_TABLE_BYTES: u64 = 8 << 20;
/// Groups that have copies, as far as they are looked at: 1, and powers of 3, 5 and 7 (`sparse_super`).
const GROUPS_WITH_COPIES: [u64; 8] = [1, 3, 5, 7, 9, 25, 27, 49];
/// Features (fs/ext4/ext4.h): `meta_bg` has its descriptors elsewhere; the others say how they are made.
const META_BG: u32 = 0x10;
const WIDE: u32 = 0x80;
const CHECKSUM_SEED: u32 = 0x2000;
const CHECKSUMS: u32 = 0x400;
/// Offset of the checksum in a descriptor, `bg_checksum`.
const CHECKSUM_AT: usize = 0x1e;

/// Without a table, which would be longer than all that is summed up in most file systems.
const CRC: Crc<u32, NoTable> = Crc::<u32, NoTable>::new(&Algorithm { xorout: 0, ..CRC_32_ISCSI });

/// What the superblock says about the descriptors.
#[derive(Debug, PartialEq, Eq)]
struct Geometry {
    block_bytes: u64,
    blocks: u64,
    first_block: u64,
    blocks_per_group: u64,
    groups: u64,
    descriptor_bytes: usize,
    seed: u32,
}

/// Returns the copy of the descriptors on `device` that a check should begin with, if those in use are damaged.
///
/// `None` where they are not, where there is no copy, and where the superblock itself is damaged: then e2fsck looks for
/// a copy by itself.
///
/// # Errors
/// Those of the device.
pub fn copy_to_begin_with(device: &Path) -> io::Result<Option<Superblock>> {
    let file = File::open(device)?;
    let superblock = read(&file, SUPERBLOCK.0, SUPERBLOCK.1)?;
    let Some(geometry) = geometry(&superblock) else { return Ok(None) };
    let length = geometry.groups * geometry.descriptor_bytes as u64;
    let Some(length) = usize::try_from(length).ok().filter(|_| length <= MAX_TABLE_BYTES) else { return Ok(None) };
    let at = (geometry.first_block + 1) * geometry.block_bytes;
    // Descriptors that cannot be read are as good as damaged ones.
    if read(&file, at, length).is_ok_and(|table| are_whole(&geometry, &table)) {
        return Ok(None);
    }
    let copies = GROUPS_WITH_COPIES.into_iter().filter(|group| *group < geometry.groups);
    let mut places =
        copies.map(|group| (group * geometry.blocks_per_group + geometry.first_block) * geometry.block_bytes);
    Ok(places.find_map(|place| {
        let table = read(&file, place + geometry.block_bytes, length).ok()?;
        let copy = backup_superblock(place, &read(&file, place, SUPERBLOCK.1).ok()?)?;
        are_whole(&geometry, &table).then_some(copy)
    }))
}

/// Returns the size of the file system on `device`, bytes, where its superblock has the right checksum.
///
/// # Errors
/// Those of the device.
pub fn size_bytes(device: &Path) -> io::Result<Option<u64>> {
    let superblock = read(&File::open(device)?, SUPERBLOCK.0, SUPERBLOCK.1)?;
    Ok(geometry(&superblock).and_then(|geometry| geometry.blocks.checked_mul(geometry.block_bytes)))
}

fn read(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The geometry of a file system whose superblock is whole and whose descriptors have checksums.
fn geometry(superblock: &[u8]) -> Option<Geometry> {
    let long = |at: usize| Some(u32::from_le_bytes(*superblock.get(at..)?.first_chunk()?));
    let (incompatible, read_only) = (long(0x60)?, long(0x64)?);
    let is_whole = crc32c(!0, superblock.get(..0x3fc)?) == long(0x3fc)?;
    let is_ours = superblock.get(0x38..0x3a)? == [0x53, 0xef] && read_only & CHECKSUMS != 0;
    if !is_whole || !is_ours || incompatible & META_BG != 0 {
        return None;
    }
    let (size, first_block, blocks_per_group) = (long(0x18)?, u64::from(long(0x14)?), u64::from(long(0x20)?));
    let is_wide = incompatible & WIDE != 0;
    let blocks = u64::from(long(0x4)?) | if is_wide { u64::from(long(0x150)?) << 32 } else { 0 };
    let seed = if incompatible & CHECKSUM_SEED != 0 { long(0x270)? } else { crc32c(!0, superblock.get(0x68..0x78)?) };
    let descriptor_bytes =
        if is_wide { usize::from(u16::from_le_bytes(*superblock.get(0xfe..)?.first_chunk()?)) } else { 32 };
    let groups = blocks.checked_sub(first_block)?.checked_add(blocks_per_group)?.checked_sub(1)?;
    Some(Geometry {
        block_bytes: 1024 << Some(size).filter(|size| *size <= 6)?,
        blocks,
        first_block,
        blocks_per_group,
        groups: groups.checked_div(blocks_per_group)?,
        descriptor_bytes: Some(descriptor_bytes).filter(|bytes| (32..=1024).contains(bytes))?,
        seed,
    })
}

/// Whether every descriptor has its checksum: of the group's number and the descriptor, without the checksum itself.
fn are_whole(geometry: &Geometry, table: &[u8]) -> bool {
    (0_u32..).zip(table.chunks_exact(geometry.descriptor_bytes)).all(|(group, descriptor)| {
        let (before, rest) = descriptor.split_at(CHECKSUM_AT);
        let Some((stored, after)) = rest.split_first_chunk() else { return false };
        let parts: [&[u8]; 4] = [&group.to_le_bytes(), before, &[0; 2], after];
        let sum = parts.into_iter().fold(geometry.seed, crc32c);
        sum & 0xffff == u32::from(u16::from_le_bytes(*stored))
    })
}

/// CRC-32C as ext4 has it: begun with `sum`, and not inverted at its end.
fn crc32c(sum: u32, bytes: &[u8]) -> u32 {
    // The crate takes what to begin with in the order of bits before they are reflected.
    let mut digest = CRC.digest_with_initial(sum.reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::{copy_to_begin_with, crc32c, geometry, size_bytes};
    use crate::disk::filesystem::Superblock;
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    #[test]
    fn the_sum_is_the_one_of_the_standard_without_its_inversion() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn nothing_is_made_of_what_is_no_file_system() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in [("empty", vec![]), ("zero", vec![0; 8192]), ("ones", vec![0xff; 8192])] {
            let path = dir.path().join(name);
            fs::write(&path, &content).unwrap();
            assert!(copy_to_begin_with(&path).map_or(true, |copy| copy.is_none()), "{name}");
            assert_eq!(geometry(&content), None);
        }
        assert!(copy_to_begin_with(&dir.path().join("missing")).is_err());
    }

    #[test]
    #[ignore = "needs root: to install mke2fs; cargo xtask test --tier root"]
    fn any_damage_of_the_descriptors_leads_to_their_first_whole_copy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let usual = "has_journal,extent,sparse_super,flex_bg";
        for features in ["64bit,metadata_csum,metadata_csum_seed", "metadata_csum,^64bit,^metadata_csum_seed"] {
            for block_bytes in [1024_u64, 4096] {
                let groups = 6;
                let (blocks, first) = (block_bytes * 8 * groups, u64::from(block_bytes == 1024));
                let _ = fs::remove_file(&path);
                let status = Command::new("mke2fs")
                    .args(["-q", "-F", "-t", "ext4", "-b", &block_bytes.to_string(), "-O"])
                    .args([&format!("{usual},{features}"), path.to_str().unwrap(), &blocks.to_string()])
                    .status();
                assert!(status.unwrap().success());
                let case = format!("{features}, {block_bytes}");
                assert_eq!(copy_to_begin_with(&path).unwrap(), None, "{case}");
                let (file, table) = (File::options().write(true).read(true).open(&path).unwrap(), first + 1);
                let mut byte = [0];
                let at = table * block_bytes + 70;
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 4], at).unwrap();
                let blocks =
                    |size: u64| size_bytes(&path).unwrap().map(|found| found == size / block_bytes * block_bytes);
                assert_eq!(blocks(path.metadata().unwrap().len()), Some(true), "{case}");
                let copy = |group: u64| Some(Superblock { block: group * block_bytes * 8 + first, block_bytes });
                assert_eq!(copy_to_begin_with(&path).unwrap(), copy(1), "{case}");
                let zeros = vec![0; 1024];
                file.write_all_at(&zeros, table * block_bytes).unwrap();
                assert_eq!(copy_to_begin_with(&path).unwrap(), copy(1), "{case}");
                file.write_all_at(&zeros, (block_bytes * 8 + table) * block_bytes).unwrap();
                assert_eq!(copy_to_begin_with(&path).unwrap(), copy(3), "{case}");
                // e2fsck looks for a copy by itself.
                file.write_all_at(&zeros, 1024).unwrap();
                assert_eq!(copy_to_begin_with(&path).unwrap(), None, "{case}");
            }
        }
    }
}
