//! The size that the system partition of a layout should have: the image, and what it takes to go back to it.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use rayon::prelude::{IntoParallelIterator, ParallelIterator};
use reflash::flash::undo::worst_case_bytes;
use reflash::release::digest::{Digest, is_zero};
use reflash::release::index::{Builder, ChunkContent, Pack};

use crate::chunks::chunk_bytes_for;

/// zstd level of a quick estimate. A release compresses harder, and needs less room.
const LEVEL: i32 = 1;
/// Bytes of the index object for one stored chunk: digests do not compress, and places nearly vanish.
const INDEX_BYTES_OF_CHUNK: u64 = 40;

/// Estimates, for an image that is not released yet, the bytes of a partition that holds it and lets a robot go back to
/// it from any update. A person sets the layout by it, which no update changes: so it goes by the sum that `release`
/// and the robots make, and is never less.
///
/// # Errors
/// When the image cannot be read.
pub fn partition_bytes(image: &Path) -> Result<u64> {
    let file = File::open(image).with_context(|| format!("open {}", image.display()))?;
    let size_bytes = file.metadata()?.len();
    let chunk_bytes = chunk_bytes_for(size_bytes);
    let compressed = |number: u64| -> Result<Option<(Digest, u32)>> {
        let start = number * u64::from(chunk_bytes);
        let mut content = vec![0; usize::try_from((size_bytes - start).min(chunk_bytes.into()))?];
        file.read_exact_at(&mut content, start).with_context(|| format!("read {}", image.display()))?;
        if is_zero(&content) {
            return Ok(None);
        }
        let bytes = zstd::bulk::compress(&content, LEVEL).context("compress a chunk")?.len();
        Ok(Some((Digest::of(&content), u32::try_from(bytes)?)))
    };
    let count = size_bytes.div_ceil(chunk_bytes.into());
    let chunks: Vec<Option<(Digest, u32)>> = (0..count).into_par_iter().map(compressed).collect::<Result<_>>()?;
    let mut index = Builder::new(size_bytes, chunk_bytes)?;
    let (mut known, mut packed_bytes) = (HashMap::new(), 0);
    for chunk in chunks {
        let stored = chunk.map(|(digest, bytes)| {
            *known.entry(digest).or_insert_with(|| {
                packed_bytes += u64::from(bytes);
                index.store(digest, bytes)
            })
        });
        index.push_chunk(stored.map_or(ChunkContent::Zero, ChunkContent::Stored));
    }
    if !known.is_empty() {
        index.push_extent(0, Pack { digest: Digest::of(b"estimate"), size_bytes: packed_bytes }, 0);
    }
    let index_bytes = known.len() as u64 * INDEX_BYTES_OF_CHUNK;
    Ok(size_bytes + worst_case_bytes(&index.finish()?, index_bytes))
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
        // Beside chunks a robot keeps 64 KiB.
        assert!(partition_bytes(&path).unwrap() < (1 << 20) + (68 << 10));
        let mut state = 1_u64;
        for byte in &mut content[..512 * 1024] {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state.to_le_bytes()[3];
        }
        std::fs::write(&path, &content).unwrap();
        let bytes = partition_bytes(&path).unwrap();
        // A quarter more than what is kept, since a robot compresses less than a release.
        let least = (1 << 20) + (5 << 17) + (64 << 10);
        assert!((least..least + 20_000).contains(&bytes), "{bytes}");
    }
}
