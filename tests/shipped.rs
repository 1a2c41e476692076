//! What a release brings to `/var` and takes out of the machine's `/etc`, from the builder's list to the machine's
//! directories.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use reflash::jobs::shipped::{self, MachinePlaces, ShippedOutcome};
use reflash::sys::special;
use xtask::image::shipped::Shipping;
use xtask::recipe::rules::PathRule;

use crate::isolated::{isolated, run};

thread_local! {
    /// Changes that may still be made before the power is cut.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

const CUT: &str = "the power is cut";

fn count_down() {
    LEFT.set(LEFT.get().map(|left| left.checked_sub(1).unwrap_or_else(|| panic!("{CUT}"))));
}

/// An image of a release.
struct Image(tempfile::TempDir);

impl Image {
    /// An image whose `/var` and `/etc` are made by `fill`, with rules as pairs of path and name.
    fn new(version: &str, rules: &[(&str, &str)], fill: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("var")).unwrap();
        fs::create_dir_all(dir.path().join("usr/etc")).unwrap();
        fill(dir.path());
        let this = Self(dir);
        this.ship(version, rules).unwrap();
        this
    }

    fn ship(&self, version: &str, rules: &[(&str, &str)]) -> anyhow::Result<()> {
        let parse = |(path, rule): &(&str, &str)| -> PathRule {
            serde_json::from_value(serde_json::json!({ "paths": [path], "rule": rule })).unwrap()
        };
        let rules: Vec<PathRule> = rules.iter().map(parse).collect();
        rules.iter().try_for_each(PathRule::check)?;
        let made_by_packages = BTreeMap::new();
        let shipping = Shipping {
            tree: self.0.path(),
            rules: &rules,
            version,
            made_by_packages: &made_by_packages,
            follow: str::to_owned,
        };
        shipping.ship().map(drop)
    }

    /// An image with these files in `/var` and `/etc`.
    fn of(version: &str, rules: &[(&str, &str)], files: &[(&str, &str)]) -> Self {
        Self::new(version, rules, |root| {
            for (path, content) in files {
                let path = if path.starts_with("etc/") { root.join("usr").join(path) } else { root.join(path) };
                write(&path, content);
            }
        })
    }
}

/// A machine's data partition, in a directory.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(this.at("var")).unwrap();
        fs::create_dir_all(this.at("etc")).unwrap();
        this
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn start(&self, image: &Image) -> ShippedOutcome {
        let (var, etc) = (self.at("var"), self.at("etc"));
        let places =
            MachinePlaces { image: image.0.path(), var: &var, etc_changes: Some(&etc), before_change: count_down };
        shipped::at_start(places).unwrap()
    }

    /// Starts, and nothing may fail.
    fn start_well(&self, image: &Image) -> ShippedOutcome {
        let outcome = self.start(image);
        assert!(outcome.failures.is_empty(), "{outcome:?}");
        outcome
    }

    /// Starts, and cuts the power before the change of this number; whether it was cut.
    fn start_cut(&self, image: &Image, number: u32) -> bool {
        LEFT.set(Some(number));
        let outcome = catch_unwind(AssertUnwindSafe(|| self.start(image)));
        LEFT.set(None);
        outcome.is_err()
    }

    /// Calls the boot good, as `reflash good` does in the system.
    fn good(&self, image: &Image) {
        let root = tempfile::tempdir().unwrap();
        symlink(image.0.path().join("usr"), root.path().join("link")).unwrap();
        let list = "usr/share/reflash/shipped";
        fs::create_dir_all(root.path().join(list)).unwrap();
        let name = "each-start.jsonl";
        fs::copy(image.0.path().join(list).join(name), root.path().join(list).join(name)).unwrap();
        symlink(self.at("var"), root.path().join("var")).unwrap();
        shipped::is_good(root.path()).unwrap();
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok()
    }

    fn write(&self, path: &str, content: &str) {
        write(&self.at(path), content);
    }

    /// All that people and programs see: not the record of our own.
    fn seen(&self) -> BTreeMap<Vec<u8>, String> {
        let mut all = listed(self.0.path());
        all.retain(|path, _| !path.starts_with(b"var/lib/reflash"));
        all
    }

    fn copy(&self) -> Self {
        let copy = Self(tempfile::tempdir().unwrap());
        run("cp", &["-a", &format!("{}/.", self.0.path().display()), copy.0.path().to_str().unwrap()]);
        copy
    }
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Everything below a directory, with all that belongs to it.
fn listed(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.unwrap();
        let (path, metadata) = (entry.path(), entry.metadata().unwrap());
        let content = if metadata.is_file() {
            blake3::hash(&fs::read(path).unwrap()).to_hex().to_string()
        } else if metadata.is_symlink() {
            format!("{:?}", fs::read_link(path).unwrap())
        } else {
            String::new()
        };
        let names: BTreeSet<_> = xattr::list(path).unwrap().collect();
        let attributes: Vec<_> = names.iter().map(|name| (name, xattr::get(path, name).unwrap())).collect();
        let links = if metadata.is_dir() { 0 } else { metadata.nlink() };
        let text = format!(
            "{:o} {}:{} {} {} {links} {content} {attributes:?}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.rdev(),
            if metadata.is_dir() { 0 } else { metadata.len() },
        );
        found.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), text);
    }
    found
}

