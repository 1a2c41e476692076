//! Report: runs become figures, namely medians, ratios, a table and JSON. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};

use super::lab::Cost;
use super::limits::Limits;
use super::median::median;
use super::peers::YARDSTICK;
use super::staged::StagedRun;
use super::two_systems::TwoSystemsRun;
use super::undo::UndoRun;

/// Largest download that counts as an update, in MB of 10^6 bytes.
const UPDATE_LIMIT_MB: f64 = 70.0;

/// Name of reflash in the rows.
pub const OURS: &str = "reflash";
/// Name of the agent from before.
pub const BEFORE: &str = "reflash-before";

/// One run of one tool.
#[derive(Debug, Clone, Serialize)]
pub struct BenchRun {
    pub case: String,
    pub tool: String,
    /// Cost of the run; `None` if the tool failed.
    #[serde(flatten)]
    pub cost: Option<Cost>,
    pub right: bool,
}

/// Results of all measurements.
#[derive(Debug, Serialize)]
pub struct Results {
    pub machine: String,
    /// Tools with their versions.
    pub tools: BTreeMap<String, String>,
    /// Peers that are not installed, and how to get them.
    pub missing: BTreeMap<String, String>,
    pub images: BTreeMap<String, u64>,
    pub limits: Limits,
    pub runs: Vec<BenchRun>,
    /// Updates that were taken back.
    pub undo: Vec<UndoRun>,
    pub staged: Vec<StagedRun>,
    pub two_systems: Vec<TwoSystemsRun>,
}

impl Results {
    /// Returns the median cost of the runs that left the right image.
    pub fn median(&self, case: &str, tool: &str, of: impl Fn(&Cost) -> f64) -> Option<f64> {
        let runs = self.runs.iter().filter(|run| run.case == case && run.tool == tool && run.right);
        median(runs.filter_map(|run| run.cost.as_ref().map(&of)).collect())
    }

    /// Lists cases and tools in the order of their first runs.
    pub fn rows(&self) -> Vec<(String, String)> {
        let mut rows: Vec<(String, String)> = Vec::new();
        for run in &self.runs {
            let row = (run.case.clone(), run.tool.clone());
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        rows.sort_by_key(|(case, _)| self.runs.iter().position(|run| run.case == *case));
        rows
    }

    /// Finds the quickest other tool in a case that downloads less than `limit_mb`, and its wall time.
    pub fn best_peer(&self, case: &str, limit_mb: f64) -> Option<(String, f64)> {
        let others = self.rows().into_iter().filter(|(other, tool)| other == case && tool != OURS && tool != BEFORE);
        let eligible = others.filter_map(|(_, tool)| {
            let download_mb = self.median(case, &tool, |cost| cost.download_mb)?;
            let wall_s = self.median(case, &tool, |cost| cost.wall_s)?;
            (download_mb < limit_mb).then_some((tool, wall_s))
        });
        eligible.min_by(|(_, one), (_, other)| one.total_cmp(other))
    }

    /// Returns a median figure of the undo of the small update.
    fn of_undo(&self, of: fn(&UndoRun) -> f64) -> Option<f64> {
        median(self.undo.iter().filter(|run| run.case == "undo_stable" && run.right).map(of).collect())
    }

    fn summary(&self) -> BTreeMap<&'static str, Option<f64>> {
        let ours = |case: &str, of: fn(&Cost) -> f64| self.median(case, OURS, of);
        let (wall, download) = (|cost: &Cost| cost.wall_s, |cost: &Cost| cost.download_mb);
        let ratio = |ours: Option<f64>, other: Option<f64>| Some(ours? / other?);
        let yardstick = self.median("fresh", YARDSTICK, wall);
        let best = self.best_peer("update_stable", UPDATE_LIMIT_MB).map(|(_, wall_s)| wall_s);
        // The peak is that of the case that needs most, by its median.
        let cases = self.rows().into_iter().filter(|(_, tool)| tool == OURS);
        let rss = cases.filter_map(|(case, _)| ours(&case, |cost| cost.peak_rss_mib));
        let cpu_ratio = ratio(ours("fresh", |cost| cost.cpu_s), Some(self.limits.decompress_and_hash_cpu_s));
        BTreeMap::from([
            ("fresh_wall_ratio_to_curl_zstd_dd", ratio(ours("fresh", wall), yardstick)),
            ("fresh_readback_wall_ratio_to_curl_zstd_dd", ratio(ours("fresh_readback", wall), yardstick)),
            ("fresh_download_mb", ours("fresh", download)),
            ("one_byte_changed_download_mb", ours("one_byte_changed", download)),
            ("update_stable_download_mb", ours("update_stable", download)),
            ("update_stable_requests", ours("update_stable", |cost| cost.requests as f64)),
            ("update_rebuilt_download_mb", ours("update_rebuilt", download)),
            ("update_large_download_mb", ours("update_large", download)),
            ("update_wall_ratio_to_best_peer", ratio(ours("update_stable", wall), best)),
            ("unchanged_download_mb", ours("unchanged", download)),
            (
                "unchanged_wall_ratio_to_read_and_hash",
                ratio(ours("unchanged", wall), Some(self.limits.read_and_hash_wall_s)),
            ),
            ("cpu_ratio_to_decompress_and_hash", cpu_ratio),
            ("fresh_cpu_ratio_to_decompress_and_hash", cpu_ratio),
            (
                "fresh_cpu_ratio_to_decompress_and_hash_on_one_core",
                ratio(ours("fresh", |cost| cost.cpu_s), Some(self.limits.decompress_and_hash_one_core_cpu_s)),
            ),
            ("undo_stable_s", self.of_undo(|run| run.undo_s)),
            ("undo_stable_download_mb", self.of_undo(|run| run.download_bytes as f64 / 1e6)),
            ("undo_stable_kept_share", self.of_undo(|run| run.kept_share)),
            ("peak_rss_mib", rss.max_by(f64::total_cmp)),
        ])
    }

