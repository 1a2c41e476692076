//! Where bytes come from: mirrors over HTTP, or a directory. Nothing here is trusted; callers check every byte.
//!
//! A [`Source`] is one copy of the release tree. [`Mirrors`] are several copies behind the same trait, with everything
//! that makes a bad network usable: an order that remembers failures, resume in the middle, back-off, and other copies
//! when bytes turn out wrong. Ranges stream through a sink in bounded memory: at most a buffer of a pack is held.

mod addresses;
mod answer;
mod backoff;
mod cap;
mod chunks;
mod classify;
mod clock;
mod connect;
mod delivery;
mod directory;
mod error;
mod exchange;
mod habits;
mod head;
mod health;
mod http;
mod mirrors;
mod open_bodies;
mod pace;
mod paced_socket;
pub mod pages;
mod part;
mod part_size;
pub mod pieces;
mod proxy;
mod requests;
mod roots;
mod small;
mod speed;
mod survey;
mod tally;
mod tcp;
mod tls;
mod url;
mod watch;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use backoff::{backoff, poll_pause, start_offset};
pub use clock::{Clock, SystemClock};
pub use directory::Directory;
pub use error::{FetchError, FetchErrorKind};
pub use http::Http;
pub use mirrors::{Mirrors, Retry, RetryPolicy};

pub use survey::Surveyed;
pub use tls::{CertificateClock, ReadClock, SetClock};
pub use url::redacted;
pub use watch::SpeedWatch;

use crate::machine::config::{self, DirectHosts};
use cap::Cap;

/// A sink's reason to end a transfer early.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The receiving side failed. The transfer is given up.
    #[error("the received bytes could not be taken")]
    Local(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The bytes do not have the digest they should have. [`Mirrors`] marks the source that sent them and sends the
    /// object again from offset `from`, if possible from another source; the sink must be ready for that.
    #[error("wrong bytes from offset {from} on: {reason}")]
    Wrong {
        /// Offset in the object, inside the requested range and not behind what was delivered.
        from: u64,
        /// The expected and the found content, for the message.
        reason: String,
    },
}

/// A receiver of the bytes of a range, in order, piece by piece.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), SinkError>;

/// A judge of whole small objects before they are returned.
pub type Check<'a> = &'a mut dyn FnMut(&[Vec<u8>]) -> Result<(), Refusal>;

/// A [`Check`]'s reason to refuse what came, with words for the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The content is damaged, or not signed with a trusted key: asking again may bring what was meant.
    Wrong(String),
    /// The content is genuine and of no use here, as a release older than the installed one: only another source can
    /// help.
    Unsuitable(String),
}

impl Refusal {
    pub(crate) fn of(self, url: &str) -> FetchError {
        match self {
            Self::Wrong(why) => FetchError::new(FetchErrorKind::Corrupt, url, why),
            Self::Unsuitable(why) => FetchError::new(FetchErrorKind::Unsuitable, url, why),
        }
    }
}

/// Answer of a source about files that it may do without.
#[derive(Debug)]
pub enum SourceAnswer<'a> {
    /// All of them.
    Files {
        /// Content of each.
        content: &'a [Vec<u8>],
        /// Whether a person chose the source ([`Source::is_chosen`]).
        is_chosen: bool,
    },
    /// Not all, or a page or an error of the server in their place.
    Nothing {
        /// Whether a person chose the source.
        is_chosen: bool,
        /// Error that came instead.
        error: &'a FetchError,
    },
}

