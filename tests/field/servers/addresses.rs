//! Hosts with several addresses, of which the first ones take every connection and do not serve.

use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reflash::fetch::{FetchOptions, Http, Source};

use super::{changed, flash, flash_with, good, release, serving};
use crate::support::isolated::{isolated, run};
use crate::support::server::{TestServer, object, status};
use crate::support::tls::{ALWAYS, Authority};

const HOST: &str = "release.test";

/// What an address does with a connection.
#[derive(Clone, Copy, Debug)]
enum Habit {
    Closes,
    Resets,
    Silent,
    /// Says something that is neither HTTP nor TLS.
    Babbles,
    /// Answers each request with this status and this body.
    Answers(&'static str, &'static str),
}

/// Listens on 127.0.0.2 and so on, as many as there are habits, at this port.
fn listen(port: u16, habits: &[Habit]) {
    for (number, habit) in habits.iter().copied().enumerate() {
        let listener = TcpListener::bind(format!("127.0.0.{}:{port}", number + 2)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    if let Habit::Resets = habit {
                        let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &at_once).unwrap();
                    }
                    if let Habit::Babbles = habit {
                        let _ = stream.read(&mut [0; 1000]);
                        let _ = std::io::Write::write_all(&mut stream, b"220 mail.test ESMTP\r\n");
                    }
                    while let Habit::Answers(status, body) = habit
                        && stream.read(&mut [0; 4000]).is_ok_and(|bytes| bytes > 0)
                    {
                        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
                        let _ = std::io::Write::write_all(
                            &mut stream,
                            [head.as_bytes(), body.as_bytes()].concat().as_slice(),
                        );
                    }
                    if let Habit::Silent = habit {
                        std::thread::sleep(Duration::from_secs(60));
                    }
                });
            }
        });
    }
}

/// Lets the name have so many bad addresses, and 127.0.0.1 after them.
fn name(bad: usize) {
    let hosts: String = (2..2 + bad).chain([1]).map(|number| format!("127.0.0.{number} {HOST}\n")).collect();
    std::fs::write("/run/hosts", hosts).unwrap();
}

// https://github.com/microsoft/playwright/pull/42207,
// https://github.com/ietf-wg-happy/draft-happy-eyeballs-v3/issues/104
#[test]
#[ignore = "needs root: a table of hosts of its own"]
fn addresses_that_take_connections_and_do_not_serve_are_left_for_the_next() {
    isolated(
        "field::servers::addresses::addresses_that_take_connections_and_do_not_serve_are_left_for_the_next",
        || {
            std::fs::write("/run/hosts", "").unwrap();
            run("mount", &["--bind", "/run/hosts", "/etc/hosts"]);
            run("ip", &["link", "set", "lo", "up"]);
            let fixture = release();
            let authority = Authority::new();
            let trusting = FetchOptions { ca_file: Some(authority.file.path().to_owned()), ..crate::fetch::options() };
            for habits in
                [&[Habit::Closes; 8][..], &[Habit::Resets; 8], &[Habit::Silent], &[Habit::Babbles, Habit::Closes]]
            {
                name(habits.len());
                let plain = good(fixture.tree());
                let tree = fixture.tree();
                let tls = TestServer::start_tls(authority.issue(HOST, ALWAYS), move |request| {
                    let path = tree.join(request.target().trim_start_matches("/release/"));
                    std::fs::read(path).map_or_else(|_| status("404 Not Found"), |content| object(request, &content))
                });
                for server in [&plain, &tls] {
                    listen(server.address.port(), habits);
                    let began = Instant::now();
                    let url = server.url().replace("127.0.0.1", HOST);
                    // What babbles HTTP's port is an answer, and one for the mirrors to judge.
                    if url.starts_with("http:") && matches!(habits, [Habit::Babbles, ..]) {
                        continue;
                    }
                    let (result, retries) = flash_with(&fixture, &[url], &trusting);
                    result.unwrap_or_else(|error| panic!("{habits:?}: {}", reflash::chain::chain(&error)));
                    assert!(retries.is_empty(), "{habits:?}: {retries:?}");
                    // The bad ones were tried by one or more connections, and not by every one.
                    assert!(began.elapsed() < Duration::from_secs(12), "{habits:?}: {:?}", began.elapsed());
                }
            }
        },
    );
}

// https://github.com/tuna/issues/issues/232, https://github.com/canonical/ubuntu.com/issues/16420,
// https://github.com/canonical-web-and-design/www.canonical.com/issues/261
#[test]
#[ignore = "needs root: a table of hosts of its own"]
fn addresses_that_answer_with_something_of_no_use_are_left_for_the_next() {
    isolated("field::servers::addresses::addresses_that_answer_with_something_of_no_use_are_left_for_the_next", || {
        std::fs::write("/run/hosts", "").unwrap();
        run("mount", &["--bind", "/run/hosts", "/etc/hosts"]);
        run("ip", &["link", "set", "lo", "up"]);
        let fixture = release();
        const PAGE: &str = "<html><body>Log in</body></html>";
        for habits in [
            // What a name server that lies leads to, and one of several machines that lost its disk or its service.
            &[Habit::Answers("200 OK", PAGE)][..],
            &[Habit::Answers("404 Not Found", "")],
            &[Habit::Answers("403 Forbidden", ""), Habit::Answers("410 Gone", "")],
            &[Habit::Answers("500 Internal Server Error", "")],
            &[Habit::Answers("503 Service Unavailable", ""), Habit::Closes],
            &[Habit::Answers("200 OK", "{}")],
            &[Habit::Answers("206 Partial Content", "x"), Habit::Answers("302 Found", ""), Habit::Babbles],
        ] {
            name(habits.len());
            let server = good(fixture.tree());
            listen(server.address.port(), habits);
            let url = server.url().replace("127.0.0.1", HOST);
            let (result, retries) = flash_with(&fixture, &[url], &crate::fetch::options());
            result.unwrap_or_else(|error| panic!("{habits:?}: {}", reflash::chain::chain(&error)));
            assert!(retries.is_empty(), "{habits:?}: {retries:?}");
        }
        // More of them than are asked without a pause.
        name(8);
        let server = good(fixture.tree());
        listen(server.address.port(), &[Habit::Answers("200 OK", PAGE); 8]);
        let url = server.url().replace("127.0.0.1", HOST);
        let (result, retries) = flash(&fixture, &[url]);
        result.unwrap();
        assert!(retries.len() <= 2, "{retries:?}");
    });
}

