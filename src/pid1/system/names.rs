//! Names of the files of a data partition, for the day on which a directory of it is lost. e2fsck finds what lay in it,
//! and gives it the number of its inode as a name, in `lost+found`: all of `/var` and the machine's changes to `/etc`,
//! after the loss of one block, and the machine would begin anew beside them.
//!
//! So each start notes the names of the uppermost files and directories with their inodes, and puts back what it finds
//! in `lost+found`. A number alone could be that of another file by now: the time counts at which the inode was made.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::sys::files;
use crate::sys::inode::InodeIdentity;

/// Name of the note, on the data partition.
const NOTE: &str = ".reflash-names";
/// First line of the note: it may be found in `lost+found` itself.
const HEAD: &str = "reflash names 1\n";
/// Most names that are noted, the uppermost ones first: each costs the start a look at its inode.
const MAX_NAMES: usize = 2000;
/// Most names of one directory: one with thousands of files leaves room for the others.
const MAX_IN_ONE: usize = 256;
/// Size of the largest note that is read, bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Directory in which e2fsck puts what has lost its name.
const LOST: &str = "lost+found";
/// Directories whose names are noted.
const ROOTS: [&str; 2] = ["etc-overlay", "var"];
/// Directories of which nothing below is noted: whatever uses them makes it again.
const LEFT_OUT: [&str; 4] = ["etc-overlay/work", "var/cache", "var/tmp", "var/log/journal"];
/// Most names of what is missing that are told.
const TOLD: usize = 3;

/// Names in the order in which they were found: each directory before what lies in it.
type Names = Vec<(PathBuf, InodeIdentity)>;

/// What became of what had lost its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PutBack {
    /// Number of files and directories that have their names again.
    pub back: usize,
    /// Number of those that stay in `lost+found`.
    pub left: usize,
    /// Number of noted ones that are nowhere.
    pub missing: usize,
    /// Some of the missing.
    pub some: Vec<PathBuf>,
}

impl PutBack {
    /// What is to be told about a partition that was repaired.
    pub(super) fn sentence(&self) -> String {
        let mut text = format!(
            "the data partition was damaged and is repaired: {} files and directories got their names back, {} without \
             a name lie in its directory {LOST}",
            self.back, self.left
        );
        if self.missing > 0 {
            let some: Vec<_> = self.some.iter().map(|path| path.display().to_string()).collect();
            let _ = write!(text, ", and {} of before are missing, as {}", self.missing, some.join(", "));
        }
        text
    }
}

/// Puts back what e2fsck found of the files whose names are noted on the data partition mounted on `data`.
pub(super) fn put_back(data: &Path) -> PutBack {
    let (names, found) = (noted(data), lost(data));
    let mut done = PutBack { left: found.len(), ..PutBack::default() };
    for (path, identity) in &names {
        let place = data.join(path);
        if place.symlink_metadata().is_ok() {
            continue;
        }
        let from = data.join(LOST).join(format!("#{}", identity.inode));
        if InodeIdentity::of(&from).is_some_and(|found| found.is(*identity)) {
            // One that does not get there, as through a link that leads elsewhere by now, keeps none of the others.
            if make_parents(data, path, &names).and_then(|()| fs::rename(&from, &place)).is_ok() {
                done.back += 1;
                done.left = done.left.saturating_sub(1);
            }
        } else if !identity.is_directory() {
            done.missing += 1;
            if done.some.len() < TOLD {
                done.some.push(path.clone());
            }
        }
    }
    done
}

/// Makes the directories on the way to `path` that are lost themselves, as they were.
fn make_parents(data: &Path, path: &Path, names: &Names) -> io::Result<()> {
    for (parent, identity) in names.iter().filter(|(parent, _)| path != parent && path.starts_with(parent)) {
        let place = data.join(parent);
        if place.symlink_metadata().is_err() {
            fs::create_dir(&place)?;
            chown(&place, Some(identity.owner), Some(identity.group))?;
            fs::set_permissions(&place, fs::Permissions::from_mode(u32::from(identity.mode) & 0o7777))?;
        }
    }
    Ok(())
}

/// Notes the names, unless they are noted already.
///
/// # Errors
/// The file system's: it may be full, or damaged. The note of before stays then.
pub(super) fn keep(data: &Path) -> io::Result<()> {
    let text = text_of(&found(data)?);
    let path = data.join(NOTE);
    if files::read(&path, MAX_BYTES).is_ok_and(|noted| noted == text.as_bytes()) {
        return Ok(());
    }
    let new = path.with_added_extension("new");
    // Neither is removed, nor replaced by a rename.
    for directory in [&new, &path].into_iter().filter(|path| path.symlink_metadata().is_ok_and(|found| found.is_dir()))
    {
        files::put_aside(directory)?;
    }
    files::removed_or_gone(fs::remove_file(&new))?;
    let write = || {
        let mut file = fs::File::create_new(&new)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        file.sync_data()?;
        fs::rename(&new, &path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&new)))
}

