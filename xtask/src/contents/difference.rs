//! What one system image has otherwise than another: packages, files, accounts, units and rights. Pure.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::accounts::AccountEntry;
use super::packages::InstalledPackage;
use super::units::UnitEnablement;
use super::{FileFacts, ImageContents, debian_version};

/// Difference between the contents of two images. Its JSON is for programs: members are added and never renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContentsDifference {
    /// The image before.
    pub old: ImageIdentity,
    /// The image after.
    pub new: ImageIdentity,
    /// Changes of packages; `null` where a system has no package database that is known here.
    pub packages: Option<PackageChanges>,
    /// Changes of files, links and directories.
    pub files: FileChanges,
    /// Users that differ.
    pub users: Vec<NamedChange<AccountEntry>>,
    /// Groups that differ.
    pub groups: Vec<NamedChange<AccountEntry>>,
    /// Units of systemd that are enabled or masked in one image only.
    pub units: Vec<NamedChange<UnitEnablement>>,
    /// Files that give rights in one image only, or other rights: setuid, setgid, capabilities.
    pub rights: Vec<NamedChange<FileFacts>>,
    /// Packages whose files together take more or fewer bytes, the largest change first; what belongs to no package
    /// has no name.
    pub sizes: Vec<SizeChange>,
}

/// Identity of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageIdentity {
    /// Name of the image.
    pub name: String,
    /// Version of the image.
    pub version: String,
    /// Distribution with its version, for people.
    pub distribution: String,
    /// Bytes of the image.
    pub image_bytes: u64,
    /// Bytes of all its files.
    pub content_bytes: u64,
    /// Number of installed packages.
    pub packages: usize,
}

/// Changes of packages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PackageChanges {
    /// Packages that only the new image has.
    pub added: Vec<InstalledPackage>,
    /// Packages that only the old image has.
    pub removed: Vec<InstalledPackage>,
    /// Packages with a higher version.
    pub upgraded: Vec<VersionChange>,
    /// Packages with a lower version.
    pub downgraded: Vec<VersionChange>,
}

/// Change of one package's version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionChange {
    /// Name of the package.
    pub name: String,
    /// Architecture of the package.
    pub architecture: String,
    /// Version in the old image.
    pub old: String,
    /// Version in the new image.
    pub new: String,
}

/// Changes of files, links and directories.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FileChanges {
    /// Files that only the new image has.
    pub added: Vec<NamedChange<FileFacts>>,
    /// Files that only the old image has.
    pub removed: Vec<NamedChange<FileFacts>>,
    /// Files that both have, with a difference.
    pub changed: Vec<NamedChange<FileFacts>>,
}

/// Something with a name that differs: `old` is absent where it was added, `new` where it was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamedChange<T> {
    /// Name of the user, group or unit, or the path of the file.
    pub name: String,
    /// Properties of a file that differ: `content`, `kind`, `mode`, `owner`, `capability`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub what: Vec<&'static str>,
    /// State in the old image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<T>,
    /// State in the new image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<T>,
}

/// Change of the bytes that a package's files take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SizeChange {
    /// Name of the package, or nothing for files of none.
    pub package: Option<String>,
    /// Bytes in the old image.
    pub old_bytes: u64,
    /// Bytes in the new image.
    pub new_bytes: u64,
}

/// Finds what `new` has otherwise than `old`.
#[must_use]
pub fn between(old: &ImageContents, new: &ImageContents) -> ContentsDifference {
    let known = old.database.is_some() && new.database.is_some();
    ContentsDifference {
        packages: known.then(|| packages(&old.packages, &new.packages)),
        files: files(&old.files, &new.files),
        users: named(&old.users, &new.users),
        groups: named(&old.groups, &new.groups),
        units: named(&old.units, &new.units),
        rights: rights(&old.files, &new.files),
        sizes: sizes(&old.files, &new.files),
        old: identity(old),
        new: identity(new),
    }
}

fn identity(contents: &ImageContents) -> ImageIdentity {
    let (name, version) = contents.name_and_version();
    ImageIdentity {
        name,
        version,
        distribution: contents.os_release.get("PRETTY_NAME").cloned().unwrap_or_else(|| "unknown".to_owned()),
        image_bytes: contents.image_bytes,
        content_bytes: contents.files.values().map(|file| file.bytes).sum(),
        packages: contents.packages.len(),
    }
}

