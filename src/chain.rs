//! Formats an error and its causes. Pure.

use std::error::Error;

/// What musl says of `EUCLEAN`, with which ext4 answers for what is damaged: its table (`src/errno/__strerror.h`) has
/// no text for it.
const WITHOUT_TEXT: &str = "No error information (os error 117)";
const DAMAGED: &str = "The file system is damaged (os error 117)";

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
    text.replace(WITHOUT_TEXT, DAMAGED)
}

#[cfg(test)]
mod tests {
    use super::chain;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
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
