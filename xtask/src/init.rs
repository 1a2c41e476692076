//! A first project, made by asking or from options: everything that the chain from recipe to boot medium needs.
//!
//! Nothing that exists is overwritten: a person who starts in a directory with files of their own loses none of them.

mod answers;
mod ask;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::host_packages::in_ci;
use crate::invocation::program;
use crate::paths::create_dir;
use crate::project::{self, Project};
use crate::site::SiteTexts;
use crate::step::produced;
use crate::{embedded, keygen};

use answers::{Answers, Host};
pub use answers::{InitArgs, is_known_suite};

const PROJECT: &str = include_str!("init/project.toml");
const SITE: &str = include_str!("init/site.toml");
const RECIPE: &str = include_str!("init/recipe.toml");
const README: &str = include_str!("init/readme.md");

/// Name of the configuration of the machines.
const SITE_FILE: &str = "site.toml";

/// What is never put into git: what is built, and what only builds it.
const IGNORED: &str = "/dist/\n/.reflash-work/\n/keys/*.key\n";

/// Size of the system partition in the first layout: the example's suits the demonstration, and a robot's image grows.
const SYSTEM_SIZE: &str = "size = \"2GiB\"";
/// That size in the examples.
const EXAMPLE_SIZE: &str = "size = \"768MiB\"";

/// One file of the first project.
struct NewFile {
    what: &'static str,
    name: &'static str,
    text: String,
}

/// Makes the project as the command line says, and asks a person for what it leaves out.
///
/// # Errors
/// When a file exists, an answer cannot be used, or something cannot be written.
pub fn run(args: &InitArgs, assume_yes: bool) -> Result<()> {
    let host = Host::look();
    let answers = Answers::collect(args, &host, &mut ask::terminal(assume_yes || in_ci()))?;
    let directory = args.directory.clone().unwrap_or_else(|| PathBuf::from("."));
    create(&directory, &answers)?;
    let project = Project::load(&directory.join(project::FILE)).context("read the new project")?;
    let keys = directory.join("keys");
    if keygen::KeyFiles::within(&keys).secret.exists() {
        eprintln!("  the key pair in {} is taken", keys.display());
    } else {
        let made = if args.password { keygen::generate_with_password(&keys)? } else { keygen::generate(&keys, None)? };
        produced("secret key, enough to publish releases (keep a copy in a safe place)", &made.secret);
        produced("public key", &made.public);
    }
    match answers.ssh_key.as_deref().and_then(|keys| keys.lines().next()?.split_whitespace().nth(2)) {
        _ if answers.ssh_key.is_none() => {
            let file = directory.join("files/authorized_keys");
            eprintln!("  nobody can log in yet: put a public ssh key into {}", file.display());
        }
        Some(whose) => eprintln!("  the ssh key of {whose} may log in"),
        None => {}
    }
    if args.urls.is_empty() {
        let urls = answers.urls.join(", ");
        eprintln!("  releases come from {urls}, for a bench: robots outside need one that stays, in {SITE_FILE}");
    }
    eprintln!("  product {} is ready: `{} check` in {}", project.product, program(), directory.display());
    Ok(())
}

/// Writes every file but the keys, or none.
fn create(directory: &Path, answers: &Answers) -> Result<()> {
    let files = files(directory, answers)?;
    let site = files.iter().find(|file| file.name == SITE_FILE).map(|file| file.text.clone());
    // What was typed is checked as a machine reads it, while nothing is written yet.
    SiteTexts::of_text(SITE_FILE, site).check()?;
    for file in &files {
        let path = directory.join(file.name);
        ensure!(!path.exists(), "{} exists, and is never overwritten: nothing was written", path.display());
    }
    for file in &files {
        let path = directory.join(file.name);
        create_dir(path.parent().unwrap_or(directory))?;
        let mut options = OpenOptions::new();
        let written = options.write(true).create_new(true).mode(0o644).open(&path);
        written
            .and_then(|mut opened| opened.write_all(file.text.as_bytes()))
            .with_context(|| format!("create {}", path.display()))?;
        produced(file.what, &path);
    }
    if !files.iter().any(|file| file.name == ".gitignore") {
        eprintln!("  add to .gitignore:\n{}", IGNORED.trim_end());
    }
    Ok(())
}

