//! Requirements that every image has, checked before the long work, where they can still be mended by a package.

use anyhow::{Result, bail, ensure};

use super::archive;
use super::merge::{InodeKind, MergedTree, ROOT};
use std::path::PathBuf;

/// One requirement.
struct Requirement {
    /// TreeName for people.
    what: &'static str,
    /// Paths of which one must be there.
    places: &'static [&'static str],
    /// Package of Debian and Ubuntu that has it.
    package: &'static str,
}

const REQUIREMENTS: &[Requirement] = &[
    Requirement {
        what: "an init (sbin/init of systemd)",
        places: &["usr/sbin/init", "usr/bin/init"],
        package: "systemd-sysv",
    },
    Requirement { what: "systemd", places: &["usr/lib/systemd/systemd"], package: "systemd" },
    Requirement { what: "udev", places: &["usr/lib/systemd/systemd-udevd", "usr/bin/udevadm"], package: "udev" },
    Requirement { what: "depmod and modprobe", places: &["usr/sbin/modprobe", "usr/bin/modprobe"], package: "kmod" },
    Requirement {
        what: "OSTree's way into a deployment",
        places: &["usr/lib/ostree/ostree-prepare-root"],
        package: "ostree-boot",
    },
    Requirement {
        what: "the check of the data partition (e2fsck)",
        places: &["usr/sbin/e2fsck", "usr/bin/e2fsck"],
        package: "e2fsprogs",
    },
    Requirement {
        what: "the message bus, which switches the machine off by its button",
        places: &["usr/bin/dbus-daemon", "usr/bin/dbus-broker-launch"],
        package: "dbus",
    },
];

/// Checks what no package can mend: a merged /usr, a name, programs for this architecture.
///
/// # Errors
/// With what is wrong, and what can be done.
pub fn check_basis(tree: &MergedTree, layers: &[PathBuf]) -> Result<()> {
    ensure!(tree.find(b"usr").is_some(), "the source is no root file system: it has no /usr{}", wrapped(tree));
    // Programs name the loader in /lib64 by its path, so a directory there ends every one. A system for one
    // architecture need not have the last three.
    for (name, is_needed) in
        [("bin", true), ("sbin", true), ("lib", true), ("lib64", false), ("lib32", false), ("libx32", false)]
    {
        let path = tree.children(ROOT).and_then(|children| children.get(name.as_bytes()));
        let is_link = path.map(|number| matches!(tree.inode(*number).kind, InodeKind::Link(_)));
        ensure!(
            is_link.unwrap_or(!is_needed),
            "/{name} of the source is no link into /usr: OSTree's deployments need a merged /usr, as Debian has it \
             since 12 and Ubuntu since 19.04; install the package usrmerge in it. A layer that brings a directory /{name} \
             replaces the link: let it bring /usr/{name}"
        );
    }
    ensure!(
        tree.find(b"usr/lib/os-release").is_some(),
        "the source has no /usr/lib/os-release, which says what system it is; the package base-files of Debian and \
         Ubuntu has it, and /etc/os-release is a link to it"
    );
    for program in [b"usr/bin/env".as_slice(), b"usr/bin/sh", b"usr/lib/systemd/systemd"] {
        let Some(number) = tree.find(program) else { continue };
        if let InodeKind::File(extent) = tree.inode(number).kind {
            let head = archive::content(layers, super::merge::ContentPlace { bytes: extent.bytes.min(20), ..extent })?;
            ensure!(
                is_for_amd64(&head),
                "/{} of the source is no program for amd64, for which the builder makes images",
                String::from_utf8_lossy(program)
            );
        }
    }
    Ok(())
}

/// Says what a source without /usr may be instead.
fn wrapped(tree: &MergedTree) -> String {
    let names = tree.children(ROOT).map(|children| children.keys().map(|name| archive_name(name)).collect::<Vec<_>>());
    let names = names.unwrap_or_default();
    if names.iter().any(|name| name == "rootfs") {
        return "; it has rootfs/ and may be an image of LXD, which is given as source.lxd".into();
    }
    if names.iter().any(|name| name == "oci-layout" || name == "manifest.json") {
        return "; it may be a container image, which is given as source.oci = \"oci-archive:FILE\" or \
                \"docker-archive:FILE\""
            .into();
    }
    if names.is_empty() {
        return "; it is empty".into();
    }
    format!("; at its top it has {}", names.iter().take(8).cloned().collect::<Vec<_>>().join(", "))
}

