//! What a command gives back: an answer on standard output, as text or JSON, and an exit code.
//!
//! Nothing here panics when the output cannot be written, as `println!` does. A reader that has gone away, such as
//! `head`, has all that it wanted, so that the exit code stays that of the answer. A full disk behind the output is a
//! failure.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use serde_json::Value;

use super::options::Options;
use crate::chain::chain;

/// Exit code of the program. Its values are documented and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: the command was carried out, and its answer is yes if it is a question.
    Done = 0,
    /// 1: the answer is no.
    No = 1,
    /// 2: the command line could not be understood.
    Usage = 2,
    /// 3: the command failed, and trying again later can help.
    Later = 3,
    /// 4: the command failed.
    Failed = 4,
}

impl Exit {
    /// Every exit code, in ascending order.
    pub const ALL: [Self; 5] = [Self::Done, Self::No, Self::Usage, Self::Later, Self::Failed];

    /// The number that the shell sees.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The phrase that explains it in the help and in the manual page.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done, also when the reader of the output closes it early",
            Self::No => {
                "the answer is no (verify: the target is damaged; status: no release is installed; mend: something stays damaged, or could not be checked; health: a check fails; good, after-undo: this is a safe start; update: that too, or there is no newer release; request: there is no newer release, nothing to go back to, or no other number of systems is possible; drill check: the last drill failed)"
            }
            Self::Usage => "wrong usage",
            Self::Later => "failed; trying again later can help",
            Self::Failed => "failed, or the answer could not be written, as to a full disk",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Failure of a command: any error, whose chain is printed once, and whether trying again can help.
pub(super) struct Failure {
    pub(super) text: String,
    pub(super) exit: Exit,
}

impl Failure {
    /// A failure that may be gone later, if `retryable`.
    pub(super) fn of(error: &(dyn std::error::Error + 'static), retryable: bool) -> Self {
        Self { text: chain(error), exit: if retryable { Exit::Later } else { Exit::Failed } }
    }
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::of(&error, false)
    }
}

/// A failure that this program found itself, not one of a library.
pub(super) fn failure<T>(text: impl Into<String>) -> Result<T, Failure> {
    Err(Failure { text: text.into(), exit: Exit::Failed })
}

/// Prints the answer of a command: as JSON if the options say so, as text otherwise.
pub(super) fn print(options: &Options, answer: &Value, text: impl FnOnce() -> String) -> Result<(), Failure> {
    print_text(&if options.json { format!("{answer}\n") } else { text() + "\n" })
}

/// Prints a text to standard output.
pub(super) fn print_text(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            failure(format!("cannot write the answer to standard output: {error}"))
        }
        _ => Ok(()),
    }
}

/// Prints a sentence about a failure to standard error. Where that cannot be written, only the exit code is left.
pub(super) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "reflash: {text}");
}
