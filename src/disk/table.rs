//! Partition tables as the kernel understands them, read from anything that can be read and sought.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use gpt::disk::LogicalBlockSize;

use crate::disk::gpt_copies::{MIN_HEADER_BYTES, disk_blocks_of_header, is_believed, protected_end};

/// The kernel reads 256 partitions of a disk at most; tools write 128 entries.
const MAX_ENTRIES: u32 = 1024;

pub use crate::release::layout::Scheme;

/// The partition table of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedTable {
    /// Kind of the table.
    pub scheme: Scheme,
    /// Bytes per LBA.
    pub logical_block_size: u32,
    /// GPT: one of the two copies is damaged; the other one was used.
    pub damaged_copy: bool,
    /// GPT: it is the first copy that is damaged. The kernel then has no devices of the partitions.
    pub damaged_primary: bool,
    /// Used entries by ascending number.
    pub partitions: Vec<TableEntry>,
}

/// One partition as the table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableEntry {
    /// Number, from 1.
    pub number: u32,
    /// GPT partition name; `None` on MBR.
    pub name: Option<String>,
    /// PARTUUID as in `root=PARTUUID=`, lower case: the GPT unique GUID, or `signature-number` of an MBR.
    pub partuuid: String,
    /// First logical block (LBA) of the partition.
    pub first_lba: u64,
    /// Size of the partition, bytes.
    pub size_bytes: u64,
}

