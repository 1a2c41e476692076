//! Publishing as an OSTree repository: static files from which plain `ostree pull` gets the commit of an image.
//!
//! The commit is taken from the image itself, not made again, so that the repository has what the robots have. The
//! order lets clients ask at any time: objects, signature and delta first, then the ref, then the summary.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::host_packages::{Need, ensure_installed, is_root};
use crate::image::Description;
use crate::image::ostree::ostree;
use crate::invocation::program;
use crate::paths::{Paths, create_dir};
use crate::step::{output, produced, run as run_tool, step};

/// Options of `publish-ostree`.
#[derive(Debug, clap::Args)]
pub struct PublishOstreeArgs {
    /// The image, with its description beside it. Default: system.img, where everything built goes.
    #[arg(long, value_name = "FILE.img")]
    image: Option<PathBuf>,
    /// The repository, made if it is missing; any static server can serve it. Default: that of the project, or ostree,
    /// where everything built goes.
    #[arg(long, value_name = "DIR")]
    pub into: Option<PathBuf>,
    /// Refs that the commit gets, each one of `ostree.branch` and `ostree.refs` of the recipe; repeat for several.
    /// Default: those of the project, or the branch.
    #[arg(long = "ref", value_name = "REF")]
    pub refs: Vec<String>,
    /// Key of GnuPG to sign the commit and the summary with: clients then check both. Default: that of the project.
    #[arg(long, value_name = "KEY")]
    pub gpg_key: Option<String>,
    /// Directory of GnuPG's keys. Default: that of the project, or GnuPG's own.
    #[arg(long, value_name = "DIR", requires = "gpg_key")]
    pub gpg_home: Option<PathBuf>,
}

/// Publishes as the command line says.
///
/// # Errors
/// As [`publish`], and when the image has no description.
pub fn run(args: PublishOstreeArgs, paths: &Paths, assume_yes: bool) -> Result<()> {
    let PublishOstreeArgs { image, into, refs, gpg_key, gpg_home } = args;
    let mut needs = vec![Need::OstreeRepository];
    needs.extend(gpg_key.is_some().then_some(Need::OstreeSigning));
    ensure_installed(&needs, assume_yes)?;
    let image = image.unwrap_or_else(|| paths.dist().join("system.img"));
    ensure!(
        image.is_file(),
        "there is no image {}: make it with `{} image`, or name one with --image",
        image.display(),
        program()
    );
    let description = Description::beside(&image)?;
    eprintln!("  image {}: {} {}", image.display(), description.name, description.version);
    let refs = if refs.is_empty() { vec![description.ostree_ref.clone()] } else { refs };
    let repository = into.unwrap_or_else(|| paths.dist().join("ostree"));
    let signer = gpg_key.map(|key| Signer { key, home: gpg_home });
    if signer.is_none() {
        eprintln!(
            "  without --gpg-key, or ostree.gpg_key in a project file, nothing is signed: clients can only trust the way \
             to the server"
        );
    }
    let published = publish(&image, &description.ostree_commit, &refs, &repository, signer.as_ref())?;
    for (name, previous) in refs.iter().zip(&published.deltas_from) {
        match previous {
            Some(previous) => eprintln!("  {name} has a delta from {previous}, which it was before"),
            None => eprintln!("  {name} has no delta: it was not there before, or was this commit already"),
        }
    }
    produced(&format!("OSTree repository with commit {}", description.ostree_commit), &repository);
    Ok(())
}

/// Key that signs commits and summaries.
#[derive(Debug, Clone)]
pub struct Signer {
    /// Name or number of the key, as GnuPG knows it.
    pub key: String,
    /// Directory of GnuPG's keys, if it is not its own.
    pub home: Option<PathBuf>,
}

impl Signer {
    fn options(&self) -> Vec<String> {
        let mut options = vec![format!("--gpg-sign={}", self.key)];
        options.extend(self.home.as_ref().map(|home| format!("--gpg-homedir={}", home.display())));
        options
    }
}

/// Result of a publication.
#[derive(Debug, PartialEq, Eq)]
pub struct PublishedCommit {
    /// For each ref: the commit that it was before, from which there is a delta now.
    pub deltas_from: Vec<Option<String>>,
}

/// Puts the commit of an image into a repository under these refs, with a static delta from what each was before, and
/// renews the summary. A publication that was cut is simply repeated.
///
/// # Errors
/// When the image does not have the commit, when a ref is none that the commit is bound to, and with ostree's words.
pub fn publish(
    image: &Path,
    commit: &str,
    refs: &[String],
    repository: &Path,
    signer: Option<&Signer>,
) -> Result<PublishedCommit> {
    ensure!(is_root(), "the image is mounted to take the commit from it, which needs root; run this with sudo");
    ensure!(image.is_file(), "the image {} is missing", image.display());
    prepare(repository)?;
    step("take the commit from the image", || take(image, commit, repository))?;
    check_refs(repository, commit, refs)?;
    if let Some(signer) = signer {
        sign(repository, commit, signer)?;
    }
    let mut deltas_from = Vec::new();
    for name in refs {
        let before = before(repository, name).filter(|before| before != commit);
        let made = before.filter(|before| {
            // The commit before may be gone in part, by a `prune` or a damaged disk: clients then fetch single objects.
            let made = step(&format!("static delta for {name}"), || delta(repository, before, commit));
            made.inspect_err(|error| eprintln!("  {name} gets no delta from {before}: {error:#}")).is_ok()
        });
        output(ostree(repository).args(["refs", "--force", "--create", name, commit]))?;
        deltas_from.push(made);
    }
    let mut summary = ostree(repository);
    summary.args(["summary", "--update"]).args(signer.map(Signer::options).unwrap_or_default());
    output(&mut summary).context("renew the summary")?;
    if signer.is_none() {
        // A signature of an earlier summary would make clients refuse this one.
        let signature = repository.join("summary.sig");
        match std::fs::remove_file(&signature) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("delete {}", signature.display()));
            }
            _ => {}
        }
    }
    Ok(PublishedCommit { deltas_from })
}