/// Every kind of file that the field has in `/var`.
fn odd_kinds(var: &Path) {
    let at = |name: &[u8]| var.join(OsStr::from_bytes(name));
    for name in [&b"plain"[..], b"caf\xe9", b"a \"quoted\" name'", b"new\nline", b"tab\tand \\ %41 %%", b"-rf *"] {
        fs::write(at(name), name).unwrap();
    }
    fs::write(at(b"large"), [7; 300_000]).unwrap();
    fs::write(at(b"empty"), "").unwrap();
    fs::write(at(b"secret"), "key").unwrap();
    fs::set_permissions(at(b"secret"), Permissions::from_mode(0o600)).unwrap();
    chown(at(b"secret"), Some(1234), Some(4321)).unwrap();
    fs::write(at(b"setuid"), "x").unwrap();
    chown(at(b"setuid"), Some(7), Some(8)).unwrap();
    fs::set_permissions(at(b"setuid"), Permissions::from_mode(0o6755)).unwrap();
    fs::create_dir_all(at(b"deep/er/est")).unwrap();
    fs::set_permissions(at(b"deep"), Permissions::from_mode(0o2770)).unwrap();
    chown(at(b"deep"), Some(1), Some(65_534)).unwrap();
    symlink("/nowhere/at all", at(b"deep/link")).unwrap();
    lchown(at(b"deep/link"), Some(5), Some(5)).unwrap();
    symlink(OsStr::from_bytes(b"\xff"), at(b"odd link")).unwrap();
    special::make_pipe(&at(b"pipe")).unwrap();
    fs::set_permissions(at(b"pipe"), Permissions::from_mode(0o622)).unwrap();
    // As the layers of containers have it for what they delete.
    special::make_device(&at(b"deep/whiteout"), false, [0, 0]).unwrap();
    fs::hard_link(at(b"large"), at(b"deep/er/same")).unwrap();
    fs::hard_link(at(b"large"), at(b"z same")).unwrap();
    // More than are moved into place together, between the names of one file.
    fs::create_dir(at(b"many")).unwrap();
    (0..2100).for_each(|number| fs::write(var.join(format!("many/{number}")), "").unwrap());
    let holes = File::create(at(b"holes")).unwrap();
    holes.set_len(200 << 20).unwrap();
    holes.write_all_at(b"in the middle", 100 << 20).unwrap();
    File::create(at(b"zeros")).unwrap().write_all_at(&vec![0; 8 << 20], 0).unwrap();
    special::set_attribute(&at(b"plain"), "user.colour", b"blue\0\xff").unwrap();
    special::set_attribute(&at(b"deep"), "trusted.overlay.opaque", b"y").unwrap();
    // Capability cap_net_raw=ep of an executable.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    special::set_attribute(&at(b"setuid"), "security.capability", &capability).unwrap();
    special::set_attribute(&at(b"plain"), "system.posix_acl_access", &access_list()).unwrap();
    special::set_attribute(&at(b"deep"), "system.posix_acl_default", &access_list()).unwrap();
}

