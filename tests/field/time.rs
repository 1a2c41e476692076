//! Clocks that are wrong, and signed dates that are.
//!
//! The machine's clock is a number here that the agent's policy sets, as PID 1 sets the system's. Certificates are as
//! those of a public server: valid for 90 days.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use reflash::fetch::{CertificateClock, FetchErrorKind, FetchOptions, Mirrors, RetryPolicy, Source, open};
use reflash::jobs::recovery::{self, RecoveryError, RecoveryReport};
use reflash::jobs::state::StatePartition;
use reflash::machine::clock::ClockPolicy;
use reflash::record::journal::Journal;
use reflash_release::Allow;

use crate::support::clock::FakeClock;
use crate::support::server::{TestRequest, TestServer, object, status};
use crate::support::tls::{Authority, Date, unix};
use crate::support::{Fixture, MemoryTarget, sample_image};

const BUILT: Date = (2026, 11, 1);
const TODAY: Date = (2026, 12, 20);
/// The server's certificate today, and the one before it.
const CERTIFICATE: [Date; 2] = [(2026, 12, 1), (2027, 3, 1)];
const LAST_YEARS: [Date; 2] = [(2025, 10, 1), (2026, 1, 1)];
const YEAR_2090: u64 = 3_786_912_000;

/// The hardware clock and the clock of a robot, and what it knows from its state partition.
struct Robot {
    clock: Arc<AtomicU64>,
    /// How often the clock was set.
    settings: Arc<AtomicUsize>,
    authority: Authority,
    state: tempfile::TempDir,
    target: MemoryTarget,
}

impl Robot {
    fn new(image_bytes: usize) -> Self {
        Self {
            clock: Arc::default(),
            settings: Arc::default(),
            authority: Authority::new(),
            state: tempfile::tempdir().unwrap(),
            target: MemoryTarget::new(vec![0; image_bytes]),
        }
    }

    fn state(&self) -> StatePartition {
        StatePartition::new(self.state.path())
    }

    fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    /// Starts the robot with this time in its hardware clock.
    fn start(&self, rtc: u64, fixture: &Fixture) -> Arc<CertificateClock> {
        self.clock.store(rtc, Ordering::SeqCst);
        let (read, write) = (Arc::clone(&self.clock), Arc::clone(&self.clock));
        let last = self.state().record(&fixture.keys).map(|record| record.manifest().created_unix_s);
        let policy = ClockPolicy::new(unix(BUILT), last);
        let settings = Arc::clone(&self.settings);
        let set = move |seconds| {
            settings.fetch_add(1, Ordering::SeqCst);
            write.store(seconds, Ordering::SeqCst);
        };
        let clock = CertificateClock::new(Box::new(move || read.load(Ordering::SeqCst)), Some(Box::new(set)), policy);
        clock.start();
        Arc::new(clock)
    }

    fn options(&self, clock: &Arc<CertificateClock>) -> FetchOptions {
        FetchOptions {
            proxy: None,
            no_proxy: Vec::new(),
            ca_file: Some(self.authority.file.path().to_owned()),
            connect_timeout: std::time::Duration::from_secs(5),
            stall_timeout: std::time::Duration::from_secs(5),
            rate: None,
            certificate_clock: Arc::clone(clock),
            clock: FakeClock::new().shared(),
            on_served: None,
        }
    }

    /// Recovers from these servers, as PID 1 does, except that it gives up after some rounds.
    fn recover(
        &self,
        clock: &Arc<CertificateClock>,
        fixture: &Fixture,
        servers: &[&TestServer],
    ) -> Result<RecoveryReport, RecoveryError> {
        let options = self.options(clock);
        let sources: Vec<Box<dyn Source>> =
            servers.iter().map(|server| open(&server.url(), &options).unwrap()).collect();
        let mirrors = Mirrors::with_clock(sources, RetryPolicy::Rounds(3), Arc::clone(&options.clock));
        let (learn, state, journal) = (|created| clock.learn(created), self.state(), Journal::silent());
        let mut job = fixture.job(&mirrors, &self.target, Some(&state), &journal);
        job.resources.learn_time = &learn;
        recovery::run(&job, job.read_record().as_ref())
    }
}

/// A server of the release tree.
fn files(fixture: &Fixture) -> impl Fn(&TestRequest) -> Vec<crate::support::server::Act> + Send + Sync + 'static {
    let tree = fixture.tree();
    move |request| match std::fs::read(tree.join(request.target().trim_start_matches("/release/"))) {
        Ok(content) => object(request, &content),
        Err(_) => status("404 Not Found"),
    }
}

fn https(fixture: &Fixture, robot: &Robot, validity: [Date; 2]) -> TestServer {
    TestServer::start_tls(robot.authority.issue("127.0.0.1", validity), files(fixture))
}

fn dated(created_unix_s: u64) -> Fixture {
    Fixture::with(sample_image(300, 1), |spec| {
        spec.created_unix_s = Some(created_unix_s);
        spec.allow = vec![Allow::FutureDate];
    })
}

