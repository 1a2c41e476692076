//! Servers, stores, caches and proxies with habits of their own.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reflash::chain::chain;
use reflash::fetch::{FetchErrorKind, FetchOptions, Http, RetryPolicy, Source, open, open_all};
use reflash::jobs::recovery::{RecoveryError, RecoveryReport};

use crate::support::clock::FakeClock;
use crate::support::server::{Act, TestRequest, TestServer, answer, object, status};
use crate::support::tls::{ALWAYS, Authority, authority_as_server};
use crate::support::{Fixture, MemoryTarget, sample_image};

mod addresses;
mod connections;
mod heads;
mod mirrors;
mod paths;
mod proxies;

/// What a server does with a request before its good answer; `None` for the good answer.
type Habit = dyn Fn(&TestRequest, &[u8]) -> Option<Vec<Act>> + Send + Sync;

/// A server of a release tree with a habit.
fn serving(
    tree: PathBuf,
    habit: impl Fn(&TestRequest, &[u8]) -> Option<Vec<Act>> + Send + Sync + 'static,
) -> TestServer {
    let habit: Arc<Habit> = Arc::new(habit);
    TestServer::start(move |request| {
        let path = request.target().split('?').next().unwrap_or_default().trim_start_matches("/release/").to_owned();
        let Ok(content) = std::fs::read(tree.join(path)) else { return status("404 Not Found") };
        habit(request, &content).unwrap_or_else(|| object(request, &content))
    })
}

fn good(tree: PathBuf) -> TestServer {
    serving(tree, |_, _| None)
}

/// A release whose pack is fetched in several requests of which each is large enough to be cut.
fn release() -> Fixture {
    Fixture::with(sample_image(2 * 1024, 5), |spec| spec.chunk_bytes = Some(64 * 1024))
}

/// What a flash from these URLs leads to, without waiting for the pauses, and the retries that it reported.
fn flash(fixture: &Fixture, urls: &[String]) -> (Result<RecoveryReport, RecoveryError>, Vec<String>) {
    let clock = FakeClock::new();
    flash_with(fixture, urls, &FetchOptions { clock: clock.shared(), ..crate::fetch::options() })
}

fn flash_with(
    fixture: &Fixture,
    urls: &[String],
    options: &FetchOptions,
) -> (Result<RecoveryReport, RecoveryError>, Vec<String>) {
    let retries = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&retries);
    let mirrors = open_all(urls, options, RetryPolicy::Rounds(5))
        .unwrap()
        .on_retry(move |retry| all.lock().unwrap().push(retry.error.chain()));
    let target = MemoryTarget::new(vec![0; fixture.image.len()]);
    let result = fixture.recover(&mirrors, &target, None);
    if result.is_ok() {
        assert!(target.content() == fixture.image);
    }
    let retries = retries.lock().unwrap().clone();
    (result, retries)
}

/// Asserts that a habit is none that a flash notices.
fn unnoticed(
    what: &str,
    habit: impl Fn(&TestRequest, &[u8]) -> Option<Vec<Act>> + Send + Sync + 'static,
) -> TestServer {
    let fixture = release();
    let server = serving(fixture.tree(), habit);
    let (result, retries) = flash(&fixture, &[server.url()]);
    result.unwrap_or_else(|error| panic!("{what}: {}", chain(&error)));
    assert!(retries.is_empty(), "{what}: {retries:?}");
    server
}

fn then(mut acts: Vec<Act>, last: impl IntoIterator<Item = Act>) -> Option<Vec<Act>> {
    acts.extend(last);
    Some(acts)
}

/// The good answer with its bytes changed.
fn changed(request: &TestRequest, content: &[u8], change: impl Fn(&[u8]) -> Vec<u8>) -> Option<Vec<Act>> {
    let mut acts = object(request, content);
    if let [Act::Send(bytes)] = acts.as_mut_slice() {
        *bytes = change(bytes);
    }
    Some(acts)
}

fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes());
    let Some(at) = at else { return bytes.to_vec() };
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}

