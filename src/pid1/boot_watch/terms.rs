//! What the first step of the system's boot leaves for the watch, in a file in memory: the watch reads no disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::policy::Terms;
use crate::boot::this_boot;
use crate::sys::files;

/// The file.
const PATH: &str = "/run/reflash/boot-watch.json";
/// Size of the largest one, bytes.
const MAX_BYTES: u64 = 64 * 1024;
/// Limit of `boot.good_within_s` where the first step left nothing, seconds: its default.
const DEFAULT_S: u64 = 600;

/// Terms as the first step leaves them for the watch, in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WrittenTerms {
    /// `boot.good_within_s`; 0 switches the watch off.
    pub good_within_s: u64,
    /// Device of the state partition.
    pub state: Option<PathBuf>,
    /// Whether GRUB has counted this start, and so taken the mark of an earlier good boot away. Without that, what the
    /// boot environment says may be about an earlier boot.
    pub counted: bool,
}

impl Default for WrittenTerms {
    fn default() -> Self {
        Self { good_within_s: DEFAULT_S, state: None, counted: false }
    }
}

impl WrittenTerms {
    /// Leaves them for the watch.
    ///
    /// # Errors
    /// The file system's. The watch then goes by the defaults.
    pub fn write(&self) -> io::Result<()> {
        fs::create_dir_all(this_boot::DIRECTORY)?;
        fs::write(PATH, serde_json::to_vec(self)?)
    }

    /// Reads them; what is missing is its default.
    #[must_use]
    pub fn read() -> Self {
        let text = files::read(Path::new(PATH), MAX_BYTES).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// The terms of the boot that was started with this kernel command line.
    #[must_use]
    pub fn terms(&self, command_line: &str) -> Terms {
        match this_boot::safe_start(command_line) {
            Some(number) => Terms::Safe(number),
            None => Terms::GoodWithin((self.good_within_s > 0).then_some(Duration::from_secs(self.good_within_s))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Terms, WrittenTerms};
    use std::time::Duration;

    #[test]
    fn terms_follow_from_the_configuration_and_the_command_line() {
        let of = |good_within_s, line: &str| WrittenTerms { good_within_s, ..WrittenTerms::default() }.terms(line);
        assert_eq!(of(600, "quiet"), Terms::GoodWithin(Some(Duration::from_secs(600))));
        assert_eq!(of(0, "quiet"), Terms::GoodWithin(None));
        assert_eq!(of(0, "quiet reflash.safe=3"), Terms::Safe(3));
        let missing: WrittenTerms = serde_json::from_str("{\"news\": 1}").unwrap();
        assert_eq!(missing, WrittenTerms::default());
        assert!(!missing.counted, "what is not known to be about this boot is not believed");
    }
}
