//! Partitions as files that are looked into: mounted, or read by GRUB's code.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::disk::{BLOCK_BYTES, Region};
use crate::step::output;

/// A file in memory that becomes one partition after the other.
pub struct Scratch {
    _directory: tempfile::TempDir,
    /// Path of the file.
    pub file: PathBuf,
    mount_point: PathBuf,
    /// Hashes of its blocks, where it follows a region.
    blocks: Vec<u64>,
}

/// Mounted until it is dropped.
pub struct MountedImage(pub PathBuf);

impl Scratch {
    /// In the host's memory, where it has some to write to.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn new() -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }?;
        let (file, mount_point) = (directory.path().join("state"), directory.path().join("mount"));
        fs::create_dir(&mount_point)?;
        Ok(Self { _directory: directory, file, mount_point, blocks: Vec::new() })
    }

    /// Makes it this content.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn write(&self, content: &[u8]) -> Result<()> {
        let file = File::options().create(true).truncate(false).write(true).open(&self.file)?;
        file.set_len(content.len() as u64)?;
        Ok(file.write_all_at(content, 0)?)
    }

    /// Writes what differs from what was followed last.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn follow(&mut self, region: &Region) -> Result<()> {
        let file = File::options().create(true).truncate(false).write(true).open(&self.file)?;
        file.set_len(region.content.len() as u64)?;
        for (number, hash) in region.blocks.iter().enumerate() {
            if self.blocks.get(number) != Some(hash) {
                let start = number * BLOCK_BYTES;
                let content = &region.content[start..(start + BLOCK_BYTES).min(region.content.len())];
                file.write_all_at(content, start as u64)?;
            }
        }
        self.blocks.clone_from(&region.blocks);
        Ok(())
    }

    /// Mounts it, as the kernel of a robot would.
    ///
    /// # Errors
    /// What mount says.
    pub fn mount(&self) -> Result<MountedImage> {
        output(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&self.file).arg(&self.mount_point))?;
        Ok(MountedImage(self.mount_point.clone()))
    }
}

impl Drop for MountedImage {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
