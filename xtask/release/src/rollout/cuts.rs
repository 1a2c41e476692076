//! Every moment of every change, and every cut in it, as robots would find it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anyhow::{Result, bail};
use minisign::SecretKey;
use reflash::release::manifest::{FORMAT, Manifest, TrustedKeys};
use reflash::release::rollout::{MAX_COUNTER, MAX_RELEASES, RobotGroup};

use super::{
    Changed, ChannelPlace, RolloutState, RolloutTerms, Unsigned, copy, load, load_to_change, renew, replace, sign_halts,
};
use crate::keygen;

/// A place in memory that robots look at after each write, and whose power is cut after so many of them.
#[derive(Default)]
struct Watched {
    files: RefCell<BTreeMap<String, Vec<u8>>>,
    writes_left: RefCell<Option<usize>>,
}

impl ChannelPlace for Watched {
    fn name(&self) -> String {
        "the place".to_owned()
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.files.borrow().get(path).cloned())
    }

    fn write(&self, path: &str, content: &[u8]) -> Result<()> {
        match &mut *self.writes_left.borrow_mut() {
            Some(0) => bail!("the power is cut"),
            Some(left) => *left -= 1,
            None => (),
        }
        self.files.borrow_mut().insert(path.to_owned(), content.to_vec());
        Ok(())
    }
}

struct Lab {
    place: Watched,
    keys: TrustedKeys,
    release: SecretKey,
    halt: [(SecretKey, String); 2],
}

fn pair(name: &str) -> (SecretKey, String) {
    let dir = tempfile::tempdir().unwrap();
    let files = keygen::generate(&dir.path().join(name), None).unwrap();
    let line = keygen::load_public(&files.public).unwrap().lines().nth(1).unwrap().to_owned();
    (keygen::load_secret(&files.secret).unwrap(), line)
}

fn manifest(serial: u64) -> Manifest {
    Manifest {
        format: FORMAT,
        product: "demo".into(),
        hardware: vec!["*".into()],
        channel: "stable".into(),
        version: serial.to_string(),
        serial,
        created_unix_s: 1,
        minimum_agent: "0.1.0".into(),
        images: Vec::new(),
        layout: None,
        files: Vec::new(),
    }
}

fn share(percent: u32) -> RolloutTerms {
    let groups = vec![RobotGroup { share_ppm: percent * 10_000, ..RobotGroup::default() }];
    RolloutTerms { groups, ..RolloutTerms::default() }
}

fn start(state: &mut RolloutState, serial: u64, percent: u32) {
    state.start(&manifest(serial), serial.to_string().as_bytes(), share(percent)).unwrap();
}

type Change<'a> = &'a dyn Fn(&mut RolloutState);

impl Lab {
    /// A channel with release 1 for every robot and release 2 for 5 %, and the first halt key.
    fn new() -> Self {
        let (release, line) = pair("release");
        let mut keys = TrustedKeys::default();
        keys.add("release", &line).unwrap();
        let lab = Self { place: Watched::default(), keys, release, halt: [pair("ha"), pair("hb")] };
        let mut state = RolloutState::first(&manifest(1), b"1", 0);
        start(&mut state, 2, 5);
        state.rollout.halt_key = Some(lab.halt[0].1.clone());
        replace(&lab.place, None, &mut state, &lab.release, &lab.keys).unwrap();
        lab
    }

    fn change(&self, key: &SecretKey, change: Change<'_>) -> Result<()> {
        let before = load_to_change(&self.place, "stable", &self.keys, Unsigned::Refused)?;
        let mut after = before.clone().unwrap();
        change(&mut after);
        replace(&self.place, before.as_ref(), &mut after, key, &self.keys)
    }

    fn state(&self) -> Result<RolloutState> {
        load(&self.place, "stable", &self.keys).map(Option::unwrap)
    }

