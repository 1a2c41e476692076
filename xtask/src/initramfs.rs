//! The recovery initramfs, and the archive builder that the system's own initramfs uses too.

pub mod archive;
mod modules;
#[cfg(test)]
mod storage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::agent;
use crate::embedded;
use crate::host_packages::{Need, ensure_installed};
use crate::kernel::{self, Kernel};
use crate::notices;
use crate::paths::{Paths, create_dir};
use crate::step::{mib, produced, step, unchanged};
use crate::trusted;

pub use archive::ArchiveEntry;
pub use modules::Missing;

/// Kernel and initramfs together: what a small recovery partition holds twice, and a slow link once.
const MAX_BYTES: u64 = 24 * 1024 * 1024;

/// Level of zstd at its best: the archive is built once and read by every boot.
pub const LEVEL: i32 = 19;

/// Options of `initramfs`.
#[derive(Debug, clap::Args)]
pub struct InitramfsArgs {
    /// Public keys to build in, for machines started without a recovery partition.
    #[arg(long = "key", value_name = "FILE.pub")]
    pub keys: Vec<PathBuf>,
}

/// Content of an initramfs.
pub struct InitramfsContent<'a> {
    /// Job that PID 1 has: `recovery` or `system`.
    pub role: &'a str,
    /// The static binary that becomes `/init`.
    pub init: &'a Path,
    /// The kernel whose modules are taken.
    pub kernel: &'a Kernel,
    /// Modules by name; dependencies come along.
    pub modules: Vec<String>,
    /// Meaning of a module that the kernel does not have.
    pub missing: Missing,
    /// Further files, with their absolute paths.
    pub files: Vec<ArchiveEntry>,
    /// Level of zstd, if the archives are compressed: where room is scarce. What is compressed becomes other bytes all
    /// over with each change in it, which every robot has to download.
    pub level: Option<i32>,
}

/// The module groups of `initramfs/modules.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModuleList {
    groups: BTreeMap<String, Vec<String>>,
}

/// Returns the names of all modules in `initramfs/modules.toml`.
///
/// # Errors
/// When the file is not what it should be.
pub fn declared_modules() -> Result<Vec<String>> {
    Ok(module_list()?.groups.into_values().flatten().collect())
}

/// Returns the names of the modules of some groups in `initramfs/modules.toml`.
///
/// # Errors
/// When the file is not what it should be, or has no such group.
pub fn modules_of_groups(groups: &[&str]) -> Result<Vec<String>> {
    let mut list = module_list()?;
    let mut names = Vec::new();
    for group in groups {
        let found = list.groups.remove(*group);
        names.extend(found.with_context(|| format!("initramfs/modules.toml has no group {group:?}"))?);
    }
    Ok(names)
}

fn module_list() -> Result<ModuleList> {
    toml::from_str(embedded::MODULES).context("read initramfs/modules.toml")
}

/// Writes the archives to `out`. The same content gives the same bytes.
///
/// There is one archive for the modules, which change with the kernel only, one for programs, and one for the agent:
/// compressed as a whole, 5 MiB of a system's image would be new bytes whenever a library or the agent changes.
///
/// # Errors
/// When a module is not known or a file cannot be read.
pub fn build(content: &InitramfsContent<'_>, out: &Path) -> Result<()> {
    let mut entries = vec![ArchiveEntry::file("/init", std::fs::read(content.init).context("read the agent")?, 0o755)];
    entries.push(ArchiveEntry::file("/etc/reflash/role", format!("{}\n", content.role).into_bytes(), 0o644));
    entries.push(ArchiveEntry::console());
    for directory in ["/proc", "/sys", "/dev", "/run", "/etc", "/tmp", "/recovery", "/state", "/sysroot"] {
        entries.push(ArchiveEntry::directory(directory));
    }
    let modules = modules::entries(content.kernel, &content.modules, content.missing)?;
    let archives = archive::joined(vec![modules, content.files.clone(), entries], content.level)?;
    let new = out.with_added_extension("new");
    std::fs::write(&new, archives).with_context(|| format!("write {}", new.display()))?;
    std::fs::rename(&new, out).with_context(|| format!("write {}", out.display()))
}

