//! DHCPv6 servers that are passed over for a while, so that others get their turn. Pure.

use std::time::Duration;

/// Time after the next solicitation in which such a server is passed over.
const PASS_OVER: Duration = Duration::from_secs(2);
/// Servers that are remembered.
const MOST: usize = 16;

/// The servers, by their identifiers, each with the time until which it is passed over.
#[derive(Debug, Default)]
pub(super) struct PassedOver(Vec<(Vec<u8>, Duration)>);

impl PassedOver {
    /// Passes a server over in the solicitation that follows this pause.
    pub(super) fn add(&mut self, server: Vec<u8>, pause: Duration, now: Duration) {
        self.0.retain(|(other, until)| *other != server && *until > now);
        self.0.truncate(MOST - 1);
        self.0.push((server, now + pause + PASS_OVER));
    }

    pub(super) fn has(&self, server: &[u8], now: Duration) -> bool {
        self.0.iter().any(|(other, until)| other == server && *until > now)
    }
}
