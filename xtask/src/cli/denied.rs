//! Errors about permissions, with the usual reason of them.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::Error;

use crate::host_packages::{as_root, is_root};

/// Adds the usual reason to an error about permissions: what is built belongs to root once a command ran as root.
pub(super) fn blame_root(error: Error, places: &[PathBuf]) -> Error {
    let is_denied = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
    };
    if error.chain().any(is_denied) && !is_root() { with_owner(error, places) } else { error }
}

fn with_owner(error: Error, places: &[PathBuf]) -> Error {
    let is_of_root = |place: &&PathBuf| {
        let places = [place.to_path_buf(), place.join("release")];
        places.iter().any(|place| place.metadata().is_ok_and(|found| found.uid() == 0))
    };
    match places.iter().find(is_of_root) {
        Some(place) => error.context(format!(
            "{} belongs to root, since an earlier command ran as root: run this one as root too: {}",
            place.display(),
            as_root()
        )),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::{blame_root, with_owner};
    use anyhow::Error;
    use std::io;

    #[test]
    fn what_belongs_to_root_is_named_with_the_command_to_type() {
        let denied = || Error::from(io::Error::from(io::ErrorKind::PermissionDenied)).context("create dist/x");
        let text = format!("{:#}", with_owner(denied(), &["/none".into(), "/proc".into()]));
        assert!(text.starts_with("/proc belongs to root") && text.contains("sudo env"), "{text}");
        assert!(text.ends_with("create dist/x: permission denied"), "{text}");
        assert_eq!(format!("{:#}", with_owner(denied(), &["/none".into()])), "create dist/x: permission denied");
        let other = Error::from(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(format!("{:#}", blame_root(other, &["/proc".into()])), "entity not found");
    }
}
