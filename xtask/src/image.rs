//! A recipe becomes the image of a system partition.
//!
//! bootstrap -> files, commands, playbook -> normalisation -> OSTree tree -> commit -> deployment -> ext4. The
//! bootstrapped tree is kept, since it takes longest, until the package archives change; so is the OSTree repository.

mod access;
pub mod accounts;
pub mod archives;
mod bootstrap;
mod caches;
pub mod compare;
mod container;
mod description;
pub mod ext4;
mod files;
mod fragment;
mod homes;
#[cfg(test)]
mod hosts;
mod identities;
mod initramfs;
mod mount_units;
mod mounts;
pub mod named;
mod normal;
mod oddities;
pub mod ostree;
mod removal;
pub mod shipped;
mod snapshot;
pub mod source;
mod stamp;
mod sysusers;
mod tree;
mod within;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use self::accounts::KeptNumbers;
use self::archives::{PackageRenewal, PackagesDay};
pub use self::bootstrap::KeptTree;
pub use self::description::{Description, LayoutOrigin, bill_of_materials};
use self::source::UsedSource;
use self::stamp::InputDigest;
use crate::contents::ImageContents;
use crate::host_packages::{self, Need};
use crate::kernel::Kernel;
use crate::paths::{Paths, create_parent, output_file};
use crate::project::needed;
use crate::recipe::Recipe;
use crate::{agent, embedded, notices, room, step, trusted};

/// Options of `image`.
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    /// The recipe; `examples` writes a commented one. Default: that of the project.
    pub recipe: Option<PathBuf>,
    /// Where the image goes; a description is put beside it, with the extension json. Default: system.img, where
    /// everything built goes.
    #[arg(long, value_name = "FILE.img")]
    out: Option<PathBuf>,
    /// The image of the release before: what did not change stays on its blocks, so that a robot need not fetch it.
    #[arg(long, value_name = "FILE.img")]
    pub previous: Option<PathBuf>,
    /// Build everything again, also what has not changed.
    #[arg(long)]
    fresh: bool,
    /// Use the packages of the last build, although their archives may have newer ones.
    #[arg(long, conflicts_with = "fresh")]
    keep_packages: bool,
    /// Public key that the commands of the running system trust, as the recovery of the same release does; repeat for
    /// several.
    #[arg(long = "key", value_name = "FILE.pub")]
    pub keys: Vec<PathBuf>,
}

/// Builds an image as the command line says.
///
/// # Errors
/// The first step that fails, with the output of its tool.
pub fn run(args: &ImageArgs, paths: &Paths, assume_yes: bool) -> Result<()> {
    let (previous, keep_packages) = (args.previous.as_deref(), args.keep_packages);
    let options = ImageOptions { previous, fresh: args.fresh, keep_packages, assume_yes, keys: &args.keys };
    let out = output_file(args.out.clone().unwrap_or_else(|| paths.dist().join("system.img")))?;
    let recipe = needed(args.recipe.as_deref(), "the recipe", "recipe")?;
    build(paths, recipe, &out, &options).map(drop)
}

/// Options of building an image.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImageOptions<'a> {
    /// Image of the release before: what did not change stays where it is there.
    pub previous: Option<&'a Path>,
    /// Whether everything is built again, down to the packages.
    pub fresh: bool,
    /// Whether packages of the last build are used although their archives have changed.
    pub keep_packages: bool,
    /// Install missing packages of the host without asking.
    pub assume_yes: bool,
    /// Public keys for the commands of the running system.
    pub keys: &'a [PathBuf],
}

/// Room that the smallest image with a kernel takes while it is built: packages, tree, commit and image.
const FIRST_IMAGE_BYTES: u64 = 1_500_000_000;

