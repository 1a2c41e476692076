//! Reads what the disks of this machine hold, and writes nothing.

use std::io;
use std::path::Path;

use super::EDGE_LEN;
use super::marker;
use super::select::{DiskCandidate, DiskContent};
use crate::chain::chain;
use crate::disk::{Disk, Transport, Which, disks, table};
use crate::machine::media::MediaId;
use crate::release::digest::is_zero;
use crate::sys::block::{Access, Caching, Device, in_use};

/// Lists every disk of this machine with what it holds.
///
/// # Errors
/// The disks cannot be listed. One that cannot be read is listed as [`DiskContent::Foreign`].
pub fn survey(which: Which) -> io::Result<Vec<DiskCandidate>> {
    Ok(disks(which)?.into_iter().map(DiskCandidate::of_disk).collect())
}

impl DiskCandidate {
    /// Surveys one disk of this machine.
    #[must_use]
    pub fn of_disk(disk: Disk) -> Self {
        // A disk whose use cannot be determined counts as used.
        let in_use = in_use(&disk.path).unwrap_or_else(|error| Some(format!("its use is not known: {error}")));
        let (content, medium) =
            look(&disk.path, disk.logical_block_size).unwrap_or_else(|text| (DiskContent::Foreign(text), None));
        Self { bus_path: disk.bus_path(), in_use, content, medium, disk }
    }

    /// Surveys a file that stands for a disk with logical blocks of `logical_block_size` bytes.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of_file(path: &Path, logical_block_size: u32) -> io::Result<Self> {
        let size_bytes = path.metadata()?.len();
        let disk = Disk {
            name: path.display().to_string(),
            path: path.to_owned(),
            size_bytes,
            logical_block_size,
            model: None,
            serial: None,
            transport: Transport::Other,
            removable: false,
            read_only: false,
        };
        let (content, medium) = look(path, logical_block_size).map_err(io::Error::other)?;
        Ok(Self { disk, bus_path: None, in_use: None, content, medium })
    }
}

/// Reads what lies on the edges of a disk, and the medium it was provisioned from; the error is a sentence for a
/// person.
fn look(path: &Path, logical_block_size: u32) -> Result<(DiskContent, Option<MediaId>), String> {
    let device = Device::open(path, Access::Read, Caching::Buffered).map_err(|error| chain(&error))?;
    let edge = usize::try_from(device.size_bytes()).map_or(EDGE_LEN, |size| size.min(EDGE_LEN));
    let read = |offset| {
        let mut content = vec![0; edge];
        device.read_exact_at(&mut content, offset).map_err(|error| chain(&error)).map(|()| content)
    };
    let (head, tail) = (read(0)?, read(device.size_bytes() - edge as u64)?);
    if is_zero(&head) && is_zero(&tail) {
        return Ok((DiskContent::Blank, None));
    }
    if marker::is_unfinished(&head) {
        return Ok((DiskContent::Interrupted, None));
    }
    Ok(match table::read(&mut device.as_file(), logical_block_size) {
        Ok(Some(table)) => {
            let medium = marker::medium_of(&head, Some(&table));
            (DiskContent::Table(table), medium)
        }
        Ok(None) => {
            let text = "no partition table, but it is not blank".to_owned();
            (DiskContent::Foreign(text), marker::medium_of(&head, None))
        }
        Err(error) => (DiskContent::Foreign(chain(&error)), marker::medium_of(&head, None)),
    })
}
