//! The way through a proxy: plain HTTP in absolute form, everything else through a tunnel.
//!
//! ureq tunnels everything with CONNECT; common proxies refuse that for any port but 443, and cannot cache it. Its own
//! tunnel is not used either: what a proxy refuses should say so with the proxy's words and not be any lost connection.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ureq::http::uri::Scheme;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, NextTimeout, Transport, time::Duration,
};
use ureq::{Error, Proxy, Timeout};

use super::head::status_line;
use super::tcp::RacingConnector;

/// The most bytes of a proxy's answer to CONNECT. Some proxies send a whole page as the head of a refusal's reasons.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// The most interim answers of a proxy before its answer to CONNECT.
const MAX_INTERIM: usize = 16;

/// The answer of a proxy that does not pass a connection on.
#[derive(Debug, thiserror::Error)]
#[error("the proxy does not pass the connection on (HTTP status {status}{})", advice(*.status))]
pub(super) struct ProxyRefusal {
    pub status: u16,
}

fn advice(status: u16) -> &'static str {
    if status == 407 { ": it wants a user and a password in network.proxy, or other ones" } else { "" }
}

/// An answer to CONNECT that is not HTTP.
#[derive(Debug, thiserror::Error)]
#[error("what was taken for a proxy does not answer as one")]
pub(super) struct NoProxy;

/// The header line with the credentials of a proxy, or nothing.
fn credentials(proxy: &Proxy) -> String {
    let (user, password) = (proxy.username(), proxy.password());
    if user.is_none() && password.is_none() {
        return String::new();
    }
    let pair = format!("{}:{}", user.unwrap_or_default(), password.unwrap_or_default());
    format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(pair))
}

/// Connects to the proxy itself.
fn to_proxy(
    racing: &RacingConnector,
    details: &ConnectionDetails<'_>,
    proxy: &Proxy,
) -> Result<Option<Box<dyn Transport>>, Error> {
    let details = ConnectionDetails {
        uri: proxy.uri(),
        addrs: details.resolver.resolve(proxy.uri(), details.config, details.timeout)?,
        config: details.config,
        request_level: details.request_level,
        resolver: details.resolver,
        now: details.now,
        timeout: details.timeout,
        current_time: Arc::clone(&details.current_time),
        run_connector: Arc::clone(&details.run_connector),
        register_shutdown: Arc::clone(&details.register_shutdown),
    };
    let transport = racing.connect(&details, None::<()>)?;
    Ok(transport.map(|transport| Box::new(transport) as Box<dyn Transport>))
}

/// Plain HTTP through a proxy: connects to the proxy and asks it in absolute form.
#[derive(Debug)]
pub(super) struct PlainProxyConnector(pub RacingConnector);

impl<In: Transport> Connector<In> for PlainProxyConnector {
    type Out = Either<In, AbsoluteForm>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        if let Some(transport) = chained {
            return Ok(Some(Either::A(transport)));
        }
        let Some(proxy) = details.config.proxy() else { return Ok(None) };
        if details.uri.scheme() != Some(&Scheme::HTTP) {
            return Ok(None);
        }
        let Some(inner) = to_proxy(&self.0, details, proxy)? else { return Ok(None) };
        let authority = details.uri.authority().map_or("", |authority| authority.as_str());
        let origin = format!("http://{authority}");
        Ok(Some(Either::B(AbsoluteForm { inner, origin, credentials: credentials(proxy), at_head: true })))
    }
}

/// Rewrites each request head from `GET /path` to `GET http://host/path`, and lets bodies pass as they are.
pub(super) struct AbsoluteForm {
    inner: Box<dyn Transport>,
    origin: String,
    /// A whole header line, or nothing.
    credentials: String,
    /// Whether a head is sent next: so it is at the beginning, and after an answer.
    at_head: bool,
}

