//! A door to the DHCP client for its fuzz target: the state machine that [`super::obtain`] runs, with the clock and the
//! frames in the hands of the caller.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::Lease;
use super::client::{ClientStep, DhcpClient};
use crate::net::arp;

/// DHCP client of one card. All times count from its creation.
pub struct FuzzedClient(DhcpClient);

/// Next thing that the client wants done.
pub enum FuzzedStep {
    /// Send this frame.
    Send(Vec<u8>),
    /// Wait for frames, for at most so long.
    Wait(Duration),
}

impl FuzzedClient {
    /// Makes a client, which first asks to keep the address of `held`, if there is one.
    #[must_use]
    pub fn new(mac: [u8; 6], random: u64, held: Option<&Lease>) -> Self {
        Self(DhcpClient::new(mac, random, held, &[]))
    }

    /// Returns the next thing to do.
    pub fn step(&mut self, now: Duration) -> FuzzedStep {
        match self.0.step(now) {
            ClientStep::Send(frame) => FuzzedStep::Send(frame),
            ClientStep::Wait(time) => FuzzedStep::Wait(time),
        }
    }

    /// Takes a frame, and returns the lease once there is one.
    ///
    /// The frame is read as ARP too: the same peers send it, about the address of a lease.
    pub fn receive(&mut self, frame: &[u8], now: Duration) -> Option<Lease> {
        let _ = arp::holder(frame, Ipv4Addr::new(10, 9, 0, 50), &[]);
        self.0.receive(frame, now)
    }

    /// Returns a line for the console, if there is one.
    pub fn take_report(&mut self) -> Option<String> {
        self.0.take_report()
    }
}
