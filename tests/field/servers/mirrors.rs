//! Several mirrors of which one is slow, stale, dead or set up wrongly.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reflash::fetch::{
    Check, Clock, Directory, FetchError, FetchOptions, Mirrors, RetryPolicy, Sink, Source, open_all, open_usable,
};
use reflash::jobs::recovery;
use reflash::jobs::state::StatePartition;
use reflash::record::journal::Journal;
use reflash_release::Allow;

use super::{flash, good, release, serving};
use crate::support::server::{Act, TestServer, object, status};
use crate::support::{Fixture, MemoryTarget, sample_image};

/// A clock that runs so many times as fast as the world's.
struct FastClock(Instant, u32);

impl Clock for FastClock {
    fn now(&self) -> Instant {
        self.0 + self.0.elapsed() * self.1
    }

    fn sleep_until(&self, end: Instant) {
        std::thread::sleep(end.saturating_duration_since(self.now()) / self.1);
    }
}

/// The good answer, slowly: a piece each time.
fn trickled(acts: Vec<Act>, piece: usize, every: Duration) -> Vec<Act> {
    let [Act::Send(bytes)] = &acts[..] else { return acts };
    let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let mut slow = vec![Act::Send(bytes[..head].to_vec())];
    for part in bytes[head..].chunks(piece) {
        slow.extend([Act::Send(part.to_vec()), Act::Wait(every)]);
    }
    slow
}

/// A mirror whose packs, and nothing else, come a piece at a time.
fn slow(tree: PathBuf, piece: usize, every: Duration) -> TestServer {
    serving(tree, move |request, content| {
        request.range()?;
        Some(trickled(object(request, content), piece, every))
    })
}

const SPEED: u32 = 20;

fn recovered(fixture: &Fixture, urls: &[String]) -> (u64, Vec<String>) {
    let clock: Arc<dyn Clock> = Arc::new(FastClock(Instant::now(), SPEED));
    let options = FetchOptions { clock, stall_timeout: Duration::from_secs(30), ..crate::fetch::options() };
    let (result, retries) = super::flash_with(fixture, urls, &options);
    (result.unwrap().totals.download_bytes, retries)
}

// https://github.com/nroi/flexo/issues/12, https://github.com/nroi/cpcache/issues/8
#[test]
fn a_mirror_that_dribbles_is_left_for_the_next() {
    let fixture = release();
    let began = Instant::now();
    // 2 kB/s by the clock of the client, and less where the test's machine is busy: not so little as to be a stall.
    let dribbling = slow(fixture.tree(), 2_000, Duration::from_secs(1) / SPEED);
    let fast = good(fixture.tree());
    let (bytes, retries) = recovered(&fixture, &[dribbling.url(), fast.url()]);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(
        retries.iter().any(|retry| retry.contains("B/s on one connection, another source is tried")),
        "{retries:?}"
    );
    let asked = |server: &TestServer| server.requests().iter().filter(|request| request.range().is_some()).count();
    let ranges = bytes.div_ceil(8 << 20) as usize;
    assert!(asked(&dribbling) <= 4.max(ranges) && asked(&fast) > 0);
}

// https://github.com/nroi/flexo/issues/15
#[test]
fn of_slow_mirrors_the_best_is_kept_to_the_end() {
    // Neither is fast.
    let fixture = Fixture::with(sample_image(200, 5), |_| {});
    let every = Duration::from_secs(1) / SPEED;
    let [worst, best] = [2_000, 16_000].map(|piece| slow(fixture.tree(), piece, every));
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    recovered(&fixture, &[format!("http://{dead}/release"), worst.url(), best.url()]);
    assert!(best.requests().iter().any(|request| request.range().is_some()));
    // The only one, at a rate that no other source can better.
    let fixture = Fixture::with(sample_image(40, 5), |_| {});
    let alone = slow(fixture.tree(), 2_000, every);
    let (_, retries) = recovered(&fixture, &[alone.url()]);
    assert!(retries.is_empty(), "{retries:?}");
}

