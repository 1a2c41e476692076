//! Roll-outs: the two signed files of a channel that say which release is whose, and the decision. Pure.
//!
//! [`Rollout`] is signed by a release key, [`Halts`] by a release key or by the halt key that the roll-out names. Both
//! are mutable and small, and each has a counter that a robot never goes behind. [`choose`] decides, with the same code
//! in recovery, in the running system and in the builder's simulation. `docs/rollouts.md` has the format.

mod choose;
mod error;
mod place;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::release::digest::Digest;
use crate::release::manifest::{Authentic, ManifestError, Object, TrustedKeys};
pub use choose::{Exclusion, Facts, Offer, OwnRelease, Robot, RolloutChoice, Stopped, choose};
pub use error::RolloutError;
pub use place::{RobotPlace, identity_text, place};

/// Version of the format of both files.
pub const FORMAT: u32 = 1;
/// Size of the largest file of either kind, bytes.
pub const MAX_SIZE_BYTES: u64 = 256 * 1024;
/// The highest counter: 2^53 - 1, the largest whole number that every reader of JSON keeps exactly.
pub const MAX_COUNTER: u64 = (1 << 53) - 1;
/// The whole fleet, in parts per million.
pub const ALL_PPM: u32 = 1_000_000;
/// The most releases that a roll-out names, and halts that a file has.
pub const MAX_RELEASES: usize = 32;
/// The most groups of robots of one release.
pub const MAX_GROUPS: usize = 64;
/// The most patterns or rings of one group.
pub const MAX_NAMES: usize = 4096;
/// The most conditions on facts of one release.
pub const MAX_FACTS: usize = 16;
/// The most characters of the reason for a halt.
pub const MAX_WHY_CHARS: usize = 200;

/// Rule of a channel: which release is for which robots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Version of the format, [`FORMAT`].
    pub format: u32,
    /// Product that the channel is for.
    pub product: String,
    /// Channel that the roll-out is for.
    pub channel: String,
    /// Number of this file, higher than that of every file before.
    pub counter: u64,
    /// Time of the signature, seconds since 1970 UTC.
    pub created_unix_s: u64,
    /// Base64 line of the public key that may sign halts, besides the release keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halt_key: Option<String>,
    /// Releases of the roll-out, in any order.
    pub releases: Vec<StagedRelease>,
}

/// One release, and the robots that it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedRelease {
    /// Serial of the release.
    pub serial: u64,
    /// Version of the release, for people.
    pub version: String,
    /// Signed manifest of the release.
    pub manifest: Object,
    /// Groups of robots; a robot is in the roll-out if it is in one of them.
    pub who: Vec<RobotGroup>,
    /// Whether no further robot begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Time before which no robot begins, seconds since 1970 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_unix_s: Option<u64>,
    /// Time after which no robot begins, seconds since 1970 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after_unix_s: Option<u64>,
    /// Conditions on what the robot knows of itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<FactCondition>,
    /// Halts with a counter up to this one do not count any more.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub halts_lifted_through: u64,
    /// Time at which a person let the release go on last, seconds since 1970 UTC. Robots do without it: the watcher
    /// knows by it which failures that person has judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_unix_s: Option<u64>,
    /// Conditions that a reader has to know: a later version names here what an earlier one must not ignore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
}

/// Robots that fit all of what is given here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenGroup")]
pub struct RobotGroup {
    /// Patterns of which one has to fit a serial number, UUID or MAC address; empty for any robot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub serials: Vec<String>,
    /// Rings of which one has to be the robot's; empty for any robot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rings: Vec<String>,
    /// Share of these robots, in parts per million.
    pub share_ppm: u32,
}

/// A group as it is written.
#[derive(Deserialize)]
struct WrittenGroup {
    #[serde(default)]
    serials: Vec<String>,
    #[serde(default)]
    rings: Vec<String>,
    share_ppm: Option<u32>,
}

impl TryFrom<WrittenGroup> for RobotGroup {
    type Error = &'static str;

    /// Refuses a group that says nothing which is known here: a slip of the pen in the name of its only member would
    /// let in the whole fleet.
    fn try_from(written: WrittenGroup) -> Result<Self, Self::Error> {
        let WrittenGroup { serials, rings, share_ppm } = written;
        if serials.is_empty() && rings.is_empty() && share_ppm.is_none() {
            return Err(
                "a group has neither patterns of serial numbers nor rings nor a share, so that it is for nobody \
                        rather than for everybody",
            );
        }
        Ok(Self { serials, rings, share_ppm: share_ppm.unwrap_or(ALL_PPM) })
    }
}

impl RobotGroup {
    /// Whether the group is every robot.
    #[must_use]
    pub fn is_everybody(&self) -> bool {
        self.serials.is_empty() && self.rings.is_empty() && self.share_ppm >= ALL_PPM
    }
}

