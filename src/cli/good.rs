//! `reflash good`: this boot is good, so the system gets its tries back.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::answer::{Exit, Failure, complain, print};
use super::context::{keys, safe_start};
use super::mend;
use super::mounted::MountedState;
use super::options::Options;
use crate::boot::disk_record;
use crate::boot::grubenv::names;
use crate::boot::this_boot;
use crate::chain::chain;
use crate::jobs::{drill, shipped};
use crate::record::blackbox::{BlackBox, Marks};

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    if let Some(number) = safe_start() {
        let why = format!("safe start {number} is never called good: it says nothing about a normal start");
        print(options, &json!({ "safe_start": number }), || why)?;
        return Ok(Exit::No);
    }
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
    let boot_env = mounted.state.boot_env();
    let env = boot_env.load_or_empty()?;
    let tries = env.get(names::MAX_TRIES).unwrap_or("3").to_owned();
    let installed = keys(options, Some(&mounted)).ok().and_then(|keys| mounted.state.record(&keys));
    let good = installed.map(|record| record.manifest().serial);
    let serial = good.map(|serial| serial.to_string());
    let mut changes = vec![
        (names::TRIES, Some(&*tries)),
        (names::BOOT_OK, Some("1")),
        (names::GOOD, serial.as_deref()),
        // GRUB would set it at the next start, by a write of its own.
        (names::WAS_GOOD, Some("1")),
        (names::RECOVERIES, None),
        (names::SAFE, None),
    ];
    if env.get(names::NEXT_ENTRY).is_none_or(str::is_empty) {
        // What an older recovery left standing.
        changes.push((names::REQUEST, None));
    }
    boot_env.update(&changes)?;
    if options.state.is_none() {
        leave_mark();
        if let Err(error) = shipped::is_good(Path::new("/")) {
            complain(&format!("what was kept for an undo of this release stays in /var/lib/reflash: {error}"));
        }
    }
    if let Some(Err(error)) = mounted.disk.map(|disk| disk_record::remember(&boot_env, disk)) {
        complain(&format!("this disk cannot be remembered: {}", chain(&error)));
    }
    // Without a record or a key to check it with there is nothing to raise it to, and a boot is good all the same.
    if let Some(serial) = good {
        mounted.floor().raise(serial).failed.iter().for_each(|error| complain(&chain(error)));
    }
    if let Ok(mut open) = BlackBox::open(&mounted.state.blackbox_path()) {
        let (marks, last) = (open.marks(), open.next_id() - 1);
        // Only after a recovery: a write at every boot would wear the disk for nothing.
        if marks.good_through != last {
            open.mark(Marks { good_through: last, ..marks })?;
        }
    }
    mend::after_good_boot(&mounted);
    print(options, &json!({ "tries": tries }), || format!("this boot is good; {tries} tries before recovery"))?;
    Ok(Exit::Done)
}

/// Leaves the mark by which the boot watch ends. Without it the watch asks the boot environment before it does
/// anything.
fn leave_mark() {
    let made = fs::create_dir_all(this_boot::DIRECTORY).and_then(|()| fs::write(this_boot::GOOD_MARK, ""));
    if let Err(error) = made {
        complain(&format!("cannot write {}: {error}", this_boot::GOOD_MARK));
    }
}
