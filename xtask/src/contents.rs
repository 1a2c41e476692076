//! What is in a system image, for people: its packages, files, accounts and units. All of it is read from the bytes of
//! the image, without mounting it and without root, so that any image of the builder can be asked, however it was made.

pub mod accounts;
pub mod copyright;
pub mod debian_version;
pub mod difference;
mod difference_text;
mod file_facts;
pub mod packages;
mod reader;
pub mod sbom;
pub mod software;
pub mod units;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result};

use self::accounts::AccountEntry;
pub use self::file_facts::FileFacts;
use self::packages::{InstalledPackage, PackageDatabase};
use self::reader::ImageReader;
use self::software::OtherSoftware;
use self::units::UnitEnablement;

/// Most bytes of a file that is parsed here; the database of 5,000 packages has 6 MiB.
const MOST_BYTES: u64 = 64 << 20;

/// Contents of a system image.
#[derive(Debug, Default)]
pub struct ImageContents {
    /// Bytes of the image.
    pub image_bytes: u64,
    /// Variables of `os-release`.
    pub os_release: BTreeMap<String, String>,
    /// Database that `packages` are from; `None` for a system without one that is known here.
    pub database: Option<PackageDatabase>,
    /// Installed packages, by name and architecture.
    pub packages: Vec<InstalledPackage>,
    /// Files, links and directories by their path in the running system.
    pub files: BTreeMap<String, FileFacts>,
    /// Users by name.
    pub users: BTreeMap<String, AccountEntry>,
    /// Groups by name.
    pub groups: BTreeMap<String, AccountEntry>,
    /// States of systemd's units that are not what their packages left to the default.
    pub units: BTreeMap<String, UnitEnablement>,
    /// Names of the licences of packages, where their copyright file can be read by a program.
    pub licences: HashMap<String, Vec<String>>,
    /// Software that belongs to no package.
    pub software: Vec<OtherSoftware>,
}

impl ImageContents {
    /// Reads an image of the builder.
    ///
    /// # Errors
    /// Fails when the file cannot be read, or is no image of the builder.
    pub fn read(image: &Path) -> Result<Self> {
        Self::read_inner(image).with_context(|| format!("read what is in {}", image.display()))
    }

    fn read_inner(image: &Path) -> Result<Self> {
        let reader = ImageReader::open(image)?;
        let text = |path: &str| reader.text(path, MOST_BYTES);
        let os_release = ["usr/lib/os-release", "etc/os-release", "usr/etc/os-release"];
        let os_release = os_release.iter().find_map(|path| text(path)).map(|text| variables(&text));
        let (database, packages) = packages::installed(&text)?;
        let owners = Owners::of(&reader, &packages);
        let mut files = reader.files()?;
        files.iter_mut().for_each(|(path, facts)| facts.package = owners.of_path(path));
        let accounts = |name: &str| text(&format!("etc/{name}")).or_else(|| text(&format!("usr/etc/{name}")));
        Ok(Self {
            image_bytes: reader.image_bytes,
            os_release: os_release.unwrap_or_default(),
            users: accounts::users(&accounts("passwd").unwrap_or_default()),
            groups: accounts::groups(&accounts("group").unwrap_or_default()),
            units: units::states(&reader.links("etc/systemd/system")),
            licences: licences(&packages, &text),
            software: software::found(&files, &text),
            files,
            database,
            packages,
        })
    }

    /// Returns the name of the image and its version, as its recipe has them, or else those of its distribution.
    #[must_use]
    pub fn name_and_version(&self) -> (String, String) {
        let variable = |names: [&str; 2]| names.iter().find_map(|name| self.os_release.get(*name).cloned());
        let name = variable(["IMAGE_ID", "ID"]).unwrap_or_else(|| "unknown".to_owned());
        (name, variable(["IMAGE_VERSION", "VERSION_ID"]).unwrap_or_else(|| "unknown".to_owned()))
    }
}

/// Parses `os-release`: shell assignments without anything that a shell would expand.
fn variables(text: &str) -> BTreeMap<String, String> {
    let assignment = |line: &str| {
        let (name, value) = line.split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        Some((name.trim().to_owned(), value.to_owned()))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(assignment).collect()
}

fn licences(packages: &[InstalledPackage], text: &dyn Fn(&str) -> Option<String>) -> HashMap<String, Vec<String>> {
    let of = |package: &InstalledPackage| {
        let text = text(&format!("usr/share/doc/{}/copyright", package.name))?;
        let licences = copyright::licences(&text);
        (!licences.is_empty()).then(|| (package.name.clone(), licences))
    };
    packages.iter().filter_map(of).collect()
}

/// Packages by the paths that they installed.
struct Owners(HashMap<String, String>);

impl Owners {
    fn of(reader: &ImageReader, packages: &[InstalledPackage]) -> Self {
        let mut owners = HashMap::new();
        for package in packages {
            let names = [package.name.clone(), format!("{}:{}", package.name, package.architecture)];
            let lists = packages::INFO_DIRECTORIES
                .iter()
                .flat_map(|directory| names.iter().map(move |name| format!("{directory}/{name}.list")));
            let Some(list) = lists.into_iter().find_map(|path| reader.text(&path, MOST_BYTES)) else { continue };
            for path in list.lines() {
                owners.entry(reader::merged(path)).or_insert_with(|| package.name.clone());
            }
        }
        Self(owners)
    }

    fn of_path(&self, path: &str) -> Option<String> {
        // What packages have in /var or /opt, an image keeps below /usr.
        let original = path
            .strip_prefix("/usr/share/factory")
            .filter(|rest| rest.starts_with('/'))
            .or_else(|| path.strip_prefix("/usr").filter(|rest| rest.starts_with("/opt/")));
        self.0.get(path).or_else(|| self.0.get(original?)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::variables;

    #[test]
    fn variables_lose_their_quotes() {
        let text = "# comment\nNAME=\"Debian GNU/Linux\"\nIMAGE_ID=demo\nHOME_URL='https://x.example/?a=b'\n";
        let found = variables(text);
        assert_eq!((found["NAME"].as_str(), found["IMAGE_ID"].as_str()), ("Debian GNU/Linux", "demo"));
        assert_eq!(found["HOME_URL"], "https://x.example/?a=b");
    }
}
