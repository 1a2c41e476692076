//! The first tree, from a system that exists already: a root file system, an image of LXD, or a container image.
//!
//! Its layers are merged into one tree in memory, checked and rid of leftovers, and kept as a tarball in one order, in
//! the place of the tarball that a bootstrap tool makes. All that comes after is the same.

mod archive;
mod headers;
mod leftovers;
mod merge;
mod oci;
mod packages;
mod requirements;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use self::merge::MergedTree;
use super::archives::{self, ArchiveRecord, PackageRenewal};
use super::bootstrap::{self, Bootstrapped, KeptTree};
use super::removal::remove_tree;
use super::stamp::{self, InputDigest};
use crate::recipe::{Distribution, Origin, Recipe, SourceSettings};
use crate::step;

/// Source that an image was made from, as its description records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedSource {
    /// Name of it in the recipe.
    pub name: String,
    /// Digest of it: with `source.digest` of a recipe, the same is used again or the build fails.
    pub digest: String,
    /// Time of its last change, seconds since 1970.
    changed_unix_s: u64,
}

/// Makes the tree from a source, unless the one in `work` was made from the same. `directory` is that of the recipe.
///
/// # Errors
/// When the source cannot be read, is not the one that the recipe asks for, or lacks what a system needs.
pub fn obtain(
    recipe: &Recipe,
    settings: &SourceSettings,
    directory: &Path,
    work: &Path,
    kept: KeptTree,
) -> Result<(Bootstrapped, UsedSource)> {
    let origin = settings.origin()?;
    let name = match origin {
        Origin::RootFs(path) => path.display().to_string(),
        Origin::Lxd(files) => files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" "),
        Origin::Oci(name) => name.to_owned(),
    };
    let tarball = work.join("source.tar");
    let record = work.join("source.json");
    let archives = ArchiveRecord::at(work.join("source.archives"));
    let found = step::step(&format!("look at the source {name}"), || identity(origin, directory))?;
    let key = [
        include_str!("source.rs"),
        include_str!("source/archive.rs"),
        include_str!("source/headers.rs"),
        include_str!("source/leftovers.rs"),
        include_str!("source/merge.rs"),
        include_str!("source/oci.rs"),
        include_str!("source/packages.rs"),
        include_str!("source/requirements.rs"),
        include_str!("access.rs"),
        include_str!("mounts.rs"),
    ];
    let key = key.iter().fold(InputDigest::default(), |key, own| key.with(own));
    let key = key.with(serde_json::to_vec(&recipe.distribution)?).with(&name).with(found).finish();
    let known = fs::read(&record).ok().and_then(|text| serde_json::from_slice::<UsedSource>(&text).ok());
    let known = known.filter(|_| !kept.fresh && stamp::is_current(&tarball, &key));
    // Packages that were added to the source come from archives, which go on while the source stays the same.
    let has_packages = !recipe.distribution.packages.is_empty();
    let mut renewal = PackageRenewal::Made;
    let known = known.filter(|_| {
        !has_packages || {
            let decided = archives::decide(&archives, bootstrap::wish(&recipe.distribution, kept));
            decided.map(|decided| renewal = decided).is_some()
        }
    });
    let used = match known {
        Some(used) => {
            step::unchanged("source");
            used
        }
        None => {
            stamp::forget(&tarball)?;
            let scratch = work.join("source.tmp");
            remove_tree(&scratch)?;
            fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
            let job = Job {
                distribution: &recipe.distribution,
                directory,
                scratch: &scratch,
                name: &name,
                archives: &archives,
            };
            let used = job.run(origin, settings.digest.as_deref(), &tarball)?;
            fs::write(&record, serde_json::to_vec(&used)?).with_context(|| format!("write {}", record.display()))?;
            remove_tree(&scratch)?;
            stamp::remember(&tarball, &key)?;
            used
        }
    };
    is_asked_for(settings.digest.as_deref(), &used.digest, &name)?;
    eprintln!("  the source is {name}, {}", used.digest);
    let packages = if has_packages { Some((archives.read()?, renewal)) } else { None };
    Ok((Bootstrapped { tarball, key, archive_time: used.changed_unix_s, packages }, used))
}

/// Returns a digest of the source as it is now, without unpacking it.
fn identity(origin: Origin<'_>, directory: &Path) -> Result<String> {
    match origin {
        Origin::RootFs(path) if directory.join(path).is_dir() => {
            // What changed in a directory is seen only by reading all of it.
            Ok(InputDigest::default().with_tree(&directory.join(path))?.finish())
        }
        Origin::RootFs(path) => sha256_of(&[&directory.join(path)]),
        Origin::Lxd(files) => sha256_of(&files.iter().map(|path| directory.join(path)).collect::<Vec<_>>()),
        Origin::Oci(name) => oci::resolve(name, directory),
    }
}

