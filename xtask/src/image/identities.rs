//! What makes a machine itself: host keys, certificates, numbers that only one machine should have. Packages make them
//! while they are installed, so in an image the whole fleet would share them, and each build would have others.
//!
//! Known ones are removed, and made at the first boot of each robot where a program of the image does so. What looks
//! like one beside them is named.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use walkdir::{DirEntry, WalkDir};

use super::files;
use super::removal::remove_file;
use super::within::{followed, inside};
use crate::recipe::FileEntry;
use crate::recipe::places::{IDENTITIES, MachineIdentity, Maker};

/// Name of the unit that makes them at the first boot.
const UNIT: &str = "reflash-identities.service";
/// Beginning of the unit. It comes early, since any service may need what it makes.
const UNIT_HEAD: &str = "[Unit]
Description=Create keys and numbers that are this machine's own
# Packages made them while the image was built. The image has none: every machine makes its own at its first boot and
# keeps them in the /etc overlay on data.
DefaultDependencies=no
Conflicts=shutdown.target
After=local-fs.target systemd-random-seed.service
Before=sysinit.target shutdown.target iscsid.service

[Service]
Type=oneshot
";
/// Directories in which nothing is looked for: what packages have there is theirs, and looking takes long.
const NOT_SEARCHED: [&str; 8] = ["usr", "proc", "sys", "dev", "run", "tmp", "boot", "var/lib/dpkg"];
/// Longest file that is looked into: keys are shorter, data is longer.
const LONGEST_BYTES: u64 = 32 * 1024;
/// Parts of the paths of examples, whose keys open nothing.
const EXAMPLES: &[&str] = &["test", "tests", "testing", "example", "examples"];
/// Ends of names of files with a secret.
const SECRET_ENDINGS: &[&str] = &[".key", ".keytab", ".psk", ".secret", ".p12", ".pfx", ".keystore", ".erlang.cookie"];
/// Paths of such files, by their ends, whose names say nothing alone.
const SECRET_PLACES: &[&str] = &["tinyssh/sshkeydir/.ed25519.sk", "k3s/server/token", "k3s/server/node-token"];
/// Marks of secrets, and of numbers of one machine, in the files that programs keep their settings in.
const SECRET_MARKS: &[&[u8]] = &[
    b"PRIVATE KEY-----",
    b"PRIVATE KEY BLOCK-----",
    b"PuTTY-User-Key-File-",
    b"AGE-SECRET-KEY-1",
    b"client-key-data:",
    b"MY_HOSTID=\"",
];
/// Length of the keys of WireGuard, which have no mark, in Base64.
const WIREGUARD_LENGTH: usize = 44;
/// Databases that packages make while they are installed: a file of theirs, by the end of its path, the number of names
/// from there to the directory that is the database, and what it is.
const DATABASES: &[(&str, usize, &str)] = &[
    ("global/pg_control", 2, "PostgreSQL"),
    ("ibdata1", 1, "MariaDB or MySQL"),
    ("ldap/data.mdb", 1, "OpenLDAP"),
    ("private/secrets.tdb", 1, "Samba"),
    ("krb5kdc/principal", 1, "Kerberos"),
    ("grafana.db", 1, "Grafana"),
    ("influxd.bolt", 1, "InfluxDB"),
    ("WiredTiger.wt", 1, "MongoDB"),
];
/// Marks of what everybody may know, in files that are called keys all the same. The last one is that of the root zone,
/// which resolvers of DNS trust.
const PUBLIC_MARKS: &[&[u8]] = &[b"PUBLIC KEY", b"BEGIN CERTIFICATE", b"DNSKEY"];
/// Number of paths that a note shows.
const SHOWN: usize = 8;

