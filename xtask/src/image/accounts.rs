//! Users and groups of an image keep the numbers that they have in the release before.
//!
//! Packages choose numbers while they are installed, and in a tree that is kept from build to build. So the numbers are
//! changed in the tree afterwards, in its databases and in the owners of all its files. Users made beforehand were
//! rejected: the scripts of packages do other things for a user who is there already.

mod names;
mod numbers;
mod owners;
mod ranges;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use self::numbers::{Numbers, Renumbering};
use super::files::put;
use super::within::followed;
use crate::recipe::Recipe;
use crate::step;

/// Place of the numbers in an image, with those of names that are gone.
const RECORD: &str = "/usr/share/reflash/numbers";
/// Directory of an image with its one deployment.
const DEPLOYMENTS: &str = "/ostree/deploy/system/deploy";

/// Databases of a tree, in the order of [`Numbers::of_databases`].
const DATABASES: [&str; 4] = ["etc/passwd", "etc/group", "etc/subuid", "etc/subgid"];

/// Numbers that have to stay, and where they are kept.
#[derive(Debug)]
pub struct KeptNumbers {
    numbers: Numbers,
    /// File of the recipe.
    file: Option<PathBuf>,
}

impl KeptNumbers {
    /// Gathers the numbers of the recipe's file and of the image before. Where they differ, the file wins, since it is
    /// what a person can change.
    ///
    /// # Errors
    /// When the file is wrong, or the image cannot be read.
    pub fn gather(recipe: &Recipe, directory: &Path, previous: Option<&Path>) -> Result<Self> {
        let file = recipe.numbers.as_ref().map(|path| directory.join(path));
        let mut numbers = match &file {
            Some(path) if path.exists() => {
                let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
                Numbers::parse(&text).with_context(|| format!("numbers of users and groups in {}", path.display()))?
            }
            _ => Numbers::default(),
        };
        if let Some(previous) = previous {
            let before = of_image(previous)
                .with_context(|| format!("read the numbers of users and groups of {}", previous.display()))?;
            for difference in numbers.complete_from(&before) {
                eprintln!("  the recipe's numbers differ from those of the previous image: {difference}");
            }
        }
        Ok(Self { numbers, file })
    }

    /// Returns the text form, for the digest of an image's inputs.
    #[must_use]
    pub fn text(&self) -> String {
        self.numbers.to_string()
    }

    /// Gives the names in the tree their numbers, and returns those of all names.
    ///
    /// # Errors
    /// Names whose number cannot be kept; or the path at which a change failed.
    pub fn apply(&self, tree: &Path) -> Result<Numbers> {
        let contents = databases(tree)?;
        let now = Numbers::of_databases(contents.each_ref().map(Vec::as_slice));
        let plan = Renumbering::plan(&self.numbers, &now)?;
        if !plan.is_empty() {
            write_databases(tree, &contents, &plan)?;
            let changed = owners::change(tree, &plan)?;
            let changes = plan.changes(&self.numbers, &now).join("\n    ");
            eprintln!("  numbers of users and groups ({changed} files):\n    {changes}");
        }
        Ok(plan.record)
    }

    /// Puts the record into the tree: the next image is made from it.
    ///
    /// # Errors
    /// When it cannot be written, or could not be read back.
    pub fn record(tree: &Path, numbers: &Numbers) -> Result<()> {
        put(tree, Path::new(RECORD), numbers.checked_text()?.as_bytes(), 0o644)
    }

    /// Renews the recipe's file, when the build is complete.
    ///
    /// # Errors
    /// When it cannot be written, or could not be read back.
    pub fn remember(&mut self, numbers: Numbers) -> Result<()> {
        let Some(path) = &self.file else { return Ok(()) };
        let text = numbers.checked_text()?;
        if fs::read_to_string(path).ok().as_ref() != Some(&text) {
            fs::write(path, &text).with_context(|| {
                format!("write {}, the numbers of users and groups, which belong to the recipe", path.display())
            })?;
            eprintln!("  {} has new numbers of users and groups: keep it with the recipe", path.display());
        }
        self.numbers = numbers;
        Ok(())
    }
}

