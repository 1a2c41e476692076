//! The texts that a place gives to its machines, checked by the agent's own code before anything is built: a machine
//! that refuses its configuration stands on a bench, with a person before it.
//!
//! What the agent accepts, as it must come up whatever is written, and what cannot work all the same, is refused here:
//! a template with a variable that does not exist, a kind of disk that there is not.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use reflash::disk::Transport;
use reflash::jobs::{floor, provision::bootstrap};
use reflash::machine::config::{Config, Layer};
use reflash::machine::drivers::glob;
use reflash::machine::hostname;

use crate::embedded;
use crate::project;
use crate::toml_text;

/// The texts of one place, as they are written.
#[derive(Debug, Default)]
pub struct SiteTexts {
    /// Name of the configuration in errors.
    origin: String,
    /// Content of `reflash.toml`.
    pub config: Option<String>,
    /// Content of the asset file.
    assets: Option<String>,
}

/// Reads the texts of a place.
///
/// # Errors
/// When a file cannot be read.
pub fn read(config: Option<&Path>, assets: Option<&Path>) -> Result<SiteTexts> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let origin = config.map_or_else(|| "the configuration".to_owned(), |path| path.display().to_string());
    Ok(SiteTexts { origin, config: config.map(read).transpose()?, assets: assets.map(read).transpose()? })
}

/// A configuration that a machine can work with.
#[derive(Debug)]
pub struct CheckedSite {
    origin: String,
    /// The configuration with its defaults.
    pub config: Config,
}

impl SiteTexts {
    /// A configuration without names of machines; `origin` names it in errors.
    #[must_use]
    pub fn of_text(origin: &str, config: Option<String>) -> Self {
        Self { origin: origin.to_owned(), config, assets: None }
    }

    /// Checks the texts as a machine reads them: the defaults of the recovery initramfs, then `reflash.toml`.
    ///
    /// # Errors
    /// The first thing that cannot work, with its key.
    pub fn check(&self) -> Result<CheckedSite> {
        let written = self.config.as_deref().with_context(|| {
            format!(
                "there is no configuration: give --config reflash.toml, or `site` in a project file ({}), with \
                 release.urls and machine.product at least",
                project::FILE
            )
        })?;
        let defaults = Layer::parse("initramfs/reflash.toml", embedded::RECOVERY_CONFIG)?;
        let written = Layer::parse(&self.origin, written).map_err(toml_text::of_agent)?;
        let layer = defaults.overridden_by(written);
        let config = Config::resolve(layer).with_context(|| self.origin.clone())?;
        self.check_hostname(&config).with_context(|| self.origin.clone())?;
        check_disk(&config).with_context(|| self.origin.clone())?;
        Ok(CheckedSite { origin: self.origin.clone(), config })
    }

    fn check_hostname(&self, config: &Config) -> Result<()> {
        if let Some(assets) = &self.assets {
            hostname::asset(assets, |_| None)?;
        }
        let Some(template) = &config.hostname else { return Ok(()) };
        hostname::expand(template, example)?;
        if self.assets.is_none() && hostname::expand(template, |key| example(key).filter(|_| key != "asset")).is_err() {
            bail!("host name template {template:?} asks for {{asset}} alone, and there is no asset file (--assets)");
        }
        Ok(())
    }
}

/// Names on the recovery partition that are its own.
const OWN_NAMES: [&str; 8] = [
    "grub",
    "keys",
    "slots",
    "templates",
    "reflash.toml",
    floor::FILE,
    bootstrap::names::STATE,
    bootstrap::names::DATA,
];

/// Checks that no file takes the place of another, or of one that the recovery partition has anyway.
fn check_names(files: &[PathBuf]) -> Result<()> {
    let mut taken: Vec<(OsString, String)> = OWN_NAMES.map(|name| (name.into(), "a file of its own".to_owned())).into();
    taken.push(("lost+found".into(), "a directory of the file system".to_owned()));
    for file in files {
        let name = file.file_name().with_context(|| format!("{} is no file", file.display()))?;
        if let Some((_, by)) = taken.iter().find(|(known, _)| known == name) {
            bail!(
                "{} cannot be {} on the recovery partition: that name belongs to {by}; rename it",
                file.display(),
                name.display()
            );
        }
        taken.push((name.to_owned(), file.display().to_string()));
    }
    Ok(())
}

