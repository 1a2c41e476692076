//! Requests and answers on one connection: heads and frames are brought into one form, and a connection that was closed
//! while nothing was asked on it is distinguished from one that breaks.
//!
//! ureq's parser stands behind it. It is strict about heads and frames, and counts interim answers (100, 102, 103)
//! together with the answer against one limit; what servers of the field send goes through [`HeadReader`] and
//! [`Chunks`] first.

use std::fmt;
use std::io;
use std::time::Instant;

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use super::chunks::Chunks;
use super::head::{HeadReader, Progress};

/// A connection that was kept after an earlier answer, and that the server had closed before it answered this request,
/// or that stayed silent ([`io::ErrorKind::TimedOut`]). The request can be sent once more: nothing says that it was
/// looked at, and all requests of this program may be repeated (RFC 9112, 9.3.1).
#[derive(Debug, thiserror::Error)]
#[error("the kept connection brought no answer")]
pub(super) struct UnansweredOnKept(#[source] pub io::Error);

/// Wraps connections of every kind in an [`Exchange`].
#[derive(Debug)]
pub(super) struct ExchangeConnector;

impl<In: Transport> Connector<In> for ExchangeConnector {
    type Out = Exchange<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let (requests, answered, place, read) = (0, true, Place::default(), Input::default());
        Ok(chained.map(|inner| Exchange { inner, requests, answered, place, read }))
    }
}

/// A connection that knows where it is between request and answer.
pub(super) struct Exchange<T> {
    inner: T,
    requests: u32,
    /// Whether a byte of the answer to the last request came.
    answered: bool,
    place: Place,
    read: Input,
}

/// The part of an answer that comes next.
#[derive(Debug)]
enum Place {
    Head(HeadReader),
    Chunked(Chunks),
    /// A body that ends by its length or with the connection, or what is no HTTP.
    Plain,
}

impl Default for Place {
    fn default() -> Self {
        Self::Head(HeadReader::default())
    }
}

/// The bytes for ureq.
#[derive(Debug, Default)]
struct Input {
    bytes: Vec<u8>,
    consumed: usize,
    /// Whether the last look at them took some.
    progress: bool,
}

impl Input {
    fn unconsumed(&self) -> &[u8] {
        self.bytes.get(self.consumed..).unwrap_or_default()
    }

    fn consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        self.consumed = self.consumed.saturating_add(amount).min(self.bytes.len());
    }

    /// Makes room at the end.
    fn compact(&mut self) {
        self.bytes.drain(..self.consumed);
        self.consumed = 0;
    }
}

impl<T: Transport> Exchange<T> {
    /// The error of a connection that failed: as it is, unless the connection is a kept one without a sign of life.
    fn failed(&self, error: Error) -> Error {
        let is_kept = self.requests > 1 && !self.answered;
        match error {
            Error::Io(cause) if is_kept => Error::Other(Box::new(UnansweredOnKept(cause))),
            Error::Timeout(_) if is_kept => Error::Other(Box::new(UnansweredOnKept(io::ErrorKind::TimedOut.into()))),
            error => error,
        }
    }

    /// Reads from the connection; whether anything came.
    fn receive(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        match self.inner.await_input(timeout) {
            // The end of an answer that has begun may be how it is delimited; only ureq knows.
            Ok(false) if self.answered => Ok(false),
            Ok(false) => Err(self.failed(Error::Io(io::ErrorKind::UnexpectedEof.into()))),
            Ok(true) => {
                self.answered = true;
                Ok(true)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Brings what was received into the form for ureq.
    fn pass(&mut self) -> Result<(), Error> {
        self.read.compact();
        let buffers = self.inner.buffers();
        while !buffers.input().is_empty() {
            let input = buffers.input();
            let (taken, next) = match &mut self.place {
                Place::Head(head) => match head.take(input).map_err(|error| Error::Other(Box::new(error)))? {
                    (taken, Progress::More) => (taken, None),
                    (taken, Progress::Whole { head, is_chunked }) => {
                        self.read.bytes.extend_from_slice(&head);
                        (taken, Some(if is_chunked { Place::Chunked(Chunks::default()) } else { Place::Plain }))
                    }
                    (taken, Progress::NotHttp(bytes)) => {
                        self.read.bytes.extend_from_slice(&bytes);
                        (taken, Some(Place::Plain))
                    }
                },
                Place::Chunked(chunks) => {
                    chunks.pass(input, &mut self.read.bytes);
                    (input.len(), None)
                }
                Place::Plain => {
                    self.read.bytes.extend_from_slice(input);
                    (input.len(), None)
                }
            };
            buffers.input_consume(taken);
            if let Some(next) = next {
                self.place = next;
            }
        }
        Ok(())
    }
}

impl<T: Transport> Transport for Exchange<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.answered {
            self.requests = self.requests.saturating_add(1);
            self.answered = false;
            self.place = Place::default();
        }
        self.inner.transmit_output(amount, timeout).map_err(|error| self.failed(error))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let patience = timeout.for_read();
        let until = patience.not_zero().and_then(|patience| Instant::now().checked_add(*patience));
        let before = self.read.unconsumed().len();
        loop {
            let progress = self.receive(timeout)?;
            self.pass()?;
            // To a reader of a body, nothing would be its end.
            let is_frame = matches!(self.place, Place::Chunked(_)) && self.read.unconsumed().len() == before;
            if !progress || !is_frame {
                return Ok(progress);
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(Error::Timeout(patience.reason));
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.read.unconsumed().is_empty() && self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

/// What ureq writes goes straight to the connection, and what it reads comes from here.
impl<T: Transport> Buffers for Exchange<T> {
    fn output(&mut self) -> &mut [u8] {
        self.inner.buffers().output()
    }

    fn input(&self) -> &[u8] {
        self.read.unconsumed()
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.inner.buffers().input_append_buf()
    }

    fn input_appended(&mut self, amount: usize) {
        self.inner.buffers().input_appended(amount);
    }

    fn input_consume(&mut self, amount: usize) {
        self.read.consume(amount);
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.inner.buffers().tmp_and_output()
    }

    fn can_use_input(&self) -> bool {
        self.read.progress && !self.read.unconsumed().is_empty()
    }
}

impl<T: Transport> fmt::Debug for Exchange<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("inner", &self.inner).finish_non_exhaustive()
    }
}
