//! Of what day the packages of a kept tree are, and whether their archives have changed since.
//!
//! A tree that is kept for ever is a system whose security updates never arrive. So each build asks the archives for
//! their Release files, a few hundred KiB, by the host's own apt: that knows proxies, credentials and signatures.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::removal::remove_tree;
use crate::{mirror, step};

/// State of a package archive, as its Release file says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ArchiveState {
    /// Name of the suite or pocket, such as `bookworm-security`.
    pub name: String,
    /// Name of the publisher, such as `Debian`.
    pub origin: String,
    /// Time of its last change, seconds since 1970.
    pub changed_unix_s: u64,
}

/// Package with the latest time among the installed ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewestPackage {
    /// Name of the package.
    pub name: String,
    /// Version of the package.
    pub version: String,
    /// Time of its newest file, seconds since 1970.
    pub changed_unix_s: u64,
}

/// Day that the packages of an image are of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackagesDay {
    /// Archives that they are from.
    pub archives: Vec<ArchiveState>,
    /// Newest of them, where it could be found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<NewestPackage>,
    /// Time that the recipe pins the archives to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
}

impl PackagesDay {
    /// Returns the archives with their days, for people.
    #[must_use]
    pub fn archives_text(&self) -> Vec<String> {
        self.archives.iter().map(|one| format!("{} {} of {}", one.origin, one.name, day(one.changed_unix_s))).collect()
    }

    /// Returns the time of the last change of any of the archives.
    #[must_use]
    pub fn archive_time(&self) -> Option<u64> {
        self.archives.iter().map(|archive| archive.changed_unix_s).max()
    }
}

impl std::fmt::Display for PackagesDay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the packages are from {}", self.archives_text().join(", "))?;
        if let Some(NewestPackage { name, version, changed_unix_s }) = &self.newest {
            write!(f, "; the newest of them is {name} {version} of {}", day(*changed_unix_s))?;
        }
        if let Some(snapshot) = &self.snapshot {
            write!(f, "; distribution.snapshot pins them to {snapshot}")?;
        }
        Ok(())
    }
}

/// Returns the day of a time, in UTC.
pub fn day(unix_s: u64) -> String {
    let seconds = i64::try_from(unix_s).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    seconds.map_or_else(|| "no day".to_owned(), |time| time.strftime("%Y-%m-%d").to_string())
}

/// Directory beside a kept tree, with what its archives were like when it was made.
#[derive(Debug, Clone)]
pub struct ArchiveRecord(PathBuf);

/// Script that fills a record, from a tree (`$1`) whose apt has done its work. Files of a package carry the times of
/// its source, so that the newest that is not newer than the archive shows the newest package.
const RECORD: &str = include_str!("record_archives.sh");

/// Script that copies the archives' addresses, before packages can add some of their own.
const ADDRESSES: &str = "mkdir -p \"$2/lists\" \"$2/parts\"\n\
    cat \"$1\"/etc/apt/sources.list \"$1\"/etc/apt/sources.list.d/*.list > \"$2/sources.list\" 2> /dev/null || true\n\
    cp \"$1\"/etc/apt/sources.list.d/*.sources \"$2/parts/\" 2> /dev/null || true\n";

