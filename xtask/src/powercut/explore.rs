//! Explorer of every state that a cut can leave: each prefix of what was written, and within what was not flushed yet,
//! losses, reorderings and torn writes.

use std::collections::HashSet;

use anyhow::Result;

use super::disk::{DiskState, Undo};
use super::log::{LogEntry, SECTOR_BYTES};
use crate::size::to_usize;

/// Kind of a state, by how it came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateKind {
    /// Everything up to a write survived.
    Prefix,
    /// Only some of the unflushed writes survived.
    Reordered,
    /// A write of several sectors survived in part, or a sector became unreadable.
    Torn,
}

/// Number of states of each kind, each state counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Number of prefixes.
    pub prefixes: u64,
    /// Number of reorderings.
    pub reordered: u64,
    /// Number of torn writes.
    pub torn: u64,
}

impl Counts {
    /// Returns the number of all states.
    #[must_use]
    pub fn total(self) -> u64 {
        self.prefixes + self.reordered + self.torn
    }
}

/// Random numbers (splitmix64) that are seeded and the same everywhere: a state found today is found again tomorrow.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// Returns a number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        to_usize((z ^ (z >> 31)) % end.max(1) as u64)
    }
}

/// Number of random subsets tried of each epoch, beside the systematic ones and those for each write.
const SUBSETS_PER_EPOCH: usize = 8;
/// Least number of random subsets tried for each write in flight, however few states a caller wants.
pub const SUBSETS_PER_WRITE: usize = 8;
/// Number of writes from which on an epoch does not run out of different subsets.
const MANY_WRITES: usize = 12;
/// Number of places at which a write of the environment is torn within its sector, beside the garbage.
const TEARS: usize = 12;

/// Write that is in flight: offset, data, and whether it is on the medium when it is done.
type Write<'a> = (u64, &'a [u8], bool);

/// Returns the number of subsets per write that makes a recording yield about `states` different states.
#[must_use]
pub fn subsets_per_write(entries: &[LogEntry], states: usize) -> usize {
    let epochs = entries.split(|entry| *entry == LogEntry::Flush).map(<[LogEntry]>::len);
    let in_flight: usize = epochs.filter(|writes| *writes >= MANY_WRITES).sum();
    states.div_ceil(in_flight.max(1)).max(SUBSETS_PER_WRITE)
}

/// Walks through all states of a recording. `visit` gets each distinct state with its number, from 1.
///
/// # Errors
/// Fails at the first state that `visit` refuses, or at a write to where none may go.
pub fn explore(
    entries: &[LogEntry],
    disk: &mut DiskState,
    seed: u64,
    subsets_per_write: usize,
    mut visit: impl FnMut(&DiskState, StateKind, u64) -> Result<()>,
) -> Result<Counts> {
    let mut walk = Walk {
        random: Random(seed),
        subsets_per_write,
        seen: HashSet::new(),
        counts: Counts::default(),
        visit: &mut visit,
    };
    walk.state(disk, StateKind::Prefix)?;
    let mut rest = entries;
    while !rest.is_empty() {
        let end = rest.iter().position(|entry| *entry == LogEntry::Flush).unwrap_or(rest.len());
        let epoch: Vec<Write<'_>> = rest[..end].iter().filter_map(write).collect();
        walk.epoch(disk, &epoch)?;
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    Ok(walk.counts)
}

fn write(entry: &LogEntry) -> Option<Write<'_>> {
    match entry {
        LogEntry::Write { offset, data, durable } => Some((*offset, data, *durable)),
        LogEntry::Flush => None,
    }
}

struct Walk<'v> {
    random: Random,
    subsets_per_write: usize,
    seen: HashSet<[u64; 4]>,
    counts: Counts,
    visit: &'v mut dyn FnMut(&DiskState, StateKind, u64) -> Result<()>,
}

