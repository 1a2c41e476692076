//! Deletion of what no kept release needs, from a tree or from a store.
//!
//! A tree grows with each release, since objects are shared by name and no release says which ones are old. So the
//! manifests that are kept decide: of each channel the release that is offered and the last ones before it
//! ([`crate::release::history`]), and those that its roll-out names. What they need stays, in all channels of the tree;
//! the rest goes.

mod plan;
pub mod tree;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use reflash::release::rollout::rollout_path;

use crate::offered;
use crate::paths::Paths;
use crate::publish::{Store, location};
use crate::release::check;
use crate::release::rollout::named_serials;
use crate::step::{mib, step};

pub use plan::Pruning;
use plan::{KnownRelease, channels, plan};
use tree::{Stored, Tree, TreeDirectory};

/// Options of `prune`.
#[derive(Debug, clap::Args)]
pub struct PruneArgs {
    /// Root of the tree. Default: release, where everything built goes.
    #[arg(long, value_name = "DIR", conflicts_with = "to")]
    pub dir: Option<PathBuf>,
    /// Prune this place in a store instead of a tree. The key is taken from AWS_ACCESS_KEY_ID and
    /// AWS_SECRET_ACCESS_KEY, and must have the rights to list and to delete.
    #[arg(long, value_name = "s3://BUCKET/PREFIX")]
    to: Option<String>,
    /// Prune the project's place in a store.
    #[arg(long, conflicts_with_all = ["to", "dir"])]
    pub published: bool,
    /// URL of the store; default: that of AWS in the region.
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Region of the store; most others than AWS take any. Default: us-east-1.
    #[arg(long)]
    pub region: Option<String>,
    /// Releases to keep of each channel, the one that is offered included.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    keep: u32,
    /// Hours for which everything is kept that was written: a release may be under way, and robots may still be
    /// fetching the one before.
    #[arg(long, default_value_t = 24, value_name = "HOURS")]
    min_age_h: u64,
    /// Delete. Without it, only what would be deleted is said.
    #[arg(long)]
    delete: bool,
}

impl PruneArgs {
    /// Takes the place in a store that a project publishes to, if that was asked for.
    pub fn take_place(&mut self, to: Option<&String>) {
        if self.published {
            self.to = to.cloned();
        }
    }
}

/// Prunes as the command line says.
///
/// # Errors
/// When a kept release cannot be read, so that what it needs is not known, or something cannot be deleted.
pub fn run(args: PruneArgs, paths: &Paths) -> Result<()> {
    let tree: Box<dyn Tree> = if args.to.is_some() || args.published {
        Box::new(Store::with_credentials_of_environment(location(args.to, args.endpoint, args.region)?)?)
    } else {
        let root = args.dir.unwrap_or_else(|| paths.dist().join("release"));
        offered::require_any(&root)?;
        Box::new(TreeDirectory(root))
    };
    let found = prune(&*tree, args.keep, args.min_age_h * 3600, args.delete)?;
    eprintln!("  {}: {found}", tree.name());
    if !args.delete && !found.remove.is_empty() {
        eprintln!("  nothing was deleted; the same command with --delete does it");
    }
    Ok(())
}