impl ArchiveRecord {
    /// Returns the record in a directory, which may be missing yet.
    #[must_use]
    pub fn at(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// Returns two commands for a shell, each to be followed by the tree: for before and for after the installation.
    /// Their scripts are put into `scratch`.
    ///
    /// # Errors
    /// Fails when they cannot be written there.
    pub fn hooks(&self, scratch: &Path) -> Result<[String; 2]> {
        remove_tree(&self.0)?;
        fs::create_dir_all(&self.0).with_context(|| format!("create {}", self.0.display()))?;
        let hook = |name: &str, script: &str| -> Result<String> {
            let path = scratch.join(name);
            fs::write(&path, script).with_context(|| format!("write {}", path.display()))?;
            Ok(format!("sh -e {}", quoted(&path)))
        };
        Ok([hook("addresses.sh", ADDRESSES)?, hook("record.sh", RECORD)?])
    }

    /// Completes a hook: the command, the tree as the shell sees it, and this record.
    #[must_use]
    pub fn line(&self, hook: &str, tree: &str) -> String {
        format!("{hook} {tree} {}", quoted(&self.0))
    }

    /// Moves the record to the place of another one.
    ///
    /// # Errors
    /// Fails when it cannot be moved.
    pub fn replace(&self, old: &Self) -> Result<()> {
        remove_tree(&old.0)?;
        fs::rename(&self.0, &old.0).with_context(|| format!("rename {}", self.0.display()))
    }

    /// Reads the day of the packages.
    ///
    /// # Errors
    /// Fails when the record is missing or damaged.
    pub fn read(&self) -> Result<PackagesDay> {
        let mut archives = Vec::new();
        for (name, content) in self.releases()? {
            let text = String::from_utf8_lossy(&content);
            archives.extend((!name.ends_with(".gpg")).then(|| state(&text)).flatten());
        }
        // InRelease, and Release beside it, say the same.
        archives.sort();
        archives.dedup();
        ensure!(!archives.is_empty(), "the archive's index files carry no date; set `timestamp` in the recipe");
        Ok(PackagesDay { archives, newest: self.newest(), snapshot: None })
    }

    fn newest(&self) -> Option<NewestPackage> {
        let text = fs::read_to_string(self.0.join("newest")).ok()?;
        let mut words = text.split_whitespace();
        let changed_unix_s = words.next()?.parse().ok()?;
        Some(NewestPackage { changed_unix_s, name: words.next()?.to_owned(), version: words.next()?.to_owned() })
    }

    /// The Release files by their names in apt's directory of lists.
    fn releases(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        releases(&self.0.join("lists"))
    }

    /// Asks the archives, by the host's apt, which of them have changed since: their names and days. `keyring` is that
    /// of the recipe.
    ///
    /// # Errors
    /// Fails when an archive does not answer, or is not signed as it must be.
    pub fn changed(&self, keyring: Option<&Path>) -> Result<Vec<String>> {
        let before = self.releases()?;
        let scratch = self.0.join("check");
        remove_tree(&scratch)?;
        fs::create_dir_all(scratch.join("lists/partial")).context("prepare to ask the package archives")?;
        fs::create_dir_all(scratch.join("cache/archives/partial")).context("prepare to ask the package archives")?;
        for (name, content) in &before {
            // With these apt asks for what is newer, and most servers answer with nothing.
            let path = scratch.join("lists").join(name);
            fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        }
        update(&self.0, &scratch, keyring)?;
        let now = releases(&scratch.join("lists"))?;
        remove_tree(&scratch)?;
        let is_changed = |name: &String| now.get(name).is_some_and(|content| before.get(name) != Some(content));
        let changed = before.keys().filter(|name| is_changed(name));
        let text = |name: &String| state(&String::from_utf8_lossy(&now[name]));
        let mut changed: Vec<String> =
            changed.filter_map(text).map(|now| format!("{} {}", now.name, day(now.changed_unix_s))).collect();
        changed.dedup();
        Ok(changed)
    }
}

fn releases(directory: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", directory.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with("Release") || name.ends_with("Release.gpg") {
            found.insert(name, fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
    }
    Ok(found)
}

/// Runs `apt-get update` so that it touches nothing of the host's and fetches no lists of packages.
fn update(record: &Path, scratch: &Path, keyring: Option<&Path>) -> Result<()> {
    let mut settings = vec![
        "Dir::Etc::main \"/dev/null\"".to_owned(),
        "Dir::Etc::parts \"/nonexistent\"".to_owned(),
        format!("Dir::Etc::sourcelist \"{}\"", record.join("sources.list").display()),
        format!("Dir::Etc::sourceparts \"{}\"", record.join("parts").display()),
        format!("Dir::State::lists \"{}\"", scratch.join("lists").display()),
        format!("Dir::Cache \"{}\"", scratch.join("cache").display()),
        "Dir::State::status \"/dev/null\"".to_owned(),
        "APT::Sandbox::User \"root\"".to_owned(),
        "APT::Update::Error-Mode \"any\"".to_owned(),
        "Acquire::Languages \"none\"".to_owned(),
        "Acquire::IndexTargets::deb::Packages::DefaultEnabled \"false\"".to_owned(),
        // A build must not hang for long at a network that swallows everything.
        "Acquire::http::Timeout \"20\"".to_owned(),
        "Acquire::https::Timeout \"20\"".to_owned(),
        "Acquire::Retries \"1\"".to_owned(),
    ];
    settings.extend(mirror::apt_options());
    if let Some(keyring) = keyring {
        settings.push(format!("Dir::Etc::trusted \"{}\"", keyring.display()));
    }
    let file = scratch.join("apt.conf");
    let text: String = settings.iter().map(|line| format!("{line};\n")).collect();
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    let mut command = Command::new("apt-get");
    command.args(["--quiet", "update"]).env("APT_CONFIG", &file).env("LC_ALL", "C.UTF-8").env_remove("LANGUAGE");
    let output = command.stdin(Stdio::null()).output().context("start apt-get")?;
    let said = String::from_utf8_lossy(&output.stderr);
    // An apt before 2.5.4 does not know the mode of errors and succeeds with a warning.
    let first = said.lines().find(|line| line.starts_with("E:") || line.starts_with("W: Failed to fetch"));
    match (output.status.success(), first) {
        (true, None) => Ok(()),
        (_, Some(line)) => bail!("{}", line.trim_start_matches(['E', 'W', ':', ' '])),
        (false, None) => bail!("apt-get update ended with {}", output.status),
    }
}

/// Parses a Release file, signed inside or not.
fn state(text: &str) -> Option<ArchiveState> {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(|value| value.trim().to_owned())
    };
    let changed_unix_s = parse_date(&field("Date")?)?;
    let name = field("Codename").or_else(|| field("Suite")).unwrap_or_else(|| "flat".to_owned());
    Some(ArchiveState { name, origin: field("Origin").unwrap_or_else(|| "archive".to_owned()), changed_unix_s })
}

