//! The writes that replace the file, in the order that no cut turns into a firmware without a file.

use super::{ENTRY_BYTES, FILE, FatError, Folder, FoundEntry, ReadBytes, Volume};

/// Attribute of files that are to be backed up; every tool sets it.
const ARCHIVE: u8 = 0x20;
/// First byte of a removed entry.
const REMOVED: u8 = 0xe5;

/// A write of whole sectors: offset within the partition, and content. Each is durable before the next.
pub type PlannedWrite = (u64, Vec<u8>);

/// Plans the writes after which firmware finds the file with this content. Nothing where it does already.
///
/// # Errors
/// [`FatError`]; nothing is to be written then.
pub fn replace(content: &[u8], read: &mut ReadBytes<'_>) -> Result<Vec<PlannedWrite>, FatError> {
    if super::holds(content, read) {
        return Ok(Vec::new());
    }
    let mut writes = restored(read);
    let mut now = |offset, length| overlaid(&writes, offset, length, read);
    let more = match super::holds(content, &mut now) {
        true => Vec::new(),
        false => Volume::open(0, &mut now)?.replacement(content, &mut now)?,
    };
    writes.extend(more);
    Ok(writes)
}

/// Bytes of the partition as they are after these writes.
fn overlaid(writes: &[PlannedWrite], offset: u64, length: u64, read: &mut ReadBytes<'_>) -> Option<Vec<u8>> {
    // What is written in whole need not be readable.
    let is_covered = |(at, written): &PlannedWrite| *at <= offset && offset + length <= at + written.len() as u64;
    let mut content = match read(offset, length) {
        Some(content) => content,
        None if writes.iter().any(is_covered) => vec![0; usize::try_from(length).ok()?],
        None => return None,
    };
    for (at, written) in writes {
        let (start, end) = (offset.max(*at), (offset + length).min(at + written.len() as u64));
        if start < end {
            let (to, from) = (usize::try_from(start - offset).ok()?, usize::try_from(start - at).ok()?);
            let count = usize::try_from(end - start).ok()?;
            content.get_mut(to..to + count)?.copy_from_slice(written.get(from..from + count)?);
        }
    }
    Some(content)
}

/// The writes that bring back boot sector and first FAT from their copies, as far as the file is found with the copies
/// and not without them.
fn restored(read: &mut ReadBytes<'_>) -> Vec<PlannedWrite> {
    let mut writes: Vec<PlannedWrite> = Vec::new();
    if matches!(Volume::open(0, read), Err(FatError::Unusable(_))) {
        // Where every tool puts the copy of a FAT32's boot sector.
        let copies = [512, 4096].map(|sector_bytes| read(6 * sector_bytes, sector_bytes));
        let copy = copies.into_iter().flatten().find(|copy| Volume::of_boot_sector(copy).is_ok());
        writes.extend(copy.map(|copy| (0, copy)));
    }
    let mut now = |offset, length| overlaid(&writes, offset, length, read);
    let [first, second] =
        [0, 1].map(|number| Volume::open(number, &mut now).ok().filter(|volume| volume.is_sound(&mut now)));
    let Some(second) = second.filter(|_| first.is_none()) else { return writes };
    let (Some(fat), [whole, damaged, ..]) = (second.fats.first(), second.tables.as_slice()) else { return writes };
    let sector = usize::try_from(second.sector_bytes).unwrap_or(usize::MAX);
    for (offset, (whole, damaged)) in (*fat..).step_by(sector).zip(whole.chunks(sector).zip(damaged.chunks(sector))) {
        if whole != damaged {
            writes.push((offset, whole.to_vec()));
        }
    }
    writes
}

impl Volume {
    fn replacement(&self, content: &[u8], read: &mut ReadBytes<'_>) -> Result<Vec<PlannedWrite>, FatError> {
        let (folder, old) = self.find_file(read)?;
        let clusters = self.free_clusters(content.len() as u64)?;
        let mut writes = self.content_writes(content, &clusters);
        let before = self.tables.clone();
        let mut tables = before.clone();
        for (at, cluster) in clusters.iter().enumerate() {
            let next = clusters.get(at + 1).copied().unwrap_or(0x0fff_ffff);
            tables.iter_mut().for_each(|table| self.set(table, *cluster, next));
        }
        writes.extend(self.table_writes(&before, &tables));
        writes.push(self.switch(folder, old, clusters.first().copied().unwrap_or_default(), content.len(), read)?);
        // What the file had before is free from then on. A damaged chain is left: whose clusters they are is not known.
        if let Some(chain) = old.filter(|old| self.content(old, read).is_some()).and_then(|old| self.chain(old.cluster))
        {
            let before = tables.clone();
            for cluster in chain {
                tables.iter_mut().for_each(|table| self.set(table, cluster, 0));
            }
            writes.extend(self.table_writes(&before, &tables));
        }
        writes.extend(tables.first().and_then(|table| self.info_write(table, read)));
        Ok(writes)
    }

    fn free_clusters(&self, bytes: u64) -> Result<Vec<u32>, FatError> {
        // Where the copies differ, one of them is damaged: only what both call free is.
        let is_free = |cluster: &u32| self.tables.iter().all(|table| self.next_in(table, *cluster) == Some(0));
        let free = || (2..self.clusters.saturating_add(2)).filter(is_free);
        let count = usize::try_from(bytes.div_ceil(self.cluster_bytes)).unwrap_or(usize::MAX);
        let found: Vec<_> = free().take(count).collect();
        if found.len() == count {
            return Ok(found);
        }
        let (needed_bytes, free_bytes) =
            (count as u64 * self.cluster_bytes, free().count() as u64 * self.cluster_bytes);
        Err(FatError::Full { needed_bytes, free_bytes })
    }

