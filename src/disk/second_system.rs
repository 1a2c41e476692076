//! A table that gets a second system, or loses it: in room that no partition has, or by the division of a system
//! partition that holds its image twice. Data is never shrunk or moved. Pure.

use std::ops::Range;

use crate::disk::gpt_copies::{
    CRC, DiskBlocks, ENTRY_BYTES, GptState, PRIMARY_LBA, ReadBlocks, TableCopy, examine, u64_at,
};
use crate::release::layout::Role;

/// Alignment of the new partition, bytes, which is that of all partitions.
const ALIGNMENT_BYTES: u64 = 1 << 20;
/// Number of the partition of a second system, which `grub/slot.cfg` knows.
pub const NUMBER: u32 = 7;

/// Plan of the writes that change the number of systems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedSystems {
    /// Offset on the disk, bytes, and content, in the order in which they are written. At each cut one whole copy
    /// describes the partitions, as they were or as they will be; the system begins where it did.
    pub writes: Vec<(u64, Vec<u8>)>,
    /// Size of the first system afterwards, bytes.
    pub first_bytes: u64,
    /// Size of the second system afterwards, bytes; 0 without one.
    pub second_bytes: u64,
    /// Whether the first system loses its end, with what is kept there for an undo.
    pub first_shrinks: bool,
}

/// The reason for which a table keeps the systems that it has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SystemsRefusal {
    /// The disk has no GPT of a robot, or a damaged one.
    #[error("the disk has no whole GPT with the partitions of a robot; an MBR has no room for a second system")]
    Table,
    /// The table has that number of systems.
    #[error("the disk has the systems that are asked for already")]
    Done,
    /// The number of the second system belongs to another partition.
    #[error("partition {NUMBER} is another one, {name:?}, and GRUB looks for the second system there")]
    Taken {
        /// Name of the partition.
        name: String,
    },
    /// There is no room.
    #[error(
        "no room: the image has {0} MiB, its partition {1} MiB, and the largest room without a partition {2} MiB; \
         provision the robot anew with a layout whose system and system2 have at least {0} MiB each",
        .image_bytes.div_ceil(ALIGNMENT_BYTES), .system_bytes / ALIGNMENT_BYTES, .free_bytes / ALIGNMENT_BYTES
    )]
    NoRoom {
        /// Size of the image, bytes.
        image_bytes: u64,
        /// Size of its partition, bytes.
        system_bytes: u64,
        /// Size of the largest room that no partition has, bytes.
        free_bytes: u64,
    },
}

/// Plans a second system for an image of `image_bytes`.
///
/// # Errors
/// [`SystemsRefusal`].
pub fn with_second(
    disk: DiskBlocks,
    image_bytes: u64,
    read: &mut ReadBlocks<'_>,
) -> Result<PlannedSystems, SystemsRefusal> {
    let old = whole(disk, read)?;
    if old.place_of(Role::System2).is_some() {
        return Err(SystemsRefusal::Done);
    }
    let second = (NUMBER as usize - 1) * ENTRY_BYTES;
    let system = old.place_of(Role::System).ok_or(SystemsRefusal::Table)?;
    let taken = old.used_entries().and_then(|entries| entries.get(second..second + ENTRY_BYTES));
    let taken = taken.ok_or(SystemsRefusal::Table)?;
    if taken[..16] != [0; 16] {
        return Err(SystemsRefusal::Taken { name: name(taken) });
    }
    let block = u64::from(disk.bytes);
    let alignment = ALIGNMENT_BYTES / block;
    let (first, last) = (u64_at(&old.entries, system + 32), u64_at(&old.entries, system + 40));
    let length = last + 1 - first;
    let free = old.free(alignment).into_iter().max_by_key(|free| free.end - free.start).unwrap_or(0..0);
    // The division is at a multiple of the alignment, so that both halves are.
    let middle = (first + length / 2) / alignment * alignment;
    let half = (middle.saturating_sub(first)).min(last + 1 - middle);
    let free_length = (free.end - free.start).min(length);
    let holds_image = |length: u64| length.saturating_mul(block) >= image_bytes.max(1);
    let (new_last, place) = if holds_image(free_length) && (free_length >= half || !holds_image(half)) {
        (last, free.start..free.start + free_length)
    } else if holds_image(half) {
        (middle - 1, middle..last + 1)
    } else {
        let (system_bytes, free_bytes) = (length * block, (free.end - free.start) * block);
        return Err(SystemsRefusal::NoRoom { image_bytes, system_bytes, free_bytes });
    };
    let mut entries = old.entries.clone();
    put(&mut entries, system + 40, new_last);
    let entry = old.second_entry(system, &place);
    entries[second..second + ENTRY_BYTES].copy_from_slice(&entry);
    Ok(PlannedSystems {
        writes: old.replaced_by(entries, disk, read).ok_or(SystemsRefusal::Table)?,
        first_bytes: (new_last + 1 - first) * block,
        second_bytes: (place.end - place.start) * block,
        first_shrinks: new_last < last,
    })
}

