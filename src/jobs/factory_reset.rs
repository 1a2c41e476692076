//! Factory reset: the data partition becomes that of a new machine. The system stays as it is.
//!
//! Only a person begins it, and has to confirm twice; no error and no damage can start it. From then on the boot
//! environment has a note of it, so that a power cut in the middle leads back here and not to a system without its
//! data.

use std::io::{self, Read};

use crate::boot::env::{BootEnv, BootEnvError};
use crate::boot::grubenv::names;
use crate::flash::target::BlockTarget;
use crate::flash::template::WholeTemplate;

/// Evidence that a person confirmed the reset.
#[derive(Debug)]
pub struct Confirmed(());

/// Failure to renew the data partition. The next start continues the reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// Boot environment that could not be read or written.
    #[error("cannot record the confirmed factory reset in the boot environment")]
    Environment(#[from] BootEnvError),
    /// Template of the data partition that could not be read.
    #[error("the template of the data partition cannot be read; reprovision the machine")]
    Template(#[source] io::Error),
    /// Write that the disk refused.
    #[error("cannot write {disk}")]
    Disk {
        /// The partition and its disk.
        disk: String,
        /// Error that the disk answered with.
        source: io::Error,
    },
}

/// Asks for confirmation twice. `answer` returns the typed text, and `None` when nothing was typed.
pub fn ask(mut say: impl FnMut(&str), mut answer: impl FnMut() -> Option<String>) -> Option<Confirmed> {
    for (question, word) in [
        ("FACTORY RESET deletes all data of this machine. To go on type: reset", "reset"),
        ("This cannot be undone. To delete all data now type: delete", "delete"),
    ] {
        say(question);
        let given = answer()?;
        if given.trim() != word {
            say(&format!("{:?} is not {word:?}", given.trim()));
            return None;
        }
    }
    Some(Confirmed(()))
}

/// Whether a confirmed reset was interrupted.
///
/// # Errors
/// The environment cannot be read.
pub fn pending(env: &BootEnv) -> Result<Option<Confirmed>, BootEnvError> {
    Ok((env.load_or_empty()?.get(names::RESET) == Some("1")).then_some(Confirmed(())))
}

/// Renews the partition from the template that `template` opens.
///
/// # Errors
/// [`ResetError`].
pub fn run<R: Read>(
    _person: Confirmed,
    env: &BootEnv,
    data: &dyn BlockTarget,
    template: impl Fn() -> io::Result<R>,
) -> Result<(), ResetError> {
    // One that has lost a block is found out before anything is begun.
    let template = WholeTemplate::read(template).map_err(ResetError::Template)?;
    env.update(&[(names::RESET, Some("1")), (names::RECOVERING, Some("1"))])?;
    // The template covers its own blocks only. A drive that cannot discard the rest keeps it until the new file system
    // needs the space, and only a reader of the raw partition can see it; writing zeros over all of it would take hours
    // on a large disk.
    template.write(data).map_err(|source| ResetError::Disk { disk: data.identity(), source })?;
    // Tries and counts stay as they were: nothing was learned about the system.
    Ok(end(env)?)
}

/// Ends a reset, also one that has failed too often: the system works without its data, and never starts again before.
///
/// # Errors
/// The environment cannot be written.
pub fn end(env: &BootEnv) -> Result<(), BootEnvError> {
    env.update(&[(names::RESET, None), (names::RECOVERING, None)])
}

#[cfg(test)]
mod tests {
    use super::ask;

    #[test]
    fn only_both_answers_in_turn_are_a_confirmation() {
        for (typed, confirmed) in [
            (vec!["reset", "delete"], true),
            (vec!["reset\r\n", " delete"], true),
            (vec!["reset", "reset"], false),
            (vec!["delete", "delete"], false),
            (vec!["yes", "delete"], false),
            (vec!["", ""], false),
            (vec!["reset"], false),
            (vec![], false),
        ] {
            let mut typed_in_turn = typed.iter().map(|word| (*word).to_owned());
            assert_eq!(ask(|_| {}, || typed_in_turn.next()).is_some(), confirmed, "{typed:?}");
        }
    }
}