/// An access control list that gives a user and a group rights of their own, as the kernel takes it.
fn access_list() -> Vec<u8> {
    const NONE: u32 = u32::MAX;
    let entries = [(1, 6, NONE), (2, 6, 1234), (4, 4, NONE), (8, 4, 99), (16, 6, NONE), (32, 0, NONE)];
    let bytes = |(tag, rights, number): (u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &number.to_le_bytes()].concat()
    };
    [2_u32.to_le_bytes().to_vec(), entries.into_iter().flat_map(bytes).collect()].concat()
}

fn blocks(directory: &Path) -> u64 {
    walkdir::WalkDir::new(directory).into_iter().map(|entry| entry.unwrap().metadata().unwrap().blocks()).sum()
}

/// <https://github.com/ostreedev/ostree/issues/3222>, <https://github.com/bootc-dev/bootc/issues/975>: what an image has
/// in /var arrives with owners, permissions, attributes, links, holes and names of any bytes, or not at all.
#[test]
#[ignore = "needs root: owners and devices; cargo xtask test --tier root"]
fn every_kind_of_file_arrives_as_it_is_in_the_image() {
    isolated("shipped::every_kind_of_file_arrives_as_it_is_in_the_image", || {
        let mut expected = BTreeMap::new();
        let image = Image::new("a 1", &[], |root| {
            odd_kinds(&root.join("var"));
            expected = listed(&root.join("var"));
        });
        assert_eq!(fs::read_dir(image.0.path().join("var")).unwrap().count(), 0);
        assert!(blocks(&image.0.path().join("usr")) * 512 < 4 << 20, "holes take no room in the image");
        let machine = Machine::new();
        machine.start_well(&image);
        let mut found = listed(&machine.at("var"));
        found.retain(|path, _| !path.starts_with(b"lib"));
        for (path, text) in &expected {
            assert_eq!(found.get(path), Some(text), "{}", String::from_utf8_lossy(path));
        }
        assert_eq!(found.len(), expected.len());
        assert!(blocks(&machine.at("var")) * 512 < 4 << 20, "holes take no room on the machine");
        // In every start the same files are as in the image already, whatever they are.
        let always = Image::new("a 2", &[("/var/**", "always")], |root| odd_kinds(&root.join("var")));
        let before = machine.seen();
        for start in 0..2 {
            let outcome = machine.start_well(&always);
            assert!(!outcome.notes.iter().any(|note| note.contains("renewed")), "{start}: {outcome:?}");
            assert_eq!(machine.seen(), before);
        }
    });
}

