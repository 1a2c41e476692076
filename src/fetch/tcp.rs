//! Connections to whichever address of a host answers first (Happy Eyeballs, RFC 8305).
//!
//! ureq tries one address after the other and halves the time for each: of twelve addresses whose first eight lead
//! nowhere, the ninth would get less than a round trip.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, ShutdownHandle, Transport,
};
use ureq::{Error, Timeout};

use super::addresses::{AddressMemory, AddressTrial};
use crate::sys::net::bound;
use crate::sys::thread::background;

/// Head start of each address over the next one. RFC 8305 has 250 ms and allows 100: eight dead addresses cost 1.6 s.
const HEAD_START: Duration = Duration::from_millis(200);

/// Opens TCP connections.
#[derive(Debug, Clone, Default)]
pub(super) struct RacingConnector {
    pub addresses: Arc<AddressMemory>,
}

impl<In: Transport> Connector<In> for RacingConnector {
    type Out = Either<In, TcpTransport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        if let Some(transport) = chained {
            return Ok(Some(Either::A(transport)));
        }
        // The resolver has put them in order.
        let addresses = &details.addrs[..];
        let timeout = details.timeout.not_zero().map_or(Duration::MAX, |timeout| *timeout);
        let (narrowness, segments) = self.addresses.segments();
        let (address, stream) = first_of(addresses, segments, timeout).map_err(|error| {
            // The name may have others by now, or at another name server.
            addresses.iter().for_each(|address| self.addresses.not_reached(*address));
            match error.kind() {
                ErrorKind::TimedOut => Error::Timeout(Timeout::Connect),
                _ => Error::Io(error),
            }
        })?;
        // Those before it had a head start and lost it: the next connection need not wait for them.
        addresses.iter().take_while(|other| **other != address).for_each(|other| self.addresses.not_reached(*other));
        let trial = AddressTrial::new(&self.addresses, address, details.needs_tls(), narrowness);
        if details.config.no_delay() {
            stream.set_nodelay(true)?;
        }
        let stream = Arc::new(stream);
        (details.register_shutdown)(Arc::downgrade(&stream) as Weak<dyn ShutdownHandle>)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(TcpTransport { stream, buffers, trial })))
    }
}

