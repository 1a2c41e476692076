//! `cargo xtask initramfs`, and the archive builder that the system's own initramfs uses too.

pub mod archive;
mod modules;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::host::{Need, ensure_installed};
use crate::kernel::{self, Kernel};
use crate::notices;
use crate::paths::Paths;
use crate::step::{produced, step, unchanged};

pub use archive::Entry;
pub use modules::Missing;

/// Kernel and initramfs together: what a small recovery partition holds twice, and a slow link once.
const MAX_BYTES: u64 = 24 * 1024 * 1024;

/// zstd at its best: the archive is built once and read by every boot.
const LEVEL: i32 = 19;

/// What goes into an initramfs.
pub struct Content<'a> {
    /// Which job PID 1 has: `recovery` or `system`.
    pub role: &'a str,
    /// The static binary that becomes `/init`.
    pub init: &'a Path,
    /// The kernel whose modules are taken.
    pub kernel: &'a Kernel,
    /// Modules by name; dependencies come along.
    pub modules: Vec<String>,
    /// What a module means that the kernel does not have.
    pub missing: Missing,
    /// Further files, with their absolute paths.
    pub files: Vec<Entry>,
}

/// The module groups of `initramfs/modules.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModuleList {
    groups: BTreeMap<String, Vec<String>>,
}

/// Names of all modules in `initramfs/modules.toml`.
///
/// # Errors
/// When the file is not what it should be.
pub fn declared_modules(paths: &Paths) -> Result<Vec<String>> {
    Ok(module_list(paths)?.groups.into_values().flatten().collect())
}

/// Names of the modules of some groups in `initramfs/modules.toml`.
///
/// # Errors
/// When the file is not what it should be, or has no such group.
pub fn modules_of_groups(paths: &Paths, groups: &[&str]) -> Result<Vec<String>> {
    let mut list = module_list(paths)?;
    let mut names = Vec::new();
    for group in groups {
        let found = list.groups.remove(*group);
        names.extend(found.with_context(|| format!("initramfs/modules.toml has no group {group:?}"))?);
    }
    Ok(names)
}

fn module_list(paths: &Paths) -> Result<ModuleList> {
    let path = paths.root.join("initramfs/modules.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("read {}", path.display()))
}

/// Writes the compressed archives to `out`. The same content gives the same bytes. One archive for the modules, which change
/// with the kernel only, one for programs, one for the agent: compressed as a whole, 5 MiB of a system's image would be new
/// bytes whenever a library or the agent changes.
///
/// # Errors
/// When a module is not known or a file cannot be read.
pub fn build(content: &Content<'_>, out: &Path) -> Result<()> {
    let mut entries = vec![Entry::file("/init", std::fs::read(content.init).context("read the agent")?, 0o755)];
    entries.push(Entry::file("/etc/reflash/role", format!("{}\n", content.role).into_bytes(), 0o644));
    entries.push(Entry::console());
    for directory in ["/proc", "/sys", "/dev", "/run", "/etc", "/tmp", "/recovery", "/state", "/sysroot"] {
        entries.push(Entry::directory(directory));
    }
    let modules = modules::entries(content.kernel, &content.modules, content.missing)?;
    let compressed = archive::compressed(vec![modules, content.files.clone(), entries], LEVEL)?;
    let new = out.with_added_extension("new");
    std::fs::write(&new, compressed).with_context(|| format!("write {}", new.display()))?;
    std::fs::rename(&new, out).with_context(|| format!("write {}", out.display()))
}

/// What `cargo xtask initramfs` made.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// The kernel.
    pub vmlinuz: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

/// Builds the recovery kernel and initramfs around the agent in `target/dist/reflash`, with the public keys of
/// `keys` built in.
///
/// # Errors
/// When a part cannot be built, or both are larger than a recovery partition should need.
pub fn recovery(paths: &Paths, keys: &[PathBuf], assume_yes: bool) -> Result<Recovery> {
    ensure_installed(&[Need::Initramfs], assume_yes)?;
    let agent = crate::agent::build(paths, assume_yes)?;
    let kernel = kernel::fetch(paths)?;
    let dist = paths.dist();
    let made = Recovery { vmlinuz: dist.join("vmlinuz"), initramfs: dist.join("initramfs.img") };
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let mut files = vec![
        Entry::file("/etc/reflash/reflash.toml", read(&paths.root.join("initramfs/reflash.toml"))?, 0o644),
        Entry::file(notices::PATH, notices::text(paths)?.into_bytes(), 0o644),
    ];
    for key in keys {
        let name = key.file_name().with_context(|| format!("{} is no file", key.display()))?.to_string_lossy();
        files.push(Entry::file(&format!("/etc/reflash/keys/{name}"), read(key)?, 0o644));
    }
    let content = Content {
        role: "recovery",
        init: &agent,
        kernel: &kernel,
        modules: declared_modules(paths)?,
        missing: Missing::Refuse,
        files,
    };
    let inputs = inputs_digest(&content, paths)?;
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
    let mib = |bytes: u64| bytes as f64 / 1048576.0;
    produced(&format!("recovery kernel {}, {:.1} MiB", kernel.release, mib(vmlinuz)), &made.vmlinuz);
    produced(&format!("recovery initramfs, {:.1} MiB", mib(initramfs)), &made.initramfs);
    Ok(made)
}

/// Digest of everything the archive depends on, to tell whether it must be built again.
fn inputs_digest(content: &Content<'_>, paths: &Paths) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for own in
        [include_str!("initramfs.rs"), include_str!("initramfs/archive.rs"), include_str!("initramfs/modules.rs")]
    {
        hasher.update(own.as_bytes());
    }
    hasher.update(&std::fs::read(content.init)?);
    hasher.update(content.kernel.release.as_bytes());
    hasher.update(&std::fs::read(paths.root.join("initramfs/modules.toml"))?);
    for file in &content.files {
        hasher.update(file.path.as_bytes());
        hasher.update(&file.content);
    }
    Ok(hasher.finalize().to_hex().to_string())
}
