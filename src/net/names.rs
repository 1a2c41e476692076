//! Names to addresses, on networks whose name servers are half broken.
//!
//! Every server is asked for both kinds of address at the same time, and one good answer is enough: a server that is
//! dead, refuses one kind, knows nothing of the name or cuts its answer short only counts while no other has an
//! address. musl's resolver, which std uses, fails as a whole when one of the two kinds fails, and takes the first
//! server's word for a name that does not exist. `hickory-resolver` was looked at: it brings an asynchronous runtime
//! into PID 1.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod query;
mod server;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use query::{Outcome, ask};
pub use server::NameServer;
use server::{PORT, server_address};

use crate::order;
use crate::sys::net::bound::on_link;
use crate::sys::net::link::Link;
use crate::sys::thread::background;

/// Time for all answers about one name: that of two rounds of musl or glibc. Some resolvers behind a satellite need
/// more than one, and a lookup that begins anew begins with nothing.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the first address waits for more: of the other kind (RFC 8305, 3 has 50 ms), and of servers that know
/// better.
const MORE: Duration = Duration::from_millis(150);
/// Servers that are asked; resolvers of old read three.
const MOST_SERVERS: usize = 8;
/// Domains that a short name is looked for in; resolvers of old read six, those of today all.
const MOST_DOMAINS: usize = 32;
/// Time after which no further domain is begun with: each may cost the whole patience.
const ALL_DOMAINS: Duration = Duration::from_secs(30);
/// How long an address waits for servers that are listed before the one that gave it, since they come first for a
/// reason: a provider's server invents addresses for names that only the site's own server knows.
const EARLIER: Duration = Duration::from_millis(400);
/// How long a lookup everywhere waits for all servers after the first address: some take seconds, and what the quick
/// one gave led nowhere.
const EVERYWHERE: Duration = Duration::from_secs(8);
/// Addresses that are returned. Large content networks answer with a dozen; who connects begins with those that did not
/// fail of late.
const MOST_ADDRESSES: usize = 64;

/// A name that has no address.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The text cannot be a name.
    #[error("{name:?} is not a host name: labels of 1 to 63 bytes, 253 in all")]
    Invalid {
        /// Text that was looked up.
        name: String,
    },
    /// No name server is known.
    #[error(
        "no name server is known, so {name} cannot be looked up; give the URL a numeric address, or network.dns a server"
    )]
    NoServer {
        /// Name that was looked up.
        name: String,
    },
    /// No server has an address for the name.
    #[error("no name server has an address for {name} ({})", .answers.join(", "))]
    None {
        /// Name that was looked up.
        name: String,
        /// Each server with what it said.
        answers: Vec<String>,
    },
}

/// The name servers, the domains for short names, and the table of hosts of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    servers: Vec<NameServer>,
    search: Vec<String>,
    hosts: Vec<(IpAddr, String)>,
}

impl Resolver {
    /// Reads `/etc/resolv.conf` and `/etc/hosts` as they are now: a lease may bring other servers at any time.
    #[must_use]
    pub fn of_system() -> Self {
        let read = |path: &str| fs::read_to_string(Path::new(path)).unwrap_or_default();
        Self::parse(&read("/etc/resolv.conf"), &read("/etc/hosts"))
    }

