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
    /// Whether the cause can pass by itself, so that trying again later makes sense.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Fetch { source, .. } => source.is_retryable(),
            Self::TooLarge { .. } | Self::Target { .. } | Self::Decompressor(_) => false,
        }
    }
}
