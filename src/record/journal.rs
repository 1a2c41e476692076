//! The one place that reports what is going on: phases with n of m and duration, notes, warnings and progress. Each is
//! a typed [`Event`], shown on the console for people, written as a JSON line for programs ([`super::wire`]), and
//! handed to subscribers.

use std::convert::Infallible;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::record::event::{Entry, Event, Subscriber};
use crate::record::progress::{Bytes, Done, Meter};
use crate::record::wire;
use crate::sys::clock::now_unix_s;
use crate::sys::thread::lock;

pub use crate::record::event::Phase;

/// Progress lines on something that is not a terminal come this seldom, to keep logs readable.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Time between two redraws on a terminal. A serial console at 115200 baud spends 7 ms on a line.
const REDRAW_INTERVAL: Duration = Duration::from_millis(500);

/// A sink for every text line, beside the console.
pub type TextSink = Box<dyn Fn(&str) + Send>;

/// Kind of console, by which progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleKind {
    /// A bar that is drawn again in its own line.
    Terminal,
    /// A line from time to time, for a pipe or a file.
    Lines,
}

/// The journal of one run. Threads share it.
pub struct Journal {
    sinks: Mutex<Sinks>,
    /// Grows whenever something was achieved.
    pulse: AtomicU64,
}

struct Sinks {
    console: Option<Box<dyn Write + Send>>,
    console_kind: ConsoleKind,
    /// A progress bar stands on the last console line and must be ended before other text.
    bar_shown: bool,
    events: EventSink,
    extra: Option<TextSink>,
    subscribers: Vec<Subscriber>,
    phase: Option<Phase>,
}

enum EventSink {
    /// The partition of the log is not mounted yet: lines are kept, up to [`MAX_KEPT`].
    Kept(Vec<String>),
    Open(Box<dyn Write + Send>),
}

const MAX_KEPT: usize = 1000;

impl Journal {
    /// A journal without a console: only its event log and subscribers get what is reported.
    #[must_use]
    pub fn silent() -> Self {
        Self::with(None, ConsoleKind::Lines)
    }

    /// A journal that writes to `console`.
    #[must_use]
    pub fn on_console(console: Box<dyn Write + Send>, kind: ConsoleKind) -> Self {
        Self::with(Some(console), kind)
    }

    /// A journal that writes to standard error, for a command typed by hand.
    #[must_use]
    pub fn on_stderr() -> Self {
        let stderr = std::io::stderr();
        let kind = if stderr.is_terminal() { ConsoleKind::Terminal } else { ConsoleKind::Lines };
        Self::on_console(Box::new(stderr), kind)
    }

    fn with(console: Option<Box<dyn Write + Send>>, console_kind: ConsoleKind) -> Self {
        Self {
            sinks: Mutex::new(Sinks {
                console,
                console_kind,
                bar_shown: false,
                events: EventSink::Kept(Vec::new()),
                extra: None,
                subscribers: Vec::new(),
                phase: None,
            }),
            pulse: AtomicU64::new(0),
        }
    }

    /// A number that grows with progress: phases, bytes, and whatever [`progressed`](Self::progressed) reports.
    #[must_use]
    pub fn pulse(&self) -> u64 {
        self.pulse.load(Ordering::Relaxed)
    }

