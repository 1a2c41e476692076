//! One DHCPv4 exchange on one link, for as long as it takes.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, HardwareAddress};

use crate::sys::net::link::Link;
use crate::sys::net::packet::PacketSocket;

/// Lease that a DHCP server granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Address leased to us.
    pub address: Ipv4Addr,
    /// Prefix length of the address.
    pub prefix_len: u8,
    /// Address of the default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Addresses of the name servers.
    pub dns: Vec<Ipv4Addr>,
    /// For how long. `None`: for ever.
    pub duration: Option<Duration>,
    /// Address of the DHCP server.
    pub server: Ipv4Addr,
}

/// Failure to get a lease.
#[derive(Debug, thiserror::Error)]
pub enum DhcpError {
    /// The caller's condition came true.
    #[error("DHCP on {interface} was stopped before a server answered")]
    Stopped {
        /// Name of the link.
        interface: String,
    },
    /// The link is gone or switched off.
    #[error("cannot exchange DHCP packets on {interface}")]
    Link {
        /// Name of the link.
        interface: String,
        /// Error of the socket.
        source: io::Error,
    },
}

/// How often the stop condition is looked at.
const STOP_CHECK: Duration = Duration::from_millis(200);

/// Waits after the first, second, ... unanswered DISCOVER; the last one repeats. RFC 2131 starts with 4 s, and that
/// matters: servers ping a fresh address for up to 3 s before they offer it, and smoltcp takes an offer only for its
/// latest DISCOVER. The RFC goes on to 64 s; we stop at 30, which is what a switch port takes to forward at last.
const WAITS: [u64; 4] = [4, 8, 16, 30];

/// Asks for a lease on `link` until a server gives one, or `stop` says to give up. `on_event` gets a sentence for each
/// DISCOVER after the first.
///
/// # Errors
/// [`DhcpError`]; a server that does not answer is none.
pub fn obtain(link: &Link, stop: &dyn Fn() -> bool, on_event: &dyn Fn(&str)) -> Result<Lease, DhcpError> {
    let failed = |source| DhcpError::Link { interface: link.name.clone(), source };
    let start = Instant::now();
    let now = || smoltcp::time::Instant::from_micros(i64::try_from(start.elapsed().as_micros()).unwrap_or(i64::MAX));

    let mut device = PacketSocket::open(link.index).map_err(failed)?;
    let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(link.mac)));
    // The transaction numbers come from it: machines that boot together must not share them.
    config.random_seed = random();
    let mut interface = Interface::new(config, &mut device, now());
    let mut packet = [0; 1500];
    let mut client = dhcpv4::Socket::new();
    client.set_receive_packet_buffer(&mut packet);
    client.set_retry_config(retries(1));
    let mut sockets = SocketSet::new([smoltcp::iface::SocketStorage::EMPTY]);
    let handle = sockets.add(client);
    let mut attempts = 0;

    loop {
        if stop() {
            return Err(DhcpError::Stopped { interface: link.name.clone() });
        }
        interface.poll(now(), &mut device, &mut sockets);
        if let Some(error) = device.error.take() {
            return Err(failed(error));
        }
        let client = sockets.get_mut::<dhcpv4::Socket>(handle);
        if device.sent.take().is_some_and(|frame| is_discover(&frame)) {
            attempts += 1;
            if attempts > 1 {
                let next = retries(attempts).discover_timeout.secs();
                on_event(&format!("{}: no DHCP answer yet (attempt {attempts}), next in {next} s", link.name));
            }
            client.set_retry_config(retries(attempts + 1));
        }
        if let Some(dhcpv4::Event::Configured(config)) = client.poll() {
            return Ok(lease(&config));
        }
        let wait = interface.poll_delay(now(), &sockets).map_or(STOP_CHECK, |delay| STOP_CHECK.min(delay.into()));
        device.wait(wait + Duration::from_millis(1));
    }
}

/// Before DISCOVER number `attempt` is sent: the wait after it.
fn retries(attempt: usize) -> dhcpv4::RetryConfig {
    let mut config = dhcpv4::RetryConfig::default();
    config.discover_timeout = smoltcp::time::Duration::from_secs(WAITS[attempt.clamp(1, WAITS.len()) - 1]);
    // REQUESTs go to a server that has just answered: a short wait, doubled every second time, then from the start.
    config.initial_request_timeout = smoltcp::time::Duration::from_secs(2);
    config.request_retries = 4;
    config
}

fn lease(config: &dhcpv4::Config<'_>) -> Lease {
    const FOR_EVER: u32 = u32::MAX;
    let seconds = config.packet.as_ref().and_then(|packet| DhcpRepr::parse(packet).ok()?.lease_duration);
    Lease {
        address: config.address.address(),
        prefix_len: config.address.prefix_len(),
        gateway: config.router.filter(|router| !router.is_unspecified()),
        dns: config.dns_servers.to_vec(),
        duration: seconds.filter(|seconds| *seconds != FOR_EVER).map(|seconds| Duration::from_secs(seconds.into())),
        server: config.server.identifier,
    }
}

/// Whether a frame we sent is a DISCOVER. It has no IP options, so the place is fixed.
fn is_discover(frame: &[u8]) -> bool {
    const HEADERS: usize = 14 + 20 + 8;
    let kind = frame.get(HEADERS..).and_then(|payload| {
        let packet = DhcpPacket::new_checked(payload).ok()?;
        Some(DhcpRepr::parse(&packet).ok()?.message_type)
    });
    kind == Some(DhcpMessageType::Discover)
}

/// A number that differs between machines and boots; the hasher is seeded by the kernel.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0u8)
}