/// Removes what [`IDENTITIES`] lists, with the links to it, and puts in a unit that makes it at the first boot.
///
/// # Errors
/// Fails with the path.
pub fn remove(tree: &Path) -> Result<()> {
    let (mut made, mut missing) = (Vec::new(), Vec::new());
    for identity in IDENTITIES {
        let found = found(tree, identity);
        for path in &found {
            remove_file(path)?;
            remove_links_to(path)?;
        }
        match identity.made_by {
            Maker::Command(program, line) if !found.is_empty() => {
                if followed(tree, Path::new(program)).is_file() {
                    made.push(format!("ExecStart=-/bin/sh -c '[ -e /{} ] || {line}'\n", identity.path));
                } else {
                    missing.push(identity.path);
                }
            }
            _ => {}
        }
    }
    if !made.is_empty() {
        files::linked_unit(tree, UNIT, &(UNIT_HEAD.to_owned() + &made.concat()), "sysinit.target.wants")?;
        eprintln!("  {} keys and numbers of one machine are made by {UNIT} at the first boot of each", made.len());
    }
    for path in missing {
        eprintln!("  /{path} would be the same on every robot and is left out; nothing in the image makes it again");
    }
    Ok(())
}

fn found(tree: &Path, identity: &MachineIdentity) -> Vec<PathBuf> {
    let directory = Path::new(identity.path).parent().unwrap_or(Path::new(""));
    let entries = fs::read_dir(followed(tree, directory)).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()));
    files.filter(|entry| identity.is_at(&directory.join(entry.file_name()))).map(|entry| entry.path()).collect()
}

/// Removes links beside a file that lead to it by its name alone, such as those by the hashes of certificates.
fn remove_links_to(path: &Path) -> Result<()> {
    let beside = path.parent().map(fs::read_dir).into_iter().flatten().flatten().flatten();
    let name = path.file_name().map(Path::new);
    for link in beside.filter(|entry| fs::read_link(entry.path()).ok().as_deref() == name) {
        remove_file(&link.path())?;
    }
    Ok(())
}

/// Names databases, and files that are a secret of one machine by their looks and belong to no package: they are not
/// removed, since the recipe may mean them. Those that the recipe itself puts in are meant.
pub fn name_shared(tree: &Path, placed: &[FileEntry]) {
    let placed: HashSet<PathBuf> = placed.iter().map(|file| inside(tree, &file.path)).collect();
    let of_packages = of_packages(tree);
    let not_searched = NOT_SEARCHED.map(|path| tree.join(path));
    let is_searched = |entry: &DirEntry| !not_searched.iter().any(|path| entry.path() == *path);
    let entries = WalkDir::new(tree).sort_by_file_name().into_iter().filter_entry(is_searched);
    let local = WalkDir::new(tree.join("usr/local")).sort_by_file_name().into_iter();
    let (mut found, mut databases) = (Vec::new(), Vec::new());
    for entry in entries.chain(local).filter_map(Result::ok).filter(|entry| entry.file_type().is_file()) {
        let Some(path) = entry.path().strip_prefix(tree).ok().map(|path| Path::new("/").join(path)) else { continue };
        databases.extend(database(&path));
        if !placed.contains(entry.path()) && !of_packages.contains(&path) && is_secret(&entry, &path) {
            found.push(path.display().to_string());
        }
    }
    if !databases.is_empty() {
        eprintln!(
            "  EVERY ROBOT BEGINS WITH THE SAME DATABASE, its numbers and passwords included: {}; docs/images.md, What \
             each machine makes for itself, says how each gets its own",
            databases.join(", ")
        );
    }
    if !found.is_empty() {
        let more = found.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        found.truncate(SHOWN);
        eprintln!(
            "  EVERY ROBOT WILL HAVE THE SAME KEY: {}{more}; delete such files in `commands`, or put those that the \
             fleet shares in by [[files]]",
            found.join(", ")
        );
    }
}

/// Paths of files that dpkg has installed.
fn of_packages(tree: &Path) -> HashSet<PathBuf> {
    let lists = fs::read_dir(followed(tree, Path::new("var/lib/dpkg/info"))).into_iter().flatten().flatten();
    let lists = lists.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|kind| kind == "list"));
    let texts = lists.filter_map(|path| fs::read_to_string(path).ok());
    texts.flat_map(|text| text.lines().map(PathBuf::from).collect::<Vec<_>>()).collect()
}

