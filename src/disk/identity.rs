//! What a robot remembers of its disk, to distinguish it from a copy: a PARTUUID is copied with the partition table,
//! the serial number of the disk and the port that it is attached to are not. Pure.

use std::fmt;
use std::str::FromStr;

use crate::release::digest::block_hash;

/// Serial number and port of a disk, each as a short hash: the boot environment has little room, and only whether they
/// are the same matters.
///
/// ```
/// use reflash::disk::identity::DiskIdentity;
///
/// let here = DiskIdentity::of(Some("S3"), Some("/sys/devices/pci0000:00/0000:00:17.0/ata1/host0/block/sda"));
/// assert_eq!(here.to_string().parse(), Ok(here));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskIdentity {
    serial: Option<u32>,
    port: Option<u32>,
}

/// Text that is no identity of a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the identity of a disk")]
pub struct IdentityError(String);

/// Agreement of a disk with what a robot remembers of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Agreement {
    /// Serial number and port are those of another disk: what is remembered was copied with the rest, or the disk was
    /// moved and does not say its serial number.
    Other,
    /// Only the port is the same: another disk is attached where the robot's was.
    Port,
    /// Only the serial number is the same: the disk was attached elsewhere.
    Serial,
    /// All that is remembered is the same.
    Same,
}

impl DiskIdentity {
    /// The identity of a disk with this serial number, at this path in sysfs.
    #[must_use]
    pub fn of(serial: Option<&str>, bus_path: Option<&str>) -> Self {
        Self { serial: serial.map(short), port: bus_path.map(|path| short(&port_of(path))) }
    }

    /// Compares this disk with what is remembered of the robot's.
    #[must_use]
    pub fn agreement(&self, remembered: &Self) -> Agreement {
        let same = |here: Option<u32>, there: Option<u32>| here.is_some() && here == there;
        match (same(self.serial, remembered.serial), same(self.port, remembered.port)) {
            (true, true) => Agreement::Same,
            (true, false) => Agreement::Serial,
            (false, true) if self.serial.is_none() && remembered.serial.is_none() => Agreement::Same,
            (false, true) => Agreement::Port,
            (false, false) => Agreement::Other,
        }
    }
}

impl fmt::Display for DiskIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |part: Option<u32>| part.map_or("-".to_owned(), |hash| format!("{hash:08x}"));
        write!(f, "{}.{}", part(self.serial), part(self.port))
    }
}

impl FromStr for DiskIdentity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let wrong = || IdentityError(text.to_owned());
        let part = |part: &str| match part {
            "-" => Ok(None),
            hash if hash.len() == 8 => u32::from_str_radix(hash, 16).map(Some).map_err(|_| wrong()),
            _ => Err(wrong()),
        };
        let (serial, port) = text.split_once('.').ok_or_else(wrong)?;
        Ok(Self { serial: part(serial)?, port: part(port)? })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "half of a hash is a hash")]
fn short(text: &str) -> u32 {
    block_hash(text.as_bytes()) as u32
}

/// The parts of a path in sysfs that name a port, without those that the kernel numbers in the order of their
/// appearance.
fn port_of(bus_path: &str) -> String {
    let counted = |part: &str| {
        let numbered =
            |name: &str| part.strip_prefix(name).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        part.is_empty()
            || ["host", "target", "nvme", "virtio", "usb", "loop", "sd", "vd", "mmcblk"]
                .iter()
                .any(|name| numbered(name))
            || (part.matches(':').count() == 3 && part.bytes().all(|byte| byte == b':' || byte.is_ascii_digit()))
    };
    // The last part is the name of the disk.
    let parent = bus_path.rsplit_once('/').map_or("", |(parent, _)| parent);
    parent.split('/').filter(|part| !counted(part)).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::{Agreement, DiskIdentity, port_of};

    const USB: &str = "/sys/devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host4/target4:0:0/4:0:0:0/block/sdb";

    #[test]
    fn a_port_is_the_same_whatever_the_kernel_numbers() {
        let again = "/sys/devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host11/target11:0:0/11:0:0:0/block/sdz";
        assert_eq!(port_of(USB), port_of(again));
        assert_ne!(port_of(USB), port_of(&USB.replace("2-1", "2-2")));
        let nvme = "/sys/devices/pci0000:00/0000:03:00.0/nvme/nvme0/nvme0n1";
        assert_eq!(port_of(nvme), port_of(&nvme.replace("nvme0", "nvme1")));
        assert_eq!(port_of("sda"), "");
    }

    #[test]
    fn a_copy_agrees_less_than_the_disk_itself_wherever_it_is() {
        let identity = |serial, path: &str| DiskIdentity::of(serial, Some(path));
        let own = identity(Some("A"), USB);
        let elsewhere = USB.replace("2-1", "2-2");
        for (disk, agreement) in [
            (identity(Some("A"), USB), Agreement::Same),
            (identity(Some("A"), &elsewhere), Agreement::Serial),
            (identity(Some("B"), USB), Agreement::Port),
            (identity(None, USB), Agreement::Port),
            (identity(Some("B"), &elsewhere), Agreement::Other),
            (identity(None, &elsewhere), Agreement::Other),
        ] {
            assert_eq!(disk.agreement(&own), agreement, "{disk}");
            assert_eq!(disk.to_string().parse(), Ok(disk));
        }
        assert!(Agreement::Same > Agreement::Serial && Agreement::Serial > Agreement::Port);
        // A disk that says no serial number.
        let nameless = identity(None, USB);
        assert_eq!(nameless.agreement(&nameless), Agreement::Same);
        assert_eq!(identity(None, &elsewhere).agreement(&nameless), Agreement::Other);
        for wrong in ["", ".", "-", "x.y", "12345678", "123456789.-", "-.-.-"] {
            assert!(wrong.parse::<DiskIdentity>().is_err(), "{wrong}");
        }
    }
}
