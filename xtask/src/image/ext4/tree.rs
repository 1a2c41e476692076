//! Tree of names, and which of its files were in another tree too. Pure.

use std::collections::{BTreeMap, HashMap};

/// Name in a directory: bytes, as the file system has them.
pub type Name = Vec<u8>;

/// Kind of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// Directory with entries.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}

/// Node of a tree: an inode with its kind, content and entries. The root is the first node; a hard-linked file is one
/// node with several names.
#[derive(Debug, Clone)]
pub struct Node {
    /// Kind of the inode.
    pub kind: NodeKind,
    /// Digest of a file's content or a link's target; zeros for a directory.
    pub digest: [u8; 32],
    /// Entries of a directory, by indices into the same tree.
    pub children: BTreeMap<Name, usize>,
}

/// Finds for every node of `new` the node of `old` that it continues: the same content under the same name, else the
/// same content anywhere (a file that moved), else the same name (a file that changed). No node is continued twice.
///
/// Directories are followed by name. One that got another name is recognised by its entries: the deployment's directory
/// is named after the commit, and the directory of the kernel's modules after the version; neither may count as new.
#[must_use]
pub fn continued(old: &[Node], new: &[Node]) -> Vec<Option<usize>> {
    let mut found = Found { old, new, of_new: vec![None; new.len()], taken: vec![false; old.len()] };
    let mut pairs = Vec::new();
    if !old.is_empty() && !new.is_empty() {
        found.take(0, 0);
        found.directories(&mut pairs);
    }
    for &(was, is) in pairs.iter().filter(|(was, is)| old[*was].digest == new[*is].digest) {
        found.take(was, is);
    }
    found.moved();
    for (was, is) in pairs {
        found.take(was, is);
    }
    found.of_new
}

struct Found<'a> {
    old: &'a [Node],
    new: &'a [Node],
    of_new: Vec<Option<usize>>,
    taken: Vec<bool>,
}

impl Found<'_> {
    fn take(&mut self, was: usize, is: usize) {
        if self.of_new[is].is_none() && !self.taken[was] {
            self.of_new[is] = Some(was);
            self.taken[was] = true;
        }
    }

    /// Matches directories from the root down; `pairs` gets all other nodes that share a name.
    fn directories(&mut self, pairs: &mut Vec<(usize, usize)>) {
        let (old, new) = (self.old, self.new);
        let mut queue = vec![(0, 0)];
        while let Some((was, is)) = queue.pop() {
            let mut appeared = Vec::new();
            for (name, &child) in &new[is].children {
                let kind = new[child].kind;
                match old[was].children.get(name) {
                    Some(&before) if old[before].kind == kind && kind == NodeKind::Directory => {
                        self.take(before, child);
                        queue.push((before, child));
                    }
                    Some(&before) if old[before].kind == kind => pairs.push((before, child)),
                    _ if kind == NodeKind::Directory => appeared.push(child),
                    _ => {}
                }
            }
            let gone = old[was].children.iter().filter(|(name, child)| {
                let still = new[is].children.get(*name).is_some_and(|&now| new[now].kind == NodeKind::Directory);
                old[**child].kind == NodeKind::Directory && !still
            });
            let mut gone: Vec<usize> = gone.map(|(_, child)| *child).collect();
            for child in appeared {
                let alike = |before: usize| shared_names(&old[before], &new[child]);
                // Of the directories that share most names, the first is taken.
                let best = (0..gone.len()).max_by_key(|&at| (alike(gone[at]), std::cmp::Reverse(at)));
                if let Some(at) = best.filter(|&at| alike(gone[at]) > 0) {
                    let before = gone.remove(at);
                    self.take(before, child);
                    queue.push((before, child));
                }
            }
        }
    }

    fn moved(&mut self) {
        let mut by_digest: HashMap<[u8; 32], Vec<usize>> = HashMap::new();
        for (at, node) in self.old.iter().enumerate().rev() {
            if node.kind != NodeKind::Directory && !self.taken[at] {
                by_digest.entry(node.digest).or_default().push(at);
            }
        }
        for at in 0..self.new.len() {
            let node = &self.new[at];
            if node.kind == NodeKind::Directory || self.of_new[at].is_some() {
                continue;
            }
            let same = by_digest.get_mut(&node.digest).and_then(Vec::pop);
            // A digest is of bytes alone: the target of a link may be the content of a file.
            if let Some(was) = same.filter(|&was| self.old[was].kind == node.kind) {
                self.take(was, at);
            }
        }
    }
}

