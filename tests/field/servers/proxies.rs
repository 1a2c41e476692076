//! Proxies between a robot and its servers.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use reflash::fetch::{FetchError, FetchErrorKind, FetchOptions, Http, open};
use reflash::machine::config::{Config, Layer};
use reflash::record::event::Event;
use reflash::record::journal::Journal;
use reflash::record::report::{Ending, Poster, ReportedMachine};

use crate::support::server::{Proxy, TestServer, answer, object, status};
use crate::support::tls::{ALWAYS, Authority};

fn through(proxy: SocketAddr) -> FetchOptions {
    FetchOptions { proxy: Some(format!("http://robot:secret@{proxy}")), ..crate::fetch::options() }
}

fn asked(url: &str, proxy: SocketAddr) -> FetchError {
    let source = open(url, &through(proxy)).unwrap();
    let error = source.get_small("stable/manifest.json", 100).unwrap_err();
    assert!(!error.chain().contains("secret"), "{}", error.chain());
    error
}

// https://github.com/ThomasKaiser/sbc-bench/issues/9
#[test]
fn a_report_passes_the_proxy_that_downloads_pass() {
    let station = TestServer::start(|_| status("204 No Content"));
    let proxy = Proxy::start(station.address);
    let http = Http::new("http://user:pa%24s@station.invalid:8080/report?key=1", &through(proxy.address)).unwrap();
    // The second one is larger than what is sent at a time.
    for document in ["{}".to_owned(), format!("[\"{}\"]", "x".repeat(100_000))] {
        http.post_json(&document).unwrap();
        let request = station.requests().pop().unwrap();
        assert_eq!(request.line, "POST /report?key=1 HTTP/1.1");
        assert!(request.body == document.as_bytes());
        // user:pa$s
        assert_eq!(request.header("authorization"), Some("Basic dXNlcjpwYSRz"));
    }
    assert_eq!(proxy.requests()[0].line, "POST http://station.invalid:8080/report?key=1 HTTP/1.1");
    assert!(proxy.requests().iter().all(|request| request.header("proxy-authorization").is_some()));
    let refusing = TestServer::start(|_| status("403 Forbidden"));
    let error = Http::new("http://h.invalid/r", &through(refusing.address)).unwrap().post_json("{}").unwrap_err();
    assert!(error.to_string().contains(&format!("proxy {}", refusing.address)), "{error}");
}

// https://github.com/psf/requests/issues/3296, https://github.com/lostisland/faraday/issues/790
#[test]
fn each_redirect_goes_through_the_proxy_or_not_by_where_it_leads() {
    let server = TestServer::start(|request| object(request, b"{}"));
    let proxied = Proxy::start(server.address);
    let near = TestServer::start(|_| {
        vec![answer("302 Found", &["Location: http://far.invalid/stable/manifest.json", "Content-Length: 0"], b"")]
    });
    let options = |exception: &str, proxy| FetchOptions {
        no_proxy: Config::resolve(
            Layer::parse(
                "site",
                &format!(
                    "[release]\nurls = ['http://a/']\n[machine]\nproduct = 'x'\n[network]\nno_proxy = ['{exception}']\n"
                ),
            )
            .unwrap(),
        )
        .unwrap()
        .network
        .no_proxy,
        ..through(proxy)
    };
    let near_first = open(&near.url(), &options("127.0.0.1", proxied.address)).unwrap();
    assert_eq!(near_first.get_small("stable/manifest.json", 100).unwrap(), b"{}");
    assert_eq!((near.requests().len(), proxied.requests().len()), (1, 1));
    // The other way round: the proxy sends to a host that only the robot itself reaches.
    let address = server.address;
    let sending = TestServer::start(move |_| {
        let location = format!("Location: http://{address}/release/stable/manifest.json");
        vec![answer("302 Found", &[&location, "Content-Length: 0"], b"")]
    });
    let far_first = open("http://far.invalid/", &options("127.0.0.1", sending.address)).unwrap();
    assert_eq!(far_first.get_small("stable/manifest.json", 100).unwrap(), b"{}");
    assert_eq!(sending.requests().len(), 1);
}

#[test]
fn a_server_beside_the_robot_is_reached_without_the_proxy() {
    let server = TestServer::start(|request| object(request, b"{}"));
    let proxy = TestServer::start(|_| status("403 Forbidden"));
    let url = format!("http://{}/release", server.address);
    for (exceptions, is_direct) in [("127.0.0.0/8", true), ("*", true), ("[::1]", false), ("example.com", false)] {
        let text = format!(
            "[release]\nurls = ['{url}']\n[machine]\nproduct = 'x'\n\
             [network]\nproxy = 'http://{}'\nno_proxy = ['{exceptions}']\n",
            proxy.address
        );
        let config = Config::resolve(Layer::parse("site", &text).unwrap()).unwrap();
        let options = FetchOptions::with_clock_as_it_is(&config.network);
        let fetched = open(&url, &options).unwrap().get_small("stable/manifest.json", 100);
        assert_eq!(fetched.is_ok(), is_direct, "{exceptions}");
    }
    assert!(!proxy.requests().is_empty());
}

