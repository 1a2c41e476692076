//! Clock policy for a machine whose clock cannot be relied on. Pure: nothing here reads or sets a clock.
//!
//! Trust never rests on the clock: manifests are signed and carry a serial. Time only has to be good enough for TLS
//! certificates. There are four witnesses, and each may be wrong: the hardware clock (its battery is empty, or somebody
//! set it), the build of this program (too early, never too late), the creation times of manifests (the host that
//! signed one may have had a wrong clock), and the certificates of servers. No one of them alone moves the clock to
//! where no other can bring it back:
//!
//! - A hardware clock before the build, or more than [`FAR_S`] after it, is wrong.
//! - The creation time of a manifest is believed up to [`FAR_S`] after the build, and no further than the certificates
//!   of this session are valid. It is a guess, which a certificate can undo, also when it was recorded by an earlier
//!   recovery.
//! - A certificate of a trusted authority that is not valid yet moves the clock forward to its start.
//! - One that has expired moves the clock back where the clock is unsure: the hardware clock is wrong, contradicts a
//!   manifest, or was moved before. A clock that nothing speaks against is believed, and the certificate refused, until
//!   no certificate was good for [`PATIENCE`]: a robot whose hardware clock is a year ahead must recover too.
//! - A certificate that expired before the build is never accepted.
//!
//! Moves are not counted: each answers one certificate, and servers that contradict each other only cost a move for
//! each connection. A number of moves to be used up would leave a robot with the last wrong one.

use std::time::Duration;

/// Time of this program's build, seconds since 1970. A build that sets no `SOURCE_DATE_EPOCH` gets a fixed time
/// instead of the current one, so that the same source stays the same binary.
pub const BUILD_TIME: u64 = match option_env!("SOURCE_DATE_EPOCH") {
    Some(text) => seconds(text),
    None => 1_793_491_200, // 2026-11-01
};

/// Seconds after the build from which on no time is believed. systemd takes 15 years for the same purpose
/// (`CLOCK_VALID_RANGE_USEC_MAX`); ten leave out 2038, where a clock ends up that counts in 32 bits. A robot that goes
/// on with this recovery for longer loses nothing but its hardware clock.
pub const FAR_S: u64 = 10 * YEAR_S;

/// Time for which a clock that nothing speaks against is believed, while every certificate that is seen has expired.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Seconds added to the start of validity, because the certificates of the next mirrors were often issued moments
/// later.
const MARGIN_S: u64 = 60;

const YEAR_S: u64 = 365 * 24 * 60 * 60;

/// Seconds by which the clock of the host that signed a release may be ahead without making anything unsure.
const SKEW_S: u64 = 24 * 60 * 60;

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

/// The time in which all certificates of a chain are valid, both ends included. Seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The latest start among the certificates.
    pub not_before: u64,
    /// The earliest end among the certificates.
    pub not_after: u64,
}

impl Validity {
    fn contains(&self, time: u64) -> bool {
        (self.not_before..=self.not_after).contains(&time)
    }
}

/// Refusals of expired certificates since the last one that was good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Whether this server's certificate was refused before, and no other was good since then: every source was asked.
    pub same_server: bool,
    /// Time since the first refusal after which no certificate was good.
    pub since_first: Duration,
}

/// Decision about a chain of certificates that is trusted in all other respects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// The chain is valid now.
    Valid,
    /// The chain is valid at this time, seconds since 1970, which is as likely as now: set the clock to it.
    SetTo(u64),
    /// The chain is refused for its dates.
    Refused,
}

/// Clock policy, with what the witnesses have said so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockPolicy {
    build_time: u64,
    /// The latest creation time of a manifest that is believed.
    last_manifest: Option<u64>,
    /// What the hardware clock would show more than the clock does, in seconds, modulo 2^64. `None` before the first
    /// look at it.
    ahead_s: Option<u64>,
    /// Whether something speaks against the clock.
    unsure: bool,
    /// Validity that the certificates of this session have in common, as far as they have.
    proven: Option<Validity>,
}

impl ClockPolicy {
    /// A policy that knows the time of this program's build and the creation time of the last manifest seen.
    pub fn new(build_time: u64, last_manifest: Option<u64>) -> Self {
        let last_manifest = last_manifest.filter(|created| *created <= build_time.saturating_add(FAR_S));
        Self { build_time, last_manifest, ahead_s: None, unsure: false, proven: None }
    }

