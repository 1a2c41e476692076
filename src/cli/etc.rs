//! `reflash status --etc`: what of `/etc` differs from the image, what hides a newer default, and what became stale.
//!
//! The running system has the image's `/etc` in `/usr/etc`, so that no layer of the overlay has to be opened for most
//! of it, and anybody may ask. `reflash good` keeps the record of when defaults came ([`defaults`]).

mod compare;
mod defaults;

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use self::compare::{Difference, Differing, EtcComparison, Leftovers};
use self::defaults::{Defaults, MAX_BYTES};
use super::answer::{Exit, Failure, complain, failure, print};
use super::mounted::MountedState;
use super::options::Options;
use crate::pid1::system::plan::etc_changes;
use crate::sys::clock::now_unix_s;
use crate::sys::files;

/// The image's `/etc`.
const IMAGE: &str = "/usr/etc";
/// The machine's `/etc`.
const MACHINE: &str = "/etc";
/// Record of when defaults came. It is no secret: what it says of is in the image.
const RECORD: &str = "/var/lib/reflash/etc-defaults";

/// Answers `reflash status --etc`.
pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    let found = match compare::compare(Path::new(IMAGE), Path::new(MACHINE)) {
        Ok(found) => found,
        Err(error) => return failure(format!("compare {MACHINE} with {IMAGE} of the image: {error}")),
    };
    let known = Defaults::parse(&files::read_text(Path::new(RECORD), MAX_BYTES).unwrap_or_default());
    let report = EtcReport::of(found, &known, leftovers(options));
    print(options, &report.json(), || report.text())?;
    Ok(Exit::Done)
}

/// Brings the record up to date, at a good boot. A failure is a warning.
pub(super) fn remember_defaults() {
    if !Path::new(IMAGE).is_dir() {
        return;
    }
    let kept = remember(Path::new(IMAGE), Path::new(MACHINE), Path::new(RECORD), now_unix_s());
    if let Err(error) = kept {
        complain(&format!("when the defaults of {MACHINE} came is not recorded in {RECORD}: {error}"));
    }
}

fn remember(image: &Path, machine: &Path, record: &Path, now_unix_s: u64) -> io::Result<()> {
    let found = compare::compare(image, machine)?;
    let before = match files::read_text(record, MAX_BYTES) {
        Ok(text) => Defaults::parse(&text),
        Err(error) if error.kind() == ErrorKind::NotFound => Defaults::default(),
        Err(error) => return Err(error),
    };
    let is_there = |path: &str| machine.join(path).symlink_metadata().is_ok();
    let next = before.next(&found.defaults, is_there, now_unix_s);
    if next == before {
        return Ok(());
    }
    let new = record.with_added_extension("new");
    fs::create_dir_all(record.parent().unwrap_or(record))?;
    let mut file = fs::File::create(&new)?;
    file.write_all(next.text().as_bytes())?;
    file.sync_all()?;
    fs::rename(new, record)
}

/// Looks through the machine's own layer, which only root can mount.
fn leftovers(options: &Options) -> Result<Leftovers, String> {
    if fs::metadata("/proc/self").is_ok_and(|process| process.uid() != 0) {
        return Err("only root can look for them".to_owned());
    }
    let mut mounted = MountedState::open(options).map_err(|failure| failure.text)?;
    let data = mounted.mount_data().map_err(|failure| failure.text)?;
    compare::leftovers(&etc_changes(&data), Path::new(IMAGE)).map_err(|error| format!("read the changes: {error}"))
}

/// What the command says.
struct EtcReport {
    comparison: EtcComparison,
    /// Machine's entries over a default that is newer than they are.
    hides_newer: Vec<PathBuf>,
    /// Machine's copies of what the image does not have any more.
    left_over: Vec<PathBuf>,
    leftovers: Result<Leftovers, String>,
}

