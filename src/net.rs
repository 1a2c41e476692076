//! The network: links, addresses, DHCP, names.
//!
//! [`bring_up`] is all that the agent needs. It brings up every card that has a cable, each with its own leases and
//! routes, and leads the default route through one that reaches a source of the release.
//!
//! | module | what it does |
//! |---|---|
//! | `supervisor` | the one thread that looks at links and news, and has everything changed |
//! | `cables`, `settings` | which links are used, with which settings, and their way to a carrier |
//! | `card`, `lease`, [`dhcp`], `ipv6` | one card: the threads that ask for its addresses, and what they got |
//! | `conflict`, `arp` | whether another machine has an address already |
//! | `choice` | which card the default route leads through |
//! | `target`, `reach` | what a card has to reach, and whether it does |
//! | `routing`, `applied` | the addresses, routes and rules that follow, and the changes to the kernel's |
//! | `resolver_file`, [`names`] | the name servers of the machine, and names to addresses |
//! | `console` | what is reported, however often something changes |

mod applied;
mod arp;
mod cables;
mod card;
mod choice;
mod conflict;
mod console;
pub mod dhcp;
mod error;
#[cfg(not(feature = "fuzzing"))]
mod ipv6;
#[cfg(feature = "fuzzing")]
pub mod ipv6;
mod jitter;
mod lease;
mod mtu;
pub mod names;
mod options;
mod passed_over;
mod reach;
mod resolver_file;
mod routing;
mod settings;
mod supervisor;
mod target;
mod usage;

use std::sync::Arc;
use std::sync::mpsc;

use crate::machine::config::Network;
use crate::sys::thread::background;
pub use error::NetError;
pub use options::{NetworkOptions, RequestOutcomes, Stop};
pub use settings::Up;
use supervisor::Supervisor;

/// Waits until the machine has an address, of IPv4 or IPv6, however long that takes, and keeps all its addresses,
/// routes and name servers from then on in a thread. With several cards it waits up to ten seconds longer for one that
/// reaches a source. `on_event` gets one sentence for whatever happens, also later and from that thread.
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
    let mut supervisor = Supervisor::new(network, options, Arc::new(on_event))?;
    let (first, wait) = mpsc::channel();
    background("network", move || supervisor.run(&first)).map_err(NetError::Thread)?;
    // The sender is dropped without a word only if the thread dies, which in PID 1 is a reboot.
    wait.recv().unwrap_or(Err(NetError::Stopped))
}
