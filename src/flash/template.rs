//! Makes a file system from its template, which is compressed by zstd.

use std::io::{self, Read};

use zstd::stream::read::Decoder;

use super::target::{BlockTarget, CopyError, copy_blocks};

/// A template that was read once as a whole: one that has lost a block is found out before anything is written over.
#[derive(Debug)]
pub struct WholeTemplate<F> {
    open: F,
    /// Size once it is decompressed, bytes.
    bytes: u64,
}

impl<R: Read, F: Fn() -> io::Result<R>> WholeTemplate<F> {
    /// Reads the template that `open` opens.
    ///
    /// # Errors
    /// The error of the template.
    pub fn read(open: F) -> io::Result<Self> {
        let bytes = io::copy(&mut Decoder::new(open()?)?, &mut io::sink())?;
        Ok(Self { open, bytes })
    }

    /// Writes the template to the beginning of a partition. The rest of it is discarded, where the device does that.
    ///
    /// # Errors
    /// The partition is too small, or the error of the device.
    pub fn write(&self, target: &dyn BlockTarget) -> io::Result<()> {
        let bytes = self.bytes;
        if bytes > target.size_bytes() {
            let what = format!("the template has {bytes} bytes, and the partition {}", target.size_bytes());
            return Err(io::Error::new(io::ErrorKind::StorageFull, what));
        }
        let _ = target.discard(0..target.size_bytes());
        self.write_over(target)
    }

    /// Writes the template to the beginning of a partition, and leaves the rest of it as it is: where that fails, what
    /// was there before may still serve.
    ///
    /// # Errors
    /// The error of the device.
    pub fn write_over(&self, target: &dyn BlockTarget) -> io::Result<()> {
        copy_blocks(Decoder::new((self.open)()?)?, target, 0).map_err(|error| match error {
            CopyError::Read(error) | CopyError::Write(error) => error,
        })?;
        target.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::WholeTemplate;
    use crate::flash::target::DeviceTarget;

    #[test]
    fn a_template_that_lost_a_block_is_found_out_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (template, data) = (dir.path().join("data.ext4.zst"), dir.path().join("data"));
        let content: Vec<u8> =
            (0..1_u32 << 16).flat_map(|number| number.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
        let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
        zstd.include_checksum(true).unwrap();
        let whole = zstd.compress(&content).unwrap();
        let before = vec![7; 1 << 20];
        let try_with = |bytes: &[u8]| {
            std::fs::write(&template, bytes).unwrap();
            std::fs::write(&data, &before).unwrap();
            WholeTemplate::read(|| File::open(&template))?.write(&DeviceTarget::open(&data).unwrap())
        };
        for lost in (0..whole.len() / 4096).step_by(9) {
            let mut damaged = whole.clone();
            damaged[lost * 4096..(lost + 1) * 4096].fill(0);
            assert!(try_with(&damaged).is_err(), "block {lost}");
            assert!(std::fs::read(&data).unwrap() == before, "block {lost}");
        }
        assert!(try_with(&whole[..whole.len() - 4096]).is_err() && std::fs::read(&data).unwrap() == before);
        try_with(&whole).unwrap();
        assert!(std::fs::read(&data).unwrap().starts_with(&content));
    }
}