    /// Reports an achievement that is neither a phase nor a byte.
    pub fn progressed(&self) {
        self.pulse.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends every text line to `sink` too: the kernel log.
    pub fn tee(&self, sink: TextSink) {
        self.lock().extra = Some(sink);
    }

    /// Calls `subscriber` for every event from now on.
    pub fn subscribe(&self, subscriber: Subscriber) {
        self.lock().subscribers.push(subscriber);
    }

    /// Writes the JSON lines kept so far, and all later ones, to `sink`. A sink that fails is given up: the log is
    /// never a reason to stop a recovery.
    pub fn open_events(&self, mut sink: Box<dyn Write + Send>) {
        let mut sinks = self.lock();
        if let EventSink::Kept(lines) = &sinks.events {
            for line in lines {
                let _ = sink.write_all(line.as_bytes());
            }
        }
        sinks.events = EventSink::Open(sink);
    }

    /// Runs a phase: reports its name with n of m, and at its end how long it took.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn phase<T, E>(&self, phase: Phase, sentence: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let started = Instant::now();
        self.progressed();
        {
            let mut sinks = self.lock();
            sinks.phase = Some(phase);
            sinks.text(&format!("[{}/{}] {}: {sentence}", phase.number(), Phase::COUNT, phase.name()));
            sinks.event(Event::PhaseBegan { sentence });
        }
        let result = work();
        if result.is_ok() {
            self.progressed();
        }
        let duration = started.elapsed();
        let (how, event) = match &result {
            Ok(_) => ("done", Event::PhaseEnded { duration }),
            Err(_) => ("failed", Event::PhaseFailed { duration }),
        };
        let mut sinks = self.lock();
        sinks.text(&format!("      {} {how} in {:.1} s", phase.name(), duration.as_secs_f32()));
        sinks.event(event);
        sinks.phase = None;
        result
    }

    /// Runs a phase that cannot fail, as [`phase`](Self::phase) does.
    pub fn infallible_phase<T>(&self, phase: Phase, sentence: &str, work: impl FnOnce() -> T) -> T {
        let Ok(value) = self.phase(phase, sentence, || Ok::<T, Infallible>(work()));
        value
    }

    /// Reports a sentence.
    pub fn note(&self, text: &str) {
        self.report(Event::Note(text));
    }

    /// Reports something that went wrong and is being dealt with.
    pub fn warn(&self, text: &str) {
        self.report(Event::Warning(text));
    }

    /// Records an event that the console shows already: for the event log and the subscribers.
    pub fn record(&self, event: Event<'_>) {
        self.lock().event(event);
    }

    /// Reports an event that is more than a sentence. Phases and progress have functions of their own.
    pub fn report(&self, event: Event<'_>) {
        let mut sinks = self.lock();
        let mark = if matches!(event, Event::Warning(_)) { "  !   " } else { "      " };
        sinks.text(&format!("{mark}{event}"));
        sinks.event(event);
    }

    /// Runs `work` with a counter of bytes, and shows bar, rate and time left while it runs.
    pub fn with_progress<T>(&self, total: Bytes, work: impl FnOnce(&Done) -> T) -> T {
        let done = Done::default();
        let (stop, stopped) = channel::<()>();
        std::thread::scope(|scope| {
            let counter = &done;
            let show = move || self.show_progress(total, counter, &stopped);
            // Without a thread the work is done unseen.
            drop(std::thread::Builder::new().name("progress".to_owned()).spawn_scoped(scope, show));
            let result = work(&done);
            drop(stop);
            result
        })
    }

