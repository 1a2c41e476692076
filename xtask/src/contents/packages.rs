//! Installed packages, from the database of dpkg or apk. Pure.

use anyhow::{Context, Result};
use deb822_fast::{Deb822, Paragraph};
use serde::Serialize;

/// Database of packages that a system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PackageDatabase {
    /// Database of dpkg, in Debian, Ubuntu and their like.
    Dpkg,
    /// Database of apk, in Alpine and its like.
    Apk,
}

/// One installed package.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct InstalledPackage {
    /// Name of the package.
    pub name: String,
    /// Architecture it was built for, such as `amd64` or `all`.
    pub architecture: String,
    /// Version of the package.
    pub version: String,
    /// Name of its source package, where that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Size when installed as the package says, KiB.
    pub installed_kib: u64,
    /// Person or team that maintains it.
    #[serde(skip)]
    pub maintainer: Option<String>,
    /// Home page of the software.
    #[serde(skip)]
    pub homepage: Option<String>,
    /// One line that describes it.
    #[serde(skip)]
    pub summary: Option<String>,
    /// Licence, where the database itself names one.
    #[serde(skip)]
    pub licence: Option<String>,
}

/// Directories with the lists of packages' files: that of an image, and that of a system which was not converted.
pub const INFO_DIRECTORIES: &[&str] = &["usr/share/reflash/dpkg/info", "var/lib/dpkg/info"];

const DPKG_STATUS: &[&str] = &["usr/share/reflash/dpkg/status", "var/lib/dpkg/status"];
const APK_INSTALLED: &[&str] = &["usr/lib/apk/db/installed", "lib/apk/db/installed"];

/// Finds the packages of a system, whose files `text` gives. Without a known database there are none.
///
/// # Errors
/// Fails when there is a database and it cannot be parsed.
pub fn installed(text: &dyn Fn(&str) -> Option<String>) -> Result<(Option<PackageDatabase>, Vec<InstalledPackage>)> {
    if let Some(status) = DPKG_STATUS.iter().find_map(|path| text(path)) {
        return Ok((Some(PackageDatabase::Dpkg), of_dpkg(&status)?));
    }
    if let Some(list) = APK_INSTALLED.iter().find_map(|path| text(path)) {
        return Ok((Some(PackageDatabase::Apk), of_apk(&list)));
    }
    Ok((None, Vec::new()))
}

/// Parses dpkg's `status`. Packages that were removed and left their settings are not installed.
fn of_dpkg(status: &str) -> Result<Vec<InstalledPackage>> {
    let paragraphs: Deb822 = status.parse().ok().context("parse the package database of dpkg")?;
    let mut packages: Vec<InstalledPackage> = paragraphs.iter().filter_map(of_paragraph).collect();
    packages.sort();
    Ok(packages)
}

fn of_paragraph(paragraph: &Paragraph) -> Option<InstalledPackage> {
    let state = paragraph.get("Status")?.split_ascii_whitespace().next_back()?;
    // One that waits for a trigger, or whose script failed, has its files in the image all the same.
    (!["config-files", "not-installed"].contains(&state)).then_some(())?;
    let text = |name: &str| paragraph.get(name).map(str::to_owned);
    let name = text("Package")?;
    // `Source: glibc (2.36-9)` where the versions differ.
    let source = text("Source").and_then(|source| source.split_whitespace().next().map(str::to_owned));
    Some(InstalledPackage {
        architecture: text("Architecture").unwrap_or_else(|| "all".to_owned()),
        version: text("Version")?,
        source: source.filter(|source| *source != name),
        installed_kib: paragraph.get("Installed-Size").and_then(|size| size.trim().parse().ok()).unwrap_or_default(),
        maintainer: text("Maintainer"),
        homepage: text("Homepage"),
        summary: paragraph.get("Description").and_then(|text| text.lines().next()).map(str::to_owned),
        licence: None,
        name,
    })
}

/// Parses apk's `installed`: paragraphs of lines that begin with one letter and a colon.
fn of_apk(list: &str) -> Vec<InstalledPackage> {
    let of_paragraph = |paragraph: &str| {
        let text = |key: &str| paragraph.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
        let name = text("P:")?;
        Some(InstalledPackage {
            architecture: text("A:").unwrap_or_default(),
            version: text("V:")?,
            source: text("o:").filter(|origin| *origin != name),
            installed_kib: text("I:").and_then(|bytes| bytes.parse::<u64>().ok()).unwrap_or_default() / 1024,
            maintainer: text("m:"),
            homepage: text("U:"),
            summary: text("T:"),
            licence: text("L:"),
            name,
        })
    };
    let mut packages: Vec<InstalledPackage> = list.split("\n\n").filter_map(of_paragraph).collect();
    packages.sort();
    packages
}

#[cfg(test)]
mod tests {
    use super::{PackageDatabase, installed};

    const STATUS: &str = "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nMulti-Arch: same\n\
        Source: zlib (1:1.2.13.dfsg-1)\nVersion: 1:1.2.13.dfsg-1+b1\nInstalled-Size: 168\nDescription: compression\n \
        More of it.\n .\n Even more.\n\nPackage: gone\nStatus: deinstall ok config-files\nArchitecture: all\n\
        Version: 1\n\nPackage: held\nStatus: hold ok installed\nArchitecture: all\nVersion: 2\n\nPackage: waits\n\
        Status: install ok triggers-awaited\nVersion: 1\n\nPackage: never\nStatus: unknown ok not-installed\nVersion: 1\n";

    #[test]
    fn installed_packages_of_dpkg_are_found() {
        let text = |path: &str| (path == "var/lib/dpkg/status").then(|| STATUS.to_owned());
        let (database, packages) = installed(&text).unwrap();
        assert_eq!(database, Some(PackageDatabase::Dpkg));
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        assert_eq!(names, ["held", "waits", "zlib1g"]);
        let zlib = &packages[2];
        assert_eq!((zlib.source.as_deref(), zlib.installed_kib), (Some("zlib"), 168));
        assert_eq!((zlib.version.as_str(), zlib.summary.as_deref()), ("1:1.2.13.dfsg-1+b1", Some("compression")));
    }

    #[test]
    fn installed_packages_of_apk_are_found() {
        let list = "C:Q1x=\nP:musl\nV:1.2.5-r0\nA:x86_64\nI:667648\nT:the musl c library\nL:MIT\no:musl\n\nP:busybox-binsh\n\
                    V:1.36.1-r31\nA:x86_64\no:busybox\nF:bin\n";
        let text = |path: &str| (path == "lib/apk/db/installed").then(|| list.to_owned());
        let (database, packages) = installed(&text).unwrap();
        assert_eq!((database, packages.len()), (Some(PackageDatabase::Apk), 2));
        assert_eq!(packages[0].source.as_deref(), Some("busybox"));
        assert_eq!((packages[1].licence.as_deref(), packages[1].installed_kib), (Some("MIT"), 652));
    }

    #[test]
    fn a_system_without_a_database_has_no_known_packages() {
        assert_eq!(installed(&|_| None).unwrap(), (None, Vec::new()));
    }
}
