//! A link that is slower than loopback: a relay with a rate and a delay, as robots have them.
//!
//! `tc` would do the same in the kernel, where its kernel has the modules. What the relay does not play is TCP's slow
//! start over the delay, which costs each new connection some round trips.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Delay in each direction: 50 ms there and back.
const DELAY: Duration = Duration::from_millis(25);
/// Bytes that are passed on at a time.
const PIECE_BYTES: usize = 16 << 10;
/// Pieces on the way at most, 1 MiB: more than 300 Mbit/s hold in the delay.
const ON_THE_WAY: usize = 64;

/// A relay to a server. All connections through it share its rate, each direction for itself.
pub struct SlowLink {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
}

/// What is on the way: bytes, and when they arrive.
type Piece = (Vec<u8>, Instant);

/// When the next byte can leave, and how long each takes.
struct Rate {
    bytes_s: f64,
    free: Mutex<Instant>,
}

impl Rate {
    fn new(mbit_s: u32) -> Arc<Self> {
        Arc::new(Self { bytes_s: f64::from(mbit_s) * 1e6 / 8.0, free: Mutex::new(Instant::now()) })
    }

    /// When so many bytes have left.
    fn left(&self, bytes: usize, now: Instant) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = (*free).max(now) + Duration::from_secs_f64(bytes as f64 / self.bytes_s);
        *free
    }
}

impl SlowLink {
    /// Opens a link of so many Mbit/s to the server at an address.
    pub fn open(server: SocketAddr, mbit_s: u32) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen for a slower link")?;
        let address = listener.local_addr()?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (up, down, over) = (Rate::new(mbit_s), Rate::new(mbit_s), Arc::clone(&is_over));
        thread::spawn(move || {
            for client in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let Ok(client) = client else { continue };
                let (up, down) = (Arc::clone(&up), Arc::clone(&down));
                thread::spawn(move || {
                    // The kernel took the connection at once; over the link, that is a round trip.
                    thread::sleep(2 * DELAY);
                    // What fails here ends the connection, which the client sees.
                    let _ = relay(&client, server, up, down);
                });
            }
        });
        Ok(Self { address, is_over })
    }

    /// Base URL, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Its thread waits for a connection.
        let _ = TcpStream::connect(self.address);
    }
}

fn relay(client: &TcpStream, server: SocketAddr, up: Arc<Rate>, down: Arc<Rate>) -> std::io::Result<()> {
    let server = TcpStream::connect(server)?;
    for stream in [client, &server] {
        stream.set_nodelay(true)?;
    }
    pass(client.try_clone()?, server.try_clone()?, up);
    pass(server, client.try_clone()?, down);
    Ok(())
}

/// Passes on what comes, at a rate and after the delay, until either side has ended.
fn pass(mut from: TcpStream, mut to: TcpStream, rate: Arc<Rate>) {
    let (sender, receiver): (SyncSender<Piece>, Receiver<Piece>) = sync_channel(ON_THE_WAY);
    thread::spawn(move || {
        let mut buffer = [0; PIECE_BYTES];
        while let Ok(bytes @ 1..) = from.read(&mut buffer) {
            let left = rate.left(bytes, Instant::now());
            if sender.send((buffer[..bytes].to_vec(), left + DELAY)).is_err() {
                break;
            }
            // What is not read yet waits at the sender, as before a slow link.
            thread::sleep(left.saturating_duration_since(Instant::now()));
        }
        let _ = from.shutdown(Shutdown::Read);
    });
    thread::spawn(move || {
        for (bytes, arrives) in receiver {
            thread::sleep(arrives.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

#[cfg(test)]
mod tests {
    use super::{DELAY, SlowLink};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;
    use std::time::{Duration, Instant};

    #[test]
    fn a_link_has_a_rate_and_a_delay() {
        const BYTES: usize = 1 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let answering = thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut question = [0; 4];
                stream.read_exact(&mut question).unwrap();
                stream.write_all(&vec![7; BYTES]).unwrap();
            }
        });
        // Two connections share the rate: 2 MiB at 20 Mbit/s are 0.84 s.
        let link = SlowLink::open(server, 20).unwrap();
        let begun = Instant::now();
        let ask = || {
            let mut stream = TcpStream::connect(link.address).unwrap();
            stream.write_all(b"give").unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, vec![7; BYTES]);
        };
        thread::scope(|scope| {
            let other = scope.spawn(ask);
            ask();
            other.join().unwrap();
        });
        let (took, least) = (begun.elapsed(), Duration::from_secs_f64(2.0 * BYTES as f64 * 8.0 / 20e6) + 4 * DELAY);
        assert!(took >= least && took < 3 * least, "{took:?}, {least:?} expected");
        answering.join().unwrap();
    }
}
