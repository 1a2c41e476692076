//! The two copies of a GUID partition table, and the blocks that make a damaged copy whole again from the other one.
//! Pure: blocks come from a function, and go back as planned writes.
//!
//! The gpt crate writes both copies at once, the backup first, from what it parsed: a cut in the middle could spoil
//! the only copy that is whole, and what the crate does not know of an entry would be lost. So a copy is made whole
//! here byte by byte, and only blocks that differ are written, each of them outside the copy that is whole.
//!
//! Format: UEFI specification 2.10, 5.3.2 (header) and 5.3.3 (entries).

use std::ops::Range;

use crc::{CRC_32_ISO_HDLC, Crc};

use crate::release::fields;
use crate::release::layout::Role;

/// Checksum of headers and entries.
pub(super) const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
/// Bytes of one entry; other sizes are allowed and made by no tool.
pub(super) const ENTRY_BYTES: usize = 128;
/// The most entries of a table that is mended; tools write 128.
const MAX_ENTRIES: u32 = 1024;
/// Smallest header, bytes.
pub(super) const MIN_HEADER_BYTES: usize = 92;
/// First block of the primary header.
pub(super) const PRIMARY_LBA: u64 = 1;
/// Partitions that each disk of a robot has once. An owner may have made data anew, without its name.
const OURS: [Role; 3] = [Role::State, Role::Recovery, Role::System];
/// Place of the four entries of an MBR, within the first sector.
pub(super) const MBR_ENTRIES: Range<usize> = 446..510;
/// Last bytes of an MBR.
pub(super) const MBR_SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// Type of the one partition that protects a GPT.
const PROTECTIVE: u8 = 0xee;

/// Reads blocks of the disk: the first one, and how many. `None` where the disk cannot read them or ends before them.
pub type ReadBlocks<'a> = dyn FnMut(u64, u64) -> Option<Vec<u8>> + 'a;

/// Size of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskBlocks {
    /// Number of logical blocks.
    pub count: u64,
    /// Bytes of a logical block.
    pub bytes: u32,
}

/// A part of a table that can be mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamagedPart {
    /// The header or the entries at the start of the disk.
    Primary,
    /// The header or the entries at the end of the disk.
    Backup,
    /// The table of an MBR disk, in the first sector.
    Mbr,
    /// The entry in the first sector by which programs recognize that there is a GPT.
    Protective,
}

impl DamagedPart {
    /// Name of the part, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary copy of the GPT",
            Self::Backup => "backup copy of the GPT",
            Self::Mbr => "MBR",
            Self::Protective => "protective MBR",
        }
    }
}

/// Blocks to be written, one after the other, each of them durable before the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedRepair {
    /// Part that is whole afterwards.
    pub part: DamagedPart,
    /// Offset on the disk, bytes, and content.
    pub writes: Vec<(u64, Vec<u8>)>,
}

/// State of the GPT of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GptState {
    /// There is no GPT, or another table is the table of the disk.
    Absent,
    /// The table is not that of a robot: nothing of it is changed.
    Foreign,
    /// Every copy is whole.
    Whole,
    /// These repairs make it whole.
    Damaged(Vec<PlannedRepair>),
    /// A GPT is announced, and none of its copies is whole: what the partitions were is not guessed.
    Lost,
}

/// One whole copy of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableCopy {
    pub(super) header: Vec<u8>,
    pub(super) entries: Vec<u8>,
}

