//! Images that keep the places of the image before.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::image::compare;
use xtask::image::ext4::content::Content;
use xtask::image::ext4::geometry::{BLOCK, Geometry};
use xtask::image::ext4::placed::InodePlace;
use xtask::image::ext4::read::Old;
use xtask::image::ext4::tree::{Node, NodeKind};
use xtask::image::ext4::{self, BuiltImage};
use xtask::recipe::ImageSize;

use crate::support::sample_image;

/// Builds an image of a tree; e2fsck judges it in there.
fn build(tree: &Path, image: &Path, previous: Option<&Path>) -> BuiltImage {
    ext4::build(tree, image, ImageSize::Auto, "branch", previous).unwrap()
}

/// The same, and nothing may be laid out anew.
fn keep(tree: &Path, image: &Path, previous: &Path) -> BuiltImage {
    let built = build(tree, image, Some(previous));
    assert_eq!(built.fresh_because, None);
    built
}

fn read(image: &Path) -> Old {
    let file = File::open(image).unwrap();
    Old::read(&file, &Geometry::read(&file).unwrap()).unwrap()
}

/// Path, kind and digest of everything below a directory.
fn listed(nodes: &[Node]) -> BTreeMap<Vec<u8>, (NodeKind, [u8; 32], usize)> {
    let (mut found, mut queue) = (BTreeMap::new(), vec![(Vec::new(), 0)]);
    while let Some((path, at)) = queue.pop() {
        for (name, &child) in &nodes[at].children {
            let path = [&path[..], b"/", name].concat();
            if nodes[child].kind == NodeKind::Directory {
                queue.push((path.clone(), child));
            }
            found.insert(path, (nodes[child].kind, nodes[child].digest, child));
        }
    }
    found
}

fn assert_holds(image: &Path, tree: &Path) {
    let without_numbers = |nodes: &[Node]| -> Vec<_> {
        listed(nodes).into_iter().map(|(path, (kind, digest, _))| (path, kind, digest)).collect()
    };
    assert!(without_numbers(&read(image).nodes) == without_numbers(&Content::read(tree).unwrap().nodes));
}

/// Everything with the same content under the same name has its inode and its blocks where they were.
fn assert_kept(old: &Path, new: &Path) -> usize {
    let (old, new) = (read(old), read(new));
    let (before, after) = (listed(&old.nodes), listed(&new.nodes));
    let place = |content: &Old, at: usize| -> InodePlace {
        // What a directory holds may change.
        InodePlace { pages: Vec::new(), ..content.places[at].clone() }
    };
    let mut kept = 0;
    for (path, (kind, digest, at)) in after {
        if let Some(&(_, _, was)) = before.get(&path).filter(|was| (was.0, was.1) == (kind, digest)) {
            let (was, is) = (place(&old, was), place(&new, at));
            let name = String::from_utf8_lossy(&path);
            assert_eq!(was.number, is.number, "{name}");
            if kind != NodeKind::Directory {
                assert_eq!((was.runs, was.attribute_block), (is.runs, is.attribute_block), "{name}");
            }
            kept += 1;
        }
    }
    kept
}

fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

const SECRET: &[u8] = b"what was deleted must not travel to any robot";

