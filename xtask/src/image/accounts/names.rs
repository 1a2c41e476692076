//! Names of users and groups in the record of their numbers, in which each is one word. Pure.

/// Beginnings of lines in `passwd` and `group` that are no accounts: comments, and what a network adds or takes away.
const NO_ACCOUNTS: &[u8] = b"#+-";

/// Returns a name as one word: white space, control characters and bytes that are no text become `%` and two
/// hexadecimal digits. A word stays as it is. `None` where a line of the databases has no name.
#[must_use]
pub fn word_of(name: &[u8]) -> Option<String> {
    if name.first().is_none_or(|first| NO_ACCOUNTS.contains(first)) {
        return None;
    }
    let mut word = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_whitespace() || character.is_control() {
                let mut bytes = [0; 4];
                character.encode_utf8(&mut bytes).bytes().for_each(|byte| word.push_str(&escaped(byte)));
            } else {
                word.push(character);
            }
        }
        chunk.invalid().iter().for_each(|byte| word.push_str(&escaped(*byte)));
    }
    Some(word)
}

fn escaped(byte: u8) -> String {
    format!("%{byte:02x}")
}

/// Returns the bytes of a name from its word.
#[must_use]
pub fn name_of(word: &str) -> Vec<u8> {
    let mut name = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%').and_then(|digits| str::from_utf8(digits).ok());
        // What stands for a visible character was the name's own from the start.
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.filter(|byte| !byte.is_ascii_graphic()) {
            Some(byte) => {
                name.push(byte);
                rest = &after[2..];
            }
            None => {
                name.push(*first);
                rest = after;
            }
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::{name_of, word_of};

    #[test]
    fn every_name_is_a_word_from_which_it_comes_back() {
        for (name, word) in [
            (&b"pilot"[..], "pilot"),
            (b"DOM\\user a", "DOM\\user%20a"),
            ("m\u{fc}ller".as_bytes(), "m\u{fc}ller"),
            (b"m\xfcller", "m%fcller"),
            (b"tab\there", "tab%09here"),
            ("no\u{a0}break".as_bytes(), "no%c2%a0break"),
            (b"100%sure", "100%sure"),
            (b"50%", "50%"),
        ] {
            assert_eq!(word_of(name).as_deref(), Some(word));
            assert_eq!(name_of(word), name, "{word}");
            assert_eq!(word_of(word.as_bytes()).as_deref(), Some(word), "once");
        }
        for line in ["", "# pilot", "#old", "+", "+admins", "-guest"] {
            assert_eq!(word_of(line.as_bytes()), None, "{line}");
        }
    }
}
