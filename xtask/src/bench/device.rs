//! Device that is written to: a loop device in memory, with the content that a case begins with.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use reflash::release::digest::{BLOCK_SIZE_BYTES, is_zero};

use crate::size::to_usize;
use crate::step::{output, run};

/// File system in memory (tmpfs), so that neither the host's disk nor its cache is measured.
pub struct Memory(PathBuf);

impl Memory {
    pub fn mount(at: &Path) -> Result<Self> {
        fs::create_dir_all(at).with_context(|| format!("create {}", at.display()))?;
        // A benchmark that was killed leaves its device behind, and then its memory.
        for file in [DEVICE, OTHER] {
            let mut list = Command::new("losetup");
            let attached = output(list.args(["--noheadings", "--output", "NAME", "--associated"]).arg(at.join(file)));
            for node in attached.unwrap_or_default().lines() {
                let _ = Command::new("losetup").args(["--detach", node.trim()]).status();
            }
        }
        while Command::new("mountpoint").arg("--quiet").arg(at).status().is_ok_and(|status| status.success()) {
            run("umount", Command::new("umount").arg(at))?;
        }
        let mut mount = Command::new("mount");
        run("mount", mount.args(["-t", "tmpfs", "-o", "size=90%", "reflash-bench"]).arg(at))?;
        Ok(Self(at.to_owned()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Name of the device's backing file in [`Memory`].
const DEVICE: &str = "device";
/// Name of that of a second device.
const OTHER: &str = "other";

/// Content of the device before a run.
#[derive(Debug, Clone)]
pub enum Before {
    Zeros,
    Image(PathBuf),
    /// The image with one byte changed.
    OneByteChanged(PathBuf),
    /// The image with every block changed that is not zero: none is right, and none can be reused elsewhere.
    EveryBlockChanged(PathBuf),
    RandomBytes,
}

impl Before {
    /// Returns the number of bytes that a device needs at least.
    fn least_bytes(&self) -> Result<u64> {
        match self {
            Self::Zeros | Self::RandomBytes => Ok(0),
            Self::Image(image) | Self::OneByteChanged(image) | Self::EveryBlockChanged(image) => {
                Ok(image.metadata().with_context(|| format!("look at {}", image.display()))?.len())
            }
        }
    }

    /// Puts this content into `file`, a new file of `bytes`.
    fn fill(&self, path: &Path, file: &File, bytes: u64) -> Result<()> {
        match self {
            Self::Zeros => Ok(()),
            Self::RandomBytes => {
                // The bytes are the same in every run.
                let mut noise = blake3::Hasher::new().finalize_xof();
                in_steps(bytes, |offset, buffer| {
                    noise.fill(buffer);
                    file.write_all_at(buffer, offset)
                })
            }
            Self::Image(image) | Self::OneByteChanged(image) | Self::EveryBlockChanged(image) => {
                run("copy", Command::new("cp").arg("--sparse=always").arg(image).arg(path))?;
                let image_bytes = self.least_bytes()?;
                match self {
                    Self::OneByteChanged(_) => change_byte(file, image_bytes / 2 + 1234),
                    Self::EveryBlockChanged(_) => in_steps(image_bytes, |offset, buffer| {
                        file.read_exact_at(buffer, offset)?;
                        change_blocks(buffer);
                        file.write_all_at(buffer, offset)
                    }),
                    _ => Ok(()),
                }
            }
        }
        .context("prepare the device")
    }
}

fn change_byte(file: &File, at: u64) -> Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 1], at)?)
}

/// Changes one byte of every block that is not zero.
fn change_blocks(content: &mut [u8]) {
    for block in content.chunks_mut(BLOCK_SIZE_BYTES).filter(|block| !is_zero(block)) {
        let middle = block.len() / 2;
        block[middle] ^= 0x55;
    }
}

