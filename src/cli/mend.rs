//! `reflash mend`: mends what firmware and GRUB read of this machine's disk, while the machine still runs.

use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::answer::{Exit, Failure, complain, failure, print};
use super::context::Context;
use super::mounted::{MOUNTS, MountedState, own_partuuid, turn_to_renew};
use super::options::Options;
use crate::chain::chain;
use crate::disk::list::PartitionTable;
use crate::disk::raw::WholeDisk;
use crate::disk::{Disk, Which, disks};
use crate::flash::target::DeviceTarget;
use crate::jobs::mend::recovery_partition::{FetchFiles, RecoveryPlace, Thoroughness};
use crate::jobs::mend::{self, MendOutcome, pieces::BootPieces};
use crate::jobs::recovery::fetch_file;
use crate::jobs::state::StatePartition;
use crate::record::blackbox::{Attempt, BlackBox};
use crate::record::event::Event;
use crate::record::journal::Journal;
use crate::sys::block::in_use;
use crate::sys::thread::lock;

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    let _turn = turn_to_renew(options)?;
    let first = mend_first_sector();
    let mounted = MountedState::open(options)?;
    let Some((disk, table)) = &mounted.boot_disk else {
        return failure("which disk this machine starts from is not known here; leave --state out");
    };
    let outcome = mend(disk, table, &mounted, options, Thoroughness::Content)?;
    let mended: Vec<_> = first.into_iter().chain(outcome.mended).collect();
    let (whole, unchecked) = (outcome.found.is_whole(), &outcome.found.unchecked);
    print(options, &json!({ "mended": mended, "whole": whole, "unchecked": unchecked }), || {
        let mended = mended.join(", ");
        match (mended.as_str(), outcome.found.mended_all) {
            (_, false) => "not everything that firmware and GRUB read is whole; the reasons are above".to_owned(),
            (_, true) if !unchecked.is_empty() => without_copy(&mended, &unchecked.join(", ")),
            ("", true) => "everything that firmware and GRUB read is whole".to_owned(),
            (mended, true) => format!("mended: {mended}"),
        }
    })?;
    Ok(if whole { Exit::Done } else { Exit::No })
}

/// Text for a robot that has no copy of its boot code, as one that was provisioned before there was such a copy and has
/// not recovered since.
fn without_copy(mended: &str, unchecked: &str) -> String {
    let first = if mended.is_empty() { "the rest is whole".to_owned() } else { format!("mended: {mended}") };
    format!(
        "{first}; not checked: {unchecked}. This machine keeps no copy of it to compare with. The next recovery from a \
         network or a USB drive brings one, if the release carries boot code: reflash request"
    )
}

/// Mends after a good boot. Whatever goes wrong is for the log: the boot stays good.
pub(super) fn after_good_boot(options: &Options, mounted: &MountedState) {
    let Some((disk, table)) = &mounted.boot_disk else { return };
    let mended = turn_to_renew(options).and_then(|_turn| mend(disk, table, mounted, options, Thoroughness::Names));
    if let Err(failure) = mended {
        complain(&format!("the boot chain is not looked at: {}", failure.text));
    }
}

/// What was mended, and what was found.
struct Outcome {
    mended: Vec<String>,
    found: MendOutcome,
}

fn mend(
    disk: &Path,
    table: &PartitionTable,
    mounted: &MountedState,
    options: &Options,
    thoroughness: Thoroughness,
) -> Result<Outcome, Failure> {
    let state = &mounted.state;
    let journal = Journal::on_stderr();
    match state.open_events() {
        Ok(events) => journal.open_events(Box::new(events)),
        Err(error) => complain(&format!("no event log: {error}")),
    }
    let mended = Arc::new(Mutex::new(Vec::new()));
    let subscriber = Arc::clone(&mended);
    journal.subscribe(Box::new(move |entry| {
        if let Event::Mended(what) = entry.event {
            lock(&subscriber).push(what.to_owned());
        }
    }));
    let mut found = mend::mend(&WholeDisk::open(disk)?, Some(table), BootPieces::read(state).as_ref(), &journal);
    if let Some(device) = &mounted.recovery_device {
        let at = Path::new(MOUNTS).join("recovery");
        let fetch = |names: &[String]| fetch_files(options, mounted, names);
        // A start of the system does not wait for a network; the command runs again, by its timer.
        let fetch = (thoroughness == Thoroughness::Content).then_some(&fetch as &FetchFiles<'_>);
        let place = RecoveryPlace { device, at: &at, state, thoroughness, fetch };
        if let Err(error) = mend::recovery_partition::mend(&place, mounted.recovery.is_some(), &journal) {
            found.mended_all = false;
            journal.warn(&chain(&error));
        }
    }
    let mended = std::mem::take(&mut *lock(&mended));
    record(state, &mended);
    Ok(Outcome { mended, found })
}

/// Fetches files of the installed release.
fn fetch_files(options: &Options, mounted: &MountedState, names: &[String]) -> Result<Vec<Vec<u8>>, String> {
    let context = Context::open(options, Some(mounted)).map_err(|failure| failure.text)?;
    let system = mounted.system_partition().map_err(|failure| failure.text)?;
    let target = DeviceTarget::open_read_only(&system).map_err(|error| chain(&error))?;
    let mut job = context.job(&target, false);
    job.resources.state = Some(&mounted.state);
    let record = job.read_record().ok_or("there is no record of the installed release")?;
    let fetch = |name: &String| fetch_file(&job, &record.release(), name);
    names.iter().map(fetch).collect::<Result<_, _>>().map_err(|error| chain(&error))
}

/// Adds to the last attempt of the black box, which status and reports show.
fn record(state: &StatePartition, mended: &[String]) {
    if mended.is_empty() {
        return;
    }
    let Ok(mut open) = BlackBox::open(&state.blackbox_path()) else { return };
    let Some(last) = open.attempts().last().cloned() else { return };
    let known = last.mended.into_iter().chain(mended.iter().cloned()).collect();
    if let Err(error) = open.record(&Attempt { mended: known, ..last }) {
        complain(&format!("no black box: {error}"));
    }
}

/// Mends a first sector that is lost. Without it no table is found on the disk, but the kernel still has the partitions
/// that it read from it, and the disk is the one whose partitions are mounted.
pub(super) fn mend_first_sector() -> Vec<String> {
    let Some(partuuid) = own_partuuid() else { return Vec::new() };
    let found = disks(Which::Physical).unwrap_or_default();
    if found.iter().any(|disk| matches!(disk.layout(), Ok(Some(table)) if table.partuuid(&partuuid).is_some())) {
        return Vec::new();
    }
    let is_used = |disk: &&Disk| in_use(&disk.path).is_ok_and(|usage| usage.is_some());
    let without_table = |disk: &&Disk| matches!(disk.layout(), Ok(None) | Err(_));
    let mut mended = Vec::new();
    for disk in found.iter().filter(is_used).filter(without_table) {
        match mend::table::mend_first_sector(disk, &partuuid) {
            Ok(parts) => mended.extend(parts.into_iter().map(|part| part.name().to_owned())),
            Err(error) => complain(&chain(&error)),
        }
    }
    mended
}