/// Finds the changes between two lists of packages. Of a package with several versions at once, such as a library of
/// two architectures, each architecture is one.
#[must_use]
pub fn packages(old: &[InstalledPackage], new: &[InstalledPackage]) -> PackageChanges {
    let by_name = |packages: &[InstalledPackage]| -> BTreeMap<(String, String), InstalledPackage> {
        packages.iter().map(|one| ((one.name.clone(), one.architecture.clone()), one.clone())).collect()
    };
    let (mut before, after) = (by_name(old), by_name(new));
    let mut changes = PackageChanges::default();
    for ((name, architecture), package) in after {
        // A package that is no longer built for each architecture changes from amd64 to all.
        let was = before.remove(&(name.clone(), architecture.clone())).or_else(|| {
            let (all, native) = ("all".to_owned(), architecture == "all");
            let other = if native { before.keys().find(|key| key.0 == name)?.clone() } else { (name.clone(), all) };
            before.remove(&other)
        });
        let Some(was) = was else {
            changes.added.push(package);
            continue;
        };
        let change = VersionChange { name, architecture, old: was.version, new: package.version };
        match debian_version::compare(&change.old, &change.new) {
            Ordering::Less => changes.upgraded.push(change),
            Ordering::Greater => changes.downgraded.push(change),
            Ordering::Equal => {}
        }
    }
    changes.removed = before.into_values().collect();
    changes
}

fn files(old: &BTreeMap<String, FileFacts>, new: &BTreeMap<String, FileFacts>) -> FileChanges {
    let mut changes = FileChanges::default();
    for mut change in named(old, new) {
        match (&change.old, &change.new) {
            (None, _) => changes.added.push(change),
            (_, None) => changes.removed.push(change),
            (Some(old), Some(new)) => {
                change.what = what_differs(old, new);
                // The package that a file belongs to may be another one; that is a change of packages, not of the file.
                if !change.what.is_empty() {
                    changes.changed.push(change);
                }
            }
        }
    }
    changes
}

fn what_differs(old: &FileFacts, new: &FileFacts) -> Vec<&'static str> {
    let mut what = Vec::new();
    what.extend((old.kind != new.kind).then_some("kind"));
    what.extend((old.kind == new.kind && old.digest != new.digest).then_some("content"));
    what.extend((old.mode != new.mode).then_some("mode"));
    what.extend(((old.uid, old.gid) != (new.uid, new.gid)).then_some("owner"));
    what.extend((old.capability != new.capability).then_some("capability"));
    what
}

fn rights(old: &BTreeMap<String, FileFacts>, new: &BTreeMap<String, FileFacts>) -> Vec<NamedChange<FileFacts>> {
    let of = |files: &BTreeMap<String, FileFacts>| -> BTreeMap<String, FileFacts> {
        let with_rights = files.iter().filter(|(_, file)| file.gives_rights());
        with_rights.map(|(path, file)| (path.clone(), file.clone())).collect()
    };
    let mut changes = named(&of(old), &of(new));
    changes.retain_mut(|change| {
        if let (Some(old), Some(new)) = (&change.old, &change.new) {
            change.what = what_differs(old, new).into_iter().filter(|what| *what != "content").collect();
            return !change.what.is_empty();
        }
        true
    });
    changes
}

fn named<T: Clone + PartialEq>(old: &BTreeMap<String, T>, new: &BTreeMap<String, T>) -> Vec<NamedChange<T>> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let pairs = names.into_iter().map(|name| (name, old.get(name), new.get(name)));
    let changed = pairs.filter(|(_, old, new)| old != new);
    let change = |(name, old, new): (&String, Option<&T>, Option<&T>)| NamedChange {
        name: name.clone(),
        what: Vec::new(),
        old: old.cloned(),
        new: new.cloned(),
    };
    changed.map(change).collect()
}

