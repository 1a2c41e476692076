//! Recoveries that were asked for and changed nothing.

use super::{Attempt, AttemptOutcome, BlackBox};

impl BlackBox {
    /// Number of recoveries in a row, up to the last one, that were asked for and left the release with this serial
    /// where it was. The one that brought it was not in vain.
    #[must_use]
    pub fn asked_in_vain(&self, serial: u64) -> u32 {
        let stayed = |attempt: &&Attempt| {
            attempt.reason == "requested" && attempt.drill.is_none() && attempt.serial == Some(serial)
        };
        let mut row = self.attempts.iter().rev().take_while(stayed).peekable();
        let mut count = 0;
        while let Some(attempt) = row.next() {
            let is_first = row.peek().is_none();
            count += u32::from(!is_first || attempt.outcome != Some(AttemptOutcome::Installed));
        }
        count
    }
}
