//! Several connections at once, as the writer makes them: shared troubles, shared pauses, a shared cap.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use reflash::fetch::{Clock, FetchError, FetchErrorKind, FetchOptions, Mirrors, Rate, RetryPolicy, Source, open_all};

use super::{PATH, STALL, data, options};
use crate::support::clock::FakeClock;
use crate::support::server::{Act, TestServer, cut, object, status};

const CONNECTIONS: usize = 4;
const RANGE: u64 = 64 << 10;

/// Fetches `bytes` in ranges of 64 KiB on four threads, and compares.
fn fetch_together(source: &Mirrors, expected: &[u8]) -> Result<(), FetchError> {
    let next = AtomicUsize::new(0);
    let one_thread = || -> Result<(), FetchError> {
        loop {
            let start = next.fetch_add(1, Ordering::Relaxed) as u64 * RANGE;
            if start >= expected.len() as u64 {
                return Ok(());
            }
            let end = (start + RANGE).min(expected.len() as u64);
            let mut got = Vec::new();
            source.get_range(PATH, start..end, &mut |bytes| {
                got.extend_from_slice(bytes);
                Ok(())
            })?;
            assert!(got == expected[start as usize..end as usize], "bytes {start} to {end}");
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(one_thread)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })
}

/// The retries that the console would have shown: text and pause.
type Retries = Arc<Mutex<Vec<(String, Duration)>>>;

fn recording(urls: &[String], retry_policy: RetryPolicy) -> (Mirrors, Retries) {
    let retries = Retries::default();
    let all = Arc::clone(&retries);
    let mirrors = open_all(urls, &options(), retry_policy)
        .unwrap()
        .on_retry(move |retry| all.lock().unwrap().push((retry.error.chain(), retry.wait)));
    (mirrors, retries)
}

#[test]
fn four_threads_keep_to_four_connections() {
    let data = data(4 << 20);
    let served = Arc::clone(&data);
    let server = TestServer::start(move |request| object(request, &served));
    let (mirrors, retries) = recording(&[server.url()], RetryPolicy::Rounds(1));
    fetch_together(&mirrors, &data).unwrap();
    let connections: BTreeSet<usize> = server.requests().iter().map(|request| request.connection).collect();
    assert_eq!(server.requests().len(), 64);
    assert!(connections.len() <= CONNECTIONS, "{connections:?}");
    assert!(retries.lock().unwrap().is_empty());
}

#[test]
fn a_server_that_is_busy_for_all_is_asked_less_and_less_and_the_console_hears_of_it_once_a_round() {
    let data = data(1 << 20);
    let served = Arc::clone(&data);
    // Four requests at first, two in the next round, then one.
    const REFUSED: usize = 4 + 2 + 1;
    let server = TestServer::start(move |request| match request.number < REFUSED {
        true => {
            // Long enough for all four to be inside.
            let mut acts = status("503 Service Unavailable");
            acts.insert(0, Act::Wait(Duration::from_millis(100)));
            acts
        }
        false => object(request, &served),
    });
    let (mirrors, retries) = recording(&[server.url()], RetryPolicy::Rounds(20));
    fetch_together(&mirrors, &data).unwrap();
    let retries = retries.lock().unwrap();
    // More where not all four were inside at once; with four requests in each round it would be two.
    assert!((3..=REFUSED).contains(&retries.len()), "{retries:?}");
    assert!(
        retries.iter().all(|(text, wait)| text.contains("503") && *wait >= Duration::from_millis(100)),
        "{retries:?}"
    );
}

#[test]
fn a_server_that_bears_two_at_a_time_gets_two() {
    let data = data(4 << 20);
    let served = Arc::clone(&data);
    let (inside, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&refused);
    let server = TestServer::start(move |request| {
        let others = inside.fetch_add(1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(20));
        inside.fetch_sub(1, Ordering::SeqCst);
        if others >= 2 {
            count.fetch_add(1, Ordering::SeqCst);
            return status("429 Too Many Requests");
        }
        object(request, &served)
    });
    let (mirrors, retries) = recording(&[server.url()], RetryPolicy::Rounds(9));
    fetch_together(&mirrors, &data).unwrap();
    let refused = refused.load(Ordering::SeqCst);
    // Of 64 requests: the first ones, and where it was tried whether more would do.
    assert!((1..=16).contains(&refused), "{refused} refused: {:?}", retries.lock().unwrap());
}

