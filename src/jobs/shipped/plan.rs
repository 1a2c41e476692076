//! The decision about one path that a release ships, as a table. Pure.

use serde::{Deserialize, Serialize};

use crate::release::shipped::ShippedRule;

/// Occasion on which a list is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// The first start of a release.
    FirstStart,
    /// A later start of the same release.
    LaterStart,
    /// A start whose `/var` is in memory and began empty.
    Memory,
}

/// Knowledge of a path that a release brought to this machine before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPath {
    /// Rule of the path in that release.
    pub rule: ShippedRule,
    /// Digest of what that release had there.
    pub digest: String,
}

/// Decision about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathDecision {
    /// The path stays as the machine has it.
    Leave,
    /// The release's own is put where there is nothing.
    Make,
    /// The release's own takes the place of what the machine has, unless it is the same already.
    Renew,
    /// The machine's is taken away.
    TakeAway,
}

/// A path that a release ships, as far as the decision needs it.
#[derive(Debug, Clone, Copy)]
pub struct PathInQuestion<'a> {
    /// Rule of the path.
    pub rule: ShippedRule,
    /// Whether the release has a directory there.
    pub is_directory: bool,
    /// Digest of what the release has there.
    pub digest: &'a str,
    /// Knowledge of the path from an earlier start.
    pub known: Option<&'a KnownPath>,
    /// Whether the machine has anything there.
    pub is_there: bool,
}

/// Decides about a path. A path that the machine has and of which no record knows is the machine's own.
#[must_use]
pub fn decide(occasion: Occasion, path: PathInQuestion<'_>) -> PathDecision {
    use {Occasion as On, PathDecision as To, ShippedRule as Rule};
    let PathInQuestion { rule, is_directory, digest, known, is_there } = path;
    match (occasion, rule) {
        (On::Memory, Rule::Remove) => To::Leave,
        (On::Memory, _) if is_there => To::Leave,
        (On::Memory, _) => To::Make,
        (_, Rule::Always) if is_there => To::Renew,
        (_, Rule::Always) => To::Make,
        // Services find their directories again that somebody cleared away, and a deletion of one is rarely meant.
        (_, Rule::Default) if is_directory && !is_there => To::Make,
        (On::LaterStart, _) => To::Leave,
        (On::FirstStart, Rule::Default | Rule::Once) if is_there || known.is_some() => To::Leave,
        (On::FirstStart, Rule::Default | Rule::Once) => To::Make,
        // A rule that is new for a known path counts as another content: it says that the release's own is wanted.
        (On::FirstStart, Rule::Version)
            if known.is_some_and(|known| known.rule.is_of_the_release() && known.digest == digest) =>
        {
            To::Leave
        }
        (On::FirstStart, Rule::Version) if is_there => To::Renew,
        (On::FirstStart, Rule::Version) => To::Make,
        // Once for each release that begins to remove it: what an application makes anew later on is its own.
        (On::FirstStart, Rule::Remove) if !is_there || known.is_some_and(|known| known.rule == Rule::Remove) => {
            To::Leave
        }
        (On::FirstStart, Rule::Remove) => To::TakeAway,
    }
}

#[cfg(test)]
mod tests {
    use super::Occasion::{FirstStart, LaterStart, Memory};
    use super::PathDecision::{Leave, Make, Renew, TakeAway};
    use super::{KnownPath, PathInQuestion, decide};
    use crate::release::shipped::ShippedRule::{Always, Default, Once, Remove, Version};

    #[test]
    fn every_rule_meets_every_machine() {
        // (occasion, rule, directory?, what the record knows, there?) -> decision
        let (same, other) = ("new", "old");
        for (occasion, rule, is_directory, known, is_there, expected) in [
            // A release on a machine that no record knows: what is there is the machine's.
            (FirstStart, Default, false, None, false, Make),
            (FirstStart, Default, false, None, true, Leave),
            (FirstStart, Default, true, None, false, Make),
            (FirstStart, Default, true, None, true, Leave),
            (FirstStart, Once, false, None, false, Make),
            (FirstStart, Once, true, None, true, Leave),
            (FirstStart, Version, false, None, false, Make),
            (FirstStart, Version, false, None, true, Renew),
            (FirstStart, Always, false, None, true, Renew),
            (FirstStart, Remove, false, None, true, TakeAway),
            (FirstStart, Remove, false, None, false, Leave),
            // What was deleted stays deleted, but for a directory that services need.
            (FirstStart, Default, false, Some((Default, same)), false, Leave),
            (FirstStart, Default, false, Some((Default, other)), false, Leave),
            (FirstStart, Default, true, Some((Default, other)), false, Make),
            (FirstStart, Once, true, Some((Once, other)), false, Leave),
            // Only other content renews.
            (FirstStart, Version, false, Some((Version, same)), true, Leave),
            (FirstStart, Version, false, Some((Version, same)), false, Leave),
            (FirstStart, Version, false, Some((Version, other)), true, Renew),
            (FirstStart, Version, false, Some((Version, other)), false, Make),
            (FirstStart, Version, false, Some((Always, same)), true, Leave),
            // The rule is new, and the machine may have changed what an older release brought.
            (FirstStart, Version, false, Some((Default, same)), true, Renew),
            // A removal is made once.
            (FirstStart, Remove, false, Some((Remove, "")), true, Leave),
            (FirstStart, Remove, false, Some((Default, other)), true, TakeAway),
            // Later starts.
            (LaterStart, Default, false, None, false, Leave),
            (LaterStart, Default, true, None, false, Make),
            (LaterStart, Default, true, None, true, Leave),
            (LaterStart, Once, true, None, false, Leave),
            (LaterStart, Version, false, None, true, Leave),
            (LaterStart, Always, false, None, true, Renew),
            (LaterStart, Always, false, None, false, Make),
            (LaterStart, Remove, false, None, true, Leave),
            // Memory.
            (Memory, Default, false, None, false, Make),
            (Memory, Once, true, None, false, Make),
            (Memory, Version, false, None, true, Leave),
            (Memory, Always, false, None, false, Make),
            (Memory, Remove, false, None, false, Leave),
        ] {
            let known = known.map(|(rule, digest): (_, &str)| KnownPath { rule, digest: digest.into() });
            let path = PathInQuestion { rule, is_directory, digest: "new", known: known.as_ref(), is_there };
            assert_eq!(decide(occasion, path), expected, "{occasion:?} {path:?}");
        }
    }
}
