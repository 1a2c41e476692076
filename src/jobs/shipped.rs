//! What a release brings to `/var` and takes out of the machine's `/etc`: the first step of the system's boot carries
//! out the list of its image (`release::shipped`) before anything of the system runs.
//!
//! The machine's record says which image's list was carried out last. The first start of another image goes through the
//! whole list; later starts look only at directories, and at files that are to be as in the image in every start. New
//! files are made beside their places, flushed together, and renamed; the record comes last. So a cut at any instant
//! leaves each path as it was or as it is to be, and the next start goes on.
//!
//! What the first start of a release renews or removes is kept aside until the release is good. Where the image that
//! was good last starts again, the release between was taken back, and what is kept is put back. What applications
//! changed meanwhile stays: of that no program but the application knows what is right, and a hook lets it act.
//!
//! Rejected: systemd-tmpfiles (its lines carry neither attributes, hard links, holes nor all names, act in each start,
//! and do not know what a release is), and an archive to unpack (nothing in it would be found again by an update).

mod aside;
mod first_start;
mod ground;
mod make;
mod outcome;
pub mod plan;
mod put_back;
pub mod record;
mod room;

use std::fs::File;
use std::io::{self, BufReader, ErrorKind};
use std::path::Path;

pub use self::ground::MachinePlaces;
pub use self::outcome::ShippedOutcome;

use self::aside::Aside;
use self::first_start::FirstStart;
use self::ground::Ground;
use self::plan::Occasion;
use self::record::{OWN, ShippedRecord};
use crate::release::shipped::{DIRECTORY, EACH_START, LIST, ListHeader, ShippedEntry, read_header, read_list};
use crate::sys::files;

/// Carries out the list of the image on the machine's own directories, or puts back what a release that was taken back
/// had changed. An image without a list, as those before there was one, is left alone.
///
/// # Errors
/// The list cannot be read, or the record not written. What fails for a single path is in the outcome.
pub fn at_start(places: MachinePlaces<'_>) -> io::Result<ShippedOutcome> {
    let Some(header) = header_of(places.image)? else { return Ok(ShippedOutcome::default()) };
    let (ground, mut outcome) = (Ground::new(places), ShippedOutcome::default());
    let own = ground.own();
    let begins_empty = !places.var.join("lib").is_dir();
    ground.prepare(&mut outcome)?;
    let mut record = match ShippedRecord::load(&own) {
        Ok(Some(record)) => record,
        Ok(None) => ShippedRecord::default(),
        Err(error) => {
            outcome.notes.push(format!("the record of what releases brought cannot be read and begins anew: {error}"));
            ShippedRecord::default()
        }
    };
    let is_good = record.good.as_deref() == Some(&*header.image);
    match Aside::open(&own) {
        // The release between was never good and is gone.
        Ok(Some(aside)) if is_good && aside.list.image != header.image => {
            record = put_back::put_back(&ground, aside, record, &header.image, &mut outcome)?;
        }
        // A power cut kept it from being removed.
        Ok(Some(aside)) if is_good && record.applied.as_deref() == Some(&*header.image) => aside.forget()?,
        Ok(_) => {}
        Err(error) => outcome.fail(format!("what is kept of the release before cannot be read: {error}")),
    }
    if record.applied.as_deref() == Some(&*header.image) {
        let mut work = FirstStart::new(&ground, Occasion::LaterStart, &header.image, &mut record, &mut outcome);
        read(places.image, EACH_START, |entry| work.plan(entry))?;
        work.carry_out()?;
    } else {
        if record.applied.is_none() && record.paths.is_empty() && !begins_empty {
            outcome.notes.push("no record of what releases brought to /var: what is there is the machine's own".into());
        }
        let mut work = FirstStart::new(&ground, Occasion::FirstStart, &header.image, &mut record, &mut outcome);
        read(places.image, LIST, |entry| work.plan(entry))?;
        work.carry_out()?;
        record.save(&own)?;
    }
    ground.clear_work(&mut outcome);
    Ok(outcome.close())
}

/// Fills a `/var` in memory that began empty with what the image has for it.
///
/// # Errors
/// As [`at_start`].
pub fn in_memory(places: MachinePlaces<'_>) -> io::Result<ShippedOutcome> {
    carry_out_without_record(places, Occasion::Memory, LIST)
}

/// Makes in a `/var` whose changes are in memory what every start makes.
///
/// # Errors
/// As [`at_start`].
pub fn over_data(places: MachinePlaces<'_>) -> io::Result<ShippedOutcome> {
    carry_out_without_record(places, Occasion::LaterStart, EACH_START)
}

fn carry_out_without_record(places: MachinePlaces<'_>, occasion: Occasion, list: &str) -> io::Result<ShippedOutcome> {
    let Some(header) = header_of(places.image)? else { return Ok(ShippedOutcome::default()) };
    let (ground, mut outcome) = (Ground::new(places), ShippedOutcome::default());
    ground.prepare(&mut outcome)?;
    let mut record = ShippedRecord::default();
    let mut work = FirstStart::new(&ground, occasion, &header.image, &mut record, &mut outcome);
    read(places.image, list, |entry| work.plan(entry))?;
    work.carry_out()?;
    ground.clear_work(&mut outcome);
    Ok(outcome.close())
}

/// Notes that the image whose root is `root` is good, and forgets what was kept for an undo of it. Nothing is written
/// where that is known.
///
/// # Errors
/// The file system's.
pub fn is_good(root: &Path) -> io::Result<()> {
    let Some(header) = header_of(root)? else { return Ok(()) };
    let own = root.join("var").join(OWN);
    let Some(mut record) = ShippedRecord::load(&own)? else { return Ok(()) };
    if record.good.as_deref() != Some(&*header.image) {
        record.good = Some(header.image);
        record.save(&own)?;
    }
    Aside::open(&own)?.map_or(Ok(()), Aside::forget)
}

/// Header of the image's list; `None` where the image has none.
fn header_of(image: &Path) -> io::Result<Option<ListHeader>> {
    match open(image, EACH_START) {
        Ok(mut reader) => read_header(&mut reader).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn open(image: &Path, list: &str) -> io::Result<BufReader<File>> {
    files::open_below(image, &Path::new(DIRECTORY).join(list)).map(BufReader::new)
}

fn read(image: &Path, list: &str, take: impl FnMut(ShippedEntry) -> io::Result<()>) -> io::Result<ListHeader> {
    read_list(open(image, list)?, take)
}
