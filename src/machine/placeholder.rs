//! Texts that vendors ship where an identity should be. Pure.
//!
//! A fleet of "To be filled by O.E.M." has one host name. The list follows what real boards report: AMI's and Insyde's
//! defaults, boards whose maker never ran the tool that fills in DMI, and network cards without their EEPROM. A text
//! that is wrongly taken for a placeholder costs nothing but the use of the next source.

/// Texts that are placeholders, compared without case, spaces and punctuation.
const TEXTS: &[&str] = &[
    "asdf",
    "assettag",
    "baseboardserialnumber",
    "blank",
    "chassisserialnumber",
    "default",
    "defaultstring",
    "empty",
    "fillbyoem",
    "filledbyoem",
    "invalid",
    "na",
    "nil",
    "noassetinformation",
    "noassettag",
    "none",
    "notapplicable",
    "notavailable",
    "notpresent",
    "notset",
    "notspecified",
    "null",
    "oem",
    "productserialnumber",
    "reserved",
    "serial",
    "serialnotavailable",
    "serialnumber",
    "sernum0",
    "sn",
    "systemmanufacturer",
    "systemname",
    "systemproductname",
    "systemserialnumber",
    "tbd",
    "test",
    "tobefilled",
    "tobefilledbyoem",
    "type1productserialnumber",
    "type2boardserialnumber",
    "undefined",
    "unknown",
    "unspecified",
];

/// Product UUIDs seen on boards of many makers.
const UUIDS: &[&str] = &[
    // AMI's default, in both byte orders.
    "03000200-0400-0500-0006-000700080009",
    "00020003-0004-0005-0006-000700080009",
    // Insyde's, and what people type into DMI tools.
    "12345678-1234-5678-90ab-cddeefaabbcc",
    "11111111-2222-3333-4444-555555555555",
    // Dell's scheme applied to an empty service tag.
    "4c4c4544-0000-2010-8020-80c04f202020",
    "4c4c4544-0020-2010-8020-80c04f202020",
];

/// Hardware addresses of cards whose EEPROM was never written.
const ADDRESSES: &[&str] = &[
    "00:01:02:03:04:05",
    "00:11:22:33:44:55",
    "01:02:03:04:05:06",
    "12:34:56:78:9a:bc",
    // Realtek without EEPROM, by way of two drivers.
    "00:e0:4c:68:00:01",
    "88:88:88:88:87:88",
];

/// Length from which on a run of digits that counts up is taken for one that a person typed.
const COUNTED_DIGITS: usize = 5;

/// Whether a serial number, a name or an asset tag is one that other machines have too.
#[must_use]
pub fn is_placeholder(text: &str) -> bool {
    let plain: String = text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    // "BSN12345678901234567" and "MB-1234567890" are common, too.
    let digits = plain.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    let counted = plain.len() - digits.len() <= 3 && counts_up(digits);
    // Some boards show "0x00000000".
    let body = plain.strip_prefix("0x").unwrap_or(&plain);
    repeats(body, 1) || counted || TEXTS.contains(&plain.as_str())
}

/// Whether a product UUID is one that other machines have too, or no UUID.
#[must_use]
pub fn is_placeholder_uuid(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let groups: Vec<usize> = lower.split('-').map(str::len).collect();
    let plain = lower.replace('-', "");
    let valid = groups == [8, 4, 4, 4, 12] && plain.bytes().all(|byte| byte.is_ascii_hexdigit());
    // A time stamp of the factory's tool and nothing else (ASRock), or fefefefe-fefe-...
    !valid || repeats(&plain, 2) || plain.ends_with("00000000000000000000") || UUIDS.contains(&lower.as_str())
}

/// Whether a hardware address, as `aa:bb:cc:dd:ee:ff`, is one that other machines have too, or cannot be that of a
/// card.
#[must_use]
pub fn is_placeholder_address(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let octets: Vec<u8> = lower.split(':').filter_map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
    // The lowest bit of the first octet marks groups of receivers.
    let valid = lower.len() == 17 && octets.len() == 6 && octets[0] & 1 == 0;
    !valid || octets.iter().all(|octet| *octet == octets[0]) || ADDRESSES.contains(&lower.as_str())
}

/// Whether the text is empty or repeats its first `width` bytes.
fn repeats(text: &str, width: usize) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().zip(bytes.iter().cycle().skip(width)).take(bytes.len().saturating_sub(width)).all(|(a, b)| a == b)
}

/// Whether the digits count up, as in `123456789`, `0123456789abcdef` and `12345678901234567`.
fn counts_up(text: &str) -> bool {
    let values: Vec<u32> = text.chars().filter_map(|c| c.to_digit(36)).collect();
    let steps = |pair: &[u32]| pair[1] == pair[0] + 1 || (pair[0] == 9 && pair[1] == 0);
    values.len() >= COUNTED_DIGITS && values.windows(2).all(steps)
}

#[cfg(test)]
mod tests {
    use super::{is_placeholder, is_placeholder_address, is_placeholder_uuid};

    #[test]
    fn texts_that_vendors_forgot_to_fill_in_are_not_an_identity() {
        for text in [
            "To be filled by O.E.M.",
            "To Be Filled By O.E.M",
            "$(DEFAULT_STRING)",
            "Default string",
            "System Serial Number",
            "SYSTEM_SERIAL_NUMBER",
            "Not Specified",
            "None",
            "N/A",
            "",
            " ",
            "...",
            "0",
            "00000000",
            "0x00000000",
            "FFFFFFFF",
            "xxxxxxxxxxx",
            "0123456789",
            "123456789",
            "1234567890",
            "0123456789ABCDEF",
            "12345",
            "BSN12345678901234567",
            "MB-1234567890",
            "Type2 - Board Serial Number",
        ] {
            assert!(is_placeholder(text), "{text:?}");
        }
    }

    #[test]
    fn real_serial_numbers_pass() {
        for text in
            ["5CG8240BXK", "PF0ABCDE", "10000000abcdef01", "1234", "0012345679", "DEMO0001", "None-7", "2345679"]
        {
            assert!(!is_placeholder(text), "{text:?}");
        }
    }

    #[test]
    fn uuids_that_many_boards_have_are_not_an_identity() {
        for text in [
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "FEFEFEFE-FEFE-FEFE-FEFE-FEFEFEFEFEFE",
            "03000200-0400-0500-0006-000700080009",
            "76006B9C-C49C-0000-0000-000000000000",
            "Not Settable",
            "4c4c4544",
        ] {
            assert!(is_placeholder_uuid(text), "{text}");
        }
        // Zeros before the address of the board's card: Supermicro.
        for text in ["00000000-0000-0000-0000-ac1f6b123456", "4C4C4544-0042-3510-8048-B4C04F4D3732"] {
            assert!(!is_placeholder_uuid(text), "{text}");
        }
    }

    #[test]
    fn addresses_that_many_cards_have_are_not_an_identity() {
        for text in ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "88:88:88:88:87:88", "01:80:c2:00:00:0e", "00:11:22", ""]
        {
            assert!(is_placeholder_address(text), "{text}");
        }
        assert!(!is_placeholder_address("52:54:00:12:34:56") && !is_placeholder_address("AC:1F:6B:01:02:03"));
    }
}
