//! The agent, one static musl binary: where what is built gets it from, and how it is built from a checkout, on a
//! machine with rustup's target and on one without.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::forget_package;
use crate::embedded;
use crate::host_packages::{Need, ensure_installed};
use crate::paths::{Paths, create_parent};
use crate::step::{output, produced, run, step};

/// The target the agent is built for.
pub const TARGET: &str = "x86_64-unknown-linux-musl";
/// The agent travels in every recovery partition and in every initramfs: 4.5 MiB at most.
const MAX_BYTES: u64 = 9 * 512 * 1024;
/// How far a build may be dated ahead of the clock of its host, seconds: as a release, for time zones.
const MAX_AHEAD_S: u64 = 24 * 60 * 60;

/// Debian's own toolchain: it can build the standard library, which rustup's cannot do without its sources.
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// Macros of zstd's own that leave out what the agent never uses; what it compresses and decompresses stays the same.
/// The second decoder is for windows of 16 MiB and more, and a chunk has 4 MiB at most. The strategies above the
/// fastest are for levels from 3 on: the agent compresses at level 1 (`src/flash/undo/reader.rs`).
const ZSTD_FLAGS: [&str; 8] = [
    "-DZSTD_FORCE_DECOMPRESS_SEQUENCES_SHORT",
    "-DZSTD_EXCLUDE_DFAST_BLOCK_COMPRESSOR",
    "-DZSTD_EXCLUDE_GREEDY_BLOCK_COMPRESSOR",
    "-DZSTD_EXCLUDE_LAZY_BLOCK_COMPRESSOR",
    "-DZSTD_EXCLUDE_LAZY2_BLOCK_COMPRESSOR",
    "-DZSTD_EXCLUDE_BTLAZY2_BLOCK_COMPRESSOR",
    "-DZSTD_EXCLUDE_BTOPT_BLOCK_COMPRESSOR",
    "-DZSTD_EXCLUDE_BTULTRA_BLOCK_COMPRESSOR",
];

enum Toolchain {
    /// cargo on the path has the target's standard library.
    Target,
    /// Debian's cargo builds the standard library too.
    BuildStd,
}

/// Returns the path of the agent for what is built: the one that a person gave; in a checkout, the one that is built
/// from it; otherwise the one that the builder was installed with.
///
/// # Errors
/// When it cannot be built, when it is no static binary, or when there is none.
pub fn obtain(paths: &Paths, assume_yes: bool) -> Result<PathBuf> {
    if let Some(given) = paths.given_agent() {
        let binary = std::fs::read(given).with_context(|| format!("read the agent {}", given.display()))?;
        check_static(&binary).with_context(|| format!("check the agent {}", given.display()))?;
        return Ok(given.to_owned());
    }
    if paths.in_checkout() {
        return build(paths, assume_yes);
    }
    let binary = embedded::agent().context(
        "there is no agent: name one with --agent FILE or REFLASH_AGENT=FILE (a checkout of reflash makes it with \
         `cargo xtask agent`), or install a builder that has one inside with `cargo xtask install`",
    )?;
    check_static(binary).context("check the agent inside this program")?;
    let out = paths.dist().join("reflash");
    write_if_changed(binary, &out)?;
    produced("agent, from inside this program", &out);
    Ok(out)
}

/// Builds the agent from the checkout and returns its path.
///
/// # Errors
/// When no toolchain can build it, or the result is not static or too large.
pub fn build(paths: &Paths, assume_yes: bool) -> Result<PathBuf> {
    ensure_installed(&[Need::Agent], assume_yes)?;
    let toolchain = choose(assume_yes)?;
    let target_dir = paths.work().join("agent");
    let time = build_time(paths);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock of this host is before 1970")?;
    check_build_time(&time, now.as_secs())?;
    step("build the agent", || {
        let mut command = match toolchain {
            Toolchain::Target => with_target(paths),
            Toolchain::BuildStd => build_std(paths)?,
        };
        command
            .current_dir(&paths.root)
            .args(["build", "--release", "--locked", "--package", "reflash", "--target", TARGET])
            .env("CARGO_TARGET_DIR", &target_dir)
            .env("SOURCE_DATE_EPOCH", &time)
            .env("CC_x86_64_unknown_linux_musl", "musl-gcc")
            .env("CFLAGS_x86_64_unknown_linux_musl", ZSTD_FLAGS.join(" "));
        // `cargo xtask` runs inside `cargo run`, whose own settings must not leak into this build.
        for name in ["RUSTC", "RUSTUP_TOOLCHAIN", "CARGO", "RUSTFLAGS", "RUSTC_WRAPPER"] {
            command.env_remove(name);
        }
        // Build scripts read some of these, and cargo builds again when they differ: a test of another package, or a
        // test that runs without cargo, would make everything anew.
        forget_package(&mut command);
        run("agent", &mut command)
    })?;
    let built = target_dir.join(TARGET).join("release/reflash");
    let binary = std::fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    check_static(&binary).with_context(|| format!("check {}", built.display()))?;
    let size = binary.len() as u64;
    ensure!(size <= MAX_BYTES, "the agent has {size} bytes, more than {MAX_BYTES}");
    let out = paths.dist().join("reflash");
    write_if_changed(&binary, &out)?;
    produced(&format!("agent, static, {:.2} MiB", size as f64 / 1048576.0), &out);
    Ok(out)
}

