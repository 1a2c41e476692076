//! The worker's side of its tie to PID 1: it gives up rights, reports progress, and says what it is at before it does
//! what may end it.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::Duration;

use super::background::background;
use super::link::{Handover, WORKER, WorkPart, WorkerReport};
use crate::record::event::{Event, cut};
use crate::record::journal::Journal;
use crate::sys;

/// Interval of reports that something was achieved, well below the shortest `watchdog.stall_s`.
const PULSE: Duration = Duration::from_secs(2);
/// Most bytes of a panic's text that are passed on.
const MAX_TEXT_BYTES: usize = 1000;

thread_local! {
    /// The part that this thread is in. A part within another counts as the outer one, which is more particular: a
    /// source that ends this process during the renewal of the recovery need not do so otherwise.
    static WITHIN: RefCell<Option<WorkPart>> = const { RefCell::new(None) };
}

/// Returns what PID 1 handed over, if this process is its worker.
#[must_use]
pub fn handover() -> Option<Handover> {
    let mut arguments = std::env::args_os();
    if !sys::process::is_child_of_pid1() || arguments.next()? != WORKER {
        return None;
    }
    // What cannot be read is a first start: recovery needs nothing from before.
    Some(arguments.next().and_then(|text| serde_json::from_str(text.to_str()?).ok()).unwrap_or_default())
}

/// Makes a panic in any thread end this process, with a report to PID 1, and gives up rights. Must come before any
/// other thread. Returns what went wrong.
pub(super) fn begin() -> Vec<String> {
    report_panics();
    sys::confine::confine()
}

/// Makes a panic in any thread end this process, with a report to PID 1.
pub(super) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        report(&died_of(panic));
        eprintln!("\nreflash: {panic}; this is a bug in reflash");
        // The runtime would let the other threads go on without this one.
        std::process::abort();
    }));
}

fn died_of(panic: &PanicHookInfo<'_>) -> WorkerReport {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let said = panic.payload_as_str().unwrap_or("no message");
    let text = format!("panicked at {place} in thread {name}: {said}");
    let part = WITHIN.try_with(|within| within.borrow().clone()).ok().flatten();
    let text = cut(&text, MAX_TEXT_BYTES).to_owned();
    WorkerReport::Panicked { place, text, part: part.or_else(|| part_of_thread(name)) }
}

/// The part that a thread belongs to by its name, for threads of rooms that know nothing of parts.
fn part_of_thread(name: &str) -> Option<WorkPart> {
    match name {
        "poster" => Some(WorkPart::Reports),
        "data" => Some(WorkPart::Data),
        "look-at-usb" => Some(WorkPart::UsbDrives),
        "look-at-disk" | "look-for-medium" => Some(WorkPart::RemovableDisks),
        _ => {
            let card = ["dhcp ", "ipv6 ", "arp "].iter().find_map(|what| name.strip_prefix(what));
            card.map(|card| WorkPart::Card(card.to_owned()))
        }
    }
}

/// Reports progress for as long as this process lives, and records what PID 1 says, which is on the console already.
pub(super) fn stay_in_touch(journal: &Arc<Journal>) {
    let pulse = Arc::clone(journal);
    background(journal, "pulse", move || {
        let mut last = pulse.pulse();
        loop {
            std::thread::sleep(PULSE);
            let now = pulse.pulse();
            if now != last {
                report(&WorkerReport::Progressed);
            }
            last = now;
        }
    });
    let recorder = Arc::clone(journal);
    background(journal, "from-pid1", move || {
        for line in BufReader::new(std::io::stdin()).lines().map_while(Result::ok) {
            recorder.record(Event::Warning(&line));
        }
    });
}

/// Does `work` as that part: if it ends this process, PID 1 knows what was at fault, and leaves the part out when that
/// happens twice.
pub(super) fn within<T>(part: &WorkPart, work: impl FnOnce() -> T) -> T {
    if WITHIN.with_borrow(Option::is_some) {
        return work();
    }
    report(&WorkerReport::Entered(part.clone()));
    WITHIN.set(Some(part.clone()));
    let result = work();
    WITHIN.set(None);
    report(&WorkerReport::Left(part.clone()));
    result
}

/// Has PID 1 feed the hardware watchdog for as long as there is progress at least every `limit`.
pub(super) fn ask_for_watchdog(limit: Duration) {
    report(&WorkerReport::Watchdog { limit_s: limit.as_secs() });
}

/// Has PID 1 restart the machine after so many seconds, whatever this process does then.
pub(super) fn restart_after(limit_s: u64) {
    report(&WorkerReport::RestartAfter { limit_s });
}

/// Reports that something was achieved.
pub(super) fn progressed() {
    report(&WorkerReport::Progressed);
}

/// Reports that the work is done: the recovery's PID 1 restarts the machine when this process ends, however it ends,
/// and that of the system's boot goes on.
pub(super) fn done() {
    report(&WorkerReport::Done);
}

/// Has PID 1 start what lies in memory for that, in place of the firmware. Never returns.
pub(super) fn start_directly() -> ! {
    report(&WorkerReport::StartDirectly);
    restart()
}

/// Has PID 1 restart the machine. Never returns.
pub(super) fn restart() -> ! {
    // First, so that PID 1 knows also when a disk that hangs keeps this process from ending.
    report(&WorkerReport::Restart);
    sys::power::release();
    std::process::exit(0)
}

/// Writes to PID 1, which reads without a pause. Without PID 1 nothing is left to report to.
fn report(report: &WorkerReport) {
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(report.to_line().as_bytes());
    let _ = output.flush();
}
