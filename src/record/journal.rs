//! The one place that tells what is going on: phases with n of m and duration, notes, warnings and progress, on the
//! console for people and as JSON lines for programs.
//!
//! A JSON line has `unix_s`, `phase` and `event` (`begin`, `end`, `failed`, `note`, `warning`), and `text`,
//! `duration_ms` and `data` where they apply.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::record::progress::{Bytes, Done, Gauge, Meter};

/// Phases of a recovery, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Mounts, modules, disk.
    Init,
    /// Configuration and keys.
    Config,
    /// Network and clock.
    Network,
    /// Release.
    Manifest,
    /// Comparison with what is there.
    Plan,
    /// Download and write.
    Write,
    /// Read-back.
    Verify,
    /// Boot environment.
    Commit,
}

const PHASES: usize = Phase::Commit as usize + 1;

/// Progress lines on something that is not a terminal come this seldom, to keep logs readable.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Redraws on a terminal. A serial console at 115200 baud spends 7 ms on a line.
const REDRAW_INTERVAL: Duration = Duration::from_millis(500);

/// Takes every text line beside the console.
pub type TextSink = Box<dyn Fn(&str) + Send>;

/// What kind of thing was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// A phase begins.
    Begin,
    /// A phase ended well.
    End,
    /// A phase failed.
    Failed,
    /// A sentence.
    Note,
    /// Something went wrong.
    Warning,
    /// Bytes are moving. Not logged: only witnesses are told, twice a second.
    Progress,
}

/// One thing that was told, for whoever keeps a record of his own.
#[derive(Debug, Serialize)]
pub struct Told<'a> {
    unix_s: u64,
    /// The phase that is going on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// What kind of thing.
    pub event: Event,
    /// The sentence.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub text: &'a str,
    /// How long a phase took.
    #[serde(rename = "duration_ms", skip_serializing_if = "Option::is_none", serialize_with = "as_millis")]
    pub duration: Option<Duration>,
    /// The quantities behind a sentence.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub data: &'a Value,
    /// How far a phase is, with [`Event::Progress`].
    #[serde(skip)]
    pub gauge: Option<Gauge>,
}

fn as_millis<S: serde::Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.unwrap_or_default().as_millis() as u64)
}

