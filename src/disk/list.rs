//! The disks of this machine, from sysfs.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::identity::DiskIdentity;
use crate::disk::table::{self, Scheme, TableEntry, TableError};
use crate::order;
use crate::sys::block::device::{Access, Caching, Device};

const CLASS: &str = "/sys/class/block";

/// Kinds of disk to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Physical disks alone.
    Physical,
    /// Physical disks and attached loop devices: for tests, and for images that a person inspects.
    WithLoop,
}

/// Bus or protocol that attaches a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// NVMe, over PCIe.
    Nvme,
    /// USB, whatever protocol runs over it.
    Usb,
    /// MMC: eMMC chips and SD cards.
    Mmc,
    /// Virtual machine disk.
    Virtio,
    /// SATA or PATA.
    Ata,
    /// Loop device over a file.
    Loop,
    /// Any other transport.
    Other,
}

impl Transport {
    /// Every kind that there is, as `provision.disk.transport` may name them.
    pub const ALL: [Self; 7] = [Self::Nvme, Self::Usb, Self::Mmc, Self::Virtio, Self::Ata, Self::Loop, Self::Other];
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nvme => "NVMe",
            Self::Usb => "USB",
            Self::Mmc => "MMC",
            Self::Virtio => "virtio",
            Self::Ata => "ATA",
            Self::Loop => "loop",
            Self::Other => "other",
        })
    }
}

/// One disk of this machine. [`fmt::Display`] gives a line by which a person can distinguish disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Kernel name, such as `nvme0n1`.
    pub name: String,
    /// Device node in `/dev`.
    pub path: PathBuf,
    /// Size of the disk, bytes.
    pub size_bytes: u64,
    /// Smallest addressable unit.
    pub logical_block_size: u32,
    /// Model as the disk reports it.
    pub model: Option<String>,
    /// Serial number as the disk reports it.
    pub serial: Option<String>,
    /// Transport that attaches the disk.
    pub transport: Transport,
    /// Whether the medium can be taken out; USB drives and cards mostly say so, USB disks mostly do not.
    pub removable: bool,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// One partition: what the table says, and the kernel's device for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The table's entry.
    pub entry: TableEntry,
    /// Device node in `/dev`. `None` when the kernel has none at just this place: it has not scanned the disk yet, or
    /// still uses an older table.
    pub node: Option<PathBuf>,
}

/// A partition as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelPartition {
    /// Number in the table, from 1.
    pub number: u32,
    /// Offset on the disk, bytes.
    pub start_bytes: u64,
    /// Size of the partition, bytes.
    pub size_bytes: u64,
    /// Device node in `/dev`.
    pub node: PathBuf,
}

/// A disk's table with its partitions' devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionTable {
    /// Kind of table.
    pub scheme: Scheme,
    /// Whether one of the two copies of a GPT is damaged.
    pub damaged_copy: bool,
    /// GPT: it is the first copy that is damaged. The kernel then has no devices of the partitions.
    pub damaged_primary: bool,
    /// Numbers of two partitions that share blocks, if there are such.
    pub overlap: Option<[u32; 2]>,
    /// Used entries by ascending number.
    pub partitions: Vec<Partition>,
}

impl PartitionTable {
    /// The partition with this number.
    pub fn number(&self, number: u32) -> Option<&Partition> {
        self.partitions.iter().find(|partition| partition.entry.number == number)
    }

    /// The partition with this GPT name, if exactly one has it.
    pub fn named(&self, name: &str) -> Option<&Partition> {
        let mut found = self.partitions.iter().filter(|partition| partition.entry.name.as_deref() == Some(name));
        found.next().filter(|_| found.next().is_none())
    }

    /// The partition with this PARTUUID.
    pub fn partuuid(&self, partuuid: &str) -> Option<&Partition> {
        self.partitions.iter().find(|partition| partition.entry.partuuid.eq_ignore_ascii_case(partuuid))
    }
}

impl TableEntry {
    /// Whether the partition lies on the disk as a whole.
    pub(super) fn ends_within(&self, disk: &Disk) -> bool {
        let start = self.first_lba.checked_mul(disk.logical_block_size.into());
        start.and_then(|start| start.checked_add(self.size_bytes)).is_some_and(|end| end <= disk.size_bytes)
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gigabytes = self.size_bytes as f64 / 1e9;
        write!(f, "{} ({gigabytes:.1} GB, {}", self.path.display(), self.transport)?;
        for text in [&self.model, &self.serial].into_iter().flatten() {
            write!(f, ", {text}")?;
        }
        f.write_str(")")
    }
}

impl Disk {
    /// Returns the path to the disk in sysfs: every bus and port on the way. The path stays the same as long as the
    /// disk stays in its slot. `None` when the disk went away.
    pub fn bus_path(&self) -> Option<String> {
        let real = Path::new(CLASS).join(&self.name).canonicalize().ok()?;
        Some(real.to_string_lossy().into_owned())
    }

