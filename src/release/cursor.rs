//! Reads the little-endian numbers of the release's binary objects. Pure.

/// A position in bytes that come from outside. Every read answers `None` where the bytes end, and never panics.
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Starts at the first of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Reads the next `N` bytes as they are.
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }

    /// Reads a u32.
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Reads a u64.
    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads `count` entries. An entry has at least one byte, so that a hostile count reserves no more memory than a
    /// small multiple of the bytes that are there.
    pub(super) fn list<T>(&mut self, count: u32, entry: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let mut entries = Vec::with_capacity((count as usize).min(self.rest.len()));
        for _ in 0..count {
            entries.push(entry(self)?);
        }
        Some(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::Cursor;

    #[test]
    fn numbers_are_little_endian_and_the_end_is_an_answer() {
        let mut cursor = Cursor::new(&[1, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9, 8]);
        assert_eq!(cursor.array(), Some([1]));
        assert_eq!((cursor.u32(), cursor.u64()), (Some(2), Some(7)));
        assert_eq!((cursor.u32(), cursor.u64()), (None, None), "two bytes are left");
        assert_eq!(cursor.list(2, |cursor| cursor.array()), Some(vec![[9], [8]]));
        assert_eq!(Cursor::new(&[0; 7]).list(u32::MAX, Cursor::u32), None);
    }
}
