//! What of the recovery partition comes from the release: its file system, where nothing of it can be read any more,
//! and the templates on it, of which there is one copy.
//!
//! Nothing is lost by a new file system: no superblock is left, so that neither GRUB nor a recovery finds anything on
//! the partition.

use std::io;
use std::path::Path;

use super::slot_files::Thoroughness;
use crate::chain::chain;
use crate::flash::target::DeviceTarget;
use crate::flash::template::WholeTemplate;
use crate::jobs::site_copy::{CONFIG, SiteCopy};
use crate::jobs::state::{make_directory, replace_durably};
use crate::release::bootstrap_names as names;
use crate::sys::files;

/// Files on the recovery partition of which a destroyed state partition and a factory reset are made.
const TEMPLATES: [&str; 2] = [names::STATE, names::DATA];

/// Brings files of the installed release by their names, in that order, or the reason why not.
pub type FetchFiles<'a> = dyn Fn(&[String]) -> Result<Vec<Vec<u8>>, String> + 'a;

/// Makes the file system on the device of the partition anew.
///
/// # Errors
/// What keeps it from being made, before anything is written; or the error of the device.
pub(super) fn make(device: &Path, copy: &SiteCopy, fetch: &FetchFiles<'_>) -> Result<(), String> {
    // With a configuration that nothing is known of, no recovery would find its release.
    if copy.get(CONFIG).is_none() {
        return Err(format!("there is no copy of {CONFIG}"));
    }
    let file_system = fetch(&[names::RECOVERY.to_owned()])?.pop().unwrap_or_default();
    let target = DeviceTarget::open(device).map_err(|error| chain(&error))?;
    let whole = WholeTemplate::read(|| Ok(file_system.as_slice())).map_err(|error| error.to_string())?;
    whole.write(&target).map_err(|error| error.to_string())
}

/// The templates that were on the partition at `root` and cannot be used any more.
pub(super) fn lost_templates(root: &Path, copy: &SiteCopy, thoroughness: Thoroughness) -> Vec<&'static str> {
    let was_there = |name: &str| copy.places().any(|(path, _)| path == name);
    TEMPLATES.into_iter().filter(|name| was_there(name) && !is_template(root, name, thoroughness)).collect()
}

fn is_template(root: &Path, name: &str, thoroughness: Thoroughness) -> bool {
    let Ok(file) = files::open_below(root, Path::new(name)) else { return false };
    match thoroughness {
        Thoroughness::Names => file.metadata().is_ok_and(|metadata| metadata.len() > 0),
        // Its checksum tells of a lost block.
        Thoroughness::Content => zstd::stream::read::Decoder::new(file)
            .and_then(|mut content| io::copy(&mut content, &mut io::sink()))
            .is_ok_and(|bytes| bytes > 0),
    }
}

/// Brings a template from the release.
///
/// # Errors
/// It cannot be fetched, or not be written.
pub(super) fn bring_template(root: &Path, name: &str, fetch: &FetchFiles<'_>) -> Result<(), String> {
    let content = fetch(&[name.to_owned()])?.pop().unwrap_or_default();
    let path = root.join(name);
    let made = path.parent().map_or(Ok(()), make_directory);
    made.and_then(|()| replace_durably(&path, &content)).map_err(|error| error.to_string())
}
