//! A disk in memory that remembers every write, so that a test can cut the power at each of them.

use std::io;
use std::ops::Range;
use std::sync::Mutex;

use reflash::disk::raw::RawDisk;

pub struct Recording {
    data: Mutex<Vec<u8>>,
    log: Mutex<Vec<(u64, Vec<u8>)>>,
    /// Writes of these bytes are lost without an error.
    pub lying: Option<Range<u64>>,
    /// Logical block size, bytes.
    pub block_bytes: u32,
}

impl Recording {
    pub fn new(content: Vec<u8>) -> Self {
        Self { data: Mutex::new(content), log: Mutex::default(), lying: None, block_bytes: 512 }
    }

    pub fn content(&self) -> Vec<u8> {
        self.data.lock().unwrap().clone()
    }

    /// Every write since the disk was made: offset and content.
    pub fn writes(&self) -> Vec<(u64, Vec<u8>)> {
        self.log.lock().unwrap().clone()
    }

    /// What the disk holds after each sector of each write, beginning with `before`; `step` leaves most of the sectors
    /// within long writes out.
    pub fn cuts(&self, before: &[u8], step: usize) -> Vec<Vec<u8>> {
        let mut now = before.to_vec();
        let mut cuts = vec![now.clone()];
        for (offset, content) in self.writes() {
            let start = usize::try_from(offset).unwrap();
            for (number, sector) in content.chunks(512).enumerate() {
                now[start + number * 512..][..sector.len()].copy_from_slice(sector);
                if number % step == 0 {
                    cuts.push(now.clone());
                }
            }
            cuts.push(now.clone());
        }
        cuts
    }
}

impl RawDisk for Recording {
    fn size_bytes(&self) -> u64 {
        self.data.lock().unwrap().len() as u64
    }

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let data = self.data.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(data.get(start..start + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(512) && content.len().is_multiple_of(512));
        self.log.lock().unwrap().push((offset, content.to_vec()));
        if !self.lying.as_ref().is_some_and(|lying| lying.contains(&offset)) {
            self.data.lock().unwrap()[usize::try_from(offset).unwrap()..][..content.len()].copy_from_slice(content);
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