// https://github.com/psf/requests/issues/3458, https://github.com/drbrain/net-http-persistent/pull/42,
// https://github.com/capnproto/capnproto/pull/2785
#[test]
fn a_kept_connection_that_was_closed_is_replaced_at_once() {
    let pause = || Act::Wait(Duration::from_millis(5));
    unnoticed("closes after each answer", |request, content| then(object(request, content), [Act::Close]));
    unnoticed("closes a moment later", move |request, content| then(object(request, content), [pause(), Act::Close]));
    unnoticed("resets after each small answer", move |request, content| {
        // A reset after a large one drops what was not read yet.
        let end = if request.range().is_none() { Act::Reset } else { Act::Close };
        then(object(request, content), [Act::Wait(Duration::from_millis(20)), end])
    });
    for after in [1, 3] {
        let counts = Mutex::new(std::collections::BTreeMap::new());
        let ends = Mutex::new(0);
        let server = unnoticed("does not answer the next request", move |request, _| {
            let mut counts = counts.lock().unwrap();
            let count: &mut usize = counts.entry(request.connection).or_default();
            *count += 1;
            let mut ends = ends.lock().unwrap();
            *ends += usize::from(*count > after);
            // By turns with an end and with a reset.
            (*count > after).then(|| vec![if ends.is_multiple_of(2) { Act::Close } else { Act::Reset }])
        });
        assert!(server.requests().len() > 4);
    }
}

// https://github.com/JuliaWeb/HTTP.jl/issues/1331, https://github.com/encode/httpx/issues/2975
#[test]
fn a_kept_connection_that_falls_silent_is_replaced_and_after_some_none_is_kept() {
    let fixture = release();
    let counts = Mutex::new(std::collections::BTreeMap::new());
    let server = serving(fixture.tree(), move |request, _| {
        let mut counts = counts.lock().unwrap();
        let count: &mut usize = counts.entry(request.connection).or_default();
        *count += 1;
        (*count > 1).then(|| vec![Act::Wait(Duration::from_secs(60))])
    });
    let stall_timeout = Duration::from_secs(1);
    let began = std::time::Instant::now();
    let options = FetchOptions { stall_timeout, ..crate::fetch::options() };
    let (result, retries) = flash_with(&fixture, &[server.url()], &options);
    result.unwrap();
    assert!(retries.is_empty(), "{retries:?}");
    // Those that several threads met at the same time count as well.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    // A router forgets all connections of before, once.
    let forgets = Arc::new(AtomicUsize::new(usize::MAX));
    let newest = Arc::clone(&forgets);
    let counted = AtomicUsize::new(0);
    let server = TestServer::start(move |request| {
        counted.fetch_max(request.connection, Ordering::SeqCst);
        let last = newest.load(Ordering::SeqCst);
        let is_forgotten = last != usize::MAX && request.connection <= last;
        if is_forgotten { vec![Act::Wait(Duration::from_secs(60))] } else { object(request, &[7; 1000]) }
    });
    let http = open(&server.url(), &options).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20).for_each(|_| drop(http.get_small("objects/a", 1000).unwrap())));
        }
    });
    let connections = server.requests().iter().map(|request| request.connection).max().unwrap();
    forgets.store(connections, Ordering::SeqCst);
    let began = std::time::Instant::now();
    for _ in 0..4 {
        assert_eq!(http.get_small("objects/a", 1000).unwrap().len(), 1000);
    }
    assert!(began.elapsed() < stall_timeout * 2, "{connections} connections: {:?}", began.elapsed());
}

// https://github.com/e2guardian/e2guardian/issues/730
#[test]
fn a_filter_that_refuses_or_holds_back_what_is_large_gets_smaller_requests() {
    let length = |request: &TestRequest, content: &[u8]| match request.range() {
        Some((first, last)) => last.min(content.len() - 1) + 1 - first,
        None => content.len(),
    };
    for (limit, refusal) in
        [(70_000, "403 Forbidden"), (300_000, "413 Content Too Large"), (1 << 20, "502 Bad Gateway"), (200_000, "")]
    {
        let fixture = Fixture::with(sample_image(8 * 1024, 5), |spec| spec.chunk_bytes = Some(64 * 1024));
        let server = serving(fixture.tree(), move |request, content| {
            let end = if refusal.is_empty() { vec![Act::Close] } else { status(refusal) };
            (length(request, content) > limit).then_some(end)
        });
        let (result, retries) = flash(&fixture, &[server.url()]);
        result.unwrap_or_else(|error| panic!("{limit} {refusal}: {}", chain(&error)));
        assert!(retries.len() < 20, "{limit} {refusal}: {}", retries.len());
    }
}

#[test]
fn a_line_that_is_cut_after_so_many_bytes_delivers_what_is_larger() {
    let fixture = Fixture::with(sample_image(8 * 1024, 5), |spec| spec.chunk_bytes = Some(64 * 1024));
    let server = serving(fixture.tree(), |request, content| {
        let mut acts = object(request, content);
        let [Act::Send(bytes)] = acts.as_mut_slice() else { return None };
        bytes.truncate(100_000);
        then(acts, [Act::Close])
    });
    let (result, _) = flash(&fixture, &[server.url()]);
    result.unwrap();
}

