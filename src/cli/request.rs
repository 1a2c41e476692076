//! `reflash request`: the next boot starts recovery, or offers a factory reset.

use serde_json::json;

use super::answer::{Exit, Failure, print};
use super::commands::RequestedAction;
use super::mounted::MountedState;
use super::options::Options;
use crate::boot::grubenv::names;

pub(super) fn run(options: &Options, action: RequestedAction) -> Result<Exit, Failure> {
    let (entry, sentence) = match action {
        // A newer release is asked for elsewhere; here it is a recovery like any other.
        RequestedAction::Reflash | RequestedAction::Newer => ("recovery", "the next boot goes to recovery"),
        RequestedAction::FactoryReset => {
            ("factory-reset", "the next boot asks at the console whether to delete all data")
        }
    };
    let mounted = MountedState::open(options)?;
    mounted.state.boot_env().update(&[(names::NEXT_ENTRY, Some(entry))])?;
    print(options, &json!({ "next_entry": entry }), || sentence.to_owned())?;
    Ok(Exit::Done)
}
