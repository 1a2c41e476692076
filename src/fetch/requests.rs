//! Requests of one source: redirects, proxies, credentials, and which answers are worth asking for once more at once.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ureq::config::Config;
use ureq::http::header::{AUTHORIZATION, CONNECTION, HeaderValue};
use ureq::http::{Response, StatusCode, Uri, Version};
use ureq::{Agent, Body, Proxy, RequestBuilder};

use super::addresses::AddressMemory;
use super::answer::{HttpAnswer, is_redirect, redirected, sorted_out};
use super::classify::{classified, is_no_tls, unanswered_on_kept};
use super::delivery::BUFFER;
use super::error::{FetchError, FetchErrorKind};
use super::{FetchOptions, OnServed, connect, tls, url};
use crate::machine::config::{DirectHosts, has_usable_port};

/// The most redirects of one request: a load balancer sends to a mirror that sends to a region that sends to a bucket,
/// each of them first to itself with a slash or a token. Browsers follow 20.
const MAX_REDIRECTS: usize = 10;
/// The most addresses of a host that are asked in one attempt, if each of them takes the connection and does not
/// answer.
const MAX_UNSERVED: u32 = 16;
/// The most addresses of a host that are asked in one attempt after the first, if each of them answers with something
/// of no use. What none of three has is not there; a pause comes before the others.
const MAX_SECOND_OPINIONS: u32 = 3;
/// Kept connections that were silent until the stall timeout, after which no connection is kept.
const MAX_SILENT: u32 = 2;
/// The connections kept for the next request: as many as requests are made at once.
const MAX_IDLE: usize = 4;

/// What all requests of one source share. Connections are kept alive and shared by all threads.
pub(super) struct Requests {
    direct: Agent,
    /// The agent that goes through the proxy, if there is one.
    proxied: Option<Agent>,
    no_proxy: Vec<DirectHosts>,
    addresses: Arc<AddressMemory>,
    /// The value of the Authorization header for the base.
    authorization: Option<String>,
    /// Whether something came that is not what it should be: from then on caches are asked to look for themselves.
    distrusts_caches: AtomicBool,
    /// Kept connections that were silent.
    silent: AtomicU32,
    on_served: Option<OnServed>,
}

impl Requests {
    /// # Errors
    /// [`FetchErrorKind::Settings`] when the proxy or the CA file cannot be used.
    pub(super) fn new(is_tls: bool, options: &FetchOptions, credentials: Option<Vec<u8>>) -> Result<Self, FetchError> {
        let proxy = options.proxy.as_deref().map(proxy_at).transpose()?;
        let tls = match tls::client_config(options.ca_file.as_deref(), Arc::clone(&options.certificate_clock)) {
            // Only a redirect to https would need it; that then fails with this error.
            Err(error) if !is_tls => Err(Arc::new(error)),
            result => Ok(result?),
        };
        let addresses = Arc::new(AddressMemory::default());
        let agent = |proxy| connect::agent(settings(options, proxy), tls.clone(), &addresses);
        Ok(Self {
            direct: agent(None),
            proxied: proxy.map(|proxy| agent(Some(proxy))),
            no_proxy: options.no_proxy.clone(),
            addresses,
            authorization: credentials.map(basic),
            distrusts_caches: AtomicBool::new(false),
            silent: AtomicU32::new(0),
            on_served: options.on_served.clone(),
        })
    }

    /// Asks caches from now on to look for themselves: something came that is not what it should be.
    pub(super) fn distrust_caches(&self) {
        self.distrusts_caches.store(true, Ordering::Relaxed);
    }