fn files(directory: &Path, answers: &Answers) -> Result<Vec<NewFile>> {
    let new = |what, name, text: String| NewFile { what, name, text };
    let layout = if answers.mbr { embedded::LAYOUT_MBR } else { embedded::LAYOUT };
    let layout = layout.replace(EXAMPLE_SIZE, SYSTEM_SIZE);
    let key = answers.ssh_key.clone().unwrap_or_else(|| "# One public ssh key a line.\n".to_owned());
    let mut files = vec![
        new("project", project::FILE, answers.fill(PROJECT)?),
        new("recipe", "recipe.toml", answers.fill(RECIPE)?),
        new("layout", "layout.toml", layout),
        new("configuration of the machines", SITE_FILE, answers.fill(SITE)?),
        new("ssh keys", "files/authorized_keys", key),
        // Beside the key, so that it holds in a repository whose own .gitignore is not touched.
        new("what git leaves out of keys", "keys/.gitignore", "*.key\n".to_owned()),
    ];
    let readme = if directory.join("README.md").exists() { "REFLASH.md" } else { "README.md" };
    files.push(new("how it goes on", readme, answers.fill(README)?));
    if !directory.join(".gitignore").exists() {
        files.push(new("what git leaves out", ".gitignore", IGNORED.to_owned()));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::answers::{Answers, Host, InitArgs};
    use super::{SYSTEM_SIZE, create};
    use crate::disk::read_layout;
    use crate::project::{self, Project};
    use crate::recipe::Recipe;
    use crate::site;

    fn answers(args: &InitArgs) -> Answers {
        Answers::collect(args, &Host::default(), &mut |_, default| Ok(default.to_owned())).unwrap()
    }

    /// Whatever was answered, the project can be used as it was written.
    #[test]
    fn what_is_written_is_a_project_without_a_fault() {
        for (product, hardware, mbr, suite) in [
            ("arm", &["NUC11*"][..], false, "bookworm"),
            ("Acme.leg-2", &["OptiPlex \"7090\"", "To be \\ filled"], true, "noble"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let args = InitArgs {
                product: Some(product.into()),
                hardware: hardware.iter().map(|name| (*name).to_owned()).collect(),
                urls: vec!["https://a.example/r".into(), "http://192.0.2.1:8080".into()],
                mbr,
                suite: Some(suite.into()),
                ..InitArgs::default()
            };
            let answers = answers(&args);
            create(directory.path(), &answers).unwrap();
            let project = Project::load(&directory.path().join(project::FILE)).unwrap();
            assert_eq!((project.product.as_str(), &project.hardware), (product, &args.hardware));
            let recipe = Recipe::load(project.recipe.as_deref().unwrap()).unwrap();
            assert_eq!(recipe.name, product);
            let layout = project.layout.unwrap();
            assert!(std::fs::read_to_string(&layout).unwrap().contains(SYSTEM_SIZE));
            read_layout(&layout).unwrap().place(project.disk.size_mib.unwrap() << 20).unwrap();
            let checked = site::read(project.site.as_deref(), None).unwrap().check().unwrap();
            checked.check_fit(&project.product, &project.hardware, &project.channel).unwrap();
            assert_eq!(checked.config.urls.len(), 2);
            for entry in walkdir::WalkDir::new(directory.path()) {
                let path = entry.unwrap().into_path();
                if path.is_file() {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let left = text.split('@').skip(1).step_by(2).any(|word| {
                        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
                    });
                    assert!(!left, "{}: {text}", path.display());
                }
            }
        }
    }

    #[test]
    fn an_address_that_no_machine_can_use_is_refused_before_anything_is_written() {
        let args = InitArgs { product: Some("arm".into()), urls: vec!["example.com/r".into()], ..InitArgs::default() };
        let directory = tempfile::tempdir().unwrap();
        let error = format!("{:#}", create(directory.path(), &answers(&args)).unwrap_err());
        assert!(error.contains("release.urls") && error.contains("http://"), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_is_written_beside_it() {
        let args = InitArgs { product: Some("arm".into()), urls: vec!["http://a".into()], ..InitArgs::default() };
        let answers = answers(&args);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("layout.toml"), "mine").unwrap();
        let error = create(directory.path(), &answers).unwrap_err().to_string();
        assert!(error.contains("layout.toml exists") && error.contains("nothing was written"), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        // What a repository mostly has already is no obstacle.
        let directory = tempfile::tempdir().unwrap();
        for name in ["README.md", ".gitignore"] {
            std::fs::write(directory.path().join(name), "mine").unwrap();
        }
        create(directory.path(), &answers).unwrap();
        for name in ["README.md", ".gitignore"] {
            assert_eq!(std::fs::read_to_string(directory.path().join(name)).unwrap(), "mine");
        }
        assert!(directory.path().join("REFLASH.md").is_file());
        assert_eq!(std::fs::read_to_string(directory.path().join("keys/.gitignore")).unwrap(), "*.key\n");
    }
}
