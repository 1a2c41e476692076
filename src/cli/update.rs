//! `reflash update`: the next release is fetched while the system works, and applied at a moment that suits.
//!
//! One run is one round: look, fetch, and where that is wanted ask for the restart. What is long is done without any
//! partition being mounted for it.

mod places;
mod round;

use super::answer::{Exit, Failure, complain, print};
use super::context::safe_start;
use super::options::Options;
use crate::flash::threads;
use crate::jobs::update::standing::{UpdateStanding, UpdateState};
use crate::sys::clock::now_unix_s;
use crate::sys::gentle;
use places::UpdatePlaces;
use round::Round;

/// Pause of the timer after a round that failed, seconds.
const FAILED_REST_S: u64 = 1800;

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    match one_round(options) {
        // What fails beside the work of a robot is no failure of the robot: the journal is to show no failed unit.
        Err(failure) if options.background => {
            complain(&failure.text);
            Ok(Exit::Done)
        }
        done => done,
    }
}

fn one_round(options: &Options) -> Result<Exit, Failure> {
    let places = UpdatePlaces::of(options);
    if options.background && places.rests(now_unix_s()) {
        return Ok(Exit::Done);
    }
    if let Some(number) = safe_start() {
        let sentence = format!("this is safe start {number}, which fetches no update");
        return answer(options, &UpdateStanding::new(UpdateState::Off, sentence), Exit::No);
    }
    let Some(_lock) = places.lock()? else {
        let text = "another `reflash update` is at work; `reflash status` shows how far it is".to_owned();
        return Err(Failure { text, exit: Exit::Later });
    };
    // With a state partition that was mounted by hand this is a bench, and there is no robot to disturb.
    if options.state.is_none() {
        gentle::yield_to_all();
    }
    if options.state.is_none() || options.background {
        threads::be_few();
    }
    let file = places.standing();
    let mut round = Round::new(options, &places);
    let done = round.go();
    if let Err(failure) = &done
        && !matches!(round.standing.state, UpdateState::Refused | UpdateState::Waiting)
    {
        round.standing.state = UpdateState::Failed;
        round.standing.sentence.clone_from(&failure.text);
        // To mount the state partition is to write to it: not every ten minutes while there is no network.
        round.standing.next_unix_s.get_or_insert(now_unix_s() + FAILED_REST_S);
    }
    round.say_what_comes_next();
    let mut standing = round.standing;
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
            restart().inspect_err(|failure| {
                standing.sentence =
                    format!("{}; the restart failed, and is tried again: {}", standing.sentence, failure.text);
                drop(file.write(&standing));
            })
        }
        Ok(None) => {
            let exit = if standing.state == UpdateState::Current { Exit::No } else { Exit::Done };
            answer(options, &standing, exit)
        }
        Err(failure) => Err(failure),
    }
}

fn answer(options: &Options, standing: &UpdateStanding, exit: Exit) -> Result<Exit, Failure> {
    print(options, &standing.to_json(), || standing.sentence.clone())?;
    Ok(if options.background { Exit::Done } else { exit })
}
