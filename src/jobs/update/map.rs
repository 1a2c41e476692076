//! The list of what a store holds, as text. Pure: [`super::store`] says what it is for.

use std::fmt::Write;
use std::io;
use std::ops::Range;

use crate::jobs::floor::ReleaseId;
use crate::release::digest::{BLOCK_SIZE_BYTES, Digest, hex};

/// First words of the list. A later format has another number, and counts as nothing that is stored.
const HEAD: &str = "reflash-store 1";
/// The word in place of the digest of a store that is not complete.
const INCOMPLETE: &str = "incomplete";
/// Most pieces that are taken from a list.
const MAX_PIECES: usize = 65_536;
const BLOCK: u64 = BLOCK_SIZE_BYTES as u64;

/// A part of an object of the release, and its place in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Path of the object in the release tree.
    pub(super) path: String,
    /// Bytes of the object.
    pub(super) range: Range<u64>,
    /// Number of those bytes that are stored, from the first on.
    pub(super) have: u64,
    /// Place in the file of the contents.
    pub(super) at: u64,
}

impl Piece {
    pub(super) fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// End of what is stored, in the object.
    pub(super) fn have_end(&self) -> u64 {
        self.range.start + self.have
    }
}

/// The list of what a store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoreMap {
    /// The release that the store is for.
    pub(super) release: ReleaseId,
    /// Digest of all pieces, in their order, once the store is complete.
    pub(super) complete: Option<Digest>,
    pub(super) pieces: Vec<Piece>,
}

impl StoreMap {
    pub(super) fn new(release: ReleaseId) -> Self {
        Self { release, complete: None, pieces: Vec::new() }
    }

    /// The list as text. Its last line is the digest of the others.
    ///
    /// # Errors
    /// It has more pieces than are read: what a list cannot name would be fetched anew each time.
    pub(super) fn encode(&self) -> io::Result<String> {
        if self.pieces.len() > MAX_PIECES {
            let what = format!("it takes {} pieces, and at most {MAX_PIECES} can be listed", self.pieces.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let digest = self.complete.map_or_else(|| INCOMPLETE.to_owned(), |digest| digest.to_string());
        let mut text = format!("{HEAD} {} {} {digest}\n", self.release.serial, hex(&self.release.digest));
        for Piece { path, range, have, at } in &self.pieces {
            // A text takes everything.
            let _ = writeln!(text, "{at} {} {} {have} {path}", range.start, range.end);
        }
        let digest = Digest::of(text.as_bytes()).to_string();
        Ok(text + &digest + "\n")
    }

    /// Reads a list, of which nothing is trusted: pieces that lie outside of each other's way, and no more than is said
    /// to be there. `None` for anything else.
    pub(super) fn decode(text: &str) -> Option<Self> {
        let (list, digest) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        let list = &text[..=list.len()];
        if Digest::of(list.as_bytes()).to_string() != digest {
            return None;
        }
        let mut lines = list.lines();
        let mut head = lines.next()?.strip_prefix(HEAD)?.split_ascii_whitespace();
        let serial = head.next()?.parse().ok()?;
        let digest = u64::from_str_radix(head.next()?, 16).ok()?.to_be_bytes();
        let complete = match head.next()? {
            INCOMPLETE => None,
            digest => Some(digest.parse().ok()?),
        };
        let pieces = lines.map(piece).collect::<Option<Vec<_>>>()?;
        (pieces.len() <= MAX_PIECES && are_apart(&pieces)).then_some(Self {
            release: ReleaseId { serial, digest },
            complete,
            pieces,
        })
    }

    /// The place behind all pieces, at the beginning of a block.
    pub(super) fn end(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.at + piece.length()).max().unwrap_or(0).next_multiple_of(BLOCK)
    }

    /// Bytes that are stored, and that there are to be.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let sum = |of: fn(&Piece) -> u64| self.pieces.iter().map(of).fold(0, u64::saturating_add);
        (sum(|piece| piece.have), sum(Piece::length))
    }

