//! A look at the whole project before long work: what would fail after minutes, or only on a machine.
//!
//! Each part is checked, whatever became of the one before, so that a person mends all in one go. `release`, `media`
//! and `disk` refuse the same for the part that they use.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use reflash::release::layout::Role;
use reflash::release::rollout::rollout_path;

use crate::explained::{explained, is_there};
use crate::invocation::{program, quoted};
use crate::paths::Paths;
use crate::project::{self, Project};
use crate::publish::location;
use crate::recipe::Recipe;
use crate::release::{self, OfferedTo, Spec, history};
use crate::{disk, image, init, keygen, layout_room, site, trusted};

/// Checks the project.
///
/// # Errors
/// When there is no project, or something of it is wrong; all of it was said by then.
pub fn run(project: Option<&Project>, paths: &Paths) -> Result<()> {
    let project = project.with_context(|| {
        let (name, program) = (project::FILE, program());
        format!("there is no {name} here or in a directory above: `{program} init` makes one, --project names one")
    })?;
    let image = paths.dist().join("system.img");
    let parts: [(&str, Result<String>); 8] = [
        ("project file", check_project(project)),
        ("recipe", check_recipe(project)),
        ("site", check_site(project)),
        ("layout", check_layout(project, &image)),
        ("public keys", check_public(project)),
        ("secret key", check_secret(project)),
        ("OSTree repository", check_ostree(project)),
        ("next release", check_next(project, paths, &image)),
    ];
    let (count, mut wrong) = (parts.len(), Vec::<(&str, String)>::new());
    for (name, found) in parts {
        let error = match found {
            Ok(text) => {
                eprintln!("  {name}: {text}");
                continue;
            }
            Err(error) => format!("{:#}", explained(error, &[])),
        };
        // One file is read for several parts: what is wrong with it is one fault.
        if let Some((first, _)) = wrong.iter().find(|(_, known)| *known == error) {
            eprintln!("  {name}: not checked, since the {first} must be right first");
            continue;
        }
        eprintln!("  {name}: WRONG: {error}");
        wrong.push((name, error));
    }
    ensure!(
        wrong.is_empty(),
        "{} of {count} parts of the project {} wrong",
        wrong.len(),
        if wrong.len() == 1 { "is" } else { "are" }
    );
    Ok(())
}

const ABSENT: &str = "not given";

fn check_project(project: &Project) -> Result<String> {
    let place = &project.publish;
    if place.to.is_some() {
        location(place.to.clone(), place.endpoint.clone(), place.region.clone()).context("publish.to")?;
    }
    Ok(format!("product {}, channel {}, hardware {}", project.product, project.channel, project.hardware.join(", ")))
}

fn check_recipe(project: &Project) -> Result<String> {
    let Some(path) = &project.recipe else { return Ok(ABSENT.into()) };
    let recipe = Recipe::load(path)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    image::named::check(&recipe, directory).with_context(|| path.display().to_string())?;
    // The image before is read when the next one is built: here only the recipe's own file can be wrong.
    image::accounts::KeptNumbers::gather(&recipe, directory, None)?;
    let people = image::named::without_keys(&recipe, directory)
        .map_or_else(String::new, |file| format!("; NOBODY CAN LOG IN by ssh: {} has no key", file.display()));
    let distribution = &recipe.distribution;
    // A source has none. A name that is newer than this builder, or of another distribution, may be right.
    let suite = match distribution.suite.is_empty() || init::is_known_suite(&distribution.suite) {
        true => String::new(),
        false => format!("; distribution.suite: {:?} is no code name that is known here", distribution.suite),
    };
    Ok(format!("{} {}, {} packages{suite}{people}", recipe.name, recipe.version, distribution.packages.len()))
}

fn check_site(project: &Project) -> Result<String> {
    if project.site.is_none() {
        return Ok(ABSENT.into());
    }
    let checked = site::read(project.site.as_deref(), project.assets.as_deref())?.check()?;
    checked.check_fit(&project.product, &project.hardware, &project.channel)?;
    checked.check_files(&project.disk.files)?;
    Ok(format!("releases from {}", checked.config.urls.join(", ")))
}

fn check_layout(project: &Project, image: &Path) -> Result<String> {
    let Some(path) = &project.layout else { return Ok(ABSENT.into()) };
    let layout = disk::read_layout(path)?;
    let image_bytes = image::Description::beside(image).map_or(0, |image| image.image_bytes);
    let disk_mib = layout_room::smallest_disk_mib(&layout, image_bytes).with_context(|| path.display().to_string())?;
    let system = layout.partitions.iter().find(|partition| partition.role == Role::System);
    let system = system.map_or_else(String::new, |system| system.size.to_string());
    // What `disk` makes may be smaller: most projects make none, and `disk` refuses it.
    let made_mib = project.disk.size_mib.unwrap_or(disk::DEFAULT_BYTES >> 20);
    let too_small = match made_mib < disk_mib {
        true => format!("; `disk` would refuse its {made_mib} MiB (disk.size_mib)"),
        false => String::new(),
    };
    Ok(format!(
        "{} partitions, {system} for the system, for disks of {disk_mib} MiB or more{too_small}",
        layout.partitions.len()
    ))
}

