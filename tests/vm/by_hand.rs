//! The shipped binary as a command line, on the release of the demonstration: no virtual machine takes part.

use std::path::PathBuf;
use std::process::{Command, Output};

use xtask::demo;

use super::built::{demonstration_release, robot_parts};
use crate::support::resident::peak_resident_kib;

/// Memory that the agent may take at most, whatever the image.
const MAX_RESIDENT_KIB: u64 = 128 * 1024;

/// By how much the target is larger than the image, as partitions are.
const PARTITION_EXCESS_BYTES: u64 = 20 << 20;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// A bench with a target for an image of this size.
    fn new(image_bytes: u64) -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(bench.state()).unwrap();
        let target = std::fs::File::create(bench.target()).unwrap();
        target.set_len(image_bytes + PARTITION_EXCESS_BYTES).unwrap();
        bench
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    /// The command, with options in place of what it would find on a robot.
    fn command(&self, verb: &str) -> Command {
        let parts = robot_parts();
        let mut command = Command::new(&parts.agent);
        command
            .arg(verb)
            .arg("--state")
            .arg(self.state())
            .arg("--keys")
            .arg(parts.keys.public.parent().unwrap())
            .arg("--json");
        if matches!(verb, "flash" | "verify") {
            command.arg("--target").arg(self.target());
        }
        if verb == "flash" {
            command.args(["--product", demo::PRODUCT, "--hardware", demo::HARDWARE]);
        }
        command
    }

    fn run(&self, verb: &str, more: &[&str]) -> Output {
        self.command(verb).args(more).output().unwrap()
    }
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    })
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_file_is_flashed_verified_damaged_and_repaired_within_bounded_memory() {
    let built = demonstration_release();
    let bench = Bench::new(built.description.image_bytes);
    let (server, url) = demo::serve_to_guests(&built.release).unwrap();
    let url = url.replace("10.0.2.2", &server.address.ip().to_string());
    let estimate = json(&bench.run("flash", &["--url", &url, "--dry-run"]));
    let download = estimate["totals"]["download_bytes"].as_u64().unwrap();
    assert!(download > 0);

    let peak = peak_resident_kib(bench.command("flash").args(["--url", &url]));
    eprintln!("peak resident memory of a first flash: {:.1} MiB", peak as f64 / 1024.0);
    assert!(peak > 0 && peak <= MAX_RESIDENT_KIB, "{peak} KiB");
    let bodies = server.counters.body_bytes.load(std::sync::atomic::Ordering::Relaxed);
    assert!(bodies >= download && bodies < download + (8 << 20), "{bodies} bytes for {download}");

    let verified = bench.run("verify", &["--sha256"]);
    assert_eq!(verified.status.code(), Some(0));
    assert_eq!(json(&verified)["sha256"], json(&verified)["manifest_sha256"]);
    assert_eq!(json(&bench.run("status", &[]))["installed"]["version"], estimate["version"]);

    let file = std::fs::File::options().read(true).write(true).open(bench.target()).unwrap();
    let mut block = [0; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut block, 40 << 20).unwrap();
    block[7] ^= 1;
    std::os::unix::fs::FileExt::write_all_at(&file, &block, 40 << 20).unwrap();
    file.sync_all().unwrap();
    let damaged = bench.run("verify", &[]);
    assert_eq!(damaged.status.code(), Some(1));
    let range = &json(&damaged)["damaged_byte_ranges"][0];
    assert!(range[0].as_u64().unwrap() <= 40 << 20 && range[1].as_u64().unwrap() > 40 << 20);

    let repaired = bench.run("flash", &["--url", &url]);
    assert!(json(&repaired)["totals"]["write_bytes"].as_u64().unwrap() <= 256 << 10);
    assert_eq!(bench.run("verify", &[]).status.code(), Some(0));
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn commands_change_the_environment_and_exit_codes_say_what_happened() {
    let bench = Bench::new(0);
    assert_eq!(bench.run("status", &[]).status.code(), Some(1));
    assert!(bench.run("request", &[]).status.success());
    assert_eq!(json(&bench.run("env", &[]))["next_entry"], "recovery");
    assert_eq!(json(&bench.run("good", &[]))["tries"], "3");
    let env = json(&bench.run("env", &["unset", "next_entry"]));
    assert_eq!(
        (env["reflash_tries"].as_str(), env["reflash_boot_ok"].as_str(), env.get("next_entry")),
        (Some("3"), Some("1"), None)
    );
    // An unknown option, and a source that has no release, are different failures.
    assert_eq!(bench.run("flash", &["--bogus"]).status.code(), Some(2));
    let nothing = format!("file://{}", bench.dir.path().display());
    let failed = bench.run("flash", &["--url", &nothing]);
    assert_eq!(failed.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("manifest.json"));
}