/// Partition table that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The disk cannot be read.
    #[error("cannot read the partition table")]
    Read(#[source] io::Error),
    /// The GUID partition table is announced but broken in both places.
    #[error("both copies of the GPT are damaged")]
    Gpt(#[source] gpt::GptError),
    /// The MBR is broken.
    #[error("the MBR partition table is damaged")]
    Mbr(#[source] mbrman::Error),
    /// The GPT has a shape that no tool makes.
    #[error("the GPT announces {entries} entries of {entry_bytes} bytes; supported are {MAX_ENTRIES} of 128")]
    Shape {
        /// Number of entries.
        entries: u32,
        /// Bytes of each entry.
        entry_bytes: u32,
    },
    /// The blocks have a size that neither kind of table knows.
    #[error("logical blocks of {0} bytes are not supported, only 512 and 4096")]
    BlockSize(u32),
}

impl ParsedTable {
    /// Numbers of two partitions that share blocks, if there are such.
    pub fn overlap(&self) -> Option<[u32; 2]> {
        let end = |one: &TableEntry| one.first_lba.saturating_add(one.size_bytes / u64::from(self.logical_block_size));
        self.partitions.iter().enumerate().find_map(|(at, one)| {
            let shares = |other: &&TableEntry| one.first_lba < end(other) && other.first_lba < end(one);
            Some([self.partitions[..at].iter().find(shares)?.number, one.number])
        })
    }

    /// The partition with this number.
    pub fn number(&self, number: u32) -> Option<&TableEntry> {
        self.partitions.iter().find(|entry| entry.number == number)
    }

    /// The partition with this GPT name, if exactly one has it.
    pub fn named(&self, name: &str) -> Option<&TableEntry> {
        let mut found = self.partitions.iter().filter(|entry| entry.name.as_deref() == Some(name));
        found.next().filter(|_| found.next().is_none())
    }

    /// The partition with this PARTUUID.
    pub fn partuuid(&self, partuuid: &str) -> Option<&TableEntry> {
        self.partitions.iter().find(|entry| entry.partuuid.eq_ignore_ascii_case(partuuid))
    }
}

/// Reads the partition table; `None` for a disk without one.
///
/// As in the kernel, a GPT counts only under a protective MBR: an MBR that was made later, by a tool that forgot the
/// GPT, is the table of the disk.
///
/// # Errors
/// [`TableError`]: unreadable, or announced and damaged.
pub fn read<D: Read + Seek + fmt::Debug>(
    disk: &mut D,
    logical_block_size: u32,
) -> Result<Option<ParsedTable>, TableError> {
    let block_size = match logical_block_size {
        512 => LogicalBlockSize::Lb512,
        4096 => LogicalBlockSize::Lb4096,
        other => return Err(TableError::BlockSize(other)),
    };
    // A whole page is read: a device with 4096-byte blocks opened past the cache reads nothing smaller.
    let mut first = vec![0; logical_block_size as usize];
    disk.seek(SeekFrom::Start(0)).map_err(TableError::Read)?;
    match disk.read_exact(&mut first) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(TableError::Read(error)),
    }
    if first[510..512] != [0x55, 0xaa] {
        return Ok(None);
    }
    if is_protective(&first) { read_gpt(disk, &first, block_size) } else { read_mbr(&first, logical_block_size) }
}

/// Whether one of the four entries has the type 0xEE. Its start is not checked: several tools get that wrong.
fn is_protective(first_sector: &[u8]) -> bool {
    (0..4).any(|index| first_sector[446 + 16 * index + 4] == 0xee)
}

fn read_gpt<D: Read + Seek + fmt::Debug>(
    disk: &mut D,
    first: &[u8],
    block_size: LogicalBlockSize,
) -> Result<Option<ParsedTable>, TableError> {
    let bytes = u32::try_from(block_size.as_u64()).unwrap_or(512);
    let ends = ends_of_tables(disk, first, bytes)?;
    check_headers(disk, bytes, &ends)?;
    let config = gpt::GptConfig::new().writable(false).logical_block_size(block_size);
    let primary_is_whole = (config.clone())
        .open_from_device(ReadOnly { disk: &mut *disk, hidden: 0..0, end: None })
        .is_ok_and(|table| table.primary_header().is_ok());
    let (hidden, end) = if primary_is_whole {
        (0..0, None)
    } else {
        // The crate turns to the backup when the primary header is damaged, but not when only its entries are, and
        // looks for it in the last block alone.
        let primary = bytes.into()..2 * u64::from(bytes);
        let mut is_whole = |end: &u64| {
            let reader = ReadOnly { disk: &mut *disk, hidden: primary.clone(), end: Some(*end) };
            config.clone().open_from_device(reader).is_ok()
        };
        let end = ends.into_iter().find(&mut is_whole);
        (primary, end)
    };
    let table = config.open_from_device(ReadOnly { disk, hidden, end }).map_err(TableError::Gpt)?;
    let damaged_primary = table.primary_header().is_err();
    let partitions = table.partitions().iter().filter(|(_, entry)| entry.is_used()).map(|(number, entry)| TableEntry {
        number: *number,
        name: Some(entry.name.clone()),
        partuuid: entry.part_guid.hyphenated().to_string(),
        first_lba: entry.first_lba,
        size_bytes: entry.last_lba.saturating_add(1).saturating_sub(entry.first_lba).saturating_mul(bytes.into()),
    });
    Ok(Some(ParsedTable {
        scheme: Scheme::Gpt,
        logical_block_size: bytes,
        damaged_copy: damaged_primary || table.backup_header().is_err(),
        damaged_primary,
        partitions: partitions.collect(),
    }))
}

/// Where the table may end, bytes: at the end of a smaller disk that this is a copy of, by the first header and by the
/// protective MBR, and at the end of this one, which may have another table from an earlier life of the disk.
fn ends_of_tables<D: Read + Seek>(disk: &mut D, first: &[u8], bytes: u32) -> Result<Vec<u64>, TableError> {
    let end = disk.seek(SeekFrom::End(0)).map_err(TableError::Read)?;
    let mut header = vec![0; bytes as usize];
    disk.seek(SeekFrom::Start(bytes.into())).map_err(TableError::Read)?;
    let by_header = disk.read_exact(&mut header).ok().and_then(|()| disk_blocks_of_header(&header));
    let by_mbr = protected_end(first).map(|last| last.saturating_add(1));
    let mut ends = Vec::with_capacity(3);
    for blocks in [by_header, by_mbr].into_iter().flatten() {
        let other = blocks.saturating_mul(bytes.into());
        // Room for both copies, as the crate takes it for granted.
        if (u64::from(bytes) * 64..end).contains(&other) && !ends.contains(&other) {
            ends.push(other);
        }
    }
    ends.push(end);
    Ok(ends)
}

/// Refuses headers that the gpt crate trusts too much: it asserts the size of an entry, and a panic of PID 1 over a
/// strange USB drive would reboot the machine each time.
fn check_headers<D: Read + Seek>(disk: &mut D, bytes: u32, ends: &[u64]) -> Result<(), TableError> {
    let backups = ends.iter().map(|end| end.saturating_sub(bytes.into()));
    for offset in backups.chain([u64::from(bytes)]) {
        let mut header = [0; MIN_HEADER_BYTES];
        disk.seek(SeekFrom::Start(offset)).map_err(TableError::Read)?;
        // A damaged header, which the crate does not believe either, must not hide the copy that is whole.
        if disk.read_exact(&mut header).is_err() || !is_believed(&header) {
            continue;
        }
        let field = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (entries, entry_bytes) = (field(80), field(84));
        if entries > MAX_ENTRIES || entry_bytes != 128 {
            return Err(TableError::Shape { entries, entry_bytes });
        }
    }
    Ok(())
}

/// Reads the four primary partitions. Logical partitions are not read: reflash lays out primary ones only, and the
/// chain of extended tables on an unknown old USB drive is input better not followed.
fn read_mbr(first: &[u8], bytes: u32) -> Result<Option<ParsedTable>, TableError> {
    // The boot sector of a file system ends in the same signature, and has something else than a table in this place.
    if (0..4).any(|index| first[446 + 16 * index] & 0x7f != 0) {
        return Ok(None);
    }
    let header = mbrman::MBRHeader::read_from(&mut io::Cursor::new(first)).map_err(TableError::Mbr)?;
    let signature = u32::from_le_bytes(header.disk_signature);
    let used = header.iter().filter(|(_, entry)| entry.is_used() && entry.sectors > 0 && !entry.is_extended());
    let partitions = used.filter_map(|(number, entry)| {
        let number = u32::try_from(number).ok()?;
        Some(TableEntry {
            number,
            name: None,
            partuuid: format!("{signature:08x}-{number:02x}"),
            first_lba: entry.starting_lba.into(),
            size_bytes: u64::from(entry.sectors) * u64::from(bytes),
        })
    });
    Ok(Some(ParsedTable {
        scheme: Scheme::Mbr,
        logical_block_size: bytes,
        damaged_copy: false,
        damaged_primary: false,
        partitions: partitions.collect(),
    }))
}

/// Reader for the gpt crate, which asks for a device that can be written even where it only reads. Hidden bytes read as
/// zeros, and the device ends at `end` if that is given.
#[derive(Debug)]
struct ReadOnly<'a, D> {
    disk: &'a mut D,
    hidden: Range<u64>,
    end: Option<u64>,
}

