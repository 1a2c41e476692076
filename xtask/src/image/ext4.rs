//! A directory becomes an ext4 image: the same bytes for the same content, on every host.
//!
//! `mke2fs -d` copies in the order in which the host's file system lists a directory, and takes times over from it.
//! So the file system is made empty and filled by debugfs, from a script written here in sorted order. That needs
//! neither a mount, nor memory for the content, nor root.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use walkdir::WalkDir;

use crate::recipe::Size;
use crate::step;

const BLOCK: u64 = 4096;
const INODE: u64 = 256;
const MIB: u64 = 1 << 20;
/// Blocks of a group: what one bitmap block covers.
const GROUP: u64 = 8 * BLOCK;
/// The first inodes belong to ext4 itself; number 11 is lost+found.
const RESERVED_INODES: u64 = 11;

/// Every time in the image, in seconds since 1970. A constant, so that a file that did not change keeps its inode
/// block, which a robot then need not fetch; OSTree's checkouts have no times either. 0 would mean "now" to e2fsprogs.
const TIME: &str = "1";

/// Only features that GRUB 2.06 reads, named one by one: the default differs between versions and distributions.
/// No journal: nothing is ever written. No `metadata_csum_seed`, `orphan_file`, `inline_data`: GRUB.
const FEATURES: &str = "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,\
                        dir_nlink,extra_isize,metadata_csum";

/// Writes `tree` as an image of `size` to `image`, whose name it gets only when complete. `uuid_of` decides the UUID
/// of the file system.
///
/// # Errors
/// The content does not fit, has names or types that an image cannot have, or a tool failed.
pub fn build(tree: &Path, image: &Path, size: Size, uuid_of: &str) -> Result<u64> {
    let content = Content::read(tree)?;
    let bytes = match size {
        Size::Mib(mib) => u64::from(mib) * MIB,
        Size::Auto => content.bytes_needed(),
    };
    let temporary = image.with_added_extension("tmp");
    let script = image.with_added_extension("debugfs");
    let result = fill(&content, &temporary, &script, bytes, &uuid(uuid_of))
        .and_then(|()| fs::rename(&temporary, image).with_context(|| format!("rename {}", temporary.display())));
    let _ = fs::remove_file(&script);
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result.map(|()| bytes)
}

fn fill(content: &Content, image: &Path, script: &Path, bytes: u64, uuid: &str) -> Result<()> {
    let file = File::create(image).with_context(|| format!("create {}", image.display()))?;
    file.set_len(bytes).with_context(|| format!("set the size of {}", image.display()))?;
    drop(file);
    let tool = |name: &str| {
        let mut command = Command::new(name);
        command.env("E2FSPROGS_FAKE_TIME", TIME).env("MKE2FS_CONFIG", "/dev/null").env("TZ", "UTC").env("LC_ALL", "C");
        // debugfs shows files through a pager otherwise.
        command.env("DEBUGFS_PAGER", "cat");
        command
    };
    let mut mke2fs = tool("mke2fs");
    mke2fs
        .args(["-q", "-F", "-b", &BLOCK.to_string(), "-I", &INODE.to_string(), "-m", "0", "-O", FEATURES, "-U", uuid])
        .args(["-N", &content.inodes().to_string(), "-E"])
        .arg(format!("lazy_itable_init=0,nodiscard,root_owner=0:0,hash_seed={uuid}"))
        .arg(image);
    step::run("mke2fs", &mut mke2fs)?;
    fs::write(script, content.script()?).with_context(|| format!("write {}", script.display()))?;
    let mut debugfs = tool("debugfs");
    debugfs.arg("-w").arg("-f").arg(script).arg(image).stdin(Stdio::null()).stdout(Stdio::null());
    let output = debugfs.stderr(Stdio::piped()).output().context("start debugfs")?;
    // Its exit status says nothing about the script; a banner is all it prints when every line worked.
    let complaints = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<&str> = complaints.lines().filter(|line| !line.starts_with("debugfs 1.")).take(10).collect();
    if !output.status.success() || !complaints.is_empty() {
        let full = complaints.iter().any(|line| line.contains("No space") || line.contains("Could not allocate"));
        let hint = if full { "; the content does not fit: give a larger image.size_mib, or \"auto\"" } else { "" };
        bail!("debugfs cannot fill an image of {} MiB{hint}:\n    {}", bytes / MIB, complaints.join("\n    "));
    }
    // Nobody will ever repair it: what is wrong must be seen now.
    step::run("e2fsck", tool("e2fsck").args(["-f", "-n"]).arg(image))
}

