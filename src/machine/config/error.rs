//! Why a configuration cannot be used. Pure.

/// Reason why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not TOML, a value has a wrong type, or a key is unknown; the TOML error has the line.
    #[error("{origin} is not a valid configuration")]
    Toml {
        /// The file that the layer came from.
        origin: String,
        /// Line, column and reason.
        source: Box<toml::de::Error>,
    },
    /// A kernel argument begins with `reflash.` and is not known.
    #[error("kernel argument {argument:?} is not known; known are {known}")]
    UnknownArgument {
        /// The whole argument.
        argument: String,
        /// Every argument that is known, comma separated.
        known: String,
    },
    /// A value is out of range or of the wrong form.
    #[error("{key} = {value:?} is not valid: expected {expected}")]
    Value {
        /// The key with its section, or the kernel argument.
        key: &'static str,
        /// The value that was given.
        value: String,
        /// The values that are right.
        expected: String,
    },
    /// A key that has no default is not set.
    #[error("{key} is not set; set it in reflash.toml on the recovery partition")]
    Missing {
        /// The key with its section.
        key: &'static str,
    },
}