    /// One write for each run of clusters.
    fn content_writes(&self, content: &[u8], clusters: &[u32]) -> Vec<PlannedWrite> {
        let mut writes: Vec<PlannedWrite> = Vec::new();
        let length = usize::try_from(self.cluster_bytes).unwrap_or(usize::MAX);
        for (cluster, part) in clusters.iter().zip(content.chunks(length)) {
            let offset = self.offset_of(*cluster);
            let mut part = part.to_vec();
            part.resize(length, 0);
            match writes.last_mut() {
                Some((start, written)) if *start + written.len() as u64 == offset => written.extend(part),
                _ => writes.push((offset, part)),
            }
        }
        writes
    }

    fn set(&self, table: &mut [u8], cluster: u32, next: u32) {
        let width = if self.is_fat32 { 4 } else { 2 };
        let Some(entry) = table.get_mut(cluster as usize * width..).and_then(|rest| rest.get_mut(..width)) else {
            return;
        };
        match entry {
            [one, two] => [*one, *two] = u16::try_from(next & 0xffff).unwrap_or_default().to_le_bytes(),
            [one, two, three, four] => {
                // The four highest bits are not ours.
                let kept = u32::from(*four & 0xf0) << 24;
                [*one, *two, *three, *four] = (kept | next & 0x0fff_ffff).to_le_bytes();
            }
            _ => {}
        }
    }

    /// The sectors of every copy of the FAT that change, one write for each run of them.
    fn table_writes(&self, before: &[Vec<u8>], after: &[Vec<u8>]) -> Vec<PlannedWrite> {
        let sector = usize::try_from(self.sector_bytes).unwrap_or(usize::MAX);
        let mut writes: Vec<PlannedWrite> = Vec::new();
        for (fat, (before, after)) in self.fats.iter().zip(before.iter().zip(after)) {
            let sectors = before.chunks(sector).zip(after.chunks(sector));
            for (offset, (before, after)) in (*fat..).step_by(sector).zip(sectors) {
                match writes.last_mut() {
                    _ if before == after => {}
                    Some((start, written)) if *start + written.len() as u64 == offset => {
                        written.extend_from_slice(after)
                    }
                    _ => writes.push((offset, after.to_vec())),
                }
            }
        }
        writes
    }

    /// The write that switches: one sector of the directory, with cluster and size of the file.
    fn switch(
        &self,
        folder: Folder,
        old: Option<FoundEntry>,
        cluster: u32,
        length: usize,
        read: &mut ReadBytes<'_>,
    ) -> Result<PlannedWrite, FatError> {
        let no_entry = FatError::Unusable("the folder EFI/BOOT has no room for an entry");
        let place = match old {
            Some(old) => old.offset,
            None => self.free_entry(folder, read).ok_or(no_entry.clone())?,
        };
        let sector = place - place % self.sector_bytes;
        let mut content = read(sector, self.sector_bytes).ok_or(no_entry.clone())?;
        let within = usize::try_from(place - sector).map_err(|_| no_entry.clone())?;
        let entry = content.get_mut(within..within + ENTRY_BYTES).ok_or(no_entry.clone())?;
        if old.is_none() {
            entry.fill(0);
            entry[..FILE.len()].copy_from_slice(FILE);
            entry[11] = ARCHIVE;
        }
        let size_bytes = u32::try_from(length).map_err(|_| no_entry)?;
        let [one, two, three, four] = cluster.to_le_bytes();
        entry[20..22].copy_from_slice(&if self.is_fat32 { [three, four] } else { [0, 0] });
        entry[26..28].copy_from_slice(&[one, two]);
        entry[28..32].copy_from_slice(&size_bytes.to_le_bytes());
        Ok((sector, content))
    }

    /// Offset of an entry that was removed, or of the first that was never used; the one behind it is unused too.
    fn free_entry(&self, folder: Folder, read: &mut ReadBytes<'_>) -> Option<u64> {
        for (offset, length) in self.parts(folder)? {
            let content = read(offset, length)?;
            let mut entries = (offset..).step_by(ENTRY_BYTES).zip(content.chunks_exact(ENTRY_BYTES));
            if let Some((at, _)) = entries.find(|(_, entry)| [0, REMOVED].contains(&entry[0])) {
                return Some(at);
            }
        }
        None
    }

    /// The count of free clusters, which is only a hint, but one that checkers compare.
    fn info_write(&self, table: &[u8], read: &mut ReadBytes<'_>) -> Option<PlannedWrite> {
        let offset = self.info_offset?;
        let mut sector = read(offset, self.sector_bytes)?;
        let is_info = sector.starts_with(b"RRaA") && sector.get(484..488) == Some(b"rrAa");
        let is_free = |cluster: &u32| self.next_in(table, *cluster) == Some(0);
        let free = (2..self.clusters.saturating_add(2)).filter(is_free).count();
        sector.get_mut(488..492)?.copy_from_slice(&u32::try_from(free).ok()?.to_le_bytes());
        is_info.then_some((offset, sector))
    }
}
