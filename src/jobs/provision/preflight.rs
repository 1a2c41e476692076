//! Preflight: the plan of what is about to happen to a disk, which is refused when it cannot be right, shown before the
//! first write, and then armed.

use std::fmt;
use std::path::Path;

use super::select::{DiskCandidate, DiskContent};
use crate::disk::roles::MBR_ROLES;
use crate::machine::media::MediaId;
use crate::release::layout::{Layout, LayoutError, Placed, Role, Scheme};

/// Sector below which a partition of an MBR begins and ends: 32 bits count them.
const MBR_MAX_SECTORS: u64 = 1 << 32;
/// Numbers of the partitions on GPT disks that `grub/grub.cfg` and the prefix in core.img count on.
const GPT_NUMBERS: [(Role, u32); 5] =
    [(Role::State, 3), (Role::Recovery, 4), (Role::System, 5), (Role::Data, 6), (Role::System2, 7)];

/// Firmware that starts the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// A BIOS, or UEFI in its compatibility mode.
    Bios,
    /// UEFI firmware, from the EFI system partition.
    Uefi,
}

impl Firmware {
    /// Returns the firmware that started this machine.
    #[must_use]
    pub fn of_this_machine() -> Self {
        if Path::new("/sys/firmware/efi").exists() { Self::Uefi } else { Self::Bios }
    }
}

/// Everything that will be done to a disk, checked: the layout fits and the firmware can start it. Its
/// [`fmt::Display`] is what a person reads before the first write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preflight {
    pub(super) candidate: DiskCandidate,
    pub(super) table: Scheme,
    pub(super) placed: Vec<Placed>,
    firmware: Firmware,
}

/// Permission to erase exactly the disk of one preflight.
///
/// Only [`Preflight::arm`] gives it: for a disk with nothing on it, or with an explicit confirmation.
#[derive(Debug)]
pub struct Armed(pub(super) Preflight);

/// Disk that cannot take this layout. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The layout is wrong or the disk too small.
    #[error("{disk} cannot be laid out")]
    Layout {
        /// Name and identity of the disk.
        disk: String,
        /// Reason given by the layout.
        source: LayoutError,
    },
    /// Partition table, disk and firmware do not go together.
    #[error("{disk} cannot be provisioned: {reason}")]
    Unfit {
        /// Name and identity of the disk.
        disk: String,
        /// Reason, and the way out of it.
        reason: String,
    },
}

/// Permission to erase a disk that is not blank.
#[derive(Debug, Clone, Copy, Default)]
pub struct ErasePermission<'a> {
    /// `yes`, or the serial number of the disk that is meant.
    pub confirmation: Option<&'a str>,
    /// Boot medium that provisions unattended: no person asked for it at this start.
    pub unattended_medium: Option<MediaId>,
}

/// Missing permission to erase a disk that is not blank. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotArmed {
    /// Disk that the medium which would erase it has made.
    #[error(
        "{disk} was already provisioned from this medium, so it is not erased automatically; take the medium out and restart, \
         or choose \"ERASING its disk\" in its menu (reflash.again)"
    )]
    AlreadyProvisioned {
        /// Name and identity of the disk.
        disk: String,
    },
    /// Disk that is not blank, without permission to erase it.
    #[error(
    "{disk} is not blank, and was not armed{}; to erase it give reflash.arm={confirmation} on the kernel command line, or --arm {confirmation} by hand",
    .given.as_ref().map(|given| format!(" (armed is {given:?})")).unwrap_or_default(),
    confirmation = .serial.as_deref().unwrap_or("yes")
)]
    NoPermission {
        /// Name and identity of the disk.
        disk: String,
        /// Serial number of the disk.
        serial: Option<String>,
        /// Confirmation that was given, which is neither `yes` nor the serial number.
        given: Option<String>,
    },
}

impl Armed {
    /// Returns the checked plan.
    #[must_use]
    pub fn plan(&self) -> &Preflight {
        &self.0
    }
}

