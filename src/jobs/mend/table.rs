//! Mends the partition table of a disk.

use std::time::Duration;

use super::error::{MendError, write_proven};
use crate::disk::gpt_copies::{DamagedPart, DiskBlocks, GptState, end_of_primary, examine};
use crate::disk::gpt_growth::grown;
use crate::disk::mbr_growth::MbrGrowth;
use crate::disk::raw::{RawDisk, WholeDisk};
use crate::disk::second_system::{PlannedSystems, SystemsRefusal};
use crate::disk::{Disk, lost_mbr, mbr_growth, second_system};

/// Times that the first block is read before it counts as lost.
const READ_ATTEMPTS: u32 = 3;
/// Pause between two of them.
const READ_PAUSE: Duration = Duration::from_secs(1);

/// Makes the copies of a robot's GPT and its protective MBR whole, and returns what was mended. A table that is not a
/// robot's is left alone.
///
/// # Errors
/// [`MendError`]; what was mended before stays so.
pub fn mend(disk: &dyn RawDisk) -> Result<Vec<DamagedPart>, MendError> {
    let repairs = match state(disk) {
        GptState::Absent | GptState::Foreign | GptState::Whole => return Ok(Vec::new()),
        GptState::Lost => return Err(MendError::TableLost),
        GptState::Damaged(repairs) => repairs,
    };
    let mut mended = Vec::new();
    for repair in repairs {
        for (offset, content) in &repair.writes {
            write_proven(disk, repair.part.name(), *offset, content)?;
        }
        mended.push(repair.part);
    }
    Ok(mended)
}

/// Plans a second system for an image of `image_bytes`.
///
/// # Errors
/// [`SystemsRefusal`].
pub fn with_second(disk: &dyn RawDisk, image_bytes: u64) -> Result<PlannedSystems, SystemsRefusal> {
    second_system::with_second(blocks(disk), image_bytes, &mut |lba, count| read(disk, lba, count))
}

/// Plans a table without the second system.
///
/// # Errors
/// [`SystemsRefusal`].
pub fn without_second(disk: &dyn RawDisk) -> Result<PlannedSystems, SystemsRefusal> {
    second_system::without_second(blocks(disk), &mut |lba, count| read(disk, lba, count))
}

/// Carries out the writes that were planned for another table, one after the other.
///
/// # Errors
/// [`MendError`]; one of the copies is whole all the same.
pub fn replace(disk: &dyn RawDisk, writes: &[(u64, Vec<u8>)]) -> Result<(), MendError> {
    writes.iter().try_for_each(|(offset, content)| write_proven(disk, "partition table", *offset, content))
}

/// Makes the table of a robot that was copied to a larger disk that of this disk. Returns the bytes by which the data
/// partition grew, if the table was changed. Nothing of the disk may be in use. An MBR does not say how large its disk
/// was: it is left as it is where the robot does not remember that either.
///
/// # Errors
/// [`MendError`]; one of the copies is whole all the same.
pub fn grow(disk: &dyn RawDisk, remembered_mib: Option<u64>) -> Result<Option<u64>, MendError> {
    let blocks = blocks(disk);
    let Some(growth) = grown(blocks, &mut |lba, count| read(disk, lba, count)) else {
        return remembered_mib.map_or(Ok(None), |made_for_mib| grow_mbr(disk, blocks, made_for_mib));
    };
    replace(disk, &growth.writes)?;
    Ok(Some(growth.gained_bytes))
}

/// Lets data of an MBR disk have the room behind it. It is one write of one sector, and there is no second copy: where
/// the disk does not keep it, the one before comes back.
fn grow_mbr(disk: &dyn RawDisk, blocks: DiskBlocks, made_for_mib: u64) -> Result<Option<u64>, MendError> {
    let Some(present) = read(disk, 0, 1) else { return Ok(None) };
    let planned = mbr_growth::grown(blocks, made_for_mib, &mut |lba, count| read(disk, lba, count));
    let Some(MbrGrowth { first_sector, gained_bytes }) = planned else { return Ok(None) };
    write_proven(disk, DamagedPart::Mbr.name(), 0, &first_sector).inspect_err(|_| {
        let _ = disk.write_at(0, &present).and_then(|()| disk.flush());
    })?;
    Ok(Some(gained_bytes))
}

