//! Why a configuration cannot be used. Pure.
//!
//! URLs and proxies may hold passwords, and these errors go to consoles, to the event log, and to a server. So no value
//! that can hold one is shown, neither by `Display` nor by `Debug`, also where the text could not be understood: a
//! misspelt URL has its password all the same (<https://github.com/jackc/pgconn/pull/43> and
//! <https://github.com/oven-sh/bun/pull/42947> are reports of others). The key, the line and what is expected are enough
//! to find the fault.

use std::fmt;

/// Reason why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not TOML, a value has a wrong type, or a key is unknown; the TOML error has the line.
    #[error("{origin} is not a valid configuration")]
    Toml {
        /// The file that the layer came from.
        origin: String,
        /// Line, column and reason.
        source: TomlProblem,
    },
    /// A key of a file that is left out, because it is unknown or its value has a wrong type.
    #[error("{origin}: {key} is left out: {problem}")]
    LeftOut {
        /// The file that the layer came from.
        origin: String,
        /// The key with its section.
        key: String,
        /// Reason of the TOML library, without values.
        problem: String,
    },
    /// A kernel argument begins with `reflash.` and is not known.
    #[error("kernel argument {argument:?} is not known; known are {known}")]
    UnknownArgument {
        /// Name of the argument.
        argument: String,
        /// Every argument that is known, comma separated.
        known: String,
    },
    /// A value is out of range or of the wrong form.
    #[error("{key} = {value:?} is not valid: expected {expected}")]
    Value {
        /// The key with its section, or the kernel argument.
        key: &'static str,
        /// The value that was given, as far as it may be shown.
        value: String,
        /// The values that are right.
        expected: String,
    },
    /// A key that has no default is not set.
    #[error("{key} is not set: set it in reflash.toml on the recovery partition, or give a command by hand {}", option_for(.key))]
    Missing {
        /// The key with its section.
        key: &'static str,
    },
}

/// The option of a command by hand that stands for a key without a default.
fn option_for(key: &str) -> &'static str {
    if key == "release.urls" { "--url" } else { "--product" }
}

/// Place and reason of a text that is no configuration, without the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TomlProblem {
    line: usize,
    column: usize,
    problem: String,
}

impl fmt::Display for TomlProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.problem)
    }
}

impl std::error::Error for TomlProblem {}

impl TomlProblem {
    /// Takes from the error of the TOML library, which shows the whole line, what may be shown.
    pub(super) fn of(text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or_default();
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        Self { line: before.matches('\n').count() + 1, column, problem: without_values(error.message()) }
    }
}

impl ConfigError {
    /// The error for a value that is not right.
    pub(super) fn value(key: &'static str, value: &str, expected: impl Into<String>) -> Self {
        let expected = expected.into();
        // A colon is in addresses too, which have nothing but digits.
        let is_address = value.bytes().all(|byte| byte.is_ascii_hexdigit() || b":./".contains(&byte));
        let may_be_url = expected.contains("://")
            || ["@", "?", "//"].iter().any(|part| value.contains(part))
            || value.contains(':') && !is_address;
        let value = if may_be_url { scheme_of(value) } else { value.to_owned() };
        Self::Value { key, value, expected }
    }
}

/// The scheme of a URL and nothing of the rest: in a URL that is written wrongly, a password can be anywhere.
fn scheme_of(url: &str) -> String {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    let scheme = scheme.filter(|scheme| scheme.len() < 10 && scheme.bytes().all(|byte| byte.is_ascii_lowercase()));
    scheme.map_or_else(|| "\u{2026}".to_owned(), |scheme| format!("{scheme}://\u{2026}"))
}

/// A message of the TOML library without the values in it. The names of keys stay.
pub(super) fn without_values(message: &str) -> String {
    let mut shown = String::new();
    let mut rest = message;
    while let Some((before, quote, after)) =
        rest.find(['"', '`']).map(|at| (&rest[..at], &rest[at..=at], &rest[at + 1..]))
    {
        let end = end_of_quoted(after, quote);
        let quoted = &after[..end];
        let is_name = quote == "`" && quoted.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        let quoted = if is_name { quoted } else { "\u{2026}" };
        shown.extend([before, quote, quoted, quote]);
        rest = after.get(end + 1..).unwrap_or_default();
    }
    shown + rest
}

/// The name of a key, where it is one; a text that may be anything is not shown.
pub(super) fn name_or_nothing(name: &str) -> &str {
    let is_name = name.len() < 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    if is_name { name } else { "\u{2026}" }
}