/// Writes a program only when it differs, so that what is built from it is not built again.
fn write_if_changed(binary: &[u8], out: &Path) -> Result<()> {
    if std::fs::read(out).ok().as_deref() == Some(binary) {
        return Ok(());
    }
    create_parent(out)?;
    let new = out.with_added_extension("new");
    let written = std::fs::write(&new, binary)
        .and_then(|()| std::fs::set_permissions(&new, Permissions::from_mode(0o755)))
        .and_then(|()| std::fs::rename(&new, out));
    written.with_context(|| format!("write {}", out.display()))
}

/// The time the agent takes for the earliest possible one: `SOURCE_DATE_EPOCH`, or that of the last commit, so that
/// the same source is the same binary. A tree without history has the epoch of Rust 1.0, which is early enough.
fn build_time(paths: &Paths) -> String {
    std::env::var("SOURCE_DATE_EPOCH").unwrap_or_else(|_| {
        let mut git = Command::new("git");
        let time = output(git.args(["log", "-1", "--format=%ct"]).current_dir(&paths.root)).unwrap_or_default();
        if time.trim().is_empty() { "1431648000".to_owned() } else { time.trim().to_owned() }
    })
}

/// Refuses a time that has not come yet: an agent takes no certificate that ended before its own build. One from the
/// future finds no server with https ever again, and nothing in the field can undo that.
fn check_build_time(text: &str, now_unix_s: u64) -> Result<()> {
    let time: u64 = text.parse().with_context(|| format!("SOURCE_DATE_EPOCH={text:?} is not a number of seconds"))?;
    ensure!(
        time <= now_unix_s.saturating_add(MAX_AHEAD_S),
        "the agent's build is dated {time} s after 1970, {} days ahead of the clock of this host, and the agent would \
         find every certificate expired; look at that clock, at SOURCE_DATE_EPOCH and at the date of the last commit",
        (time - now_unix_s) / MAX_AHEAD_S
    );
    Ok(())
}

fn choose(assume_yes: bool) -> Result<Toolchain> {
    if has_target("cargo") {
        return Ok(Toolchain::Target);
    }
    let added = Command::new("rustup").args(["target", "add", TARGET]).env_remove("RUSTUP_TOOLCHAIN").output();
    if added.is_ok_and(|output| output.status.success()) && has_target("cargo") {
        return Ok(Toolchain::Target);
    }
    eprintln!("  no {TARGET} library from rustup here: building it from Debian's sources");
    ensure_installed(&[Need::AgentWithoutRustup], assume_yes).with_context(|| {
        format!("this distribution has no toolchain for it; install rustup and run `rustup target add {TARGET}`")
    })?;
    Ok(Toolchain::BuildStd)
}

/// Whether the compiler behind `cargo` has the standard library of the target.
fn has_target(cargo: &str) -> bool {
    // rustc comes from the same place as cargo: rustup's proxy, or the distribution.
    let rustc = cargo.replace("cargo", "rustc");
    let Ok(sysroot) = output(Command::new(rustc).args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN")) else {
        return false;
    };
    let library = Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).join("lib");
    std::fs::read_dir(library).is_ok_and(|mut entries| entries.next().is_some())
}

/// Flags both ways share: no path of this machine in the binary, no tables for unwinding (`agent.ld` says why), and
/// sequences of instructions that are there often once only. LLVM does that by itself for some processors alone.
fn common_flags(paths: &Paths) -> Vec<String> {
    let home = std::env::var("CARGO_HOME")
        .unwrap_or_else(|_| format!("{}/.cargo", std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned())));
    vec![
        format!("--remap-path-prefix={home}=/cargo"),
        format!("--remap-path-prefix={}=/reflash", paths.root.display()),
        format!("-Clink-arg=-Wl,-T,{}", paths.root.join("xtask/src/agent.ld").display()),
        "-Cllvm-args=-enable-machine-outliner=always".to_owned(),
    ]
}

/// Flags as cargo takes them whatever characters a path has.
fn encoded(flags: &[String]) -> String {
    flags.join("\x1f")
}

