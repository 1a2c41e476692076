//! Answers over HTTP: the agent's client against a server that answers anything, over loopback. The client goes through
//! a proxy, which is that server too, so that no redirect leads anywhere else.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use reflash::fetch::{FetchOptions, Http, Source};
use reflash::machine::config::{Config, Layer};

/// Between the answers of an input: each connection gets the next one, and the last is repeated.
const BETWEEN: &[u8] = b"\n----\n";

/// Answers to come, and how many bytes are sent at a time.
#[derive(Default)]
struct Script {
    answers: Vec<Vec<u8>>,
    next: usize,
    piece: usize,
}

static SCRIPT: Mutex<Script> = Mutex::new(Script { answers: Vec::new(), next: 0, piece: 0 });

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut head = [0; 4096];
    let mut len = 0;
    while len < head.len() && !head[..len].windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut head[len..])? {
            0 => break,
            more => len += more,
        }
    }
    let (answer, piece) = {
        let mut script = SCRIPT.lock().unwrap();
        let last = script.answers.len().saturating_sub(1);
        let answer = script.answers.get(script.next.min(last)).cloned().unwrap_or_default();
        script.next += 1;
        (answer, script.piece.max(1))
    };
    for part in answer.chunks(piece) {
        stream.write_all(part)?;
    }
    Ok(())
}

fn port() -> u16 {
    static PORT: OnceLock<u16> = OnceLock::new();
    *PORT.get_or_init(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = serve(stream);
            }
        });
        port
    })
}

/// The agent's options, with the server as the proxy.
pub fn options() -> &'static FetchOptions {
    static OPTIONS: OnceLock<FetchOptions> = OnceLock::new();
    OPTIONS.get_or_init(|| {
        let text = format!(
            "[release]\nurls = ['http://a']\n[machine]\nproduct = 'x'\n[network]\nproxy = 'http://127.0.0.1:{}'",
            port()
        );
        let config = Layer::parse("a file", &text).and_then(Config::resolve).unwrap();
        FetchOptions { stall_timeout: Duration::from_millis(300), ..FetchOptions::with_clock_as_it_is(&config.network) }
    })
}

fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut answers = vec![Vec::new()];
    let mut rest = bytes;
    while let Some((&first, more)) = rest.split_first() {
        if rest.starts_with(BETWEEN) && answers.len() < 6 {
            answers.push(Vec::new());
            rest = &rest[BETWEEN.len()..];
        } else {
            answers.last_mut().unwrap().push(first);
            rest = more;
        }
    }
    answers
}

pub fn run(data: &[u8]) {
    static HTTP: OnceLock<Http> = OnceLock::new();
    let Some((&kind, rest)) = data.split_first() else { return };
    let http = HTTP.get_or_init(|| Http::new("http://releases.example/tree", options()).unwrap());
    *SCRIPT.lock().unwrap() = Script { answers: split(rest), next: 0, piece: 1 << (kind >> 4) };
    match kind & 3 {
        0 | 1 => {
            let range: Range<u64> = if kind & 1 == 0 { 5..900 } else { 0..3 };
            let mut delivered = 0;
            let result = http.get_range("objects/ab", range.clone(), &mut |bytes: &[u8]| {
                delivered += bytes.len() as u64;
                assert!(delivered <= range.end - range.start, "more than was asked for");
                Ok(())
            });
            if result.is_ok() {
                assert_eq!(delivered, range.end - range.start, "success without all the bytes");
            }
        }
        2 => {
            let wanted = [("stable/manifest.json", 300), ("stable/manifest.json.minisig", 100)];
            if let Ok(files) = http.get_checked(&wanted, &mut |_| Ok(())) {
                assert!(files.len() == 2 && files[0].len() <= 300 && files[1].len() <= 100);
            }
        }
        _ => drop(http.post_json("{}")),
    }
}
