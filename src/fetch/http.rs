//! One mirror over HTTP or HTTPS: requests, and everything a server can answer wrongly.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ureq::config::Config;
use ureq::http::header::{AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, TRANSFER_ENCODING};
use ureq::http::{Response, Uri};
use ureq::{Agent, Body, Proxy};

use super::addresses::AddressMemory;
use super::answer::{HttpAnswer, WEB_PAGE, is_redirect, is_web_page, redirected, sorted_out};
use super::classify::{classified, is_closed_while_idle, is_no_tls};
use super::delivery::{BUFFER, deliver};
use super::error::{FetchError, FetchErrorKind};
use super::pace::Pace;
use super::part::{self, Head, Part};
use super::url::Base;
use super::watch::SpeedWatch;
use super::{Check, Clock, FetchOptions, Rate, Sink, Source, connect, tls, url};
use crate::release::manifest::OBJECTS_PATH;

/// The most redirects of one request: a load balancer sends to a mirror that sends to a region that sends to a bucket,
/// each of them first to itself with a slash or a token. Browsers follow 20.
const MAX_REDIRECTS: usize = 10;
/// The most answers to one range that bring less than [`SMALL_PART`] and not its end: a server that gives a range in
/// crumbs would otherwise cost a round trip for each of them.
const MAX_SMALL_PARTS: u32 = 64;
/// The bytes from which on a part of a range counts as one that is worth its request.
const SMALL_PART: u64 = 64 << 10;
/// Refusals of ranges in a row that may be of the object or of the moment.
const PASSING_REFUSALS: u32 = 2;
/// The most addresses of a host that are asked in one attempt, if each of them takes the connection and does not
/// answer.
const MAX_UNSERVED: u32 = 16;
/// The connections kept for the next request: as many as requests are made at once.
const MAX_IDLE: usize = 4;

/// An answer, and what it has of a range.
type PartAnswer = (HttpAnswer, Part);

/// A source at a base URL. Connections are kept alive and shared by all requests, from any thread.
pub struct Http {
    agent: Agent,
    addresses: Arc<AddressMemory>,
    base: Base,
    /// The value of the Authorization header for the base.
    authorization: Option<String>,
    watch: Option<SpeedWatch>,
    stall_timeout: Duration,
    clock: Arc<dyn Clock>,
    rate: Option<Rate>,
    /// Whether something came that is not what it should be: from then on caches are asked to look for themselves.
    distrusts_caches: AtomicBool,
    /// Ranges that were refused since one came.
    refused_ranges: AtomicU32,
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
        // What follows is for browsers alone, and http::Uri drops it without a word.
        if base.contains('#') {
            return Err(settings("a URL with a #fragment is no base for files; write %23 if the # is part of a name"));
        }
        let is_direct = uri.host().is_some_and(|host| options.no_proxy.iter().any(|hosts| hosts.has(host)));
        let proxy = match options.proxy.as_ref().filter(|_| !is_direct) {
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
            .timeout_per_write(Some(options.stall_timeout))
            // What ureq sees is a head that was read and shortened before.
            .max_response_header_size(512 << 10)
            .input_buffer_size(BUFFER)
            .output_buffer_size(16 << 10)
            // All to one host, for one request each; ureq's own limit for a host is below what the writer uses.
            .max_idle_connections(MAX_IDLE)
            .max_idle_connections_per_host(MAX_IDLE)
            .build();
        let tls = match tls::client_config(options.ca_file.as_deref(), Arc::clone(&options.certificate_clock)) {
            // Only a redirect to https would need it; that then fails with this error.
            Err(error) if uri.scheme_str() == Some("http") => Err(error),
            result => Ok(result?),
        };
        let (base, credentials) = url::without_credentials(base);
        let (base, authorization) = (Base::new(&base), credentials.map(basic));
        let (agent, addresses) = connect::agent(config, tls);
        let (clock, rate) = (Arc::clone(&options.clock), options.rate.clone());
        Ok(Self {
            agent,
            addresses,
            base,
            authorization,
            watch: None,
            stall_timeout: options.stall_timeout,
            clock,
            rate,
            distrusts_caches: AtomicBool::new(false),
            refused_ranges: AtomicU32::new(0),
        })
    }

