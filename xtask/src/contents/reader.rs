//! Files of an image by their path in the running system.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

use super::file_facts::FileFacts;
use crate::image::ext4::geometry::Geometry;
use crate::image::ext4::inspect;
use crate::image::ext4::read::Old;
use crate::image::ext4::tree::NodeKind;

/// Most links that are followed on the way to a file, as in the kernel.
const MOST_LINKS: u32 = 40;
/// Most bytes of a link's target.
const MOST_TARGET_BYTES: u64 = 4096;

/// Directories that are links into `/usr` in a merged system, while packages still name them as they were.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Reader of the system in an image: that of its deployment, or all of an image that has none.
pub struct ImageReader {
    file: File,
    geometry: Geometry,
    old: Old,
    /// Node of the system's root directory.
    root: usize,
    /// Bytes of the image.
    pub image_bytes: u64,
}

impl ImageReader {
    /// Opens an image.
    ///
    /// # Errors
    /// Fails when it cannot be read, or was not made by the builder.
    pub fn open(image: &Path) -> Result<Self> {
        let file = File::open(image).context("open it")?;
        let image_bytes = file.metadata().context("ask for its size")?.len();
        let geometry = Geometry::read(&file)?;
        let old = Old::read(&file, &geometry)?;
        let root = deployment(&old).unwrap_or(0);
        Ok(Self { file, geometry, old, root, image_bytes })
    }

    /// Returns the text of a file of at most `most` bytes, if there is one. Bytes that are no UTF-8 are replaced.
    pub fn text(&self, path: &str, most: u64) -> Option<String> {
        let at = self.find(path)?;
        if self.old.nodes[at].kind != NodeKind::File {
            return None;
        }
        let content = inspect::content(&self.file, &self.geometry, &self.old.places[at], most).ok()?;
        Some(String::from_utf8_lossy(&content).into_owned())
    }

    /// Returns every link below a directory: its path from there, and its target.
    pub fn links(&self, directory: &str) -> Vec<(String, String)> {
        let mut links = Vec::new();
        let Some(at) = self.find(directory).or_else(|| self.find(&format!("usr/{directory}"))) else { return links };
        let mut queue = vec![(String::new(), at)];
        while let Some((path, at)) = queue.pop() {
            for (name, &child) in &self.old.nodes[at].children {
                let path = format!("{path}{}", String::from_utf8_lossy(name));
                match self.old.nodes[child].kind {
                    NodeKind::Directory => queue.push((format!("{path}/"), child)),
                    NodeKind::Symlink => links.extend(self.target(child).map(|target| (path, target))),
                    NodeKind::File => {}
                }
            }
        }
        links.sort();
        links
    }

    /// Returns every file, link and directory of the system by its path. /usr/etc, of which /etc is a copy, is left
    /// out.
    ///
    /// # Errors
    /// Fails when an inode cannot be read.
    pub fn files(&self) -> Result<BTreeMap<String, FileFacts>> {
        let mut files = BTreeMap::new();
        let has_etc = self.old.nodes[self.root].children.contains_key(&b"etc"[..]);
        let mut queue = vec![(String::new(), self.root)];
        while let Some((path, at)) = queue.pop() {
            for (name, &child) in &self.old.nodes[at].children {
                let mut path = format!("{path}/{}", String::from_utf8_lossy(name));
                match path.as_str() {
                    "/usr/etc" if has_etc => continue,
                    "/usr/etc" => "/etc".clone_into(&mut path),
                    _ => {}
                }
                files.insert(path.clone(), self.facts(child).with_context(|| path.clone())?);
                if self.old.nodes[child].kind == NodeKind::Directory {
                    queue.push((path, child));
                }
            }
        }
        Ok(files)
    }

    fn facts(&self, at: usize) -> Result<FileFacts> {
        let facts = inspect::facts(&self.file, &self.geometry, &self.old.places[at])?;
        let kind = match self.old.nodes[at].kind {
            NodeKind::Directory => "directory",
            NodeKind::File => "file",
            NodeKind::Symlink => "link",
        };
        let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(FileFacts {
            kind,
            mode: format!("{:04o}", facts.mode),
            uid: facts.uid,
            gid: facts.gid,
            // Blocks of a directory depend on how it grew, not on what is in it.
            bytes: if kind == "directory" { 0 } else { facts.bytes },
            capability: facts.capability.map(hex),
            package: None,
            digest: self.old.nodes[at].digest,
        })
    }

    fn target(&self, at: usize) -> Option<String> {
        let place = &self.old.places[at];
        let target = inspect::content(&self.file, &self.geometry, place, MOST_TARGET_BYTES).ok()?;
        Some(String::from_utf8_lossy(&target).into_owned())
    }

    /// Returns the node of a path, through links.
    fn find(&self, path: &str) -> Option<usize> {
        let mut left: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let (mut way, mut links) = (vec![self.root], 0);
        while let Some(part) = left.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    way.truncate(way.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let child = *self.old.nodes[*way.last()?].children.get(part.as_bytes())?;
            if self.old.nodes[child].kind == NodeKind::Symlink {
                links += 1;
                let target = self.target(child).filter(|_| links <= MOST_LINKS)?;
                if target.starts_with('/') {
                    way.truncate(1);
                }
                left.extend(target.split('/').rev().map(str::to_owned));
            } else {
                way.push(child);
            }
        }
        way.last().copied()
    }
}

/// Returns the node of the only deployment: `/ostree/deploy/NAME/deploy/COMMIT.0`.
fn deployment(old: &Old) -> Option<usize> {
    let child = |at: usize, name: &str| old.nodes.get(at)?.children.get(name.as_bytes()).copied();
    let names = child(0, "ostree").and_then(|at| child(at, "deploy"))?;
    let mut deployments = old.nodes[names].children.values().filter_map(|&at| child(at, "deploy"));
    let deployments = &old.nodes[deployments.next()?].children;
    deployments.values().copied().find(|&at| old.nodes[at].kind == NodeKind::Directory)
}

/// Returns the path in a system whose directories are merged into /usr.
pub fn merged(path: &str) -> String {
    let first = path.strip_prefix('/').and_then(|rest| rest.split('/').next());
    if first.is_some_and(|first| MERGED.contains(&first)) { format!("/usr{path}") } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::merged;

    #[test]
    fn paths_of_packages_are_those_of_a_merged_system() {
        assert_eq!(merged("/lib/x"), "/usr/lib/x");
        for same in ["/usr/lib/x", "/library/x", "/etc/lib"] {
            assert_eq!(merged(same), same);
        }
    }
}