fn sizes(old: &BTreeMap<String, FileFacts>, new: &BTreeMap<String, FileFacts>) -> Vec<SizeChange> {
    let mut sizes: BTreeMap<Option<String>, (u64, u64)> = BTreeMap::new();
    for file in old.values() {
        sizes.entry(file.package.clone()).or_default().0 += file.bytes;
    }
    for file in new.values() {
        sizes.entry(file.package.clone()).or_default().1 += file.bytes;
    }
    let mut changes: Vec<SizeChange> = sizes
        .into_iter()
        .filter(|(_, (old, new))| old != new)
        .map(|(package, (old_bytes, new_bytes))| SizeChange { package, old_bytes, new_bytes })
        .collect();
    changes.sort_by_key(|change| std::cmp::Reverse(change.old_bytes.abs_diff(change.new_bytes)));
    changes
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::packages::{InstalledPackage, PackageDatabase};
    use super::super::units::UnitEnablement;
    use super::super::{FileFacts, ImageContents, accounts};
    use super::{between, packages};

    /// Makes a package of a test.
    pub fn package(name: &str, architecture: &str, version: &str) -> InstalledPackage {
        InstalledPackage {
            name: name.into(),
            architecture: architecture.into(),
            version: version.into(),
            installed_kib: 1,
            ..InstalledPackage::default()
        }
    }

    fn file(mode: &str, bytes: u64, digest: u8, package: Option<&str>) -> FileFacts {
        FileFacts {
            kind: "file",
            mode: mode.into(),
            uid: 0,
            gid: 0,
            bytes,
            capability: None,
            package: package.map(str::to_owned),
            digest: [digest; 32],
        }
    }

    #[test]
    fn packages_are_added_removed_upgraded_and_downgraded() {
        let old = [
            package("a", "amd64", "1.9"),
            package("b", "amd64", "2"),
            package("gone", "all", "1"),
            package("lib", "amd64", "1"),
            package("lib", "i386", "1"),
            package("tool", "amd64", "1"),
        ];
        let new = [
            package("a", "amd64", "1.10"),
            package("b", "amd64", "2~rc1"),
            package("came", "all", "1"),
            package("lib", "amd64", "2"),
            package("lib", "i386", "1"),
            package("tool", "all", "2"),
        ];
        let changes = packages(&old, &new);
        let names = |changes: &[super::VersionChange]| -> Vec<String> {
            changes.iter().map(|change| format!("{}:{}", change.name, change.architecture)).collect()
        };
        assert_eq!(names(&changes.upgraded), ["a:amd64", "lib:amd64", "tool:all"]);
        assert_eq!(names(&changes.downgraded), ["b:amd64"]);
        assert_eq!((changes.added[0].name.as_str(), changes.removed[0].name.as_str()), ("came", "gone"));
        assert_eq!((changes.added.len(), changes.removed.len()), (1, 1));
    }

    #[test]
    fn files_accounts_units_rights_and_sizes_differ_by_their_own() {
        let mut old = ImageContents { database: Some(PackageDatabase::Dpkg), ..ImageContents::default() };
        let mut new = ImageContents { database: Some(PackageDatabase::Dpkg), ..ImageContents::default() };
        old.files.insert("/usr/bin/same".into(), file("0755", 5, 1, Some("a")));
        new.files.insert("/usr/bin/same".into(), file("0755", 5, 1, Some("b")));
        old.files.insert("/usr/bin/grown".into(), file("0755", 5, 1, None));
        new.files.insert("/usr/bin/grown".into(), file("0755", 9, 2, None));
        old.files.insert("/usr/bin/su".into(), file("0755", 5, 1, None));
        new.files.insert("/usr/bin/su".into(), file("4755", 5, 1, None));
        old.users = accounts::users("robot:x:1000:1000::/home/robot:/bin/sh\n");
        new.users = accounts::users("robot:x:1001:1000::/home/robot:/bin/sh\n");
        new.groups = accounts::groups("gpio:x:990:\n");
        old.units.insert("ssh.service".into(), UnitEnablement::Enabled);
        let difference = between(&old, &new);
        let changed: Vec<_> =
            difference.files.changed.iter().map(|change| (change.name.as_str(), change.what.clone())).collect();
        assert_eq!(changed, [("/usr/bin/grown", vec!["content"]), ("/usr/bin/su", vec!["mode"])]);
        assert_eq!(difference.rights.len(), 1);
        assert!(difference.rights[0].old.is_none() && difference.rights[0].name == "/usr/bin/su");
        assert_eq!(difference.users[0].new.as_ref().map(|user| user.number), Some(1001));
        assert!(difference.groups[0].old.is_none() && difference.units[0].new.is_none());
        assert_eq!(difference.sizes.iter().map(|size| size.package.as_deref()).collect::<Vec<_>>().len(), 3);
        let text = difference.to_string();
        for line in [
            "robot: number 1000 is now 1001",
            "/usr/bin/su",
            "no longer enabled: ssh.service",
            "new group: gpio (990)",
            "0 packages before, 0 now",
        ] {
            assert!(text.contains(line), "{line:?} is missing in:\n{text}");
        }
        let json = serde_json::to_value(&difference).unwrap();
        assert_eq!(json["files"]["changed"][0]["new"]["bytes"], 9);
        assert!(json["packages"]["upgraded"].is_array());
    }

    #[test]
    fn packages_of_a_system_without_a_database_are_not_said_to_be_none() {
        let difference = between(&ImageContents::default(), &ImageContents::default());
        assert_eq!(difference.packages, None);
        assert!(difference.to_string().contains("no package database"), "{difference}");
    }
}
