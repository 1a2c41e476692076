//! Loss of what a power cut takes from a disk: some of what had been written and not flushed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::explore::Random;
use super::log::{self, LogEntry, SECTOR_BYTES};
use crate::size::to_usize;

/// Writes that a power cut took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Writes that were not flushed yet.
    pub in_flight: usize,
    /// Writes that are not on the disk, or not whole.
    pub lost: usize,
}

/// Brings `disk`, an image as it was when its machine was started, to a state that a power cut may have left: with
/// everything that was flushed, and a random part of the rest by `seed`, in which the last write survives sector by
/// sector.
///
/// Killing QEMU alone loses nothing: what it wrote stays in the host's memory.
///
/// # Errors
/// Fails when the log cannot be read, or the disk cannot be written.
pub fn lose_unflushed(disk: &Path, log: &Path, seed: u64) -> Result<Lost> {
    let entries = log::read(log)?;
    let file = File::options().write(true).open(disk).with_context(|| format!("open {}", disk.display()))?;
    let mut lost = Lost { in_flight: 0, lost: 0 };
    for (offset, data) in surviving(&entries, &mut Random(seed), &mut lost) {
        file.write_all_at(data, offset).with_context(|| format!("write to {}", disk.display()))?;
    }
    Ok(lost)
}

fn surviving<'e>(entries: &'e [LogEntry], random: &mut Random, lost: &mut Lost) -> Vec<(u64, &'e [u8])> {
    let flushed = entries.iter().rposition(|entry| *entry == LogEntry::Flush).unwrap_or_default();
    // The chance of survival is the same for all writes of a cut: nearly all of them, half, or hardly any survive.
    let chance = random.below(11);
    let mut survivors = Vec::new();
    for (number, entry) in entries.iter().enumerate() {
        let LogEntry::Write { offset, data, durable } = entry else { continue };
        if number < flushed || *durable {
            survivors.push((*offset, data.as_slice()));
            continue;
        }
        lost.in_flight += 1;
        if number + 1 == entries.len() {
            let sectors = (*offset..).step_by(to_usize(SECTOR_BYTES)).zip(data.chunks(to_usize(SECTOR_BYTES)));
            let before = survivors.len();
            survivors.extend(sectors.filter(|_| random.below(10) < chance));
            lost.lost += usize::from(survivors.len() - before < data.len() / to_usize(SECTOR_BYTES));
        } else if random.below(10) < chance {
            survivors.push((*offset, data.as_slice()));
        } else {
            lost.lost += 1;
        }
    }
    survivors
}

#[cfg(test)]
mod tests {
    use super::{LogEntry, Lost, Random, surviving};

    #[test]
    fn only_what_was_not_flushed_can_be_lost() {
        let write = |offset, durable| LogEntry::Write { offset, data: vec![1; 1024], durable };
        let entries = [write(0, false), LogEntry::Flush, write(1024, true), write(2048, false), write(4096, false)];
        let mut seen = Vec::new();
        for seed in 0..200 {
            let mut lost = Lost { in_flight: 0, lost: 0 };
            let offsets: Vec<u64> =
                surviving(&entries, &mut Random(seed), &mut lost).iter().map(|write| write.0).collect();
            assert_eq!((&offsets[..2], lost.in_flight), (&[0, 1024][..], 2));
            seen.push((offsets[2..].to_vec(), lost.lost));
        }
        for expected in [(vec![], 2), (vec![2048], 1), (vec![2048, 4096, 4608], 0), (vec![4608], 2)] {
            assert!(seen.contains(&expected), "{expected:?}");
        }
    }
}
