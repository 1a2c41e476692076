//! Servers, balancers and filters that count connections, look through answers, or take turns.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reflash::fetch::FetchOptions;

use super::{flash, flash_with, release, serving};
use crate::support::server::{Act, TestServer, answer, object, status};
use crate::support::{Fixture, sample_image};

/// A server of a tree that knows no ranges and serves one connection after the other, as that of Python does: what
/// connects meanwhile waits, for as long as the one before it is kept open.
fn one_at_a_time(tree: PathBuf, keeps_open: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = serve(stream.unwrap(), &tree, keeps_open);
        }
    });
    address
}

fn serve(mut stream: TcpStream, tree: &Path, keeps_open: bool) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(line) = lines.next() {
        let line = line?;
        while !lines.next().unwrap_or_else(|| Ok(String::new()))?.is_empty() {}
        let path = line.split(' ').nth(1).unwrap_or_default().trim_start_matches("/release/").to_owned();
        let (status, content) = match std::fs::read(tree.join(path)) {
            Ok(content) => ("200 OK", content),
            Err(_) => ("404 Not Found", Vec::new()),
        };
        let end = if keeps_open { "" } else { "Connection: close\r\n" };
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{end}\r\n", content.len())?;
        stream.write_all(&content)?;
        if !keeps_open {
            return Ok(());
        }
    }
    Ok(())
}

fn several_ranges() -> Fixture {
    Fixture::with(sample_image(16 * 1024, 5), |spec| spec.chunk_bytes = Some(64 * 1024))
}

#[test]
fn a_server_with_one_connection_and_no_ranges_delivers() {
    let fixture = several_ranges();
    for keeps_open in [true, false] {
        let server = one_at_a_time(fixture.tree(), keeps_open);
        let began = Instant::now();
        let options = FetchOptions { stall_timeout: Duration::from_secs(2), ..crate::fetch::options() };
        let (result, _) = flash_with(&fixture, &[format!("http://{server}/release")], &options);
        result.unwrap_or_else(|error| panic!("{keeps_open}: {}", reflash::chain::chain(&error)));
        assert!(began.elapsed() < Duration::from_secs(60), "{keeps_open}: {:?}", began.elapsed());
    }
}

/// <https://github.com/openshift/release/issues/378>, <https://github.com/civetweb/civetweb/issues/82>: what a balancer
/// says to a kept connection that was idle for too long is there before the next request is.
#[test]
fn a_refusal_of_an_idle_connection_is_no_answer_to_the_next_request() {
    let fixture = several_ranges();
    for line in ["408 Request Timeout", "400 Bad Request"] {
        let requests = AtomicUsize::new(0);
        let server = serving(fixture.tree(), move |request, content| {
            let mut acts = object(request, content);
            if !requests.fetch_add(1, Ordering::SeqCst).is_multiple_of(3) {
                return None;
            }
            let refusal = answer(line, &["Connection: close"], b"");
            acts.extend([Act::Wait(Duration::from_millis(20)), refusal, Act::Close]);
            Some(acts)
        });
        let (result, retries) = flash(&fixture, &[server.url()]);
        result.unwrap_or_else(|error| panic!("{line}: {}", reflash::chain::chain(&error)));
        assert!(retries.is_empty(), "{line}: {retries:?}");
    }
}

/// <https://github.com/e2guardian/e2guardian/issues/730> and its kind: some bytes of an answer come while the rest is
/// looked through, and the rest comes when all of it was.
#[test]
fn a_filter_that_trickles_while_it_looks_through_an_answer_gets_smaller_requests() {
    let fixture = several_ranges();
    let server = serving(fixture.tree(), |request, content| {
        let mut acts = object(request, content);
        let [Act::Send(bytes)] = acts.as_mut_slice() else { return None };
        let body = bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        // 1 MB/s: what takes longer than the stall timeout never comes.
        let seconds = (bytes.len() - body) as f32 / 1e6;
        let rest = bytes.split_off((body + 1).min(bytes.len()));
        if seconds > 0.1 {
            acts.push(Act::Wait(Duration::from_secs_f32(seconds)));
        }
        acts.push(Act::Send(rest));
        Some(acts)
    });
    let options = FetchOptions { stall_timeout: Duration::from_secs(1), ..crate::fetch::options() };
    let (result, retries) = flash_with(&fixture, &[server.url()], &options);
    result.unwrap_or_else(|error| panic!("{}", reflash::chain::chain(&error)));
    assert!(retries.len() < 20, "{retries:?}");
}

