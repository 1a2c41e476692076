//! Who may log in during a safe start: the accounts of the image and, where they can be read, those of the machine with
//! their keys. Nothing else of the machine's own `/etc` is used, since it may be what keeps the system from starting.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::databases::{Account, Databases, accounts, merged};
use crate::sys::files;

/// Size of the largest file of accounts or keys that is read, bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Directories of an image that are links into `/var`.
const LINKS: &[(&str, &str)] = &[("/home", "home"), ("/root", "roothome"), ("/var", ""), ("/srv", "srv")];
/// Host keys of ssh, which clients know this machine by.
const HOST_KEYS: &[&str] = &["ssh_host_ed25519_key", "ssh_host_ecdsa_key", "ssh_host_rsa_key"];

/// The machine's own files, to be read.
pub(super) struct Machine<'a> {
    /// The data partition.
    pub data: &'a Path,
    /// The machine's changes to `/etc`.
    pub etc: &'a Path,
}

/// What was given.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// Accounts with which a person can log in.
    pub logins: Vec<String>,
    /// What could not be given, a sentence each.
    pub lost: Vec<String>,
}

/// Gives the system below `root` what is known of the machine's accounts. `etc` and `var` say whether these can be
/// written.
pub(super) fn give(root: &Path, machine: Option<Machine<'_>>, etc: bool, var: bool) -> Given {
    let mut given = Given::default();
    let image = read_databases(&root.join("etc"), &mut given.lost);
    let mut all = image.clone();
    if let Some(machine) = machine.filter(|_| etc) {
        all = merged(&image, &read_databases(machine.etc, &mut given.lost));
        let written = write_databases(&root.join("etc"), &image, &all);
        if let Err(error) = written {
            given.lost.push(format!("the accounts of this machine cannot be used: {error}"));
            all = image;
        }
        give_identity(root, machine.etc);
        if var {
            accounts(&all).iter().for_each(|account| give_keys(root, machine.data, account, &mut given.lost));
        }
    } else {
        given.lost.push("the accounts of this machine cannot be read: only those of the image can be used".to_owned());
    }
    let has_ssh = root.join("usr/sbin/sshd").exists();
    let can_log_in = |account: &Account| account.has_password || (has_ssh && has_keys(root, account));
    given.logins = accounts(&all).into_iter().filter(can_log_in).map(|account| account.name).collect();
    given
}

fn read_databases(etc: &Path, lost: &mut Vec<String>) -> Databases {
    let mut read = |name: &str| match files::read_text(&etc.join(name), MAX_BYTES) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => {
            lost.push(format!("/etc/{name} of this machine cannot be read: {error}"));
            String::new()
        }
    };
    Databases { passwd: read("passwd"), shadow: read("shadow"), group: read("group"), gshadow: read("gshadow") }
}

/// Writes what differs, with owner and mode of the image's file. The passwords come first: an account without one is
/// closed.
fn write_databases(etc: &Path, image: &Databases, all: &Databases) -> io::Result<()> {
    for (name, old, new) in [
        ("shadow", &image.shadow, &all.shadow),
        ("gshadow", &image.gshadow, &all.gshadow),
        ("group", &image.group, &all.group),
        ("passwd", &image.passwd, &all.passwd),
    ] {
        if old != new {
            replace(&etc.join(name), new.as_bytes())?;
        }
    }
    Ok(())
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let old = path.symlink_metadata();
    let new = path.with_added_extension("reflash");
    let _ = fs::remove_file(&new);
    write_new(&new, content, if old.is_ok() { 0o600 } else { 0o640 })?;
    if let Ok(old) = old {
        chown(&new, Some(old.uid()), Some(old.gid()))?;
        fs::set_permissions(&new, fs::Permissions::from_mode(old.mode() & 0o777))?;
    }
    fs::rename(new, path)
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::File::options().write(true).create_new(true).mode(mode).open(path)?;
    io::Write::write_all(&mut file, content)
}