    /// Makes a change with a release key, cut after each of its writes. Robots find files that fit at every moment, no
    /// release that is `stopped` goes on, and the change is made by being made again.
    fn change_in_pieces(&self, stopped: &[u64], change: Change<'_>) {
        let files = self.place.files.borrow().clone();
        for writes in 0.. {
            *self.place.files.borrow_mut() = files.clone();
            *self.place.writes_left.borrow_mut() = Some(writes);
            let is_whole = self.change(&self.release, change).is_ok();
            *self.place.writes_left.borrow_mut() = None;
            let state = self.state().unwrap_or_else(|error| panic!("after {writes} writes: {error:#}"));
            for serial in stopped {
                let release = state.rollout.release(*serial);
                let goes_on = release.is_some_and(|it| !it.paused && state.halts.of(it).is_none());
                assert!(!goes_on, "{serial} goes on after {writes} writes");
            }
            if is_whole {
                return;
            }
            self.change(&self.release, &|_| ()).unwrap();
            self.state().unwrap();
        }
    }
}

#[test]
fn a_cut_at_any_write_leaves_files_that_fit() {
    let lab = Lab::new();
    lab.change_in_pieces(&[], &|state| state.widen(2, share(25)).unwrap());
    lab.change_in_pieces(&[], &|state| state.halt(2, "wheels").unwrap());
    // The halted release is left out of the roll-out, and its halt with it.
    lab.change_in_pieces(&[2], &|state| start(state, 3, 100));
    assert_eq!(lab.state().unwrap().rollout.releases.len(), 3);
    lab.change_in_pieces(&[2], &|state| start(state, 4, 5));
    let state = lab.state().unwrap();
    let serials: Vec<u64> = state.rollout.releases.iter().map(|release| release.serial).collect();
    assert_eq!((serials, state.halts.halted.len()), (vec![3, 4], 0));
    // Three cuts in a row leave the signature of what is there.
    for _ in 0..6 {
        *lab.place.writes_left.borrow_mut() = Some(1);
        lab.change(&lab.release, &|state| state.pause(4).unwrap()).unwrap_err();
        lab.state().unwrap();
    }
}

#[test]
fn another_halt_key_or_none_leaves_halts_that_robots_take() {
    let lab = Lab::new();
    let [(ha, _), (hb, line)] = &lab.halt;
    lab.change(ha, &|state| state.halt(2, "by the watcher").unwrap()).unwrap();
    lab.change_in_pieces(&[2], &|state| state.rollout.halt_key = Some(line.clone()));
    let error = format!("{:#}", lab.change(ha, &|state| state.halt(1, "stolen").unwrap()).unwrap_err());
    assert!(error.contains("nor the halt key"), "{error}");
    lab.change(hb, &|state| state.halt(1, "by the new one").unwrap()).unwrap();
    lab.change_in_pieces(&[1, 2], &|state| state.rollout.halt_key = None);
    assert!(lab.change(hb, &|state| state.halt(1, "again").unwrap()).is_err());
    // A release key that is retired has signed nothing that stays.
    let (next, line) = pair("next");
    let mut both = lab.keys.clone();
    both.add("next", &line).unwrap();
    let lab = Lab { keys: both, ..lab };
    lab.change(&next, &|state| state.widen(2, share(30)).unwrap()).unwrap();
    let mut keys = TrustedKeys::default();
    keys.add("next", &line).unwrap();
    let lab = Lab { keys, ..lab };
    assert_eq!(lab.state().unwrap().halts.halted.len(), 2);
}