/// Finds out what of the GPT is damaged and how it is mended. A table without the partitions of a robot is left alone.
#[must_use]
pub fn examine(disk: DiskBlocks, read: &mut ReadBlocks<'_>) -> GptState {
    let first = read(0, 1);
    let announced = first.as_deref().is_some_and(is_protected);
    if first.as_deref().is_some_and(|first| has_other_table(first) && !is_protected(first)) {
        return GptState::Absent;
    }
    let primary = TableCopy::read(disk, PRIMARY_LBA, read);
    let backup_lbas = backup_candidates(disk, first.as_deref(), primary.as_ref(), read);
    let mut backups = backup_lbas.iter().filter_map(|lba| Some((*lba, TableCopy::read(disk, *lba, read)?)));
    let backup = backups.next();
    let Some(whole) = primary.as_ref().or(backup.as_ref().map(|(_, copy)| copy)) else {
        return if announced { GptState::Lost } else { GptState::Absent };
    };
    if !whole.is_of_a_robot() {
        return GptState::Foreign;
    }
    let mut repairs = Vec::new();
    let damaged_copy = match (&primary, &backup) {
        (Some(primary), _) => primary.backup(disk).map(|backup| (DamagedPart::Backup, backup)),
        (None, Some((_, backup))) => backup.primary(disk).map(|primary| (DamagedPart::Primary, primary)),
        (None, None) => None,
    };
    if let Some((part, copy)) = damaged_copy {
        let writes = copy.differing_blocks(disk, read);
        repairs.extend((!writes.is_empty()).then_some(PlannedRepair { part, writes }));
    }
    if !announced {
        // Without it neither the kernel nor the firmware looks for a GPT.
        let mut first = first.unwrap_or_else(|| vec![0; disk.bytes as usize]);
        if first[510..512] != MBR_SIGNATURE {
            // Firmware starts nothing from such a sector. What is no boot code must not be made to look like some.
            first[..MBR_ENTRIES.start].fill(0);
        }
        let protected = protect(first, disk);
        repairs.push(PlannedRepair { part: DamagedPart::Protective, writes: vec![(0, protected)] });
    }
    if repairs.is_empty() { GptState::Whole } else { GptState::Damaged(repairs) }
}

/// First block behind the primary copy of a whole table.
#[must_use]
pub fn end_of_primary(disk: DiskBlocks, read: &mut ReadBlocks<'_>) -> Option<u64> {
    let (place, count) = TableCopy::read(disk, PRIMARY_LBA, read)?.entry_blocks(disk)?;
    place.checked_add(count)
}

/// Blocks that may hold the backup header, without repetition: where the primary header says, at the end of the disk
/// that the protective MBR was made for, and only then at the end of this one, where a robot's table of an earlier life
/// of the disk may lie behind the image of a smaller disk.
fn backup_candidates(
    disk: DiskBlocks,
    first: Option<&[u8]>,
    primary: Option<&TableCopy>,
    read: &mut ReadBlocks<'_>,
) -> Vec<u64> {
    // The header may be whole where the entries are not.
    let by_header = match primary {
        Some(primary) => Some(primary.alternate_lba()),
        None => read(PRIMARY_LBA, 1).filter(|header| is_header(header, PRIMARY_LBA)).map(|header| u64_at(&header, 32)),
    };
    if primary.is_some() {
        return by_header.into_iter().collect();
    }
    let protected = first.filter(|first| is_protected(first)).and_then(protected_end);
    let mut candidates = Vec::new();
    for lba in [by_header, protected, disk.count.checked_sub(1)].into_iter().flatten() {
        if lba > PRIMARY_LBA && lba < disk.count && !candidates.contains(&lba) {
            candidates.push(lba);
        }
    }
    candidates
}

impl TableCopy {
    /// The copy whose header is at `lba`, if header and entries are whole.
    pub(super) fn read(disk: DiskBlocks, lba: u64, read: &mut ReadBlocks<'_>) -> Option<Self> {
        let header = read(lba, 1).filter(|header| is_header(header, lba))?;
        let mut copy = Self { header, entries: Vec::new() };
        let (place, count) = copy.entry_blocks(disk)?;
        if place.checked_add(count)? > disk.count {
            return None;
        }
        copy.entries = read(place, count)?;
        (CRC.checksum(copy.used_entries()?) == u32_at(&copy.header, 88) && copy.is_plausible(disk)).then_some(copy)
    }

    /// First block and number of blocks of the entries.
    pub(super) fn entry_blocks(&self, disk: DiskBlocks) -> Option<(u64, u64)> {
        let entries = u32_at(&self.header, 80);
        let ours = (1..=MAX_ENTRIES).contains(&entries) && u32_at(&self.header, 84) as usize == ENTRY_BYTES;
        let count = (u64::from(entries) * ENTRY_BYTES as u64).div_ceil(disk.bytes.into());
        ours.then(|| (u64_at(&self.header, 72), count))
    }

