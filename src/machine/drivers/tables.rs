//! Text tables that depmod writes, and what follows from them: which modules to load, in which order. Pure.

use std::collections::{HashMap, HashSet};

use super::glob;

/// The tables of one kernel. Names are kept with `_`, as the kernel reports them; `-` and `_` are the same.
#[derive(Debug, Default)]
pub struct ModuleTables {
    /// Name to file, relative to the directory of the tables, and the files it needs.
    modules: HashMap<String, Module>,
    aliases: Vec<(String, String)>,
    softdeps: HashMap<String, Soft>,
    builtin: HashSet<String>,
}

#[derive(Debug)]
struct Module {
    file: String,
    needs: Vec<String>,
}

#[derive(Debug, Default)]
struct Soft {
    pre: Vec<String>,
    post: Vec<String>,
}

/// One module file to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadStep {
    /// Module name with `_`.
    pub name: String,
    /// File, relative to the directory of the tables.
    pub file: String,
    /// Whether the wanted module fails without this one. A soft dependency may fail, such as an accelerated checksum on
    /// a processor without it.
    pub required: bool,
}

/// Meaning of a module name or alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// Files to load, in this order.
    Load(Vec<LoadStep>),
    /// Module that is part of the kernel image.
    Builtin,
    /// Unknown name: no module, no alias, not built in.
    Unknown,
}

impl ModuleTables {
    /// Reads the contents of `modules.dep`, `modules.alias`, `modules.softdep` and `modules.builtin`. Lines of an
    /// unknown form are skipped: the tables come with the kernel, and a newer depmod may know more.
    pub fn parse(dep: &str, alias: &str, softdep: &str, builtin: &str) -> Self {
        let mut tables = Self::default();
        for line in lines(dep) {
            let Some((file, needs)) = line.split_once(':') else { continue };
            let needs = needs.split_ascii_whitespace().map(str::to_owned).collect();
            tables.modules.insert(name_of(file), Module { file: file.to_owned(), needs });
        }
        for line in lines(alias) {
            if let Some((pattern, name)) = line.strip_prefix("alias ").and_then(|rest| rest.rsplit_once(' ')) {
                tables.aliases.push((pattern.trim().to_owned(), normal(name)));
            }
        }
        for line in lines(softdep) {
            let mut words = line.split_ascii_whitespace();
            let (Some("softdep"), Some(name)) = (words.next(), words.next()) else { continue };
            let soft = tables.softdeps.entry(normal(name)).or_default();
            let mut post = false;
            for word in words {
                match word {
                    "pre:" => post = false,
                    "post:" => post = true,
                    other if post => soft.post.push(other.to_owned()),
                    other => soft.pre.push(other.to_owned()),
                }
            }
        }
        tables.builtin = lines(builtin).map(name_of).collect();
        tables
    }

    /// Returns the modules that claim `alias`, such as the `modalias` of a device, in the order of the table.
    pub fn claimed_by(&self, alias: &str) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for (pattern, name) in &self.aliases {
            if !names.contains(&name.as_str()) && glob::matches(pattern, alias) {
                names.push(name);
            }
        }
        names
    }

    /// Finds out what it takes to load `name`, a module or an alias of one (`fs-ext4`, `crypto-crc32c`), means.
    pub fn resolve(&self, name: &str) -> Resolution {
        let names = self.candidates(name);
        if names.is_empty() {
            let builtin = self.builtin.contains(&normal(name));
            return if builtin { Resolution::Builtin } else { Resolution::Unknown };
        }
        let mut walk = Walk { tables: self, steps: Vec::new(), seen: HashSet::new() };
        for name in names {
            walk.visit(&name, true);
        }
        Resolution::Load(walk.steps)
    }

    /// Returns the modules behind a module name or an alias. A module of that name hides aliases, as in modprobe.
    fn candidates(&self, name: &str) -> Vec<String> {
        let module = normal(name);
        if self.modules.contains_key(&module) {
            return vec![module];
        }
        // Aliases are matched in both spellings: modprobe reads `-` as `_` in the requested name.
        let mut found = self.claimed_by(name);
        if found.is_empty() {
            found = self.claimed_by(&module);
        }
        found.into_iter().filter(|name| self.modules.contains_key(*name)).map(str::to_owned).collect()
    }
}

/// Walks depth first, so that a module comes after those that it needs. `seen` also ends circular soft dependencies.
struct Walk<'a> {
    tables: &'a ModuleTables,
    steps: Vec<LoadStep>,
    seen: HashSet<String>,
}

