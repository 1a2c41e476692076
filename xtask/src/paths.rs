//! Where things are: the checkout, if there is one, what is shipped, and what is only kept for the next build.
//!
//! All of it is found when a command runs, never when the builder is compiled: a checkout that was copied or moved
//! builds into itself, and an installed builder needs no checkout at all.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Name of the image that was released last, beside the one that was built last.
pub const RELEASED_IMAGE: &str = "released.img";

/// The directories every command works in.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The checkout; outside of one the directory that the builder was started in.
    pub root: PathBuf,
    in_checkout: bool,
    dist: PathBuf,
    work: PathBuf,
    agent: Option<PathBuf>,
}

/// The places that a person may choose instead of the usual ones: options of every command.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Options of every command")]
pub struct PlaceArgs {
    /// Directory for what is built. Default: target/dist of the checkout; without a checkout, dist.
    #[arg(long, global = true, env = "REFLASH_DIST", value_name = "DIR", hide_env_values = true)]
    pub dist: Option<PathBuf>,
    /// Directory for caches and scratch files. Default: target/work of the checkout; without a checkout, .reflash-work.
    #[arg(long, global = true, env = "REFLASH_WORK", value_name = "DIR", hide_env_values = true)]
    pub work: Option<PathBuf>,
    /// Agent to put into what is built. Default: in a checkout one is built; otherwise the one in this program.
    #[arg(long, global = true, env = "REFLASH_AGENT", value_name = "FILE", hide_env_values = true)]
    pub agent: Option<PathBuf>,
}

impl Paths {
    /// Finds the paths of a command: those of the checkout around it, or of the directory it was started in, and the
    /// ones that a person chose instead.
    ///
    /// # Errors
    /// When the current directory is gone.
    pub fn find(chosen: PlaceArgs) -> Result<Self> {
        let here = std::env::current_dir().context("find the current directory")?;
        let mut paths = match checkout_from(manifest_dir().as_deref()).or_else(|| checkout_from(Some(&here))) {
            Some(checkout) => Self::of(checkout),
            None => Self::without_checkout(&here),
        };
        // Tools are started in other directories too, so that relative paths would not do.
        let absolute = |path: PathBuf| here.join(path);
        paths.dist = chosen.dist.map_or(paths.dist, absolute);
        paths.work = chosen.work.map_or(paths.work, absolute);
        paths.agent = chosen.agent.map(absolute);
        Ok(paths)
    }

    /// Returns the paths of the checkout whose tests are running. Cargo names it in the environment of every test and
    /// of `cargo run`; otherwise it is looked for from the current directory upwards.
    ///
    /// # Panics
    /// When there is no checkout.
    #[must_use]
    pub fn of_checkout() -> Self {
        let here = std::env::current_dir().ok();
        let found = checkout_from(manifest_dir().as_deref()).or_else(|| checkout_from(here.as_deref()));
        Self::of(found.expect("tests run in a checkout of reflash"))
    }

    fn of(checkout: PathBuf) -> Self {
        let (dist, work) = (checkout.join("target/dist"), checkout.join("target/work"));
        Self { root: checkout, in_checkout: true, dist, work, agent: None }
    }

    fn without_checkout(here: &Path) -> Self {
        let (dist, work) = (here.join("dist"), here.join(".reflash-work"));
        Self { root: here.to_owned(), in_checkout: false, dist, work, agent: None }
    }

    /// Whether there is a checkout of reflash, from which the agent and the tests can be built.
    #[must_use]
    pub fn in_checkout(&self) -> bool {
        self.in_checkout
    }

    /// Returns the checkout, for a command that makes sense only there.
    ///
    /// # Errors
    /// Outside of a checkout, with the name of the command.
    pub fn checkout(&self, command: &str) -> Result<&Path> {
        self.in_checkout.then_some(&*self.root).with_context(|| {
            format!(
                "`{command}` needs a checkout of reflash, and neither {} nor a directory above it is one: clone reflash, \
                 and run `cargo xtask {command}` there",
                self.root.display()
            )
        })
    }

    /// Directory of what users take away: `reflash`, `vmlinuz`, `initramfs.img`, `grub/`, `system.img`, `release/`,
    /// `disk.img`.
    #[must_use]
    pub fn dist(&self) -> PathBuf {
        self.dist.clone()
    }

    /// Directory of caches and scratch space; safe to delete, slow to rebuild.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.work.clone()
    }

    /// The agent that was named on the command line or by `REFLASH_AGENT`.
    #[must_use]
    pub fn given_agent(&self) -> Option<&Path> {
        self.agent.as_deref()
    }

    /// Makes a directory for one command, below [`Paths::work`]; it is deleted when the value is dropped.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn scratch(&self, prefix: &str) -> Result<tempfile::TempDir> {
        create_dir(&self.work)?;
        let made = tempfile::Builder::new().prefix(prefix).tempdir_in(&self.work);
        made.with_context(|| format!("create a directory in {}", self.work.display()))
    }
}

/// Creates a directory and those above it.
///
/// # Errors
/// With the directory's name.
pub fn create_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
}

