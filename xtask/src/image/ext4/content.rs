//! Content of an image: a directory of the host, read once.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use walkdir::WalkDir;

use super::attributes::{self, Attribute};
use super::digest::ContentDigest;
use super::directory;
use super::geometry::{BLOCK, DESCRIPTOR, GROUP, INODE, MOST_INODES, RESERVED_INODES};
use super::tree::{Node, NodeKind};
use crate::size::to_usize;

/// Smallest number of zero blocks in a row that becomes a hole: fewer are cheaper to write than to describe.
const HOLE: u64 = 16;
/// Largest number of names of one file that ext4 can count.
const MOST_LINKS: u32 = 65_000;
/// Largest size of a file, bytes: ext4 numbers the blocks of a file with 32 bits.
const MOST_BYTES: u64 = u32::MAX as u64 * BLOCK;
/// Blocks of the last group beside its inode table, at least: mke2fs leaves out a group of 50 and less.
const LAST_GROUP: u64 = 256;
/// Bytes of a link's target that fit into its inode.
const SHORT_TARGET: usize = 59;
const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Bytes read at a time.
const STRETCH: usize = 1 << 20;

/// Origin of the bytes of an inode.
#[derive(Debug, Clone)]
pub enum ContentSource {
    /// A file of the host.
    File(PathBuf),
    /// The target of a link, or nothing.
    Bytes(Vec<u8>),
}

/// Inode of the image to be made.
#[derive(Debug, Clone)]
pub struct Inode {
    /// Type and permissions.
    pub mode: u16,
    /// User ID of the owner.
    pub uid: u32,
    /// Group ID of the owner.
    pub gid: u32,
    /// Number of names of the inode.
    pub links: u32,
    /// Bytes of a file or target.
    pub bytes: u64,
    /// Content of the inode.
    pub source: ContentSource,
    /// Blocks with content, in order; the blocks between them are zero. A directory has none here, since its blocks are
    /// decided later.
    pub data: Vec<Range<u64>>,
    /// Extended attributes, sorted.
    pub attributes: Vec<Attribute>,
    /// Index of the directory that holds this one; meaningful for directories only.
    pub parent: usize,
}

/// A directory as it goes into an image: `inodes` belong to the `nodes` with the same index.
#[derive(Debug)]
pub struct Content {
    /// Names and digests.
    pub nodes: Vec<Node>,
    /// All other inodes.
    pub inodes: Vec<Inode>,
}

impl Content {
    /// Reads a directory of the host.
    ///
    /// # Errors
    /// Fails when something in the directory cannot be read, or cannot be in an image.
    pub fn read(tree: &Path) -> Result<Self> {
        let mut content = Self { nodes: Vec::new(), inodes: Vec::new() };
        let mut linked: HashMap<(u64, u64), usize> = HashMap::new();
        // These are the directories that lead to the entry at hand.
        let mut parents: Vec<usize> = Vec::new();
        for entry in WalkDir::new(tree).sort_by_file_name() {
            let entry = entry.with_context(|| format!("read {}", tree.display()))?;
            let metadata = entry.metadata().with_context(|| format!("read {}", entry.path().display()))?;
            parents.truncate(entry.depth());
            let key = (metadata.dev(), metadata.ino());
            let known = linked.get(&key).copied().filter(|_| !metadata.is_dir());
            let at = match known {
                Some(at) => at,
                None => {
                    let parent = parents.last().copied().unwrap_or_default();
                    content
                        .add(entry.path(), &metadata, parent)
                        .with_context(|| format!("read {}", entry.path().display()))?
                }
            };
            linked.insert(key, at);
            if let Some(&parent) = parents.last() {
                let name = entry.file_name().as_bytes().to_vec();
                content.nodes[parent].children.insert(name, at);
                if metadata.is_dir() {
                    content.inodes[parent].links += 1;
                } else {
                    content.inodes[at].links += 1;
                }
            }
            if metadata.is_dir() {
                parents.push(at);
            } else {
                let links = content.inodes[at].links;
                ensure!(links <= MOST_LINKS, "{} has more than {MOST_LINKS} names", entry.path().display());
            }
        }
        content.add_lost_and_found()?;
        Ok(content)
    }

