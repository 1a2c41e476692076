//! The benchmark itself, on its small pair: real nginx, real loop devices, the real agent.

use xtask::bench::{self, BenchArgs};
use xtask::paths::Paths;

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn every_case_ends_with_the_image_and_the_figures_are_written() {
    let paths = Paths::of_checkout();
    let charts = tempfile::tempdir().unwrap();
    // Not over the figures of a real run.
    let json = charts.path().join("bench.json");
    let options = |sector_bytes, cases: &[&str]| BenchArgs {
        old: None,
        new: None,
        stable: None,
        large: None,
        runs: 1,
        cases: cases.iter().map(|case| (*case).to_owned()).collect(),
        quick: true,
        sector_bytes,
        json: Some(json.clone()),
        charts: Some(charts.path().to_owned()),
        before: None,
        links: Vec::new(),
    };
    bench::run(&paths, &options(4096, &["update_rebuilt", "fresh_readback"]), false).unwrap();
    // The same agent twice: it was built by the first run.
    let before = Some(paths.dist().join("reflash"));
    bench::run(&paths, &BenchArgs { before, links: vec![80], ..options(512, &[]) }, false).unwrap();
    let json = std::fs::read_to_string(&json).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let runs = json["runs"].as_array().unwrap();
    assert!(runs.len() >= 10 && runs.iter().all(|run| run["right"] == true), "{runs:#?}");
    for (case, tool) in [
        ("fresh_80_mbit_s", "reflash"),
        ("fresh_80_mbit_s", "curl|zstd|dd"),
        ("update_stable_80_mbit_s", "reflash-before"),
        ("unchanged", "reflash-before"),
    ] {
        assert!(runs.iter().any(|run| run["case"] == case && run["tool"] == tool), "{case} {tool}");
    }
    let figure = |name: &str| json[name].as_f64().unwrap_or_else(|| panic!("{name} is missing"));
    // What does not depend on the speed of the machine.
    assert!(figure("update_stable_download_mb") < 0.5 && figure("update_rebuilt_download_mb") < 0.5);
    assert!(figure("unchanged_download_mb") < 0.2 && figure("peak_rss_mib") < 128.0);
    assert!(
        figure("fresh_wall_ratio_to_curl_zstd_dd") > 0.0 && figure("fresh_readback_wall_ratio_to_curl_zstd_dd") > 0.0
    );
    assert!(charts.path().join("fresh.svg").exists());
    assert!(bench::run(&paths, &options(512, &["no such case"]), false).is_err());
}