    /// The entries without the rest of their last block.
    pub(super) fn used_entries(&self) -> Option<&[u8]> {
        self.entries.get(..u32_at(&self.header, 80) as usize * ENTRY_BYTES)
    }

    pub(super) fn alternate_lba(&self) -> u64 {
        u64_at(&self.header, 32)
    }

    fn own_lba(&self) -> u64 {
        u64_at(&self.header, 24)
    }

    pub(super) fn usable(&self) -> Range<u64> {
        u64_at(&self.header, 40)..u64_at(&self.header, 48).saturating_add(1)
    }

    /// First and last block of each partition.
    pub(super) fn extents(&self) -> impl Iterator<Item = (u64, u64)> {
        self.partitions().map(|entry| (u64_at(entry, 32), u64_at(entry, 40)))
    }

    /// Entries with a type.
    fn partitions(&self) -> impl Iterator<Item = &[u8]> {
        let entries = self.used_entries().unwrap_or_default().chunks_exact(ENTRY_BYTES);
        entries.filter(|entry| entry[..16] != [0; 16])
    }

    /// Whether every partition lies on the disk and between the copies.
    fn is_plausible(&self, disk: DiskBlocks) -> bool {
        let usable = self.usable();
        usable.start < usable.end
            && usable.end <= disk.count
            && self.extents().all(|(first, last)| usable.contains(&first) && usable.contains(&last) && first <= last)
    }

    fn is_of_a_robot(&self) -> bool {
        OURS.iter().all(|role| {
            let name: Vec<u8> = role.name().encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
            self.partitions().filter(|entry| entry[56..].starts_with(&name)).count() == 1
        })
    }

    /// The backup that belongs to this primary copy; `None` where the disk has no room for it: it is smaller than the
    /// one that the table was made for.
    pub(super) fn backup(&self, disk: DiskBlocks) -> Option<Self> {
        let (_, count) = self.entry_blocks(disk)?;
        let own = self.alternate_lba();
        let place = own.checked_sub(count)?;
        (own < disk.count && place >= self.usable().end).then(|| self.moved_to(own, PRIMARY_LBA, place))
    }

    /// The primary copy that belongs to this backup; `None` where partitions lie in its place.
    fn primary(&self, disk: DiskBlocks) -> Option<Self> {
        let (_, count) = self.entry_blocks(disk)?;
        let place = PRIMARY_LBA + 1;
        (place + count <= self.usable().start).then(|| self.moved_to(PRIMARY_LBA, self.own_lba(), place))
    }

    pub(super) fn moved_to(&self, own_lba: u64, alternate_lba: u64, entries_lba: u64) -> Self {
        let mut copy = self.clone();
        for (at, lba) in [(24, own_lba), (32, alternate_lba), (72, entries_lba)] {
            copy.header[at..at + 8].copy_from_slice(&lba.to_le_bytes());
        }
        let sum = header_checksum(&copy.header).unwrap_or_default();
        copy.header[16..20].copy_from_slice(&sum.to_le_bytes());
        copy
    }

    /// The writes that bring this copy to its place: entries first, so that a header never announces what is not there.
    pub(super) fn differing_blocks(&self, disk: DiskBlocks, read: &mut ReadBlocks<'_>) -> Vec<(u64, Vec<u8>)> {
        let bytes = disk.bytes as usize;
        let Some((place, _)) = self.entry_blocks(disk) else { return Vec::new() };
        let blocks = (place..).zip(self.entries.chunks(bytes));
        // One write for each run of blocks that differ or cannot be read.
        let mut writes: Vec<(u64, Vec<u8>)> = Vec::new();
        for (lba, block) in blocks.filter(|(lba, block)| read(*lba, 1).as_deref() != Some(*block)) {
            let offset = lba * u64::from(disk.bytes);
            match writes.last_mut() {
                Some((start, content)) if *start + content.len() as u64 == offset => content.extend_from_slice(block),
                _ => writes.push((offset, block.to_vec())),
            }
        }
        if read(self.own_lba(), 1).as_ref() != Some(&self.header) {
            writes.push((self.own_lba() * u64::from(disk.bytes), self.header.clone()));
        }
        writes
    }
}

