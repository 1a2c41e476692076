//! From the network on: ask for the release until it is installed, until the intact system is started without it, or,
//! parked, until there is another one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::setup::{Compared, Setup, is_at_hand};
use super::{NextState, READING_TIME, SetupError};
use crate::boot::decide::{BootDecision, Recoveries};
use crate::chain::chain;
use crate::fetch::{self, FetchOptions, Mirrors, RetryPolicy, Source};
use crate::jobs::recovery::{self, Machine, RecoveryError};
use crate::net;
use crate::record::blackbox::AttemptOutcome;
use crate::record::journal::{Journal, Phase};
use crate::record::report::{self, Ending, Poster, hardware_id};
use crate::release::digest::block_hash;

/// How long the last report may hold up the restart.
const REPORT_WAIT: Duration = Duration::from_secs(15);

/// How soon a stick is noticed while something else is waited for.
const STICK_POLL: Duration = Duration::from_secs(1);

/// Well below the shortest `watchdog.stall_s`.
const REST_STEP: Duration = Duration::from_secs(10);

/// Follows the first decision to the machine's next state.
pub(super) fn run(
    setup: &Setup,
    mirrors: &Mirrors,
    machine: &Machine<'_>,
    journal: &Arc<Journal>,
    first: BootDecision,
) -> Result<NextState, SetupError> {
    let mut or_start = matches!(first, BootDecision::Fetch { or_start: true });
    let end = Instant::now() + setup.config.offline;
    if first == BootDecision::Park {
        let Recoveries { serial, count } = setup.recoveries;
        journal.warn(&format!(
            "parked: release {serial} was recovered to {count} times and no boot called itself good; waiting for a \
             release with a higher serial. \"Recover/Reflash\" in the boot menu writes this one again"
        ));
        setup.finish(AttemptOutcome::Parked);
    }
    if is_at_hand(&setup.config) {
        journal.note("the release is at hand: no network is needed");
        return obtain(setup, mirrors, machine, None);
    }
    let network = loop {
        match bring_up_network(setup, journal, or_start.then_some(end)) {
            Err(SetupError::Network(net::NetError::Stopped)) if setup.stick.is_there() => {
                // What the stick lacks comes from a server as soon as there is one.
                bring_up_network_beside(setup, journal);
                break None;
            }
            Err(SetupError::Network(net::NetError::Stopped)) => {
                journal.warn(&format!("no network within {} s", setup.config.offline.as_secs()));
                if let Some(outcome) = start_instead(setup, machine)? {
                    return Ok(outcome);
                }
                or_start = false;
            }
            result => break Some(result?),
        }
    };
    // What happened before is told while this attempt goes on.
    let _ = report_attempts(setup, journal);
    tell_progress(setup, journal, first);
    let outcome = match first {
        BootDecision::Park => wait_for_another(setup, mirrors, machine, setup.recoveries.serial),
        _ => {
            if !setup.reason.is_requested() && !setup.stick.is_there() {
                spread_out(setup.config.spread, journal);
            }
            obtain(setup, mirrors, machine, or_start.then_some(end))
        }
    };
    let reported = report_attempts(setup, journal);
    if let Some(poster) = setup.poster.get() {
        poster.close(Ending::Failed);
    }
    if let Some(reported) = reported {
        let _ = reported.recv_timeout(REPORT_WAIT);
    }
    drop(network);
    outcome
}

/// Posts what is in the black box and was not reported, in a thread of its own: the receiver hears when that is over.
fn report_attempts(setup: &Setup, journal: &Arc<Journal>) -> Option<Receiver<()>> {
    let (recorder, url) = (setup.recorder.clone()?, setup.config.report_url.clone()?);
    let who = setup.who();
    let pending = recorder.with(|open| report::Pending::of(open, &who))?;
    let options = FetchOptions::with_clock_as_it_is(&setup.config.network);
    let (done, over) = channel();
    let teller = Arc::clone(journal);
    std::thread::spawn(move || {
        match pending.post(&url, &options) {
            Ok(()) => recorder.with(|open| pending.mark(open)),
            Err(error) => teller.note(&format!("the report was not taken: {}", chain(&error))),
        }
        let _ = done.send(());
    });
    Some(over)
}

/// From here on `report.url` is told what this machine is doing.
fn tell_progress(setup: &Setup, journal: &Journal, first: BootDecision) {
    let Some(url) = &setup.config.report_url else { return };
    let options = FetchOptions::with_clock_as_it_is(&setup.config.network);
    match Poster::start(setup.who(), url, &options, journal) {
        Ok(poster) => {
            if first == BootDecision::Park {
                poster.settle(Ending::Failed);
            }
            let _ = setup.poster.set(poster);
        }
        Err(error) => journal.warn(&chain(&error)),
    }
}

