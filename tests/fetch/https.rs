//! Certificates: private authorities, wrong ones, and clocks that disagree with them.

use std::io::Write;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use reflash::fetch::{CertificateClock, FetchError, FetchErrorKind, FetchOptions, open};
use reflash::machine::clock::ClockPolicy;

use super::{collect, data, good, options};
use crate::support::server::{Proxy, TestServer, answer, object};
use crate::support::tls::{ALWAYS, Authority, Date, unix};

const NAME: &str = "release.invalid";
/// What the tests' clock policy takes for the build time.
const BUILT: Date = (2026, 11, 1);

/// A good server with such a certificate.
fn server_of(authority: &Authority, validity: [Date; 2]) -> TestServer {
    let data = data(1_000);
    TestServer::start_tls(authority.issue("127.0.0.1", validity), move |request| object(request, &data))
}

fn trusting(authority: &Authority, clock: CertificateClock) -> FetchOptions {
    FetchOptions { ca_file: Some(authority.file.path().to_owned()), certificate_clock: Arc::new(clock), ..options() }
}

/// A machine's clock that can be set, and every setting of it.
#[derive(Clone)]
struct Machine {
    now: Arc<AtomicU64>,
    set: Arc<Mutex<Vec<u64>>>,
}

impl Machine {
    fn at(date: Date) -> Self {
        Self { now: Arc::new(AtomicU64::new(unix(date))), set: Arc::default() }
    }

    fn read_only(&self) -> CertificateClock {
        let now = Arc::clone(&self.now);
        CertificateClock::new(Box::new(move || now.load(Ordering::SeqCst)), None, ClockPolicy::new(unix(BUILT), None))
    }

    fn adjustable(&self) -> CertificateClock {
        let (read, write) = (Arc::clone(&self.now), self.clone());
        let set = move |seconds| {
            write.now.store(seconds, Ordering::SeqCst);
            write.set.lock().unwrap().push(seconds);
        };
        let policy = ClockPolicy::new(unix(BUILT), None);
        CertificateClock::new(Box::new(move || read.load(Ordering::SeqCst)), Some(Box::new(set)), policy)
    }

    fn settings(&self) -> Vec<u64> {
        self.set.lock().unwrap().clone()
    }
}

fn fetched(server: &TestServer, options: &FetchOptions) -> Result<(), FetchError> {
    let source = open(&server.url(), options)?;
    assert!(collect(&*source, 10..900)? == data(1_000)[10..900]);
    Ok(())
}

#[test]
fn a_private_authority_is_trusted_and_the_connection_kept() {
    let authority = Authority::new();
    let server = server_of(&authority, ALWAYS);
    let source = open(&server.url(), &trusting(&authority, CertificateClock::fixed())).unwrap();
    for _ in 0..3 {
        assert!(collect(&*source, 10..900).unwrap() == data(1_000)[10..900]);
    }
    let connections: Vec<usize> = server.requests().iter().map(|request| request.connection).collect();
    assert_eq!(connections, [0, 0, 0]);
}

#[test]
fn any_other_authority_is_refused() {
    let authority = Authority::new();
    let server = server_of(&authority, ALWAYS);
    for options in [options(), trusting(&Authority::new(), CertificateClock::fixed())] {
        let error = fetched(&server, &options).unwrap_err();
        assert_eq!(error.kind(), FetchErrorKind::Tls);
        assert!(!error.is_retryable() && error.chain().contains("UnknownIssuer"), "{}", error.chain());
    }
    assert_eq!(server.requests().len(), 0, "nothing was asked on a connection that is not trusted");
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new();
    let server = TestServer::start_tls(authority.issue(NAME, ALWAYS), |_| vec![]);
    let error = fetched(&server, &trusting(&authority, CertificateClock::fixed())).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Tls, "{}", error.chain());
}

#[test]
fn plain_http_where_tls_is_expected_is_no_trusted_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/r", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").unwrap();
        // Until the client hangs up: a close with its bytes unread would be a reset.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let error = collect(&*open(&url, &options()).unwrap(), 0..10).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Tls, "{}", error.chain());
    server.join().unwrap();
}