fn during(time: u64, validity: [Date; 2]) -> bool {
    (unix(validity[0])..=unix(validity[1])).contains(&time)
}

/// <https://github.com/MichaIng/DietPi/issues/6581>: the clock jumps decades ahead, and no certificate is good for what
/// would mend it. Here a release signed on a host with the year 2090 arrives over https, from the manifest to the end.
#[test]
fn a_release_from_2090_is_installed_over_https_and_so_is_the_next_one() {
    for created in [YEAR_2090, unix(TODAY) + 86_400 * 120, u64::from(u32::MAX)] {
        let mut fixture = dated(created);
        let robot = Robot::new(fixture.image.len());
        let server = https(&fixture, &robot, CERTIFICATE);
        for rtc in [unix(TODAY), 0] {
            let clock = robot.start(rtc, &fixture);
            robot.recover(&clock, &fixture, &[&server]).unwrap();
            assert!(during(robot.now(), CERTIFICATE), "{created} {rtc}: {}", robot.now());
        }
        // Recorded by now, as on today's robots: after a restart, with any hardware clock, the next release comes too.
        for (seed, rtc) in [(2, unix(TODAY)), (3, 0), (4, YEAR_2090)] {
            fixture.publish(sample_image(300, seed), |spec| {
                (spec.created_unix_s, spec.allow) = (Some(unix(TODAY)), vec![Allow::FutureDate]);
            });
            let clock = robot.start(rtc, &fixture);
            let report = robot.recover(&clock, &fixture, &[&server]);
            assert!(report.is_ok_and(|report| report.serial == seed), "{created} {rtc}: clock {}", robot.now());
            assert!(robot.target.content() == fixture.image);
            assert!(during(robot.now(), CERTIFICATE), "{created} {rtc}: {}", robot.now());
            fixture.publish(sample_image(300, seed), |spec| {
                (spec.created_unix_s, spec.serial, spec.allow) = (Some(created), Some(seed), vec![Allow::FutureDate]);
            });
            robot.recover(&robot.start(unix(TODAY), &fixture), &fixture, &[&server]).unwrap();
        }
    }
}

/// <https://github.com/HelloVolla/ubuntu-touch-beta-tests/issues/79>: the date was learnt where nothing speaks against
/// it, here over plain http, and then https is all that there is, in the same recovery and after a restart.
#[test]
fn a_date_learnt_over_http_does_not_lock_out_https() {
    for created in [YEAR_2090, unix(TODAY) + 86_400 * 120, unix(TODAY) + 9 * 365 * 86_400] {
        for rtc in [unix(TODAY), 0, YEAR_2090] {
            let mut fixture = dated(created);
            let robot = Robot::new(fixture.image.len());
            let plain = TestServer::start(files(&fixture));
            let clock = robot.start(rtc, &fixture);
            robot.recover(&clock, &fixture, &[&plain]).unwrap();
            // The next release, over https, by the same process: parked, for one.
            fixture.publish(sample_image(300, 2), |spec| {
                (spec.created_unix_s, spec.allow) = (Some(unix(TODAY)), vec![Allow::FutureDate]);
            });
            let server = https(&fixture, &robot, CERTIFICATE);
            robot.recover(&clock, &fixture, &[&server]).unwrap();
            assert!(during(robot.now(), CERTIFICATE), "{created} {rtc}: {}", robot.now());
        }
    }
}

/// <https://github.com/ioerror/tlsdate/issues/172>: a damaged system with a right hardware clock, right servers, and
/// the year 2090 on the state partition.
#[test]
fn a_damaged_system_is_repaired_with_2090_on_the_state_partition() {
    let fixture = dated(YEAR_2090);
    let robot = Robot::new(fixture.image.len());
    let plain = TestServer::start(files(&fixture));
    robot.recover(&robot.start(unix(TODAY), &fixture), &fixture, &[&plain]).unwrap();
    let mut damaged = fixture.image.clone();
    damaged[..1 << 18].fill(0xa5);
    let robot = Robot { target: MemoryTarget::new(damaged), ..robot };
    let server = https(&fixture, &robot, CERTIFICATE);
    robot.recover(&robot.start(unix(TODAY), &fixture), &fixture, &[&server]).unwrap();
    assert!(robot.target.content() == fixture.image);
    assert_eq!(robot.now(), unix(TODAY), "a right clock stays");
}

/// <https://github.com/systemd/systemd/pull/20335>: hardware clocks that are dead, far ahead, or show anything; the
/// servers and the release are right, and there is nothing but https.
#[test]
fn any_hardware_clock_recovers_over_https_alone() {
    let garbage = [0, 1, 946_684_800, 2_147_483_647, 2_147_483_648, 4_294_967_295, YEAR_2090, 1 << 40, u64::MAX];
    for rtc in garbage {
        let fixture = dated(unix(BUILT) + 86_400);
        let robot = Robot::new(fixture.image.len());
        let server = https(&fixture, &robot, CERTIFICATE);
        robot.recover(&robot.start(rtc, &fixture), &fixture, &[&server]).unwrap();
        assert!(during(robot.now(), CERTIFICATE), "{rtc}: {}", robot.now());
    }
}

