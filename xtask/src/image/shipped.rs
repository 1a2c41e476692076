//! Empties `/var`, which belongs to the machine, into the list by which each machine gets it. The format is that of
//! `reflash::release::shipped`, and the first step of the system's boot carries the list out.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, Permissions};
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use globset::GlobSet;
use reflash::release::shipped::{
    CONTENT, DIRECTORY, EACH_START, FORMAT, LIST, ListHeader, NodeType, RawPath, ShippedEntry, ShippedNode,
    ShippedRule, device_numbers, read_list, write_line,
};
use walkdir::WalkDir;

use super::removal::remove_tree;
use crate::recipe::rules::PathRule;
use crate::step;

/// Attributes that the host's kernel gives by its own policy.
const OF_THE_HOST: &[&str] = &["security.selinux", "security.ima", "security.evm"];
/// Stretch of zeros from which on it is a hole, bytes: a shorter one costs less than its place in the list.
const HOLE_BYTES: usize = 64 * 1024;

/// Most stretches of content of a file. The robot reads lines of 1 MiB, and one of these takes up to 42 bytes.
const MAX_STRETCHES: usize = 16_384;

/// What packages note about themselves in `/var`: it belongs to the packages, and so to the release. The machine would
/// otherwise keep for ever what the first release noted. A rule of the recipe comes after these.
const OF_PACKAGES: &[&str] = &[
    "/var/lib/apt/extended_states",
    "/var/lib/dpkg",
    "/var/lib/pam",
    "/var/lib/systemd/catalog",
    "/var/lib/systemd/deb-systemd-helper-enabled",
    "/var/lib/systemd/deb-systemd-helper-masked",
    "/var/lib/systemd/deb-systemd-user-helper-enabled",
    "/var/lib/systemd/deb-systemd-user-helper-masked",
    "/var/lib/ucf",
];

/// Totals of what an image ships to the machine's directories.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ShippedTotals {
    /// Number of paths.
    pub paths: usize,
    /// Bytes of content in the image.
    pub content_bytes: u64,
}

/// Kind of what a line of tmpfiles.d makes where nothing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MadeKind {
    /// Directory, or a subvolume.
    Directory,
    /// Regular file, mostly an empty one.
    File,
    /// Symbolic link with this target.
    Link(PathBuf),
}

/// Sources of the list.
#[derive(Debug)]
pub struct Shipping<'a> {
    /// Tree of the image, in which `/etc` is in `usr/etc` already.
    pub tree: &'a Path,
    /// Rules of the recipe.
    pub rules: &'a [PathRule],
    /// Name and version of the recipe.
    pub version: &'a str,
    /// Paths that a package's own tmpfiles.d makes, each with what it makes there.
    pub made_by_packages: &'a BTreeMap<PathBuf, MadeKind>,
    /// Function that follows the links from the root directory to `/var`.
    pub follow: fn(&str) -> String,
}