    /// Returns the earliest time that it can be now, as far as the manifests can be believed.
    pub fn floor(&self) -> u64 {
        self.build_time.max(self.last_manifest.unwrap_or(0))
    }

    /// Decides about a hardware clock that shows `rtc`, before the first request.
    pub fn start(&mut self, rtc: u64) -> Start {
        self.look_at(rtc);
        let floor = self.floor();
        let a_little_behind = rtc < floor && floor - rtc <= YEAR_S;
        // A manifest that is years ahead of a possible clock is the less likely of the two.
        if self.is_possible(rtc) && !a_little_behind {
            return Start::Keep;
        }
        self.moved(rtc, floor);
        Start::SetTo(floor)
    }

    /// Decides about a chain with this `validity` at the clock's time `now`. The caller must know that the chain is
    /// trusted in all other respects before it moves a clock.
    pub fn judge(&mut self, now: u64, validity: Validity, refusals: Refusals) -> Judgement {
        if self.ahead_s.is_none() {
            self.look_at(now);
        }
        if validity.not_before > validity.not_after || validity.not_after < self.build_time {
            return Judgement::Refused;
        }
        if validity.contains(now) {
            self.prove(validity);
            return Judgement::Valid;
        }
        let start = validity.not_before.saturating_add(MARGIN_S).min(validity.not_after).max(self.build_time);
        let target = if now < validity.not_before {
            start
        } else if self.may_go_back(now, validity, refusals) {
            let guesses = [self.last_manifest, self.hardware_clock(now)].into_iter().flatten();
            let mut fitting = guesses.filter(|guess| validity.contains(*guess) && *guess >= self.build_time);
            fitting.next().unwrap_or(start)
        } else {
            return Judgement::Refused;
        };
        self.moved(now, target);
        self.prove(validity);
        Judgement::SetTo(target)
    }

    /// Whether a clock that shows `now` can be relied on: it is possible, and nothing that was seen speaks against it.
    pub fn is_sure(&self, now: u64) -> bool {
        !self.unsure && self.is_possible(now) && now.saturating_add(SKEW_S) >= self.floor()
    }

    /// Takes the creation time of an authentic manifest that is meant for this machine. Returns the time to set a clock
    /// to that shows `now` and seems to be behind.
    pub fn learn(&mut self, now: u64, created: u64) -> Option<u64> {
        if self.ahead_s.is_none() {
            self.look_at(now);
        }
        let beyond = created > self.build_time.saturating_add(FAR_S)
            || self.proven.is_some_and(|proven| created > proven.not_after)
            || !self.unsure && created > now.saturating_add(YEAR_S);
        if beyond {
            return None;
        }
        self.last_manifest = self.last_manifest.max(Some(created));
        if created <= now {
            return None;
        }
        self.moved(now, created);
        Some(created)
    }

    /// Whether a clock can show this time at all.
    fn is_possible(&self, time: u64) -> bool {
        (self.build_time..=self.build_time.saturating_add(FAR_S)).contains(&time)
    }

    /// Takes the first look at the hardware clock.
    fn look_at(&mut self, rtc: u64) {
        self.ahead_s = Some(0);
        self.unsure = !self.is_possible(rtc) || self.floor() > rtc.saturating_add(SKEW_S);
    }

    /// Returns what the hardware clock shows when the clock shows `now`, possible or not.
    pub fn unmoved(&self, now: u64) -> u64 {
        now.wrapping_add(self.ahead_s.unwrap_or(0))
    }

    /// What the hardware clock shows when the clock shows `now`, if that is possible.
    fn hardware_clock(&self, now: u64) -> Option<u64> {
        self.ahead_s.map(|_| self.unmoved(now)).filter(|time| self.is_possible(*time))
    }

    /// Notes that the clock was set from one time to another, where it can be as wrong as before.
    fn moved(&mut self, from: u64, to: u64) {
        self.ahead_s = Some(self.ahead_s.unwrap_or(0).wrapping_add(from.wrapping_sub(to)));
        self.unsure = true;
    }

    fn may_go_back(&self, now: u64, validity: Validity, refusals: Refusals) -> bool {
        if !self.unsure {
            return refusals.since_first >= PATIENCE;
        }
        // An expired certificate is older than a manifest that can be right, unless the hardware clock says so too.
        let older_than_manifest = validity.not_after < self.floor();
        let seconded = self.hardware_clock(now).is_some_and(|time| validity.contains(time));
        !older_than_manifest || seconded || refusals.same_server
    }

