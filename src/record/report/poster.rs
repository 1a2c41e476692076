//! Posts what the machine is doing while it does it. A thread of its own follows the journal; between two posts only the
//! newest state is kept, so a server that is slow or away costs the recovery nothing.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::{ReportedMachine, hardware_id};
use crate::fetch::{self, FetchError, FetchOptions, Http};
use crate::record::blackbox::AttemptOutcome;
use crate::record::journal::{Event, Journal, Phase, Told};

/// Between two posts, while bytes move and sentences are told.
const INTERVAL: Duration = Duration::from_secs(5);
/// Between two posts when a phase or the ending changed: phases that take no time are told together.
const COALESCE: Duration = Duration::from_secs(1);
/// Between two posts when nothing happens. Half of what makes a reader call a machine silent (30 s).
const HEARTBEAT: Duration = Duration::from_secs(15);
/// The same for one that waits for people: it may do so for days, and with a whole fleet.
const HEARTBEAT_AT_REST: Duration = Duration::from_secs(60);
/// For a connection, and again for an answer. A station is near, and the next post is newer anyway.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long the last post may hold up the restart.
const LAST_WAIT: Duration = Duration::from_secs(3);
/// Bytes of a sentence: the chain of a fetch from several mirrors can be long.
const MAX_MESSAGE_BYTES: usize = 300;

/// How it ended, as far as can be said now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// A release was written, verified and made bootable.
    Installed,
    /// The system was intact and was started again.
    Started,
    /// No release that is offered is for this machine. It may still be asking.
    Refused,
    /// It did not work. The machine may be waiting for another release.
    Failed,
    /// A blank machine was made a robot.
    Provisioned,
}

impl From<AttemptOutcome> for Ending {
    fn from(outcome: AttemptOutcome) -> Self {
        match outcome {
            AttemptOutcome::Installed => Self::Installed,
            AttemptOutcome::Started => Self::Started,
            AttemptOutcome::Parked | AttemptOutcome::Failed => Self::Failed,
        }
    }
}

/// What is posted beside the machine.
#[derive(Debug, Clone, Default, Serialize)]
struct Progress {
    /// The phase that is going on, or was the last.
    phase: Option<Phase>,
    /// Its number, from 1.
    phase_number: Option<u8>,
    done_bytes: Option<u64>,
    total_bytes: Option<u64>,
    bytes_per_s: Option<u64>,
    /// The last sentence.
    message: String,
    /// Version of the release, once known.
    version: Option<String>,
    /// Counts the posts of this run from 1; those that got lost leave gaps.
    sequence: u64,
    /// Seconds since the kernel started.
    uptime_s: u64,
    result: Option<Ending>,
}

/// How urgent what was not posted yet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    None,
    Quantity,
    Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    /// One more post, at once.
    Closing,
    /// No more.
    Over,
}

struct PosterState {
    progress: Progress,
    news: News,
    stage: Stage,
}

struct Shared {
    state: Mutex<PosterState>,
    changed: Condvar,
}

/// Posts until it is closed. Dropped without that, it stops at once.
pub struct Poster(Arc<Shared>);

impl Poster {
    /// Follows `journal` from now on, and posts to `url`.
    ///
    /// # Errors
    /// The URL or the options cannot be used, or there can be no further thread. Nothing is connected yet.
    pub fn start(
        machine: ReportedMachine,
        url: &str,
        options: &FetchOptions,
        journal: &Journal,
    ) -> Result<Self, FetchError> {
        let quick = FetchOptions { connect_timeout: TIMEOUT, stall_timeout: TIMEOUT, ..options.clone() };
        let http = Http::new(url, &quick)?;
        let state = PosterState { progress: Progress::default(), news: News::Step, stage: Stage::Running };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let follower = Arc::clone(&shared);
        thread::Builder::new().spawn(move || post_all(&follower, &machine, &http)).map_err(|cause| {
            FetchError::new(fetch::FetchErrorKind::Local, url, "no thread for the posts of progress").because(cause)
        })?;
        let listener = Arc::clone(&shared);
        journal.subscribe(Box::new(move |told| listener.take(told)));
        Ok(Self(shared))
    }

    /// Says how it ended, as far as is known now. The next phase takes it back.
    pub fn settle(&self, ending: Ending) {
        let mut state = self.0.lock();
        state.progress.result = Some(ending);
        state.news = News::Step;
        self.0.changed.notify_all();
    }

    /// Says how it ended if nobody did ([`settle`](Self::settle)), and waits until that is posted, for 3 s at most.
    pub fn close(&self, unless_settled: Ending) {
        let mut state = self.0.lock();
        if state.stage != Stage::Running {
            return;
        }
        state.progress.result.get_or_insert(unless_settled);
        state.stage = Stage::Closing;
        self.0.changed.notify_all();
        let waited = self.0.changed.wait_timeout_while(state, LAST_WAIT, |state| state.stage != Stage::Over);
        waited.unwrap_or_else(PoisonError::into_inner).0.stage = Stage::Over;
    }
}

impl Drop for Poster {
    fn drop(&mut self) {
        self.0.lock().stage = Stage::Over;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, PosterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, told: &Told<'_>) {
        let mut state = self.lock();
        let news = state.progress.take(told);
        state.news = state.news.max(news);
        self.changed.notify_all();
    }
}