#[test]
fn a_post_on_a_kept_connection_that_was_closed_is_sent_once_more() {
    let server = TestServer::start(|request| match request.number {
        1 => vec![Act::Close],
        _ => status("204 No Content"),
    });
    let http = Http::new(&server.url(), &crate::fetch::options()).unwrap();
    http.post_json("{\"a\":1}").unwrap();
    http.post_json("{\"a\":2}").unwrap();
    let posts: Vec<Vec<u8>> = server.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(posts, [b"{\"a\":1}", b"{\"a\":2}", b"{\"a\":2}"]);
    // A fresh connection that is closed is a failure, which is reported.
    let server = TestServer::start(|_| vec![Act::Close]);
    let error = Http::new(&server.url(), &crate::fetch::options()).unwrap().post_json("{}").unwrap_err();
    assert_eq!((error.kind(), server.requests().len()), (FetchErrorKind::Broken, 1));
}

/// A server that refuses whole objects, and gives a byte of a range at a time.
#[test]
fn a_server_that_gives_a_small_object_in_crumbs_is_left() {
    const BYTES: usize = 100_000;
    let server = TestServer::start(|request| match request.range() {
        Some((at, _)) => {
            let part = format!("Content-Range: bytes {at}-{at}/{BYTES}");
            vec![answer("206 Partial Content", &[&part, "Content-Length: 1"], b"x")]
        }
        None => status("403 Forbidden"),
    });
    let http = Http::new(&server.url(), &crate::fetch::options()).unwrap();
    let path = format!("objects/{}", "0".repeat(64));
    http.get_checked(&[(&path, BYTES as u64)], &mut |_| Ok(())).unwrap_err();
    assert!(server.requests().len() < 300, "{} requests", server.requests().len());
}

/// Flask, Express, PHP and Django call every answer `text/html` unless they are told otherwise.
#[test]
fn a_post_is_delivered_to_whatever_takes_it_but_no_page() {
    let called = |kind: &str, body: &'static str| {
        let headers = [format!("Content-Type: {kind}"), format!("Content-Length: {}", body.len())];
        let server = TestServer::start(move |_| vec![answer("200 OK", &[&headers[0], &headers[1]], body.as_bytes())]);
        Http::new(&server.url(), &crate::fetch::options()).unwrap().post_json("{}")
    };
    for body in ["ok", "", "{\"received\":true}", "  \n"] {
        called("text/html; charset=utf-8", body).unwrap();
    }
    for body in ["<!doctype html><title>Login</title>", "\r\n <HTML>"] {
        assert_eq!(called("text/html", body).unwrap_err().kind(), FetchErrorKind::Protocol, "{body}");
    }
    called("application/xml", "<html>").unwrap();
}

/// Django, and Flask with `strict_slashes`, redirect from a path to the one with a slash, which no post follows.
#[test]
fn a_post_goes_to_the_url_as_it_is_written() {
    let server = TestServer::start(|_| status("204 No Content"));
    for path in ["/report", "/report/", "/report/?robot=7", "/report?next=/", ""] {
        Http::new(&format!("{}{path}", server.url()), &crate::fetch::options()).unwrap().post_json("{}").unwrap();
    }
    let paths: Vec<String> = server.requests().into_iter().map(|request| request.target().to_owned()).collect();
    assert_eq!(
        paths,
        ["/report", "/report/", "/report/?robot=7", "/report?next=/", ""].map(|path| format!("/release{path}"))
    );
}

// https://github.com/snoyberg/http-client/issues/521
#[test]
fn interim_answers_of_any_size_and_number_are_passed_over() {
    let hint = |bytes: usize| format!("HTTP/1.1 103 Early Hints\r\nLink: <{}>\r\n\r\n", "x".repeat(bytes));
    let cases = [
        "HTTP/1.1 100 Continue\r\n\r\n".to_owned(),
        "HTTP/1.1 100 Continue\r\nServer: with headers\r\n\r\n".repeat(40),
        "HTTP/1.1 102 Processing\r\n\r\n".repeat(2_000),
        hint(200_000),
        format!("{}{}", hint(40_000), hint(9).repeat(300)),
    ];
    for before in cases {
        let what = before[..20].to_owned();
        unnoticed(&what, move |request, content| {
            changed(request, content, |bytes| [before.as_bytes(), bytes].concat())
        });
    }
    let flood = TestServer::start(|_| (0..40_000).map(|_| Act::Send(vec![b'x'; 1_000])).collect());
    let error = Http::new(&flood.url(), &crate::fetch::options()).unwrap().get_small("a", 10).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Protocol, "{}", error.chain());
    let flood = TestServer::start(|_| {
        let first = Act::Send(b"HTTP/1.1 103 Early Hints\r\n".to_vec());
        std::iter::once(first).chain((0..20_000).map(|_| Act::Send(b"A: b\r\n".repeat(200)))).collect()
    });
    let error = Http::new(&flood.url(), &crate::fetch::options()).unwrap().get_small("a", 10).unwrap_err();
    assert!(error.chain().contains("interim answers"), "{}", error.chain());
}

