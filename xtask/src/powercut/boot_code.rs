//! The switch of boot code, cut at every instant: another `core.img` beside the one in use and one write of the first
//! sector, another `BOOTX64.EFI` in free clusters and one write of its directory. No machine is needed for it: the
//! agent's code writes to the disk in memory, and what a cut leaves is judged by what firmware reads.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use reflash::boot::bios::{self, SECTOR_BYTES};
use reflash::disk::fat;
use reflash::disk::list::{Partition, PartitionTable};
use reflash::disk::raw::RawDisk;
use reflash::disk::table;
use reflash::jobs::mend::pieces::BootPieces;
use reflash::jobs::mend::{boot_code, esp};
use reflash::release::bootstrap_names as names;

use super::disk::{DiskState, Region, region};
use super::explore::{Counts, explore, subsets_per_write};
use super::log::LogEntry;
use crate::disk as robot_disk;
use crate::grub::GrubImages;
use crate::size::{to_range, to_usize};

/// Bytes that a disk finishes at once: it takes a longer write apart.
const PIECE_BYTES: usize = 4096;
/// Bytes at the end of an image that differ in the other one: they lie in what the image unpacks, not in its head.
const CHANGED_BYTES: usize = 1000;

/// The boot code of one release.
struct Images {
    boot: Vec<u8>,
    core: Vec<u8>,
    efi: Vec<u8>,
}

/// Recording of a switch from one boot code to another.
pub struct SwitchRecording {
    base: DiskState,
    entries: Vec<LogEntry>,
    images: [Images; 2],
}

impl SwitchRecording {
    /// Has the agent's code switch the boot code of the robot's disk, in memory.
    ///
    /// # Errors
    /// Fails when the disk cannot be read, or the switch does not come about.
    pub fn record(disk: &Path, grub: &GrubImages) -> Result<Self> {
        let before = Images {
            boot: std::fs::read(&grub.boot)?,
            core: std::fs::read(&grub.core)?,
            efi: std::fs::read(&grub.efi)?,
        };
        let after =
            Images { boot: before.boot.clone(), core: changed(before.core.clone()), efi: changed(before.efi.clone()) };
        let front = robot_disk::partition_range(disk, "biosboot")?.end;
        let mut first = vec![0; to_usize(front)];
        io::Read::read_exact(&mut File::open(disk)?, &mut first)?;
        let nothing = || Region::new(u64::MAX, Vec::new());
        let base = DiskState {
            state: Region::new(0, first),
            system: region(disk, "esp", u64::MAX)?,
            recovery: nothing(),
            kept: nothing(),
        };
        let size_bytes = std::fs::metadata(disk)?.len();
        let parsed = table::read(&mut File::open(disk)?, 512)?.context("the robot's disk has no partition table")?;
        let partitions = parsed.partitions.into_iter().map(|entry| Partition { entry, node: None }).collect();
        let table = PartitionTable {
            scheme: parsed.scheme,
            damaged_copy: false,
            damaged_primary: false,
            overlap: None,
            partitions,
        };
        let recorded = RecordedDisk { size_bytes, content: Mutex::new((base.clone(), Vec::new())) };
        let files = [(names::BOOT_IMAGE, &after.boot), (names::CORE_GPT, &after.core), (names::EFI, &after.efi)];
        let pieces =
            BootPieces::new(2, files.map(|(name, content)| (name.to_owned(), content.clone())).into_iter().collect());
        ensure!(boot_code::bring_bios(&recorded, &table, &pieces)?, "there was no core.img to switch to");
        let mended = esp::bring(&recorded, &table, &pieces)?;
        ensure!(mended == esp::EspMended::File, "the EFI system partition was not switched by one file: {mended:?}");
        let (end, entries) = recorded.content.into_inner().unwrap_or_else(PoisonError::into_inner);
        let this = Self { base, entries, images: [before, after] };
        ensure!(this.of(&end)? == [1, 1], "the switch left the boot code as it was");
        Ok(this)
    }

    /// Judges about so many states: in each of them firmware finds the old or the new boot code, every byte.
    ///
    /// # Errors
    /// Fails at the first state in which it does not.
    pub fn explore(&self, seed: u64, states: usize) -> Result<Counts> {
        self.judge(&self.entries, seed, states)
    }

    /// Checks that a disk that ignores flushes is refused: a judge that accepts it would accept everything.
    ///
    /// # Errors
    /// Fails when every state of it is accepted.
    pub fn must_fail_without_flushes(&self, seed: u64, states: usize) -> Result<()> {
        let without: Vec<_> = self.entries.iter().filter(|entry| **entry != LogEntry::Flush).cloned().collect();
        match self.judge(&without, seed, states) {
            Err(error) => {
                eprintln!("  the judge refuses it, as it must: {error:#}");
                Ok(())
            }
            Ok(counts) => {
                bail!("{} states of a disk that ignores flushes all start: the judge is blind", counts.total())
            }
        }
    }

