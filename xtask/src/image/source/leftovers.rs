//! Leftovers of the place where a source comes from: of a container, of another machine, of the program that packed it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::super::mounts::without_disks;
use super::archive;
use super::merge::{ArchiveInode, ContentPlace, InodeKind, Member, MergedTree};
use crate::recipe::places::{IDENTITIES, Maker};

/// Directories whose content is of a running machine.
const EMPTIED: &[&str] = &["dev", "proc", "sys", "run", "tmp", "var/tmp", "lost+found"];

/// Files that a container, its tools or another machine has, and a robot must not have. The rest that every image loses
/// is in `normal.rs`.
const REMOVED: &[&str] = &[
    // A mark by which programs, systemd among them, believe to be in a container.
    ".dockerenv",
    ".dockerinit",
    "lost+found",
    "swapfile",
    "swap.img",
    // The name and the name servers of the container.
    "etc/hostname",
    "etc/resolv.conf",
    // This forbids services to start, which an image that is a system does not.
    "usr/sbin/policy-rc.d",
    "usr/bin/policy-rc.d",
    // Settings that make a container small, quick to build, and unsafe in a loss of power.
    "etc/apt/apt.conf.d/docker-clean",
    "etc/apt/apt.conf.d/docker-gzip-indexes",
    "etc/apt/apt.conf.d/docker-no-languages",
    "etc/apt/apt.conf.d/docker-autoremove-suggests",
    "etc/dpkg/dpkg.cfg.d/docker-apt-speedup",
    "etc/initramfs-tools/conf.d/resume",
    // Names that another machine gave to its network cards, and its encrypted disks.
    "etc/udev/rules.d/70-persistent-net.rules",
    "etc/crypttab",
];

/// Content of etc/hosts where a container has none of its own: its tools put theirs over it while it runs.
const HOSTS: &[u8] = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// Removes the leftovers. Returns what a person should know, each as a sentence.
///
/// # Errors
/// When a file of the source cannot be read or written.
pub fn remove(tree: &mut MergedTree, layers: &mut Vec<PathBuf>, scratch: &Path) -> Result<Vec<String>> {
    for path in EMPTIED {
        tree.empty(path.as_bytes());
    }
    for path in REMOVED {
        tree.remove(path.as_bytes());
    }
    remove_identities(tree);
    let mut added: Vec<(&str, Vec<u8>)> = Vec::new();
    let mut notes = Vec::new();
    if text(tree, layers, "etc/hosts")?.is_none_or(|text| text.trim_ascii().is_empty()) {
        added.push(("etc/hosts", HOSTS.to_vec()));
    }
    if let Some(table) = text(tree, layers, "etc/fstab")? {
        let (kept, dropped) = without_disks(&String::from_utf8_lossy(&table));
        if !dropped.is_empty() {
            notes.push(format!(
                "etc/fstab of the source names disks of another machine, which are left out: {}",
                dropped.join("; ")
            ));
            added.push(("etc/fstab", kept.into_bytes()));
        }
    }
    let layer = layers.len();
    let own = scratch.join("own");
    let content: Vec<u8> = added.iter().flat_map(|(_, content)| content.clone()).collect();
    std::fs::write(&own, content)?;
    layers.push(own);
    let mut offset = 0;
    let mut members = Vec::new();
    for (path, content) in added {
        let bytes = content.len() as u64;
        let kind = InodeKind::File(ContentPlace { layer, offset, bytes });
        offset += bytes;
        let inode =
            ArchiveInode { kind, mode: 0o644, user: 0, group: 0, modified_unix_s: 0, attributes: BTreeMap::new() };
        members.push((path.as_bytes().to_vec(), Member::New(inode)));
    }
    tree.apply(members)?;
    Ok(notes)
}

/// Removes what makes a machine itself before packages are added: dropbear makes its keys from those of openssh. What a
/// unit makes again stays until then, by which it is known what to make.
fn remove_identities(tree: &mut MergedTree) {
    for identity in IDENTITIES.iter().filter(|identity| identity.made_by == Maker::Itself) {
        let Some((directory, _)) = identity.path.rsplit_once('/') else { continue };
        let names = tree.find(directory.as_bytes()).and_then(|number| tree.children(number));
        let paths = names.into_iter().flat_map(BTreeMap::keys).filter_map(|name| {
            let path = format!("{directory}/{}", str::from_utf8(name).ok()?);
            identity.is_at(Path::new(&path)).then_some(path)
        });
        for path in paths.collect::<Vec<_>>() {
            tree.remove(path.as_bytes());
        }
    }
}

fn text(tree: &MergedTree, layers: &[PathBuf], path: &str) -> Result<Option<Vec<u8>>> {
    let kind = tree.find(path.as_bytes()).map(|number| &tree.inode(number).kind);
    match kind {
        Some(InodeKind::File(extent)) => archive::content(layers, *extent).map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::remove;
    use crate::image::source::merge::{ArchiveInode, ContentPlace, InodeKind, Member, MergedTree};
    use std::collections::BTreeMap;

    /// A tree whose files all have this text.
    fn tree(directory: &std::path::Path, paths: &[&str], text: &str) -> (MergedTree, Vec<std::path::PathBuf>) {
        let layer = directory.join("layer");
        std::fs::write(&layer, text).unwrap();
        let kind = InodeKind::File(ContentPlace { layer: 0, offset: 0, bytes: text.len() as u64 });
        let inode =
            ArchiveInode { kind, mode: 0o600, user: 7, group: 7, modified_unix_s: 9, attributes: BTreeMap::new() };
        let mut tree = MergedTree::default();
        tree.apply(paths.iter().map(|path| (path.as_bytes().to_vec(), Member::New(inode.clone()))).collect()).unwrap();
        (tree, vec![layer])
    }

    #[test]
    fn leftovers_of_a_container_go() {
        let directory = tempfile::tempdir().unwrap();
        let gone = [
            ".dockerenv",
            "etc/hostname",
            "etc/resolv.conf",
            "usr/sbin/policy-rc.d",
            "dev/console",
            "run/.containerenv",
            "etc/ssh/ssh_host_rsa_key",
            "etc/nvme/hostid",
        ];
        let kept = ["usr/sbin/init", "etc/ssh/sshd_config", "etc/apt/apt.conf.d/own", "etc/hosts"];
        let (mut tree, mut layers) = tree(directory.path(), &[&gone[..], &kept].concat(), "127.0.0.1 localhost\n");
        assert!(remove(&mut tree, &mut layers, directory.path()).unwrap().is_empty());
        for path in gone {
            assert!(tree.find(path.as_bytes()).is_none(), "{path}");
        }
        for path in kept {
            assert!(tree.find(path.as_bytes()).is_some(), "{path}");
        }
        assert!(tree.find(b"dev").is_some(), "the directory itself stays");
    }

    #[test]
    fn an_empty_table_of_hosts_is_filled() {
        let directory = tempfile::tempdir().unwrap();
        for paths in [&["etc/hosts"][..], &["etc/passwd"]] {
            let (mut tree, mut layers) = tree(directory.path(), paths, "");
            remove(&mut tree, &mut layers, directory.path()).unwrap();
            let number = tree.find(b"etc/hosts").unwrap();
            let InodeKind::File(extent) = tree.inode(number).kind else { panic!("{:?}", tree.inode(number)) };
            let text = crate::image::source::archive::content(&layers, extent).unwrap();
            assert!(text.starts_with(b"127.0.0.1\tlocalhost\n"));
        }
    }
}