// https://github.com/apache/opendal/issues/5689
#[test]
fn a_range_may_come_in_parts_aligned_or_as_the_whole_object() {
    let partial = |content: &[u8], from: usize, to: usize, more: &[&str]| {
        let part = &content[from..to];
        let length = format!("Content-Length: {}", part.len());
        let range = format!("Content-Range: bytes {from}-{}/{}", to - 1, content.len());
        let headers: Vec<&str> = [&[length.as_str(), range.as_str()], more].concat();
        Some(vec![answer("206 Partial Content", &headers, part)])
    };
    let in_parts = |server: TestServer| {
        // The roll-out that there is not, manifest, signature and index; the pack is never asked for as a whole.
        assert!(server.requests().iter().filter(|request| request.range().is_none()).count() <= 4);
    };
    in_parts(unnoticed("at most 100 kB at a time", move |request, content| {
        let (first, last) = request.range()?;
        partial(content, first, (last + 1).min(first + 100_000), &[])
    }));
    in_parts(unnoticed("blocks of 64 KiB", move |request, content| {
        let (first, last) = request.range()?;
        partial(content, first & !0xffff, ((last | 0xffff) + 1).min(content.len()), &[])
    }));
    unnoticed("the name of the unit in upper case", |request, content| {
        changed(request, content, |bytes| replaced(bytes, "Content-Range: bytes ", "Content-Range: Bytes="))
    });
    unnoticed("an unknown total", |request, content| {
        let total = format!("/{}\r\n", content.len());
        changed(request, content, move |bytes| replaced(bytes, &total, "/*\r\n"))
    });
    unnoticed("the length of the whole object", |request, content| {
        let (first, last) = request.range()?;
        let (right, wrong) = (last + 1 - first, content.len());
        let (right, wrong) = (format!("Content-Length: {right}\r"), format!("Content-Length: {wrong}\r"));
        then(changed(request, content, |bytes| replaced(bytes, &right, &wrong))?, [Act::Close])
    });
    unnoticed("the range without its head", |request, content| {
        let (first, last) = request.range()?;
        let part = &content[first..=last];
        Some(vec![answer("200 OK", &[&format!("Content-Length: {}", part.len())], part)])
    });
    // https://github.com/owncloud/client/issues/2280
    unnoticed("416 to every range", |request, _| request.range().map(|_| status("416 Range Not Satisfiable")));
    unnoticed("multipart for one range", |request, content| {
        let (first, last) = request.range()?;
        let head = format!("--x\r\nContent-Range: bytes {first}-{last}/{}\r\n\r\n", content.len());
        let body = [head.as_bytes(), &content[first..=last], b"\r\n--x--\r\n"].concat();
        let length = format!("Content-Length: {}", body.len());
        let kind = "Content-Type: multipart/byteranges; boundary=x";
        Some(vec![answer("206 Partial Content", &[&length, kind], &body)])
    });
}

#[test]
fn a_server_that_gives_crumbs_or_less_than_the_object_is_refused() {
    let crumbs = TestServer::start(|request| {
        let first = request.range().unwrap().0;
        let range = format!("Content-Range: bytes {first}-{first}/5000000");
        vec![answer("206 Partial Content", &["Content-Length: 1", &range], b"x")]
    });
    let http = Http::new(&crumbs.url(), &crate::fetch::options()).unwrap();
    let error = http.get_range("objects/00ff", 0..4_000_000, &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Protocol);
    assert!(error.to_string().contains("small parts after 65 of 4000000 bytes"), "{error}");
    assert!(crumbs.requests().len() < 100);
}

// https://github.com/versity/versitygw/issues/2398, https://github.com/noobaa/noobaa-core/issues/9138,
/// The server that comes with Python, which a technician starts beside a robot: it answers every range with everything.
#[test]
fn a_server_without_ranges_sends_an_object_once_or_twice_and_not_for_each_range() {
    let fixture = Fixture::with(sample_image(24 * 1024, 5), |spec| spec.chunk_bytes = Some(64 * 1024));
    let server = serving(fixture.tree(), |_, content| {
        Some(vec![answer("200 OK", &[&format!("Content-Length: {}", content.len())], content)])
    });
    let (relay, received) = addresses::counting_relay("127.0.0.1:0", server.address);
    let (result, retries) = flash(&fixture, &[format!("http://{relay}/release")]);
    let needed = result.unwrap().totals.download_bytes;
    assert!(retries.is_empty() && needed > 40 << 20, "{retries:?}");
    let received = received.load(Ordering::Relaxed);
    assert!(received < needed * 2, "{received} bytes for {needed}");
}

