//! The errors of a write.

use std::io;

use crate::fetch::FetchError;
use crate::release::digest::Digest;

/// The error for a plan that could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// No source delivers these bytes of a pack.
    #[error("cannot download pack {pack}, bytes {start} to {end}")]
    Fetch {
        /// Digest of the pack.
        pack: Digest,
        /// Offset of the first byte in the pack.
        start: u64,
        /// Offset after the last byte.
        end: u64,
        /// The error that ended the download.
        source: FetchError,
    },
    /// Every source sends other content than the index says: a chunk does not decompress, or has another length or
    /// another digest.
    #[error(
        "no source has what the release says of pack {pack}, bytes {start} to {end}: the release was built wrong, or \
         its copies are damaged; the disk is not at fault"
    )]
    Content {
        /// Digest of the pack.
        pack: Digest,
        /// Offset of the first byte in the pack.
        start: u64,
        /// Offset after the last byte.
        end: u64,
        /// The error that ended the download.
        source: FetchError,
    },
    /// Transfers ended without an error and without all the bytes.
    #[error(
        "{missing} of {chunks} chunks were asked for and never delivered, the first for byte {offset}; the disk is not \
         at fault"
    )]
    NotDelivered {
        /// Number of chunks that are missing.
        missing: usize,
        /// Number of chunks in the image.
        chunks: u32,
        /// Offset on the partition of the first of them, bytes.
        offset: u64,
    },
    /// The image does not fit the device.
    #[error(
        "the image needs {image_bytes} bytes and {target} has {target_bytes}; the release is for a larger partition"
    )]
    TooLarge {
        /// Size of the image, bytes.
        image_bytes: u64,
        /// Name of the device.
        target: String,
        /// Size of the device, bytes.
        target_bytes: u64,
    },
    /// The device failed.
    #[error("cannot {doing} {target} at byte {offset} (sector {})", offset / 512)]
    Target {
        /// The operation that failed, as a verb.
        doing: &'static str,
        /// Name of the device and its disk.
        target: String,
        /// Offset on the device, bytes.
        offset: u64,
        /// The device's own error.
        source: io::Error,
    },
    /// A zstd decompressor could not be set up.
    #[error("cannot start decompression")]
    Decompressor(#[source] io::Error),
}

impl WriteError {
    /// Whether what was to be written did not come, and the device is not at fault.
    #[must_use]
    pub fn is_of_download(&self) -> bool {
        matches!(self, Self::Fetch { .. } | Self::Content { .. } | Self::NotDelivered { .. })
    }

    /// Whether the cause can pass by itself, so that trying again later makes sense.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Fetch { source, .. } | Self::Content { source, .. } => source.is_retryable(),
            Self::NotDelivered { .. } => true,
            Self::TooLarge { .. } | Self::Target { .. } | Self::Decompressor(_) => false,
        }
    }
}
