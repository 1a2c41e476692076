//! Order of the versions of Debian packages, as deb-version(7) and `dpkg --compare-versions` have it. Pure.
//!
//! The crate that has this comes with dates, big numbers and two engines of regular expressions; it is thirty lines.

use std::cmp::Ordering;

/// Compares two versions: epoch, then the version of the software, then that of the packaging.
#[must_use]
pub fn compare(one: &str, other: &str) -> Ordering {
    let (one, other) = (split(one), split(other));
    one.0.cmp(&other.0).then_with(|| part(one.1, other.1)).then_with(|| part(one.2, other.2))
}

fn split(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch.parse().unwrap_or_default(), upstream, revision)
}

/// Compares by turns what is no digit, and numbers.
fn part(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    while !one.is_empty() || !other.is_empty() {
        let (text, rest) = cut(one, |byte| !byte.is_ascii_digit());
        let (other_text, other_rest) = cut(other, |byte| !byte.is_ascii_digit());
        for at in 0..=text.len().max(other_text.len()) {
            match weight(text.get(at)).cmp(&weight(other_text.get(at))) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
        }
        let (number, rest) = cut(rest, u8::is_ascii_digit);
        let (other_number, other_rest) = cut(other_rest, u8::is_ascii_digit);
        let (number, other_number) = (without_zeros(number), without_zeros(other_number));
        // Without leading zeros the longer number is the larger one, and numbers may have any length.
        match number.len().cmp(&other_number.len()).then_with(|| number.cmp(other_number)) {
            Ordering::Equal => {}
            unequal => return unequal,
        }
        (one, other) = (rest, other_rest);
    }
    Ordering::Equal
}

fn cut(text: &[u8], belongs: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| !belongs(byte)).unwrap_or(text.len()))
}

fn without_zeros(number: &[u8]) -> &[u8] {
    cut(number, |byte| *byte == b'0').1
}

/// Orders characters: a tilde before the end, the end before letters, and letters before everything else.
fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        Some(b'~') => -1,
        None => 0,
        Some(letter) if letter.is_ascii_alphabetic() => i32::from(*letter),
        Some(other) => i32::from(*other) + 256,
    }
}

#[cfg(test)]
mod tests {
    use super::compare;
    use std::cmp::Ordering::{Equal, Greater, Less};

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        for (one, other, order) in [
            ("1.0-1", "1.0-1", Equal),
            ("1.0", "1.0-0", Equal),
            ("1.00", "1.0", Equal),
            ("0:1", "1", Equal),
            ("1.9", "1.10", Less),
            ("1:1", "2", Greater),
            ("1.0~rc1", "1.0", Less),
            ("1.0~~", "1.0~", Less),
            ("1.0", "1.0a", Less),
            ("1.0a", "1.0+b1", Less),
            ("3.0.11-1~deb12u2", "3.0.11-1", Less),
            ("3.0.11-1~deb12u2", "3.0.11-1~deb12u10", Less),
            ("6.1.0-56", "6.1.0-6", Greater),
            ("1-2-3", "1-2-4", Less),
            ("2024.99999999999999999999998", "2024.99999999999999999999999", Less),
        ] {
            assert_eq!(compare(one, other), order, "{one} {other}");
            assert_eq!(compare(other, one), order.reverse(), "{other} {one}");
        }
    }
}
