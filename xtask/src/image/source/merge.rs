//! Layers of a container image become one tree, in memory and without root. Pure: [`super::archive`] reads and writes.
//!
//! Paths are resolved inside the tree, links included, so that no layer reaches the host. The rules are those of the
//! OCI image specification: a whiteout hides what lower layers have, never what its own layer has, in whatever order
//! the layer lists them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// Links that are followed on the way to a path, as in the kernel.
const MAX_LINKS: usize = 40;
/// Prefix of a name that hides one of a lower layer.
const WHITEOUT: &[u8] = b".wh.";
/// TreeName that hides all that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Number of an inode of a [`MergedTree`].
pub type InodeNo = usize;

/// One thing that an archive has, apart from its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveInode {
    /// InodeKind, with what belongs to it.
    pub kind: InodeKind,
    /// Permission bits of the inode.
    pub mode: u32,
    /// Number of the owner.
    pub user: u32,
    /// Number of the group.
    pub group: u32,
    /// Time of the last change, seconds since 1970.
    pub modified_unix_s: u64,
    /// Extended attributes, by their names.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Kind of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InodeKind {
    /// Directory, with its names.
    Directory(BTreeMap<Vec<u8>, InodeNo>),
    /// Regular file, with the place of its content.
    File(ContentPlace),
    /// Symbolic link, with its target.
    Link(Vec<u8>),
    /// Character device (`true`) or block device, with its numbers.
    Device(bool, u32, u32),
    /// Named pipe (FIFO), without content.
    Fifo,
}

/// Place of a file's content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContentPlace {
    /// Number of the layer, from the lowest.
    pub layer: usize,
    /// First byte in the uncompressed archive of the layer.
    pub offset: u64,
    /// Length of the content.
    pub bytes: u64,
}

/// One member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    /// ArchiveInode under its first name.
    New(ArchiveInode),
    /// Further name of the file at this path.
    HardLink(Vec<u8>),
}

/// One name of a [`MergedTree`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeName {
    /// Path from the root, without a slash before it; empty for the root itself.
    pub path: Vec<u8>,
    /// Number of the inode.
    pub number: InodeNo,
    /// Path under which a file came before, if this is a further name of it.
    pub first: Option<Vec<u8>>,
}

/// File system tree that layers are applied to.
#[derive(Debug)]
pub struct MergedTree {
    inodes: Vec<ArchiveInode>,
}

/// Number of the root directory.
pub const ROOT: InodeNo = 0;

impl ArchiveInode {
    fn directory() -> Self {
        Self {
            kind: InodeKind::Directory(BTreeMap::new()),
            mode: 0o755,
            user: 0,
            group: 0,
            modified_unix_s: 0,
            attributes: BTreeMap::new(),
        }
    }
}

impl Default for MergedTree {
    fn default() -> Self {
        Self { inodes: vec![ArchiveInode::directory()] }
    }
}

impl MergedTree {
    /// Applies a layer of a container image: its whiteouts first, then what it has.
    ///
    /// # Errors
    /// With the path of a member that cannot be.
    pub fn apply_layer(&mut self, members: Vec<(Vec<u8>, Member)>) -> Result<()> {
        // Names of AUFS, which begin with the prefix twice, may be directories of its own.
        let is_whiteout = |path: &[u8]| path.split(|byte| *byte == b'/').any(|name| name.starts_with(WHITEOUT));
        let (whiteouts, members): (Vec<_>, Vec<_>) = members.into_iter().partition(|(path, _)| is_whiteout(path));
        let directories = directories(&members);
        for (path, _) in whiteouts {
            self.hide(&path, &directories).with_context(|| format!("whiteout {}", shown(&path)))?;
        }
        self.apply(members)
    }

    /// Applies the members of a plain archive, in which no name has a meaning of its own.
    ///
    /// # Errors
    /// With the path of a member that cannot be.
    pub fn apply(&mut self, members: Vec<(Vec<u8>, Member)>) -> Result<()> {
        members.into_iter().try_for_each(|(path, member)| {
            self.put(&path, member).with_context(|| format!("member {} of the archive", shown(&path)))
        })
    }

