//! Homes of users. A recipe's files are placed before its commands run, so a key for a user that a command makes lies
//! in a home that nobody owns yet, and `useradd` leaves a home alone that is there already: without its owner, and
//! without the files of /etc/skel. So both are made up for after the commands, and the order of the two does not
//! matter.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;

use super::files::{give, owner_of};
use super::within::{followed, inside, text};
use crate::recipe::{FileEntry, Recipe};

/// First number of a user that is a person, and gets the files of /etc/skel.
const FIRST_PERSON: u32 = 1000;
/// First number of a user that a package or a recipe makes. The users below it are Debian's own, and what the homes of
/// some hold (`/usr/games`, `/var/www`) should not belong to them.
const FIRST_OWNER: u32 = 100;
/// Number of `nobody`, who owns nothing.
const NOBODY: u32 = 65_534;
/// Directories that are no homes, whatever a user's line says.
const NO_HOMES: &[&str] =
    &["/usr", "/bin", "/sbin", "/lib", "/etc", "/dev", "/run", "/var/run", "/proc", "/sys", "/boot", "/tmp"];
/// Directories of a home that only its owner may see.
const PRIVATE: &[&str] = &[".ssh", ".gnupg"];

/// User with a home.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Home {
    path: PathBuf,
    user: u32,
    group: u32,
}

/// Gives the directories that were made for the recipe's files, and the files themselves, to the users in whose homes
/// they lie, and completes homes that were made. Called after the commands. What a command has given to somebody stays.
///
/// # Errors
/// When the owner of a file is not among the users of the image even now; or with the path that cannot be changed.
pub fn settle(recipe: &Recipe, tree: &Path, made: &[PathBuf]) -> Result<()> {
    let passwd = text(tree, "etc/passwd")?;
    let homes = homes(&passwd);
    for directory in made {
        if let Some(home) = home_of(&homes, directory) {
            settle_directory(tree, directory, home)
                .with_context(|| format!("give {} to its user", directory.display()))?;
        }
    }
    for file in &recipe.files {
        let belongs_to_root = inside(tree, &file.path)
            .symlink_metadata()
            .is_ok_and(|metadata| metadata.is_file() && (metadata.uid(), metadata.gid()) == (0, 0));
        if belongs_to_root && let Some(owner) = owner(tree, file, &homes)? {
            give(tree, file, owner)?;
        }
    }
    Ok(())
}

/// The user that a file of the recipe belongs to.
fn owner(tree: &Path, file: &FileEntry, homes: &[Home]) -> Result<Option<(u32, u32)>> {
    let Some(owner) = &file.owner else {
        let home = home_of(homes, &file.path);
        if home.is_none() && file.path.starts_with("/home") {
            eprintln!("  {} lies in the home of no user, and belongs to root", file.path.display());
        }
        return Ok(home.map(|home| (home.user, home.group)));
    };
    let found = owner_of(tree, owner)?;
    if found.is_none() {
        bail!(
            "{owner:?}, owner of {}, is not in /etc/passwd and /etc/group of the image, not even after the commands",
            file.path.display()
        );
    }
    Ok(found)
}

fn settle_directory(tree: &Path, directory: &Path, home: &Home) -> Result<()> {
    let path = inside(tree, directory);
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if !metadata.is_dir() {
        return Ok(());
    }
    let is_untouched = (metadata.uid(), metadata.gid()) == (0, 0);
    if directory == home.path && home.user >= FIRST_PERSON {
        copy_skeleton(&followed(tree, Path::new("etc/skel")), &path, home)?;
    }
    if is_untouched {
        lchown(&path, Some(home.user), Some(home.group))?;
        if directory == home.path {
            fs::set_permissions(&path, Permissions::from_mode(home_mode(tree)))?;
        } else if PRIVATE.iter().any(|name| directory.ends_with(name)) {
            fs::set_permissions(&path, Permissions::from_mode(0o700))?;
        }
    }
    Ok(())
}

