//! Gives the files of a tree to the numbers that their owners have now: owners, access control lists, and the user that
//! a capability is bound to.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use anyhow::{Context, Result};
use walkdir::WalkDir;

use super::numbers::Renumbering;

const CAPABILITY: &str = "security.capability";
const ACCESS_LISTS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];
/// Bytes of a capability that is bound to a user of a container (`struct vfs_ns_cap_data`); the user comes last.
const BOUND_CAPABILITY_BYTES: usize = 24;
/// Bytes before the entries of an access control list (`linux/posix_acl_xattr.h`), and of an entry: what it is for,
/// permissions, number.
const LIST_HEAD_BYTES: usize = 4;
const LIST_ENTRY_BYTES: usize = 8;
/// What an entry with a number is for (`ACL_USER`, `ACL_GROUP`).
const FOR_USER: u16 = 2;
const FOR_GROUP: u16 = 8;

/// Changes the owners of everything below `tree`, and returns how many files it changed. A file with several names is
/// changed once.
///
/// # Errors
/// Fails with the path.
pub(super) fn change(tree: &Path, plan: &Renumbering) -> Result<usize> {
    let (mut seen, mut changed) = (HashSet::new(), 0);
    for entry in WalkDir::new(tree).same_file_system(true) {
        let entry = entry.context("change the owners of files")?;
        let metadata = entry.metadata().with_context(|| format!("read {}", entry.path().display()))?;
        if !metadata.is_dir() && metadata.nlink() > 1 && !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        let done = change_one(entry.path(), &metadata, plan);
        changed += usize::from(done.with_context(|| format!("change the owner of {}", entry.path().display()))?);
    }
    Ok(changed)
}

fn change_one(path: &Path, metadata: &fs::Metadata, plan: &Renumbering) -> Result<bool> {
    let mut lists = Vec::new();
    for name in ACCESS_LISTS.into_iter().filter(|_| !metadata.is_symlink()) {
        lists.extend(xattr::get(path, name)?.and_then(|list| Some((name, with_list(&list, plan)?))));
    }
    let capability = if metadata.is_file() { xattr::get(path, CAPABILITY)? } else { None };
    let bound = capability.as_ref().and_then(|capability| with_capability(capability, plan));
    let owner = (metadata.uid(), metadata.gid());
    let (user, group) = plan.owner(owner.0, owner.1);
    if (user, group) != owner {
        lchown(path, Some(user), Some(group))?;
        if !metadata.is_symlink() {
            // A new owner takes setuid, setgid and capabilities away.
            fs::set_permissions(path, metadata.permissions())?;
        }
    }
    if let Some(capability) = bound.as_ref().or(capability.as_ref().filter(|_| (user, group) != owner)) {
        xattr::set(path, CAPABILITY, capability)?;
    }
    for (name, list) in &lists {
        xattr::set(path, name, list)?;
    }
    Ok((user, group) != owner || bound.is_some() || !lists.is_empty())
}

/// Returns an access control list with other numbers; `None` where none changes.
fn with_list(list: &[u8], plan: &Renumbering) -> Option<Vec<u8>> {
    let (head, entries) = list.split_at_checked(LIST_HEAD_BYTES)?;
    let mut entries: Vec<(u16, u32, [u8; 2])> = entries
        .as_chunks::<LIST_ENTRY_BYTES>()
        .0
        .iter()
        .map(|[kind0, kind1, bits0, bits1, number @ ..]| {
            let (kind, number) = (u16::from_le_bytes([*kind0, *kind1]), u32::from_le_bytes(*number));
            let number = match kind {
                FOR_USER => plan.user(number),
                FOR_GROUP => plan.group(number),
                _ => number,
            };
            (kind, number, [*bits0, *bits1])
        })
        .collect();
    // As setfacl writes them.
    entries.sort_unstable();
    let bytes =
        |(kind, number, bits): (u16, u32, [u8; 2])| [&kind.to_le_bytes()[..], &bits, &number.to_le_bytes()].concat();
    let new = [head, &entries.into_iter().flat_map(bytes).collect::<Vec<u8>>()].concat();
    (new != list).then_some(new)
}

