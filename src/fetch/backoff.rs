//! How long to wait between rounds. Pure.

use std::time::Duration;

const FIRST_MS: u64 = 1_000;
const CAP_MS: u64 = 60_000;

/// The pause before round `attempt + 1`: doubling from 1 s to 60 s, of which a quarter is fixed, so that it never
/// becomes a hot loop, and the rest is random, so that a fleet that lost its server together does not return together.
pub fn backoff(attempt: u32, seed: u64) -> Duration {
    let whole = FIRST_MS.checked_shl(attempt.min(16)).map_or(CAP_MS, |ms| ms.min(CAP_MS));
    let fixed = whole / 4;
    Duration::from_millis(fixed + mixed(seed ^ u64::from(attempt)) % (whole - fixed + 1))
}

/// One step of splitmix64: enough to spread machines, and no secret depends on it.
fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::backoff;

    #[test]
    fn it_doubles_to_a_cap_and_never_gets_hot() {
        for attempt in 0..200 {
            let whole = Duration::from_secs(1 << attempt.min(6)).min(Duration::from_secs(60));
            for seed in 0..200 {
                let wait = backoff(attempt, seed);
                assert!(wait >= whole / 4 && wait <= whole, "attempt {attempt} seed {seed}: {wait:?}");
            }
        }
        assert!(backoff(u32::MAX, 7) <= Duration::from_secs(60));
    }

    #[test]
    fn machines_spread_over_the_whole_span() {
        let waits: Vec<u128> = (0..1000).map(|seed| backoff(6, seed * 7919).as_millis()).collect();
        for tenth in 0..10 {
            let from = 15_000 + tenth * 4_500;
            let within = waits.iter().filter(|wait| (from..from + 4_500).contains(*wait)).count();
            assert!((50..200).contains(&within), "{within} of 1000 machines in {from} ms and the 4.5 s after");
        }
        assert_eq!(backoff(3, 42), backoff(3, 42));
    }
}
