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

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn the_checksum_is_that_of_ext4() {
        // The well-known check value of CRC-32C is e3069283; ext4 leaves out the last inversion.
        assert_eq!(!checksum(!0, b"123456789"), 0xe306_9283);
        assert_eq!(checksum(checksum(!0, b"1234"), b"56789"), checksum(!0, b"123456789"));
    }
}