    /// Adds the directory lost+found: mke2fs makes it, and e2fsck complains where it is missing.
    fn add_lost_and_found(&mut self) -> Result<()> {
        let at = self.nodes.len();
        let root = self.nodes.first_mut().context("the tree has no root directory")?;
        if root.children.contains_key(LOST_AND_FOUND) {
            return Ok(());
        }
        root.children.insert(LOST_AND_FOUND.to_vec(), at);
        self.nodes.push(Node { kind: NodeKind::Directory, digest: [0; 32], children: Default::default() });
        let source = ContentSource::Bytes(Vec::new());
        let (data, attributes) = (Vec::new(), Vec::new());
        let mode = 0o40_700;
        self.inodes.push(Inode { mode, uid: 0, gid: 0, links: 2, bytes: 0, source, data, attributes, parent: 0 });
        self.inodes[0].links += 1;
        Ok(())
    }

    fn add(&mut self, path: &Path, metadata: &Metadata, parent: usize) -> Result<usize> {
        let mut bytes = metadata.len();
        let (kind, source, digest, data) = if metadata.is_dir() {
            bytes = 0;
            (NodeKind::Directory, ContentSource::Bytes(Vec::new()), [0; 32], Vec::new())
        } else if metadata.is_symlink() {
            let target = fs::read_link(path)?.into_os_string().into_vec();
            bytes = target.len() as u64;
            ensure!(
                bytes < BLOCK,
                "the target of the symbolic link has {bytes} bytes, and ext4 takes at most {}",
                BLOCK - 1
            );
            let blocks = u64::from(target.len() > SHORT_TARGET);
            let digest = ContentDigest::of(&target);
            (NodeKind::Symlink, ContentSource::Bytes(target), digest, Vec::from_iter((blocks > 0).then_some(0..blocks)))
        } else if metadata.is_file() {
            ensure!(bytes <= MOST_BYTES, "the file has {bytes} bytes, and ext4 takes at most {MOST_BYTES}");
            let mut file = File::open(path)?;
            let (digest, data) = scan(&mut file, bytes)?;
            (NodeKind::File, ContentSource::File(path.to_owned()), digest, data)
        } else {
            bail!("it is a device, a socket or a pipe, which an image cannot hold; delete it from the tree");
        };
        self.nodes.push(Node { kind, digest, children: Default::default() });
        self.inodes.push(Inode {
            mode: u16::try_from(metadata.mode()).context("the mode has more than 16 bits")?,
            uid: metadata.uid(),
            gid: metadata.gid(),
            // A directory has one name in its parent and one in itself.
            links: if kind == NodeKind::Directory { 2 } else { 0 },
            bytes,
            source,
            data,
            attributes: attributes_of(path)?,
            parent,
        });
        Ok(self.nodes.len() - 1)
    }

    /// Counts the blocks of files, links, directories and attributes, in an image that is made afresh.
    ///
    /// # Errors
    /// Fails when the attributes of an inode do not fit into a block.
    pub fn blocks(&self) -> Result<u64> {
        let mut blocks = 0;
        for (node, inode) in self.nodes.iter().zip(&self.inodes) {
            blocks += inode.data.iter().map(|range| range.end - range.start).sum::<u64>();
            blocks += u64::from(attributes::need_block(&inode.attributes)?);
            if node.kind == NodeKind::Directory {
                blocks += directory::pages(&[], node.children.keys()).len() as u64;
            }
        }
        Ok(blocks)
    }

    /// Returns the number of inodes of an image that is made afresh: with an eighth to spare, so that releases to come
    /// find room for more; an inode that is not used is zeros.
    #[must_use]
    pub fn inodes_wanted(&self) -> u64 {
        let used = self.inodes.len() as u64 + u64::from(RESERVED_INODES);
        used + used / 8 + 64
    }