fn databases(tree: &Path) -> Result<[Vec<u8>; 4]> {
    let mut contents: [Vec<u8>; 4] = Default::default();
    for (content, path) in contents.iter_mut().zip(DATABASES) {
        let path = followed(tree, Path::new(path));
        match fs::read(&path) {
            Ok(found) => *content = found,
            // A tree without them has no users; one without ranges is common.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
    Ok(contents)
}

fn write_databases(tree: &Path, contents: &[Vec<u8>; 4], plan: &Renumbering) -> Result<()> {
    let [passwd, group, ..] = contents;
    let [subuid, subgid] = plan.ranges.each_ref().map(|(now, after)| (now != after).then(|| after.content()));
    let new = [Some(plan.passwd(passwd)), Some(plan.groups_text(group)), subuid, subgid];
    for ((path, old), new) in DATABASES.iter().zip(contents).zip(new) {
        if let Some(new) = new.filter(|new| new != old) {
            // The file keeps its mode and owner.
            fs::write(followed(tree, Path::new(path)), new).with_context(|| format!("write {path} of the image"))?;
        }
    }
    Ok(())
}

/// Reads the numbers of an image: its record, or the databases of one that an older builder made.
fn of_image(image: &Path) -> Result<Numbers> {
    let list = debugfs(image, &format!("ls -p {DEPLOYMENTS}"))?;
    let list = String::from_utf8_lossy(&list);
    // A line is /inode/mode/user/group/name/size/.
    let names = list.lines().filter_map(|line| line.split('/').nth(5));
    let deployment = names.into_iter().find(|name| name.len() > 64 && name.contains('.') && !name.ends_with(".origin"));
    let deployment = deployment.with_context(|| format!("the image has no deployment in {DEPLOYMENTS}"))?;
    let read = |path: &str| debugfs(image, &format!("cat \"{DEPLOYMENTS}/{deployment}{path}\""));
    let record = read(RECORD)?;
    if !record.is_empty() {
        let (numbers, faults) = Numbers::parse_what_can_be(&String::from_utf8_lossy(&record));
        for fault in faults {
            eprintln!("  {RECORD} of {}: left out, since it cannot be understood: {fault:#}", image.display());
        }
        return Ok(numbers);
    }
    let [passwd, group, subuid, subgid] = DATABASES.map(|path| read(&format!("/usr/{path}")));
    let contents = [passwd?, group?, subuid?, subgid?];
    ensure!(!contents[0].is_empty(), "the image has no users in /usr/etc/passwd");
    Ok(Numbers::of_databases(contents.each_ref().map(Vec::as_slice)))
}

/// Has debugfs carry out one request. It says on standard error that a path is missing, and prints nothing.
fn debugfs(image: &Path, request: &str) -> Result<Vec<u8>> {
    step::output_bytes(Command::new("debugfs").args(["-R", request]).arg(image))
}

#[cfg(test)]
mod tests {
    use super::numbers::AccountKind;
    use super::{KeptNumbers, Numbers, RECORD, of_image};
    use crate::image::{bootstrap, ext4};
    use crate::recipe::{ImageSize, Recipe};
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    fn tree_with(tree: &Path, passwd: &str, group: &str) {
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(tree.join("etc/passwd"), passwd).unwrap();
        fs::write(tree.join("etc/group"), group).unwrap();
    }

    #[test]
    fn numbers_are_read_from_the_record_of_an_image_or_from_its_users() {
        let directory = tempfile::tempdir().unwrap();
        let (sysroot, image) = (directory.path().join("sysroot"), directory.path().join("x.img"));
        let commit = "0123456789abcdef".repeat(4);
        let deploy = sysroot.join("ostree/deploy/system/deploy");
        let deployment = deploy.join(format!("{commit}.0"));
        fs::create_dir_all(deployment.join("usr/share/reflash")).unwrap();
        fs::write(deploy.join(format!("{commit}.0.origin")), "").unwrap();
        tree_with(&deployment.join("usr"), "a:x:100:101::/:\n", "a:x:101:\n");
        let build = || ext4::build(&sysroot, &image, ImageSize::Auto, "branch", None).unwrap();
        build();
        let found = of_image(&image).unwrap();
        assert_eq!(found, Numbers::parse("user a 100\ngroup a 101\n").unwrap());
        let text = "user a 100\nuser b 7 gone\n";
        fs::write(deployment.join(RECORD.trim_start_matches('/')), text).unwrap();
        build();
        assert_eq!(of_image(&image).unwrap(), Numbers::parse(text).unwrap());
        fs::remove_dir_all(&deploy).unwrap();
        build();
        assert!(of_image(&image).unwrap_err().to_string().contains("no deployment"));
    }

    #[test]
    fn a_tree_gets_the_numbers_of_before_in_its_databases() {
        let tree = tempfile::tempdir().unwrap();
        tree_with(tree.path(), "a:x:100:101:,:/a:/b\nn:x:101:100::/:\n", "n:x:100:a\na:x:101:\n");
        let numbers = Numbers::parse("user a 107\ngroup a 100\n").unwrap();
        let mut kept = KeptNumbers { numbers, file: Some(tree.path().join("numbers")) };
        let record = kept.apply(tree.path()).unwrap();
        let read = |path: &str| fs::read_to_string(tree.path().join(path)).unwrap();
        assert_eq!(read("etc/passwd"), "a:x:107:100:,:/a:/b\nn:x:101:102::/:\n");
        assert_eq!(read("etc/group"), "n:x:102:a\na:x:100:\n");
        assert_eq!(record.names[&(AccountKind::Group, "n".to_owned())].number, 102);
        // What was decided once stays so: the same tree again, with what was remembered.
        kept.remember(record.clone()).unwrap();
        assert_eq!(Numbers::parse(&read("numbers")).unwrap(), record);
        assert_eq!(kept.apply(tree.path()).unwrap(), record);
    }

    /// The three releases of which the last one gave /var/lib/chrony to messagebus, with the real packages.
    /// <https://github.com/Vanilla-OS/ABRoot/issues/419>, <https://github.com/bootc-dev/bootc/issues/1263>
    #[test]
    #[ignore = "takes long: cargo xtask test --full"]
    fn full_users_of_packages_keep_their_numbers_over_three_releases() {
        let directory = tempfile::tempdir().unwrap();
        let mut kept = KeptNumbers { numbers: Numbers::default(), file: Some(directory.path().join("numbers")) };
        let mut release = |name: &str, packages: &str| {
            let work = directory.path().join(name);
            fs::create_dir(&work).unwrap();
            let recipe = Recipe::parse(&format!(
                "name='x'\nversion='1'\n[distribution]\nsuite='bookworm'\npackages=[{packages}]\n[ostree]\nbranch='b'\n"
            ));
            let kept_tree = bootstrap::KeptTree { fresh: false, keep_packages: true };
            let made = bootstrap::bootstrap(&recipe.unwrap().distribution, &work, kept_tree).unwrap();
            let tree = work.join("tree");
            bootstrap::unpack(&made.tarball, &tree).unwrap();
            let numbers = kept.apply(&tree).unwrap();
            kept.remember(numbers).unwrap();
            tree
        };
        let user = |tree: &Path, name: &str| {
            let text = fs::read_to_string(tree.join("etc/passwd")).unwrap();
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":x:")?.split(':').next()?.parse().ok())
        };
        let owner = |tree: &Path, path: &str| tree.join(path).metadata().unwrap().uid();
        let first = release("1", "'chrony','dbus','openssh-server'");
        let second = release("2", "'avahi-daemon','chrony','dbus','openssh-server','tcpdump'");
        let third = release("3", "'avahi-daemon','dbus','openssh-server','tcpdump'");
        let numbers = |tree: &Path| ["_chrony", "messagebus", "sshd"].map(|name| user(tree, name));
        let [chrony, bus, sshd] = numbers(&first);
        assert!(chrony.is_some() && bus.is_some() && sshd.is_some());
        assert_eq!((numbers(&second), numbers(&third)), ([chrony, bus, sshd], [None, bus, sshd]));
        assert_eq!((Some(owner(&second, "var/lib/chrony")), Some(owner(&first, "var/lib/chrony"))), (chrony, chrony));
        for name in ["avahi", "tcpdump"] {
            let number: Option<u32> = user(&second, name);
            assert!(number.is_some() && number != chrony && number == user(&third, name), "{name}: {number:?}");
        }
        // The helper of dbus keeps its setuid bit and its group.
        let helper = |tree: &Path| {
            let metadata = tree.join("usr/lib/dbus-1.0/dbus-daemon-launch-helper").metadata().unwrap();
            (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
        };
        assert_eq!((helper(&second), helper(&third)), (helper(&first), helper(&first)));
        assert_eq!(helper(&first).2, 0o4754);
    }
}
