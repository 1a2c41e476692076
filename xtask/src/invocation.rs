//! How the builder was called, so that usage texts and advice name a command that can be typed.

/// Returns what a person types before the name of a command: `cargo xtask` in a checkout, otherwise the installed
/// program. Cargo names the package in the environment of what it runs.
#[must_use]
pub fn program() -> &'static str {
    let package = std::env::var("CARGO_PKG_NAME");
    if package.as_deref() == Ok(env!("CARGO_PKG_NAME")) { "cargo xtask" } else { "reflash-build" }
}

/// An argument as a shell reads it, for advice that a person pastes: a path may have a blank.
#[must_use]
pub fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn what_a_shell_would_take_apart_is_quoted() {
        for (argument, expected) in
            [("a/b.toml", "a/b.toml"), ("NUC 11*", "'NUC 11*'"), ("it's", "'it'\\''s'"), ("", "''")]
        {
            assert_eq!(quoted(argument), expected);
        }
    }
}