/// Copies what a new home gets. What is there already stays.
fn copy_skeleton(from: &Path, to: &Path, home: &Home) -> Result<()> {
    for entry in WalkDir::new(from).min_depth(1).into_iter().filter_map(Result::ok) {
        let target = to.join(entry.path().strip_prefix(from)?);
        if target.symlink_metadata().is_ok() {
            continue;
        }
        let kind = entry.file_type();
        if kind.is_dir() {
            fs::create_dir(&target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
        } else {
            continue;
        }
        lchown(&target, Some(home.user), Some(home.group))?;
        if !kind.is_symlink() {
            fs::set_permissions(&target, entry.metadata()?.permissions())?;
        }
    }
    Ok(())
}

/// Permissions of a new home, as `useradd` of the image would give them.
fn home_mode(tree: &Path) -> u32 {
    let text = fs::read_to_string(followed(tree, Path::new("etc/login.defs"))).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix("HOME_MODE")?.split_ascii_whitespace().next());
    value.and_then(|mode| u32::from_str_radix(mode, 8).ok()).filter(|mode| *mode <= 0o777).unwrap_or(0o755)
}

fn homes(passwd: &str) -> Vec<Home> {
    passwd.lines().filter_map(home).collect()
}

fn home(line: &str) -> Option<Home> {
    let fields: Vec<&str> = line.split(':').collect();
    let [_, _, user, group, _, path, _] = fields.as_slice() else { return None };
    let (user, group) = (user.parse().ok()?, group.parse().ok()?);
    let path = Path::new(path);
    // A home in the root directory, such as /nonexistent or /srv, is one of many users or of none.
    let is_home =
        path.is_absolute() && path.components().count() > 2 && !NO_HOMES.iter().any(|no| path.starts_with(no));
    // Without a slash at the end.
    let path: PathBuf = path.components().collect();
    (is_home && user >= FIRST_OWNER && user != NOBODY).then_some(Home { path, user, group })
}

/// The home that a path is or lies in; of several the innermost one.
fn home_of<'a>(homes: &'a [Home], path: &Path) -> Option<&'a Home> {
    homes.iter().filter(|home| path.starts_with(&home.path)).max_by_key(|home| home.path.components().count())
}

#[cfg(test)]
mod tests {
    use super::{home_mode, home_of, homes, settle};
    use crate::image::files::place;
    use crate::recipe::Recipe;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\ngames:x:5:60::/usr/games:\nwww-data:x:33:33::/var/www:\n\
        nobody:x:65534:65534::/nonexistent:\nsshd:x:101:65534::/run/sshd:\npostgres:x:102:104::/var/lib/postgresql:\n\
        pilot:x:1000:1001:,,,:/home/pilot/:/bin/bash\nguest:x:1002:1002::/home/pilot/guest:\nrobot:x:998:998::/srv/robot:\n";

    #[test]
    fn the_innermost_home_counts_and_not_every_directory_is_one() {
        let homes = homes(PASSWD);
        let user = |path: &str| home_of(&homes, Path::new(path)).map(|home| home.user);
        assert_eq!(user("/home/pilot/.ssh/authorized_keys"), Some(1000));
        assert_eq!(user("/home/pilot/guest"), Some(1002));
        assert_eq!((user("/srv/robot/x"), user("/var/lib/postgresql/.pgpass")), (Some(998), Some(102)));
        for path in ["/home", "/home/pilots/x", "/usr/games/x", "/var/www/html", "/run/sshd", "/nonexistent", "/root/x"]
        {
            assert_eq!(user(path), None, "{path}");
        }
    }

    #[test]
    fn a_new_home_has_the_permissions_that_the_image_chose() {
        let tree = tempfile::tempdir().unwrap();
        assert_eq!(home_mode(tree.path()), 0o755);
        fs::create_dir(tree.path().join("etc")).unwrap();
        fs::write(tree.path().join("etc/login.defs"), "#HOME_MODE 0711\nHOME_MODE\t0700\n").unwrap();
        assert_eq!(home_mode(tree.path()), 0o700);
    }