    /// Returns a number that distinguishes this disk, or medium, from the next one that gets its name: the kernel never
    /// gives a number twice (`diskseq`, since Linux 5.15). `None` when the disk went away.
    pub fn sequence(&self) -> Option<u64> {
        number(&Path::new(CLASS).join(&self.name).join("diskseq"))
    }

    /// Returns what distinguishes this disk from a copy of its content.
    pub fn identity(&self) -> DiskIdentity {
        DiskIdentity::of(self.serial.as_deref(), self.bus_path().as_deref())
    }

    /// Whether the disk is attached from outside, as far as the kernel knows: it may be a stranger's.
    pub fn is_external(&self) -> bool {
        self.removable || self.transport == Transport::Usb
    }

    /// Reads the partition table; `None` for a disk without one. A disk that is failing may take any time.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn layout(&self) -> Result<Option<PartitionTable>, TableError> {
        let device = Device::open(&self.path, Access::Read, Caching::Buffered)
            .map_err(|error| TableError::Read(io::Error::other(error)))?;
        let Some(table) = table::read(&mut device.as_file(), device.logical_block_size())? else { return Ok(None) };
        let nodes = self.kernel_partitions();
        let node_of = |entry: &TableEntry| {
            // A table may name any sector; the kernel has no partition where no disk reaches.
            let start = entry.first_lba.checked_mul(u64::from(table.logical_block_size))?;
            nodes.iter().find(|found| {
                (found.number, found.start_bytes, found.size_bytes) == (entry.number, start, entry.size_bytes)
            })
        };
        let partitions = table
            .partitions
            .iter()
            .map(|entry| Partition { entry: entry.clone(), node: node_of(entry).map(|found| found.node.clone()) });
        Ok(Some(PartitionTable {
            scheme: table.scheme,
            damaged_copy: table.damaged_copy,
            damaged_primary: table.damaged_primary,
            overlap: table.overlap(),
            partitions: partitions.collect(),
        }))
    }

    /// The device nodes of the whole disk and of what the kernel takes for its partitions.
    pub fn nodes(&self) -> Vec<PathBuf> {
        let mut partitions = self.kernel_partitions();
        order::by_key(&mut partitions, |found| found.number);
        std::iter::once(self.path.clone()).chain(partitions.into_iter().map(|found| found.node)).collect()
    }

    /// Lists every partition that the kernel has on this disk, whatever the table says by now.
    pub fn kernel_partitions(&self) -> Vec<KernelPartition> {
        let directory = Path::new(CLASS).join(&self.name);
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let path = entry.path();
                let number = u32::try_from(number(&path.join("partition"))?).ok()?;
                // sysfs counts in 512 bytes whatever the disk does.
                let (start_bytes, size_bytes) = (number_512(&path.join("start"))?, number_512(&path.join("size"))?);
                let node = Path::new("/dev").join(entry.file_name());
                node.exists().then_some(KernelPartition { number, start_bytes, size_bytes, node })
            })
            .collect()
    }
}

/// Lists every disk, by name. Partitions, memory disks, optical and floppy drives, the boot areas of eMMC, drives
/// without a medium, and devices that are stacked on disks (device mapper, RAID) are left out.
///
/// # Errors
/// sysfs cannot be read.
pub fn disks(which: Which) -> io::Result<Vec<Disk>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(CLASS)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let wanted = if name.starts_with("loop") { which == Which::WithLoop } else { !is_no_disk(&name) };
        let directory = entry.path();
        if !wanted || directory.join("partition").exists() {
            continue;
        }
        found.extend(describe(name, &directory).filter(|disk| disk.size_bytes > 0));
    }
    order::by(&mut found, |one, other| one.name.cmp(&other.name));
    Ok(found)
}

fn is_no_disk(name: &str) -> bool {
    ["ram", "zram", "sr", "fd", "dm-", "md", "mtdblock"].iter().any(|prefix| name.starts_with(prefix))
        || (name.starts_with("mmcblk") && (name.contains("boot") || name.contains("rpmb")))
}

/// `None` when the disk went away meanwhile.
fn describe(name: String, directory: &Path) -> Option<Disk> {
    let real = directory.canonicalize().ok()?;
    let path = Path::new("/dev").join(&name);
    let text = |names: &[&str]| names.iter().find_map(|name| text(&directory.join(name)));
    Some(Disk {
        size_bytes: number_512(&directory.join("size"))?,
        logical_block_size: number(&directory.join("queue/logical_block_size"))
            .and_then(|size| u32::try_from(size).ok())
            .unwrap_or(512),
        model: text(&["device/model", "device/name", "loop/backing_file"]),
        // virtio has the serial number on the disk itself, SCSI only in a binary page.
        serial: text(&["device/serial", "serial"]).or_else(|| scsi_serial(&directory.join("device/vpd_pg80"))),
        transport: transport(&name, &real.to_string_lossy()),
        removable: number(&directory.join("removable")) == Some(1),
        read_only: number(&directory.join("ro")) == Some(1),
        name,
        path,
    })
}