    /// Adds pieces for what has none of a part of an object, from `at` on in the contents. Returns where they end.
    pub(super) fn add(&mut self, path: &str, range: &Range<u64>, mut at: u64) -> u64 {
        for range in self.gaps(path, range) {
            let length = range.end - range.start;
            self.pieces.push(Piece { path: path.to_owned(), range, have: 0, at });
            at += length;
        }
        at
    }

    /// The piece that holds a byte of an object, or is to hold it.
    pub(super) fn piece(&self, path: &str, at: u64) -> Option<&Piece> {
        self.pieces.iter().find(|piece| piece.path == path && piece.range.contains(&at))
    }

    /// Notes that a part of an object was stored, which counts as far as it follows on what is there.
    pub(super) fn note(&mut self, path: &str, range: &Range<u64>) {
        let holds = |piece: &&mut Piece| piece.path == path && piece.range.contains(&range.start);
        if let Some(piece) = self.pieces.iter_mut().find(holds)
            && range.start <= piece.have_end()
        {
            piece.have = piece.have.max(range.end.min(piece.range.end) - piece.range.start);
        }
    }

    /// Makes the list one of what is needed: what is stored of it stays, with room for the rest behind it. Returns
    /// places whose room is given back, and the place of the new room.
    pub(super) fn adopt(&mut self, needed: &[(String, Range<u64>)]) -> (Vec<Range<u64>>, Range<u64>) {
        let mut free = Vec::new();
        let is_needed = |piece: &Piece, stored: &Range<u64>| {
            needed
                .iter()
                .any(|(path, range)| *path == piece.path && range.start < stored.end && stored.start < range.end)
        };
        let mut kept = Vec::new();
        for mut piece in std::mem::take(&mut self.pieces) {
            let place = piece.at..piece.at + piece.length();
            let stored = piece.range.start..piece.have_end();
            if !stored.is_empty() && is_needed(&piece, &stored) {
                free.push((piece.at + piece.have).next_multiple_of(BLOCK)..place.end);
                piece.range = stored;
                kept.push(piece);
            } else {
                free.push(place);
            }
        }
        self.complete = None;
        self.pieces = kept;
        let from = self.end();
        let mut at = from;
        for (path, range) in needed {
            at = self.add(path, range, at);
        }
        free.retain(|range| range.start < range.end);
        (free, from..at)
    }

    /// The parts of a range that no piece holds.
    fn gaps(&self, path: &str, range: &Range<u64>) -> Vec<Range<u64>> {
        let (mut at, mut gaps) = (range.start, Vec::new());
        while at < range.end {
            if let Some(piece) = self.piece(path, at) {
                at = piece.range.end;
                continue;
            }
            let starts = self.pieces.iter().filter(|piece| piece.path == path).map(|piece| piece.range.start);
            let end = starts.filter(|start| *start > at).min().unwrap_or(range.end).min(range.end);
            gaps.push(at..end);
            at = end;
        }
        gaps
    }
}

/// Reads the line of a piece.
fn piece(line: &str) -> Option<Piece> {
    let mut fields = line.splitn(5, ' ');
    let mut number = || fields.next()?.parse::<u64>().ok();
    let (at, start, end, have) = (number()?, number()?, number()?, number()?);
    let path = fields.next()?.to_owned();
    // No file is longer than its offsets, which have a sign.
    let is_in_file = |length| at.checked_add(length).is_some_and(|end| i64::try_from(end).is_ok());
    let fits = start <= end && have <= end - start && is_in_file(end - start);
    fits.then_some(Piece { path, range: start..end, have, at })
}

/// Whether no two pieces share a place.
fn are_apart(pieces: &[Piece]) -> bool {
    let mut places: Vec<(u64, u64)> = pieces.iter().map(|piece| (piece.at, piece.at + piece.length())).collect();
    places.sort_unstable();
    places.is_sorted_by(|one, next| one.1 <= next.0)
}

#[cfg(test)]
mod tests {
    use super::{MAX_PIECES, Piece, StoreMap};
    use crate::jobs::floor::ReleaseId;
    use crate::release::digest::Digest;

