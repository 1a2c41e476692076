//! The decision: which releases of a roll-out are a robot's. Pure.

use std::fmt;

use super::place::{RobotPlace, percent, place};
use super::{ALL_PPM, FactCondition, Halts, RobotGroup, Rollout, StagedRelease};
use crate::order;
use crate::utc::Utc;

/// Knowledge of a robot about itself, as far as a roll-out asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Robot {
    /// Text by which the robot is hashed ([`super::identity_text`]).
    pub identity: Option<String>,
    /// Serial number, UUID and MAC address, as far as there are.
    pub names: Vec<String>,
    /// Ring of the configuration.
    pub ring: Option<String>,
    /// The time, seconds since 1970 UTC, if the clock can be relied on.
    pub now_unix_s: Option<u64>,
    /// Facts of the robot's own hook.
    pub facts: Facts,
}

/// Answers of the robot's own hook.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Facts {
    /// Nobody could be asked.
    #[default]
    Unknown,
    /// The running system asked just before, and had this recovery begin.
    CheckedBefore,
    /// The hook answered with these names and values.
    Answered(Vec<(String, String)>),
}

/// A release that the robot has, or had as a good one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnRelease {
    /// Serial of the release.
    pub serial: u64,
    /// First bytes of the BLAKE3 digest of its signed manifest.
    pub digest: [u8; 8],
}

impl OwnRelease {
    fn is(&self, release: &StagedRelease) -> bool {
        self.serial == release.serial && release.manifest.blake3.0.starts_with(&self.digest)
    }
}

/// Kind of stop that keeps further robots from a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Pause of the roll-out.
    Paused,
    /// Halt of the release.
    Halted,
}

/// The reason for which a release is not a robot's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exclusion {
    /// No robot begins any more.
    Stopped(Stopped, String),
    /// The robot's place is beyond the share.
    Place {
        /// Place of the robot.
        place: RobotPlace,
        /// Share of the release, parts per million.
        share_ppm: u32,
    },
    /// The robot has nothing of its own by which it could have a place.
    NoIdentity,
    /// The release is for named robots or rings, and this is none of them.
    NotNamed,
    /// The time has not come, or is over, or is not known.
    Time(String),
    /// A fact is not as it must be.
    Fact(String),
    /// The release has a condition that this agent does not know.
    UnknownCondition(String),
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped(Stopped::Paused, _) => f.write_str("its roll-out is paused"),
            Self::Stopped(Stopped::Halted, why) => write!(f, "its roll-out is halted ({why})"),
            Self::Place { place, share_ppm } => {
                write!(f, "it is not for this robot yet, whose place is {place}: the share is ")?;
                percent(f, *share_ppm)
            }
            Self::NoIdentity => f.write_str(
                "it is for a share of the robots, and this one has no serial number, UUID or network card to be \
                 counted by",
            ),
            Self::NotNamed => f.write_str("it is for named robots or rings, and this is none of them"),
            Self::Time(why) => f.write_str(why),
            Self::Fact(why) => f.write_str(why),
            Self::UnknownCondition(name) => {
                write!(f, "it has the condition {name:?}, which this agent does not know; install a newer recovery")
            }
        }
    }
}

/// A release that the robot may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer<'r> {
    /// Release of the roll-out.
    pub release: &'r StagedRelease,
    /// Whether it is only there to repair what the robot has, since no robot begins with it any more, or this one is
    /// outside.
    pub only_own: bool,
}

/// Result of the decision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RolloutChoice<'r> {
    /// Releases that the robot may take, the best one first. What does not fit it for other reasons is passed over.
    pub offers: Vec<Offer<'r>>,
    /// Releases that are not this robot's, the newest first.
    pub left_out: Vec<(&'r StagedRelease, Exclusion)>,
}

impl RolloutChoice<'_> {
    /// One sentence about the releases above this serial that are not the robot's; `None` if there are none.
    #[must_use]
    pub fn why_nothing_above(&self, serial: u64) -> Option<String> {
        let above = self.left_out.iter().filter(|(release, _)| release.serial > serial);
        let sentences: Vec<String> = above.map(|(release, why)| sentence(release, why)).collect();
        (!sentences.is_empty()).then(|| sentences.join("; "))
    }
}

/// A sentence about one release.
fn sentence(release: &StagedRelease, why: &Exclusion) -> String {
    let StagedRelease { version, serial, .. } = release;
    format!("release {version} (serial {serial}): {why}")
}

/// Decides which releases are the robot's: from the newest to the oldest those that it is in. What it has, by `own`,
/// may be repaired whatever became of the roll-out. A release whose writing it had `begun` is finished, unless no robot
/// begins with it any more: then it comes last, and only where the robot has nothing else.
#[must_use]
pub fn choose<'r>(
    rollout: &'r Rollout,
    halts: Option<&Halts>,
    robot: &Robot,
    own: &[OwnRelease],
    begun: Option<u64>,
) -> RolloutChoice<'r> {
    let mut newest_first: Vec<&StagedRelease> = rollout.releases.iter().collect();
    order::by_key(&mut newest_first, |release| std::cmp::Reverse(release.serial));
    let mut choice = RolloutChoice::default();
    let mut finish = None;
    for release in newest_first {
        let excluded = stopped(release, halts).or_else(|| exclusion(release, rollout.created_unix_s, robot));
        // Time and facts were right when the writing began, and are for beginnings.
        let is_of_beginnings = matches!(excluded, Some(Exclusion::Time(_) | Exclusion::Fact(_)));
        let excluded = excluded.filter(|_| !(is_of_beginnings && begun == Some(release.serial)));
        let is_own = own.iter().any(|own| own.is(release));
        match excluded {
            None => choice.offers.push(Offer { release, only_own: false }),
            Some(_) if is_own => choice.offers.push(Offer { release, only_own: true }),
            Some(why) => {
                if own.is_empty() && begun == Some(release.serial) {
                    finish = Some(Offer { release, only_own: true });
                }
                choice.left_out.push((release, why));
            }
        }
    }
    choice.offers.extend(finish);
    choice
}

