//! Reads and writes variables of UEFI firmware, through efivarfs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::sys::mount::Mount;

const DIRECTORY: &str = "/sys/firmware/efi/efivars";
/// The GUID `EFI_GLOBAL_VARIABLE`.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Attributes that efivarfs puts before the content: stored in flash memory, and accessible at boot and at run time.
const ATTRIBUTES: [u8; 4] = 7_u32.to_le_bytes();

/// The variables of this machine's firmware.
#[derive(Debug)]
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

    /// Reads a global variable; `None` when it does not exist.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.path(name)).ok()?.get(ATTRIBUTES.len()..).map(<[u8]>::to_vec)
    }

    /// Writes a global variable.
    ///
    /// # Errors
    /// The firmware refuses the variable, or its memory is full.
    pub fn set(&self, name: &str, content: &[u8]) -> io::Result<()> {
        // One write, because each write is a call of the firmware of its own.
        fs::write(self.path(name), [&ATTRIBUTES[..], content].concat())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}-{GLOBAL}"))
    }
}
