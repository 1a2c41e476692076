use std::collections::BTreeSet;

use super::{
    BootDecision, KeptRelease, Reason, Recoveries, SafeStarts, Situation, System, WithoutRelease, decide, hours_before,
    parked_hours, takes_back, without_release,
};
use crate::boot::worth::Worth;

const REASONS: [&str; 9] = [
    "menu",
    "requested",
    "recovering",
    "env-lost",
    "env-unwritable",
    "tries",
    "system-unreadable",
    "script-lost",
    "new-word",
];
const SYSTEMS: [(&str, System); 3] =
    [("intact", System::Intact), ("damaged", System::Damaged), ("unknown", System::Unknown)];
const WORTHS: [(&str, Worth); 4] =
    [("never", Worth::Never), ("before", Worth::Before), ("same-image", Worth::SameImage), ("unknown", Worth::Unknown)];
const KEPT: [(&str, KeptRelease); 4] = [
    ("nothing", KeptRelease::Nothing),
    ("installed", KeptRelease::Installed),
    ("another", KeptRelease::Another),
    ("part", KeptRelease::Part),
];
const SAFE_STARTS: [&str; 6] = ["no", "0", "1", "2", "3", "4"];
const BUDGET: u32 = 3;

/// A combination, in the words of the table: asked, reason, system, worth, kept, brake, safe starts.
type Words = [&'static str; 7];

/// Every combination. Of safe starts where none can be made, the number does not count, unless an undo follows from it.
fn every_situation() -> Vec<(Words, Situation)> {
    let mut all = Vec::new();
    for (asked, undo_requested) in [("no", false), ("yes", true)] {
        for reason in REASONS {
            for (system_word, system) in SYSTEMS {
                for (worth_word, worth) in WORTHS {
                    for (kept_word, kept) in KEPT {
                        for (brake, count) in [("off", 0), ("off", 2), ("on", 3), ("on", 7)] {
                            for safe in SAFE_STARTS {
                                let words = [asked, reason, system_word, worth_word, kept_word, brake, safe];
                                let made = safe.parse().ok();
                                let safe_starts = SafeStarts { known: made.is_some(), made: made.unwrap_or(0) };
                                let recoveries = Recoveries { serial: 7, count };
                                let reason = Reason::parse(Some(reason));
                                all.push((
                                    words,
                                    Situation {
                                        reason,
                                        undo_requested,
                                        system,
                                        worth,
                                        kept,
                                        safe_starts,
                                        recoveries,
                                        budget: BUDGET,
                                    },
                                ));
                            }
                        }
                    }
                }
            }
        }
    }
    all
}

fn words(decision: BootDecision) -> &'static str {
    match decision {
        BootDecision::Start => "start",
        BootDecision::Undo => "undo",
        BootDecision::UndoOnline => "undo online",
        BootDecision::Fetch => "fetch",
        BootDecision::FetchNewer => "newer",
        BootDecision::Park => "park",
    }
}

fn otherwise(situation: &Situation) -> &'static str {
    match without_release(situation) {
        WithoutRelease::Start => "start",
        WithoutRelease::SafeStart => "safe start",
        WithoutRelease::Undo => "undo",
        WithoutRelease::Try => "try",
        WithoutRelease::Wait => "wait",
    }
}

/// The rows of the table in the manual, as cells.
fn rows_of_the_manual() -> Vec<Vec<&'static str>> {
    let manual = include_str!("../../../docs/failure-modes.md");
    let table = manual.split("| undo asked for |").nth(1).unwrap().split("\n\n").next().unwrap();
    let rows: Vec<Vec<_>> =
        table.lines().skip(2).map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect();
    assert!(rows.iter().all(|row| row.len() == 9), "{rows:?}");
    rows
}

#[test]
fn every_combination_is_decided_as_the_table_of_the_manual_says() {
    let rows = rows_of_the_manual();
    let mut used = BTreeSet::new();
    for (combination, situation) in every_situation() {
        let fits = |row: &&Vec<&str>| {
            row.iter().zip(combination).all(|(cell, word)| *cell == "any" || cell.split(", ").any(|one| one == word))
        };
        let position = rows.iter().position(|row| fits(&row)).unwrap_or_else(|| panic!("no row for {combination:?}"));
        let row = &rows[position];
        used.insert(position);
        let decision = decide(&situation);
        assert_eq!(words(decision), row[7], "{combination:?}");
        match decision {
            BootDecision::Fetch | BootDecision::FetchNewer | BootDecision::UndoOnline => {
                assert_eq!(otherwise(&situation), row[8], "{combination:?}");
            }
            BootDecision::Start | BootDecision::Undo | BootDecision::Park => assert_eq!(row[8], "", "{combination:?}"),
        }
    }
    assert_eq!(used.len(), rows.len(), "a row of the table is never reached");
}