impl Walk<'_> {
    fn visit(&mut self, name: &str, required: bool) {
        if !self.seen.insert(name.to_owned()) {
            // The module is needed after all: one that was first met as a soft dependency must not be allowed to fail.
            if required && let Some(step) = self.steps.iter_mut().find(|step| step.name == name) {
                step.required = true;
            }
            return;
        }
        let tables = self.tables;
        let Some(module) = tables.modules.get(name) else { return };
        let soft = tables.softdeps.get(name);
        for other in soft.iter().flat_map(|soft| &soft.pre) {
            self.visit_soft(other);
        }
        // The last module in the list has the fewest dependencies: depmod writes them in the reverse order of loading.
        for file in module.needs.iter().rev() {
            self.visit(&name_of(file), required);
        }
        self.steps.push(LoadStep { name: name.to_owned(), file: module.file.clone(), required });
        for other in soft.iter().flat_map(|soft| &soft.post) {
            self.visit_soft(other);
        }
    }

    fn visit_soft(&mut self, name: &str) {
        for candidate in self.tables.candidates(name) {
            self.visit(&candidate, false);
        }
    }
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// Returns the module name of a file: `ext4` for `kernel/fs/ext4/ext4.ko.xz`.
fn name_of(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    normal(base.split_once(".ko").map_or(base, |(name, _)| name))
}

#[cfg(test)]
mod tests {
    use super::{LoadStep, ModuleTables, Resolution};

    const DEP: &str = "kernel/lib/crc16.ko:\n\
        kernel/fs/mbcache.ko:\n\
        kernel/fs/jbd2/jbd2.ko:\n\
        kernel/fs/ext4/ext4.ko: kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko\n\
        kernel/arch/x86/crypto/crc32c-intel.ko:\n\
        kernel/crypto/crc32c_generic.ko:\n\
        kernel/a.ko:\nkernel/b.ko: kernel/a.ko\n\
        kernel/drivers/net/ethernet/realtek/r8169.ko.xz: kernel/drivers/net/phy/libphy.ko.xz\n\
        kernel/drivers/net/phy/libphy.ko.xz:\n\
        kernel/drivers/net/phy/realtek.ko.xz: kernel/drivers/net/phy/libphy.ko.xz\n";
    const ALIAS: &str = "# Aliases extracted from modules themselves.\n\
        alias fs-ext4 ext4\n\
        alias crypto-crc32c crc32c_intel\nalias crypto-crc32c crc32c_generic\n\
        alias pci:v000010ECd00008168sv*sd*bc*sc*i* r8169\n\
        alias pci:v000010EC* not_shipped\n";
    const SOFTDEP: &str = "softdep ext4 pre: crypto-crc32c\nsoftdep r8169 pre: realtek\n\
        softdep a pre: b\nsoftdep b post: crc16\n";
    const BUILTIN: &str = "kernel/drivers/ata/libata-core.ko\n";

    fn tables() -> ModuleTables {
        ModuleTables::parse(DEP, ALIAS, SOFTDEP, BUILTIN)
    }

    fn order(name: &str) -> Vec<(String, bool)> {
        match tables().resolve(name) {
            Resolution::Load(steps) => steps.into_iter().map(|step| (step.name, step.required)).collect(),
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn soft_dependencies_come_first_and_may_fail() {
        let names = order("ext4");
        let at = |name: &str| names.iter().position(|(found, _)| found == name).unwrap();
        assert!(at("crc32c_intel") < at("ext4") && at("crc32c_generic") < at("ext4"));
        assert!(at("jbd2") < at("ext4") && at("crc16") < at("ext4"));
        assert!(!names[at("crc32c_intel")].1 && names[at("jbd2")].1);
        assert_eq!(names.last().unwrap().0, "ext4");
        assert_eq!(order("fs-ext4"), names);
    }

    #[test]
    fn a_dependency_met_first_as_soft_is_still_required() {
        // realtek (soft) brings libphy, which r8169 itself needs.
        assert_eq!(order("r8169"), [("libphy".into(), true), ("realtek".into(), false), ("r8169".into(), true)]);
    }

    #[test]
    fn circular_soft_dependencies_end_and_post_comes_after() {
        let names: Vec<String> = order("b").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "b", "crc16"]);
    }

    #[test]
    fn dashes_and_underscores_are_the_same() {
        let step = LoadStep {
            name: "crc32c_intel".into(),
            file: "kernel/arch/x86/crypto/crc32c-intel.ko".into(),
            required: true,
        };
        assert_eq!(tables().resolve("crc32c-intel"), Resolution::Load(vec![step.clone()]));
        assert_eq!(tables().resolve("crc32c_intel"), Resolution::Load(vec![step]));
    }

    #[test]
    fn builtin_and_unknown_names_are_distinguished() {
        assert_eq!(tables().resolve("libata_core"), Resolution::Builtin);
        assert_eq!(tables().resolve("nonsense"), Resolution::Unknown);
        // Claimed by a module that the initramfs does not carry.
        assert_eq!(tables().resolve("pci:v000010ECd00000001sv0sd0bc0sc0i0"), Resolution::Unknown);
    }

    #[test]
    fn a_device_may_be_claimed_by_several() {
        assert_eq!(tables().claimed_by("pci:v000010ECd00008168sv1sd1bc02sc00i00"), ["r8169", "not_shipped"]);
    }
}