/// Derives the transport from the path of the device in sysfs, which names every bus on the way; the last one that
/// matters wins.
fn transport(name: &str, real: &str) -> Transport {
    let has = |part: &str| real.contains(part);
    if name.starts_with("loop") {
        Transport::Loop
    } else if has("/usb") {
        Transport::Usb
    } else if has("/nvme") {
        Transport::Nvme
    } else if has("/mmc_host/") {
        Transport::Mmc
    } else if has("/virtio") {
        Transport::Virtio
    } else if has("/ata") {
        Transport::Ata
    } else {
        Transport::Other
    }
}

fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

fn number_512(path: &Path) -> Option<u64> {
    number(path)?.checked_mul(512)
}

/// Unit Serial Number page: four bytes of header, then text.
fn scsi_serial(path: &Path) -> Option<String> {
    let page = fs::read(path).ok()?;
    let serial = String::from_utf8_lossy(page.get(4..)?).trim_matches([' ', '\0']).to_owned();
    (!serial.is_empty()).then_some(serial)
}

#[cfg(test)]
mod tests {
    use super::{Disk, PartitionTable, Transport, is_no_disk, transport};
    use gpt::partition_types::LINUX_FS;

    /// The layout of a disk of 1 MiB with partitions of these names, first and last blocks.
    fn layout(partitions: &[(&str, u64, u64)]) -> PartitionTable {
        let mut content = std::io::Cursor::new(vec![0; 1 << 20]);
        gpt::mbr::ProtectiveMBR::with_lb_size(2047).overwrite_lba0(&mut content).unwrap();
        let mut table = gpt::GptConfig::new().writable(true).create_from_device(content, None).unwrap();
        for (number, place) in (0..).zip(partitions) {
            table.add_partition_at(place.0, number + 1, 64 + u64::from(number), 1, LINUX_FS, 0).unwrap();
        }
        let mut entries = table.take_partitions();
        for (number, (_, first, last)) in (1..).zip(partitions) {
            let entry = entries.get_mut(&number).unwrap();
            (entry.first_lba, entry.last_lba) = (*first, *last);
        }
        table.update_partitions(entries).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), table.write().unwrap().into_inner()).unwrap();
        let disk = Disk {
            name: "no-such-disk".into(),
            path: file.path().to_owned(),
            size_bytes: 1 << 20,
            logical_block_size: 512,
            model: None,
            serial: None,
            transport: Transport::Loop,
            removable: false,
            read_only: false,
        };
        disk.layout().unwrap().unwrap()
    }

    #[test]
    fn a_partition_beyond_any_disk_is_listed_and_has_no_device() {
        // The first byte of this partition would be number 2^64.
        let layout = layout(&[("far", 1 << 55, (1 << 55) + 31)]);
        let far = layout.number(1).unwrap();
        assert_eq!((far.entry.first_lba, far.entry.size_bytes, &far.node), (1 << 55, 32 * 512, &None));
    }

    #[test]
    fn partitions_that_share_a_block_are_refused_by_number() {
        let check =
            |places: &[(&str, u64, u64)]| layout(places).check_overlap("sdx").map_err(|error| error.to_string());
        assert_eq!(check(&[("state", 64, 95), ("system", 96, 127), ("data", 128, 255)]), Ok(()));
        for (system, data) in [((96, 128), (128, 255)), ((96, 255), (128, 129)), ((160, 255), (96, 160))] {
            let error = check(&[("state", 64, 95), ("system", system.0, system.1), ("data", data.0, data.1)]);
            assert!(error.as_ref().is_err_and(|text| text.contains("partitions 2 and 3 of sdx overlap")), "{error:?}");
        }
    }

    #[test]
    fn names_and_paths_of_real_disks() {
        for (name, path, expected) in [
            ("sda", "/sys/devices/pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0/block/sda", Transport::Ata),
            ("sdb", "/sys/devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host4/block/sdb", Transport::Usb),
            ("nvme0n1", "/sys/devices/pci0000:00/0000:03:00.0/nvme/nvme0/nvme0n1", Transport::Nvme),
            ("mmcblk0", "/sys/devices/platform/x/mmc_host/mmc0/mmc0:0001/block/mmcblk0", Transport::Mmc),
            ("vda", "/sys/devices/pci0000:00/0000:00:04.0/virtio1/block/vda", Transport::Virtio),
            ("loop3", "/sys/devices/virtual/block/loop3", Transport::Loop),
        ] {
            assert_eq!(transport(name, path), expected, "{name}");
        }
        assert!(is_no_disk("mmcblk0boot1") && is_no_disk("zram0") && is_no_disk("sr0") && is_no_disk("dm-0"));
        assert!(!is_no_disk("mmcblk0") && !is_no_disk("sda") && !is_no_disk("nvme0n1"));
    }
}
