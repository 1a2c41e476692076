//! Writing to an armed disk, in the order that the head of [`super`] gives.

use std::io;

use super::preflight::{Armed, Preflight};
use super::{EDGE_BYTES, marker};
use crate::boot::bios::SECTOR_BYTES;
use crate::flash::target::{BlockTarget, CopyError, copy_blocks, write_zeros};
use crate::jobs::provision::make_table::Edges;
use crate::jobs::provision::skeleton::{DiskGeometry, DiskSkeleton, LARGEST_BLOCK_BYTES, SkeletonError};
use crate::jobs::recovery::Committed;
use crate::machine::media::MediaId;
use crate::record::journal::Journal;
use crate::release::layout::{Placed, Role};
use crate::sys::block::AlignedBuf;

/// Bytes that are written in one go with the first sector.
const FIRST_BYTES: u64 = LARGEST_BLOCK_BYTES as u64;

/// File system of one partition.
pub struct TemplateImage {
    /// Role of the partition.
    pub role: Role,
    /// Content as one zstd frame, with the size of the content in its header.
    pub compressed: Vec<u8>,
}

/// Content that a disk is provisioned with.
pub struct BootstrapParts {
    /// Boot sector of GRUB for BIOS, `boot.img`.
    pub boot_image: Vec<u8>,
    /// GRUB's `core.img`, made for the kind of table.
    pub core_image: Vec<u8>,
    /// File systems of the partitions. A partition without one is left blank, as the system partition must be.
    pub images: Vec<TemplateImage>,
}

/// Disk that holds file systems and no partition table: it is unclaimed until it is [finished](Self::finish).
#[derive(Debug)]
pub struct PartiallyWritten {
    plan: Preflight,
    skeleton: DiskSkeleton,
}

/// Disk with a table, boot code, file systems and a system, all of it durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provisioned {
    /// Places of the partitions.
    pub partitions: Vec<Placed>,
}

/// Failure of a provisioning. A second run begins from the start.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The disk is not the one of the plan. Nothing was written.
    #[error("{disk} has {size_bytes} bytes now and {planned_bytes} in the plan; nothing was written")]
    Changed {
        /// Write or flush that the disk refused.
        disk: String,
        /// Bytes that the disk has.
        size_bytes: u64,
        /// Bytes that it had in the plan.
        planned_bytes: u64,
    },
    /// An image and the partitions do not fit. Nothing was written.
    #[error("the file system for {role} has {size_bytes} bytes and its partition {place_bytes}; use a larger layout")]
    TemplateImage {
        /// Role of the partition.
        role: Role,
        /// Size of the partition, bytes.
        size_bytes: u64,
        /// Size of the partition, 0 where the partition is missing.
        place_bytes: u64,
    },
    /// Table or boot code cannot be made. Nothing was written.
    #[error("nothing was written")]
    DiskSkeleton(#[source] SkeletonError),
    /// Template that is damaged, although its digest was right.
    #[error("cannot unpack the file system for {role}")]
    Unpack {
        /// Role of the partition.
        role: Role,
        /// Error of the decompression.
        source: io::Error,
    },
    /// Write or flush that the disk refused.
    #[error("cannot {action} on {disk}; run provisioning again, and replace the disk if that fails too")]
    Disk {
        /// Action that failed.
        action: String,
        /// The disk's identity.
        disk: String,
        /// Error that the disk answered with.
        source: io::Error,
    },
}

/// Erases the disk of `armed` through `target`, which must be that disk as a whole, and writes file systems and
/// core.img. All of it is durable afterwards, and no partition table shows it yet.
///
/// # Errors
/// [`ProvisionError`].
pub fn begin(
    armed: Armed,
    target: &dyn BlockTarget,
    parts: &BootstrapParts,
    journal: &Journal,
) -> Result<PartiallyWritten, ProvisionError> {
    let plan = armed.0;
    let planned_bytes = plan.candidate.disk.size_bytes;
    if target.size_bytes() != planned_bytes {
        let (disk, size_bytes) = (target.identity(), target.size_bytes());
        return Err(ProvisionError::Changed { disk, size_bytes, planned_bytes });
    }
    let images = parts.images.iter().map(|image| Ok((image, place_of(&plan, image)?)));
    let images = images.collect::<Result<Vec<_>, ProvisionError>>()?;
    let skeleton = make_skeleton(&plan, parts)?;

    let disk = DiskWriter { target };
    disk.write("mark the start", marker::OFFSET_BYTES, &marker::unfinished())?;
    disk.flush()?;
    disk.zero("erase the first sector", 0, FIRST_BYTES)?;
    disk.flush()?;
    journal.note("old tables and signatures are erased");
    disk.zero("erase the start", FIRST_BYTES, marker::OFFSET_BYTES - FIRST_BYTES)?;
    disk.zero("erase the end", skeleton.edges.tail_offset_bytes, skeleton.edges.tail.len() as u64)?;
    for place in &plan.placed {
        let edge = EDGE_BYTES.min(place.size_bytes);
        disk.zero("erase a partition", place.offset_bytes, edge)?;
        disk.zero("erase a partition", place.offset_bytes + place.size_bytes - edge, edge)?;
    }
    disk.flush()?;
    for (image, place) in images {
        journal.note(&format!("write the {} file system", image.role));
        disk.fill(image, place.offset_bytes)?;
    }
    if let Some((offset, core)) = &skeleton.core {
        disk.write("write core.img", *offset, core)?;
    }
    disk.flush()?;
    Ok(PartiallyWritten { plan, skeleton })
}

