//! The errors of transfers, by what the caller can do about them.

use std::error::Error;
use std::time::Duration;

use super::url::redacted;
use crate::chain::chain;

/// The kind of a failure, which decides what can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchErrorKind {
    /// The source answered and does not have the object (HTTP 404 or 410, no such file). Another source may have it.
    Missing,
    /// The server answered with this HTTP status instead of the object. 5xx, 408, 425 and 429 can pass by themselves,
    /// the others need a person to change something.
    Refused(u16),
    /// No connection came about: no route, no answer, no such host, port closed, directory not mounted. This can pass.
    Unreachable,
    /// The connection brought no byte, or next to none, for the whole stall timeout. This can pass; the transfer is
    /// resumed.
    Stalled,
    /// The connection ended, or the medium failed, before the last byte. This can pass; the transfer is
    /// resumed.
    Broken,
    /// The source sends bytes, but so slowly that another source is asked for the rest.
    Slow,
    /// No trusted TLS connection came about: unknown CA, wrong name, no common protocol. Trying again does not help.
    Tls,
    /// The certificate is not valid at what this machine takes for the time, and the clock may not or cannot be moved
    /// any further. This can pass: the clock may be moved once no source is good with it, or be set by something else.
    /// All times are seconds since 1970.
    TlsTime {
        /// The machine's time.
        now: u64,
        /// The start of validity, when the machine's time is before it.
        not_before: Option<u64>,
        /// The end of validity, when the machine's time is after it.
        not_after: Option<u64>,
    },
    /// The server answered against HTTP or against the request: other range, other length, compressed, redirect loop.
    /// A broken proxy or cache can heal, so the source is asked again, but only a few times.
    Protocol,
    /// The bytes arrived and the caller's digest or signature refused them. Another source is asked, or the same one a
    /// few times.
    Corrupt,
    /// The content is genuine, and the caller has no use for it. Another source is asked.
    Unsuitable,
    /// The receiving side failed (disk, memory, a limit); no other source would help.
    Local,
    /// The configuration cannot be used: base URL, proxy or CA file.
    Settings,
}

/// The error of a transfer. `Display` has the URL, without credentials, and the quantities; causes are in the chain.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}{}{}", .details.url, .details.problem, after(.details.progress), tried(.details.attempts))]
pub struct FetchError {
    details: Box<Details>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// The content of an error, boxed because a `Result` is as large as its error.
#[derive(Debug)]
struct Details {
    kind: FetchErrorKind,
    url: String,
    problem: String,
    progress: Option<(u64, u64)>,
    retry_after: Option<Duration>,
    attempts: u32,
    /// A server refused by a status that usually stays.
    denied: bool,
    /// The same server has just delivered other files, so that the refusal may be a slip.
    doubted: bool,
}

fn after(progress: Option<(u64, u64)>) -> String {
    progress.map(|(got, wanted)| format!(" after {got} of {wanted} bytes")).unwrap_or_default()
}

fn tried(attempts: u32) -> String {
    if attempts > 1 { format!(", given up after {attempts} attempts") } else { String::new() }
}

impl FetchError {
    /// Makes an error about `url`, which is stripped of credentials here so that no message can leak them.
    pub fn new(kind: FetchErrorKind, url: &str, problem: impl Into<String>) -> Self {
        let (url, problem) = (redacted(url), problem.into());
        let (progress, retry_after, attempts, denied, doubted) = (None, None, 1, false, false);
        let details = Details { kind, url, problem, progress, retry_after, attempts, denied, doubted };
        Self { details: Box::new(details), source: None }
    }

    /// Adds the cause that belongs to a lower layer.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds how far the transfer had come.
    #[must_use]
    pub fn after(mut self, got: u64, wanted: u64) -> Self {
        self.details.progress = Some((got, wanted));
        self
    }

    /// Adds what had come of the transfer before the part that this error is about.
    #[must_use]
    pub(super) fn further(mut self, before: u64, wanted: u64) -> Self {
        let got = self.details.progress.map_or(0, |(got, _)| got);
        self.details.progress = Some((before + got, wanted)).filter(|(got, _)| *got > 0).or(self.details.progress);
        self
    }

    /// Adds the pause that the server asked for.
    #[must_use]
    pub(super) fn retry_after(mut self, wait: Option<Duration>) -> Self {
        self.details.retry_after = wait;
        self
    }

    /// Makes the error that of a server which refused by a status that usually stays, such as 403 or 404.
    #[must_use]
    pub(crate) fn denied(mut self) -> Self {
        self.details.denied = true;
        self
    }

    /// Casts doubt on the refusal of a server that has just delivered other files: content networks and stores refuse
    /// single requests because of a limit, a clock, an expired redirect or a cache that filled a moment too early.
    #[must_use]
    pub(super) fn doubted(mut self) -> Self {
        self.details.doubted = self.details.denied;
        self
    }

    /// Adds the proxy that the connection was to go through.
    #[must_use]
    pub(super) fn through(mut self, proxy: &str) -> Self {
        let addition = format!(" (through proxy {proxy})");
        if !self.details.problem.ends_with(&addition) {
            self.details.problem.push_str(&addition);
        }
        self
    }

    /// A copy for a concurrent request that would have met the same failure; the causes are flattened into its text.
    pub(super) fn clone_for_peer(&self) -> Self {
        let chain = self.chain();
        let words = chain.strip_prefix(self.url()).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&chain);
        Self::new(self.kind(), self.url(), words).retry_after(self.asked_to_wait()).refused_as(self)
    }

    /// Takes over what another error says of a refusal.
    fn refused_as(mut self, other: &Self) -> Self {
        (self.details.denied, self.details.doubted) = (other.details.denied, other.details.doubted);
        self
    }

