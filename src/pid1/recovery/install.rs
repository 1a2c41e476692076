//! Asks for a release until it is installed, until something else is done without it, or, parked, until there is
//! another one.

use std::time::{Duration, Instant};

use super::ending::{NextState, READING_TIME};
use super::error::SetupError;
use super::online::{Online, USB_POLL};
use super::setup::Setup;
use super::staged;
use super::without::{HOUR, Instead, without_release};
use crate::boot::decide::{self, Recoveries};
use crate::chain::chain;
use crate::fetch::{self, Mirrors, RetryPolicy, Source};
use crate::jobs::recovery::{self, Policy, RecoveryError, RecoveryJob};
use crate::jobs::state::Release;
use crate::net::RequestOutcomes;
use crate::record::blackbox::{AttemptOutcome, Recorder};
use crate::record::event::Event;
use crate::record::journal::Phase;
use crate::record::report::{Ending, hardware_id};
use crate::release::digest::block_hash;
use crate::release::manifest::Manifest;

/// Attempts in a row that failed because of what a server answered, by which nothing is decided yet: with
/// the pauses between them, and those within each attempt, they take minutes. What a server refuses once may be a slip,
/// and an update that is taken back is lost.
const MAX_DENIALS: u32 = 4;

/// Which releases help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WantedRelease {
    /// Whatever is offered.
    Offered,
    /// One with a higher serial than the installed one.
    Newer,
}

/// Tries until the release is installed, or until nothing changes by trying again. From the `deadline` on, if there is
/// one, something else is done instead; at once, where only a newer release helps and there is none.
pub(super) fn until_installed(
    online: &Online<'_>,
    mirrors: &Mirrors,
    job: &RecoveryJob<'_>,
    wanted: WantedRelease,
    mut deadline: Option<Instant>,
) -> Result<NextState, SetupError> {
    let (setup, journal) = (online.setup, job.journal);
    let started = Instant::now();
    let (mut attempt, mut denials, mut rests, mut incomplete) = (1, Denials::default(), false, None);
    loop {
        let mirrors = mirrors.clone().with_retry_policy(deadline.map_or(RetryPolicy::Forever, RetryPolicy::Until));
        let tried = incomplete.take();
        let policy = Policy { incomplete: tried, ..job.policy };
        let job = &RecoveryJob { policy, ..job.with_source(&mirrors) };
        let found =
            journal.phase(Phase::Manifest, &mirrors.describe(), || recovery::fetch_release(job, setup.record.as_ref()));
        let release = found.as_ref().ok().map(Release::id);
        let installs = |release| recovery::install(job, setup.record.as_ref(), release);
        let error = match found.and_then(installs) {
            Ok(report) => return Ok(online.installed(&report, started)),
            Err(error) => error,
        };
        journal.warn(&chain(&error));
        // What answered may be something else than a source, which another card reaches.
        setup.outcomes.failed();
        if error.is_of_the_disk() {
            return give_up(online, &mirrors, job, &error);
        }
        let refused = denials.make_refused(&error);
        let is_known = wanted == WantedRelease::Newer && error.is_nothing_new();
        if refused && !is_known {
            journal.report(Event::ReleaseRefused { why: &chain(&error) });
            online.settle(Ending::Refused);
        }
        // A person reads the refusal; a robot that asked by itself goes back to work.
        if let Some(until) = deadline
            && (Instant::now() >= until
                || !rests && refused && (setup.reason.is_requested() || wanted == WantedRelease::Newer))
        {
            if !is_known
                && !refused
                && let Some(next) = staged::without_network(online, &mirrors, job)
            {
                return Ok(next);
            }
            let why = match (is_known, refused) {
                (true, _) => "there is no newer release",
                (false, true) => "the release is refused",
                (false, false) => "no release is available",
            };
            match without_release(setup, job, why, Some(&once(&mirrors)))? {
                Instead::Done(next) => {
                    online.settle(Ending::Started);
                    let is_read = refused && setup.reason.is_requested();
                    std::thread::sleep(if is_read { READING_TIME } else { Duration::ZERO });
                    return Ok(next);
                }
                Instead::GoOn { until } => {
                    rests = until.is_some();
                    deadline = until;
                }
            }
        }
        if refused && let Some(next) = repair(online, job, started) {
            return Ok(next);
        }
        // One source may have the newest release in part, and another one an older release as a whole. Asked for every
        // second time: the newest may be there by then. A robot that has nothing need not be sure of it.
        if (refused || setup.record.is_none()) && error.is_of_content() && tried.is_none() && release.is_some() {
            incomplete = release;
            continue;
        }
        let seed = jitter_seed();
        let pause = if refused { fetch::poll_pause(attempt, seed) } else { fetch::backoff(attempt, seed) };
        let pause = pause.max(error.asked_to_wait().unwrap_or_default());
        let pause = deadline.map_or(pause, |until| pause.min(until.saturating_duration_since(Instant::now())));
        journal.note(&format!("trying again in {} s", pause.as_secs()));
        // A server that is down is a standstill, a release that has to be replaced by its makers is not; nor is a pause
        // that is meant.
        pause_unless_usb_drive(setup, pause, || {
            if refused || rests {
                journal.progressed();
            }
        });
        attempt = attempt.saturating_add(1);
    }
}

