//! `reflash env`: the GRUB environment on the state partition is shown or changed.

use serde_json::{Map, Value};

use super::answer::{Exit, Failure, failure, print};
use super::commands::EnvAction;
use super::mounted::MountedState;
use super::options::Options;
use crate::boot::env::LoadedEnv;

pub(super) fn run(options: &Options, action: &EnvAction) -> Result<Exit, Failure> {
    let mounted = MountedState::open(options)?;
    let boot_env = mounted.state.boot_env();
    match action {
        EnvAction::List => {}
        EnvAction::Set(name, value) => boot_env.update(&[(name, Some(value))])?,
        EnvAction::Unset(name) => boot_env.update(&[(name, None)])?,
    }
    let env = match boot_env.load()? {
        LoadedEnv::Good(env) => env,
        LoadedEnv::Lost(why) => {
            return failure(format!("the GRUB environment is lost: {why}; the next recovery makes it anew"));
        }
    };
    let variables: Map<String, Value> = env.iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
    print(options, &Value::Object(variables), || {
        env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("\n")
    })?;
    Ok(Exit::Done)
}