impl<D: Read + Seek> Read for ReadOnly<'_, D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let at = self.disk.stream_position()?;
        let read = self.disk.read(buffer)?;
        for (position, byte) in (at..).zip(&mut buffer[..read]) {
            if self.hidden.contains(&position) {
                *byte = 0;
            }
        }
        Ok(read)
    }
}

impl<D: Seek> Seek for ReadOnly<'_, D> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match (to, self.end) {
            (SeekFrom::End(offset), Some(end)) => {
                let place = end.checked_add_signed(offset).ok_or(io::ErrorKind::InvalidInput)?;
                self.disk.seek(SeekFrom::Start(place))
            }
            _ => self.disk.seek(to),
        }
    }
}

impl<D> io::Write for ReadOnly<'_, D> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{MIN_HEADER_BYTES, ParsedTable, Scheme, TableError, read};
    use crate::disk::gpt_copies::checksum_of;
    use std::io::Cursor;

    // Tables made by other tools, and the kernel's own view of them, are in tests/block.rs.

    fn gpt_image(mebibytes: usize, sector: u32) -> Vec<u8> {
        let mut disk = Cursor::new(vec![0; mebibytes << 20]);
        let blocks = disk.get_ref().len() as u64 / u64::from(sector) - 1;
        let protective = gpt::mbr::ProtectiveMBR::with_lb_size(u32::try_from(blocks).unwrap());
        protective.overwrite_lba0(&mut disk).unwrap();
        let size = if sector == 512 { super::LogicalBlockSize::Lb512 } else { super::LogicalBlockSize::Lb4096 };
        let config = gpt::GptConfig::new().writable(true).logical_block_size(size);
        let mut table = config.create_from_device(disk, None).unwrap();
        let kind = gpt::partition_types::LINUX_FS;
        table.add_partition_at("biosboot", 1, 64, 32, kind.clone(), 0).unwrap();
        table.add_partition_at("réseau data", 2, 96, 64, kind, 0).unwrap();
        let mut partitions = table.take_partitions();
        let first = partitions.get_mut(&1).unwrap();
        first.part_guid = "11111111-2222-4333-8444-55555555555A".parse().unwrap();
        table.update_partitions(partitions).unwrap();
        table.write().unwrap().into_inner()
    }

    fn mbr_image() -> Vec<u8> {
        let mut disk = Cursor::new(vec![0; 16 << 20]);
        let mut table = mbrman::MBR::new_from(&mut disk, 512, [0xef, 0xbe, 0xad, 0xde]).unwrap();
        for (number, kind, start, sectors) in [(1, 0x83, 2048, 2048), (2, 0x05, 8192, 4096), (3, 0x0c, 16384, 1024)] {
            table[number] = mbrman::MBRPartitionEntry {
                boot: mbrman::BOOT_INACTIVE,
                first_chs: mbrman::CHS::empty(),
                sys: kind,
                last_chs: mbrman::CHS::empty(),
                starting_lba: start,
                sectors,
            };
        }
        table.write_into(&mut disk).unwrap();
        disk.into_inner()
    }

    fn parse(bytes: &[u8], sector: u32) -> Result<Option<ParsedTable>, TableError> {
        read(&mut Cursor::new(bytes.to_vec()), sector)
    }

    #[test]
    fn a_gpt_is_read_with_blocks_of_512_and_4096_bytes() {
        for sector in [512, 4096] {
            let table = parse(&gpt_image(4, sector), sector).unwrap().unwrap();
            assert_eq!((table.scheme, table.damaged_copy, table.partitions.len()), (Scheme::Gpt, false, 2));
            let first = table.named("biosboot").unwrap();
            assert_eq!((first.number, first.first_lba, first.size_bytes), (1, 64, 32 * u64::from(sector)));
            assert_eq!(first.partuuid, "11111111-2222-4333-8444-55555555555a");
            assert_eq!(table.partuuid("11111111-2222-4333-8444-55555555555A"), Some(first));
            assert_eq!(table.number(2).unwrap().name.as_deref(), Some("réseau data"));
        }
    }

    #[test]
    fn one_damaged_gpt_copy_is_survived_and_reported() {
        let good = gpt_image(4, 512);
        let mut primary_lost = good.clone();
        primary_lost[512..1024].fill(0);
        let mut backup_lost = good.clone();
        let end = backup_lost.len();
        backup_lost[end - 512..].fill(0);
        let mut primary_entries_damaged = good.clone();
        primary_entries_damaged[1024 + 56] ^= 1;
        for damaged in [&primary_lost, &backup_lost, &primary_entries_damaged] {
            let table = parse(damaged, 512).unwrap().unwrap();
            assert!(table.damaged_copy);
            assert_eq!(table.partitions.len(), 2);
        }
        primary_lost[end - 512..].fill(0);
        assert!(matches!(parse(&primary_lost, 512), Err(TableError::Gpt(_))));
    }

    #[test]
    fn the_backup_is_found_on_a_larger_disk_too() {
        for sector in [512, 4096] {
            let mut larger = gpt_image(4, sector);
            larger.resize(32 << 20, 0);
            let whole = parse(&larger, sector).unwrap().unwrap();
            let header = sector as usize..2 * sector as usize;
            for damage in [header.clone(), header.end..header.end + 128] {
                let mut damaged = larger.clone();
                damaged[damage].fill(0);
                let table = parse(&damaged, sector).unwrap().unwrap();
                assert!(table.damaged_primary && table.partitions == whole.partitions, "{table:?}");
            }
        }
    }

    #[test]
    fn an_mbr_has_the_partuuids_of_the_kernel_and_hides_a_stale_gpt() {
        let table = parse(&mbr_image(), 512).unwrap().unwrap();
        let found: Vec<_> = table.partitions.iter().map(|entry| (entry.partuuid.as_str(), entry.size_bytes)).collect();
        assert_eq!(found, [("deadbeef-01", 1 << 20), ("deadbeef-03", 512 << 10)]);

        let mut both = gpt_image(4, 512);
        both[..512].copy_from_slice(&mbr_image()[..512]);
        assert_eq!(parse(&both, 512).unwrap().unwrap().scheme, Scheme::Mbr);
    }

    #[test]
    fn a_disk_without_a_table_has_none() {
        assert_eq!(parse(&[0; 1 << 16], 512).unwrap(), None);
        assert_eq!(parse(&[0; 100], 512).unwrap(), None);
        // A FAT boot sector: code and text where a table would be.
        let mut fat = vec![0x20; 4096];
        fat[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(parse(&fat, 512).unwrap(), None);
        assert!(matches!(parse(&fat, 2048), Err(TableError::BlockSize(2048))));
    }

    #[test]
    fn a_gpt_of_a_strange_shape_is_an_error_and_no_panic() {
        for (at, value) in [(80, u32::MAX), (84, 256u32), (84, 0)] {
            let mut disk = gpt_image(4, 512);
            disk[512 + at..512 + at + 4].copy_from_slice(&value.to_le_bytes());
            let damaged = parse(&disk, 512).unwrap().unwrap();
            assert!(damaged.damaged_primary, "without its checksum it is damage, and the backup counts");
            let sum = checksum_of(&disk[512..512 + MIN_HEADER_BYTES]).unwrap();
            disk[512 + 16..512 + 20].copy_from_slice(&sum.to_le_bytes());
            assert!(matches!(parse(&disk, 512), Err(TableError::Shape { .. })));
        }
    }

    #[test]
    fn random_damage_never_panics() {
        let good = gpt_image(1, 512);
        let mut state = 1u32;
        for _ in 0..300 {
            let mut disk = good.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = 446 + (state >> 8) as usize % (2048 - 446);
                disk[at] = state.to_le_bytes()[0];
            }
            let _ = parse(&disk, 512);
        }
    }
}
