//! Hardware (MAC) addresses as text: six bytes in hexadecimal, with colons between them. Pure.

/// Reads an address in capital or small letters. `None` for anything else.
#[must_use]
pub fn parse(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Returns the address in small letters, as the kernel and `ip` write it.
#[must_use]
pub fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::{parse, text};

    #[test]
    fn an_address_is_read_as_it_is_written_and_nothing_else_is() {
        let mac = [0x52, 0x54, 0, 0x0a, 0xff, 9];
        assert_eq!(text(mac), "52:54:00:0a:ff:09");
        assert_eq!((parse(&text(mac)), parse("52:54:00:0A:FF:09")), (Some(mac), Some(mac)));
        for other in ["", "52:54:00:0a:ff", "52:54:00:0a:ff:09:01", "52:54:0:a:ff:9", "52:54:00:0a:ff:+9", "eth0"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
