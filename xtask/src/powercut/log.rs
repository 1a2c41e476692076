//! Log of QEMU's `blklogwrites` block driver: everything that a machine wrote to its disk, in order.
//!
//! The format is that of dm-log-writes (Linux' Documentation/admin-guide/device-mapper/log-writes.rst, QEMU's
//! block/blklogwrites.c): a superblock sector, then for each entry a sector with a header, and the data.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::size::to_usize;

/// Sectors of the log and of the disk, bytes.
pub const SECTOR_BYTES: u64 = 512;

const MAGIC: u64 = 0x006a_7366_7773_6872;
/// Size of the pieces that each count as a write, bytes: a disk takes a large write apart and finishes the parts in any
/// order.
const PIECE_BYTES: usize = 256 * 1024;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// Entry of the log: a write or a flush.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEntry {
    /// Write of one or more sectors. `durable` when the write waited for the medium by itself (FUA).
    Write {
        /// Byte offset on the disk.
        offset: u64,
        /// Bytes that were written.
        data: Vec<u8>,
        /// Whether it was written through the cache (FUA).
        durable: bool,
    },
    /// Everything written before is on the medium.
    Flush,
}

/// Reads a log whose machine may have been switched off in the middle of an entry.
///
/// # Errors
/// Fails when the file is not such a log. A discard is refused, because what it leaves is not known.
pub fn read(path: &Path) -> Result<Vec<LogEntry>> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    parse(&bytes).with_context(|| format!("read {}", path.display()))
}

fn parse(bytes: &[u8]) -> Result<Vec<LogEntry>> {
    let sector = to_usize(SECTOR_BYTES);
    // QEMU writes the superblock with the first flush; until then there are zeros, or no bytes at all.
    ensure!(bytes.len() < sector || [0, MAGIC].contains(&number(bytes, 0)), "this is not a log of blklogwrites");
    let mut entries = Vec::new();
    let mut rest = bytes.get(sector..).unwrap_or_default();
    while rest.len() >= sector {
        let (first, sectors, flags) = (number(rest, 0), number(rest, 8), number(rest, 16));
        let len = usize::try_from(sectors * SECTOR_BYTES)?;
        if len == 0 && flags == 0 {
            // This entry was being written when QEMU was killed, and later ones may lie behind it. A log that ends
            // before them is just as valid.
            break;
        }
        ensure!(
            flags & DISCARD == 0,
            "the machine discarded {len} bytes, and what that leaves on the disk is not known"
        );
        let Some(data) = rest.get(sector..sector + len) else { break };
        // A request may ask for a flush before the data.
        if flags & FLUSH != 0 {
            entries.push(LogEntry::Flush);
        }
        if len > 0 {
            let (offset, durable) = (first * SECTOR_BYTES, flags & FUA != 0);
            // A write that waits for the medium is there as a whole when anything later is.
            let piece = if durable { len } else { PIECE_BYTES };
            entries.extend(data.chunks(piece).zip((offset..).step_by(piece)).map(|(data, offset)| LogEntry::Write {
                offset,
                data: data.to_vec(),
                durable,
            }));
        }
        rest = &rest[sector + len..];
    }
    Ok(entries)
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::{DISCARD, FLUSH, FUA, LogEntry, MAGIC, PIECE_BYTES, parse};

    fn head(numbers: [u64; 3]) -> Vec<u8> {
        let mut sector: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        sector.resize(512, 0);
        sector
    }

    #[test]
    fn entries_come_in_order_and_a_cut_one_is_left_out() {
        let write = |data: u8| LogEntry::Write { offset: 4 * 512, data: vec![data; 512], durable: data == 2 };
        let mut log = head([MAGIC, 1, 3]);
        log.extend([head([4, 1, 0]), vec![1; 512], head([0, 0, FLUSH]), head([4, 1, FUA]), vec![2; 512]].concat());
        assert_eq!(parse(&log).unwrap(), [write(1), LogEntry::Flush, write(2)]);
        log.truncate(log.len() - 1);
        assert_eq!(parse(&log).unwrap(), [write(1), LogEntry::Flush]);
        assert!(parse(&[head([MAGIC, 1, 1]), head([0, 8, DISCARD])].concat()).is_err());
        assert!(parse(&[1; 512]).is_err());
    }

    #[test]
    fn a_large_write_is_taken_apart_unless_it_waited_for_the_medium() {
        let mut log = head([MAGIC, 1, 2]);
        let (sectors, bytes) = (1200, 1200 * 512);
        log.extend([head([8, sectors, 0]), vec![1; bytes], head([8, sectors, FUA]), vec![2; bytes]].concat());
        let entries = parse(&log).unwrap();
        let places = entries.iter().map(|entry| match entry {
            LogEntry::Write { offset, data, durable } => (*offset, data.len(), *durable),
            LogEntry::Flush => (0, 0, false),
        });
        let at = |piece: usize| 4096 + (piece * PIECE_BYTES) as u64;
        assert_eq!(
            places.collect::<Vec<_>>(),
            [
                (at(0), PIECE_BYTES, false),
                (at(1), PIECE_BYTES, false),
                (at(2), bytes - 2 * PIECE_BYTES, false),
                (4096, bytes, true)
            ]
        );
    }

    #[test]
    fn a_log_without_superblock_or_with_a_hole_is_read_up_to_the_hole() {
        let log = [head([0; 3]), head([4, 1, 0]), vec![1; 512], head([0; 3]), vec![7; 512], head([0, 0, FLUSH])];
        assert_eq!(
            parse(&log.concat()).unwrap(),
            [LogEntry::Write { offset: 2048, data: vec![1; 512], durable: false }]
        );
        assert_eq!(parse(b"").unwrap(), []);
    }
}
