//! ARP messages that ask whether a machine has an address already (RFC 826, RFC 5227). Pure.

use std::net::Ipv4Addr;

/// Frame type of ARP.
const ETHER_TYPE: [u8; 2] = [0x08, 0x06];
/// Ethernet and IPv4, with lengths of addresses of 6 and 4 bytes.
const KINDS: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];

/// Makes the frame that asks who has `address` and says nothing of the sender but its hardware address: nobody's table
/// changes by it.
pub(super) fn probe(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &mac, &ETHER_TYPE, &KINDS, &REQUEST, &mac, &[0; 4], &[0; 6]].concat();
    frame.extend_from_slice(&address.octets());
    // Least length of an Ethernet frame; some drivers do not fill it up.
    frame.resize(60, 0);
    frame
}

/// Returns the hardware address of a machine other than this one that has `address`, or is about to take it, if the
/// frame says so. `own` are the addresses of this machine's links.
pub(super) fn holder(frame: &[u8], address: Ipv4Addr, own: &[[u8; 6]]) -> Option<[u8; 6]> {
    let message = frame.get(14..42)?;
    if frame.get(12..14)? != ETHER_TYPE || message.get(..6)? != KINDS {
        return None;
    }
    let mac: [u8; 6] = message.get(8..14)?.try_into().ok()?;
    let (sender, wanted) = (message.get(14..18)?, message.get(24..28)?);
    // Who is about to take an address asks everybody (RFC 5227). A switch that keeps a list of what is behind its ports
    // asks in the same words, and only the machine that has it.
    let is_to_all = frame.get(..6)? == [0xff; 6];
    let is_probe = is_to_all && message.get(6..8)? == REQUEST && sender == [0; 4] && wanted == address.octets();
    let is_about_it = sender == address.octets() || is_probe;
    (is_about_it && !own.contains(&mac)).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::{holder, probe};
    use std::net::Ipv4Addr;

    const OWN: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 50);

    /// An answer or question of [`OTHER`], from `sender`.
    fn from_other(kind: u8, sender: [u8; 4]) -> Vec<u8> {
        let mut frame = probe(OTHER, Ipv4Addr::new(10, 9, 0, 1));
        frame[21] = kind;
        frame[28..32].copy_from_slice(&sender);
        frame
    }

    #[test]
    fn whoever_speaks_from_an_address_or_asks_for_it_too_has_it() {
        for kind in [1, 2] {
            assert_eq!(holder(&from_other(kind, ADDRESS.octets()), ADDRESS, &[OWN]), Some(OTHER));
            assert_eq!(holder(&from_other(kind, [10, 9, 0, 51]), ADDRESS, &[OWN]), None);
        }
        assert_eq!(holder(&probe(OTHER, ADDRESS), ADDRESS, &[OWN]), Some(OTHER));
        // https://github.com/zephyrproject-rtos/zephyr/pull/102116: a switch asks whether this machine is still there.
        let mut to_this_one = probe(OTHER, ADDRESS);
        to_this_one[..6].copy_from_slice(&OWN);
        assert_eq!(holder(&to_this_one, ADDRESS, &[OWN]), None);
        // A switch may send back what this machine has sent, by this link or another.
        assert_eq!(holder(&probe(OWN, ADDRESS), ADDRESS, &[OWN]), None);
        assert_eq!(holder(&from_other(2, ADDRESS.octets()), ADDRESS, &[OWN, OTHER]), None);
    }

    #[test]
    fn frames_that_are_cut_or_of_other_kinds_say_nothing() {
        let whole = from_other(2, ADDRESS.octets());
        for length in 0..42 {
            assert_eq!(holder(&whole[..length], ADDRESS, &[OWN]), None, "{length}");
        }
        for at in 12..20 {
            let mut odd = whole.clone();
            odd[at] ^= 0x40;
            assert_eq!(holder(&odd, ADDRESS, &[OWN]), None, "{at}");
        }
    }
}
