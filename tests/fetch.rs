//! Slow, broken and lying servers, over real sockets.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reflash::fetch::{
    CertificateClock, FetchError, FetchErrorKind, FetchOptions, Http, Mirrors, Refusal, RetryPolicy, SinkError, Source,
    SystemClock, open, open_all,
};

use crate::support::clock::FakeClock;
use crate::support::server::{Act, Proxy, TestRequest, TestServer, answer, cut, object, status};

mod crowd;
mod https;

const PATH: &str = "objects/00ff";
const STALL: Duration = Duration::from_secs(1);

/// Bytes that repeat nowhere, so that a shifted transfer cannot look right.
fn data(len: usize) -> Arc<Vec<u8>> {
    let mut state = 1_u64;
    let byte = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    Arc::new((0..len).map(byte).collect())
}

pub fn options() -> FetchOptions {
    FetchOptions {
        proxy: None,
        no_proxy: Vec::new(),
        ca_file: None,
        connect_timeout: Duration::from_secs(2),
        stall_timeout: STALL,
        rate: None,
        certificate_clock: Arc::new(CertificateClock::fixed()),
        clock: Arc::new(SystemClock),
        on_served: None,
    }
}

fn good(data: &Arc<Vec<u8>>) -> TestServer {
    let data = Arc::clone(data);
    TestServer::start(move |request| object(request, &data))
}

/// Mirrors that do not sleep, and what they would have slept and said.
#[derive(Clone)]
struct Record {
    clock: FakeClock,
    retries: Arc<Mutex<Vec<(String, Duration)>>>,
}

impl Record {
    fn new() -> Self {
        Self { clock: FakeClock::new(), retries: Arc::default() }
    }

    fn mirrors(&self, urls: &[String], retry_policy: RetryPolicy) -> Mirrors {
        let retries = Arc::clone(&self.retries);
        open_all(urls, &FetchOptions { clock: self.clock.shared(), ..options() }, retry_policy)
            .unwrap()
            .on_retry(move |retry| retries.lock().unwrap().push((retry.error.chain(), retry.wait)))
    }

    fn pauses(&self) -> Vec<Duration> {
        self.clock.pauses()
    }

    fn retries(&self) -> Vec<(String, Duration)> {
        self.retries.lock().unwrap().clone()
    }
}

fn single(server: &TestServer) -> Http {
    Http::new(&server.url(), &options()).unwrap()
}