/// Everything that may be done with a situation, whatever the network has.
fn ends(situation: &Situation) -> Vec<&'static str> {
    match decide(situation) {
        decision @ (BootDecision::Fetch | BootDecision::FetchNewer | BootDecision::UndoOnline) => {
            vec![words(decision), otherwise(situation)]
        }
        decision => vec![words(decision)],
    }
}

#[test]
fn what_must_hold_for_every_combination() {
    for (combination, situation) in every_situation() {
        let ends = ends(&situation);
        let does = |what| ends.contains(&what);
        if situation.system == System::Damaged {
            assert!(!does("start") && !does("safe start") && !does("try"), "damaged and started: {combination:?}");
        }
        if situation.kept == KeptRelease::Nothing {
            assert!(!does("undo") && !does("undo online"), "nothing to go back to: {combination:?}");
        } else if situation.kept == KeptRelease::Part {
            assert!(!does("undo"), "what is missing has to be fetched first: {combination:?}");
        } else {
            assert!(!does("wait") && !does("try"), "waits for a person with a release at hand: {combination:?}");
        }
        let another = matches!(situation.kept, KeptRelease::Another | KeptRelease::Part);
        if another && situation.system != System::Intact {
            assert!(!does("park"), "{combination:?}");
        }
        // What recovery noted for itself ends with what it could go back to.
        let may_undo = situation.undo_requested && situation.kept != KeptRelease::Nothing;
        let asked = situation.reason.is_requested() || may_undo;
        assert!(!(asked && does("park")), "what is asked for is never held back: {combination:?}");
        let never = situation.worth == Worth::Never;
        assert!(!(never && does("safe start")), "{combination:?}");
        if situation.reason == Reason::Tries && !asked && situation.system == System::Intact {
            if never && situation.kept == KeptRelease::Another {
                assert_eq!(ends, ["undo"], "{combination:?}");
            }
            if never && situation.kept == KeptRelease::Part {
                assert_eq!(ends, ["undo online", "start"], "{combination:?}");
            }
            // Its surroundings are at fault first.
            let first = situation.safe_starts.made == 0 && situation.recoveries.count < BUDGET;
            assert!(never || !first || !does("undo"), "{combination:?}");
            assert!(never || !situation.safe_starts.known || !does("park"), "{combination:?}");
        }
    }
}

/// A robot alone: the release that is installed, the one that is kept, and what keeps each from coming up.
#[derive(Debug, Clone, Copy)]
struct Robot {
    situation: Situation,
    installed_is_bad: bool,
    surroundings_are_bad: bool,
}

/// How a robot without a network went on.
#[derive(Debug, PartialEq, Eq)]
enum Course {
    /// It is up.
    Up,
    /// It is up without its data, and tries again after a pause, again and again.
    Safe,
    /// It tries again after pauses.
    Paused,
}

/// Lets a robot whose starts all fail, and which has no network, go on until it is up or repeats itself.
fn course(mut robot: Robot) -> Course {
    let mut last = Course::Paused;
    for _ in 0..40 {
        let parked = decide(&robot.situation) == BootDecision::Park;
        let tried_again = Situation { recoveries: Recoveries::default(), ..robot.situation };
        let situation = if parked { tried_again } else { robot.situation };
        last = if parked { Course::Paused } else { last };
        let done = ends(&situation);
        match *done.last().unwrap() {
            "undo" => {
                robot.situation.kept = KeptRelease::Installed;
                robot.situation.worth = Worth::Before;
                robot.situation.safe_starts.made = 0;
                robot.situation.recoveries.count = 0;
                robot.installed_is_bad = false;
            }
            "safe start" => {
                robot.situation.safe_starts.made += 1;
                last = Course::Safe;
            }
            "start" => robot.situation.recoveries.count += 1,
            other => panic!("{other} with an intact system: {robot:?}"),
        }
        if !robot.installed_is_bad && !robot.surroundings_are_bad {
            return Course::Up;
        }
        robot.situation.reason = Reason::Tries;
    }
    last
}