/// A judge of files that a source may do without.
pub type CheckFound<'a> = &'a mut dyn FnMut(SourceAnswer<'_>) -> Result<(), Refusal>;

/// A copy of the release tree. Paths are relative to its base: `stable/manifest.json`, `objects/<hex>`.
pub trait Source: Send + Sync {
    /// The name of the source on the console: the base URL without credentials.
    fn describe(&self) -> String;

    /// Whether the source can be asked now: a USB drive may be plugged in later, or pulled out.
    fn is_there(&self) -> bool {
        true
    }

    /// Whether a person chose the source for this very recovery, as by plugging it in: what it has is taken when it is
    /// the first that has anything, even if another source has something newer.
    fn is_chosen(&self) -> bool {
        false
    }

    /// Takes the watch over the rates of all sources, to which a source that can be slow reports what it receives.
    fn watch_speed(&mut self, watch: SpeedWatch) {
        drop(watch);
    }

    /// Asks every other copy than the one that delivered last for the same small objects, once and all at a time, and
    /// waits at most this long. A source that is one copy has no other.
    fn survey_others(&self, wanted: &[(&str, u64)], patience: Duration) -> Vec<Surveyed> {
        let _ = (wanted, patience);
        Vec::new()
    }

    /// Fetches a few small objects, all from the same copy, and returns them once `check` accepted them: a manifest and
    /// its signature belong together even while a mirror is being updated. Each path comes with the most bytes that the
    /// object may have.
    ///
    /// # Errors
    /// [`FetchErrorKind::Corrupt`] or [`FetchErrorKind::Unsuitable`] when `check` refused the objects,
    /// [`FetchErrorKind::Protocol`] when one is too large, else the error of the transfer.
    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError>;

    /// Fetches a few small objects as [`Source::get_checked`] does, where the source may have none of them: a status
    /// that says so, or a web page, is an answer too, and `check` decides what it is worth. Stores answer 403 for what
    /// is not there, and some servers with a page of theirs, with a redirect that leads nowhere, or not at all: a
    /// source that fails so and still delivers the `witness` lacks what was wanted.
    ///
    /// # Errors
    /// As [`Source::get_checked`].
    fn get_if_there(
        &self,
        wanted: &[(&str, u64)],
        witness: (&str, u64),
        check: CheckFound<'_>,
    ) -> Result<(), FetchError> {
        use FetchErrorKind::{Broken, Missing, Protocol, Refused, Stalled, Tls, Unreachable};
        let is_chosen = self.is_chosen();
        let error = match self.get_checked(wanted, &mut |content| check(SourceAnswer::Files { content, is_chosen })) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let is_nothing = match error.kind() {
            Missing | Protocol | Refused(_) => true,
            // Where the source itself cannot be reached, its witness would only cost as much time again.
            Unreachable | Tls => !error.url().starts_with(&self.describe()) && self.delivers(witness),
            Broken | Stalled => self.delivers(witness),
            _ => false,
        };
        if !is_nothing {
            return Err(error);
        }
        check(SourceAnswer::Nothing { is_chosen, error: &error }).map_err(|refusal| refusal.of(error.url()))
    }

    /// Whether the source delivers this file, whatever is in it.
    fn delivers(&self, (path, limit_bytes): (&str, u64)) -> bool {
        self.get_small(path, limit_bytes).is_ok()
    }

    /// Streams bytes `range` of an object to `sink`, in order, each exactly once except after [`SinkError::Wrong`].
    ///
    /// # Errors
    /// [`FetchErrorKind::Local`] when the sink failed, [`FetchErrorKind::Corrupt`] when it refused the bytes, else the
    /// error of the transfer. What was delivered before the error stays delivered.
    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError>;

    /// Fetches one small object that the caller checks later, or not at all.
    ///
    /// # Errors
    /// As [`Source::get_checked`].
    fn get_small(&self, path: &str, limit_bytes: u64) -> Result<Vec<u8>, FetchError> {
        let mut all = self.get_checked(&[(path, limit_bytes)], &mut |_| Ok(()))?;
        all.pop().ok_or_else(|| FetchError::new(FetchErrorKind::Local, path, "nothing was returned"))
    }
}

/// Settings that all connections share.
#[derive(Clone)]
pub struct FetchOptions {
    /// The URL of a proxy, `http://[user:password@]host:port`.
    pub proxy: Option<String>,
    /// Hosts that are reached without it.
    pub no_proxy: Vec<DirectHosts>,
    /// A PEM file with the only CA roots to trust; `None` means the bundled Mozilla roots.
    pub ca_file: Option<PathBuf>,
    /// The time to establish a connection, TLS included, and again the time to look up a name.
    pub connect_timeout: Duration,
    /// The longest time without a byte. It never limits a whole transfer: a slow link that is alive may take hours.
    pub stall_timeout: Duration,
    /// The most bytes per second that all connections made with these options and their clones take together.
    pub rate: Option<Rate>,
    /// The clock that certificates are checked against.
    pub certificate_clock: Arc<CertificateClock>,
    /// The clock that pauses and stalls are measured by.
    pub clock: Arc<dyn Clock>,
    /// Told whenever a server answered with what was asked for.
    pub on_served: Option<OnServed>,
}

/// Somebody who wants to know that a server over the network answers as it should.
pub type OnServed = Arc<dyn Fn() + Send + Sync>;

/// A bandwidth cap, which clones share.
#[derive(Clone)]
pub struct Rate(Arc<Cap>);

impl Rate {
    /// A cap of so many bytes per second, by this clock.
    pub fn of(bytes_per_s: u64, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Cap::new(bytes_per_s, clock)))
    }
}

