//! The host name of a machine, from what its hardware says and a template. Pure.
//!
//! `robot-{serial|mac}` means: `robot-`, then the serial number of the product or, on a machine without one, the
//! hardware address of its first network card. The image is the same for the whole fleet; this is what tells robots
//! apart.

/// The keys of a template.
pub const KEYS: &[&str] = &["serial", "board-serial", "uuid", "mac", "product", "vendor"];

/// Linux takes 64 characters, DNS 63 for one label.
const MAX_CHARS: usize = 63;

/// Why a template gives no host name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostnameError {
    /// The template itself.
    #[error("host name template {template:?}: {problem}; an example is robot-{{serial|mac}}")]
    Template {
        /// As configured.
        template: String,
        /// What is wrong.
        problem: String,
    },
    /// The hardware does not say.
    #[error("this machine has none of {wanted}, which host name template {template:?} asks for")]
    Nothing {
        /// As configured.
        template: String,
        /// The keys of the place that stays empty.
        wanted: String,
    },
}

/// Fills in a template. `lookup` gives the value of a key of [`KEYS`], if the machine has it.
///
/// The result is a valid DNS label: lower case, every run of other characters a single dash, at most 63 long.
///
/// # Errors
/// [`HostnameError`]; a machine that cannot be told apart gets no name, rather than one that others have too.
pub fn expand(template: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, HostnameError> {
    let wrong = |problem: String| HostnameError::Template { template: template.to_owned(), problem };
    let mut name = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (keys, after) = after.split_once('}').ok_or_else(|| wrong("a { is not closed".into()))?;
        if let Some(unknown) = keys.split('|').find(|key| !KEYS.contains(key)) {
            return Err(wrong(format!("{unknown:?} is not one of {}", KEYS.join(", "))));
        }
        // The colons of an address would become five dashes.
        let plain = |key: &str| lookup(key).map(|value| if key == "mac" { value.replace(':', "") } else { value });
        let value = keys.split('|').find_map(|key| plain(key).filter(|value| !label(value).is_empty()));
        let nothing = || HostnameError::Nothing { template: template.to_owned(), wanted: keys.replace('|', ", ") };
        name += before;
        name += &value.ok_or_else(nothing)?;
        rest = after;
    }
    if rest.contains('}') {
        return Err(wrong("a } has no {".into()));
    }
    name += rest;
    let name = label(&name);
    if name.is_empty() { Err(wrong("it gives no letter or digit".into())) } else { Ok(name) }
}

fn label(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        if character.is_ascii_alphanumeric() {
            out.push(character.to_ascii_lowercase());
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
    }
    out.truncate(MAX_CHARS);
    out.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::expand;

    fn machine(key: &str) -> Option<String> {
        match key {
            "serial" => Some("AB_12/34 ".into()),
            "mac" => Some("52:54:00:12:34:56".into()),
            "product" => Some("///".into()),
            _ => None,
        }
    }

    #[test]
    fn names_come_from_the_hardware() {
        for (template, name) in [
            ("robot-{serial}", "robot-ab-12-34"),
            ("{uuid|mac}", "525400123456"),
            ("r{mac}-{serial}x", "r525400123456-ab-12-34-x"),
            ("{product|serial}", "ab-12-34"),
            ("fixed", "fixed"),
        ] {
            assert_eq!(expand(template, machine).as_deref(), Ok(name), "{template}");
        }
        let long = expand(&"x".repeat(62), machine).map(|name| name.len());
        assert_eq!((long, expand(&format!("{}-y", "x".repeat(62)), machine).map(|name| name.len())), (Ok(62), Ok(62)));
    }

    #[test]
    fn what_gives_no_name_says_why() {
        for (template, said) in [
            ("{serail}", "serail"),
            ("{serial", "not closed"),
            ("serial}", "has no {"),
            ("--", "no letter"),
            ("{uuid|board-serial}", "none of uuid, board-serial"),
        ] {
            let error = expand(template, machine).unwrap_err().to_string();
            assert!(error.contains(said), "{template}: {error}");
        }
    }
}
