//! Which services keep a boot from being called good, seen over time. Pure.
//!
//! A service that is restarted after each crash never reaches the state `failed`, so the restarts are counted. One that
//! restarted has to stay up [`LONGER`] times as long as the others: it may crash again after a minute as it did before.
//! A restart after an end in order (`Restart=always` as a simple timer) is no crash, as far as it is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::units::UnitState;
use super::{HealthTerms, Problem};

/// Factor by which a service that was restarted has to stay up longer than the others.
pub const LONGER: u32 = 4;

/// Services that never count unless they are named: a login line that has no terminal to run on, and the sessions of
/// people.
const LEFT_OUT: &[&str] = &["*getty@*", "*getty", "autovt@*", "user@*", "debug-shell", "emergency", "rescue"];

/// Knowledge of the machine before the first look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownBefore {
    /// A boot of this release was good on this machine.
    pub is_proved: bool,
    /// Services that failed when a boot was called good last.
    pub failed: BTreeSet<String>,
}

/// What was seen of one service.
#[derive(Debug, Default)]
struct Seen {
    restarts: u64,
    /// Time of the last crash that was seen.
    crashed: Option<Duration>,
    /// It was seen to end in order before it is started again.
    ends_in_order: bool,
}

/// Judgement of the services, from look to look.
#[derive(Debug)]
pub struct ServiceWatch {
    terms: HealthTerms,
    known: KnownBefore,
    seen: BTreeMap<String, Seen>,
}

impl ServiceWatch {
    /// Begins to look. Times count from here.
    #[must_use]
    pub fn new(terms: HealthTerms, known: KnownBefore) -> Self {
        Self { terms, known, seen: BTreeMap::new() }
    }

    /// Whether the services were watched long enough.
    #[must_use]
    pub fn is_over(&self, now: Duration) -> bool {
        now >= Duration::from_secs(self.terms.settle_s)
    }

    /// Takes a look at every service, and says what is wrong. `is_of_image` says whether a unit belongs to the image.
    pub fn look(
        &mut self,
        now: Duration,
        units: &[UnitState],
        is_of_image: impl Fn(&UnitState) -> bool,
    ) -> Vec<Problem> {
        let mut problems: Vec<Problem> = Vec::new();
        for unit in units {
            let seen = self.seen.entry(unit.name.clone()).or_default();
            let settle = Duration::from_secs(self.terms.settle_s) * LONGER;
            let is_named = self.terms.units.iter().any(|pattern| unit.is_called(pattern));
            take(seen, unit, now, is_named);
            let is_exact = self.terms.units.iter().any(|pattern| !pattern.contains('*') && unit.is_called(pattern));
            let Some((what, detail)) = what_is_wrong(unit, seen, now, settle, is_exact) else { continue };
            let counts = is_named || self.counts_unnamed(unit) && is_of_image(unit);
            problems.push(Problem { name: unit.name.clone(), what: what.to_owned(), detail, counts });
        }
        problems.extend(self.missing(units));
        problems
    }

    /// Whether a service that nothing names keeps the boot from being called good when it crashes.
    fn counts_unnamed(&self, unit: &UnitState) -> bool {
        // A unit that does one thing at each boot may fail for want of a cable or a module; who needs it names it.
        !unit.is_oneshot
            && self.terms.settle_s > 0
            && !self.known.is_proved
            && !self.known.failed.contains(&unit.name)
            && !LEFT_OUT.iter().any(|pattern| unit.is_called(pattern))
            && !self.terms.ignore.iter().any(|pattern| unit.is_called(pattern))
    }

    /// Named services that systemd does not know at all: what was forgotten or masked does not run either.
    fn missing<'a>(&'a self, units: &'a [UnitState]) -> impl Iterator<Item = Problem> + 'a {
        let exact = self.terms.units.iter().filter(|pattern| !pattern.contains('*'));
        exact.filter(|name| !units.iter().any(|unit| unit.is_called(name))).map(|name| Problem {
            name: name.clone(),
            what: "is named in boot.health_units and not loaded".to_owned(),
            detail: String::new(),
            counts: true,
        })
    }
}

