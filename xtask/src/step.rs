//! How the builder shows what it does: every long step has a name, shows that it is alive and ends with its duration;
//! the output of a tool goes to a log and is shown, with the step's name, only when the tool fails.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use reflash_release::step::note_output;
pub use reflash_release::step::step;

use crate::paths::{Paths, create_dir};
use crate::surroundings;

/// Number of lines that are shown of a failing tool's output: its reason is above them, and all of it in the log.
const SHOWN_LINES: usize = 12;
/// Number of lines at the end of an output in which the reason is looked for.
const SEARCHED_LINES: usize = 200;
/// Columns that are shown of one line.
const SHOWN_COLUMNS: usize = 400;

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

/// Prints what a person asked for. Who reads only the beginning of it, as `head` does, has all that they want.
///
/// # Errors
/// When it cannot be written for another reason.
pub fn answer(text: &str) -> Result<()> {
    answer_to(&mut std::io::stdout().lock(), text)
}

fn answer_to(out: &mut impl Write, text: &str) -> Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write the answer to standard output"),
    }
}

/// Says how large the system partition of a layout should be for an image.
pub fn room_for_undo(partition_bytes: u64) -> String {
    let size = mib(partition_bytes);
    format!("a system partition of {size} has room for this image and for going back to it from any update")
}

/// Runs a tool to its end with its command line and its output in `logs/NAME.log` of the work directory.
///
/// # Errors
/// Fails when the tool cannot be started or fails: the reason that it gives first, then the end of its output.
pub fn run(name: &str, command: &mut Command) -> Result<()> {
    let (mut log, path) = log_file(name)?;
    writeln!(log, "{}\n", line_of(command)).with_context(|| format!("write {}", path.display()))?;
    surroundings::pin(command);
    let stdout = log.try_clone()?;
    note_output(Some(&path));
    let status = command.stdin(Stdio::null()).stdout(stdout).stderr(log).status();
    note_output(None);
    let status = status.with_context(|| format!("start {}", line_of(command)))?;
    if status.success() {
        return Ok(());
    }
    let output = std::fs::read(&path).unwrap_or_default();
    let output = String::from_utf8_lossy(&output);
    // The first line is the command line, which is long and gives no reason.
    let output = output.split_once('\n').map_or("", |(_, output)| output);
    bail!("{}", failure(&program_of(command), &status.to_string(), output, &path.display().to_string()))
}

/// The message about a tool that failed: the reason, the end of the output, and where all of it is.
fn failure(program: &str, status: &str, output: &str, log: &str) -> String {
    let lines: Vec<&str> = output.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let Some(reason) = reason(&lines) else {
        return format!("{program} failed without a word ({status}); its command line is in {log}");
    };
    let end = lines[lines.len().saturating_sub(SHOWN_LINES)..].iter().map(|line| cut(line));
    let end: Vec<String> = end.collect();
    let end = end.join("\n    ");
    format!(
        "{program} failed: {} ({status})\n  The end of its output:\n    {end}\n  All of it, and the command line: {log}",
        cut(reason.trim())
    )
}

/// The line of an output that says why the tool failed: the first of the last ones that speak of an error. What tools
/// say after it is mostly that they give up.
fn reason<'a>(lines: &[&'a str]) -> Option<&'a str> {
    // What the container says of itself comes after what the program in it said, and is not about that.
    let own: Vec<&str> = lines.iter().copied().filter(|line| !is_of_the_container(line)).collect();
    let lines = if own.is_empty() { lines } else { &own };
    let searched = &lines[lines.len().saturating_sub(SEARCHED_LINES)..];
    // From the plainest sign to the weakest: what every tool meets alike, whatever it says afterwards, then apt's mark,
    // marks of severity, words in a sentence.
    let signs: [&[&str]; 4] = [
        &["No space left on device", "Disk quota exceeded", "Read-only file system"],
        &["E: ", "dpkg: error", "fatal: "],
        &[": FAILURE :", ": FATAL :", "error:", "Error:", "ERROR"],
        &["o space left", "annot ", "ailed", "ot found", "o such file", "enied", "efused"],
    ];
    let found = signs.iter().find_map(|signs| {
        searched.iter().find(|line| signs.iter().any(|sign| line.starts_with(sign) || line.contains(sign)))
    });
    found.or(searched.last()).copied()
}

/// Whether systemd-nspawn says this of itself, whatever the program in it does.
fn is_of_the_container(line: &str) -> bool {
    const SAID: &[&str] = &[
        "Attempted to remove disk file system under \"/run/systemd/nspawn/",
        "Spawning container ",
        "Press Ctrl-] three times",
        "Press ^] three times",
        "Failed to create /user.slice/",
        "Failed to remove veth interface",
        "Container reflash-build ",
    ];
    SAID.iter().any(|said| line.trim_start().starts_with(said))
}

