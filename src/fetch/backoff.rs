//! The pauses between rounds. Pure.

use std::time::Duration;

const FIRST_MS: u64 = 1_000;
const CAP_MS: u64 = 60_000;
/// A release that replaces a broken one may come soon, so that the first questions are close together.
const FIRST_POLL: Duration = Duration::from_secs(30);
/// At this pause a fleet of 10,000 parked machines asks about 18 times a second.
const POLL_CAP: Duration = Duration::from_secs(900);

/// The pause before round `attempt + 1`: doubling from 1 s to 60 s, of which a quarter is fixed, so that it never
/// becomes a hot loop, and the rest is random, so that a fleet that lost its server together does not return together.
pub fn backoff(attempt: u32, seed: u64) -> Duration {
    let whole = FIRST_MS.checked_shl(attempt.min(16)).map_or(CAP_MS, |ms| ms.min(CAP_MS));
    jittered(Duration::from_millis(whole), seed ^ u64::from(attempt))
}

/// The pause before a parked machine asks again whether there is another release: doubling from 30 s to 15 min, with
/// the same share of chance at the cap as before it, so that a fleet that parked together never asks in step.
pub fn poll_pause(polls: u32, seed: u64) -> Duration {
    let whole = FIRST_POLL.saturating_mul(1 << polls.min(16)).min(POLL_CAP);
    jittered(whole, seed ^ u64::from(polls))
}

/// A machine's place within `span`, the same at every start, so that a fleet that falls into recovery together does not
/// arrive at the server together.
pub fn start_offset(span: Duration, hardware_id: u64) -> Duration {
    Duration::from_millis(mixed(hardware_id) % whole_ms(span).saturating_add(1))
}

fn jittered(whole: Duration, seed: u64) -> Duration {
    let whole = whole_ms(whole);
    let fixed = whole / 4;
    Duration::from_millis(fixed + mixed(seed) % (whole - fixed + 1))
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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

    use super::{backoff, poll_pause, start_offset};

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
    fn polls_keep_their_jitter_at_the_cap() {
        let cap = Duration::from_secs(900);
        let late: Vec<Duration> = (0..1000).map(|seed| poll_pause(200, seed * 7919)).collect();
        assert!(late.iter().all(|wait| *wait >= cap / 4 && *wait <= cap));
        let (early, rest) = (late.iter().min().unwrap(), late.iter().max().unwrap());
        assert!(*early < cap / 3 && *rest > cap * 9 / 10);
        assert!(poll_pause(0, 7) <= Duration::from_secs(30));
        // One machine differs from poll to poll as well.
        let pauses: std::collections::BTreeSet<_> = (100..110).map(|poll| poll_pause(poll, 7)).collect();
        assert!(pauses.len() > 5);
    }

    #[test]
    fn a_fleet_starts_spread_and_each_machine_at_its_own_place() {
        let span = Duration::from_secs(15);
        let offsets: Vec<Duration> = (0..1000).map(|id| start_offset(span, id)).collect();
        assert!(offsets.iter().all(|offset| *offset <= span));
        for second in 0..15 {
            let within = offsets.iter().filter(|offset| offset.as_secs() == second).count();
            assert!((30..120).contains(&within), "{within} machines in second {second}");
        }
        assert_eq!(start_offset(span, 5), start_offset(span, 5));
        assert_eq!(start_offset(Duration::ZERO, 5), Duration::ZERO);
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