impl Preflight {
    /// Checks the layout, and decides where each partition goes. Pure.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn new(candidate: DiskCandidate, layout: &Layout, firmware: Firmware) -> Result<Self, Refused> {
        let disk = candidate.disk.to_string();
        if let Some(reason) = unfit(&candidate, layout, firmware) {
            return Err(Refused::Unfit { disk, reason });
        }
        let placed = layout.place(candidate.disk.size_bytes).map_err(|source| Refused::Layout { disk, source })?;
        Ok(Self { candidate, table: layout.table, placed, firmware })
    }

    /// Name and identity of the disk.
    #[must_use]
    pub fn candidate(&self) -> &DiskCandidate {
        &self.candidate
    }

    /// Returns the places of the new partitions.
    #[must_use]
    pub fn partitions(&self) -> &[Placed] {
        &self.placed
    }

    /// Asks for permission to go on. A disk with nothing to lose needs none; for any other the confirmation must be
    /// `yes` or its serial number. An unattended medium never gets permission to erase a disk that it made: the
    /// firmware may have started the medium only because it did not find that disk.
    ///
    /// # Errors
    /// [`NotArmed`].
    pub fn arm(self, permission: ErasePermission<'_>) -> Result<Armed, NotArmed> {
        let ErasePermission { confirmation, unattended_medium } = permission;
        let disk = &self.candidate.disk;
        if unattended_medium.is_some() && self.candidate.medium == unattended_medium {
            return Err(NotArmed::AlreadyProvisioned { disk: disk.to_string() });
        }
        // A serial number that is not this disk's stops even where no permission is needed: another disk was meant.
        let fits = match confirmation {
            Some(given) => given == "yes" || disk.serial.as_deref() == Some(given),
            None => self.candidate.is_free(),
        };
        if fits {
            return Ok(Armed(self));
        }
        Err(NotArmed::NoPermission {
            disk: disk.to_string(),
            serial: disk.serial.clone(),
            given: confirmation.map(str::to_owned),
        })
    }
}

fn unfit(candidate: &DiskCandidate, layout: &Layout, firmware: Firmware) -> Option<String> {
    let (bytes, sector) = (candidate.disk.size_bytes, candidate.disk.logical_block_size);
    let number = |role| layout.numbers().zip(&layout.partitions).find(|(_, each)| each.role == role).map(|(at, _)| at);
    if !matches!(sector, 512 | 4096) {
        return Some(format!("its logical blocks have {sector} bytes, supported are 512 and 4096"));
    }
    if !bytes.is_multiple_of(sector.into()) {
        return Some(format!("its {bytes} bytes are not a whole number of blocks of {sector} bytes"));
    }
    if firmware == Firmware::Bios && sector != 512 {
        return Some(format!("a BIOS cannot start a disk with blocks of {sector} bytes; start the machine by UEFI"));
    }
    match layout.table {
        Scheme::Mbr => {
            if firmware == Firmware::Uefi {
                return Some("the layout has an MBR, which is for machines with a BIOS; use a GPT layout".to_owned());
            }
            if sector != 512 {
                return Some("an MBR is supported with blocks of 512 bytes only; use a GPT layout".to_owned());
            }
            if bytes / u64::from(sector) > MBR_MAX_SECTORS {
                return Some("an MBR reaches 2 TiB and the disk is larger; use a GPT layout".to_owned());
            }
            if !layout.partitions.iter().map(|each| each.role).eq(MBR_ROLES) {
                return Some(format!(
                    "with an MBR the partitions must be {}, in this order",
                    MBR_ROLES.map(Role::name).join(", ")
                ));
            }
        }
        Scheme::Gpt => {
            let (needed, what) = match firmware {
                Firmware::Bios => (Role::BiosBoot, "a partition with the role biosboot to start from a BIOS"),
                Firmware::Uefi => (Role::Esp, "a partition with the role esp to start by UEFI"),
            };
            if number(needed).is_none() {
                return Some(format!("the layout needs {what}"));
            }
            for (role, expected) in GPT_NUMBERS {
                if number(role).is_some_and(|number| number != expected) {
                    return Some(format!("with a GPT the {role} partition must have the number {expected}, for GRUB"));
                }
            }
            // Partitions are found by name from then on.
            let misnamed = layout.partitions.iter().find(|each| each.name != each.role.name());
            if let Some(each) = misnamed {
                let (name, role) = (&each.name, each.role.name());
                return Some(format!("the partition {name:?} must be named {role:?} like its role"));
            }
        }
    }
    None
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = &self.candidate.disk;
        writeln!(f, "Disk {disk}, blocks of {} bytes", disk.logical_block_size)?;
        if let Some(path) = &self.candidate.bus_path {
            writeln!(f, "  at {path}")?;
        }
        writeln!(f, "It holds {}", self.candidate.content)?;
        match &self.candidate.content {
            DiskContent::Blank | DiskContent::Interrupted => writeln!(f, "Nothing of value will be destroyed.")?,
            DiskContent::Table(_) | DiskContent::Foreign(_) => writeln!(f, "ALL OF THIS WILL BE DESTROYED.")?,
        }
        let table = if self.table == Scheme::Gpt { "GPT" } else { "MBR" };
        write!(f, "New: {table}, started by {}", if self.firmware == Firmware::Uefi { "UEFI" } else { "a BIOS" })?;
        self.placed.iter().try_for_each(|place| {
            let (name, from, size) = (&place.partition.name, place.offset_bytes >> 20, place.size_bytes >> 20);
            write!(f, "\n    {} {name:<12} {size:>9} MiB from MiB {from}", place.number)
        })
    }
}