    fn pace<'s>(&'s self, path: &'s str) -> Pace<'s> {
        let watch = self.watch.as_ref().map(|watch| (watch, path));
        Pace::new(self.stall_timeout, &*self.clock, self.rate.as_ref().map(|rate| &*rate.0), watch)
    }

    fn url(&self, path: &str) -> Result<String, FetchError> {
        if !url::is_relative(path) {
            let problem = format!("{path:?} is not a path in a release");
            return Err(FetchError::new(FetchErrorKind::Local, &self.base.itself(), problem));
        }
        Ok(self.base.join(path))
    }

    /// Posts a JSON document to the base URL itself. The answer's body is of no interest. A redirect is not followed:
    /// what a login page takes is not delivered.
    ///
    /// # Errors
    /// The error of the transfer, or [`FetchErrorKind::Refused`] with the status.
    pub fn post_json(&self, document: &str) -> Result<(), FetchError> {
        let url = self.base.itself();
        let response = self.ask(&url, || {
            let mut request = self.agent.post(&url).header("Content-Type", "application/json");
            if let Some(authorization) = &self.authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            request.send(document)
        })?;
        let answer = self.sorted_out(url.clone(), response)?;
        match answer.status {
            // A login page answers everything, and what it takes is not delivered either.
            200..=299 if answer.is_called_html() => Err(FetchError::new(FetchErrorKind::Protocol, &url, WEB_PAGE)),
            200..=299 => Ok(()),
            status => Err(FetchError::new(FetchErrorKind::Refused(status), &url, format!("HTTP status {status}"))),
        }
    }