    /// Adds the number of attempts, when there was more than one.
    #[must_use]
    pub(super) fn given_up(mut self, attempts: u32) -> Self {
        self.details.attempts = attempts;
        self
    }

    /// The kind of the failure.
    pub fn kind(&self) -> FetchErrorKind {
        self.details.kind
    }

    /// The URL, without credentials.
    pub fn url(&self) -> &str {
        &self.details.url
    }

    /// The pause the server asked for, already capped.
    pub fn asked_to_wait(&self) -> Option<Duration> {
        self.details.retry_after
    }

    /// Whether anything had come before it.
    pub(super) fn has_progress(&self) -> bool {
        self.details.progress.is_some_and(|(got, _)| got > 0)
    }

    /// Whether a server refused by a status that usually stays, such as 401, 403, 404, 407 or 410.
    pub fn is_denied(&self) -> bool {
        self.details.denied
    }

    /// Whether the source answers, and what is wrong is this one object: it is not there, is refused, or is not what it
    /// should be. Whoever can do without the object goes on without it: the others may be whole.
    pub fn is_of_the_object(&self) -> bool {
        use FetchErrorKind::{Corrupt, Missing, Protocol, Unsuitable};
        self.is_denied() || matches!(self.details.kind, Missing | Corrupt | Protocol | Unsuitable)
    }

    /// Whether such a refusal may be a slip, since the same server has just delivered other files.
    pub(super) fn is_doubted(&self) -> bool {
        self.details.doubted
    }

    /// Whether asking the same source again later can help although nothing is changed.
    pub fn is_retryable(&self) -> bool {
        match self.details.kind {
            _ if self.details.doubted => true,
            FetchErrorKind::Refused(status) => passes(status),
            FetchErrorKind::Unreachable
            | FetchErrorKind::Stalled
            | FetchErrorKind::Broken
            | FetchErrorKind::Slow
            | FetchErrorKind::Protocol
            | FetchErrorKind::Corrupt
            | FetchErrorKind::TlsTime { .. } => true,
            FetchErrorKind::Missing
            | FetchErrorKind::Tls
            | FetchErrorKind::Unsuitable
            | FetchErrorKind::Local
            | FetchErrorKind::Settings => false,
        }
    }

    /// The error and its causes on one line, for the console and for lists of several errors.
    pub fn chain(&self) -> String {
        chain(self)
    }

    /// Joins the errors of several sources: the kind that leaves most hope, and the text of every source.
    pub(super) fn summary(path: &str, mut errors: Vec<Self>) -> Option<Self> {
        if errors.len() < 2 {
            return errors.pop();
        }
        let lead = errors.iter().find(|error| error.is_retryable()).or_else(|| {
            // "One mirror lacks it" says less than "the other one's certificate is not trusted".
            errors.iter().find(|error| error.kind() != FetchErrorKind::Missing).or(errors.first())
        })?;
        let all: Vec<String> = errors.iter().map(Self::chain).collect();
        let problem = format!("none of {} sources could deliver it: {}", errors.len(), all.join("; "));
        Some(Self::new(lead.kind(), path, problem).retry_after(lead.asked_to_wait()).refused_as(lead))
    }
}

/// Whether a refusal with this HTTP status can pass by itself.
pub(super) fn passes(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502..=504 | 506..)
}

#[cfg(test)]
mod tests {
    use super::{FetchError, FetchErrorKind};

    #[test]
    fn the_message_has_url_quantities_and_cause_but_no_credentials() {
        let error =
            FetchError::new(FetchErrorKind::Broken, "http://user:secret@h.example/objects/ab", "the connection ended")
                .after(123_456, 500_000)
                .because(std::io::Error::other("reset"));
        assert_eq!(
            error.chain(),
            "http://h.example/objects/ab: the connection ended after 123456 of 500000 bytes: reset"
        );
    }

    #[test]
    fn only_what_can_pass_is_retryable() {
        for (kind, retryable) in [
            (FetchErrorKind::Missing, false),
            (FetchErrorKind::Refused(403), false),
            (FetchErrorKind::Refused(429), true),
            (FetchErrorKind::Refused(501), false),
            (FetchErrorKind::Refused(503), true),
            (FetchErrorKind::Stalled, true),
            (FetchErrorKind::Tls, false),
            (FetchErrorKind::Corrupt, true),
            (FetchErrorKind::Local, false),
        ] {
            assert_eq!(FetchError::new(kind, "u", "p").is_retryable(), retryable, "{kind:?}");
        }
    }

    #[test]
    fn a_refusal_is_doubted_only_where_the_server_has_delivered_before() {
        let refused = || FetchError::new(FetchErrorKind::Refused(403), "http://a/x", "403").denied();
        assert!(!refused().is_retryable() && refused().doubted().is_retryable());
        assert!(!FetchError::new(FetchErrorKind::Missing, "file:///x", "not there").doubted().is_retryable());
        let other = || FetchError::new(FetchErrorKind::Missing, "http://b/x", "404").denied();
        let summary = FetchError::summary("x", vec![other(), refused().doubted()]).unwrap();
        assert!(summary.is_denied() && summary.is_retryable());
        assert!(refused().doubted().clone_for_peer().is_retryable());
    }

    #[test]
    fn a_summary_takes_the_kind_that_leaves_most_hope() {
        let errors = vec![
            FetchError::new(FetchErrorKind::Missing, "http://a/x", "404"),
            FetchError::new(FetchErrorKind::Tls, "http://b/x", "CA"),
        ];
        let error = FetchError::summary("x", errors).unwrap();
        assert_eq!(error.kind(), FetchErrorKind::Tls);
        assert!(error.to_string().contains("http://a/x: 404; http://b/x: CA"), "{error}");
    }
}