/// Returns a capability that is bound to another user; `None` where nothing changes.
fn with_capability(capability: &[u8], plan: &Renumbering) -> Option<Vec<u8>> {
    let (rest, user) = capability.split_last_chunk::<4>()?;
    let (old, is_bound) = (u32::from_le_bytes(*user), capability.len() == BOUND_CAPABILITY_BYTES);
    let new = plan.user(old);
    (is_bound && new != old).then(|| [rest, &new.to_le_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::{CAPABILITY, change, with_capability, with_list};
    use crate::image::accounts::{Numbers, Renumbering};
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};

    fn plan() -> Renumbering {
        let before = Numbers::parse("user a 100\nuser b 101\ngroup a 200\ngroup b 201\n").unwrap();
        let now = Numbers::parse("user a 101\nuser b 100\ngroup a 201\ngroup b 200\n").unwrap();
        Renumbering::plan(&before, &now).unwrap()
    }

    #[test]
    fn lists_and_bound_capabilities_follow() {
        // user::rw-, user:100:r--, user:101:rw-, group::r--, group:200:r--, mask::rw-, other::---
        let entries = [(1, 6, !0), (2, 4, 100), (2, 6, 101), (4, 4, !0), (8, 4, 200), (16, 6, !0), (32, 0, !0_u32)];
        let bytes = |entries: &[(u16, u16, u32)]| -> Vec<u8> {
            let entry = |(kind, bits, number): &(u16, u16, u32)| {
                [&kind.to_le_bytes()[..], &bits.to_le_bytes(), &number.to_le_bytes()].concat()
            };
            [&2_u32.to_le_bytes()[..], &entries.iter().flat_map(entry).collect::<Vec<u8>>()].concat()
        };
        let mut expected = entries;
        (expected[1], expected[2], expected[4]) = ((2, 6, 100), (2, 4, 101), (8, 4, 201));
        assert_eq!(with_list(&bytes(&entries), &plan()), Some(bytes(&expected)));
        assert_eq!(with_list(&bytes(&entries[3..4]), &plan()), None);
        assert_eq!(with_list(b"\x02", &plan()), None);
        let capability = [&[0; 20][..], &100_u32.to_le_bytes()].concat();
        assert_eq!(with_capability(&capability, &plan()).unwrap()[20..], 101_u32.to_le_bytes());
        assert_eq!(with_capability(&capability[..20], &plan()), None);
    }

    #[test]
    #[ignore = "needs root: to change owners; cargo xtask test --tier root"]
    fn owners_change_once_and_modes_links_and_capabilities_stay() {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/setuid"), "x").unwrap();
        fs::hard_link(at("d/setuid"), at("second-name")).unwrap();
        symlink("nowhere", at("d/link")).unwrap();
        fs::write(at("foreign"), "").unwrap();
        for (path, user, group) in [("d", 101, 0), ("d/setuid", 100, 201), ("d/link", 100, 7), ("foreign", 5, 6)] {
            lchown(at(path), Some(user), Some(group)).unwrap();
        }
        fs::set_permissions(at("d"), fs::Permissions::from_mode(0o3775)).unwrap();
        fs::set_permissions(at("d/setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
        // cap_net_raw, as setcap writes it: effective, permitted, for every user.
        let capability = [&[1, 0, 0, 2, 0, 0x20, 0, 0][..], &[0; 12]].concat();
        xattr::set(at("d/setuid"), CAPABILITY, &capability).unwrap();
        assert_eq!(change(tree.path(), &plan()).unwrap(), 3);
        let owner = |path: &str| {
            let metadata = at(path).symlink_metadata().unwrap();
            (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
        };
        assert_eq!(owner("d"), (100, 0, 0o3775));
        assert_eq!((owner("d/setuid"), owner("second-name")), ((101, 200, 0o6755), (101, 200, 0o6755)));
        assert_eq!((owner("d/link").0, owner("d/link").1, owner("foreign").0), (101, 7, 5));
        assert_eq!(xattr::get(at("d/setuid"), CAPABILITY).unwrap().unwrap(), capability);
    }
}