    fn put(&mut self, path: &[u8], member: Member) -> Result<()> {
        let mut names = components(path)?;
        let Some(name) = names.pop() else {
            let Member::New(ArchiveInode {
                kind: InodeKind::Directory(_),
                mode,
                user,
                group,
                modified_unix_s,
                attributes,
            }) = member
            else {
                bail!("the root of the archive is no directory")
            };
            let ArchiveInode { kind, .. } = std::mem::replace(&mut self.inodes[ROOT], ArchiveInode::directory());
            self.inodes[ROOT] = ArchiveInode { kind, mode, user, group, modified_unix_s, attributes };
            return Ok(());
        };
        let parent = self.make_directories(&names)?;
        let number = match member {
            Member::HardLink(target) => {
                let number = self.find_unfollowed(&target);
                let number = number.with_context(|| format!("its hard link {} leads nowhere", shown(&target)))?;
                let is_directory = matches!(self.inodes[number].kind, InodeKind::Directory(_));
                ensure!(!is_directory, "its hard link {} leads to a directory", shown(&target));
                number
            }
            Member::New(mut inode) => {
                let known = self.children(parent).and_then(|children| children.get(name)).copied();
                let kept = known.and_then(|known| match (&mut self.inodes[known].kind, &inode.kind) {
                    (InodeKind::Directory(children), InodeKind::Directory(_)) => {
                        Some((known, std::mem::take(children)))
                    }
                    _ => None,
                });
                if let Some((known, children)) = kept {
                    inode.kind = InodeKind::Directory(children);
                    self.inodes[known] = inode;
                    known
                } else {
                    self.add(inode)
                }
            }
        };
        self.insert(parent, name, number);
        Ok(())
    }

    /// Hides what a whiteout names. `directories` are those of the whiteout's own layer.
    fn hide(&mut self, path: &[u8], directories: &BTreeSet<Vec<u8>>) -> Result<()> {
        let mut names = components(path)?;
        let Some(name) = names.pop() else { return Ok(()) };
        // Where the layer puts a directory in the place of a link, it is that directory which hides what is below, and
        // nothing is. Through the link all that it leads to would be hidden: what another path still needs.
        let is_replaced = |length: usize| {
            let path = names[..length].join(&b'/');
            let found = directories.contains(&path).then(|| self.find_unfollowed(&path)).flatten();
            found.is_some_and(|number| self.children(number).is_none())
        };
        if (1..=names.len()).any(is_replaced) {
            return Ok(());
        }
        let Some(parent) = self.walk(&names, MAX_LINKS) else { return Ok(()) };
        let InodeKind::Directory(children) = &mut self.inodes[parent].kind else { return Ok(()) };
        if name == OPAQUE {
            children.clear();
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT).filter(|hidden| !hidden.starts_with(WHITEOUT)) {
            children.remove(hidden);
        }
        Ok(())
    }

    fn add(&mut self, inode: ArchiveInode) -> InodeNo {
        self.inodes.push(inode);
        self.inodes.len() - 1
    }

    fn insert(&mut self, parent: InodeNo, name: &[u8], number: InodeNo) {
        if let InodeKind::Directory(children) = &mut self.inodes[parent].kind {
            children.insert(name.to_vec(), number);
        }
    }