    /// Makes an attempt, and makes it again at once where what came is of no use and the host has other addresses: one
    /// of several machines behind a name may be broken, and one of several name servers may lie.
    pub(super) fn attempt<T>(&self, mut attempt: impl FnMut() -> Result<T, FetchError>) -> Result<T, FetchError> {
        let mut opinions = 0;
        loop {
            self.addresses.begin();
            let error = match attempt() {
                Ok(value) => {
                    self.addresses.served();
                    if let Some(on_served) = &self.on_served {
                        on_served();
                    }
                    return Ok(value);
                }
                Err(error) => error,
            };
            let may_be_of_the_address = self.note(&error);
            if !may_be_of_the_address || opinions >= MAX_SECOND_OPINIONS || error.asked_to_wait().is_some() {
                return Err(error);
            }
            opinions += 1;
            log::debug!("{}; asking another address of the host", error.chain());
        }
    }

    /// Notes what an attempt of this thread failed with; whether another address of the host may know better.
    pub(super) fn note(&self, error: &FetchError) -> bool {
        use FetchErrorKind::{Broken, Corrupt, Missing, Protocol, Refused, Stalled};
        let is_of_the_server = matches!(error.kind(), Broken | Corrupt | Missing | Protocol | Refused(_) | Stalled);
        is_of_the_server && self.addresses.served_badly()
    }

