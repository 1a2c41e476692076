//! The steps to a connection: name lookup, proxy, TCP, TLS. These are the parts of ureq that are replaced.
//!
//! ureq's own TLS connector is not used because the certificate check has to talk to the clock policy, and that needs
//! a verifier of its own. Proxies have their own file ([`super::proxy`]).

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::http::uri::Scheme;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};
use ureq::{Agent, Error};

use super::addresses::AddressMemory;
use super::error::FetchError;
use super::exchange::ExchangeConnector;
use super::paced_socket::{MIN_RATE, PacedSocket};
use super::proxy::{PlainProxyConnector, TunnelConnector};
use super::tcp::RacingConnector;
use crate::net::names::{self, NameError};

/// The settings of TLS, or why there are none.
pub(super) type TlsSettings = Result<Arc<ClientConfig>, Arc<FetchError>>;

/// Room of ureq's list of addresses.
const MOST_ADDRESSES: usize = 16;

/// An agent with our connectors, which learn about addresses.
///
/// Without TLS settings, connections to `https://` fail with the error of the settings.
pub(super) fn agent(config: Config, tls: TlsSettings, addresses: &Arc<AddressMemory>) -> Agent {
    let racing = RacingConnector { addresses: Arc::clone(addresses) };
    let resolver = NamingResolver { addresses: Arc::clone(addresses) };
    let chain =
        ().chain(PlainProxyConnector(racing.clone()))
            .chain(TunnelConnector(racing.clone()))
            .chain(racing)
            .chain(TlsConnector { config: tls })
            .chain(ExchangeConnector);
    Agent::with_parts(config, chain, resolver)
}

/// A host name that has no address, apart from all other I/O errors.
#[derive(Debug, thiserror::Error)]
#[error("the name {host} cannot be looked up")]
pub(super) struct LookupError {
    host: String,
    source: NameError,
}

/// The reason for which there are no connections to `https://`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoTls(String);

/// Names by our own resolver, with errors that say which name: behind a proxy it may not be the one in the URL.
#[derive(Debug)]
struct NamingResolver {
    addresses: Arc<AddressMemory>,
}

impl NamingResolver {
    fn look_up(&self, uri: &Uri, host: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
        let resolver = names::Resolver::of_system();
        let with_port = |found: Vec<IpAddr>| found.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        let mut addresses: Vec<SocketAddr> = match resolver.lookup(host) {
            Ok(found) => with_port(found),
            Err(source) => {
                let known = self.addresses.known(uri);
                if known.is_empty() {
                    let host = host.to_owned();
                    return Err(Error::Other(Box::new(LookupError { host, source })));
                }
                // A transfer that has begun does not end because the name server does.
                log::debug!("{source}; asking the addresses it had before");
                known
            }
        };
        // A name server that is quick to lie hides those that are slow.
        if self.addresses.have_failed(&addresses) {
            if !self.addresses.may_look_everywhere(uri) {
                let known = self.addresses.known(uri).into_iter();
                let others: Vec<SocketAddr> = known.filter(|address| !addresses.contains(address)).collect();
                addresses.extend(others);
            } else if let Ok(found) = resolver.lookup_everywhere(host) {
                addresses = with_port(found);
            }
        }
        self.addresses.learn(uri, &addresses);
        Ok(addresses)
    }
}

impl Resolver for NamingResolver {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 });
        let addresses = match self.addresses.known_of_late(uri) {
            Some(known) => known,
            None => self.look_up(uri, host, port)?,
        };
        let mut resolved = self.empty();
        // Those that failed of late come last, and what is beyond ureq's room is left out.
        self.addresses.order(addresses).into_iter().take(MOST_ADDRESSES).for_each(|address| resolved.push(address));
        Ok(resolved)
    }
}

/// Wraps `https` connections in TLS, with the settings of [`super::tls`].
struct TlsConnector {
    config: TlsSettings,
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
        let config = self.config.as_ref().map_err(|error| Error::Other(Box::new(NoTls(error.chain()))))?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Error::Tls("the host name in the URL cannot be in a certificate"))?;
        let mut connection = ClientConnection::new(Arc::clone(config), name)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let socket = TransportAdapter::new(transport.boxed(), Arc::clone(&details.current_time));
        let mut socket = PacedSocket::new(socket, details.timeout);
        // A refused certificate arrives as rustls::Error inside an io::Error; `classify` looks for it there.
        connection.complete_io(&mut socket)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(TlsTransport { buffers, stream: StreamOwned::new(connection, socket) })))
    }
}

struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, PacedSocket>,
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.get_mut().begin(timeout, MIN_RATE);
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output)?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.get_mut().begin(timeout, MIN_RATE);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().is_open()
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
