//! The connection below TLS, which has to keep moving.
//!
//! rustls reads on until a record is whole, or the handshake is done, and each of its reads would have the whole
//! timeout: a server that sends a byte now and then could hold it for hours.

use std::io::{self, Read, Write};
use std::time::Instant;

use ureq::Error;
use ureq::unversioned::transport::{NextTimeout, TransportAdapter};

/// Bytes per second below which a connection counts as stalled, averaged over the stall timeout. Every link that a
/// robot has is faster; the limit is here for servers that keep a connection alive with a byte now and then.
pub(super) const MIN_RATE: u64 = 256;

/// A connection below TLS, with a least rate.
pub(super) struct PacedSocket {
    socket: TransportAdapter,
    timeout: NextTimeout,
    /// Bytes per second below which a window is the last.
    least_rate: u64,
    began: Instant,
    bytes: u64,
}

impl PacedSocket {
    /// A socket for a handshake, which has to be done within the timeout whatever its rate.
    pub(super) fn new(socket: TransportAdapter, timeout: NextTimeout) -> Self {
        let mut this = Self { socket, timeout, least_rate: u64::MAX, began: Instant::now(), bytes: 0 };
        this.begin(timeout, u64::MAX);
        this
    }

    /// Begins a read or a write that has this timeout for each window, as long as the rate is no lower.
    pub(super) fn begin(&mut self, timeout: NextTimeout, least_rate: u64) {
        (self.timeout, self.least_rate, self.began, self.bytes) = (timeout, least_rate, Instant::now(), 0);
        self.socket.set_timeout(timeout);
    }

    /// Whether the connection can serve another request.
    pub(super) fn is_open(&mut self) -> bool {
        self.socket.get_mut().is_open()
    }

    fn check(&mut self) -> io::Result<()> {
        let window = self.timeout.for_read();
        let Some(most) = window.not_zero().map(|most| *most) else { return Ok(()) };
        if self.began.elapsed() < most {
            return Ok(());
        }
        if self.bytes < self.least_rate.saturating_mul(most.as_secs().max(1)) {
            return Err(Error::Timeout(window.reason).into_io());
        }
        (self.began, self.bytes) = (Instant::now(), 0);
        Ok(())
    }
}

impl Read for PacedSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        let amount = self.socket.read(buffer)?;
        self.bytes = self.bytes.saturating_add(amount as u64);
        Ok(amount)
    }
}

impl Write for PacedSocket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}
