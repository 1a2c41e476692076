//! Has what the image ships to `/var` and `/etc` brought there, before anything of the system runs. Nothing that goes
//! wrong with it keeps the system from starting.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::error::SysrootError;
use super::messages::say;
use super::plan::{BootPlaces, etc_changes};
use super::take::{answer_within, make_directory};
use crate::chain::chain;
use crate::jobs::shipped::{self, MachinePlaces, ShippedOutcome};
use crate::record::start::{StartRecord, VarFrom};
use crate::sys::files;

/// Time for it. The first start of a robot may have some GiB to write, on a disk of 20 MB/s; the watch of the boot
/// gives the whole start no more either.
const LIMIT: Duration = Duration::from_secs(600);

/// File in memory that is there while the list is carried out on data.
const MARK: &str = "shipping";

/// Carries out the list of the image on a data partition that is mounted for writing, and not in use yet.
pub(super) fn on_data(places: &BootPlaces, record: &mut StartRecord) {
    let mark = places.run.join(MARK);
    // PID 1 would leave all data out after a second time.
    if mark.exists() {
        return record
            .lose("what the release has for /var and /etc is not brought: that ended the process before this one");
    }
    if let Err(error) = fs::create_dir_all(&places.run).and_then(|()| fs::write(&mark, "")) {
        say(&format!("cannot create {}: {error}", mark.display()));
    }
    let (image, data) = (places.root.clone(), places.data.clone());
    let done = answer_within(LIMIT, "bring what the release has for /var and /etc", move || {
        let (var, etc) = (data.join("var"), etc_changes(&data));
        make_directory(&var, 0o755)?;
        // Where a link could not be put aside, the list would be carried out in the initramfs.
        if !files::is_directory_on(&var, &data) {
            return Err(failed()(io::ErrorKind::NotADirectory.into()));
        }
        shipped::at_start(MachinePlaces { etc_changes: Some(&etc), ..places_of(&image, &var) }).map_err(failed())
    });
    let _ = fs::remove_file(&mark);
    take(done, record);
}

/// Fills a `/var` that is in memory.
pub(super) fn in_memory(places: &BootPlaces, record: &mut StartRecord) {
    let carry_out: fn(MachinePlaces<'_>) -> io::Result<ShippedOutcome> = match record.var {
        VarFrom::Memory => shipped::in_memory,
        VarFrom::MemoryOverData => shipped::over_data,
        VarFrom::Data | VarFrom::Image => return,
    };
    let image = places.root.clone();
    let done = answer_within(LIMIT, "bring what the release has for /var", move || {
        let var = image.join("var");
        carry_out(places_of(&image, &var)).map_err(failed())
    });
    take(done, record);
}

fn places_of<'a>(image: &'a Path, var: &'a Path) -> MachinePlaces<'a> {
    MachinePlaces { image, var, etc_changes: None, before_change: || () }
}

fn failed() -> impl FnOnce(io::Error) -> SysrootError {
    SysrootError::file("bring what the release has for /var and /etc")
}

fn take(done: Result<ShippedOutcome, SysrootError>, record: &mut StartRecord) {
    match done {
        Ok(outcome) => {
            outcome.notes.iter().for_each(|note| say(note));
            outcome.failures.into_iter().for_each(|failure| record.lose(failure));
        }
        Err(error) => record.lose(chain(&error)),
    }
}
