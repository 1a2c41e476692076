//! Scratch files that stand for partitions, and are mounted or read by GRUB's code.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::disk::{BLOCK_BYTES, Region};
use crate::step::output;

/// File in memory that becomes one partition after the other.
pub struct Scratch {
    _directory: tempfile::TempDir,
    /// Path of the file.
    pub file: PathBuf,
    mount_point: PathBuf,
    /// Hashes of the file's blocks, if it follows a region.
    blocks: Vec<u64>,
}

/// Mounted file system, which is unmounted when this is dropped.
pub struct MountedImage(pub PathBuf);

impl Scratch {
    /// Makes a file in `/dev/shm`, which is memory, or in the directory for temporary files on a host without it.
    ///
    /// # Errors
    /// Fails when there is no room for the file.
    pub fn new() -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }?;
        let (file, mount_point) = (directory.path().join("state"), directory.path().join("mount"));
        fs::create_dir(&mount_point)?;
        Ok(Self { _directory: directory, file, mount_point, blocks: Vec::new() })
    }

    /// Gives the file this content.
    ///
    /// # Errors
    /// Fails when there is no room for the file.
    pub fn write(&self, content: &[u8]) -> Result<()> {
        let file = File::options().create(true).truncate(false).write(true).open(&self.file)?;
        file.set_len(content.len() as u64)?;
        Ok(file.write_all_at(content, 0)?)
    }

    /// Gives the file the content of `region`, and writes only what differs from the region that was followed last.
    ///
    /// # Errors
    /// Fails when there is no room for the file.
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

    /// Mounts the file, as the kernel of a robot would.
    ///
    /// # Errors
    /// Fails with the output of mount.
    pub fn mount(&self) -> Result<MountedImage> {
        output(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&self.file).arg(&self.mount_point))?;
        Ok(MountedImage(self.mount_point.clone()))
    }
}

/// Environment blocks of state partitions that were seen, by the fingerprints of those.
#[derive(Default)]
pub struct Environments(HashMap<u64, Option<Vec<u8>>>);

impl Environments {
    /// Reads the environment block by GRUB's own file system code, which replays no journal and checks no checksum.
    ///
    /// # Errors
    /// Fails when there is no room for the partition, or GRUB's code cannot be run.
    pub fn read(&mut self, state: &Region, scratch: &Scratch) -> Result<Option<Vec<u8>>> {
        if let Some(known) = self.0.get(&state.fingerprint) {
            return Ok(known.clone());
        }
        scratch.write(&state.content)?;
        let block = crate::grub::read_file(&scratch.file, "/grubenv")?;
        self.0.insert(state.fingerprint, block.clone());
        Ok(block)
    }
}

impl Drop for MountedImage {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