impl Walk<'_> {
    fn state(&mut self, disk: &DiskState, kind: StateKind) -> Result<()> {
        if !self.seen.insert(disk.fingerprint()) {
            return Ok(());
        }
        match kind {
            StateKind::Prefix => self.counts.prefixes += 1,
            StateKind::Reordered => self.counts.reordered += 1,
            StateKind::Torn => self.counts.torn += 1,
        }
        (self.visit)(disk, kind, self.counts.total())
    }

    /// Visits the states while these writes are in flight; afterwards they are all on the medium.
    fn epoch(&mut self, disk: &mut DiskState, writes: &[Write<'_>]) -> Result<()> {
        for subset in self.subsets(writes) {
            let undo = subset.iter().map(|n| disk.write(writes[*n].0, writes[*n].1)).collect::<Result<Vec<_>>>()?;
            self.state(disk, StateKind::Reordered)?;
            take_back(disk, &undo);
        }
        for (offset, data, _) in writes {
            self.torn(disk, *offset, data)?;
            disk.write(*offset, data)?;
            self.state(disk, StateKind::Prefix)?;
        }
        Ok(())
    }

    /// Chooses which of the writes survive, in the order in which they were issued.
    fn subsets(&mut self, writes: &[Write<'_>]) -> Vec<Vec<usize>> {
        let count = writes.len();
        let mut subsets = Vec::new();
        for one in 0..count {
            subsets.push(vec![one]);
            subsets.push((0..count).filter(|n| *n != one).collect());
        }
        for _ in 0..if count > 2 { SUBSETS_PER_EPOCH + self.subsets_per_write * count } else { 0 } {
            // Writes are issued up to a cut somewhere, and each survives with a chance that differs between subsets:
            // nearly all, half, hardly any.
            let (issued, chance) = (1 + self.random.below(count), 1 + self.random.below(9));
            subsets.push((0..issued).filter(|_| self.random.below(10) < chance).collect());
        }
        // A write that waited for the medium by itself (FUA) has survived once anything later was issued.
        for subset in &mut subsets {
            let last = subset.last().copied().unwrap_or_default();
            let durable = (0..last).filter(|n| writes[*n].2 && !subset.contains(n)).collect::<Vec<_>>();
            subset.extend(durable);
            subset.sort_unstable();
        }
        subsets
    }

    /// Visits the states of a write that was going on: some sectors of it; of the boot environment also some bytes of a
    /// sector, or garbage, as a dying disk leaves it.
    fn torn(&mut self, disk: &mut DiskState, offset: u64, data: &[u8]) -> Result<()> {
        let sector = to_usize(SECTOR_BYTES);
        let sectors = data.len() / sector;
        let mut states: Vec<Vec<(usize, Vec<u8>)>> = Vec::new();
        let part = |n: usize| data[n * sector..(n + 1) * sector].to_vec();
        if sectors > 1 {
            let cut = 1 + self.random.below(sectors - 1);
            states.push((0..cut).map(|n| (n, part(n))).collect());
            states.push((cut..sectors).map(|n| (n, part(n))).collect());
            states.push((0..sectors).filter(|_| self.random.below(2) == 0).map(|n| (n, part(n))).collect());
        }
        for n in 0..sectors {
            let (new, old) = (part(n), disk.read(offset + (n * sector) as u64, sector));
            if old.len() == sector && [&new, &old].into_iter().any(|content| content.starts_with(ENVIRONMENT)) {
                states.extend(self.torn_sector(&old, &new).into_iter().map(|content| vec![(n, content)]));
            }
        }
        for state in states {
            let undo = state
                .iter()
                .map(|(n, content)| disk.write(offset + (n * sector) as u64, content))
                .collect::<Result<Vec<_>>>()?;
            self.state(disk, StateKind::Torn)?;
            take_back(disk, &undo);
        }
        Ok(())
    }

    /// Returns what may be in a sector that was being written.
    fn torn_sector(&mut self, old: &[u8], new: &[u8]) -> Vec<Vec<u8>> {
        let len = new.len();
        let noise: Vec<u8> = (0..len).map(|_| self.random.below(256).to_le_bytes()[0]).collect();
        let joined = |first: &[u8], second: &[u8], at: usize| [&first[..at], &second[at..]].concat();
        let mut states = vec![vec![0; len], vec![0xff; len], joined(new, &noise, len / 2), noise];
        // Only cuts between bytes that differ make different tears.
        let differ: Vec<usize> = (0..len).filter(|n| old[*n] != new[*n]).collect();
        for _ in 0..TEARS.min(differ.len()) {
            let at = differ[self.random.below(differ.len())];
            states.extend([joined(new, old, at), joined(old, new, at), joined(new, &vec![0; len], at)]);
        }
        states
    }
}

/// Beginning of GRUB's environment block.
const ENVIRONMENT: &[u8] = b"# GRUB Environment Block\n";

fn take_back(disk: &mut DiskState, undo: &[Undo]) {
    undo.iter().rev().for_each(|undo| disk.undo(undo));
}

#[cfg(test)]
mod tests {
    use super::super::disk::{DiskState, Region};
    use super::{ENVIRONMENT, LogEntry, SUBSETS_PER_WRITE, explore, subsets_per_write};

    fn disk() -> DiskState {
        let region = |start| Region::new(start, vec![0; 8192]);
        DiskState { state: region(0), system: region(8192), recovery: region(1 << 20), kept: region(1 << 21) }
    }

    fn write(block: u64, value: u8) -> LogEntry {
        LogEntry::Write { offset: block * 4096, data: vec![value; 4096], durable: false }
    }

    /// Collects the first bytes of all four blocks, of all states.
    fn states(entries: &[LogEntry]) -> Vec<[u8; 4]> {
        let mut found = Vec::new();
        let first = |disk: &DiskState| {
            let (state, system) = (&disk.state.content, &disk.system.content);
            [state[0], state[4096], system[0], system[4096]]
        };
        explore(entries, &mut disk(), 7, SUBSETS_PER_WRITE, |disk, _, _| {
            found.push(first(disk));
            Ok(())
        })
        .unwrap();
        found
    }

    #[test]
    fn what_was_flushed_is_never_lost_and_what_was_not_may_be() {
        let entries =
            [write(0, 1), LogEntry::Flush, write(1, 2), write(2, 3), write(3, 4), LogEntry::Flush, write(0, 5)];
        let found = states(&entries);
        for expected in [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 3, 0], [1, 0, 3, 4], [1, 2, 3, 4], [5, 2, 3, 4]] {
            assert!(found.contains(&expected), "{expected:?}");
        }
        // Nothing of a later epoch may be there without all of the epoch before, except for torn blocks.
        assert!(found.iter().all(|state| state[0] != 0 || state[1..] == [0, 0, 0]));
        assert!(found.iter().all(|state| state[0] != 5 || state[1..] == [2, 3, 4]));
    }

    #[test]
    fn the_same_seed_finds_the_same_states_each_once() {
        let entries: Vec<LogEntry> =
            (0..4).cycle().take(20).zip(1..).map(|(block, value)| write(block, value)).collect();
        let run = |seed| {
            let mut found = Vec::new();
            explore(&entries, &mut disk(), seed, SUBSETS_PER_WRITE, |disk, kind, number| {
                found.push((disk.fingerprint(), kind, number));
                Ok(())
            })
            .unwrap();
            found
        };
        assert_eq!(run(3), run(3));
        let numbers: Vec<u64> = run(4).iter().map(|(_, _, number)| *number).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    }

    #[test]
    fn a_write_to_anywhere_else_is_an_error() {
        assert!(explore(&[write(4, 1)], &mut disk(), 1, SUBSETS_PER_WRITE, |_, _, _| Ok(())).is_err());
    }

    #[test]
    fn an_environment_is_torn_within_its_sector() {
        let block = |value: u8| {
            let mut data = [ENVIRONMENT, &[value; 40][..]].concat();
            data.resize(512, b'#');
            LogEntry::Write { offset: 4096, data, durable: false }
        };
        let mut found = Vec::new();
        explore(&[block(b'a'), LogEntry::Flush, block(b'b')], &mut disk(), 1, SUBSETS_PER_WRITE, |disk, _, _| {
            found.push(disk.state.content[4096..4096 + 512].to_vec());
            Ok(())
        })
        .unwrap();
        let has = |text: &[u8]| found.iter().any(|sector| sector.windows(text.len()).any(|part| part == text));
        assert!(has(b"ab") && has(b"ba") && has(&[0xff; 512]), "{} states", found.len());
    }

    #[test]
    fn a_recording_yields_as_many_states_as_are_wanted() {
        let blocks = |count: u64| (0..count).map(|block| write(block % 4, block.to_le_bytes()[0])).collect::<Vec<_>>();
        let entries = [blocks(3), vec![LogEntry::Flush], blocks(100)].concat();
        assert_eq!(subsets_per_write(&entries, 10_000), 100);
        assert_eq!(subsets_per_write(&entries, 100), SUBSETS_PER_WRITE, "few are wanted");
        assert_eq!(subsets_per_write(&blocks(3), 100), 100);
    }
}
