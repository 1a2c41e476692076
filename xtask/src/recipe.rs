//! A recipe: the TOML file that a system image is built from. Pure: text in, checked [`Recipe`] out.
//!
//! `xtask/recipes/robot.toml` shows every key with its meaning.

pub mod files;
pub mod places;
pub mod rules;
pub mod snapshot;
mod source;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

pub use self::files::FileEntry;
use self::rules::PathRule;
pub use self::source::{Origin, SourceSettings};
use crate::toml_text;

/// Kernel arguments that say what is started: the image's own has them, or none has.
const OWN_ARGUMENTS: &[&str] = &["root", "init", "rdinit", "ostree", "initrd", "systemd.gpt_auto"];
/// Longest name in a recipe, characters: the longest name of a file has 255, and some get an ending.
const LONGEST_WORD: usize = 200;

/// Everything that decides what is in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Short name; becomes `IMAGE_ID` in os-release.
    pub name: String,
    /// Version; becomes `IMAGE_VERSION` in os-release and the version of the OSTree commit.
    pub version: String,
    /// Host name of a machine that gets none from its hardware. A name set with `hostnamectl` wins over both.
    #[serde(default = "default_hostname")]
    pub hostname: String,
    /// Seconds since 1970 that the commit carries. Default: `SOURCE_DATE_EPOCH`, else the date of the package archive.
    pub timestamp: Option<u64>,
    /// File with the numbers of users and groups, relative to the recipe. Builds keep them, and add those of new names.
    pub numbers: Option<PathBuf>,
    /// Shell lines, run in order inside the new system after packages and files.
    #[serde(default)]
    pub commands: Vec<String>,
    /// Section `[source]` of the recipe: a system that exists already, in place of one that is bootstrapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceSettings>,
    /// Section `[distribution]` of the recipe.
    #[serde(default)]
    pub distribution: Distribution,
    /// Section `[[files]]` of the recipe.
    #[serde(default)]
    pub files: Vec<FileEntry>,
    /// Section `[[rules]]` of the recipe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<PathRule>,
    /// Section `[ansible]` of the recipe.
    pub ansible: Option<Ansible>,
    /// Section `[ostree]` of the recipe.
    pub ostree: Ostree,
    /// Section `[boot]` of the recipe.
    #[serde(default)]
    pub boot: Boot,
    /// Section `[image]` of the recipe.
    #[serde(default)]
    pub image: ImageSettings,
}

/// Section `[distribution]` of a recipe: where the packages come from and which ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distribution {
    /// Debian or Ubuntu code name, such as `bookworm` or `noble`. Not needed with `[source]`, which has one already.
    #[serde(default)]
    pub suite: String,
    /// URL of the archive. Default: what the host's own apt uses for this suite, else the bootstrap tool's default.
    pub mirror: Option<String>,
    /// Key ring that signs the archive, on the host. Needed for a distribution that is not the host's.
    pub keyring: Option<PathBuf>,
    /// Components of the archive. Default: those the host's apt uses with the mirror, or `main`.
    #[serde(default)]
    pub components: Vec<String>,
    /// Tool that makes the first tree.
    #[serde(default)]
    pub bootstrap: BootstrapTool,
    /// More lines for `sources.list`, used while packages are installed.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Whether packages come from the pockets with updates too. If not, the image is the suite as it was released.
    #[serde(default = "yes")]
    pub updates: bool,
    /// Day of the archives, such as `2026-11-20`: packages come from the snapshots of that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Whether kept packages are renewed when the archives changed.
    #[serde(default = "yes")]
    pub renew: bool,
    /// Packages, with apt's wildcards, that stay as the suite was released while others are updated.
    #[serde(default)]
    pub hold: Vec<String>,
    /// Packages beside the minimal system, or beside what `[source]` has; the kernel is one of them. Recommended
    /// packages are not pulled in.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Paths not to install, as in dpkg's `path-exclude`: `*` matches any text, slashes too.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Exceptions from `exclude`, in the same form.
    #[serde(default)]
    pub keep: Vec<String>,
}

