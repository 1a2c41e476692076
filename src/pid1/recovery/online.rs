//! The robot from the network on: its connection, and the reports that it posts.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::ending::NextState;
use super::error::SetupError;
use super::setup::Setup;
use crate::chain::chain;
use crate::fetch::{CertificateClock, FetchOptions, Source};
use crate::jobs::recovery::RecoveryReport;
use crate::machine::config::Config;
use crate::net::{self, NetError, NetworkOptions, RequestOutcomes, Stop};
use crate::pid1::background::background;
use crate::pid1::link::{Handover, WorkPart};
use crate::pid1::worker::{self, within};
use crate::record::blackbox::AttemptOutcome;
use crate::record::journal::{Journal, Phase};
use crate::record::report::{Ending, Pending, Poster, ReportedMachine};

/// How long the last report may hold up the restart.
const REPORT_WAIT: Duration = Duration::from_secs(15);
/// How soon a USB drive is noticed while something else is waited for.
pub(super) const USB_POLL: Duration = Duration::from_secs(1);

/// The robot from the network on.
pub(super) struct Online<'a> {
    pub setup: &'a Setup,
    /// Posts what the machine is doing to `report.url`, if that is set.
    poster: Option<Poster>,
    /// Keeps the network up; `None` where a USB drive or a medium makes it unnecessary.
    _network: Option<net::Up>,
}

impl<'a> Online<'a> {
    /// The robot whose release is at hand: without a network, and without reports.
    pub(super) fn without_network(setup: &'a Setup) -> Self {
        Self { setup, poster: None, _network: None }
    }

    /// Brings the network up, unless a USB drive with a release makes it unnecessary. `None` if there is neither by the
    /// `deadline`.
    pub(super) fn bring_up(setup: &'a Setup, deadline: Option<Instant>) -> Result<Option<Self>, SetupError> {
        let network = match bring_up_network(setup, deadline) {
            Err(NetError::Stopped) if setup.usb_release.is_there() => {
                // What the USB drive lacks comes from a server as soon as there is one.
                bring_up_network_later(setup);
                None
            }
            Err(NetError::Stopped) => {
                setup.journal.warn(&format!("no network within {} s", setup.began.elapsed().as_secs()));
                return Ok(None);
            }
            // What needs no network is done all the same, when it is time for it.
            Err(error) if let Some(deadline) = deadline => {
                setup.journal.warn(&format!("going on without a network: {}", chain(&error)));
                if !waits_for_usb_drive(setup, deadline) {
                    return Ok(None);
                }
                None
            }
            result => Some(result?),
        };
        // Earlier attempts are reported in the background, while this one goes on.
        let _ = report_attempts(setup);
        let reports = !setup.handover.leaves_out(&WorkPart::Reports);
        let poster =
            reports.then(|| start_poster(&setup.config, &setup.clock, || setup.reported_machine(), &setup.journal));
        Ok(Some(Self { setup, poster: poster.flatten(), _network: network }))
    }

    /// Posts a result, as far as it is known now.
    pub(super) fn settle(&self, ending: Ending) {
        if let Some(poster) = &self.poster {
            poster.settle(ending);
        }
    }

    /// Posts and records how this attempt ends.
    pub(super) fn finish(&self, outcome: AttemptOutcome) {
        self.settle(outcome.into());
        self.setup.finish(outcome);
    }

    /// Posts and records that a release is installed.
    pub(super) fn installed(&self, report: &RecoveryReport, started: Instant) -> NextState {
        worker::done();
        self.finish(AttemptOutcome::Installed);
        let seconds = started.elapsed().as_secs();
        NextState::Reboot(format!("{} is installed after {seconds} s: starting it", report.version))
    }

    /// Posts the last reports before the restart, and takes the network down.
    pub(super) fn close(self) {
        let reported = report_attempts(self.setup);
        if let Some(poster) = &self.poster {
            poster.close(Ending::Failed);
        }
        if let Some(reported) = reported {
            let _ = reported.recv_timeout(REPORT_WAIT);
        }
    }
}

/// Waits for a USB drive with a release. Returns whether there is one by the `deadline`.
fn waits_for_usb_drive(setup: &Setup, deadline: Instant) -> bool {
    while !setup.usb_release.is_there() && Instant::now() < deadline {
        setup.journal.progressed();
        std::thread::sleep(USB_POLL);
    }
    setup.usb_release.is_there()
}

/// Posts what this machine is doing to `report.url` from now on, if that is set. The certificate of its server is
/// checked against the clock of the sources, and tells the time as theirs do: it may be the only one of this machine.
pub(super) fn start_poster(
    config: &Config,
    clock: &Arc<CertificateClock>,
    machine: impl FnOnce() -> ReportedMachine,
    journal: &Arc<Journal>,
) -> Option<Poster> {
    let url = config.report_url.as_ref()?;
    let options = FetchOptions::new(&config.network, Arc::clone(clock));
    Poster::start(machine(), url, &options, journal).map_err(|error| journal.warn(&chain(&error))).ok()
}

