//! `reflash good`: this boot is good, so the system gets its tries back.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::answer::{Exit, Failure, complain, failure, print};
use super::context::{keys, safe_start};
use super::etc;
use super::mend;
use super::mounted::{MountedState, own_partuuid};
use super::options::Options;
use crate::boot::disk_record;
use crate::boot::grubenv::{GrubEnv, names};
use crate::boot::request;
use crate::boot::systems::Systems;
use crate::boot::this_boot;
use crate::chain::chain;
use crate::jobs::recovery::other;
use crate::jobs::state::InstalledRecord;
use crate::jobs::update::{UpdateStore, store};
use crate::jobs::{drill, shipped, systems};
use crate::record::blackbox::{BlackBox, Marks};
use crate::record::journal::Journal;
use crate::record::marks;
use crate::record::start::StartRecord;
use crate::release::manifest::TrustedKeys;

/// What a robot loses whose good boot cannot be recorded, for people and for reports.
const UNSTORED: &str = "this boot is good, which could not be recorded on the state partition";

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    if let Some(number) = safe_start() {
        let why = format!("safe start {number} is never called good: it says nothing about a normal start");
        print(options, &json!({ "safe_start": number }), || why)?;
        return Ok(Exit::No);
    }
    // First of all, and whatever becomes of the rest: a boot is good also where its disk takes nothing any more, and a
    // restart would mend nothing.
    let is_this_boot = own_partuuid().is_some();
    if is_this_boot {
        leave_mark();
    }
    let stored = store(options);
    if is_this_boot && let Err(failure) = &stored {
        let loss = format!("{UNSTORED}: {}", failure.text);
        if let Err(error) = StartRecord::add_loss(Path::new(this_boot::DIRECTORY), loss) {
            complain(&format!("reports will not say so: {error}"));
        }
    }
    let tries = stored?;
    // Only now: while this is not stored, the release may still be taken back.
    if is_this_boot && let Err(error) = shipped::is_good(Path::new("/")) {
        complain(&format!("what was kept for an undo of this release stays in /var/lib/reflash: {error}"));
    }
    print(options, &json!({ "tries": tries }), || format!("this boot is good; {tries} tries before recovery"))?;
    Ok(Exit::Done)
}

/// Stores on the state partition, and wherever else it is kept, that this boot is good. Returns the tries that the
/// system has again. Where the environment cannot be written, the rest is stored all the same.
fn store(options: &Options) -> Result<String, Failure> {
    // Where the first sector was lost since this boot began, no disk is found until it is mended.
    let mounted = MountedState::open(options).or_else(|failure| {
        let mended = mend::mend_first_sector();
        if mended.is_empty() { Err(failure) } else { MountedState::open(options) }
    })?;
    match drill::settle(&mounted.state) {
        Ok(true) => complain("the drill that was asked for did not come to its end"),
        Ok(false) => {}
        Err(error) => complain(&chain(&error)),
    }
    let keys = keys(options, Some(&mounted)).ok();
    let installed = keys.as_ref().and_then(|keys| mounted.state.record(keys));
    if mounted.other.is_some() {
        settle_systems(&mounted, keys.as_ref(), installed.as_ref())
            .inspect_err(|_| mend::after_good_boot(options, &mounted))?;
    }
    let serial = installed.as_ref().map(|record| record.manifest().serial);
    let tries = give_tries(&mounted, serial);
    if options.state.is_none() {
        remove_applied(Path::new(store::PATH), serial);
    }
    let boot_env = mounted.state.boot_env();
    if let Some(Err(error)) = mounted.disk.map(|disk| disk_record::remember(&boot_env, disk)) {
        complain(&format!("this disk cannot be remembered: {}", chain(&error)));
    }
    // Without a record or a key to check it with there is nothing to raise it to, and a boot is good all the same.
    if let Some(good) = installed.and_then(|record| record.as_good()) {
        mounted.floor().note_good(good).failed.iter().for_each(|error| complain(&chain(error)));
    }
    let marked = tries.is_ok().then(|| mark_attempts(&mounted)).transpose();
    mend::after_good_boot(options, &mounted);
    if options.state.is_none() {
        etc::remember_defaults();
    }
    marked?;
    tries
}

