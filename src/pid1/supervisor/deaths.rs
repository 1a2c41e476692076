//! What PID 1 learns from the deaths of its workers: how long to wait, and what to leave out. Pure.

use std::collections::HashMap;
use std::time::Duration;

use crate::pid1::link::{WorkPart, WorkerReport};
use crate::sys::process::ProcessEnding;

/// Pause after the first death in a row, and after one that came from outside.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause, below the shortest `watchdog.stall_s`.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A worker that lived this long did not die at once: the deaths before it are over.
const LIVED_WELL: Duration = Duration::from_secs(120);
/// Deaths in a row after which the machine is restarted: with the pauses, about four minutes. A driver or a card that
/// has hung is cured by that.
const MAX_IN_A_ROW: u32 = 12;
/// Parts that are kept in mind: a worker that has gone mad may name any number, and what is left out must fit into the
/// argument of the next.
const MAX_PARTS: usize = 16;
/// Deaths of one part in the same way after which it is left out.
const SAME_WAY: u32 = 2;
/// Deaths of one part in any way after which it is left out.
const ANY_WAY: u32 = 4;

/// The worker as far as it reported what it was doing.
#[derive(Debug, Default)]
pub struct WorkerLife {
    /// Parts that were entered and not left, in the order in which they were entered.
    open: Vec<WorkPart>,
    panicked: Option<(String, String, Option<WorkPart>)>,
    is_done: bool,
    starts_directly: bool,
}

impl WorkerLife {
    /// Takes a report.
    pub fn take(&mut self, report: WorkerReport) {
        match report {
            WorkerReport::Entered(part) if self.open.len() < MAX_PARTS => self.open.push(part),
            WorkerReport::Entered(_) => {}
            WorkerReport::Left(part) => {
                if let Some(at) = self.open.iter().rposition(|open| *open == part) {
                    self.open.remove(at);
                }
            }
            WorkerReport::Panicked { place, text, part } => {
                // A thread that dies of the first panic may panic in its turn.
                self.panicked.get_or_insert((place, text, part));
            }
            WorkerReport::Done | WorkerReport::Restart => self.is_done = true,
            WorkerReport::StartDirectly => self.starts_directly = true,
            WorkerReport::Progressed | WorkerReport::Watchdog { .. } | WorkerReport::RestartAfter { .. } => {}
        }
    }

    /// Whether nothing was left to do but to restart the machine.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Whether a kernel that the worker has left is to be started in place of the firmware.
    #[must_use]
    pub fn starts_directly(&self) -> bool {
        self.starts_directly
    }

    /// Sentence about the end of the worker, for people.
    #[must_use]
    pub fn obituary(&self, ending: &ProcessEnding) -> String {
        let during = self.suspect().map(|part| format!(" while it worked with {part}")).unwrap_or_default();
        match &self.panicked {
            Some((_, text, _)) => format!("it ended{during}: {text}"),
            None => format!("it was ended{during}: {ending}"),
        }
    }

    /// The part that is blamed: that of the thread that panicked, or the last one that was entered.
    fn suspect(&self) -> Option<&WorkPart> {
        self.panicked.as_ref().and_then(|(.., part)| part.as_ref()).or(self.open.last())
    }

    /// Words that are equal for deaths of the same kind; `None` for one that came from outside, for which no part is to
    /// blame.
    fn way(&self, ending: &ProcessEnding) -> Option<String> {
        match (&self.panicked, ending) {
            (Some((place, ..)), _) => Some(place.clone()),
            (None, ProcessEnding::Killed("SIGKILL" | "SIGTERM" | "SIGINT" | "SIGHUP")) => None,
            (None, ending) => Some(ending.to_string()),
        }
    }
}

/// All deaths of this boot.
#[derive(Debug, Default)]
pub struct Deaths {
    in_a_row: u32,
    of_parts: HashMap<(WorkPart, String), u32>,
    left_out: Vec<WorkPart>,
}

/// Consequence of a death.
#[derive(Debug, PartialEq, Eq)]
pub enum AfterDeath {
    /// Start of another worker after the pause.
    StartAgain {
        /// Pause before the start.
        pause: Duration,
    },
    /// No worker lives long: the machine is restarted.
    RestartMachine,
}