/// Brings the network up, by `end` if there is one, and unless a stick makes it needless.
fn bring_up_network(setup: &Setup, journal: &Arc<Journal>, end: Option<Instant>) -> Result<net::Up, SetupError> {
    let stop = net::Stop::default();
    // Dropped when the network is up, or will never be: then nobody is stopped.
    let (up, waits) = channel::<()>();
    let (stick, stopping) = (Arc::clone(&setup.stick), stop.clone());
    std::thread::spawn(move || {
        while waits.recv_timeout(STICK_POLL) == Err(RecvTimeoutError::Timeout) {
            if stick.is_there() || end.is_some_and(|end| Instant::now() >= end) {
                return stopping.stop();
            }
        }
    });
    let teller = Arc::clone(journal);
    let network = journal.phase(Phase::Network, "bring up the network", || {
        let options = net::NetworkOptions { stop, ..net::NetworkOptions::default() };
        net::bring_up_with(&setup.config.network, options, move |text: &str| teller.note(text))
    })?;
    drop(up);
    Ok(network)
}

/// Goes on trying to bring the network up, and says nothing more unless it succeeds.
fn bring_up_network_beside(setup: &Setup, journal: &Arc<Journal>) {
    let (config, teller) = (setup.config.network.clone(), Arc::clone(journal));
    std::thread::spawn(move || {
        if let Ok(_network) = net::bring_up_with(&config, net::NetworkOptions::default(), |_: &str| {}) {
            teller.note("the network is up");
            loop {
                std::thread::park();
            }
        }
    });
}

/// A fleet that fell into recovery together must not arrive at the server together.
pub(super) fn spread_out(over: Duration, journal: &Journal) {
    let offset = fetch::start_offset(over, hardware_id());
    if offset >= Duration::from_secs(1) {
        journal.note(&format!("asking in {} s, this machine's place in the fleet", offset.as_secs()));
    }
    std::thread::sleep(offset);
}

/// Tries until it is done, or until nothing changes by trying again.
fn obtain(
    setup: &Setup,
    mirrors: &Mirrors,
    machine: &Machine<'_>,
    mut end: Option<Instant>,
) -> Result<NextState, SetupError> {
    let journal = machine.journal;
    let started = Instant::now();
    let mut attempt = 1;
    loop {
        let retry_policy = end.map_or(RetryPolicy::Forever, RetryPolicy::Until);
        let mirrors = mirrors.clone().with_retry_policy(retry_policy);
        let result = recovery::run(&Machine { source: &mirrors, ..machine.clone() });
        let error = match result {
            Ok(report) => return Ok(installed(setup, &report, started)),
            Err(error) => error,
        };
        journal.warn(&chain(&error));
        if is_of_the_disk(&error) {
            return give_up(setup, &mirrors, machine, &error);
        }
        let refused = error.is_of_the_release();
        if let Some(poster) = setup.poster.get().filter(|_| refused) {
            poster.settle(Ending::Refused);
        }
        // A person reads the refusal; a robot that asked by itself goes back to work.
        if let Some(until) = end
            && (Instant::now() >= until || refused && setup.reason.is_requested())
        {
            if let Some(outcome) = start_instead(setup, machine)? {
                std::thread::sleep(if refused { READING_TIME } else { Duration::ZERO });
                return Ok(outcome);
            }
            end = None;
        }
        if refused && let Some(outcome) = repair(setup, machine, started) {
            return Ok(outcome);
        }
        let seed = jitter_seed();
        let pause = if refused { fetch::poll_pause(attempt, seed) } else { fetch::backoff(attempt, seed) };
        let pause = pause.max(error.asked_to_wait().unwrap_or_default());
        let pause = end.map_or(pause, |end| pause.min(end.saturating_duration_since(Instant::now())));
        journal.note(&format!("trying again in {} s", pause.as_secs()));
        // A server that is down is a standstill, a release that has to be replaced by its makers is not.
        pause_beside_stick(setup, pause, || {
            if refused {
                journal.progressed();
            }
        });
        attempt = attempt.saturating_add(1);
    }
}

fn installed(setup: &Setup, report: &recovery::RecoveryReport, started: Instant) -> NextState {
    setup.finish(AttemptOutcome::Installed);
    let seconds = started.elapsed().as_secs();
    NextState::Reboot(format!("{} is installed after {seconds} s: starting it", report.version))
}

