//! The list of the software in an image, for scanners and auditors: a bill of materials in the format CycloneDX 1.6.
//!
//! SPDX 2.3 says the same. It was not chosen because each of Debian's names of licences would have to come with the
//! whole text there, and because scanners read the versions of Debian packages from either. Nothing in the list depends
//! on chance or on the clock: the same image gives the same bytes.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::ImageContents;
use super::packages::{InstalledPackage, PackageDatabase};
use super::software::OtherSoftware;

/// Name of the bill of materials among the files of a release.
pub const FILE: &str = "sbom.cdx.json";

/// Origin of an image, as far as the image itself does not say it.
#[derive(Debug, Clone, Copy)]
pub struct SbomSubject<'a> {
    /// Time of the list, seconds since 1970: that of the image's commit.
    pub timestamp: u64,
    /// Digest of the commit, where there is one.
    pub ostree_commit: Option<&'a str>,
    /// Days of the package archives, for people.
    pub archives: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bom {
    #[serde(rename = "$schema")]
    schema: &'static str,
    bom_format: &'static str,
    spec_version: &'static str,
    serial_number: String,
    version: u32,
    metadata: Metadata,
    components: Vec<Component>,
    dependencies: Vec<Dependency>,
    compositions: Vec<Composition>,
}

#[derive(Serialize)]
struct Metadata {
    timestamp: String,
    lifecycles: [BTreeMap<&'static str, &'static str>; 1],
    tools: BTreeMap<&'static str, Vec<Component>>,
    component: Component,
}

/// One component. `BTreeMap` would do as well, but the order of members is for readers.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Component {
    #[serde(rename = "bom-ref", skip_serializing_if = "Option::is_none")]
    bom_ref: Option<String>,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    supplier: Option<Named>,
    name: String,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    licenses: Vec<License>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purl: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    external_references: Vec<Reference>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    properties: Vec<Property>,
}

#[derive(Serialize)]
struct Named {
    name: String,
}

