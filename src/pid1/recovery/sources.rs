//! The sources of the release, and the clock that their certificates are checked against.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::ending::rest;
use crate::chain::chain;
use crate::fetch::{
    self, CertificateClock, Check, FetchError, FetchOptions, Mirrors, OnServed, RetryPolicy, Sink, Source, SpeedWatch,
    Surveyed,
};
use crate::machine::clock::{self, ClockPolicy};
use crate::machine::config::Config;
use crate::net::RequestOutcomes;
use crate::pid1::link::{Handover, WorkPart};
use crate::pid1::worker::within;
use crate::record::journal::Journal;
use crate::record::report::hardware_id;
use crate::sys;
use crate::utc::Utc;

/// Sets a clock that cannot be right, by what is known (`last_manifest` in seconds since 1970), and returns it for the
/// certificates that are checked against it.
pub(super) fn start_clock(last_manifest: Option<u64>, journal: &Journal) -> Arc<CertificateClock> {
    let policy = ClockPolicy::new(clock::BUILD_TIME, last_manifest);
    let clock = Arc::new(CertificateClock::adjustable(policy, Box::new(set_clock)));
    if let Some((found, now)) = clock.start() {
        let (found, now) = (Utc(found), Utc(now));
        journal.warn(&format!("the hardware clock ({found}) cannot be right; the clock is set to {now}"));
    }
    clock
}

/// Opens the sources: `first`, and those of the configured ones that can be opened. Nothing is connected yet.
/// What becomes of requests is noted for the network.
///
/// # Errors
/// That of a configured source, if there is no source at all. A USB drive counts as one: it may be plugged in later.
pub(super) fn open_mirrors(
    config: &Config,
    first: Vec<Box<dyn Source>>,
    clock: &Arc<CertificateClock>,
    handover: &Handover,
    outcomes: &RequestOutcomes,
    journal: &Arc<Journal>,
) -> Result<Mirrors, FetchError> {
    let served = outcomes.clone();
    let on_served: OnServed = Arc::new(move || served.served());
    let options = FetchOptions { on_served: Some(on_served), ..FetchOptions::new(&config.network, Arc::clone(clock)) };
    let (configured, left_out) = fetch::open_usable(&config.urls, &options);
    let configured = supervised(configured, handover);
    let sources: Vec<Box<dyn Source>> = first.into_iter().chain(configured).collect();
    for error in left_out {
        if sources.is_empty() {
            return Err(error);
        }
        journal.warn(&format!("a release server is left out: {}", chain(&error)));
    }
    let (warner, outcomes) = (Arc::clone(journal), outcomes.clone());
    Ok(Mirrors::new(sources, RetryPolicy::Forever).on_retry(move |retry| {
        outcomes.failed();
        warner.warn(&retry.to_string());
    }))
}

/// Wraps the sources, so that one of which this process dies twice is left out of the next. When that would leave none,
/// all of them are used: a machine without a source has nothing better to do.
fn supervised(sources: Vec<Box<dyn Source>>, handover: &Handover) -> Vec<Box<dyn Source>> {
    let part = |source: &dyn Source| WorkPart::Source(source.describe());
    let all_left_out = sources.iter().all(|source| handover.leaves_out(&part(&**source)));
    let used = sources.into_iter().filter(|source| all_left_out || !handover.leaves_out(&part(&**source)));
    used.map(|source| Box::new(SupervisedSource::new(part(&*source), source)) as Box<dyn Source>).collect()
}

/// A source of which PID 1 knows that it is being asked.
pub(super) struct SupervisedSource {
    part: WorkPart,
    source: Box<dyn Source>,
}

impl SupervisedSource {
    /// The `source`, which is blamed as that part if this process dies of it.
    pub(super) fn new(part: WorkPart, source: Box<dyn Source>) -> Self {
        Self { part, source }
    }
}

impl Source for SupervisedSource {
    fn describe(&self) -> String {
        self.source.describe()
    }

    fn is_there(&self) -> bool {
        self.source.is_there()
    }

    fn is_chosen(&self) -> bool {
        self.source.is_chosen()
    }

    fn watch_speed(&mut self, watch: SpeedWatch) {
        self.source.watch_speed(watch);
    }

    fn survey_others(&self, wanted: &[(&str, u64)], patience: Duration) -> Vec<Surveyed> {
        within(&self.part, || self.source.survey_others(wanted, patience))
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        within(&self.part, || self.source.get_checked(wanted, check))
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        within(&self.part, || self.source.get_range(path, range, sink))
    }
}

/// Whether all configured sources are on this machine, so that no network is needed. Reports it if so.
pub(super) fn are_at_hand(config: &Config, journal: &Journal) -> bool {
    // Without any source a USB drive is waited for, with the deadlines of a network that does not come.
    let at_hand = !config.urls.is_empty() && config.urls.iter().all(|url| url.starts_with("file:"));
    if at_hand {
        journal.note("all release sources are local: no network is needed");
    }
    at_hand
}

/// Waits for this machine's place in the fleet: machines that fell into recovery together must not arrive at the server
/// together. After the death of a process the next one waits only for what is left of that.
pub(super) fn spread_out(over: Duration, handover: &Handover, journal: &Journal) {
    let waited = handover.died.as_ref().map_or(Duration::ZERO, |_| handover.age());
    let offset = fetch::start_offset(over, hardware_id()).saturating_sub(waited);
    if offset >= Duration::from_secs(1) {
        journal.note(&format!("asking in {} s, this machine's place in the fleet", offset.as_secs()));
    }
    rest(journal, offset);
}

fn set_clock(unix_s: u64) {
    // A clock that cannot be set leaves certificates to fail with their own message.
    let _ = sys::clock::set(unix_s);
}
