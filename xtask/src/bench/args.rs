//! Options of the benchmark.

use std::path::PathBuf;

/// Options of `bench`: what is measured.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Image on the device before an update. Without it, images are built from xtask/recipes/bench.toml.
    #[arg(long, value_name = "FILE.img")]
    pub old: Option<PathBuf>,
    /// The image after the update, laid out anew.
    #[arg(long, value_name = "FILE.img", requires = "old")]
    pub new: Option<PathBuf>,
    /// The image after the update, laid out over the old one (image --previous).
    #[arg(long, value_name = "FILE.img", requires = "old")]
    pub stable: Option<PathBuf>,
    /// An image with many changes.
    #[arg(long, value_name = "FILE.img", requires = "old")]
    pub large: Option<PathBuf>,
    /// Rounds; every tool takes its turn in each.
    #[arg(long, default_value_t = 5)]
    pub runs: u32,
    /// Only these cases; repeat for several.
    #[arg(long = "case", value_name = "NAME")]
    pub cases: Vec<String>,
    /// A small synthetic pair, one round, no peer but the yardstick.
    #[arg(long)]
    pub quick: bool,
    /// Logical block size of the device.
    #[arg(long, default_value_t = 512, value_name = "BYTES")]
    pub sector_bytes: u32,
    /// File for the figures and every single run. Default: bench.json, where everything built goes.
    #[arg(long, value_name = "FILE.json")]
    pub json: Option<PathBuf>,
    /// Draw charts into this directory.
    #[arg(long, value_name = "DIR")]
    pub charts: Option<PathBuf>,
}
