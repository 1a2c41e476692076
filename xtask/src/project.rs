//! The project file of a fleet's repository: what every command would otherwise have to be given again.
//!
//! Its name is [`FILE`]. `reflash.toml` would be shorter, but that is the configuration of a machine, and the two lie
//! side by side. A project file holds facts of the product, never what one run of a command does.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use reflash::machine::config::is_path_segment;
use serde::Deserialize;

use crate::toml_text;

/// Name of the project file, which is looked for from the current directory upwards.
pub const FILE: &str = "reflash-project.toml";

/// A product: what it is called, what its images and releases are made of, and where they go. Every path is absolute
/// or begins with the directory of the project file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Project {
    /// Product that releases are for.
    pub product: String,
    /// Hardware names (DMI product name) that releases fit: exact, or a prefix with `*`.
    pub hardware: Vec<String>,
    /// Channel to publish in.
    #[serde(default = "default_channel")]
    pub channel: String,
    /// Recipe of the system image.
    pub recipe: Option<PathBuf>,
    /// Partition layout of the product's disk.
    pub layout: Option<PathBuf>,
    /// Configuration of the machines: `reflash.toml` of their recovery partition.
    pub site: Option<PathBuf>,
    /// Names of machines, for the host name template's `{asset}`.
    pub assets: Option<PathBuf>,
    /// Directory for what is built.
    #[serde(default = "default_dist")]
    pub dist: PathBuf,
    /// Directory for caches and scratch files.
    #[serde(default = "default_work")]
    pub work: PathBuf,
    /// Section `[keys]` of the project file.
    #[serde(default)]
    pub keys: Keys,
    /// Section `[release]` of the project file.
    #[serde(default)]
    pub release: ReleaseSettings,
    /// Section `[disk]` of the project file.
    #[serde(default)]
    pub disk: DiskSettings,
    /// Section `[publish]` of the project file.
    #[serde(default)]
    pub publish: PublishSettings,
    /// Section `[ostree]` of the project file.
    #[serde(default)]
    pub ostree: OstreeSettings,
    /// Section `[serve]` of the project file.
    #[serde(default)]
    pub serve: ServeSettings,
}

/// Section `[keys]` of a project file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    /// Secret key that signs releases. A CI has it in a file of its own, and names that with `--key`.
    pub secret: Option<PathBuf>,
    /// Public keys that the machines trust.
    pub public: Vec<PathBuf>,
}

/// Section `[release]` of a project file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReleaseSettings {
    /// Root of the release tree. Without it: `release` in the directory for what is built.
    pub tree: Option<PathBuf>,
    /// Whether releases renew the recovery of the machines too.
    pub recovery: bool,
}

/// Section `[disk]` of a project file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskSettings {
    /// Size of the disk image, MiB.
    pub size_mib: Option<u64>,
    /// Further files for the recovery partition, such as the CA that the configuration names.
    pub files: Vec<PathBuf>,
}

/// Section `[publish]` of a project file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PublishSettings {
    /// Place of the release in a store: `s3://BUCKET/PREFIX`.
    pub to: Option<String>,
    /// URL of the store.
    pub endpoint: Option<String>,
    /// Region of the store.
    pub region: Option<String>,
}

/// Section `[ostree]` of a project file: the OSTree repository that `publish-ostree` keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OstreeSettings {
    /// Directory of the repository. Without it: `ostree` in the directory for what is built.
    pub repository: Option<PathBuf>,
    /// Refs that the commit gets. Without them: the branch of the recipe.
    pub refs: Vec<String>,
    /// Key of GnuPG that signs the commit and the summary.
    pub gpg_key: Option<String>,
    /// Directory of GnuPG's keys, if it is not GnuPG's own.
    pub gpg_home: Option<PathBuf>,
}

/// Section `[serve]` of a project file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeSettings {
    /// Address and port that a release is served on.
    pub listen: Option<SocketAddr>,
}

fn default_channel() -> String {
    "stable".into()
}