/// Returns the SHA-256 of a file; of two, that of their digests.
fn sha256_of(files: &[impl AsRef<Path>]) -> Result<String> {
    let mut sums = Vec::new();
    for file in files {
        let file = file.as_ref();
        ensure!(file.is_file(), "the source {} is missing", file.display());
        sums.push(archive::sha256(file)?);
    }
    match sums.as_slice() {
        [one] => Ok(format!("sha256:{one}")),
        several => {
            use sha2::{Digest, Sha256};
            Ok(format!("sha256:{}", archive::hex(&Sha256::digest(several.concat()))))
        }
    }
}

fn is_asked_for(wanted: Option<&str>, found: &str, name: &str) -> Result<()> {
    let same = wanted.is_none_or(|wanted| wanted == found);
    ensure!(
        same,
        "the source {name} is {found} now, and source.digest asks for {}; change the one or the other",
        wanted.unwrap_or_default()
    );
    Ok(())
}

/// MergedTree of a source, with the archives that its files lie in.
struct Loaded {
    tree: MergedTree,
    layers: Vec<PathBuf>,
    digest: String,
    without_acl: usize,
}

struct Job<'a> {
    distribution: &'a Distribution,
    directory: &'a Path,
    /// Directory for temporary files.
    scratch: &'a Path,
    name: &'a str,
    /// Record of the archives that added packages come from.
    archives: &'a ArchiveRecord,
}

