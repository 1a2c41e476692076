//! How the builder shows what it does: every long step has a name, shows that it is alive and ends with its duration;
//! the output of a tool goes to a log and is shown, with the step's name, only when the tool fails.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
pub use reflash_release::step::step;

use crate::paths::{Paths, create_dir};
use crate::surroundings;

/// Number of lines that are shown of a failing tool's output.
const SHOWN_LINES: usize = 40;

/// Directory of the logs, once a command has said where its work goes. It belongs to the process: tools are run from
/// everywhere, and a parameter on the way to each would say the same thing a hundred times.
static LOGS: OnceLock<PathBuf> = OnceLock::new();

/// Puts the logs of tools below the work directory of the command that is carried out.
pub fn log_below(paths: &Paths) {
    LOGS.get_or_init(|| logs_of(paths));
}

fn logs_of(paths: &Paths) -> PathBuf {
    paths.work().join("logs")
}

/// Reports that a step had nothing to do.
pub fn unchanged(name: &str) {
    eprintln!("  {name}: unchanged");
}

/// Reports where a result is.
pub fn produced(what: &str, path: &std::path::Path) {
    eprintln!("  {what}: {}", path.display());
}

/// Says how large the system partition of a layout should be for an image.
pub fn room_for_undo(partition_bytes: u64) -> String {
    let size = mib(partition_bytes);
    format!("a system partition of {size} has room for this image and for going back to it from any update")
}

/// Runs a tool to its end with its output in `logs/NAME.log` of the work directory.
///
/// # Errors
/// Fails when the tool cannot be started or fails, with the command line and the end of the output.
pub fn run(name: &str, command: &mut Command) -> Result<()> {
    let (log, path) = log_file(name)?;
    surroundings::pin(command);
    let status = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| format!("start {}", line_of(command)))?;
    if status.success() {
        return Ok(());
    }
    let output = std::fs::read(&path).unwrap_or_default();
    let output = String::from_utf8_lossy(&output);
    let lines: Vec<&str> = output.lines().collect();
    let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n    ");
    bail!("{} ended with {status}; whole output in {}; its end:\n    {shown}", line_of(command), path.display())
}

/// Runs a tool and returns what it printed on standard output.
///
/// # Errors
/// When the tool cannot be started or fails: its command line and its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    surroundings::pin(command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("start {}", line_of(command)))?;
    if !out.status.success() {
        bail!("{} ended with {}:\n{}", line_of(command), out.status, String::from_utf8_lossy(&out.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Formats a size in MiB with one decimal, for people.
#[must_use]
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

/// Formats a duration in seconds with one decimal, for people.
#[must_use]
pub fn human(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f32())
}

fn log_file(name: &str) -> Result<(File, PathBuf)> {
    // Tests call parts of the builder without a command line; they run in a checkout.
    let directory = LOGS.get_or_init(|| logs_of(&Paths::of_checkout()));
    create_dir(directory)?;
    let safe: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let path = directory.join(format!("{safe}.log"));
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    Ok((file, path))
}

fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