#[derive(Serialize)]
struct License {
    license: LicenseName,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum LicenseName {
    Id(&'static str),
    Name(String),
}

#[derive(Serialize)]
struct Reference {
    #[serde(rename = "type")]
    kind: &'static str,
    url: String,
}

#[derive(Serialize)]
struct Property {
    name: &'static str,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dependency {
    #[serde(rename = "ref")]
    reference: String,
    depends_on: Vec<String>,
}

#[derive(Serialize)]
struct Composition {
    aggregate: &'static str,
    assemblies: Vec<String>,
}

/// Names of licences in Debian's copyright files, and the identifiers that SPDX gave the same licences. Others keep
/// Debian's name.
const SPDX: &[(&str, &str)] = &[
    ("Apache-2.0", "Apache-2.0"),
    ("Artistic-2.0", "Artistic-2.0"),
    ("BSD-2-clause", "BSD-2-Clause"),
    ("BSD-3-clause", "BSD-3-Clause"),
    ("CC0-1.0", "CC0-1.0"),
    ("Expat", "MIT"),
    ("GPL-2", "GPL-2.0-only"),
    ("GPL-2+", "GPL-2.0-or-later"),
    ("GPL-3", "GPL-3.0-only"),
    ("GPL-3+", "GPL-3.0-or-later"),
    ("ISC", "ISC"),
    ("LGPL-2", "LGPL-2.0-only"),
    ("LGPL-2+", "LGPL-2.0-or-later"),
    ("LGPL-2.1", "LGPL-2.1-only"),
    ("LGPL-2.1+", "LGPL-2.1-or-later"),
    ("LGPL-3", "LGPL-3.0-only"),
    ("LGPL-3+", "LGPL-3.0-or-later"),
    ("MIT", "MIT"),
    ("MPL-2.0", "MPL-2.0"),
    ("Zlib", "Zlib"),
];

/// Reference of the image itself among the components.
const IMAGE: &str = "image";

/// Returns the bill of materials of an image, as JSON.
///
/// # Errors
/// Fails when the time is not one that a calendar has.
pub fn json(contents: &ImageContents, subject: &SbomSubject<'_>) -> Result<String> {
    let mut components = vec![operating_system(contents)];
    components.extend(contents.packages.iter().map(|package| of_package(contents, package)));
    components.extend(contents.software.iter().map(of_software));
    let references: Vec<String> = components.iter().filter_map(|component| component.bom_ref.clone()).collect();
    let image = image(contents, subject);
    let bom = Bom {
        schema: "http://cyclonedx.org/schema/bom-1.6.schema.json",
        bom_format: "CycloneDX",
        spec_version: "1.6",
        serial_number: serial_number(&image, &references),
        version: 1,
        metadata: Metadata {
            timestamp: day_and_time(subject.timestamp)?,
            lifecycles: [BTreeMap::from([("phase", "build")])],
            tools: BTreeMap::from([("components", vec![builder()])]),
            component: image,
        },
        components,
        dependencies: vec![Dependency { reference: IMAGE.to_owned(), depends_on: references }],
        // What a command or a playbook copied from somewhere has no list, so completeness is never claimed.
        compositions: vec![Composition { aggregate: "incomplete", assemblies: vec![IMAGE.to_owned()] }],
    };
    Ok(serde_json::to_string_pretty(&bom)? + "\n")
}

fn day_and_time(unix_s: u64) -> Result<String> {
    let seconds = i64::try_from(unix_s).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    Ok(seconds.with_context(|| format!("{unix_s} s after 1970 is no date"))?.to_string())
}

fn builder() -> Component {
    Component {
        kind: "application",
        name: "reflash-build".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Component::default()
    }
}

fn image(contents: &ImageContents, subject: &SbomSubject<'_>) -> Component {
    let (name, version) = contents.name_and_version();
    let property = |name, value: String| Property { name, value };
    let mut properties = Vec::new();
    properties.extend(subject.ostree_commit.map(|commit| property("reflash:ostree-commit", commit.to_owned())));
    properties.extend(subject.archives.iter().map(|archive| property("reflash:package-archive", archive.clone())));
    let database = match contents.database {
        Some(PackageDatabase::Dpkg) => "dpkg",
        Some(PackageDatabase::Apk) => "apk",
        None => "none that is known: only what is listed here was found",
    };
    properties.push(property("reflash:package-database", database.to_owned()));
    let unowned = contents.files.values().filter(|file| file.kind == "file" && file.package.is_none()).count();
    properties.push(property("reflash:files-of-no-package", unowned.to_string()));
    Component { bom_ref: Some(IMAGE.to_owned()), kind: "firmware", name, version, properties, ..Component::default() }
}

fn operating_system(contents: &ImageContents) -> Component {
    let variable = |name: &str, other: &str| contents.os_release.get(name).cloned().unwrap_or_else(|| other.to_owned());
    let (name, version) = (variable("ID", "unknown"), variable("VERSION_ID", "unknown"));
    Component {
        bom_ref: Some(format!("operating-system:{name}@{version}")),
        kind: "operating-system",
        description: contents.os_release.get("PRETTY_NAME").cloned(),
        name,
        version,
        ..Component::default()
    }
}

fn of_package(contents: &ImageContents, package: &InstalledPackage) -> Component {
    let purl = purl(contents, package);
    let known = contents.licences.get(&package.name).cloned().or_else(|| package.licence.clone().map(|one| vec![one]));
    // Validators refuse the whole list for one address with a character that addresses cannot have (RFC 3987).
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte);
    let is_url = |url: &String| url.starts_with("http") && url.bytes().all(is_plain);
    let website = package.homepage.clone().filter(is_url);
    Component {
        bom_ref: Some(purl.clone()),
        kind: "library",
        supplier: package.maintainer.clone().map(|name| Named { name }),
        name: package.name.clone(),
        version: package.version.clone(),
        description: package.summary.clone(),
        licenses: known.unwrap_or_default().into_iter().map(licence).collect(),
        purl: Some(purl),
        external_references: website.map(|url| Reference { kind: "website", url }).into_iter().collect(),
        properties: package
            .source
            .iter()
            .map(|source| Property { name: "reflash:source-package", value: source.clone() })
            .collect(),
    }
}

fn of_software(software: &OtherSoftware) -> Component {
    let purl = format!("pkg:{}/{}@{}", software.kind, encoded(&software.name), encoded(&software.version));
    Component {
        bom_ref: Some(format!("{purl}#{}", software.found_in)),
        kind: "library",
        name: software.name.clone(),
        version: software.version.clone(),
        licenses: software.licence.iter().cloned().map(licence).collect(),
        purl: Some(purl),
        properties: vec![Property { name: "reflash:found-in", value: software.found_in.clone() }],
        ..Component::default()
    }
}

fn licence(name: String) -> License {
    let id = SPDX.iter().find(|(debian, _)| *debian == name).map(|(_, id)| *id);
    License { license: id.map_or_else(|| LicenseName::Name(name), LicenseName::Id) }
}

/// Returns the package URL by which scanners find what is known of a package.
fn purl(contents: &ImageContents, package: &InstalledPackage) -> String {
    let variable = |name: &str| contents.os_release.get(name).map(String::as_str);
    let kind = if contents.database == Some(PackageDatabase::Apk) { "apk" } else { "deb" };
    let distribution = variable("ID").unwrap_or("debian");
    let (name, version) = (encoded(&package.name), encoded(&package.version));
    let mut purl = format!("pkg:{kind}/{}/{name}@{version}?arch={}", encoded(distribution), package.architecture);
    if let Some(release) = variable("VERSION_ID") {
        purl += &format!("&distro={}-{}", encoded(distribution), encoded(release));
    }
    if let Some(source) = &package.source {
        purl += &format!("&upstream={}", encoded(source));
    }
    purl
}

/// Encodes a part of a package URL. A colon stays, as in the examples of the standard.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Returns a number that is the same for the same list: a UUID by BLAKE3, hence version 8, "custom" (RFC 9562).
fn serial_number(image: &Component, references: &[String]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"reflash bill of materials");
    for text in [&image.name, &image.version].into_iter().chain(image.properties.iter().map(|one| &one.value)) {
        hasher.update(text.as_bytes()).update(&[0]);
    }
    references.iter().for_each(|reference| {
        hasher.update(reference.as_bytes()).update(&[0]);
    });
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    format!("urn:uuid:{}", uuid::Builder::from_custom_bytes(bytes).into_uuid().hyphenated())
}

