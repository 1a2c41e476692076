//! Clock policy for a machine whose clock battery is dead. Pure: nothing here reads or sets a clock.
//!
//! Trust never rests on the clock: manifests are signed and carry a serial. Time only has to be good enough for TLS
//! certificates, and all that is certain is that it is not earlier than the build of this program and the newest
//! manifest ever seen. So the clock starts at the latest of those, and a certificate from a trusted authority may move
//! it: forward to the start of its validity, because our clock may well be behind, and once back to the floor, because
//! the hardware clock may be ahead.

/// Time of this program's build, seconds since 1970. A build that sets no `SOURCE_DATE_EPOCH` gets a fixed time
/// instead of the current one, so that the same source stays the same binary.
pub const BUILD_TIME: u64 = match option_env!("SOURCE_DATE_EPOCH") {
    Some(text) => seconds(text),
    None => 1_793_491_200, // 2026-11-01
};

/// Largest number of moves, so that contradicting servers cannot keep the clock jumping: a chain of three certificates
/// may need three, and three more after the fall back to the floor.
const MAX_MOVES: u32 = 8;

/// Seconds added to the start of validity, because the certificates of the next mirrors were often issued moments
/// later.
const MARGIN_S: u64 = 60;

const fn seconds(text: &str) -> u64 {
    let digits = text.as_bytes();
    let mut value = 0;
    let mut at = 0;
    while at < digits.len() {
        assert!(digits[at].is_ascii_digit(), "SOURCE_DATE_EPOCH must be seconds since 1970");
        value = value * 10 + (digits[at] - b'0') as u64;
        at += 1;
    }
    value
}

/// Decision about the clock before the first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The clock cannot be right: set it to this many seconds since 1970.
    SetTo(u64),
    /// The clock is possible.
    Keep,
}

/// Disagreement of a certificate with the clock. Seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateTime {
    /// Certificate that becomes valid later than now.
    NotYetValid {
        /// Start of its validity.
        not_before: u64,
    },
    /// Certificate whose validity ended before now.
    Expired {
        /// End of its validity.
        not_after: u64,
    },
}

/// Clock policy, with the moves that it has used up so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockPolicy {
    floor: u64,
    moves_left: u32,
    fell_back: bool,
}

impl ClockPolicy {
    /// A policy whose floor is the later of the build time and the creation time of the last manifest seen.
    pub fn new(build_time: u64, last_manifest: Option<u64>) -> Self {
        Self { floor: build_time.max(last_manifest.unwrap_or(0)), moves_left: MAX_MOVES, fell_back: false }
    }

    /// Returns the earliest time that it can be now.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Decides about a hardware clock that shows `rtc`.
    pub fn start(&self, rtc: u64) -> Start {
        if rtc < self.floor { Start::SetTo(self.floor) } else { Start::Keep }
    }

    /// Returns the time to try instead of `now`, when a certificate is not valid at `now`; `None` when the certificate
    /// has to be refused. The caller must know that the certificate is trusted in all other respects before it moves a
    /// clock.
    pub fn on_certificate_error(&mut self, now: u64, error: CertificateTime) -> Option<u64> {
        let target = match error {
            CertificateTime::NotYetValid { not_before } => {
                Some(not_before.saturating_add(MARGIN_S)).filter(|target| *target > now)
            }
            CertificateTime::Expired { not_after } => {
                let helps = !self.fell_back && self.floor < now && self.floor <= not_after;
                helps.then_some(self.floor)
            }
        }?;
        self.moves_left = self.moves_left.checked_sub(1)?;
        self.fell_back |= matches!(error, CertificateTime::Expired { .. });
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::{BUILD_TIME, CertificateTime, ClockPolicy, MARGIN_S, MAX_MOVES, Start, seconds};

    const BUILD: u64 = 1_793_491_200;
    const YEAR_2001: u64 = 978_307_200;

    #[test]
    fn the_floor_is_the_later_of_build_and_manifest() {
        assert_eq!(ClockPolicy::new(BUILD, None).floor(), BUILD);
        assert_eq!(ClockPolicy::new(BUILD, Some(BUILD - 5)).floor(), BUILD);
        assert_eq!(ClockPolicy::new(BUILD, Some(BUILD + 5)).floor(), BUILD + 5);
        const { assert!(BUILD_TIME > 1_700_000_000) };
        assert_eq!(seconds("1793491200"), BUILD);
    }

    #[test]
    fn a_clock_before_the_floor_is_set_and_any_other_kept() {
        let policy = ClockPolicy::new(BUILD, None);
        assert_eq!(policy.start(YEAR_2001), Start::SetTo(BUILD));
        assert_eq!(policy.start(0), Start::SetTo(BUILD));
        assert_eq!(policy.start(BUILD), Start::Keep);
        assert_eq!(policy.start(BUILD + 10_000_000), Start::Keep);
    }

    #[test]
    fn a_certificate_from_later_moves_the_clock_forward() {
        let mut policy = ClockPolicy::new(BUILD, None);
        let not_before = BUILD + 90 * 86_400;
        let moved = policy.on_certificate_error(BUILD, CertificateTime::NotYetValid { not_before });
        assert_eq!(moved, Some(not_before + MARGIN_S));
    }

    #[test]
    fn an_expired_certificate_moves_a_clock_from_the_future_back_once() {
        let mut policy = ClockPolicy::new(BUILD, None);
        let expired = CertificateTime::Expired { not_after: BUILD + 1000 };
        assert_eq!(policy.on_certificate_error(BUILD + 2000, expired), Some(BUILD));
        assert_eq!(policy.on_certificate_error(BUILD + 2000, expired), None);
    }

    #[test]
    fn a_certificate_that_expired_before_the_floor_stays_refused() {
        let mut policy = ClockPolicy::new(BUILD, None);
        let expired = CertificateTime::Expired { not_after: BUILD - 1 };
        assert_eq!(policy.on_certificate_error(BUILD + 2000, expired), None);
        // The refusal used up no move.
        let other = CertificateTime::Expired { not_after: BUILD + 1 };
        assert_eq!(policy.on_certificate_error(BUILD + 2000, other), Some(BUILD));
    }

    #[test]
    fn contradicting_servers_cannot_move_the_clock_for_ever() {
        let mut policy = ClockPolicy::new(BUILD, None);
        let mut now = BUILD;
        let mut moves = 0;
        while let Some(next) =
            policy.on_certificate_error(now, CertificateTime::NotYetValid { not_before: now + 86_400 })
        {
            assert!(next > now);
            now = next;
            moves += 1;
            assert!(moves <= MAX_MOVES);
        }
        assert_eq!(moves, MAX_MOVES);
    }
}