    fn prove(&mut self, validity: Validity) {
        let common = self.proven.map(|proven| Validity {
            not_before: proven.not_before.max(validity.not_before),
            not_after: proven.not_after.min(validity.not_after),
        });
        // Certificates that contradict each other: the last one was good at the time that the clock shows now.
        self.proven = common.filter(|common| common.not_before <= common.not_after).or(Some(validity));
    }
}

#[cfg(test)]
mod tests {
    use super::{
        BUILD_TIME, ClockPolicy, FAR_S, Judgement, MARGIN_S, PATIENCE, Refusals, Start, Validity, YEAR_S, seconds,
    };

    const BUILD: u64 = 1_793_491_200;
    const YEAR_2001: u64 = 978_307_200;
    const YEAR_2090: u64 = 3_786_912_000;
    const DAY: u64 = 86_400;
    /// Nothing was refused so far.
    const NONE: Refusals = Refusals { same_server: false, since_first: std::time::Duration::ZERO };
    /// Every source was asked once.
    const ASKED: Refusals = Refusals { same_server: true, since_first: std::time::Duration::ZERO };
    /// Every source was asked for a long time.
    const LONG: Refusals = Refusals { same_server: true, since_first: PATIENCE };

    fn valid(not_before: u64, not_after: u64) -> Validity {
        Validity { not_before, not_after }
    }

    #[test]
    fn the_floor_is_the_later_of_build_and_a_manifest_that_can_be_right() {
        assert_eq!(ClockPolicy::new(BUILD, None).floor(), BUILD);
        assert_eq!(ClockPolicy::new(BUILD, Some(BUILD - 5)).floor(), BUILD);
        assert_eq!(ClockPolicy::new(BUILD, Some(BUILD + 5)).floor(), BUILD + 5);
        for created in [YEAR_2090, u64::MAX] {
            assert_eq!(ClockPolicy::new(BUILD, Some(created)).floor(), BUILD);
        }
        const { assert!(BUILD_TIME > 1_700_000_000) };
        assert_eq!(seconds("1793491200"), BUILD);
    }

    #[test]
    fn a_clock_that_cannot_be_right_is_set_and_any_other_kept() {
        let start = |last, rtc| ClockPolicy::new(BUILD, last).start(rtc);
        for rtc in [0, YEAR_2001, YEAR_2090, u64::MAX] {
            assert_eq!(start(None, rtc), Start::SetTo(BUILD), "{rtc}");
            assert_eq!(start(Some(BUILD + DAY), rtc), Start::SetTo(BUILD + DAY), "{rtc}");
            assert_eq!(start(Some(YEAR_2090), rtc), Start::SetTo(BUILD), "{rtc}");
        }
        for rtc in [BUILD, BUILD + 10_000_000, BUILD + FAR_S] {
            assert_eq!(start(None, rtc), Start::Keep, "{rtc}");
        }
        // A little behind the last manifest; years behind it, the manifest is the less likely one.
        assert_eq!(start(Some(BUILD + 90 * DAY), BUILD + DAY), Start::SetTo(BUILD + 90 * DAY));
        assert_eq!(start(Some(BUILD + 5 * YEAR_S), BUILD + DAY), Start::Keep);
    }

    #[test]
    fn a_certificate_from_later_moves_the_clock_forward() {
        let mut policy = ClockPolicy::new(BUILD, None);
        let later = valid(BUILD + 90 * DAY, BUILD + 180 * DAY);
        assert_eq!(policy.judge(BUILD, later, NONE), Judgement::SetTo(BUILD + 90 * DAY + MARGIN_S));
        // A certificate that is valid for a shorter time than the margin.
        let short = valid(BUILD + 200 * DAY, BUILD + 200 * DAY + 1);
        assert_eq!(policy.judge(BUILD + 90 * DAY, short, NONE), Judgement::SetTo(BUILD + 200 * DAY + 1));
    }

    #[test]
    fn a_clock_far_ahead_goes_back_as_often_as_the_world_changes() {
        let mut policy = ClockPolicy::new(BUILD, None);
        let mut now = YEAR_2090;
        for round in 0..50 {
            let (not_before, not_after) = (BUILD + round * DAY, BUILD + (round + 1) * DAY);
            let Judgement::SetTo(next) = policy.judge(now, valid(not_before, not_after), NONE) else {
                panic!("refused in round {round}")
            };
            assert!((not_before..=not_after).contains(&next));
            // Somebody sets the clock ahead again.
            now = next + 10 * YEAR_S;
        }
    }