fn shared_names(one: &Node, other: &Node) -> usize {
    one.children.keys().filter(|name| other.children.contains_key(*name)).count()
}

#[cfg(test)]
mod tests {
    use super::{Node, NodeKind, continued};

    /// Makes a tree from paths with contents; where `#` follows a content, the same content means the same inode.
    fn tree(paths: &[(&str, &str)]) -> (Vec<Node>, Vec<String>) {
        let node = |kind| Node { kind, digest: [0; 32], children: Default::default() };
        let (mut nodes, mut names) = (vec![node(NodeKind::Directory)], vec![String::new()]);
        let mut linked = std::collections::HashMap::new();
        for (path, content) in paths {
            let mut at = 0;
            let parts: Vec<&str> = path.split('/').collect();
            for (depth, part) in parts.iter().enumerate() {
                let last = depth + 1 == parts.len();
                let known = nodes[at].children.get(part.as_bytes()).copied();
                let link = (last && content.ends_with('#')).then(|| linked.get(content).copied()).flatten();
                let next = known.or(link).unwrap_or_else(|| {
                    let mut new = node(if last { NodeKind::File } else { NodeKind::Directory });
                    if last {
                        new.digest = *blake3::hash(content.as_bytes()).as_bytes();
                        linked.insert(*content, nodes.len());
                    }
                    nodes.push(new);
                    names.push(parts[..=depth].join("/"));
                    nodes.len() - 1
                });
                nodes[at].children.insert(part.as_bytes().to_vec(), next);
                at = next;
            }
        }
        (nodes, names)
    }

    fn continuations(old: &[(&str, &str)], new: &[(&str, &str)]) -> Vec<(String, String)> {
        let ((old, was), (new, is)) = (tree(old), tree(new));
        let found = continued(&old, &new);
        let pairs = found.iter().zip(is).skip(1).filter_map(|(before, name)| Some((was[(*before)?].clone(), name)));
        pairs.collect()
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn files_are_continued_by_name_and_moved_ones_by_content() {
        let found = continuations(
            &[("a", "1"), ("b", "2"), ("c", "3")],
            &[("a", "1"), ("b", "changed"), ("d", "3"), ("e", "new")],
        );
        assert_eq!(found, owned(&[("a", "a"), ("b", "b"), ("c", "d")]));
    }

    #[test]
    fn a_directory_that_got_another_name_is_recognised_by_what_is_in_it() {
        let found = continuations(
            &[("deploy/AAA.0/usr/x", "1"), ("deploy/AAA.0/etc/y", "2"), ("deploy/other/z", "3")],
            &[("deploy/BBB.0/usr/x", "1"), ("deploy/BBB.0/etc/y", "changed"), ("deploy/new/q", "4")],
        );
        let expected = [
            ("deploy", "deploy"),
            ("deploy/AAA.0", "deploy/BBB.0"),
            ("deploy/AAA.0/usr", "deploy/BBB.0/usr"),
            ("deploy/AAA.0/usr/x", "deploy/BBB.0/usr/x"),
            ("deploy/AAA.0/etc", "deploy/BBB.0/etc"),
            ("deploy/AAA.0/etc/y", "deploy/BBB.0/etc/y"),
        ];
        assert_eq!(found, owned(&expected));
    }

    #[test]
    fn of_two_names_that_shared_a_file_the_unchanged_one_keeps_it() {
        // x and y were one object of the repository; y changed, so it became another one.
        let found = continuations(
            &[("r/o1", "1#"), ("x", "1#"), ("y", "1#")],
            &[("r/o1", "1#"), ("r/o2", "2#"), ("x", "1#"), ("y", "2#")],
        );
        assert_eq!(found, owned(&[("r", "r"), ("r/o1", "r/o1")]));
    }

    #[test]
    fn no_file_is_continued_twice() {
        let found = continuations(&[("a", "1")], &[("a", "1"), ("b", "1")]);
        assert_eq!(found, owned(&[("a", "a")]));
        assert!(continued(&[], &tree(&[("a", "1")]).0).iter().all(Option::is_none));
    }
}
