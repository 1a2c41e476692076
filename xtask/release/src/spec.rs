//! The parts and properties of a release.

use std::path::PathBuf;

use reflash::release::layout::Layout;

use crate::succession::Allow;

/// The default zstd level: a release is compressed once and downloaded by a fleet.
pub const DEFAULT_LEVEL: i32 = 12;

/// The parts and properties of a release.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The product that the release is for.
    pub product: String,
    /// The hardware names that it fits, exact or a prefix with `*`.
    pub hardware: Vec<String>,
    /// The channel to publish in.
    pub channel: String,
    /// The version for people.
    pub version: String,
    /// The serial; `None` takes the next after the channel's present one.
    pub serial: Option<u64>,
    /// The image of the system partition.
    pub image: PathBuf,
    /// The OSTree commit and branch in the image.
    pub ostree: Option<(String, String)>,
    /// The further files: name in the release, path here.
    pub files: Vec<(String, PathBuf)>,
    /// The layout of the product's disk.
    pub layout: Option<Layout>,
    /// The chunk size, bytes: a power of two from 16 KiB to 4 MiB. `None` takes what fits the size of the image.
    pub chunk_bytes: Option<u32>,
    /// The zstd level, 1 to 22.
    pub level: i32,
    /// The time of the release, seconds since 1970; `None` takes `SOURCE_DATE_EPOCH`, or else the clock.
    pub created_unix_s: Option<u64>,
    /// Mistakes, as they mostly are and robots in the field cannot undo them, that are meant here.
    pub allow: Vec<Allow>,
}