/// Plans a table without the second system, whose room goes to the first one if it lies right behind that.
///
/// # Errors
/// [`SystemsRefusal`].
pub fn without_second(disk: DiskBlocks, read: &mut ReadBlocks<'_>) -> Result<PlannedSystems, SystemsRefusal> {
    let old = whole(disk, read)?;
    let second = old.place_of(Role::System2).ok_or(SystemsRefusal::Done)?;
    let system = old.place_of(Role::System).ok_or(SystemsRefusal::Table)?;
    let (first, last) = (u64_at(&old.entries, system + 32), u64_at(&old.entries, system + 40));
    let mut entries = old.entries.clone();
    let (behind, end) = (u64_at(&entries, second + 32), u64_at(&entries, second + 40));
    entries[second..second + ENTRY_BYTES].fill(0);
    let new_last = if behind == last + 1 { end } else { last };
    put(&mut entries, system + 40, new_last);
    Ok(PlannedSystems {
        writes: old.replaced_by(entries, disk, read).ok_or(SystemsRefusal::Table)?,
        first_bytes: (new_last + 1 - first) * u64::from(disk.bytes),
        second_bytes: 0,
        first_shrinks: false,
    })
}

/// The primary copy of a table that is a robot's and whole.
fn whole(disk: DiskBlocks, read: &mut ReadBlocks<'_>) -> Result<TableCopy, SystemsRefusal> {
    if examine(disk, read) != GptState::Whole {
        return Err(SystemsRefusal::Table);
    }
    TableCopy::read(disk, PRIMARY_LBA, read).ok_or(SystemsRefusal::Table)
}

fn put(entries: &mut [u8], at: usize, lba: u64) {
    entries[at..at + 8].copy_from_slice(&lba.to_le_bytes());
}