    fn judge(&self, entries: &[LogEntry], seed: u64, states: usize) -> Result<Counts> {
        let (mut bios, mut efi) = (HashMap::new(), HashMap::new());
        let mut endings: HashMap<[usize; 2], u64> = HashMap::new();
        let subsets = subsets_per_write(entries, states);
        let counts = explore(entries, &mut self.base.clone(), seed, subsets, |disk, kind, number| {
            let context = || format!("state {number} ({kind:?}) of the switch of boot code, --seed {seed}");
            let bios = match bios.get(&disk.state.fingerprint) {
                Some(known) => *known,
                None => *bios.entry(disk.state.fingerprint).or_insert(self.of_bios(disk).with_context(context)?),
            };
            let efi = match efi.get(&disk.system.fingerprint) {
                Some(known) => *known,
                None => *efi.entry(disk.system.fingerprint).or_insert(self.of_efi(disk).with_context(context)?),
            };
            *endings.entry([bios, efi]).or_default() += 1;
            Ok(())
        })?;
        let mut endings: Vec<_> = endings.into_iter().collect();
        endings.sort_unstable();
        let name = |which: usize| ["old", "new"][which];
        for ([bios, efi], count) in endings {
            eprintln!("  {count:6} a BIOS starts the {} GRUB, UEFI the {}", name(bios), name(efi));
        }
        Ok(counts)
    }

    fn of(&self, disk: &DiskState) -> Result<[usize; 2]> {
        Ok([self.of_bios(disk)?, self.of_efi(disk)?])
    }

    /// Which of the two a BIOS starts, by the first sector and the list in core.img.
    fn of_bios(&self, disk: &DiskState) -> Result<usize> {
        let content = &disk.state.content;
        let (first, _) = content.split_first_chunk::<SECTOR_BYTES>().context("the disk has no first sector")?;
        let bytes = SECTOR_BYTES as u64;
        let mut read =
            |lba: u64, count: u64| content.get(to_range(&(lba * bytes..(lba + count) * bytes))).map(<[u8]>::to_vec);
        let place = bios::core_in_use(first, &mut read).context("a BIOS finds no core.img")?;
        let found = &content[to_range(&(place.start * bytes..place.end * bytes))];
        let is_there = |images: &Images| {
            let fitted = bios::core_image(&images.core, place.start, u64::MAX).unwrap_or_default();
            !fitted.is_empty() && found.starts_with(&fitted) && first.starts_with(&images.boot[..0x5c])
        };
        self.images
            .iter()
            .position(is_there)
            .context("a BIOS starts a core.img that is neither the old nor the new one")
    }

    /// Which of the two UEFI firmware starts.
    fn of_efi(&self, disk: &DiskState) -> Result<usize> {
        let content = &disk.system.content;
        let mut read = |offset: u64, length: u64| {
            content.get(to_range(&(offset..offset.checked_add(length)?))).map(<[u8]>::to_vec)
        };
        let found = self.images.iter().position(|images| fat::holds(&images.efi, &mut read));
        found.context("UEFI firmware finds neither the old nor the new BOOTX64.EFI")
    }
}

fn changed(mut image: Vec<u8>) -> Vec<u8> {
    let from = image.len().saturating_sub(CHANGED_BYTES);
    image[from..].iter_mut().for_each(|byte| *byte ^= 0x5a);
    image
}

/// The disk in memory, with a log of its writes and flushes.
struct RecordedDisk {
    size_bytes: u64,
    content: Mutex<(DiskState, Vec<LogEntry>)>,
}

impl RecordedDisk {
    fn content(&self) -> MutexGuard<'_, (DiskState, Vec<LogEntry>)> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RawDisk for RecordedDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn block_bytes(&self) -> u32 {
        512
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let found = self.content().0.read(offset, buffer.len());
        if found.len() != buffer.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.copy_from_slice(&found);
        Ok(())
    }

    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        let (disk, entries) = &mut *self.content();
        disk.write(offset, content).map_err(io::Error::other)?;
        let pieces = content.chunks(PIECE_BYTES).zip((offset..).step_by(PIECE_BYTES));
        entries.extend(pieces.map(|(data, offset)| LogEntry::Write { offset, data: data.to_vec(), durable: false }));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.content().1.push(LogEntry::Flush);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use reflash::release::layout::{Layout, PartitionSpec, Role, Scheme, Size};

    use super::SwitchRecording;
    use crate::disk::{self, DiskParts};
    use crate::grub;
    use crate::initramfs::BuiltRecovery;
    use crate::paths::Paths;

    #[test]
    #[ignore = "needs root: to install GRUB's tools; cargo xtask test --tier root"]
    fn firmware_finds_boot_code_after_every_cut_and_a_disk_that_ignores_flushes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["vmlinuz", "initramfs.img", "robot.pub"] {
            std::fs::write(path(name), vec![7; 9000]).unwrap();
        }
        let roles = [(Role::BiosBoot, 1), (Role::Esp, 34), (Role::State, 16), (Role::Recovery, 64), (Role::System, 16)];
        let roles = roles.into_iter().map(|(role, mib)| (role, Size::Mib(mib))).chain([(Role::Data, Size::Rest)]);
        let partitions = roles.map(|(role, size)| PartitionSpec { name: role.name().to_owned(), role, size }).collect();
        let grub = grub::build_in(&path("grub"), true).unwrap();
        let parts = DiskParts {
            layout: &Layout { table: Scheme::Gpt, partitions },
            disk_bytes: 192 << 20,
            block_bytes: 512,
            grub: &grub,
            recovery: &BuiltRecovery { vmlinuz: path("vmlinuz"), initramfs: path("initramfs.img") },
            config: "[machine]\n".to_owned(),
            keys: vec![path("robot.pub")],
            files: Vec::new(),
            environment: disk::environment_without_system(),
        };
        disk::build(&Paths::of_checkout(), &parts, &path("disk.img"), true).unwrap();
        let switch = SwitchRecording::record(&path("disk.img"), &grub).unwrap();
        let counts = switch.explore(1, 3000).unwrap();
        assert!(counts.total() > 3000, "{counts:?}");
        switch.must_fail_without_flushes(1, 3000).unwrap();
    }
}
