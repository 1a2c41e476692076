//! The machine's directories, in which paths are looked up, moved and thrown away without following a symbolic link.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::outcome::ShippedOutcome;
use super::record::{OWN, make_private};
use crate::release::shipped::RawPath;
use crate::sys::{files, special};

/// Directory for files that are being made and for what is thrown away, in [`OWN`]. It is emptied at both ends.
const WORK: &str = "work";
/// Attribute of a directory that hides what the image has below it.
const OPAQUE: &str = "trusted.overlay.opaque";

/// The machine's directories that a list is about.
#[derive(Debug, Clone, Copy)]
pub struct MachinePlaces<'a> {
    /// Root of the image.
    pub image: &'a Path,
    /// Directory that is, or becomes, `/var`.
    pub var: &'a Path,
    /// Directory of the machine's changes to `/etc`, where they may be changed.
    pub etc_changes: Option<&'a Path>,
    /// Function that is called before each change; tests cut the power there.
    pub before_change: fn(),
}

/// What is known of the directory that a path lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Above {
    /// A directory, down from the root.
    Directory,
    /// Nothing is there.
    Missing,
    /// Something else is there, such as a symbolic link of the machine, or what hides the image's own.
    InTheWay,
}

/// The machine's directories, while a list is carried out.
pub(super) struct Ground<'a> {
    pub places: MachinePlaces<'a>,
    above: RefCell<HashMap<PathBuf, Above>>,
    next: Cell<u64>,
}

impl<'a> Ground<'a> {
    pub fn new(places: MachinePlaces<'a>) -> Self {
        Self { places, above: RefCell::default(), next: Cell::new(0) }
    }

    /// Directory of the record.
    pub fn own(&self) -> PathBuf {
        self.places.var.join(OWN)
    }

    /// Place of a path on this machine; `None` where there is none in this start.
    pub fn at(&self, path: &RawPath) -> Option<PathBuf> {
        let (root, rest) = self.split(path)?;
        Some(root.join(rest))
    }

    fn split<'p>(&self, path: &'p RawPath) -> Option<(&'a Path, &'p Path)> {
        match path.0.strip_prefix("var") {
            Ok(rest) => Some((self.places.var, rest)),
            Err(_) => Some((self.places.etc_changes?, path.0.strip_prefix("etc").ok()?)),
        }
    }

    /// Looks at the directories that a path lies in. What is found is remembered, so [`Self::has_changed`] must hear of
    /// each directory that is made or moved.
    pub fn above(&self, path: &RawPath) -> Above {
        let Some((root, rest)) = self.split(path) else { return Above::Missing };
        rest.parent().map_or(Above::Directory, |parent| self.state_of(root, parent))
    }

    fn state_of(&self, root: &Path, directory: &Path) -> Above {
        let at = root.join(directory);
        if let Some(known) = self.above.borrow().get(&at) {
            return *known;
        }
        let higher = directory.parent().map_or(Above::Directory, |parent| self.state_of(root, parent));
        let state = match higher {
            Above::Directory => match at.symlink_metadata() {
                // Below a directory that hides the image's, nothing of the image comes into view.
                Ok(found) if found.is_dir() && self.is_opaque(root, &at) => Above::InTheWay,
                Ok(found) if found.is_dir() => Above::Directory,
                Err(error) if error.kind() == ErrorKind::NotFound => Above::Missing,
                Ok(_) | Err(_) => Above::InTheWay,
            },
            other => other,
        };
        self.above.borrow_mut().insert(at, state);
        state
    }

    fn is_opaque(&self, root: &Path, at: &Path) -> bool {
        self.places.etc_changes == Some(root)
            && special::attribute(at, OPAQUE.as_ref()).is_ok_and(|value| value.starts_with(b"y"))
    }

    /// Forgets what is known of directories.
    pub fn has_changed(&self) {
        self.above.borrow_mut().clear();
    }

    /// Makes the directory of the record before anything is planned: it is one of those that the list has, too.
    pub fn prepare(&self, outcome: &mut ShippedOutcome) -> io::Result<()> {
        make_private(&self.own())?;
        self.clear_work(outcome);
        Ok(())
    }

    /// Empties the directory for work, as far as it lets itself be emptied.
    pub fn clear_work(&self, outcome: &mut ShippedOutcome) {
        self.change();
        let work = self.own().join(WORK);
        if let Err(error) = files::removed_or_gone(fs::remove_dir_all(&work)) {
            outcome.notes.push(format!("{} cannot be emptied: {error}", work.display()));
        }
    }

    /// A name in the directory for work that nothing has yet.
    pub fn new_name(&self) -> io::Result<PathBuf> {
        let work = self.own().join(WORK);
        if self.next.get() == 0 {
            make_private(&self.own())?;
            make_private(&work)?;
        }
        loop {
            let name = work.join(self.next.get().to_string());
            self.next.set(self.next.get() + 1);
            // Something of an earlier start that cannot be removed is passed over.
            if !is_there(&name)? {
                return Ok(name);
            }
        }
    }

    /// Takes what is at `at` out of sight; it is gone with the directory for work.
    pub fn throw_away(&self, at: &Path) -> io::Result<()> {
        let name = self.new_name()?;
        self.rename(at, &name)
    }

    /// Renames, as one change.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change();
        fs::rename(from, to)
    }

    /// Says that something is about to change.
    pub fn change(&self) {
        (self.places.before_change)();
    }
}

/// Whether anything is at `at`.
pub(super) fn is_there(at: &Path) -> io::Result<bool> {
    match at.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