/// Name of an entry.
fn name(entry: &[u8]) -> String {
    let units = entry[56..].chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

impl TableCopy {
    /// Offset of the entry with the name of a role.
    fn place_of(&self, role: Role) -> Option<usize> {
        let mut entries = self.used_entries()?.chunks_exact(ENTRY_BYTES);
        let at = entries.position(|entry| entry[..16] != [0; 16] && name(entry) == role.name())?;
        Some(at * ENTRY_BYTES)
    }

    /// Aligned room that no partition has, in blocks.
    fn free(&self, alignment: u64) -> Vec<Range<u64>> {
        let mut extents: Vec<(u64, u64)> = self.extents().collect();
        extents.sort_unstable();
        let usable = self.usable();
        // The first MiB holds what is not in the table: the disk map, and the marker of a provisioning.
        let mut at = usable.start.max(alignment);
        let mut free = Vec::new();
        for (first, last) in extents.into_iter().chain([(usable.end, usable.end)]) {
            let aligned = at.next_multiple_of(alignment)..first / alignment * alignment;
            free.extend((aligned.start < aligned.end).then_some(aligned));
            at = at.max(last + 1);
        }
        free
    }

    /// The entry of the second system: of the type of the first one, with an identity of its own that is always the
    /// same on this disk.
    fn second_entry(&self, system: usize, place: &Range<u64>) -> Vec<u8> {
        let mut entry = self.entries[system..system + ENTRY_BYTES].to_vec();
        let mut seed = b"reflash second system".to_vec();
        seed.extend_from_slice(&entry[16..32]);
        let mut identity = [0; 16];
        identity.copy_from_slice(&blake3::hash(&seed).as_bytes()[..16]);
        // A GUID that says of itself that it was drawn at random (RFC 9562, 5.4), in the byte order of a GPT.
        identity[7] = identity[7] & 0x0f | 0x40;
        identity[8] = identity[8] & 0x3f | 0x80;
        entry[16..32].copy_from_slice(&identity);
        put(&mut entry, 32, place.start);
        put(&mut entry, 40, place.end - 1);
        entry[56..].fill(0);
        for (at, unit) in Role::System2.name().encode_utf16().enumerate() {
            entry[56 + 2 * at..58 + 2 * at].copy_from_slice(&unit.to_le_bytes());
        }
        entry
    }

    /// The writes that put other entries into both copies, the backup first.
    fn replaced_by(
        &self,
        entries: Vec<u8>,
        disk: DiskBlocks,
        read: &mut ReadBlocks<'_>,
    ) -> Option<Vec<(u64, Vec<u8>)>> {
        let mut primary = Self { header: self.header.clone(), entries };
        let sum = CRC.checksum(primary.used_entries()?);
        primary.header[88..92].copy_from_slice(&sum.to_le_bytes());
        // It also gives the header its checksum.
        let primary = primary.moved_to(PRIMARY_LBA, self.alternate_lba(), u64_at(&self.header, 72));
        let mut writes = primary.backup(disk)?.differing_blocks(disk, read);
        writes.extend(primary.differing_blocks(disk, read));
        Some(writes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::{NUMBER, SystemsRefusal, with_second, without_second};
    use crate::disk::gpt_copies::{DiskBlocks, ENTRY_BYTES, GptState, PRIMARY_LBA, TableCopy, examine};
    use crate::disk::gpt_growth::tests::{image, on_disk};
    use crate::disk::table;

    const MIB: u64 = 1 << 20;

    /// Number, name, first MiB and MiB of each partition.
    fn partitions(content: &[u8], sector: u32) -> Vec<(u32, String, u64, u64)> {
        let table = table::read(&mut Cursor::new(content.to_vec()), sector).unwrap().unwrap();
        let mib = |entry: &table::TableEntry| (entry.first_lba * u64::from(sector) / MIB, entry.size_bytes / MIB);
        let found = table.partitions.iter().map(|entry| {
            let (first, size) = mib(entry);
            (entry.number, entry.name.clone().unwrap(), first, size)
        });
        found.collect()
    }

    /// Carries out writes, and checks at each cut that the partitions are those of before or of afterwards.
    fn cut_everywhere(disk: &[u8], sector: u32, writes: &[(u64, Vec<u8>)]) -> Vec<u8> {
        let before = partitions(disk, sector);
        let mut done = disk.to_vec();
        for (offset, content) in writes {
            let at = usize::try_from(*offset).unwrap();
            done[at..at + content.len()].copy_from_slice(content);
        }
        let after = partitions(&done, sector);
        let mut cut = disk.to_vec();
        for (offset, content) in writes {
            for end in (0..=content.len()).step_by(512) {
                let at = usize::try_from(*offset).unwrap();
                cut[at..at + end].copy_from_slice(&content[..end]);
                let found = partitions(&cut, sector);
                assert!(found == before || found == after, "{found:?}");
                let (blocks, mut read) = on_disk(&cut, sector);
                assert!(matches!(examine(blocks, &mut read), GptState::Whole | GptState::Damaged(_)));
            }
        }
        assert_eq!(cut, done);
        let (blocks, mut read) = on_disk(&cut, sector);
        assert_eq!(examine(blocks, &mut read), GptState::Whole);
        done
    }

    #[test]
    fn a_system_partition_that_holds_two_images_is_divided_and_put_together_again() {
        for sector in [512, 4096] {
            // state 1, recovery 2, system 4, data 3: up to the end.
            let disk = image(3, false, sector);
            let (blocks, mut read) = on_disk(&disk, sector);
            let planned = with_second(blocks, 2 * MIB, &mut read).unwrap();
            assert_eq!((planned.first_bytes, planned.second_bytes, planned.first_shrinks), (2 * MIB, 2 * MIB, true));
            let two = cut_everywhere(&disk, sector, &planned.writes);
            let found = partitions(&two, sector);
            assert!(found.contains(&(NUMBER, "system2".into(), 6, 2)) && found.contains(&(3, "system".into(), 4, 2)));
            // Everything else is where it was.
            let others = |all: &[(u32, String, u64, u64)]| {
                all.iter().filter(|one| !one.1.starts_with("system")).cloned().collect::<Vec<_>>()
            };
            assert_eq!(others(&found), others(&partitions(&disk, sector)));
            let (blocks, mut read) = on_disk(&two, sector);
            assert_eq!(with_second(blocks, MIB, &mut read), Err(SystemsRefusal::Done));
            let back = without_second(blocks, &mut read).unwrap();
            assert_eq!((back.first_bytes, back.second_bytes, back.first_shrinks), (4 * MIB, 0, false));
            assert_eq!(cut_everywhere(&two, sector, &back.writes), disk);
            let (blocks, mut read) = on_disk(&disk, sector);
            assert_eq!(without_second(blocks, &mut read), Err(SystemsRefusal::Done));
        }
    }

    #[test]
    fn room_without_a_partition_is_taken_where_the_system_need_not_be_divided_for_more() {
        // 12 MiB, of which the last ones are free but for what is not aligned.
        for (data_mib, image_mib, expected) in
            [(1, 2, Some((4, 2, 9, 2))), (1, 3, None), (2, 2, Some((2, 2, 6, 2))), (2, 1, Some((2, 2, 6, 2)))]
        {
            let disk = image(data_mib, false, 512);
            let (blocks, mut read) = on_disk(&disk, 512);
            let planned = with_second(blocks, image_mib * MIB, &mut read);
            let Some((system, second, at, size)) = expected else {
                let refusal = planned.unwrap_err();
                assert!(matches!(refusal, SystemsRefusal::NoRoom { .. }), "{refusal}");
                assert!(refusal.to_string().contains("at least 3 MiB each"), "{refusal}");
                continue;
            };
            let planned = planned.unwrap();
            assert_eq!((planned.first_bytes, planned.second_bytes), (system * MIB, second * MIB), "{data_mib}");
            let two = cut_everywhere(&disk, 512, &planned.writes);
            assert!(partitions(&two, 512).contains(&(NUMBER, "system2".into(), at, size)), "{data_mib} {image_mib}");
        }
    }

    #[test]
    fn a_partition_in_its_place_a_damaged_table_and_an_mbr_are_refused() {
        let before = image(1, true, 512);
        let mut disk = before.clone();
        let (blocks, mut read) = on_disk(&before, 512);
        // The partition behind data gets number 7.
        let table = TableCopy::read(blocks, PRIMARY_LBA, &mut read).unwrap();
        let mut entries = table.entries.clone();
        entries.copy_within(4 * ENTRY_BYTES..5 * ENTRY_BYTES, 6 * ENTRY_BYTES);
        entries[4 * ENTRY_BYTES..5 * ENTRY_BYTES].fill(0);
        let writes = table.replaced_by(entries, blocks, &mut read).unwrap();
        for (offset, content) in writes {
            let at = usize::try_from(offset).unwrap();
            disk[at..at + content.len()].copy_from_slice(&content);
        }
        let (blocks, mut read) = on_disk(&disk, 512);
        assert_eq!(with_second(blocks, MIB, &mut read), Err(SystemsRefusal::Taken { name: "more".into() }));
        let mut damaged = image(3, false, 512);
        damaged[1024 + 7] ^= 1;
        let (blocks, mut read) = on_disk(&damaged, 512);
        assert_eq!(with_second(blocks, MIB, &mut read), Err(SystemsRefusal::Table));
        let blocks = DiskBlocks { count: 4096, bytes: 512 };
        assert_eq!(
            with_second(blocks, MIB, &mut |_, count| Some(vec![0; usize::try_from(count).unwrap() * 512])),
            Err(SystemsRefusal::Table)
        );
    }
}