/// Condition on one fact, as the robot's hook answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactCondition {
    /// Name of the fact.
    pub name: String,
    /// The least value, as a whole number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<i64>,
    /// The only value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is: Option<String>,
}

/// The halted releases of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halts {
    /// Version of the format, [`FORMAT`].
    pub format: u32,
    /// Product that the channel is for.
    pub product: String,
    /// Channel that the halts are for.
    pub channel: String,
    /// Number of this file, higher than that of every file before.
    pub counter: u64,
    /// Time of the signature, seconds since 1970 UTC.
    pub created_unix_s: u64,
    /// Halts of releases, in any order.
    pub halted: Vec<Halt>,
}

/// The halt of one release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// Serial of the release.
    pub serial: u64,
    /// BLAKE3 digest of its signed manifest.
    pub manifest: Digest,
    /// Counter of the file that brought the halt.
    pub counter: u64,
    /// The reason, for people.
    pub why: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Returns the path of a channel's roll-out below the base URL. Its signature has `.minisig` after it.
#[must_use]
pub fn rollout_path(channel: &str) -> String {
    format!("{channel}/rollout.json")
}

/// Returns the path of a channel's halts below the base URL. Their signature has `.minisig` after it.
#[must_use]
pub fn halts_path(channel: &str) -> String {
    format!("{channel}/halt.json")
}

/// Returns the path of the manifest that a roll-out names by its serial. Its signature has `.minisig` after it.
#[must_use]
pub fn release_path(channel: &str, serial: u64) -> String {
    format!("{channel}/history/{serial}.json")
}

impl Rollout {
    /// Parses signed bytes and checks that they do not contradict themselves.
    ///
    /// # Errors
    /// [`RolloutError::Format`], [`RolloutError::Json`] or [`RolloutError::Contradiction`].
    pub fn parse(signed: &Authentic) -> Result<Self, RolloutError> {
        let rollout: Self = parse("roll-out", signed.bytes())?;
        rollout.check().map_err(|what| RolloutError::Contradiction { file: "roll-out", what })?;
        Ok(rollout)
    }

    /// Checks the values, before a file is signed and after it is read.
    ///
    /// # Errors
    /// The first thing that is wrong, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        check_counter(self.counter)?;
        let releases = &self.releases;
        at_most("releases", releases.len(), MAX_RELEASES)?;
        if releases.is_empty() {
            return Err("it names no release".to_owned());
        }
        for (number, release) in releases.iter().enumerate() {
            let serial = release.serial;
            for other in &releases[..number] {
                if other.serial == serial {
                    return Err(format!("it names serial {serial} twice"));
                }
                if other.manifest.blake3 == release.manifest.blake3 {
                    return Err(format!("serials {} and {serial} have the same manifest", other.serial));
                }
            }
            release.check().map_err(|what| format!("of serial {serial}, {what}"))?;
        }
        Ok(())
    }

    /// The release with this serial.
    #[must_use]
    pub fn release(&self, serial: u64) -> Option<&StagedRelease> {
        self.releases.iter().find(|release| release.serial == serial)
    }
}

impl StagedRelease {
    /// A release for these robots, without further conditions.
    #[must_use]
    pub fn new(serial: u64, version: String, manifest: Object, who: Vec<RobotGroup>) -> Self {
        Self {
            serial,
            version,
            manifest,
            who,
            paused: false,
            not_before_unix_s: None,
            not_after_unix_s: None,
            facts: Vec::new(),
            halts_lifted_through: 0,
            resumed_unix_s: None,
            requires: Vec::new(),
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.serial > MAX_COUNTER {
            return Err(format!("the number is above {MAX_COUNTER}"));
        }
        if self.halts_lifted_through > MAX_COUNTER {
            return Err(format!("halts are lifted through number {}, above {MAX_COUNTER}", self.halts_lifted_through));
        }
        check_text("the version", &self.version)?;
        at_most("groups", self.who.len(), MAX_GROUPS)?;
        at_most("facts", self.facts.len(), MAX_FACTS)?;
        for RobotGroup { serials, rings, share_ppm } in &self.who {
            at_most("patterns", serials.len(), MAX_NAMES)?;
            at_most("rings", rings.len(), MAX_NAMES)?;
            if *share_ppm > ALL_PPM {
                return Err(format!("a share of {share_ppm} parts per million is more than all robots"));
            }
            for name in serials.iter().chain(rings) {
                if name.is_empty() {
                    return Err("a pattern or ring is empty".to_owned());
                }
                check_text("a pattern or ring", name)?;
            }
        }
        if let (Some(from), Some(to)) = (self.not_before_unix_s, self.not_after_unix_s)
            && to < from
        {
            return Err(format!("its time ends at {to} s, before it begins at {from} s"));
        }
        for fact in &self.facts {
            if fact.name.is_empty() || fact.at_least.is_some() == fact.is.is_some() {
                return Err(format!("the condition on fact {:?} needs either at_least or is", fact.name));
            }
            check_text("the name of a fact", &fact.name)?;
        }
        Ok(())
    }

    /// Whether the release is for every robot from this time on, and whatever it knows of itself.
    #[must_use]
    pub fn is_for_everybody(&self, unix_s: u64) -> bool {
        let has_begun = self.not_before_unix_s.is_none_or(|from| from <= unix_s);
        let is_bound = !has_begun || self.not_after_unix_s.is_some() || !self.facts.is_empty();
        !is_bound && !self.paused && self.requires.is_empty() && self.who.iter().any(RobotGroup::is_everybody)
    }
}

impl Halts {
    /// Parses signed bytes and checks that they do not contradict themselves.
    ///
    /// # Errors
    /// As [`Rollout::parse`].
    pub fn parse(signed: &Authentic) -> Result<Self, RolloutError> {
        let halts: Self = parse("halt", signed.bytes())?;
        halts.check().map_err(|what| RolloutError::Contradiction { file: "halt", what })?;
        Ok(halts)
    }