    /// <https://github.com/coreos/bugs/issues/1241>, <https://github.com/canonical/cloud-init/pull/916>
    #[test]
    #[ignore = "needs root: to change owners; cargo xtask test --tier root"]
    fn a_key_for_a_user_that_a_command_makes_lies_in_a_home_of_that_user() {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        for directory in ["etc/skel/.config", "home", "var/lib/postgresql"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        fs::write(at("etc/skel/.bashrc"), "skel").unwrap();
        fs::write(at("etc/skel/.profile"), "skel").unwrap();
        symlink(".profile", at("etc/skel/.link")).unwrap();
        // Before the commands: of these users there is only one, of a package.
        fs::write(at("etc/passwd"), "root:x:0:0::/root:\npostgres:x:102:104::/var/lib/postgresql:\n").unwrap();
        fs::write(at("etc/group"), "root:x:0:\nstaff:x:50:\n").unwrap();
        let text = "name='x'\nversion='1'\n[distribution]\nsuite='s'\npackages=[]\n[ostree]\nbranch='b'\n\
            [[files]]\npath='/home/pilot/.ssh/authorized_keys'\ntext='k'\nmode='0600'\n\
            [[files]]\npath='/home/pilot/.profile'\ntext='own'\n\
            [[files]]\npath='/home/pilot/guest/.config/a/b'\ntext=''\n\
            [[files]]\npath='/srv/robot/bin/tool'\ntext=''\nmode='4755'\nowner='root:staff'\n\
            [[files]]\npath='/srv/robot/log/x'\ntext=''\nowner='robot:staff'\n\
            [[files]]\npath='/var/lib/postgresql/conf/.pgpass'\ntext=''\n\
            [[files]]\npath='/etc/robot/conf'\ntext=''\n";
        let recipe = Recipe::parse(text).unwrap();
        let made = place(&recipe, Path::new("/"), tree.path()).unwrap();
        let error = settle(&recipe, tree.path(), &made).unwrap_err().to_string();
        assert!(error.contains("\"robot:staff\", owner of /srv/robot/log/x, is not in"), "{error}");
        fs::write(at("etc/passwd"), PASSWD).unwrap();
        settle(&recipe, tree.path(), &made).unwrap();
        let owner = |path: &str| {
            let metadata = at(path).symlink_metadata().unwrap();
            (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
        };
        assert_eq!((owner("home/pilot"), owner("home").0), ((1000, 1001, 0o755), 0));
        assert_eq!(owner("home/pilot/.ssh"), (1000, 1001, 0o700));
        assert_eq!(owner("home/pilot/.ssh/authorized_keys"), (1000, 1001, 0o600));
        assert_eq!((owner("home/pilot/.bashrc"), owner("home/pilot/.config").0), ((1000, 1001, 0o644), 1000));
        assert_eq!((owner("home/pilot/.link").0, owner("home/pilot/.profile")), (1000, (1000, 1001, 0o644)));
        assert_eq!(fs::read_to_string(at("home/pilot/.profile")).unwrap(), "own");
        assert_eq!((owner("home/pilot/guest").0, owner("home/pilot/guest/.config/a/b").0), (1002, 1002));
        assert!(at("home/pilot/guest/.bashrc").exists());
        assert_eq!((owner("srv/robot").0, owner("srv/robot/bin/tool")), (998, (0, 50, 0o4755)));
        assert!(!at("srv/robot/.bashrc").exists(), "a service has no shell");
        assert_eq!((owner("srv/robot/log").0, owner("srv/robot/log/x")), (998, (998, 50, 0o644)));
        assert_eq!((owner("var/lib/postgresql/conf").0, owner("var/lib/postgresql").0), (102, 0));
        assert_eq!((owner("etc/robot"), owner("etc/robot/conf")), ((0, 0, 0o755), (0, 0, 0o644)));
    }
}
