//! Which disk: every disk with what speaks for and against it, and the one that was asked for.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::{EDGE_BYTES, marker};
use crate::chain::chain;
use crate::disk::find::listed;
use crate::disk::table::{self, ParsedTable};
use crate::disk::{Disk, Transport, Which, disks};
use crate::machine::config::DiskSelector;
use crate::machine::drivers::glob;
use crate::machine::media::MediaId;
use crate::release::digest::is_zero;
use crate::sys::block::{Access, Caching, Device, in_use};

/// What a disk holds, as far as its edges tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskContent {
    /// The first and the last MiB are zero.
    Blank,
    /// A provisioning that did not get to its end: nothing on it is worth keeping.
    Interrupted,
    /// A partition table.
    Table(ParsedTable),
    /// Something else, in words: a file system without a table, a damaged table, a disk that cannot be read.
    Foreign(String),
}

/// A disk that might be provisioned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskCandidate {
    /// The disk.
    pub disk: Disk,
    /// Where it is attached; see [`Disk::bus_path`].
    pub bus_path: Option<String>,
    /// What uses it, if something does.
    pub in_use: Option<String>,
    /// What it holds.
    pub content: DiskContent,
    /// The medium it was provisioned from, if it still is that disk.
    pub medium: Option<MediaId>,
}

/// Why there is not exactly one disk to provision. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// None fits.
    #[error("no disk can be provisioned, so nothing was written{}", listed("Disks present", .0))]
    None(Vec<String>),
    /// More than one fits.
    #[error(
        "{count} disks fit, so none was touched; choose one by its serial number, model, size or path{}",
        listed("Disks present", .disks)
    )]
    Several {
        /// How many.
        count: usize,
        /// Every disk, with what excludes it.
        disks: Vec<String>,
    },
}

/// Every disk of this machine, read and not written.
///
/// # Errors
/// The disks cannot be listed. One that cannot be read is listed as [`DiskContent::Foreign`].
pub fn survey(which: Which) -> io::Result<Vec<DiskCandidate>> {
    Ok(disks(which)?.into_iter().map(DiskCandidate::of_disk).collect())
}

impl DiskCandidate {
    /// A disk of this machine.
    #[must_use]
    pub fn of_disk(disk: Disk) -> Self {
        // A disk whose use cannot be found out counts as used.
        let in_use = in_use(&disk.path).unwrap_or_else(|error| Some(format!("its use is not known: {error}")));
        let (content, medium) =
            look(&disk.path, disk.logical_block_size).unwrap_or_else(|text| (DiskContent::Foreign(text), None));
        Self { bus_path: disk.bus_path(), in_use, content, medium, disk }
    }

    /// A file that stands for a disk with logical blocks of `logical_block_size` bytes.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_file(path: &Path, logical_block_size: u32) -> io::Result<Self> {
        let size_bytes = path.metadata()?.len();
        let disk = Disk {
            name: path.display().to_string(),
            path: path.to_owned(),
            size_bytes,
            logical_block_size,
            model: None,
            serial: None,
            transport: Transport::Other,
            removable: false,
            read_only: false,
        };
        let (content, medium) = look(path, logical_block_size).map_err(io::Error::other)?;
        Ok(Self { disk, bus_path: None, in_use: None, content, medium })
    }

    /// Whether there is nothing to lose on it.
    #[must_use]
    pub fn is_free(&self) -> bool {
        matches!(self.content, DiskContent::Blank | DiskContent::Interrupted)
    }

    /// What speaks against it, whatever was asked for.
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

/// What was asked for and this disk is not.
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

/// The only disk that fits, and is none of those the machine was started from. Pure.
///
/// # Errors
/// [`ChooseError`], with every disk, its identity and what excludes it.
pub fn choose(
    selector: &DiskSelector,
    candidates: &[DiskCandidate],
    boot_media: &[PathBuf],
) -> Result<DiskCandidate, ChooseError> {
    let mut fitting = Vec::new();
    let mut told = Vec::new();
    for candidate in candidates {
        let against = candidate.excluded(boot_media, selector.removable).or_else(|| differs(selector, candidate));
        told.push(format!("{}: {}", candidate.disk, against.as_deref().unwrap_or("fits")));
        if against.is_none() {
            fitting.push(candidate);
        }
    }
    match fitting[..] {
        [one] => Ok(one.clone()),
        [] => Err(ChooseError::None(told)),
        _ => Err(ChooseError::Several { count: fitting.len(), disks: told }),
    }
}

/// What lies on the edges of a disk, and the medium it was provisioned from; an error is a sentence about it.
fn look(path: &Path, logical_block_size: u32) -> Result<(DiskContent, Option<MediaId>), String> {
    let device = Device::open(path, Access::Read, Caching::Buffered).map_err(|error| chain(&error))?;
    let edge = EDGE_BYTES.min(device.size_bytes());
    let read = |offset| {
        let mut content = vec![0; edge as usize];
        device.read_exact_at(&mut content, offset).map_err(|error| chain(&error)).map(|()| content)
    };
    let (head, tail) = (read(0)?, read(device.size_bytes() - edge)?);
    if is_zero(&head) && is_zero(&tail) {
        return Ok((DiskContent::Blank, None));
    }
    if marker::is_unfinished(&head) {
        return Ok((DiskContent::Interrupted, None));
    }
    Ok(match table::read(&mut device.as_file(), logical_block_size) {
        Ok(Some(table)) => {
            let medium = marker::medium_of(&head, Some(&table));
            (DiskContent::Table(table), medium)
        }
        Ok(None) => {
            let text = "no partition table, but it is not blank".to_owned();
            (DiskContent::Foreign(text), marker::medium_of(&head, None))
        }
        Err(error) => (DiskContent::Foreign(chain(&error)), marker::medium_of(&head, None)),
    })
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
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn exactly_one_disk_must_fit_and_the_others_are_told_with_their_reason() {
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
        let mut stick = candidate("b", 100, "S");
        stick.disk.removable = true;
        let mut locked = candidate("c", 100, "S");
        locked.disk.read_only = true;
        let medium = candidate("d", 100, "S");
        let all = [used, stick, locked, medium.clone()];
        let error =
            choose(&selector("serial = 'S'"), &all, std::slice::from_ref(&medium.disk.path)).unwrap_err().to_string();
        for reason in ["mounted on /", "removable", "write-protected", "started from it"] {
            assert!(error.contains(reason), "{error}");
        }
        let wanted = selector("serial = 'S'\nremovable = true");
        assert_eq!(choose(&wanted, &all, std::slice::from_ref(&medium.disk.path)).unwrap().disk.name, "b");
    }
}