    /// Returns the size of an image that is made afresh, bytes: what the content and the tables need, and a sixteenth
    /// to spare, so that releases to come find room beside what they keep. Unused blocks are zeros, and cost nothing to
    /// send.
    ///
    /// # Errors
    /// Fails when the attributes of an inode do not fit into a block.
    pub fn bytes_wanted(&self) -> Result<u64> {
        let mut blocks = self.blocks()? + self.inodes_wanted() * INODE / BLOCK;
        blocks += blocks / 16;
        let groups = blocks.div_ceil(GROUP) + 1;
        // Each group has two bitmaps, some have a backup of superblock and descriptors, and inode tables are rounded up
        // to blocks; the 256 are for lost+found and trees of extents.
        blocks += groups * (4 + (groups * DESCRIPTOR).div_ceil(BLOCK)) + 256;
        // Small files need more groups for their inodes than for their blocks. The last group need not be a whole one.
        let groups = self.inodes_wanted().div_ceil(MOST_INODES);
        let least = (groups - 1) * GROUP + MOST_INODES * INODE / BLOCK + LAST_GROUP;
        blocks = if groups > 1 { blocks.max(least) } else { blocks };
        Ok((blocks * BLOCK).next_multiple_of(1 << 20))
    }
}

/// Returns the digest of a file, and the blocks of it that are not part of a hole.
fn scan(file: &mut File, bytes: u64) -> Result<([u8; 32], Vec<Range<u64>>)> {
    let mut digest = ContentDigest::default();
    let mut buffer = vec![0; STRETCH.min(to_usize(bytes.next_multiple_of(BLOCK)))];
    let mut done = 0;
    while done < bytes {
        let stretch = &mut buffer[..STRETCH.min(to_usize(bytes - done))];
        file.read_exact(stretch).context("the file became shorter while it was read")?;
        digest.update(done / BLOCK, stretch);
        done += stretch.len() as u64;
    }
    let mut data: Vec<Range<u64>> = Vec::new();
    for range in digest.data() {
        match data.last_mut() {
            Some(last) if range.start - last.end < HOLE => last.end = range.end,
            _ => data.push(range.clone()),
        }
    }
    Ok((digest.finish(bytes), data))
}

fn attributes_of(path: &Path) -> Result<Vec<Attribute>> {
    let mut attributes = Vec::new();
    for name in xattr::list(path).context("list the extended attributes")? {
        let name = name.into_string().ok().context("an attribute's name is not UTF-8")?;
        // Labels of the host's security module are not part of the image.
        if name == "security.selinux" || name.starts_with("security.ima") || name.starts_with("security.evm") {
            continue;
        }
        let value = xattr::get(path, &name).with_context(|| format!("read the extended attribute {name}"))?;
        attributes.push(Attribute::new(&name, value.unwrap_or_default())?);
    }
    attributes.sort();
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::{Content, HOLE, scan};
    use crate::size::to_usize;
    use std::fs::{self, File};

    #[test]
    fn long_stretches_of_zeros_become_holes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let mut bytes = vec![0; 4096 * 100];
        bytes[4096 * 3] = 1;
        bytes[4096 * (3 + to_usize(HOLE))] = 1;
        bytes[4096 * 90] = 1;
        fs::write(&path, &bytes).unwrap();
        let (_, data) = scan(&mut File::open(&path).unwrap(), bytes.len() as u64).unwrap();
        assert_eq!(data, [3..4 + HOLE, 90..91]);
    }

    #[test]
    fn links_and_names_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("d")).unwrap();
        fs::write(directory.path().join("d/a"), "x").unwrap();
        fs::hard_link(directory.path().join("d/a"), directory.path().join("b")).unwrap();
        std::os::unix::fs::symlink("y".repeat(60), directory.path().join("long")).unwrap();
        let content = Content::read(directory.path()).unwrap();
        let links: Vec<u32> = content.inodes.iter().map(|inode| inode.links).collect();
        // The indices are the root, b, d and long in the order of their names, then lost+found.
        assert_eq!(links, [4, 2, 2, 1, 2]);
        assert_eq!(content.nodes[2].children[&b"a"[..]], 1);
        assert_eq!(content.inodes[2].parent, 0);
        assert_eq!(content.blocks().unwrap(), 5);
    }

    #[test]
    fn a_socket_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("s")).unwrap();
        let error = format!("{:#}", Content::read(directory.path()).unwrap_err());
        assert!(error.contains("/s") && error.contains("socket"), "{error}");
    }
}