/// Creates the directory that `file` is to be written into.
///
/// # Errors
/// With the directory's name.
pub fn create_parent(file: &Path) -> Result<()> {
    file.parent().map_or(Ok(()), create_dir)
}

/// The package whose program or test cargo is running. It is read at run time: `env!` would name the directory in which
/// the builder was compiled, which a copied checkout shares through its copied `target/`.
/// Returns the place for a file that is built, once it is certain that one can be put there: what is built takes the
/// place of what is at its path, and for a device that would be a file in /dev, and nothing on the disk.
///
/// # Errors
/// When something else than a file is there.
pub fn output_file(path: PathBuf) -> Result<PathBuf> {
    let shown = path.display();
    match path.metadata() {
        Ok(found) if found.is_dir() => bail!("{shown} is a directory: name a file in it"),
        Ok(found) if !found.is_file() => {
            bail!("{shown} is a device, or the like: name a file, and write that to the device with dd afterwards")
        }
        _ => Ok(path),
    }
}

fn manifest_dir() -> Option<PathBuf> {
    std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from)
}

/// Returns the checkout of reflash that a directory lies in, if it lies in one.
#[must_use]
pub fn checkout_around(directory: &Path) -> Option<PathBuf> {
    checkout_from(Some(directory))
}

/// The first of `from` and the directories above it that is a checkout.
fn checkout_from(from: Option<&Path>) -> Option<PathBuf> {
    from?.ancestors().find(|directory| is_checkout(directory)).map(Path::to_owned)
}

/// Whether the manifest in `directory` is that of reflash's workspace: the package `reflash` with the member `xtask`.
fn is_checkout(directory: &Path) -> bool {
    let manifest = std::fs::read_to_string(directory.join("Cargo.toml"));
    let Some(manifest) = manifest.ok().and_then(|text| text.parse::<toml::Table>().ok()) else { return false };
    let package = manifest.get("package").and_then(|package| package.get("name")?.as_str());
    let members = manifest.get("workspace").and_then(|workspace| workspace.get("members")?.as_array());
    package == Some("reflash")
        && members.is_some_and(|members| members.iter().any(|name| name.as_str() == Some("xtask")))
}

#[cfg(test)]
mod tests {
    use super::{Paths, PlaceArgs, checkout_from, output_file};
    use std::path::Path;

    #[test]
    fn what_is_built_takes_no_place_of_a_device() {
        let directory = tempfile::tempdir().unwrap();
        let error = |path: &Path| output_file(path.to_owned()).unwrap_err().to_string();
        assert!(error(Path::new("/dev/null")).contains("with dd"));
        assert!(error(directory.path()).contains("name a file in it"));
        let file = directory.path().join("media.iso");
        assert_eq!(output_file(file.clone()).unwrap(), file);
        std::fs::write(&file, "x").unwrap();
        assert_eq!(output_file(file.clone()).unwrap(), file);
    }

    fn checkout(at: &Path) {
        std::fs::create_dir_all(at.join("xtask/src")).unwrap();
        std::fs::write(at.join("Cargo.toml"), "[package]\nname = 'reflash'\n[workspace]\nmembers = ['xtask']\n")
            .unwrap();
        std::fs::write(at.join("xtask/Cargo.toml"), "[package]\nname = 'xtask'\n").unwrap();
    }

    #[test]
    fn a_checkout_is_found_from_below_it() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("copy");
        checkout(&root);
        for below in [root.clone(), root.join("xtask"), root.join("xtask/src")] {
            assert_eq!(checkout_from(Some(&below)).as_deref(), Some(&*root));
        }
        assert_eq!(checkout_from(Some(directory.path())), None);
    }

    #[test]
    fn other_packages_are_no_checkout() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["[package]\nname = 'reflash'\n", "[workspace]\nmembers = ['xtask']\n", "not TOML"] {
            std::fs::write(directory.path().join("Cargo.toml"), text).unwrap();
            assert_eq!(checkout_from(Some(directory.path())), None, "{text}");
        }
    }

    #[test]
    fn chosen_places_win_and_become_absolute() {
        let here = std::env::current_dir().unwrap();
        let chosen = PlaceArgs { dist: Some("out".into()), work: Some("/w".into()), agent: Some("a/reflash".into()) };
        let paths = Paths::find(chosen).unwrap();
        assert_eq!((paths.dist(), paths.work()), (here.join("out"), "/w".into()));
        assert_eq!(paths.given_agent(), Some(&*here.join("a/reflash")));
    }

    #[test]
    fn a_command_of_the_checkout_says_so_outside_of_one() {
        let paths = Paths::without_checkout(Path::new("/srv/fleet"));
        let error = paths.checkout("demo").unwrap_err().to_string();
        assert!(error.contains("`demo` needs a checkout") && error.contains("/srv/fleet"), "{error}");
        assert_eq!(paths.dist(), Path::new("/srv/fleet/dist"));
        assert!(Paths::of_checkout().checkout("demo").unwrap().join("xtask/Cargo.toml").is_file());
    }
}