impl CheckedSite {
    /// Checks that what the configuration names on the recovery partition is among the files that go there, each with a
    /// name of its own.
    ///
    /// # Errors
    /// When a file is missing, or two have the same name.
    pub fn check_files(&self, files: &[PathBuf]) -> Result<()> {
        check_names(files)?;
        let Some(ca) = self.config.network.ca_file.as_deref() else { return Ok(()) };
        let name = Path::new(ca).file_name();
        ensure!(
            files.iter().any(|file| file.file_name() == name),
            "{}: network.ca_file = {ca:?} is not among the files of the recovery partition: give it with --file, or \
             `disk.files` in a project file",
            self.origin
        );
        Ok(())
    }

    /// Checks that the configuration names no file: a medium brings configuration, keys and names to the machines that
    /// it makes, and nothing else.
    ///
    /// # Errors
    /// When it names one.
    pub fn check_no_files(&self) -> Result<()> {
        let Some(ca) = &self.config.network.ca_file else { return Ok(()) };
        bail!(
            "{}: network.ca_file = {ca:?}, and a medium brings no such file to the machines it makes, so that they could \
             not get a release by HTTPS; use a certificate of a public authority, plain HTTP (releases are signed), or \
             `disk`",
            self.origin
        )
    }

    /// Checks that the machines will take the releases of a product.
    ///
    /// # Errors
    /// When product, hardware or channel differ.
    pub fn check_fit(&self, product: &str, hardware: &[String], channel: &str) -> Result<()> {
        let (config, origin) = (&self.config, &self.origin);
        ensure!(
            config.product == product,
            "{origin}: machine.product is {:?}, and releases are of product {product:?}: machines would refuse them",
            config.product
        );
        ensure!(
            config.channel == channel,
            "{origin}: release.channel is {:?}, and releases are published in {channel:?}: machines would not see them",
            config.channel
        );
        let fits = |pattern: &String| match (pattern.strip_suffix('*'), &config.hardware) {
            (Some(prefix), Some(name)) => name.starts_with(prefix),
            (None, Some(name)) => name == pattern,
            (_, None) => true,
        };
        ensure!(
            hardware.iter().any(fits),
            "{origin}: machine.hardware is {:?}, and releases fit {}: machines would refuse them",
            config.hardware.as_deref().unwrap_or_default(),
            hardware.join(", ")
        );
        Ok(())
    }
}

fn check_disk(config: &Config) -> Result<()> {
    let disk = &config.disk;
    if let Some(asked) = &disk.transport {
        let kinds = Transport::ALL.map(|kind| kind.to_string().to_lowercase());
        let known = kinds.iter().any(|kind| glob::matches(asked, kind));
        ensure!(known, "provision.disk.transport = {asked:?}: no disk is attached so; known are {}", kinds.join(", "));
    }
    if let (Some(least), Some(most)) = (disk.min_gb, disk.max_gb) {
        ensure!(least <= most, "provision.disk: no disk has at least min_gb = {least} and at most max_gb = {most}");
    }
    Ok(())
}

