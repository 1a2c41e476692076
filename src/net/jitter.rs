//! Numbers that differ between machines, for pauses and transactions. Pure.

/// A xorshift64* generator: even enough for pauses, and no secret.
#[derive(Debug, Clone)]
pub(super) struct Jitter(u64);

impl Jitter {
    /// A generator that begins with `seed`, which may be any number.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Takes one step. The lower 48 bits are set by chance.
    pub(super) fn next(&mut self) -> u64 {
        self.0 |= 1;
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

#[cfg(test)]
mod tests {
    use super::Jitter;

    #[test]
    fn no_seed_makes_it_stand_still() {
        for seed in [0, 1, u64::MAX] {
            let mut jitter = Jitter::new(seed);
            let seen: std::collections::BTreeSet<u64> = (0..1000).map(|_| jitter.next()).collect();
            assert_eq!(seen.len(), 1000);
        }
    }
}
