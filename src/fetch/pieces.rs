//! Cuts the bytes of a range into pieces, each checked before the next byte is taken. Pure.

use std::ops::Range;

use super::SinkError;

/// Memory that is taken for a piece before its first byte came. Signed tables name no larger ones.
const MAX_RESERVED_BYTES: usize = 16 * 1024 * 1024;

/// Cuts what arrives of one range into the pieces that are wanted, and leaves out what lies between them.
///
/// A piece that is refused is reported to the source with the place where it begins, so that another copy of it is
/// asked for, and the next bytes are taken from there.
#[derive(Debug)]
pub struct Cutter {
    /// Places of the pieces in the object, ascending.
    places: Vec<Range<u64>>,
    /// The piece that is arriving.
    next: usize,
    /// Offset in the object of the next byte.
    position: u64,
    /// The bytes of that piece so far.
    bytes: Vec<u8>,
}

impl Cutter {
    /// Starts at the beginning of the range that is asked for.
    #[must_use]
    pub fn new(start: u64, places: Vec<Range<u64>>) -> Self {
        Self { places, next: 0, position: start, bytes: Vec::new() }
    }

    /// Number of pieces that came whole and were not refused: the first ones.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.next
    }

    /// Takes the next bytes. `whole` gets each piece that is complete, with its number.
    ///
    /// # Errors
    /// What `whole` refuses a piece with. [`PieceRefusal::Wrong`] asks for the piece once more.
    pub fn take(
        &mut self,
        mut bytes: &[u8],
        mut whole: impl FnMut(usize, Vec<u8>) -> Result<(), PieceRefusal>,
    ) -> Result<(), SinkError> {
        while let Some(place) = self.places.get(self.next) {
            let gap = length(&(self.position..place.start)).min(bytes.len());
            if self.bytes.is_empty() {
                self.bytes.reserve_exact(length(place).min(MAX_RESERVED_BYTES));
            }
            let missing = length(place).saturating_sub(self.bytes.len());
            let wanted = missing.min(bytes.len() - gap);
            self.bytes.extend_from_slice(&bytes[gap..gap + wanted]);
            self.position += (gap + wanted) as u64;
            bytes = &bytes[gap + wanted..];
            if wanted < missing {
                return Ok(());
            }
            match whole(self.next, std::mem::take(&mut self.bytes)) {
                Ok(()) => self.next += 1,
                Err(PieceRefusal::Wrong(reason)) => {
                    self.position = place.start;
                    return Err(SinkError::Wrong { from: place.start, reason });
                }
                Err(PieceRefusal::Local(reason)) => return Err(SinkError::Local(reason.into())),
            }
        }
        Ok(())
    }
}

/// Reason why a piece is not taken.
#[derive(Debug)]
pub enum PieceRefusal {
    /// The piece is not what it should be.
    Wrong(String),
    /// The receiver takes nothing more, whatever comes.
    Local(String),
}

fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Cutter, PieceRefusal};
    use crate::fetch::SinkError;

    /// Bytes 10 to 40 of an object whose bytes are their own offsets.
    fn range() -> Vec<u8> {
        (10..40).collect()
    }

    #[test]
    fn pieces_are_cut_out_however_the_bytes_come() {
        for step in 1..=30 {
            let mut cutter = Cutter::new(10, vec![12..15, 15..16, 20..38]);
            let mut found = Vec::new();
            for part in range().chunks(step) {
                cutter
                    .take(part, |which, bytes| {
                        found.push((which, bytes));
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(found, [(0, (12..15).collect()), (1, vec![15]), (2, (20..38).collect::<Vec<u8>>())], "{step}");
            assert_eq!(cutter.taken(), 3);
        }
    }

    #[test]
    fn what_is_refused_is_taken_again_from_its_beginning() {
        let mut cutter = Cutter::new(10, vec![12..15, 20..30]);
        let mut turns = 0;
        let mut take = |cutter: &mut Cutter, bytes: &[u8]| {
            cutter.take(bytes, |which, bytes| {
                turns += 1;
                match bytes == (20..30).collect::<Vec<u8>>() || which == 0 {
                    true => Ok(()),
                    false => Err(PieceRefusal::Wrong("damaged".into())),
                }
            })
        };
        let mut damaged = range();
        damaged[12] ^= 1;
        let refused = take(&mut cutter, &damaged).unwrap_err();
        assert!(matches!(refused, SinkError::Wrong { from: 20, .. }), "{refused:?}");
        assert_eq!(cutter.taken(), 1);
        take(&mut cutter, &range()[10..]).unwrap();
        assert_eq!((cutter.taken(), turns), (2, 3));
    }

    /// Overlapping places are a contradiction that a table's own check finds; they must not end the process here.
    #[test]
    fn places_that_overlap_or_are_empty_end_nothing() {
        let mut cutter = Cutter::new(10, vec![12..15, 13..20, 20..20, 11..12]);
        let mut count = 0;
        cutter
            .take(&range(), |_, _| {
                count += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(count, 4);
    }
}