fn check_public(project: &Project) -> Result<String> {
    trusted::of(&project.keys.public)?;
    Ok(format!("{} trusted", project.keys.public.len()))
}

fn check_secret(project: &Project) -> Result<String> {
    let Some(path) = &project.keys.secret else { return Ok(ABSENT.into()) };
    if !is_there(path)? {
        return Ok(format!("{} is not there; without it, nothing can be released here", path.display()));
    }
    let mode = path.metadata().with_context(|| format!("look at {}", path.display()))?.permissions().mode();
    let name = path.display().to_string();
    ensure!(mode & 0o077 == 0, "{name} can be read by others: chmod 600 {}", quoted(&name));
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut git = Command::new("git");
    git.current_dir(directory).args(["ls-files", "--error-unmatch"]).arg(path);
    // Without git, or outside of a repository, nothing is tracked.
    let tracked = git.output().is_ok_and(|output| output.status.success());
    ensure!(
        !tracked,
        "{} is in git, where others read it: make a new key pair, and leave that out of git",
        path.display()
    );
    let Some(number) = keygen::secret_number(path)? else {
        return Ok("locked, so that it was not compared with the public keys".into());
    };
    for public in &project.keys.public {
        if keygen::key_number(&keygen::load_public(public)?)? == number {
            return Ok(format!("fits {}", public.display()));
        }
    }
    bail!("{} is the secret half of none of the public keys: machines would refuse its releases", path.display())
}

fn check_ostree(project: &Project) -> Result<String> {
    let settings = &project.ostree;
    if let Some(path) = &project.recipe {
        let bound = Recipe::load(path)?.ostree;
        let unbound = settings.refs.iter().find(|name| **name != bound.branch && !bound.refs.contains(name));
        if let Some(name) = unbound {
            bail!("clients would refuse the ref {name}: add it to ostree.refs of {}", path.display());
        }
    }
    let Some(key) = &settings.gpg_key else { return Ok("unsigned, if there is one".into()) };
    let mut gpg = Command::new("gpg");
    gpg.args(["--batch", "--list-secret-keys"]).arg(key);
    gpg.envs(settings.gpg_home.as_ref().map(|home| ("GNUPGHOME", home)));
    // As with the secret key of releases, a host without it, or without GnuPG, only cannot publish.
    let there = gpg.output().is_ok_and(|output| output.status.success());
    Ok(if there { format!("signed by {key}") } else { format!("GnuPG has no secret key {key}: cannot be signed here") })
}

fn check_next(project: &Project, paths: &Paths, image: &Path) -> Result<String> {
    let tree = project.release.tree.clone().unwrap_or_else(|| paths.dist().join("release"));
    let described = image::Description::beside(image).ok();
    if let (Some(recipe), Some(described)) = (&project.recipe, &described) {
        described.check_recipe(recipe)?;
    }
    let spec = Spec {
        product: project.product.clone(),
        hardware: project.hardware.clone(),
        channel: project.channel.clone(),
        version: described.as_ref().map_or_else(|| "0".to_owned(), |image| image.version.clone()),
        serial: None,
        image: image.to_owned(),
        ostree: None,
        files: Vec::new(),
        layout: project.layout.as_deref().map(disk::read_layout).transpose()?,
        chunk_bytes: None,
        level: release::DEFAULT_LEVEL,
        created_unix_s: None,
        allow: Vec::new(),
    };
    let number = match (&project.keys.secret, project.keys.public.first()) {
        (Some(secret), _) if is_there(secret)? => keygen::secret_number(secret)?,
        (_, Some(public)) => Some(keygen::key_number(&keygen::load_public(public)?)?),
        (_, None) => None,
    };
    let is_rolled_out = tree.join(rollout_path(&project.channel)).exists();
    let to = if is_rolled_out { OfferedTo::NobodyYet } else { OfferedTo::Everybody };
    // A locked key is asked for its password when it signs, not here.
    let allow = if number.is_some() { Vec::new() } else { vec![release::Allow::OtherKey] };
    release::refuse_early(to, &Spec { allow, ..spec }, &number.unwrap_or_default(), &tree)?;
    let made = described.map_or("no image yet".to_owned(), |image| format!("image {} {}", image.name, image.version));
    let past = history::releases(&tree, &project.channel)?;
    let offered = past.iter().find(|past| past.offered);
    let offered = match offered {
        None => "nothing is offered yet".to_owned(),
        Some(_) if is_rolled_out => format!("a roll-out has who is offered what: `{} rollout status`", program()),
        Some(past) => format!("{} (serial {}) is offered", past.manifest.version, past.manifest.serial),
    };
    Ok(format!("{made}; {offered}"))
}