impl Shipping<'_> {
    /// Writes list and content into the tree, and empties `/var`.
    ///
    /// # Errors
    /// Fails with the path, or with the rule that matches nothing.
    pub fn ship(&self) -> Result<ShippedTotals> {
        let directory = self.tree.join(DIRECTORY);
        // Files that only root may read lie in it.
        private(&directory)?;
        private(&directory.join(CONTENT))?;
        let mut list = List { directory, ..List::default() };
        let mut matchers = self.matchers()?;
        self.add_var(&mut list, &mut matchers)?;
        self.add_etc(&mut list, &mut matchers)?;
        for Matcher { path, rule, used, .. } in matchers {
            match rule {
                ShippedRule::Remove => self.add_removal(&mut list, &path)?,
                _ => ensure!(used, "rules: {path} matches nothing in the image"),
            }
        }
        list.write(self.version)?;
        let var = self.tree.join("var");
        remove_tree(&var)?;
        fs::create_dir(&var).with_context(|| format!("create {}", var.display()))?;
        fs::set_permissions(&var, Permissions::from_mode(0o755)).with_context(|| format!("chmod {}", var.display()))?;
        Ok(ShippedTotals { paths: list.entries.len(), content_bytes: list.content_bytes })
    }

    fn matchers(&self) -> Result<Vec<Matcher>> {
        let built_in =
            PathRule { paths: OF_PACKAGES.iter().map(|path| (*path).to_owned()).collect(), rule: ShippedRule::Version };
        let mut matchers = Vec::new();
        for path in &built_in.paths {
            let set = built_in.matcher(path)?;
            // Not every image has them.
            matchers.push(Matcher { set, path: path.clone(), rule: built_in.rule, used: true });
        }
        for rule in self.rules {
            for path in &rule.paths {
                let path = (self.follow)(path.trim_end_matches('/'));
                matchers.push(Matcher { set: rule.matcher(&path)?, path, rule: rule.rule, used: false });
            }
        }
        Ok(matchers)
    }

    fn add_var(&self, list: &mut List, matchers: &mut [Matcher]) -> Result<()> {
        let mut links: BTreeMap<(u64, u64), RawPath> = BTreeMap::new();
        for entry in WalkDir::new(self.tree.join("var")).min_depth(1).sort_by_file_name() {
            let entry = entry.context("read var")?;
            let path = RawPath(entry.path().strip_prefix(self.tree)?.to_owned());
            let metadata = entry.metadata().with_context(|| format!("read {path}"))?;
            if metadata.file_type().is_socket() {
                eprintln!("  {path} is a socket and left out: its service makes it");
                continue;
            }
            let rule = rule_of(matchers, &path);
            if rule.is_none() && self.is_made_by_packages(&path, entry.path(), &metadata) {
                continue;
            }
            let mut node = list.node(entry.path(), &metadata).with_context(|| format!("ship {path}"))?;
            if metadata.is_file() && metadata.nlink() > 1 {
                let first = links.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.clone());
                node.first = (*first != path).then(|| first.clone());
            }
            list.entries.push(ShippedEntry {
                path,
                rule: rule.unwrap_or_default(),
                digest: node.digest(),
                node: Some(node),
            });
        }
        Ok(())
    }

    /// Whether a package's own line makes this, with what the package wants there. What is of another kind was put
    /// there in the place of it, and what has content was given it by the recipe: the line would leave an empty file.
    fn is_made_by_packages(&self, path: &RawPath, here: &Path, metadata: &Metadata) -> bool {
        match self.made_by_packages.get(&Path::new("/").join(&path.0)) {
            Some(MadeKind::File) => metadata.is_file() && metadata.len() == 0,
            Some(MadeKind::Link(target)) => fs::read_link(here).is_ok_and(|own| own == *target),
            // The list has directories all the same: a service may need one before systemd-tmpfiles has run.
            Some(MadeKind::Directory) | None => false,
        }
    }

    /// Adds the files of `/etc` whose copies on the machine make way for the image's.
    fn add_etc(&self, list: &mut List, matchers: &mut [Matcher]) -> Result<()> {
        let etc = self.tree.join("usr/etc");
        for entry in WalkDir::new(&etc).min_depth(1).sort_by_file_name() {
            let entry = entry.context("read etc")?;
            let path = RawPath(Path::new("etc").join(entry.path().strip_prefix(&etc)?));
            let Some(rule) = rule_of(matchers, &path) else { continue };
            let metadata = entry.metadata().with_context(|| format!("read {path}"))?;
            if !metadata.is_dir() {
                let node = describe(entry.path(), &metadata, &mut std::io::sink());
                let digest = node.with_context(|| format!("ship {path}"))?.digest();
                list.entries.push(ShippedEntry { path, rule, digest, node: None });
            }
        }
        Ok(())
    }

    fn add_removal(&self, list: &mut List, path: &str) -> Result<()> {
        let below = Path::new(path.trim_start_matches('/'));
        let here = if below.starts_with("etc") { self.tree.join("usr").join(below) } else { self.tree.join(below) };
        match here.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Ok(_) => bail!("rules: {path} is to be removed, and the image has it"),
            Err(error) => return Err(error).with_context(|| format!("look for {path}")),
        }
        let path = RawPath(below.to_owned());
        list.entries.push(ShippedEntry { path, rule: ShippedRule::Remove, ..ShippedEntry::default() });
        Ok(())
    }
}