/// Posts the attempts of the black box that were not reported yet, in the background. The receiver hears when that is
/// over.
fn report_attempts(setup: &Setup) -> Option<Receiver<()>> {
    if setup.handover.leaves_out(&WorkPart::Reports) {
        return None;
    }
    let (recorder, url) = (setup.recorder.clone()?, setup.config.report_url.clone()?);
    let machine = setup.reported_machine();
    let pending = recorder.with(|open| Pending::of(open, &machine))?;
    let options = FetchOptions::new(&setup.config.network, Arc::clone(&setup.clock));
    let (done, over) = channel();
    let journal = Arc::clone(&setup.journal);
    background(&setup.journal, "report", move || {
        match within(&WorkPart::Reports, || pending.post(&url, &options)) {
            Ok(()) => recorder.with(|open| pending.mark(open)),
            Err(error) => journal.note(&format!("the server did not accept the report: {}", chain(&error))),
        }
        let _ = done.send(());
    });
    Some(over)
}

/// Options of the network: the sources of which one should be reached.
pub(super) fn network_options(config: &Config, handover: &Handover, outcomes: &RequestOutcomes) -> NetworkOptions {
    let manifest = |url: &String| {
        let (base, query) = url.split_once('?').map_or((url.as_str(), String::new()), |(b, q)| (b, format!("?{q}")));
        format!("{}/{}/manifest.json{query}", base.trim_end_matches('/'), config.channel)
    };
    let sources = config.urls.iter().map(manifest).collect();
    let card = |part: &WorkPart| match part {
        WorkPart::Card(name) => Some(name.clone()),
        _ => None,
    };
    let left_out = handover.left_out.iter().filter_map(card).collect();
    NetworkOptions { sources, left_out, outcomes: outcomes.clone(), ..NetworkOptions::default() }
}

/// Brings the network up, by the `deadline` if there is one, and unless a USB drive makes it unnecessary.
fn bring_up_network(setup: &Setup, deadline: Option<Instant>) -> Result<net::Up, NetError> {
    let stop = Stop::default();
    // The sender is dropped when the network is up, or will never be: the watching thread then ends.
    let (watched, watch) = channel::<()>();
    let (usb_release, stopping) = (Arc::clone(&setup.usb_release), stop.clone());
    background(&setup.journal, "network-wait", move || {
        while watch.recv_timeout(USB_POLL) == Err(RecvTimeoutError::Timeout) {
            if usb_release.is_there() || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return stopping.stop();
            }
        }
    });
    let journal = Arc::clone(&setup.journal);
    let network = setup.journal.phase(Phase::Network, "bring up the network", || {
        let options = NetworkOptions { stop, ..network_options(&setup.config, &setup.handover, &setup.outcomes) };
        net::bring_up_with(&setup.config.network, options, move |text: &str| journal.note(text))
    });
    drop(watched);
    network
}

/// Goes on trying to bring the network up in the background, and reports only when it succeeds.
fn bring_up_network_later(setup: &Setup) {
    let (config, journal) = (setup.config.network.clone(), Arc::clone(&setup.journal));
    let options = network_options(&setup.config, &setup.handover, &setup.outcomes);
    background(&setup.journal, "network-later", move || {
        if let Ok(_network) = net::bring_up_with(&config, options, |_: &str| {}) {
            journal.note("the network is up");
            loop {
                std::thread::park();
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use reflash_test_support::server::{TestServer, status};
    use reflash_test_support::tls::{Authority, unix};

    use super::start_poster;
    use crate::fetch::CertificateClock;
    use crate::machine::clock::ClockPolicy;
    use crate::machine::config::{Config, Layer};
    use crate::record::journal::Journal;
    use crate::record::report::{Ending, ReportedMachine};

    /// A robot whose hardware clock is dead, and whose sources need no certificate.
    #[test]
    fn a_report_server_with_a_certificate_of_today_is_posted_to_with_the_clock_of_the_build() {
        let (built, validity) = ((2026, 1, 1), [(2027, 1, 1), (2027, 4, 1)]);
        let authority = Authority::new();
        let server = TestServer::start_tls(authority.issue("127.0.0.1", validity), |_| status("204 No Content"));
        let (ca_file, url) = (authority.file.path().display(), server.url());
        let text = format!(
            "release.urls = ['http://a']\nmachine.product = 'robot'\nreport.url = '{url}'\nnetwork.ca_file = '{ca_file}'"
        );
        let config = Config::resolve(Layer::parse("test", &text).unwrap()).unwrap();
        let now = Arc::new(AtomicU64::new(unix(built)));
        let (read, write) = (Arc::clone(&now), Arc::clone(&now));
        let clock = Arc::new(CertificateClock::new(
            Box::new(move || read.load(Ordering::SeqCst)),
            Some(Box::new(move |seconds| write.store(seconds, Ordering::SeqCst))),
            ClockPolicy::new(unix(built), None),
        ));
        let journal = Arc::new(Journal::silent());
        let machine = || ReportedMachine::this("robot", None, None);
        let poster = start_poster(&config, &clock, machine, &journal).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while server.requests().is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        poster.close(Ending::Installed);
        assert!(!server.requests().is_empty(), "nothing is delivered");
        assert!(now.load(Ordering::SeqCst) >= unix(validity[0]));
    }
}
