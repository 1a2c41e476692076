//! Making of a partition table in memory: the first and the last MiB of the disk that it is for. Pure.

use std::io::{self, Read, Seek, SeekFrom, Write};

use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{self, Type};

use super::{EDGE_BYTES, EDGE_LEN};
use crate::release::layout::{Placed, Role, Scheme};

/// MBR type of a Linux file system.
const MBR_LINUX: u8 = 0x83;
/// Cylinder, head and sector of a block beyond what these can count; no software reads them any more.
const CHS_BEYOND: mbrman::CHS = mbrman::CHS { cylinder: 1023, head: 254, sector: 63 };

/// Failure to make a partition table.
#[derive(Debug, thiserror::Error)]
pub enum MakeTableError {
    /// GPT that could not be made.
    #[error("cannot make the GPT")]
    Gpt(#[source] gpt::GptError),
    /// Protective MBR of a GPT that could not be made.
    #[error("cannot make the protective MBR")]
    Protective(#[source] gpt::mbr::MBRError),
    /// MBR that could not be made.
    #[error("cannot make the MBR")]
    Mbr(#[source] mbrman::Error),
    /// A partition does not fit into the numbers of an MBR.
    #[error("partition {number} begins or ends beyond what an MBR can say")]
    Beyond {
        /// Number of the partition.
        number: u32,
    },
}

/// The first and the last bytes of a disk. What lies between cannot be written and reads as zeros.
#[derive(Debug)]
pub(super) struct Edges {
    pub head: Vec<u8>,
    pub tail: Vec<u8>,
    /// Offset at which `tail` begins on the disk.
    pub tail_offset_bytes: u64,
    position: u64,
}

impl Edges {
    /// Makes edges of zeros, for a disk of at least two MiB. The tail begins at a multiple of 4096 bytes and has a MiB
    /// or a little more.
    pub(super) fn zeroed(disk_bytes: u64) -> Self {
        let edge_offset_bytes = disk_bytes - EDGE_BYTES;
        let more = (edge_offset_bytes % 4096) as usize;
        let tail = vec![0; EDGE_LEN + more];
        Self { head: vec![0; EDGE_LEN], tail, tail_offset_bytes: edge_offset_bytes - more as u64, position: 0 }
    }

    fn disk_bytes(&self) -> u64 {
        self.tail_offset_bytes + self.tail.len() as u64
    }

    /// Returns the bytes from the position to the end of its edge; `None` between the edges.
    fn here(&mut self) -> Option<&mut [u8]> {
        let in_tail = self.position.checked_sub(self.tail_offset_bytes);
        match in_tail {
            Some(at) => self.tail.get_mut(usize::try_from(at).ok()?..),
            None => self.head.get_mut(usize::try_from(self.position).ok()?..).filter(|rest| !rest.is_empty()),
        }
    }
}

impl Read for Edges {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = match self.here() {
            Some(present) => {
                let len = present.len().min(buffer.len());
                buffer[..len].copy_from_slice(&present[..len]);
                len
            }
            None => {
                let between = self.tail_offset_bytes.saturating_sub(self.position);
                let len = buffer.len().min(usize::try_from(between).unwrap_or(usize::MAX));
                buffer[..len].fill(0);
                len
            }
        };
        self.position += len as u64;
        Ok(len)
    }
}

impl Write for Edges {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        let position = self.position;
        let place = self.here().filter(|place| !place.is_empty()).ok_or_else(|| {
            io::Error::other(format!("a table has no bytes at offset {position}, which is not at an edge of the disk"))
        })?;
        let len = place.len().min(content.len());
        place[..len].copy_from_slice(&content[..len]);
        self.position += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Edges {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.disk_bytes().checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// Makes the table with new identities: the GUIDs of a GPT are drawn at random, an MBR gets `mbr_id`.
pub(super) fn make(
    table: Scheme,
    placed: &[Placed],
    disk_bytes: u64,
    sector_bytes: u32,
    mbr_id: [u8; 4],
) -> Result<Edges, MakeTableError> {
    let mut edges = Edges::zeroed(disk_bytes);
    match table {
        Scheme::Gpt => make_gpt(edges, placed, disk_bytes, sector_bytes),
        Scheme::Mbr => {
            let mut header = mbrman::MBRHeader::new(mbr_id);
            for place in placed {
                let sectors = |bytes: u64| {
                    u32::try_from(bytes / u64::from(sector_bytes))
                        .map_err(|_| MakeTableError::Beyond { number: place.number })
                };
                // The sum must not wrap either.
                sectors(place.offset_bytes + place.size_bytes - u64::from(sector_bytes))?;
                let entry =
                    header.get_mut(place.number as usize).ok_or(MakeTableError::Beyond { number: place.number })?;
                *entry = mbrman::MBRPartitionEntry {
                    // Some BIOSes pass over a disk without an active partition.
                    boot: if place.partition.role == Role::Recovery {
                        mbrman::BOOT_ACTIVE
                    } else {
                        mbrman::BOOT_INACTIVE
                    },
                    first_chs: CHS_BEYOND,
                    sys: MBR_LINUX,
                    last_chs: CHS_BEYOND,
                    starting_lba: sectors(place.offset_bytes)?,
                    sectors: sectors(place.size_bytes)?,
                };
            }
            header.write_into(&mut edges).map_err(MakeTableError::Mbr)?;
            Ok(edges)
        }
    }
}

fn make_gpt(mut edges: Edges, placed: &[Placed], disk_bytes: u64, sector_bytes: u32) -> Result<Edges, MakeTableError> {
    let sector = u64::from(sector_bytes);
    // The protective entry counts the sectors behind the MBR; more than 32 bits are written as the largest number.
    let protected = u32::try_from(disk_bytes / sector - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(protected).overwrite_lba0(&mut edges).map_err(MakeTableError::Protective)?;
    let size = if sector_bytes == 4096 { LogicalBlockSize::Lb4096 } else { LogicalBlockSize::Lb512 };
    let config = gpt::GptConfig::new().writable(true).logical_block_size(size);
    let mut table = config.create_from_device(edges, None).map_err(MakeTableError::Gpt)?;
    for place in placed {
        let (first, length) = (place.offset_bytes / sector, place.size_bytes / sector);
        let kind = type_of(place.partition.role);
        table
            .add_partition_at(&place.partition.name, place.number, first, length, kind, 0)
            .map_err(MakeTableError::Gpt)?;
    }
    table.write().map_err(MakeTableError::Gpt)
}

fn type_of(role: Role) -> Type {
    match role {
        Role::BiosBoot => partition_types::BIOS,
        Role::Esp => partition_types::EFI,
        Role::State | Role::Recovery | Role::System | Role::Data | Role::System2 => partition_types::LINUX_FS,
    }
}