#[test]
fn a_source_that_accepts_and_trickles_or_says_nothing_is_left_for_the_next() {
    let fixture = release();
    let silent = TestServer::start(|_| vec![Act::Wait(Duration::from_secs(30))]);
    let loris = TestServer::start(|_| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\nX: ";
        let bytes = head.iter().chain(std::iter::repeat_n(&b'y', 300));
        bytes.flat_map(|byte| [Act::Send(vec![*byte]), Act::Wait(Duration::from_millis(100))]).collect()
    });
    let trickling = serving(fixture.tree(), |request, content| {
        Some(trickled(object(request, content), 1, Duration::from_millis(100)))
    });
    for server in [&silent, &loris, &trickling] {
        let began = Instant::now();
        let fast = good(fixture.tree());
        super::flash_with(&fixture, &[server.url(), fast.url()], &crate::fetch::options()).0.unwrap();
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    }
}

/// Two releases of one key, the older one in a tree of its own.
fn two_releases() -> (Fixture, PathBuf) {
    let mut fixture = Fixture::with(sample_image(300, 1), |spec| (spec.version, spec.serial) = ("old".into(), Some(4)));
    let old = fixture.dir.path().join("old");
    crate::sources::copy(&fixture.tree(), &old);
    fixture.publish(sample_image(300, 2), |spec| (spec.version, spec.serial) = ("new".into(), Some(7)));
    (fixture, old)
}

