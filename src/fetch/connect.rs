//! The steps to a connection: name lookup, proxy, TCP, TLS. These are the parts of ureq that are replaced.
//!
//! ureq's own TLS connector is not used because the certificate check has to talk to the clock policy, and that needs
//! a verifier of its own. ureq tunnels everything through a proxy with CONNECT; common proxies refuse that for any port
//! but 443, and cannot cache it, so plain `http://` goes through a proxy in absolute form instead.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::http::uri::Scheme;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
    TransportAdapter,
};
use ureq::{Agent, Error};

use super::tcp::RacingConnector;
use crate::net::names::{self, NameError};

/// Room of ureq's list of addresses.
const MOST_ADDRESSES: usize = 16;

/// An agent with our connectors.
pub(super) fn agent(config: Config, tls: Arc<ClientConfig>) -> Agent {
    let chain =
        ().chain(PlainProxyConnector)
            .chain(ConnectProxyConnector::default())
            .chain(RacingConnector::default())
            .chain(TlsConnector { config: tls });
    Agent::with_parts(config, chain, NamingResolver)
}

/// A host name that has no address, apart from all other I/O errors.
#[derive(Debug, thiserror::Error)]
#[error("the name {host} cannot be looked up")]
pub(super) struct LookupError {
    host: String,
    source: NameError,
}

/// Names by our own resolver, with errors that say which name: behind a proxy it may not be the one in the URL.
#[derive(Debug)]
struct NamingResolver;

impl Resolver for NamingResolver {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 });
        let addresses = names::Resolver::of_system().lookup(host).map_err(|source| {
            let host = host.to_owned();
            Error::Other(Box::new(LookupError { host, source }))
        })?;
        let mut resolved = self.empty();
        addresses.into_iter().take(MOST_ADDRESSES).for_each(|address| resolved.push(SocketAddr::new(address, port)));
        Ok(resolved)
    }
}

/// Plain HTTP through a proxy: connects to the proxy and asks it in absolute form.
#[derive(Debug)]
struct PlainProxyConnector;

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
        let to_proxy = ConnectionDetails {
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
        let Some(transport) = RacingConnector::default().connect(&to_proxy, None::<()>)? else { return Ok(None) };
        let credentials = proxy.username().map(|user| {
            let pair = format!("{user}:{}", proxy.password().unwrap_or_default());
            format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(pair))
        });
        let authority = details.uri.authority().map_or("", |authority| authority.as_str());
        // Credentials of the origin stay in the Authorization header that ureq writes.
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let origin = format!("http://{host}");
        let credentials = credentials.unwrap_or_default();
        Ok(Some(Either::B(AbsoluteForm { inner: Box::new(transport), origin, credentials })))
    }
}

/// Rewrites each request head from `GET /path` to `GET http://host/path`.
struct AbsoluteForm {
    inner: Box<dyn Transport>,
    origin: String,
    /// A whole header line, or nothing.
    credentials: String,
}

impl Transport for AbsoluteForm {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        // Only GET is sent, so there is never a body, and the buffer holds many times the longest head: every
        // transmission is one whole request head.
        let output = self.inner.buffers().output();
        let rewritten = absolute(&output[..amount], &self.origin, &self.credentials)
            .filter(|head| head.len() <= output.len())
            .ok_or_else(|| Error::Io(io::Error::other("the request cannot be rewritten for the proxy")))?;
        output[..rewritten.len()].copy_from_slice(&rewritten);
        self.inner.transmit_output(rewritten.len(), timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}

fn absolute(head: &[u8], origin: &str, credentials: &str) -> Option<Vec<u8>> {
    let path_on = head.strip_prefix(b"GET ").filter(|rest| rest.starts_with(b"/") && rest.ends_with(b"\r\n\r\n"))?;
    let line_end = path_on.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let (line, headers) = path_on.split_at(line_end);
    Some([b"GET ", origin.as_bytes(), line, credentials.as_bytes(), headers].concat())
}

// Not derived: the credentials must not get into any log.
impl fmt::Debug for AbsoluteForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbsoluteForm").field("inner", &self.inner).field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// Wraps `https` connections in TLS, with the settings of [`super::tls`].
struct TlsConnector {
    config: Arc<ClientConfig>,
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector").finish_non_exhaustive()
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() || transport.is_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Error::Tls("the host name in the URL cannot be in a certificate"))?;
        let mut connection = ClientConnection::new(Arc::clone(&self.config), name)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let mut socket = TransportAdapter::new(transport.boxed(), Arc::clone(&details.current_time));
        socket.set_timeout(details.timeout);
        // A refused certificate arrives as rustls::Error inside an io::Error; `classify` looks for it there.
        connection.complete_io(&mut socket)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(TlsTransport { buffers, stream: StreamOwned::new(connection, socket) })))
    }
}

struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.get_mut().set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output)?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.get_mut().set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTransport").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::absolute;

    #[test]
    fn a_request_head_becomes_absolute() {
        let head = b"GET /a?b HTTP/1.1\r\nHost: h:1\r\n\r\n";
        let credentials = "Proxy-Authorization: Basic eDp5\r\n";
        assert_eq!(
            absolute(head, "http://h:1", credentials).unwrap(),
            b"GET http://h:1/a?b HTTP/1.1\r\nProxy-Authorization: Basic eDp5\r\nHost: h:1\r\n\r\n"
        );
        assert_eq!(absolute(b"Host: h\r\n\r\n", "http://h", ""), None);
        assert_eq!(absolute(b"GET /a HTTP/1.1\r\nHost: h\r\n", "http://h", ""), None);
    }
}
