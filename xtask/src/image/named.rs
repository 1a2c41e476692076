//! What a recipe names beside itself, looked at before the long work: what is missing or cannot work would otherwise be
//! found once all packages are installed, or on a robot.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use reflash::machine::config::Layer;

use super::mounts;
use crate::explained::is_there;
use crate::recipe::{FileEntry, Recipe};
use crate::toml_text;

/// Path of the agent's configuration in the image.
const OWN_SETTINGS: &str = "/etc/reflash/reflash.toml";
/// What the path of a file with public ssh keys has in it.
const AUTHORIZED_KEYS: &str = "authorized_keys";

/// Checks what the recipe in `directory` names.
///
/// # Errors
/// When a file is not there, when a robot would leave out a part of the configuration that the image brings, or when a
/// private key would get into the image.
pub fn check(recipe: &Recipe, directory: &Path) -> Result<()> {
    for source in recipe.files.iter().filter_map(|file| file.source.as_ref()) {
        let source = directory.join(source);
        ensure!(is_there(&source)?, "the recipe names {}, which is not there", source.display());
        ensure!(
            source.is_file(),
            "the recipe names {}, which is not a file: [[files]] puts single files into the image",
            source.display()
        );
    }
    let system = recipe.source.iter().flat_map(|source| source.rootfs.iter().chain(&source.lxd));
    for source in recipe.ansible.iter().map(|ansible| &ansible.playbook).chain(system) {
        let source = directory.join(source);
        ensure!(is_there(&source)?, "the recipe names {}, which is not there", source.display());
    }
    recipe.files.iter().filter(|file| file.path == Path::new(OWN_SETTINGS)).try_for_each(|file| {
        let text = text(file, directory)?;
        let named = "the file /etc/reflash/reflash.toml of the recipe";
        // A robot goes on without what it cannot use, so that a misspelt health check would be none.
        Layer::parse(named, &text).map_err(toml_text::of_agent)?;
        let problem = Layer::parse_usable(named, &text)?.problems.into_iter().next();
        problem.map_or(Ok(()), |problem| Err(problem).context(named))
    })?;
    for file in recipe.files.iter().filter(|file| file.path == Path::new("/etc/fstab")) {
        mounts::fault(&text(file, directory)?).map_or(Ok(()), |fault| bail!(fault))?;
    }
    for file in recipe.files.iter().filter(|file| has_people(file)) {
        ensure!(
            !text(file, directory)?.contains("PRIVATE KEY-----"),
            "{} would get a private ssh key, and every robot has the image: put the public half there, from the file \
             that ends in .pub",
            file.path.display()
        );
    }
    Ok(())
}

/// Returns the services of `boot.health_units` that no unit file in the tree has the name of. It is no error, since a
/// generator may make them on the robot, as podman does.
///
/// # Errors
/// When the image's configuration cannot be read.
pub fn missing_units(recipe: &Recipe, directory: &Path, tree: &Path) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for file in recipe.files.iter().filter(|file| file.path == Path::new(OWN_SETTINGS)) {
        let settings: toml::Table = toml::from_str(&text(file, directory)?)?;
        let names = settings.get("boot").and_then(|boot| boot.get("health_units")).and_then(toml::Value::as_array);
        let names = names.into_iter().flatten().filter_map(toml::Value::as_str);
        missing.extend(names.filter(|name| !name.contains('*') && !has_unit(tree, name)).map(str::to_owned));
    }
    Ok(missing)
}

/// Whether a unit file is the one of a service, or the template of it.
fn has_unit(tree: &Path, name: &str) -> bool {
    let name = if name.contains('.') { name.to_owned() } else { format!("{name}.service") };
    let template = name.split_once('@').map(|(before, _)| format!("{before}@.service"));
    let names: Vec<String> = std::iter::once(name).chain(template).collect();
    ["etc/systemd/system", "usr/lib/systemd/system", "usr/local/lib/systemd/system"]
        .iter()
        .any(|place| names.iter().any(|name| tree.join(place).join(name).symlink_metadata().is_ok()))
}

/// Returns the file that is to have the ssh keys of people, if no such file of the recipe has any.
#[must_use]
pub fn without_keys(recipe: &Recipe, directory: &Path) -> Option<PathBuf> {
    let mut files = recipe.files.iter().filter(|file| has_people(file));
    let is_empty = |file: &FileEntry| {
        let text = text(file, directory).unwrap_or_default();
        text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#'))
    };
    let first = files.next()?;
    let empty = is_empty(first) && files.all(is_empty);
    empty.then(|| first.source.as_ref().map_or_else(|| first.path.clone(), |source| directory.join(source)))
}

