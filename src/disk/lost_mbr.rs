//! An MBR whose sector is lost, made again from what a running kernel knows of it. Pure.
//!
//! The sector has no second copy. The kernel has the partitions that it read at its start, the kernel command line has
//! the signature, and the types are those that provisioning gives: nothing is guessed.

use super::list::KernelPartition;
use super::roles::{MBR_ROLES, Role};
use crate::order;

/// Type of a Linux file system.
const LINUX: u8 = 0x83;
/// Flag of the partition that some BIOSes want to see.
const ACTIVE: u8 = 0x80;
/// Cylinder, head and sector beyond what these can count.
const CHS_BEYOND: [u8; 3] = [0xfe, 0xff, 0xff];

/// Returns the first sector without boot code, with the table of which one partition has this PARTUUID. `None` where
/// the kernel does not have just the partitions of a robot, or the PARTUUID is not that of an MBR.
#[must_use]
pub fn remake(partuuid: &str, partitions: &[KernelPartition], block_bytes: u32) -> Option<[u8; 512]> {
    let (signature, number) = partuuid.split_once('-').filter(|(signature, _)| signature.len() == 8)?;
    let signature = u32::from_str_radix(signature, 16).ok()?;
    let number = u32::from_str_radix(number, 16).ok()?;
    let mut partitions = partitions.to_vec();
    order::by_key(&mut partitions, |partition| partition.number);
    let numbers = partitions.iter().map(|partition| partition.number);
    if !numbers.eq(1..=4) || !(1..=4).contains(&number) {
        return None;
    }
    let mut sector = [0; 512];
    sector[440..444].copy_from_slice(&signature.to_le_bytes());
    for ((partition, role), entry) in partitions.iter().zip(MBR_ROLES).zip(sector[446..510].chunks_exact_mut(16)) {
        let blocks = |bytes: u64| u32::try_from(bytes / u64::from(block_bytes)).ok();
        entry[0] = if role == Role::Recovery { ACTIVE } else { 0 };
        entry[1..4].copy_from_slice(&CHS_BEYOND);
        entry[4] = LINUX;
        entry[5..8].copy_from_slice(&CHS_BEYOND);
        entry[8..12].copy_from_slice(&blocks(partition.start_bytes)?.to_le_bytes());
        entry[12..16].copy_from_slice(&blocks(partition.size_bytes)?.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    Some(sector)
}

#[cfg(test)]
mod tests {
    use super::{KernelPartition, remake};
    use std::io::Cursor;

    #[test]
    fn the_table_is_the_one_that_the_kernel_read() {
        let partition = |number: u32| KernelPartition {
            number,
            start_bytes: u64::from(number) << 20,
            size_bytes: 1 << 20,
            node: format!("/dev/sda{number}").into(),
        };
        let four: Vec<_> = [3, 1, 2, 4].map(partition).into();
        for bytes in [512, 4096] {
            let mut sector = remake("0eadbeef-03", &four, bytes).unwrap().to_vec();
            sector.resize(bytes as usize, 0);
            let table = crate::disk::table::read(&mut Cursor::new(sector), bytes).unwrap().unwrap();
            let found = table.partuuid("0eadbeef-03").unwrap();
            assert_eq!((found.first_lba * u64::from(bytes), found.size_bytes), (3 << 20, 1 << 20));
            assert_eq!(table.partitions.len(), 4);
        }
        assert_eq!(remake("0eadbeef-03", &four[..3], 512), None);
        assert_eq!(remake("0eadbeef-05", &four, 512), None);
        assert_eq!(remake("7b1c54e2-0001-4000-0000-000000000000", &four, 512), None);
        let far = KernelPartition { start_bytes: 1 << 42, ..partition(4) };
        assert_eq!(remake("0eadbeef-03", &[partition(1), partition(2), partition(3), far], 512), None);
    }
}