/// A path of a rule.
struct Matcher {
    path: String,
    rule: ShippedRule,
    set: GlobSet,
    used: bool,
}

/// The rule of a path, if one names it. The last one counts.
fn rule_of(matchers: &mut [Matcher], path: &RawPath) -> Option<ShippedRule> {
    let absolute = Path::new("/").join(&path.0);
    let mut found = None;
    for matcher in matchers.iter_mut().filter(|matcher| matcher.rule != ShippedRule::Remove) {
        if matcher.set.is_match(&absolute) {
            matcher.used = true;
            found = Some(matcher.rule);
        }
    }
    found
}

/// The list while it is made.
#[derive(Default)]
struct List {
    directory: PathBuf,
    entries: Vec<ShippedEntry>,
    content_bytes: u64,
}

impl List {
    /// Describes a file of `/var`, and keeps its content.
    fn node(&mut self, path: &Path, metadata: &Metadata) -> Result<ShippedNode> {
        let contents = self.directory.join(CONTENT);
        let new = contents.join("new");
        let mut writer = BufWriter::new(File::create(&new).context("create the content of a file")?);
        let node = describe(path, metadata, &mut writer)?;
        writer.flush()?;
        let bytes = writer.get_ref().metadata()?.len();
        if node.content.is_empty() {
            fs::remove_file(&new)?;
            return Ok(node);
        }
        let kept = contents.join(&node.content);
        if kept.symlink_metadata().is_err() {
            self.content_bytes += bytes;
        }
        fs::set_permissions(&new, Permissions::from_mode(0o600))?;
        fs::rename(&new, kept)?;
        Ok(node)
    }

    fn write(&self, version: &str) -> Result<()> {
        let write = |name: &str, header: &ListHeader, keep: &dyn Fn(&ShippedEntry) -> bool| -> Result<PathBuf> {
            let path = self.directory.join(name);
            let mut writer = BufWriter::new(File::create(&path)?);
            write_line(&mut writer, header)?;
            for entry in self.entries.iter().filter(|entry| keep(entry)) {
                write_line(&mut writer, entry)?;
            }
            writer.flush()?;
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            Ok(path)
        };
        let header = ListHeader { format: FORMAT, version: version.to_owned(), ..ListHeader::default() };
        let list = write(LIST, &header, &|_| true).context("write the list of what the image ships")?;
        // With a list that cannot be read a robot would get nothing of it.
        read_list(BufReader::new(File::open(&list)?), |_| Ok(())).context("read the list as a robot reads it")?;
        let image = blake3::hash(&fs::read(list)?).to_hex().to_string();
        let each_start = |entry: &ShippedEntry| match entry.rule {
            ShippedRule::Always => true,
            ShippedRule::Default => entry.node.as_ref().is_some_and(|node| node.kind == NodeType::Directory),
            ShippedRule::Once | ShippedRule::Version | ShippedRule::Remove => false,
        };
        write(EACH_START, &ListHeader { image, ..header }, &each_start)
            .context("write the list of what every start looks at")?;
        Ok(())
    }
}

/// Describes a file, and writes its content without its holes.
fn describe(path: &Path, metadata: &Metadata, content: &mut impl Write) -> Result<ShippedNode> {
    let kind = metadata.file_type();
    let mut node = ShippedNode {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        ..ShippedNode::default()
    };
    if kind.is_file() {
        node.size_bytes = metadata.len();
        (node.data, node.content) = without_holes(File::open(path)?, content, MAX_STRETCHES)?;
    } else if kind.is_dir() {
        node.kind = NodeType::Directory;
    } else if kind.is_symlink() {
        (node.kind, node.mode) = (NodeType::Link, 0o777);
        node.target = Some(RawPath(fs::read_link(path)?));
    } else if kind.is_fifo() {
        node.kind = NodeType::Pipe;
    } else {
        node.kind = if kind.is_block_device() { NodeType::BlockDevice } else { NodeType::CharacterDevice };
        node.device = Some(device_numbers(metadata.rdev()));
    }
    for name in xattr::list(path).context("list its extended attributes")? {
        let text = name.to_str().with_context(|| format!("the name of its attribute {name:?} is not UTF-8"))?;
        if !OF_THE_HOST.contains(&text) {
            let value = xattr::get(path, &name)?.unwrap_or_default();
            node.add_attribute(text.to_owned(), &value);
        }
    }
    Ok(node)
}