/// The names that are there now, the uppermost ones first. A directory that cannot be read has names all the same.
fn found(data: &Path) -> io::Result<Names> {
    let mut names = Names::new();
    let mut left: VecDeque<PathBuf> = ROOTS.iter().map(PathBuf::from).collect();
    while let Some(path) = left.pop_front() {
        let Some(identity) = InodeIdentity::of(&data.join(&path)) else { continue };
        let goes_down = identity.is_directory() && !LEFT_OUT.iter().any(|one| path == Path::new(one));
        let room = MAX_NAMES.saturating_sub(names.len() + 1 + left.len());
        if goes_down && room > 0 {
            for entry in fs::read_dir(data.join(&path))?.take(room.min(MAX_IN_ONE)) {
                left.push_back(path.join(entry?.file_name()));
            }
        }
        names.push((path, identity));
    }
    Ok(names)
}

fn text_of(names: &Names) -> String {
    let mut text = HEAD.to_owned();
    for (path, InodeIdentity { inode, made_ns, mode, owner, group }) in names {
        // Names that cannot be written like this are rare, and their files can be found by hand.
        if let Some(path) = path.to_str().filter(|path| !path.contains('\n')) {
            let _ = writeln!(text, "{inode} {made_ns} {mode} {owner} {group} {path}");
        }
    }
    text
}

/// The names of the note; none where there is no note.
fn noted(data: &Path) -> Names {
    let whole = |path: &Path| files::read_text(path, MAX_BYTES).ok().filter(|text| text.starts_with(HEAD));
    // Its own name may be lost with the others.
    let text = whole(&data.join(NOTE)).or_else(|| lost(data).iter().find_map(|path| whole(path)));
    text.unwrap_or_default().lines().skip(1).take(MAX_NAMES * 2).filter_map(parse).collect()
}

fn parse(line: &str) -> Option<(PathBuf, InodeIdentity)> {
    let mut parts = line.splitn(6, ' ');
    let identity = InodeIdentity {
        inode: parts.next()?.parse().ok()?,
        made_ns: parts.next()?.parse().ok()?,
        mode: parts.next()?.parse().ok()?,
        owner: parts.next()?.parse().ok()?,
        group: parts.next()?.parse().ok()?,
    };
    let path = Path::new(parts.next()?);
    let is_below = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    (is_below && ROOTS.iter().any(|root| path.starts_with(root))).then(|| (path.to_owned(), identity))
}