/// Connects to the first address that answers; each later one starts when the one before it has failed, or has had its
/// head start. Packets carry at most so many bytes as `segments` says.
///
/// # Errors
/// The last failure, or [`ErrorKind::TimedOut`].
fn first_of(addresses: &[SocketAddr], segments: Option<u32>, timeout: Duration) -> io::Result<(SocketAddr, TcpStream)> {
    let connect = move |address: SocketAddr, timeout| {
        let stream = match segments {
            Some(most_bytes) => bound::tcp_in_segments(most_bytes, address, timeout),
            None => bound::tcp(None, address, timeout),
        };
        stream.map(|stream| (address, stream))
    };
    if let [only] = addresses {
        return connect(*only, timeout);
    }
    let until = Instant::now().checked_add(timeout);
    let left = || until.map_or(timeout, |until| until.saturating_duration_since(Instant::now()));
    let (sender, results) = channel();
    let mut waiting = addresses.iter().copied();
    let mut running = 0;
    let mut last = io::Error::from(ErrorKind::TimedOut);
    loop {
        let next = waiting.next();
        if let Some(address) = next {
            let (sender, timeout) = (sender.clone(), left().max(Duration::from_millis(1)));
            // Losers end by themselves: each connects within the time, and then closes.
            let started = background(&format!("connect {address}"), move || {
                let _ = sender.send(connect(address, timeout));
            });
            match started {
                Ok(()) => running += 1,
                // Those that were started may still answer.
                Err(error) => last = error,
            }
        } else if running == 0 {
            return Err(last);
        }
        let patience = if next.is_some() { HEAD_START.min(left()) } else { left() };
        match results.recv_timeout(patience) {
            Ok(Ok(first)) => return Ok(first),
            Ok(Err(error)) => {
                running -= 1;
                last = error;
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) if left().is_zero() => {
                return Err(ErrorKind::TimedOut.into());
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
}

/// One connection, with ureq's timeouts on each read and write.
pub(super) struct TcpTransport {
    /// Shared, so that ureq can shut it down while it is in use.
    stream: Arc<TcpStream>,
    buffers: LazyBuffers,
    trial: AddressTrial,
}

impl fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpTransport").field("address", &self.stream.peer_addr().ok()).finish()
    }
}

/// The time as a socket takes it: zero would mean for ever.
fn socket_timeout(timeout: NextTimeout) -> Option<Duration> {
    timeout.not_zero().map(|timeout| (*timeout).max(Duration::from_millis(1)))
}

fn in_time(timeout: NextTimeout) -> Result<NextTimeout, Error> {
    if timeout.after.is_zero() { Err(Error::Timeout(timeout.reason)) } else { Ok(timeout) }
}

fn with_reason(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}

impl Transport for TcpTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = in_time(timeout.for_write())?;
        self.stream.set_write_timeout(socket_timeout(timeout))?;
        self.trial.asked();
        let output = &self.buffers.output()[..amount];
        (&*self.stream).write_all(output).map_err(|error| with_reason(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = in_time(timeout.for_read())?;
        let until = timeout.not_zero().and_then(|timeout| Instant::now().checked_add(*timeout));
        self.stream.set_read_timeout(socket_timeout(timeout))?;
        let amount = loop {
            match (&*self.stream).read(self.buffers.input_append_buf()) {
                // A signal: the time that is left counts on.
                Err(error)
                    if error.kind() == ErrorKind::Interrupted && until.is_none_or(|until| Instant::now() < until) => {}
                Err(error) => {
                    let error = with_reason(error, timeout);
                    if matches!(error, Error::Timeout(_)) {
                        self.trial.waited();
                    }
                    return Err(error);
                }
                Ok(amount) => break amount,
            }
        };
        self.buffers.input_appended(amount);
        if amount > 0 {
            self.trial.answered(amount);
        }
        Ok(amount > 0)
    }

    /// Whether the connection can serve another request: nothing to read, and not closed.
    fn is_open(&mut self) -> bool {
        let probe = || {
            self.stream.set_nonblocking(true)?;
            let read = (&*self.stream).read(&mut [0]);
            self.stream.set_nonblocking(false)?;
            read
        };
        self.trial.may_be_kept() && matches!(probe(), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};
    use std::time::{Duration, Instant};

    use super::first_of;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// An address that refuses: nothing listens there any more.
    fn refusing() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    /// An address that never answers: its queue of connections is full, so the kernel drops what comes.
    fn silent() -> (socket::Full, SocketAddr) {
        socket::full()
    }

    mod socket {
        use std::net::{SocketAddr, TcpListener, TcpStream};
        use std::time::Duration;

        pub struct Full(#[expect(dead_code, reason = "kept open")] TcpListener, Vec<TcpStream>);

        pub fn full() -> (Full, SocketAddr) {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let mut full = Full(listener, Vec::new());
            while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
                full.1.push(stream);
                assert!(full.1.len() < 10_000, "the queue has no end");
            }
            (full, address)
        }
    }

    #[test]
    fn an_address_that_answers_wins_over_any_number_that_do_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let (_full, dead) = silent();
        // https://github.com/algesten/ureq/issues/1150: as large content networks answer, the first eight leading
        // nowhere.
        let mut addresses = vec![dead; 8];
        addresses.extend([refusing(), good]);
        let began = Instant::now();
        assert_eq!(first_of(&addresses, None, TIMEOUT).unwrap().0, good);
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        assert_eq!(first_of(&[good, dead], Some(536), TIMEOUT).unwrap().0, good);
    }

    #[test]
    fn when_none_answers_the_error_is_theirs() {
        let refused = first_of(&[refusing(), refusing(), refusing()], None, TIMEOUT).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let (_full, dead) = silent();
        let began = Instant::now();
        let timed_out = first_of(&[dead, dead], Some(1220), Duration::from_millis(500)).unwrap_err();
        assert_eq!(timed_out.kind(), std::io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= Duration::from_millis(450));
        assert!(first_of(&[], None, TIMEOUT).is_err());
    }
}
