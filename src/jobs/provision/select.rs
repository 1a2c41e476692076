//! Choice of the disk to provision, among all disks and their reasons for and against. Pure.

use std::fmt;
use std::path::PathBuf;

use crate::disk::Disk;
use crate::disk::find::listed;
use crate::disk::table::ParsedTable;
use crate::machine::config::DiskSelector;
use crate::machine::drivers::glob;
use crate::machine::media::MediaId;

/// Content of a disk, as far as its first and last MiB show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskContent {
    /// The first and the last MiB are zero.
    Blank,
    /// A provisioning that was interrupted: nothing on the disk is worth keeping.
    Interrupted,
    /// A partition table.
    Table(ParsedTable),
    /// Something else, described in words: a file system without a table, a damaged table, a disk that cannot be read.
    Foreign(String),
}

/// A disk that might be provisioned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskCandidate {
    /// Disk and its identity.
    pub disk: Disk,
    /// Path of its bus and port; see [`Disk::bus_path`].
    pub bus_path: Option<String>,
    /// User of the disk, such as a mount, if there is one.
    pub in_use: Option<String>,
    /// Content that is there now.
    pub content: DiskContent,
    /// Medium that the disk was provisioned from, if it still has that table.
    pub medium: Option<MediaId>,
}

/// Failure to choose exactly one disk to provision. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// No disk fits the request.
    #[error("no disk can be provisioned, so nothing was written{}", listed("Disks present", .0))]
    None(Vec<String>),
    /// More than one disk fits.
    #[error(
        "{count} disks fit, so none was touched; choose one by its serial number, model, size or path{}",
        listed("Disks present", .disks)
    )]
    Several {
        /// Number of disks that fit.
        count: usize,
        /// Every disk, with what excludes it.
        disks: Vec<String>,
    },
}

impl DiskCandidate {
    /// Whether the disk holds nothing that could be lost.
    #[must_use]
    pub fn is_free(&self) -> bool {
        matches!(self.content, DiskContent::Blank | DiskContent::Interrupted)
    }

    /// Returns the reason against this disk that no request can override.
    fn excluded(&self, media: &[PathBuf], removable: bool) -> Option<String> {
        if media.contains(&self.disk.path) {
            return Some("the machine was started from it".to_owned());
        }
        if let Some(usage) = &self.in_use {
            return Some(usage.clone());
        }
        if self.disk.read_only {
            return Some("it is write-protected".to_owned());
        }
        (self.disk.removable && !removable)
            .then(|| "it is removable, and removable disks were not asked for".to_owned())
    }
}

/// Returns the part of the request that this disk does not meet.
fn differs(wanted: &DiskSelector, candidate: &DiskCandidate) -> Option<String> {
    let disk = &candidate.disk;
    let transport = disk.transport.to_string().to_lowercase();
    let texts = [
        ("serial number", &wanted.serial, disk.serial.as_deref()),
        ("model", &wanted.model, disk.model.as_deref()),
        ("path", &wanted.path, candidate.bus_path.as_deref()),
        ("transport", &wanted.transport, Some(transport.as_str())),
    ];
    for (name, asked, present) in texts {
        let Some(asked) = asked else { continue };
        if !present.is_some_and(|present| glob::matches(asked, present)) {
            return Some(format!("its {name} is {}, not {asked:?}", present.unwrap_or("not known")));
        }
    }
    let gigabytes = |count: u64| count.saturating_mul(1_000_000_000);
    if wanted.min_gb.is_some_and(|least| disk.size_bytes < gigabytes(least)) {
        return Some("it is too small".to_owned());
    }
    wanted.max_gb.is_some_and(|most| disk.size_bytes > gigabytes(most)).then(|| "it is too large".to_owned())
}

/// Chooses the only disk that fits and that the machine was not started from.
///
/// # Errors
/// [`ChooseError`], with every disk, its identity and what excludes it.
pub fn choose(
    selector: &DiskSelector,
    candidates: &[DiskCandidate],
    boot_media: &[PathBuf],
) -> Result<DiskCandidate, ChooseError> {
    let mut fitting = Vec::new();
    let mut verdicts = Vec::new();
    for candidate in candidates {
        let against = candidate.excluded(boot_media, selector.removable).or_else(|| differs(selector, candidate));
        verdicts.push(format!("{}: {}", candidate.disk, against.as_deref().unwrap_or("fits")));
        if against.is_none() {
            fitting.push(candidate);
        }
    }
    match fitting[..] {
        [one] => Ok(one.clone()),
        [] => Err(ChooseError::None(verdicts)),
        _ => Err(ChooseError::Several { count: fitting.len(), disks: verdicts }),
    }
}