/// What lies in `lost+found` under the number of its inode.
fn lost(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join(LOST)).into_iter().flatten().flatten().take(100_000);
    entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"#")).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::{HEAD, LOST, MAX_NAMES, NOTE, PutBack, found, keep, noted, parse, put_back, text_of};
    use crate::sys::inode::InodeIdentity;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::{Path, PathBuf};

    /// A data partition with some names, which are noted.
    fn partition() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for directory in ["etc-overlay/upper/ssh", "etc-overlay/work/work/x", "var/lib/robot", "var/cache/x", LOST] {
            fs::create_dir_all(dir.path().join(directory)).unwrap();
        }
        fs::write(dir.path().join("etc-overlay/upper/hostname"), "mine").unwrap();
        fs::write(dir.path().join("var/lib/robot/map"), "map").unwrap();
        keep(dir.path()).unwrap();
        dir
    }

    /// Does what e2fsck does with what has lost its name.
    fn lose(data: &Path, path: &str) -> PathBuf {
        let inode = data.join(path).symlink_metadata().unwrap().ino();
        let to = data.join(LOST).join(format!("#{inode}"));
        fs::rename(data.join(path), &to).unwrap();
        to
    }

    #[test]
    fn what_has_lost_its_name_gets_it_back_and_directories_that_are_gone_are_made_as_they_were() {
        let dir = partition();
        let data = dir.path();
        assert_eq!(put_back(data), PutBack::default());
        let names = noted(data);
        assert!(
            names
                .iter()
                .all(|(path, _)| !path.starts_with("var/cache/x") && !path.starts_with("etc-overlay/work/work"))
        );
        fs::set_permissions(data.join("var/lib"), fs::Permissions::from_mode(0o711)).unwrap();
        keep(data).unwrap();
        // The root's names, with that of the note.
        for path in ["etc-overlay", "var", NOTE] {
            lose(data, path);
        }
        let done = put_back(data);
        assert_eq!((done.back, done.left, done.missing), (2, 1, 0), "the note is written anew");
        assert_eq!(fs::read_to_string(data.join("var/lib/robot/map")).unwrap(), "map");
        keep(data).unwrap();
        // The directory itself, with its inode.
        lose(data, "var/lib/robot");
        fs::remove_dir(data.join("var/lib")).unwrap();
        lose(data, "etc-overlay/upper/hostname");
        assert_eq!(put_back(data).back, 2);
        assert_eq!(fs::read_to_string(data.join("var/lib/robot/map")).unwrap(), "map");
        assert_eq!(data.join("var/lib").metadata().unwrap().permissions().mode() & 0o7777, 0o711);
        // What is nowhere is named.
        fs::remove_file(data.join("var/lib/robot/map")).unwrap();
        let done = put_back(data);
        assert!(done.missing == 1 && done.sentence().contains("missing, as var/lib/robot/map"), "{done:?}");
    }

    #[test]
    fn another_file_with_the_number_of_a_noted_one_does_not_get_its_name() {
        let dir = partition();
        let data = dir.path();
        let lost = lose(data, "etc-overlay/upper/hostname");
        let other = data.join("other");
        fs::write(&other, "other").unwrap();
        fs::rename(&other, &lost).unwrap();
        assert_eq!(put_back(data).back, 0);
        assert!(!data.join("etc-overlay/upper/hostname").exists());
        // Nor is anything put over what is there.
        let dir = partition();
        let lost = lose(dir.path(), "var/lib/robot/map");
        fs::write(dir.path().join("var/lib/robot/map"), "newer").unwrap();
        assert_eq!(put_back(dir.path()).back, 0);
        assert!(lost.exists());
    }

    #[test]
    fn one_that_cannot_be_put_back_keeps_none_of_the_others() {
        let dir = partition();
        let data = dir.path();
        // Somebody has moved a directory of the machine to another disk since the names were noted.
        let lost = [lose(data, "etc-overlay/upper/hostname"), lose(data, "var/lib/robot/map")];
        fs::remove_dir_all(data.join("etc-overlay/upper")).unwrap();
        std::os::unix::fs::symlink("/proc/self", data.join("etc-overlay/upper")).unwrap();
        let done = put_back(data);
        assert_eq!((done.back, done.left), (1, 1), "{done:?}");
        assert!(lost[0].exists() && data.join("var/lib/robot/map").exists());
    }

    #[test]
    fn whatever_lies_in_the_place_of_the_note_makes_way() {
        use nix::sys::stat::Mode;
        let dir = partition();
        let data = dir.path();
        let victim = data.join("victim");
        fs::write(&victim, "precious").unwrap();
        for name in [NOTE.to_owned(), format!("{NOTE}.new")] {
            let path = data.join(&name);
            for number in 0..3 {
                let _ = fs::remove_file(data.join(NOTE));
                match number {
                    0 => fs::create_dir_all(path.join("x")).unwrap(),
                    1 => std::os::unix::fs::symlink(&victim, &path).unwrap(),
                    _ => nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap(),
                }
                keep(data).unwrap();
                assert!(!noted(data).is_empty(), "{name} {number}");
            }
        }
        assert_eq!(fs::read_to_string(victim).unwrap(), "precious");
    }

    #[test]
    fn a_note_is_bounded_and_what_is_wrong_in_it_is_passed_over() {
        let dir = partition();
        fs::create_dir_all(dir.path().join("var/many")).unwrap();
        for number in 0..MAX_NAMES + 100 {
            fs::write(dir.path().join(format!("var/many/{number}")), "").unwrap();
        }
        let names = found(dir.path()).unwrap();
        assert!(names.len() <= MAX_NAMES, "{}", names.len());
        assert!(names.iter().any(|(path, _)| path == Path::new("var/lib/robot")), "the uppermost come first");
        for line in ["", "1 2 3 4 5", "1 2 3 4 5 /var/x", "1 2 3 4 5 var/../x", "1 2 3 4 5 usr/x", "x 2 3 4 5 var/x"] {
            assert_eq!(parse(line), None, "{line}");
        }
        let identity = InodeIdentity { inode: 1, made_ns: 2, mode: 3, owner: 4, group: 5 };
        let path = PathBuf::from("var/a name");
        assert_eq!(text_of(&vec![(path.clone(), identity)]), format!("{HEAD}1 2 3 4 5 var/a name\n"));
        assert_eq!(parse("1 2 3 4 5 var/a name"), Some((path, identity)));
        fs::write(dir.path().join(NOTE), vec![0xff; 4096]).unwrap();
        assert!(noted(dir.path()).is_empty() && put_back(dir.path()) == PutBack::default());
    }
}
