//! The EFI system partition as firmware reads it: finds one file in a FAT16 or FAT32, and plans the writes that replace
//! its content with one write of one sector. Pure: bytes come from a function, and go back as planned writes.
//!
//! Crates for FAT were looked at: `fatfs` and the kernel's own driver rename by removing the old entry first, or write
//! FAT and directory in an order of their own, so that a cut can leave the firmware without a file. Here the new
//! content lies in free clusters first, durable in every copy of the FAT; then one sector of the directory, with
//! cluster and size in it, switches. A cut before that costs the room of one file, and nothing else.
//!
//! Format: Microsoft's FAT specification, 3 (boot sector), 4 (FAT), 6 (directories).

mod writes;

pub use writes::{PlannedWrite, replace};

/// Short names on the way to the file: `EFI/BOOT/BOOTX64.EFI`.
const FOLDERS: [&[u8; 11]; 2] = [b"EFI        ", b"BOOT       "];
const FILE: &[u8; 11] = b"BOOTX64 EFI";
/// Size of the largest FAT that is read, bytes: that of an EFI system partition of 1 GiB with clusters of 1 KiB.
const MAX_FAT_BYTES: u64 = 4 * 1024 * 1024;
/// Most bytes of a directory that are read.
const MAX_FOLDER_BYTES: u64 = 1024 * 1024;
/// Bytes of a directory entry.
const ENTRY_BYTES: usize = 32;
/// Attribute of folders.
const FOLDER: u8 = 0x10;
/// Attribute of labels, and of the entries that long names are made of.
const LABEL: u8 = 0x08;

/// Reads so many bytes of the partition from this offset on. `None` where it cannot.
pub type ReadBytes<'a> = dyn FnMut(u64, u64) -> Option<Vec<u8>> + 'a;

/// The error for a FAT in which the file cannot be replaced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FatError {
    /// There is no FAT16 or FAT32, or what is there contradicts itself.
    #[error("there is no FAT that firmware could read: {0}")]
    Unusable(&'static str),
    /// No room for the new file beside the old one.
    #[error("{needed_bytes} bytes do not fit beside the file that is there: {free_bytes} are free")]
    Full {
        /// Bytes of the file in whole clusters.
        needed_bytes: u64,
        /// Bytes of free clusters.
        free_bytes: u64,
    },
}

/// A FAT file system with its FATs in memory.
#[derive(Debug)]
struct Volume {
    sector_bytes: u64,
    cluster_bytes: u64,
    /// Offset of each FAT.
    fats: Vec<u64>,
    fat_bytes: u64,
    /// Offset of the first cluster, which has number 2.
    data_offset: u64,
    /// Number of clusters, from number 2 on.
    clusters: u32,
    is_fat32: bool,
    root: Folder,
    /// Sector with the count of free clusters.
    info_offset: Option<u64>,
    /// Content of each FAT, the one that is followed first.
    tables: Vec<Vec<u8>>,
}

/// Place of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Folder {
    /// The root directory of a FAT16: offset and length.
    Fixed(u64, u64),
    /// A directory in clusters, from this one on.
    Clusters(u32),
}

/// A directory entry and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FoundEntry {
    offset: u64,
    cluster: u32,
    size_bytes: u32,
    attributes: u8,
}

/// Whether firmware finds the file with just this content.
#[must_use]
pub fn holds(content: &[u8], read: &mut ReadBytes<'_>) -> bool {
    let found = |volume: &Volume, read: &mut ReadBytes<'_>| -> Option<bool> {
        let (_, entry) = volume.find_file(read).ok()?;
        let entry = entry?;
        if u64::from(entry.size_bytes) != content.len() as u64 {
            return Some(false);
        }
        Some(volume.content(&entry, read)? == content)
    };
    Volume::open(0, read).is_ok_and(|volume| found(&volume, read) == Some(true))
}

