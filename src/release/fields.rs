//! Little-endian numbers at fixed places of a block: headers of GRUB, of partition tables, and of our own. Pure.
//!
//! Each answers `None` where the bytes end before the number does.

/// Reads the u16 at this place.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Reads the u32 at this place.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Reads the u64 at this place.
#[must_use]
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::{u16_at, u32_at, u64_at};

    #[test]
    fn a_number_that_the_bytes_end_in_is_none() {
        let bytes = [0, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!((u16_at(&bytes, 7), u16_at(&bytes, 8)), (Some(0x0807), None));
        assert_eq!((u32_at(&bytes, 5), u32_at(&bytes, 6)), (Some(0x0807_0605), None));
        assert_eq!((u64_at(&bytes, 1), u64_at(&bytes, 2)), (Some(0x0807_0605_0403_0201), None));
        assert_eq!(u64_at(&bytes, usize::MAX), None);
    }
}
