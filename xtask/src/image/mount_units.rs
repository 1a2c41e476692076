//! Disks of other machines in units: what a line of /etc/fstab says, a unit `.mount` or `.swap` can say too, and images
//! of other machines have them as well. Only units that a start pulls in count; an `.automount` unit waits for nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::mounts::is_disk;
use super::within::followed;

/// Directories with units; a file in one hides those of its name in the ones after it.
const DIRECTORIES: &[&str] = &["etc/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system"];

/// Unit that a start waits for.
struct DiskUnit {
    name: String,
    disk: String,
    /// Target or service that pulls it in.
    by: String,
    /// Whether that one fails without the disk.
    is_required: bool,
}

impl DiskUnit {
    fn shown(&self) -> String {
        let how = if self.is_required { "required" } else { "wanted" };
        format!("{} for {} ({how} by {})", self.name, self.disk, self.by)
    }
}

/// Returns what is wrong with the units of a tree, or nothing.
#[must_use]
pub fn fault(tree: &Path) -> Option<String> {
    let needed: Vec<String> = units(tree).iter().filter(|unit| unit.is_required).map(DiskUnit::shown).collect();
    (!needed.is_empty()).then(|| {
        format!(
            "units of the image need disks, and a robot without them would start into an emergency shell, or without \
             what needs them: {}; write WantedBy= in place of RequiredBy=, enable an .automount unit instead, or disable \
             the unit in `commands` (the partitions of the layout are mounted without one)",
            needed.join("; ")
        )
    })
}

/// Returns the units that a start only waits for, as long as systemd waits for a device.
#[must_use]
pub fn waits(tree: &Path) -> Vec<String> {
    units(tree).iter().filter(|unit| !unit.is_required).map(DiskUnit::shown).collect()
}

/// The units that name a disk and are pulled in by another unit, each by what needs it most.
fn units(tree: &Path) -> Vec<DiskUnit> {
    let mut found: BTreeMap<String, DiskUnit> = BTreeMap::new();
    for directory in DIRECTORIES {
        for pulling in names(&followed(tree, Path::new(directory))) {
            let pulled = |ending| Some((pulling.strip_suffix(ending)?.to_owned(), ending == ".requires"));
            let Some((by, is_required)) = pulled(".requires").or_else(|| pulled(".wants")) else { continue };
            for name in names(&followed(tree, &Path::new(directory).join(&pulling))) {
                let Some(disk) = disk_of(tree, &name) else { continue };
                if is_required || !found.contains_key(&name) {
                    found.insert(name.clone(), DiskUnit { name, disk, by: by.clone(), is_required });
                }
            }
        }
    }
    found.into_values().collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The disk that a unit mounts or swaps to. A unit that is masked is an empty file, or a link out of the tree.
fn disk_of(tree: &Path, name: &str) -> Option<String> {
    let kind = Path::new(name).extension().and_then(OsStr::to_str)?;
    let section = match kind {
        "mount" => "[Mount]",
        "swap" => "[Swap]",
        _ => return None,
    };
    let path = |directory: &&str| Path::new(directory).join(name);
    let is_there = |path: &PathBuf| super::within::inside(tree, path).symlink_metadata().is_ok();
    let path = DIRECTORIES.iter().map(path).find(is_there)?;
    let text = fs::read(followed(tree, &path)).ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines().map(str::trim).skip_while(|line| *line != section).skip(1);
    let what = lines.by_ref().take_while(|line| !line.starts_with('[')).filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "What").then(|| value.trim().to_owned())
    });
    // Of a key that is there twice the last one counts.
    what.last().filter(|disk| is_disk(disk))
}

#[cfg(test)]
mod tests {
    use super::{fault, waits};
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    const SYSTEM: &str = "etc/systemd/system";

    fn unit(tree: &Path, directory: &str, name: &str, text: &str) {
        fs::create_dir_all(tree.join(directory)).unwrap();
        fs::write(tree.join(directory).join(name), text).unwrap();
    }

    fn pull(tree: &Path, pulling: &str, name: &str) {
        let directory = tree.join(SYSTEM).join(pulling);
        fs::create_dir_all(&directory).unwrap();
        symlink(format!("/{SYSTEM}/{name}"), directory.join(name)).unwrap();
    }

    #[test]
    fn a_unit_that_needs_a_disk_of_another_machine_is_named_as_a_line_of_fstab_is() {
        let tree = tempfile::tempdir().unwrap();
        let tree = tree.path();
        unit(tree, SYSTEM, "data.mount", "[Unit]\nX=1\n[Mount]\nWhat = /dev/sdb1\nWhere=/data\n");
        assert_eq!((fault(tree), waits(tree)), (None, Vec::new()), "it is not enabled");
        pull(tree, "multi-user.target.wants", "data.mount");
        assert_eq!(waits(tree), ["data.mount for /dev/sdb1 (wanted by multi-user.target)"]);
        pull(tree, "local-fs.target.requires", "data.mount");
        let said = fault(tree).unwrap();
        assert!(said.contains("data.mount for /dev/sdb1 (required by local-fs.target)"), "{said}");
        assert!(waits(tree).is_empty());
        unit(tree, "usr/lib/systemd/system", "dev-sdc.swap", "[Swap]\nWhat=/dev/disk/by-uuid/1\n");
        pull(tree, "swap.target.requires", "dev-sdc.swap");
        assert!(fault(tree).unwrap().contains("; dev-sdc.swap for /dev/disk/by-uuid/1 (required by swap.target)"));
    }

    #[test]
    fn units_that_no_start_waits_for_are_none_of_this() {
        let tree = tempfile::tempdir().unwrap();
        let tree = tree.path();
        for (name, text) in [
            ("tmp.mount", "[Mount]\nWhat=tmpfs\nWhere=/tmp\n"),
            ("bind.mount", "[Mount]\nWhat=/usr/share/x\nWhere=/srv/x\n"),
            ("nfs.mount", "[Mount]\nWhat=server:/x\n"),
            ("zram.swap", "[Swap]\nWhat=/dev/zram0\n"),
            ("usb.automount", "[Automount]\nWhere=/usb\n[Mount]\nWhat=/dev/sdb1\n"),
            ("again.mount", "[Mount]\nWhat=/dev/sdb1\nWhat=tmpfs\n"),
            ("other.mount", "[Unit]\nWhat=/dev/sdb1\n[Mount]\nWhat=tmpfs\n[Install]\nWhat=/dev/sdb1\n"),
        ] {
            unit(tree, SYSTEM, name, text);
            pull(tree, "local-fs.target.requires", name);
        }
        unit(tree, "usr/lib/systemd/system", "masked.mount", "[Mount]\nWhat=/dev/sdb1\n");
        symlink("/dev/null", tree.join(SYSTEM).join("masked.mount")).unwrap();
        pull(tree, "local-fs.target.requires", "masked.mount");
        assert_eq!((fault(tree), waits(tree)), (None, Vec::new()));
    }
}
