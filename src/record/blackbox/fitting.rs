//! An attempt in the bytes that its slot has.

use std::io;

use super::{Attempt, HEADER_BYTES, SLOT_BYTES};

impl Attempt {
    /// Formats an attempt as JSON. Where it does not fit, the oldest errors, repairs and losses, the last ranges and
    /// the first phases are left out, in this order.
    pub(super) fn fitting(&self) -> io::Result<Vec<u8>> {
        let mut attempt = self.clone();
        loop {
            let json = serde_json::to_vec(&attempt)?;
            if json.len() <= SLOT_BYTES - HEADER_BYTES {
                return Ok(json);
            }
            // Each turn leaves one thing out, and looks again.
            if attempt.errors.len() > 1 {
                attempt.errors.remove(0);
            } else if !attempt.mended.is_empty() {
                attempt.mended.remove(0);
            } else if attempt.lost.len() > 1 {
                attempt.lost.remove(0);
            } else if !attempt.damaged_byte_ranges.is_empty() {
                attempt.damaged_byte_ranges.pop();
            } else if attempt.phases.len() > 8 {
                attempt.phases.remove(0);
            } else {
                // Nothing else can be left out; the write then fails and says why.
                return Ok(json);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Attempt, HEADER_BYTES, SLOT_BYTES};

    #[test]
    fn an_attempt_that_fits_without_its_last_range_is_kept() {
        let room = SLOT_BYTES - HEADER_BYTES;
        let mut attempt = Attempt { id: 1, damaged_byte_ranges: vec![[0, 4096]], ..Attempt::default() };
        let empty = serde_json::to_vec(&attempt).unwrap().len();
        attempt.errors = vec!["e".repeat(room - empty - 1)];
        assert!(serde_json::to_vec(&attempt).unwrap().len() > room);
        let kept = attempt.fitting().unwrap();
        assert!(kept.len() <= room, "{} bytes", kept.len());
        let read: Attempt = serde_json::from_slice(&kept).unwrap();
        assert_eq!((read.errors, read.damaged_byte_ranges), (attempt.errors, Vec::new()));
    }
}
