//! The parts and properties of a release.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use reflash::release::layout::Layout;
use reflash::release::manifest::OBJECTS_PATH;

use crate::succession::Allow;

/// The default zstd level: a release is compressed once and downloaded by a fleet.
pub const DEFAULT_LEVEL: i32 = 12;

/// Longest name of a product or a channel: that of a channel is one of a directory, and file systems hold 255 bytes.
const LONGEST_NAME: usize = 200;

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

/// Checks names that would do harm in the tree or on a screen, whatever robots have in their configuration.
///
/// # Errors
/// With the name at fault.
pub fn check_names(product: &str, channel: &str) -> Result<()> {
    for (what, name) in [("product", product), ("channel", channel)] {
        ensure!(
            name.len() <= LONGEST_NAME,
            "the name of the {what} has {} bytes; it may have {LONGEST_NAME}",
            name.len()
        );
        ensure!(
            !name.chars().any(char::is_control),
            "the name of the {what}, {name:?}, has a character that no screen shows; give one of letters and digits"
        );
    }
    let objects = OBJECTS_PATH.trim_end_matches('/');
    ensure!(
        channel != objects,
        "a channel cannot be called {objects}: the tree keeps there what the releases of all channels are made of"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_names;

    #[test]
    fn names_that_would_do_harm_are_refused() {
        check_names("R\u{f6}bo 2/b", "stable").unwrap();
        let long = "a".repeat(201);
        for (product, channel, said) in [
            ("robo\nx", "stable", "the product, \"robo\\nx\""),
            (long.as_str(), "stable", "the product has 201 bytes"),
            ("robo", long.as_str(), "the channel has 201 bytes"),
            ("robo", "objects", "a channel cannot be called objects"),
        ] {
            let error = check_names(product, channel).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