/// Parses a date such as `Sat, 06 Sep 2025 10:09:31 UTC`, the only form that archives use.
#[must_use]
pub fn parse_date(text: &str) -> Option<u64> {
    let zoneless = ["UTC", "GMT", "+0000"].iter().find_map(|zone| text.trim().strip_suffix(zone))?;
    let time = jiff::civil::DateTime::strptime("%a, %d %b %Y %H:%M:%S", zoneless.trim()).ok()?;
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    u64::try_from(time.timestamp().as_second()).ok()
}

/// Quotes a path for a shell.
#[must_use]
pub fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Outcome for kept packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackageRenewal {
    /// The tree was made by this build.
    Made,
    /// The archives have not changed since the tree was made.
    Current,
    /// The recipe pins the archives.
    Pinned,
    /// The kept tree was used, although the archives may have changed.
    Kept {
        /// Reason for it.
        because: String,
    },
}

impl PackageRenewal {
    /// Reports of what day the packages of an image are, and whether they were renewed.
    pub fn report(&self, day: &PackagesDay) {
        eprintln!("  {day}");
        match self {
            Self::Made | Self::Pinned => {}
            Self::Current => eprintln!("  the archives have not changed since"),
            Self::Kept { because } => eprintln!("  packages were NOT renewed: {because}"),
        }
    }
}

/// Decides whether a kept tree may be used again; `None` asks for a new one.
pub fn decide(record: &ArchiveRecord, wish: RenewalWish<'_>) -> Option<PackageRenewal> {
    match wish {
        RenewalWish::Keep { because } => Some(PackageRenewal::Kept { because: because.to_owned() }),
        RenewalWish::Pinned => Some(PackageRenewal::Pinned),
        RenewalWish::Renew { keyring } => {
            match step::step("ask the package archives for changes", || Ok(record.changed(keyring))) {
                Ok(Ok(changed)) if changed.is_empty() => Some(PackageRenewal::Current),
                Ok(Ok(changed)) => {
                    eprintln!("  the archives changed ({}), so the packages are renewed", changed.join(", "));
                    None
                }
                Ok(Err(error)) | Err(error) => Some(PackageRenewal::Kept {
                    because: format!(
                        "one of the archives could not be asked ({error:#}); build again with a network, or with --fresh, \
                         which fails where it cannot be used at all"
                    ),
                }),
            }
        }
    }
}