/// Finds what no release needs of the last `keep` of each channel, and deletes it if that is wanted. What is younger
/// than `min_age_s` stays.
///
/// # Errors
/// When the tree cannot be listed, has no release, or a kept release cannot be read; then nothing is deleted. When
/// something cannot be deleted, the rest stays.
pub fn prune(tree: &dyn Tree, keep: u32, min_age_s: u64, delete: bool) -> Result<Pruning> {
    let _alone = if delete { tree.lock()? } else { None };
    let listing = step(&format!("list {}", tree.name()), || tree.list())?;
    let mut releases = Vec::new();
    for (channel, manifests) in channels(&listing) {
        let mut of_channel = manifests.iter().map(|path| read(tree, path)).collect::<Result<Vec<_>>>()?;
        ensure!(
            manifests.iter().any(|path| !path.contains("/history/")),
            "channel {channel} of {} has a history and no manifest; delete {channel}/ if the channel is to end",
            tree.name()
        );
        of_channel.sort_unstable_by_key(|release| std::cmp::Reverse((release.serial, release.offered)));
        let named = named_by_rollout(tree, &listing, channel)?;
        // What is offered may be an older one than the newest that is known, where a person copied trees.
        let (offered, others): (Vec<_>, Vec<_>) = of_channel.into_iter().partition(|release| release.offered);
        let kept = offered.into_iter().chain(others);
        let mut seen = std::collections::BTreeSet::new();
        let kept = kept.filter(|release| {
            seen.insert(release.serial);
            seen.len() <= keep as usize || named.contains(&release.serial)
        });
        for release in kept.collect::<Vec<_>>() {
            releases.push(release.with_objects(tree)?);
        }
    }
    ensure!(!releases.is_empty(), "{} has no release, so nothing says what is needed: it is not pruned", tree.name());
    let found = plan(&listing, &releases, min_age_s);
    if delete && !found.remove.is_empty() {
        step(&format!("delete {} files", found.remove.len()), || {
            found.remove.iter().try_for_each(|stored| tree.remove(&stored.path))
        })?;
    }
    Ok(found)
}

/// Serials that the roll-out of a channel names, if it has one: robots may be sent to each of them.
fn named_by_rollout(tree: &dyn Tree, listing: &[Stored], channel: &str) -> Result<Vec<u64>> {
    let path = rollout_path(channel);
    if !listing.iter().any(|stored| stored.path == path) {
        return Ok(Vec::new());
    }
    named_serials(&tree.read(&path)?)
        .with_context(|| format!("{path} in {} is no roll-out that this version can read", tree.name()))
}

fn read(tree: &dyn Tree, path: &str) -> Result<KnownRelease> {
    let content = tree.read(path)?;
    let manifest = serde_json::from_slice(&content).with_context(|| {
        format!(
            "{path} in {} is no manifest that this version can read, so that what it needs is not known; delete that \
                 file if the release is not wanted",
            tree.name()
        )
    })?;
    Ok(KnownRelease::of(path, manifest))
}

impl KnownRelease {
    fn with_objects(mut self, tree: &dyn Tree) -> Result<Self> {
        let read = |object: &reflash::release::manifest::Object| {
            tree.read(&reflash::release::manifest::object_path(&object.blake3))
        };
        let objects = check::objects_by(&self.manifest, read).with_context(|| {
            format!(
                "{} in {} cannot be read whole, so that what it needs is not known; delete that file if the release is \
                 not wanted",
                self.path,
                tree.name()
            )
        })?;
        self.objects = objects.iter().map(reflash::release::manifest::object_path).collect();
        Ok(self)
    }
}