fn is_secret(entry: &DirEntry, path: &Path) -> bool {
    if path.iter().any(|name| EXAMPLES.iter().any(|example| name == *example)) {
        return false;
    }
    let name = entry.file_name().to_string_lossy();
    if name.ends_with("_host_key") || name == "hostid" {
        return true;
    }
    let is_short = entry.metadata().is_ok_and(|metadata| (1..=LONGEST_BYTES).contains(&metadata.len()));
    let Some(content) = is_short.then(|| fs::read(entry.path()).ok()).flatten() else { return false };
    let has = |mark: &[u8]| content.windows(mark.len()).any(|window| window == mark);
    // Such as those of munge and WireGuard, which have no mark.
    let is_called_so = SECRET_ENDINGS.iter().any(|ending| name.ends_with(ending));
    let is_called_so = is_called_so || SECRET_PLACES.iter().any(|place| path.ends_with(place));
    SECRET_MARKS.iter().any(|mark| has(mark))
        || content.split(|byte| *byte == b'\n').any(is_wireguard_key)
        || (is_called_so && !PUBLIC_MARKS.iter().any(|mark| has(mark)))
}

/// Whether a line gives a private key of WireGuard, as `wg`, systemd-networkd, NetworkManager, netplan and programs
/// around it write it.
fn is_wireguard_key(line: &[u8]) -> bool {
    let Some((name, value)) = str::from_utf8(line).ok().and_then(|line| line.split_once(['=', ':'])) else {
        return false;
    };
    let value = value.trim_matches([' ', '\t', '\r', '"', '\'', ',']);
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    let is_key = value.len() == WIREGUARD_LENGTH && value.ends_with('=') && value.bytes().all(is_base64);
    is_key && name.to_ascii_lowercase().contains("private")
}