fn stopped(release: &StagedRelease, halts: Option<&Halts>) -> Option<Exclusion> {
    if let Some(halt) = halts.and_then(|halts| halts.of(release)) {
        return Some(Exclusion::Stopped(Stopped::Halted, halt.why.clone()));
    }
    release.paused.then(|| Exclusion::Stopped(Stopped::Paused, String::new()))
}

/// The reason for which a release that is not stopped is not for this robot; `None` if it is.
fn exclusion(release: &StagedRelease, signed_unix_s: u64, robot: &Robot) -> Option<Exclusion> {
    if let Some(name) = release.requires.first() {
        return Some(Exclusion::UnknownCondition(name.clone()));
    }
    who(release, robot)
        .or_else(|| time(release, signed_unix_s, robot).map(Exclusion::Time))
        .or_else(|| release.facts.iter().find_map(|fact| unmet(fact, &robot.facts)).map(Exclusion::Fact))
}

/// The reason for which no group has the robot: the widest share that it is beyond, if there is one.
fn who(release: &StagedRelease, robot: &Robot) -> Option<Exclusion> {
    let place = robot.identity.as_ref().map(|identity| place(&release.manifest.blake3, identity));
    let mut widest = 0;
    for group in release.who.iter().filter(|group| names(group, robot)) {
        let is_in = group.share_ppm >= ALL_PPM || place.is_some_and(|place| place.is_within(group.share_ppm));
        if is_in {
            return None;
        }
        widest = widest.max(group.share_ppm);
    }
    Some(match place {
        _ if widest == 0 => Exclusion::NotNamed,
        Some(place) => Exclusion::Place { place, share_ppm: widest },
        None => Exclusion::NoIdentity,
    })
}

/// Whether the robot is one of those that a group names.
fn names(group: &RobotGroup, robot: &Robot) -> bool {
    let fits = |pattern: &String| robot.names.iter().any(|name| fits(pattern, name));
    let is_ring = |ring: &String| robot.ring.as_ref() == Some(ring);
    (group.serials.is_empty() || group.serials.iter().any(fits))
        && (group.rings.is_empty() || group.rings.iter().any(is_ring))
}

/// Whether a name fits a pattern, in which `*` stands for any text. Upper and lower case are the same: vendors print
/// serial numbers in other ways than their firmware does.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_ascii_lowercase(), name.to_ascii_lowercase());
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

/// The reason for which it is not the time. Where the clock is not known, the date of the signature is a witness: what
/// it was signed after is past. A clock that is known counts alone, since that of the builder may be the wrong one.
///
/// A recovery whose clock cannot be relied on and that the running system had begin goes by the running system's clock:
/// if the two decided differently, the robot would restart in vain each night.
fn time(release: &StagedRelease, signed_unix_s: u64, robot: &Robot) -> Option<String> {
    let StagedRelease { not_before_unix_s: from, not_after_unix_s: to, .. } = *release;
    let latest_known = robot.now_unix_s.unwrap_or(signed_unix_s);
    if let Some(to) = to.filter(|to| latest_known > *to) {
        return Some(format!("its time is over since {} s", latest_known - to));
    }
    if robot.now_unix_s.is_none() && robot.facts == Facts::CheckedBefore {
        return None;
    }
    match (from, to, robot.now_unix_s) {
        (Some(from), _, Some(now)) if latest_known < from => {
            Some(format!("its time begins in {} s", from.saturating_sub(now)))
        }
        (Some(from), _, None) if latest_known < from => {
            Some(format!("its time begins at {}, and this robot's clock cannot be relied on", Utc(from)))
        }
        (_, Some(to), None) => {
            Some(format!("its time ends at {}, and this robot's clock cannot be relied on", Utc(to)))
        }
        _ => None,
    }
}

/// The reason for which a condition on a fact is not met.
fn unmet(condition: &FactCondition, facts: &Facts) -> Option<String> {
    let FactCondition { name, at_least, is } = condition;
    let answers = match facts {
        Facts::CheckedBefore => return None,
        Facts::Unknown => return Some(format!("{name} is not known here: only the running system can ask for it")),
        Facts::Answered(answers) => answers,
    };
    let Some((_, value)) = answers.iter().find(|(known, _)| known == name) else {
        return Some(format!("this robot's program for facts does not say {name}"));
    };
    // A percentage may come with a fraction.
    let whole = value.split('.').next().and_then(|whole| whole.parse::<i64>().ok());
    match (at_least, is) {
        (Some(least), _) if whole.is_none_or(|whole| whole < *least) => {
            Some(format!("{name} is {value:?}, and {least} or more is needed"))
        }
        (_, Some(only)) if value != only => Some(format!("{name} is {value:?}, and has to be {only:?}")),
        _ => None,
    }
}