/// A tree with everything that is awkward about names, sizes and links. Two `edition`s differ as releases do.
fn awkward(tree: &Path, edition: u8) {
    let at = |name: &str| tree.join(name);
    for name in
        ["a \"quoted\" name", " leading and trailing ", "line\nbreak", "ünï©ödé \u{1f916}", "back\\slash", "-rf"]
    {
        write(&at("names").join(name), name);
    }
    write(&at("names").join("x".repeat(255)), "long");
    write(&at("names").join(std::ffi::OsStr::from_bytes(b"not \xff UTF-8")), "bytes");
    for (name, bytes) in [("0", 0), ("1", 1), ("4095", 4095), ("4096", 4096), ("4097", 4097), ("1m", 1 << 20)] {
        write(&at("sizes").join(name), sample(bytes, 1));
    }
    for length in [1, 59, 60, 4000] {
        fs::create_dir_all(at("links")).unwrap();
        symlink("t".repeat(length), at("links").join(length.to_string())).unwrap();
    }
    // A directory of many blocks, in which some names go and some come.
    for number in 0..3000 {
        let content = format!("{}", if number % 100 == 0 { number + usize::from(edition) } else { number });
        if number % 50 != usize::from(edition) {
            write(&at("many").join(format!("{number:0>40}")), content);
        }
    }
    // Everything below lies under a name that changes with every release, and is linked from elsewhere.
    let root = at("deploy").join(format!("commit-{edition}"));
    for number in 0..300_u64 {
        let content =
            sample(500 + 97 * number as usize, if number % 10 == 0 { u64::from(edition) } else { 7 } + number);
        let file = root.join(format!("usr/{}/{number}", number % 7));
        write(&file, &content);
        let object = at("objects").join(blake3::hash(&content).to_hex().as_str());
        fs::create_dir_all(at("objects")).unwrap();
        fs::hard_link(&file, object).unwrap();
    }
    // Large, and changed in the middle; larger than before; gone; moved.
    let mut large = sample(3 << 20, 99);
    large[1 << 20..][..9].fill(edition);
    write(&at("large/changed"), &large);
    write(&at("large/grown"), sample((1 << 20) + 300_000 * usize::from(edition), 98));
    write(&at("large").join(format!("moved-{edition}")), sample(1 << 20, 97));
    if edition == 0 {
        write(&at("gone/secret"), SECRET.repeat(1000));
        write(&at("gone/large"), sample(2 << 20, 96));
    } else {
        write(&at("came/large"), sample(2 << 20, 95));
    }
    // More extents than fit into an inode, and into two blocks.
    let holes = File::create(at("large/holes")).unwrap();
    for piece in 0..700 {
        holes.write_all_at(&[1 + edition, 1], piece * 17 * BLOCK).unwrap();
    }
    holes.set_len(100 << 20).unwrap();
    fs::create_dir(at("tmp")).unwrap();
    fs::set_permissions(at("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(at("sizes/1"), fs::Permissions::from_mode(0o6751)).unwrap();
    fs::create_dir_all(at("deep").join("d/".repeat(60))).unwrap();
}

fn sample(bytes: usize, seed: u64) -> Vec<u8> {
    let mut content = sample_image(bytes.div_ceil(4096), seed);
    content.truncate(bytes);
    content
}

#[test]
fn what_did_not_change_stays_where_it_was() {
    let at = tempfile::tempdir().unwrap();
    let path = |name: &str| at.path().join(name);
    for edition in 0..2 {
        awkward(&path(&format!("tree{edition}")), edition);
    }
    let first = build(&path("tree0"), &path("old.img"), None);
    assert_eq!(first.fresh_because, None);
    let built = keep(&path("tree1"), &path("new.img"), &path("old.img"));
    assert_eq!(built.bytes, first.bytes);
    assert_holds(&path("old.img"), &path("tree0"));
    assert_holds(&path("new.img"), &path("tree1"));
    assert!(assert_kept(&path("old.img"), &path("new.img")) > 3000);
    // Under other names and in another place of the host the same comes out.
    let copy = Command::new("cp").arg("-a").arg(path("tree1")).arg(path("elsewhere")).status().unwrap();
    assert!(copy.success());
    fs::rename(path("old.img"), path("before")).unwrap();
    keep(&path("elsewhere"), &path("again.img"), &path("before"));
    assert!(fs::read(path("new.img")).unwrap() == fs::read(path("again.img")).unwrap());
    // Nothing of what was deleted is left in free blocks.
    let holds_secret = |image: &str| fs::read(path(image)).unwrap().windows(SECRET.len()).any(|bytes| bytes == SECRET);
    assert!(holds_secret("before") && !holds_secret("new.img"));
    // Of the large file that changed in the middle, one block; of the one that grew, its end; new names and links.
    let report = compare::compare(&path("before"), &path("new.img"), 3).unwrap();
    let content = report.parts["content of files"];
    let new_bytes = 30 * 30_000 + 4096 + 300_000 + (2 << 20) + 700 * 4096 + 60 * 4096;
    assert!(content.new * BLOCK < new_bytes + new_bytes / 10, "{report}");
    assert!(report.files.iter().any(|(name, _)| name == "/came/large"), "{report}");
    // The same content again changes nothing, and the way back is as good as the way there.
    keep(&path("tree1"), &path("same.img"), &path("new.img"));
    assert_eq!(compare::changed_bytes(&path("new.img"), &path("same.img")).unwrap(), 0);
    keep(&path("tree0"), &path("back.img"), &path("same.img"));
    assert_holds(&path("back.img"), &path("tree0"));
    assert_kept(&path("same.img"), &path("back.img"));
}

#[test]
fn where_keeping_does_not_pay_the_image_is_laid_out_anew_and_says_why() {
    let at = tempfile::tempdir().unwrap();
    let path = |name: &str| at.path().join(name);
    for number in 0..40 {
        write(&path("tree").join(number.to_string()), sample(100_000, number));
        write(&path("other").join(number.to_string()), sample(100_000, 1000 + number));
    }
    write(&path("small/x"), sample(100_000, 1));
    let old_mib = (build(&path("tree"), &path("old.img"), None).bytes >> 20) as u32;
    let why = |tree: &str, size: ImageSize, branch: &str, previous: &str| {
        let built = ext4::build(&path(tree), &path("new.img"), size, branch, Some(&path(previous))).unwrap();
        assert_holds(&path("new.img"), &path(tree));
        // As if there were no image before.
        ext4::build(&path(tree), &path("fresh.img"), size, branch, None).unwrap();
        let same = fs::read(path("new.img")).unwrap() == fs::read(path("fresh.img")).unwrap();
        built.fresh_because.inspect(|why| assert!(same, "{why}")).unwrap_or_default()
    };
    assert_eq!(why("tree", ImageSize::Auto, "branch", "old.img"), "");
    let said = why("other", ImageSize::Auto, "branch", "old.img");
    assert!(said.contains("would stay where they were"), "{said}");
    let said = why("tree", ImageSize::Auto, "another", "old.img");
    assert!(said.contains("another UUID"), "{said}");
    let said = why("tree", ImageSize::Mib(old_mib - 1), "branch", "old.img");
    assert!(said.contains("image.size_mib asks for"), "{said}");
    assert_eq!(why("tree", ImageSize::Mib(300), "branch", "old.img"), "", "a larger image keeps the places too");
    let said = why("small", ImageSize::Auto, "branch", "old.img");
    assert!(said.contains("the content needs"), "{said}");
    // What is no image, or a damaged one.
    write(&path("rubbish"), sample(1 << 20, 5));
    let said = why("tree", ImageSize::Auto, "branch", "rubbish");
    assert!(said.contains("no ext4 file system"), "{said}");
    let mut short = fs::read(path("old.img")).unwrap();
    short.truncate(2 << 20);
    write(&path("short"), short);
    let said = why("tree", ImageSize::Auto, "branch", "short");
    assert!(said.contains("blocks"), "{said}");
    Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-b", "4096"])
        .arg(path("foreign"))
        .arg(format!("{old_mib}m"))
        .status()
        .unwrap();
    let said = why("tree", ImageSize::Auto, "branch", "foreign");
    assert!(said.contains("features"), "{said}");
}

#[test]
fn an_image_that_must_grow_keeps_its_places() {
    let at = tempfile::tempdir().unwrap();
    let path = |name: &str| at.path().join(name);
    for number in 0..100 {
        write(&path("tree").join(number.to_string()), sample(1_300_000, number));
    }
    let small = build(&path("tree"), &path("old.img"), None);
    for number in 100..150 {
        write(&path("tree").join(number.to_string()), sample(1_300_000, number));
    }
    // From one group of 128 MiB to two.
    let large = keep(&path("tree"), &path("new.img"), &path("old.img"));
    assert!(small.bytes < 128 << 20 && large.bytes > 128 << 20, "{small:?} {large:?}");
    assert_eq!(assert_kept(&path("old.img"), &path("new.img")), 101, "and lost+found");
    assert_holds(&path("new.img"), &path("tree"));
}

#[test]
fn a_previous_image_with_any_damage_never_spoils_the_new_one() {
    let at = tempfile::tempdir().unwrap();
    let path = |name: &str| at.path().join(name);
    for number in 0..200 {
        write(&path(&format!("tree/{}/{number}", number % 5)), sample(number as usize * 50, number));
    }
    build(&path("tree"), &path("old.img"), None);
    let good = fs::read(path("old.img")).unwrap();
    let file = File::open(path("old.img")).unwrap();
    let geometry = Geometry::read(&file).unwrap();
    let tables: Vec<u64> = geometry.tables().filter(|block| *block > 0).collect();
    let directories: Vec<u64> = read(&path("old.img"))
        .places
        .iter()
        .filter(|place| !place.pages.is_empty())
        .flat_map(|place| place.runs.iter().map(|run| run.physical))
        .collect();
    for seed in 0..24_u64 {
        let random = blake3::hash(&seed.to_le_bytes());
        let random: Vec<u64> =
            random.as_bytes().chunks(8).map(|eight| u64::from_le_bytes(eight.try_into().unwrap())).collect();
        let (mut bad, blocks) = (good.clone(), if seed % 2 == 0 { &tables } else { &directories });
        let block = blocks[random[0] as usize % blocks.len()] * BLOCK;
        let spot = (block + random[1] % 400) as usize;
        bad[spot..spot + 4].copy_from_slice(&random[2].to_le_bytes()[..4]);
        write(&path("bad.img"), &bad);
        build(&path("tree"), &path("new.img"), Some(&path("bad.img")));
        assert_holds(&path("new.img"), &path("tree"));
    }
}

#[test]
fn a_chain_of_releases_stays_sound() {
    let at = tempfile::tempdir().unwrap();
    let path = |name: &str| at.path().join(name);
    let random = |release: u64, salt: u64| {
        let digest = blake3::hash(&[release.to_le_bytes(), salt.to_le_bytes()].concat());
        u64::from_le_bytes(digest.as_bytes()[..8].try_into().unwrap())
    };
    for number in 0..400 {
        write(&path(&format!("tree/{}/{number}", number % 9)), sample(random(0, number) as usize % 60_000, number));
    }
    let mut previous = path("0.img");
    build(&path("tree"), &previous, None);
    let (mut kept, mut sizes) = (0, Vec::new());
    for release in 1..=8 {
        for change in 0..30 {
            let number = random(release, change) % 400;
            let (file, other) = (format!("tree/{}/{number}", number % 9), format!("tree/{release}/from-{number}"));
            match change % 5 {
                0 => drop(fs::remove_file(path(&file))),
                1 => drop(
                    fs::create_dir_all(path(&other)).and_then(|()| fs::rename(path(&file), path(&other).join("x"))),
                ),
                2 => drop(fs::hard_link(path(&file), path(&format!("{file}-link-{release}")))),
                _ => {
                    // Other names of the file keep what was in it.
                    let _ = fs::remove_file(path(&file));
                    write(&path(&file), sample(random(release, change + 100) as usize % 70_000, release));
                }
            }
        }
        let next = path(&format!("{release}.img"));
        let built = build(&path("tree"), &next, Some(&previous));
        assert_holds(&next, &path("tree"));
        if built.fresh_because.is_none() {
            kept += 1;
            assert_kept(&previous, &next);
        }
        sizes.push(built.bytes >> 20);
        previous = next;
    }
    assert_eq!(kept, 8, "sizes in MiB: {sizes:?}");
    let fresh = build(&path("tree"), &path("fresh.img"), None).bytes >> 20;
    assert!(sizes[7] <= fresh * 5 / 4, "{sizes:?} against {fresh} MiB made afresh");
}

/// What the kernel says about everything below a directory.
fn described(root: &Path) -> BTreeMap<PathBuf, Vec<String>> {
    let (mut found, mut first) = (BTreeMap::new(), HashMap::new());
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry.unwrap();
        let name = entry.path().strip_prefix(root).unwrap().to_owned();
        if name.starts_with("lost+found") {
            continue;
        }
        let metadata = entry.metadata().unwrap();
        let mut said = vec![format!("{:o} {}:{}", metadata.mode(), metadata.uid(), metadata.gid())];
        if metadata.is_dir() {
            // The root has lost+found in the image only.
            let subdirectories =
                fs::read_dir(entry.path()).unwrap().flatten().filter(|entry| entry.file_type().unwrap().is_dir());
            assert_eq!(metadata.nlink(), 2 + subdirectories.count() as u64, "{name:?}");
        } else {
            let same = first.entry(metadata.ino()).or_insert_with(|| name.clone());
            said.push(format!("{} links, with {same:?}, {} bytes", metadata.nlink(), metadata.len()));
        }
        if metadata.is_symlink() {
            said.push(format!("{:?}", fs::read_link(entry.path()).unwrap()));
        } else if metadata.is_file() {
            said.push(blake3::hash(&fs::read(entry.path()).unwrap()).to_hex().to_string());
        }
        let mut names: Vec<_> = xattr::list(entry.path()).unwrap().collect();
        names.sort();
        said.extend(
            names.iter().map(|name| format!("{name:?}={:?}", xattr::get(entry.path(), name).unwrap().unwrap())),
        );
        found.insert(name, said);
    }
    found
}

/// A mounted image. It is unmounted when this is dropped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(image: &Path, at: &'a Path) -> Self {
        let output =
            Command::new("mount").args(["-t", "ext4", "-o", "ro,noload,loop"]).arg(image).arg(at).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Self(at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn the_kernel_sees_in_an_image_what_was_in_the_tree() {
    let at = tempfile::tempdir().unwrap();
    let path = |name: &str| at.path().join(name);
    for edition in 0..2 {
        let tree = path(&format!("tree{edition}"));
        awkward(&tree, edition);
        std::os::unix::fs::chown(tree.join("sizes/4096"), Some(70_000), Some(4_000_000_000)).unwrap();
        let set = |name: &str, attribute: &str, value: &[u8]| xattr::set(tree.join(name), attribute, value).unwrap();
        set("sizes/0", "user.empty", b"");
        set("sizes/0", "user.short", b"value");
        set("sizes/1", "trusted.x", &[edition; 50]);
        // Too much for an inode: a block of its own.
        set("sizes/4097", "user.long", &[7; 3000]);
        set("sizes/4097", "user.a", b"1");
        set("tmp", "trusted.of.a.directory", b"x");
        // cap_net_raw=ep, as ping has it.
        set("sizes/4095", "security.capability", &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        // u::rw-,u:1000:r--,g::r--,m::r--,o::---
        let list: Vec<u8> = [(1, 6, !0), (2, 4, 1000), (4, 4, !0), (16, 4, !0), (32, 0, !0_u32)]
            .iter()
            .flat_map(|(tag, rights, id)| {
                [&u16::to_le_bytes(*tag)[..], &u16::to_le_bytes(*rights), &id.to_le_bytes()].concat()
            })
            .collect();
        set("sizes/1m", "system.posix_acl_access", &[&2_u32.to_le_bytes()[..], &list].concat());
    }
    build(&path("tree0"), &path("old.img"), None);
    keep(&path("tree1"), &path("new.img"), &path("old.img"));
    fs::create_dir(path("mnt")).unwrap();
    for (image, tree) in [("old.img", "tree0"), ("new.img", "tree1")] {
        let mount_point = path("mnt");
        let mounted = Mounted::new(&path(image), &mount_point);
        let (seen, expected) = (described(mounted.0), described(&path(tree)));
        for (name, said) in &expected {
            assert_eq!(seen.get(name), Some(said), "{name:?}");
        }
        assert_eq!(seen.len(), expected.len());
    }
}