impl Default for Distribution {
    fn default() -> Self {
        Self {
            suite: String::new(),
            mirror: None,
            keyring: None,
            components: Vec::new(),
            bootstrap: BootstrapTool::default(),
            sources: Vec::new(),
            updates: yes(),
            snapshot: None,
            renew: yes(),
            hold: Vec::new(),
            packages: Vec::new(),
            exclude: Vec::new(),
            keep: Vec::new(),
        }
    }
}

fn yes() -> bool {
    true
}

/// Tool that makes the first tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootstrapTool {
    /// Tool mmdebstrap, which is twice as fast, and solves dependencies with apt.
    #[default]
    Mmdebstrap,
    /// Tool debootstrap, for a host without mmdebstrap, or a suite that mmdebstrap does not know.
    Debootstrap,
}

/// Section `[ansible]` of a recipe: a playbook run at build time against the new system, which needs `python3` among
/// its packages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ansible {
    /// The playbook, relative to the recipe. Its directory is where roles and files are looked for.
    pub playbook: PathBuf,
    /// Extra variables, as `ansible-playbook --extra-vars` takes them.
    #[serde(default)]
    pub extra_vars: Vec<String>,
}

/// Section `[ostree]` of a recipe: where the commit goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ostree {
    /// Branch of the commit, such as `demo/amd64/stable`.
    pub branch: String,
    /// More refs under which the same commit may be published as an OSTree repository, such as those of channels that
    /// it goes through before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refs: Vec<String>,
}

/// Section `[boot]` of a recipe: how the system is started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// Kernel arguments, beside those that reflash needs.
    #[serde(default)]
    pub kernel_arguments: Vec<String>,
}

/// Section `[image]` of a recipe: the image itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSettings {
    /// Size in MiB. Default `"auto"`: what the content needs and a sixteenth, where the next image finds room.
    #[serde(default)]
    pub size_mib: ImageSize,
}

/// Size of the image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SizeText", into = "SizeText")]
pub enum ImageSize {
    /// Size that the content needs, and a sixteenth more.
    #[default]
    Auto,
    /// Exactly so many MiB.
    Mib(u32),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum SizeText {
    Number(u32),
    Word(String),
}

impl TryFrom<SizeText> for ImageSize {
    type Error = String;

    fn try_from(text: SizeText) -> Result<Self, String> {
        match text {
            SizeText::Number(0) => Err("size_mib is 0; give the MiB of the image, or \"auto\"".into()),
            SizeText::Number(mib) => Ok(Self::Mib(mib)),
            SizeText::Word(word) if word == "auto" => Ok(Self::Auto),
            SizeText::Word(word) => Err(format!("size_mib is {word:?}; expected a number of MiB or \"auto\"")),
        }
    }
}

impl From<ImageSize> for SizeText {
    fn from(size: ImageSize) -> Self {
        match size {
            ImageSize::Auto => Self::Word("auto".into()),
            ImageSize::Mib(mib) => Self::Number(mib),
        }
    }
}

fn default_hostname() -> String {
    "robot".into()
}

impl Recipe {
    /// Reads and checks one recipe.
    ///
    /// # Errors
    /// Fails with the file's name, and with the line where the text itself is at fault.
    pub fn load(path: &Path) -> Result<Self> {
        let text = toml_text::read(path).context("the recipe")?;
        Self::parse(&text).with_context(|| format!("recipe {}", path.display()))
    }

    /// Parses and checks the text of a recipe.
    ///
    /// # Errors
    /// Fails with the name and line of an unknown key, or the key of a value that cannot work.
    pub fn parse(text: &str) -> Result<Self> {
        let recipe: Self = toml_text::parse(text)?;
        recipe.check()?;
        Ok(recipe)
    }