impl Volume {
    /// Reads the boot sector and the FATs, to follow the one with this number.
    fn open(number: usize, read: &mut ReadBytes<'_>) -> Result<Self, FatError> {
        let boot = read(0, 4096).or_else(|| read(0, 512)).ok_or(FatError::Unusable("it cannot be read"))?;
        let mut volume = Self::of_boot_sector(&boot)?;
        if number >= volume.fats.len() {
            return Err(FatError::Unusable("it has one FAT"));
        }
        // A copy that cannot be read is one of zeros: it is written anew, and its clusters count as used in the other.
        let length = usize::try_from(volume.fat_bytes).map_err(|_| FatError::Unusable("the FAT is too large"))?;
        let tables = volume.fats.iter().map(|fat| read(*fat, volume.fat_bytes).unwrap_or_else(|| vec![0; length]));
        volume.tables = tables.collect();
        volume.tables.rotate_left(number);
        Ok(volume)
    }

    fn of_boot_sector(boot: &[u8]) -> Result<Self, FatError> {
        let wrong = FatError::Unusable("the boot sector is damaged");
        let byte = |at: usize| u64::from(boot.get(at).copied().unwrap_or_default());
        let word = |at: usize| byte(at) | byte(at + 1) << 8;
        let long = |at: usize| word(at) | word(at + 2) << 16;
        let or = |first: u64, second: u64| if first == 0 { second } else { first };
        let (sector_bytes, cluster_sectors, reserved, fats) = (word(11), byte(13), word(14), byte(16));
        let is_sound = boot.get(510..512) == Some(&[0x55, 0xaa])
            && [512, 1024, 2048, 4096].contains(&sector_bytes)
            && cluster_sectors.is_power_of_two()
            && reserved > 0
            && (1..=2).contains(&fats);
        if !is_sound {
            return Err(wrong);
        }
        let (root_entries, sectors, fat_sectors) = (word(17), or(word(19), long(32)), or(word(22), long(36)));
        let root_sectors = (root_entries * ENTRY_BYTES as u64).div_ceil(sector_bytes);
        let data_sector = reserved + fats * fat_sectors + root_sectors;
        let clusters = sectors.checked_sub(data_sector).ok_or(wrong.clone())? / cluster_sectors;
        let fat_bytes = fat_sectors * sector_bytes;
        // The number of clusters decides on the kind; a FAT32 has no room for a root directory of fixed size.
        let is_fat32 = root_entries == 0;
        let width = if is_fat32 { 4 } else { 2 };
        let fits = clusters.checked_add(2).is_some_and(|count| count * width <= fat_bytes);
        if (!is_fat32 && !(4085..65525).contains(&clusters)) || !fits || fat_bytes > MAX_FAT_BYTES {
            return Err(wrong);
        }
        let root_offset = (reserved + fats * fat_sectors) * sector_bytes;
        let root_cluster = u32::try_from(long(44)).unwrap_or_default();
        Ok(Self {
            sector_bytes,
            cluster_bytes: cluster_sectors * sector_bytes,
            fats: (0..fats).map(|fat| (reserved + fat * fat_sectors) * sector_bytes).collect(),
            fat_bytes,
            data_offset: data_sector * sector_bytes,
            clusters: u32::try_from(clusters).map_err(|_| wrong)?,
            is_fat32,
            root: match is_fat32 {
                true => Folder::Clusters(root_cluster),
                false => Folder::Fixed(root_offset, root_sectors * sector_bytes),
            },
            info_offset: Some(word(48)).filter(|sector| is_fat32 && *sector > 0).map(|sector| sector * sector_bytes),
            tables: Vec::new(),
        })
    }

    /// Content of an entry of the FAT: the cluster that follows, 0 where this one is free.
    fn next(&self, cluster: u32) -> Option<u32> {
        self.next_in(self.tables.first()?, cluster)
    }

    fn next_in(&self, table: &[u8], cluster: u32) -> Option<u32> {
        let width = if self.is_fat32 { 4 } else { 2 };
        let entry = table.get(cluster as usize * width..)?.get(..width)?;
        Some(match entry {
            [one, two] => u32::from(u16::from_le_bytes([*one, *two])),
            [one, two, three, four] => u32::from_le_bytes([*one, *two, *three, *four]) & 0x0fff_ffff,
            _ => return None,
        })
    }

    fn is_cluster(&self, number: u32) -> bool {
        (2..self.clusters.saturating_add(2)).contains(&number)
    }

