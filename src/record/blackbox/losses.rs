//! Losses of the running system's starts, which are kept with the attempt before them.

use std::io;

use super::{Attempt, BlackBox, keep_last};
use crate::record::event::cut;

/// Sentences of losses that are kept with one attempt, the last ones.
const MAX_LOSSES: usize = 6;
/// Bytes that are kept of one of them.
const MAX_LOSS_BYTES: usize = 240;

impl BlackBox {
    /// Adds to the last attempt what a start of the system lost. Writes nothing where all of it is known already, as of
    /// a partition that stays damaged, or where no attempt is kept.
    ///
    /// # Errors
    /// The file system's.
    pub fn add_losses(&mut self, losses: &[String]) -> io::Result<()> {
        let Some(last) = self.attempts.last().cloned() else { return Ok(()) };
        let mut lost = last.lost.clone();
        for loss in losses.iter().map(|loss| cut(loss, MAX_LOSS_BYTES)) {
            if !lost.iter().any(|known| known == loss) {
                lost.push(loss.to_owned());
            }
        }
        keep_last(&mut lost, MAX_LOSSES);
        if lost == last.lost { Ok(()) } else { self.record(&Attempt { lost, ..last }) }
    }
}