/// Takes a look at one service. What is named has to stay up, so that for it an end in order is one too many.
fn take(seen: &mut Seen, unit: &UnitState, now: Duration, is_named: bool) {
    let waits = unit.sub.starts_with("auto-restart");
    let is_in_order = waits && unit.result == "success" && !is_named;
    if is_in_order {
        seen.ends_in_order = true;
    }
    let restarted = unit.restarts > seen.restarts;
    // A person's or a dependency's start sets the count back to 0.
    seen.restarts = unit.restarts;
    if (restarted && !seen.ends_in_order) || (waits && !is_in_order) {
        seen.crashed = Some(now);
        seen.ends_in_order = false;
    }
}

/// What is wrong with a service now, as the rest of a sentence, with its quantities.
fn what_is_wrong(
    unit: &UnitState,
    seen: &Seen,
    now: Duration,
    settle: Duration,
    must_run: bool,
) -> Option<(&'static str, String)> {
    let result = if unit.result.is_empty() { "unknown" } else { &unit.result };
    if unit.active == "failed" {
        return Some(("has failed", format!("result: {result}, restarts: {}", unit.restarts)));
    }
    if let Some(crashed) = seen.crashed.filter(|crashed| now.saturating_sub(*crashed) < settle) {
        let (ago, settle_s) = (now.saturating_sub(crashed).as_secs(), settle.as_secs());
        let detail =
            format!("restarts: {}, the last seen {ago} s ago; it has to stay up for {settle_s} s", unit.restarts);
        return Some(("has crashed and was restarted", detail));
    }
    // A unit that does one thing is up once it was done, and not while it hangs.
    let is_done = unit.is_oneshot && unit.active != "activating";
    let is_up = is_done || ["active", "reloading", "refreshing"].contains(&unit.active.as_str()) || seen.ends_in_order;
    (must_run && !is_up)
        .then(|| ("is named in boot.health_units and does not run", format!("{}, {}", unit.active, unit.sub)))
}

#[cfg(test)]
mod tests {
    use super::{KnownBefore, ServiceWatch};
    use crate::jobs::health::{HealthTerms, units::UnitState};
    use std::time::Duration;

    fn service(name: &str, active: &str, sub: &str, result: &str, restarts: u64) -> UnitState {
        let text = |text: &str| text.to_owned();
        let fragment = format!("/usr/lib/systemd/system/{name}");
        let (active, sub, result) = (text(active), text(sub), text(result));
        UnitState { name: text(name), active, sub, result, restarts, fragment, ..UnitState::default() }
    }

    fn running(restarts: u64) -> UnitState {
        service("app.service", "active", "running", "success", restarts)
    }

    fn settling(terms: HealthTerms, known: KnownBefore) -> impl FnMut(u64, &[UnitState]) -> Vec<(String, bool)> {
        let mut settling = ServiceWatch::new(terms, known);
        move |now_s, units| {
            let found = settling.look(Duration::from_secs(now_s), units, |unit| unit.fragment.starts_with("/usr/"));
            found.into_iter().map(|problem| (problem.to_string(), problem.counts)).collect()
        }
    }

    fn fresh() -> impl FnMut(u64, &[UnitState]) -> Vec<(String, bool)> {
        settling(HealthTerms::default(), KnownBefore::default())
    }

    #[test]
    fn a_service_that_is_restarted_over_and_over_is_not_good_while_it_happens_to_run() {
        let mut look = fresh();
        assert!(look(0, &[running(3)])[0].1, "restarted before the first look");
        assert!(look(100, &[running(3)])[0].0.contains("restarts: 3, the last seen 100 s ago"));
        assert!(look(119, &[running(4)])[0].1);
        assert_eq!(look(230, &[running(4)]).len(), 1);
        assert!(look(239, &[running(4)]).is_empty(), "it stayed up");
    }

    #[test]
    fn a_crash_and_a_failure_count() {
        let mut look = fresh();
        let waits = service("app.service", "activating", "auto-restart", "exit-code", 0);
        assert!(look(3, &[waits])[0].0.contains("has crashed and was restarted"));
        let failed = service("app.service", "failed", "failed", "start-limit-hit", 5);
        let seen = look(500, std::slice::from_ref(&failed));
        assert_eq!(seen, [("app.service has failed (result: start-limit-hit, restarts: 5)".to_owned(), true)]);
    }

