//! Whom a release is for, as the command line says it. Pure.

use anyhow::{Context, Result, bail, ensure};
use reflash::release::rollout::{ALL_PPM, FactCondition, RobotGroup};

use crate::release::rollout::RolloutTerms;

/// Robots, times and facts of a roll-out.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TermsArgs {
    /// Percent of all robots, with up to four decimals.
    #[arg(long, value_name = "PERCENT")]
    share: Option<String>,
    /// Robots whose serial number, UUID or MAC address fits, with * for any text; repeat for several.
    #[arg(long, value_name = "PATTERN")]
    serial_number: Vec<String>,
    /// Robots of a ring (`release.ring` of their configuration); repeat for several.
    #[arg(long, value_name = "NAME")]
    ring: Vec<String>,
    /// Percent of the robots of these rings. Default: 100.
    #[arg(long, value_name = "PERCENT", requires = "ring")]
    share_of_ring: Option<String>,
    /// No robot begins before this time, as 2027-03-01T02:00:00Z.
    #[arg(long, value_name = "TIME")]
    not_before: Option<String>,
    /// No robot begins after this time.
    #[arg(long, value_name = "TIME")]
    not_after: Option<String>,
    /// Fact that the robot's own program has to answer: NAME>=NUMBER or NAME=TEXT; repeat for several.
    #[arg(long, value_name = "CONDITION")]
    fact: Vec<String>,
}

/// Conditions of a release that are taken away.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct LiftedArgs {
    /// Let robots begin at once, whatever --not-before said.
    #[arg(long, conflicts_with = "not_before")]
    no_not_before: bool,
    /// Let robots begin without an end, whatever --not-after said.
    #[arg(long, conflicts_with = "not_after")]
    no_not_after: bool,
    /// Take the condition on a fact away; repeat for several.
    #[arg(long, value_name = "NAME")]
    no_fact: Vec<String>,
}

impl LiftedArgs {
    /// Adds to terms what is taken away.
    #[must_use]
    pub fn of(self, terms: RolloutTerms) -> RolloutTerms {
        let Self { no_not_before, no_not_after, no_fact: no_facts } = self;
        RolloutTerms { no_not_before, no_not_after, no_facts, ..terms }
    }
}

impl TermsArgs {
    /// Reads what was typed.
    ///
    /// # Errors
    /// The option that cannot be read, and what is expected.
    pub fn parse(self) -> Result<RolloutTerms> {
        let mut groups = Vec::new();
        if let Some(share) = &self.share {
            groups.push(RobotGroup { share_ppm: ppm(share)?, ..RobotGroup::default() });
        }
        if !self.serial_number.is_empty() {
            groups.push(RobotGroup { serials: self.serial_number, share_ppm: ALL_PPM, ..RobotGroup::default() });
        }
        for ring in &self.ring {
            ensure!(
                !ring.contains('*'),
                "--ring {ring:?}: a ring is named as a whole, as `release.ring` of its robots; * stands for any text \
                 only in --serial-number"
            );
        }
        let of_ring = self.share_of_ring.as_deref().map_or(Ok(ALL_PPM), ppm)?;
        let rings = self.ring.into_iter().map(|ring| RobotGroup {
            rings: vec![ring],
            share_ppm: of_ring,
            ..RobotGroup::default()
        });
        groups.extend(rings);
        let facts = self.fact.iter().map(|text| fact(text)).collect::<Result<Vec<_>>>()?;
        for (at, one) in facts.iter().enumerate() {
            let other = facts[..at].iter().find(|other| other.name == one.name && other.is != one.is);
            ensure!(other.is_none(), "the conditions on fact {} cannot hold at once for any robot", one.name);
        }
        Ok(RolloutTerms {
            groups,
            not_before_unix_s: self.not_before.as_deref().map(unix_s).transpose()?,
            not_after_unix_s: self.not_after.as_deref().map(unix_s).transpose()?,
            facts,
            ..RolloutTerms::default()
        })
    }
}