// https://github.com/clearlinux/swupd-client/pull/430, https://github.com/AlmaLinux/mirrors/issues/1355
#[test]
fn the_newest_release_of_all_mirrors_is_installed() {
    let (fixture, old) = two_releases();
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead = format!("http://{dead}/release");
    let silent = TestServer::start(|_| vec![Act::Wait(Duration::from_secs(60))]);
    let broken = TestServer::start(|_| status("500 Internal Server Error"));
    let page = TestServer::start(|_| vec![Act::Send(b"HTTP/1.1 200 OK\r\n\r\n<html>".to_vec()), Act::Close]);
    let (stale, fresh) = (good(old), good(fixture.tree()));
    for urls in [
        [stale.url(), fresh.url()].to_vec(),
        [fresh.url(), stale.url()].to_vec(),
        [dead.clone(), stale.url(), broken.url(), page.url(), fresh.url()].to_vec(),
    ] {
        let report = flash(&fixture, &urls).0.unwrap();
        assert_eq!((report.version.as_str(), report.serial), ("new", 7), "{urls:?}");
    }
    let began = Instant::now();
    let report = flash(&fixture, &[stale.url(), silent.url(), fresh.url()]).0.unwrap();
    assert_eq!(report.serial, 7);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[test]
fn a_newer_release_that_does_not_suit_is_left_where_it_is() {
    let (mut fixture, old) = two_releases();
    let image = sample_image(300, 1);
    fixture.publish(image.clone(), |spec| {
        (spec.serial, spec.hardware) = (Some(9), vec!["unit-b".into()]);
        spec.allow = vec![Allow::FewerHardware];
    });
    let (first, other) = (good(old), good(fixture.tree()));
    fixture.image = image;
    let report = flash(&fixture, &[first.url(), other.url()]).0.unwrap();
    assert_eq!(report.serial, 4);
}

// https://github.com/rgeissert/http-redirector/issues/72
#[test]
fn a_release_that_no_mirror_has_all_of_is_left_for_one_that_is_whole() {
    let (fixture, old) = two_releases();
    let half = serving(fixture.tree(), |request, _| {
        let path = request.target();
        path.contains("/objects/").then(|| status("404 Not Found"))
    });
    let whole = good(old.clone());
    let image = sample_image(300, 1);
    for urls in [[half.url(), whole.url()], [whole.url(), half.url()]] {
        let mirrors = open_all(&urls, &crate::fetch::options(), RetryPolicy::Rounds(1)).unwrap();
        let (target, journal) = (MemoryTarget::new(vec![0; image.len()]), Journal::silent());
        let mut job = fixture.job(&mirrors, &target, None, &journal);
        let newest = recovery::fetch_release(&job, None).unwrap();
        assert_eq!(newest.manifest.serial, 7);
        let error = recovery::install(&job, None, newest).unwrap_err();
        assert!(error.is_of_content(), "{}", reflash::chain::chain(&error));
        job.policy.incomplete = Some(recovery::fetch_release(&job, None).unwrap().id());
        assert_eq!(recovery::run(&job, None).unwrap().serial, 4);
        assert!(target.content() == image);
    }
}

/// A release that a person brought.
struct Brought(Directory);

impl Source for Brought {
    fn describe(&self) -> String {
        self.0.describe()
    }

    fn is_chosen(&self) -> bool {
        true
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        self.0.get_checked(wanted, check)
    }

    fn get_range(&self, path: &str, range: std::ops::Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        self.0.get_range(path, range, sink)
    }
}

#[test]
fn what_a_person_plugged_in_is_used_as_it_is_above_the_floor() {
    let (fixture, old) = two_releases();
    let fresh = good(fixture.tree());
    let sources = || -> Mirrors {
        let brought = Box::new(Brought(Directory::new(&old)));
        let server = reflash::fetch::open(&fresh.url(), &crate::fetch::options()).unwrap();
        Mirrors::new(vec![brought, server], RetryPolicy::Rounds(2))
    };
    let target = MemoryTarget::new(vec![0; fixture.image.len()]);
    let state = StatePartition::new(fixture.dir.path());
    assert_eq!(fixture.recover(&sources(), &target, Some(&state)).unwrap().serial, 4);
    let server = open_all(&[fresh.url()], &crate::fetch::options(), RetryPolicy::Rounds(2)).unwrap();
    assert_eq!(fixture.recover(&server, &target, Some(&state)).unwrap().serial, 7);
    // Below the floor by now: the server's counts.
    assert_eq!(fixture.recover(&sources(), &target, Some(&state)).unwrap().serial, 7);
}

// https://github.com/PackageKit/PackageKit/issues/861, https://github.com/coreos/rpm-ostree/issues/1602
#[test]
fn a_source_that_cannot_be_opened_is_left_out_while_others_remain() {
    let fixture = release();
    let server = good(fixture.tree());
    let missing = FetchOptions { ca_file: Some("/nonexistent/ca.pem".into()), ..crate::fetch::options() };
    let urls = ["https://h.invalid/r".to_owned(), server.url(), "http://h.invalid/r#x".to_owned()];
    let (sources, left_out) = open_usable(&urls, &missing);
    let texts: Vec<String> = left_out.iter().map(FetchError::chain).collect();
    assert!(
        texts[0].contains("/nonexistent/ca.pem") && texts[1].contains("#fragment") && texts.len() == 2,
        "{texts:?}"
    );
    let mirrors = Mirrors::new(sources, RetryPolicy::Rounds(2));
    let target = MemoryTarget::new(vec![0; fixture.image.len()]);
    fixture.recover(&mirrors, &target, None).unwrap();
    // Plain http does without the file, and the missing one is reported all the same.
    let (sources, left_out) = open_usable(&[server.url()], &missing);
    assert_eq!((sources.len(), left_out.len()), (1, 1));
    // By hand.
    let disk = fixture.dir.path().join("disk");
    assert!(fixture.flash_by_hand(&["http://h.invalid/r#x".to_owned(), server.url()], &disk, &[]));
    std::fs::remove_file(&disk).unwrap();
    assert!(!fixture.flash_by_hand(&["http://h.invalid/r#x".to_owned()], &disk, &[]));
}