#[test]
fn a_station_that_takes_nothing_is_reported_once() {
    let refusing = TestServer::start(|_| status("403 Forbidden"));
    let (journal, warnings) = (Arc::new(Journal::silent()), Arc::new(Mutex::new(Vec::new())));
    let collected = Arc::clone(&warnings);
    journal.subscribe(Box::new(move |entry| {
        if let Event::Warning(text) = entry.event {
            collected.lock().unwrap().push(text.to_owned());
        }
    }));
    let machine = ReportedMachine::default();
    let poster = Poster::start(machine, &refusing.url(), &crate::fetch::options(), &journal).unwrap();
    poster.close(Ending::Failed);
    let warnings = warnings.lock().unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("progress cannot be posted"), "{warnings:?}");
    assert!(warnings[0].contains("403"), "{warnings:?}");
}

// https://github.com/seanmonstar/reqwest/pull/596
#[test]
fn a_proxy_that_refuses_is_named() {
    for line in ["407 Proxy Authentication Required", "403 Forbidden", "502 Bad Gateway", "404 Not Found"] {
        let proxy = TestServer::start(move |_| status(line));
        let status = line[..3].to_owned();
        for url in ["http://release.invalid/r", "https://release.invalid/r"] {
            let error = asked(url, proxy.address);
            let text = error.chain();
            assert!(text.contains(&format!("through proxy {}", proxy.address)) && text.contains(&status), "{text}");
            // A tunnel that is not made is no answer of the server.
            assert!(url.starts_with("http:") || error.kind() == FetchErrorKind::Unreachable, "{error:?}");
        }
        assert!(proxy.requests().iter().all(|request| request.header("proxy-authorization").is_some()));
    }
}

#[test]
fn a_page_of_the_proxy_in_place_of_a_file_names_the_proxy() {
    let page = TestServer::start(|_| vec![answer("200 OK", &["Content-Length: 20"], b"<html>Sign in</html>")]);
    let text = asked("http://release.invalid/r", page.address).chain();
    assert!(text.contains("web page") && text.contains(&format!("through proxy {}", page.address)), "{text}");
    let source = open("http://release.invalid/r", &through(page.address)).unwrap();
    let error = source.get_range("objects/00ff", 0..10, &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.chain().matches("through proxy").count(), 1, "{}", error.chain());
}

#[test]
fn a_tunnel_is_taken_in_every_form_of_the_answer() {
    let authority = Authority::new();
    let server = TestServer::start_tls(authority.issue("release.invalid", ALWAYS), |_| {
        vec![answer("200 OK", &["Content-Length: 2"], b"ok")]
    });
    for head in [
        "http/1.1 200\n\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nA: b\r\n\r\nHTTP/1.0 200 Connection established\r\n\r\n",
        "HTTP/1.1 299 Fine\r\nContent-Length: 0\r\nX: a\r\n b\r\n\r\n",
    ] {
        let (listener, to) = (TcpListener::bind("127.0.0.1:0").unwrap(), server.address);
        let proxy = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut client = BufReader::new(listener.accept().unwrap().0);
            let mut line = String::new();
            while client.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
                line.clear();
            }
            client.get_mut().write_all(head.as_bytes()).unwrap();
            let (mut up, mut back) = (TcpStream::connect(to).unwrap(), client.get_ref().try_clone().unwrap());
            let mut down = up.try_clone().unwrap();
            std::thread::spawn(move || std::io::copy(&mut down, &mut back));
            let _ = std::io::copy(&mut client, &mut up);
        });
        let options = FetchOptions { ca_file: Some(authority.file.path().to_owned()), ..through(proxy) };
        let source = open("https://release.invalid/r", &options).unwrap();
        assert_eq!(source.get_small("a", 9).unwrap(), b"ok", "{head:?}");
    }
}

/// A listener that answers the head of each request with these bytes.
fn answering(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut line = String::new();
            while stream.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
                line.clear();
            }
            let _ = stream.get_mut().write_all(bytes);
        }
    });
    address
}

// https://github.com/mitmproxy/mitmproxy/issues/1007
#[test]
fn a_page_in_a_tunnel_and_what_is_no_proxy_are_told_apart() {
    let page = answering(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>502 Bad Gateway</html>");
    let error = asked("https://release.invalid/r", page);
    assert_eq!(error.kind(), FetchErrorKind::Protocol, "{}", error.chain());
    assert!(error.chain().contains("not TLS") && error.chain().contains(&page.to_string()), "{}", error.chain());
    let endless: &[u8] = Box::leak(vec![b'x'; 300_000].into_boxed_slice());
    for bytes in [b"SSH-2.0-OpenSSH_9.2p1\r\n", &b"HTTP/1.1 20"[..], b"", endless] {
        let address = answering(bytes);
        let error = asked("https://release.invalid/r", address);
        assert!(error.is_retryable() && error.chain().contains(&address.to_string()), "{}", error.chain());
    }
}