/// One round over all sources at a time.
pub(super) fn once(mirrors: &Mirrors) -> Mirrors {
    mirrors.clone().with_retry_policy(RetryPolicy::Rounds(1))
}

/// Asks for a release with a higher serial than `above`, seldom and never in step with other machines, and installs it.
/// `None` at the time `until`, if there is one.
pub(super) fn until_another(
    online: &Online<'_>,
    mirrors: &Mirrors,
    job: &RecoveryJob<'_>,
    above: u64,
    until: Option<Instant>,
) -> Result<Option<NextState>, SetupError> {
    let (setup, journal) = (online.setup, job.journal);
    // The pause between polls is the long one below.
    let once = once(mirrors);
    let job = RecoveryJob { policy: Policy { above: Some(above), ..job.policy }, ..job.with_source(mirrors) };
    let mut last_answer = String::new();
    let mut polls = 0_u32;
    loop {
        let release = recovery::fetch_release(&job.with_source(&once), setup.record.as_ref());
        let started = Instant::now();
        let error = match release.and_then(|release| recovery::install(&job, setup.record.as_ref(), release)) {
            Ok(report) => return Ok(Some(online.installed(&report, started))),
            Err(error) => error,
        };
        note_poll(&setup.outcomes, &error);
        let pause = fetch::poll_pause(polls, jitter_seed()).max(error.asked_to_wait().unwrap_or_default());
        let answer = chain(&error);
        // Reported once and not every quarter of an hour: the event log is not endless.
        if answer != last_answer {
            journal.warn(&format!("still parked: {answer}; asking again in {} s", pause.as_secs()));
            last_answer = answer;
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        pause_unless_usb_drive(setup, left.map_or(pause, |left| pause.min(left)), || journal.progressed());
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(None);
        }
        polls = polls.saturating_add(1);
    }
}

/// Notes for the network that a poll failed: another router or DHCP server may lead to a source. One that has nothing
/// new is a source.
fn note_poll(outcomes: &RequestOutcomes, error: &RecoveryError) {
    if !error.is_nothing_new() {
        outcomes.failed();
    }
}

/// Installs the recorded release again, since the offered one is of no use. Its objects may still be there, and be
/// enough.
fn repair(online: &Online<'_>, job: &RecoveryJob<'_>, started: Instant) -> Option<NextState> {
    let (setup, record) = (online.setup, online.setup.record.as_ref()?);
    // Without its index there is nothing to compare with.
    setup.installed()?;
    let Manifest { version, serial, .. } = record.manifest();
    job.journal.report(Event::RepairBegan { version, serial: *serial });
    match recovery::install(job, Some(record), record.release()) {
        Ok(_) => {
            // The black box has what was refused beside it; the station has one word.
            setup.finish(AttemptOutcome::Installed);
            online.settle(Ending::Repaired);
            let seconds = started.elapsed().as_secs();
            Some(NextState::Reboot(format!(
                "the release is refused, {version} is repaired after {seconds} s: starting it"
            )))
        }
        Err(error) => {
            job.journal.warn(&chain(&error));
            None
        }
    }
}

/// The attempts in a row that a server refused.
#[derive(Default)]
struct Denials(u32);