    /// Asks for what is at a URL, or for a range of it (the value of its header), wherever redirects lead.
    pub(super) fn get(&self, url: String, range: Option<&str>, may_be_cached: bool) -> Result<HttpAnswer, FetchError> {
        let (mut url, mut authorization) = (url, self.authorization.clone());
        for _ in 0..=MAX_REDIRECTS {
            let response = self.ask(&url, |agent| {
                let mut request = self.with_headers(agent.get(&url), authorization.as_deref());
                // Caches on the way hand out what is old, or what they damaged, until somebody says so.
                if !may_be_cached || self.distrusts_caches.load(Ordering::Relaxed) {
                    request = request.header("Cache-Control", "no-cache").header("Pragma", "no-cache");
                }
                if let Some(range) = range {
                    request = request.header("Range", range);
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

    /// Posts a JSON document. A redirect is not followed: what a login page takes is not delivered.
    pub(super) fn post(&self, url: String, document: &str) -> Result<HttpAnswer, FetchError> {
        let response = self.ask(&url, |agent| {
            let request = agent.post(&url).header("Content-Type", "application/json");
            self.with_headers(request, self.authorization.as_deref()).send(document)
        })?;
        self.sorted_out(url, response)
    }

    fn with_headers<B>(&self, request: RequestBuilder<B>, authorization: Option<&str>) -> RequestBuilder<B> {
        let keeps = self.silent.load(Ordering::Relaxed) < MAX_SILENT;
        let request = if keeps { request } else { request.header(CONNECTION, "close") };
        match authorization {
            Some(authorization) => request.header(AUTHORIZATION, authorization),
            None => request,
        }
    }

    /// Sends a request, and sends it again when it went to a kept connection that was of no use any more, or to an
    /// address that took the connection and did not answer while the host has others. Each failure uses up one such
    /// connection or address.
    fn ask(
        &self,
        url: &str,
        send: impl Fn(&Agent) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, FetchError> {
        let agent = self.agent(url);
        let (mut closed, mut unserved) = (0, 0);
        loop {
            let before = self.addresses.unserved();
            let error = match send(agent) {
                // What a server or a balancer says to a kept connection that was idle for too long lies there before
                // the request does. It looks like an answer to it, and is one to nothing.
                Ok(response) if closed == 0 && may_be_of_idleness(&response) => {
                    self.addresses.give_up_kept();
                    closed = MAX_IDLE + 1;
                    log::debug!("{}: {}, asking on another connection", url::redacted(url), response.status());
                    continue;
                }
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            match unanswered_on_kept(&error) {
                // Some servers answer once a connection and then say nothing; some routers forget it in a pause.
                Some(ErrorKind::TimedOut) if closed == 0 => {
                    self.silent.fetch_add(1, Ordering::Relaxed);
                    self.addresses.give_up_kept();
                    closed = MAX_IDLE + 1;
                    log::debug!("{}: the kept connection was silent, asking on another one", url::redacted(url));
                    continue;
                }
                Some(kind) if kind != ErrorKind::TimedOut && closed <= MAX_IDLE => {
                    closed += 1;
                    log::debug!("{}: the kept connection was closed, asking on another one", url::redacted(url));
                    continue;
                }
                _ => {}
            }
            let was_unserved = self.addresses.unserved() > before && unserved < MAX_UNSERVED;
            let error = self.no_answer(url, error);
            // What a certificate says about the time is for the clock to judge, and not for another address.
            let is_of_the_time = matches!(error.kind(), FetchErrorKind::TlsTime { .. });
            if !was_unserved || is_of_the_time || !self.addresses.has_other() {
                return Err(error);
            }
            unserved += 1;
            // Where a server has so many connections for each client, those that are kept are what keeps this one out.
            self.addresses.give_up_kept();
            log::debug!("{}; asking another address of the host", error.chain());
        }
    }

    /// The agent for a URL: a redirect may lead from a host that is reached directly to one that is not.
    fn agent(&self, url: &str) -> &Agent {
        let uri: Option<Uri> = url.parse().ok();
        let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
        let is_direct = self.no_proxy.iter().any(|hosts| hosts.has(host));
        self.proxied.as_ref().filter(|_| !is_direct).unwrap_or(&self.direct)
    }

    /// Host and port of the proxy on the way to a URL, if there is one.
    fn proxy(&self, url: &str) -> Option<String> {
        self.agent(url).config().proxy().map(|proxy| format!("{}:{}", proxy.host(), proxy.port()))
    }

    /// Says which proxy was in the way, as it is the proxy that could not be reached and not the host in the URL.
    fn no_answer(&self, url: &str, error: ureq::Error) -> FetchError {
        let Some(proxy) = self.proxy(url) else { return classified(url, error) };
        if is_no_tls(&error) {
            let problem = "what comes through the tunnel is not TLS, as a login or error page";
            return FetchError::new(FetchErrorKind::Protocol, url, problem).through(&proxy);
        }
        let error = classified(url, error);
        if error.kind() == FetchErrorKind::Unreachable { error.through(&proxy) } else { error }
    }

    /// Turns the answers that carry no object into errors, which name the proxy where it may be the one who answered:
    /// it reads plain HTTP, and refuses in its own name.
    fn sorted_out(&self, url: String, response: Response<Body>) -> Result<HttpAnswer, FetchError> {
        let proxy = self.proxy(&url).filter(|_| url.starts_with("http://"));
        sorted_out(url, response).map_err(|error| match proxy {
            Some(proxy) => error.through(&proxy),
            None => error,
        })
    }

    /// Names the proxy in the error about a body that makes no sense: it may be the proxy's own page.
    pub(super) fn of_proxy(&self, error: FetchError) -> FetchError {
        let may_be = error.kind() == FetchErrorKind::Protocol && error.url().starts_with("http://");
        match self.proxy(error.url()).filter(|_| may_be) {
            Some(proxy) => error.through(&proxy),
            None => error,
        }
    }
}

/// Whether an answer may be one to a connection that was idle, and not to a request: servers end those with it.
fn may_be_of_idleness(response: &Response<Body>) -> bool {
    let ends = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"close");
    matches!(response.status(), StatusCode::BAD_REQUEST | StatusCode::REQUEST_TIMEOUT)
        && (response.version() == Version::HTTP_10 || response.headers().get(CONNECTION).is_some_and(ends))
}

/// The proxy of a configuration.
fn proxy_at(text: &str) -> Result<Proxy, FetchError> {
    let error = || FetchError::new(FetchErrorKind::Settings, text, "this is not a proxy: expected http://host:port");
    Proxy::new(text).ok().filter(|_| text.starts_with("http://") && has_usable_port(text)).ok_or_else(error)
}

/// The settings of all requests.
fn settings(options: &FetchOptions, proxy: Option<Proxy>) -> Config {
    Config::builder()
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
        .build()
}

/// The value of an Authorization header.
fn basic(credentials: Vec<u8>) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(credentials))
}
