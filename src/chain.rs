//! Formats an error and its causes. Pure.

use std::error::Error;

/// What musl says of `EUCLEAN`, with which ext4 answers for what is damaged: its table (`src/errno/__strerror.h`) has
/// no text for it.
const WITHOUT_TEXT: &str = "No error information (os error 117)";
const DAMAGED: &str = "The file system is damaged (os error 117)";

/// The most bytes of a text that are shown: a server may have sent half a megabyte of it, and a serial console takes
/// 0.7 s for this much.
const MOST_BYTES: usize = 8192;

/// Formats an error and all its causes on one line, outermost first, joined by `: `.
///
/// A cause that only repeats the end of the text before it is left out, because some libraries print their cause
/// themselves.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    bounded(text.replace(WITHOUT_TEXT, DAMAGED))
}

/// The beginning of a text that is too long to be shown.
fn bounded(mut text: String) -> String {
    if text.len() > MOST_BYTES {
        let len = text.len();
        text.truncate(text.floor_char_boundary(MOST_BYTES));
        text.push_str(&format!("... ({len} bytes in all)"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{MOST_BYTES, bounded, chain};

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn a_text_of_any_length_is_bounded() {
        for length in [MOST_BYTES - 1, MOST_BYTES, MOST_BYTES + 1, 10 * MOST_BYTES] {
            let text = bounded(format!("{}\u{20ac}", "x".repeat(length)));
            assert!(text.len() <= MOST_BYTES + 40 && text.starts_with("xxx"), "{length}");
            assert_eq!(text.contains("bytes in all"), length + 3 > MOST_BYTES);
        }
    }

    #[test]
    fn every_cause_is_named_once() {
        let layer = |text, source: Option<Layer>| Layer { text, source: source.map(Box::new) };
        let error = layer("a", Some(layer("b failed: c", Some(layer("c", Some(layer("d", None)))))));
        assert_eq!(chain(&error), "a: b failed: c: d");
        assert_eq!(chain(&layer("alone", None)), "alone");
        let damaged = layer("mount x", Some(layer("No error information (os error 117)", None)));
        assert_eq!(chain(&damaged), "mount x: The file system is damaged (os error 117)");
    }
}