fn collect(source: &dyn Source, range: std::ops::Range<u64>) -> Result<Vec<u8>, FetchError> {
    let mut got = Vec::new();
    source.get_range(PATH, range, &mut |bytes| {
        got.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(got)
}

fn ranges(server: &TestServer) -> Vec<(usize, usize)> {
    server.requests().iter().map(|request| request.range().unwrap()).collect()
}

#[test]
fn a_good_server_is_asked_for_exactly_the_range_on_one_connection() {
    let data = data(300_000);
    let server = good(&data);
    let http = single(&server);
    for range in [0..1, 1000..200_000, 299_999..300_000] {
        let part = &data[range.start as usize..range.end as usize];
        assert!(collect(&http, range).unwrap() == part);
    }
    assert_eq!(collect(&http, 7..7).unwrap(), b"");
    assert!(http.get_small(PATH, 300_000).unwrap() == **data);
    let requests = server.requests();
    assert_eq!(requests.len(), 4, "an empty range needs no request");
    assert!(requests.iter().all(|request| request.connection == 0), "one connection for all");
    assert_eq!(requests[1].range(), Some((1000, 199_999)));
    assert_eq!(requests[1].target(), "/release/objects/00ff");
    assert_eq!(requests[1].header("accept-encoding"), Some("identity"));
}

#[test]
fn a_cut_transfer_asks_only_for_the_rest() {
    let data = data(500_000);
    let served = Arc::clone(&data);
    let server = TestServer::start(move |request| match request.number {
        0 => cut(request, &served, 123_456),
        _ => object(request, &served),
    });
    let record = Record::new();
    let mirrors = record.mirrors(&[server.url()], RetryPolicy::Rounds(2));
    assert!(collect(&mirrors, 1_000..500_000).unwrap() == data[1_000..]);
    assert_eq!(ranges(&server), [(1_000, 499_999), (124_456, 499_999)]);
    let retries = record.retries();
    assert_eq!(retries.len(), 1);
    assert!(retries[0].0.contains("after 123456 of 499000 bytes"), "{retries:?}");
    assert_eq!(record.pauses(), [retries[0].1]);
}

#[test]
fn another_mirror_delivers_the_rest() {
    let data = data(500_000);
    let served = Arc::clone(&data);
    let first = TestServer::start(move |request| cut(request, &served, 100_000));
    let second = good(&data);
    let record = Record::new();
    let mirrors = record.mirrors(&[first.url(), second.url()], RetryPolicy::Rounds(1));
    assert!(collect(&mirrors, 0..500_000).unwrap() == **data);
    assert_eq!(ranges(&second), [(100_000, 499_999)]);
    assert!(record.pauses().is_empty(), "the other mirror is asked at once");
}

#[test]
fn progress_counts_rounds_anew_and_standing_still_does_not() {
    let data = data(1_000_000);
    let served = Arc::clone(&data);
    let server = TestServer::start(move |request| match request.range().unwrap().0 {
        ..800_000 => cut(request, &served, 100_000),
        _ => cut(request, &served, 1),
    });
    let record = Record::new();
    let error = collect(&record.mirrors(&[server.url()], RetryPolicy::Rounds(3)), 0..1_000_000).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Broken);
    assert!(error.to_string().contains("after 800002 of 1000000 bytes"), "{error}");
    // Eight times 100 kB, of which the last is the first of three rounds, then twice one byte.
    assert_eq!(server.requests().len(), 10);
}

#[test]
fn a_stalled_transfer_moves_on() {
    let data = data(50_000);
    let served = Arc::clone(&data);
    let first = TestServer::start(move |request| {
        let mut acts = cut(request, &served, 20_000);
        acts.insert(1, Act::Wait(Duration::from_secs(4)));
        acts
    });
    let second = good(&data);
    let record = Record::new();
    let mirrors = record.mirrors(&[first.url(), second.url()], RetryPolicy::Rounds(1));
    assert!(collect(&mirrors, 0..50_000).unwrap() == **data);
    // Had the first been waited for to the end of its silence, the connection would have been cut, which is no stall.
    assert_eq!(ranges(&second), [(20_000, 49_999)]);
    assert!(record.retries()[0].0.contains("no byte within the stall timeout after 20000 of 50000"));
}

#[test]
fn a_server_that_accepts_and_says_nothing_is_a_stall() {
    // After its silence it hangs up, which is no stall.
    let server = TestServer::start(|_| vec![Act::Wait(Duration::from_secs(4)), Act::Close]);
    assert_eq!(collect(&single(&server), 0..10).unwrap_err().kind(), FetchErrorKind::Stalled);
}

/// Answers with 25 pieces of the object, 0.1 s apart.
fn dripping(request: &TestRequest, data: &[u8], piece: usize) -> Vec<Act> {
    let mut acts = cut(request, data, 0);
    acts.pop();
    for part in data.chunks(piece).take(25) {
        acts.push(Act::Wait(Duration::from_millis(100)));
        acts.push(Act::Send(part.to_vec()));
    }
    acts
}

#[test]
fn a_slow_transfer_that_is_alive_may_take_longer_than_any_timeout() {
    let data = data(25_000);
    let served = Arc::clone(&data);
    let server = TestServer::start(move |request| dripping(request, &served, 1_000));
    // 25 pauses of the server are more than twice the timeout.
    assert!(collect(&single(&server), 0..25_000).unwrap() == **data);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_byte_now_and_then_is_no_life() {
    let data = data(25_000);
    let server = TestServer::start(move |request| dripping(request, &data, 1));
    let error = collect(&single(&server), 0..25_000).unwrap_err();
    // Had it been waited for to its end, the transfer would have been cut.
    assert_eq!(error.kind(), FetchErrorKind::Stalled);
}

#[test]
fn a_missing_object_is_asked_for_a_few_times_unless_another_mirror_has_it() {
    let empty = TestServer::start(|_| status("404 Not Found"));
    let record = Record::new();
    let mirrors = record.mirrors(&[empty.url()], RetryPolicy::Forever);
    let error = collect(&mirrors, 0..10).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Missing);
    assert_eq!(
        error.to_string(),
        format!("{}/{PATH}: not there (HTTP status 404), given up after 3 attempts", empty.url())
    );
    assert_eq!((empty.requests().len(), record.pauses().len()), (4, 2));

    let data = data(10);
    let full = good(&data);
    let mirrors = record.mirrors(&[empty.url(), full.url()], RetryPolicy::Forever);
    assert!(collect(&mirrors, 0..10).unwrap() == **data);
    assert!(collect(&mirrors, 0..10).unwrap() == **data);
    assert_eq!(empty.requests().len(), 5, "it is not asked again for what it just lacked");
    assert_eq!(full.requests().len(), 2);
}

#[test]
fn a_server_error_passes() {
    let data = data(10);
    let served = Arc::clone(&data);
    let server = TestServer::start(move |request| match request.number {
        0 => status("500 Internal Server Error"),
        _ => object(request, &served),
    });
    let record = Record::new();
    assert!(collect(&record.mirrors(&[server.url()], RetryPolicy::Rounds(2)), 0..10).unwrap() == **data);
    let pauses = record.pauses();
    assert!(matches!(pauses[..], [wait] if (250..=1000).contains(&wait.as_millis())), "{pauses:?}");
    assert!(record.retries()[0].0.contains("500 Internal Server Error"));
}

#[test]
fn patience_ends_after_the_rounds() {
    let server = TestServer::start(|_| status("502 Bad Gateway"));
    let record = Record::new();
    let error = collect(&record.mirrors(&[server.url()], RetryPolicy::Rounds(3)), 0..10).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Refused(502));
    assert!(error.to_string().contains("given up after 3 attempts"), "{error}");
    // The last time the whole is asked for too: the refusal may be one of ranges.
    assert_eq!((server.requests().len(), record.pauses().len()), (4, 2));
}