/// Two machines in turns, of which one is broken: a pair of files would have the same one fail each time.
#[test]
fn files_that_belong_together_come_from_machines_that_take_turns() {
    let fixture = release();
    for refusal in ["404 Not Found", "403 Forbidden", "500 Internal Server Error", "502 Bad Gateway", ""] {
        let server = serving(fixture.tree(), move |request, _| {
            let broken = request.number % 2 == 1;
            broken.then(|| if refusal.is_empty() { vec![Act::Close] } else { status(refusal) })
        });
        let (result, _) = flash(&fixture, &[server.url()]);
        result.unwrap_or_else(|error| panic!("{refusal}: {}", reflash::chain::chain(&error)));
    }
}

/// What is on the way makes nonsense of ranges, in whatever way, and lets whole files through.
#[test]
fn where_ranges_bring_nothing_of_use_whole_objects_are_asked_for() {
    type Nonsense = fn() -> Vec<Act>;
    let page = || vec![answer("200 OK", &["Content-Type: text/html", "Content-Length: 6"], b"<html>")];
    let nonsense: [(&str, Nonsense); 7] = [
        ("close", || vec![Act::Close]),
        ("reset", || vec![Act::Reset]),
        ("404", || status("404 Not Found")),
        ("page", page),
        ("empty 206", || vec![answer("206 Partial Content", &["Content-Length: 0"], b"")]),
        ("empty 200", || vec![answer("200 OK", &["Content-Length: 0"], b"")]),
        ("block page", || vec![answer("302 Found", &["Location: http://127.0.0.1:1/", "Content-Length: 0"], b"")]),
    ];
    let fixture = release();
    for (name, nonsense) in nonsense {
        let server = serving(fixture.tree(), move |request, _| request.range().map(|_| nonsense()));
        let (result, _) = flash(&fixture, &[server.url()]);
        result.unwrap_or_else(|error| panic!("{name}: {}", reflash::chain::chain(&error)));
    }
}

/// Objects that only spare downloads may be missing, and stores answer 403 or 404 for each: that says nothing about
/// size or ranges.
#[test]
fn objects_that_are_missing_make_no_request_smaller_and_no_whole_object_wanted() {
    for refusal in ["403 Forbidden", "404 Not Found"] {
        let content = vec![7; 8 << 20];
        let server = TestServer::start(move |request| match request.target().contains("missing") {
            true => status(refusal),
            false => object(request, &content),
        });
        let http = reflash::fetch::open(&server.url(), &crate::fetch::options()).unwrap();
        http.get_small("objects/there", 8 << 20).unwrap();
        for number in 0..5 {
            http.get_small(&format!("objects/missing{number}"), 3_000_000).unwrap_err();
            http.get_range(&format!("objects/missing{number}"), 100..500_000, &mut |_| Ok(())).unwrap_err();
        }
        let before = server.requests().len();
        assert!(before <= 1 + 5 * 5, "{before}");
        http.get_range("objects/there", 100..8 << 20, &mut |_| Ok(())).unwrap();
        let after: Vec<_> = server.requests().split_off(before);
        assert!(after.len() == 1 && after[0].range().is_some(), "{refusal}: {after:?}");
    }
}

/// As of a firewall that lets one connection of a client through and drops the others.
#[test]
fn a_server_that_is_silent_to_all_but_one_connection_gets_one_request_at_a_time() {
    let fixture = several_ranges();
    let (open, most) = (Arc::new(Mutex::new(0)), Arc::new(AtomicUsize::new(0)));
    let tree = fixture.tree();
    let server = TestServer::start(move |request| {
        let path = tree.join(request.target().trim_start_matches("/release/"));
        let Ok(content) = std::fs::read(path) else { return status("404 Not Found") };
        {
            let mut open = open.lock().unwrap();
            *open += 1;
            most.fetch_max(*open, Ordering::SeqCst);
            if *open > 1 {
                *open -= 1;
                return vec![Act::Wait(Duration::from_secs(60))];
            }
        }
        std::thread::sleep(Duration::from_millis(150));
        *open.lock().unwrap() -= 1;
        object(request, &content)
    });
    let options = FetchOptions { stall_timeout: Duration::from_secs(1), ..crate::fetch::options() };
    let (result, retries) = flash_with(&fixture, &[server.url()], &options);
    result.unwrap_or_else(|error| panic!("{} {retries:?}", reflash::chain::chain(&error)));
}
