//! Hardware (MAC) addresses as text: six bytes in hexadecimal. Pure.

/// Reads an address in capital or small letters, in any usual form: with colons or dashes between the bytes, with dots
/// after every second one, or with nothing in between. `None` for anything else.
#[must_use]
pub fn parse(text: &str) -> Option<[u8; 6]> {
    let is_grouped = |by: char, digits: usize| text.split(by).all(|group| group.len() == digits);
    if !(is_grouped(':', 2) || is_grouped('-', 2) || is_grouped('.', 4) || text.len() == 12) {
        return None;
    }
    let digits: String = text.chars().filter(|letter| !matches!(letter, ':' | '-' | '.')).collect();
    if digits.len() != 12 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let [_, _, mac @ ..] = u64::from_str_radix(&digits, 16).ok()?.to_be_bytes();
    Some(mac)
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
        // Labels, switches and databases have it in other forms.
        for same in ["52-54-00-0A-FF-09", "5254.000a.ff09", "5254000aFF09"] {
            assert_eq!(parse(same), Some(mac), "{same}");
        }
        for other in [
            "",
            "52:54:00:0a:ff",
            "52:54:00:0a:ff:09:01",
            "52:54:0:a:ff:9",
            "52:54:00:0a:ff:+9",
            "52:54:00-0a-ff-09",
            "5254.000a.ff",
            "5254.000aff0",
            "5254000affzz",
            "+254000aff09",
            "eth0",
            "enx5254000aff09",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
