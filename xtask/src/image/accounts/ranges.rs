//! Ranges of numbers that users may use in containers, as /etc/subuid and /etc/subgid have them. Pure.

use std::fmt;

use anyhow::{Result, ensure};

use super::super::within::lines;
use super::names::{name_of, word_of};

/// Range that a name may use.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NamedRange {
    /// One word, as in the record.
    name: String,
    first: u32,
    count: u32,
}

impl NamedRange {
    fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }

    fn overlaps(&self, other: &Self) -> bool {
        u64::from(self.first) < other.end() && u64::from(other.first) < self.end()
    }
}

/// Ranges in the order of the file. A name may have several.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<NamedRange>);

impl Ranges {
    /// Reads the text of the file; lines that are wrong are left out, as by those who use it.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        let mut ranges = Self::default();
        let number = |digits: &[u8]| str::from_utf8(digits).ok()?.parse().ok();
        for line in lines(content) {
            if let [name, first, count] = line.split(|byte| *byte == b':').collect::<Vec<_>>()[..]
                && let (Some(name), Some(first), Some(count)) = (word_of(name), number(first), number(count))
            {
                let _ = ranges.add(&name, first, count);
            }
        }
        ranges
    }

    /// Adds a range.
    ///
    /// # Errors
    /// When it goes beyond the last number there is.
    pub fn add(&mut self, name: &str, first: u32, count: u32) -> Result<()> {
        let range = NamedRange { name: name.to_owned(), first, count };
        ensure!(range.end() <= u64::from(u32::MAX), "{count} numbers from {first} on are more than there are");
        self.0.push(range);
        Ok(())
    }

    /// Adds the ranges of names that have none here.
    pub fn complete_from(&mut self, other: &Self) {
        let missing = other.0.iter().filter(|range| !self.0.iter().any(|own| own.name == range.name));
        let missing: Vec<NamedRange> = missing.cloned().collect();
        self.0.extend(missing);
        self.0.sort_by(|one, other| one.name.cmp(&other.name));
    }

    /// Returns these ranges, each where its name has it in `kept`; a name that is new gets one that no other name had.
    #[must_use]
    pub fn keeping(&self, kept: &Self) -> Self {
        let mut after: Vec<NamedRange> = Vec::new();
        for range in &self.0 {
            let nth = after.iter().filter(|one| one.name == range.name).count();
            let before = kept.0.iter().filter(|one| one.name == range.name).nth(nth);
            let mut new = NamedRange { first: before.map_or(range.first, |before| before.first), ..range.clone() };
            // One that grew, as a new default of useradd has it, must not reach into the numbers of another name.
            let is_in_the_way = |other: &&NamedRange| other.name != new.name && other.overlaps(&new);
            if let Some(before) = before.filter(|_| kept.0.iter().any(|other| is_in_the_way(&other))) {
                new.count = new.count.min(before.count);
            }
            after.push(new);
        }
        let is_new = |range: &NamedRange| !kept.0.iter().any(|one| one.name == range.name);
        let mut used: Vec<NamedRange> = kept.0.iter().chain(after.iter().filter(|one| !is_new(one))).cloned().collect();
        for range in after.iter_mut().filter(|range| is_new(range)) {
            if used.iter().any(|one| one.overlaps(range)) {
                let end = used.iter().map(NamedRange::end).max().unwrap_or_default();
                range.first = u32::try_from(end).unwrap_or(range.first);
            }
            used.push(range.clone());
        }
        Self(after)
    }

    /// Returns the number that takes the place of `number` when these ranges become `after`; `None` outside of them.
    #[must_use]
    pub fn moved_to(&self, after: &Self, number: u32) -> Option<u32> {
        let holds = |range: &NamedRange| number >= range.first && u64::from(number) < range.end();
        let (now, after) = self.0.iter().zip(&after.0).find(|(now, _)| holds(now))?;
        let offset = number - now.first;
        after.first.checked_add(offset).filter(|_| offset < after.count)
    }

    /// Returns the content of the file.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        let line = |range: &NamedRange| {
            [&name_of(&range.name)[..], format!(":{}:{}\n", range.first, range.count).as_bytes()].concat()
        };
        self.0.iter().flat_map(line).collect()
    }

    /// Writes lines for the record of all numbers.
    ///
    /// # Errors
    /// Those of the formatter.
    pub fn write(&self, f: &mut fmt::Formatter<'_>, what: &str) -> fmt::Result {
        self.0.iter().try_for_each(|range| writeln!(f, "{what} {} {} {}", range.name, range.first, range.count))
    }
}