    #[test]
    fn a_clock_that_nothing_speaks_against_refuses_what_has_expired_until_nothing_else_is_good() {
        let now = BUILD + YEAR_S;
        let expired = valid(BUILD + 10 * DAY, BUILD + 100 * DAY);
        let mut policy = ClockPolicy::new(BUILD, Some(BUILD + 50 * DAY));
        assert_eq!(policy.start(now), Start::Keep);
        assert_eq!(policy.judge(now, expired, NONE), Judgement::Refused);
        assert_eq!(policy.judge(now, expired, ASKED), Judgement::Refused);
        // The last manifest is the best guess.
        assert_eq!(policy.clone().judge(now, expired, LONG), Judgement::SetTo(BUILD + 50 * DAY));
        // It was good, and has expired for certain.
        assert_eq!(policy.judge(now, valid(BUILD, now + DAY), NONE), Judgement::Valid);
        assert_eq!(policy.judge(now, expired, NONE), Judgement::Refused);
    }

    #[test]
    fn what_expired_before_the_build_is_refused_whatever_the_clock() {
        for rtc in [0, BUILD + DAY, YEAR_2090] {
            let mut policy = ClockPolicy::new(BUILD, None);
            assert_eq!(policy.judge(rtc.max(BUILD), valid(YEAR_2001, BUILD - 1), LONG), Judgement::Refused);
            assert_eq!(policy.judge(rtc.max(BUILD), valid(BUILD + 9, BUILD + 8), LONG), Judgement::Refused);
        }
    }

    #[test]
    fn an_empty_battery_takes_the_manifest_for_the_time_until_no_source_is_good_with_it() {
        // Recorded by a release whose maker had a clock that was three months ahead.
        let mut policy = ClockPolicy::new(BUILD, Some(BUILD + 90 * DAY));
        assert_eq!(policy.start(0), Start::SetTo(BUILD + 90 * DAY));
        let now = BUILD + 90 * DAY;
        let server = valid(BUILD - 30 * DAY, BUILD + 60 * DAY);
        assert_eq!(policy.judge(now, server, NONE), Judgement::Refused);
        assert_eq!(policy.judge(now + 9, server, ASKED), Judgement::SetTo(BUILD));
    }

    #[test]
    fn a_right_hardware_clock_and_a_certificate_outvote_a_manifest_at_once() {
        let rtc = BUILD + 5 * DAY;
        let server = valid(BUILD - 30 * DAY, BUILD + 60 * DAY);
        let mut policy = ClockPolicy::new(BUILD, Some(BUILD + 90 * DAY));
        assert_eq!(policy.start(rtc), Start::SetTo(BUILD + 90 * DAY));
        // Two seconds later the hardware clock shows two seconds more.
        assert_eq!(policy.judge(BUILD + 90 * DAY + 2, server, NONE), Judgement::SetTo(rtc + 2));
    }

    #[test]
    fn a_manifest_is_learnt_from_as_far_as_certificates_and_the_build_allow() {
        // Delivered over TLS: not beyond the certificate.
        let mut policy = ClockPolicy::new(BUILD, None);
        policy.start(0);
        assert_eq!(policy.judge(BUILD, valid(BUILD - DAY, BUILD + 60 * DAY), NONE), Judgement::Valid);
        assert_eq!(policy.learn(BUILD, BUILD + 61 * DAY), None);
        assert_eq!(policy.learn(BUILD, YEAR_2090), None);
        assert_eq!(policy.learn(BUILD, u64::MAX), None);
        assert_eq!(policy.learn(BUILD, BUILD + 59 * DAY), Some(BUILD + 59 * DAY));
        // From a stick: a guess, which the first certificate undoes.
        let mut policy = ClockPolicy::new(BUILD, None);
        policy.start(0);
        assert_eq!(policy.learn(BUILD, BUILD + 5 * YEAR_S), Some(BUILD + 5 * YEAR_S));
        let server = valid(BUILD - DAY, BUILD + 60 * DAY);
        assert_eq!(policy.judge(BUILD + 5 * YEAR_S, server, NONE), Judgement::Refused);
        assert_eq!(policy.judge(BUILD + 5 * YEAR_S, server, ASKED), Judgement::SetTo(BUILD));
        // A clock that nothing speaks against is not moved by years.
        let mut policy = ClockPolicy::new(BUILD, None);
        policy.start(BUILD + DAY);
        assert_eq!(policy.learn(BUILD + DAY, BUILD + 2 * YEAR_S), None);
        assert_eq!(policy.learn(BUILD + DAY, BUILD), None);
        assert_eq!(policy.learn(BUILD + DAY, BUILD + 2 * DAY), Some(BUILD + 2 * DAY));
    }

