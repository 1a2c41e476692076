//! `reflash update`: the next release is fetched while the system works, and applied at a moment that suits.
//!
//! One run is one round: look, fetch, and where that is wanted ask for the restart. What is long is done without any
//! partition being mounted for it.

mod round;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::answer::{Exit, Failure, complain, print};
use super::context::safe_start;
use super::options::Options;
use crate::boot::this_boot;
use crate::flash::threads;
use crate::jobs::update::standing::{StandingFile, UpdateStanding, UpdateState};
use crate::jobs::update::store;
use crate::sys::{clock, gentle};
use round::Round;

/// Longest time that the timer may be left without work, seconds: beyond it the clock was moved.
const LONGEST_REST_S: u64 = 720 * 3600;

/// Places of an update on this machine.
struct Places {
    store: PathBuf,
    /// Directory of the record and the lock.
    record: PathBuf,
}

impl Places {
    fn of(options: &Options) -> Self {
        match &options.store {
            // A store elsewhere is that of a bench, and has its record beside it.
            Some(store) => {
                Self { record: store.parent().unwrap_or(Path::new(".")).to_owned(), store: store.clone() }
            }
            None => Self { record: PathBuf::from(this_boot::DIRECTORY), store: PathBuf::from(store::PATH) },
        }
    }

    fn standing(&self) -> StandingFile {
        StandingFile::within(&self.record)
    }

    /// Whether an earlier run has said that nothing is to be done before a time that is still to come.
    fn rests(&self, now_unix_s: u64) -> bool {
        let next = self.standing().read().and_then(|standing| standing["next_unix_s"].as_u64());
        next.is_some_and(|next| (1..=LONGEST_REST_S).contains(&next.saturating_sub(now_unix_s)))
    }

    /// Takes the lock that lets one update work at a time; `None` while another one does.
    fn lock(&self) -> Result<Option<File>, Failure> {
        fs::create_dir_all(&self.record)?;
        let file = File::options().create(true).append(true).open(self.record.join("update.lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }
}

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    let places = Places::of(options);
    if options.background && places.rests(now_unix_s()) {
        return Ok(Exit::Done);
    }
    if let Some(number) = safe_start() {
        let sentence = format!("this is safe start {number}, which fetches no update");
        return answer(options, &UpdateStanding::new(UpdateState::Off, sentence), Exit::No);
    }
    let Some(_lock) = places.lock()? else {
        let text = "another `reflash update` is at work; `reflash status` shows how far it is".to_owned();
        return in_background(options, Failure { text, exit: Exit::Later });
    };
    // With a state partition that was mounted by hand this is a bench, and there is no robot to disturb.
    if options.state.is_none() {
        gentle::yield_to_all();
        threads::be_few();
    }
    let file = places.standing();
    let mut round = Round::new(options, &places);
    let done = round.go();
    if let Err(failure) = &done
        && round.standing.state != UpdateState::Refused
    {
        round.standing.state = UpdateState::Failed;
        round.standing.sentence.clone_from(&failure.text);
    }
    let standing = round.standing;
    let before = file.read();
    if let Err(error) = file.write(&standing) {
        complain(&format!("`reflash status` will not show this: {error}"));
    }
    if let Some(post) = round.post {
        post(&standing, before.as_ref());
    }
    match done {
        Ok(Some(restart)) => {
            answer(options, &standing, Exit::Done)?;
            restart()
        }
        Ok(None) => {
            let exit = if standing.state == UpdateState::Current { Exit::No } else { Exit::Done };
            answer(options, &standing, exit)
        }
        Err(failure) => in_background(options, failure),
    }
}

fn answer(options: &Options, standing: &UpdateStanding, exit: Exit) -> Result<Exit, Failure> {
    print(options, &standing.to_json(), || standing.sentence.clone())?;
    Ok(if options.background { Exit::Done } else { exit })
}

/// What fails beside the work of a robot is no failure of the robot: a service that has failed would keep its next boot
/// from being called good.
fn in_background(options: &Options, failure: Failure) -> Result<Exit, Failure> {
    if !options.background {
        return Err(failure);
    }
    complain(&failure.text);
    Ok(Exit::Done)
}

fn now_unix_s() -> u64 {
    clock::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
