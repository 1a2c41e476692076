//! One DHCPv4 exchange on one link, for as long as it takes.

mod addresses;
mod client;
mod domains;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod message;
mod routes;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::sys::net::link::Link;
use crate::sys::net::packet::{MAX_FRAME_BYTES, PacketSocket};
use client::{ClientStep, DhcpClient};
pub(super) use domains::search as search_domains;
pub use message::Lease;
use message::{Ask, Sender};

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

/// Interval at which the stop condition is checked.
const STOP_CHECK: Duration = Duration::from_millis(200);
/// Number of frames that are taken at a time, more than a quiet network ever has. Beyond it there is a flood, of which
/// the kernel may drop what comes during [`FLOOD_PAUSE`].
const MOST_FRAMES: usize = 64;
const FLOOD_PAUSE: Duration = Duration::from_millis(50);

/// Asks for a lease on `link` until a server grants one, or `stop` says to give up. With `held`, it first asks to keep
/// that lease's address. Offers of the servers in `passed_over` are left for so long. `on_event` gets a sentence now
/// and then about the reason for the wait.
///
/// # Errors
/// [`DhcpError`]; a server that does not answer is no error.
pub fn obtain(
    link: &Link,
    held: Option<&Lease>,
    passed_over: &[(Ipv4Addr, Duration)],
    stop: &dyn Fn() -> bool,
    on_event: &dyn Fn(&str),
) -> Result<Lease, DhcpError> {
    let failed = |source| DhcpError::Link { interface: link.name.clone(), source };
    let began = Instant::now();
    let socket = PacketSocket::for_dhcp(link.index).map_err(failed)?;
    let mut client = DhcpClient::new(link.mac, random(), held, passed_over);
    let mut frame = [0; MAX_FRAME_BYTES];
    loop {
        if stop() {
            return Err(DhcpError::Stopped { interface: link.name.clone() });
        }
        match client.step(began.elapsed()) {
            ClientStep::Send(frame) => socket.send(&frame).map_err(failed)?,
            ClientStep::Wait(time) => socket.wait(time.min(STOP_CHECK)),
        }
        let mut taken = 0;
        while taken < MOST_FRAMES {
            let Some(length) = socket.receive(&mut frame).map_err(failed)? else { break };
            taken += 1;
            if let Some(lease) = client.receive(&frame[..length], began.elapsed()) {
                return Ok(lease);
            }
        }
        if taken == MOST_FRAMES {
            std::thread::sleep(FLOOD_PAUSE);
        }
        if let Some(report) = client.take_report() {
            on_event(&format!("{}: {report}", link.name));
        }
    }
}

/// Tells the server of `lease` that another machine has the address: it is to grant another one. There is no answer.
///
/// # Errors
/// The link is gone or switched off.
pub(super) fn decline(link: &Link, lease: &Lease) -> io::Result<()> {
    // The number of the exchange is of no use to a server, which goes by the address.
    let sender =
        Sender { mac: link.mac, transaction: (random() & 0xffff_ffff) as u32, elapsed_s: 0, wants_broadcast: false };
    let ask = Ask::Decline { address: lease.address, server: lease.server };
    PacketSocket::for_dhcp(link.index)?.send(&message::frame(sender, ask))
}

/// A number that differs between machines and boots; the hasher is seeded by the kernel.
fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}