    #[test]
    fn a_unit_that_ends_in_order_and_is_started_again_does_not_crash() {
        let named = HealthTerms { units: vec!["poll".into()], ..HealthTerms::default() };
        let mut look = settling(named, KnownBefore::default());
        let ended = service("poll.service", "activating", "auto-restart", "success", 0);
        assert_eq!(look(0, std::slice::from_ref(&ended)).len(), 1, "what is named has to stay up");
        let mut look = fresh();
        assert!(look(0, &[ended]).is_empty());
        assert!(look(2, &[service("poll.service", "active", "running", "success", 1)]).is_empty());
        assert!(look(20, &[service("poll.service", "active", "running", "success", 2)]).is_empty());
    }

    #[test]
    fn what_is_optional_does_not_strand_a_machine() {
        let failed = |name: &str| service(name, "failed", "failed", "exit-code", 0);
        let sensor = failed("sensor.service");
        let mut oneshot = failed("wait-online.service");
        oneshot.is_oneshot = true;
        let mut own = failed("own.service");
        own.fragment = "/etc/systemd/system/own.service".into();
        let getty = failed("serial-getty@ttyS9.service");
        let units = [sensor, oneshot, own, getty];
        let counting = |found: Vec<(String, bool)>| found.iter().filter(|(_, counts)| *counts).count();
        let mut look = fresh();
        let found = look(5, &units);
        assert_eq!(found.len(), 4, "each is reported: {found:?}");
        assert!(found[0].0.starts_with("sensor") && counting(found) == 1);
        let known = KnownBefore { is_proved: true, ..KnownBefore::default() };
        assert_eq!(counting(settling(HealthTerms::default(), known.clone())(5, &units)), 0);
        let before = KnownBefore { failed: ["sensor.service".to_owned()].into(), ..KnownBefore::default() };
        assert_eq!(counting(settling(HealthTerms::default(), before)(5, &units)), 0);
        let ignored = HealthTerms { ignore: vec!["sensor".into()], ..HealthTerms::default() };
        assert_eq!(counting(settling(ignored, KnownBefore::default())(5, &units)), 0);
        // What is named counts whatever else is known of it.
        let named =
            HealthTerms { units: vec!["sens*".into(), "wait-online".into()], settle_s: 0, ..HealthTerms::default() };
        assert_eq!(counting(settling(named, known)(5, &units)), 2);
    }

    #[test]
    fn a_named_service_has_to_be_there_and_run() {
        let named = HealthTerms { units: vec!["app".into()], ..HealthTerms::default() };
        let known = KnownBefore { is_proved: true, ..KnownBefore::default() };
        let mut look = settling(named, known);
        assert!(look(0, &[])[0].0.contains("not loaded"));
        let dead = service("app.service", "inactive", "dead", "success", 0);
        assert!(look(1, &[dead])[0].0.contains("does not run (inactive, dead)"));
        assert!(look(2, &[running(0)]).is_empty());
        // What does one thing has to have done it: a conversion of a database that hangs is in the way.
        let mut oneshot = service("app.service", "activating", "start", "success", 0);
        oneshot.is_oneshot = true;
        assert!(look(3, std::slice::from_ref(&oneshot))[0].0.contains("does not run (activating, start)"));
        (oneshot.active, oneshot.sub) = ("inactive".into(), "dead".into());
        assert!(look(4, &[oneshot]).is_empty());
    }

    /// On Debian `sshd.service` is another name of `ssh.service`, and systemd lists a unit once.
    #[test]
    fn a_service_may_be_named_by_any_of_its_names() {
        let named = HealthTerms { units: vec!["sshd.service".into()], ..HealthTerms::default() };
        let mut look = settling(named, KnownBefore { is_proved: true, ..KnownBefore::default() });
        let mut unit = service("ssh.service", "active", "running", "success", 0);
        unit.names = vec!["ssh.service".into(), "sshd.service".into()];
        assert!(look(0, std::slice::from_ref(&unit)).is_empty());
        unit.active = "failed".into();
        let failed = look(2, &[unit]);
        assert!(failed.len() == 1 && failed[0].1, "{failed:?}");
    }
}