/// Wish for packages that are kept from an earlier build.
#[derive(Debug, Clone, Copy)]
pub enum RenewalWish<'a> {
    /// Use them as they are.
    Keep {
        /// Reason for it, and what to do for others.
        because: &'a str,
    },
    /// Use them, because the recipe pins the archives.
    Pinned,
    /// Renew them if the archives changed.
    Renew {
        /// Key ring of the recipe.
        keyring: Option<&'a Path>,
    },
}

#[cfg(test)]
mod tests {
    use super::{ArchiveRecord, PackageRenewal, PackagesDay, RenewalWish, day, decide, parse_date, quoted, state};
    use std::fs;
    use std::path::Path;

    const RELEASE: &str = "Origin: Debian\nSuite: oldstable-security\nCodename: bookworm-security\n\
                           Date: Thu, 26 Nov 2026 20:14:05 UTC\nMD5Sum:\n Date: none\n";

    fn record(directory: &Path) -> ArchiveRecord {
        fs::create_dir_all(directory.join("lists")).unwrap();
        fs::write(directory.join("lists/a.example_dists_bookworm-security_InRelease"), RELEASE).unwrap();
        fs::write(directory.join("lists/a.example_dists_bookworm_Release.gpg"), "signature").unwrap();
        fs::write(directory.join("newest"), "1795600000 openssl 3.0.18-1~deb12u2\n").unwrap();
        ArchiveRecord::at(directory.to_owned())
    }

    #[test]
    fn dates_of_release_files_are_read() {
        assert_eq!(parse_date("Thu, 01 Jan 1970 00:00:00 UTC"), Some(0));
        assert_eq!(parse_date("Sat, 06 Sep 2025 10:09:31 UTC"), Some(1_757_153_371));
        assert_eq!(parse_date("Thu, 29 Feb 2024 23:59:59 UTC"), Some(1_709_251_199));
        assert_eq!(parse_date("Sat,  6 Sep 2025  0:09:31 UTC"), Some(1_757_117_371));
        assert_eq!(parse_date("tomorrow"), None);
    }

    #[test]
    fn a_release_file_says_its_name_and_day() {
        let found = state(&format!("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{RELEASE}")).unwrap();
        assert_eq!((found.origin.as_str(), found.name.as_str()), ("Debian", "bookworm-security"));
        assert_eq!(day(found.changed_unix_s), "2026-11-26");
        assert_eq!(state("Suite: x\n"), None);
    }

    #[test]
    fn the_day_of_packages_is_said_in_full() {
        let directory = tempfile::tempdir().unwrap();
        let found = record(directory.path()).read().unwrap();
        assert_eq!(
            found.to_string(),
            "the packages are from Debian bookworm-security of 2026-11-26; the newest of them is openssl \
             3.0.18-1~deb12u2 of 2026-11-25"
        );
        assert_eq!(found.archive_time(), Some(1_795_724_045));
        let pinned = PackagesDay { snapshot: Some("20261120T000000Z".into()), ..found };
        assert!(pinned.to_string().ends_with("pins them to 20261120T000000Z"));
        fs::remove_dir_all(directory.path().join("lists")).unwrap();
        fs::create_dir(directory.path().join("lists")).unwrap();
        let error = ArchiveRecord::at(directory.path().to_owned()).read().unwrap_err().to_string();
        assert!(error.contains("timestamp"), "{error}");
    }

