//! The difference between two images as text for people. Pure.

use std::fmt;

use super::accounts::AccountEntry;
use super::difference::{ContentsDifference, FileChanges, ImageIdentity, NamedChange, PackageChanges, VersionChange};
use super::units::UnitEnablement;
use super::{FileFacts, difference::SizeChange};
use crate::step::mib;

/// Most lines of one kind; JSON has all of them.
const MOST_LINES: usize = 40;
/// Most files of one kind.
const MOST_FILES: usize = 12;
/// Most packages whose size is shown.
const MOST_SIZES: usize = 8;

impl fmt::Display for ContentsDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} -> {}", titled(&self.old), titled(&self.new))?;
        match &self.packages {
            Some(packages) => packages_text(f, packages, &self.old, &self.new)?,
            None => writeln!(f, "packages: a system has no package database that is known here (dpkg, apk)")?,
        }
        accounts_text(f, "user", &self.users)?;
        accounts_text(f, "group", &self.groups)?;
        units_text(f, &self.units)?;
        rights_text(f, &self.rights)?;
        files_text(f, &self.files)?;
        sizes_text(f, self)
    }
}

fn titled(image: &ImageIdentity) -> String {
    format!("{} {} ({})", image.name, image.version, image.distribution)
}

fn limited<T>(
    f: &mut fmt::Formatter<'_>,
    list: &[T],
    most: usize,
    line: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    list.iter().take(most).try_for_each(|one| line(f, one))?;
    match list.len().saturating_sub(most) {
        0 => Ok(()),
        more => writeln!(f, "    and {more} more, which --json lists"),
    }
}

fn packages_text(
    f: &mut fmt::Formatter<'_>,
    changes: &PackageChanges,
    old: &ImageIdentity,
    new: &ImageIdentity,
) -> fmt::Result {
    let PackageChanges { added, removed, upgraded, downgraded } = changes;
    writeln!(
        f,
        "packages: {} upgraded, {} downgraded, {} added, {} removed; {} packages before, {} now",
        upgraded.len(),
        downgraded.len(),
        added.len(),
        removed.len(),
        old.packages,
        new.packages
    )?;
    let version = |f: &mut fmt::Formatter<'_>, word: &str, change: &VersionChange| {
        writeln!(f, "  {word:<10} {} {} -> {}", change.name, change.old, change.new)
    };
    // What went back comes first: it is mostly not meant.
    limited(f, downgraded, MOST_LINES, |f, change| version(f, "downgraded", change))?;
    limited(f, upgraded, MOST_LINES, |f, change| version(f, "upgraded", change))?;
    limited(f, added, MOST_LINES, |f, package| writeln!(f, "  added      {} {}", package.name, package.version))?;
    limited(f, removed, MOST_LINES, |f, package| writeln!(f, "  removed    {} {}", package.name, package.version))
}

fn accounts_text(f: &mut fmt::Formatter<'_>, word: &str, changes: &[NamedChange<AccountEntry>]) -> fmt::Result {
    if changes.is_empty() {
        return Ok(());
    }
    writeln!(f, "{word}s: {} differ", changes.len())?;
    limited(f, changes, MOST_LINES, |f, change| {
        let name = &change.name;
        match (&change.old, &change.new) {
            (Some(old), Some(new)) if old.number != new.number => writeln!(
                f,
                "  {name}: number {} is now {}; what it owns on data partitions keeps the old number",
                old.number, new.number
            ),
            (Some(old), Some(new)) => {
                writeln!(f, "  {name}: {} -> {}", old.details.join(" "), new.details.join(" "))
            }
            (_, Some(new)) => writeln!(f, "  new {word}: {name} ({})", new.number),
            (old, None) => {
                writeln!(f, "  removed {word}: {name} ({})", old.as_ref().map_or(0, |old| old.number))
            }
        }
    })
}

