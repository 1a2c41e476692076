//! The cases of the benchmark.

use std::path::PathBuf;

use super::device::Before;
use super::peers::Peer;

/// A case: what is on the device before, what shall be on it, and with which options of ours.
pub struct Case {
    pub name: &'static str,
    pub before: Before,
    pub image: PathBuf,
    /// Channel of the release, and name of the peers' files.
    pub channel: &'static str,
    pub options: &'static str,
    pub peers: Peers,
}

/// Choice of the peers that take part.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    None,
    /// Peers that write a device afresh.
    Fresh,
    /// Peers that make use of what is on it.
    Updating,
}

impl Case {
    pub fn fits(&self, peer: &Peer) -> bool {
        match self.peers {
            Peers::None => false,
            Peers::Fresh => peer.fresh,
            Peers::Updating => peer.updates,
        }
    }
}