    /// Makes the content of `bench.json`: the summary first, then every single run.
    pub fn json(&self) -> Value {
        let mut all = json!(self);
        for (name, value) in self.summary() {
            all[name] = json!(value.map(|value| (value * 1000.0).round() / 1000.0));
        }
        all
    }

    /// Makes a table of the medians in Markdown.
    pub fn table(&self) -> String {
        let mut out = String::from(
            "| case | tool | wall s | CPU s | peak MiB | MB | requests | wall / least | wall / best other |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        // A vertical bar would end the cell of a table.
        let cell = |tool: &str| tool.replace('|', "\\|");
        for (case, tool) in self.rows() {
            let of = |of: fn(&Cost) -> f64| self.median(&case, &tool, of);
            let Some(wall_s) = of(|cost| cost.wall_s) else {
                let _ = writeln!(out, "| {case} | {} | failed | | | | | | |", cell(&tool));
                continue;
            };
            let limit = if case.starts_with("update") { UPDATE_LIMIT_MB } else { f64::INFINITY };
            let best = self.best_peer(&case, limit).filter(|_| tool == OURS);
            let ratio =
                best.map(|(peer, best_s)| format!("{:.2} ({})", wall_s / best_s, cell(&peer))).unwrap_or_default();
            let value = |of: fn(&Cost) -> f64| self.median(&case, &tool, of).unwrap_or_default();
            let _ = writeln!(
                out,
                "| {case} | {} | {wall_s:.2} | {:.2} | {:.0} | {:.1} | {:.0} | {:.2} | {ratio} |",
                cell(&tool),
                value(|cost| cost.cpu_s),
                value(|cost| cost.peak_rss_mib),
                value(|cost| cost.download_mb),
                value(|cost| cost.requests as f64),
                wall_s / self.limits.least_s(&case),
            );
        }
        let Limits {
            decompress_wall_s,
            hash_wall_s,
            decompress_and_hash_cpu_s,
            decompress_and_hash_one_core_cpu_s,
            direct_write_wall_s,
            direct_read_wall_s,
            read_and_hash_wall_s,
            loopback_get_wall_s,
        } = self.limits;
        let _ = writeln!(
            out,
            "\nThis machine's limits, in seconds: decompress on all cores {decompress_wall_s:.2}; hash on all cores \
             {hash_wall_s:.2}; decompress and hash, CPU on all cores {decompress_and_hash_cpu_s:.2}, on one core \
             {decompress_and_hash_one_core_cpu_s:.2}; write past the cache {direct_write_wall_s:.2}; read past the cache {direct_read_wall_s:.2}; read and hash on all cores \
             {read_and_hash_wall_s:.2}; fetch over loopback {loopback_get_wall_s:.2}.\n"
        );
        for (name, value) in self.summary() {
            let _ = writeln!(out, "{name}: {}", value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}")));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::{BenchRun, Cost, Limits, Results, median};

    fn run(case: &str, tool: &str, wall_s: f64, download_mb: f64, right: bool) -> BenchRun {
        let cost = Cost { wall_s, cpu_s: 1.0, peak_rss_mib: 10.0, download_mb, requests: 3 };
        BenchRun { case: case.into(), tool: tool.into(), cost: Some(cost), right }
    }

    fn results(runs: Vec<BenchRun>) -> Results {
        let limits = Limits {
            decompress_wall_s: 1.0,
            hash_wall_s: 1.0,
            decompress_and_hash_cpu_s: 2.0,
            decompress_and_hash_one_core_cpu_s: 1.0,
            direct_write_wall_s: 1.0,
            direct_read_wall_s: 1.0,
            read_and_hash_wall_s: 1.0,
            loopback_get_wall_s: 1.0,
        };
        Results {
            machine: String::new(),
            tools: Default::default(),
            missing: Default::default(),
            images: Default::default(),
            limits,
            runs,
            undo: Vec::new(),
            staged: Vec::new(),
            two_systems: Vec::new(),
        }
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn wrong_results_and_downloads_of_everything_are_no_yardstick() {
        let results = results(vec![
            run("update_stable", "reflash", 2.0, 20.0, true),
            run("update_stable", "quick but wrong", 1.0, 20.0, false),
            run("update_stable", "whole", 1.5, 450.0, true),
            run("update_stable", "bita", 10.0, 60.0, true),
            run("update_stable", "casync", 8.0, 66.0, true),
            run("fresh", "curl|zstd|dd", 3.0, 450.0, true),
            run("unchanged", "a|b", 3.0, 0.0, false),
        ]);
        let json = results.json();
        assert_eq!(json["update_wall_ratio_to_best_peer"], 0.25);
        assert_eq!(json["update_stable_download_mb"], 20.0);
        assert!(json["fresh_wall_ratio_to_curl_zstd_dd"].is_null(), "what was not run has no figure");
        assert_eq!(json["runs"].as_array().unwrap().len(), 7);
        assert!(
            results.table().contains("| update_stable | reflash | 2.00 |") && results.table().contains("0.25 (casync)")
        );
        assert!(results.table().contains("quick but wrong | failed"));
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        assert!(results.table().lines().filter(|line| line.starts_with('|')).all(|line| columns(line) == 10));
    }
}