    fn check(&self) -> Result<()> {
        // The name and the version become directory names and unquoted values of os-release.
        word("name", &self.name, "-_.")?;
        word("version", &self.version, "-_.+~")?;
        word("hostname", &self.hostname, "-")?;
        ensure!(self.hostname.len() <= 64, "hostname is longer than 64 characters");
        match &self.source {
            Some(source) => {
                source.check()?;
                check_beside_source(&self.distribution)?;
            }
            None => ensure!(
                !self.distribution.suite.is_empty(),
                "distribution.suite is missing; give a code name such as bookworm, or a section [source]"
            ),
        }
        if !self.distribution.suite.is_empty() {
            word("distribution.suite", &self.distribution.suite, "-_.")?;
        }
        let Distribution { snapshot, mirror, sources, .. } = &self.distribution;
        snapshot::check(snapshot.as_deref(), mirror.as_deref(), sources)?;
        reference("ostree.branch", &self.ostree.branch)?;
        self.ostree.refs.iter().try_for_each(|name| reference("ostree.refs", name))?;
        for component in &self.distribution.components {
            word("distribution.components", component, "-_./")?;
        }
        for package in &self.distribution.packages {
            // Version pins and architectures belong to apt: name=1.2-3, name:arm64, name/suite.
            word("distribution.packages", package, "-_.+:=~/")?;
        }
        for package in &self.distribution.hold {
            word("distribution.hold", package, "-_.+:*?")?;
        }
        for pattern in self.distribution.exclude.iter().chain(&self.distribution.keep) {
            ensure!(pattern.starts_with('/'), "distribution.exclude and keep: {pattern:?} does not start with /");
        }
        for argument in &self.boot.kernel_arguments {
            // The arguments travel through a GRUB script inside double quotes.
            let unsafe_for_grub = |c: char| c.is_whitespace() || c.is_control() || "\"'$\\`".contains(c);
            ensure!(
                !argument.is_empty() && !argument.contains(unsafe_for_grub),
                "boot.kernel_arguments: {argument:?} has characters that GRUB would read as its own; one argument per entry"
            );
            let key = argument.split('=').next().unwrap_or_default();
            ensure!(
                !OWN_ARGUMENTS.contains(&key),
                "boot.kernel_arguments: {argument:?} is decided by the boot loader and OSTree; leave {key} out"
            );
        }
        self.rules.iter().try_for_each(PathRule::check)?;
        files::check(&self.files)
    }
}

/// Checks that nothing is given that only a bootstrapped tree has.
fn check_beside_source(distribution: &Distribution) -> Result<()> {
    for (key, given) in [
        ("mirror", distribution.mirror.is_some()),
        ("keyring", distribution.keyring.is_some()),
        ("components", !distribution.components.is_empty()),
        ("bootstrap", distribution.bootstrap != BootstrapTool::default()),
        ("updates", !distribution.updates),
        ("snapshot", distribution.snapshot.is_some()),
    ] {
        ensure!(
            !given,
            "distribution.{key} has no effect with [source]: its own apt installs distribution.packages, from its \
             own archives and those of distribution.sources"
        );
    }
    ensure!(
        distribution.hold.is_empty() || !distribution.suite.is_empty(),
        "distribution.hold needs distribution.suite, to whose versions packages are held"
    );
    Ok(())
}

/// Checks the name of a ref as OSTree does (`OSTREE_REF_REGEXP`): it becomes the path of a file of the repository.
fn reference(key: &str, value: &str) -> Result<()> {
    word(key, value, "-_./")?;
    let is_name = |name: &str| name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    ensure!(
        value.split('/').all(is_name) && value.len() <= LONGEST_WORD,
        "{key} = {value:?} is no ref of OSTree: between slashes it has names that begin with a letter or a digit"
    );
    Ok(())
}

fn word(key: &str, value: &str, also: &str) -> Result<()> {
    let good = value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && value.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c));
    ensure!(good, "{key} = {value:?} is not valid: expected letters, digits and any of {also}");
    ensure!(value.len() <= LONGEST_WORD, "{key} = {value:?} is longer than {LONGEST_WORD} characters");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{BootstrapTool, ImageSize, Recipe};
    use crate::paths::Paths;

    const MINIMAL: &str = "name = 'x'\nversion = '1'\n[distribution]\nsuite = 'bookworm'\npackages = ['systemd']\n\
                           [ostree]\nbranch = 'x/y'\n";

    fn message(text: &str) -> String {
        format!("{:#}", Recipe::parse(text).unwrap_err())
    }

    #[test]
    fn defaults_are_filled_in() {
        let recipe = Recipe::parse(MINIMAL).unwrap();
        assert_eq!(recipe.distribution.bootstrap, BootstrapTool::Mmdebstrap);
        assert_eq!((recipe.image.size_mib, recipe.hostname.as_str()), (ImageSize::Auto, "robot"));
        assert!(recipe.distribution.mirror.is_none() && recipe.ansible.is_none());
    }

    #[test]
    fn an_unknown_key_is_refused_with_name_and_line() {
        let text = message(&MINIMAL.replace("packages", "mirorr = 'x'\npackages"));
        assert!(text.contains("mirorr") && text.contains("line 5"), "{text}");
        let text = message(&format!("{MINIMAL}[image]\nsize = 3\n"));
        assert!(text.contains("size") && text.contains("line 9"), "{text}");
    }

    #[test]
    fn wrong_values_name_their_key() {
        for (from, to, key) in [
            ("name = 'x'", "name = 'a b'", "name"),
            ("version = '1'", "version = '1;2'", "version"),
            ("'bookworm'", "'../x'", "distribution.suite"),
            ("['systemd']", "['a b']", "distribution.packages"),
            ("'x/y'", "''", "ostree.branch"),
            ("'x/y'", "'a//b/'", "ostree.branch"),
            ("'x/y'", "'a/../b'", "ostree.branch"),
            ("'x/y'", "'a'\nrefs = ['b/.c']", "ostree.refs"),
            ("version = '1'", "version = '1'\nhostname='a.b'", "hostname"),
            ("packages = ", "exclude = ['usr/x']\npackages = ", "distribution.exclude"),
        ] {
            let text = message(&MINIMAL.replace(from, to));
            assert!(text.contains(key), "{from}: {text}");
        }
        for (more, said) in [
            ("[boot]\nkernel_arguments = ['a b']", "boot.kernel_arguments"),
            ("[boot]\nkernel_arguments = ['a=$b']", "boot.kernel_arguments"),
            ("[boot]\nkernel_arguments = ['root=/dev/sda1']", "leave root out"),
            ("[boot]\nkernel_arguments = ['quiet', 'init=/bin/sh']", "leave init out"),
            ("[image]\nsize_mib = 0", "size_mib is 0"),
            ("[image]\nsize_mib = 'big'", "\"big\""),
            ("[[files]]\npath = '/a'", "neither source nor text"),
            ("[[files]]\npath = '/a'\ntext = ''\nsource = 'b'", "both source and text"),
            ("[[files]]\npath = 'a'\ntext = ''", "absolute"),
            ("[[files]]\npath = '/a/../b'\ntext = ''", "absolute"),
            ("[[files]]\npath = '/a'\ntext = ''\nmode = '9'", "octal"),
            ("[[files]]\npath = '/a'\ntext = ''\n[[files]]\npath = '/a'\ntext = 'b'", "/a is there twice"),
            ("[[files]]\npath = '/a'\ntext = ''\nowner = 'root'", "user:group"),
        ] {
            let text = message(&format!("{MINIMAL}{more}\n"));
            assert!(text.contains(said), "{more}: {text}");
        }
    }

    #[test]
    fn the_recipes_of_the_checkout_are_valid() {
        let directory = Paths::of_checkout().root.join("xtask/recipes");
        let recipes: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            // Partition layouts lie beside the recipes.
            .filter(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                name.ends_with(".toml") && !name.starts_with("layout")
            })
            .collect();
        assert!(recipes.len() >= 2, "{recipes:?}");
        let examples = ["docker", "lxd", "ansible", "podman", "flatpak"]
            .map(|name| Paths::of_checkout().root.join("docs/examples").join(name).join("robot.toml"));
        for path in recipes.iter().chain(&examples) {
            Recipe::load(path).unwrap();
        }
    }
}