impl std::fmt::Display for Pruning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = |stored: &[tree::Stored]| mib(stored.iter().map(|stored| stored.size_bytes).sum());
        write!(f, "{} of {} files are needed by no kept release", self.remove.len(), self.files)?;
        write!(f, " ({}); kept are releases {}", bytes(&self.remove), self.kept.join(", "))?;
        if !self.young.is_empty() {
            write!(f, "; {} more ({}) are too young to go", self.young.len(), bytes(&self.young))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::prune;
    use super::tree::TreeDirectory;
    use crate::release::{self, Spec, check, history, keygen};
    use reflash::release::manifest::TrustedKeys;
    use std::path::Path;

    fn image(seed: u8) -> Vec<u8> {
        (0..64 * 4096_u32).map(|at| u8::try_from((at / 7 * u32::from(seed)) % 251).unwrap()).collect()
    }

    fn spec(image: &Path, version: &str) -> Spec {
        Spec {
            product: "p".into(),
            hardware: vec!["*".into()],
            channel: "stable".into(),
            version: version.into(),
            serial: None,
            image: image.to_owned(),
            ostree: None,
            files: Vec::new(),
            layout: None,
            chunk_bytes: Some(16384),
            level: 1,
            created_unix_s: Some(1_700_000_000),
            allow: Vec::new(),
        }
    }

    #[test]
    fn what_kept_releases_need_stays_and_the_rest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        let keys = keygen::generate(&dir.path().join("keys"), None).unwrap();
        let key = keygen::load_secret(&keys.secret).unwrap();
        let mut trusted = TrustedKeys::default();
        trusted.add("k", &keygen::load_public(&keys.public).unwrap()).unwrap();
        let path = dir.path().join("image");
        for (seed, version) in [(3, "1"), (5, "2"), (7, "3")] {
            std::fs::write(&path, image(seed)).unwrap();
            release::build(&spec(&path, version), &key, &tree).unwrap();
        }
        let other = Spec { channel: "testing".into(), ..spec(&path, "3") };
        release::build(&other, &key, &tree).unwrap();
        std::fs::write(tree.join("objects/notes.txt"), "a person's").unwrap();
        std::fs::write(tree.join("objects").join(format!("{}.new", "0".repeat(64))), "cut").unwrap();
        let count = || std::fs::read_dir(tree.join("objects")).unwrap().count();
        let all = count();
        let directory = TreeDirectory(tree.clone());
        // A day's grace, and a look alone, delete nothing.
        assert!(prune(&directory, 1, 86400, true).unwrap().remove.is_empty());
        let found = prune(&directory, 2, 0, false).unwrap();
        assert!(!found.remove.is_empty() && count() == all);
        let found = prune(&directory, 2, 0, true).unwrap();
        assert_eq!(found.kept, ["stable 3", "stable 2", "testing 1"]);
        assert!(count() < all && tree.join("objects/notes.txt").is_file());
        assert!(!tree.join("stable/history/1.json").exists() && !tree.join("stable/history/1.json.minisig").exists());
        for channel in ["stable", "testing"] {
            check::check(&tree, channel, &trusted).unwrap();
        }
        let error = format!("{:#}", history::again(&tree, "stable", 1, &key, &[]).unwrap_err());
        assert!(error.contains("no release 1") && error.contains("3, 2"), "{error}");
        let again = history::again(&tree, "stable", 2, &key, &[]).unwrap();
        assert_eq!((again.version.as_str(), again.serial), ("2", 4));
        assert_eq!(check::check(&tree, "stable", &trusted).unwrap(), again);
        assert!(prune(&directory, 2, 0, true).unwrap().kept.contains(&"stable 4".to_owned()));
        check::check(&tree, "stable", &trusted).unwrap();
    }

    /// A release takes over what lies there, whatever its age.
    #[test]
    fn a_release_that_is_being_made_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        let under_way = release::lock(&tree).unwrap();
        let prune = |delete: bool| {
            let directory = TreeDirectory(tree.clone());
            std::thread::spawn(move || prune(&directory, 1, 0, delete).unwrap_err().to_string())
        };
        assert!(prune(false).join().unwrap().contains("has no release"), "a look waits for nothing");
        let deletion = prune(true);
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(!deletion.is_finished());
        drop(under_way);
        assert!(deletion.join().unwrap().contains("has no release"));
    }

    #[test]
    fn a_release_that_cannot_be_read_stops_everything() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("objects")).unwrap();
        std::fs::write(tree.join("objects").join("0".repeat(64)), "x").unwrap();
        let directory = TreeDirectory(tree.clone());
        assert!(prune(&directory, 1, 0, true).unwrap_err().to_string().contains("no release"));
        let keys = keygen::generate(&dir.path().join("keys"), None).unwrap();
        let key = keygen::load_secret(&keys.secret).unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, image(3)).unwrap();
        let made = release::build(&spec(&path, "1"), &key, &tree).unwrap();
        let index = reflash::release::manifest::object_path(&made.manifest.images[0].index.blake3);
        std::fs::remove_file(tree.join(index)).unwrap();
        let error = format!("{:#}", prune(&directory, 1, 0, true).unwrap_err());
        assert!(
            error.contains("cannot be read whole") && tree.join("objects").join("0".repeat(64)).exists(),
            "{error}"
        );
    }
}
