//! PID 1 of the recovery initramfs: it starts the worker that recovers, starts it again when it dies, feeds the
//! watchdog and restarts the machine. It reads nothing that comes from outside, so that nothing from outside can end
//! it: the death of PID 1 is a kernel panic.
//!
//! A worker that is killed is as good as a power cut, after which a recovery goes on where it was; the next one begins
//! at once, with the same reason and the same deadlines. What ended two workers in the same way is left out of the next
//! ([`deaths`]).

pub mod deaths;

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::link::{
    DIRECT_ARGUMENTS, DIRECT_DIRECTORY, DIRECT_INITRAMFS, DIRECT_KERNEL, Handover, MAX_LINE_BYTES, WORKER, WorkerReport,
};
use super::{console, watchdog};
use crate::chain::chain;
use crate::record::journal::Journal;
use crate::record::wire::millis;
use crate::sys::process::{self, ProcessEnding, StartedWorker};
use crate::sys::thread::{background, lock};
use crate::sys::{self, power};
use deaths::{AfterDeath, Deaths, WorkerLife};

/// Time a person has to read a panic of PID 1 before the machine restarts.
const READING_TIME: Duration = Duration::from_secs(20);
/// Time for the worker to end after it has asked for a restart or panicked: a disk that hangs can keep it for ever, and
/// its own last sync may take 30 s.
const TIME_TO_END: Duration = Duration::from_secs(45);
/// Time for a worker that was killed to end, on the way down.
const TIME_TO_DIE: Duration = Duration::from_secs(3);
/// Pause after the kernel could not start a worker.
const NO_ROOM: Duration = Duration::from_secs(5);
/// Starts in a row that the kernel may refuse before the machine is restarted: two minutes' worth.
const MAX_REFUSALS: u32 = 24;

/// What the threads of PID 1 share.
struct Shared {
    journal: Arc<Journal>,
    /// Number of the worker's process; 0 while there is none.
    worker: AtomicU32,
    /// Number of the last process whose end is waited for with impatience.
    is_to_end: AtomicU32,
    /// Standard input of the worker.
    input: Mutex<Option<ChildStdin>>,
    watchdog_started: AtomicBool,
    /// Whether there is a time after which the machine is restarted.
    has_deadline: AtomicBool,
    /// The machine is on its way down: no worker is started any more.
    shutting_down: AtomicBool,
}

/// Runs PID 1 of the recovery. Never returns: the machine restarts.
pub fn run() -> ! {
    sys::init::install_panic_hook(READING_TIME);
    let brought_up = sys::init::bring_up();
    let journal = Arc::new(console::open_journal());
    let shared = Arc::new(Shared {
        journal,
        worker: AtomicU32::new(0),
        is_to_end: AtomicU32::new(0),
        input: Mutex::new(None),
        watchdog_started: AtomicBool::new(false),
        has_deadline: AtomicBool::new(false),
        shutting_down: AtomicBool::new(false),
    });
    match brought_up {
        Ok(notes) => notes.iter().for_each(|note| shared.journal.warn(note)),
        // The worker needs them too and says what it cannot do.
        Err(error) => shared.journal.warn(&chain(&error)),
    }
    let ending = Arc::clone(&shared);
    if let Err(error) = sys::init::start_signal_thread(move |text| ending.shut_down(text)) {
        shared.journal.warn(&format!("ctrl-alt-del will not work: {error}"));
    }
    supervise(&shared)
}

