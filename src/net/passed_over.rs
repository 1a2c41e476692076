//! DHCP servers that are passed over for a while, so that others get their turn. Pure.

use std::time::Duration;

/// Time after the next question in which such a server is passed over: another one's answer can arrive.
const PASS_OVER: Duration = Duration::from_secs(2);
/// Servers that are remembered; a hostile peer may have any number of names.
const MOST: usize = 16;

/// The servers, each with the time until which it is passed over.
#[derive(Debug)]
pub(super) struct PassedOver<S>(Vec<(S, Duration)>);

impl<S> Default for PassedOver<S> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<S: Clone + PartialEq> PassedOver<S> {
    /// Passes these servers over until these times.
    pub(super) fn until(servers: &[(S, Duration)]) -> Self {
        Self(servers.to_vec())
    }

    /// Passes a server over in the question that is asked at the time `next`.
    pub(super) fn add(&mut self, server: S, next: Duration, now: Duration) {
        self.0.retain(|(other, until)| *other != server && *until > now);
        self.0.truncate(MOST - 1);
        self.0.push((server, next + PASS_OVER));
    }

    pub(super) fn has(&self, server: &S, now: Duration) -> bool {
        self.0.iter().any(|(other, until)| other == server && *until > now)
    }
}
