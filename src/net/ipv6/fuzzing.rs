//! A door to what reads router advertisements and DHCPv6 for their fuzz target: the state that
//! [`super::keep`] holds, with the clock and the messages in the hands of the caller.

use std::net::Ipv6Addr;
use std::time::Duration;

use super::advert::{self, Advertised};
use super::client::{Dhcp6Client, Dhcp6Need, Dhcp6Step};
use crate::sys::net::items::Route;

/// IPv6 of one link. All times count from its creation.
pub struct FuzzedIpv6 {
    advertised: Advertised,
    client: Dhcp6Client,
}

impl FuzzedIpv6 {
    /// Makes the state of a link whose client asks for an address, or for name servers only.
    #[must_use]
    pub fn new(mac: [u8; 6], random: u64, address: bool) -> Self {
        let need = if address { Dhcp6Need::Address } else { Dhcp6Need::Information };
        Self { advertised: Advertised::default(), client: Dhcp6Client::new(mac, need, random, Duration::ZERO) }
    }

    /// Returns the message that is due, or the time to wait for one.
    ///
    /// # Errors
    /// The time to wait.
    pub fn step(&mut self, now: Duration) -> Result<Vec<u8>, Duration> {
        match self.client.step(now) {
            Dhcp6Step::Send(message) => Ok(message),
            Dhcp6Step::Wait(time) => Err(time),
        }
    }

    /// Takes an advertisement of a router.
    pub fn hear(&mut self, router: Ipv6Addr, message: &[u8], now: Duration) {
        if let Some(advert) = advert::read(message) {
            self.advertised.hear(router, advert, now);
        }
    }

    /// Takes a DHCPv6 message.
    pub fn receive(&mut self, message: &[u8], now: Duration) {
        self.client.receive(message, now);
    }

    /// Notes that the cable was away.
    pub fn cable_moved(&mut self, now: Duration) {
        self.advertised.doubt_until(now + Duration::from_secs(10));
        self.client.ask_again(now);
    }

    /// Returns routers, routes, addresses of machines, and domains that would be used now.
    pub fn used(&mut self, now: Duration) -> (Vec<Ipv6Addr>, Vec<Route>, Vec<Ipv6Addr>, Vec<String>) {
        self.advertised.expire(now);
        let given = self.client.given().cloned().unwrap_or_default();
        let mut addresses = self.advertised.name_servers();
        addresses.extend(given.addresses.iter().chain(&given.name_servers));
        let mut search = self.advertised.search();
        search.extend(given.search);
        (self.advertised.routers(), self.advertised.routes(), addresses, search)
    }
}