/// As a firewall with a rule against ranges, or a server that fails at them.
#[test]
fn where_ranges_are_refused_the_whole_is_asked_for() {
    for refusal in ["403 Forbidden", "400 Bad Request", "500 Internal Server Error", "501 Not Implemented"] {
        let data = data(100_000);
        let served = Arc::clone(&data);
        let server = TestServer::start(move |request| match request.range() {
            Some(_) => status(refusal),
            None => object(request, &served),
        });
        let record = Record::new();
        let mirrors = record.mirrors(&[server.url()], RetryPolicy::Forever);
        assert!(collect(&mirrors, 500..70_000).unwrap() == data[500..70_000], "{refusal}");
        assert!(collect(&mirrors, 70_000..90_000).unwrap() == data[70_000..90_000], "{refusal}");
    }
}

/// A cache on the way has a damaged copy, and looks for itself where it is asked to.
#[test]
fn a_cache_with_a_damaged_copy_is_asked_to_look_for_itself() {
    let data = data(10_000);
    let served = Arc::clone(&data);
    let server = TestServer::start(move |request| {
        let mut content = served.to_vec();
        if request.header("cache-control").is_none_or(|value| !value.contains("no-cache")) {
            content[5000] ^= 1;
        }
        object(request, &content)
    });
    let record = Record::new();
    let mirrors = record.mirrors(&[server.url()], RetryPolicy::Forever);
    let mut found = Vec::new();
    mirrors
        .get_range(PATH, 0..10_000, &mut |bytes| {
            found.extend_from_slice(bytes);
            if found.len() < 10_000 || found == **data {
                return Ok(());
            }
            found.clear();
            Err(SinkError::Wrong { from: 0, reason: "damaged".to_owned() })
        })
        .unwrap();
    assert!(found == **data);
}

#[test]
fn retry_after_is_honoured_and_capped() {
    let data = data(10);
    let served = Arc::clone(&data);
    let busy = |seconds: &str| {
        vec![answer("503 Service Unavailable", &["Content-Length: 0", &format!("Retry-After: {seconds}")], b"")]
    };
    let server = TestServer::start(move |request| match request.number {
        0 => busy("7"),
        1 => busy("86400"),
        _ => object(request, &served),
    });
    let record = Record::new();
    assert!(collect(&record.mirrors(&[server.url()], RetryPolicy::Rounds(3)), 0..10).unwrap() == **data);
    assert_eq!(record.pauses(), [Duration::from_secs(7), Duration::from_secs(600)]);
}