    /// Returns the directory at these names, with links followed, and makes what is missing of it.
    fn make_directories(&mut self, names: &[&[u8]]) -> Result<InodeNo> {
        let mut stack = vec![ROOT];
        let mut names: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let mut links = 0;
        while let Some(name) = names.pop() {
            let at = stack.last().copied().unwrap_or(ROOT);
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    // Above the root is the root.
                    stack.truncate(stack.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let child = self.children(at).and_then(|children| children.get(&name)).copied();
            let child = child.unwrap_or_else(|| {
                let child = self.add(ArchiveInode::directory());
                self.insert(at, &name, child);
                child
            });
            match &self.inodes[child].kind {
                InodeKind::Directory(_) => stack.push(child),
                InodeKind::Link(target) => {
                    links += 1;
                    ensure!(links <= MAX_LINKS, "the links on the way to it lead round in a circle");
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    names.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                _ => bail!("{} on the way to it is no directory", shown(&name)),
            }
        }
        Ok(stack.last().copied().unwrap_or(ROOT))
    }

    /// Returns what lies at a path, with links followed inside the tree.
    pub fn find(&self, path: &[u8]) -> Option<InodeNo> {
        let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        self.walk(&names, MAX_LINKS)
    }

    fn find_unfollowed(&self, path: &[u8]) -> Option<InodeNo> {
        let mut names = components(path).ok()?;
        let last = names.pop()?;
        let parent = self.walk(&names, MAX_LINKS)?;
        self.children(parent)?.get(last).copied()
    }

    fn walk(&self, names: &[&[u8]], links: usize) -> Option<InodeNo> {
        let mut stack = vec![ROOT];
        let mut rest: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let mut links = links;
        // A file or another thing without names ends the walk, because it has no children.
        while let Some(name) = rest.pop() {
            match name.as_slice() {
                b"" | b"." => {}
                b".." => {
                    if stack.len() > 1 {
                        stack.pop();
                    }
                }
                _ => {
                    let child = *self.children(*stack.last()?)?.get(&name)?;
                    if let InodeKind::Link(target) = &self.inodes[child].kind {
                        links = links.checked_sub(1)?;
                        if target.starts_with(b"/") {
                            stack.truncate(1);
                        }
                        rest.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                    } else {
                        stack.push(child);
                    }
                }
            }
        }
        stack.pop()
    }

    /// Returns an inode.
    pub fn inode(&self, number: InodeNo) -> &ArchiveInode {
        &self.inodes[number]
    }

    /// Returns the names of a directory; nothing for other kinds.
    pub fn children(&self, number: InodeNo) -> Option<&BTreeMap<Vec<u8>, InodeNo>> {
        match &self.inodes[number].kind {
            InodeKind::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// Removes a name. Returns whether it was there.
    pub fn remove(&mut self, path: &[u8]) -> bool {
        let Ok(mut names) = components(path) else { return false };
        let Some(name) = names.pop() else { return false };
        let Some(parent) = self.walk(&names, MAX_LINKS) else { return false };
        match &mut self.inodes[parent].kind {
            InodeKind::Directory(children) => children.remove(name).is_some(),
            _ => false,
        }
    }

    /// Removes all that is in a directory.
    pub fn empty(&mut self, path: &[u8]) {
        if let Some(number) = self.find(path)
            && let InodeKind::Directory(children) = &mut self.inodes[number].kind
        {
            children.clear();
        }
    }

    /// Returns the tree below a directory as a tree of its own, such as `rootfs` of an image of LXD.
    pub fn below(mut self, path: &[u8]) -> Option<Self> {
        let number = self.find_unfollowed(path).filter(|number| self.children(*number).is_some())?;
        self.inodes.swap(ROOT, number);
        // The old root, which has the new one among its children, is not reached any more.
        self.inodes[number].kind = InodeKind::Directory(BTreeMap::new());
        Some(self)
    }

    /// Returns the time of the last change of any file in the tree, seconds since 1970, and the paths with times after
    /// `today`, which do not count.
    pub fn newest_unix_s(&self, today: u64) -> (u64, Vec<String>) {
        let names = self.names();
        let time = |name: &TreeName| self.inodes[name.number].modified_unix_s;
        let (later, counted): (Vec<_>, Vec<_>) = names.iter().partition(|name| time(name) > today);
        let later = later.iter().map(|name| format!("/{}", shown(&name.path))).collect();
        (counted.into_iter().map(time).max().unwrap_or_default(), later)
    }

    /// Returns each name with its inode, in the order of names, directories before what they hold.
    pub fn names(&self) -> Vec<TreeName> {
        let mut first: BTreeMap<InodeNo, Vec<u8>> = BTreeMap::new();
        let mut queue = vec![(Vec::new(), ROOT)];
        let mut names = Vec::new();
        while let Some((path, number)) = queue.pop() {
            let known = first.get(&number).cloned();
            if let InodeKind::Directory(children) = &self.inodes[number].kind {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                queue.extend(children.iter().rev().map(|(name, child)| ([&path, slash, name].concat(), *child)));
            } else if known.is_none() {
                first.insert(number, path.clone());
            }
            names.push(TreeName { path, number, first: known });
        }
        names
    }
}

/// The paths at which a layer has directories.
fn directories(members: &[(Vec<u8>, Member)]) -> BTreeSet<Vec<u8>> {
    let is_directory =
        |member: &Member| matches!(member, Member::New(ArchiveInode { kind: InodeKind::Directory(_), .. }));
    let found = members.iter().filter(|(_, member)| is_directory(member));
    found.filter_map(|(path, _)| Some(components(path).ok()?.join(&b'/'))).collect()
}

/// Splits the path of a member. It may begin with `/` or `./`, and must not have `..`.
fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    ensure!(!names.contains(&b"..".as_slice()), "the path has '..' in it");
    ensure!(!path.contains(&0), "the path has a zero byte in it");
    Ok(names)
}

/// Returns a path for a message, whatever bytes it has.
pub fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::{ArchiveInode, ContentPlace, InodeKind, Member, MergedTree, TreeName, shown};
    use std::collections::BTreeMap;

    fn inode(kind: InodeKind) -> Member {
        Member::New(ArchiveInode {
            kind,
            mode: 0o755,
            user: 0,
            group: 0,
            modified_unix_s: 0,
            attributes: BTreeMap::new(),
        })
    }

    /// `a/` is a directory, `a->b` a link, `a=b` a hard link, all else a file that holds as many bytes as its layer.
    fn members(layer: usize, names: &[&str]) -> Vec<(Vec<u8>, Member)> {
        let one = |name: &&str| {
            if let Some((name, target)) = name.split_once("->") {
                (name.into(), inode(InodeKind::Link(target.into())))
            } else if let Some((name, target)) = name.split_once('=') {
                (name.into(), Member::HardLink(target.into()))
            } else if name.ends_with('/') {
                (name.as_bytes().to_vec(), inode(InodeKind::Directory(BTreeMap::new())))
            } else {
                (
                    name.as_bytes().to_vec(),
                    inode(InodeKind::File(ContentPlace { layer, offset: 0, bytes: layer as u64 })),
                )
            }
        };
        names.iter().map(one).collect()
    }

    fn merged(layers: &[&[&str]]) -> MergedTree {
        let mut tree = MergedTree::default();
        for (layer, names) in layers.iter().enumerate() {
            tree.apply_layer(members(layer, names)).unwrap();
        }
        tree
    }

    /// Every name, a file with the layer that it is from.
    fn listed(tree: &MergedTree) -> Vec<String> {
        let mut found = Vec::new();
        for TreeName { path, number, first } in tree.names() {
            let path = shown(&path);
            found.push(match (&tree.inode(number).kind, first) {
                (_, Some(first)) => format!("{path}={}", shown(&first)),
                (InodeKind::File(extent), None) => format!("{path}:{}", extent.layer),
                (InodeKind::Link(target), None) => format!("{path}->{}", shown(target)),
                _ => format!("{path}/"),
            });
        }
        found.remove(0);
        found
    }

    #[test]
    fn a_later_layer_wins_and_directories_are_joined() {
        let tree = merged(&[&["etc/", "etc/a", "etc/b"], &["./etc/", "./etc/b", "opt/x"]]);
        assert_eq!(listed(&tree), ["etc/", "etc/a:0", "etc/b:1", "opt/", "opt/x:1"]);
    }

    #[test]
    fn whiteouts_hide_lower_layers_only() {
        // The specification leaves the order open: a whiteout may come after what its own layer has under that name.
        let lower: &[&str] = &["a/", "a/x", "a/y", "b/", "b/old", "b/sub/", "b/sub/deep", "c"];
        let tree = merged(&[lower, &["a/.wh.x", "b/sub/", "b/sub/new", "b/.wh..wh..opq", "c", ".wh.c", ".wh.none"]]);
        assert_eq!(listed(&tree), ["a/", "a/y:0", "b/", "b/sub/", "b/sub/new:1", "c:1"]);
        // In an archive that is no layer the same names are files.
        let mut plain = MergedTree::default();
        plain.apply(members(0, &["a/x", "a/.wh.x"])).unwrap();
        assert_eq!(listed(&plain), ["a/", "a/.wh.x:0", "a/x:0"]);
    }

    #[test]
    fn a_whiteout_of_a_directory_takes_all_of_it_and_names_of_aufs_are_no_files() {
        let tree = merged(&[&["a/", "a/b/", "a/b/c", "d"], &[".wh.a", ".wh..wh.plnk/1.2", ".wh..wh.aufs"]]);
        assert_eq!(listed(&tree), ["d:0"]);
    }

    #[test]
    fn kinds_replace_each_other() {
        let tree = merged(&[&["a/", "a/x", "b", "c->b", "d->a"], &["a", "b/", "b/y", "c", "d/"]]);
        assert_eq!(listed(&tree), ["a:1", "b/", "b/y:1", "c:1", "d/"]);
    }

    #[test]
    fn hard_links_reach_across_layers_and_keep_what_is_replaced_or_hidden() {
        let tree = merged(&[&["a"], &["b=a", "c=a"], &["a", ".wh.b"]]);
        assert_eq!(listed(&tree), ["a:2", "c:0"]);
        assert_eq!(listed(&merged(&[&["a"], &["b=./a"]])), ["a:0", "b=a"]);
    }

    #[test]
    fn links_on_the_way_are_followed_within_the_tree() {
        let lower: &[&str] = &["usr/", "usr/bin/", "bin->usr/bin", "abs->/usr", "up->../../../usr", "x->/nowhere/yet"];
        let tree = merged(&[lower, &["bin/sh", "abs/y", "up/z", "x/new", "bin/.wh.gone"]]);
        let expected = [
            "abs->/usr",
            "bin->usr/bin",
            "nowhere/",
            "nowhere/yet/",
            "nowhere/yet/new:1",
            "up->../../../usr",
            "usr/",
            "usr/bin/",
            "usr/bin/sh:1",
            "usr/y:1",
            "usr/z:1",
            "x->/nowhere/yet",
        ];
        assert_eq!(listed(&tree), expected);
        assert!(tree.find(b"/bin/../bin/sh").is_some() && tree.find(b"/bin/none").is_none());
    }

    /// What BuildKit makes of `RUN rm /opt/current && mkdir /opt/current`: a directory with a mark that it is opaque.
    /// <https://github.com/opencontainers/image-spec/blob/main/layer.md#opaque-whiteout>
    #[test]
    fn a_directory_in_the_place_of_a_link_hides_nothing_of_what_the_link_led_to() {
        let lower: &[&str] = &["opt/v1/", "opt/v1/app", "opt/v1/data", "opt/current->v1", "opt/other->v1"];
        let upper: &[&str] = &["opt/current/", "opt/current/.wh..wh..opq", "opt/current/.wh.app", "opt/current/new"];
        let tree = merged(&[lower, upper, &["opt/other/.wh.data"]]);
        let expected = ["opt/", "opt/current/", "opt/current/new:1", "opt/other->v1", "opt/v1/", "opt/v1/app:0"];
        assert_eq!(listed(&tree), expected);
    }

    #[test]
    fn above_the_root_is_the_root() {
        let tree = merged(&[&[
            "usr/",
            "usr/abs->/etc",
            "up->../../usr/abs",
            "up/x",
            "deep/link->../../../etc/y",
            "deep/link/z",
        ]]);
        let names = listed(&tree);
        assert!(names.contains(&"etc/x:0".to_owned()) && names.contains(&"etc/y/z:0".to_owned()), "{names:?}");
        assert_eq!(tree.find(b"up/x"), tree.find(b"etc/x"));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_path() {
        for (names, said) in [
            (&["a/../b"][..], "'..'"),
            (&["a", "a/b"], "no directory"),
            (&["a->b", "b->a", "a/x"], "circle"),
            (&["a=b"], "leads nowhere"),
            (&["b/", "a=b"], "leads to a directory"),
            (&["a->/etc/passwd", "b=a/x"], "leads nowhere"),
        ] {
            let error = format!("{:#}", MergedTree::default().apply_layer(members(0, names)).unwrap_err());
            assert!(error.contains(said) && error.contains("member"), "{names:?}: {error}");
        }
    }

    #[test]
    fn names_of_any_bytes_are_carried() {
        let mut tree = MergedTree::default();
        let (_, member) = members(0, &["x"]).remove(0);
        tree.apply(vec![(b"a/\xff\n".to_vec(), member)]).unwrap();
        assert_eq!(listed(&tree), ["a/", "a/\\xff\\n:0"]);
    }

    #[test]
    fn the_tree_below_a_directory_can_be_taken() {
        let tree = merged(&[&["metadata.yaml", "rootfs/", "rootfs/etc/", "rootfs/etc/a"]]).below(b"rootfs").unwrap();
        assert_eq!(listed(&tree), ["etc/", "etc/a:0"]);
        assert!(merged(&[&["rootfs"]]).below(b"rootfs").is_none());
    }

    /// A build machine with a wrong clock had dated one file.
    #[test]
    fn times_that_are_yet_to_come_do_not_count() {
        let mut tree = MergedTree::default();
        for (path, time) in [("a", 5), ("b", 4_102_444_800), ("c", 7)] {
            let Member::New(mut inode) = inode(InodeKind::Fifo) else { panic!("an inode") };
            inode.modified_unix_s = time;
            tree.apply(vec![(path.into(), Member::New(inode))]).unwrap();
        }
        assert_eq!(tree.newest_unix_s(7), (7, vec!["/b".to_owned()]));
        assert_eq!(tree.newest_unix_s(6), (5, vec!["/b".to_owned(), "/c".to_owned()]));
    }

    #[test]
    fn names_are_removed() {
        let mut tree = merged(&[&["dev/", "dev/null", "etc/", "etc/a", "etc/b"]]);
        assert!(tree.remove(b"etc/a") && !tree.remove(b"etc/a") && !tree.remove(b"no/where"));
        tree.empty(b"/dev");
        assert_eq!(listed(&tree), ["dev/", "etc/", "etc/b:0"]);
    }
}