/// A hardware clock that is some years ahead looks like one that is right, and its robot must recover too: once no
/// certificate was good for a while.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_hardware_clock_that_is_years_ahead_is_believed_for_a_while_only() {
    let fixture = dated(unix(BUILT) + 86_400);
    let robot = Robot::new(fixture.image.len());
    let server = https(&fixture, &robot, CERTIFICATE);
    let clock = robot.start(unix((2029, 6, 1)), &fixture);
    let until = std::time::Instant::now() + reflash::machine::clock::PATIENCE;
    while robot.recover(&clock, &fixture, &[&server]).is_err() {
        assert!(std::time::Instant::now() < until + std::time::Duration::from_secs(10));
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    assert!(std::time::Instant::now() >= until && during(robot.now(), CERTIFICATE));
}

/// As the case before, with two servers whose certificates have no time in common: each is asked at a time of its own,
/// as often as it takes.
#[test]
fn servers_whose_certificates_exclude_each_other_are_both_used() {
    let fixture = dated(unix(BUILT));
    for rtc in [0, YEAR_2090] {
        let robot = Robot::new(fixture.image.len());
        let servers = [https(&fixture, &robot, [(2026, 11, 2), (2026, 12, 1)]), https(&fixture, &robot, CERTIFICATE)];
        let clock = robot.start(rtc, &fixture);
        let options = robot.options(&clock);
        for _ in 0..20 {
            for server in &servers {
                let source = open(&server.url(), &options).unwrap();
                source.get_small("stable/manifest.json", 1 << 20).unwrap();
            }
        }
    }
}

/// As the cases before, with four connections that meet the wrong clock at once. The first moves it, and the others
/// have to see where to.
#[test]
fn connections_at_once_agree_on_the_time() {
    let fixture = dated(unix(BUILT));
    for rtc in [0, YEAR_2090] {
        for _ in 0..8 {
            let robot = Robot::new(fixture.image.len());
            let server = https(&fixture, &robot, CERTIFICATE);
            let options = robot.options(&robot.start(rtc, &fixture));
            let before = robot.settings.load(Ordering::SeqCst);
            let source = open(&server.url(), &options).unwrap();
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| source.get_small("stable/manifest.json", 1 << 20).unwrap());
                }
            });
            assert_eq!(robot.settings.load(Ordering::SeqCst), before + 1);
        }
    }
}

/// The other side of it: where the clock is right, a certificate that expired stays refused, however often it is shown,
/// and the clock stays where it is.
#[test]
fn what_has_expired_is_refused_by_a_right_clock() {
    let fixture = dated(unix(BUILT));
    for (validity, rtc) in [(LAST_YEARS, unix(TODAY)), (LAST_YEARS, 0), (CERTIFICATE, unix((2027, 9, 1)))] {
        let robot = Robot::new(fixture.image.len());
        let server = https(&fixture, &robot, validity);
        let clock = robot.start(rtc, &fixture);
        let started = robot.now();
        let Err(RecoveryError::Fetch { source, .. }) = robot.recover(&clock, &fixture, &[&server]) else {
            panic!("{validity:?} at {rtc} was accepted")
        };
        assert!(matches!(source.kind(), FetchErrorKind::TlsTime { not_after: Some(_), .. }), "{source}");
        assert_eq!((robot.now(), server.requests().len()), (started, 0));
    }
}

/// A certificate that nobody trusted signed cannot move the clock, however often it comes.
#[test]
fn a_stranger_cannot_move_the_clock() {
    let fixture = dated(unix(BUILT));
    for rtc in [0, unix(TODAY), YEAR_2090] {
        let robot = Robot::new(fixture.image.len());
        let stranger = Authority::new().issue("127.0.0.1", [(2030, 1, 1), (2031, 1, 1)]);
        let server = TestServer::start_tls(stranger, files(&fixture));
        let clock = robot.start(rtc, &fixture);
        let started = robot.now();
        for _ in 0..3 {
            robot.recover(&clock, &fixture, &[&server]).unwrap_err();
        }
        assert_eq!(robot.now(), started);
    }
}

/// A release for another product, hardware or channel says nothing about the time, whatever its date.
#[test]
fn the_date_of_a_foreign_release_is_not_learnt() {
    let foreign: [fn(&mut reflash_release::Spec); 2] =
        [|spec| spec.product = "other".into(), |spec| spec.hardware = vec!["unit-z".into()]];
    for change in foreign {
        let fixture = Fixture::with(sample_image(300, 1), |spec| {
            (spec.created_unix_s, spec.allow) = (Some(unix(TODAY) + 86_400), vec![Allow::FutureDate]);
            change(spec);
        });
        let robot = Robot::new(fixture.image.len());
        let server = TestServer::start(files(&fixture));
        let clock = robot.start(unix(TODAY), &fixture);
        robot.recover(&clock, &fixture, &[&server]).unwrap_err();
        assert_eq!(robot.now(), unix(TODAY));
    }
}