#[test]
#[ignore = "needs root: a table of hosts of its own"]
fn one_machine_behind_a_name_that_delivers_damaged_packs_is_left_for_the_next() {
    isolated(
        "field::servers::addresses::one_machine_behind_a_name_that_delivers_damaged_packs_is_left_for_the_next",
        || {
            std::fs::write("/run/hosts", "").unwrap();
            run("mount", &["--bind", "/run/hosts", "/etc/hosts"]);
            run("ip", &["link", "set", "lo", "up"]);
            name(1);
            let fixture = release();
            let whole = good(fixture.tree());
            let damaged = serving(fixture.tree(), |request, content| {
                request.range()?;
                changed(request, content, |bytes| {
                    let mut bytes = bytes.to_vec();
                    bytes.iter_mut().rev().take(10).for_each(|byte| *byte ^= 1);
                    bytes
                })
            });
            relay(&format!("127.0.0.2:{}", whole.address.port()), damaged.address);
            let url = whole.url().replace("127.0.0.1", HOST);
            let (result, retries) = flash(&fixture, &[url]);
            result.unwrap();
            assert!(!damaged.requests().is_empty() && retries.len() <= 3, "{retries:?}");
        },
    );
}

/// A tree without roll-outs answers 404 to the first request of every look, and of two name servers one may be dead.
#[test]
#[ignore = "needs root: name servers of its own"]
fn a_file_that_is_not_there_costs_the_silence_of_a_name_server_once() {
    isolated("field::servers::addresses::a_file_that_is_not_there_costs_the_silence_of_a_name_server_once", || {
        run("ip", &["link", "set", "lo", "up"]);
        std::fs::write("/run/resolv.conf", "nameserver 127.0.0.1\nnameserver 127.0.0.9\n").unwrap();
        run("mount", &["--bind", "/run/resolv.conf", "/etc/resolv.conf"]);
        let _silent = UdpSocket::bind("127.0.0.9:53").unwrap();
        name_server(UdpSocket::bind("127.0.0.1:53").unwrap());
        let server = TestServer::start(|request| match request.target() {
            "/release/there" => object(request, b"content"),
            _ => status("404 Not Found"),
        });
        let http = Http::new(&server.url().replace("127.0.0.1", HOST), &crate::fetch::options()).unwrap();
        let began = Instant::now();
        for _ in 0..3 {
            http.get_checked(&[("missing", 100)], &mut |_| Ok(())).unwrap_err();
            http.get_checked(&[("there", 100)], &mut |_| Ok(())).unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    });
}

/// Answers every question for an IPv4 address with 127.0.0.1, and any other with no record.
fn name_server(socket: UdpSocket) {
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut answer = buffer[..length].to_vec();
            answer[2] |= 0x80;
            if buffer[length - 3] == 1 {
                answer[7] = 1;
                answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
}

/// Passes connections to an address on to another one.
pub(super) fn relay(from: &str, to: SocketAddr) -> SocketAddr {
    counting_relay(from, to).0
}

/// Passes connections to an address on to another one, and counts the bytes that come back.
pub(super) fn counting_relay(from: &str, to: SocketAddr) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind(from).unwrap();
    let address = listener.local_addr().unwrap();
    let counted = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&counted);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(to).unwrap());
            let (there, back) = ((client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client));
            for ((mut from, mut to), counts) in [(there, false), (back, true)] {
                let counter = Arc::clone(&counter);
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(bytes) = from.read(&mut buffer)
                        && bytes > 0
                        && std::io::Write::write_all(&mut to, &buffer[..bytes]).is_ok()
                    {
                        counter.fetch_add(if counts { bytes as u64 } else { 0 }, Ordering::Relaxed);
                    }
                    let _ = from.shutdown(Shutdown::Read);
                    to.shutdown(Shutdown::Write)
                });
            }
        }
    });
    (address, counted)
}

#[test]
#[ignore = "needs root: IPv6 of its own"]
fn a_proxy_and_a_server_may_have_an_ipv6_address() {
    isolated("field::servers::addresses::a_proxy_and_a_server_may_have_an_ipv6_address", || {
        run("ip", &["link", "set", "lo", "up"]);
        let fixture = release();
        // A server that is a proxy too: it takes requests in absolute form.
        let tree = fixture.tree();
        let server = TestServer::start(move |request| {
            let path = request.target().rsplit("/release/").next().unwrap_or_default().to_owned();
            std::fs::read(tree.join(path)).map_or_else(|_| status("404 Not Found"), |content| object(request, &content))
        });
        let six = relay("[::1]:0", server.address);
        let direct = crate::fetch::options();
        flash_with(&fixture, &[format!("http://{six}/release")], &direct).0.unwrap();
        let through = FetchOptions { proxy: Some(format!("http://{six}")), ..direct };
        flash_with(&fixture, &["http://[2001:db8::1]:81/release".to_owned()], &through).0.unwrap();
        assert!(server.requests().last().unwrap().target().starts_with("http://[2001:db8::1]:81/release/"));
    });
}
