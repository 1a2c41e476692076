//! What a partition holds before anything is written: the digests of its chunks, and the weak hashes of its blocks.
//!
//! It is read once, and knows of no release: with it an index is put together, compared, and a plan made.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::flash::plan::{Blocks, Comparison};
use crate::flash::readback::{MAX_READ_ERRORS, MAX_READERS, READ_BYTES, Scan, in_parallel};
use crate::flash::target::BlockTarget;
use crate::flash::threads::lock;
use crate::record::progress::Done;
use crate::release::digest::{BLOCK_SIZE_BYTES, Digest, is_zero};
use crate::release::index::{Builder, ChunkContent, ChunkNo, Index, IndexError, Pack};
use crate::release::weak_hashes::{MAX_BLOCKS, WeakHash};
use crate::sys::block::AlignedBuf;

/// The content of a partition, cut as the chunks of an image are.
#[derive(Debug)]
pub struct Survey {
    target: String,
    chunk_bytes: u32,
    image_bytes: u64,
    /// For each chunk, its digest; `None` for what cannot be read.
    digests: Vec<Option<Digest>>,
    zeros: Zeros,
    blocks: Blocks,
    read_errors: Vec<(Range<u64>, String)>,
}

/// Digests of chunks of zeros.
#[derive(Debug, Clone, Copy)]
struct Zeros {
    full: Digest,
    /// That of the last chunk, which may be short.
    last: Digest,
}

impl Survey {
    /// Reads a partition on several threads, as far as an image of `image_bytes` in chunks of `chunk_bytes`, and what
    /// lies behind it up to `search_bytes`: it may belong elsewhere, or be what a delta needs. The first [`MAX_BLOCKS`]
    /// blocks are hashed. `done` counts the bytes that were read.
    ///
    /// # Errors
    /// [`IndexError::Inconsistent`] for sizes that no index has.
    pub fn of(
        (chunk_bytes, image_bytes): (u32, u64),
        search_bytes: u64,
        target: &dyn BlockTarget,
        done: &Done,
    ) -> Result<Self, IndexError> {
        Builder::new(image_bytes, chunk_bytes)?;
        let search_bytes = search_bytes.max(image_bytes).min(target.size_bytes());
        let blocks = (search_bytes / BLOCK_SIZE_BYTES as u64).min(MAX_BLOCKS as u64);
        let last_bytes = image_bytes - (image_bytes - 1) / u64::from(chunk_bytes) * u64::from(chunk_bytes);
        let of_zeros = |len: u64| Digest::of(&vec![0; usize::try_from(len).unwrap_or_default()]);
        let reader = Reader {
            chunk_bytes: chunk_bytes as usize,
            zeros: Zeros { full: of_zeros(u64::from(chunk_bytes)), last: of_zeros(last_bytes) },
            image_bytes,
            target,
            weak_hashes: (0..blocks).map(|_| AtomicU64::new(WeakHash::NONE.bits())).collect(),
            read_errors: Mutex::default(),
        };
        let digests = reader.digests(done);
        reader.hash_after_the_image(done);
        let Reader { zeros, weak_hashes, read_errors, .. } = reader;
        let weak_hashes = weak_hashes.into_iter().map(|hash| WeakHash::from_bits(hash.into_inner()));
        Ok(Self {
            target: target.name().to_owned(),
            chunk_bytes,
            image_bytes,
            digests,
            zeros,
            blocks: Blocks::new(weak_hashes.collect()),
            read_errors: read_errors.into_inner().unwrap_or_else(PoisonError::into_inner),
        })
    }

    /// Whether this is what `target` holds, cut as `index` cuts it.
    #[must_use]
    pub fn suits(&self, index: &Index, target: &dyn BlockTarget) -> bool {
        self.target == target.name()
            && (self.chunk_bytes, self.image_bytes) == (index.chunk_bytes(), index.image_bytes())
    }

