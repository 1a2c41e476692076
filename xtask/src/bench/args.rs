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
    /// An agent from before, which takes its turn beside this one.
    #[arg(long, value_name = "AGENT")]
    pub before: Option<PathBuf>,
    /// Measure a first flash and updates over a link of so many Mbit/s with 50 ms there and back, too; repeat for
    /// several. Default, with all cases: 10, 50 and 300.
    #[arg(long = "link", value_name = "MBIT_S", value_parser = clap::value_parser!(u32).range(1..))]
    pub links: Vec<u32>,
    /// Draw charts into this directory.
    #[arg(long, value_name = "DIR")]
    pub charts: Option<PathBuf>,
}

/// Slow, usual and fast links of robots, Mbit/s.
const LINKS_MBIT_S: [u32; 3] = [10, 50, 300];

impl BenchArgs {
    /// The links that are measured, Mbit/s.
    pub fn links(&self) -> Vec<u32> {
        let all = self.links.is_empty() && self.cases.is_empty() && !self.quick;
        if all { LINKS_MBIT_S.to_vec() } else { self.links.clone() }
    }
}