impl EtcReport {
    fn of(comparison: EtcComparison, known: &Defaults, leftovers: Result<Leftovers, String>) -> Self {
        let of = |one: &Differing| known.0.get(one.path.to_str()?).copied();
        let hides = |one: &&Differing| {
            let Some(known) = of(one).filter(|known| known.digest.is_some()) else { return false };
            let own = known.deleted_unix_s.filter(|_| one.difference == Difference::Deleted);
            own.unwrap_or(one.changed_unix_s) < known.since_unix_s
        };
        let is_left_over = |one: &&Differing| of(one).is_some_and(|known| known.digest.is_none());
        let paths = |chosen: &dyn Fn(&&Differing) -> bool| -> Vec<PathBuf> {
            comparison.differing.iter().filter(chosen).map(|one| one.path.clone()).collect()
        };
        let (hides_newer, left_over) = (paths(&hides), paths(&is_left_over));
        Self { comparison, hides_newer, left_over, leftovers }
    }

    fn json(&self) -> Value {
        let differing: Vec<Value> = self
            .comparison
            .differing
            .iter()
            .map(|one| {
                json!({
                    "path": shown(&one.path), "difference": word(&one.difference),
                    "changed": if let Difference::Changed(what) = &one.difference { what.as_slice() } else { &[] },
                    "hides_newer": self.hides_newer.contains(&one.path),
                    "not_in_image_any_more": self.left_over.contains(&one.path),
                })
            })
            .collect();
        let unread: Vec<Value> =
            self.comparison.unread.iter().map(|(path, why)| json!({ "path": shown(path), "why": why })).collect();
        let list = |paths: &[PathBuf]| paths.iter().map(|path| shown(path)).collect::<Vec<String>>();
        json!({
            "differing": differing, "unread": unread,
            "stale_marks": self.leftovers.as_ref().ok().map(|found| list(&found.marks)),
            "needless_copies": self.leftovers.as_ref().ok().map(|found| list(&found.copies)),
            "not_looked_for": self.leftovers.as_ref().err(),
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for one in &self.comparison.differing {
            let what = match &one.difference {
                Difference::Changed(what) => format!("changed  {} ({})", shown(&one.path), what.join(", ")),
                other => format!("{:8} {}", word(other), shown(&one.path)),
            };
            let hides = if self.hides_newer.contains(&one.path) { "; HIDES A NEWER DEFAULT" } else { "" };
            let left = if self.left_over.contains(&one.path) { "; the image does not have it any more" } else { "" };
            text += &format!("{what}{hides}{left}\n");
        }
        match &self.leftovers {
            Ok(found) => {
                let line = |what: &str, path: &PathBuf| format!("{what} {}\n", shown(path));
                found.marks.iter().for_each(|path| text += &line("stale    mark of deletion for", path));
                found
                    .copies
                    .iter()
                    .for_each(|path| text += &line("same     as the image, but a copy of its own:", path));
            }
            Err(why) => text += &format!("stale marks of deletion and needless copies are not listed: {why}\n"),
        }
        for (path, why) in &self.comparison.unread {
            text += &format!("unread   {}: {why}\n", shown(path));
        }
        let count = self.comparison.differing.len();
        text + &format!("{count} names differ from the image; {} hide a newer default", self.hides_newer.len())
    }
}

/// A path as people and JSON get it: what is not UTF-8, or controls a terminal, is escaped.
fn shown(path: &Path) -> String {
    let name = path.to_str().filter(|name| !name.contains(char::is_control));
    let name = name.map_or_else(|| path.as_os_str().as_encoded_bytes().escape_ascii().to_string(), str::to_owned);
    format!("{MACHINE}/{name}")
}

fn word(difference: &Difference) -> &'static str {
    match difference {
        Difference::Added => "added",
        Difference::Deleted => "deleted",
        Difference::OtherKind => "kind",
        Difference::Changed(_) => "changed",
    }
}

#[cfg(test)]
mod tests {
    use super::compare::{Leftovers, compare};
    use super::defaults::Defaults;
    use super::{EtcReport, remember};
    use std::fs;
    use std::path::Path;

    fn report(image: &Path, machine: &Path, record: &Path) -> EtcReport {
        let known = Defaults::parse(&fs::read_to_string(record).unwrap());
        EtcReport::of(compare(image, machine).unwrap(), &known, Err("x".to_owned()))
    }

