//! The system's own initramfs: the agent as `/init` in the role `system`, drivers of disks, and two programs of the
//! image with their libraries: the one by which OSTree enters a deployment, and the check of the data partition.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::within::followed;
use crate::initramfs::{self, ArchiveEntry, InitramfsContent, Missing};
use crate::kernel::Kernel;
use crate::step;

/// Groups of `initramfs/modules.toml` that lead to a disk, a screen and a watchdog, which systemd then finds at once.
/// Built-in network cards are among them because a host name may be made from their address; those on USB wait for the
/// system itself.
const GROUPS: &[&str] =
    &["filesystems", "virtio", "ata", "nvme", "mmc", "usb", "intel", "realtek", "console", "watchdog"];

/// Programs: the path in the initramfs, the paths where distributions put them, and the package.
const PROGRAMS: &[(&str, &[&str], &str)] = &[
    ("/usr/lib/ostree/ostree-prepare-root", &["/usr/lib/ostree/ostree-prepare-root"], "ostree-boot"),
    ("/usr/sbin/e2fsck", &["/usr/sbin/e2fsck", "/sbin/e2fsck"], "e2fsprogs"),
];

/// Builds the initramfs for the kernel in `tree` and writes it to `out`.
///
/// # Errors
/// Fails when a program is missing in the image, and names the package that has it.
pub fn build(agent: &Path, kernel: &Kernel, tree: &Path, out: &Path) -> Result<()> {
    let mut files: BTreeMap<String, ArchiveEntry> = BTreeMap::new();
    for (path, places, package) in PROGRAMS {
        let found = places.iter().find(|place| followed(tree, Path::new(place)).is_file());
        let found =
            found.with_context(|| format!("the image has no {path}; add {package} to distribution.packages"))?;
        files.insert((*path).to_owned(), read(tree, found, path)?);
        for library in libraries(tree, found)? {
            let entry = read(tree, &library, &library)?;
            files.insert(library, entry);
        }
    }
    let content = InitramfsContent {
        role: "system",
        init: agent,
        kernel,
        modules: initramfs::modules_of_groups(GROUPS)?,
        // A kernel for virtual machines lacks the drivers that only real machines need.
        missing: Missing::Allow,
        files: files.into_values().collect(),
        // It is in an image whose chunks are compressed anyway.
        level: None,
    };
    initramfs::build(&content, out)
}

fn read(tree: &Path, path: &str, name: &str) -> Result<ArchiveEntry> {
    let source = followed(tree, Path::new(path));
    let content = fs::read(&source).with_context(|| format!("read {}", source.display()))?;
    Ok(ArchiveEntry::file(name, content, 0o755))
}

/// Lists the libraries that a program is linked with, as the image's own loader finds them.
fn libraries(tree: &Path, program: &str) -> Result<Vec<String>> {
    let loader = "/lib64/ld-linux-x86-64.so.2";
    let list = step::output(Command::new("chroot").arg(tree).args([loader, "--list", program]))?;
    let found = parse(&list);
    ensure!(!found.is_empty(), "{loader} lists no libraries of {program}:\n{list}");
    Ok(found)
}

/// Parses the loader's list. Lines are `name => /path (address)` for libraries, `/path (address)` for the loader and
/// `name (address)` for the kernel's vDSO.
fn parse(list: &str) -> Vec<String> {
    let paths = list.lines().filter_map(|line| {
        let path = line.split("=>").last()?.split_whitespace().next()?;
        path.starts_with('/').then(|| path.to_owned())
    });
    paths.collect()
}

#[cfg(test)]
mod tests {
    use super::{GROUPS, parse};
    use crate::initramfs;

    #[test]
    fn the_loaders_list_is_read() {
        let list = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f01)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f02)\n";
        assert_eq!(parse(list), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }

    /// <https://github.com/winesapOS/winesapOS/issues/753>, <https://github.com/FOGProject/fos/issues/107>: a firmware
    /// that hides the NVMe drive behind a VMD, which then is missing in an initramfs without its driver.
    #[test]
    fn the_drivers_of_vmd_and_ufs_are_in_both_initramfs() {
        for modules in [initramfs::declared_modules().unwrap(), initramfs::modules_of_groups(GROUPS).unwrap()] {
            assert!(["nvme", "vmd", "ufshcd_pci"].iter().all(|name| modules.iter().any(|found| found == name)));
        }
    }
}
