//! Shell patterns as the module tables use them: fnmatch(3) without special treatment of `/` and of leading dots.

/// Whether `pattern`, with `*`, `?`, `[...]` and `\x`, matches all of `text`.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // After a mismatch, only the last star can be wrong about what it swallowed: linear memory, no recursion.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == b'*' {
            p += 1;
            retry = Some((p, t));
            continue;
        }
        if t == text.len() {
            return p == pattern.len();
        }
        if let Some(next) = one(pattern, p, text[t]) {
            p = next;
            t += 1;
            continue;
        }
        let Some((after_star, swallowed)) = retry else { return false };
        retry = Some((after_star, swallowed + 1));
        p = after_star;
        t = swallowed + 1;
    }
}

/// Matches one byte against the pattern element at `at`, and returns the position after the element if it matches.
fn one(pattern: &[u8], at: usize, byte: u8) -> Option<usize> {
    match *pattern.get(at)? {
        b'?' => Some(at + 1),
        b'[' => match set(pattern, at + 1, byte) {
            Some((found, next)) => found.then_some(next),
            // No closing bracket: the bracket is an ordinary character.
            None => (byte == b'[').then_some(at + 1),
        },
        b'\\' if at + 1 < pattern.len() => (pattern[at + 1] == byte).then_some(at + 2),
        literal => (literal == byte).then_some(at + 1),
    }
}

/// Reads a set after its opening bracket, and returns whether `byte` is in it, and the position after the closing
/// bracket.
fn set(pattern: &[u8], mut at: usize, byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(at), Some(b'!' | b'^'));
    if negated {
        at += 1;
    }
    let mut found = false;
    let first = at;
    loop {
        let low = *pattern.get(at)?;
        // A bracket in the first place is a member, not the end.
        if low == b']' && at > first {
            return Some((found != negated, at + 1));
        }
        match (pattern.get(at + 1), pattern.get(at + 2)) {
            (Some(b'-'), Some(&high)) if high != b']' => {
                found |= (low..=high).contains(&byte);
                at += 3;
            }
            _ => {
                found |= low == byte;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_of_real_module_tables() {
        let e1000e = "pci:v00008086d000010D3sv*sd*bc*sc*i*";
        assert!(matches(e1000e, "pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00"));
        assert!(!matches(e1000e, "pci:v00008086d000010D4sv00008086sd0000A01Fbc02sc00i00"));
        let range = "usb:v0951p1666d0[1-9]*dc*dsc*dp*ic08isc06ip50in*";
        assert!(matches(range, "usb:v0951p1666d0110dc00dsc00dp00ic08isc06ip50in00"));
        assert!(!matches(range, "usb:v0951p1666d0010dc00dsc00dp00ic08isc06ip50in00"));
    }

    #[test]
    fn every_element_and_its_corners() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[]x]", "]", true),
            ("[!a-c]", "d", true),
            ("[!a-c]", "b", false),
            ("[a-]", "-", true),
            ("[ab", "[ab", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("**a", "bba", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern:?} on {text:?}");
        }
    }

    #[test]
    fn many_stars_do_not_take_exponential_time() {
        let text = "a".repeat(5000);
        assert!(!matches(&format!("{}b", "*a".repeat(40)), &text));
    }
}
