//! Heads and frames of answers as old devices, balancers and stores send them. curl takes all of these.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reflash::chain::chain;
use reflash::fetch::{FetchOptions, RetryPolicy, open_all};

use super::{changed, flash, flash_with, good, release, replaced, serving, then, unnoticed};
use crate::support::server::{Act, TestServer, answer, cut, object, status};
use crate::support::tls::{ALWAYS, Authority};

/// The head and the body of a good answer.
fn parts(bytes: &[u8]) -> (String, &[u8]) {
    let end = bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    (String::from_utf8(bytes[..end].to_vec()).unwrap(), &bytes[end..])
}

/// The head without its length.
fn without_length(head: &str) -> String {
    head.split("\r\n").filter(|line| !line.starts_with("Content-Length")).collect::<Vec<_>>().join("\r\n")
}

/// The good answer in chunks with these frames.
fn chunked(bytes: &[u8], extension: &str, line_end: &str, version: &str) -> Vec<u8> {
    let (head, body) = parts(bytes);
    let head = without_length(&head).replacen("\r\n", "\r\nTransfer-Encoding: chunked\r\n", 1);
    let mut out = head.replacen("HTTP/1.1", version, 1).into_bytes();
    for chunk in body.chunks(30_000) {
        out.extend_from_slice(format!("{:x}{extension}{line_end}", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(line_end.as_bytes());
    }
    out.extend_from_slice(format!("0{extension}{line_end}X-Sum: 1{line_end}{line_end}").as_bytes());
    out
}

// https://github.com/seanmonstar/httparse/issues/68, https://github.com/SergejJurecko/mio_httpc/issues/32,
// https://github.com/oven-sh/bun/pull/34923
#[test]
fn heads_of_every_form_are_read() {
    for (what, from, to) in [
        ("lower case", "HTTP/1.1", "http/1.1"),
        ("a later version", "HTTP/1.1", "HTTP/2"),
        ("two blanks", "HTTP/1.1 20", "HTTP/1.1  20"),
        ("folded lines", "Content-Length: ", "X-Why: a\r\n b\r\n\tc\r\nContent-Length:\r\n  "),
        ("a blank before the colon", "Content-Length: ", "Content-Length : "),
        ("no colon", "Content-Length", "this is no header\r\nContent-Length"),
        ("names that are none", "Content-Length", "X (old): 1\r\n: 2\r\nContent-Length"),
        ("control characters", "Content-Length", "X-Binary: \u{1}\u{7f}\0\r\nContent-Length"),
        ("an empty line in front", "HTTP/1.1", "\r\nHTTP/1.1"),
    ] {
        unnoticed(what, move |request, content| changed(request, content, |bytes| replaced(bytes, from, to)));
    }
    for (what, more) in [
        ("1000 headers", (0..1_000).map(|number| format!("X-{number}: y\r\n")).collect::<String>()),
        ("a cookie of 60 KiB", format!("Set-Cookie: {}\r\n", "z".repeat(60 << 10))),
        ("300 KiB", format!("X-Policy: {}\r\n", "y".repeat(6_000)).repeat(50)),
    ] {
        unnoticed(what, move |request, content| {
            changed(request, content, |bytes| replaced(bytes, "\r\n", &format!("\r\n{more}")))
        });
    }
    unnoticed("in small pieces", |request, content| {
        let mut acts = object(request, content);
        let Act::Send(bytes) = acts.remove(0) else { panic!() };
        let (head, body) = parts(&bytes);
        let head =
            head.as_bytes().chunks(9).flat_map(|part| [Act::Send(part.to_vec()), Act::Wait(Duration::from_millis(2))]);
        Some(head.chain([Act::Send(body.to_vec())]).collect())
    });
    unnoticed("a line end behind the body", |request, content| {
        then(object(request, content), [Act::Send(b"\r\n".to_vec())])
    });
}

// https://github.com/nodejs/node/issues/6517, https://github.com/boostorg/beast/issues/1880,
// https://github.com/NanoHttpd/nanohttpd/issues/395
#[test]
fn a_length_that_is_repeated_or_makes_no_sense_costs_nothing() {
    unnoticed("twice", |request, content| {
        changed(request, content, |bytes| {
            let (head, body) = parts(bytes);
            let line = head.lines().find(|line| line.starts_with("Content-Length")).unwrap().to_owned();
            [head.replace(&line, &format!("{line}\r\n{line}")).as_bytes(), body].concat()
        })
    });
    unnoticed("a list", |request, content| {
        changed(request, content, |bytes| {
            let (head, body) = parts(bytes);
            let list = format!("Content-Length: {}, {}", body.len(), body.len());
            [without_length(&head).replacen("\r\n", &format!("\r\n{list}\r\n"), 1).as_bytes(), body].concat()
        })
    });
    unnoticed("no number", |request, content| {
        let acts = changed(request, content, |bytes| replaced(bytes, "Content-Length: ", "Content-Length: -"));
        then(acts?, [Act::Close])
    });
    unnoticed("chunked, with a length that is wrong", |request, content| {
        changed(request, content, |bytes| {
            replaced(&chunked(bytes, "", "\r\n", "HTTP/1.1"), "\r\n", "\r\nContent-Length: 7\r\n")
        })
    });
}

// https://github.com/reactphp/http/issues/505
#[test]
fn chunks_with_frames_of_every_form_are_read() {
    let signature = format!(";chunk-signature={}", "0".repeat(64));
    for (extension, line_end, version) in
        [(signature.as_str(), "\r\n", "HTTP/1.1"), ("  ", "\n", "HTTP/1.1"), (";a=\"b\"", "\r\n", "HTTP/1.0")]
    {
        let extension = extension.to_owned();
        unnoticed(&extension.clone(), move |request, content| {
            let acts = changed(request, content, |bytes| chunked(bytes, &extension, line_end, version))?;
            if version == "HTTP/1.0" { then(acts, [Act::Close]) } else { Some(acts) }
        });
    }
    // Wrong sizes, and an end in the middle of a frame, once each.
    let fixture = release();
    for (from, to) in [("\r\n7530\r\n", "\r\n7531\r\n"), ("\r\n7530\r\n", "\r\nxyz\r\n"), ("\r\n0\r\nX-Sum", "\r\n9")] {
        let wrong = AtomicUsize::new(0);
        let server = serving(fixture.tree(), move |request, content| {
            request.range()?;
            let is_wrong = wrong.fetch_add(1, Ordering::SeqCst) == 0;
            let change = |bytes: &[u8]| replaced(&chunked(bytes, "", "\r\n", "HTTP/1.1"), from, to);
            if is_wrong { then(changed(request, content, change)?, [Act::Close]) } else { None }
        });
        flash(&fixture, &[server.url()]).0.unwrap_or_else(|error| panic!("{to:?}: {}", chain(&error)));
    }
}

// https://github.com/razzamatazm/mustarrd/pull/146, https://github.com/jizhi0v0/duo-updater/pull/245
#[test]
fn answers_with_an_unusual_status_are_read() {
    unnoticed("203", |request, content| {
        request
            .range()
            .is_none()
            .then(|| changed(request, content, |bytes| replaced(bytes, "200 OK", "203 Changed")))?
    });
    unnoticed("203 to a range", |request, content| {
        request.range()?;
        let length = format!("Content-Length: {}", content.len());
        Some(vec![answer("203 Non-Authoritative Information", &[&length], content)])
    });
    unnoticed("206 to everything", |request, content| {
        let range = format!("206 Partial Content\r\nContent-Range: bytes 0-{}/{}", content.len() - 1, content.len());
        changed(request, content, |bytes| replaced(bytes, "200 OK", &range))
    });
    unnoticed("206 without a range", |request, content| {
        changed(request, content, |bytes| replaced(bytes, "Content-Range", "X-Range"))
    });
    unnoticed("206 without a range, and everything", |request, content| {
        request.range()?;
        let length = format!("Content-Length: {}", content.len());
        Some(vec![answer("206 Partial Content", &[&length], content)])
    });
    unnoticed("a range without a total", |request, content| {
        let total = format!("/{}\r\n", content.len());
        changed(request, content, |bytes| replaced(bytes, &total, "\r\n"))
    });
}

// https://github.com/AsyncHttpClient/async-http-client/issues/329, https://github.com/request/request/issues/2981
#[test]
fn redirects_over_many_stations_and_up_the_path_lead_to_the_object() {
    unnoticed("8 stations", |request, _| {
        let (path, station) = request.target().split_once("?station=").unwrap_or((request.target(), "0"));
        let station: u32 = station.parse().unwrap();
        let location = format!("Location: {path}?station={}", station + 1);
        (station < 8).then(|| vec![answer("302 Found", &["Content-Length: 4", &location], b"gone")])
    });
    unnoticed("300, up and down", |request, _| {
        let path = request.target();
        let up = format!("Location: ../.././release/x/..{}?y=/../z", path.trim_start_matches("/release"));
        (!path.contains('?')).then(|| vec![answer("300 Multiple Choices", &["Content-Length: 0", &up], b"")])
    });
}

// https://github.com/seanmonstar/reqwest/issues/2802, https://github.com/rustls/rustls/pull/779
#[test]
fn tls_that_ends_without_a_goodbye_ends_the_answer_or_is_resumed() {
    let (authority, fixture) = (Authority::new(), release());
    let options = FetchOptions { ca_file: Some(authority.file.path().to_owned()), ..crate::fetch::options() };
    for cuts in [false, true] {
        let (tree, seen) = (fixture.tree(), AtomicUsize::new(0));
        let server = TestServer::start_tls(authority.issue("127.0.0.1", ALWAYS), move |request| {
            let path = tree.join(request.target().trim_start_matches("/release/"));
            let Ok(content) = std::fs::read(path) else { return status("404 Not Found") };
            let is_cut = cuts && request.range().is_some() && content.len() > 100_000;
            if is_cut && seen.fetch_add(1, Ordering::SeqCst) < 3 {
                return cut(request, &content, 100_000);
            }
            let change = |bytes: &[u8]| {
                let (head, body) = parts(bytes);
                [without_length(&head).as_bytes(), body].concat()
            };
            then(changed(request, &content, change).unwrap(), [Act::Close]).unwrap()
        });
        let (result, retries) = flash_with(&fixture, &[server.url()], &options);
        result.unwrap();
        assert_eq!(retries.is_empty(), !cuts, "{retries:?}");
    }
}

/// A server that trickles what rustls has to have whole.
#[test]
fn tls_that_trickles_is_left_for_the_next_mirror() {
    use std::io::{Read, Write};
    let fixture = release();
    let good = good(fixture.tree());
    // A record of a handshake that never becomes whole.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let trickling = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 1000]);
                let head = [&[22, 3, 3, 0x3f, 0xff, 2, 0, 0x3f, 0xfb][..], &[3; 200]].concat();
                for byte in head {
                    if stream.write_all(&[byte]).is_err() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(300));
                }
            });
        }
    });
    let began = std::time::Instant::now();
    let urls = [format!("https://{trickling}/release"), good.url()];
    flash_with(&fixture, &urls, &crate::fetch::options()).0.unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

