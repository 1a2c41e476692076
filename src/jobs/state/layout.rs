//! The layout of the installed release, read before anything of the disk is in use.

use std::path::Path;

use serde::Deserialize;

use super::MANIFEST;
use crate::release::layout::{Layout, Role, Size};
use crate::release::manifest::MAX_SIZE_BYTES;
use crate::sys::files;
use crate::sys::mount::{self, Mount};

/// Directory below which state partitions are mounted for a look.
const MOUNTS: &str = "/run/reflash/look";

/// The part of a manifest that is read here. Its signature is not checked: it can only keep a partition as it is.
#[derive(Deserialize)]
struct LayoutOfManifest {
    layout: Option<Layout>,
}

/// Whether the installed release gives data a size of its own on this robot, so that the room behind it is free on
/// purpose. The state partition is mounted for reading, and its journal is not replayed.
#[must_use]
pub fn fixes_size_of_data(state: &Path, disk: &str) -> bool {
    let directory = Path::new(MOUNTS).join(disk);
    if Mount::device(state, "ext4").read_only().no_load().data_only().on(&directory).is_err() {
        return false;
    }
    let manifest = files::read_below(&directory, Path::new(MANIFEST), MAX_SIZE_BYTES);
    let _ = mount::unmount(&directory).or_else(|_| mount::detach(&directory));
    manifest.is_ok_and(|json| in_manifest(&json))
}

fn in_manifest(json: &[u8]) -> bool {
    let layout = serde_json::from_slice(json).ok().and_then(|LayoutOfManifest { layout }| layout);
    let partitions = layout.map(|layout| layout.partitions).unwrap_or_default();
    partitions.iter().any(|partition| partition.role == Role::Data && partition.size != Size::Rest)
}

#[cfg(test)]
mod tests {
    use super::in_manifest;

    #[test]
    fn only_a_layout_that_says_so_fixes_the_size_of_data() {
        let manifest = |size: &str| {
            format!(
                r#"{{"format":1,"layout":{{"table":"mbr","partitions":[
                {{"name":"system","role":"system","size":"800MiB"}},{{"name":"data","role":"data","size":"{size}"}}]}}}}"#
            )
        };
        assert!(in_manifest(manifest("500MiB").as_bytes()) && in_manifest(manifest("50%").as_bytes()));
        assert!(!in_manifest(manifest("rest").as_bytes()));
        for other in ["", "{}", r#"{"layout":null}"#, "noise"] {
            assert!(!in_manifest(other.as_bytes()), "{other}");
        }
    }
}