/// Starts workers until one has the machine restarted.
fn supervise(shared: &Arc<Shared>) -> ! {
    let began = Instant::now();
    let mut deaths = Deaths::default();
    let mut died = None;
    let mut refusals = 0;
    loop {
        let handover =
            Handover { age_ms: millis(began.elapsed()), died: died.take(), left_out: deaths.left_out().to_vec() };
        let started = Instant::now();
        let (life, ending) = match work(shared, &handover) {
            Ok(ended) => ended,
            Err(error) => {
                shared.say(&format!(
                    "the recovery's process cannot be started: {error}; trying again in {} s",
                    NO_ROOM.as_secs()
                ));
                shared.pause(NO_ROOM);
                refusals += 1;
                if refusals >= MAX_REFUSALS {
                    shared.restart();
                }
                continue;
            }
        };
        refusals = 0;
        shared.stay_down();
        if ending == ProcessEnding::Exited(0) {
            if life.starts_directly() {
                shared.start_directly();
            }
            shared.restart();
        }
        let obituary = life.obituary(&ending);
        if life.is_done() {
            shared.say(&format!("the recovery's process died after its work was done, {obituary}; restarting"));
            shared.restart();
        }
        match deaths.add(&life, &ending, started.elapsed()) {
            AfterDeath::StartAgain { pause } => {
                let seconds = pause.as_secs();
                shared.say(&format!("the recovery's process died, {obituary}; the next one starts in {seconds} s"));
                shared.pause(pause);
            }
            AfterDeath::RestartMachine => {
                shared.say(&format!("the recovery's process dies again and again, {obituary}; restarting"));
                shared.restart();
            }
        }
        died = Some(obituary);
    }
}

/// Runs one worker to its end.
fn work(shared: &Arc<Shared>, handover: &Handover) -> std::io::Result<(WorkerLife, ProcessEnding)> {
    let killed_before = process::oom_kills();
    let StartedWorker { pid, input, output } = process::start_self(WORKER, &serde_json::to_string(handover)?)?;
    shared.worker.store(pid, Ordering::SeqCst);
    *lock(&shared.input) = Some(input);
    let life = Arc::new(Mutex::new(WorkerLife::default()));
    let (reader, taking) = (Arc::clone(shared), Arc::clone(&life));
    let (done, read) = std::sync::mpsc::channel::<()>();
    let listening = background("worker-reports", move || {
        listen(&reader, output, &taking);
        drop(done);
    });
    if listening.is_err() {
        // Its reports would fill the pipe and stop it.
        process::end(pid);
    }
    let ending = process::wait_for(pid).among_oom_kills(killed_before, process::oom_kills());
    shared.worker.store(0, Ordering::SeqCst);
    *lock(&shared.input) = None;
    // Its last words, among them why it panicked, are still in the pipe.
    let _ = read.recv_timeout(TIME_TO_DIE);
    let life = std::mem::take(&mut *lock(&life));
    Ok((life, ending))
}

/// Takes what the worker reports, until it has ended.
fn listen(shared: &Arc<Shared>, output: ChildStdout, life: &Mutex<WorkerLife>) {
    each_report(output, |report| {
        match &report {
            WorkerReport::Progressed => shared.journal.progressed(),
            WorkerReport::Watchdog { limit_s } => shared.feed_watchdog(Duration::from_secs(*limit_s)),
            WorkerReport::RestartAfter { limit_s } => shared.restart_after(Duration::from_secs(*limit_s)),
            WorkerReport::Restart | WorkerReport::Panicked { .. } => shared.restart_unless_it_ends(),
            WorkerReport::Entered(_) | WorkerReport::Left(_) | WorkerReport::Done | WorkerReport::StartDirectly => {}
        }
        lock(life).take(report);
    });
}

/// Hands over what a worker reports, until it has ended.
fn each_report(output: ChildStdout, mut take: impl FnMut(WorkerReport)) {
    each_report_until(output, |report| {
        take(report);
        ControlFlow::Continue(())
    });
}

/// Hands over what a worker reports, until that is enough or the worker has ended.
pub(super) fn each_report_until(output: ChildStdout, mut take: impl FnMut(WorkerReport) -> ControlFlow<()>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while let Ok(1..) = output.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
        if let Some(report) = WorkerReport::parse(line.trim_ascii_end())
            && take(report).is_break()
        {
            return;
        }
        line.clear();
    }
}

impl Shared {
    /// Says something on the consoles, and has the worker record it, if there is one.
    fn say(&self, text: &str) {
        self.journal.warn(text);
        self.pass_on(text);
    }