/// A value of each kind, as a machine that has everything would give it.
fn example(key: &str) -> Option<String> {
    let value = match key {
        "uuid" => "4c4c4544-0042-3510-8048-b4c04f4d3732",
        "mac" => "52:54:00:12:34:56",
        _ => "X7Q2",
    };
    Some(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::SiteTexts;
    use std::path::PathBuf;

    const GOOD: &str = "[release]\nurls = ['https://a.example/r']\n[machine]\nproduct = 'arm'\n";

    fn site(text: &str) -> SiteTexts {
        SiteTexts { origin: "site.toml".into(), config: Some(text.to_owned()), assets: None }
    }

    fn refused(text: &str) -> String {
        format!("{:#}", site(text).check().unwrap_err())
    }

    /// What `media` and `disk` took, and a machine refused on the bench.
    #[test]
    fn what_a_machine_could_not_work_with_is_refused_with_its_key() {
        for (more, said) in [
            ("hostname = 'robot-{serail}'", "\"serail\" is not one of"),
            ("hostname = 'robot-{serial'", "not closed"),
            ("hostname = '{asset}'", "asset file"),
            ("hostnam = 'x'", "hostnam"),
            ("[provision.disk]\ntransport = 'NVMe'", "known are nvme, usb"),
            ("[provision.disk]\ntransport = 'nvmee'", "known are nvme, usb"),
            ("[provision.disk]\nmin_gb = 500\nmax_gb = 100", "min_gb = 500"),
            ("[network]\nvlan = 5000", "network.vlan"),
            ("[boot]\ntries = 0", "boot.tries"),
        ] {
            let text = refused(&format!("{GOOD}{more}\n"));
            assert!(text.contains(said) && text.contains("site.toml"), "{more}: {text}");
        }
        assert!(refused("[release]\nurls = ['http://a']\n").contains("machine.product"));
        assert!(refused("[machine]\nproduct = 'x'\n").contains("release.urls"));
        let nothing = SiteTexts::default().check().unwrap_err().to_string();
        assert!(nothing.contains("there is no configuration"), "{nothing}");
    }

    #[test]
    fn what_works_passes_and_patterns_of_disks_are_no_mistake() {
        for more in [
            "hostname = 'robot-{asset|serial|uuid|mac|board-serial|product|vendor}'",
            "[provision.disk]\ntransport = 'nvme'",
            "[provision.disk]\ntransport = 'n*'",
        ] {
            site(&format!("{GOOD}{more}\n")).check().unwrap();
        }
        let mut named = site(&format!("{GOOD}hostname = '{{asset}}'\n"));
        named.assets = Some("S1 r2d2\n".into());
        named.check().unwrap();
        named.assets = Some("S1\n".into());
        assert!(format!("{:#}", named.check().unwrap_err()).contains("line 1"));
    }

    #[test]
    fn machines_that_would_refuse_every_release_are_found() {
        let checked = site(&format!("{GOOD}hardware = 'NUC11'\n")).check().unwrap();
        let hardware = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        checked.check_fit("arm", &hardware(&["x", "NUC*"]), "stable").unwrap();
        let wrong = |product, names: &[&str], channel| {
            checked.check_fit(product, &hardware(names), channel).unwrap_err().to_string()
        };
        assert!(wrong("leg", &["*"], "stable").contains("machine.product"));
        assert!(wrong("arm", &["*"], "testing").contains("release.channel"));
        assert!(wrong("arm", &["NUC12", "x*"], "stable").contains("machine.hardware"));
    }

    #[test]
    fn an_authority_that_no_machine_would_have_is_refused() {
        let checked = site(&format!("{GOOD}[network]\nca_file = '/recovery/ca.pem'\n")).check().unwrap();
        assert!(checked.check_files(&[]).unwrap_err().to_string().contains("network.ca_file"));
        checked.check_files(&["certs/ca.pem".into()]).unwrap();
        let refused = |files: &[&str]| {
            let files: Vec<_> = files.iter().map(PathBuf::from).collect();
            checked.check_files(&files).unwrap_err().to_string()
        };
        let text = refused(&["certs/ca.pem", "other/ca.pem"]);
        assert!(
            text.starts_with("other/ca.pem cannot be ca.pem") && text.contains("belongs to certs/ca.pem"),
            "{text}"
        );
        assert!(refused(&["certs/ca.pem", "my/reflash.toml"]).contains("a file of its own"));
        assert!(checked.check_no_files().unwrap_err().to_string().contains("network.ca_file"));
        site(GOOD).check().unwrap().check_no_files().unwrap();
    }
}