impl FetchOptions {
    /// The options of a configuration, for a program that takes the system's clock as it is.
    pub fn with_clock_as_it_is(network: &config::Network) -> Self {
        Self::new(network, Arc::new(CertificateClock::fixed()))
    }

    /// The options of a configuration.
    pub fn new(network: &config::Network, certificate_clock: Arc<CertificateClock>) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        Self {
            proxy: network.proxy.clone(),
            no_proxy: network.no_proxy.clone(),
            ca_file: network.ca_file.as_ref().map(PathBuf::from),
            connect_timeout: network.connect_timeout,
            stall_timeout: network.stall_timeout,
            rate: network.max_bytes_per_s.map(|bytes_per_s| Rate::of(bytes_per_s, Arc::clone(&clock))),
            certificate_clock,
            clock,
            on_served: None,
        }
    }
}

/// Opens the source of one base URL: `http://`, `https://` or `file:///`.
///
/// # Errors
/// [`FetchErrorKind::Settings`] when the URL, the proxy or the CA file cannot be used. Nothing is connected yet.
pub fn open(base: &str, options: &FetchOptions) -> Result<Box<dyn Source>, FetchError> {
    if base.starts_with("file:") {
        return Ok(Box::new(Directory::from_url(base)?.with_stall_timeout(options.stall_timeout)));
    }
    Ok(Box::new(Http::new(base, options)?))
}

/// Opens those sources of a configuration that can be opened, in order, and returns the errors of the others: one
/// mistake in a list of mirrors must not take all of them away.
pub fn open_usable(bases: &[String], options: &FetchOptions) -> (Vec<Box<dyn Source>>, Vec<FetchError>) {
    let (mut sources, mut left_out) = (Vec::new(), Vec::new());
    for base in bases {
        match open(base, options) {
            Ok(source) => sources.push(source),
            Err(error) => left_out.push(error),
        }
    }
    // Plain http does without a CA file, and would hide until the first redirect that it cannot be used.
    if let Some(ca_file) = &options.ca_file
        && let Err(error) = tls::client_config(Some(ca_file), Arc::clone(&options.certificate_clock))
        && left_out.iter().all(|known| known.url() != error.url())
    {
        left_out.push(error);
    }
    (sources, left_out)
}

/// Opens the sources of all base URLs of a configuration, in order.
///
/// # Errors
/// As [`open`].
pub fn open_all(bases: &[String], options: &FetchOptions, retry_policy: RetryPolicy) -> Result<Mirrors, FetchError> {
    let sources = bases.iter().map(|base| open(base, options)).collect::<Result<Vec<_>, _>>()?;
    Ok(Mirrors::with_clock(sources, retry_policy, Arc::clone(&options.clock)))
}