    #[test]
    fn the_newest_package_is_that_of_the_newest_file_which_is_not_newer_than_the_archive() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("a tree");
        let made = |path: &str, text: &str, unix_s: u64| {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_s);
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        made("etc/apt/sources.list", "deb http://a.example bookworm main\n", 1);
        made("var/lib/apt/lists/a.example_dists_bookworm-security_InRelease", RELEASE, 1_795_724_045);
        made("usr/lib/ssl.so", "", 1_795_600_000);
        made("usr/lib/old.so", "", 1_695_600_000);
        // What the installation made, and what belongs to no package.
        made("usr/lib/made", "", 1_795_800_000);
        made("usr/share/info/dir", "", 1_795_700_000);
        made("var/lib/dpkg/info/libssl3:amd64.list", "/.\n/lib/ssl.so\n", 1);
        made("var/lib/dpkg/info/libold.list", "/usr/lib/old.so\n/usr/lib/made\n", 1);
        let status = "Package: libssl3\nStatus: install ok installed\nArchitecture: amd64\nMulti-Arch: same\n\
                      Version: 3.0.18-1\nMaintainer: a\nDescription: b\n\n";
        made("var/lib/dpkg/status", status, 1);
        made("var/lib/dpkg/arch", "amd64\n", 1);
        let record = ArchiveRecord::at(directory.path().join("it's a record"));
        for hook in record.hooks(directory.path()).unwrap() {
            let line = record.line(&hook, &quoted(&tree));
            assert!(std::process::Command::new("sh").args(["-ec", &line]).status().unwrap().success());
        }
        let newest = record.read().unwrap().newest.unwrap();
        assert_eq!((newest.name.as_str(), newest.version.as_str()), ("libssl3", "3.0.18-1"));
        assert_eq!(newest.changed_unix_s, 1_795_600_000);
        let addresses = fs::read_to_string(directory.path().join("it's a record/sources.list")).unwrap();
        assert!(addresses.contains("a.example"));
    }

    #[test]
    fn packages_that_are_kept_say_why() {
        let directory = tempfile::tempdir().unwrap();
        let record = record(directory.path());
        let kept = decide(&record, RenewalWish::Keep { because: "--keep-packages" });
        assert_eq!(kept, Some(PackageRenewal::Kept { because: "--keep-packages".into() }));
        assert_eq!(decide(&record, RenewalWish::Pinned), Some(PackageRenewal::Pinned));
    }

    #[test]
    fn an_archive_that_changed_is_noticed_and_one_that_did_not_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (repository, record) = (directory.path().join("repository"), directory.path().join("record"));
        fs::create_dir_all(&repository).unwrap();
        fs::create_dir_all(record.join("lists")).unwrap();
        let release = |minute: u8| {
            let text = RELEASE.replace("20:14:05", &format!("20:{minute}:05"));
            fs::write(repository.join("Release"), text.replace("MD5Sum:\n Date: none\n", "SHA256:\n")).unwrap();
        };
        release(14);
        let line = format!("deb [trusted=yes] file:{} ./\n", repository.display());
        fs::write(record.join("sources.list"), line).unwrap();
        let name = format!("{}_._Release", repository.display().to_string().replace('/', "_"));
        fs::copy(repository.join("Release"), record.join("lists").join(name)).unwrap();
        let record = ArchiveRecord::at(record);
        assert_eq!(decide(&record, RenewalWish::Renew { keyring: None }), Some(PackageRenewal::Current));
        release(15);
        assert_eq!(record.changed(None).unwrap(), ["bookworm-security 2026-11-26"]);
        assert_eq!(decide(&record, RenewalWish::Renew { keyring: None }), None);
    }

    #[test]
    fn archives_that_do_not_answer_leave_the_kept_packages() {
        let directory = tempfile::tempdir().unwrap();
        let record = record(directory.path());
        // Nothing listens on the port of discard.
        fs::write(directory.path().join("sources.list"), "deb http://127.0.0.1:9/debian bookworm main\n").unwrap();
        let kept = decide(&record, RenewalWish::Renew { keyring: None });
        let Some(PackageRenewal::Kept { because }) = kept else { panic!("{kept:?}") };
        assert!(["could not be asked", "127.0.0.1", "--fresh"].iter().all(|said| because.contains(said)), "{because}");
    }

    #[test]
    fn paths_are_quoted_for_the_shell() {
        assert_eq!(quoted(Path::new("/a b'c")), r"'/a b'\''c'");
    }
}