/// Kernel and initramfs of a recovery.
#[derive(Debug, Clone)]
pub struct BuiltRecovery {
    /// Path of the kernel.
    pub vmlinuz: PathBuf,
    /// Path of the initramfs.
    pub initramfs: PathBuf,
}

/// Builds the recovery kernel and initramfs around the agent, with the public keys of `keys` built in.
///
/// # Errors
/// When a part cannot be built, or both are larger than a recovery partition should need.
pub fn recovery(paths: &Paths, keys: &[PathBuf], assume_yes: bool) -> Result<BuiltRecovery> {
    // First, so that no package is installed and no kernel fetched where there is no agent, or none of its notices.
    let agent = agent::obtain(paths, assume_yes)?;
    let notices = notices::of_agent(paths)?;
    ensure_installed(&[Need::Initramfs], assume_yes)?;
    let kernel = kernel::fetch(paths)?;
    let dist = paths.dist();
    create_dir(&dist)?;
    let made = BuiltRecovery { vmlinuz: dist.join("vmlinuz"), initramfs: dist.join("initramfs.img") };
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let config = embedded::RECOVERY_CONFIG.as_bytes().to_vec();
    let mut files = vec![
        ArchiveEntry::file("/etc/reflash/reflash.toml", config, 0o644),
        ArchiveEntry::file(notices::PATH, notices.into_bytes(), 0o644),
    ];
    for (name, key) in trusted::named(keys)? {
        files.push(ArchiveEntry::file(&format!("/etc/reflash/keys/{name}"), read(key)?, 0o644));
    }
    let content = InitramfsContent {
        role: "recovery",
        init: &agent,
        kernel: &kernel,
        modules: declared_modules()?,
        missing: Missing::Refuse,
        files,
        level: Some(LEVEL),
    };
    let inputs = inputs_digest(&content)?;
    let stamp = paths.work().join("initramfs.inputs");
    if made.initramfs.is_file()
        && made.vmlinuz.is_file()
        && std::fs::read_to_string(&stamp).ok().as_deref() == Some(&inputs)
    {
        unchanged("recovery initramfs");
    } else {
        step("build the recovery initramfs", || {
            std::fs::copy(&kernel.vmlinuz, &made.vmlinuz)?;
            build(&content, &made.initramfs)?;
            Ok(std::fs::write(&stamp, &inputs)?)
        })?;
    }
    let size = |path: &Path| path.metadata().map(|meta| meta.len());
    let (vmlinuz, initramfs) = (size(&made.vmlinuz)?, size(&made.initramfs)?);
    ensure!(
        vmlinuz + initramfs <= MAX_BYTES,
        "kernel ({vmlinuz} bytes) and initramfs ({initramfs} bytes) are larger than {MAX_BYTES} bytes together"
    );
    produced(&format!("recovery kernel {}, {}", kernel.release, mib(vmlinuz)), &made.vmlinuz);
    produced(&format!("recovery initramfs, {}", mib(initramfs)), &made.initramfs);
    Ok(made)
}

/// Digest of everything the archive depends on: it decides whether the archive must be built again.
fn inputs_digest(content: &InitramfsContent<'_>) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for own in
        [include_str!("initramfs.rs"), include_str!("initramfs/archive.rs"), include_str!("initramfs/modules.rs")]
    {
        hasher.update(own.as_bytes());
    }
    hasher.update(&std::fs::read(content.init)?);
    // A security update mostly keeps the release.
    hasher.update(content.kernel.release.as_bytes());
    hasher.update(&std::fs::read(&content.kernel.vmlinuz)?);
    hasher.update(embedded::MODULES.as_bytes());
    for file in &content.files {
        hasher.update(file.path.as_bytes());
        hasher.update(&file.content);
    }
    Ok(hasher.finalize().to_hex().to_string())
}
