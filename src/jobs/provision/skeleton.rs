//! The disk skeleton, which makes a disk start and is made in memory: the table, with GRUB's boot code where the BIOS
//! looks for it.

use std::io;

use crate::boot::bios::{self, BootCodeError, SECTOR_BYTES};
use crate::boot::disk_map::{self, DiskMap};
use crate::boot::grubenv::GrubEnvError;
use crate::disk::table;
use crate::jobs::provision::make_table::{self, Edges, MakeTableError};
use crate::jobs::provision::marker;
use crate::release::layout::{Placed, Role, Scheme};
use crate::sys::random;

/// Bytes of the largest logical blocks: whole ones are written.
pub(super) const LARGEST_BLOCK_BYTES: usize = 4096;
/// First block of core.img on MBR disks: right behind the first sector.
const GAP_LBA: u64 = 1;

/// Disk for which a skeleton is made.
#[derive(Debug, Clone, Copy)]
pub struct DiskGeometry<'a> {
    /// Kind of table.
    pub table: Scheme,
    /// Places of the partitions.
    pub placed: &'a [Placed],
    /// Size of the disk, bytes.
    pub disk_bytes: u64,
    /// Logical block size, bytes.
    pub block_bytes: u32,
}

/// The bytes around and between the partitions.
#[derive(Debug)]
pub struct DiskSkeleton {
    /// The first and the last MiB.
    pub(super) edges: Edges,
    /// On GPT disks, core.img in whole blocks, with its offset, bytes.
    pub(super) core: Option<(u64, Vec<u8>)>,
}

/// Failure to make the skeleton.
#[derive(Debug, thiserror::Error)]
pub enum SkeletonError {
    /// No random bytes for identities.
    #[error("cannot get random bytes for the identity of the disk")]
    Random(#[source] io::Error),
    /// Partition table that could not be made.
    #[error("the partition table cannot be made")]
    Scheme(#[from] MakeTableError),
    /// The boot code does not fit.
    #[error("GRUB cannot be fitted to this disk")]
    BootCode(#[from] BootCodeError),
    /// Map of the disk that could not be made.
    #[error("the map of the disk for GRUB cannot be made")]
    Map(#[from] GrubEnvError),
}

impl DiskSkeleton {
    /// Makes the skeleton, with identities that no other disk has. GRUB's BIOS images go onto every disk that a BIOS
    /// could start.
    ///
    /// # Errors
    /// [`SkeletonError`].
    pub fn new(geometry: DiskGeometry<'_>, boot_image: &[u8], core_image: &[u8]) -> Result<Self, SkeletonError> {
        let DiskGeometry { table, placed, disk_bytes, block_bytes } = geometry;
        let mut mbr_id: [u8; 4] = random::bytes().map_err(SkeletonError::Random)?;
        // Zero means that there is no identity.
        mbr_id[0] |= 1;
        let edges = make_table::make(table, placed, disk_bytes, block_bytes, mbr_id)?;
        let mut skeleton = Self { edges, core: None };
        skeleton.add_map(placed, block_bytes)?;
        let partition = placed.iter().find(|place| place.partition.role == Role::BiosBoot);
        let (core_lba, place_bytes) = match (table, partition) {
            _ if block_bytes != 512 => return Ok(skeleton),
            (Scheme::Mbr, _) => (GAP_LBA, marker::OFFSET_BYTES - SECTOR_BYTES as u64),
            (Scheme::Gpt, Some(place)) => (place.offset_bytes / SECTOR_BYTES as u64, place.size_bytes),
            (Scheme::Gpt, None) => return Ok(skeleton),
        };
        let mut core = bios::core_image(core_image, core_lba, place_bytes)?;
        let head = &mut skeleton.edges.head;
        let mut present = [0; SECTOR_BYTES];
        present.copy_from_slice(&head[..SECTOR_BYTES]);
        head[..SECTOR_BYTES].copy_from_slice(&bios::first_sector(boot_image, &present, core_lba)?);
        if table == Scheme::Mbr {
            head[SECTOR_BYTES..][..core.len()].copy_from_slice(&core);
        } else {
            core.resize(core.len().next_multiple_of(LARGEST_BLOCK_BYTES), 0);
            skeleton.core = Some((core_lba * SECTOR_BYTES as u64, core));
        }
        Ok(skeleton)
    }

    /// Writes the map of a GPT disk into the gap before the first partition. An MBR lies in the first sector, without
    /// which nothing starts anyway.
    fn add_map(&mut self, placed: &[Placed], block_bytes: u32) -> Result<(), SkeletonError> {
        let Some(table) = self.table(block_bytes).filter(|table| table.scheme == Scheme::Gpt) else { return Ok(()) };
        let number = |role| placed.iter().find(|place| place.partition.role == role).map(|place| place.number);
        let Some(map) = DiskMap::of(block_bytes, |role| table.number(number(role)?)) else { return Ok(()) };
        let map = map.encode()?;
        self.edges.head[disk_map::OFFSET..][..map.len()].copy_from_slice(&map);
        Ok(())
    }

    /// Parses the table in the skeleton.
    pub(super) fn table(&mut self, block_bytes: u32) -> Option<table::ParsedTable> {
        table::read(&mut self.edges, block_bytes).ok().flatten()
    }

    /// Lists all of it: offset on the disk in bytes, and content.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let Edges { head, tail, tail_offset_bytes, .. } = &self.edges;
        let core = self.core.as_ref().map(|(offset, core)| (*offset, core.as_slice()));
        [(0, head.as_slice()), (*tail_offset_bytes, tail.as_slice())].into_iter().chain(core)
    }
}
