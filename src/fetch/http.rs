//! One mirror over HTTP or HTTPS: requests, and everything a server can answer wrongly.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::http::header::TRANSFER_ENCODING;
use ureq::{Agent, Proxy};

use super::answer::{HttpAnswer, check_content_range, is_redirect, redirected, sorted_out};
use super::classify::classified;
use super::error::{FetchError, FetchErrorKind};
use super::pace::Pace;
use super::{Check, Clock, FetchOptions, Rate, Sink, SinkError, Source, connect, tls, url};

/// The most redirects of one request: enough for a load balancer that sends to a region that sends to a bucket.
const MAX_REDIRECTS: usize = 5;
/// The most bytes that are read and dropped before a range, of a server without range support.
const MAX_SKIP: u64 = 64 << 20;
/// The connections kept for the next request: as many as requests are made at once.
const MAX_IDLE: usize = 4;
/// The most bytes that are read at once from the connection and handed to the sink.
const BUFFER: usize = 64 << 10;

/// A source at a base URL. Connections are kept alive and shared by all requests, from any thread.
pub struct Http {
    agent: Agent,
    base: String,
    stall_timeout: Duration,
    clock: Arc<dyn Clock>,
    rate: Option<Rate>,
}

impl Http {
    /// Makes the source at `base`, an `http://` or `https://` URL.
    ///
    /// # Errors
    /// [`FetchErrorKind::Settings`] when the URL, the proxy or the CA file cannot be used. Nothing is connected yet.
    pub fn new(base: &str, options: &FetchOptions) -> Result<Self, FetchError> {
        let settings = |problem: &str| FetchError::new(FetchErrorKind::Settings, base, problem);
        let uri: Uri = base.parse().map_err(|_| settings("this is not a URL"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(settings("this is not an http:// or https:// URL with a host"));
        }
        let proxy = match &options.proxy {
            None => None,
            Some(text) => {
                let error = || {
                    FetchError::new(FetchErrorKind::Settings, text, "this is not a proxy: expected http://host:port")
                };
                Some(Proxy::new(text).ok().filter(|_| text.starts_with("http://")).ok_or_else(error)?)
            }
        };
        let config = Config::builder()
            .http_status_as_error(false)
            // Redirects are followed here, where leaving https can be refused.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Set explicitly, as ureq would otherwise look into the environment.
            .proxy(proxy)
            .user_agent(concat!("reflash/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(options.connect_timeout))
            .timeout_connect(Some(options.connect_timeout))
            .timeout_send_request(Some(options.stall_timeout))
            .timeout_recv_response(Some(options.stall_timeout))
            // Per read, not for the body: a slow link that is alive must be able to finish.
            .timeout_per_read(Some(options.stall_timeout))
            // Well below the input buffer, so that an endless head is distinguished from a broken connection.
            .max_response_header_size(16 << 10)
            .input_buffer_size(BUFFER)
            .output_buffer_size(16 << 10)
            // All to one host, for one request each; ureq's own limit for a host is below what the writer uses.
            .max_idle_connections(MAX_IDLE)
            .max_idle_connections_per_host(MAX_IDLE)
            .build();
        let tls = tls::client_config(options.ca_file.as_deref(), Arc::clone(&options.certificate_clock))?;
        let base = base.trim_end_matches('/').to_owned();
        let agent = connect::agent(config, tls);
        let (clock, rate) = (Arc::clone(&options.clock), options.rate.clone());
        Ok(Self { agent, base, stall_timeout: options.stall_timeout, clock, rate })
    }

    fn pace(&self) -> Pace<'_> {
        Pace::new(self.stall_timeout, &*self.clock, self.rate.as_ref().map(|rate| &*rate.0))
    }

    fn url(&self, path: &str) -> Result<String, FetchError> {
        if !url::is_relative(path) {
            return Err(FetchError::new(
                FetchErrorKind::Local,
                &self.base,
                format!("{path:?} is not a path in a release"),
            ));
        }
        Ok(format!("{}/{path}", self.base))
    }

    /// Posts a JSON document to the base URL itself. The answer's body is of no interest.
    ///
    /// # Errors
    /// The error of the transfer, or [`FetchErrorKind::Refused`] with the status.
    pub fn post_json(&self, document: &str) -> Result<(), FetchError> {
        let request = self.agent.post(&self.base).header("Content-Type", "application/json");
        let response = request.send(document).map_err(|error| self.no_answer(&self.base, error))?;
        sorted_out(self.base.clone(), response).map(drop)
    }

    /// Says which proxy was in the way, as it is the proxy that could not be reached and not the host in the URL.
    fn no_answer(&self, url: &str, error: ureq::Error) -> FetchError {
        let error = classified(url, error);
        match self.agent.config().proxy() {
            Some(proxy) if error.kind() == FetchErrorKind::Unreachable => {
                error.through(&format!("{}:{}", proxy.host(), proxy.port()))
            }
            _ => error,
        }
    }

    fn request(&self, path: &str, range: Option<&Range<u64>>) -> Result<HttpAnswer, FetchError> {
        let mut url = self.url(path)?;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&url);
            if let Some(range) = range {
                request = request.header("Range", format!("bytes={}-{}", range.start, range.end - 1));
            }
            let response = request.call().map_err(|error| self.no_answer(&url, error))?;
            log::debug!("GET {} {range:?}: {}", url::redacted(&url), response.status());
            if !is_redirect(response.status()) {
                return sorted_out(url, response);
            }
            url = redirected(&url, response.headers())?;
        }
        Err(FetchError::new(FetchErrorKind::Protocol, &url, format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn small(&self, path: &str, limit_bytes: u64) -> Result<Vec<u8>, FetchError> {
        let answer = self.request(path, None)?;
        let HttpAnswer { url, status, body, .. } = answer;
        if status != 200 {
            return Err(FetchError::new(FetchErrorKind::Protocol, &url, format!("status {status} instead of 200")));
        }
        let too_large = |size: String| {
            FetchError::new(
                FetchErrorKind::Protocol,
                &url,
                format!("{size} bytes, but at most {limit_bytes} are expected"),
            )
        };
        if let Some(size) = body.content_length().filter(|size| *size > limit_bytes) {
            return Err(too_large(size.to_string()));
        }
        let mut pace = self.pace();
        let mut reader = body.into_reader();
        let mut bytes = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            match pace.read(&url, &mut reader, &mut buffer)? {
                0 => return Ok(bytes),
                n if bytes.len() as u64 + n as u64 > limit_bytes => return Err(too_large("more".to_owned())),
                n => bytes.extend_from_slice(&buffer[..n]),
            }
        }
    }
}

impl Source for Http {
    fn describe(&self) -> String {
        url::redacted(&self.base)
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        let all = wanted.iter().map(|(path, limit)| self.small(path, *limit)).collect::<Result<Vec<_>, _>>()?;
        let first = wanted.first().map_or("", |(path, _)| path);
        check(&all).map_err(|refusal| refusal.of(&format!("{}/{first}", self.base)))?;
        Ok(all)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        if range.is_empty() {
            return Ok(());
        }
        let HttpAnswer { url, status, headers, body } = self.request(path, Some(&range))?;
        let wanted = range.end - range.start;
        let skip = match status {
            206 => {
                check_content_range(&url, &headers, &range)?;
                0
            }
            // No range support, or none for this object: the whole object comes.
            200 if range.start <= MAX_SKIP => range.start,
            200 => {
                let problem = format!("the server ignores ranges and {} bytes lie before the wanted ones", range.start);
                return Err(FetchError::new(FetchErrorKind::Protocol, &url, problem));
            }
            _ => {
                let problem = format!("status {status} to a request for bytes {} to {}", range.start, range.end - 1);
                return Err(FetchError::new(FetchErrorKind::Protocol, &url, problem));
            }
        };
        let promised = body.content_length();
        let right_size = promised.is_none_or(|size| if status == 206 { size == wanted } else { size >= range.end });
        if !right_size {
            let expected = if status == 206 { wanted } else { range.end };
            let problem = format!("{} bytes are announced where {expected} are expected", promised.unwrap_or_default());
            return Err(FetchError::new(FetchErrorKind::Protocol, &url, problem));
        }
        // Only then is it known where the body ends, and only a body read to its end frees the connection for reuse.
        let delimited = status == 206 && (promised.is_some() || headers.contains_key(TRANSFER_ENCODING));
        let mut reader = body.into_reader();
        let mut pace = self.pace();
        deliver(&url, &mut reader, &mut pace, skip, wanted, sink)?;
        if delimited {
            // A failure here costs nothing but the connection: all that was asked for is delivered.
            let extra = reader.read(&mut [0; 1]).unwrap_or(0);
            if extra > 0 {
                return Err(
                    FetchError::new(FetchErrorKind::Protocol, &url, "more bytes than asked for").after(wanted, wanted)
                );
            }
        }
        Ok(())
    }
}

/// Drops `skip` bytes, then hands `wanted` bytes to the sink.
fn deliver(
    url: &str,
    reader: &mut dyn Read,
    pace: &mut Pace<'_>,
    skip: u64,
    wanted: u64,
    sink: Sink<'_>,
) -> Result<(), FetchError> {
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