#[test]
fn a_refusal_is_believed_after_a_few_requests() {
    let server = TestServer::start(|_| status("403 Forbidden"));
    let record = Record::new();
    let error = collect(&record.mirrors(&[server.url()], RetryPolicy::Forever), 0..10).unwrap_err();
    assert_eq!((error.kind(), server.requests().len()), (FetchErrorKind::Refused(403), 4));
}

/// What a lying answer leads to: nothing delivered, asked a few times, then an error that names the URL.
fn refuses(lie: impl Fn(&TestRequest) -> Vec<Act> + Send + Sync + 'static, words: &str) {
    let server = TestServer::start(lie);
    let record = Record::new();
    let mirrors = record.mirrors(&[server.url()], RetryPolicy::Forever);
    let mut delivered = 0;
    let result = mirrors.get_range(PATH, 10..20, &mut |bytes| {
        delivered += bytes.len();
        Ok(())
    });
    let error = result.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Protocol, "{error}");
    assert!(error.chain().contains(words) && error.chain().contains(&server.url()), "{}", error.chain());
    assert_eq!((delivered, record.pauses().len()), (0, 2));
    // Where only the range is at fault, the whole object is asked for as well.
    let ranges = server.requests().iter().filter(|request| request.range().is_some()).count();
    assert_eq!(ranges, 3);
}

#[test]
fn lying_heads_deliver_nothing() {
    let part = |range: &str, more: &str| {
        let headers: Vec<String> = [format!("Content-Range: {range}"), more.to_owned()].into();
        let headers: Vec<&str> = headers.iter().map(String::as_str).filter(|line| !line.is_empty()).collect();
        let head = answer("206 Partial Content", &headers, b"0123456789");
        move |_: &TestRequest| match &head {
            Act::Send(bytes) => vec![Act::Send(bytes.clone()), Act::Close],
            _ => vec![],
        }
    };
    refuses(part("bytes 11-20/100", "Content-Length: 10"), "Content-Range is \"bytes 11-20/100\"");
    refuses(part("bytes 10-14/15", "Content-Length: 5"), "the object has 15 bytes");
    refuses(part("bytes 10-19/100", "Content-Type: multipart/byteranges; boundary=x"), "multipart/byteranges");
    refuses(part("bytes 10-19/100", "Content-Encoding: gzip"), "encoded as \"gzip\"");
    refuses(|_| vec![answer("206 Partial Content", &["Content-Length: 9"], b"012345678")], "9 bytes are announced");
    refuses(|_| vec![answer("206 Partial Content", &[], b"0123456789"), Act::Close], "Content-Range is \"\"");
    refuses(|_| status("416 Range Not Satisfiable"), "shorter");
    refuses(|_| status("204 No Content"), "status 204");
    refuses(|_| vec![answer("200 OK", &["Content-Length: 19"], &[0; 19])], "19 bytes are announced where 20");
    refuses(|_| vec![Act::Send(b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()), Act::Close], "not HTTP");
    refuses(|_| vec![answer("200 OK", &[&format!("X: {}", "x".repeat(2_000_000))], b"")], "in the head of the answer");
}

#[test]
fn a_longer_body_is_cut_off_and_the_server_not_believed() {
    let served = data(100);
    let server = TestServer::start(move |request| {
        let (first, last) = request.range().unwrap();
        let range = format!("Content-Range: bytes {first}-{last}/100");
        let mut body = format!("{:x}\r\n", last + 1 - first + 5).into_bytes();
        body.extend_from_slice(&served[first..last + 6]);
        body.extend_from_slice(b"\r\n0\r\n\r\n");
        vec![answer("206 Partial Content", &[&range, "Transfer-Encoding: chunked"], &body)]
    });
    let error = collect(&single(&server), 10..20).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Protocol);
    assert!(error.to_string().contains("more bytes than asked for after 10 of 10 bytes"), "{error}");
    // The mirrors have what they asked for; the digests decide.
    let mirrors = Record::new().mirrors(&[server.url()], RetryPolicy::Rounds(1));
    assert!(collect(&mirrors, 10..20).unwrap() == data(100)[10..20]);
}

#[test]
fn a_shorter_body_is_noticed_without_a_length() {
    let served = data(100);
    let server = TestServer::start(move |request| {
        let (first, last) = request.range().unwrap();
        let range = format!("Content-Range: bytes {first}-{last}/100");
        vec![answer("206 Partial Content", &[&range, "Connection: close"], &served[first..last - 2]), Act::Close]
    });
    let error = collect(&single(&server), 10..20).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Broken);
    assert!(error.to_string().contains("the answer ended after 7 of 10 bytes"), "{error}");
}

