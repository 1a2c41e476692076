//! Fetches parts of one object, each checked before the next byte is taken.

use std::ops::Range;

use super::pieces::{Cutter, PieceRefusal};
use super::{FetchError, Source};

/// The most bytes between two parts that are fetched along with them.
const MAX_GAP_BYTES: u64 = 8 * 1024;

/// Fetches parts of an object, ascending by their places; those that lie close to each other come in one request.
/// `take` gets each with its number, and says whether it is what it should be.
///
/// # Errors
/// The source's. After [`Corrupt`](super::FetchErrorKind::Corrupt) a part is wrong in every copy; those before it were
/// taken.
pub fn fetch(
    source: &dyn Source,
    path: &str,
    parts: &[Range<u64>],
    mut take: impl FnMut(usize, &[u8]) -> bool,
) -> Result<(), FetchError> {
    let mut before = 0;
    for close in parts.chunk_by(|one, next| next.start.saturating_sub(one.end) <= MAX_GAP_BYTES) {
        let (Some(first), Some(last)) = (close.first(), close.last()) else { continue };
        let mut cutter = Cutter::new(first.start, close.to_vec());
        source.get_range(path, first.start..last.end, &mut |bytes| {
            cutter.take(bytes, |which, part| match take(before + which, &part) {
                true => Ok(()),
                false => Err(PieceRefusal::Wrong("it does not have the digest that the release says".to_owned())),
            })
        })?;
        before += close.len();
    }
    Ok(())
}
