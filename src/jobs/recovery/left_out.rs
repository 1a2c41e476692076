//! What a roll-out keeps from a robot for now, for whoever asks again later. Pure.

use crate::jobs::floor::ReleaseId;
use crate::release::rollout::{Exclusion, RolloutChoice, StagedRelease, Stopped};

/// Releases above the installed one that are not this robot's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Sentence about all of them; `None` if there are none.
    pub why: Option<String>,
    /// Releases that may become this robot's by themselves: all but the halted ones.
    pub later: Vec<ReleaseId>,
    /// Times at which some of them begin, seconds since 1970.
    pub begin_unix_s: Vec<u64>,
    /// Whether one waits for a fact.
    pub by_fact: bool,
}

impl LeftOut {
    pub(super) fn of(choice: &RolloutChoice<'_>, installed: u64) -> Self {
        let mut left = Self { why: choice.why_nothing_above(installed), ..Self::default() };
        for (release, why) in choice.left_out.iter().filter(|(release, _)| release.serial > installed) {
            match why {
                Exclusion::Stopped(Stopped::Halted, _) => continue,
                Exclusion::Time(_) => left.begin_unix_s.extend(release.not_before_unix_s),
                Exclusion::Fact(_) => left.by_fact = true,
                _ => {}
            }
            left.later.push(id_of(release));
        }
        left
    }

    /// Seconds from `now_unix_s` after which it is worth while to ask again, at most `longest_s`: when the time of a
    /// release begins, and soon where a fact is waited for, as a charged battery.
    #[must_use]
    pub fn rest_s(&self, now_unix_s: u64, longest_s: u64, fact_s: u64) -> u64 {
        let begins = self.begin_unix_s.iter().filter_map(|begins| begins.checked_sub(now_unix_s)).filter(|s| *s > 0);
        begins.chain(self.by_fact.then_some(fact_s)).fold(longest_s, u64::min)
    }
}

pub(super) fn id_of(release: &StagedRelease) -> ReleaseId {
    let digest = release.manifest.blake3.0;
    ReleaseId { serial: release.serial, digest: std::array::from_fn(|at| digest[at]) }
}

#[cfg(test)]
mod tests {
    use super::LeftOut;

    #[test]
    fn a_robot_asks_again_when_a_time_begins_and_soon_for_a_fact() {
        let of = |begin_unix_s: &[u64], by_fact| LeftOut {
            begin_unix_s: begin_unix_s.into(),
            by_fact,
            ..LeftOut::default()
        };
        for (begin_unix_s, by_fact, expected) in [
            (&[][..], false, 21_600),
            (&[1015, 1100], false, 15),
            (&[10, 1000], false, 21_600),
            (&[100_000], false, 21_600),
            (&[], true, 600),
            (&[1015], true, 15),
        ] {
            assert_eq!(of(begin_unix_s, by_fact).rest_s(1000, 21_600, 600), expected, "{begin_unix_s:?}");
        }
    }
}