fn default_dist() -> PathBuf {
    "dist".into()
}

fn default_work() -> PathBuf {
    ".reflash-work".into()
}

impl Project {
    /// Reads the project file that a person named, or else the nearest one from `here` upwards.
    ///
    /// The search ends at a checkout of reflash: a fleet's repository may contain one, whose own commands must not
    /// build into the fleet's directories.
    ///
    /// # Errors
    /// When the file cannot be read or is not valid.
    pub fn find(named: Option<&Path>, here: &Path, checkout: Option<&Path>) -> Result<Option<Self>> {
        let found = named.map(|path| here.join(path)).or_else(|| nearest(here, checkout));
        // A person who names the directory means the file in it.
        let found = found.map(|path| if path.is_dir() { path.join(FILE) } else { path });
        found.as_deref().map(Self::load).transpose()
    }

    /// Reads and checks one project file.
    ///
    /// # Errors
    /// Fails with the name of the file, and with key and line of what is wrong.
    pub fn load(path: &Path) -> Result<Self> {
        let text = toml_text::read(path).context("the project file")?;
        let directory = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, directory).with_context(|| format!("project file {}", path.display()))
    }

    /// Parses and checks the text of a project file that lies in `directory`.
    ///
    /// # Errors
    /// Fails with the name and line of an unknown key, or the key of a value that cannot work.
    pub fn parse(text: &str, directory: &Path) -> Result<Self> {
        let mut project: Self = toml_text::parse(text)?;
        ensure!(
            !project.product.is_empty(),
            "product is empty: give the name that machines compare with machine.product"
        );
        check_hardware(&project.hardware)?;
        ensure!(
            is_path_segment(&project.channel),
            "channel = {:?} is not valid: expected letters, digits, '-', '_' and '.'",
            project.channel
        );
        ensure!(
            project.ostree.gpg_home.is_none() || project.ostree.gpg_key.is_some(),
            "ostree.gpg_home is given, but no ostree.gpg_key: nothing would be signed"
        );
        let Self { recipe, layout, site, assets, dist, work, keys, release, disk, ostree, .. } = &mut project;
        let optional = [recipe, layout, site, assets, &mut keys.secret, &mut release.tree];
        let optional = optional.into_iter().chain([&mut ostree.repository, &mut ostree.gpg_home]).flatten();
        for path in optional.chain([dist, work]).chain(&mut keys.public).chain(&mut disk.files) {
            *path = directory.join(&path);
        }
        Ok(project)
    }
}

/// Checks the names of the hardware that a release is for: one that no machine can have would be found at the bench.
///
/// # Errors
/// With the name, and the form that is expected.
pub fn check_hardware(names: &[String]) -> Result<()> {
    let form = "the names of /sys/class/dmi/id/product_name on the machines, a beginning of one with * at its end, or \
                [\"*\"] for any";
    ensure!(!names.is_empty(), "hardware is empty: give {form}");
    for name in names {
        let beginning = name.strip_suffix('*').unwrap_or(name);
        let can_be = !name.is_empty() && name.trim() == name && !beginning.contains('*');
        ensure!(can_be, "hardware has {name:?}, which fits no machine: give {form}");
    }
    Ok(())
}

/// The nearest project file of `here` and the directories above it, up to `last`.
fn nearest(here: &Path, last: Option<&Path>) -> Option<PathBuf> {
    let inside = here.ancestors().take_while(|directory| last.is_none_or(|last| directory.starts_with(last)));
    inside.map(|directory| directory.join(FILE)).find(|path| path.is_file())
}

/// A value that a command cannot do without, and that neither an option nor a project file gave.
#[derive(Debug)]
pub struct MissingValue {
    option: String,
    key: String,
}

impl std::fmt::Display for MissingValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { option, key } = self;
        write!(f, "{option} is missing: give it, or `{key}` in a project file ({FILE})")
    }
}

impl std::error::Error for MissingValue {}

