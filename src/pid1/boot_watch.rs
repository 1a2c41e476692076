//! The boot watch: a process that restarts a start of the system which does not call itself good in time.
//!
//! PID 1 of the system's initramfs starts it before anything else, and it lives on when that PID 1 has become systemd.
//! It is no unit of the system on purpose: a unit can be masked or broken by `/etc`, which is the machine's own, is not
//! started in emergency mode, and is of no use once systemd has crashed and frozen, while it is still there to feed the
//! hardware watchdog. This process needs nothing of the system: its program is in memory, it reads `/proc` and one file
//! in `/run`, and restarts the machine itself.
//!
//! 1. While the file systems are put together, which has no watchdog of its own, the disk has to answer.
//! 2. From then on the boot has `boot.good_within_s` to call itself good ([`policy`]), after which the process ends.
//! 3. A safe start is never good. It ends in a normal start after a pause that grows, or when there is a newer release.
//!
//! Only a person who is logged in holds a restart ([`sessions`]).

mod notice;
pub mod policy;
pub mod restart;
mod safe_dns;
pub mod sessions;
pub mod terms;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::boot::this_boot;
use crate::pid1::system::disk_wait;
use crate::pid1::watchdog::{Stall, Verdict};
use crate::sys::companion::{self, Handles, StartedCompanion};
use crate::sys::kmsg::{Kmsg, Level};
use crate::sys::process;
use crate::sys::thread::background;
use policy::{Cause, HOLD, NOTICE, NextAct, Sight, Terms, WatchPolicy};
use sessions::Sessions;
use terms::WrittenTerms;

/// Name of the process, its argument 0.
pub const NAME: &str = "@reflash-watch";

/// Longest time without an answer of any disk while the file systems are put together. A disk that is given up by the
/// kernel answers with errors long before.
const DISK_SILENCE: Duration = Duration::from_secs(600);
/// Longest time for all of that: a check of the largest disks takes hours, one that goes round in a circle for ever.
const LONGEST_PREPARATION: Duration = Duration::from_secs(24 * 3600);
/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// Pauses before the first and the later questions for a newer release in a safe start. The latter is spread over a
/// fleet.
const ASK_FIRST: Duration = Duration::from_secs(120);
/// See [`ASK_FIRST`].
const ASK_AGAIN: Duration = Duration::from_secs(1800);
/// Time after which a safe start counts as one that has come up.
const CAME_UP: Duration = Duration::from_secs(600);
/// Longest time for such a question.
const ASK_LIMIT: Duration = Duration::from_secs(600);
/// The agent in the running system.
const AGENT: &str = "/usr/bin/reflash";

/// Whether this process is the watch.
#[must_use]
pub fn is_this_process() -> bool {
    process::is_child_of_pid1() && std::env::args_os().next().is_some_and(|name| name == NAME)
}

/// Starts the watch. The result has to live until PID 1 becomes systemd, which is when the watch takes the new root.
///
/// # Errors
/// The kernel has no room for another process.
pub fn start() -> std::io::Result<StartedCompanion> {
    companion::start(NAME)
}

/// Runs the watch. Never returns: it ends once there is nothing left to watch for.
pub fn run() -> ! {
    companion::be_the_last_to_end();
    let watch = match Handles::open() {
        Ok(handles) => Watch { handles, kmsg: Kmsg::open().ok() },
        Err(error) => {
            companion::write_to_consoles(&format!("this start is not watched: {error}"));
            std::process::exit(1)
        }
    };
    watch.until_handed_over(&handed_over());
    if let Err(error) = watch.handles.follow_pid1() {
        watch.say(&format!("the boot watch stays in the initramfs: {error}"));
    }
    let written = WrittenTerms::read();
    let terms = written.terms(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default());
    watch.until_over(terms, &written);
    std::process::exit(0)
}