impl Progress {
    fn take(&mut self, told: &Told<'_>) -> News {
        if let Some(gauge) = told.gauge {
            (self.done_bytes, self.total_bytes) = (Some(gauge.done_bytes), Some(gauge.total_bytes));
            self.bytes_per_s = gauge.bytes_per_s;
            return News::Quantity;
        }
        if let Some(version) = told.data["version"].as_str() {
            self.version = Some(version[..version.floor_char_boundary(MAX_MESSAGE_BYTES)].to_owned());
        }
        if !told.text.is_empty() {
            self.message = told.text[..told.text.floor_char_boundary(MAX_MESSAGE_BYTES)].to_owned();
        }
        match (told.event, told.phase) {
            (Event::Begin, Some(phase)) => {
                (self.phase, self.phase_number) = (Some(phase), Some(phase as u8 + 1));
                (self.done_bytes, self.total_bytes, self.bytes_per_s) = (None, None, None);
                self.result = None;
                News::Step
            }
            _ => News::Quantity,
        }
    }
}

/// The pause after a post, until one with such news may follow. `None` as news means that there is none.
fn pause(news: News, at_rest: bool, failures: u32, seed: u64) -> Duration {
    let pause = match news {
        News::Step => COALESCE,
        News::Quantity => INTERVAL,
        News::None if at_rest => HEARTBEAT_AT_REST,
        News::None => HEARTBEAT,
    };
    // A station that is away is not asked more often because there is more to tell.
    if failures == 0 { pause } else { fetch::backoff(failures.saturating_add(2), seed).max(INTERVAL) }
}

fn post_all(shared: &Shared, machine: &ReportedMachine, http: &Http) {
    let mut sequence = 0;
    let mut failures: u32 = 0;
    let mut last: Option<Instant> = None;
    while let Some((progress, is_last)) = shared.next(last, failures) {
        sequence += 1;
        let progress = Progress { sequence, uptime_s: uptime_s(), ..progress };
        let document = json!({ "machine": machine, "progress": progress }).to_string();
        match http.post_json(&document) {
            Ok(()) => failures = 0,
            Err(error) => {
                // Not for the journal, which would be the next thing to post.
                log::debug!("progress was not taken: {error}");
                failures = failures.saturating_add(1);
            }
        }
        last = Some(Instant::now());
        if is_last {
            break;
        }
    }
    shared.lock().stage = Stage::Over;
    shared.changed.notify_all();
}

impl Shared {
    /// Waits until something is to be posted; says whether it is the last. `last` is when the last post was over.
    fn next(&self, last: Option<Instant>, failures: u32) -> Option<(Progress, bool)> {
        let seed = hardware_id();
        let mut state = self.lock();
        while state.stage == Stage::Running {
            let at_rest = state.progress.result.is_some();
            let pause = last.map_or(Duration::ZERO, |_| pause(state.news, at_rest, failures, seed));
            let left = pause.saturating_sub(last.map_or(Duration::ZERO, |last| last.elapsed()));
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.stage == Stage::Over {
            return None;
        }
        state.news = News::None;
        Some((state.progress.clone(), state.stage == Stage::Closing))
    }
}

fn uptime_s() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{Ending, News, Progress, pause};
    use crate::record::journal::{Journal, Phase};
    use serde_json::json;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    #[test]
    fn a_station_that_is_away_is_asked_less_and_less() {
        for seed in 0..100 {
            let after = |failures| pause(News::Step, false, failures, seed).as_secs_f32();
            assert!((5.0..=8.0).contains(&after(1)) && (5.0..=16.0).contains(&after(2)), "{seed}");
            assert!((15.0..=60.0).contains(&after(10)) && (15.0..=60.0).contains(&after(u32::MAX)), "{seed}");
        }
        let after = |news| pause(news, false, 0, 1).as_secs();
        assert_eq!([after(News::Step), after(News::Quantity), after(News::None)], [1, 5, 15]);
        assert_eq!(pause(News::None, true, 0, 1), Duration::from_secs(60));
    }

    #[test]
    fn the_journal_gives_phase_quantities_version_and_sentence() {
        let progress = Arc::new(Mutex::new(Progress::default()));
        let journal = Journal::new(None, false);
        let follower = Arc::clone(&progress);
        journal.subscribe(Box::new(move |told| {
            follower.lock().unwrap().take(told);
        }));
        let now = || serde_json::to_value(&*progress.lock().unwrap()).unwrap();
        let _: Result<(), ()> = journal.phase(Phase::Manifest, "http://a", || {
            assert_eq!((&now()["phase_number"], &now()["message"]), (&json!(4), &json!("http://a")));
            journal.data("release", json!({ "version": "2.0" }));
            Ok(())
        });
        progress.lock().unwrap().result = Some(Ending::Refused);
        let _: Result<(), ()> = journal.phase(Phase::Write, "write", || {
            journal.with_progress(crate::record::progress::Bytes::of_disk(100), |done| done.disk(60));
            journal.warn(&"é".repeat(400));
            Err(())
        });
        let now = now();
        assert_eq!((&now["phase"], &now["version"], &now["result"]), (&json!("write"), &json!("2.0"), &json!(null)));
        assert_eq!((&now["done_bytes"], &now["total_bytes"]), (&json!(60), &json!(100)));
        assert_eq!(now["message"].as_str().unwrap().len(), 300);
    }
}
