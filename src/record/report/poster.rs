//! A subscriber of the journal that posts what the machine is doing while it does it. A thread of its own posts;
//! between two posts only the newest state is kept, so a server that is slow or away costs the recovery nothing.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Ending, ReportedMachine, hardware_id};
use crate::fetch::{self, FetchError, FetchErrorKind, FetchOptions, Http};
use crate::record::event::{Entry, Event, cut};
use crate::record::journal::Journal;
use crate::record::wire::{self, Open, ReportedProgress};
use crate::sys::clock;
use crate::sys::thread::{background, lock};

/// Pause between two posts while bytes move and sentences are reported.
const INTERVAL: Duration = Duration::from_secs(5);
/// Pause between two posts when a phase or the result changed: phases that take no time are posted together.
const COALESCE: Duration = Duration::from_secs(1);
/// Pause between two posts when nothing happens: half of the 30 s after which a reader calls a machine silent.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Pause when nothing happens on a machine that waits for people: it may do so for days, and with a whole fleet.
const HEARTBEAT_AT_REST: Duration = Duration::from_secs(60);
/// Time for a connection, and again for an answer. A station is near, and the next post is newer anyway.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long the last post may hold up the restart.
const LAST_WAIT: Duration = Duration::from_secs(3);
/// Most bytes of a sentence: the chain of a fetch from several mirrors can be long.
const MAX_MESSAGE_BYTES: usize = 300;

/// Urgency of what was not posted yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    None,
    Quantity,
    Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    /// One more post is due, at once.
    Closing,
    /// There are no more posts.
    Over,
}

struct PosterState {
    progress: ReportedProgress,
    news: News,
    stage: Stage,
}

struct Shared {
    state: Mutex<PosterState>,
    changed: Condvar,
}

/// Handle of the posting thread, which posts until it is closed. Dropped without that, it stops at once.
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
        journal: &Arc<Journal>,
    ) -> Result<Self, FetchError> {
        let quick = FetchOptions { connect_timeout: TIMEOUT, stall_timeout: TIMEOUT, ..options.clone() };
        let http = Http::new(url, &quick)?;
        let state = PosterState { progress: ReportedProgress::default(), news: News::Step, stage: Stage::Running };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let (follower, warned) = (Arc::clone(&shared), Arc::clone(journal));
        background("poster", move || post_all(&follower, &machine, &http, &warned)).map_err(|cause| {
            FetchError::new(FetchErrorKind::Local, url, "no thread for the posts of progress").because(cause)
        })?;
        let subscriber = Arc::clone(&shared);
        journal.subscribe(Box::new(move |entry| subscriber.take(entry)));
        Ok(Self(shared))
    }

    /// Posts a result, as far as it is known now. The next phase takes it back.
    pub fn settle(&self, ending: Ending) {
        let mut state = self.0.lock();
        state.progress.result = Some(Open::Known(ending));
        state.news = News::Step;
        self.0.changed.notify_all();
    }

    /// Waits until the result is posted, for 3 s at most: `unless_settled`, if there is none yet
    /// ([`settle`](Self::settle)).
    pub fn close(&self, unless_settled: Ending) {
        let mut state = self.0.lock();
        if state.stage != Stage::Running {
            return;
        }
        state.progress.result.get_or_insert(Open::Known(unless_settled));
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
        lock(&self.state)
    }

    fn take(&self, entry: &Entry<'_>) {
        let mut state = self.lock();
        let news = take(&mut state.progress, entry);
        state.news = state.news.max(news);
        self.changed.notify_all();
    }
}

/// Takes what matters of an event, and returns how soon it is to be posted.
fn take(progress: &mut ReportedProgress, entry: &Entry<'_>) -> News {
    if let Event::Progress(gauge) = entry.event {
        (progress.done_bytes, progress.total_bytes) = (Some(gauge.done_bytes), Some(gauge.total_bytes));
        progress.bytes_per_s = gauge.bytes_per_s;
        return News::Quantity;
    }
    let sentence = entry.event.to_string();
    if !sentence.is_empty() {
        cut(&sentence, MAX_MESSAGE_BYTES).clone_into(&mut progress.message);
    }
    match (entry.event, entry.phase) {
        (Event::PhaseBegan { .. }, Some(phase)) => {
            (progress.phase, progress.phase_number) = (Some(Open::Known(phase)), Some(phase.number()));
            (progress.done_bytes, progress.total_bytes, progress.bytes_per_s) = (None, None, None);
            progress.result = None;
            News::Step
        }
        (
            Event::ReleaseFound { version, .. }
            | Event::SystemIntact { version, .. }
            | Event::RepairBegan { version, .. },
            _,
        ) => {
            progress.version = Some(cut(version, MAX_MESSAGE_BYTES).to_owned());
            News::Quantity
        }
        _ => News::Quantity,
    }
}

/// The pause after a post until one with such news may follow.
fn pause(news: News, at_rest: bool, failures: u32, seed: u64) -> Duration {
    let pause = match news {
        News::Step => COALESCE,
        News::Quantity => INTERVAL,
        News::None if at_rest => HEARTBEAT_AT_REST,
        News::None => HEARTBEAT,
    };
    // A station that is away is not asked more often because there is more to report.
    if failures == 0 { pause } else { fetch::backoff(failures.saturating_add(2), seed).max(INTERVAL) }
}

fn post_all(shared: &Shared, machine: &ReportedMachine, http: &Http, journal: &Journal) {
    let mut has_warned = false;
    let mut sequence = 0;
    let mut failures: u32 = 0;
    let mut last: Option<Instant> = None;
    while let Some((progress, is_last)) = shared.next(last, failures) {
        sequence += 1;
        let progress = ReportedProgress { sequence, uptime_s: clock::uptime_s(), ..progress };
        match wire::progress_post(machine, &progress).map(|document| http.post_json(&document)) {
            Ok(Ok(())) => failures = 0,
            Ok(Err(error)) => {
                log::debug!("progress was not taken: {error}");
                failures = failures.saturating_add(1);
                // Once: each warning is one more thing to post.
                if !std::mem::replace(&mut has_warned, true) {
                    journal.warn(&format!("progress cannot be posted: {}", error.chain()));
                }
            }
            Err(error) => log::debug!("progress cannot be formatted: {error}"),
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
    /// Waits until something is to be posted, and returns it with whether it is the last post. `last` is when the post
    /// before was over.
    fn next(&self, last: Option<Instant>, failures: u32) -> Option<(ReportedProgress, bool)> {
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

#[cfg(test)]
mod tests {
    use super::{Ending, News, Open, ReportedProgress, pause, take};
    use crate::record::event::Event;
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
        let progress = Arc::new(Mutex::new(ReportedProgress::default()));
        let journal = Journal::silent();
        let follower = Arc::clone(&progress);
        journal.subscribe(Box::new(move |entry| {
            take(&mut follower.lock().unwrap(), entry);
        }));
        let now = || serde_json::to_value(&*progress.lock().unwrap()).unwrap();
        let _: Result<(), ()> = journal.phase(Phase::Manifest, "http://a", || {
            assert_eq!((&now()["phase_number"], &now()["message"]), (&json!(4), &json!("http://a")));
            journal.report(Event::ReleaseFound { version: "2.0", serial: 9, signed_by: "a.pub" });
            Ok(())
        });
        progress.lock().unwrap().result = Some(Open::Known(Ending::Refused));
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