/// Returns a value that a command cannot do without, from its option or the project file.
///
/// # Errors
/// When neither gives it; both are named.
pub fn needed<T>(given: Option<T>, option: &str, key: &str) -> Result<T> {
    given.ok_or_else(|| MissingValue { option: option.to_owned(), key: key.to_owned() }.into())
}

#[cfg(test)]
mod tests {
    use super::{FILE, Project, nearest};
    use std::path::Path;

    const MINIMAL: &str = "product = 'arm'\nhardware = ['NUC11*']\n";

    fn message(text: &str) -> String {
        format!("{:#}", Project::parse(text, Path::new("/p")).unwrap_err())
    }

    #[test]
    fn paths_are_relative_to_the_file_and_absolute_ones_stay() {
        let text = format!(
            "{MINIMAL}recipe = 'r/robot.toml'\nlayout = '/srv/layout.toml'\n[keys]\nsecret = 'keys/a.key'\n\
             public = ['keys/a.pub', '../b.pub']\n[release]\ntree = 'out'\n[disk]\nfiles = ['ca.pem']\n\
             [ostree]\nrepository = 'repo'\ngpg_key = 'k'\ngpg_home = 'keys/gpg'\n"
        );
        let project = Project::parse(&text, Path::new("/p")).unwrap();
        assert_eq!(project.recipe.as_deref(), Some(Path::new("/p/r/robot.toml")));
        assert_eq!(project.layout.as_deref(), Some(Path::new("/srv/layout.toml")));
        assert_eq!(project.keys.secret.as_deref(), Some(Path::new("/p/keys/a.key")));
        assert_eq!(project.keys.public, [Path::new("/p/keys/a.pub"), Path::new("/p/../b.pub")]);
        assert_eq!(project.release.tree.as_deref(), Some(Path::new("/p/out")));
        assert_eq!(project.disk.files, [Path::new("/p/ca.pem")]);
        assert_eq!(project.ostree.repository.as_deref(), Some(Path::new("/p/repo")));
        assert_eq!(project.ostree.gpg_home.as_deref(), Some(Path::new("/p/keys/gpg")));
        assert_eq!(
            (project.dist.as_path(), project.work.as_path()),
            (Path::new("/p/dist"), Path::new("/p/.reflash-work"))
        );
        assert_eq!(project.channel, "stable");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        assert!(message("hardware = ['x']\n").contains("missing field `product`"));
        let unknown = message(&format!("{MINIMAL}layuot = 'x'\n"));
        assert!(unknown.contains("layuot") && unknown.contains("line 3"), "{unknown}");
        assert!(message("product = ''\nhardware = ['x']\n").contains("product is empty"));
        assert!(message("product = 'x'\nhardware = []\n").contains("product_name"));
        for name in ["", "*NUC", "N*C*", "NUC11 ", " NUC*"] {
            let error = message(&format!("product = 'x'\nhardware = ['ok', '{name}']\n"));
            assert!(error.contains(&format!("{name:?}, which fits no machine")), "{error}");
        }
        assert!(message(&format!("{MINIMAL}channel = '../x'\n")).contains("channel"));
        assert!(message(&format!("{MINIMAL}[ostree]\ngpg_home = 'g'\n")).contains("no ostree.gpg_key"));
    }

    #[test]
    fn the_nearest_file_counts_and_none_beyond_a_checkout() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let inner = root.join("checkout/docs");
        std::fs::create_dir_all(&inner).unwrap();
        assert_eq!(nearest(&inner, Some(root)), None);
        std::fs::write(root.join(FILE), MINIMAL).unwrap();
        assert_eq!(nearest(&inner, Some(root)), Some(root.join(FILE)));
        assert_eq!(nearest(&inner, Some(&root.join("checkout"))), None);
        std::fs::write(root.join("checkout").join(FILE), MINIMAL).unwrap();
        assert_eq!(nearest(&inner, None), Some(root.join("checkout").join(FILE)));
        assert_eq!(nearest(&inner, Some(&root.join("checkout"))), Some(root.join("checkout").join(FILE)));
    }
}