/// Builds the image of `recipe` at `out`, with its [`Description`] beside it.
///
/// # Errors
/// The first step that fails, with the output of its tool.
pub fn build(paths: &Paths, recipe: &Path, out: &Path, options: &ImageOptions<'_>) -> Result<Description> {
    let directory = recipe.parent().unwrap_or(Path::new(".")).to_owned();
    named::warn_without_keys(Some(recipe));
    let mut recipe = Recipe::load(recipe)?;
    recipe.files.extend(trusted::of_image(options.keys, &recipe.files)?);
    named::check(&recipe, &directory)?;
    let mut needs = vec![Need::Image];
    needs.extend(recipe.ansible.is_some().then_some(Need::Ansible));
    needs.extend(recipe.source.is_some().then_some(Need::Source));
    host_packages::ensure_installed(&needs, options.assume_yes)?;
    ensure!(
        host_packages::is_root(),
        "an image is built as root, since its files belong to many users: {}",
        host_packages::as_root()
    );
    let (agent, notices) = (agent::obtain(paths, options.assume_yes)?, notices::of_agent(paths)?);
    let work = paths.work().join("image").join(&recipe.name);
    fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    create_parent(out)?;
    if !out.exists() {
        let otherwise = "put the work elsewhere with --work DIR (`work` in a project file)";
        room::require("the first image of a recipe", FIRST_IMAGE_BYTES, &work, otherwise)?;
    }
    let previous = options.previous.map(|path| Previous::read(path, out)).transpose()?;
    let mut numbers = KeptNumbers::gather(&recipe, &directory, options.previous)?;
    let _lock = lock(&work)?;
    let kept = KeptTree { fresh: options.fresh, keep_packages: options.keep_packages };
    let (bootstrapped, source) = match &recipe.source {
        None => (bootstrap::bootstrap(&recipe.distribution, &work, kept)?, None),
        Some(settings) => {
            let (obtained, used) = source::obtain(&recipe, settings, &directory, &work, kept)?;
            (obtained, Some(used))
        }
    };
    let timestamp = timestamp(&recipe, bootstrapped.archive_time)?;
    let build = Build {
        paths,
        recipe: &recipe,
        directory: &directory,
        agent: &agent,
        notices: &notices,
        work: &work,
        timestamp,
        previous: previous.as_ref(),
        source,
    };
    let key = build.key(&bootstrapped.key, &bootstrapped.tarball, &numbers)?;
    let name = format!("system image {} {}", recipe.name, recipe.version);
    if !options.fresh
        && out.exists()
        && let Ok(description) = Description::beside(out)
        && description.inputs == key
    {
        step::unchanged(&name);
        step::produced(&name, out);
        report_packages(bootstrapped.packages.as_ref());
        return Ok(description);
    }
    // An image without a description counts as none, so this order holds against an interruption anywhere.
    removal::remove_file(&Description::path(out))?;
    let mut description = build.run(&bootstrapped.tarball, &mut numbers, out)?;
    // After the build, which adds the numbers of new names to the recipe's file: with them it makes the same image.
    description.inputs = build.key(&bootstrapped.key, &bootstrapped.tarball, &numbers)?;
    description.packages = bootstrapped.packages.as_ref().map(|(day, _)| day.clone());
    let contents = step::step("list what is in the image", || ImageContents::read(out))?;
    let sbom = bill_of_materials(&contents, Some(&description))?;
    description.sbom_blake3 = Some(blake3::hash(sbom.as_bytes()).to_hex().to_string());
    let sbom_path = Description::sbom_path(out);
    fs::write(&sbom_path, sbom).with_context(|| format!("write {}", sbom_path.display()))?;
    description.write_beside(out)?;
    step::produced(&format!("{name}, {}", step::mib(description.image_bytes)), out);
    step::produced("description", &Description::path(out));
    step::produced("bill of materials", &sbom_path);
    report_packages(bootstrapped.packages.as_ref());
    eprintln!("  {}", step::room_for_undo(reflash_release::room::partition_bytes(out)?));
    Ok(description)
}

fn report_packages(packages: Option<&(PackagesDay, PackageRenewal)>) {
    if let Some((day, renewal)) = packages {
        renewal.report(day);
    }
}

/// The image of the release before.
struct Previous<'a> {
    path: &'a Path,
    /// BLAKE3, in hexadecimal.
    digest: String,
}

impl<'a> Previous<'a> {
    fn read(path: &'a Path, out: &Path) -> Result<Self> {
        let same = path.canonicalize().ok().zip(out.canonicalize().ok()).is_some_and(|(one, other)| one == other);
        ensure!(
            !same,
            "--previous and --out are both {}; keep the image of a release elsewhere, the next one is made from it",
            path.display()
        );
        let file = File::open(path).with_context(|| format!("open the previous image {}", path.display()))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).with_context(|| format!("read the previous image {}", path.display()))?;
        Ok(Self { path, digest: hasher.finalize().to_hex().to_string() })
    }

    /// Reports and returns what became of the previous image's layout.
    fn layout(&self, image: &Path, fresh_because: Option<String>) -> Result<LayoutOrigin> {
        let changed_bytes = compare::changed_bytes(self.path, image)?;
        let mib = step::mib(changed_bytes);
        let previous = self.digest.clone();
        Ok(match fresh_because {
            None => {
                eprintln!("  what did not change is where it was: {mib} differ from the previous image");
                LayoutOrigin::Kept { previous, changed_bytes }
            }
            Some(because) => {
                eprintln!("  laid out from scratch: {because}; {mib} differ from the previous image");
                LayoutOrigin::Fresh { previous, because, changed_bytes }
            }
        })
    }
}