/// Where a quoted text ends, which may hold quotes after a backslash; at the end of all where the quote is not closed.
fn end_of_quoted(text: &str, quote: &str) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if quote.starts_with(character) => return at,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::{ConfigError, without_values};
    use crate::machine::config::{Config, Layer, known_arguments, sections};

    /// What must not be seen: as user, password, and token.
    const SECRETS: [&str; 3] = ["s3cretuser", "hunter2", "t0ken"];

    fn everything_shown(error: &ConfigError) -> String {
        format!("{} {error:?} {error:#?}", crate::chain::chain(error))
    }

    fn assert_nothing_leaks(error: &ConfigError, of: &str) {
        let shown = everything_shown(error);
        assert!(!SECRETS.iter().any(|secret| shown.contains(secret)), "{of}\n{shown}");
    }

    /// URLs and proxies as people write them, rightly and wrongly.
    fn urls() -> Vec<String> {
        let [user, password, token] = SECRETS;
        vec![
            format!("https://{user}:{password}@host/r?sig={token}"),
            format!("ftp://{user}:{password}@host/r"),
            format!("htps://{user}:{password}@host"),
            format!("http:/{user}:{password}@host"),
            format!("http//{user}:{password}@host"),
            format!("{user}:{password}@host:3128"),
            format!("{user}:{password}"),
            format!("https://{user}:{password}/with/slash@host"),
            format!("https:/host/r?token={token}"),
            format!("{user}://{password}/{token}"),
            format!("file:///r?{token}"),
            format!("file://{token}"),
            format!("http://a, http://{user}:{password}@b"),
        ]
    }

    #[test]
    fn no_error_about_a_file_shows_what_a_url_holds() {
        for url in urls() {
            for section in sections() {
                for key in section.keys {
                    for value in [
                        format!("\"{url}\""),
                        format!("[\"{url}\"]"),
                        format!("[[\"{url}\"]]"),
                        format!("{{ \"{url}\" = \"{url}\" }}"),
                        format!("'{url}"),
                        format!("\"\\q{url}\""),
                        format!("\"a\\\"{url}\""),
                        url.clone(),
                    ] {
                        for line in [
                            format!("{} = {value}", key.name),
                            format!("{}x = {value}", key.name),
                            format!("{} {value}", key.name),
                            format!("{} = {value} # {url}", key.name),
                            format!("{0} = {value}\n{0} = {value}", key.name),
                            format!("{value} = 1"),
                        ] {
                            let text = format!("[{}]\n{line}\n", section.path);
                            let error = Layer::parse("reflash.toml", &text).and_then(Config::resolve).map(drop);
                            if let Err(error) = error {
                                assert_nothing_leaks(&error, &text);
                            }
                            let usable = Layer::parse_usable("reflash.toml", &text).map(|usable| usable.problems);
                            for error in usable.unwrap_or_default() {
                                assert_nothing_leaks(&error, &text);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn no_error_about_the_command_line_shows_what_a_url_holds() {
        for url in urls() {
            let url = url.replace(' ', "");
            let unknown = ["reflash.proxi", "reflash.urls"].map(str::to_owned);
            for name in known_arguments().into_iter().chain(unknown) {
                for line in [format!("{name}={url} reflash.action=provision"), format!("{name}={url}")] {
                    match Layer::from_kernel_command_line(&line).and_then(|(layer, args)| {
                        assert!(!args.unknown.iter().any(|name| name.contains('=')), "{:?}", args.unknown);
                        Config::resolve(layer)
                    }) {
                        Ok(_) => {}
                        Err(error) => assert_nothing_leaks(&error, &line),
                    }
                }
            }
        }
    }

    #[test]
    fn what_helps_is_shown() {
        let error = |text: &str| everything_shown(&Layer::parse("f", text).and_then(Config::resolve).unwrap_err());
        let text = error("[release]\nurls = [\"ftp://u:p@host\"]\n[machine]\nproduct = 'x'\n");
        assert!(text.contains("release.urls = \"ftp://\u{2026}\" is not valid: expected http://"), "{text}");
        let text = error("[release]\n\nurls = \"http://u:p@host\"\n");
        assert!(text.contains("line 3, column 8: invalid type: string \"\u{2026}\", expected a sequence"), "{text}");
        let text = error("[network]\nvlam = 'x'\n");
        assert!(text.contains("line 2, column 1: unknown field `vlam`, expected one of `interface`"), "{text}");
        assert!(error("[boot]\ntries = 12\n[release]\nurls=['http://a']\n[machine]\nproduct='x'").contains("\"12\""));
        assert_eq!(without_values("a \"b\\\"c\" d `e` `f g` \"h"), "a \"\u{2026}\" d `e` `\u{2026}` \"\u{2026}\"");
    }
}
