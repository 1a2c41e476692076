//! The network: links, addresses, DHCP, names.
//!
//! [`bring_up`] is all that the agent needs. It tries every card at the same time and takes the first that gets an
//! address; a thread then keeps the lease alive and starts over when the cable moves to another card.

pub mod dhcp;
mod error;
pub mod names;
mod options;
mod search;
mod settings;
mod supervisor;

use std::sync::Arc;
use std::sync::mpsc;

use crate::machine::config::Network;
use crate::sys::thread::background;
pub use error::NetError;
pub use options::{NetworkOptions, Stop};
pub use settings::Up;
use supervisor::Supervisor;

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
    background("network", move || supervisor.run(&first)).map_err(NetError::Thread)?;
    // The sender is dropped without a word only if the thread dies, which in PID 1 is a reboot.
    wait.recv().unwrap_or(Err(NetError::Stopped))
}
