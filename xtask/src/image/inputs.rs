//! Digest of all that an image is made from: the same inputs, and the image is not built again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::description::Description;
use super::stamp::InputDigest;
use crate::embedded;
use crate::paths::Paths;
use crate::recipe::{Ansible, Recipe};

/// All that an image is made from, but the first tree and the numbers of users.
#[derive(Debug)]
pub struct ImageInputs<'a> {
    /// Places of this command.
    pub paths: &'a Paths,
    /// Recipe of the image.
    pub recipe: &'a Recipe,
    /// Directory of the recipe, to which its sources are relative.
    pub directory: &'a Path,
    /// Agent in the image.
    pub agent: &'a Path,
    /// Notices of the software in the agent.
    pub notices: &'a str,
    /// Path of the image.
    pub out: &'a Path,
    /// Date of the image, seconds since 1970.
    pub timestamp: u64,
    /// Digest of the image before, or nothing.
    pub previous: &'a str,
}

/// Directory of a file. A name alone has an empty one, in which nothing can be started or read.
#[must_use]
pub fn directory_of(file: &Path) -> &Path {
    file.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl ImageInputs<'_> {
    /// Digest of everything that the image is made from, this program's own way of making it included, and without the
    /// numbers of users, which grow while it is made.
    ///
    /// # Errors
    /// With the file that cannot be read.
    pub fn digest(&self, bootstrap: &str, tarball: &Path) -> Result<InputDigest> {
        let modified = tarball.metadata().and_then(|metadata| metadata.modified())?;
        let modified = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let own = concat!(
            include_str!("../image.rs"),
            include_str!("accounts.rs"),
            include_str!("access.rs"),
            include_str!("apt.rs"),
            include_str!("accounts/names.rs"),
            include_str!("accounts/numbers.rs"),
            include_str!("accounts/owners.rs"),
            include_str!("accounts/ranges.rs"),
            include_str!("../contents/sbom.rs"),
            include_str!("description.rs"),
            include_str!("ext4.rs"),
            include_str!("ext4/attributes.rs"),
            include_str!("ext4/bytes.rs"),
            include_str!("ext4/content.rs"),
            include_str!("ext4/digest.rs"),
            include_str!("ext4/directory.rs"),
            include_str!("ext4/extents.rs"),
            include_str!("ext4/geometry.rs"),
            include_str!("ext4/place.rs"),
            include_str!("ext4/placed.rs"),
            include_str!("ext4/read.rs"),
            include_str!("ext4/space.rs"),
            include_str!("ext4/tree.rs"),
            include_str!("ext4/write.rs"),
            include_str!("caches.rs"),
            include_str!("container.rs"),
            include_str!("files.rs"),
            include_str!("fragment.rs"),
            include_str!("../fresh.rs"),
            include_str!("homes.rs"),
            include_str!("identities.rs"),
            include_str!("initramfs.rs"),
            include_str!("mount_units.rs"),
            include_str!("mounts.rs"),
            include_str!("normal.rs"),
            include_str!("oddities.rs"),
            include_str!("ostree.rs"),
            include_str!("shipped.rs"),
            include_str!("sysusers.rs"),
            include_str!("tree.rs"),
            include_str!("within.rs"),
            include_str!("../recipe/places.rs"),
            include_str!("../initramfs.rs"),
            include_str!("../initramfs/archive.rs"),
            include_str!("../initramfs/modules.rs"),
        );
        let mut key = InputDigest::default()
            .with(own)
            .with(bootstrap)
            .with(modified.to_le_bytes())
            .with(serde_json::to_vec(self.recipe)?)
            .with(self.timestamp.to_le_bytes())
            .with(self.previous)
            .with_file(self.agent)?
            .with(self.notices);
        for own in [embedded::MODULES].into_iter().chain(embedded::IMAGE_UNITS) {
            key = key.with(own);
        }
        for source in self.recipe.files.iter().filter_map(|file| file.source.as_ref()) {
            key = key.with_file(&self.directory.join(source))?;
        }
        match &self.recipe.ansible {
            Some(ansible) => self.with_playbook(key, ansible),
            None => Ok(key),
        }
    }

    /// Adds what ansible reads: roles and files anywhere beside the playbook, and what lies in the directory of the
    /// recipe, where it is started.
    fn with_playbook(&self, mut key: InputDigest, ansible: &Ansible) -> Result<InputDigest> {
        let playbook = self.directory.join(&ansible.playbook);
        let playbook = playbook.canonicalize().with_context(|| format!("resolve {}", playbook.display()))?;
        // In a project these lie beside it, and change with every build and release. Numbers count by themselves.
        let built = [self.out.to_owned(), Description::path(self.out), Description::sbom_path(self.out)];
        let built = built.into_iter().chain([self.paths.dist(), self.paths.work()]);
        let built = built.chain(self.recipe.numbers.as_ref().map(|numbers| self.directory.join(numbers)));
        let built: Vec<PathBuf> = built.filter_map(|path| path.canonicalize().ok()).collect();
        key = key.with_sources(directory_of(&playbook), &built)?;
        let named = ansible.extra_vars.iter().filter_map(|variables| variables.strip_prefix('@'));
        for file in named.chain(["ansible.cfg"]).map(|name| self.directory.join(name)) {
            // Ansible has the words for a file of variables that is missing.
            key = if file.is_file() { key.with_file(&file)? } else { key.with("") };
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::ImageInputs;
    use crate::paths::Paths;
    use crate::recipe::Recipe;

    /// `image` takes minutes, in which the next change is made: the build after it said "unchanged".
    #[test]
    fn what_is_edited_after_the_look_at_the_inputs_is_another_input() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let write = |name: &str, text: &str| std::fs::write(at(name), text).unwrap();
        let names = ["program", "agent", "bootstrap.tar", "playbook.yml", "ansible.cfg", "v.yml"];
        names.iter().for_each(|name| write(name, "1"));
        let text = "name='x'\nversion='1'\n[distribution]\nsuite='s'\npackages=[]\n[ostree]\nbranch='b'\n\
                    [[files]]\npath='/opt/program'\nsource='program'\n\
                    [ansible]\nplaybook='playbook.yml'\nextra_vars=['@v.yml']\n";
        let (paths, recipe) = (Paths::of_checkout(), Recipe::parse(text).unwrap());
        let made_from = ImageInputs {
            paths: &paths,
            recipe: &recipe,
            directory: directory.path(),
            agent: &at("agent"),
            notices: "",
            out: &at("system.img"),
            timestamp: 1,
            previous: "",
        };
        let inputs = || made_from.digest("bootstrap", &at("bootstrap.tar")).unwrap();
        let mut known = vec![inputs().finish()];
        for name in ["program", "playbook.yml", "ansible.cfg", "v.yml"] {
            let before = inputs();
            write(name, "2");
            assert_ne!(before.with("numbers").finish(), inputs().with("numbers").finish(), "{name}");
            assert!(!known.contains(&inputs().finish()), "{name}");
            known.push(inputs().finish());
        }
        // What the build itself writes beside the playbook is no input.
        write("system.img", "an image");
        write("system.json", "{}");
        assert_eq!(known.last(), Some(&inputs().finish()));
    }
}
