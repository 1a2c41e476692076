//! The places in which the floor is kept: a file of two copies on the state partition, the same file on the recovery
//! partition, whose blocks are overwritten without mounting it writable, and a variable of the firmware.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::record::{FloorRecord, SIZE_BYTES};
use crate::boot::efivars::EfiVars;
use crate::sys::block::{Access, AlignedBuf, Caching, Device};
use crate::sys::{extents, files};

/// Name of the file on the state partition and on the recovery partition.
pub const FILE: &str = "floor";
/// Distance of the two copies, bytes: a drive writes its physical sectors of 4096 bytes whole, so a write that is cut
/// can spoil all 512-byte sectors of one.
const COPY_BYTES: usize = 4096;
/// Size of the file, bytes.
const FILE_BYTES: usize = 2 * COPY_BYTES;
/// Name of the variable in the firmware.
const VARIABLE: &str = "ReflashFloor";

/// Place in which the floor could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep the floor {place}")]
pub struct FloorError {
    /// The place, as in `in the file /state/floor`.
    pub place: String,
    /// Error of the system call, or what is wrong there.
    pub source: io::Error,
}

/// A place on the disk.
#[derive(Debug)]
pub(super) enum DiskPlace {
    /// A file that is written through its file system.
    File(PathBuf),
    /// A file on a file system that stays read-only: its blocks on the device are overwritten.
    Blocks { root: PathBuf, device: PathBuf },
}

impl DiskPlace {
    pub(super) fn in_state(root: &Path) -> Self {
        Self::File(root.join(FILE))
    }

    pub(super) fn in_recovery(root: &Path, device: &Path) -> Self {
        Self::Blocks { root: root.to_owned(), device: device.to_owned() }
    }

    /// The copies that are whole and in which something is recorded. What cannot be read counts as missing.
    pub(super) fn copies(&self) -> Vec<FloorRecord> {
        let copies = self.open(Access::Read).map(|open| open.read()).unwrap_or_default();
        copies.into_iter().flatten().filter(|copy| copy.sequence > 0).collect()
    }

    /// Makes sure that the place has this record, and that both copies are whole. A robot whose recovery partition has
    /// no such file yet gets it with its next recovery.
    pub(super) fn keep(&self, record: &FloorRecord) -> Result<(), FloorError> {
        let kept = match (self, self.open(Access::Write)) {
            (_, Ok(open)) => open.keep(record),
            (Self::Blocks { .. }, Err(error)) if error.kind() == ErrorKind::NotFound => Ok(()),
            (Self::Blocks { .. }, Err(error)) => Err(error),
            (Self::File(path), Err(_)) => make(path, record),
        };
        kept.map_err(|source| FloorError { place: self.describe(), source })
    }

    fn describe(&self) -> String {
        match self {
            Self::File(path) => format!("in {}", path.display()),
            Self::Blocks { device, .. } => format!("in a block of {}", device.display()),
        }
    }

    fn open(&self, access: Access) -> io::Result<OpenPlace> {
        match self {
            Self::File(path) => {
                // Looked at first: opening a file for writing would make it.
                let file = files::open(path)?;
                check_size(&file)?;
                Ok(OpenPlace::File(if access == Access::Read { file } else { files::open_to_write(path)? }))
            }
            Self::Blocks { root, device } => open_blocks(root, device, access),
        }
    }
}

/// A place whose copies can be read and written.
enum OpenPlace {
    File(File),
    Blocks { device: Device, offset: u64 },
}

impl OpenPlace {
    fn read(&self) -> [Option<FloorRecord>; 2] {
        [0, 1].map(|number| {
            let mut bytes = AlignedBuf::zeroed(COPY_BYTES);
            // A sector that cannot be read holds nothing, and the other copy is in another one.
            match self {
                Self::File(file) => file.read_exact_at(&mut bytes, at(number)).ok()?,
                Self::Blocks { device, offset } => device.read_exact_at(&mut bytes, offset + at(number)).ok()?,
            }
            FloorRecord::decode(&bytes)
        })
    }

    fn write(&self, number: usize, record: &FloorRecord) -> io::Result<()> {
        let mut bytes = AlignedBuf::zeroed(COPY_BYTES);
        bytes[..SIZE_BYTES].copy_from_slice(&record.encode());
        match self {
            Self::File(file) => file.write_all_at(&bytes, at(number)).and_then(|()| file.sync_data())?,
            Self::Blocks { device, offset } => {
                let written = device.write_all_at(&bytes, offset + at(number)).and_then(|()| device.sync());
                written.map_err(io::Error::other)?;
            }
        }
        let back = &self.read()[number];
        if back.as_ref() == Some(record) { Ok(()) } else { Err(io::Error::other("it reads back wrong")) }
    }