/// Is told everything.
pub type Witness = Box<dyn Fn(&Told<'_>) + Send>;

/// Where the lines go.
pub struct Journal {
    sinks: Mutex<Sinks>,
    /// Moves whenever something was achieved.
    pulse: AtomicU64,
}

struct Sinks {
    console: Option<Box<dyn Write + Send>>,
    is_terminal: bool,
    /// A progress bar stands on the last console line and must be ended before other text.
    bar_shown: bool,
    events: EventSink,
    extra: Option<TextSink>,
    witnesses: Vec<Witness>,
    phase: Option<Phase>,
}

enum EventSink {
    /// Not known yet where to: kept, up to [`MAX_KEPT`] lines.
    Kept(Vec<String>),
    Open(Box<dyn Write + Send>),
}

const MAX_KEPT: usize = 1000;

impl Journal {
    /// A journal that speaks to `console`, which `is_terminal` or not. `None` keeps the console silent.
    #[must_use]
    pub fn new(console: Option<Box<dyn Write + Send>>, is_terminal: bool) -> Self {
        Self {
            sinks: Mutex::new(Sinks {
                console,
                is_terminal,
                bar_shown: false,
                events: EventSink::Kept(Vec::new()),
                extra: None,
                witnesses: Vec::new(),
                phase: None,
            }),
            pulse: AtomicU64::new(0),
        }
    }

    /// A number that moves with progress: phases, bytes, and whatever [`progressed`](Self::progressed) reports.
    #[must_use]
    pub fn pulse(&self) -> u64 {
        self.pulse.load(Ordering::Relaxed)
    }

    /// Something was achieved that is neither a phase nor a byte.
    pub fn progressed(&self) {
        self.pulse.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends every text line to `sink` too: the kernel log.
    pub fn tee(&self, sink: TextSink) {
        self.lock().extra = Some(sink);
    }

    /// Tells `witness` everything from now on. Who tells waits for it meanwhile, so it must be quick.
    pub fn subscribe(&self, witness: Witness) {
        self.lock().witnesses.push(witness);
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

    /// Runs a phase: says its name and n of m, and at the end its duration.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn phase<T, E>(&self, phase: Phase, sentence: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let started = Instant::now();
        self.progressed();
        {
            let mut sinks = self.lock();
            sinks.phase = Some(phase);
            sinks.text(&format!("[{}/{PHASES}] {}: {sentence}", phase as usize + 1, phase.name()));
            sinks.event(Event::Begin, sentence, None, &Value::Null);
        }
        let result = work();
        if result.is_ok() {
            self.progressed();
        }
        let duration = started.elapsed();
        let mut sinks = self.lock();
        let how = if result.is_ok() { "done" } else { "failed" };
        sinks.text(&format!("      {} {how} in {:.1} s", phase.name(), duration.as_secs_f32()));
        let event = if result.is_ok() { Event::End } else { Event::Failed };
        sinks.event(event, "", Some(duration), &Value::Null);
        sinks.phase = None;
        result
    }

    /// A sentence within a phase.
    pub fn note(&self, text: &str) {
        self.data(text, Value::Null);
    }

    /// A sentence with the quantities behind it.
    pub fn data(&self, text: &str, data: Value) {
        let mut sinks = self.lock();
        sinks.text(&format!("      {text}"));
        sinks.event(Event::Note, text, None, &data);
    }

    /// Something went wrong that is being dealt with.
    pub fn warn(&self, text: &str) {
        let mut sinks = self.lock();
        sinks.text(&format!("  !   {text}"));
        sinks.event(Event::Warning, text, None, &Value::Null);
    }

    /// Runs `work` with a counter of bytes, and shows bar, rate and time left while it runs.
    pub fn with_progress<T>(&self, total: Bytes, work: impl FnOnce(&Done) -> T) -> T {
        let done = Done::default();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let counter = &done;
            scope.spawn(move || self.show_progress(total, counter, &stopped));
            let result = work(&done);
            drop(stop);
            result
        })
    }

    fn show_progress(&self, total: Bytes, done: &Done, stopped: &std::sync::mpsc::Receiver<()>) {
        let started = Instant::now();
        let mut meter = Meter::new(total);
        let interval = if self.lock().is_terminal { REDRAW_INTERVAL } else { LINE_INTERVAL };
        let (mut seen, mut drawn) = (Bytes::default(), Duration::ZERO);
        loop {
            let over = stopped.recv_timeout(REDRAW_INTERVAL) != Err(std::sync::mpsc::RecvTimeoutError::Timeout);
            let (elapsed, now) = (started.elapsed(), done.so_far());
            if now != seen {
                seen = now;
                self.progressed();
            }
            meter.update(elapsed, now);
            let mut sinks = self.lock();
            sinks.witness(Event::Progress, "", None, &Value::Null, Some(meter.gauge()));
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
        // A thread that panicked while printing must not silence the others.
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Phase {
    /// As on the console.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Config => "config",
            Self::Network => "network",
            Self::Manifest => "manifest",
            Self::Plan => "plan",
            Self::Write => "write",
            Self::Verify => "verify",
            Self::Commit => "commit",
        }
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
        let text = if self.is_terminal { format!("\r      {line:<73}") } else { format!("      {line}\n") };
        self.bar_shown = self.is_terminal;
        let _ = console.write_all(text.as_bytes()).and_then(|()| console.flush());
    }

    fn witness<'a>(
        &self,
        event: Event,
        text: &'a str,
        duration: Option<Duration>,
        data: &'a Value,
        gauge: Option<Gauge>,
    ) -> Told<'a> {
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let told = Told { unix_s, phase: self.phase, event, text, duration, data, gauge };
        self.witnesses.iter().for_each(|witness| witness(&told));
        told
    }

    fn event(&mut self, event: Event, text: &str, duration: Option<Duration>, data: &Value) {
        let told = self.witness(event, text, duration, data, None);
        let Ok(json) = serde_json::to_string(&told) else { return };
        match &mut self.events {
            EventSink::Kept(lines) if lines.len() < MAX_KEPT => lines.push(json + "\n"),
            EventSink::Kept(_) => {}
            EventSink::Open(sink) => {
                let _ = sink.write_all((json + "\n").as_bytes()).and_then(|()| sink.flush());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Journal, Phase};
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
        let journal = Journal::new(Some(Box::new(console.clone())), false);
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
    fn every_witness_is_told_how_far_it_is_and_the_log_is_not() {
        let events = Shared::default();
        let journal = Journal::new(None, false);
        journal.open_events(Box::new(events.clone()));
        let seen = [Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new()))];
        for seen in seen.clone() {
            journal.subscribe(Box::new(move |told| {
                if let Some(gauge) = told.gauge {
                    seen.lock().unwrap().push((told.phase, gauge.done_bytes, gauge.total_bytes));
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
        let journal = Journal::new(Some(Box::new(console.clone())), true);
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
