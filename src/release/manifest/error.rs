//! Reasons against a manifest.

/// The reason why a manifest is not acted on.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is no trusted key to check the signature with.
    #[error("no trusted key: put a minisign public key into /keys on the recovery partition")]
    NoKeys,
    /// A key file is not a minisign public key.
    #[error("{name} is not a minisign public key")]
    Key {
        /// Name of the key file.
        name: String,
        /// The error of the minisign library.
        source: minisign_verify::Error,
    },
    /// The signature file is not in minisign's format.
    #[error("the signature of the manifest or roll-out is not in minisign's format")]
    SignatureFormat(#[source] minisign_verify::Error),
    /// The manifest was signed with another key, or changed after signing.
    #[error("the signature of the manifest or roll-out is not valid for any trusted key ({keys})")]
    Signature {
        /// Names of the keys that were tried.
        keys: String,
        /// The error of the minisign library for the last key.
        source: minisign_verify::Error,
    },
    /// The manifest is signed, but is not JSON of the expected form.
    #[error("the signed manifest cannot be read")]
    Json(#[source] serde_json::Error),
    /// The manifest has a format that this program does not know.
    #[error("manifest format {found} is not known to this agent, which reads format {known}; install a newer recovery")]
    Format {
        /// Format number of the manifest.
        found: u64,
        /// Format number that this program reads.
        known: u32,
    },
    /// The release needs a later agent.
    #[error("release {version} needs agent {needed} or later and this is {}; install a newer recovery", env!("CARGO_PKG_VERSION"))]
    AgentTooOld {
        /// Version of the release.
        version: String,
        /// Oldest agent version that can install it.
        needed: String,
    },
    /// The release is for another product, hardware or channel.
    #[error("release {version} is for {what} {offered:?} and this machine is {actual:?}")]
    Unfit {
        /// Version of the release.
        version: String,
        /// Property that differs: `product`, `hardware` or `channel`.
        what: &'static str,
        /// Value in the release.
        offered: String,
        /// Value of the machine.
        actual: String,
    },
    /// The release is older than the installed one.
    #[error(
        "release {version} has serial {offered}, older than the installed {installed}; choose \"Recover/Reflash\" at \
         the machine (or reflash flash --allow-older) to go back on purpose"
    )]
    Older {
        /// Version of the release.
        version: String,
        /// Serial of the release.
        offered: u64,
        /// Serial of the installed release.
        installed: u64,
    },
    /// The release is older than one that was good on this machine.
    #[error(
        "release {version} has serial {offered}, below {floor}, which was good on this machine; choose \
         \"Recover/Reflash\" at the machine (or reflash flash --allow-older) to go back on purpose"
    )]
    BelowFloor {
        /// Version of the release.
        version: String,
        /// Serial of the release.
        offered: u64,
        /// Highest serial that was ever good.
        floor: u64,
    },
    /// The release was undone on this machine, or never came up.
    #[error(
        "release {version}, serial {offered}, did not come up on this machine before; choose \"Recover/Reflash\" at \
         the machine, or `reflash request reflash --serial {offered}`, to try it again"
    )]
    Refused {
        /// Version of the release.
        version: String,
        /// Serial of the release.
        offered: u64,
    },
    /// The release is not newer than the one recovered to before.
    #[error("release {version}, serial {offered}, is what is offered; nothing new")]
    NothingNew {
        /// Version of the release.
        version: String,
        /// Serial of the release.
        offered: u64,
    },
    /// No source has all of the release, so that another one is looked for.
    #[error("release {version}, serial {offered}, is offered, and no source has all of it")]
    Incomplete {
        /// Version of the release.
        version: String,
        /// Serial of the release.
        offered: u64,
    },
    /// The signed manifest has a value that cannot be right.
    #[error("the signed manifest of release {version} is wrong: {reason}")]
    Invalid {
        /// Version of the release.
        version: String,
        /// The value that is wrong, and why.
        reason: String,
    },
}
