//! Hands the bytes of an answer to the sink of whoever asked.

use std::io::Read;

use super::answer::{WEB_PAGE, is_web_page};
use super::error::{FetchError, FetchErrorKind};
use super::pace::Pace;
use super::part::Part;
use super::{Sink, SinkError};

/// The most bytes that are read at once from the connection and handed to the sink.
pub(super) const BUFFER: usize = 64 << 10;

/// Drops what lies before the wanted bytes of a body, then hands those to the sink.
pub(super) fn deliver(
    url: &str,
    reader: &mut dyn Read,
    pace: &mut Pace<'_>,
    status: u16,
    part: Part,
    sink: Sink<'_>,
) -> Result<(), FetchError> {
    let Part { skip_bytes: skip, take_bytes: wanted, .. } = part;
    let mut buffer = vec![0; BUFFER];
    let mut got = 0;
    while got < skip + wanted {
        let (done, of) = if got < skip { (got, skip) } else { (got - skip, wanted) };
        let most = usize::try_from(of - done).unwrap_or(BUFFER).min(BUFFER);
        let delivered = got.saturating_sub(skip);
        let n = pace.read(url, reader, &mut buffer[..most]).map_err(|error| error.after(delivered, wanted))?;
        if n == 0 {
            return Err(FetchError::new(FetchErrorKind::Broken, url, "the answer ended").after(delivered, wanted));
        }
        // Without a length, a page looks like an object that comes whole.
        if got == 0 && status != 206 && is_web_page(&buffer[..n]) {
            return Err(FetchError::new(FetchErrorKind::Protocol, url, WEB_PAGE));
        }
        if got >= skip {
            sink(&buffer[..n]).map_err(|error| refused_by_sink(url, error).after(delivered, wanted))?;
        }
        got += n as u64;
    }
    Ok(())
}

/// The error of a transfer whose sink refused the bytes.
pub(super) fn refused_by_sink(url: &str, error: SinkError) -> FetchError {
    match error {
        SinkError::Local(cause) => {
            FetchError::new(FetchErrorKind::Local, url, "the received bytes could not be taken").because(cause)
        }
        SinkError::Wrong { .. } => FetchError::new(FetchErrorKind::Corrupt, url, error.to_string()),
    }
}
