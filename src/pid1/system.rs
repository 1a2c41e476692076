//! PID 1 of the system's own initramfs: it mounts the system read-only, puts the machine's own state over it, and
//! becomes systemd. A worker does all of that but the last step, since every disk and USB drive that is plugged in is
//! looked at on the way: PID 1 outlives whatever one of them holds.
//!
//! The system partition is never written. What the machine owns lies on the data partition: `/var` whole, and of
//! `/etc` what differs from the image, as an overlay, so that a new image brings its own defaults along.

mod accounts;
mod arguments;
mod check;
mod copy;
mod data;
mod databases;
pub mod disk_wait;
mod error;
mod hostname;
mod leave;
mod losses;
mod messages;
mod names;
mod network_manager;
mod patience;
pub mod plan;
mod renewal;
mod root;
mod safe_network;
mod settings;
mod shipped;
mod take;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use self::arguments::Arguments;
pub use self::error::SysrootError;
pub use self::renewal::RenewalParts;
pub(crate) use self::renewal::forget_saved;
pub use self::root::{RootParts, put_together};

use self::messages::{log, say};
use self::plan::BootPlaces;
use crate::boot::disk_record;
use crate::chain::chain;
use crate::disk::roles::Role;
use crate::disk::{self, DiskSearch, FoundDisk, ReadRecord, Which};
use crate::machine::config::OnLoss;
use crate::machine::drivers::{Coldplug, Loader};
use crate::pid1::boot_watch;
use crate::pid1::link::{Handover, WORKER, WorkPart};
use crate::pid1::supervisor::deaths::{Deaths, WorkerLife};
use crate::pid1::supervisor::each_report_until;
use crate::pid1::worker;
use crate::record::start::StartRecord;
use crate::sys::init;
use crate::sys::mount;
use crate::sys::power;
use crate::sys::process::{self, ProcessEnding};

/// Program that the system starts with.
const INIT: &str = "/sbin/init";

/// Processes that may die before the system counts as one that does not start: enough to leave out two parts of which
/// two die each, and one more of chance.
const MAX_WORKERS: u32 = 6;
/// Exit code of the process that put the file systems together.
const PREPARED: i32 = 0;
/// Exit code of the process that could not, and has said why.
const FAILED: i32 = 3;
/// Time a person has to read why the system did not start. GRUB has counted this try.
const READING_TIME: Duration = Duration::from_secs(20);
/// Time that a process whose work is done is waited for. A disk that does not answer can hold one of its threads, and
/// with it the whole process, for ever.
const ENDING_TIME: Duration = Duration::from_secs(5);
/// Time that programs which a dead process left behind are waited for. A disk can hold them in the same way.
const ORPHANS_TIME: Duration = Duration::from_secs(60);

/// Starts the system, as PID 1. Never returns: systemd takes this process over, or the machine reboots.
pub fn run() -> ! {
    init::install_panic_hook(READING_TIME);
    let error = start();
    say(&format!("the system cannot be started: {}", chain(&error)));
    say(&format!("rebooting in {} s; GRUB has counted this try", READING_TIME.as_secs()));
    std::thread::sleep(READING_TIME);
    loop {
        let Err(error) = power::reboot();
        say(&format!("the kernel refuses to reboot: {error}"));
        std::thread::sleep(READING_TIME);
    }
}

/// Starts systemd. Returns only an error, since otherwise this process becomes systemd.
fn start() -> SysrootError {
    if let Err(error) = bring_up() {
        return error;
    }
    // Lives until this process has become systemd, by which the watch knows.
    let _watch = boot_watch::start().inspect_err(|error| say(&format!("this start is not watched: {error}")));
    match have_prepared() {
        Ok(()) => match mount::switch_root(&BootPlaces::default().root, Path::new(INIT), &[]) {
            Ok(never) => match never {},
            Err(error) => error.into(),
        },
        Err(error) => error,
    }
}

fn bring_up() -> Result<(), SysrootError> {
    init::bring_up()?.iter().for_each(|note| say(note));
    Ok(())
}