#[test]
fn a_server_without_ranges_is_good_enough() {
    let data = data(200_000);
    let served = Arc::clone(&data);
    let server = TestServer::start(move |_| {
        vec![answer("200 OK", &[&format!("Content-Length: {}", served.len())], &served), Act::Close]
    });
    let http = single(&server);
    assert!(collect(&http, 0..200_000).unwrap() == **data);
    assert!(collect(&http, 0..10).unwrap() == data[..10]);
    assert!(collect(&http, 150_000..150_010).unwrap() == data[150_000..150_010]);
    let far = 65 << 20;
    let error = collect(&http, far..far + 1).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Protocol);
    assert!(error.to_string().contains("ignores ranges and 68157440 bytes lie before"), "{error}");
}

/// A sink that knows the digests of chunks, in the simplest possible form.
struct Chunks<'a> {
    expected: &'a [u8],
    size: usize,
    buffer: Vec<u8>,
    good: Vec<u8>,
}

impl<'a> Chunks<'a> {
    fn new(expected: &'a [u8], size: usize) -> Self {
        Self { expected, size, buffer: Vec::new(), good: Vec::new() }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.buffer.extend_from_slice(bytes);
        while self.buffer.len() >= self.size {
            let at = self.good.len();
            let chunk: Vec<u8> = self.buffer.drain(..self.size).collect();
            if chunk != self.expected[at..at + self.size] {
                self.buffer.clear();
                return Err(SinkError::Wrong { from: at as u64, reason: format!("chunk {}", at / self.size) });
            }
            self.good.extend_from_slice(&chunk);
        }
        Ok(())
    }
}

/// The object with one wrong byte, in chunk 150 of 1000 bytes.
fn damaged(data: &[u8]) -> Vec<u8> {
    let mut damaged = data.to_vec();
    damaged[150_500] ^= 1;
    damaged
}

#[test]
fn wrong_bytes_come_again_from_another_mirror_from_the_wrong_chunk_on() {
    let data = data(300_000);
    let damaged = damaged(&data);
    let bad = TestServer::start(move |request| object(request, &damaged));
    let right = good(&data);
    let record = Record::new();
    let mirrors = record.mirrors(&[bad.url(), right.url()], RetryPolicy::Rounds(1));
    let mut chunks = Chunks::new(&data, 1_000);
    mirrors.get_range(PATH, 0..300_000, &mut |bytes| chunks.take(bytes)).unwrap();
    assert!(chunks.good == **data);
    assert_eq!(ranges(&right), [(150_000, 299_999)]);
    assert!(record.retries()[0].0.contains(&bad.url()), "the liar is named: {:?}", record.retries());
    assert!(collect(&mirrors, 0..1000).unwrap() == data[..1000]);
    assert_eq!(bad.requests().len(), 1, "the liar is not asked first again");
}

#[test]
fn a_cache_that_heals_is_asked_again() {
    let data = data(300_000);
    let (served, damaged) = (Arc::clone(&data), damaged(&data));
    let server = TestServer::start(move |request| object(request, if request.number < 2 { &damaged } else { &served }));
    // Chunks larger than any piece, so that the wrong one began in a piece that was taken.
    let mut chunks = Chunks::new(&data, 100_000);
    let mirrors = Record::new().mirrors(&[server.url()], RetryPolicy::Forever);
    mirrors.get_range(PATH, 0..300_000, &mut |bytes| chunks.take(bytes)).unwrap();
    assert!(chunks.good == **data);
    assert_eq!(ranges(&server), [(0, 299_999), (100_000, 299_999), (100_000, 299_999)]);
}

#[test]
fn a_single_source_of_wrong_bytes_is_given_up() {
    let data = data(300_000);
    let damaged = damaged(&data);
    let server = TestServer::start(move |request| object(request, &damaged));
    let record = Record::new();
    let mirrors = record.mirrors(&[server.url()], RetryPolicy::Forever);
    let mut chunks = Chunks::new(&data, 1_000);
    let error = mirrors.get_range(PATH, 0..300_000, &mut |bytes| chunks.take(bytes)).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Corrupt);
    let text = error.to_string();
    assert!(text.contains(&format!("{}/{PATH}", server.url())) && text.contains("chunk 150"), "{text}");
    assert!(text.contains("given up after 3 attempts"), "{text}");
    assert_eq!(chunks.good.len(), 150_000);
}