    /// Checks the values, before a file is signed and after it is read.
    ///
    /// # Errors
    /// The first thing that is wrong, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        check_counter(self.counter)?;
        at_most("halts", self.halted.len(), MAX_RELEASES)?;
        for Halt { serial, counter, why, .. } in &self.halted {
            if !(1..=self.counter).contains(counter) {
                return Err(format!("the halt of serial {serial} has number {counter}, and the file {}", self.counter));
            }
            check_text("a reason", why)?;
            if why.chars().count() > MAX_WHY_CHARS {
                return Err(format!("the reason to halt serial {serial} has more than {MAX_WHY_CHARS} characters"));
            }
        }
        Ok(())
    }

    /// The halt of a release that counts, if there is one.
    #[must_use]
    pub fn of(&self, release: &StagedRelease) -> Option<&Halt> {
        let counts =
            |halt: &&Halt| halt.manifest == release.manifest.blake3 && halt.counter > release.halts_lifted_through;
        self.halted.iter().find(counts)
    }

    /// Checks that the halts are about releases that the roll-out has: a halt of another one may be meant for one that
    /// a newer roll-out names. And none is lifted that is still to come: it would not count when it does.
    ///
    /// # Errors
    /// [`RolloutError::HaltOfAnother`] or [`RolloutError::LiftedAhead`].
    pub fn check_against(&self, rollout: &Rollout) -> Result<(), RolloutError> {
        if let Some(release) = rollout.releases.iter().find(|release| release.halts_lifted_through > self.counter) {
            let (serial, through) = (release.serial, release.halts_lifted_through);
            return Err(RolloutError::LiftedAhead { serial, through, halts: self.counter });
        }
        let is_known = |halt: &Halt| {
            let named = rollout.release(halt.serial);
            named.is_some_and(|release| release.manifest.blake3 == halt.manifest)
        };
        match self.halted.iter().find(|halt| !is_known(halt)) {
            Some(halt) => Err(RolloutError::HaltOfAnother { serial: halt.serial }),
            None => Ok(()),
        }
    }
}

/// The keys that may sign the halts of a roll-out: those that sign releases, and the one that it names.
///
/// # Errors
/// The named key is none.
pub fn halt_keys(trusted: &TrustedKeys, rollout: &Rollout) -> Result<TrustedKeys, ManifestError> {
    let mut keys = trusted.clone();
    if let Some(key) = &rollout.halt_key {
        keys.add("halt key", key)?;
    }
    Ok(keys)
}

fn parse<T: DeserializeOwned>(file: &'static str, bytes: &[u8]) -> Result<T, RolloutError> {
    #[derive(Deserialize)]
    struct OnlyFormat {
        format: u64,
    }
    let json = |source| RolloutError::Json { file, source };
    let OnlyFormat { format } = serde_json::from_slice(bytes).map_err(json)?;
    if format != u64::from(FORMAT) {
        return Err(RolloutError::Format { file, found: format });
    }
    serde_json::from_slice(bytes).map_err(json)
}

fn check_counter(counter: u64) -> Result<(), String> {
    match counter {
        1..=MAX_COUNTER => Ok(()),
        _ => Err(format!("its number is {counter}, and 1 to {MAX_COUNTER} are allowed")),
    }
}

/// Checks a text that people read on consoles: what it has must not move their cursor.
fn check_text(what: &str, text: &str) -> Result<(), String> {
    if text.contains(char::is_control) { Err(format!("{what} has control characters: {text:?}")) } else { Ok(()) }
}

fn at_most(what: &str, found: usize, most: usize) -> Result<(), String> {
    if found <= most { Ok(()) } else { Err(format!("it has {found} {what}, and at most {most} are allowed")) }
}

#[cfg(test)]
mod tests;