/// Returns the directory of a database, and what it is, for the file that it is known by.
fn database(path: &Path) -> Option<String> {
    let (_, names, what) = DATABASES.iter().find(|(file, ..)| path.ends_with(file))?;
    let directory = path.ancestors().nth(*names).filter(|directory| directory.starts_with("/var"))?;
    Some(format!("{} ({what})", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::{UNIT, database, is_secret, of_packages, remove};
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = tree.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        tree
    }

    /// What the packages ssl-cert, nvme-cli and dropbear made of a build, and the same for every robot.
    #[test]
    fn what_packages_make_for_one_machine_goes_and_comes_again_at_the_first_boot() {
        let gone = [
            ("etc/nvme/hostid", "1"),
            ("etc/nvme/hostnqn", "1"),
            ("etc/ssl/certs/ssl-cert-snakeoil.pem", "1"),
            ("etc/ssl/private/ssl-cert-snakeoil.key", "1"),
            ("etc/dropbear/dropbear_rsa_host_key", "1"),
            ("etc/ssh/ssh_host_rsa_key.pub", "1"),
        ];
        let kept = [("usr/sbin/make-ssl-cert", ""), ("etc/ssh/sshd_config", ""), ("etc/ssl/certs/ca.pem", "")];
        let tree = tree(&[&gone[..], &kept].concat());
        let at = |path: &str| tree.path().join(path);
        symlink("ssl-cert-snakeoil.pem", at("etc/ssl/certs/0123abcd")).unwrap();
        symlink("ca.pem", at("etc/ssl/certs/4567abcd")).unwrap();
        remove(tree.path()).unwrap();
        assert!(gone.iter().all(|(path, _)| !at(path).exists()) && kept.iter().all(|(path, _)| at(path).exists()));
        assert!(!at("etc/ssl/certs/0123abcd").is_symlink() && at("etc/ssl/certs/4567abcd").is_symlink());
        let unit = fs::read_to_string(at("usr/lib/systemd/system").join(UNIT)).unwrap();
        let line = "ExecStart=-/bin/sh -c '[ -e /etc/ssl/private/ssl-cert-snakeoil.key ] || make-ssl-cert ";
        assert!(unit.contains(line) && !unit.contains("dropbearkey"), "{unit}");
        assert!(at("usr/lib/systemd/system/sysinit.target.wants").join(UNIT).exists());
    }

    #[test]
    fn keys_of_no_package_are_known_by_their_looks() {
        let key = "-----BEGIN PRIVATE KEY-----\n";
        let tree = tree(&[
            ("etc/vpn/client.pem", key),
            ("etc/app/x_host_key", "\0"),
            ("etc/zfs/hostid", ""),
            ("etc/app/conf", "key = no"),
            ("opt/lib/tests/server.pem", key),
            ("etc/long", &(key.to_owned() + &"x".repeat(40_000))),
            ("etc/munge/munge.key", "\u{1}\u{2}"),
            ("etc/wireguard/wg0.key", "q83vEjRWeJA=\n"),
            ("etc/krb5.keytab", "x"),
            ("etc/wireguard/wg1.conf", "[Interface]\nPrivateKey = q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=\n"),
            ("etc/netbird/config.json", "{\n \"PrivateKey\": \"q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=\",\n}"),
            (
                "etc/wireguard/wg2.conf",
                "PrivateKeyFile=/run/key\nPublicKey = q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=\n",
            ),
            ("root/.gnupg/old.asc", "-----BEGIN PGP PRIVATE KEY BLOCK-----\n"),
            ("etc/kubernetes/admin.conf", "    client-key-data: LS0t\n"),
            ("etc/popularity-contest.conf", "MY_HOSTID=\"0123abcd\"\n"),
            ("var/lib/rabbitmq/.erlang.cookie", "ABCD"),
            ("var/lib/rancher/k3s/server/token", "K10"),
            ("etc/tinyssh/sshkeydir/.ed25519.sk", "\u{1}"),
            ("etc/app/token", "x"),
            ("etc/app/empty.key", ""),
            ("etc/app/server.key", "-----BEGIN PUBLIC KEY-----\n"),
            ("var/lib/unbound/root.key", ". 172800 IN DNSKEY 257 3 8 AwEA\n"),
            ("var/lib/dpkg/info/app.list", "/.\n/etc/app\n/etc/app/x_host_key\n"),
        ]);
        let secret = |path: &str| {
            let entry = walkdir::WalkDir::new(tree.path().join(path)).into_iter().next().unwrap().unwrap();
            is_secret(&entry, &Path::new("/").join(path))
        };
        assert!(secret("etc/vpn/client.pem") && secret("etc/app/x_host_key") && secret("etc/zfs/hostid"));
        for path in [
            "etc/munge/munge.key",
            "etc/wireguard/wg0.key",
            "etc/krb5.keytab",
            "etc/wireguard/wg1.conf",
            "etc/netbird/config.json",
            "root/.gnupg/old.asc",
            "etc/kubernetes/admin.conf",
            "etc/popularity-contest.conf",
            "var/lib/rabbitmq/.erlang.cookie",
            "var/lib/rancher/k3s/server/token",
            "etc/tinyssh/sshkeydir/.ed25519.sk",
        ] {
            assert!(secret(path), "{path}");
        }
        let open = [
            "etc/app/empty.key",
            "etc/app/server.key",
            "var/lib/unbound/root.key",
            "etc/wireguard/wg2.conf",
            "etc/app/token",
        ];
        for path in open {
            assert!(!secret(path), "{path}");
        }
        assert!(!secret("etc/app/conf") && !secret("opt/lib/tests/server.pem") && !secret("etc/long"));
        assert!(of_packages(tree.path()).contains(Path::new("/etc/app/x_host_key")));
    }

    #[test]
    fn databases_of_packages_are_named_by_their_directories() {
        for (path, named) in [
            ("/var/lib/postgresql/15/main/global/pg_control", "/var/lib/postgresql/15/main (PostgreSQL)"),
            ("/var/lib/mysql/ibdata1", "/var/lib/mysql (MariaDB or MySQL)"),
            ("/var/lib/ldap/data.mdb", "/var/lib/ldap (OpenLDAP)"),
        ] {
            assert_eq!(database(Path::new(path)).as_deref(), Some(named));
        }
        for path in ["/opt/tests/global/pg_control", "/var/lib/app/data.mdb", "/var/lib/mysql/aria_log_control"] {
            assert_eq!(database(Path::new(path)), None, "{path}");
        }
    }
}