/// <https://github.com/ostreedev/ostree-rs-ext/pull/569>, <https://github.com/advancedtelematic/meta-updater/pull/273>:
/// without a rule, a file that a person deleted came back at the next start, and one that a person closed was opened.
#[test]
#[ignore = "needs root: owners; cargo xtask test --tier root"]
fn what_the_machine_changed_or_deleted_stays_so_without_a_rule() {
    isolated("shipped::what_the_machine_changed_or_deleted_stays_so_without_a_rule", || {
        let files = [("var/lib/demo/db", "v1"), ("var/lib/demo/hard1", "x"), ("var/lib/demo/kept", "x")];
        let first = Image::of("a 1", &[], &files);
        let machine = Machine::new();
        machine.start_well(&first);
        machine.good(&first);
        machine.write("var/lib/demo/db", "mine");
        fs::set_permissions(machine.at("var/lib/demo/db"), Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(machine.at("var/lib/demo"), Permissions::from_mode(0o710)).unwrap();
        chown(machine.at("var/lib/demo/db"), Some(1234), Some(1234)).unwrap();
        fs::remove_file(machine.at("var/lib/demo/hard1")).unwrap();
        let changed = machine.seen();
        machine.start_well(&first);
        assert_eq!(machine.seen(), changed, "after a start");
        let second = Image::of("a 2", &[], &[&files[1..], &[("var/lib/demo/db", "v2"), ("var/lib/new", "n")]].concat());
        machine.start_well(&second);
        assert_eq!(machine.read("var/lib/new").as_deref(), Some("n"), "what is new arrives");
        fs::remove_file(machine.at("var/lib/new")).unwrap();
        assert_eq!(machine.seen(), changed, "after a release");
        // Services find their directories again.
        fs::remove_dir_all(machine.at("var/lib/demo")).unwrap();
        machine.start_well(&second);
        assert_eq!(fs::read_dir(machine.at("var/lib/demo")).unwrap().count(), 0);
    });
}

const RULES: &[(&str, &str)] = &[
    ("/var/www", "version"),
    ("/var/lib/key", "always"),
    ("/var/lib/seed/**", "once"),
    ("/etc/fleet.conf", "version"),
];

fn release(number: u32, more_rules: &[(&str, &str)], more_files: &[(&str, &str)]) -> Image {
    let (page, key, seed, conf) =
        (format!("page {number}"), format!("key {number}"), format!("seed {number}"), format!("conf {number}"));
    let files = [
        ("var/www/index", &*page),
        ("var/www/same", "same"),
        ("var/lib/key", &*key),
        ("var/lib/seed/a", &*seed),
        ("var/lib/default", &*seed),
        ("etc/fleet.conf", &*conf),
    ];
    Image::of(&format!("a {number}"), &[RULES, more_rules].concat(), &[&files, more_files].concat())
}

/// <https://github.com/ostreedev/ostree/issues/3222>: what a release changes in /var did not arrive, in any way.
#[test]
#[ignore = "needs root: owners; cargo xtask test --tier root"]
fn a_release_brings_renews_and_removes_what_its_rules_say() {
    isolated("shipped::a_release_brings_renews_and_removes_what_its_rules_say", || {
        let machine = Machine::new();
        let first = release(1, &[], &[("var/www/old", "old"), ("var/lib/obsolete/a", "a")]);
        machine.start_well(&first);
        machine.good(&first);
        machine.write("var/www/same", "changed by the machine");
        machine.write("var/lib/key", "changed");
        machine.write("var/lib/seed/a", "grown");
        machine.write("etc/fleet.conf", "mine");
        machine.write("etc/other.conf", "mine");
        machine.write("etc/stale.conf", "mine");
        machine.start_well(&first);
        // Every start: only what is `always`.
        assert_eq!(machine.read("var/lib/key").as_deref(), Some("key 1"));
        assert_eq!(machine.read("var/www/same").as_deref(), Some("changed by the machine"));
        assert_eq!(machine.read("etc/fleet.conf").as_deref(), Some("mine"));
        machine.write("var/www/index", "changed by the machine");
        let rules = [("/var/lib/obsolete", "remove"), ("/etc/stale.conf", "remove")];
        let second = release(2, &rules, &[("var/www/new", "new")]);
        machine.start_well(&second);
        for (path, content) in [
            ("var/www/index", Some("page 2")),
            // The release has nothing else there than the one before.
            ("var/www/same", Some("changed by the machine")),
            ("var/www/new", Some("new")),
            // It was the release's alone, and the release has it no more.
            ("var/www/old", None),
            ("var/lib/key", Some("key 2")),
            ("var/lib/seed/a", Some("grown")),
            ("var/lib/default", Some("seed 1")),
            ("var/lib/obsolete/a", None),
            // The image's own is seen.
            ("etc/fleet.conf", None),
            ("etc/other.conf", Some("mine")),
            ("etc/stale.conf", None),
        ] {
            assert_eq!(machine.read(path).as_deref(), content, "{path}");
        }
        // What an application makes anew is its own, and what a release made once is not made again.
        machine.write("var/lib/obsolete/a", "again");
        machine.write("etc/fleet.conf", "mine again");
        fs::remove_file(machine.at("var/lib/seed/a")).unwrap();
        machine.good(&second);
        machine.start_well(&second);
        assert_eq!(machine.read("var/lib/obsolete/a").as_deref(), Some("again"));
        assert_eq!(machine.read("etc/fleet.conf").as_deref(), Some("mine again"));
        let third = release(3, &rules, &[]);
        machine.start_well(&third);
        assert_eq!(machine.read("var/lib/obsolete/a").as_deref(), Some("again"));
        assert_eq!((machine.read("etc/fleet.conf"), machine.read("var/lib/seed/a")), (None, None));
        assert_eq!(machine.read("var/www/new"), None);
    });
}

/// A machine on which release 1 was good and which was used since.
fn used_machine() -> (Machine, Image) {
    let (machine, first) = (Machine::new(), release(1, &[], &[("var/www/old", "old"), ("var/lib/gone/a", "a")]));
    machine.start_well(&first);
    machine.good(&first);
    machine.write("var/www/index", "mine");
    fs::set_permissions(machine.at("var/www/index"), Permissions::from_mode(0o604)).unwrap();
    machine.write("etc/fleet.conf", "mine");
    machine.write("etc/stale/x", "mine");
    (machine, first)
}

fn next_release(number: u32) -> Image {
    let rules = [("/var/lib/gone", "remove"), ("/etc/stale", "remove"), ("/var/dir/**", "version")];
    // A file that the release before the first of them does not have, and that differs in each.
    let new = format!("new {number}");
    release(number, &rules, &[("var/www/new", &new), ("var/dir/sub/file", "x")])
}

#[test]
#[ignore = "needs root: owners; cargo xtask test --tier root"]
fn a_release_that_is_taken_back_leaves_var_and_etc_as_they_were() {
    isolated("shipped::a_release_that_is_taken_back_leaves_var_and_etc_as_they_were", || {
        let (machine, first) = used_machine();
        let before = machine.seen();
        // Two releases in a row that are never good: the way leads back over both.
        for number in [2, 3] {
            machine.start_well(&next_release(number));
            assert_eq!(machine.read("var/www/index"), Some(format!("page {number}")));
            assert_eq!(machine.read("etc/stale/x"), None);
            machine.write("var/www/index", "changed by the bad release");
        }
        // What an application changed stays.
        machine.write("var/lib/default", "changed by an application");
        let outcome = machine.start_well(&first);
        assert!(outcome.notes.iter().any(|note| note.contains("taken back")), "{outcome:?}");
        machine.write("var/lib/default", "seed 1");
        let mut after = machine.seen();
        // An empty directory that a default made: defaults stay.
        after.retain(|path, _| path != b"var/dir");
        assert_eq!(after, before);
        assert!(!machine.at("var/lib/reflash/aside").exists());
        // The way on is as it was: the same release again renews the same.
        let second = next_release(2);
        machine.start_well(&second);
        assert_eq!(machine.read("var/www/index").as_deref(), Some("page 2"));
        machine.good(&second);
        assert!(!machine.at("var/lib/reflash/aside").exists(), "a good release needs no way back");
        // Where the release before is installed again, its own list counts as that of any other release.
        machine.start_well(&first);
        assert_eq!(machine.read("var/www/index").as_deref(), Some("page 1"));
    });
}

#[test]
#[ignore = "needs root: owners; cargo xtask test --tier root"]
fn a_cut_at_any_instant_leads_to_the_same_end_forwards_and_back() {
    isolated("shipped::a_cut_at_any_instant_leads_to_the_same_end_forwards_and_back", || {
        std::panic::set_hook(Box::new(|panic| {
            if panic.payload().downcast_ref::<String>().is_none_or(|text| text != CUT) {
                eprintln!("{panic}");
            }
        }));
        let (machine, first) = used_machine();
        let (second, before) = (next_release(2), machine.seen());
        let whole = machine.copy();
        whole.start_well(&second);
        let after = whole.seen();
        let without_default = |mut seen: BTreeMap<Vec<u8>, String>| {
            seen.retain(|path, _| path != b"var/dir");
            seen
        };
        let mut cuts = 0;
        while {
            let cut = machine.copy();
            let was_cut = cut.start_cut(&second, cuts);
            // Forwards.
            let on = cut.copy();
            on.start_well(&second);
            assert!(on.seen() == after, "cut {cuts}, forwards");
            // Back, with a cut in the undo too.
            // At some of the cuts: each takes a copy of the machine.
            for undo_cut in if cuts % 7 == 0 { 0..40 } else { 0..0 } {
                let back = cut.copy();
                if !back.start_cut(&first, undo_cut) {
                    break;
                }
                back.start_well(&first);
                assert!(without_default(back.seen()) == before, "cut {cuts}, back, cut {undo_cut}");
            }
            cut.start_well(&first);
            assert!(without_default(cut.seen()) == before, "cut {cuts}, back");
            cut.start_well(&second);
            assert!(cut.seen() == after, "cut {cuts}, on again");
            was_cut
        } {
            cuts += 1;
        }
        assert!(cuts > 20, "{cuts}");
    });
}

#[test]
#[ignore = "needs root: owners; cargo xtask test --tier root"]
fn a_robot_from_before_this_keeps_what_it_has() {
    isolated("shipped::a_robot_from_before_this_keeps_what_it_has", || {
        let machine = Machine::new();
        machine.write("var/lib/default", "mine");
        machine.write("var/lib/seed/a", "mine");
        machine.write("var/www/index", "page 0");
        let image = release(1, &[], &[]);
        let outcome = machine.start_well(&image);
        assert!(outcome.notes.iter().any(|note| note.contains("machine's own")), "{outcome:?}");
        assert_eq!(machine.read("var/lib/default").as_deref(), Some("mine"));
        assert_eq!(machine.read("var/lib/seed/a").as_deref(), Some("mine"));
        // A rule that says so counts for it too, and what was there is kept until the release is good.
        assert_eq!(machine.read("var/www/index").as_deref(), Some("page 1"));
        let kept: Vec<String> = fs::read_dir(machine.at("var/lib/reflash/aside"))
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        assert!(kept.iter().any(|text| text == "page 0"), "{kept:?}");
        // A damaged record is no reason to stop, and nothing of the machine's is lost by it.
        fs::write(machine.at("var/lib/reflash/shipped.json"), "{").unwrap();
        let outcome = machine.start_well(&image);
        assert!(outcome.notes.iter().any(|note| note.contains("begins anew")), "{outcome:?}");
        assert_eq!(machine.read("var/lib/default").as_deref(), Some("mine"));
        // An image from before this has no list.
        let old = Image(tempfile::tempdir().unwrap());
        assert_eq!(machine.start(&old), ShippedOutcome::default());
    });
}

#[test]
#[ignore = "needs root: owners; cargo xtask test --tier root"]
fn nothing_is_written_through_what_the_machine_put_in_the_way() {
    isolated("shipped::nothing_is_written_through_what_the_machine_put_in_the_way", || {
        let (machine, elsewhere) = (Machine::new(), tempfile::tempdir().unwrap());
        write(&elsewhere.path().join("index"), "elsewhere");
        fs::create_dir_all(machine.at("var/lib")).unwrap();
        symlink(elsewhere.path(), machine.at("var/www")).unwrap();
        symlink(elsewhere.path().join("index"), machine.at("var/lib/key")).unwrap();
        machine.write("var/lib/seed", "a file where the release has a directory");
        symlink(elsewhere.path(), machine.at("etc/d")).unwrap();
        let image = release(1, &[("/etc/d/index", "version")], &[("etc/d/index", "x")]);
        let outcome = machine.start_well(&image);
        assert_eq!(listed(elsewhere.path()).len(), 1);
        assert_eq!(fs::read_to_string(elsewhere.path().join("index")).unwrap(), "elsewhere");
        assert!(outcome.notes.iter().any(|note| note.contains("/etc/d/index")), "{outcome:?}");
        // A rule for the directory itself puts the release's own there, with all that is in it.
        assert_eq!(machine.read("var/www/index").as_deref(), Some("page 1"));
        assert_eq!(machine.read("var/lib/key").as_deref(), Some("key 1"));
        assert!(!machine.at("var/lib/key").is_symlink() && !machine.at("var/www").is_symlink());
        assert_eq!(machine.read("var/lib/seed").as_deref(), Some("a file where the release has a directory"));
    });
}

#[test]
#[ignore = "needs root: mounts; cargo xtask test --tier root"]
fn what_finds_no_room_is_named_and_arrives_once_there_is_some() {
    isolated("shipped::what_finds_no_room_is_named_and_arrives_once_there_is_some", || {
        let machine = Machine::new();
        let image = Image::new("a 1", &[], |root| {
            write(&root.join("var/small"), "small");
            fs::write(root.join("var/large"), vec![1; 4 << 20]).unwrap();
        });
        run("mount", &["-t", "tmpfs", "-o", "size=3m", "none", machine.at("var").to_str().unwrap()]);
        let outcome = machine.start(&image);
        assert!(
            outcome.failures.iter().any(|failure| failure.contains("/var/large: it needs 4096 KiB")),
            "{outcome:?}"
        );
        assert_eq!(machine.read("var/small").as_deref(), Some("small"));
        run("mount", &["-o", "remount,size=12m", machine.at("var").to_str().unwrap()]);
        machine.start_well(&image);
        assert_eq!(machine.at("var/large").metadata().unwrap().len(), 4 << 20);
        run("umount", &[machine.at("var").to_str().unwrap()]);
    });
}

#[test]
fn rules_that_cannot_be_meant_are_refused_by_the_build() {
    let image = |rules: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("var/lib/a"), "x");
        write(&dir.path().join("usr/etc/a"), "x");
        format!("{:#}", Image(dir).ship("a 1", rules).unwrap_err())
    };
    assert!(image(&[("/var/lib/b", "version")]).contains("/var/lib/b matches nothing in the image"));
    assert!(image(&[("/etc/b", "always")]).contains("/etc/b matches nothing in the image"));
    assert!(image(&[("/var/lib/a", "remove")]).contains("/var/lib/a is to be removed, and the image has it"));
    assert!(image(&[("/etc/a", "remove")]).contains("/etc/a is to be removed, and the image has it"));
}

