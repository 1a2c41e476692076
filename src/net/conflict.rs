//! Whether another machine on the link has an address already.
//!
//! A DHCP server that has lost its leases grants addresses that are in use, and so does one whose range a person took a
//! fixed address from. Two machines with one address both lose most of their packets.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::arp;
use crate::sys::net::link::{Link, links};
use crate::sys::net::packet::PacketSocket;

/// Questions, and the time that each waits for an answer. RFC 5227 has three over 4 to 7 s, for hosts that sleep and
/// links that were just switched on. Here a DHCP server has just been heard by the same way, and machines answer within
/// milliseconds.
const QUESTIONS: usize = 3;
const ANSWER: Duration = Duration::from_millis(200);
/// Frames that are looked at in all: on a link with a flood the address is taken as free.
const MOST_FRAMES: usize = 1000;
/// Longer than any frame of ARP.
const MOST_BYTES: usize = 64;

/// Asks who has `address`, for 0.6 s. Returns the hardware address of another machine that has it.
///
/// # Errors
/// The link is gone or switched off.
pub(super) fn holder(link: &Link, address: Ipv4Addr) -> io::Result<Option<[u8; 6]>> {
    let socket = PacketSocket::for_arp(link.index)?;
    let own: Vec<[u8; 6]> = links().into_iter().flatten().map(|link| link.mac).chain([link.mac]).collect();
    let mut frame = [0; MOST_BYTES];
    let mut taken = 0;
    for _ in 0..QUESTIONS {
        socket.send(&arp::probe(link.mac, address))?;
        let until = Instant::now() + ANSWER;
        while taken < MOST_FRAMES && Instant::now() < until {
            socket.wait(until.saturating_duration_since(Instant::now()));
            while taken < MOST_FRAMES
                && let Some(length) = socket.receive(&mut frame)?
            {
                taken += 1;
                if let Some(holder) = arp::holder(&frame[..length], address, &own) {
                    return Ok(Some(holder));
                }
            }
        }
    }
    Ok(None)
}