/// A UUID from a name, by BLAKE3 instead of the SHA-1 of version 5: hence version 8, "custom" (RFC 9562).
/// From the branch, not the commit: checksums of all metadata blocks start with it, so a UUID of its own for every
/// release would change every block of them. Nothing finds this file system by its UUID.
fn uuid(name: &str) -> String {
    let digest = blake3::hash(format!("reflash system image {name}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = reflash::digest::hex(&bytes);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

struct Item {
    /// Path in the image, without the leading slash.
    name: String,
    source: PathBuf,
    metadata: Metadata,
}

struct Content {
    items: Vec<Item>,
}

impl Content {
    fn read(tree: &Path) -> Result<Self> {
        let mut items = Vec::new();
        for entry in WalkDir::new(tree).min_depth(1).sort_by_file_name() {
            let entry = entry.with_context(|| format!("read {}", tree.display()))?;
            let name = entry.path().strip_prefix(tree).unwrap_or(entry.path());
            let name = name.to_str().with_context(|| format!("{} is not UTF-8", name.display()))?;
            // Quotes can be doubled for debugfs, a line break cannot be said at all.
            ensure!(!name.contains('\n'), "{name:?} has a line break in its name");
            let metadata = entry.metadata().with_context(|| format!("read {name}"))?;
            items.push(Item { name: name.to_owned(), source: entry.path().to_owned(), metadata });
        }
        Ok(Self { items })
    }

    fn inodes(&self) -> u64 {
        let mut seen = std::collections::HashSet::new();
        let distinct = self.items.iter().filter(|item| seen.insert((item.metadata.dev(), item.metadata.ino()))).count();
        // A few to spare: mke2fs rounds to whole blocks of every group, down too.
        distinct as u64 + RESERVED_INODES + 64
    }

    /// Blocks of files and directories, the tables of all groups, and a margin: an estimate that is too small ends
    /// in an error, one too large in bytes that are zero and cost nothing to send.
    fn bytes_needed(&self) -> u64 {
        let mut seen = std::collections::HashSet::new();
        let mut blocks = 0;
        let mut directories: HashMap<&str, u64> = HashMap::new();
        for item in &self.items {
            let (parent, name) = item.name.rsplit_once('/').unwrap_or(("", &item.name));
            *directories.entry(parent).or_default() += entry_bytes(name);
            if seen.insert((item.metadata.dev(), item.metadata.ino())) && !item.metadata.is_dir() {
                // One more for the attributes or the extents of a few.
                blocks += item.metadata.len().div_ceil(BLOCK);
            }
        }
        // Entries leave gaps at the end of blocks; directories may be empty.
        blocks += directories.values().map(|bytes| bytes.div_ceil(BLOCK - 300)).sum::<u64>();
        blocks += self.items.iter().filter(|item| item.metadata.is_dir()).count() as u64;
        blocks += self.inodes() * INODE / BLOCK;
        let groups = blocks.div_ceil(GROUP) + 1;
        // Two bitmaps a group, a backup of superblock and descriptors in some, inode tables rounded up to blocks.
        blocks += groups * 8 + blocks / 64;
        (blocks * BLOCK + 2 * MIB).div_ceil(MIB) * MIB
    }

    /// The debugfs commands. Names of a hard link after the first only link to it.
    fn script(&self) -> Result<String> {
        let mut script = String::from("sif / mode 040755\n");
        let mut first: HashMap<(u64, u64), (&str, u32)> = HashMap::new();
        let mut directories: HashMap<&str, Directory> = HashMap::new();
        let mut linked = Vec::new();
        for item in &self.items {
            let Item { name, source, metadata } = item;
            let path = quoted(&format!("/{name}"));
            let (parent, base) = name.rsplit_once('/').unwrap_or(("", name));
            let directory = directories.entry(parent).or_default();
            // `ln` fails in a full directory instead of growing it.
            if directory.must_grow(base) {
                writeln!(script, "expand_dir {}", quoted(&format!("/{parent}")))?;
            }
            let key = (metadata.dev(), metadata.ino());
            if !metadata.is_dir()
                && let Some((original, links)) = first.get_mut(&key)
            {
                *links += 1;
                if *links == 2 {
                    linked.push(key);
                }
                writeln!(script, "ln {} {path}", quoted(&format!("/{original}")))?;
                continue;
            }
            first.insert(key, (name, 1));
            if metadata.is_dir() {
                writeln!(script, "mkdir {path}")?;
            } else if metadata.is_symlink() {
                let target = fs::read_link(source).with_context(|| format!("read {name}"))?;
                let target = target.to_str().with_context(|| format!("target of {name} is not UTF-8"))?;
                ensure!(!target.contains('\n'), "target {target:?} of {name} has a line break");
                writeln!(script, "symlink {path} {}", quoted(target))?;
            } else if metadata.is_file() {
                let source = source.to_str().with_context(|| format!("{} is not UTF-8", source.display()))?;
                writeln!(script, "write {} {path}", quoted(source))?;
            } else {
                bail!("{name} is a device, a socket or a pipe; an image has none");
            }
            attributes(&mut script, &path, item)?;
        }
        for key in linked {
            let (name, links) = first[&key];
            writeln!(script, "sif {} links_count {links}", quoted(&format!("/{name}")))?;
        }
        Ok(script)
    }
}

fn attributes(script: &mut String, path: &str, item: &Item) -> Result<()> {
    let metadata = &item.metadata;
    if !metadata.is_symlink() {
        writeln!(script, "sif {path} mode 0{:o}", metadata.mode())?;
    }
    // Root's already.
    for (field, id) in [("uid", metadata.uid()), ("gid", metadata.gid())] {
        if id != 0 {
            writeln!(script, "sif {path} {field} {id}")?;
        }
    }
    let names = xattr::list(&item.source).with_context(|| format!("list the attributes of {}", item.name))?;
    let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    names.sort();
    for name in names {
        // What the host's security module says about its own files is not part of the image.
        if name == "security.selinux" || name.starts_with("security.ima") || name.starts_with("security.evm") {
            continue;
        }
        let value = xattr::get(&item.source, &name).with_context(|| format!("read {name} of {}", item.name))?;
        let octal: String = value.unwrap_or_default().iter().map(|byte| format!("\\{byte:03o}")).collect();
        writeln!(script, "ea_set {path} {name} {}", quoted(&octal))?;
    }
    Ok(())
}

/// As debugfs reads words: in double quotes, a quote doubled.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Eight bytes of header and the name, rounded up to four.
fn entry_bytes(name: &str) -> u64 {
    8 + (name.len() as u64).div_ceil(4) * 4
}

/// How full the last block of a directory is. It starts with `.` and `..`, and every block ends with a checksum.
struct Directory {
    used: u64,
}

impl Default for Directory {
    fn default() -> Self {
        Self { used: 2 * 12 }
    }
}

impl Directory {
    fn must_grow(&mut self, name: &str) -> bool {
        let bytes = entry_bytes(name);
        let full = self.used + bytes > BLOCK - 12;
        self.used = if full { bytes } else { self.used + bytes };
        full
    }
}

#[cfg(test)]
mod tests {
    use super::{build, quoted, uuid};
    use crate::recipe::Size;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;
    use std::process::Command;

    fn debugfs(image: &Path, command: &str) -> String {
        let output = Command::new("debugfs").arg("-R").arg(command).arg(image).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn fill(tree: &Path) {
        fs::create_dir_all(tree.join("many")).unwrap();
        fs::write(tree.join("a \"quoted\" name"), "hello").unwrap();
        fs::set_permissions(tree.join("a \"quoted\" name"), fs::Permissions::from_mode(0o4750)).unwrap();
        symlink("x".repeat(100), tree.join("long")).unwrap();
        // Far more than fit into one block, links among them.
        for number in 0..400 {
            fs::hard_link(tree.join("a \"quoted\" name"), tree.join(format!("many/{number:0>40}"))).unwrap();
        }
        fs::write(tree.join("sparse"), vec![0; 3 << 20]).unwrap();
        fs::create_dir(tree.join("tmp")).unwrap();
        fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    }

    #[test]
    fn the_same_content_gives_the_same_sound_image() {
        let directory = tempfile::tempdir().unwrap();
        let mut images = Vec::new();
        for name in ["one", "two"] {
            let tree = directory.path().join(name);
            fill(&tree);
            let image = directory.path().join(format!("{name}.img"));
            // build() ends with e2fsck, which counts links and blocks.
            build(&tree, &image, Size::Auto, "branch").unwrap();
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2 * images.len() + 2, "nothing else is left");
            images.push(image);
        }
        assert!(fs::read(&images[0]).unwrap() == fs::read(&images[1]).unwrap());
        let image = &images[0];
        let stat = debugfs(image, "stat \"/a \"\"quoted\"\" name\"");
        assert!(stat.contains("Mode:  04750") && stat.contains("Links: 401"), "{stat}");
        assert_eq!(debugfs(image, "cat /many/0000000000000000000000000000000000000399"), "hello");
        assert!(debugfs(image, "stat /tmp").contains("Mode:  01777"));
        assert!(debugfs(image, "stat /long").contains("Size: 100"));
        let out = directory.path().join("out");
        debugfs(image, &format!("dump /sparse {}", out.display()));
        assert!(fs::read(out).unwrap() == vec![0; 3 << 20]);
    }

    #[test]
    fn too_small_an_image_is_an_error_that_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("big"), vec![1; 4 << 20]).unwrap();
        let image = directory.path().join("x.img");
        let error = build(&tree, &image, Size::Mib(2), "branch").unwrap_err();
        assert!(format!("{error:#}").contains("size_mib"), "{error:#}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_are_quoted_and_uuids_depend_on_the_name() {
        assert_eq!(quoted("a\"b c"), "\"a\"\"b c\"");
        assert_ne!(uuid("a"), uuid("b"));
        assert_eq!((uuid("a").len(), &uuid("a")[14..15]), (36, "8"));
    }
}