/// Copies the content without long stretches of zeros. Returns the stretches that were copied, and the digest of these.
/// What the host's file system has as a hole is none of the image's business: another host has it elsewhere.
fn without_holes(
    mut file: impl Read,
    content: &mut impl Write,
    most_stretches: usize,
) -> Result<(Vec<[u64; 2]>, String)> {
    let (mut data, mut offset): (Vec<[u64; 2]>, u64) = (Vec::new(), 0);
    let (mut digest, mut piece) = (blake3::Hasher::new(), vec![0; HOLE_BYTES]);
    loop {
        let mut filled = 0;
        while filled < piece.len() {
            match file.read(&mut piece[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        let piece = &piece[..filled];
        if piece.iter().any(|byte| *byte != 0) {
            let is_full = data.len() == most_stretches;
            match data.last_mut() {
                Some([start, length]) if *start + *length == offset => *length += filled as u64,
                Some([start, length]) if is_full => {
                    // Its zeros count as content from here on, since a line of the list has a longest length.
                    let mut zeros = offset - *start - *length;
                    *length = offset + filled as u64 - *start;
                    while zeros > 0 {
                        let now = usize::try_from(zeros).unwrap_or(HOLE_BYTES).min(HOLE_BYTES);
                        digest.update(&[0; HOLE_BYTES][..now]);
                        content.write_all(&[0; HOLE_BYTES][..now])?;
                        zeros -= now as u64;
                    }
                }
                _ => data.push([offset, filled as u64]),
            }
            digest.update(piece);
            content.write_all(piece)?;
        }
        offset += filled as u64;
        if filled < HOLE_BYTES {
            let name = if data.is_empty() { String::new() } else { digest.finalize().to_hex().to_string() };
            return Ok((data, name));
        }
    }
}

fn private(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o700)).with_context(|| format!("chmod {}", path.display()))
}

/// Says what an image ships.
pub fn report(totals: &ShippedTotals) {
    eprintln!("  {} paths for /var and /etc, with {}", totals.paths, step::mib(totals.content_bytes));
}

#[cfg(test)]
mod tests {
    use super::{HOLE_BYTES, MAX_STRETCHES, without_holes};

    /// A database of an application that wrote here and there.
    #[test]
    fn a_file_of_very_many_holes_keeps_its_content_and_a_line_that_a_robot_reads() {
        let (most, hole) = (4, HOLE_BYTES as u64);
        let file: Vec<u8> = (0..2 * most + 5).flat_map(|piece| vec![u8::from(piece % 2 == 0); HOLE_BYTES]).collect();
        let mut content = Vec::new();
        let (data, name) = without_holes(file.as_slice(), &mut content, most).unwrap();
        assert_eq!(data, [[0, hole], [2 * hole, hole], [4 * hole, hole], [6 * hole, 7 * hole]]);
        assert_eq!(name, blake3::hash(&content).to_hex().as_str());
        let mut again = vec![0; file.len()];
        let mut left = content.as_slice();
        for [start, length] in data.iter().map(|stretch| stretch.map(|bytes| usize::try_from(bytes).unwrap())) {
            let (now, rest) = left.split_at(length);
            again[start..start + length].copy_from_slice(now);
            left = rest;
        }
        assert!(again == file && left.is_empty());
        let longest = vec![[u64::MAX >> 20; 2]; MAX_STRETCHES];
        assert!(serde_json::to_vec(&longest).unwrap().len() < 900_000);
    }
}
