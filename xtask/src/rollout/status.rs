//! What is offered to whom, for people.

use anyhow::Result;
use reflash::release::rollout::{ALL_PPM, RobotGroup, StagedRelease};

use super::failures::Failures;
use crate::release::rollout::RolloutState;
use crate::step;

/// Prints the roll-out, the newest release first.
///
/// # Errors
/// When it cannot be written.
pub(super) fn print(state: &RolloutState, failures: &Failures) -> Result<()> {
    let counters = (state.rollout.counter, state.halts.counter);
    let mut text = format!("roll-out {}, halts {}, signed {}\n", counters.0, counters.1, signed(state));
    let mut releases: Vec<&StagedRelease> = state.rollout.releases.iter().collect();
    releases.sort_unstable_by_key(|release| std::cmp::Reverse(release.serial));
    text.extend(releases.into_iter().map(|release| line(state, release, failures) + "\n"));
    step::answer(&text)
}

fn signed(state: &RolloutState) -> String {
    let seconds = i64::try_from(state.rollout.created_unix_s).ok();
    let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(|| "at no time".to_owned(), |time| time.to_string())
}

fn line(state: &RolloutState, release: &StagedRelease, failures: &Failures) -> String {
    let StagedRelease { serial, version, .. } = release;
    let mut line = format!("{serial:>6}  {version:<20}  {}", offer(state, release));
    let (failed, reported) = (failures.failed(&state.rollout, release).len(), failures.reported(*serial));
    if reported > 0 {
        line.push_str(&format!("; failed on {failed} of {reported} robots that reported it"));
    }
    line
}

/// Which robots are offered a release, and what holds it back.
pub(super) fn offer(state: &RolloutState, release: &StagedRelease) -> String {
    let whom: Vec<String> = release.who.iter().map(of_group).collect();
    let mut line = if whom.is_empty() { "no robot".to_owned() } else { whom.join(", ") };
    let mut add = |text: String| line.push_str(&format!("; {text}"));
    if let Some(halt) = state.halts.of(release) {
        add(format!("HALTED: {}", halt.why));
    }
    if release.paused {
        add("paused".to_owned());
    }
    for (word, time) in [("from", release.not_before_unix_s), ("until", release.not_after_unix_s)] {
        if let Some(time) = time.and_then(|time| i64::try_from(time).ok()) {
            let shown = jiff::Timestamp::from_second(time).map_or_else(|_| time.to_string(), |time| time.to_string());
            add(format!("{word} {shown}"));
        }
    }
    for fact in &release.facts {
        match (fact.at_least, &fact.is) {
            (Some(least), _) => add(format!("{} >= {least}", fact.name)),
            (None, value) => add(format!("{} = {}", fact.name, value.as_deref().unwrap_or_default())),
        }
    }
    line
}

fn of_group(group: &RobotGroup) -> String {
    let RobotGroup { serials, rings, share_ppm } = group;
    let share = match *share_ppm {
        ALL_PPM => String::new(),
        ppm => format!("{} % of ", f64::from(ppm) / 10_000.0),
    };
    let rings = if rings.is_empty() { String::new() } else { format!("ring {}", rings.join(", ")) };
    let named = match serials.len() {
        0 => String::new(),
        1..=3 => serials.join(" and "),
        more => format!("{more} patterns of serial numbers"),
    };
    let what = [named, rings].into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>().join(" in ");
    format!("{share}{}", if what.is_empty() { "all robots" } else { &what })
}
