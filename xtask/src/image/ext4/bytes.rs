//! Numbers in little endian, and ext4's checksum.

/// Computes CRC-32C as ext4 uses it: started with `seed`, and not inverted at the end.
#[must_use]
pub fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// Returns the number at `offset`; zero where the bytes end before.
#[must_use]
pub fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    let two = bytes.get(offset..offset + 2).and_then(|two| two.try_into().ok());
    two.map(u16::from_le_bytes).unwrap_or_default()
}

/// Returns the number at `offset`; zero where the bytes end before.
#[must_use]
pub fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let four = bytes.get(offset..offset + 4).and_then(|four| four.try_into().ok());
    four.map(u32::from_le_bytes).unwrap_or_default()
}

/// Puts bytes at an offset.
pub fn put<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) {
    bytes[offset..offset + N].copy_from_slice(&value);
}

/// Splits a number into its low and its high half, which ext4 keeps in fields that lie apart.
#[must_use]
pub fn halves(value: u32) -> [[u8; 2]; 2] {
    let [a, b, c, d] = value.to_le_bytes();
    [[a, b], [c, d]]
}

/// Splits a number of 64 bits into its low and its high half.
#[must_use]
pub fn halves_64(value: u64) -> [[u8; 4]; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [[a, b, c, d], [e, f, g, h]]
}

/// Splits a number of 48 bits, which numbers of blocks and sectors have, into its low 32 and its high 16 bits.
#[must_use]
pub fn split_48(value: u64) -> ([u8; 4], [u8; 2]) {
    let [low, [a, b, above @ ..]] = halves_64(value);
    debug_assert_eq!(above, [0; 2], "ext4 has no room for {value}");
    (low, [a, b])
}

#[cfg(test)]
mod tests {
    use super::{checksum, halves, halves_64, split_48};

    #[test]
    fn numbers_are_split_from_the_low_end() {
        assert_eq!(halves(0x0102_0304), [[4, 3], [2, 1]]);
        assert_eq!(halves_64(0x0102_0304_0506_0708), [[8, 7, 6, 5], [4, 3, 2, 1]]);
        assert_eq!(split_48(0x0304_0506_0708), ([8, 7, 6, 5], [4, 3]));
    }

    #[test]
    fn the_checksum_is_that_of_ext4() {
        // The well-known check value of CRC-32C is e3069283; ext4 leaves out the last inversion.
        assert_eq!(!checksum(!0, b"123456789"), 0xe306_9283);
        assert_eq!(checksum(checksum(!0, b"1234"), b"56789"), checksum(!0, b"123456789"));
    }
}