    /// The value of an entry from which on it is the last of a chain.
    fn end_of_chain(&self) -> u32 {
        if self.is_fat32 { 0x0fff_fff8 } else { 0xfff8 }
    }

    /// The clusters from this one on. `None` for a chain that does not end, or leads nowhere.
    fn chain(&self, first: u32) -> Option<Vec<u32>> {
        let mut chain = Vec::new();
        let mut cluster = first;
        while cluster < self.end_of_chain() {
            if !self.is_cluster(cluster) || chain.len() > self.clusters as usize {
                return None;
            }
            chain.push(cluster);
            cluster = self.next(cluster)?;
        }
        Some(chain)
    }

    fn offset_of(&self, cluster: u32) -> u64 {
        self.data_offset + u64::from(cluster.saturating_sub(2)) * self.cluster_bytes
    }

    fn content(&self, entry: &FoundEntry, read: &mut ReadBytes<'_>) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        let chain = self.chain(entry.cluster)?;
        if chain.len() as u64 != u64::from(entry.size_bytes).div_ceil(self.cluster_bytes) {
            return None;
        }
        for cluster in chain {
            content.extend(read(self.offset_of(cluster), self.cluster_bytes)?);
        }
        content.truncate(entry.size_bytes as usize);
        Some(content)
    }

    /// Offsets of the parts of a directory, each with its length.
    fn parts(&self, folder: Folder) -> Option<Vec<(u64, u64)>> {
        match folder {
            Folder::Fixed(offset, length) => Some(vec![(offset, length)]),
            Folder::Clusters(first) => {
                let chain = self.chain(first)?;
                let fits = (chain.len() as u64).saturating_mul(self.cluster_bytes) <= MAX_FOLDER_BYTES;
                fits.then(|| chain.into_iter().map(|cluster| (self.offset_of(cluster), self.cluster_bytes)).collect())
            }
        }
    }

    /// Whether the file is there, with as many clusters as its size needs.
    fn is_sound(&self, read: &mut ReadBytes<'_>) -> bool {
        self.find_file(read).is_ok_and(|(_, file)| file.is_some_and(|file| self.content(&file, read).is_some()))
    }

    /// The folder of the file, and the file in it, if it is there.
    fn find_file(&self, read: &mut ReadBytes<'_>) -> Result<(Folder, Option<FoundEntry>), FatError> {
        let mut folder = self.root;
        for name in FOLDERS {
            let entry = self.find(folder, name, read)?.filter(|entry| entry.attributes & FOLDER != 0);
            folder = Folder::Clusters(entry.ok_or(FatError::Unusable("it has no folder EFI/BOOT"))?.cluster);
        }
        let file = self.find(folder, FILE, read)?.filter(|entry| entry.attributes & FOLDER == 0);
        Ok((folder, file))
    }

    fn find(&self, folder: Folder, name: &[u8; 11], read: &mut ReadBytes<'_>) -> Result<Option<FoundEntry>, FatError> {
        let unreadable = FatError::Unusable("a folder cannot be read");
        for (offset, length) in self.parts(folder).ok_or(unreadable.clone())? {
            let content = read(offset, length).ok_or(unreadable.clone())?;
            for (at, entry) in (offset..).step_by(ENTRY_BYTES).zip(content.chunks_exact(ENTRY_BYTES)) {
                match entry[0] {
                    0 => return Ok(None),
                    _ if entry[..11] == name[..] && entry[11] & LABEL == 0 => return Ok(Some(self.entry(at, entry))),
                    _ => {}
                }
            }
        }
        Ok(None)
    }