/// Whoever stole a halt key may sign anything that a halt file can have.
#[test]
fn a_stolen_halt_key_is_of_no_more_use_once_another_is_named() {
    let lab = Lab::new();
    let (ha, _) = &lab.halt[0];
    lab.change(&lab.release, &|state| state.halt(2, "wheels").unwrap()).unwrap();
    let mut stolen = lab.state().unwrap();
    stolen.halts.counter = MAX_COUNTER - 1;
    let mut unknown = stolen.halts.halted[0].clone();
    (unknown.serial, unknown.manifest.0) = (9, [9; 32]);
    stolen.halts.halted.push(unknown);
    // The builder does not put it in the place of number 2.
    assert!(sign_halts(&lab.place, &mut stolen.clone(), ha, &lab.keys).unwrap_err().is::<Changed>());
    lab.place.files.borrow_mut().remove("stable/halt.json");
    sign_halts(&lab.place, &mut stolen, ha, &lab.keys).unwrap();
    assert!(format!("{:#}", lab.state().unwrap_err()).contains("serial 9 is halted"));
    let error = format!("{:#}", lab.change(&lab.release, &|state| state.halt(1, "x").unwrap()).unwrap_err());
    assert!(error.contains("numbers of stable/halt.json are used up"), "{error}");
    lab.change(&lab.release, &|state| state.rollout.halt_key = None).unwrap();
    let state = lab.state().unwrap();
    assert_eq!((state.halts.counter, state.halts.halted.len(), state.halts.halted[0].serial), (1, 1, 2));
    // What was lifted by numbers of before is not lifted by those.
    lab.change(&lab.release, &|state| state.resume(2).unwrap()).unwrap();
    lab.change(&lab.release, &|state| state.halt(2, "again").unwrap()).unwrap();
    let state = lab.state().unwrap();
    assert!(state.halts.of(state.rollout.release(2).unwrap()).is_some());
}

#[test]
fn what_no_key_vouches_for_is_signed_only_after_a_look_at_it() {
    let lab = Lab::new();
    lab.change(&lab.release, &|state| state.halt(2, "wheels").unwrap()).unwrap();
    let files = lab.place.files.borrow().clone();
    // As an older builder, or another program that copies files, leaves it after a cut.
    for path in ["stable/rollout.json", "stable/halt.json"] {
        *lab.place.files.borrow_mut() = files.clone();
        let other = files.get("stable/rollout.json.minisig").unwrap().clone();
        let other = if path.contains("halt") { other } else { files.get("stable/halt.json.minisig").unwrap().clone() };
        lab.place.files.borrow_mut().insert(format!("{path}.minisig"), other);
        let error = format!("{:#}", lab.change(&lab.release, &|_| ()).unwrap_err());
        assert!(error.contains("--take-unsigned"), "{error}");
        let before = load_to_change(&lab.place, "stable", &lab.keys, Unsigned::Taken).unwrap();
        let mut after = before.clone().unwrap();
        replace(&lab.place, before.as_ref(), &mut after, &lab.release, &lab.keys).unwrap();
        let mut state = load_to_change(&lab.place, "stable", &lab.keys, Unsigned::Taken).unwrap().unwrap();
        renew(&lab.place, &mut state, &lab.release, &lab.keys).unwrap();
        assert_eq!(lab.state().unwrap().halts.halted[0].serial, 2);
    }
    // A number that nobody vouches for does not use up all others.
    let text = String::from_utf8(files["stable/halt.json"].clone()).unwrap();
    let high = text.replacen("\"counter\": 2", "\"counter\": 9007199254740990", 1);
    lab.place.files.borrow_mut().insert("stable/halt.json".into(), high.into());
    let error = load_to_change(&lab.place, "stable", &lab.keys, Unsigned::Taken).unwrap_err();
    assert!(error.to_string().contains("not believed"), "{error:#}");
    // Halts that are gone: none is made up, and what comes next is above those that were lifted.
    lab.place.files.borrow_mut().remove("stable/halt.json");
    assert!(lab.state().is_err());
    let state = load_to_change(&lab.place, "stable", &lab.keys, Unsigned::Taken).unwrap().unwrap();
    assert!(state.halts.halted.is_empty());
}