#[test]
fn https_through_a_proxy_is_a_tunnel() {
    let authority = Authority::new();
    let origin = {
        let data = data(1_000);
        TestServer::start_tls(authority.issue(NAME, ALWAYS), move |request| object(request, &data))
    };
    let proxy = Proxy::start(origin.address);
    let through = FetchOptions {
        proxy: Some(format!("http://{}", proxy.address)),
        ..trusting(&authority, CertificateClock::fixed())
    };
    let source = open(&format!("https://{NAME}/r"), &through).unwrap();
    assert!(collect(&*source, 0..1_000).unwrap() == **data(1_000));
    assert_eq!(proxy.requests()[0].line, format!("CONNECT {NAME}:443 HTTP/1.1"));
    assert_eq!(origin.requests()[0].target(), "/r/objects/00ff");
}

#[test]
fn a_redirect_from_https_to_http_is_not_followed() {
    let plain = good(&data(1_000));
    let authority = Authority::new();
    let location = format!("Location: {}/objects/00ff", plain.url());
    let config = authority.issue("127.0.0.1", ALWAYS);
    let server =
        TestServer::start_tls(config, move |_| vec![answer("302 Found", &["Content-Length: 0", &location], b"")]);
    let error = fetched(&server, &trusting(&authority, CertificateClock::fixed())).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Protocol);
    assert!(error.to_string().contains("from https to http://"), "{error}");
    assert_eq!(plain.requests().len(), 0);
}

#[test]
fn a_clock_from_2001_moves_forward_to_the_certificate() {
    let authority = Authority::new();
    let server = server_of(&authority, [(2027, 3, 1), (2027, 6, 1)]);
    let machine = Machine::at((2001, 1, 1));
    fetched(&server, &trusting(&authority, machine.adjustable())).unwrap();
    assert_eq!(machine.settings(), [unix((2027, 3, 1)) + 60]);
    // The clock is right enough now: another connection moves nothing.
    fetched(&server, &trusting(&authority, machine.adjustable())).unwrap();
    assert_eq!(machine.settings().len(), 1);
}

#[test]
fn a_clock_from_2001_starts_at_the_build() {
    let machine = Machine::at((2001, 1, 1));
    machine.adjustable().start();
    assert_eq!(machine.settings(), [unix(BUILT)]);
    machine.adjustable().start();
    Machine::at((2001, 1, 1)).read_only().start();
    assert_eq!(machine.settings().len(), 1);
}

#[test]
fn a_clock_from_the_future_falls_back_to_the_build_and_forward_again() {
    let authority = Authority::new();
    let server = server_of(&authority, [(2027, 3, 1), (2027, 6, 1)]);
    let machine = Machine::at((2090, 1, 1));
    fetched(&server, &trusting(&authority, machine.adjustable())).unwrap();
    assert_eq!(machine.settings(), [unix((2027, 3, 1)) + 60], "the clock is set once, to where it all fits");
}

#[test]
fn a_clock_that_must_not_be_set_is_reported_with_both_times() {
    let authority = Authority::new();
    let server = server_of(&authority, [(2027, 3, 1), (2027, 6, 1)]);
    let (now, from, to) = (unix((2001, 1, 1)), unix((2027, 3, 1)), unix((2027, 6, 1)));
    let both = "valid from Mon, 01 Mar 2027 00:00:00 GMT, this machine's clock says Mon, 01 Jan 2001 00:00:00 GMT";
    let error = fetched(&server, &trusting(&authority, Machine::at((2001, 1, 1)).read_only())).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::TlsTime { now, not_before: Some(from), not_after: None });
    assert!(error.to_string().contains(both), "{error}");
    let now = unix((2090, 1, 1));
    let error = fetched(&server, &trusting(&authority, Machine::at((2090, 1, 1)).read_only())).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::TlsTime { now, not_before: None, not_after: Some(to) });
}

#[test]
fn a_certificate_that_expired_before_the_build_is_refused_whatever_the_clock() {
    let authority = Authority::new();
    let server = server_of(&authority, [(2020, 1, 1), (2021, 1, 1)]);
    let machine = Machine::at((2027, 1, 1));
    let error = fetched(&server, &trusting(&authority, machine.adjustable())).unwrap_err();
    assert!(matches!(error.kind(), FetchErrorKind::TlsTime { not_after: Some(_), .. }), "{error}");
    assert!(machine.settings().is_empty());
}

#[test]
fn an_untrusted_authority_cannot_move_the_clock() {
    let stranger = Authority::new();
    let server = server_of(&stranger, [(2080, 1, 1), (2090, 1, 1)]);
    let machine = Machine::at((2001, 1, 1));
    let error = fetched(&server, &trusting(&Authority::new(), machine.adjustable())).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Tls, "{}", error.chain());
    assert!(machine.settings().is_empty(), "a certificate that is not trusted says nothing about the time");
}