/// Removes what was fetched of a release that is installed by now, or is older: nothing else does where the system
/// looks for no update by itself, or writes the next one to its other system, and it may be as large as the image.
fn remove_applied(directory: &Path, installed: Option<u64>) {
    let fetched = UpdateStore::open(directory, Path::new("")).ok().map(|store| store.release_id().serial);
    if fetched.is_some()
        && fetched <= installed
        && let Err(error) = UpdateStore::remove(directory)
    {
        complain(&format!("what was fetched of a release that is installed stays in {}: {error}", directory.display()));
    }
}

/// On a robot with two systems: notes that this one was good, ends its trial, and settles what a return of GRUB to it
/// left. What GRUB does not start by itself is no reason to give the other one its tries.
fn settle_systems(
    mounted: &MountedState,
    keys: Option<&TrustedKeys>,
    installed: Option<&InstalledRecord>,
) -> Result<(), Failure> {
    let env = mounted.state.boot_env();
    let systems = Systems::of(&env.load_or_empty()?);
    if systems.active != mounted.state.system() {
        return failure(format!(
            "this is system {}, which GRUB was not asked to start: system {} stays the one that it starts, with the tries \
             that it has",
            mounted.state.system().name(),
            systems.active.name()
        ));
    }
    if let Some(keys) = keys
        && let Some(sentence) = systems::settle(&mounted.state, keys, &mounted.floor(), &Journal::on_stderr())?
    {
        complain(&sentence);
    }
    if let Some(Err(error)) = installed.map(|record| mounted.state.note_good_system(record)) {
        complain(&format!("that this system was good cannot be noted: {error}"));
    }
    // In the write that gives the tries back it would not be seen by a boot script that counts them down.
    let back = match (systems.on_trial, keys) {
        (true, Some(keys)) => {
            other::possible(&mounted.state.of_system(systems.active.other()), keys, &mounted.floor()).ok()
        }
        _ => None,
    };
    if systems.on_trial {
        let undo = back.map(|back| back.serial.to_string());
        env.update(&[(names::BEFORE, None), (names::UNDO, undo.as_deref())])?;
    }
    Ok(())
}

/// Gives the system its tries back, in the boot environment.
fn give_tries(mounted: &MountedState, good: Option<u64>) -> Result<String, Failure> {
    let boot_env = mounted.state.boot_env();
    let env: GrubEnv = boot_env.load_or_empty()?;
    // GRUB's script counts with one digit, and takes everything else for 3 too.
    let is_count = |tries: &&str| matches!(tries.as_bytes(), [b'1'..=b'9']);
    let tries = env.get(names::MAX_TRIES).filter(is_count).unwrap_or("3").to_owned();
    let serial = good.map(|serial| serial.to_string());
    let changes = [
        (names::TRIES, Some(&*tries)),
        (names::BOOT_OK, Some("1")),
        (names::GOOD, serial.as_deref()),
        // GRUB would set it at the next start, by a write of its own.
        (names::WAS_GOOD, Some("1")),
        (names::RECOVERIES, None),
        (names::SAFE, None),
    ];
    boot_env.update(&changes)?;
    // What an older recovery left standing.
    let is_left = |env: &GrubEnv| request::pending(env).is_none() && env.get(names::REQUEST).is_some();
    boot_env.update_if(&is_left, &[(names::REQUEST, None)])?;
    Ok(tries)
}

/// Marks the attempts in the black box that this good boot followed.
fn mark_attempts(mounted: &MountedState) -> Result<(), Failure> {
    let marks = |open: &BlackBox| Marks { good_through: open.next_id() - 1, ..open.marks() };
    Ok(marks::change(&mounted.state.blackbox_path(), &marks)?)
}

/// Leaves the mark by which the boot watch ends. Without it the watch asks the boot environment before it does
/// anything.
fn leave_mark() {
    let made = fs::create_dir_all(this_boot::DIRECTORY).and_then(|()| fs::write(this_boot::GOOD_MARK, ""));
    if let Err(error) = made {
        complain(&format!("cannot write {}: {error}", this_boot::GOOD_MARK));
    }
}

#[cfg(test)]
mod tests {
    use super::remove_applied;
    use crate::jobs::floor::ReleaseId;
    use crate::jobs::update::UpdateStore;

    #[test]
    fn what_was_fetched_goes_once_it_is_installed() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("update");
        remove_applied(&store, Some(8));
        UpdateStore::fill(&store, ReleaseId { serial: 8, digest: [1; 8] }).unwrap();
        for installed in [None, Some(7)] {
            remove_applied(&store, installed);
            assert!(store.join("map").exists(), "{installed:?}");
        }
        remove_applied(&store, Some(8));
        assert!(!store.exists());
    }
}
