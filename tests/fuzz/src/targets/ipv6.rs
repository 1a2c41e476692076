//! IPv6: router advertisements and DHCPv6 messages into the state that runs, for as long as the input lasts.

use std::net::Ipv6Addr;
use std::time::Duration;

use reflash::net::ipv6::fuzzing::FuzzedIpv6;

use super::steps::{self, Step};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Steps of the client without a wait that are too many: it would never wait.
const MOST_STEPS: usize = 8;

/// The input is a byte for what is asked for, and a list of steps.
pub fn run(data: &[u8]) {
    let Some((&first, mut rest)) = data.split_first() else { return };
    let mut network = FuzzedIpv6::new(MAC, u64::from(first) + 1, first & 1 == 0);
    let (mut now, mut sent, mut sent_at) = (Duration::ZERO, Vec::new(), Vec::new());
    while let Some(Step { pause, kind, bytes }) = steps::next(&mut rest) {
        let (end, mut waits) = (now + pause, 0);
        while now < end && waits < 200 {
            let wait = settle(&mut network, now, &mut sent, &mut sent_at);
            now = now.saturating_add(wait).min(end);
            waits += 1;
        }
        now = end;
        settle(&mut network, now, &mut sent, &mut sent_at);
        match kind & 3 {
            0 => network.hear(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, u16::from(kind >> 2)), &advert(kind, bytes), now),
            1 => network.receive(bytes, now),
            2 => network.receive(&answer(kind, &sent, bytes), now),
            _ => network.cable_moved(now),
        }
        check(&mut network, now);
    }
}

/// Lets the client do what it wants until it waits, and returns for how long.
fn settle(network: &mut FuzzedIpv6, now: Duration, sent: &mut Vec<u8>, sent_at: &mut Vec<Duration>) -> Duration {
    for _ in 0..MOST_STEPS {
        match network.step(now) {
            Err(time) if time.is_zero() => {}
            Err(time) => return time,
            Ok(message) => {
                *sent = message;
                sent_at.push(now);
                // A request follows an offer at once; beyond that there is a second between two messages.
                let burst = sent_at.iter().rev().take_while(|at| now.saturating_sub(**at) < Duration::from_secs(1));
                assert!(burst.count() <= 6, "a storm at {now:?}: {sent_at:?}");
            }
        }
    }
    panic!("the client does not wait at {now:?}");
}

/// An advertisement of the right type, unless the input wants another.
fn advert(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = bytes.to_vec();
    if kind & 0x80 == 0 && message.len() >= 2 {
        message[..2].copy_from_slice(&[134, 0]);
    }
    message
}

/// An answer to what was sent, as far as identifiers and numbers go.
fn answer(kind: u8, sent: &[u8], bytes: &[u8]) -> Vec<u8> {
    let Some(number) = sent.get(1..4) else { return bytes.to_vec() };
    let mut message = vec![if kind & 4 == 0 { 7 } else { 2 }];
    message.extend_from_slice(number);
    message.extend_from_slice(&[0, 1, 0, 10, 0, 3, 0, 1]);
    message.extend_from_slice(&MAC);
    message.extend_from_slice(&[0, 2, 0, 1, kind >> 3 & 1]);
    if kind & 16 != 0 {
        // An association whose content the input gives.
        let length = u16::try_from(bytes.len() + 4).unwrap_or(u16::MAX).to_be_bytes();
        message.extend_from_slice(&[0, 3, length[0], length[1]]);
        message.extend_from_slice(&MAC[2..]);
    }
    message.extend_from_slice(bytes);
    message
}

fn check(network: &mut FuzzedIpv6, now: Duration) {
    let (routers, routes, addresses, search) = network.used(now);
    assert!(routers.len() <= 8 && routes.len() <= 16 && addresses.len() <= 32 && search.len() <= 32);
    assert!(addresses.iter().all(|one| !one.is_unspecified() && !one.is_multicast() && !one.is_loopback()));
    for route in routes {
        assert!(route.prefix_len <= 128 && route.destination.is_ipv6(), "{route:?}");
    }
    for domain in search {
        assert!(domain.len() <= 253 && !domain.contains(|c: char| c.is_whitespace() || c.is_control()), "{domain:?}");
    }
}
