//! `reflash good`: this boot is good, so the system gets its tries back.

use serde_json::json;

use super::answer::{Exit, Failure, complain, print};
use super::mounted::MountedState;
use super::options::Options;
use crate::boot::disk_record;
use crate::boot::grubenv::names;
use crate::chain::chain;
use crate::jobs::drill;
use crate::record::blackbox::{BlackBox, Marks};

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    let mounted = MountedState::open(options)?;
    match drill::settle(&mounted.state) {
        Ok(true) => complain("the drill that was asked for did not come to its end"),
        Ok(false) => {}
        Err(error) => complain(&chain(&error)),
    }
    let boot_env = mounted.state.boot_env();
    let env = boot_env.load_or_empty()?;
    let tries = env.get(names::MAX_TRIES).unwrap_or("3").to_owned();
    boot_env.update(&[(names::TRIES, Some(&tries)), (names::BOOT_OK, Some("1")), (names::RECOVERIES, None)])?;
    if let Some(Err(error)) = mounted.disk.map(|disk| disk_record::remember(&boot_env, disk)) {
        complain(&format!("this disk cannot be remembered: {}", chain(&error)));
    }
    if let Ok(mut open) = BlackBox::open(&mounted.state.blackbox_path()) {
        let (marks, last) = (open.marks(), open.next_id() - 1);
        // Only after a recovery: a write at every boot would wear the disk for nothing.
        if marks.good_through != last {
            open.mark(Marks { good_through: last, ..marks })?;
        }
    }
    print(options, &json!({ "tries": tries }), || format!("this boot is good; {tries} tries before recovery"))?;
    Ok(Exit::Done)
}
