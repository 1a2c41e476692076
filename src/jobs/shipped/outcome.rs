//! What became of a list of shipped paths.

/// Most failures that are described; the others are counted.
const DESCRIBED: usize = 8;

/// Outcome of a list that was carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShippedOutcome {
    /// Sentences about what was done, where it is worth a line of the log.
    pub notes: Vec<String>,
    /// Sentences about what was not done.
    pub failures: Vec<String>,
    undescribed: usize,
}

impl ShippedOutcome {
    /// Adds the sentence of a failure.
    pub(super) fn fail(&mut self, failure: impl Into<String>) {
        if self.failures.len() < DESCRIBED {
            self.failures.push(failure.into());
        } else {
            self.undescribed += 1;
        }
    }

    /// Adds the number of failures that are not described.
    pub(super) fn close(mut self) -> Self {
        if self.undescribed > 0 {
            self.failures.push(format!("{} more paths of the release", self.undescribed));
        }
        self
    }
}