/// Locks the recipe until the file is dropped: two builds at once would delete each other's trees.
fn lock(work: &Path) -> Result<File> {
    let path = work.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("  waiting for another build of the same recipe");
        file.lock().with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
}

/// Returns the date that makes the image reproducible. `SOURCE_DATE_EPOCH`, which is for every tool, wins over the
/// recipe; without either, the state of the package archive decides.
fn timestamp(recipe: &Recipe, archive_time: u64) -> Result<u64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().with_context(|| format!("SOURCE_DATE_EPOCH={text:?} is not a number of seconds")),
        Err(_) => Ok(recipe.timestamp.unwrap_or(archive_time)),
    }
}

struct Build<'a> {
    paths: &'a Paths,
    recipe: &'a Recipe,
    /// Directory of the recipe, to which its sources are relative.
    directory: &'a Path,
    agent: &'a Path,
    /// Of the software in the agent.
    notices: &'a str,
    work: &'a Path,
    timestamp: u64,
    previous: Option<&'a Previous<'a>>,
    /// What was used in place of a bootstrapped tree.
    source: Option<UsedSource>,
}

impl Build<'_> {
    /// Digest of everything that the image is made from, this program's own way of making it included.
    fn key(&self, bootstrap: &str, tarball: &Path, numbers: &KeptNumbers) -> Result<String> {
        let modified = tarball.metadata().and_then(|metadata| metadata.modified())?;
        let modified = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let own = concat!(
            include_str!("image.rs"),
            include_str!("image/accounts.rs"),
            include_str!("image/access.rs"),
            include_str!("image/accounts/names.rs"),
            include_str!("image/accounts/numbers.rs"),
            include_str!("image/accounts/owners.rs"),
            include_str!("image/accounts/ranges.rs"),
            include_str!("contents/sbom.rs"),
            include_str!("image/description.rs"),
            include_str!("image/ext4.rs"),
            include_str!("image/ext4/attributes.rs"),
            include_str!("image/ext4/bytes.rs"),
            include_str!("image/ext4/content.rs"),
            include_str!("image/ext4/digest.rs"),
            include_str!("image/ext4/directory.rs"),
            include_str!("image/ext4/extents.rs"),
            include_str!("image/ext4/geometry.rs"),
            include_str!("image/ext4/place.rs"),
            include_str!("image/ext4/placed.rs"),
            include_str!("image/ext4/read.rs"),
            include_str!("image/ext4/space.rs"),
            include_str!("image/ext4/tree.rs"),
            include_str!("image/ext4/write.rs"),
            include_str!("image/caches.rs"),
            include_str!("image/container.rs"),
            include_str!("image/files.rs"),
            include_str!("image/fragment.rs"),
            include_str!("fresh.rs"),
            include_str!("image/homes.rs"),
            include_str!("image/identities.rs"),
            include_str!("image/initramfs.rs"),
            include_str!("image/mount_units.rs"),
            include_str!("image/mounts.rs"),
            include_str!("image/normal.rs"),
            include_str!("image/oddities.rs"),
            include_str!("image/ostree.rs"),
            include_str!("image/shipped.rs"),
            include_str!("image/sysusers.rs"),
            include_str!("image/tree.rs"),
            include_str!("image/within.rs"),
            include_str!("recipe/places.rs"),
            include_str!("initramfs.rs"),
            include_str!("initramfs/archive.rs"),
            include_str!("initramfs/modules.rs"),
        );
        let mut key = InputDigest::default()
            .with(own)
            .with(bootstrap)
            .with(modified.to_le_bytes())
            .with(serde_json::to_vec(self.recipe)?)
            .with(self.timestamp.to_le_bytes())
            .with(numbers.text())
            .with(self.previous.map(|previous| previous.digest.as_str()).unwrap_or_default())
            .with_file(self.agent)?
            .with(self.notices);
        for own in [embedded::MODULES].into_iter().chain(embedded::IMAGE_UNITS) {
            key = key.with(own);
        }
        for source in self.recipe.files.iter().filter_map(|file| file.source.as_ref()) {
            key = key.with_file(&self.directory.join(source))?;
        }
        if let Some(ansible) = &self.recipe.ansible {
            // Roles and files of a playbook lie anywhere beside it.
            let playbook = self.directory.join(&ansible.playbook);
            key = key.with_tree(playbook.parent().unwrap_or(self.directory))?;
        }
        Ok(key.finish())
    }

    /// Makes the image. What the description says of its inputs is left to the caller.
    fn run(&self, tarball: &Path, kept: &mut KeptNumbers, out: &Path) -> Result<Description> {
        let (recipe, tree) = (self.recipe, self.work.join("tree"));
        step::step("unpack the bootstrapped tree", || bootstrap::unpack(tarball, &tree))?;
        normal::forget_host(&tree)?;
        // Once before the commands, so that they find the numbers that will be, and once after them.
        kept.apply(&tree)?;
        let made = files::place(recipe, self.directory, &tree)?;
        files::place_own(recipe, self.agent, self.notices, &tree)?;
        files::run(recipe, self.directory, &tree, self.timestamp)?;
        oddities::free(&tree);
        sysusers::make(&tree, self.timestamp)?;
        homes::settle(recipe, &tree, &made)?;
        let numbers = kept.apply(&tree)?;
        KeptNumbers::record(&tree, &numbers)?;
        normal::normalise(&tree, recipe, self.timestamp)?;
        oddities::refuse(&tree)?;
        let fault = mounts::fault(&within::text(&tree, "etc/fstab")?).or_else(|| mount_units::fault(&tree));
        fault.map_or(Ok(()), |fault| bail!(fault))?;
        for unit in mount_units::waits(&tree) {
            eprintln!("  a robot without the disk waits 90 s at each start: {unit}; an .automount unit would not");
        }
        identities::name_shared(&tree, &recipe.files);
        for unit in named::missing_units(recipe, self.directory, &tree)? {
            eprintln!(
                "  NO START WILL BE GOOD: boot.health_units names {unit}, and no unit file of the image is called so"
            );
        }
        let kernel = step::step("the system's own initramfs", || self.kernel(&tree))?;
        tree::convert(&tree, recipe)?;
        let sysroot = self.work.join("sysroot");
        let made = ostree::Deploying { recipe, timestamp: self.timestamp, tree: &tree };
        let commit = made.through(&self.paths.work().join("ostree"), &sysroot)?;
        let built = step::step("ext4 image", || {
            let previous = self.previous.map(|previous| previous.path);
            ext4::build(&sysroot, out, recipe.image.size_mib, &recipe.ostree.branch, previous)
        })?;
        let layout = match self.previous {
            Some(previous) => previous.layout(out, built.fresh_because)?,
            None => LayoutOrigin::First,
        };
        kept.remember(numbers)?;
        ostree::remove_sysroot(&sysroot)?;
        removal::remove_tree(&tree)?;
        Ok(Description {
            name: recipe.name.clone(),
            version: recipe.version.clone(),
            ostree_commit: commit,
            ostree_ref: recipe.ostree.branch.clone(),
            image_bytes: built.bytes,
            kernel,
            timestamp: self.timestamp,
            layout,
            source: self.source.clone(),
            packages: None,
            sbom_blake3: None,
            inputs: String::new(),
        })
    }

    /// Puts kernel and initramfs where OSTree looks for them, and returns the kernel's version.
    fn kernel(&self, tree: &Path) -> Result<String> {
        let (release, image) = files::kernel(tree)?;
        let modules = tree.join("usr/lib/modules").join(&release);
        let vmlinuz = modules.join("vmlinuz");
        if image != vmlinuz {
            fs::rename(&image, &vmlinuz).with_context(|| format!("move {}", image.display()))?;
        }
        let kernel = Kernel { release: release.clone(), vmlinuz, modules: modules.clone() };
        initramfs::build(self.agent, &kernel, tree, &modules.join("initramfs.img"))?;
        Ok(release)
    }
}

#[cfg(test)]
mod tests {
    use super::Previous;
    use std::path::Path;

    #[test]
    fn an_image_is_not_made_from_itself() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("system.img");
        let read = |previous: &Path| Previous::read(previous, &image).map(|previous| previous.digest);
        assert!(format!("{:#}", read(&image).unwrap_err()).contains("open the previous image"));
        std::fs::write(&image, "x").unwrap();
        let same = directory.path().join("./system.img");
        let error = format!("{:#}", read(&same).unwrap_err());
        assert!(error.contains("--previous and --out are both"), "{error}");
        let other = directory.path().join("other.img");
        std::fs::write(&other, "x").unwrap();
        assert_eq!(read(&other).unwrap(), blake3::hash(b"x").to_hex().as_str());
    }
}