    /// Sends a request, and sends it again when it went to a kept connection that the server had closed meanwhile, or
    /// to an address that took the connection and did not answer while the host has others. Each failure uses up one
    /// such connection or address.
    fn ask(
        &self,
        url: &str,
        send: impl Fn() -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, FetchError> {
        let (mut closed, mut unserved) = (0, 0);
        loop {
            let before = self.addresses.unserved();
            let error = match send() {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            if is_closed_while_idle(&error) && closed <= MAX_IDLE {
                closed += 1;
                log::debug!("{}: the kept connection was closed, asking on another one", url::redacted(url));
                continue;
            }
            let was_unserved = self.addresses.unserved() > before && unserved < MAX_UNSERVED;
            let error = self.no_answer(url, error);
            // What a certificate says about the time is for the clock to judge, and not for another address.
            let is_of_the_time = matches!(error.kind(), FetchErrorKind::TlsTime { .. });
            if !was_unserved || is_of_the_time || !self.has_other_address(url) {
                return Err(error);
            }
            unserved += 1;
            log::debug!("{}; asking another address of the host", error.chain());
        }
    }

    /// Whether the host that is connected to, be it the proxy, has an address that did not fail of late.
    fn has_other_address(&self, url: &str) -> bool {
        match self.agent.config().proxy() {
            Some(proxy) => self.addresses.has_other(proxy.uri()),
            None => url.parse().is_ok_and(|uri| self.addresses.has_other(&uri)),
        }
    }

    /// Says which proxy was in the way, as it is the proxy that could not be reached and not the host in the URL.
    fn no_answer(&self, url: &str, error: ureq::Error) -> FetchError {
        let Some(proxy) = self.proxy() else { return classified(url, error) };
        if is_no_tls(&error) {
            let problem = "what comes through the tunnel is not TLS, as a login or error page";
            return FetchError::new(FetchErrorKind::Protocol, url, problem).through(&proxy);
        }
        let error = classified(url, error);
        if error.kind() == FetchErrorKind::Unreachable { error.through(&proxy) } else { error }
    }

    /// Host and port of the proxy, if there is one.
    fn proxy(&self) -> Option<String> {
        self.agent.config().proxy().map(|proxy| format!("{}:{}", proxy.host(), proxy.port()))
    }

    /// Turns the answers that carry no object into errors, which name the proxy where it may be the one who answered:
    /// it reads plain HTTP, and refuses in its own name.
    fn sorted_out(&self, url: String, response: Response<Body>) -> Result<HttpAnswer, FetchError> {
        let plain = url.starts_with("http://");
        sorted_out(url, response).map_err(|error| match self.proxy().filter(|_| plain) {
            Some(proxy) => error.through(&proxy),
            None => error,
        })
    }

    /// Names the proxy in the error about a body that makes no sense: it may be the proxy's own page.
    fn of_proxy(&self, error: FetchError) -> FetchError {
        let may_be = error.kind() == FetchErrorKind::Protocol && error.url().starts_with("http://");
        match self.proxy().filter(|_| may_be) {
            Some(proxy) => error.through(&proxy),
            None => error,
        }
    }

    fn request(&self, path: &str, range: Option<&Range<u64>>) -> Result<HttpAnswer, FetchError> {
        let mut url = self.url(path)?;
        let mut authorization = self.authorization.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.ask(&url, || {
                let mut request = self.agent.get(&url);
                if let Some(authorization) = &authorization {
                    request = request.header(AUTHORIZATION, authorization);
                }
                // Caches on the way hand out what is old, or what they damaged, until somebody says so.
                if !path.starts_with(OBJECTS_PATH) || self.distrusts_caches.load(Ordering::Relaxed) {
                    request = request.header("Cache-Control", "no-cache").header("Pragma", "no-cache");
                }
                if let Some(range) = range {
                    request = request.header("Range", format!("bytes={}-{}", range.start, range.end - 1));
                }
                request.call()
            })?;
            log::debug!("GET {} {range:?}: {}", url::redacted(&url), response.status());
            if !is_redirect(response.status()) {
                return self.sorted_out(url, response);
            }
            let (target, credentials) = url::without_credentials(&redirected(&url, response.headers())?);
            // Another server does not get the credentials of this one.
            let kept = authorization.filter(|_| url::origin(&target) == url::origin(&url));
            (url, authorization) = (target, credentials.map(basic).or(kept));
        }
        Err(FetchError::new(FetchErrorKind::Protocol, &url, format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn small(&self, path: &str, limit_bytes: u64) -> Result<Vec<u8>, FetchError> {
        let answer = self.request(path, None)?;
        // 203 is the 200 of a proxy that changed something on the way. 206 is the whole of it too, from some caches
        // that keep an object in parts; what is missing shows in the digest or the signature.
        if !matches!(answer.status, 200 | 203 | 206) {
            let problem = format!("status {} instead of 200", answer.status);
            return Err(FetchError::new(FetchErrorKind::Protocol, &answer.url, problem));
        }
        let HttpAnswer { url, body, .. } = answer;
        let protocol = |problem: String| FetchError::new(FetchErrorKind::Protocol, &url, problem);
        let too_large = |size: String| protocol(format!("{size} bytes, but at most {limit_bytes} are expected"));
        let announced = body.content_length().filter(|size| *size > limit_bytes);
        let mut pace = self.pace(path);
        let mut reader = body.into_reader();
        let mut bytes = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = pace.read(&url, &mut reader, &mut buffer)?;
            if bytes.is_empty() && is_web_page(&buffer[..n]) {
                return Err(protocol(WEB_PAGE.to_owned()));
            }
            match (n, announced) {
                (_, Some(size)) => return Err(too_large(size.to_string())),
                (0, None) => return Ok(bytes),
                (n, None) if bytes.len() as u64 + n as u64 > limit_bytes => return Err(too_large("more".to_owned())),
                (n, None) => bytes.extend_from_slice(&buffer[..n]),
            }
        }
    }

    /// The answer to a request for a range, and what it has of it: the whole object is asked for where only the range
    /// is what the server cannot do.
    fn part_of(&self, path: &str, range: &Range<u64>) -> Result<PartAnswer, FetchError> {
        let answer = match self.request(path, Some(range)) {
            Err(error) if part::may_be_of_the_range(error.kind()) && range.start <= part::MAX_SKIP => {
                // Some firewalls refuse every range, and some servers fail at it: the whole may come.
                if self.refused_ranges.fetch_add(1, Ordering::Relaxed) < PASSING_REFUSALS {
                    return Err(error);
                }
                return self.part_of_whole(path, range, error);
            }
            answer => answer?,
        };
        self.refused_ranges.store(0, Ordering::Relaxed);
        let useless = match part::find(&head_of(&answer), range) {
            Ok(part) => return Ok((answer, part)),
            Err(useless) => useless,
        };
        let error = FetchError::new(FetchErrorKind::Protocol, &answer.url, useless.problem);
        if !useless.whole_may_help {
            return Err(error);
        }
        drop(answer);
        self.part_of_whole(path, range, error)
    }

    /// What the whole object has of a range that could not be had by itself, for this reason.
    fn part_of_whole(&self, path: &str, range: &Range<u64>, reason: FetchError) -> Result<PartAnswer, FetchError> {
        let Ok(answer) = self.request(path, None) else { return Err(reason) };
        part::find(&head_of(&answer), range).map(|part| (answer, part)).map_err(|_| reason)
    }

    /// Delivers what one answer has of a range, at least one byte of it; returns how many.
    fn get_part(&self, path: &str, range: &Range<u64>, sink: Sink<'_>) -> Result<u64, FetchError> {
        let (answer, part) = self.part_of(path, range)?;
        let HttpAnswer { url, headers, status, body } = answer;
        let chunked = headers.get(TRANSFER_ENCODING).is_some_and(|coding| coding.as_bytes().ends_with(b"chunked"));
        // Only then is it known where the body ends, and only a body read to its end frees the connection for reuse.
        let delimited = part.is_last && (body.content_length().is_some() || chunked);
        let mut reader = body.into_reader();
        let mut pace = self.pace(path);
        deliver(&url, &mut reader, &mut pace, status, part, sink)?;
        // A failure here costs nothing but the connection: all that was asked for is delivered.
        if delimited && reader.read(&mut [0; 1]).unwrap_or(0) > 0 {
            let (problem, got) = ("more bytes than asked for", part.take_bytes);
            return Err(FetchError::new(FetchErrorKind::Protocol, &url, problem).after(got, got));
        }
        Ok(part.take_bytes)
    }
}

/// The value of an Authorization header.
fn basic(credentials: Vec<u8>) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(credentials))
}

fn head_of(answer: &HttpAnswer) -> Head<'_> {
    let content_type = answer.header(CONTENT_TYPE).unwrap_or_default();
    Head {
        status: answer.status,
        content_range: answer.header(CONTENT_RANGE),
        content_length: answer.body.content_length(),
        is_multipart: content_type.trim().to_ascii_lowercase().starts_with("multipart/"),
        is_called_html: answer.is_called_html(),
    }
}