/// Starts the system as it is, if it is what is recorded as installed.
fn start_instead(setup: &Setup, machine: &Machine<'_>) -> Result<Option<NextState>, SetupError> {
    let Compared::Intact(proof, installed) = setup.compare(machine) else { return Ok(None) };
    let report = recovery::start_again(machine, proof, &installed)?;
    setup.finish(AttemptOutcome::Started);
    Ok(Some(NextState::Reboot(format!("no release is to be had and {} is intact: starting it", report.version))))
}

/// The release that is offered is of no use. The objects of the installed one may still be there, and be enough.
fn repair(setup: &Setup, machine: &Machine<'_>, started: Instant) -> Option<NextState> {
    let installed = setup.state.installed(&setup.keys)?;
    machine.journal.note(&format!("repairing the installed release {} instead", installed.manifest.version));
    match recovery::repair(machine, installed) {
        Ok(report) => Some(self::installed(setup, &report, started)),
        Err(error) => {
            machine.journal.warn(&chain(&error));
            None
        }
    }
}

/// The disk or the boot environment failed, which a restart may cure: a drive that hung, a file system whose journal
/// wants to be replayed.
fn is_of_the_disk(error: &RecoveryError) -> bool {
    !error.is_retryable() && !error.is_of_the_release()
}

/// A restart may cure it, a few times. Then the disk is broken, and the machine stays reachable and says so.
fn give_up(
    setup: &Setup,
    mirrors: &Mirrors,
    machine: &Machine<'_>,
    error: &RecoveryError,
) -> Result<NextState, SetupError> {
    setup.finish(AttemptOutcome::Failed);
    let recorder = setup.recorder.as_ref();
    let failures = recorder.map_or(0, |recorder| recorder.with(|open| open.failures_in_a_row()));
    if failures <= setup.config.recoveries {
        return Ok(NextState::StartOver(chain(error)));
    }
    machine.journal.warn(&format!("parked: this failed {failures} times in a row: {}", chain(error)));
    setup.finish(AttemptOutcome::Parked);
    wait_for_another(setup, mirrors, machine, recorder.and_then(|recorder| recorder.serial()).unwrap_or_default())
}

/// Asks for a release with a higher serial, seldom and never in step with others, and installs it.
fn wait_for_another(
    setup: &Setup,
    mirrors: &Mirrors,
    machine: &Machine<'_>,
    floor_serial: u64,
) -> Result<NextState, SetupError> {
    let journal = machine.journal;
    // One round at a time: the pause between polls is the long one below.
    let once = mirrors.clone().with_retry_policy(RetryPolicy::Rounds(1));
    let machine = &Machine { source: &once, ..machine.clone() };
    let mut told = String::new();
    for polls in 0.. {
        let (answer, asked_to_wait) = match recovery::fetch_release_above(machine, Some(floor_serial)) {
            Ok(release) => {
                let machine = &Machine { source: mirrors, ..machine.clone() };
                let started = Instant::now();
                match recovery::install_release(machine, release) {
                    Ok(report) => return Ok(installed(setup, &report, started)),
                    Err(error) => (chain(&error), error.asked_to_wait()),
                }
            }
            Err(error) => (chain(&error), error.asked_to_wait()),
        };
        let pause = fetch::poll_pause(polls, jitter_seed()).max(asked_to_wait.unwrap_or_default());
        // Told once and not every quarter of an hour: the event log is not endless.
        if answer != told {
            journal.warn(&format!("still parked: {answer}; asking again in {} s", pause.as_secs()));
            told = answer;
        }
        pause_beside_stick(setup, pause, || journal.progressed());
    }
    Ok(NextState::StartOver("asked 4 billion times for another release".to_owned()))
}

/// Waits that long, or until somebody plugs in a stick with a release.
fn pause_beside_stick(setup: &Setup, pause: Duration, meanwhile: impl Fn()) {
    let end = Instant::now() + pause;
    let mut was_there = setup.stick.is_there();
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        meanwhile();
        std::thread::sleep(left.min(STICK_POLL));
        let is_there = setup.stick.is_there();
        if is_there && !was_there {
            return;
        }
        was_there = is_there;
    }
}

/// Sleeps on purpose: the watchdog is fed meanwhile, since a reset would only repeat the wait.
pub(super) fn rest(journal: &Journal, pause: Duration) {
    let end = Instant::now() + pause;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        journal.progressed();
        std::thread::sleep(left.min(REST_STEP));
    }
}

/// Differs between machines and moments.
fn jitter_seed() -> u64 {
    let now = crate::sys::clock::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    hardware_id() ^ block_hash(&now.to_le_bytes())
}
