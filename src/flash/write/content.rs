//! Decompresses a chunk and checks that it is what belongs in its place.

use std::fmt;
use std::io;

use crate::release::digest::Digest;
use crate::release::index::{Index, StoredChunkNo};
use crate::release::zstd_frame;

/// The reason why bytes are not the chunk that they should be.
pub(in crate::flash) enum Flaw {
    /// The bytes are not exactly one zstd frame of the right size, or do not decompress.
    Frame(io::Error),
    /// The content has another length than its place.
    Length { found: usize, expected: usize },
    /// The content has another digest.
    Digest { found: Digest, expected: Digest },
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(error) => write!(f, "the chunk there cannot be decompressed: {error}"),
            Self::Length { found, expected } => {
                write!(f, "the chunk there has {found} bytes of content, and its place has {expected}")
            }
            Self::Digest { found, expected } => {
                write!(f, "the chunk there has the digest {found}, expected {expected}")
            }
        }
    }
}

/// Decompresses the content of a stored chunk and checks its length and its digest. Content that is shorter than its
/// chunk would be written with whatever lies behind it in `content`.
pub(in crate::flash) fn decode(
    index: &Index,
    zstd: &mut zstd::bulk::Decompressor<'_>,
    stored: StoredChunkNo,
    bytes: &[u8],
    content: &mut [u8],
) -> Result<(), Flaw> {
    let expected = index.stored_len(stored);
    zstd_frame::check_chunk(bytes, expected).map_err(Flaw::Frame)?;
    let found = zstd.decompress_to_buffer(bytes, &mut content[..expected]).map_err(Flaw::Frame)?;
    if found != expected {
        return Err(Flaw::Length { found, expected });
    }
    let content = &content[..expected];
    let (found, expected) = (Digest::of(content), *index.digest(stored));
    if found == expected { Ok(()) } else { Err(Flaw::Digest { found, expected }) }
}