    /// What the field may combine: any hardware clock, any date on record, any date of the release that is offered, and
    /// two servers of which one may have an old certificate. Whatever it is, both servers are reached in the end, and a
    /// restart, after which the hardware clock is as before, changes nothing.
    #[test]
    fn no_combination_of_clocks_dates_and_certificates_strands_a_robot() {
        let today = BUILD + 400 * DAY;
        let times = [0, 1, u64::from(u32::MAX), i64::MAX as u64, u64::MAX, YEAR_2001, YEAR_2090, 2_147_483_647];
        let near =
            [BUILD, BUILD - DAY, today, today - 80 * DAY, today + 80 * DAY, today + 5 * YEAR_S, BUILD + FAR_S + 1];
        let times: Vec<u64> = times.into_iter().chain(near).collect();
        let good = valid(today - 30 * DAY, today + 60 * DAY);
        let fresh = valid(today - 1, today + 90 * DAY);
        let old = valid(today - 200 * DAY, today - 110 * DAY);
        let ended = valid(YEAR_2001, BUILD - 1);
        let fleets =
            [vec![good], vec![good, fresh], vec![old, good], vec![good, old], vec![ended, good], vec![fresh, old]];
        for servers in fleets {
            for (rtc, recorded, offered) in combinations(&times) {
                let mut record = recorded;
                for boot in 0..3 {
                    let reached = session(rtc, &mut record, offered, &servers, today);
                    assert!(reached, "boot {boot}: clock {rtc}, record {recorded:?}, offered {offered}, {servers:?}");
                }
            }
        }
    }

    fn combinations(times: &[u64]) -> impl Iterator<Item = (u64, Option<u64>, u64)> + '_ {
        let recorded = move || times.iter().copied().map(Some).chain([None]);
        times
            .iter()
            .flat_map(move |rtc| recorded().flat_map(move |last| times.iter().map(move |new| (*rtc, last, *new))))
    }

    /// Goes round the servers for some minutes, as one boot does. Whether one with a certificate of today was reached,
    /// and went on being reached once its release was known.
    fn session(rtc: u64, record: &mut Option<u64>, offered: u64, servers: &[Validity], today: u64) -> bool {
        let mut policy = ClockPolicy::new(BUILD, *record);
        let mut now = match policy.start(rtc) {
            Start::SetTo(time) => time,
            Start::Keep => rtc,
        };
        let (mut refused, mut since): (Vec<usize>, Option<u64>) = (Vec::new(), None);
        let mut last_round = 0;
        for round in 0..20_u64 {
            last_round = 0;
            for (server, validity) in servers.iter().enumerate() {
                let first = since.map_or(0, |since| round * 20 - since);
                let refusals = Refusals {
                    same_server: refused.contains(&server),
                    since_first: std::time::Duration::from_secs(first),
                };
                match policy.judge(now, *validity, refusals) {
                    Judgement::Refused => {
                        since.get_or_insert(round * 20);
                        refused.push(server);
                        continue;
                    }
                    Judgement::SetTo(time) => now = time,
                    Judgement::Valid => {}
                }
                refused.clear();
                since = None;
                last_round += usize::from(validity.contains(today));
                now = policy.learn(now, offered).unwrap_or(now);
                *record = Some(offered);
            }
            now = now.saturating_add(20);
        }
        last_round > 0
    }

    #[test]
    fn no_time_whatever_overflows() {
        let times = [0, 1, BUILD, BUILD + FAR_S + 1, i64::MAX as u64, u64::MAX - 1, u64::MAX];
        for rtc in times {
            for last in times.map(Some).into_iter().chain([None]) {
                for not_before in times {
                    for not_after in times {
                        let mut policy = ClockPolicy::new(BUILD, last);
                        let now = match policy.start(rtc) {
                            Start::SetTo(time) => time,
                            Start::Keep => rtc,
                        };
                        policy.learn(now, not_after);
                        if let Judgement::SetTo(time) = policy.judge(now, valid(not_before, not_after), LONG) {
                            assert!((not_before..=not_after).contains(&time) && time >= BUILD);
                        }
                    }
                }
            }
        }
    }
}