/// Names that ostree gives what it makes first in a repository.
const OF_A_REPOSITORY: &[&str] = &[".lock", "config", "extensions", "objects", "refs", "state", "tmp"];

/// Makes the repository, or completes one whose beginning was cut. A directory of something else, or a repository in a
/// form that no static server can serve, is refused.
fn prepare(repository: &Path) -> Result<()> {
    let shown = repository.display();
    let config = repository.join("config");
    let text = match std::fs::read_to_string(&config) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", config.display())),
    };
    let mode = text.lines().find_map(|line| line.trim().strip_prefix("mode")?.trim().strip_prefix('=')).map(str::trim);
    if let Some(mode) = mode {
        ensure!(
            ["archive", "archive-z2"].contains(&mode),
            "{shown} is an OSTree repository of the mode {mode}, which no server of static files can serve; publish into \
             another directory"
        );
        return Ok(());
    }
    create_dir(repository)?;
    for entry in std::fs::read_dir(repository).with_context(|| format!("list {shown}"))? {
        let name = entry.with_context(|| format!("list {shown}"))?.file_name();
        ensure!(
            OF_A_REPOSITORY.iter().any(|known| name == *known),
            "{shown} is no OSTree repository: it has {} in it; publish into a directory of its own",
            name.display()
        );
    }
    // Of a beginning that was cut in the middle of the file.
    match std::fs::remove_file(&config) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("delete {}", config.display()));
        }
        _ => {}
    }
    output(ostree(repository).args(["init", "--mode=archive"])).map(drop)
}

/// Mounts the image where no other process sees it, and copies the commit, with every object checked on the way.
fn take(image: &Path, commit: &str, repository: &Path) -> Result<()> {
    let mount = tempfile::tempdir().context("create a directory to mount the image on")?;
    let script = "set -e; mount -o ro,loop,noload \"$1\" \"$2\"; \
                  exec ostree --repo=\"$3\" pull-local --untrusted \"$2/ostree/repo\" \"$4\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    command.arg(image).arg(mount.path()).arg(repository).arg(commit);
    run_tool("ostree pull-local", &mut command)
        .with_context(|| format!("take the commit {commit} from {}", image.display()))
}

/// Clients refuse a ref that the commit was not made for, so it is refused here, where it can be mended.
fn check_refs(repository: &Path, commit: &str, refs: &[String]) -> Result<()> {
    let bound = output(ostree(repository).args(["show", "--print-metadata-key=ostree.ref-binding", commit]))?;
    let bound = bindings(&bound);
    for name in refs {
        ensure!(
            bound.contains(name),
            "the commit was not made for the ref {name}, which clients would refuse, but for {}; name it in ostree.refs \
             of the recipe and build the image again",
            bound.join(", ")
        );
    }
    Ok(())
}

/// Reads ostree's list of refs, such as `['a/b', 'c']`.
fn bindings(list: &str) -> Vec<String> {
    let list = list.trim().trim_start_matches("@as ").trim_matches(['[', ']']);
    let names = list.split(',').map(|name| name.trim().trim_matches('\'').to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

/// Signs the commit beside it, which leaves its digest as it is. A signature of this key is not added twice.
fn sign(repository: &Path, commit: &str, signer: &Signer) -> Result<()> {
    let home = signer.home.as_ref().map(|home| format!("--gpg-homedir={}", home.display()));
    let mut delete = ostree(repository);
    delete.args(["gpg-sign", "--delete"]).args(&home).args([commit, &signer.key]);
    // It fails where there is nothing to delete.
    let _ = output(&mut delete);
    let mut command = ostree(repository);
    command.arg("gpg-sign").args(&home).args([commit, &signer.key]);
    output(&mut command).map(drop).with_context(|| format!("sign the commit with the key {}", signer.key))
}

fn before(repository: &Path, name: &str) -> Option<String> {
    output(ostree(repository).args(["rev-parse", name])).ok().map(|commit| commit.trim().to_owned())
}

fn delta(repository: &Path, from: &str, to: &str) -> Result<()> {
    let mut command = ostree(repository);
    command.args(["static-delta", "generate", "--if-not-exists"]);
    run_tool("ostree static-delta", command.arg(format!("--from={from}")).arg(format!("--to={to}")))
}

#[cfg(test)]
mod tests {
    use super::{bindings, prepare};

    #[test]
    fn a_directory_that_is_something_else_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let repository = directory.path();
        std::fs::write(repository.join("index.html"), "").unwrap();
        let error = prepare(repository).unwrap_err().to_string();
        assert!(error.contains("it has index.html in it"), "{error}");
        for mode in ["bare", "bare-user-only"] {
            std::fs::write(repository.join("config"), format!("[core]\nrepo_version=1\nmode={mode}\n")).unwrap();
            let error = prepare(repository).unwrap_err().to_string();
            assert!(error.contains(&format!("of the mode {mode}")), "{error}");
        }
        std::fs::write(repository.join("config"), "[core]\nrepo_version=1\nmode = archive-z2\n").unwrap();
        prepare(repository).unwrap();
    }

    #[test]
    fn the_list_of_refs_is_read() {
        assert_eq!(bindings("['a/b/stable', 'c']\n"), ["a/b/stable", "c"]);
        assert!(bindings("@as []\n").is_empty());
    }
}