/// Warns when nobody could log in by ssh to what is made of the recipe. What is wrong with the recipe itself is said by
/// the commands that build from it.
pub fn warn_without_keys(recipe: Option<&Path>) {
    let without = recipe.and_then(|path| {
        let directory = path.parent().unwrap_or(Path::new("."));
        without_keys(&Recipe::load(path).ok()?, directory)
    });
    if let Some(file) = without {
        eprintln!("  nobody will be able to log in by ssh: {} has no key", file.display());
    }
}

fn has_people(file: &FileEntry) -> bool {
    file.path.to_string_lossy().contains(AUTHORIZED_KEYS)
}

fn text(file: &FileEntry, directory: &Path) -> Result<String> {
    let Some(source) = &file.source else { return Ok(file.text.clone().unwrap_or_default()) };
    let source = directory.join(source);
    let bytes = fs::read(&source).with_context(|| format!("read {}", source.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{check, missing_units, without_keys};
    use crate::recipe::Recipe;
    use std::path::Path;

    fn recipe(more: &str) -> Recipe {
        let text = "name = 'x'\nversion = '1'\n[distribution]\nsuite = 'bookworm'\n[ostree]\nbranch = 'x/y'\n";
        Recipe::parse(&format!("{text}{more}")).unwrap()
    }

    fn file(path: &str, text: &str) -> String {
        format!("[[files]]\npath = '{path}'\ntext = '''{text}'''\n")
    }

    #[test]
    fn what_a_robot_would_leave_out_of_its_settings_is_refused() {
        let of = |text: &str| check(&recipe(&file("/etc/reflash/reflash.toml", text)), Path::new("/none"));
        of("[boot]\nhealth_units = [\"app.service\"]\n").unwrap();
        for (text, said) in [
            ("[boot]\nhealth_unit = [\"app.service\"]\n", "health_unit"),
            ("[boot]\nhealth_units = [\"a b\"]\n", "health_units"),
            ("[boot]\nsettle_s = 1000000\n", "settle_s"),
            ("[boot\n", "line 1"),
        ] {
            let error = format!("{:#}", of(text).unwrap_err());
            assert!(error.contains(said) && error.contains("/etc/reflash/reflash.toml"), "{text}: {error}");
        }
    }

    #[test]
    fn a_health_check_of_a_service_that_the_image_does_not_have_is_noticed() {
        let tree = tempfile::tempdir().unwrap();
        let units = tree.path().join("etc/systemd/system");
        std::fs::create_dir_all(&units).unwrap();
        std::fs::write(units.join("app.service"), "").unwrap();
        std::fs::write(units.join("driver@.service"), "").unwrap();
        let settings = "[boot]\nhealth_units = ['app', 'driver@arm.service', 'ap.service', 'other@*']\n";
        let settings = settings.replace('\'', "\"");
        let recipe = recipe(&file("/etc/reflash/reflash.toml", &settings));
        assert_eq!(missing_units(&recipe, Path::new("/none"), tree.path()).unwrap(), ["ap.service"]);
    }

    #[test]
    fn a_table_with_a_disk_that_a_robot_may_not_have_is_refused_before_the_long_work() {
        let of = |text: &str| check(&recipe(&file("/etc/fstab", text)), Path::new("/none"));
        of("/dev/sdb1 /data ext4 nofail\n").unwrap();
        let error = of("/dev/sdb1 /data ext4 defaults 0 2\n").unwrap_err().to_string();
        assert!(error.contains("/dev/sdb1 /data ext4 defaults 0 2; give each line the option nofail"), "{error}");
    }

    #[test]
    fn what_is_not_there_is_named_before_the_long_work() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("files")).unwrap();
        let of = |source: &str| {
            let recipe = recipe(&format!("[[files]]\npath = '/usr/bin/x'\nsource = '{source}'\n"));
            format!("{:#}", check(&recipe, directory.path()).unwrap_err())
        };
        assert!(of("files/app").contains("files/app, which is not there"));
        assert!(of("files").contains("not a file"));
    }

    #[test]
    fn a_robot_that_nobody_can_log_in_to_is_noticed_and_a_private_key_is_refused() {
        let path = "/etc/ssh/authorized_keys.d/pilot";
        let here = Path::new("/p");
        assert_eq!(without_keys(&recipe(""), here), None, "other ways in are not judged");
        assert_eq!(without_keys(&recipe(&file(path, "# none\n\n")), here).as_deref(), Some(Path::new(path)));
        let two = file(path, "") + &file("/root/.ssh/authorized_keys", "ssh-ed25519 AAAA me\n");
        assert_eq!(without_keys(&recipe(&two), here), None);
        let private = recipe(&file(path, "-----BEGIN OPENSSH PRIVATE KEY-----\n"));
        assert!(check(&private, here).unwrap_err().to_string().contains(".pub"));
    }
}
