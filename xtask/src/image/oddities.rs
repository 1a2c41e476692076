//! What cannot be committed to OSTree, found as soon as the tree is known. ostree itself ends at the first one, minutes
//! later, and names only the last part of its path; of a link whose target is not UTF-8 it even records an empty
//! target, without an error.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use walkdir::{DirEntry, WalkDir};

use super::removal;

/// Directories of the tree that do not become part of the commit: the machine's own, which are carried in another way,
/// and what is emptied or replaced.
const NOT_COMMITTED: &[&str] =
    &["var", "home", "root", "srv", "mnt", "boot", "media", "dev", "proc", "sys", "run", "tmp", "ostree", "sysroot"];

/// Number of paths that the error shows.
const SHOWN: usize = 20;

/// Takes the flags from files by which nobody can change them, and names these files: an image does not carry the
/// flags, and nothing that comes after could write or delete such a file.
pub fn free(tree: &Path) {
    let freed = removal::free(tree);
    for path in freed.iter().take(SHOWN) {
        let path = path.strip_prefix(tree).unwrap_or(path);
        eprintln!(
            "  /{} was protected with chattr, which an image does not carry: a robot's /usr is read-only, its /etc is not",
            path.as_os_str().as_encoded_bytes().escape_ascii()
        );
    }
    if freed.len() > SHOWN {
        eprintln!("  and {} more paths", freed.len() - SHOWN);
    }
}

/// Refuses a tree with names or kinds of files that an image cannot hold.
///
/// # Errors
/// All such paths, of many the first ones, each with what is wrong with it.
pub fn refuse(tree: &Path) -> Result<()> {
    let is_committed =
        |entry: &DirEntry| entry.depth() != 1 || !NOT_COMMITTED.iter().any(|name| entry.file_name() == *name);
    let (mut found, mut count) = (Vec::new(), 0);
    for entry in WalkDir::new(tree).min_depth(1).sort_by_file_name().into_iter().filter_entry(is_committed) {
        let entry = entry.context("look for files that an image cannot hold")?;
        let Some(what) = oddity(&entry)? else { continue };
        count += 1;
        if found.len() < SHOWN {
            let path = entry.path().strip_prefix(tree).unwrap_or(entry.path());
            found.push(format!("/{}: {what}", path.as_os_str().as_encoded_bytes().escape_ascii()));
        }
    }
    if count > found.len() {
        found.push(format!("and {} more", count - found.len()));
    }
    if !found.is_empty() {
        bail!(
            "the tree has {count} names that an image cannot hold outside of /var; delete or rename them in `commands`:\n  {}",
            found.join("\n  ")
        );
    }
    Ok(())
}

/// What keeps an entry out of an image; `None` for most.
fn oddity(entry: &DirEntry) -> Result<Option<&'static str>> {
    if entry.file_name().to_str().is_none() {
        return Ok(Some("its name is not UTF-8"));
    }
    let kind = entry.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(entry.path()).with_context(|| format!("read {}", entry.path().display()))?;
        return Ok(target.to_str().is_none().then_some("the target of this link is not UTF-8"));
    }
    Ok(if kind.is_fifo() {
        Some("a FIFO (tmpfiles.d can make it at each start, with a line `p`)")
    } else if kind.is_socket() {
        Some("a socket (the service that listens makes it)")
    } else if kind.is_char_device() || kind.is_block_device() {
        Some("a device node (tmpfiles.d can make it at each start, with a line `c` or `b`)")
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use super::{SHOWN, refuse};
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    /// <https://github.com/ostreedev/ostree/issues/2024> and <https://github.com/ostreedev/ostree/issues/2446>
    #[test]
    fn everything_that_cannot_be_committed_is_named_with_its_path() {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        for directory in ["usr/lib/robot", "etc/robot", "var/spool"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        fs::write(at("usr/lib/robot/fine \u{e4}\n'name'"), "").unwrap();
        refuse(tree.path()).unwrap();
        for fifo in ["etc/robot/ctl", "var/spool/pipe"] {
            assert!(Command::new("mkfifo").arg(at(fifo)).status().unwrap().success());
        }
        let _socket = std::os::unix::net::UnixListener::bind(at("usr/lib/robot/s")).unwrap();
        fs::write(at("usr/lib").join(OsStr::from_bytes(b"latin1-\xe4")), "").unwrap();
        symlink(OsStr::from_bytes(b"caf\xe9"), at("usr/lib/link")).unwrap();
        let text = refuse(tree.path()).unwrap_err().to_string();
        for said in
            ["4 names", "/etc/robot/ctl: a FIFO", "/usr/lib/robot/s: a socket", r"/usr/lib/latin1-\xe4: its name"]
        {
            assert!(text.contains(said), "{said} is missing in {text}");
        }
        assert!(text.contains("/usr/lib/link: the target") && !text.contains("spool"), "{text}");
    }

    #[test]
    fn of_many_the_first_ones_are_shown() {
        let tree = tempfile::tempdir().unwrap();
        for number in 0..SHOWN + 7 {
            symlink(OsStr::from_bytes(b"\xff"), tree.path().join(format!("{number:03}"))).unwrap();
        }
        let text = refuse(tree.path()).unwrap_err().to_string();
        assert!(text.contains("/019:") && !text.contains("/020:") && text.ends_with("and 7 more"), "{text}");
    }
}
