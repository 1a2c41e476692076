//! Section `[source]` of a recipe: the system that an image begins with, when it is not bootstrapped.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Section `[source]` of a recipe: a system that exists already. One of `rootfs`, `lxd` and `oci` is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSettings {
    /// Root file system, relative to the recipe: a directory, a squashfs file, or a tarball with any compression that
    /// tar knows.
    pub rootfs: Option<PathBuf>,
    /// Image of LXD or Incus, relative to the recipe: one tarball with `rootfs/` in it, or the pair of a tarball with
    /// the metadata and a squashfs file or tarball.
    #[serde(default)]
    pub lxd: Vec<PathBuf>,
    /// Container image as skopeo names it, such as `docker://registry.example/robot:1.2`, `oci-archive:robot.tar`,
    /// `oci:DIRECTORY:TAG`, `docker-archive:robot.tar` or `containers-storage:localhost/robot`. Paths are relative to
    /// the recipe. Of an image for several architectures that for amd64 is taken, which the builder makes images
    /// for.
    pub oci: Option<String>,
    /// Digest that the source must have, such as `sha256:…`: that of the manifest of a container image, or of the file
    /// with the root file system.
    pub digest: Option<String>,
}

/// Form of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin<'a> {
    /// Directory, squashfs file or tarball with a root file system.
    RootFs(&'a PathBuf),
    /// Image of LXD: one file, or metadata and root file system.
    Lxd(&'a [PathBuf]),
    /// Container image, as skopeo names it.
    Oci(&'a str),
}

impl SourceSettings {
    /// Returns which form of source is given.
    ///
    /// # Errors
    /// When it is none, or more than one.
    pub fn origin(&self) -> Result<Origin<'_>> {
        match (&self.rootfs, self.lxd.as_slice(), &self.oci) {
            (Some(path), [], None) => Ok(Origin::RootFs(path)),
            (None, files @ ([_] | [_, _]), None) => Ok(Origin::Lxd(files)),
            (None, [], Some(name)) => Ok(Origin::Oci(name)),
            (None, [], None) => bail!("source: one of rootfs, lxd and oci is needed"),
            (None, [_, ..], None) => {
                bail!("source.lxd has {} files; give one tarball, or metadata and rootfs", self.lxd.len())
            }
            _ => bail!("source: rootfs, lxd and oci exclude each other; keep one"),
        }
    }

    /// Checks what can be checked without the source itself.
    ///
    /// # Errors
    /// With the key that cannot work.
    pub fn check(&self) -> Result<()> {
        if let Origin::Oci(name) = self.origin()? {
            let transport = name.split_once(':').map(|(transport, rest)| (transport, !rest.is_empty()));
            ensure!(
                transport.is_some_and(|(transport, has_rest)| has_rest && TRANSPORTS.contains(&transport)),
                "source.oci = {name:?} does not begin with a way to images that skopeo knows ({}); a registry's image \
                 is docker://{name}",
                TRANSPORTS.join(":, ") + ":"
            );
        }
        if let Some(digest) = &self.digest {
            let hex = digest.strip_prefix("sha256:").unwrap_or_default();
            let is_digest = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            ensure!(is_digest, "source.digest = {digest:?} is not sha256: and 64 digits of a lower-case digest");
        }
        Ok(())
    }
}

/// Ways to an image that make sense in a recipe, as skopeo names them.
const TRANSPORTS: &[&str] =
    &["docker", "oci", "oci-archive", "docker-archive", "docker-daemon", "containers-storage", "dir"];

#[cfg(test)]
mod tests {
    use super::Origin;
    use crate::recipe::Recipe;

    fn recipe(section: &str) -> anyhow::Result<Recipe> {
        Recipe::parse(&format!("name = 'x'\nversion = '1'\n{section}\n[ostree]\nbranch = 'x/y'\n"))
    }

    #[test]
    fn a_source_needs_no_suite() {
        let parsed = recipe("[source]\noci = 'docker://registry.example/robot:1'").unwrap();
        assert!(parsed.distribution.updates && parsed.distribution.packages.is_empty());
        let source = parsed.source.unwrap();
        assert_eq!(source.origin().unwrap(), Origin::Oci("docker://registry.example/robot:1"));
        let parsed = recipe("[source]\nlxd = ['lxd.tar.xz', 'rootfs.squashfs']\n[distribution]\npackages = ['x']");
        assert!(matches!(parsed.unwrap().source.unwrap().origin().unwrap(), Origin::Lxd([_, _])));
    }

    #[test]
    fn what_cannot_work_is_named() {
        for (section, said) in [
            ("", "distribution.suite is missing"),
            ("[source]", "one of rootfs, lxd and oci"),
            ("[source]\nrootfs = 'a'\noci = 'oci:a'", "exclude each other"),
            ("[source]\nlxd = ['a', 'b', 'c']", "has 3 files"),
            ("[source]\noci = 'debian:bookworm'", "docker://debian:bookworm"),
            ("[source]\noci = 'oci:'", "does not begin with"),
            ("[source]\nrootfs = 'a'\ndigest = 'sha256:1'", "64 digits"),
            ("[source]\nrootfs = 'a'\n[distribution]\nmirror = 'http://a.example'", "distribution.mirror"),
            ("[source]\nrootfs = 'a'\n[distribution]\nupdates = false", "distribution.updates"),
            ("[source]\nrootfs = 'a'\n[distribution]\nhold = ['x']", "distribution.hold"),
            ("[source]\nrotfs = 'a'", "rotfs"),
        ] {
            let message = format!("{:#}", recipe(section).unwrap_err());
            assert!(message.contains(said), "{section}: {message}");
        }
    }
}