/// Mends the first sector of a disk whose partitions are in use, if it is lost. The disk of this machine has a
/// partition with this PARTUUID.
///
/// # Errors
/// [`MendError`].
pub fn mend_first_sector(disk: &Disk, partuuid: &str) -> Result<Vec<DamagedPart>, MendError> {
    let whole = WholeDisk::open(&disk.path)?;
    let Some(mbr) = lost_mbr::remake(partuuid, &disk.kernel_partitions(), disk.logical_block_size) else {
        return mend(&whole);
    };
    let mut block = vec![0; disk.logical_block_size as usize];
    let is_lost = whole.read_at(0, &mut block).is_err() || block[..512].iter().all(|byte| *byte == block[0]);
    if !is_lost {
        return Ok(Vec::new());
    }
    block.fill(0);
    block[..mbr.len()].copy_from_slice(&mbr);
    write_proven(&whole, DamagedPart::Mbr.name(), 0, &block)?;
    Ok(vec![DamagedPart::Mbr])
}

/// The state of the disk's GPT. A block that cannot be read counts as damaged.
#[must_use]
pub fn state(disk: &dyn RawDisk) -> GptState {
    examine(blocks(disk), &mut |lba, count| read(disk, lba, count))
}

/// Offset on the disk behind the primary copy of its GPT, bytes, if that copy is whole.
#[must_use]
pub(super) fn end_of_primary_bytes(disk: &dyn RawDisk) -> Option<u64> {
    end_of_primary(blocks(disk), &mut |lba, count| read(disk, lba, count))?.checked_mul(disk.block_bytes().into())
}

fn blocks(disk: &dyn RawDisk) -> DiskBlocks {
    let bytes = disk.block_bytes();
    DiskBlocks { count: disk.size_bytes() / u64::from(bytes), bytes }
}

/// Reads blocks; `None` where the disk cannot.
fn read(disk: &dyn RawDisk, lba: u64, count: u64) -> Option<Vec<u8>> {
    let bytes = u64::from(disk.block_bytes());
    let mut content = vec![0; usize::try_from(count.checked_mul(bytes)?).ok()?];
    let offset = lba.checked_mul(bytes)?;
    for attempt in 1..=READ_ATTEMPTS {
        if disk.read_at(offset, &mut content).is_ok() {
            return Some(content);
        }
        // A bus that was reset answers a moment later, and the first block holds boot code without a second copy here.
        if lba == 0 && attempt < READ_ATTEMPTS {
            std::thread::sleep(READ_PAUSE);
        } else {
            break;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::{READ_ATTEMPTS, read};
    use crate::disk::raw::RawDisk;

    /// A disk of one kind of block that fails some reads before it answers.
    struct Flaky {
        failures: u32,
        reads: AtomicU32,
    }

    impl RawDisk for Flaky {
        fn size_bytes(&self) -> u64 {
            1 << 20
        }

        fn block_bytes(&self) -> u32 {
            512
        }

        fn read_at(&self, _offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            if self.reads.fetch_add(1, Ordering::Relaxed) < self.failures {
                return Err(io::Error::from_raw_os_error(5));
            }
            buffer.fill(7);
            Ok(())
        }

        fn write_at(&self, _offset: u64, _content: &[u8]) -> io::Result<()> {
            Err(io::Error::other("nothing is written"))
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_first_sector_that_fails_for_a_moment_is_not_lost() {
        let after = |failures, lba| {
            let disk = Flaky { failures, reads: AtomicU32::new(0) };
            (read(&disk, lba, 1).is_some(), disk.reads.into_inner())
        };
        assert_eq!(after(READ_ATTEMPTS - 1, 0), (true, READ_ATTEMPTS));
        assert_eq!(after(READ_ATTEMPTS, 0), (false, READ_ATTEMPTS));
        // Every other block has a second copy, and a dead disk is not waited for at each.
        assert_eq!(after(1, 1), (false, 1));
    }
}