    /// Has the worker record what the console shows already. One that does not read is not waited for: the pipe has
    /// room for more than is ever said.
    fn pass_on(&self, text: &str) {
        if let Some(input) = lock(&self.input).as_mut() {
            let _ = writeln!(input, "{text}");
        }
    }

    /// Feeds the hardware watchdog from now on. The first worker that asks decides on the limit.
    fn feed_watchdog(self: &Arc<Self>, limit: Duration) {
        if !self.watchdog_started.swap(true, Ordering::SeqCst) {
            let shared = Arc::clone(self);
            let restarting = Arc::clone(self);
            watchdog::start(&self.journal, limit, move |text| shared.pass_on(text), move || restarting.restart());
        }
    }

    /// Restarts the machine after this time. The first worker that asks decides on it: a mad one can only bring the
    /// restart about that its death would.
    fn restart_after(self: &Arc<Self>, limit: Duration) {
        if self.has_deadline.swap(true, Ordering::SeqCst) {
            return;
        }
        let shared = Arc::clone(self);
        let spawned = background("deadline", move || {
            std::thread::sleep(limit);
            shared.say(&format!(
                "what this recovery was started for is not over after {} s; restarting",
                limit.as_secs()
            ));
            shared.restart();
        });
        if let Err(error) = spawned {
            self.journal.warn(&format!("there is no thread to watch the time: {error}"));
        }
    }

    /// Restarts the machine if the worker that is there now does not end soon.
    fn restart_unless_it_ends(self: &Arc<Self>) {
        let (shared, pid) = (Arc::clone(self), self.worker.load(Ordering::SeqCst));
        // One that has gone mad may say so without end: it gets one thread, and no more time.
        if pid == 0 || self.is_to_end.swap(pid, Ordering::SeqCst) == pid {
            return;
        }
        let spawned = background("patience", move || {
            std::thread::sleep(TIME_TO_END);
            if shared.worker.load(Ordering::SeqCst) == pid {
                shared.journal.warn("the recovery's process does not end, as when a disk hangs; restarting");
                shared.restart();
            }
        });
        if let Err(error) = spawned {
            self.journal.warn(&format!("there is no thread to watch the end of the recovery's process: {error}"));
        }
    }

    /// Ends the worker, so that the kernel unmounts what it had mounted.
    fn shut_down(&self, text: &str) {
        // First: a console that does not take what is said must not keep the machine up.
        self.shutting_down.store(true, Ordering::SeqCst);
        self.say(text);
        process::end(self.worker.load(Ordering::SeqCst));
        let end = Instant::now() + TIME_TO_DIE;
        while self.worker.load(Ordering::SeqCst) != 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits on purpose: the watchdog is fed meanwhile.
    fn pause(&self, pause: Duration) {
        self.journal.progressed();
        std::thread::sleep(pause);
        self.stay_down();
    }

    /// Does not return when the machine is on its way down.
    fn stay_down(&self) {
        while self.shutting_down.load(Ordering::SeqCst) {
            // Another thread restarts the machine.
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// Starts the kernel that the worker has left in memory. Returns only where that is not possible: the machine is
    /// then restarted as ever. The kernel alone reads what is in these files.
    fn start_directly(&self) {
        let open = |name| File::open(Path::new(DIRECT_DIRECTORY).join(name));
        let load = || -> std::io::Result<()> {
            let arguments = CString::new(std::fs::read(Path::new(DIRECT_DIRECTORY).join(DIRECT_ARGUMENTS))?)?;
            sys::kexec::load(&open(DIRECT_KERNEL)?, &open(DIRECT_INITRAMFS)?, &arguments)
        };
        let Err(error) = load().and_then(|()| power::start_loaded());
        self.journal.warn(&format!("the system cannot be started without GRUB: {error}; restarting"));
    }

    fn restart(&self) -> ! {
        loop {
            let Err(error) = power::reboot();
            self.journal.warn(&format!("the kernel refuses to reboot: {error}"));
            std::thread::sleep(READING_TIME);
        }
    }
}