#[test]
fn a_line_that_breaks_for_all_is_reported_once_and_taken_up_where_it_broke() {
    let data = data(1 << 20);
    let served = Arc::clone(&data);
    let server = TestServer::start(move |request| match request.number {
        // All four get half of a range, and then the line breaks.
        0..4 => {
            let mut acts = cut(request, &served, 30_000);
            acts.insert(acts.len() - 1, Act::Wait(Duration::from_millis(100)));
            acts
        }
        _ => object(request, &served),
    });
    let (mirrors, retries) = recording(&[server.url()], RetryPolicy::Rounds(3));
    fetch_together(&mirrors, &data).unwrap();
    let retries = retries.lock().unwrap();
    assert_eq!(retries.len(), 1, "{retries:?}");
    assert_eq!(server.requests().len(), 16 + 4);
}

#[test]
fn a_dead_first_mirror_costs_one_message_and_no_time_for_each_range() {
    let data = data(2 << 20);
    let served = Arc::clone(&data);
    let second = TestServer::start(move |request| object(request, &served));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (mirrors, retries) = recording(&[format!("http://{port}/release"), second.url()], RetryPolicy::Rounds(1));
    fetch_together(&mirrors, &data).unwrap();
    assert_eq!(retries.lock().unwrap().len(), 1, "{retries:?}");
    assert_eq!(second.requests().len(), 32);
}

#[test]
fn all_give_up_together_when_all_sources_are_dead() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (mirrors, retries) = recording(&[format!("http://{port}/release")], RetryPolicy::Rounds(3));
    let error = fetch_together(&mirrors, &[0; 1 << 20]).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Unreachable);
    assert!(error.chain().contains("the port is closed"), "{error}");
    let retries = retries.lock().unwrap();
    assert!((2..=3).contains(&retries.len()), "{retries:?}");
}

/// Fetches 4 MiB at 1 MiB/s on four connections; how long it took, and what came by each quarter of a second.
fn capped(server: &TestServer, expected: &[u8]) -> (Duration, Vec<u64>) {
    let clock = FakeClock::new();
    let options = FetchOptions { rate: Some(Rate::of(1 << 20, clock.shared())), clock: clock.shared(), ..options() };
    let mirrors = open_all(&[server.url()], &options, RetryPolicy::Rounds(1)).unwrap();
    let started = clock.now();
    let came = Mutex::new(vec![0; 64]);
    thread::scope(|scope| {
        for part in 0..CONNECTIONS as u64 {
            let (mirrors, came, clock) = (&mirrors, &came, &clock);
            scope.spawn(move || {
                let quarter = expected.len() as u64 / CONNECTIONS as u64;
                let mut at = part * quarter;
                let mut sink = |bytes: &[u8]| {
                    assert!(bytes == &expected[at as usize..at as usize + bytes.len()]);
                    at += bytes.len() as u64;
                    let now = (clock.now() - started).as_millis() / 250;
                    came.lock().unwrap()[usize::try_from(now).unwrap()] += bytes.len() as u64;
                    Ok(())
                };
                mirrors.get_range(PATH, part * quarter..(part + 1) * quarter, &mut sink).unwrap();
            });
        }
    });
    (clock.now() - started, came.into_inner().unwrap())
}

#[test]
fn a_cap_holds_for_all_connections_together_and_is_smooth() {
    let data = data(4 << 20);
    let served = Arc::clone(&data);
    let server = TestServer::start(move |request| object(request, &served));
    let (took, came) = capped(&server, &data);
    // Each connection waits for longer than the stall timeout in all, which is no standstill.
    assert!(took > STALL * 2);
    // All of it at the rate of the cap, but for what may come at once at the start.
    assert!((3.9..=4.0).contains(&took.as_secs_f64()), "{took:?}");
    let seconds: Vec<u64> = came.chunks(4).map(|quarters| quarters.iter().sum()).collect();
    assert!(seconds.iter().all(|bytes| *bytes <= (1 << 20) * 11 / 10), "{seconds:?}");
    // A quarter of a second is twelve pieces and a half; each connection has one that came, and is not paid for.
    assert!(came[..15].iter().all(|bytes| (150_000..=370_000).contains(bytes)), "{came:?}");
    assert_eq!(server.requests().len(), CONNECTIONS);
}