impl Deaths {
    /// Takes a death after a life of `lived`.
    pub fn add(&mut self, life: &WorkerLife, ending: &ProcessEnding, lived: Duration) -> AfterDeath {
        let Some(way) = life.way(ending) else { return AfterDeath::StartAgain { pause: PAUSE_MIN } };
        if self.of_parts.len() >= MAX_PARTS * 4 {
            self.of_parts.clear();
        }
        if let Some(part) = self.blamed(life) {
            let count = self.of_parts.entry((part.clone(), way)).or_default();
            *count += 1;
            let same = *count;
            let any: u32 = self.of_parts.iter().filter(|((one, _), _)| *one == part).map(|(_, count)| count).sum();
            if (same >= SAME_WAY || any >= ANY_WAY) && !self.left_out.contains(&part) && self.left_out.len() < MAX_PARTS
            {
                self.left_out.push(part);
                // The next worker does something else: it has all its chances.
                self.in_a_row = 0;
            }
        }
        self.in_a_row = if lived >= LIVED_WELL { 1 } else { self.in_a_row + 1 };
        if self.in_a_row >= MAX_IN_A_ROW {
            return AfterDeath::RestartMachine;
        }
        AfterDeath::StartAgain { pause: (PAUSE_MIN * 2_u32.pow((self.in_a_row - 1).min(8))).min(PAUSE_MAX) }
    }

    /// The part that is at fault: the suspect, unless that was left out already. Of the disks only the robot's own is
    /// then looked at, and what is read of it is the state partition.
    fn blamed(&self, life: &WorkerLife) -> Option<WorkPart> {
        match life.suspect()? {
            WorkPart::RemovableDisks if self.left_out.contains(&WorkPart::RemovableDisks) => Some(WorkPart::State),
            suspect => Some(suspect.clone()),
        }
    }