impl fmt::Display for DiskContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("nothing (first and last MiB are zero)"),
            Self::Interrupted => f.write_str("a provisioning that was interrupted"),
            Self::Foreign(text) => f.write_str(text),
            Self::Table(table) => {
                write!(f, "{} with {} partitions", table.scheme, table.partitions.len())?;
                table.partitions.iter().try_for_each(|entry| {
                    let (name, mib) = (entry.name.as_deref().unwrap_or_default(), entry.size_bytes >> 20);
                    write!(f, "\n    {} {name:<12} {mib:>9} MiB  {}", entry.number, entry.partuuid)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ChooseError, DiskCandidate, DiskContent, DiskSelector, choose};
    use crate::disk::{Disk, Transport};

    fn candidate(name: &str, gigabytes: u64, serial: &str) -> DiskCandidate {
        let disk = Disk {
            name: name.to_owned(),
            path: format!("/dev/{name}").into(),
            size_bytes: gigabytes * 1_000_000_000,
            logical_block_size: 512,
            model: Some("ACME 9000".to_owned()),
            serial: Some(serial.to_owned()),
            transport: Transport::Nvme,
            removable: false,
            read_only: false,
        };
        DiskCandidate {
            bus_path: Some(format!("/sys/x/{name}")),
            disk,
            in_use: None,
            content: DiskContent::Blank,
            medium: None,
        }
    }

    fn selector(toml: &str) -> DiskSelector {
        DiskSelector::resolve(toml::from_str(toml).unwrap()).unwrap()
    }

    #[test]
    fn exactly_one_disk_must_fit_and_every_other_is_listed_with_its_reason() {
        let two = [candidate("a", 100, "S1"), candidate("b", 500, "S2")];
        let error = choose(&DiskSelector::default(), &two, &[]).unwrap_err();
        assert!(matches!(error, ChooseError::Several { count: 2, .. }));
        assert!(error.to_string().contains("S1") && error.to_string().contains("S2"), "{error}");
        for (text, found) in [
            ("serial = 'S1'", "a"),
            ("serial = '*2'", "b"),
            ("min_gb = 200", "b"),
            ("max_gb = 200", "a"),
            ("path = '/sys/*/b'", "b"),
            ("transport = 'nvme'\nmodel = 'ACME*'\nserial = 'S2'", "b"),
        ] {
            assert_eq!(choose(&selector(text), &two, &[]).unwrap().disk.name, found, "{text}");
        }
        let error = choose(&selector("transport = 'usb'"), &two, &[]).unwrap_err().to_string();
        assert!(error.contains("its transport is nvme, not \"usb\"") && error.contains("/dev/a"), "{error}");
        assert!(choose(&DiskSelector::default(), &[], &[]).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn a_disk_without_a_serial_number_is_not_the_one_with_a_given_one() {
        let mut without = candidate("a", 100, "");
        without.disk.serial = None;
        let error = choose(&selector("serial = '*'"), &[without], &[]).unwrap_err().to_string();
        assert!(error.contains("not known"), "{error}");
    }

    #[test]
    fn what_must_not_be_touched_never_fits_even_when_it_is_named() {
        let mut used = candidate("a", 100, "S");
        used.in_use = Some("/dev/a1 is mounted on /".to_owned());
        let mut usb_drive = candidate("b", 100, "S");
        usb_drive.disk.removable = true;
        let mut locked = candidate("c", 100, "S");
        locked.disk.read_only = true;
        let medium = candidate("d", 100, "S");
        let all = [used, usb_drive, locked, medium.clone()];
        let error =
            choose(&selector("serial = 'S'"), &all, std::slice::from_ref(&medium.disk.path)).unwrap_err().to_string();
        for reason in ["mounted on /", "removable", "write-protected", "started from it"] {
            assert!(error.contains(reason), "{error}");
        }
        let wanted = selector("serial = 'S'\nremovable = true");
        assert_eq!(choose(&wanted, &all, std::slice::from_ref(&medium.disk.path)).unwrap().disk.name, "b");
    }
}