#[test]
fn a_failing_sink_ends_the_transfer_at_once() {
    let server = good(&data(300_000));
    let record = Record::new();
    let mirrors = record.mirrors(&[server.url(), server.url()], RetryPolicy::Forever);
    let error = mirrors.get_range(PATH, 0..300_000, &mut |_| Err(SinkError::Local("disk full".into()))).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Local);
    assert!(error.chain().ends_with(": disk full"), "{}", error.chain());
    assert_eq!((server.requests().len(), record.pauses().len()), (1, 0));
}

#[test]
fn a_sink_that_wants_bytes_it_never_got_is_an_error_and_not_a_loop() {
    let server = good(&data(100));
    let mirrors = Record::new().mirrors(&[server.url()], RetryPolicy::Forever);
    let error = mirrors
        .get_range(PATH, 10..20, &mut |_| Err(SinkError::Wrong { from: 5, reason: "no".to_owned() }))
        .unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Local);
}

#[test]
fn a_dead_mirror_is_passed_over_and_remembered() {
    let data = data(10);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let live = good(&data);
    let record = Record::new();
    let urls = [format!("http://user:secret@{closed}/r"), live.url()];
    let mirrors = record.mirrors(&urls, RetryPolicy::Rounds(1));
    for _ in 0..3 {
        assert!(collect(&mirrors, 0..10).unwrap() == **data);
    }
    let retries = record.retries();
    assert_eq!(retries.len(), 1, "tried once, then remembered: {retries:?}");
    assert!(retries[0].0.contains("the port is closed") && retries[0].0.contains(&closed.to_string()), "{retries:?}");
    assert!(!retries[0].0.contains("secret") && !mirrors.describe().contains("secret"));
}

#[test]
fn all_mirrors_failing_are_all_named() {
    let missing = TestServer::start(|_| status("404 Not Found"));
    let refusing = TestServer::start(|_| status("401 Unauthorized"));
    let mirrors = Record::new().mirrors(&[missing.url(), refusing.url()], RetryPolicy::Forever);
    let error = collect(&mirrors, 0..10).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Refused(401));
    let text = error.chain();
    assert!(text.contains(&missing.url()) && text.contains(&refusing.url()), "{text}");
}

#[test]
fn a_name_without_address_is_unreachable_and_named() {
    let http = Http::new("http://release.invalid/r", &options()).unwrap();
    let error = collect(&http, 0..10).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Unreachable);
    assert!(error.chain().contains("the name release.invalid cannot be looked up"), "{}", error.chain());
}

#[test]
fn redirects_are_followed_with_the_range_but_not_for_ever() {
    let data = data(100);
    let served = Arc::clone(&data);
    let to = |location: &str| vec![answer("302 Found", &["Content-Length: 0", &format!("Location: {location}")], b"")];
    let server = TestServer::start(move |request| match request.target() {
        "/release/objects/00ff" => to("/elsewhere/00ff?signature=secret"),
        "/elsewhere/00ff?signature=secret" => object(request, &served),
        _ => to(request.target()),
    });
    assert!(collect(&single(&server), 10..20).unwrap() == data[10..20]);
    assert_eq!(ranges(&server), [(10, 19), (10, 19)]);

    let http = Http::new(&format!("http://{}/loop", server.address), &options()).unwrap();
    let error = collect(&http, 10..20).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Protocol);
    assert!(error.to_string().contains("more than 10 redirects"), "{error}");
    assert_eq!(server.requests().len(), 2 + 11);
}

#[test]
fn small_objects_have_a_limit_whatever_the_server_announces() {
    let announced = good(&data(1_000));
    let error = single(&announced).get_small("stable/manifest.json", 999).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Protocol);
    assert!(error.to_string().contains("1000 bytes, but at most 999 are expected"), "{error}");
    let endless = TestServer::start(|_| {
        let mut acts = vec![answer("200 OK", &["Connection: close"], b"")];
        acts.extend((0..1_000).map(|_| Act::Send(vec![0; 100_000])));
        acts
    });
    let error = single(&endless).get_small("stable/manifest.json", 1_000_000).unwrap_err();
    assert!(error.to_string().contains("at most 1000000"), "{error}");
}

