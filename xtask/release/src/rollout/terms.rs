//! Whom a release is for, and how that grows. Pure.

use anyhow::{Result, bail, ensure};
use reflash::release::rollout::{FactCondition, RobotGroup, StagedRelease};

/// Robots that `start` and `widen` name.
#[derive(Debug, Clone, Default)]
pub struct RolloutTerms {
    /// Groups of robots.
    pub groups: Vec<RobotGroup>,
    /// Time before which no robot begins.
    pub not_before_unix_s: Option<u64>,
    /// Time after which no robot begins.
    pub not_after_unix_s: Option<u64>,
    /// Conditions on facts.
    pub facts: Vec<FactCondition>,
    /// Whether robots begin at once, whatever was said before.
    pub no_not_before: bool,
    /// Whether robots begin without an end, whatever was said before.
    pub no_not_after: bool,
    /// Facts that do not count any more.
    pub no_facts: Vec<String>,
}

/// Gives a new release its first terms.
pub(super) fn begin(release: &mut StagedRelease, terms: RolloutTerms) -> Result<()> {
    let RolloutTerms { groups, not_before_unix_s, not_after_unix_s, facts, .. } = terms;
    add_groups(release, groups)?;
    (release.not_before_unix_s, release.not_after_unix_s) = (not_before_unix_s, not_after_unix_s);
    release.facts = facts;
    Ok(())
}

/// Adds what is named to a release. All of it only grows, so that no robot that began is outside again.
pub(super) fn widen(release: &mut StagedRelease, terms: RolloutTerms) -> Result<()> {
    let RolloutTerms { groups, not_before_unix_s, not_after_unix_s, facts, .. } = terms;
    if terms.no_not_before {
        release.not_before_unix_s = None;
    }
    if terms.no_not_after {
        release.not_after_unix_s = None;
    }
    for name in terms.no_facts {
        let before = release.facts.len();
        release.facts.retain(|fact| fact.name != name);
        ensure!(release.facts.len() < before, "release {} has no condition on fact {name}", release.serial);
    }
    add_groups(release, groups)?;
    if let Some(from) = not_before_unix_s {
        let known = release.not_before_unix_s.unwrap_or(0);
        ensure!(from <= known, "{}", narrows(&format!("robots could begin at {known} s, and would at {from} s")));
        release.not_before_unix_s = Some(from);
    }
    if let Some(to) = not_after_unix_s {
        let known = release.not_after_unix_s;
        let text = known.map_or_else(|| "at any time".to_owned(), |known| format!("until {known} s"));
        let is_later = known.is_some_and(|known| to >= known);
        ensure!(is_later, "{}", narrows(&format!("robots could begin {text}, and would until {to} s")));
        release.not_after_unix_s = Some(to);
    }
    for fact in facts {
        let Some(known) = release.facts.iter_mut().find(|known| known.name == fact.name) else {
            bail!("{}", narrows(&format!("there was no condition on fact {}", fact.name)));
        };
        let is_weaker = match (known.at_least, fact.at_least) {
            (Some(known), Some(new)) => new <= known,
            _ => known.is == fact.is,
        };
        ensure!(is_weaker, "{}", narrows(&format!("the condition on fact {} would be another one", fact.name)));
        *known = fact;
    }
    Ok(())
}

/// Adds groups. A share only grows.
fn add_groups(release: &mut StagedRelease, groups: Vec<RobotGroup>) -> Result<()> {
    for new in groups {
        // Named robots are one group, each ring and the rest of the fleet have their own.
        let is_same =
            |old: &&mut RobotGroup| old.rings == new.rings && old.serials.is_empty() == new.serials.is_empty();
        let Some(old) = release.who.iter_mut().find(is_same) else {
            release.who.push(new);
            continue;
        };
        let percent = |ppm: u32| f64::from(ppm) / 10_000.0;
        let (before, after) = (percent(old.share_ppm), percent(new.share_ppm));
        ensure!(
            new.share_ppm >= old.share_ppm,
            "{}",
            narrows(&format!("the share was {before} % and would become {after} %"))
        );
        old.share_ppm = new.share_ppm;
        let added = new.serials.into_iter().filter(|serial| !old.serials.contains(serial)).collect::<Vec<_>>();
        old.serials.extend(added);
    }
    Ok(())
}

fn narrows(what: &str) -> String {
    format!("{what}: robots that were in would be outside again; pause or halt the release instead")
}

#[cfg(test)]
mod tests {
    use super::{RolloutTerms, begin, widen};
    use reflash::release::digest::Digest;
    use reflash::release::manifest::Object;
    use reflash::release::rollout::{FactCondition, StagedRelease};

    fn at_least(name: &str, least: i64) -> FactCondition {
        FactCondition { name: name.into(), at_least: Some(least), is: None }
    }

    /// Whatever is asked for: a release that every robot could take stays one.
    #[test]
    fn nothing_narrows_and_every_condition_can_be_taken_away() {
        let manifest = Object { blake3: Digest::of(b"8"), size_bytes: 1 };
        let mut release = StagedRelease::new(8, "8".into(), manifest, Vec::new());
        let docked = FactCondition { name: "docked".into(), at_least: None, is: Some("yes".into()) };
        let first = RolloutTerms {
            not_before_unix_s: Some(100),
            not_after_unix_s: Some(200),
            facts: vec![at_least("battery", 50), docked.clone()],
            ..RolloutTerms::default()
        };
        begin(&mut release, first).unwrap();
        let no = RolloutTerms::default;
        let home = FactCondition { is: Some("home".into()), ..docked.clone() };
        for narrower in [
            RolloutTerms { not_before_unix_s: Some(101), ..no() },
            RolloutTerms { not_after_unix_s: Some(199), ..no() },
            RolloutTerms { facts: vec![at_least("battery", 51)], ..no() },
            RolloutTerms { facts: vec![at_least("docked", 1)], ..no() },
            RolloutTerms { facts: vec![home], ..no() },
            RolloutTerms { facts: vec![at_least("temperature", 0)], ..no() },
            RolloutTerms { no_facts: vec!["temperature".into()], ..no() },
        ] {
            let error = widen(&mut release.clone(), narrower.clone()).unwrap_err().to_string();
            assert!(error.contains("outside again") || error.contains("has no condition"), "{narrower:?}: {error}");
        }
        let wider = RolloutTerms {
            not_before_unix_s: Some(99),
            not_after_unix_s: Some(201),
            facts: vec![at_least("battery", 49), docked],
            ..no()
        };
        widen(&mut release, wider).unwrap();
        let times = (release.not_before_unix_s, release.not_after_unix_s);
        assert_eq!((times, &release.facts[0]), ((Some(99), Some(201)), &at_least("battery", 49)));
        let free = RolloutTerms {
            no_not_before: true,
            no_not_after: true,
            no_facts: vec!["battery".into(), "docked".into()],
            ..no()
        };
        widen(&mut release, free).unwrap();
        assert!((release.not_before_unix_s, release.not_after_unix_s) == (None, None) && release.facts.is_empty());
        for narrower in [
            RolloutTerms { not_before_unix_s: Some(1), ..no() },
            RolloutTerms { not_after_unix_s: Some(u64::MAX), ..no() },
            RolloutTerms { facts: vec![at_least("battery", 0)], ..no() },
        ] {
            assert!(widen(&mut release.clone(), narrower).is_err());
        }
    }
}