#[test]
fn a_chunked_body_that_is_never_ended_costs_its_time_once() {
    let fixture = release();
    let server = serving(fixture.tree(), |request, content| {
        if !request.target().contains("/objects/") {
            return None;
        }
        let mut acts = object(request, content);
        let [Act::Send(bytes)] = acts.as_mut_slice() else { return None };
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        let body = bytes.split_off(head);
        let head: Vec<&str> = std::str::from_utf8(bytes).unwrap().trim_end().split("\r\n").collect();
        let head: Vec<&str> = head.into_iter().filter(|line| !line.starts_with("Content-Length")).collect();
        let head = format!("{}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", head.join("\r\n"), body.len());
        *bytes = [head.as_bytes(), &body, b"\r\n"].concat();
        then(acts, [Act::Wait(Duration::from_secs(60))])
    });
    let began = std::time::Instant::now();
    let stall_timeout = Duration::from_secs(2);
    let (result, retries) =
        flash_with(&fixture, &[server.url()], &FetchOptions { stall_timeout, ..crate::fetch::options() });
    result.unwrap();
    assert!(retries.is_empty() && server.requests().len() > 4, "{retries:?}");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

// https://github.com/aws/aws-sdk-kotlin/issues/1358
#[test]
fn codings_that_encode_nothing_are_let_through_and_others_are_named() {
    for value in [
        "aws-chunked",
        "",
        "identity",
        "identity, aws-chunked",
        "binary",
        "utf-8",
        "none",
        "AWS-Chunked,identity",
        "zstd",
    ] {
        unnoticed(value, move |request, content| {
            changed(request, content, |bytes| replaced(bytes, "\r\n", &format!("\r\nContent-Encoding: {value}\r\n")))
        });
    }
    let fixture = release();
    for value in ["gzip", "deflate", "br", "compress", "identity, GZIP"] {
        let server = serving(fixture.tree(), move |request, content| {
            changed(request, content, |bytes| replaced(bytes, "\r\n", &format!("\r\nContent-Encoding: {value}\r\n")))
        });
        let error = flash(&fixture, &[server.url()]).0.unwrap_err();
        let name = value.rsplit(' ').next().unwrap().to_lowercase();
        assert!(error.is_retryable() && chain(&error).contains(&format!("encoded as {name:?}")), "{}", chain(&error));
    }
}

// https://github.com/acmesh-official/acme.sh/issues/7201, https://github.com/supabase/supabase-js/pull/2634
#[test]
fn a_pause_that_is_asked_for_as_a_date_is_kept_whatever_this_machines_clock_says() {
    let fixture = release();
    const DATE: &str = "Date: Sun, 06 Nov 1994 08:49:37 GMT";
    let pauses = |headers: &'static [&'static str]| {
        let server = serving(fixture.tree(), move |request, _| {
            // After the roll-out that there is not.
            (request.number == 1).then(|| vec![answer("429 Too Many Requests", headers, b"")])
        });
        let clock = FakeClock::new();
        let options = FetchOptions { clock: clock.shared(), ..crate::fetch::options() };
        flash_with(&fixture, &[server.url()], &options).0.unwrap();
        clock.pauses().iter().sum::<Duration>().as_secs()
    };
    assert_eq!(pauses(&["Content-Length: 0", DATE, "Retry-After: Sun, 06 Nov 1994 08:49:59 GMT"]), 22);
    assert_eq!(pauses(&["Content-Length: 0", DATE, "Retry-After: Mon, 06 Nov 1995 08:49:59 GMT"]), 600);
    assert_eq!(pauses(&["Content-Length: 0", "Retry-After: 31536000"]), 600);
    for useless in [
        &["Content-Length: 0", DATE, "Retry-After: Sat, 06 Nov 1993 08:49:59 GMT"][..],
        &["Content-Length: 0", "Retry-After: -100"],
        &["Content-Length: 0", "Retry-After: later"],
        &["Content-Length: 0"],
    ] {
        assert!(pauses(useless) <= 1, "{useless:?}");
    }
}