/// Whether a block is a whole header for this place.
fn is_header(block: &[u8], lba: u64) -> bool {
    block.starts_with(b"EFI PART")
        && u64_at(block, 24) == lba
        && header_checksum(block).is_some_and(|sum| sum == u32_at(block, 16))
}

/// Checksum that a header should have; `None` for one of an impossible size.
fn header_checksum(block: &[u8]) -> Option<u32> {
    checksum_of(block.get(..usize::try_from(u32_at(block, 12)).ok()?)?)
}

/// Checksum of the bytes of a header, in which its own field counts as zeros.
pub(super) fn checksum_of(header: &[u8]) -> Option<u32> {
    let mut header = Some(header).filter(|header| header.len() >= MIN_HEADER_BYTES)?.to_vec();
    header[16..20].fill(0);
    Some(CRC.checksum(&header))
}

/// Blocks of the disk that a whole primary header was made for.
pub(super) fn disk_blocks_of_header(header: &[u8]) -> Option<u64> {
    is_header(header, PRIMARY_LBA).then(|| u64_at(header, 32).saturating_add(1))
}

/// Whether the gpt crate, which takes every header for one of the smallest size, would believe this one.
pub(super) fn is_believed(header: &[u8; MIN_HEADER_BYTES]) -> bool {
    header.starts_with(b"EFI PART") && checksum_of(header) == Some(u32_at(header, 16))
}

/// Whether a first sector says that a GPT follows, as the kernel sees it.
fn is_protected(first: &[u8]) -> bool {
    first[510..512] == MBR_SIGNATURE && first[MBR_ENTRIES].chunks_exact(16).any(|entry| entry[4] == PROTECTIVE)
}

/// Whether a first sector has a table with partitions in it.
fn has_other_table(first: &[u8]) -> bool {
    let entries = first[MBR_ENTRIES].chunks_exact(16);
    first[510..512] == MBR_SIGNATURE && entries.clone().any(|entry| entry[4] != 0) && {
        // The boot sector of a file system ends in the same signature, and has something else in this place.
        let mut entries = entries;
        entries.all(|entry| entry[0] & 0x7f == 0)
    }
}

/// The last block of the disk that a protective MBR was made for.
pub(super) fn protected_end(first: &[u8]) -> Option<u64> {
    let entry = first[MBR_ENTRIES].chunks_exact(16).find(|entry| entry[4] == PROTECTIVE)?;
    let (start, blocks) = (u32_at(entry, 8), u32_at(entry, 12));
    (blocks != u32::MAX && blocks > 0).then(|| u64::from(start) + u64::from(blocks) - 1)
}

/// The first block with a protective MBR in it. Everything before its table, which is boot code, stays as it is.
pub(super) fn protect(mut first: Vec<u8>, disk: DiskBlocks) -> Vec<u8> {
    let protected = u32::try_from(disk.count.saturating_sub(1)).unwrap_or(u32::MAX);
    let table = &mut first[MBR_ENTRIES];
    table.fill(0);
    // Start and end in cylinders, heads and sectors, as UEFI wants them: table 5-4 of the specification.
    table[..8].copy_from_slice(&[0, 0, 2, 0, PROTECTIVE, 0xff, 0xff, 0xff]);
    table[8..12].copy_from_slice(&1_u32.to_le_bytes());
    table[12..16].copy_from_slice(&protected.to_le_bytes());
    first[510..512].copy_from_slice(&MBR_SIGNATURE);
    first
}

/// A number of a header or an entry, which is a whole block and has it.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    fields::u32_at(bytes, at).unwrap_or_default()
}

/// The same with 64 bits.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    fields::u64_at(bytes, at).unwrap_or_default()
}

#[cfg(test)]
mod tests;
