//! GRUB itself as a program: it carries out the first script and a disk's own boot scripts on the image of that disk,
//! by its own code for tables, file systems and scripts, and ends where a kernel would be started.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::host_packages::{Need, ensure_installed};
use crate::initramfs::archive::{self, ArchiveEntry};
use crate::{embedded, grub};

/// Seconds after which GRUB counts as waiting for a key. It takes less than a tenth of one.
const TIME_LIMIT: &str = "20";

/// Commands before the first script. The program has no loader of kernels, so functions stand for it; they let GRUB
/// read what it would start, and print the checksum of that. Each word has a line, because the terminal is narrow.
const STAND_INS: &str = r#"
function linux { echo "@linux"; for word in "$@"; do echo "@word $word"; done; crc "$1"; }
function initrd { echo "@initrd"; echo "@word $1"; if crc "$1"; then echo "@started"; reboot; fi; }
function serial { false; }
"#;

/// The outcome of a start of GRUB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrubOutcome {
    /// A kernel is started.
    Started(StartedKernel),
    /// Nothing can be started, and the machine restarts after its pause.
    Restart,
}

/// A kernel that GRUB starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedKernel {
    /// Path of the kernel, its arguments, and the path of its initramfs.
    pub command_line: String,
    /// CRC-32 of the kernel as GRUB reads it.
    pub kernel: u32,
    /// CRC-32 of the initramfs.
    pub initramfs: u32,
}