// https://github.com/Squirrel/Squirrel.Windows/issues/1324
#[test]
fn a_token_in_the_query_of_the_base_goes_behind_every_path() {
    let fixture = release();
    let server = serving(fixture.tree(), |request, _| {
        (!request.target().ends_with("?sv=1&sig=a/b%2F")).then(|| status("403 Forbidden"))
    });
    for slash in ["", "/"] {
        let url = format!("{}{slash}?sv=1&sig=a/b%2F", server.url());
        let disk = fixture.dir.path().join("disk");
        assert!(fixture.flash_by_hand(&[url], &disk, &[]));
        std::fs::remove_file(disk).unwrap();
    }
    let requests = server.requests();
    assert!(requests.iter().any(|request| request.target() == "/release/stable/manifest.json?sv=1&sig=a/b%2F"));
    // The path is shown, and the token is not.
    let error = flash(&fixture, &[format!("{}?sig=wrong", server.url())]).0.unwrap_err();
    let text = chain(&error);
    assert!(text.contains("/release/stable/manifest.json?...") && !text.contains("wrong"), "{text}");
    let Err(error) = open("http://h/release#main", &crate::fetch::options()) else { panic!("it was taken") };
    assert!(error.to_string().contains("#fragment"), "{error}");
}

// https://github.com/apify/proxy-chain/issues/108
#[test]
fn credentials_are_decoded_and_stay_with_their_server() {
    let fixture = release();
    let elsewhere = good(fixture.tree());
    let away = format!("{}/objects", elsewhere.url());
    // robot:p@ss:w/rd
    const BASIC: &str = "Basic cm9ib3Q6cEBzczp3L3Jk";
    let server = serving(fixture.tree(), move |request, _| {
        if request.header("authorization") != Some(BASIC) {
            return Some(status("401 Unauthorized"));
        }
        let to = |location: &str| {
            Some(vec![answer("307 Temporary Redirect", &["Content-Length: 0", &format!("Location: {location}")], b"")])
        };
        let target = request.target();
        match target.strip_prefix("/release/objects/") {
            Some(object) if object < "8" => to(&format!("{away}/{object}")),
            Some(_) if !target.contains('?') => to(&format!("{target}?again")),
            _ => None,
        }
    });
    let url = server.url().replace("http://", "http://robot:p%40ss%3Aw%2Frd@");
    flash(&fixture, std::slice::from_ref(&url)).0.unwrap();
    assert!(elsewhere.requests().iter().all(|request| request.header("authorization").is_none()));
    let wrong = flash(&fixture, &[server.url()]).0.unwrap_err();
    assert!(!wrong.is_retryable() && wrong.is_denied(), "{wrong:?}");
}

// https://github.com/sagebind/isahc/issues/315, https://github.com/iiab/iiab/issues/4437
#[test]
fn redirects_of_every_kind_lead_to_the_object() {
    let fixture = release();
    let signed = good(fixture.tree());
    let base = signed.url();
    for status in ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent"] {
        let base = base.clone();
        let server = serving(fixture.tree(), move |request, _| {
            let path = request.target().trim_start_matches("/release/").to_owned();
            let location = match request.number % 4 {
                _ if path.contains('?') => return None,
                0 => format!("Location: {base}/{path}?X-Signature=a&b=c#part"),
                1 => format!("location:   {}?two words and \u{e9}", request.target()),
                2 => format!("LOCATION: {}?x", path.rsplit('/').next().unwrap()),
                _ => format!("Location: //{}/{path}?y", base.trim_start_matches("http://")),
            };
            Some(vec![answer(status, &["Content-Length: 0", &location], b"")])
        });
        let (result, retries) = flash(&fixture, &[server.url()]);
        result.unwrap();
        assert!(retries.is_empty(), "{status}: {retries:?}");
    }
}

/// Answers a request for objects this way for the first `times` times, once some have been delivered.
fn denying(tree: PathBuf, line: &'static str, times: usize) -> TestServer {
    let (seen, denied) = (AtomicUsize::new(0), AtomicUsize::new(0));
    serving(tree, move |request, _| {
        let in_the_middle = request.target().contains("objects/") && seen.fetch_add(1, Ordering::SeqCst) > 0;
        (in_the_middle && denied.fetch_add(1, Ordering::SeqCst) < times).then(|| status(line))
    })
}

