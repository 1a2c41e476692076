//! Reasons for which a roll-out is not acted on.

use super::FORMAT;

/// Reason for which nothing is taken by a roll-out.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// The file is signed, but is not JSON of the expected form.
    #[error("the signed {file} file cannot be read")]
    Json {
        /// Kind of the file: `roll-out` or `halt`.
        file: &'static str,
        /// Error of the parser.
        source: serde_json::Error,
    },
    /// The file has a format that this program does not know.
    #[error(
        "format {found} of the {file} file is not known to this agent, which reads format {FORMAT}; install a \
         newer recovery"
    )]
    Format {
        /// Kind of the file: `roll-out` or `halt`.
        file: &'static str,
        /// Format number of the file.
        found: u64,
    },
    /// The file contradicts itself.
    #[error("the signed {file} file contradicts itself: {what}; nothing is taken by it")]
    Contradiction {
        /// Kind of the file: `roll-out` or `halt`.
        file: &'static str,
        /// The contradiction, as a sentence.
        what: String,
    },
    /// The file is for another product or channel.
    #[error("the {file} file is for {what} {found:?} and this machine is {actual:?}")]
    Unfit {
        /// Kind of the file: `roll-out` or `halt`.
        file: &'static str,
        /// Property that differs: `product` or `channel`.
        what: &'static str,
        /// Value in the file.
        found: String,
        /// Value of the machine.
        actual: String,
    },
    /// The file is older than one that was seen before.
    #[error("the {file} file has number {found}, and number {seen} was seen before: this source lags behind")]
    Older {
        /// Kind of the file: `roll-out` or `halt`.
        file: &'static str,
        /// Number of the file.
        found: u64,
        /// The highest number that was seen.
        seen: u64,
    },
    /// There is no roll-out file where one was seen before.
    #[error("there is no roll-out file here, and number {seen} was seen before: this source lags behind")]
    Gone {
        /// The highest number that was seen.
        seen: u64,
    },
    /// A release is halted that the roll-out does not have.
    #[error(
        "serial {serial} is halted, and the roll-out has no such release: one of the two files is out of date, and \
         nothing is taken by them"
    )]
    HaltOfAnother {
        /// Serial in the halt.
        serial: u64,
    },
    /// Halts are lifted that have not come yet.
    #[error(
        "halts of serial {serial} are lifted through number {through}, and the halt file has number {halts}: one of \
         the two files is out of date, and nothing is taken by them"
    )]
    LiftedAhead {
        /// Serial of the release.
        serial: u64,
        /// Number through which its halts are lifted.
        through: u64,
        /// Number of the halt file.
        halts: u64,
    },
    /// No release is for this robot that it does not have.
    #[error("{0}")]
    NothingForThisRobot(String),
}