fn archive_name(name: &[u8]) -> String {
    super::merge::shown(name)
}

/// Tells programs for amd64 from others by their header; a script is for all.
fn is_for_amd64(head: &[u8]) -> bool {
    !head.starts_with(b"\x7fELF") || head.get(18..20) == Some(&[62, 0])
}

/// Checks that a system has everything that an image needs. `exists` answers for a path of it, `kernels` are the
/// versions whose modules it has.
///
/// # Errors
/// With all that is missing, and the packages that have it.
pub fn check(exists: &dyn Fn(&str) -> bool, kernels: usize) -> Result<()> {
    let missing: Vec<&Requirement> =
        REQUIREMENTS.iter().filter(|one| !one.places.iter().any(|place| exists(place))).collect();
    let mut names: Vec<&str> = missing.iter().map(|one| one.what).collect();
    let mut packages: Vec<&str> = missing.iter().map(|one| one.package).collect();
    if kernels == 0 {
        names.push("a kernel with its modules");
        packages.push("linux-image-amd64 (linux-image-generic on Ubuntu)");
    }
    if names.is_empty() {
        return Ok(());
    }
    let how = if exists("usr/bin/apt-get") {
        format!("add to distribution.packages: {}", packages.join(", "))
    } else {
        format!("it has no apt-get either, so put them into the source; Debian's packages are {}", packages.join(", "))
    };
    bail!("the source has not all that a system needs; it lacks {}. To mend that, {how}", names.join("; "))
}

#[cfg(test)]
mod tests {
    use super::super::merge::{ArchiveInode, InodeKind, Member, MergedTree};
    use super::{REQUIREMENTS, check, check_basis, is_for_amd64};

    fn tree(links: &[&str], directories: &[&str]) -> MergedTree {
        let member = |(path, kind): (&str, InodeKind)| {
            let (mode, attributes) = (0o755, Default::default());
            let inode = ArchiveInode { kind, mode, user: 0, group: 0, modified_unix_s: 0, attributes };
            (path.as_bytes().to_vec(), Member::New(inode))
        };
        let links = links.iter().map(|name| (*name, InodeKind::Link(format!("usr/{name}").into_bytes())));
        let directories = directories.iter().map(|name| (*name, InodeKind::Directory(Default::default())));
        let mut tree = MergedTree::default();
        tree.apply(links.chain(directories).map(member).collect()).unwrap();
        tree
    }

    /// A layer with one file in /lib64 takes the loader from every program.
    #[test]
    fn a_directory_in_the_place_of_any_link_of_a_merged_usr_is_refused() {
        const LINKS: &[&str] = &["bin", "sbin", "lib", "lib64", "lib32", "libx32"];
        check_basis(&tree(LINKS, &["usr", "usr/lib/os-release"]), &[]).unwrap();
        check_basis(&tree(&LINKS[..3], &["usr", "usr/lib/os-release"]), &[]).unwrap();
        for name in LINKS {
            let others: Vec<&str> = LINKS.iter().copied().filter(|other| other != name).collect();
            let error = check_basis(&tree(&others, &["usr", "usr/lib/os-release", name]), &[]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("/{name} of the source is no link")), "{error}");
        }
        let error = check_basis(&tree(LINKS, &["usr"]), &[]).unwrap_err().to_string();
        assert!(error.contains("base-files"), "{error}");
        assert!(check_basis(&tree(&[], &[]), &[]).unwrap_err().to_string().ends_with("it is empty"));
    }

    #[test]
    fn all_that_is_missing_is_named_at_once_with_its_package() {
        let all = |path: &str| REQUIREMENTS.iter().any(|one| one.places.contains(&path)) || path == "usr/bin/apt-get";
        check(&all, 1).unwrap();
        let error = check(&|path| all(path) && !path.contains("ostree"), 0).unwrap_err().to_string();
        assert!(error.contains("distribution.packages: ostree-boot, linux-image-amd64"), "{error}");
        let error = check(&|_| false, 1).unwrap_err().to_string();
        assert!(error.contains("no apt-get") && error.contains("systemd-sysv") && error.contains("dbus"), "{error}");
    }

    #[test]
    fn programs_of_other_machines_are_recognised() {
        let mut head = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0";
        assert!(is_for_amd64(&head) && is_for_amd64(b"#!/bin/sh\n"));
        head[18] = 183;
        assert!(!is_for_amd64(&head));
    }
}