// https://github.com/screentinker/screentinker/issues/153
#[test]
fn a_refusal_of_the_very_first_request_is_asked_again_and_then_believed() {
    let fixture = release();
    for line in ["403 Forbidden", "404 Not Found", "401 Unauthorized"] {
        // The roll-out comes first, which the channel may well not have.
        let server = serving(fixture.tree(), move |request, _| (request.number < 3).then(|| status(line)));
        flash(&fixture, &[server.url()]).0.unwrap();
        let refusing = TestServer::start(move |_| status(line));
        let mirrors = open_all(&[refusing.url()], &crate::fetch::options(), RetryPolicy::Forever).unwrap();
        let target = crate::support::MemoryTarget::new(vec![0; fixture.image.len()]);
        let error = fixture.recover(&mirrors, &target, None).unwrap_err();
        assert!(!error.is_retryable() && error.is_denied(), "{}", chain(&error));
        assert_eq!(refusing.requests().len(), 4, "{line}");
        // Another mirror is asked at once.
        let other = good(fixture.tree());
        flash(&fixture, &[refusing.url(), other.url()]).0.unwrap();
    }
}

/// An edge that has another object under the name, every other time.
#[test]
fn another_objects_bytes_are_noticed_and_asked_for_again() {
    let fixture = release();
    let wrong = AtomicUsize::new(0);
    let server = serving(fixture.tree(), move |request, content| {
        request.target().contains("objects/").then_some(())?;
        let other: Vec<u8> = content.iter().map(|byte| byte ^ 1).collect();
        wrong.fetch_add(1, Ordering::SeqCst).is_multiple_of(2).then(|| object(request, &other))
    });
    let (result, retries) = flash(&fixture, &[server.url()]);
    result.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(!retries.is_empty());
}