    /// Parts that the next worker leaves out.
    #[must_use]
    pub fn left_out(&self) -> &[WorkPart] {
        &self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::{AfterDeath, Deaths, LIVED_WELL, MAX_IN_A_ROW, PAUSE_MAX, PAUSE_MIN, WorkerLife};
    use crate::pid1::link::{WorkPart, WorkerReport};
    use crate::sys::process::ProcessEnding;
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(1);

    fn life(reports: impl IntoIterator<Item = WorkerReport>) -> WorkerLife {
        let mut life = WorkerLife::default();
        reports.into_iter().for_each(|report| life.take(report));
        life
    }

    fn panicked(place: &str, part: Option<WorkPart>) -> WorkerReport {
        WorkerReport::Panicked { place: place.into(), text: format!("panicked at {place}"), part }
    }

    fn source(name: &str) -> WorkPart {
        WorkPart::Source(name.into())
    }

    #[test]
    fn what_fails_twice_the_same_way_is_left_out() {
        let mut deaths = Deaths::default();
        let abort = ProcessEnding::Killed("SIGABRT");
        let entered = || [WorkerReport::Entered(source("a")), WorkerReport::Entered(WorkPart::Reports)];
        // The panicking thread says what it was at; what else was open at the time is not blamed.
        let dead = || life(entered().into_iter().chain([panicked("tls.rs:1", Some(source("a")))]));
        deaths.add(&dead(), &abort, SOON);
        assert_eq!(deaths.left_out(), []);
        deaths.add(&dead(), &abort, SOON);
        assert_eq!(deaths.left_out(), [source("a")]);
        // A crash without a panic: what was entered last, and is still open.
        let segv = ProcessEnding::Killed("SIGSEGV");
        let dead = || life([source("a"), source("b"), WorkPart::State].map(WorkerReport::Entered));
        let left = || {
            let mut life = dead();
            life.take(WorkerReport::Left(WorkPart::State));
            life
        };
        deaths.add(&left(), &segv, SOON);
        deaths.add(&left(), &segv, SOON);
        assert_eq!(deaths.left_out(), [source("a"), source("b")]);
        assert!(dead().obituary(&segv).contains("the content of the state partition: SIGSEGV"));
    }

    #[test]
    fn one_part_that_fails_in_ever_new_ways_is_left_out_too() {
        let mut deaths = Deaths::default();
        for place in ["a:1", "b:1", "c:1"] {
            deaths.add(&life([panicked(place, Some(WorkPart::Renewal))]), &ProcessEnding::Killed("SIGABRT"), SOON);
        }
        assert_eq!(deaths.left_out(), []);
        deaths.add(&life([WorkerReport::Entered(WorkPart::Renewal)]), &ProcessEnding::Exited(101), SOON);
        assert_eq!(deaths.left_out(), [WorkPart::Renewal]);
    }

    #[test]
    fn a_look_at_disks_that_still_ends_the_worker_without_the_removable_ones_is_the_fault_of_the_state_partition() {
        let mut deaths = Deaths::default();
        let abort = ProcessEnding::Killed("SIGABRT");
        let dead = || life([panicked("grubenv.rs:1", Some(WorkPart::RemovableDisks))]);
        for left_out in [0, 1, 1, 2, 2] {
            deaths.add(&dead(), &abort, SOON);
            assert_eq!(deaths.left_out().len(), left_out);
        }
        assert_eq!(deaths.left_out(), [WorkPart::RemovableDisks, WorkPart::State]);
    }

    /// <https://github.com/frappe/press/issues/866>: what takes too much memory is killed and started again, for ever.
    #[test]
    fn a_worker_that_memory_runs_out_for_has_its_part_left_out() {
        let mut deaths = Deaths::default();
        for _ in 0..2 {
            deaths.add(&life([WorkerReport::Entered(source("a"))]), &ProcessEnding::OutOfMemory, SOON);
        }
        assert_eq!(deaths.left_out(), [source("a")]);
    }

    #[test]
    fn a_worker_is_done_when_it_says_so_whatever_ends_it() {
        let entered = WorkerReport::Entered(WorkPart::Reports);
        assert!(!life([entered.clone(), WorkerReport::Progressed]).is_done());
        for last in [WorkerReport::Done, WorkerReport::Restart] {
            assert!(life([last, entered.clone(), panicked("tls.rs:1", None)]).is_done());
        }
    }

    #[test]
    fn a_thousand_deaths_from_outside_cost_a_second_each_and_nothing_else() {
        let mut deaths = Deaths::default();
        for _ in 0..1000 {
            let next = deaths.add(&life([WorkerReport::Entered(source("a"))]), &ProcessEnding::Killed("SIGKILL"), SOON);
            assert_eq!(next, AfterDeath::StartAgain { pause: PAUSE_MIN });
        }
        assert_eq!(deaths.left_out(), []);
    }

    #[test]
    fn a_worker_that_names_parts_without_end_fills_no_memory() {
        let mut deaths = Deaths::default();
        for number in 0..1000 {
            let mad = life((0..1000).map(|more| WorkerReport::Entered(source(&format!("{number} {more}")))));
            for _ in 0..2 {
                deaths.add(&mad, &ProcessEnding::Killed("SIGSEGV"), LIVED_WELL);
            }
        }
        assert!(deaths.left_out().len() <= 16 && deaths.of_parts.len() <= 64);
    }

    #[test]
    fn pauses_grow_and_a_machine_on_which_no_worker_lives_is_restarted() {
        let mut deaths = Deaths::default();
        let mut pauses = Vec::new();
        let ending = ProcessEnding::Killed("SIGILL");
        let last = loop {
            match deaths.add(&WorkerLife::default(), &ending, SOON) {
                AfterDeath::StartAgain { pause } => pauses.push(pause),
                other => break other,
            }
        };
        assert_eq!(last, AfterDeath::RestartMachine);
        assert_eq!(pauses.len() + 1, MAX_IN_A_ROW as usize);
        assert!(pauses.is_sorted() && pauses.first() == Some(&PAUSE_MIN) && pauses.last() == Some(&PAUSE_MAX));
        // One that lived long begins a new row.
        assert_eq!(
            deaths.add(&WorkerLife::default(), &ending, LIVED_WELL),
            AfterDeath::StartAgain { pause: PAUSE_MIN }
        );
    }
}