    fn show_progress(&self, total: Bytes, done: &Done, stopped: &Receiver<()>) {
        let started = Instant::now();
        let mut meter = Meter::new(total);
        let interval = match self.lock().console_kind {
            ConsoleKind::Terminal => REDRAW_INTERVAL,
            ConsoleKind::Lines => LINE_INTERVAL,
        };
        let (mut seen, mut drawn) = (Bytes::default(), Duration::ZERO);
        loop {
            let over = stopped.recv_timeout(REDRAW_INTERVAL) != Err(RecvTimeoutError::Timeout);
            let (elapsed, now) = (started.elapsed(), done.so_far());
            if now != seen {
                seen = now;
                self.progressed();
            }
            meter.update(elapsed, now);
            let mut sinks = self.lock();
            sinks.event(Event::Progress(meter.gauge()));
            if elapsed - drawn >= interval || over && elapsed >= interval {
                sinks.bar(&meter.line());
                drawn = elapsed;
            }
            if over {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sinks> {
        lock(&self.sinks)
    }
}

impl Sinks {
    fn text(&mut self, line: &str) {
        let end_bar = if std::mem::take(&mut self.bar_shown) { "\n" } else { "" };
        if let Some(console) = &mut self.console {
            // A console that went away (a closed pipe, a serial line unplugged) is not a reason to stop.
            let _ = console.write_all(format!("{end_bar}{line}\n").as_bytes()).and_then(|()| console.flush());
        }
        if let Some(extra) = &self.extra {
            extra(line.trim_start());
        }
    }

    fn bar(&mut self, line: &str) {
        let Some(console) = &mut self.console else { return };
        let text = match self.console_kind {
            ConsoleKind::Terminal => format!("\r      {line:<73}"),
            ConsoleKind::Lines => format!("      {line}\n"),
        };
        self.bar_shown = self.console_kind == ConsoleKind::Terminal;
        let _ = console.write_all(text.as_bytes()).and_then(|()| console.flush());
    }

    fn event(&mut self, event: Event<'_>) {
        let unix_s = now_unix_s();
        let entry = Entry { unix_s, phase: self.phase, event };
        self.subscribers.iter().for_each(|subscriber| subscriber(&entry));
        let Some(line) = wire::log_line(&entry) else { return };
        match &mut self.events {
            EventSink::Kept(lines) if lines.len() < MAX_KEPT => lines.push(line + "\n"),
            EventSink::Kept(_) => {}
            EventSink::Open(sink) => {
                let _ = sink.write_all((line + "\n").as_bytes()).and_then(|()| sink.flush());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ConsoleKind, Journal, Phase};
    use crate::record::event::Event;
    use crate::record::progress::Bytes;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    #[test]
    fn events_before_the_log_is_open_are_not_lost() {
        let (console, events) = (Shared::default(), Shared::default());
        let journal = Journal::on_console(Box::new(console.clone()), ConsoleKind::Lines);
        let failed: Result<(), &str> = journal.phase(Phase::Plan, "compare", || {
            journal.note("half way");
            Err("no")
        });
        assert!(failed.is_err());
        journal.open_events(Box::new(events.clone()));
        journal.warn("later");
        assert!(console.text().starts_with("[5/8] plan: compare\n      half way\n      plan failed in 0.0 s\n"));
        let lines: Vec<serde_json::Value> =
            events.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let kinds: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["begin", "note", "failed", "warning"]);
        assert_eq!((lines[0]["phase"].as_str(), lines[3].get("phase")), (Some("plan"), None));
    }

    #[test]
    fn every_subscriber_gets_progress_and_the_log_does_not() {
        let events = Shared::default();
        let journal = Journal::silent();
        journal.open_events(Box::new(events.clone()));
        let seen = [Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new()))];
        for seen in seen.clone() {
            journal.subscribe(Box::new(move |entry| {
                if let Event::Progress(gauge) = entry.event {
                    seen.lock().unwrap().push((entry.phase, gauge.done_bytes, gauge.total_bytes));
                }
            }));
        }
        let _: Result<(), ()> = journal.phase(Phase::Write, "", || {
            journal.with_progress(Bytes::of_disk(100), |done| done.disk(60));
            Ok(())
        });
        for seen in seen {
            assert_eq!(*seen.lock().unwrap(), [(Some(Phase::Write), 60, 100)]);
        }
        assert_eq!(events.text().lines().count(), 2);
    }

    #[test]
    fn a_bar_is_ended_before_other_text() {
        let console = Shared::default();
        let journal = Journal::on_console(Box::new(console.clone()), ConsoleKind::Terminal);
        journal.with_progress(Bytes::of_disk(100), |done| {
            done.disk(50);
            std::thread::sleep(std::time::Duration::from_millis(700));
        });
        journal.note("next");
        let text = console.text();
        assert!(
            text.contains("\r      [############............]  50%") && text.ends_with("\n      next\n"),
            "{text:?}"
        );
    }
}