impl Transport for AbsoluteForm {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if !self.at_head {
            return self.inner.transmit_output(amount, timeout);
        }
        // The buffer holds many times the longest request line, which is therefore whole.
        let output = self.inner.buffers().output();
        let rewritten = absolute(&output[..amount], &self.origin, &self.credentials)
            .filter(|head| head.len() <= output.len())
            .ok_or_else(|| Error::Io(io::Error::other("the request cannot be rewritten for the proxy")))?;
        output[..rewritten.len()].copy_from_slice(&rewritten);
        self.at_head = false;
        self.inner.transmit_output(rewritten.len(), timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.at_head = true;
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}

/// The beginning of a request with the path made absolute and the credentials added; `None` if there is no whole
/// request line.
fn absolute(head: &[u8], origin: &str, credentials: &str) -> Option<Vec<u8>> {
    let line_end = head.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let (line, headers) = head.split_at(line_end);
    let space = line.iter().position(|byte| *byte == b' ')? + 1;
    let (method, path_on) = line.split_at(space);
    if !path_on.starts_with(b"/") {
        return None;
    }
    Some([method, origin.as_bytes(), path_on, credentials.as_bytes(), headers].concat())
}

// Not derived: the credentials must not get into any log.
impl fmt::Debug for AbsoluteForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbsoluteForm").field("inner", &self.inner).field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// A tunnel through a proxy, for what it cannot read.
#[derive(Debug)]
pub(super) struct TunnelConnector(pub RacingConnector);

impl<In: Transport> Connector<In> for TunnelConnector {
    type Out = Either<In, Box<dyn Transport>>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        if let Some(transport) = chained {
            return Ok(Some(Either::A(transport)));
        }
        let Some(proxy) = details.config.proxy() else { return Ok(None) };
        let began = Instant::now();
        let left = || NextTimeout {
            after: match details.timeout.after {
                Duration::Exact(whole) => Duration::Exact(whole.saturating_sub(began.elapsed())),
                never @ Duration::NotHappening => never,
            },
            ..details.timeout
        };
        let Some(mut transport) = to_proxy(&self.0, details, proxy)? else { return Ok(None) };
        let host = details.uri.host().unwrap_or_default();
        let port = details.uri.port_u16().unwrap_or(443);
        let agent = concat!("reflash/", env!("CARGO_PKG_VERSION"));
        let head = format!(
            "CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: {agent}\r\n{}\r\n",
            credentials(proxy)
        );
        let room = transport.buffers().output().get_mut(..head.len()).ok_or(Error::BadUri(host.to_owned()))?;
        room.copy_from_slice(head.as_bytes());
        transport.transmit_output(head.len(), left())?;
        for _ in 0..=MAX_INTERIM {
            match answer_of(&mut *transport, left)? {
                200..=299 => return Ok(Some(Either::B(transport))),
                100..=199 => {}
                status => return Err(Error::Other(Box::new(ProxyRefusal { status }))),
            }
        }
        Err(Error::Other(Box::new(NoProxy)))
    }
}

/// Reads the proxy's answer to CONNECT, and returns its status.
fn answer_of(transport: &mut dyn Transport, left: impl Fn() -> NextTimeout) -> Result<u16, Error> {
    let mut head = Vec::new();
    loop {
        if left().after.is_zero() {
            return Err(Error::Timeout(Timeout::Connect));
        }
        // Behind an interim answer, the next one may be there already.
        let progress = !transport.buffers().input().is_empty() || transport.await_input(left())?;
        let buffers = transport.buffers();
        let (before, came) = (head.len(), buffers.input().len());
        head.extend_from_slice(buffers.input());
        let Some(end) = end_of_head(&head) else {
            buffers.input_consume(came);
            let begun = head.len().min(b"HTTP/".len());
            let is_http = head[..begun].eq_ignore_ascii_case(&b"HTTP/"[..begun]);
            if !progress || head.len() > MAX_HEAD_BYTES || !is_http {
                return Err(Error::Other(Box::new(NoProxy)));
            }
            continue;
        };
        // What follows the head is the first of the tunnel.
        buffers.input_consume(end.saturating_sub(before));
        return status_of(&head).ok_or_else(|| Error::Other(Box::new(NoProxy)));
    }
}

/// The length of a head with the empty line at its end, once that is there.
fn end_of_head(input: &[u8]) -> Option<usize> {
    let with_cr = input.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4);
    let without = input.windows(2).position(|end| end == b"\n\n").map(|at| at + 2);
    with_cr.into_iter().chain(without).min()
}

/// The status in the first line of an answer.
fn status_of(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    status_line(line).map(|(status, _)| status)
}

#[cfg(test)]
mod tests {
    use super::{absolute, end_of_head, status_of};

    #[test]
    fn a_request_of_any_method_becomes_absolute() {
        let credentials = "Proxy-Authorization: Basic eDp5\r\n";
        assert_eq!(
            absolute(b"GET /a?b HTTP/1.1\r\nHost: h:1\r\n\r\n", "http://h:1", credentials).unwrap(),
            b"GET http://h:1/a?b HTTP/1.1\r\nProxy-Authorization: Basic eDp5\r\nHost: h:1\r\n\r\n"
        );
        let post = b"POST /r HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}";
        let expected = b"POST http://h/r HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(absolute(post, "http://h", "").unwrap(), expected);
        for none in [&b"Host: h\r\n\r\n"[..], b"GET /a HTTP/1.1", b"GET a HTTP/1.1\r\n\r\n", b""] {
            assert_eq!(absolute(none, "http://h", ""), None);
        }
    }

    #[test]
    fn the_answer_of_a_proxy() {
        let head = b"HTTP/1.0 200 Connection established\r\nVia: p\r\n\r\n\x16\x03";
        assert_eq!((end_of_head(head), status_of(head)), (Some(head.len() - 2), Some(200)));
        assert_eq!((end_of_head(b"HTTP/1.1 407\n\nx"), status_of(b"HTTP/1.1 407\n\nx")), (Some(14), Some(407)));
        assert_eq!((end_of_head(b"HTTP/1.1 200 OK\r\n"), status_of(b"SSH-2.0\r\n\r\n")), (None, None));
    }
}
