//! The size that the system partition of a layout should have: the image, and what it takes to go back to it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use rayon::prelude::{IntoParallelIterator, ParallelIterator};
use reflash::release::digest::is_zero;

use crate::chunks::chunk_bytes_for;

/// zstd level of a quick estimate: that of the robot.
const LEVEL: i32 = 1;
/// Bytes of a chunk in an index and in the directory of what is kept: two digests and places.
const ENTRY_BYTES: u64 = 4 + 36 + 44;

/// Estimates, for an image that is not released yet, the bytes of a partition that holds it and lets a robot go back to
/// it from any update.
///
/// # Errors
/// When the image cannot be read.
pub fn partition_bytes(image: &Path) -> Result<u64> {
    let file = File::open(image).with_context(|| format!("open {}", image.display()))?;
    let size_bytes = file.metadata()?.len();
    let chunk_bytes = u64::from(chunk_bytes_for(size_bytes));
    let compressed = |number: u64| -> Result<u64> {
        let start = number * chunk_bytes;
        let mut content = vec![0; usize::try_from((size_bytes - start).min(chunk_bytes))?];
        file.read_exact_at(&mut content, start).with_context(|| format!("read {}", image.display()))?;
        if is_zero(&content) {
            return Ok(4);
        }
        Ok(zstd::bulk::compress(&content, LEVEL).context("compress a chunk")?.len() as u64 + ENTRY_BYTES)
    };
    let chunks = size_bytes.div_ceil(chunk_bytes);
    let kept_bytes: u64 = (0..chunks).into_par_iter().map(compressed).sum::<Result<u64>>()?;
    Ok(size_bytes + kept_bytes)
}

#[cfg(test)]
mod tests {
    use super::partition_bytes;

    #[test]
    fn zeros_need_no_room_and_noise_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let mut content = vec![0; 1 << 20];
        std::fs::write(&path, &content).unwrap();
        assert!(partition_bytes(&path).unwrap() < (1 << 20) + 1000);
        let mut state = 1_u64;
        for byte in &mut content[..512 * 1024] {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state.to_le_bytes()[3];
        }
        std::fs::write(&path, &content).unwrap();
        let bytes = partition_bytes(&path).unwrap();
        assert!((3 << 19..(3 << 19) + 10_000).contains(&bytes), "{bytes}");
    }
}
