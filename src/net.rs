//! The network: links, addresses, DHCP.
//!
//! [`bring_up`] is all that the agent needs. It tries every card at the same time and takes the first that gets an
//! address; a thread then keeps the lease alive and starts over when the cable moves to another card.

pub mod dhcp;
mod search;
mod supervisor;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use crate::machine::config::Network;

use crate::sys::net::rtnl::RtnlError;
use supervisor::Supervisor;

/// The network as it was configured first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Up {
    /// The link with the address: a card, or the VLAN on it.
    pub interface: String,
    /// Our address.
    pub address: Ipv4Addr,
    /// Its prefix length.
    pub prefix_len: u8,
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers, as written to `resolv.conf`.
    pub dns: Vec<IpAddr>,
    /// Lease time; `None` for a static address and for a lease without end.
    pub lease_seconds: Option<u32>,
}

/// Why the network cannot be brought up. A missing cable or server is no error: that is waited for.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// [`Stop::stop`] was called.
    #[error("stopped while waiting for the network")]
    Stopped,
    /// sysfs cannot be read.
    #[error("cannot list the network links")]
    List(#[source] io::Error),
    /// The kernel refused an address or a route.
    #[error("cannot configure the network")]
    Configure(#[from] RtnlError),
    /// The name servers cannot be written down.
    #[error("cannot write the name servers to {}", .path.display())]
    Resolver {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel has no thread for us.
    #[error("cannot start a thread for the network")]
    Thread(#[source] io::Error),
}

/// Ends [`bring_up_with`] and the thread that it leaves behind. Clones are the same switch.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends everything within a second. Addresses stay.
    pub fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(crate) fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// What tests and callers by hand may want otherwise.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// Where the name servers are written.
    pub resolv_conf: PathBuf,
    /// Ends it all.
    pub stop: Stop,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), stop: Stop::default() }
    }
}

/// Gets the first events and later ones: `eth0: link up`.
pub(crate) type Tell = Arc<dyn Fn(&str) + Send + Sync>;

/// Waits until the machine has an IPv4 address, a default route and name servers, however long that takes, and keeps
/// them from then on in a thread. `on_event` gets one sentence for whatever happens, also later and from that thread.
///
/// # Errors
/// [`NetError`] when waiting would not help.
pub fn bring_up(network: &Network, on_event: impl Fn(&str) + Send + Sync + 'static) -> Result<Up, NetError> {
    bring_up_with(network, NetworkOptions::default(), on_event)
}

/// [`bring_up`] with other paths, and a switch to end it.
///
/// # Errors
/// [`NetError`] when waiting would not help, or [`NetworkOptions::stop`] was used.
pub fn bring_up_with(
    network: &Network,
    options: NetworkOptions,
    on_event: impl Fn(&str) + Send + Sync + 'static,
) -> Result<Up, NetError> {
    let mut supervisor = Supervisor::new(network.clone(), options, Arc::new(on_event))?;
    let (first, wait) = mpsc::channel();
    std::thread::Builder::new()
        .name("network".into())
        .spawn(move || supervisor.run(&first))
        .map_err(NetError::Thread)?;
    // The sender is dropped without a word only if the thread dies, which in PID 1 is a reboot.
    wait.recv().unwrap_or(Err(NetError::Stopped))
}