/// Returns the packages that a bill of materials of this builder lists, to compare two releases without their images.
///
/// # Errors
/// Fails when the text is no such list.
pub fn packages(json: &[u8]) -> Result<Vec<InstalledPackage>> {
    #[derive(Deserialize)]
    struct Listed {
        components: Vec<ListedComponent>,
    }
    #[derive(Deserialize)]
    struct ListedComponent {
        name: String,
        version: String,
        #[serde(default)]
        purl: Option<String>,
    }
    let listed: Listed = serde_json::from_slice(json).context("parse the list of packages")?;
    let package = |component: ListedComponent| {
        let purl = component.purl?;
        // Components of other kinds, such as crates, have no architecture.
        let architecture = purl.split_once("?arch=")?.1.split('&').next()?.to_owned();
        Some(InstalledPackage {
            name: component.name,
            version: component.version,
            architecture,
            ..InstalledPackage::default()
        })
    };
    Ok(listed.components.into_iter().filter_map(package).collect())
}

#[cfg(test)]
mod tests {
    use super::super::difference::tests::package;
    use super::super::packages::PackageDatabase;
    use super::super::{ImageContents, software::OtherSoftware};
    use super::{SbomSubject, encoded, json, packages};

    fn contents() -> ImageContents {
        let mut contents = ImageContents { database: Some(PackageDatabase::Dpkg), ..ImageContents::default() };
        for (name, value) in [("ID", "debian"), ("VERSION_ID", "12"), ("IMAGE_ID", "demo"), ("IMAGE_VERSION", "1.0")] {
            contents.os_release.insert(name.into(), value.into());
        }
        let mut library = package("libstdc++6", "amd64", "1:12.2.0-14+deb12u1");
        library.source = Some("gcc-12".into());
        contents.packages = vec![library, package("adduser", "all", "3.134")];
        contents.licences.insert("adduser".into(), vec!["GPL-2+".into(), "Odd".into()]);
        contents.software.push(OtherSoftware {
            kind: "cargo",
            name: "blake3".into(),
            version: "1.8.2".into(),
            licence: Some("CC0-1.0 OR Apache-2.0".into()),
            found_in: "/usr/share/doc/reflash/THIRD-PARTY".into(),
        });
        contents
    }

    const SUBJECT: SbomSubject<'_> = SbomSubject { timestamp: 1_795_573_350, ostree_commit: Some("ab"), archives: &[] };

    #[test]
    fn packages_have_urls_that_scanners_know() {
        let text = json(&contents(), &SUBJECT).unwrap();
        let bom: serde_json::Value = serde_json::from_str(&text).unwrap();
        let purls: Vec<&str> =
            bom["components"].as_array().unwrap().iter().filter_map(|one| one["purl"].as_str()).collect();
        assert_eq!(
            purls,
            [
                "pkg:deb/debian/libstdc%2B%2B6@1:12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12&upstream=gcc-12",
                "pkg:deb/debian/adduser@3.134?arch=all&distro=debian-12",
                "pkg:cargo/blake3@1.8.2",
            ]
        );
        let licences = &bom["components"][2]["licenses"];
        assert_eq!(licences[0]["license"]["id"], "GPL-2.0-or-later");
        assert_eq!(licences[1]["license"]["name"], "Odd");
        assert_eq!(bom["metadata"]["timestamp"], "2026-11-25T02:22:30Z");
        assert_eq!((&bom["bomFormat"], &bom["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
    }

    #[test]
    fn the_same_image_gives_the_same_list_and_another_one_another_number() {
        let text = json(&contents(), &SUBJECT).unwrap();
        assert_eq!(text, json(&contents(), &SUBJECT).unwrap());
        let mut other = contents();
        other.packages[0].version = "2".into();
        let number = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["serialNumber"].clone();
        assert_ne!(number(&text), number(&json(&other, &SUBJECT).unwrap()));
    }

    #[test]
    fn packages_are_read_back_from_a_list() {
        let found = packages(json(&contents(), &SUBJECT).unwrap().as_bytes()).unwrap();
        let found: Vec<_> = found.iter().map(|one| (one.name.as_str(), one.architecture.as_str())).collect();
        assert_eq!(found, [("libstdc++6", "amd64"), ("adduser", "all")]);
        assert!(packages(b"{}").is_err());
    }

    #[test]
    fn parts_of_an_url_are_encoded() {
        assert_eq!(encoded("g++"), "g%2B%2B");
        assert_eq!(encoded("1:2~rc1-3"), "1:2~rc1-3");
    }
}