    const RELEASE: ReleaseId = ReleaseId { serial: 7, digest: [0, 1, 2, 3, 4, 5, 6, 7] };

    fn needed(list: &[(&str, std::ops::Range<u64>)]) -> Vec<(String, std::ops::Range<u64>)> {
        list.iter().map(|(path, range)| ((*path).to_owned(), range.clone())).collect()
    }

    #[test]
    fn a_list_is_read_as_it_was_written_and_nothing_else_is() {
        let mut map = StoreMap::new(RELEASE);
        map.adopt(&needed(&[("objects/a", 0..5000), ("objects/b", 100..9000)]));
        map.note("objects/b", &(100..700));
        for complete in [None, Some(Digest::of(b"x"))] {
            map.complete = complete;
            assert_eq!(StoreMap::decode(&map.encode().unwrap()), Some(map.clone()));
        }
        let text = map.encode().unwrap();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let damaged = String::from_utf8_lossy(&bytes);
            assert!(StoreMap::decode(&damaged).is_none() || damaged.to_ascii_lowercase() == text, "byte {at}");
            assert_eq!(StoreMap::decode(&text[..at]), None, "cut at {at}");
        }
        // With a right digest too: pieces in each other's way, and sizes beyond any.
        let piece = |at, start, end, have| Piece { path: "objects/a".into(), range: start..end, have, at };
        let far = u64::MAX - 10;
        for pieces in
            [vec![piece(0, 0, 10, 0), piece(9, 20, 30, 0)], vec![piece(u64::MAX, 0, 10, 0)], vec![piece(far, 0, 10, 0)]]
        {
            let map = StoreMap { pieces, ..StoreMap::new(RELEASE) };
            let text = std::panic::catch_unwind(|| map.encode()).unwrap().unwrap();
            assert_eq!(StoreMap::decode(&text), None);
        }
        // What would not be read is not written.
        let pieces: Vec<Piece> = (0..=MAX_PIECES as u64).map(|at| piece(at, at, at + 1, 0)).collect();
        let mut many = StoreMap { pieces, ..StoreMap::new(RELEASE) };
        assert!(many.encode().unwrap_err().to_string().contains("65537 pieces"));
        many.pieces.pop();
        assert_eq!(StoreMap::decode(&many.encode().unwrap()), Some(many));
    }

    #[test]
    fn what_is_stored_stays_as_far_as_it_is_needed() {
        let mut map = StoreMap::new(RELEASE);
        let (free, new) = map.adopt(&needed(&[("objects/a", 0..10_000), ("objects/b", 0..8192)]));
        assert_eq!((free, new), (vec![], 0..18_192));
        map.note("objects/a", &(0..4000));
        map.note("objects/b", &(0..8192));
        // What does not follow on what is there does not count.
        map.note("objects/a", &(6000..7000));
        assert_eq!(map.bytes(), (12_192, 18_192));
        // The same again: the beginning stays, and the rest gets new room.
        let mut same = map.clone();
        let (free, new) = same.adopt(&needed(&[("objects/a", 0..10_000), ("objects/b", 0..8192)]));
        assert_eq!(free, vec![4096..10_000; 1]);
        assert_eq!(new, 20_480..26_480);
        assert_eq!(same.bytes(), (12_192, 18_192));
        assert_eq!(same.piece("objects/a", 4000).map(|piece| piece.range.clone()), Some(4000..10_000));
        // Another release needs the middle of one and nothing of the other.
        let mut other = map.clone();
        let (free, _) = other.adopt(&needed(&[("objects/a", 3000..6000), ("objects/c", 0..10)]));
        assert_eq!(free, [4096..10_000, 10_000..18_192]);
        let ranges: Vec<_> = other.pieces.iter().map(|piece| (piece.path.as_str(), piece.range.clone())).collect();
        assert_eq!(ranges, [("objects/a", 0..4000), ("objects/a", 4000..6000), ("objects/c", 0..10)]);
    }
}
