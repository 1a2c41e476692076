//! Room on the data partition for what a release brings.

use std::io;
use std::path::Path;

use crate::release::shipped::{NodeType, ShippedNode};
use crate::sys::ext4;

/// Room for new files: all but a margin, without which the overlay of `/etc` could not be mounted.
#[derive(Debug, Default)]
pub(super) struct FreeRoom {
    bytes: u64,
    inodes: u64,
}

impl FreeRoom {
    const MARGIN_BYTES: u64 = 1 << 20;
    const MARGIN_INODES: u64 = 32;

    /// Room in the file system of a directory.
    pub fn of(directory: &Path) -> io::Result<Self> {
        let free = ext4::free(directory)?;
        // A file system that has no fixed number of inodes says that it has none.
        let inodes = if free.inodes == 0 && free.bytes > Self::MARGIN_BYTES { u64::MAX } else { free.inodes };
        Ok(Self {
            bytes: free.bytes.saturating_sub(Self::MARGIN_BYTES),
            inodes: inodes.saturating_sub(Self::MARGIN_INODES),
        })
    }

    /// Takes the room of a file.
    pub fn take(&mut self, node: &ShippedNode) -> io::Result<()> {
        let stretches = node.data.iter().map(|[_, length]| length.next_multiple_of(4096)).sum::<u64>();
        let needed = stretches.max(if node.kind == NodeType::Directory { 4096 } else { 0 });
        match self.bytes.checked_sub(needed).zip(self.inodes.checked_sub(1)) {
            Some((bytes, inodes)) => {
                (self.bytes, self.inodes) = (bytes, inodes);
                Ok(())
            }
            None => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "it needs {} KiB, and {} KiB and {} inodes are free",
                    needed / 1024,
                    self.bytes / 1024,
                    self.inodes
                ),
            )),
        }
    }
}
