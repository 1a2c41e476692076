//! UpdatePlaces of an update on this machine, and its lock.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::boot::this_boot;
use crate::cli::answer::Failure;
use crate::cli::options::Options;
use crate::jobs::update::standing::StandingFile;
use crate::jobs::update::store;
use crate::sys::turn;

/// Name of a store that is in memory.
const IN_MEMORY: &str = "update-store";
/// Longest time that the timer may be left without work, seconds: beyond it the clock was moved.
const LONGEST_REST_S: u64 = 720 * 3600;

/// Directories of an update on this machine: store, record and lock.
pub(super) struct UpdatePlaces {
    store: PathBuf,
    /// The store of a robot with two systems.
    store_in_memory: PathBuf,
    /// Directory of the record and the lock.
    record: PathBuf,
}

impl UpdatePlaces {
    pub(super) fn of(options: &Options) -> Self {
        match &options.store {
            // A store elsewhere is that of a bench, and has its record beside it.
            Some(store) => Self {
                record: store.parent().unwrap_or(Path::new(".")).to_owned(),
                store: store.clone(),
                store_in_memory: store.clone(),
            },
            None => Self {
                record: PathBuf::from(this_boot::DIRECTORY),
                store: PathBuf::from(store::PATH),
                store_in_memory: Path::new(this_boot::DIRECTORY).join(IN_MEMORY),
            },
        }
    }

    /// The store of this robot, which may have two systems.
    pub(super) fn store(&self, has_two_systems: bool) -> &Path {
        if has_two_systems { &self.store_in_memory } else { &self.store }
    }

    pub(super) fn standing(&self) -> StandingFile {
        StandingFile::within(&self.record)
    }

    /// Whether an earlier run has said that nothing is to be done before a time that is still to come.
    pub(super) fn rests(&self, now_unix_s: u64) -> bool {
        let file = self.standing();
        let next = file.read().and_then(|standing| standing["next_unix_s"].as_u64());
        // A clock that was ahead when that was written, and has been set right, would have it rest for that long.
        let is_of_the_past = file.written_unix_s().is_some_and(|written| written <= now_unix_s);
        is_of_the_past && next.is_some_and(|next| (1..=LONGEST_REST_S).contains(&next.saturating_sub(now_unix_s)))
    }

    /// Takes the lock that lets one update work at a time; `None` while another one does.
    pub(super) fn lock(&self) -> Result<Option<File>, Failure> {
        fs::create_dir_all(&self.record)?;
        Ok(turn::of_file(&self.record.join("update.lock"), Duration::ZERO)?)
    }
}

#[cfg(test)]
mod tests {
    use super::UpdatePlaces;
    use crate::jobs::update::standing::{UpdateStanding, UpdateState};
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn a_clock_that_was_ahead_leaves_no_long_rest() {
        let dir = tempfile::tempdir().unwrap();
        let places = UpdatePlaces {
            store: dir.path().join("store"),
            store_in_memory: dir.path().join("memory"),
            record: dir.path().to_owned(),
        };
        let written = |written_unix_s: u64, next_unix_s: u64| {
            let standing = UpdateStanding {
                next_unix_s: Some(next_unix_s),
                ..UpdateStanding::new(UpdateState::Current, "nothing is newer")
            };
            places.standing().write(&standing).unwrap();
            let file = std::fs::File::open(dir.path().join("update.json")).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(written_unix_s)).unwrap();
        };
        let (now, days) = (1_800_000_000, 86_400);
        written(now - 100, now + 21_500);
        assert!(places.rests(now) && !places.rests(now + 21_500));
        written(now + 20 * days, now + 20 * days + 21_600);
        assert!(!places.rests(now));
    }
}