fn units_text(f: &mut fmt::Formatter<'_>, changes: &[NamedChange<UnitEnablement>]) -> fmt::Result {
    if changes.is_empty() {
        return Ok(());
    }
    writeln!(f, "units of systemd: {} differ", changes.len())?;
    let word = |state: UnitEnablement| match state {
        UnitEnablement::Enabled => "enabled",
        UnitEnablement::Masked => "masked",
    };
    limited(f, changes, MOST_LINES, |f, change| match (change.old, change.new) {
        (_, Some(new)) => writeln!(f, "  now {}: {}", word(new), change.name),
        (Some(old), None) => writeln!(f, "  no longer {}: {}", word(old), change.name),
        (None, None) => Ok(()),
    })
}

fn rights_text(f: &mut fmt::Formatter<'_>, changes: &[NamedChange<FileFacts>]) -> fmt::Result {
    if changes.is_empty() {
        return Ok(());
    }
    writeln!(f, "files that give rights (setuid, setgid, capabilities): {} differ", changes.len())?;
    let rights = |file: &FileFacts| {
        let capability = file.capability.as_ref().map_or(String::new(), |value| format!(", capabilities {value}"));
        format!("mode {}, owner {}:{}{capability}", file.mode, file.uid, file.gid)
    };
    limited(f, changes, MOST_LINES, |f, change| match (&change.old, &change.new) {
        (Some(old), Some(new)) => writeln!(f, "  {}: {} -> {}", printable(&change.name), rights(old), rights(new)),
        (None, Some(new)) => writeln!(f, "  new: {}, {}", printable(&change.name), rights(new)),
        (Some(_), None) => writeln!(f, "  no longer: {}", printable(&change.name)),
        (None, None) => Ok(()),
    })
}

fn files_text(f: &mut fmt::Formatter<'_>, changes: &FileChanges) -> fmt::Result {
    let FileChanges { added, removed, changed } = changes;
    writeln!(f, "files: {} changed, {} added, {} removed", changed.len(), added.len(), removed.len())?;
    let of = |file: Option<&FileFacts>| match file.and_then(|file| file.package.as_deref()) {
        Some(package) => format!(" ({package})"),
        None => String::new(),
    };
    // Files of packages follow from the packages; what belongs to none is what a person looks for.
    let first = |list: &[NamedChange<FileFacts>]| {
        let mut list = list.to_vec();
        let owned = |change: &NamedChange<FileFacts>| change.new.as_ref().or(change.old.as_ref())?.package.clone();
        list.sort_by_key(|change| owned(change).is_some());
        list
    };
    limited(f, &first(changed), MOST_FILES, |f, change| {
        let what = change.what.join(", ");
        writeln!(f, "  changed    {}{}: {what}", printable(&change.name), of(change.new.as_ref()))
    })?;
    limited(f, &first(added), MOST_FILES, |f, change| {
        writeln!(f, "  added      {}{}", printable(&change.name), of(change.new.as_ref()))
    })?;
    limited(f, &first(removed), MOST_FILES, |f, change| {
        writeln!(f, "  removed    {}{}", printable(&change.name), of(change.old.as_ref()))
    })
}

fn sizes_text(f: &mut fmt::Formatter<'_>, difference: &ContentsDifference) -> fmt::Result {
    let (old, new) = (difference.old.content_bytes, difference.new.content_bytes);
    writeln!(f, "size of all files: {} -> {} ({})", mib(old), mib(new), change_of(old, new))?;
    limited(f, &difference.sizes, MOST_SIZES, |f, size: &SizeChange| {
        let name = size.package.as_deref().unwrap_or("files of no package");
        writeln!(f, "  {:>12}  {name}", change_of(size.old_bytes, size.new_bytes))
    })
}

fn change_of(old: u64, new: u64) -> String {
    let sign = if new < old { '-' } else { '+' };
    format!("{sign}{:.2} MiB", old.abs_diff(new) as f64 / 1_048_576.0)
}

/// Replaces control characters: a name must not be able to write lines of its own.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
