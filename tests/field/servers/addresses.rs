//! Hosts with several addresses, of which the first ones take every connection and do not serve.

use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use reflash::fetch::FetchOptions;

use super::{flash_with, good, release};
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

/// Passes connections to an address on to another one.
pub(super) fn relay(from: &str, to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(from).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(to).unwrap());
            for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    to.shutdown(Shutdown::Write)
                });
            }
        }
    });
    address
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