/// Percent as parts per million, without the detour by a number that cannot be exact.
fn ppm(text: &str) -> Result<u32> {
    let expected = || format!("{text:?} is not a share: expected 0 to 100 percent with up to four decimals");
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    ensure!(!whole.is_empty() && whole.len() <= 3 && decimals.len() <= 4 && is_number(whole), expected());
    ensure!(is_number(decimals), expected());
    let ppm: u32 = format!("{whole}{decimals:0<4}").parse().with_context(expected)?;
    ensure!(ppm <= ALL_PPM, expected());
    Ok(ppm)
}

fn unix_s(text: &str) -> Result<u64> {
    let expected = || format!("{text:?} is not a time: expected one as 2027-03-01T02:00:00Z");
    let time: jiff::Timestamp = text.parse().with_context(expected)?;
    u64::try_from(time.as_second()).with_context(expected)
}

fn fact(text: &str) -> Result<FactCondition> {
    let (name, at_least, is) = match (text.split_once(">="), text.split_once('=')) {
        (Some((name, least)), _) => {
            let least = least.trim().parse().with_context(|| format!("{text:?} needs a whole number after >="))?;
            (name, Some(least), None)
        }
        (None, Some((name, value))) => (name, None, Some(value.trim().to_owned())),
        (None, None) => bail!("{text:?} is not a condition: expected NAME>=NUMBER or NAME=TEXT"),
    };
    let name = name.trim().to_owned();
    ensure!(!name.is_empty(), "{text:?} names no fact");
    // `a<=5` would be a fact named `a<`, which no robot answers, and the release would reach nobody.
    let is_other =
        name.ends_with(['<', '>', '!', '=']) || is.as_ref().is_some_and(|is| is.starts_with(['=', '<', '>']));
    ensure!(!is_other, "{text:?} is not a condition: there are only NAME>=NUMBER and NAME=TEXT");
    Ok(FactCondition { name, at_least, is })
}

#[cfg(test)]
mod tests {
    use super::{TermsArgs, fact, ppm, unix_s};

    #[test]
    fn what_is_typed_is_taken_exactly_or_refused() {
        for (text, expected) in [("0", 0), ("5", 50_000), ("0.5", 5000), ("99.9999", 999_999), ("100", 1_000_000)] {
            assert_eq!(ppm(text).unwrap(), expected, "{text}");
        }
        for wrong in ["", "-1", "100.0001", "101", "5%", "0.00001", ".5", "1e2", "1000"] {
            assert!(ppm(wrong).unwrap_err().to_string().contains("percent"), "{wrong}");
        }
        assert_eq!(unix_s("2027-03-01T02:00:00Z").unwrap(), 1_803_866_400);
        assert!(unix_s("tomorrow").is_err() && unix_s("1960-01-01T00:00:00Z").is_err());
        assert_eq!(fact("battery_percent >= 50").unwrap().at_least, Some(50));
        assert_eq!(fact("docked=yes").unwrap().is.as_deref(), Some("yes"));
        assert!(fact("docked").is_err() && fact("a>=b").is_err() && fact("=b").is_err());
        for other in ["a<=5", "a!=b", "a==b", "a=<5", "a=>5"] {
            assert!(fact(other).is_err(), "{other}");
        }
        assert_eq!(fact("a=b<=c").unwrap().is.as_deref(), Some("b<=c"));
        let facts = |facts: &[&str]| {
            let fact = facts.iter().map(|text| (*text).to_owned()).collect();
            TermsArgs { fact, ..TermsArgs::default() }.parse()
        };
        assert!(facts(&["a=1", "a=2"]).unwrap_err().to_string().contains("at once"));
        assert!(facts(&["a=1", "b=2", "a=1"]).is_ok());
        let of_rings = TermsArgs { ring: vec!["lab*".into()], ..TermsArgs::default() }.parse();
        assert!(of_rings.unwrap_err().to_string().contains("named as a whole"));
        let args = TermsArgs {
            share: Some("5".into()),
            serial_number: vec!["A*".into()],
            ring: vec!["lab".into(), "early".into()],
            share_of_ring: Some("50".into()),
            ..TermsArgs::default()
        };
        let shares: Vec<u32> = args.parse().unwrap().groups.iter().map(|group| group.share_ppm).collect();
        assert_eq!(shares, [50_000, 1_000_000, 500_000, 500_000]);
    }
}