#[test]
fn of_two_changes_at_once_the_second_is_made_on_the_first() {
    let lab = Lab::new();
    let before = lab.state().unwrap();
    let halted = |serial: u64, before: &RolloutState| {
        let mut after = before.clone();
        after.halt(serial, "wheels").unwrap();
        replace(&lab.place, Some(before), &mut after, &lab.halt[0].0, &lab.keys)
    };
    halted(1, &before).unwrap();
    assert!(halted(2, &before).unwrap_err().is::<Changed>());
    halted(2, &lab.state().unwrap()).unwrap();
    assert_eq!(lab.state().unwrap().halts.halted.len(), 2);
}

#[test]
fn a_first_roll_out_that_was_cut_is_begun_again() {
    let lab = Lab::new();
    for writes in 0..4 {
        lab.place.files.borrow_mut().clear();
        let first = || {
            let mut state = RolloutState::first(&manifest(1), b"1", 0);
            start(&mut state, 2, 5);
            replace(&lab.place, None, &mut state, &lab.release, &lab.keys)
        };
        *lab.place.writes_left.borrow_mut() = Some(writes);
        first().unwrap_err();
        *lab.place.writes_left.borrow_mut() = None;
        first().unwrap();
        lab.state().unwrap();
    }
}

/// A mirror of files, as `rollout publish` makes it, from any state to any later one.
#[test]
fn a_copy_never_lets_a_halted_release_go_on() {
    let lab = Lab::new();
    let steps: [Change<'_>; 5] = [
        &|state| state.halt(2, "wheels").unwrap(),
        &|state| start(state, 3, 100),
        &|state| state.rollout.halt_key = None,
        &|state| start(state, 4, 100),
        &|state| state.widen(4, share(100)).unwrap(),
    ];
    let mut copies = vec![Watched::default()];
    for step in steps {
        lab.change(&lab.release, step).unwrap();
        let there: Vec<_> = copies.iter().map(|copy| copy.files.borrow().clone()).collect();
        for files in there {
            for writes in 0..=4 {
                let to = Watched::default();
                *to.files.borrow_mut() = files.clone();
                *to.writes_left.borrow_mut() = Some(writes);
                let is_whole = copy(&lab.place, &to, "stable", &lab.keys).is_ok();
                // What does not fit is nothing to go by; what fits has the halt, or not the release.
                if let Ok(Some(state)) = load(&to, "stable", &lab.keys) {
                    let release = state.rollout.release(2);
                    assert!(release.is_none_or(|it| it.paused || state.halts.of(it).is_some()), "{writes}");
                }
                *to.writes_left.borrow_mut() = None;
                copy(&lab.place, &to, "stable", &lab.keys).unwrap();
                assert_eq!(load(&to, "stable", &lab.keys).unwrap().unwrap().rollout, lab.state().unwrap().rollout);
                if is_whole {
                    copies.push(to);
                    break;
                }
            }
        }
    }
}

/// A time that has come is no condition any more, so that what is older is left out.
#[test]
fn releases_with_times_that_are_past_do_not_fill_the_roll_out() {
    let mut state = RolloutState::first(&manifest(1), b"1", 0);
    for serial in 2..=50 {
        let terms = RolloutTerms { not_before_unix_s: Some(1_700_000_000), ..share(100) };
        state.start(&manifest(serial), serial.to_string().as_bytes(), terms).unwrap();
        assert!(state.rollout.releases.len() <= 3, "{serial}");
    }
    let mut state = RolloutState::first(&manifest(1), b"1", 0);
    let later = || RolloutTerms { not_before_unix_s: Some(1 << 40), ..share(100) };
    let begin =
        |state: &mut RolloutState, serial: u64| state.start(&manifest(serial), serial.to_string().as_bytes(), later());
    (2..=32).for_each(|serial| begin(&mut state, serial).unwrap());
    assert_eq!(state.rollout.releases.len(), MAX_RELEASES);
    let error = format!("{:#}", begin(&mut state, 33).unwrap_err());
    assert!(error.contains("--no-not-before"), "{error}");
    state.widen(32, RolloutTerms { no_not_before: true, ..RolloutTerms::default() }).unwrap();
    begin(&mut state, 33).unwrap();
    assert_eq!(state.rollout.releases.len(), 2);
}