impl Source for Http {
    fn describe(&self) -> String {
        url::redacted(&self.base.itself())
    }

    fn watch_speed(&mut self, watch: SpeedWatch) {
        self.watch = Some(watch);
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        let mut all = Vec::new();
        for (path, limit_bytes) in wanted {
            let file = self.small(path, *limit_bytes).map_err(|error| self.of_proxy(error));
            // One of them is there: that another is refused can be the moment in which they are replaced.
            all.push(file.map_err(|error| if all.is_empty() { error } else { error.doubted() })?);
        }
        let first = wanted.first().map_or("", |(path, _)| path);
        check(&all).map_err(|refusal| {
            self.distrusts_caches.store(true, Ordering::Relaxed);
            refusal.of(&self.base.join(first))
        })?;
        Ok(all)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        let wanted = range.end - range.start;
        let (mut at, mut small_parts) = (range.start, 0);
        while at < range.end {
            let got = self
                .get_part(path, &(at..range.end), &mut *sink)
                .map_err(|error| self.of_proxy(error).further(at - range.start, wanted))
                .inspect_err(|error| {
                    if error.kind() == FetchErrorKind::Corrupt {
                        self.distrusts_caches.store(true, Ordering::Relaxed);
                    }
                })?;
            at += got;
            small_parts += u32::from(got < SMALL_PART);
            if at < range.end && small_parts > MAX_SMALL_PARTS {
                let problem = format!("the server gives the range in more than {MAX_SMALL_PARTS} small parts");
                let error = FetchError::new(FetchErrorKind::Protocol, &self.url(path)?, problem);
                return Err(error.after(at - range.start, wanted));
            }
        }
        Ok(())
    }
}