fn with_target(paths: &Paths) -> Command {
    let mut flags = common_flags(paths);
    flags.push("-Ctarget-feature=+crt-static".to_owned());
    // The relocations of a static program that can be loaded anywhere, packed: a thirtieth of the room.
    flags.push("-Clink-arg=-Wl,-z,pack-relative-relocs".to_owned());
    flags.extend(folding_linker());
    let mut command = Command::new("cargo");
    command.env("CARGO_ENCODED_RUSTFLAGS", encoded(&flags));
    command
}

/// The flags for the linker that rustup's compiler brings along, if it is there: it merges functions that became the
/// same machine code, a hundredth of the agent. GNU's cannot. Nothing in the agent or its C compares functions by
/// address, which is all that `--icf=safe` would keep apart, at the cost of nearly the whole gain.
fn folding_linker() -> Vec<String> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN"));
    let hosts = sysroot.ok().and_then(|path| std::fs::read_dir(Path::new(path.trim()).join("lib/rustlib")).ok());
    let linkers = hosts.into_iter().flatten().flatten().map(|host| host.path().join("bin/gcc-ld"));
    let Some(linkers) = linkers.filter(|directory| directory.join("ld.lld").is_file()).min() else { return Vec::new() };
    vec![
        "-Clink-arg=-fuse-ld=lld".to_owned(),
        format!("-Clink-arg=-B{}", linkers.display()),
        "-Clink-arg=-Wl,--icf=all".to_owned(),
    ]
}

/// What each flag is for stands in Rust's own documentation of the musl targets; the combination is what links:
/// Debian ships no self-contained musl objects, musl-gcc has no static-pie specs, and libgcc_eh needs glibc, so
/// LLVM's libunwind stands in, alone in a directory of its own so that nothing else of LLVM's is found there.
fn build_std(paths: &Paths) -> Result<Command> {
    let unwind = paths.work().join("libunwind");
    std::fs::create_dir_all(&unwind)?;
    let found = std::fs::read_dir("/usr/lib")?
        .filter_map(|entry| Some(entry.ok()?.path().join("lib/libunwind.a")))
        .filter(|path| path.is_file())
        .max();
    let Some(library) = found else { bail!("no libunwind.a in /usr/lib/llvm-*/lib; install libunwind-14-dev") };
    std::fs::copy(library, unwind.join("libunwind.a"))?;
    let mut flags = common_flags(paths);
    flags.extend([
        "-Clink-self-contained=no".to_owned(),
        "-Crelocation-model=static".to_owned(),
        format!("-Lnative={}", unwind.display()),
    ]);
    let mut command = Command::new(DEBIAN_CARGO);
    command
        .arg("-Zbuild-std=std,panic_abort")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", "/usr/bin:/bin")
        // rustup's target brings its own start files and links with cc; Debian's needs musl's.
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER", "musl-gcc")
        .env("CARGO_ENCODED_RUSTFLAGS", encoded(&flags));
    Ok(command)
}

/// Checks that the kernel can run the binary with nothing else in the initramfs: ELF, x86-64, no program header of
/// the type `PT_INTERP` (3), which asks for a dynamic loader. Offsets from the ELF-64 specification.
fn check_static(binary: &[u8]) -> Result<()> {
    const PT_INTERP: u32 = 3;
    ensure!(binary.get(..5) == Some(b"\x7fELF\x02"), "not a 64-bit ELF file");
    let number = |offset: usize, len: usize| -> Result<u64> {
        let bytes = binary.get(offset..offset + len).context("cut short")?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let (table, entry_size, entries) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    for entry in 0..entries {
        let offset = usize::try_from(table + entry * entry_size)?;
        ensure!(number(offset, 4)? != u64::from(PT_INTERP), "it needs a dynamic loader: it is not static");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{check_build_time, check_static};

    /// <https://github.com/keszybz/add-determinism/pull/25>: a day too many in a list of changes, taken for the date.
    #[test]
    fn a_build_from_the_future_is_refused() {
        const NOW: u64 = 1_793_491_200;
        for good in ["0", "1431648000", "1793491200", "1793570000"] {
            check_build_time(good, NOW).unwrap();
        }
        for (bad, expected) in [
            ("3786912000", "23072 days ahead"),
            ("18446744073709551615", "days ahead"),
            ("18446744073709551616", "not a number"),
            ("-1", "not a number"),
            ("2026-11-01", "not a number"),
            ("", "not a number"),
        ] {
            let error = check_build_time(bad, NOW).unwrap_err().to_string();
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }

    #[test]
    fn a_dynamic_program_is_refused() {
        let error = check_static(&std::fs::read("/bin/true").unwrap()).unwrap_err();
        assert!(error.to_string().contains("dynamic loader"), "{error}");
        assert!(check_static(b"#!/bin/sh").is_err());
    }
}