/// Has a worker put the file systems together, and another one if it dies.
fn have_prepared() -> Result<(), SysrootError> {
    let mut deaths = Deaths::default();
    let mut died = None;
    for _ in 0..MAX_WORKERS {
        let handover = Handover { died: died.take(), left_out: deaths.left_out().to_vec(), ..Handover::default() };
        let mut life = WorkerLife::default();
        let started = process::start_self(WORKER, &serde_json::to_string(&handover).unwrap_or_default())
            .map_err(|source| SysrootError::File { action: "start a process".into(), source })?;
        each_report_until(started.output, |report| {
            life.take(report);
            if life.is_done() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if life.is_done() {
            if !process::has_ended_within(started.pid, ENDING_TIME) {
                say("a disk holds the process that mounted the system; going on without it");
            }
            return Ok(());
        }
        let ending = process::wait_for(started.pid);
        if let ProcessEnding::Exited(PREPARED | FAILED) = ending {
            return if ending == ProcessEnding::Exited(PREPARED) { Ok(()) } else { Err(SysrootError::Worker) };
        }
        let obituary = life.obituary(&ending);
        say(&format!("the process that mounts the system died, {obituary}"));
        let _ = deaths.add(&life, &ending, Duration::ZERO);
        died = Some(obituary);
        // A check of the data partition that it left behind must not meet a second one, and what it had mounted is in
        // the way of the next one.
        process::wait_for_group(ORPHANS_TIME);
        let places = BootPlaces::default();
        [&places.root, &places.data, &places.run].into_iter().for_each(|place| mount::detach_below(place));
        mount::release_disks();
    }
    Err(SysrootError::Worker)
}

/// Puts the file systems together, in the process that PID 1 started for it. Never returns.
pub fn work(handover: &Handover) -> ! {
    worker::report_panics();
    if let Err(error) = prepare(handover) {
        say(&chain(&error));
        std::process::exit(FAILED);
    }
    worker::done();
    std::process::exit(PREPARED)
}

fn prepare(handover: &Handover) -> Result<(), SysrootError> {
    let command_line = fs::read_to_string("/proc/cmdline").map_err(SysrootError::file("read /proc/cmdline"))?;
    let arguments = Arguments::parse(&command_line)?;
    let loader = Arc::new(Loader::for_running_kernel()?);
    // No device asks for these modules.
    loader.load("ext4")?;
    let mut record = StartRecord::default();
    if let Err(error) = loader.load("overlay") {
        record.lose(format!("the settings of this machine: {}", chain(&error)));
    }
    // Loads drivers while we wait for the disk; the thread ends when this process becomes systemd.
    let coldplug = Coldplug::start(Arc::clone(&loader), |_| {});
    if let Err(error) = &coldplug {
        say(&format!("drivers of devices that appear late are not loaded: {error}"));
    }
    for failure in loader.load_for_present_devices().failures {
        say(&chain(&failure));
    }
    if handover.died.is_some() {
        loader.bind_present_devices();
    }
    let limit = disk_wait::limit(&command_line);
    let waiting = |waiting: &disk::Waiting<'_>| disk_wait::report(waiting, limit, say, || loader.look_again());
    let found = disk::wait_for_disk_by_partuuid(&arguments.system, search(handover), limit, waiting)?;
    for other in &found.passed_over {
        say(&format!("not the disk of this system: {other}"));
    }
    let node = |partuuid: &str| found.layout.partuuid(partuuid).and_then(|partition| partition.node.clone());
    let system = node(&arguments.system).ok_or_else(|| SysrootError::Partition {
        disk: found.disk.to_string(),
        name: "system",
        partuuid: arguments.system.clone(),
    })?;
    let places = BootPlaces::default();
    take::take_all(&plan::system_steps(&places, &system))?;
    let (settings, problems) = settings::read(&found.layout, &places.run);
    // A machine without its own settings still works; the log says why they are missing.
    problems.iter().for_each(|problem| say(problem));
    let data = data_device(&arguments, handover, &found, &mut record);
    for name in data.as_deref().map_or(&[][..], data::modules) {
        if let Err(error) = loader.load(name) {
            record.lose(format!("the data partition may not be writable: {}", chain(&error)));
        }
    }
    let renewal = renewal_parts(&settings, &found);
    let parts = RootParts {
        renewal: renewal.as_ref(),
        places: &places,
        data: data.as_deref(),
        fsck: Path::new(check::FSCK),
        safe: arguments.safe,
        memory_bytes: memory_bytes(),
    };
    worker::within(&WorkPart::Data, || put_together(&parts, &mut record));
    if let Err(error) = fs::create_dir_all(&places.run).and_then(|()| record.write(&places.run)) {
        say(&format!("how this boot was put together is not recorded: {error}"));
    }
    if let Err(error) = losses::keep(&record, found.layout.device_of(Role::State), &places) {
        log(&chain(&error));
    }
    match hostname::set(&settings) {
        Ok(Some(name)) => log(&format!("host name {name}")),
        Ok(None) => {}
        Err(error) => say(&format!("the host name stays that of the image: {}", chain(&error))),
    }
    let state = found.layout.device_of(Role::State);
    let boot = leave::ThisBoot { state, root: &places.root, command_line: &command_line };
    boot.leave(&settings.layer, arguments.safe.is_some()).iter().for_each(|problem| say(problem));
    Ok(())
}

/// What the search for the disk looks at.
fn search(handover: &Handover) -> DiskSearch {
    let read_record = (!handover.leaves_out(&WorkPart::State)).then_some(disk_record::read as ReadRecord);
    let avoid_external = handover.leaves_out(&WorkPart::RemovableDisks);
    DiskSearch { avoid_external, ..DiskSearch::with(Which::Physical, read_record) }
}

/// The device of the data partition. A partition that is missing does not keep the system from starting.
fn data_device(
    arguments: &Arguments,
    handover: &Handover,
    found: &FoundDisk,
    record: &mut StartRecord,
) -> Option<PathBuf> {
    if handover.leaves_out(&WorkPart::Data) {
        record.lose("the data partition is left out: it ended the process that mounts it, twice");
        return None;
    }
    let Some(partuuid) = &arguments.data else {
        record.lose("GRUB did not find a data partition (no reflash.data= on the kernel command line)");
        return None;
    };
    let node = found.layout.data(partuuid).and_then(|partition| partition.node.clone());
    if node.is_none() {
        record.lose(format!("{} has no data partition with PARTUUID {partuuid}", found.disk));
    }
    node
}

/// Partitions that a renewal of data needs, where it is configured.
fn renewal_parts(settings: &settings::Settings, found: &FoundDisk) -> Option<RenewalParts> {
    let device = |role| found.layout.device_of(role).map(Path::to_owned);
    let on_loss = settings.layer.data.checked_on_loss().unwrap_or_else(|error| {
        say(&chain(&error));
        OnLoss::Keep
    });
    (on_loss == OnLoss::Renew)
        .then_some(RenewalParts { state: device(Role::State)?, recovery: device(Role::Recovery)? })
}

/// Memory of this machine, bytes. Where the kernel does not say, it is little.
fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}
