//! Container images: skopeo brings one here, whatever it is kept in, and checks each blob against its digest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Error, Result, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::archive::{self, hex};
use super::merge::MergedTree;
use crate::step;

/// MergedTree of a container image.
#[derive(Debug)]
pub struct Merged {
    /// All layers in one.
    pub tree: MergedTree,
    /// Uncompressed layers, from the lowest.
    pub layers: Vec<PathBuf>,
    /// Digest of the image's manifest, with `sha256:` before it.
    pub digest: String,
    /// Configuration of the image.
    pub config: Config,
    /// Paths whose access control lists are in a form that is not carried.
    pub without_acl: usize,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Blob,
    layers: Vec<Blob>,
}

#[derive(Debug, Deserialize)]
struct Blob {
    digest: String,
}

/// Configuration of a container image, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
pub struct Config {
    architecture: String,
    os: String,
    #[serde(default)]
    rootfs: RootFs,
    /// Settings of the processes of a container.
    #[serde(default)]
    config: Option<Process>,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Process {
    cmd: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    user: Option<String>,
    env: Option<Vec<String>>,
    volumes: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Config {
    /// Returns what a container would do and a system does not, each as a phrase.
    pub fn without_effect(&self) -> Vec<String> {
        let Some(process) = &self.config else { return Vec::new() };
        let words = |words: &Option<Vec<String>>| words.clone().filter(|words| !words.is_empty());
        let mut found = Vec::new();
        found.extend(words(&process.entrypoint).map(|words| format!("ENTRYPOINT {}", words.join(" "))));
        found.extend(words(&process.cmd).map(|words| format!("CMD {}", words.join(" "))));
        found.extend(process.user.clone().filter(|user| !user.is_empty()).map(|user| format!("USER {user}")));
        let variables = words(&process.env).unwrap_or_default();
        // Every image has a PATH, which the system's own replaces.
        let variables: Vec<&str> =
            variables.iter().map(String::as_str).filter(|text| !text.starts_with("PATH=")).collect();
        if !variables.is_empty() {
            found.push(format!("ENV {}", variables.join(" ")));
        }
        let volumes = process.volumes.iter().flat_map(serde_json::Map::keys).cloned().collect::<Vec<_>>();
        if !volumes.is_empty() {
            found.push(format!("VOLUME {}", volumes.join(" ")));
        }
        found
    }
}

/// Returns the digest of what the name stands for now, without the layers: a manifest, or a list of them for several
/// architectures. A name that has the digest in it is not asked for.
///
/// # Errors
/// With skopeo's words.
pub fn resolve(name: &str, directory: &Path) -> Result<String> {
    if let Some((_, digest)) = name.split_once("@sha256:") {
        return Ok(format!("sha256:{digest}"));
    }
    let raw = step::output(skopeo(directory, LOOK_UP).args(["inspect", "--raw", name]))
        .map_err(|error| advised(error, name, directory))
        .with_context(|| format!("look up the container image {name}"))?;
    Ok(format!("sha256:{}", hex(&Sha256::digest(raw.as_bytes()))))
}

/// Brings the image and merges its layers.
///
/// # Errors
/// With skopeo's words, or with the part of the image that is not as its manifest says.
pub fn fetch(name: &str, directory: &Path, scratch: &Path) -> Result<Merged> {
    let copy = scratch.join("image");
    // The form `dir` keeps the manifest as it is; in a layout its digest would be another one.
    let to = format!("dir:{}", copy.display());
    step::run("container image", skopeo(directory, FETCH).args(["copy", "--quiet", name, &to]))
        .map_err(|error| advised(error, name, directory))
        .with_context(|| format!("fetch the container image {name}"))?;
    let raw = read(&copy.join("manifest.json"))?;
    let manifest: Manifest = serde_json::from_slice(&raw)
        .with_context(|| format!("the manifest of {name} is not of the kind that lists layers"))?;
    let config: Config = serde_json::from_slice(&read(&blob(&copy, &manifest.config)?)?)
        .with_context(|| format!("the configuration of the container image {name}"))?;
    ensure!(
        config.architecture == "amd64" && config.os == "linux",
        "{name} is for {} on {}; the builder makes images of linux on amd64. Of several images that index.json itself \
         lists under one name, skopeo takes the first: give the one for amd64 a name of its own",
        config.os,
        config.architecture
    );
    let known = config.rootfs.diff_ids.len();
    ensure!(known == manifest.layers.len(), "{name} has {} layers, but {known} digests of them", manifest.layers.len());
    let (mut tree, mut layers, mut without_acl) = (MergedTree::default(), Vec::new(), 0);
    for (number, (layer, expected)) in manifest.layers.iter().zip(&config.rootfs.diff_ids).enumerate() {
        let what = || format!("layer {} of {known} of the container image {name}", number + 1);
        let plain = archive::uncompress(&blob(&copy, layer)?, scratch, number).with_context(what)?;
        let found = format!("sha256:{}", plain.sha256);
        ensure!(found == *expected, "{} has the digest {found} instead of {expected}", what());
        let read = archive::read_layer(&plain.path, number).with_context(what)?;
        without_acl += read.without_acl;
        tree.apply_layer(read.members).with_context(what)?;
        layers.push(plain.path);
    }
    Ok(Merged { tree, layers, digest: format!("sha256:{}", hex(&Sha256::digest(&raw))), config, without_acl })
}

/// Words of skopeo that do not say what to do, and what that is.
const ADVICE: &[(&str, &str)] = &[
    ("no image found in", "it has no image for amd64: build it with --platform linux/amd64"),
    (
        "Unexpectedly received a manifest list",
        "its index has an index in it, which skopeo does not look into: build it for one architecture, or copy that \
         for amd64 out of it by its digest",
    ),
    ("nauthorized", "log in to the registry as the user who builds, who is root: `skopeo login REGISTRY`"),
    ("authentication required", "log in to the registry as the user who builds, who is root: `skopeo login REGISTRY`"),
    ("x509:", "put the registry's CA into /etc/containers/certs.d/REGISTRY/ca.crt"),
    ("no such file or directory", "a part of it is missing; paths in source.oci are relative to the recipe"),
    ("more than one image in oci", "its layout has several images"),
    ("no descriptor found for reference", "its layout has no image of this name"),
];

/// Adds to an error of skopeo what can be done about it.
fn advised(error: Error, name: &str, directory: &Path) -> Error {
    let said = format!("{error:#}");
    let Some((_, advice)) = ADVICE.iter().find(|(words, _)| said.contains(words)) else { return error };
    let names = if advice.starts_with("its layout") { named_in(name, directory) } else { Vec::new() };
    match names.as_slice() {
        [] => error.context(*advice),
        names => error.context(format!("{advice}: say which with oci:DIRECTORY:NAME; it has {}", names.join(", "))),
    }
}

/// The names that a layout in a directory has for its images.
fn named_in(name: &str, directory: &Path) -> Vec<String> {
    let layout = name.strip_prefix("oci:").and_then(|rest| rest.split(':').next());
    let text = layout.and_then(|layout| fs::read(directory.join(layout).join("index.json")).ok());
    let index = text.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok()).unwrap_or_default();
    let images = index["manifests"].as_array().into_iter().flatten();
    let name =
        |image: &serde_json::Value| image["annotations"]["org.opencontainers.image.ref.name"].as_str().map(Into::into);
    images.filter_map(name).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// Returns the file of a blob.
fn blob(copy: &Path, blob: &Blob) -> Result<PathBuf> {
    let hex = blob.digest.strip_prefix("sha256:").filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let hex = hex.with_context(|| format!("a digest of the image is {:?}; only sha256 is known", blob.digest))?;
    Ok(copy.join(hex))
}

/// Time for the answer to a name: a registry that does not answer must not hold a build for ever. An archive of
/// several GB is read for it.
const LOOK_UP: &str = "5m";
/// Time for all layers: 10 GB at 3 MB/s.
const FETCH: &str = "1h";

/// Begins a call of skopeo, for which paths are relative to `directory`.
fn skopeo(directory: &Path, within: &str) -> Command {
    let mut command = Command::new("skopeo");
    command.current_dir(if directory.as_os_str().is_empty() { Path::new(".") } else { directory });
    // Whose signatures are demanded is the host's decision. A host that has none says nothing at all, and without this
    // skopeo would refuse every image.
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let policies = [home.join(".config/containers/policy.json"), "/etc/containers/policy.json".into()];
    if !policies.iter().any(|policy| policy.exists()) {
        command.arg("--insecure-policy");
    }
    command.arg(format!("--command-timeout={within}"));
    command.args(["--override-os", "linux", "--override-arch", "amd64"]);
    command
}

#[cfg(test)]
mod tests {
    use super::{Config, advised, resolve};
    use std::path::Path;

    #[test]
    fn what_only_a_container_does_is_listed() {
        let text = r#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
            "config": {"Cmd": ["/bin/sh"], "Entrypoint": ["tini", "--"], "User": "ros", "Env": ["PATH=/bin", "A=b"],
            "Volumes": {"/data": {}}}}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        let expected = ["ENTRYPOINT tini --", "CMD /bin/sh", "USER ros", "ENV A=b", "VOLUME /data"];
        assert_eq!(config.without_effect(), expected);
        let config: Config =
            serde_json::from_str(r#"{"architecture": "amd64", "os": "linux", "config": null}"#).unwrap();
        assert!(config.without_effect().is_empty());
    }

    #[test]
    fn a_name_with_its_digest_needs_no_registry() {
        let digest = "ab".repeat(32);
        let name = format!("docker://registry.invalid/robot@sha256:{digest}");
        assert_eq!(resolve(&name, Path::new(".")).unwrap(), format!("sha256:{digest}"));
    }

    #[test]
    fn words_of_skopeo_come_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("layout")).unwrap();
        let image = |name: &str| serde_json::json!({"annotations": {"org.opencontainers.image.ref.name": name}});
        let index = serde_json::json!({"manifests": [image("1.0"), image("2.0"), {}]}).to_string();
        std::fs::write(directory.path().join("layout/index.json"), index).unwrap();
        let said = |words: &str| {
            let error = advised(anyhow::Error::msg(words.to_owned()), "oci:layout:3.0", directory.path());
            format!("{error:#}")
        };
        let text = said("no descriptor found for reference \"3.0\"");
        assert!(text.contains("it has 1.0, 2.0: no descriptor"), "{text}");
        assert!(
            said("no image found in image index for architecture amd64").contains("--platform linux/amd64: no image")
        );
        assert_eq!(said("something else"), "something else");
    }
}
