//! Telling a slow connection from one that only pretends to be alive, and keeping to a cap.

use std::io::Read;
use std::time::{Duration, Instant};

use super::cap::Cap;
use super::classify::classified_read;
use super::error::{FetchError, FetchErrorKind};

/// Bytes per second below which a connection counts as stalled, averaged over the stall timeout. Slower than any link
/// a robot has; it is here for servers that keep a connection alive with a byte now and then.
const MIN_RATE: u64 = 256;

/// Reads with an eye on the rate. Only the time spent waiting for the server counts, not what the sink takes to write,
/// and not what the cap asks for.
pub(super) struct Pace<'c> {
    window: Duration,
    cap: Option<&'c Cap>,
    waited: Duration,
    bytes: u64,
}

impl<'c> Pace<'c> {
    pub(super) fn new(window: Duration, cap: Option<&'c Cap>) -> Self {
        Self { window, cap, waited: Duration::ZERO, bytes: 0 }
    }

    pub(super) fn read(&mut self, url: &str, reader: &mut dyn Read, buffer: &mut [u8]) -> Result<usize, FetchError> {
        let most = self.cap.map_or(buffer.len(), |cap| cap.piece_bytes().min(buffer.len()));
        let start = Instant::now();
        let n = reader.read(&mut buffer[..most]).map_err(|error| classified_read(url, error))?;
        self.waited += start.elapsed();
        self.bytes += n as u64;
        // The end of a short object is no stall.
        if n > 0 && self.waited >= self.window {
            let least = MIN_RATE * self.window.as_secs();
            if self.bytes < least {
                let problem = format!("{} bytes in {} s count as a stall", self.bytes, self.waited.as_secs());
                return Err(FetchError::new(FetchErrorKind::Stalled, url, problem));
            }
            *self = Self::new(self.window, self.cap);
        }
        if let Some(cap) = self.cap {
            cap.pay(n);
        }
        Ok(n)
    }
}
