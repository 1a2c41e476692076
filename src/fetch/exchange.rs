//! Requests and answers on one connection: interim answers are dropped, and a connection that was closed while nothing
//! was asked on it is distinguished from one that breaks.
//!
//! ureq reads interim answers (100, 102, 103) itself, and counts them together with the answer against one limit for
//! the size of a head, so that hints in front of an answer would make it too large. Dropping them here leaves that
//! limit to the answer alone.

use std::fmt;
use std::io;

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// The most bytes of interim answers before one answer. Each of them is read and dropped at once, so that the limit is
/// about time and not about memory.
const MAX_INTERIM_BYTES: usize = 16 << 20;
/// The length of a version and a status, as far as they say whether an answer is an interim one.
const STATUS_LEN: usize = "HTTP/1.1 103".len();

/// A connection that was kept after an earlier answer, and that the server had closed before it answered this request.
/// The request can be sent once more: nothing says that it was looked at, and all requests of this program may be
/// repeated (RFC 9112, 9.3.1).
#[derive(Debug, thiserror::Error)]
#[error("the kept connection was closed")]
pub(super) struct ClosedWhileIdle(#[source] pub io::Error);

/// More interim answers than any server means.
#[derive(Debug, thiserror::Error)]
#[error("more than {MAX_INTERIM_BYTES} bytes of interim answers")]
pub(super) struct TooManyInterim;

/// Wraps connections of every kind in an [`Exchange`].
#[derive(Debug)]
pub(super) struct ExchangeConnector;

impl<In: Transport> Connector<In> for ExchangeConnector {
    type Out = Exchange<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|inner| Exchange { inner, requests: 0, answered: true, interim: Interim::default() }))
    }
}

/// A connection that knows where it is between request and answer.
pub(super) struct Exchange<T> {
    inner: T,
    requests: u32,
    /// Whether a byte of the answer to the last request came.
    answered: bool,
    interim: Interim,
}

impl<T: Transport> Exchange<T> {
    /// The error of a connection that failed: as it is, unless the connection is a kept one without a sign of life.
    fn failed(&self, error: Error) -> Error {
        match error {
            Error::Io(cause) if self.requests > 1 && !self.answered => Error::Other(Box::new(ClosedWhileIdle(cause))),
            error => error,
        }
    }
}

impl<T: Transport> Transport for Exchange<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.answered {
            self.requests = self.requests.saturating_add(1);
            self.answered = false;
            self.interim = Interim::default();
        }
        self.inner.transmit_output(amount, timeout).map_err(|error| self.failed(error))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let progress = match self.inner.await_input(timeout) {
            Ok(false) => Err(self.failed(Error::Io(io::ErrorKind::UnexpectedEof.into()))),
            result => result.map_err(|error| self.failed(error)),
        };
        // The end of an answer that has begun may be how it is delimited; only ureq knows.
        let progress = match progress {
            Err(Error::Io(cause)) if cause.kind() == io::ErrorKind::UnexpectedEof && self.answered => return Ok(false),
            result => result?,
        };
        self.answered |= progress;
        let buffers = self.inner.buffers();
        loop {
            match self.interim.take(buffers.input()) {
                0 => return Ok(progress),
                dropped if self.interim.dropped_bytes <= MAX_INTERIM_BYTES => buffers.input_consume(dropped),
                _ => return Err(Error::Other(Box::new(TooManyInterim))),
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

impl<T: fmt::Debug> fmt::Debug for Exchange<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// The place within the interim answers before an answer.
#[derive(Debug, Default)]
struct Interim {
    place: Place,
    dropped_bytes: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At the first byte of a head, of which kind it is not known.
    #[default]
    Head,
    /// At the first byte of a line of an interim head.
    Line,
    /// Within such a line.
    MidLine,
    /// In the answer itself: nothing is dropped any more.
    Answer,
}

impl Interim {
    /// The bytes at the front of `input` that belong to an interim answer and are to be dropped; 0 if there are none,
    /// or more has to come before that is known.
    fn take(&mut self, input: &[u8]) -> usize {
        let dropped = match self.place {
            Place::Answer => 0,
            Place::Head if input.len() < STATUS_LEN => 0,
            Place::Head if is_interim(input) => {
                self.place = Place::MidLine;
                STATUS_LEN
            }
            Place::Head => {
                self.place = Place::Answer;
                0
            }
            Place::Line => match input {
                [b'\r', b'\n', ..] => self.at_head(2),
                [b'\n', ..] => self.at_head(1),
                [] | [b'\r'] => 0,
                _ => {
                    self.place = Place::MidLine;
                    1
                }
            },
            Place::MidLine => match input.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.place = Place::Line;
                    end + 1
                }
                None => input.len(),
            },
        };
        self.dropped_bytes = self.dropped_bytes.saturating_add(dropped);
        dropped
    }

    fn at_head(&mut self, dropped: usize) -> usize {
        self.place = Place::Head;
        dropped
    }
}

/// Whether a head is that of an interim answer. 101 is not one: it ends HTTP on the connection.
fn is_interim(input: &[u8]) -> bool {
    matches!(input.get(..STATUS_LEN), Some([b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', b'1', tens, ones])
        if tens.is_ascii_digit() && ones.is_ascii_digit() && !(*tens == b'0' && *ones == b'1'))
}

#[cfg(test)]
mod tests {
    use super::{Interim, Place};

    /// What is left of a stream that arrives in pieces of this size.
    fn left(stream: &[u8], piece: usize) -> Vec<u8> {
        let (mut interim, mut buffer) = (Interim::default(), Vec::new());
        for part in stream.chunks(piece) {
            buffer.extend_from_slice(part);
            loop {
                let dropped = interim.take(&buffer);
                if dropped == 0 {
                    break;
                }
                buffer.drain(..dropped);
            }
        }
        buffer
    }

    #[test]
    fn interim_answers_of_any_size_and_number_are_dropped_however_they_arrive() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 31\r\n\r\nHTTP/1.1 103 is only body here\n".to_vec();
        let long = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "x".repeat(100_000));
        let cases = [
            String::new(),
            "HTTP/1.1 100 Continue\r\n\r\n".to_owned(),
            "HTTP/1.1 100 Continue\r\nServer: a\r\n\r\n".repeat(300),
            "HTTP/1.0 102\n\n".to_owned(),
            format!("{long}HTTP/1.1 199 What\r\nA: b\r\n\r\n{long}"),
        ];
        for before in cases {
            let stream = [before.as_bytes(), &answer].concat();
            for piece in [1, 2, 7, 1000, stream.len()] {
                assert!(left(&stream, piece) == answer, "in pieces of {piece}: {}", &before[..before.len().min(80)]);
            }
        }
    }

    #[test]
    fn what_is_no_interim_answer_is_left_alone() {
        for stream in ["HTTP/1.1 101 Switching Protocols\r\n\r\n", "SSH-2.0-OpenSSH_9.2p1\r\n", "HTTP/1.1 1", "<html>"]
        {
            assert_eq!(left(stream.as_bytes(), 3), stream.as_bytes());
        }
        let mut interim = Interim::default();
        assert_eq!((interim.take(b"HTTP/1.1 200 OK"), interim.place), (0, Place::Answer));
    }
}