    /// Reads these texts; lines that make no sense are left out.
    #[must_use]
    pub fn parse(resolv_conf: &str, hosts: &str) -> Self {
        let mut this = Self::default();
        for line in resolv_conf.trim_start_matches('\u{feff}').lines() {
            let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().and_then(server_address);
                    this.servers.extend(address.map(|address| NameServer { address, interface: None }));
                }
                Some("search" | "domain") => this.search = words.take(MOST_DOMAINS).map(str::to_owned).collect(),
                _ => {}
            }
        }
        this.servers.truncate(MOST_SERVERS);
        for line in hosts.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
            this.hosts.extend(words.map(|name| (address, name.to_ascii_lowercase())));
        }
        this
    }

    /// Replaces the name servers, as by those of a test.
    #[must_use]
    pub fn with_servers(self, servers: Vec<SocketAddr>) -> Self {
        let servers = servers.into_iter().map(|address| NameServer { address, interface: None }).collect();
        Self { servers, ..self }
    }

    /// Replaces the name servers by those of interfaces, at the usual port, and the domains for short names.
    #[must_use]
    pub(super) fn of_interfaces(self, servers: &[(IpAddr, &Link)], search: &[String]) -> Self {
        let server = |(address, link): &(IpAddr, &Link)| NameServer {
            address: match address {
                IpAddr::V6(address) if address.is_unicast_link_local() => on_link(*address, PORT, link.index),
                _ => SocketAddr::new(*address, PORT),
            },
            interface: Some(link.name.clone()),
        };
        let servers = servers.iter().take(MOST_SERVERS).map(server).collect();
        Self { servers, search: search.to_vec(), ..self }
    }

    /// Finds the addresses of a host, IPv6 and IPv4 in turn. A numeric address is its own.
    ///
    /// # Errors
    /// [`NameError`], after at most 10 s for each domain that the name may be in, and 40 s in all.
    pub fn lookup(&self, host: &str) -> Result<Vec<IpAddr>, NameError> {
        self.lookup_within(host, (MORE, EARLIER))
    }

    /// Finds the addresses of a host that any name server has, where those of the quickest one were of no use.
    ///
    /// # Errors
    /// As [`Resolver::lookup`].
    pub fn lookup_everywhere(&self, host: &str) -> Result<Vec<IpAddr>, NameError> {
        self.lookup_within(host, (EVERYWHERE, EVERYWHERE))
    }

    /// Finds addresses; the first one waits so long for more, and so long for those of earlier servers.
    fn lookup_within(&self, host: &str, wait: (Duration, Duration)) -> Result<Vec<IpAddr>, NameError> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let lower = host.to_ascii_lowercase();
        let listed: Vec<IpAddr> = self
            .hosts
            .iter()
            .filter(|(_, name)| *name == lower.trim_end_matches('.'))
            .map(|(address, _)| *address)
            .collect();
        if !listed.is_empty() {
            return Ok(in_turn(listed));
        }
        if lower == "localhost" || lower.ends_with(".localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
        }
        if !is_host_name(&lower) {
            return Err(NameError::Invalid { name: host.to_owned() });
        }
        if self.servers.is_empty() {
            return Err(NameError::NoServer { name: host.to_owned() });
        }
        let (mut answers, begun) = (Vec::new(), Instant::now());
        for name in self.candidates(&lower).into_iter().take_while(|_| begun.elapsed() < ALL_DOMAINS) {
            match self.ask_all(&name, wait) {
                Ok(addresses) => return Ok(in_turn(addresses)),
                Err(said) => answers = said,
            }
        }
        Err(NameError::None { name: host.to_owned(), answers })
    }

    /// Names to try in order: as it is first if it has a dot, and then in each domain (`ndots:1` of resolv.conf).
    fn candidates(&self, host: &str) -> Vec<String> {
        if let Some(absolute) = host.strip_suffix('.') {
            return vec![absolute.to_owned()];
        }
        let own = host.to_owned();
        // systemd-resolved writes the root where it knows no domain.
        let domains = self.search.iter().map(|domain| domain.trim_matches('.')).filter(|domain| !domain.is_empty());
        let within = domains.map(|domain| format!("{host}.{domain}"));
        if host.contains('.') { std::iter::once(own).chain(within).collect() } else { within.chain([own]).collect() }
    }

    /// Asks every server at once. The addresses of all that have some, or what each said instead.
    fn ask_all(&self, name: &str, wait: (Duration, Duration)) -> Result<Vec<IpAddr>, Vec<String>> {
        let (sender, outcomes) = channel();
        let name: Arc<str> = name.into();
        let until = Instant::now() + PATIENCE;
        for (place, server) in self.servers.iter().enumerate() {
            let (report, name, server) = (sender.clone(), Arc::clone(&name), server.clone());
            let address = server.address;
            let spawned = background(&format!("dns {address}"), move || {
                ask(&server, &name, until, |outcome| report.send((place, outcome)).is_ok());
            });
            if let Err(error) = spawned {
                let _ = sender.send((place, Outcome::Failed(format!("no thread to ask with: {error}"))));
            }
        }
        drop(sender);
        collect(&self.servers, &outcomes, until, wait)
    }
}

/// Takes outcomes until there is nothing left to wait for. The addresses are in the order of their servers.
fn collect(
    servers: &[NameServer],
    outcomes: &Receiver<(usize, Outcome)>,
    mut until: Instant,
    (more, earlier): (Duration, Duration),
) -> Result<Vec<IpAddr>, Vec<String>> {
    let mut found: Vec<(usize, IpAddr)> = Vec::new();
    let mut heard = vec![0; servers.len()];
    let mut said = BTreeSet::new();
    let (mut first, mut last) = (None, until);
    // It ends when all servers are through, or the time is over.
    while let Ok((place, outcome)) = outcomes.recv_timeout(until.saturating_duration_since(Instant::now())) {
        heard[place] += 1;
        match outcome {
            Outcome::Addresses(addresses) => found.extend(addresses.into_iter().map(|address| (place, address))),
            Outcome::Failed(text) => drop(said.insert(format!("{}: {text}", servers[place].address.ip()))),
        }
        if let Some(best) = found.iter().map(|(place, _)| *place).min() {
            let first = *first.get_or_insert_with(Instant::now);
            // Servers before the best one that have said nothing yet.
            let is_expected = heard[..best].contains(&0);
            last = last.min(first + earlier);
            until = if is_expected { last } else { last.min(first + more) };
        }
    }
    if found.is_empty() {
        // Those that are asked until the very end report too late to be heard.
        let silent = servers.iter().zip(&heard).filter(|(_, heard)| **heard == 0);
        said.extend(silent.map(|(server, _)| format!("{}: no answer", server.address.ip())));
        return Err(said.into_iter().collect());
    }
    order::by_key(&mut found, |(place, _)| *place);
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (_, address) in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// Whether name servers can be asked for it (RFC 1035, 2.3.4). A dot at the end says that no domain is to be added.
fn is_host_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.len() <= 253 && name.split('.').all(|label| (1..=63).contains(&label.len()))
}

/// One kind after the other, so that a kind that leads nowhere costs one attempt (RFC 8305, 4). IPv4 comes first: it is
/// what recovery configures by itself.
fn in_turn(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (four, six): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(IpAddr::is_ipv4);
    let (mut four, mut six) = (four.into_iter(), six.into_iter());
    let mut ordered = Vec::new();
    loop {
        let before = ordered.len();
        ordered.extend(four.next());
        ordered.extend(six.next());
        if ordered.len() == before || ordered.len() >= MOST_ADDRESSES {
            ordered.truncate(MOST_ADDRESSES);
            return ordered;
        }
    }
}

#[cfg(test)]
mod tests;