// https://github.com/screentinker/screentinker/issues/153, https://github.com/clearlinux/distribution/issues/3088
#[test]
fn a_refusal_in_the_middle_of_a_transfer_is_asked_again_before_it_decides_anything() {
    let fixture = release();
    let lines = [
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "407 Proxy Authentication Required",
        "410 Gone",
        "400 Bad Request",
        "421 Misdirected Request",
    ];
    for line in lines {
        for times in [1, 3] {
            let server = denying(fixture.tree(), line, times);
            let (result, retries) = flash(&fixture, &[server.url()]);
            result.unwrap_or_else(|error| panic!("{line} {times} times: {}", chain(&error)));
            assert!(!retries.is_empty(), "{line}");
        }
        // One that stays ends the attempt, and another attempt may help: the release may be another one by then.
        let server = denying(fixture.tree(), line, usize::MAX);
        let clock = FakeClock::new();
        let options = FetchOptions { clock: clock.shared(), ..crate::fetch::options() };
        let mirrors = open_all(&[server.url()], &options, RetryPolicy::Forever).unwrap();
        let target = MemoryTarget::new(vec![0; fixture.image.len()]);
        let error = fixture.recover(&mirrors, &target, None).unwrap_err();
        assert!(error.is_retryable() && error.is_denied(), "{line}: {error:?}");
        let paused: Duration = clock.pauses().iter().sum();
        // Of all connections together.
        assert!((7..300).contains(&paused.as_secs()), "{line}: {paused:?}");
    }
}

// https://github.com/ostreedev/ostree/pull/1612
#[test]
fn a_signature_that_is_not_there_yet_is_waited_for() {
    let fixture = release();
    let missing = AtomicUsize::new(0);
    let server = serving(fixture.tree(), move |request, _| {
        let is_early = request.target().ends_with(".minisig") && missing.fetch_add(1, Ordering::SeqCst) < 2;
        is_early.then(|| status("404 Not Found"))
    });
    flash(&fixture, &[server.url()]).0.unwrap();
}

// https://github.com/miurahr/aqtinstall/pull/518, https://github.com/SUSE/rmt/issues/97
#[test]
fn a_web_page_in_place_of_a_file_is_called_that_and_passes() {
    const PAGE: &[u8] = b"\n<!DOCTYPE html><html><body>Please log in</body></html>";
    let fixture = release();
    let page = || Some(vec![answer("200 OK", &["Content-Type: text/html", "Connection: close"], PAGE), Act::Close]);
    let sized = || {
        let length = format!("Content-Length: {}", PAGE.len());
        Some(vec![answer("200 OK", &["Content-Type: text/html; charset=utf-8", &length], PAGE)])
    };
    let server = serving(fixture.tree(), move |_, _| page());
    let error = flash(&fixture, &[server.url()]).0.unwrap_err();
    assert!(error.is_retryable() && chain(&error).contains("web page, as of a captive portal"), "{}", chain(&error));
    // From the middle on, in place of a pack; after a while somebody logs in.
    let pages = AtomicUsize::new(0);
    let server = serving(fixture.tree(), move |request, _| {
        request.range()?;
        match pages.fetch_add(1, Ordering::SeqCst) {
            0 => page(),
            1 => sized(),
            _ => None,
        }
    });
    let (result, retries) = flash(&fixture, &[server.url()]);
    result.unwrap();
    assert!(retries.iter().all(|retry| retry.contains("web page")) && !retries.is_empty(), "{retries:?}");
    let wanted = TestServer::start(|_| status("511 Network Authentication Required"));
    let error = flash(&fixture, &[wanted.url()]).0.unwrap_err();
    assert!(error.is_retryable() && chain(&error).contains("login page"), "{}", chain(&error));
    // A server that calls everything without an extension a page is taken at its bytes.
    unnoticed("objects called text/html", |request, content| {
        changed(request, content, |bytes| replaced(bytes, "\r\n", "\r\nContent-Type: text/html\r\n"))
    });
}

