//! Packages of the recipe, installed in a source by its own apt.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::super::archives::{ArchiveRecord, quoted};
use super::super::bootstrap;
use super::super::container::Container;
use super::super::files::Temporary;
use super::super::within::{followed, inside};
use super::requirements;
use crate::mirror;
use crate::recipe::Distribution;
use crate::step;

/// Installs the packages in the tree of `tarball`, which is packed again. Returns the date of the archives that they
/// come from, which `record` describes.
///
/// # Errors
/// With the output of apt, or with what the system lacks even with the packages.
pub fn add(distribution: &Distribution, tarball: &Path, scratch: &Path, record: &ArchiveRecord) -> Result<u64> {
    let tree = scratch.join("tree");
    bootstrap::unpack(tarball, &tree)?;
    bootstrap::set_up_apt(distribution, &tree)?;
    let lines = |lines: &[String]| lines.iter().map(|line| format!("{line};\n")).collect::<String>();
    bootstrap::write(
        &tree.join("etc/apt/apt.conf.d/99mmdebstrap"),
        &(lines(&mirror::apt_options()) + "APT::Install-Recommends \"false\";\n"),
    )?;
    let hooks = record.hooks(scratch)?;
    let run = |hook: &str| step::run("packages", Command::new("sh").args(["-ec", &record.line(hook, &quoted(&tree))]));
    run(&hooks[0])?;
    let container = Container::probe(&tree);
    {
        let _temporary = Temporary::put(&tree)?;
        let install = "apt-get update && apt-get -y install \"$@\"";
        let mut command = container.command(&tree, 1);
        command.args(["/bin/sh", "-ec", install, "sh"]).args(&distribution.packages);
        step::run("packages", &mut command)?;
    }
    requirements::check(&|path| inside(&tree, Path::new(path)).symlink_metadata().is_ok(), kernels(&tree))?;
    run(&hooks[1])?;
    let date = record.read()?.archive_time().context("find out of what day the packages are")?;
    delete_downloads(&tree)?;
    bootstrap::pack(&tree, tarball, "packages")?;
    Ok(date)
}

fn kernels(tree: &Path) -> usize {
    let versions = fs::read_dir(followed(tree, Path::new("usr/lib/modules"))).into_iter().flatten().flatten();
    versions.filter(|version| version.path().join("kernel").is_dir()).count()
}

/// Deletes what apt downloaded.
fn delete_downloads(tree: &Path) -> Result<()> {
    let script = "rm -rf \"$1\"/*.deb";
    let archives = followed(tree, Path::new("var/cache/apt/archives"));
    step::run("packages", Command::new("sh").args(["-c", script, "sh"]).arg(archives))
}