#[test]
fn a_manifest_and_its_signature_come_from_the_same_mirror() {
    let serving = |manifest: &'static [u8], signature: &'static [u8]| {
        TestServer::start(move |request| {
            object(request, if request.target().ends_with(".minisig") { signature } else { manifest })
        })
    };
    let torn = serving(b"version 2", b"of 1");
    let whole = serving(b"version 1", b"of 1");
    let wanted = [("stable/manifest.json", 100), ("stable/manifest.json.minisig", 100)];
    let mut check = |all: &[Vec<u8>]| {
        if all[0].last() == all[1].last() {
            Ok(())
        } else {
            Err(Refusal::Wrong("the signature does not match".to_owned()))
        }
    };
    let record = Record::new();
    let mirrors = record.mirrors(&[torn.url(), whole.url()], RetryPolicy::Rounds(1));
    let all = mirrors.get_checked(&wanted, &mut check).unwrap();
    assert_eq!(all, [b"version 1".to_vec(), b"of 1".to_vec()]);
    assert!(record.retries()[0].0.contains("the signature does not match"), "{:?}", record.retries());

    let error = record.mirrors(&[torn.url()], RetryPolicy::Forever).get_checked(&wanted, &mut check).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Corrupt);
    assert!(error.to_string().contains(&torn.url()), "{error}");
}

#[test]
fn a_directory_and_a_server_are_mirrors_of_each_other() {
    let data = data(100);
    let server = good(&data);
    let dir = tempfile::tempdir().unwrap();
    let urls = [format!("file://{}/not-mounted", dir.path().display()), server.url()];
    let mirrors = Record::new().mirrors(&urls, RetryPolicy::Rounds(1));
    assert!(collect(&mirrors, 0..100).unwrap() == **data);
}

#[test]
fn plain_http_goes_through_a_proxy_in_absolute_form() {
    let data = data(100_000);
    let origin = good(&data);
    let proxy = Proxy::start(origin.address);
    let through = FetchOptions { proxy: Some(format!("http://robot:pa%20ss@{}", proxy.address)), ..options() };
    let source = open("http://release.invalid:8080/r", &through).unwrap();
    for range in [0..100_000, 500..600] {
        let part = &data[range.start as usize..range.end as usize];
        assert!(collect(&*source, range).unwrap() == part);
    }
    let seen = proxy.requests();
    assert_eq!(seen[0].line, "GET http://release.invalid:8080/r/objects/00ff HTTP/1.1");
    // robot:pa ss
    assert_eq!(seen[0].header("proxy-authorization"), Some("Basic cm9ib3Q6cGEgc3M="));
    assert_eq!(seen[1].connection, 0, "the connection to the proxy is kept");
    assert_eq!(origin.requests()[0].header("host"), Some("release.invalid:8080"));
    assert_eq!(origin.requests()[0].header("proxy-authorization"), None);
}

#[test]
fn a_dead_proxy_is_named_without_its_password() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let through = FetchOptions { proxy: Some(format!("http://robot:secret@{closed}")), ..options() };
    let error = collect(&*open("http://release.invalid/r", &through).unwrap(), 0..10).unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Unreachable);
    let text = format!("{} {error:?}", error.chain());
    assert!(text.contains(&format!("proxy {closed}")) && !text.contains("secret"), "{text}");
}

#[test]
fn unusable_settings_are_refused_before_anything_is_connected() {
    let with_proxy = |proxy: &str| FetchOptions { proxy: Some(proxy.to_owned()), ..options() };
    let with_ca = |ca: &str| FetchOptions { ca_file: Some(ca.into()), ..options() };
    for (url, options) in [
        ("ftp://h/r", options()),
        ("http:///r", options()),
        ("nonsense", options()),
        ("file:relative", options()),
        ("http://h/r", with_proxy("socks5://h:1")),
        ("http://h/r", with_proxy("http://")),
        ("https://h/r", with_ca("/nonexistent/ca.pem")),
        ("https://h/r", with_ca("/dev/null")),
    ] {
        let Err(error) = open(url, &options) else { panic!("{url} was accepted") };
        assert_eq!(error.kind(), FetchErrorKind::Settings, "{url}");
    }
}