impl PartiallyWritten {
    /// Places of the partitions.
    #[must_use]
    pub fn partitions(&self) -> &[Placed] {
        &self.plan.placed
    }

    /// Writes the table and, last, what makes the disk start. Only for a disk with a verified system on it. Then the
    /// disk records the `medium` it was made from.
    ///
    /// # Errors
    /// [`ProvisionError::Disk`].
    pub fn finish(
        mut self,
        target: &dyn BlockTarget,
        medium: Option<MediaId>,
        _system: &Committed,
        journal: &Journal,
    ) -> Result<Provisioned, ProvisionError> {
        let disk = DiskWriter { target };
        let table = self.skeleton.table(self.plan.candidate.disk.logical_block_size);
        let finished = medium.zip(table).map(|(medium, table)| marker::finished(medium, &table));
        journal.note("write the partition table");
        let Edges { head, tail, tail_offset_bytes, .. } = &self.skeleton.edges;
        disk.write("write the end", *tail_offset_bytes, tail)?;
        disk.write("write the table", FIRST_BYTES, &head[LARGEST_BLOCK_BYTES..marker::OFFSET])?;
        // The rest of the first 4 KiB is written before the first sector, so that a torn write can lose only that
        // sector.
        let mut without_first = head[..LARGEST_BLOCK_BYTES].to_vec();
        without_first[..SECTOR_BYTES].fill(0);
        disk.write("write the table", 0, &without_first)?;
        disk.flush()?;
        disk.write("write the first sector", 0, &head[..LARGEST_BLOCK_BYTES])?;
        disk.flush()?;
        match finished {
            Some(finished) => disk.write("mark the end", marker::OFFSET_BYTES, &finished)?,
            None => disk.zero("clear the mark", marker::OFFSET_BYTES, marker::SIZE_BYTES)?,
        }
        disk.flush()?;
        Ok(Provisioned { partitions: self.plan.placed })
    }
}

/// Returns the partition of an image, if the image fits into it.
fn place_of<'a>(plan: &'a Preflight, image: &TemplateImage) -> Result<&'a Placed, ProvisionError> {
    let role = image.role;
    let size_bytes = zstd::zstd_safe::get_frame_content_size(&image.compressed).ok().flatten().unwrap_or(u64::MAX);
    let place = plan.placed.iter().find(|place| place.partition.role == role);
    let place_bytes = place.map_or(0, |place| place.size_bytes);
    match place {
        Some(place) if size_bytes <= place_bytes && size_bytes.is_multiple_of(4096) => Ok(place),
        _ => Err(ProvisionError::TemplateImage { role, size_bytes, place_bytes }),
    }
}

fn make_skeleton(plan: &Preflight, parts: &BootstrapParts) -> Result<DiskSkeleton, ProvisionError> {
    let disk = &plan.candidate.disk;
    let (disk_bytes, block_bytes) = (disk.size_bytes, disk.logical_block_size);
    let geometry = DiskGeometry { table: plan.table, placed: &plan.placed, disk_bytes, block_bytes };
    DiskSkeleton::new(geometry, &parts.boot_image, &parts.core_image).map_err(ProvisionError::DiskSkeleton)
}

/// Target whose errors say what was being done.
struct DiskWriter<'a> {
    target: &'a dyn BlockTarget,
}

impl DiskWriter<'_> {
    fn write(&self, action: &str, offset: u64, content: &[u8]) -> Result<(), ProvisionError> {
        // Transfers past the page cache need aligned memory.
        let mut buffer = AlignedBuf::zeroed(content.len());
        buffer.copy_from_slice(content);
        self.target.write_at(offset, &buffer).map_err(|source| self.failed(action, source))
    }

    fn zero(&self, action: &str, offset: u64, len: u64) -> Result<(), ProvisionError> {
        // Too little to be worth a command of the disk, which not every disk carries out.
        write_zeros(self.target, offset..offset + len).map_err(|source| self.failed(action, source))
    }

    fn flush(&self) -> Result<(), ProvisionError> {
        self.target.flush().map_err(|source| self.failed("flush the writes", source))
    }

    /// Unpacks an image and reads it back. Zeros in it are zeroed on the disk: content that lay there before must not
    /// remain.
    fn fill(&self, image: &TemplateImage, start: u64) -> Result<(), ProvisionError> {
        let unpack = |source| ProvisionError::Unpack { role: image.role, source };
        let content = zstd::stream::read::Decoder::new(&image.compressed[..]).map_err(unpack)?;
        let written = copy_blocks(content, self.target, start);
        written.map_err(|error| match error {
            CopyError::Read(source) => unpack(source),
            CopyError::Write(source) => self.failed("write a file system", source),
        })
    }

    fn failed(&self, action: &str, source: io::Error) -> ProvisionError {
        ProvisionError::Disk { action: action.to_owned(), disk: self.target.identity(), source }
    }
}
