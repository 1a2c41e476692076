//! `reflash env`: the GRUB environment on the state partition is shown or changed.

use serde_json::{Map, Value};

use super::answer::{Exit, Failure, print};
use super::commands::EnvAction;
use super::mounted::MountedState;
use super::options::Options;

pub(super) fn run(options: &Options, action: &EnvAction) -> Result<Exit, Failure> {
    let mounted = MountedState::open(options)?;
    let boot_env = mounted.state.boot_env();
    match action {
        EnvAction::List => {}
        EnvAction::Set(name, value) => boot_env.update(&[(name, Some(value))])?,
        EnvAction::Unset(name) => boot_env.update(&[(name, None)])?,
    }
    let env = boot_env.load_or_empty()?;
    let variables: Map<String, Value> = env.iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
    print(options, &Value::Object(variables), || {
        env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("\n")
    })?;
    Ok(Exit::Done)
}