    #[test]
    fn a_copy_that_is_older_than_the_default_hides_it_until_it_is_touched() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        let (image, machine, record) = (at("image"), at("machine"), at("lib/record"));
        for root in [&image, &machine] {
            fs::create_dir(root).unwrap();
            ["edited", "deleted", "left", "same"].iter().for_each(|name| fs::write(root.join(name), "1").unwrap());
        }
        fs::write(machine.join("edited"), "own").unwrap();
        fs::write(machine.join("left"), "own").unwrap();
        fs::remove_file(machine.join("deleted")).unwrap();
        let now = super::now_unix_s();
        remember(&image, &machine, &record, now).unwrap();
        let first = report(&image, &machine, &record);
        assert_eq!((first.hides_newer.len(), first.left_over.len(), first.comparison.differing.len()), (0, 0, 3));
        // The next release, an hour later: it has a new default for each, and one not any more.
        ["edited", "deleted", "same"].iter().for_each(|name| fs::write(image.join(name), "2").unwrap());
        fs::write(machine.join("same"), "2").unwrap();
        fs::remove_file(image.join("left")).unwrap();
        remember(&image, &machine, &record, now + 3600).unwrap();
        let second = report(&image, &machine, &record);
        let names =
            |paths: &[std::path::PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        assert_eq!(names(&second.hides_newer), ["deleted", "edited"]);
        assert_eq!(names(&second.left_over), ["left"]);
        let text = second.text();
        assert!(text.contains("changed  /etc/edited (content); HIDES A NEWER DEFAULT\n"), "{text}");
        assert!(text.contains("added    /etc/left; the image does not have it any more\n"), "{text}");
        assert!(text.ends_with("3 names differ from the image; 2 hide a newer default"), "{text}");
        assert_eq!(second.json()["differing"][0]["path"], "/etc/left");
        // A default that came before the copy was looked at again is not hidden unknowingly.
        let text = fs::read_to_string(&record).unwrap().replace(&format!("{}", now + 3600), &format!("{now}"));
        fs::write(&record, text).unwrap();
        fs::write(machine.join("edited"), "own again").unwrap();
        assert!(!names(&report(&image, &machine, &record).hides_newer).contains(&"edited".to_owned()));
    }

    #[test]
    fn a_file_of_the_machine_hides_a_directory_that_a_release_brings_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        let (image, machine, record) = (at("image"), at("machine"), at("lib/record"));
        for root in [&image, &machine] {
            fs::create_dir(root).unwrap();
            fs::write(root.join("app.conf"), "").unwrap();
        }
        fs::write(machine.join("app.conf"), "own").unwrap();
        let now = super::now_unix_s();
        remember(&image, &machine, &record, now).unwrap();
        assert!(report(&image, &machine, &record).hides_newer.is_empty());
        fs::remove_file(image.join("app.conf")).unwrap();
        fs::create_dir(image.join("app.conf")).unwrap();
        fs::write(image.join("app.conf/10-new"), "").unwrap();
        remember(&image, &machine, &record, now + 3600).unwrap();
        let found = report(&image, &machine, &record);
        assert_eq!((found.hides_newer, found.left_over), (vec!["app.conf".into()], Vec::new()));
    }

    #[test]
    #[ignore = "needs root: to make marks of deletion; cargo xtask test --tier root"]
    fn marks_and_copies_that_serve_nothing_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        ["image/d", "upper/d"].iter().for_each(|name| fs::create_dir_all(at(name)).unwrap());
        for path in ["image/d/copy", "upper/d/copy", "image/d/own", "image/d/deleted"] {
            fs::write(at(path), "1").unwrap();
        }
        fs::write(at("upper/d/own"), "2").unwrap();
        crate::sys::files::make_whiteout(&at("upper/d/deleted")).unwrap();
        crate::sys::files::make_whiteout(&at("upper/d/stale")).unwrap();
        let Leftovers { marks, copies } = super::compare::leftovers(&at("upper"), &at("image")).unwrap();
        assert_eq!((marks, copies), (vec!["d/stale".into()], vec!["d/copy".into()]));
    }
}