fn cut(line: &str) -> String {
    match line.char_indices().nth(SHOWN_COLUMNS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

/// Runs a tool and returns what it printed on standard output, as text.
///
/// # Errors
/// When the tool cannot be started or fails: its command line and its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output_bytes(command)?).into_owned())
}

/// Runs a tool and returns what it printed on standard output.
///
/// # Errors
/// When the tool cannot be started or fails: its command line and its standard error.
pub fn output_bytes(command: &mut Command) -> Result<Vec<u8>> {
    surroundings::pin(command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("start {}", line_of(command)))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        let lines: Vec<&str> = said.lines().collect();
        let why = reason(&lines).unwrap_or("it gives no reason");
        bail!("{} failed: {} ({}): {}", program_of(command), why.trim(), out.status, line_of(command));
    }
    Ok(out.stdout)
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
    // Command lines of a recipe may have passwords, and addresses of a proxy a login.
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("create {}", path.display()))?;
    // One of before may be open to everybody. It is not made anew: two builds at once use the same names.
    file.set_permissions(Permissions::from_mode(0o600)).with_context(|| format!("close {}", path.display()))?;
    Ok((file, path))
}

/// Name of the tool that a person knows: not that of `unshare`, which only gives it mounts of its own.
fn program_of(command: &Command) -> String {
    let is_name = |word: &&OsStr| !word.as_encoded_bytes().starts_with(b"-") && *word != "private";
    let inner = command.get_args().find(is_name).filter(|_| command.get_program() == "unshare");
    std::path::Path::new(inner.unwrap_or(command.get_program()))
        .file_name()
        .map_or_else(|| "the tool".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{answer_to, failure, log_file, program_of};
    use std::process::Command;

    /// A `chpasswd` of a recipe, or the login of a proxy.
    #[test]
    fn what_is_in_a_log_is_for_nobody_else() {
        let (_, path) = log_file("who may read").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        log_file("who may read").unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions()) & 0o777, 0o600);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_reader_that_has_enough_is_no_error_and_a_full_disk_is_one() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        drop(reader);
        answer_to(&mut writer, "text").unwrap();
        let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert!(answer_to(&mut full, "text").is_err());
    }

    #[test]
    fn a_tool_with_mounts_of_its_own_is_called_by_its_name() {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "/usr/bin/mmdebstrap", "--mode=root"]);
        assert_eq!(program_of(&command), "mmdebstrap");
        assert_eq!(program_of(Command::new("/bin/tar").arg("x")), "tar");
    }

    fn first_line(output: &str) -> String {
        failure("tool", "exit status: 32", output, "/w/logs/x.log").lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn the_reason_comes_first_and_the_command_line_stays_in_the_log() {
        // xorriso on a full disk: eight lines before the end.
        let xorriso = "xorriso 1.5.4 : RockRidge filesystem manipulator\n\
                       Drive current: -outdev 'stdio:/w/media.iso.new'\n\
                       libisofs: WARNING : Can't add /x to Joliet tree\n\
                       xorriso : FAILURE : Image size 72861s exceeds free space on media 1234s\n\
                       xorriso : NOTE : Gave up -outdev\n\
                       xorriso : aborting : -abort_on 'FAILURE' encountered 'FAILURE'\n";
        assert!(first_line(xorriso).contains("Image size 72861s exceeds free space"), "{}", first_line(xorriso));
        let apt = "Get:1 http://deb.example bookworm InRelease\nReading package lists...\n\
                   E: Unable to locate package no-such-package\nE: mmdebstrap failed to run apt\n\
                   W: cannot remove the working directory\n";
        assert_eq!(first_line(apt), "tool failed: E: Unable to locate package no-such-package (exit status: 32)");
        // mmdebstrap and tar write to the same log at once.
        let full = "tar: ./usr/a.so: Cannot write: No space left on device\ntar: ./usr/lib/x-E: mmdebstrap failed\n";
        assert!(first_line(full).contains("a.so: Cannot write: No space left"), "{}", first_line(full));
        assert!(first_line("making\nwrite: No space left on device\n").contains("No space left"));
        let container = "the real cause\nAttempted to remove disk file system under \"/run/systemd/nspawn/propagate/x\", and we \
                         can't allow that.\n";
        assert!(first_line(container).starts_with("tool failed: the real cause ("), "{}", first_line(container));
        let alone = container.lines().nth(1).unwrap();
        assert!(first_line(alone).contains("Attempted"), "there is nothing better");
        assert!(first_line("one\nthe last\n").contains("the last"));
        assert!(first_line("").contains("without a word"));
        let long = (0..100).map(|line| format!("line {line}\n")).collect::<String>();
        let text = failure("tool", "exit status: 1", &long, "/w/logs/x.log");
        assert!(text.lines().count() < 20 && text.ends_with("/w/logs/x.log"), "{text}");
    }
}