fn in_steps(bytes: u64, mut work: impl FnMut(u64, &mut [u8]) -> io::Result<()>) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for offset in (0..bytes).step_by(buffer.len()) {
        let len = to_usize((bytes - offset).min(buffer.len() as u64));
        work(offset, &mut buffer[..len])?;
    }
    Ok(())
}

/// Loop device over a file in memory.
pub struct LoopDevice {
    pub node: String,
    file: PathBuf,
}

impl LoopDevice {
    /// Makes the device of at least `bytes` that holds `before`, in the place of the one before.
    pub fn new(memory: &Memory, bytes: u64, before: &Before, sector_bytes: u32) -> Result<Self> {
        Self::at(memory.path().join(DEVICE), bytes, before, sector_bytes)
    }

    /// Makes a second device.
    pub fn beside(memory: &Memory, bytes: u64, before: &Before, sector_bytes: u32) -> Result<Self> {
        Self::at(memory.path().join(OTHER), bytes, before, sector_bytes)
    }

    fn at(path: PathBuf, bytes: u64, before: &Before, sector_bytes: u32) -> Result<Self> {
        let _ = fs::remove_file(&path);
        let bytes = bytes.max(before.least_bytes()?);
        let file = File::options().create_new(true).read(true).write(true).open(&path);
        let file = file.with_context(|| format!("create {}", path.display()))?;
        before.fill(&path, &file, bytes)?;
        file.set_len(bytes).with_context(|| format!("size {}", path.display()))?;
        let mut losetup = Command::new("losetup");
        // The kernel scans for partitions, because coreos-installer looks for them on the device that it writes to.
        losetup.args(["--find", "--show", "--partscan", "--sector-size", &sector_bytes.to_string()]).arg(&path);
        let node = output(&mut losetup)?.trim().to_owned();
        Ok(Self { node, file: path })
    }

    /// Whether the device begins with this image.
    pub fn holds(&self, image: &Path) -> Result<bool> {
        // Content that a tool left in the cache of the device counts as written.
        run("flush", Command::new("blockdev").arg("--flushbufs").arg(&self.node))?;
        let bytes = image.metadata()?.len().to_string();
        let compared = Command::new("cmp").args(["--quiet", "--bytes", &bytes]).arg(image).arg(&self.file).status();
        Ok(compared.context("start cmp")?.success())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.node]).status();
        // What it held takes memory.
        let _ = fs::remove_file(&self.file);
    }
}

#[cfg(test)]
mod tests {
    use super::{Before, change_blocks};

    #[test]
    fn the_content_before_a_run_differs_from_the_image_as_the_case_says() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let content: Vec<u8> =
            (0..3 << 20).map(|at: u32| if at < 1 << 20 { 0 } else { (at / 7).to_le_bytes()[0] }).collect();
        std::fs::write(&image, &content).unwrap();
        let filled = |before: Before| {
            let path = dir.path().join("device");
            let _ = std::fs::remove_file(&path);
            let file = std::fs::File::options().create_new(true).read(true).write(true).open(&path).unwrap();
            before.fill(&path, &file, content.len() as u64).unwrap();
            std::fs::read(path).unwrap()
        };
        let different = |found: &[u8]| found.iter().zip(&content).filter(|(one, other)| one != other).count();
        assert_eq!(filled(Before::Image(image.clone())), content);
        assert_eq!(different(&filled(Before::OneByteChanged(image.clone()))), 1);
        let changed = filled(Before::EveryBlockChanged(image.clone()));
        assert_eq!(different(&changed), (2 << 20) / 4096, "one byte of each block, none of the zero ones");
        let noise = filled(Before::RandomBytes);
        assert!(noise.len() == content.len() && different(&noise) > 2_900_000);
        assert_eq!(noise, filled(Before::RandomBytes));
        let mut zeros = vec![0; 8192];
        change_blocks(&mut zeros);
        assert_eq!(zeros, vec![0; 8192]);
    }
}
