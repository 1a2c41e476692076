//! Puts back what a release changed that was taken back.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use super::aside::{Aside, PathBefore};
use super::ground::{Above, Ground, is_there};
use super::outcome::ShippedOutcome;
use super::record::ShippedRecord;
use crate::release::shipped::{RawPath, ShippedRule};
use crate::sys::special;

/// Puts back what is kept, and returns the record of the image that runs again, once all is on the medium. It can be
/// cut at any instant and begun again: what is back is no longer kept.
pub(super) fn put_back(
    ground: &Ground<'_>,
    aside: Aside,
    record: ShippedRecord,
    image: &str,
    outcome: &mut ShippedOutcome,
) -> io::Result<ShippedRecord> {
    let (mut count, mut failed) = (0, 0);
    // What a release made in a directory goes before the directory, and a directory comes before what lies in it.
    let made = aside.list.paths.iter().rev().filter(|(_, before)| **before == PathBefore::Absent);
    let had = aside.list.paths.iter().filter(|(_, before)| **before != PathBefore::Absent);
    for (name, before) in made.chain(had) {
        let path = RawPath::unescaped(name);
        match put_back_one(ground, &aside, &path, before) {
            Ok(()) => count += 1,
            Err(error) => {
                failed += 1;
                outcome.fail(format!("cannot put back {path}: {error}"));
            }
        }
    }
    let mut before = aside.record_before().ok().flatten().unwrap_or_default();
    // What a release brought and an undo leaves alone was brought all the same.
    for (name, known) in record.paths {
        if matches!(known.rule, ShippedRule::Default | ShippedRule::Once) {
            before.paths.entry(name).or_insert(known);
        }
    }
    before.good = Some(image.to_owned());
    special::flush_file_system(ground.places.var)?;
    before.save(&ground.own())?;
    ground.change();
    if failed == 0 {
        aside.forget()?;
    } else {
        let kept = aside.give_up()?;
        outcome.fail(format!("what could not be put back is in {OWN_IN_SYSTEM}/{}", name_of(&kept)));
    }
    outcome.notes.push(format!("a release was taken back: {count} paths are as they were before it"));
    ground.has_changed();
    Ok(before)
}

/// Directory of the record in the running system.
const OWN_IN_SYSTEM: &str = "/var/lib/reflash";

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().display().to_string()
}

fn put_back_one(ground: &Ground<'_>, aside: &Aside, path: &RawPath, before: &PathBefore) -> io::Result<()> {
    let Some(at) = ground.at(path) else { return Ok(()) };
    if ground.above(path) != Above::Directory {
        // What was made there is gone with the directory.
        return if *before == PathBefore::Absent { Ok(()) } else { Err(io::Error::other("its directory is gone")) };
    }
    match before {
        PathBefore::Absent => match at.symlink_metadata() {
            // An application may have put something into it.
            Ok(found) if found.is_dir() => {
                ground.change();
                let _ = fs::remove_dir(&at);
                Ok(())
            }
            Ok(_) => ground.throw_away(&at),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        },
        PathBefore::Kept(name) => {
            let kept = aside.kept(name);
            // It was put back already, or never taken away.
            if !is_there(&kept)? {
                return Ok(());
            }
            if is_there(&at)? {
                ground.throw_away(&at)?;
            }
            ground.has_changed();
            ground.rename(&kept, &at)
        }
        PathBefore::Directory { mode, uid, gid } => {
            ground.change();
            match fs::create_dir(&at) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            if !at.symlink_metadata()?.is_dir() {
                return Ok(());
            }
            chown(&at, Some(*uid), Some(*gid))?;
            ground.has_changed();
            fs::set_permissions(&at, Permissions::from_mode(*mode))
        }
    }
}
