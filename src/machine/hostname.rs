//! The host name of a machine, from what its hardware says and a template. Pure.
//!
//! `robot-{serial|mac}` means: `robot-`, then the serial number of the product or, on a machine without one, the
//! hardware address of its first network card. The image is the same for the whole fleet; the host name distinguishes
//! robots. `asset` is the name that a person gave this machine in the asset file of the boot medium (see [`asset`]).

use crate::machine::placeholder::{is_placeholder, is_placeholder_address, is_placeholder_uuid};
use crate::release::digest::{block_hash, hex};

/// The keys of a template.
pub const KEYS: &[&str] = &["asset", "serial", "board-serial", "uuid", "mac", "product", "vendor"];

/// Largest length of a name: Linux takes 64 characters, DNS 63 for one label.
const MAX_CHARS: usize = 63;

/// Template that gives no host name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostnameError {
    /// The template itself.
    #[error("host name template {template:?}: {problem}; an example is robot-{{serial|mac}}")]
    Template {
        /// Template as it is configured.
        template: String,
        /// Fault of the template.
        problem: String,
    },
    /// Hardware that has none of the values.
    #[error("this machine has none of {wanted}, which host name template {template:?} asks for")]
    Nothing {
        /// Template as it is configured.
        template: String,
        /// Keys of the placeholder that stays empty.
        wanted: String,
    },
    /// Asset file that gives this machine two names.
    #[error("the asset file gives this machine two names, {one:?} and {other:?}; leave one of the lines")]
    TwoAssets {
        /// First name in the list.
        one: String,
        /// Second name in the list.
        other: String,
    },
    /// Line of the asset file that is not valid.
    #[error(
        "line {line} of the asset file, {text:?}, is not valid: expected a serial number, UUID or hardware address (or *), a space, and a name of letters and digits"
    )]
    AssetLine {
        /// Number of the line, from 1.
        line: usize,
        /// Text of the line.
        text: String,
    },
}

/// Fills in a template. `lookup` gives the value of a key of [`KEYS`], if the machine has it.
///
/// Of several alternatives, the first counts that the machine has and that is not a text which a vendor ships in every
/// machine. The result is a valid DNS label (RFC 1123): lower case, every run of other characters a single dash, at
/// most 63 long; what is longer is cut and ends with a hash of the whole, since it is mostly the end that distinguishes
/// machines.
///
/// # Errors
/// [`HostnameError`]; a machine that cannot be distinguished gets no name, rather than one that others have too.
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
        let plain = |key: &str, value: String| if key == "mac" { value.replace(':', "") } else { value };
        let usable = |key: &str, value: &str| !is_common(key, value) && !label(value).is_empty();
        let value = keys
            .split('|')
            .find_map(|key| lookup(key).filter(|value| usable(key, value)).map(|value| plain(key, value)));
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

/// Whether other machines are likely to have this value too.
fn is_common(key: &str, value: &str) -> bool {
    match key {
        "uuid" => is_placeholder_uuid(value),
        "mac" => is_placeholder_address(value),
        _ => is_placeholder(value),
    }
}

/// Finds the name that the asset file gives this machine. Each line has an identity (serial number, product UUID or
/// hardware address; `*` is any machine that no other line names), white space, and the name. `#` begins a comment.
///
/// # Errors
/// [`HostnameError`], also for lines about other machines: a typing error must be found before the machine it concerns
/// starts.
pub fn asset(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Option<String>, HostnameError> {
    let identities: Vec<String> = ["serial", "board-serial", "uuid", "mac"].into_iter().filter_map(lookup).collect();
    let mut own: Option<String> = None;
    let mut any: Option<String> = None;
    for (number, line) in text.lines().enumerate() {
        let content = line.split('#').next().unwrap_or_default().trim();
        if content.is_empty() {
            continue;
        }
        let wrong = || HostnameError::AssetLine { line: number + 1, text: line.trim().to_owned() };
        // The last word is the name: serial numbers may have spaces in them.
        let (identity, name) = content.rsplit_once(char::is_whitespace).ok_or_else(wrong)?;
        if label(name).is_empty() {
            return Err(wrong());
        }
        let identity = identity.trim();
        let slot = if identity == "*" {
            &mut any
        } else if identities.iter().any(|known| known.trim().eq_ignore_ascii_case(identity)) {
            &mut own
        } else {
            continue;
        };
        match slot {
            Some(one) if one != name => {
                return Err(HostnameError::TwoAssets { one: one.clone(), other: name.to_owned() });
            }
            _ => *slot = Some(name.to_owned()),
        }
    }
    Ok(own.or(any))
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
    let out = out.trim_end_matches('-');
    if out.len() <= MAX_CHARS {
        return out.to_owned();
    }
    let hash = hex(&block_hash(out.as_bytes()).to_be_bytes()[..4]);
    format!("{}-{hash}", out[..MAX_CHARS - 1 - hash.len()].trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::{asset, expand};

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
    }

    #[test]
    fn long_names_are_cut_without_becoming_equal() {
        let of = |serial: &str| expand(&format!("{}-{{serial}}", "x".repeat(60)), |_| Some(serial.to_owned())).unwrap();
        let (one, other) = (of("AB1"), of("AB2"));
        assert_ne!(one, other);
        assert_eq!(one, of("AB1"));
        assert!(one.len() == 63 && one.starts_with("xxx") && !one.ends_with('-'), "{one}");
        assert_eq!(expand(&"x".repeat(63), |_| None), Ok("x".repeat(63)));
    }

    #[test]
    fn values_that_other_machines_have_too_give_way_to_the_next_source() {
        let careless = |key: &str| {
            let value = match key {
                "asset" => "None",
                "serial" => "To be filled by O.E.M.",
                "uuid" => "03000200-0400-0500-0006-000700080009",
                "mac" => "ac:1f:6b:01:02:03",
                _ => return None,
            };
            Some(value.to_owned())
        };
        assert_eq!(expand("r-{asset|serial|uuid|mac}", careless).as_deref(), Ok("r-ac1f6b010203"));
        let error = expand("r-{serial|uuid}", careless).unwrap_err().to_string();
        assert!(error.contains("none of serial, uuid"), "{error}");
    }

    #[test]
    fn the_asset_file_names_machines_by_any_identity() {
        let of = |text: &str| asset(text, machine).map_err(|error| error.to_string());
        assert_eq!(of("# fleet\nXY arm-1\nAB_12/34   arm-2 # lab\n"), Ok(Some("arm-2".into())));
        assert_eq!(of("* spare\n52:54:00:12:34:56\tarm-3"), Ok(Some("arm-3".into())));
        assert_eq!(of("* spare\nother arm-3\n"), Ok(Some("spare".into())));
        assert_eq!(of("other arm-3\n\n"), Ok(None));
        assert!(of("* a\n* b").unwrap_err().contains("two names"));
        assert!(of("AB_12/34 a\n52:54:00:12:34:56 b").unwrap_err().contains("two names"));
        // Lines about other machines are checked too.
        assert!(of("fine arm-1\nlonely\n").unwrap_err().contains("line 2"));
        assert!(of("fine ///").unwrap_err().contains("line 1"));
    }

    #[test]
    fn a_template_that_gives_no_name_is_refused_with_the_reason() {
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