/// A directory that becomes a file or a link in the next release, and the other way round, forwards, back by an undo,
/// and forwards again; with files of the machine in the directory.
#[test]
#[ignore = "needs root: owners; cargo xtask test --tier root"]
fn a_path_may_become_another_kind_of_file_and_back() {
    isolated("shipped::a_path_may_become_another_kind_of_file_and_back", || {
        let rules = [("/var/www", "version")];
        let of_directory = |version: &str| {
            Image::of(version, &rules, &[("var/www/site/a", "a"), ("var/www/site/deep/b", "b"), ("var/www/plain", "p")])
        };
        let of_file = Image::of("a 2", &rules, &[("var/www/site", "file"), ("var/www/plain/deep/c", "c")]);
        let of_link = Image::new("a 3", &rules, |root| {
            write(&root.join("var/www/plain"), "p 3");
            symlink("plain", root.join("var/www/site")).unwrap();
        });
        for other in [&of_file, &of_link] {
            let (machine, first) = (Machine::new(), of_directory("a 1"));
            machine.start_well(&first);
            machine.good(&first);
            machine.write("var/www/site/deep/own", "the machine's");
            let before = machine.seen();
            machine.start_well(other);
            let site = machine.at("var/www/site");
            assert!(site.is_file(), "{:?}", machine.seen());
            machine.start_well(other);
            machine.start_well(&first);
            assert_eq!(machine.seen(), before, "taken back");
            machine.start_well(other);
            machine.good(other);
            assert!(site.is_file());
            machine.start_well(&of_directory("a 4"));
            assert_eq!(machine.read("var/www/site/deep/b").as_deref(), Some("b"));
            assert_eq!(machine.read("var/www/plain").as_deref(), Some("p"));
        }
    });
}