impl Job<'_> {
    fn run(&self, origin: Origin<'_>, wanted: Option<&str>, tarball: &Path) -> Result<UsedSource> {
        let mut loaded = step::step("merge the source into one tree", || self.load(origin))?;
        is_asked_for(wanted, &loaded.digest, self.name)?;
        requirements::check_basis(&loaded.tree, &loaded.layers)?;
        let packages = &self.distribution.packages;
        if packages.is_empty() {
            let tree = &loaded.tree;
            requirements::check(&|path| tree.find(path.as_bytes()).is_some(), kernels(tree))?;
        } else {
            let has_apt = loaded.tree.find(b"usr/bin/apt-get").is_some();
            ensure!(has_apt, "the source has no apt-get, so distribution.packages cannot be added to it");
        }
        self.same_suite(&loaded)?;
        for note in leftovers::remove(&mut loaded.tree, &mut loaded.layers, self.scratch)? {
            eprintln!("  {note}");
        }
        if loaded.without_acl > 0 {
            eprintln!(
                "  access control lists of {} paths are left out: pack with --xattrs in place of --acls to carry them",
                loaded.without_acl
            );
        }
        let (mut changed_unix_s, later) = loaded.tree.newest_unix_s(today()?);
        if let Some(first) = later.first() {
            eprintln!(
                "  dated after today, which does not count: {} of the source's files, first {first}",
                later.len()
            );
        }
        archive::write(&loaded.tree, &loaded.layers, tarball)?;
        if !packages.is_empty() {
            let added = step::step("install packages in the source", || {
                packages::add(self.distribution, tarball, self.scratch, self.archives)
            })?;
            changed_unix_s = changed_unix_s.max(added);
        }
        Ok(UsedSource { name: self.name.to_owned(), digest: loaded.digest, changed_unix_s })
    }

    fn load(&self, origin: Origin<'_>) -> Result<Loaded> {
        match origin {
            Origin::Oci(name) => {
                let merged = oci::fetch(name, self.directory, self.scratch)?;
                let without_effect = merged.config.without_effect();
                if !without_effect.is_empty() {
                    eprintln!(
                        "  a system does not do what a container would with {}: a unit of systemd does, enabled in the \
                         image or by the recipe",
                        without_effect.join(", ")
                    );
                }
                let oci::Merged { tree, layers, digest, without_acl, .. } = merged;
                Ok(Loaded { tree, layers, digest, without_acl })
            }
            Origin::RootFs(path) => {
                let path = self.directory.join(path);
                let packed = if path.is_dir() { self.packed(&path)? } else { path.clone() };
                let digest = sha256_of(&[&packed])?;
                let (tree, layers, without_acl) = self.plain(&packed)?;
                Ok(Loaded { tree, layers, digest, without_acl })
            }
            Origin::Lxd(files) => self.lxd(files),
        }
    }

    /// Reads one tarball or squashfs file.
    fn plain(&self, path: &Path) -> Result<(MergedTree, Vec<PathBuf>, usize)> {
        let plain = archive::uncompress(path, self.scratch, 0)?;
        let read = archive::read(&plain.path).with_context(|| format!("read {}", path.display()))?;
        let mut tree = MergedTree::default();
        tree.apply(read.members).with_context(|| format!("read {}", path.display()))?;
        Ok((tree, vec![plain.path], read.without_acl))
    }

    /// Reads an image of LXD: one tarball with the metadata and `rootfs/`, or both apart.
    fn lxd(&self, files: &[PathBuf]) -> Result<Loaded> {
        let paths: Vec<PathBuf> = files.iter().map(|path| self.directory.join(path)).collect();
        let digest = sha256_of(&paths)?;
        let first = &paths[0];
        let (metadata, layers, without_acl) = self.plain(first)?;
        ensure!(
            metadata.find(b"metadata.yaml").is_some(),
            "{} has no metadata.yaml, so it is no image of LXD; a root file system alone is given as source.rootfs",
            first.display()
        );
        let (tree, layers, without_acl) = match &paths[1..] {
            [] => {
                let below = metadata.below(b"rootfs");
                let below = below.with_context(|| {
                    format!("{} has no rootfs/; give its other file too: lxd = [METADATA, ROOTFS]", first.display())
                })?;
                (below, layers, without_acl)
            }
            [rootfs, ..] => self.plain(rootfs)?,
        };
        Ok(Loaded { tree, layers, digest, without_acl })
    }

    fn packed(&self, directory: &Path) -> Result<PathBuf> {
        let out = self.scratch.join("directory.tar");
        let mut tar = Command::new("tar");
        tar.args(["--create", "--sort=name", "--format=posix", "--pax-option=delete=atime,delete=ctime"]);
        tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "--one-file-system", "--file"]);
        step::run("source", tar.arg(&out).arg("--directory").arg(directory).arg("."))?;
        Ok(out)
    }

    /// Checks the suite that the recipe gives against the one that the source is.
    fn same_suite(&self, loaded: &Loaded) -> Result<()> {
        let suite = &self.distribution.suite;
        let Some(number) = loaded.tree.find(b"usr/lib/os-release").filter(|_| !suite.is_empty()) else { return Ok(()) };
        let merge::InodeKind::File(extent) = loaded.tree.inode(number).kind else { return Ok(()) };
        let text = archive::content(&loaded.layers, extent)?;
        match code_name(&String::from_utf8_lossy(&text)) {
            Some(found) if found != *suite => {
                bail!("distribution.suite is {suite}, and the source is {found}; [source] needs no suite")
            }
            _ => Ok(()),
        }
    }
}

/// Returns the time after which nothing can have changed, seconds since 1970: what every tool takes for today, or the
/// clock.
fn today() -> Result<u64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().with_context(|| format!("SOURCE_DATE_EPOCH={text:?} is not a number of seconds")),
        Err(_) => Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()),
    }
}

/// Returns the number of kernels whose modules the tree has.
fn kernels(tree: &MergedTree) -> usize {
    let modules = tree.find(b"usr/lib/modules").and_then(|number| tree.children(number));
    let versions = modules.iter().flat_map(|children| children.values());
    versions
        .filter(|version| tree.children(**version).is_some_and(|names| names.contains_key(b"kernel".as_slice())))
        .count()
}

fn code_name(os_release: &str) -> Option<&str> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::{code_name, is_asked_for, sha256_of};

    #[test]
    fn the_code_name_is_read() {
        assert_eq!(code_name("ID=ubuntu\nVERSION_CODENAME=noble\n"), Some("noble"));
        assert_eq!(code_name("VERSION_CODENAME=\"bookworm\"\n"), Some("bookworm"));
        assert_eq!(code_name("ID=arch\n"), None);
    }

    #[test]
    fn a_source_that_changed_is_refused() {
        is_asked_for(None, "sha256:1", "x").unwrap();
        let error = is_asked_for(Some("sha256:2"), "sha256:1", "robot:latest").unwrap_err().to_string();
        assert!(error.contains("robot:latest is sha256:1 now") && error.contains("asks for sha256:2"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a b\\c");
        assert!(sha256_of(&[&path]).unwrap_err().to_string().contains("is missing"));
        std::fs::write(&path, "").unwrap();
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256_of(&[&path]).unwrap(), empty);
    }
}