/// Returns a channel that closes when PID 1 has become systemd: its end of our standard input closes with it.
fn handed_over() -> Receiver<()> {
    let (sender, closed) = channel();
    let started = background("from-pid1", move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        drop(sender);
    });
    // Without a thread the channel is closed at once, and the time for the boot begins now.
    drop(started);
    closed
}

struct Watch {
    handles: Handles,
    kmsg: Option<Kmsg>,
}

impl Watch {
    /// Waits while PID 1 puts the file systems together, and restarts the machine when the disk no longer answers.
    fn until_handed_over(&self, closed: &Receiver<()>) {
        let began = Instant::now();
        let waiting = disk_wait::limit(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default());
        let (silence, longest) = (DISK_SILENCE + waiting, LONGEST_PREPARATION + waiting);
        let mut stall = Stall::new(silence, 0, began);
        while closed.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            let answers = answers_of_disks(&std::fs::read_to_string("/proc/diskstats").unwrap_or_default());
            let is_still = !matches!(stall.judge(answers, Instant::now()), Verdict::Feed);
            if is_still || began.elapsed() > longest {
                let minutes = if is_still { silence } else { longest }.as_secs() / 60;
                let why = if is_still { "no disk has answered" } else { "its file systems are not together" };
                self.say(&format!("the system is not started: {why} for {minutes} minutes; restarting"));
                restart::at_once(&self.handles);
            }
        }
    }

    /// Watches the system until it is good, or restarts it.
    fn until_over(&self, terms: Terms, written: &WrittenTerms) {
        let began = Instant::now();
        let newer_release = Arc::new(AtomicBool::new(false));
        if let Terms::Safe(number) = terms {
            notice::write(number).iter().for_each(|line| self.say(line));
            ask_for_newer_releases(&newer_release, number);
        }
        let (mut policy, mut sessions) = (WatchPolicy::new(terms), Sessions::default());
        let mut has_come_up = false;
        loop {
            let now = began.elapsed();
            if let Terms::Safe(number) = terms {
                safe_dns::keep(now);
                if now >= CAME_UP && !std::mem::replace(&mut has_come_up, true) {
                    restart::note_safe_start(written.state.as_deref(), number);
                }
            }
            let sight = Sight {
                now,
                good: Path::new(this_boot::GOOD_MARK).exists(),
                last_key: sessions.last_key(now),
                newer_release: newer_release.load(Ordering::SeqCst),
            };
            match policy.judge(&sight) {
                NextAct::Wait => {}
                NextAct::Done => return,
                NextAct::Announce(cause) => self.announce(cause),
                NextAct::Held(cause) => self.say(&format!(
                    "{}; a session on this machine holds the restart for {} minutes after its last key",
                    sentence(cause),
                    HOLD.as_secs() / 60
                )),
                NextAct::Restart(cause) => {
                    if self.restart(cause, written) {
                        return;
                    }
                }
            }
            std::thread::sleep(LOOK);
        }
    }

    fn announce(&self, cause: Cause) {
        if let Cause::NotGood(_) = cause {
            restart::what_is_missing().iter().for_each(|line| self.say(line));
        }
        let seconds = NOTICE.as_secs();
        self.say(&format!("{}: restarting in {seconds} s, unless a person logs in", sentence(cause)));
    }

    /// Restarts the machine. Returns only when the boot has called itself good after all, without the mark for that.
    fn restart(&self, cause: Cause, written: &WrittenTerms) -> bool {
        let why = if let Cause::NotGood(_) = cause { restart::not_healthy() } else { Vec::new() };
        let why = why.iter().map(|one| format!("; {one}")).collect::<String>();
        let text = format!("{}{why}: restarting", sentence(cause));
        let is_good = restart::record(written, cause, &text);
        if is_good && matches!(cause, Cause::NotGood(_)) {
            self.say("the boot environment says that this boot is good: it goes on");
            return true;
        }
        self.say(&text);
        if !restart::in_order() {
            self.say("the system does not go down by itself: restarting at once");
        }
        restart::at_once(&self.handles)
    }

    /// Writes to every console, for a person, and to the kernel log, where the system's journal finds it.
    fn say(&self, text: &str) {
        if let Some(kmsg) = &self.kmsg {
            let _ = kmsg.write(Level::Warning, text);
        }
        companion::write_to_consoles(text);
    }
}

