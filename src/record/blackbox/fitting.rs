//! An attempt in the bytes that its slot has.

use std::io;

use super::{Attempt, HEADER_BYTES, SLOT_BYTES};

impl Attempt {
    /// Formats an attempt as JSON, without the oldest errors and the last ranges where all of them would not fit.
    pub(super) fn fitting(&self) -> io::Result<Vec<u8>> {
        let mut attempt = self.clone();
        loop {
            let json = serde_json::to_vec(&attempt)?;
            if json.len() <= SLOT_BYTES - HEADER_BYTES {
                return Ok(json);
            }
            if attempt.errors.len() > 1 {
                attempt.errors.remove(0);
            } else if !attempt.mended.is_empty() {
                attempt.mended.remove(0);
            } else if attempt.lost.len() > 1 {
                attempt.lost.remove(0);
            } else if attempt.damaged_byte_ranges.pop().is_none() && attempt.phases.len() > 8 {
                attempt.phases.remove(0);
            } else if attempt.damaged_byte_ranges.is_empty() && attempt.phases.len() <= 8 {
                // Nothing else can be left out; the write then fails and says why.
                return Ok(json);
            }
        }
    }
}