    fn entry(&self, offset: u64, entry: &[u8]) -> FoundEntry {
        let word = |at: usize| u32::from(u16::from_le_bytes([entry[at], entry[at + 1]]));
        let high = if self.is_fat32 { word(20) << 16 } else { 0 };
        FoundEntry { offset, cluster: high | word(26), size_bytes: word(28) | word(30) << 16, attributes: entry[11] }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::{FatError, Volume, holds, replace};

    const FILE: &str = "::/EFI/BOOT/BOOTX64.EFI";

    fn run(program: &str, arguments: &[&str]) {
        let output = Command::new(program).args(arguments).env("MTOOLS_SKIP_CHECK", "1").output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    }

    fn content(version: u8, bytes: usize) -> Vec<u8> {
        (0_u8..253).cycle().map(|at| at ^ version).take(bytes).collect()
    }

    /// A partition as provisioning makes it, with a file of its owner beside GRUB.
    fn esp(directory: &Path, kind: &[&str], mebibytes: u64, loader: &[u8]) -> Vec<u8> {
        let image = directory.join("esp");
        let path = image.to_str().unwrap();
        std::fs::write(&image, []).unwrap();
        std::fs::File::options().write(true).open(&image).unwrap().set_len(mebibytes << 20).unwrap();
        run("mkfs.vfat", &[kind, &["--invariant", "-n", "ESP", path]].concat());
        run("mmd", &["-i", path, "::/EFI", "::/EFI/BOOT", "::/EFI/vendor"]);
        for (name, bytes) in [(FILE, loader), ("::/EFI/vendor/a long name of its owner.bin", &content(9, 20_000)[..])] {
            let file = directory.join("content");
            std::fs::write(&file, bytes).unwrap();
            run("mcopy", &["-i", path, file.to_str().unwrap(), name]);
        }
        std::fs::read(&image).unwrap()
    }

    /// The file by another reader.
    fn by_mtools(directory: &Path, disk: &[u8], name: &str) -> Vec<u8> {
        let (image, out) = (directory.join("read"), directory.join("out"));
        std::fs::write(&image, disk).unwrap();
        let _ = std::fs::remove_file(&out);
        run("mcopy", &["-n", "-i", image.to_str().unwrap(), name, out.to_str().unwrap()]);
        std::fs::read(out).unwrap()
    }

    fn checked(directory: &Path, disk: &[u8]) -> (bool, String) {
        let image = directory.join("checked");
        std::fs::write(&image, disk).unwrap();
        let output = Command::new("fsck.vfat").args(["-n", image.to_str().unwrap()]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn reader(disk: &[u8]) -> impl FnMut(u64, u64) -> Option<Vec<u8>> + '_ {
        |offset, length| {
            let start = usize::try_from(offset).ok()?;
            disk.get(start..start.checked_add(usize::try_from(length).ok()?)?).map(<[u8]>::to_vec)
        }
    }

    fn writes(disk: &[u8], loader: &[u8]) -> Result<Vec<(u64, Vec<u8>)>, FatError> {
        replace(loader, &mut reader(disk))
    }

    fn apply(disk: &mut [u8], (offset, content): &(u64, Vec<u8>)) {
        disk[usize::try_from(*offset).unwrap()..][..content.len()].copy_from_slice(content);
    }

    const KINDS: [(&[&str], u64); 3] =
        [(&["-F", "32"], 64), (&["-F", "16", "-S", "4096", "-s", "1"], 64), (&["-F", "16", "-s", "4"], 20)];

    #[test]
    #[ignore = "needs root: to install mkfs.vfat and mtools; cargo xtask test --tier root"]
    fn a_cut_at_any_sector_leaves_the_old_or_the_new_file_and_the_owners() {
        let directory = tempfile::tempdir().unwrap();
        for (kind, mebibytes) in KINDS {
            let (old, new) = (content(1, 300_000), content(2, 310_123));
            let before = esp(directory.path(), kind, mebibytes, &old);
            let plan = writes(&before, &new).unwrap();
            let mut disk = before.clone();
            let mut switched = false;
            for write in &plan {
                for part in 0..write.1.len() / 512 {
                    // Long writes of content are looked at here and there only.
                    if part % 297 == 0 {
                        let mut cut = disk.clone();
                        apply(&mut cut, &(write.0, write.1[..(part + 1) * 512].to_vec()));
                        let is_new = holds(&new, &mut reader(&cut));
                        assert!(is_new || holds(&old, &mut reader(&cut)), "{kind:?}: neither file is whole");
                        assert!(is_new || !switched, "{kind:?}: it was switched once");
                        switched |= is_new;
                    }
                }
                apply(&mut disk, write);
                assert_eq!(
                    by_mtools(directory.path(), &disk, "::/EFI/vendor/a long name of its owner.bin"),
                    content(9, 20_000)
                );
                // What a cut leaves is mended by the next run.
                let mut again = disk.clone();
                writes(&again, &new).unwrap().iter().for_each(|write| apply(&mut again, write));
                assert!(by_mtools(directory.path(), &again, FILE) == new, "{kind:?}");
            }
            assert!(switched && by_mtools(directory.path(), &disk, FILE) == new);
            let (good, text) = checked(directory.path(), &disk);
            assert!(good, "{kind:?}: {text}");
            assert_eq!(writes(&disk, &new).unwrap(), []);
            // Again and again: room is not used up.
            let free = |disk: &[u8]| {
                let volume = Volume::open(0, &mut reader(disk)).unwrap();
                (2..volume.clusters + 2).filter(|cluster| volume.next(*cluster) == Some(0)).count()
            };
            let left = free(&disk);
            for version in 3..6 {
                writes(&disk, &content(version, 310_123)).unwrap().iter().for_each(|write| apply(&mut disk, write));
                assert_eq!(free(&disk), left, "{kind:?}");
            }
            assert!(
                by_mtools(directory.path(), &disk, FILE) == content(5, 310_123) && checked(directory.path(), &disk).0
            );
        }
    }

    #[test]
    #[ignore = "needs root: to install mkfs.vfat and mtools; cargo xtask test --tier root"]
    fn damage_of_the_file_its_entry_a_fat_or_the_boot_sector_is_mended() {
        let directory = tempfile::tempdir().unwrap();
        for (kind, mebibytes) in KINDS {
            let loader = content(1, 300_000);
            let whole = esp(directory.path(), kind, mebibytes, &loader);
            let volume = Volume::open(0, &mut reader(&whole)).unwrap();
            let (_, file) = volume.find_file(&mut reader(&whole)).unwrap();
            let file = file.unwrap();
            let (fats, data) = (volume.fats.clone(), volume.offset_of(file.cluster));
            let mut damages =
                vec![("content", data + 8192, 4096), ("entry", file.offset, 32), ("second FAT", fats[1], 4096)];
            damages.push(("first FAT", fats[0], 4096));
            if volume.is_fat32 {
                damages.push(("boot sector", 0, 512));
            }
            for (what, at, len) in damages {
                for fill in [0_u8, 0xff] {
                    let mut disk = whole.clone();
                    let start = usize::try_from(at).unwrap();
                    disk[start..start + len].fill(fill);
                    if what == "entry" && fill == 0xff {
                        continue;
                    }
                    let plan = writes(&disk, &loader).unwrap_or_else(|error| panic!("{kind:?} {what} {fill}: {error}"));
                    plan.iter().for_each(|write| apply(&mut disk, write));
                    assert!(by_mtools(directory.path(), &disk, FILE) == loader, "{kind:?} {what} {fill}");
                    assert!(holds(&loader, &mut reader(&disk)));
                }
            }
        }
    }

    #[test]
    #[ignore = "needs root: to install mkfs.vfat and mtools; cargo xtask test --tier root"]
    fn what_is_damaged_beyond_that_is_an_error_and_never_a_panic() {
        let directory = tempfile::tempdir().unwrap();
        let (kind, mebibytes) = KINDS[2];
        let whole = esp(directory.path(), kind, mebibytes, &content(1, 100_000));
        assert!(matches!(writes(&[0; 1 << 16], &[1; 1000]), Err(FatError::Unusable(_))));
        assert!(matches!(writes(&whole, &vec![1; 30 << 20]), Err(FatError::Full { .. })));
        let mut random = 1_u32;
        for round in 0..400 {
            let mut disk = whole.clone();
            for _ in 0..1 + round % 20 {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (random >> 8) as usize % if round % 2 == 0 { 512 } else { 1 << 17 };
                disk[at] = random.to_le_bytes()[0];
            }
            if let Ok(plan) = writes(&disk, &content(2, 100_000)) {
                assert!(plan.iter().all(|(at, content)| at + content.len() as u64 <= disk.len() as u64));
            }
        }
    }
}