    /// Writes the record over the older copy, unless a copy has it, and then over one that is damaged: at every moment
    /// one copy is whole.
    fn keep(&self, record: &FloorRecord) -> io::Result<()> {
        let copies = self.read();
        if !copies.iter().flatten().any(|copy| copy == record) {
            let sequence = |number: usize| copies[number].as_ref().map(|copy| copy.sequence);
            self.write(usize::from(sequence(0) > sequence(1)), record)?;
        }
        match self.read().iter().position(Option::is_none) {
            Some(damaged) => self.write(damaged, record),
            None => Ok(()),
        }
    }
}

fn at(number: usize) -> u64 {
    (number * COPY_BYTES) as u64
}

fn check_size(file: &File) -> io::Result<()> {
    let size_bytes = file.metadata()?.len();
    if size_bytes == FILE_BYTES as u64 {
        return Ok(());
    }
    Err(io::Error::new(ErrorKind::InvalidData, format!("the file has {size_bytes} bytes, not {FILE_BYTES}")))
}

/// Content of a file whose copies both hold this record.
pub(super) fn file_of(record: &FloorRecord) -> Vec<u8> {
    let mut copy = record.encode().to_vec();
    copy.resize(COPY_BYTES, 0);
    copy.repeat(2)
}

/// Makes the file anew, in place of whatever is there.
fn make(path: &Path, record: &FloorRecord) -> io::Result<()> {
    let directory = path.parent().ok_or(ErrorKind::InvalidInput)?;
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        files::put_aside(path)?;
    }
    let new = path.with_added_extension("new");
    match fs::symlink_metadata(&new) {
        Ok(found) if found.is_dir() => drop(files::put_aside(&new)?),
        Ok(_) => fs::remove_file(&new)?,
        Err(_) => {}
    }
    let mut file = File::create_new(&new)?;
    file.write_all(&file_of(record))?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}

/// Makes the file of the floor on a recovery partition that is mounted writable at `root`, unless there is one whose
/// blocks can be overwritten.
///
/// # Errors
/// The file system's.
pub fn prepare_recovery(root: &Path) -> io::Result<()> {
    let path = root.join(FILE);
    if files::open(&path).and_then(|file| place_of(&file).map(drop)).is_ok() {
        return Ok(());
    }
    make(&path, &FloorRecord::default())
}

/// Where the content of the file lies on the device of its file system.
fn place_of(file: &File) -> io::Result<u64> {
    check_size(file)?;
    if file.metadata()?.nlink() != 1 {
        return Err(io::Error::new(ErrorKind::Unsupported, "the file has other names"));
    }
    Ok(extents::one_extent(file, FILE_BYTES as u64)?.start)
}

/// Opens the device at the blocks of the file, once both are seen to hold the same.
///
/// Transfers go past the page cache: the file system's own copy of the content is not read again, and must not be
/// believed.
fn open_blocks(root: &Path, device: &Path, access: Access) -> io::Result<OpenPlace> {
    let file = files::open_below(root, Path::new(FILE))?;
    let offset = place_of(&file)?;
    let device = Device::open(device, access, Caching::Direct).map_err(io::Error::other)?;
    files::bypass_cache(&file)?;
    let (mut on_device, mut in_file) = (AlignedBuf::zeroed(COPY_BYTES), AlignedBuf::zeroed(COPY_BYTES));
    for number in [0, 1] {
        let by_device = device.read_exact_at(&mut on_device, offset + at(number)).is_ok();
        let by_file = file.read_exact_at(&mut in_file, at(number)).is_ok();
        // A sector that cannot be read is one for both.
        if by_device != by_file || by_device && *on_device != *in_file {
            return Err(io::Error::new(ErrorKind::Unsupported, "its device holds something else in its place"));
        }
    }
    Ok(OpenPlace::Blocks { device, offset })
}

/// The variable of the firmware.
#[derive(Debug)]
pub(super) struct FirmwarePlace(EfiVars);

impl FirmwarePlace {
    pub(super) fn new(variables: EfiVars) -> Self {
        Self(variables)
    }

    pub(super) fn read(&self) -> Option<FloorRecord> {
        FloorRecord::decode(&self.0.get_own(VARIABLE)?)
    }

    /// Writes the variable, unless it has the floor of this disk already.
    pub(super) fn keep(&self, record: &FloorRecord) -> Result<(), FloorError> {
        if self.read().is_some_and(|known| (known.identity, known.serial) == (record.identity, record.serial)) {
            return Ok(());
        }
        let place = "in a variable of the firmware".to_owned();
        self.0.set_own(VARIABLE, &record.encode()).map_err(|source| FloorError { place, source })
    }
}