/// The cause of a restart, as the beginning of a sentence.
fn sentence(cause: Cause) -> String {
    match cause {
        Cause::NotGood(limit) => format!("this start has not called itself good within {} s", limit.as_secs()),
        Cause::PauseOver(pause) => {
            format!("this safe start ends after {} h, and a normal start is tried", pause.as_secs() / 3600)
        }
        Cause::NewerRelease => "this safe start ends, since there is a newer release".to_owned(),
    }
}

/// Asks for a newer release from time to time, in a thread. The agent of the system does so in a process of its own:
/// whatever a network sends to it, this one lives on.
fn ask_for_newer_releases(found: &Arc<AtomicBool>, number: u32) {
    let found = Arc::clone(found);
    // Without a thread the pause ends the safe start all the same.
    let _ = background("newer-release", move || {
        // From the second safe start in a row on, a newer release may be the one that could not be installed.
        let mut pause = if number <= 1 { ASK_FIRST } else { this_boot::pause_before_normal_start(number) / 4 };
        while !found.load(Ordering::SeqCst) {
            std::thread::sleep(pause);
            let answer = companion::run_within(Path::new(AGENT), &["request", "newer"], ASK_LIMIT);
            found.store(matches!(answer, Some((Some(0), _))), Ordering::SeqCst);
            pause = ASK_AGAIN.mul_f64(spread());
        }
    });
}

/// A factor between 3/4 and 5/4, another one each time.
fn spread() -> f64 {
    let random = crate::sys::random::bytes::<1>().map_or(128, |[byte]| byte);
    0.75 + f64::from(random) / 510.0
}

/// Sum of the reads and writes that any disk has finished, in `/proc/diskstats` (Linux'
/// Documentation/admin-guide/iostats.rst). Memory and loop devices do not wait for a disk.
fn answers_of_disks(diskstats: &str) -> u64 {
    let answers = diskstats.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(2);
        let name = fields.next()?;
        if name.starts_with("loop") || name.starts_with("ram") || name.starts_with("zram") {
            return None;
        }
        let reads: u64 = fields.next()?.parse().ok()?;
        let writes: u64 = fields.nth(3)?.parse().ok()?;
        Some(reads.wrapping_add(writes))
    });
    answers.fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::{answers_of_disks, sentence, spread};
    use crate::pid1::boot_watch::policy::Cause;
    use std::time::Duration;

    #[test]
    fn finished_reads_and_writes_of_disks_are_counted() {
        let text = "   7       0 loop0 9 0 9 9 9 0 9 9 0 9 9\n   1       0 ram0 9 0 9 9 9 0 9 9 0 9 9\n\
                    254       0 vda 120 3 4500 60 40 2 800 30 0 70 90 0 0 0 0 5 1\n 254       5 vda5 20 0 1 1 1 0 1 1\n\
                    nonsense\n";
        assert_eq!(answers_of_disks(text), 120 + 40 + 20 + 1);
        assert_eq!(answers_of_disks(""), 0);
    }

    #[test]
    fn questions_of_a_fleet_are_spread() {
        assert!((0..100).map(|_| spread()).all(|factor| (0.75..=1.25).contains(&factor)));
    }

    #[test]
    fn a_restart_has_a_reason_with_its_quantity() {
        let text = sentence(Cause::NotGood(Duration::from_secs(600)));
        assert_eq!(text, "this start has not called itself good within 600 s");
        assert!(sentence(Cause::PauseOver(Duration::from_secs(7200))).contains("after 2 h"));
    }
}
