//! The numbers of the newest roll-out and halt files that a robot has seen: it never goes behind them. Pure.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 352 | 8 | number of the roll-out file, 0 before the first |
//! | 360 | 8 | first bytes of the BLAKE3 of the channel |
//! | 368 | 8 | number of the halt file, 0 before the first |
//! | 376 | 8 | first bytes of the BLAKE3 of channel, line feed, and the halt key |

use crate::release::digest::Digest;
use crate::release::fields::u64_at;
use crate::release::rollout::{Halts, MAX_COUNTER, Rollout};

/// Size of both numbers in a copy of the floor, bytes.
pub(super) const SIZE_BYTES: usize = 32;

/// Number of the newest file of one kind, and of what it counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SeenCounter {
    /// The number; 0 before the first.
    pub counter: u64,
    /// First bytes of a digest of what the files are about: those of another channel have numbers of their own.
    pub about: [u8; 8],
}

impl SeenCounter {
    fn new(counter: u64, about: &str) -> Self {
        let digest = Digest::of(about.as_bytes()).0;
        Self { counter, about: std::array::from_fn(|at| digest[at]) }
    }

    /// The higher one of two numbers about the same; else the first one.
    fn or_higher(self, other: Self) -> Self {
        if self.about == other.about && other.counter > self.counter { other } else { self }
    }
}

/// The newest roll-out and halt files that a robot has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SeenRollout {
    /// Number of the roll-out file, about its channel.
    pub rollout: SeenCounter,
    /// Number of the halt file, about its channel and halt key: another key has numbers of its own, since one that was
    /// stolen may have used up all of them.
    pub halts: SeenCounter,
}

impl SeenRollout {
    /// The numbers of these two files.
    #[must_use]
    pub fn of(rollout: &Rollout, halts: &Halts) -> Self {
        let key = rollout.halt_key.as_deref().unwrap_or_default();
        Self {
            rollout: SeenCounter::new(rollout.counter, &rollout.channel),
            halts: SeenCounter::new(halts.counter, &format!("{}\n{key}", rollout.channel)),
        }
    }

    /// The highest number of a roll-out file of this channel that was seen; 0 for none.
    #[must_use]
    pub fn of_channel(&self, channel: &str) -> u64 {
        SeenCounter::new(0, channel).or_higher(self.rollout).counter
    }

    /// Returns the numbers that were seen before of the files that `new` is about.
    #[must_use]
    pub fn about(&self, new: &Self) -> (u64, u64) {
        let known = |known: SeenCounter, new: SeenCounter| if known.about == new.about { known.counter } else { 0 };
        (known(self.rollout, new.rollout), known(self.halts, new.halts))
    }

    /// Takes what another copy, or two newer files, have more. Numbers about something else take the place of what was
    /// seen, if they are `newer`.
    pub(super) fn take(&mut self, other: Self, newer: bool) {
        for (own, other) in [(&mut self.rollout, other.rollout), (&mut self.halts, other.halts)] {
            *own = if newer && own.about != other.about { other } else { own.or_higher(other) };
        }
    }

    pub(super) fn encode(&self) -> [u8; SIZE_BYTES] {
        let mut bytes = [0; SIZE_BYTES];
        for (at, seen) in [(0, self.rollout), (16, self.halts)] {
            bytes[at..at + 8].copy_from_slice(&seen.counter.to_le_bytes());
            bytes[at + 8..at + 16].copy_from_slice(&seen.about);
        }
        bytes
    }

    /// Decodes both numbers; `None` for what no robot can have seen.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let seen = |at: usize| {
            let counter = u64_at(bytes, at)?;
            let about = *bytes.get(at + 8..)?.first_chunk()?;
            (counter <= MAX_COUNTER).then_some(SeenCounter { counter, about })
        };
        Some(Self { rollout: seen(0)?, halts: seen(16)? })
    }
}

#[cfg(test)]
mod tests {
    use super::{SeenCounter, SeenRollout};

    fn seen(rollout: u64, channel: &str, halts: u64, key: &str) -> SeenRollout {
        SeenRollout { rollout: SeenCounter::new(rollout, channel), halts: SeenCounter::new(halts, key) }
    }

    #[test]
    fn numbers_only_grow_and_those_of_another_channel_begin_anew() {
        let mut known = SeenRollout::default();
        known.take(seen(7, "stable", 3, "k"), true);
        assert_eq!((known.of_channel("stable"), known.of_channel("testing")), (7, 0));
        known.take(seen(6, "stable", 4, "k"), true);
        assert_eq!(known, seen(7, "stable", 4, "k"));
        assert_eq!(known.about(&seen(1, "stable", 1, "k")), (7, 4));
        assert_eq!(known.about(&seen(1, "stable", 1, "another key")), (7, 0));
        // Another copy is about the past: it only adds to what is about the same.
        known.take(seen(9, "testing", 9, "other"), false);
        assert_eq!(known, seen(7, "stable", 4, "k"));
        known.take(seen(1, "testing", 1, "other"), true);
        assert_eq!(known, seen(1, "testing", 1, "other"));
    }

    #[test]
    fn what_is_written_is_read_back_and_what_cannot_be_is_refused() {
        let known = seen(7, "stable", 3, "k");
        assert_eq!(SeenRollout::decode(&known.encode()), Some(known));
        assert_eq!(SeenRollout::decode(&[0; 32]), Some(SeenRollout::default()));
        for at in [0, 16] {
            let mut bytes = known.encode();
            bytes[at..at + 8].copy_from_slice(&(1_u64 << 53).to_le_bytes());
            assert_eq!(SeenRollout::decode(&bytes), None);
        }
        assert_eq!(SeenRollout::decode(&[0; 31]), None);
    }
}