    /// The digest of a chunk, unless it cannot be read.
    #[must_use]
    pub fn digest(&self, chunk: ChunkNo) -> Option<Digest> {
        self.digests.get(chunk as usize).copied().flatten()
    }

    /// The digest of the digests of all chunks: that of an image ([`content_of`]) if the partition is equal to it.
    #[must_use]
    pub fn content(&self) -> Option<Digest> {
        let mut hasher = blake3::Hasher::new();
        for digest in &self.digests {
            hasher.update(&digest.as_ref()?.0);
        }
        Some(Digest(*hasher.finalize().as_bytes()))
    }

    /// An index of what is there, for an image that is equal to it: it names a pack that nobody has, since nothing will
    /// be fetched.
    ///
    /// # Errors
    /// [`IndexError::Inconsistent`] where something cannot be read.
    pub fn to_index(&self) -> Result<Index, IndexError> {
        let mut builder = Builder::new(self.image_bytes, self.chunk_bytes)?;
        let mut known = std::collections::HashMap::new();
        for (chunk, digest) in (1..).zip(&self.digests) {
            let is_last = chunk == self.digests.len();
            let zeros = if is_last { self.zeros.last } else { self.zeros.full };
            let content = match digest {
                Some(digest) if *digest == zeros => ChunkContent::Zero,
                Some(digest) => {
                    let stored = known.get(digest).copied().unwrap_or_else(|| builder.store(*digest, 1));
                    known.insert(*digest, stored);
                    ChunkContent::Stored(stored)
                }
                None => return Err(IndexError::Inconsistent("part of the partition cannot be read".to_owned())),
            };
            builder.push_chunk(content);
        }
        if let Some(digest) = self.content().filter(|_| !known.is_empty()) {
            builder.push_extent(0, Pack { digest, size_bytes: known.len() as u64 }, 0);
        }
        builder.finish()
    }

    /// Compares what is there with an index that cuts it in the same way.
    #[must_use]
    pub fn compare(self, index: &Index) -> (Scan<'_>, Blocks) {
        let last = index.chunk_count() - 1;
        let is_right = |chunk: ChunkNo| {
            let found = self.digest(chunk);
            let zeros = if chunk == last { self.zeros.last } else { self.zeros.full };
            match index.chunk_content(chunk) {
                ChunkContent::Zero => found == Some(zeros),
                ChunkContent::Stored(stored) => found == Some(*index.digest(stored)),
            }
        };
        let comparison = Comparison::new(index, (0..index.chunk_count()).map(is_right).collect());
        (Scan::new(index, comparison, self.read_errors), self.blocks)
    }
}

/// The digest of the digests of all chunks of an image.
#[must_use]
pub fn content_of(index: &Index) -> Digest {
    let full = Digest::of(&vec![0; index.chunk_bytes() as usize]);
    let mut hasher = blake3::Hasher::new();
    for chunk in 0..index.chunk_count() {
        let len = index.chunk_len(chunk);
        let digest = match index.chunk_content(chunk) {
            ChunkContent::Stored(stored) => *index.digest(stored),
            ChunkContent::Zero if len == index.chunk_bytes() as usize => full,
            ChunkContent::Zero => Digest::of(&vec![0; len]),
        };
        hasher.update(&digest.0);
    }
    Digest(*hasher.finalize().as_bytes())
}

/// The state that the reading threads share.
struct Reader<'a> {
    chunk_bytes: usize,
    image_bytes: u64,
    zeros: Zeros,
    target: &'a dyn BlockTarget,
    weak_hashes: Vec<AtomicU64>,
    read_errors: Mutex<Vec<(Range<u64>, String)>>,
}