#[test]
fn odd_but_legal_answers_are_taken() {
    let body_of = |bytes: &[u8]| bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let without_length = |bytes: &[u8]| {
        let head = String::from_utf8_lossy(&bytes[..bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4])
            .into_owned();
        let kept: Vec<&str> = head.split("\r\n").filter(|line| !line.starts_with("Content-Length")).collect();
        kept.join("\r\n")
    };
    unnoticed("HTTP/1.0", |request, content| {
        then(changed(request, content, |bytes| replaced(bytes, "HTTP/1.1", "HTTP/1.0"))?, [Act::Close])
    });
    unnoticed("no length", move |request, content| {
        let change = |bytes: &[u8]| [without_length(bytes).as_bytes(), &bytes[body_of(bytes)..]].concat();
        then(changed(request, content, change)?, [Act::Close])
    });
    unnoticed("Transfer-Encoding: identity", move |request, content| {
        let change = |bytes: &[u8]| {
            let head = without_length(bytes).replacen("\r\n", "\r\nTransfer-Encoding: identity\r\n", 1);
            [head.as_bytes(), &bytes[body_of(bytes)..]].concat()
        };
        then(changed(request, content, change)?, [Act::Close])
    });
    unnoticed("chunked with trailers", move |request, content| {
        changed(request, content, |bytes| {
            let mut out = without_length(bytes).replacen("\r\n", "\r\nTransfer-Encoding: Chunked\r\n", 1).into_bytes();
            for chunk in bytes[body_of(bytes)..].chunks(30_000) {
                out.extend_from_slice(format!("{:X};a=b\r\n", chunk.len()).as_bytes());
                out.extend_from_slice(chunk);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\nX-Trailer: 1\r\nX-More: 2\r\n\r\n");
            out
        })
    });
    unnoticed("header names in odd case, no reason, line feeds alone", |request, content| {
        changed(request, content, |bytes| {
            let at = bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
            let head = String::from_utf8_lossy(&bytes[..at]).replace("\r\n", "\n").replace("Content-", "cONTENT-");
            let head = head.replace(" Partial Content", "").replace(" OK", "");
            [head.as_bytes(), b"\n\n", &bytes[at + 4..]].concat()
        })
    });
    unnoticed("many headers and a large cookie", |request, content| {
        let more: String = (0..100).map(|number| format!("X-{number}: y\r\n")).collect();
        let more = format!("\r\n{more}Set-Cookie: {}\r\n", "z".repeat(10_000));
        changed(request, content, move |bytes| replaced(bytes, "\r\n", &more))
    });
}

#[test]
fn a_line_that_breaks_in_every_way_costs_no_byte_twice() {
    let fixture = release();
    let sent = Arc::new(AtomicUsize::new(0));
    let bytes = Arc::clone(&sent);
    let server = serving(fixture.tree(), move |request, content| {
        let (first, last) = request.range()?;
        let body = (last + 1 - first).min(150_000);
        bytes.fetch_add(body, Ordering::SeqCst);
        let mut acts = crate::support::server::cut(request, content, body);
        acts.pop();
        // A reset would drop what is on its way, if nothing had read it.
        let end = if request.number % 2 == 0 { Act::Close } else { Act::Reset };
        then(acts, [Act::Wait(Duration::from_millis(50)), end])
    });
    let (result, _) = flash(&fixture, &[server.url()]);
    let report = result.unwrap();
    // What is blank knows no digest, neither of the index nor of a frame.
    let image = &fixture.released.manifest.images[0];
    let frames = image.frames.unwrap();
    let digests = [image.parts.as_ref().unwrap().digests, frames.sums, frames.digests].map(|it| it.size_bytes);
    assert_eq!(sent.load(Ordering::SeqCst) as u64, report.totals.download_bytes + digests.iter().sum::<u64>());
}

// https://github.com/rustls/webpki/issues/205, https://github.com/confidential-containers/guest-components/pull/1569
#[test]
fn a_certificate_of_an_authority_in_place_of_a_servers_is_called_that() {
    let (config, file) = authority_as_server("127.0.0.1");
    let server = TestServer::start_tls(config, |_| vec![]);
    let options = FetchOptions { ca_file: Some(file.path().to_owned()), ..crate::fetch::options() };
    let error = open(&server.url(), &options).unwrap().get_small("a", 9).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Tls);
    assert!(error.chain().contains("CA:FALSE"), "{}", error.chain());
}

// https://github.com/pantsbuild/pants/issues/12000
#[test]
fn a_ca_file_is_read_in_the_forms_that_people_have() {
    let authority = Authority::new();
    let fixture = release();
    let tree = fixture.tree();
    let server = TestServer::start_tls(authority.issue("127.0.0.1", ALWAYS), move |request| {
        let path = request.target().trim_start_matches("/release/");
        std::fs::read(tree.join(path)).map_or_else(|_| status("404 Not Found"), |content| object(request, &content))
    });
    let pem = std::fs::read_to_string(authority.file.path()).unwrap();
    let trusting = |content: &[u8]| {
        let file = fixture.dir.path().join("ca.pem");
        std::fs::write(&file, content).unwrap();
        FetchOptions { ca_file: Some(file), ..crate::fetch::options() }
    };
    for text in [format!("\u{feff}{pem}"), pem.replace('\n', "\r\n"), pem.replace("CERTIFICATE", "X509 CERTIFICATE")] {
        flash_with(&fixture, &[server.url()], &trusting(text.as_bytes())).0.unwrap();
    }
    let trusted = pem.replace("CERTIFICATE", "TRUSTED CERTIFICATE");
    let Err(error) = open(&server.url(), &trusting(trusted.as_bytes())) else { panic!("it was taken") };
    assert!(error.to_string().contains("TRUSTED CERTIFICATE"), "{error}");
}
