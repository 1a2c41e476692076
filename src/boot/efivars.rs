//! Reads and writes variables of UEFI firmware, through efivarfs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::sys::files;
use crate::sys::mount::Mount;

const DIRECTORY: &str = "/sys/firmware/efi/efivars";
/// The GUID `EFI_GLOBAL_VARIABLE`.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// The GUID of this program's own variables, random (RFC 9562, 5.4).
const OWN: &str = "6f3c1d52-0f0e-4c86-9d3a-7b1c5be1a9d4";
/// Size of the largest variable that is read, bytes: firmware has some hundred KiB for all of them.
const MAX_BYTES: u64 = 1024 * 1024;
/// Attributes that efivarfs puts before the content: stored in flash memory, and accessible at boot and at run time.
const ATTRIBUTES: [u8; 4] = 7_u32.to_le_bytes();

/// The variables of this machine's firmware.
#[derive(Debug, Clone)]
pub struct EfiVars(PathBuf);

impl EfiVars {
    /// Opens the variables; `None` on machines that were not started by UEFI, or whose firmware shows no variables.
    #[must_use]
    pub fn open() -> Option<Self> {
        let directory = Path::new(DIRECTORY);
        if !directory.is_dir() {
            return None;
        }
        if fs::read_dir(directory).ok()?.next().is_none() {
            Mount::virtual_fs("efivarfs").data_only().on(directory).ok()?;
        }
        Some(Self(directory.to_owned()))
    }

    /// The variables in a directory that stands for those of a machine, for a test.
    #[must_use]
    pub fn directory(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Reads a global variable; `None` when it does not exist.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        files::read(&self.path(name), MAX_BYTES).ok()?.get(ATTRIBUTES.len()..).map(<[u8]>::to_vec)
    }

    /// Writes a global variable.
    ///
    /// # Errors
    /// The firmware refuses the variable, or its memory is full.
    pub fn set(&self, name: &str, content: &[u8]) -> io::Result<()> {
        // One write, because each write is a call of the firmware of its own.
        fs::write(self.path(name), [&ATTRIBUTES[..], content].concat())
    }

    /// Reads a variable of this program; `None` when it does not exist or cannot be read.
    #[must_use]
    pub fn get_own(&self, name: &str) -> Option<Vec<u8>> {
        let content = files::read(&self.own_path(name), MAX_BYTES).ok()?;
        content.get(ATTRIBUTES.len()..).map(<[u8]>::to_vec)
    }

    /// Writes a variable of this program. efivarfs lets nothing change a variable that it does not know, as a guard
    /// against `rm -r`, until that mark is taken away.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn set_own(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.own_path(name);
        // A variable that does not exist yet has no mark; one that keeps it refuses the write.
        let _ = files::make_changeable(&path);
        fs::write(path, [&ATTRIBUTES[..], content].concat())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}-{GLOBAL}"))
    }

    fn own_path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}-{OWN}"))
    }
}