impl Reader<'_> {
    /// Reads every chunk of the image.
    fn digests(&self, done: &Done) -> Vec<Option<Digest>> {
        let group_bytes = self.chunk_bytes.max(READ_BYTES as usize);
        let starts = (0..self.image_bytes).step_by(group_bytes);
        let groups: Vec<Range<u64>> =
            starts.map(|start| start..(start + group_bytes as u64).min(self.image_bytes)).collect();
        let found = Mutex::new(vec![Vec::new(); groups.len()]);
        let numbered: Vec<(usize, Range<u64>)> = groups.into_iter().enumerate().collect();
        in_parallel(&numbered, MAX_READERS, group_bytes, |(number, range), buffer| {
            let digests = self.group(range, buffer);
            lock(&found)[*number] = digests;
            done.disk(range.end - range.start);
        });
        found.into_inner().unwrap_or_else(PoisonError::into_inner).concat()
    }

    fn group(&self, range: &Range<u64>, buffer: &mut AlignedBuf) -> Vec<Option<Digest>> {
        #[expect(clippy::cast_possible_truncation, reason = "a group has a few MiB")]
        let content = &mut buffer[..(range.end - range.start) as usize];
        // When the partition is shorter than the image, the chunks beyond its end are wrong. The size check names the
        // cause.
        let fits = range.end <= self.target.size_bytes();
        if fits && self.target.read_at(range.start, content).is_ok() {
            let offsets = (range.start..).step_by(self.chunk_bytes);
            return offsets
                .zip(content.chunks(self.chunk_bytes))
                .map(|(at, chunk)| Some(self.chunk(at, chunk)))
                .collect();
        }
        // One bad sector must not condemn the neighbours of its chunk: the chunks are read one by one.
        let one = |(offset, content): (u64, &mut [u8])| match self.target.read_at(offset, content) {
            Ok(()) => Some(self.chunk(offset, content)),
            Err(error) => {
                let mut errors = lock(&self.read_errors);
                if errors.len() < MAX_READ_ERRORS {
                    errors.push((offset..offset + content.len() as u64, error.to_string()));
                }
                None
            }
        };
        (range.start..).step_by(self.chunk_bytes).zip(content.chunks_mut(self.chunk_bytes)).map(one).collect()
    }

    /// Hashes a chunk and its blocks.
    fn chunk(&self, offset: u64, content: &[u8]) -> Digest {
        // Hashing a blank partition would be a waste: the digest of a chunk of zeros is known.
        if is_zero(content) {
            return if content.len() == self.chunk_bytes { self.zeros.full } else { self.zeros.last };
        }
        let first = usize::try_from(offset / BLOCK_SIZE_BYTES as u64).unwrap_or(usize::MAX);
        hash_blocks(content, self.weak_hashes.iter().skip(first));
        Digest::of(content)
    }

    /// Hashes the blocks that lie after the image.
    fn hash_after_the_image(&self, done: &Done) {
        const BLOCKS: usize = READ_BYTES as usize / BLOCK_SIZE_BYTES;
        // An image consists of full blocks. If it is longer than what is searched, nothing lies after it.
        let image_blocks = self.image_bytes / BLOCK_SIZE_BYTES as u64;
        let after = usize::try_from(image_blocks).ok().and_then(|blocks| self.weak_hashes.get(blocks..));
        let offsets = (self.image_bytes..).step_by(READ_BYTES as usize);
        let pieces: Vec<(u64, &[AtomicU64])> = offsets.zip(after.unwrap_or_default().chunks(BLOCKS)).collect();
        in_parallel(&pieces, MAX_READERS, READ_BYTES as usize, |(offset, blocks), buffer| {
            let content = &mut buffer[..blocks.len() * BLOCK_SIZE_BYTES];
            // A piece that cannot be read is no source, and the image does not need it.
            if self.target.read_at(*offset, content).is_ok() {
                hash_blocks(content, blocks.iter());
            }
            done.disk(content.len() as u64);
        });
    }
}

/// Stores the weak hash of each block of `content`, as far as there is a place for it.
fn hash_blocks<'a>(content: &[u8], places: impl Iterator<Item = &'a AtomicU64>) {
    for (place, block) in places.zip(content.chunks(BLOCK_SIZE_BYTES)) {
        place.store(WeakHash::of(block).bits(), Ordering::Relaxed);
    }
}