#[test]
fn a_robot_without_a_network_comes_back_to_what_it_holds() {
    for (combination, situation) in every_situation() {
        if situation.system != System::Intact || situation.undo_requested || situation.reason != Reason::Tries {
            continue;
        }
        let robot =
            |installed_is_bad, surroundings_are_bad| Robot { situation, installed_is_bad, surroundings_are_bad };
        // Whatever is believed of the release: a bad one is left, if there is another.
        let expected = match (situation.kept, situation.worth, situation.safe_starts.known) {
            (KeptRelease::Another, ..) => Course::Up,
            (_, Worth::Never, _) | (_, _, false) => Course::Paused,
            _ => Course::Safe,
        };
        assert_eq!(course(robot(true, false)), expected, "{combination:?}");
        // Where the surroundings are at fault, a safe start is reached unless no script makes one.
        let expected = match (situation.kept, situation.worth, situation.safe_starts.known) {
            (_, _, false) => Course::Paused,
            (KeptRelease::Nothing | KeptRelease::Installed | KeptRelease::Part, Worth::Never, _) => Course::Paused,
            _ => Course::Safe,
        };
        assert_eq!(course(robot(false, true)), expected, "{combination:?}");
        assert_eq!(course(robot(false, false)), Course::Up, "{combination:?}");
    }
}

#[test]
fn what_was_tried_in_vain_is_tried_again_after_a_pause_that_grows() {
    for (combination, situation) in every_situation() {
        if !matches!(decide(&situation), BootDecision::Fetch | BootDecision::FetchNewer | BootDecision::UndoOnline) {
            continue;
        }
        let hours = |made, count| {
            let safe_starts = SafeStarts { made, ..situation.safe_starts };
            let situation = Situation { safe_starts, recoveries: Recoveries { serial: 7, count }, ..situation };
            hours_before(without_release(&situation), &situation)
        };
        match without_release(&situation) {
            WithoutRelease::SafeStart if situation.kept != KeptRelease::Another => {
                assert_eq!([0, 1, 2, 3, 4, 5, 6, 999].map(|made| hours(made, 9)), [0, 1, 2, 4, 8, 16, 24, 24]);
            }
            WithoutRelease::Start => {
                let made = situation.safe_starts.made;
                assert_eq!([0, 2, 3, 4, 5, 99].map(|count| hours(made, count)), [0, 0, 1, 2, 4, 24], "{combination:?}");
            }
            WithoutRelease::Try => assert_eq!([0, 1, 2, 3, 99].map(|count| hours(0, count)), [0, 1, 2, 4, 24]),
            WithoutRelease::Undo => assert_eq!(hours(situation.safe_starts.made, 99), 0, "{combination:?}"),
            WithoutRelease::SafeStart | WithoutRelease::Wait => {}
        }
    }
}

#[test]
fn a_release_that_was_good_and_lost_bytes_is_not_refused() {
    for (combination, situation) in every_situation() {
        let was_good = matches!(situation.worth, Worth::Before | Worth::SameImage);
        let expected = situation.undo_requested || !was_good || situation.system == System::Intact;
        assert_eq!(takes_back(&situation), expected, "{combination:?}");
    }
    let damaged = |worth| Situation {
        worth,
        system: System::Damaged,
        undo_requested: false,
        reason: Reason::SystemUnreadable,
        kept: KeptRelease::Another,
        safe_starts: SafeStarts { known: true, made: 0 },
        recoveries: Recoveries { serial: 7, count: BUDGET },
        budget: BUDGET,
    };
    assert_eq!(
        [Worth::Before, Worth::SameImage, Worth::Never].map(|worth| takes_back(&damaged(worth))),
        [false, false, true]
    );
    assert_eq!(decide(&damaged(Worth::Before)), BootDecision::Undo, "and gone back from all the same");
}

#[test]
fn pauses_grow_from_an_hour_to_a_day() {
    let hours = |count| parked_hours(Recoveries { serial: 7, count }, BUDGET);
    assert_eq!([0, 3, 4, 5, 6, 7, 8, 9, 100].map(hours), [1, 1, 2, 4, 8, 16, 24, 24, 24]);
    assert_eq!(hours(u32::MAX), 24);
}

#[test]
fn recoveries_count_one_release_and_survive_as_text() {
    let three = Recoveries { serial: 7, count: 3 };
    let (one, of_another) = (Recoveries { serial: 7, count: 1 }, Recoveries { serial: 6, count: 9 });
    assert_eq!((one.or_recorded(three), three.or_recorded(one)), (three, three));
    assert_eq!(Recoveries::default().or_recorded(of_another), of_another, "a lost environment names no release");
    assert_eq!(one.or_recorded(of_another), one, "the count of another release brakes nothing");
    assert_eq!(Recoveries::parse(Some(&three.to_string())), three);
    for damaged in [None, Some(""), Some("7"), Some("x:1"), Some("7:-1"), Some("7:1:2")] {
        assert_eq!(Recoveries::parse(damaged), Recoveries::default());
    }
    assert_eq!(three.towards(7, false).one_more().count, 4);
    assert_eq!(three.towards(8, false), Recoveries { serial: 8, count: 0 });
    assert_eq!(three.towards(7, true).count, 0);
}
