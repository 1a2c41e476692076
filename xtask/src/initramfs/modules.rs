//! Choice of the module files that an initramfs needs: the declared names and what they depend on, from the kernel's
//! own tables.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::initramfs::archive::ArchiveEntry;
use crate::kernel::Kernel;
use crate::step::output_bytes;

/// Treatment of a declared module that the kernel neither has nor has built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Refuse it as an error: the list is wrong.
    Refuse,
    /// Leave it out: a kernel for virtual machines lacks what only real ones need.
    Allow,
}

/// Text tables of `/lib/modules/VERSION`.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// File of each module by name, and the files it needs.
    pub(super) files: BTreeMap<String, (String, Vec<String>)>,
    /// Soft dependencies by name.
    soft: BTreeMap<String, Vec<String>>,
    /// Alias pattern and module.
    pub(super) aliases: Vec<(String, String)>,
    /// Names that are built in.
    builtin: BTreeSet<String>,
}

/// Returns the files of the modules, and tables restricted to them, as archive entries.
pub fn entries(kernel: &Kernel, names: &[String], missing: Missing) -> Result<Vec<ArchiveEntry>> {
    let read = |name: &str| {
        let path = kernel.modules.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let builtin = read("modules.builtin")?;
    let tables = Tables::parse(&read("modules.dep")?, &read("modules.softdep")?, &read("modules.alias")?, &builtin);
    let chosen = tables.resolve(names, missing).with_context(|| format!("modules of {}", kernel.release))?;
    let base = format!("/lib/modules/{}", kernel.release);
    let mut entries = Vec::new();
    for name in &chosen {
        let (file, _) = &tables.files[name];
        let path = kernel.modules.join(file);
        let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let (file, content) = plain(file, content)?;
        entries.push(ArchiveEntry::file(&format!("{base}/{file}"), content, 0o644));
    }
    for (name, text) in [
        ("modules.dep", tables.dep_of(&chosen)),
        ("modules.alias", tables.alias_of(&chosen)),
        ("modules.softdep", tables.soft_of(&chosen)),
        ("modules.builtin", builtin),
    ] {
        entries.push(ArchiveEntry::file(&format!("{base}/{name}"), text.into_bytes(), 0o644));
    }
    Ok(entries)
}

/// Decompresses a module; distributions compress them differently. In the archive they lie plain: it is compressed as a
/// whole, which is smaller, and the agent needs no decompressors.
fn plain(file: &str, content: Vec<u8>) -> Result<(String, Vec<u8>)> {
    match Path::new(file).extension().and_then(|extension| extension.to_str()) {
        Some("ko") => Ok((file.to_owned(), content)),
        Some("zst") => {
            let plain = zstd::decode_all(&content[..]).with_context(|| format!("decompress {file}"))?;
            Ok((file.trim_end_matches(".zst").to_owned(), plain))
        }
        Some("xz") => {
            let path = tempfile::NamedTempFile::new()?;
            std::fs::write(path.path(), &content)?;
            // Half a module, of an xz that was killed, would be found by a robot without a disk.
            let plain = output_bytes(Command::new("xz").arg("-dc").arg(path.path()))
                .with_context(|| format!("decompress {file}"))?;
            Ok((file.trim_end_matches(".xz").to_owned(), plain))
        }
        _ => bail!("{file} is compressed in an unknown way; .zst and .xz are supported"),
    }
}

impl Tables {
    pub(super) fn parse(dep: &str, softdep: &str, alias: &str, builtin: &str) -> Self {
        let mut tables = Self::default();
        for (file, needs) in dep.lines().filter_map(|line| line.split_once(':')) {
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            tables.files.insert(name_of(file), (file.to_owned(), needs));
        }
        for line in softdep.lines().filter_map(|line| line.strip_prefix("softdep ")) {
            let mut words = line.split_whitespace();
            let Some(name) = words.next() else { continue };
            // The modules behind "pre:" and "post:" differ only in order, and both have to be there.
            let needs = words.filter(|word| !word.ends_with(':')).map(str::to_owned);
            tables.soft.entry(normal(name)).or_default().extend(needs);
        }
        for line in alias.lines().filter_map(|line| line.strip_prefix("alias ")) {
            // The pattern may hold spaces; the module does not.
            if let Some((pattern, module)) = line.rsplit_once(' ') {
                tables.aliases.push((pattern.to_owned(), normal(module)));
            }
        }
        tables.builtin = builtin.lines().map(name_of).collect();
        tables
    }

    pub(super) fn resolve(&self, names: &[String], missing: Missing) -> Result<BTreeSet<String>> {
        let mut chosen = BTreeSet::new();
        let mut unknown = Vec::new();
        let mut open: Vec<String> = Vec::new();
        for name in names {
            let found = self.modules_for(name);
            if found.is_empty() && !self.builtin.contains(&normal(name)) {
                unknown.push(name.as_str());
            }
            open.extend(found);
        }
        if !unknown.is_empty() && missing == Missing::Refuse {
            bail!("the kernel has no module named {}; correct initramfs/modules.toml", unknown.join(", "));
        }
        while let Some(name) = open.pop() {
            if !chosen.insert(name.clone()) {
                continue;
            }
            open.extend(self.files[&name].1.iter().map(|file| name_of(file)));
            for soft in self.soft.get(&name).into_iter().flatten() {
                // By definition, a soft dependency need not be there.
                open.extend(self.modules_for(soft));
            }
        }
        Ok(chosen)
    }

    /// Finds the module of that name, or all that have the name as an alias (`crypto-crc32c`).
    fn modules_for(&self, name: &str) -> Vec<String> {
        let normal = normal(name);
        if self.files.contains_key(&normal) {
            return vec![normal];
        }
        let claimed = self.aliases.iter().filter(|(pattern, _)| pattern == name).map(|(_, module)| module.clone());
        claimed.filter(|module| self.files.contains_key(module)).collect()
    }

    fn dep_of(&self, chosen: &BTreeSet<String>) -> String {
        let line = |name: &String| {
            let (file, needs) = &self.files[name];
            let words = std::iter::once(format!("{}:", uncompressed(file)));
            words.chain(needs.iter().map(|file| uncompressed(file))).collect::<Vec<_>>().join(" ")
        };
        chosen.iter().map(|name| line(name) + "\n").collect()
    }

    fn alias_of(&self, chosen: &BTreeSet<String>) -> String {
        let kept = self.aliases.iter().filter(|(_, module)| chosen.contains(module));
        kept.map(|(pattern, module)| format!("alias {pattern} {module}\n")).collect()
    }

    fn soft_of(&self, chosen: &BTreeSet<String>) -> String {
        let kept = self.soft.iter().filter(|(name, _)| chosen.contains(*name));
        kept.map(|(name, needs)| format!("softdep {name} pre: {}\n", needs.join(" "))).collect()
    }
}

fn uncompressed(file: &str) -> String {
    file.trim_end_matches(".zst").trim_end_matches(".xz").to_owned()
}

/// Returns the module name of a file: `ext4` for `kernel/fs/ext4/ext4.ko.xz`. To the kernel `-` and `_` in names are
/// the same.
fn name_of(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    normal(base.split(".ko").next().unwrap_or(base))
}

pub(super) fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::{Missing, Tables, plain};

    /// The output of an xz that failed was the module: a robot would have found no disk.
    #[test]
    fn a_module_that_cannot_be_decompressed_is_none() {
        let error = format!("{:#}", plain("kernel/nvme.ko.xz", b"no module".to_vec()).unwrap_err());
        assert!(error.contains("decompress kernel/nvme.ko.xz"), "{error}");
    }

    fn tables() -> Tables {
        Tables::parse(
            "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/fs/mbcache.ko\nkernel/fs/jbd2/jbd2.ko:\n\
             kernel/fs/mbcache.ko:\nkernel/crypto/crc32c_generic.ko:\nkernel/net/r8169.ko.zst: kernel/net/mii-x.ko\n\
             kernel/net/mii-x.ko:\nkernel/net/realtek.ko:\nkernel/net/other.ko:\n",
            "# comment\nsoftdep ext4 pre: crypto-crc32c\nsoftdep r8169 pre: realtek\nsoftdep mbcache post: not-there\n",
            "alias crypto-crc32c crc32c_generic\nalias pci:v1* r8169\nalias pci:v2* other\n",
            "kernel/drivers/nvme.ko\n",
        )
    }

    fn resolve(names: &[&str], missing: Missing) -> anyhow::Result<Vec<String>> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        tables().resolve(&names, missing).map(|chosen| chosen.into_iter().collect())
    }

    #[test]
    fn hard_and_soft_dependencies_come_along() {
        let chosen = resolve(&["ext4"], Missing::Refuse).unwrap();
        assert_eq!(chosen, ["crc32c_generic", "ext4", "jbd2", "mbcache"]);
        assert_eq!(resolve(&["r8169", "nvme"], Missing::Refuse).unwrap(), ["mii_x", "r8169", "realtek"]);
    }

    #[test]
    fn an_unknown_name_is_refused_by_name_or_left_out() {
        let error = resolve(&["ext4", "exxt"], Missing::Refuse).unwrap_err();
        assert!(error.to_string().contains("exxt"), "{error}");
        assert!(resolve(&["exxt"], Missing::Allow).unwrap().is_empty());
    }

    #[test]
    fn tables_are_restricted_and_name_plain_files() {
        let tables = tables();
        let chosen = tables.resolve(&["r8169".to_owned()], Missing::Refuse).unwrap();
        assert!(tables.dep_of(&chosen).contains("kernel/net/r8169.ko: kernel/net/mii-x.ko\n"));
        assert_eq!(tables.alias_of(&chosen), "alias pci:v1* r8169\n");
        assert_eq!(tables.soft_of(&chosen), "softdep r8169 pre: realtek\n");
    }
}