impl StartedKernel {
    /// Returns the value of a kernel argument, as `name=value`.
    #[must_use]
    pub fn argument(&self, name: &str) -> Option<&str> {
        self.command_line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

/// GRUB with the first script, ready to be started on disks.
pub struct Emulator {
    directory: TempDir,
}

impl Emulator {
    /// Makes the emulator.
    ///
    /// # Errors
    /// When GRUB's tools are missing.
    pub fn new(assume_yes: bool) -> Result<Self> {
        ensure_installed(&[Need::Test], assume_yes)?;
        Ok(Self { directory: tempfile::tempdir().context("make a directory for GRUB")? })
    }

    /// Returns a boot script without its pauses, which for a program are only long.
    #[must_use]
    pub fn without_pauses(script: &str) -> String {
        script
            .replace("set timeout=3\n", "set timeout=0\n")
            .replace("set timeout=1\n", "set timeout=0\n")
            .replace("set timeout_style=countdown\n", "set timeout_style=menu\n")
            .replace("sleep 60\n", "sleep 0\n")
    }

    /// Starts GRUB on these disks, which it may write to. `root` is what GRUB makes of its prefix: `hd0,gpt4`.
    ///
    /// # Errors
    /// When GRUB waits for a key, which is its end on a robot, or starts a part of what it should.
    pub fn start(&self, disks: &[&Path], root: &str) -> Result<GrubOutcome> {
        let path = |name: &str| self.directory.path().join(name);
        let begin = format!("{STAND_INS}\nset root={root}\nnormal (memdisk)/first.cfg\n");
        let file = |path: &str, content: &str| ArchiveEntry::file(path, content.into(), 0o644);
        let mut files = vec![file("/grub.cfg", &begin)];
        for (path, content) in grub::first_files(&Self::without_pauses(embedded::GRUB_FIRST_SCRIPT)) {
            files.push(file(path, &content));
        }
        let (memdisk, map) = (path("memdisk"), path("device.map"));
        std::fs::write(&memdisk, archive::cpio(files)?).context("write GRUB's memory disk")?;
        let disks: Vec<_> = disks.iter().map(|disk| disk.canonicalize()).collect::<Result<_, _>>()?;
        let lines = disks.iter().enumerate().map(|(number, disk)| format!("(hd{number}) {}\n", disk.display()));
        std::fs::write(&map, lines.collect::<String>()).context("write GRUB's map of devices")?;
        let shown = run(&memdisk, &map)?;
        parse(&shown).with_context(|| format!("GRUB showed:\n{shown}"))
    }
}

fn run(memdisk: &PathBuf, map: &PathBuf) -> Result<String> {
    let mut command = Command::new("timeout");
    command.args([TIME_LIMIT, "grub-emu", "-r", "memdisk", "-d", "/", "--memdisk"]).arg(memdisk);
    command.arg("--device-map").arg(map);
    command.envs([("TERM", "dumb"), ("LC_ALL", "C")]);
    let ran = command.stdin(Stdio::null()).output().context("start grub-emu")?;
    Ok(without_escapes(&String::from_utf8_lossy(&ran.stdout)))
}

/// Leaves out the terminal's control sequences, and what GRUB shows of its progress between two of them.
fn without_escapes(text: &str) -> String {
    let mut out = String::new();
    for (number, part) in text.split("\u{1b}[").enumerate() {
        let rest = if number == 0 {
            part
        } else {
            part.split_once(|end: char| end.is_ascii_alphabetic()).map_or("", |(_, rest)| rest)
        };
        if !(rest.trim_start().starts_with('[') && rest.trim_end().ends_with("B/s ]")) {
            out.push_str(rest);
        }
    }
    out.replace('\r', "")
}

fn parse(shown: &str) -> Result<GrubOutcome> {
    let Some((before, _)) = shown.split_once("@started") else {
        if shown.contains("Trying again in 60 s") {
            return Ok(GrubOutcome::Restart);
        }
        bail!("GRUB starts nothing, and does not restart");
    };
    // What came before could not be started.
    let (_, last) = before.rsplit_once("@linux\n").context("GRUB starts an initramfs without a kernel")?;
    let (kernel, initramfs) = last.split_once("@initrd\n").context("GRUB starts a kernel without an initramfs")?;
    let words: Vec<_> = last.lines().filter_map(|line| line.strip_prefix("@word ")).collect();
    Ok(GrubOutcome::Started(StartedKernel {
        command_line: words.join(" "),
        kernel: checksum(kernel).context("GRUB cannot read the kernel that it starts")?,
        initramfs: checksum(initramfs).context("GRUB cannot read the initramfs that it starts")?,
    }))
}

/// The checksum in the output of `crc`: eight digits and two blanks.
fn checksum(text: &str) -> Option<u32> {
    text.lines().find_map(|line| u32::from_str_radix(line.split_once("  ")?.0, 16).ok())
}

#[cfg(test)]
mod tests {
    use super::{GrubOutcome, parse, without_escapes};

    #[test]
    fn what_grub_shows_is_understood() {
        let shown = "\u{1b}[37mWelcome\r\n\u{1b}[3;1H      [ a.cfg  1B  100%  0.00B/s ]\u{1b}[3;1Herror: x\n\
            @linux\n@word (hd0,gpt4)/slots/a/vmlinuz\n@word reflash.slot=a\n0000000a  (hd0,gpt4)/slots/a/vmlinuz\n\
            @linux\n@word (hd0,gpt4)/slots/b/vmlinuz\n@word reflash.slot=b\n0000000b  (hd0,gpt4)/slots/b/vmlinuz\n\
            @initrd\n@word (hd0,gpt4)/slots/b/initramfs.img\n0000000c  (hd0,gpt4)/slots/b/initramfs.img\n@started\n";
        let shown = without_escapes(shown);
        assert!(shown.contains("\nerror: x\n") && !shown.contains("B/s"), "{shown:?}");
        let GrubOutcome::Started(started) = parse(&shown).unwrap() else { panic!("{shown:?}") };
        assert_eq!((started.argument("reflash.slot"), started.kernel, started.initramfs), (Some("b"), 11, 12));
        assert_eq!(parse("Trying again in 60 s.\n").unwrap(), GrubOutcome::Restart);
        assert!(parse("grub> ").is_err());
    }
}