impl Denials {
    /// Counts a failed attempt. Returns whether the release is refused by now, so that something else is to be done.
    fn make_refused(&mut self, error: &RecoveryError) -> bool {
        self.0 = if error.is_denied() { self.0.saturating_add(1) } else { 0 };
        if error.is_denied() { self.0 > MAX_DENIALS } else { error.is_of_the_release() }
    }
}

/// Restarts a machine whose disk failed: a restart may cure it, a few times. After that the disk is broken, and the
/// machine stays reachable and reports it.
fn give_up(
    online: &Online<'_>,
    mirrors: &Mirrors,
    job: &RecoveryJob<'_>,
    error: &RecoveryError,
) -> Result<NextState, SetupError> {
    online.finish(AttemptOutcome::Failed);
    let recorder = online.setup.recorder.as_ref();
    let failures = recorder.map_or(0, Recorder::failures_in_a_row);
    if failures <= online.setup.config.recoveries {
        return Ok(NextState::StartOver(chain(error)));
    }
    // What is there may lie where the disk still works: an image that has grown reaches blocks to which nothing was
    // written before.
    if let Instead::Done(next) = without_release(online.setup, job, "the disk fails", Some(&once(mirrors)))? {
        return Ok(next);
    }
    job.journal.warn(&format!("parked: this failed {failures} times in a row: {}", chain(error)));
    online.finish(AttemptOutcome::Parked);
    let above = recorder.and_then(|recorder| recorder.serial()).unwrap_or_default();
    let hours = decide::parked_hours(Recoveries { serial: above, count: failures }, online.setup.config.recoveries);
    let until = Instant::now() + HOUR * hours;
    match until_another(online, mirrors, job, above, Some(until))? {
        Some(next) => Ok(next),
        // A disk that failed for a while may have come back.
        None => Ok(NextState::Reboot("parked for long enough: starting over".to_owned())),
    }
}

/// Waits that long, or until a USB drive with a release is plugged in.
fn pause_unless_usb_drive(setup: &Setup, pause: Duration, meanwhile: impl Fn()) {
    let end = Instant::now() + pause;
    let mut was_there = setup.usb_release.is_there();
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        meanwhile();
        std::thread::sleep(left.min(USB_POLL));
        let is_there = setup.usb_release.is_there();
        if is_there && !was_there {
            return;
        }
        was_there = is_there;
    }
}

/// A number that differs between machines and moments.
fn jitter_seed() -> u64 {
    let now = crate::sys::clock::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    hardware_id() ^ block_hash(&now.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::{Denials, MAX_DENIALS, note_poll};
    use crate::fetch::{FetchError, FetchErrorKind};
    use crate::jobs::recovery::RecoveryError;
    use crate::net::RequestOutcomes;
    use crate::release::manifest::ManifestError;

    /// With one card, only this note has another router or DHCP server looked for.
    #[test]
    fn a_poll_in_vain_is_noted_for_the_network_and_one_without_news_is_not() {
        let outcomes = RequestOutcomes::default();
        let source = FetchError::new(FetchErrorKind::Unreachable, "http://a/x", "no route");
        note_poll(&outcomes, &RecoveryError::Fetch { what: "manifest", source });
        assert!(outcomes.take_failed());
        note_poll(&outcomes, &ManifestError::NothingNew { version: "1".to_owned(), offered: 7 }.into());
        assert!(!outcomes.take_failed());
    }

    #[test]
    fn a_few_refusals_of_a_server_do_not_take_an_update_back() {
        let error = |kind| FetchError::new(kind, "http://a/x", "it failed");
        let fetch = |source| RecoveryError::Fetch { what: "manifest", source };
        let denied = || fetch(error(FetchErrorKind::Refused(403)).denied());
        let mut denials = Denials::default();
        for _ in 0..MAX_DENIALS {
            assert!(!denials.make_refused(&denied()));
        }
        assert!(!denials.make_refused(&fetch(error(FetchErrorKind::Unreachable))), "the network is not the release");
        for number in 0..MAX_DENIALS * 2 {
            // By turns with a login page that answers in place of the server.
            let error = if number % 2 == 0 { denied() } else { fetch(error(FetchErrorKind::Tls)) };
            assert_eq!(denials.make_refused(&error), number >= MAX_DENIALS);
        }
        assert!(denials.make_refused(&ManifestError::NoKeys.into()), "what is authentic is decided at once");
    }
}
