//! Answers of name servers.

use reflash::net::names::Resolver;
use reflash::net::names::fuzzing::answer;

pub fn run(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    if kind & 4 != 0 {
        let text = String::from_utf8_lossy(rest);
        let (resolv_conf, hosts) = text.split_once('\0').unwrap_or((&text, ""));
        let _ = Resolver::parse(resolv_conf, hosts);
        return;
    }
    let mut bytes = rest.to_vec();
    // The number and the kind of message are right, unless that is left to the input.
    if kind & 2 == 0 && bytes.len() >= 12 {
        bytes[..2].copy_from_slice(&[0x12, 0x34]);
        bytes[2] |= 0x80;
    }
    for addresses in [false, true].into_iter().filter_map(|ipv6| answer(&bytes, 0x1234, "images.example.com", ipv6)) {
        assert!(!addresses.is_empty() && addresses.iter().all(|address| !address.is_unspecified()), "{addresses:?}");
    }
}