/// Gives the identity by which servers and clients know this machine: its ID, its name and the host keys of ssh. What
/// is missing or damaged the system makes anew.
fn give_identity(root: &Path, own: &Path) {
    let read = |name: &str| files::read_text(&own.join(name), MAX_BYTES).ok();
    let put = |name: &str, content: &str, mode: u32| {
        let path = root.join("etc").join(name);
        let _ = fs::remove_file(&path);
        let _ = write_new(&path, content.as_bytes(), mode);
    };
    if let Some(id) = read("machine-id").filter(|id| id.trim().len() == 32 && is_hexadecimal(id.trim())) {
        put("machine-id", &id, 0o444);
    }
    let is_host_name = |name: &str| {
        (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
    };
    if let Some(name) = read("hostname").filter(|name| is_host_name(name.trim())) {
        put("hostname", &name, 0o644);
    }
    for name in HOST_KEYS {
        let (private, public) = (format!("ssh/{name}"), format!("ssh/{name}.pub"));
        let is_key = |text: &String| text.starts_with("-----BEGIN ") && text.trim_end().ends_with("-----");
        if let (Some(key), Some(shown)) = (read(&private).filter(is_key), read(&public)) {
            put(&private, &key, 0o600);
            put(&public, &shown, 0o644);
        }
    }
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Path of a home below `/var`, where it lies there.
fn below_var(home: &str) -> Option<PathBuf> {
    let home = Path::new(home);
    let (rest, place) = LINKS.iter().find_map(|(link, place)| Some((home.strip_prefix(link).ok()?, *place)))?;
    let is_plain = rest.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    // A directory of homes is no home.
    let is_home = rest.components().next().is_some() || place == "roothome";
    (is_plain && is_home).then(|| if rest.as_os_str().is_empty() { place.into() } else { Path::new(place).join(rest) })
}

fn keys_of(home: &Path) -> PathBuf {
    home.join(".ssh/authorized_keys")
}

/// Copies the keys of an account into the empty `/var`, as sshd wants them: owned by the account, and by nobody else
/// writable.
fn give_keys(root: &Path, data: &Path, account: &Account, lost: &mut Vec<String>) {
    let Some(home) = below_var(&account.home) else { return };
    let keys = match files::read_below(&data.join("var"), &keys_of(&home), MAX_BYTES) {
        Ok(keys) => keys,
        Err(error) if error.kind() == ErrorKind::NotFound => return,
        Err(error) => {
            lost.push(format!("the keys of {} cannot be read: {error}", account.name));
            return;
        }
    };
    if let Err(error) = put_keys(&root.join("var"), &home, account, &keys) {
        lost.push(format!("the keys of {} cannot be used: {error}", account.name));
    }
}

fn put_keys(var: &Path, home: &Path, account: &Account, keys: &[u8]) -> io::Result<()> {
    if let Some(above) = home.parent() {
        fs::create_dir_all(var.join(above))?;
    }
    let path = var.join(keys_of(home));
    for directory in [var.join(home), var.join(home).join(".ssh")] {
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        chown(&directory, Some(account.uid), Some(account.gid))?;
    }
    // Those of the image, which a machine that has keys of its own had made way for.
    files::removed_or_gone(fs::remove_file(&path))?;
    write_new(&path, keys, 0o600)?;
    chown(&path, Some(account.uid), Some(account.gid))
}

/// Whether the account has keys: those of the machine, or those that the image makes in an empty `/var`.
fn has_keys(root: &Path, account: &Account) -> bool {
    let Some(home) = below_var(&account.home) else { return false };
    let own = root.join("var").join(keys_of(&home));
    let of_image = root.join("usr/share/factory/var").join(keys_of(&home));
    [own, of_image].iter().any(|path| {
        let text = files::read_text(path, MAX_BYTES).unwrap_or_default();
        text.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    })
}

#[cfg(test)]
mod tests {
    use super::below_var;
    use std::path::Path;

    #[test]
    fn homes_lie_below_var_and_nowhere_else() {
        assert_eq!(below_var("/home/pilot").as_deref(), Some(Path::new("home/pilot")));
        assert_eq!(below_var("/root").as_deref(), Some(Path::new("roothome")));
        assert_eq!(below_var("/var/lib/x").as_deref(), Some(Path::new("lib/x")));
        for home in ["/home/../../etc", "/opt/x", "/", "/home/", "/var/", "/rootless", "home/x", ""] {
            assert_eq!(below_var(home), None, "{home}");
        }
    }
}
