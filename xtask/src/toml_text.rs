//! The builder's TOML files as text: one place that reads them, and says what is wrong with one so that the line, and
//! what was probably meant, come first. The library's own message begins with a picture of the line and ends with the
//! cause, after the names of all keys that there are.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use reflash::machine::config::ConfigError;
use serde::de::DeserializeOwned;

/// Most slips of the hand in a name that another one is offered for: in a longer name, two.
const MOST_SLIPS: usize = 2;
/// Length of a name, bytes, up to which one slip is the most: `esp` and `data` are two slips from much.
const SHORT_NAME: usize = 4;
/// Characters of a line that are shown.
const SHOWN: usize = 60;

/// Reads a text file of the project, which an editor may have written in another encoding.
///
/// # Errors
/// With the path; for an encoding that is not UTF-8 with the line.
pub fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    of_bytes(bytes).with_context(|| format!("read {}", path.display()))
}

fn of_bytes(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let bytes = error.as_bytes();
        if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            return anyhow!("it is UTF-16; save it as UTF-8");
        }
        let before = &bytes[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        anyhow!("line {line}: a character is not UTF-8; save the file as UTF-8, not as Latin-1 or the like")
    })
}

/// Parses a TOML file.
///
/// # Errors
/// With the line, what is wrong with it, and the name that was probably meant.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| anyhow!("{}", problem(text, &error)))
}

fn problem(text: &str, error: &toml::de::Error) -> String {
    let message = plain(error.message());
    let Some(span) = error.span() else { return message };
    let before = text.get(..span.start).unwrap_or_default();
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default().trim();
    // Of a key that is missing only its section is known, by its first line.
    match line.is_empty() {
        true => format!("line {number}: {message}"),
        false => format!("line {number}: {message}\n  {number} | {}", line.chars().take(SHOWN).collect::<String>()),
    }
}

/// Returns an error of the agent's configuration, which shows no values, in the same words.
pub fn of_agent(error: ConfigError) -> anyhow::Error {
    anyhow!(plain(&format!("{:#}", anyhow::Error::from(error))))
}

/// Returns a message of the TOML library in words of people who write such files: with the name that was probably
/// meant, and without those of the types of a program.
#[must_use]
pub fn plain(message: &str) -> String {
    let message = with_meant_name(message);
    let hints = [
        ("expected a sequence", "expected a list, in [ ]"),
        ("expected a string", "expected a text, in quotes"),
        ("expected a boolean", "expected true or false, without quotes"),
        ("expected u64", "expected a number from 0 on, without quotes"),
        ("expected u32", "expected a number from 0 on, without quotes"),
        ("expected struct ", "expected a section, "),
        ("invalid type: sequence", "invalid type: a list"),
    ];
    hints.iter().fold(message, |message, (theirs, ours)| message.replace(theirs, ours))
}

/// Replaces the list of all known names by the one that is near, where there is one.
fn with_meant_name(message: &str) -> String {
    let found = ["unknown field `", "unknown variant `"].iter().find_map(|lead| {
        let (before, rest) = message.split_once(lead)?;
        let (name, known) = rest.split_once("`, expected ")?;
        Some((before, name, known))
    });
    let Some((before, name, known)) = found else { return message.to_owned() };
    let names: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    match meant(name, &names) {
        Some(near) => format!("{before}`{name}` is not known here; did you mean `{near}`?"),
        None => format!("{before}`{name}` is not known here, only {}", names.join(", ")),
    }
}

/// The known name that a name was probably meant to be.
fn meant<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    // One in plural, or in another notation, is near however short it is.
    let simple = |name: &str| name.to_lowercase().replace(['-', ' '], "_").trim_end_matches('s').to_owned();
    if let Some(same) = known.iter().find(|one| simple(one) == simple(name)) {
        return Some(same);
    }
    let near = known.iter().map(|one| (strsim::damerau_levenshtein(name, one), *one)).min()?;
    let most = if name.len() <= SHORT_NAME { 1 } else { MOST_SLIPS };
    (near.0 <= most).then_some(near.1)
}

#[cfg(test)]
mod tests {
    use super::{of_bytes, parse, plain};
    use crate::project::Project;
    use crate::recipe::Recipe;
    use reflash::release::layout::Layout;
    use std::path::Path;

    const PROJECT: &str = "product = 'x'\nhardware = ['*']\n";
    const RECIPE: &str = "name = 'x'\nversion = '1'\n[distribution]\nsuite = 'bookworm'\n[ostree]\nbranch = 'x'\n";

    fn of_project(more: &str) -> String {
        format!("{:#}", Project::parse(&format!("{PROJECT}{more}"), Path::new("/p")).unwrap_err())
    }

    #[test]
    fn the_cause_is_first_and_the_name_that_was_meant_is_offered() {
        for (more, said) in [
            ("layuot = 'x'", "line 3: `layuot` is not known here; did you mean `layout`?\n  3 | layuot = 'x'"),
            ("[relase]", "line 3: `relase` is not known here; did you mean `release`?"),
            ("[key]\nsecret = 'x'", "did you mean `keys`?"),
            ("[keys]\npubilc = []", "line 4: `pubilc` is not known here; did you mean `public`?"),
            ("[release]\nRecovery = true", "did you mean `recovery`?"),
            ("[disk]\nsize-mib = 1", "did you mean `size_mib`?"),
            ("[disk]\nsomething = 1", "line 4: `something` is not known here, only size_mib, files"),
            ("product = 'y'", "line 3: duplicate key\n  3 | product = 'y'"),
            ("[release]\nrecovery = 'yes'", "expected true or false, without quotes"),
            ("[keys]\npublic = 'k.pub'", "expected a list, in [ ]"),
            ("[disk]\nsize_mib = -1", "expected a number from 0 on"),
        ] {
            let error = of_project(more);
            assert!(error.contains(said), "{more}: {error}");
            assert!(!error.contains("TOML parse error"), "{error}");
        }
        let error = format!("{:#}", Recipe::parse(&RECIPE.replace("suite", "siute")).unwrap_err());
        assert!(error.starts_with("line 4: `siute` is not known here; did you mean `suite`?"), "{error}");
        let layout = "table = 'gpt'\n[[partitions]]\nname = 'esp'\nrole = 'epsp'\nsize = '64MiB'\n";
        let error = format!("{:#}", parse::<Layout>(layout).unwrap_err());
        assert!(error.starts_with("line 4: `epsp` is not known here; did you mean `esp`?"), "{error}");
    }

    #[test]
    fn what_the_agent_says_of_its_configuration_is_said_alike() {
        let said =
            plain("site.toml is wrong: line 6, column 1: unknown field `url`, expected one of `urls`, `channel`");
        assert_eq!(said, "site.toml is wrong: line 6, column 1: `url` is not known here; did you mean `urls`?");
        assert_eq!(plain("a message of another kind"), "a message of another kind");
    }

    #[test]
    fn an_encoding_that_is_not_utf_8_is_named_with_its_line() {
        let error = of_bytes(b"a = 1\nb = '\xe4'\n".to_vec()).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("UTF-8"), "{error}");
        let error = of_bytes(b"\xff\xfea\0".to_vec()).unwrap_err().to_string();
        assert!(error.contains("UTF-16"), "{error}");
        assert_eq!(of_bytes(b"a".to_vec()).unwrap(), "a");
    }
}