#[test]
#[ignore = "needs root: owners; cargo xtask test --tier root"]
fn removals_may_name_a_path_twice_and_what_lies_in_another_one() {
    isolated("shipped::removals_may_name_a_path_twice_and_what_lies_in_another_one", || {
        let machine = Machine::new();
        let first = Image::of("a 1", &[], &[("var/lib/app/sub/x", "x"), ("var/lib/other/y", "y")]);
        machine.start_well(&first);
        machine.good(&first);
        machine.write("etc/app/conf.d/z", "z");
        let before = machine.seen();
        let rules = [
            ("/var/lib/app", "remove"),
            ("/var/lib/app/sub/x", "remove"),
            ("/var/lib/app/", "remove"),
            ("/var/lib/other/y", "remove"),
            ("/var/lib/other", "remove"),
            ("/etc/app", "remove"),
            ("/etc/app/conf.d", "remove"),
        ];
        let second = Image::of("a 2", &rules, &[("var/lib/new", "n")]);
        machine.start_well(&second);
        assert!(["var/lib/app", "var/lib/other", "etc/app"].iter().all(|path| !machine.at(path).exists()));
        machine.start_well(&first);
        let mut after = machine.seen();
        after.remove(b"var/lib/new".as_slice());
        assert_eq!(after, before);
    });
}

