//! What holds for every input, shown on many that are made up and shrunk to the smallest that fails.

use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;

/// Proptest's defaults with a fixed seed, so that a run that passed passes again; `PROPTEST_RNG_SEED` sets another.
pub fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    let rng_seed = match default.rng_seed {
        RngSeed::Random => RngSeed::Fixed(1),
        given @ RngSeed::Fixed(_) => given,
    };
    ProptestConfig { rng_seed, failure_persistence: None, ..default }
}
