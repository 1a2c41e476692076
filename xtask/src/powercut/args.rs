//! Options of the power-cut explorer.

/// Approximate number of states of the first flash by default.
pub const USUAL_STATES: usize = 20_000;

/// Options of `power-cut`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct PowerCutArgs {
    /// Seed of everything random; the same seed gives the same states for the same recording.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// About how many states of the first flash are judged; a state is found again with the same number.
    #[arg(long, default_value_t = USUAL_STATES)]
    pub states: usize,
    /// States of each recording that are really booted.
    #[arg(long, default_value_t = 1)]
    pub boots: usize,
    /// Judges only the recording of this number, from 0; 4 is the switch of boot code, 5 the
    /// update of a robot with two systems.
    #[arg(long, value_name = "N")]
    pub only: Option<usize>,
    /// Only this state, which is written out as a disk image: RECORDING:NUMBER, as a failure names it.
    #[arg(long, value_name = "N:N", value_parser = state_number)]
    pub state: Option<(usize, u64)>,
}

fn state_number(text: &str) -> Result<(usize, u64), String> {
    let numbers = text.split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers.ok_or_else(|| "expected RECORDING:NUMBER, such as 1:4711".to_owned())
}