/// An application's database that was written here and there, names of 255 bytes in directories far down, and a name
/// that another one hides by a case or a blank.
#[test]
#[ignore = "needs root: owners; cargo xtask test --tier root"]
fn what_a_list_of_lines_finds_hard_arrives() {
    isolated("shipped::what_a_list_of_lines_finds_hard_arrives", || {
        let machine = Machine::new();
        let deep = format!("var/{}/end", vec!["d".repeat(255); 10].join("/"));
        let image = Image::new("a 1", &[("/var/lib/**", "version")], |root| {
            write(&root.join(&deep), "deep");
            for name in ["Name", "name", "name ", " name", "name.", "..name", "a%41", "%2e%2e", "-rf", "~", "#x", "*"] {
                write(&root.join("var/lib").join(name), name);
            }
            let file = fs::File::create(root.join("var/lib/holes")).unwrap();
            for at in 0..100_u64 {
                std::os::unix::fs::FileExt::write_all_at(&file, b"x", at * 128 * 1024).unwrap();
            }
        });
        machine.start_well(&image);
        machine.start_well(&image);
        let found = machine.seen();
        assert_eq!(found.keys().filter(|path| path.starts_with(b"var/lib/")).count(), 13);
        assert_eq!(machine.read(&deep).as_deref(), Some("deep"));
        for name in ["Name", "name", "name ", "..name", "%2e%2e"] {
            assert_eq!(machine.read(&format!("var/lib/{name}")).as_deref(), Some(name));
        }
        let holes = fs::File::open(machine.at("var/lib/holes")).unwrap();
        for at in [0, 1, 50, 99_u64] {
            let mut bytes = [0; 2];
            let read = std::os::unix::fs::FileExt::read_at(&holes, &mut bytes, at * 128 * 1024).unwrap();
            assert_eq!(&bytes[..read], if at == 99 { &b"x"[..] } else { b"x\0" }, "{at}");
        }
    });
}
