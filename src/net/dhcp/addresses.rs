//! Addresses as options of DHCP have them. Pure.

use std::net::Ipv4Addr;

/// Largest number of items of a list that is taken: more is an attack or a mistake.
pub(super) const MOST_ENTRIES: usize = 64;

pub(super) fn address_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let four: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(four.into())
}

/// Whether an address can be that of a machine on a network.
pub(super) fn is_host(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    (1..=223).contains(&first) && !address.is_loopback()
}

/// The prefix length of an address's class: A, B, C (RFC 791).
pub(super) fn class_prefix_len(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}
