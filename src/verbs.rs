//! The verbs by hand: in recovery, on the live system, or on a bench.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::agent::{hardware_name, read_keys, retry_sentence};
use crate::chain::chain;
use crate::cli::{Command, Common, EnvAction, Flash, Verify};
use crate::config::{Config, Layer};
use crate::digest;
use crate::fetch::{self, Clock, Options, Patience};
use crate::grubenv::names;
use crate::journal::Journal;
use crate::manifest::{SYSTEM_IMAGE, TrustedKeys};
use crate::progress::bytes;
use crate::recovery::{self, Machine};
use crate::state::State;
use crate::sys::{self, block::AlignedBuf, block::Which, mount::Mount};
use crate::target::{BlockTarget, DeviceTarget};
use crate::verify::Reading;

/// Exit code: the command line could not be understood.
pub const USAGE: u8 = 2;
/// Exit code: the answer is no.
const NO: u8 = 1;
/// Exit code: failed; trying again later can help.
const LATER: u8 = 3;
/// Exit code: failed.
const FAILED: u8 = 4;

/// Where configuration and keys of this system lie.
const ETC: &str = "/etc/reflash";
/// Where partitions are mounted while a verb needs them.
const MOUNTS: &str = "/run/reflash";

/// Attempts of a transfer by hand; PID 1 tries for ever, a person can repeat the command.
const HAND_ROUNDS: u32 = 5;

/// What goes wrong by hand: any error, whose chain is printed once, and whether it can pass.
struct Failure {
    text: String,
    code: u8,
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { text: chain(&error), code: FAILED }
    }
}

fn failure<T>(text: impl Into<String>) -> Result<T, Failure> {
    Err(Failure { text: text.into(), code: FAILED })
}

/// Carries out a command and says how it went.
#[must_use]
pub fn run(command: Command) -> ExitCode {
    let result = match command {
        Command::Help(text) => {
            print!("{text}");
            Ok(0)
        }
        Command::Version => {
            println!("reflash {}", env!("CARGO_PKG_VERSION"));
            Ok(0)
        }
        Command::Flash(flash) => run_flash(&flash),
        Command::Verify(verify) => run_verify(&verify),
        Command::Status(common) => run_status(&common),
        Command::Good(common) => run_good(&common),
        Command::Request(common) => run_request(&common),
        Command::Env(common, action) => run_env(&common, &action),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("reflash: {}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}

fn run_flash(flash: &Flash) -> Result<u8, Failure> {
    let machine_state = match (&flash.common.state, &flash.target) {
        // An image file or a disk on a bench has no state of this machine.
        (None, Some(_)) => None,
        _ => Some(MountedState::open(&flash.common)?),
    };
    let config = flash_config(flash, machine_state.as_ref())?;
    let keys = keys(&flash.common, machine_state.as_ref())?;
    let target_path = match (&flash.target, &machine_state) {
        (Some(path), _) => path.clone(),
        (None, Some(state)) => state.system_partition()?,
        (None, None) => return failure("no target: give --target DEV"),
    };
    let target =
        if flash.dry_run { DeviceTarget::open_read_only(&target_path)? } else { DeviceTarget::open(&target_path)? };
    let options = Options::new(&config.network, Arc::new(Clock::fixed()));
    let journal = Arc::new(Journal::new(Some(Box::new(std::io::stderr())), std::io::stderr().is_terminal()));
    let teller = Arc::clone(&journal);
    let mirrors = fetch::open_all(&config.urls, &options, Patience::Rounds(HAND_ROUNDS))?
        .on_retry(move |retry| teller.warn(&retry_sentence(retry)));
    let machine = Machine {
        product: config.product.clone(),
        hardware: config.hardware.clone().or_else(hardware_name).unwrap_or_default(),
        channel: config.channel.clone(),
        tries: config.boot_tries,
        allow_older: flash.allow_older,
        keys: &keys,
        source: &mirrors,
        target: &target,
        state: machine_state.as_ref().map(|mounted| &mounted.state),
        journal: &journal,
        learn_time: &|_| {},
    };
    let failed = |error: recovery::RecoveryError| Failure {
        code: if error.is_retryable() { LATER } else { FAILED },
        text: chain(&error),
    };
    if flash.dry_run {
        let (release, totals) = recovery::estimate(&machine).map_err(failed)?;
        let answer = json!({ "version": release.version, "serial": release.serial, "totals": totals });
        say(flash.common.json, &answer, || {
            format!(
                "{} on {}: {} right already; to download {}, to write {}, to zero {}",
                release.version,
                target.name(),
                bytes(totals.right_bytes),
                bytes(totals.download_bytes),
                bytes(totals.write_bytes),
                bytes(totals.zero_bytes)
            )
        });
        return Ok(0);
    }
    let report = recovery::run(&machine).map_err(failed)?;
    let answer = json!({ "version": report.version, "serial": report.serial, "totals": report.totals });
    say(flash.common.json, &answer, || format!("{} holds {}, verified", target.name(), report.version));
    Ok(0)
}

fn run_verify(verify: &Verify) -> Result<u8, Failure> {
    let mounted = MountedState::open(&verify.common)?;
    let keys = keys(&verify.common, Some(&mounted))?;
    let Some(installed) = mounted.state.installed(&keys) else {
        return failure("no intact record of an installed release to compare with; reflash the machine");
    };
    let path = match &verify.target {
        Some(path) => path.clone(),
        None => mounted.system_partition()?,
    };
    let target = DeviceTarget::open_read_only(&path)?;
    let journal = Journal::new(Some(Box::new(std::io::stderr())), std::io::stderr().is_terminal());
    let size_bytes = installed.index.image_bytes();
    let reading = journal.with_progress(size_bytes, |done| Reading::of(&installed.index, &target, done));
    let damaged: Vec<[u64; 2]> = reading.damaged_ranges().iter().map(|range| [range.start, range.end]).collect();
    let sha256 = if verify.sha256 { Some(sha256_of(&target, size_bytes)?) } else { None };
    let intact = damaged.is_empty();
    let named = installed.manifest.image(SYSTEM_IMAGE)?.sha256.clone();
    let answer = json!({
        "intact": intact, "version": installed.manifest.version, "serial": installed.manifest.serial,
        "damaged_byte_ranges": damaged, "sha256": sha256, "manifest_sha256": named,
    });
    say(verify.common.json, &answer, || {
        let mut text = if intact {
            format!("{} equals release {}", target.name(), installed.manifest.version)
        } else {
            let ranges: Vec<_> = damaged.iter().map(|[start, end]| format!("  bytes {start} to {end}")).collect();
            format!("{} differs from release {}:\n{}", target.name(), installed.manifest.version, ranges.join("\n"))
        };
        if let Some(sha256) = &sha256 {
            text += &format!("\nSHA-256 {sha256} (manifest: {named})");
        }
        text
    });
    Ok(if intact { 0 } else { NO })
}

fn sha256_of(target: &dyn BlockTarget, size_bytes: u64) -> Result<String, Failure> {
    let mut sha256 = Sha256::new();
    let mut buffer = AlignedBuf::zeroed(1024 * 1024);
    let mut offset = 0;
    while offset < size_bytes {
        let len = (size_bytes - offset).min(buffer.len() as u64) as usize;
        target.read_at(offset, &mut buffer[..len])?;
        sha256.update(&buffer[..len]);
        offset += len as u64;
    }
    Ok(digest::hex(&sha256.finalize()))
}

fn run_status(common: &Common) -> Result<u8, Failure> {
    let mounted = MountedState::open(common)?;
    let keys = keys(common, Some(&mounted))?;
    let installed = mounted.state.installed_manifest(&keys).map(|(_, manifest)| manifest);
    let env = mounted.state.boot_env().load_or_empty()?;
    let variables: serde_json::Map<String, Value> =
        env.iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
    let events = last_lines(&mounted.state.events_path(), 20);
    let image = installed.as_ref().and_then(|manifest| manifest.image(SYSTEM_IMAGE).ok());
    let answer = json!({
        "installed": installed.as_ref().map(|manifest| json!({
            "version": manifest.version, "serial": manifest.serial, "product": manifest.product,
            "channel": manifest.channel, "created_unix_s": manifest.created_unix_s,
            "ostree_commit": image.and_then(|image| image.ostree_commit.clone()),
        })),
        "boot_environment": variables,
        "events": events.iter().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<Value>>(),
    });
    say(common.json, &answer, || {
        let what = installed.as_ref().map_or_else(
            || "no release is recorded as installed".to_owned(),
            |manifest| {
                format!(
                    "{} {} (serial {}), channel {}",
                    manifest.product, manifest.version, manifest.serial, manifest.channel
                )
            },
        );
        let tries = env.get(names::TRIES).unwrap_or("unknown");
        let good =
            if env.get(names::BOOT_OK) == Some("1") { "called itself good" } else { "has not called itself good" };
        format!(
            "{what}\nthis boot {good}; tries left before recovery: {tries}\nlast events:\n  {}",
            events.join("\n  ")
        )
    });
    Ok(if installed.is_some() { 0 } else { NO })
}

fn run_good(common: &Common) -> Result<u8, Failure> {
    let mounted = MountedState::open(common)?;
    let boot_env = mounted.state.boot_env();
    let env = boot_env.load_or_empty()?;
    let tries = env.get(names::MAX_TRIES).unwrap_or("3").to_owned();
    boot_env.update(&[(names::TRIES, Some(&tries)), (names::BOOT_OK, Some("1"))])?;
    say(common.json, &json!({ "tries": tries }), || format!("this boot is good; {tries} tries before recovery"));
    Ok(0)
}

fn run_request(common: &Common) -> Result<u8, Failure> {
    let mounted = MountedState::open(common)?;
    mounted.state.boot_env().update(&[(names::NEXT_ENTRY, Some("recovery"))])?;
    say(common.json, &json!({ "next_entry": "recovery" }), || "the next boot goes to recovery".to_owned());
    Ok(0)
}

fn run_env(common: &Common, action: &EnvAction) -> Result<u8, Failure> {
    let mounted = MountedState::open(common)?;
    let boot_env = mounted.state.boot_env();
    match action {
        EnvAction::List => {}
        EnvAction::Set(name, value) => boot_env.update(&[(name, Some(value))])?,
        EnvAction::Unset(name) => boot_env.update(&[(name, None)])?,
    }
    let env = boot_env.load_or_empty()?;
    let variables: serde_json::Map<String, Value> =
        env.iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
    say(common.json, &Value::Object(variables), || {
        env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("\n")
    });
    Ok(0)
}

fn say(as_json: bool, answer: &Value, text: impl FnOnce() -> String) {
    if as_json { println!("{answer}") } else { println!("{}", text()) }
}

fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}

/// Configuration of the machine, with the command line over it.
fn flash_config(flash: &Flash, mounted: Option<&MountedState>) -> Result<Config, Failure> {
    let mut layer = Layer::default();
    let files = match &flash.common.config {
        Some(path) => vec![path.clone()],
        None => directories(mounted).iter().map(|directory| directory.join("reflash.toml")).collect(),
    };
    for path in files {
        match fs::read_to_string(&path) {
            Ok(text) => layer = layer.overridden_by(Layer::parse(&path.display().to_string(), &text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && flash.common.config.is_none() => {}
            Err(error) => return failure(format!("cannot read {}: {error}", path.display())),
        }
    }
    let mut over = Layer::default();
    over.release.urls = Some(flash.urls.clone()).filter(|urls| !urls.is_empty());
    over.release.channel.clone_from(&flash.channel);
    over.machine.product.clone_from(&flash.product);
    over.machine.hardware.clone_from(&flash.hardware);
    Ok(Config::resolve(layer.overridden_by(over))?)
}

fn keys(common: &Common, mounted: Option<&MountedState>) -> Result<TrustedKeys, Failure> {
    let looked: Vec<PathBuf> = match &common.keys {
        Some(directory) => vec![directory.clone()],
        None => directories(mounted).iter().map(|directory| directory.join("keys")).collect(),
    };
    let looked: Vec<String> = looked.iter().map(|directory| directory.display().to_string()).collect();
    let keys = read_keys(&looked)?;
    if keys.is_empty() {
        let looked = looked.join(" and ");
        return failure(format!("no trusted key in {looked}; give the directory of *.pub files with --keys"));
    }
    Ok(keys)
}

/// Where configuration and keys lie, later ones over earlier ones: this system's, then the recovery partition's.
fn directories(mounted: Option<&MountedState>) -> Vec<PathBuf> {
    let recovery = mounted.and_then(|mounted| mounted.recovery.clone());
    std::iter::once(PathBuf::from(ETC)).chain(recovery).collect()
}

/// The state partition, and the recovery partition for reading, mounted only while a verb needs them: GRUB reads and
/// writes the blocks of the former, so nothing else should keep it busy.
struct MountedState {
    state: State,
    system: Option<PathBuf>,
    recovery: Option<PathBuf>,
    mounted: Vec<PathBuf>,
}

impl MountedState {
    fn open(common: &Common) -> Result<Self, Failure> {
        if let Some(directory) = &common.state {
            return Ok(Self { state: State::new(directory), system: None, recovery: None, mounted: Vec::new() });
        }
        let line = fs::read_to_string("/proc/cmdline")?;
        let value = |key: &str| line.split_ascii_whitespace().find_map(|argument| argument.strip_prefix(key));
        let Some(partuuid) = value("reflash.system=").or_else(|| value("reflash.recovery=")) else {
            return failure(
                "this machine was not started by reflash's GRUB (no reflash.system= on the kernel command line); \
                 give the mounted state partition with --state DIR",
            );
        };
        let found = sys::block::find_disk_by_partuuid(partuuid, Which::Physical)?;
        let partition = |name: &str| found.layout.named(name).and_then(|partition| partition.node.clone());
        let Some(state) = partition("state") else {
            return failure(format!("{} has no partition named \"state\"", found.disk));
        };
        let directory = |name: &str| Path::new(MOUNTS).join(name);
        let mut this = Self {
            state: State::new(&directory("state")),
            system: partition("system"),
            recovery: None,
            mounted: Vec::new(),
        };
        this.mount(&Mount::device(&state, "ext4").data_only(), directory("state"))?;
        if let Some(recovery) = partition("recovery") {
            this.mount(&Mount::device(recovery, "ext4").read_only().data_only(), directory("recovery"))?;
            this.recovery = Some(directory("recovery"));
        }
        Ok(this)
    }

    fn mount(&mut self, what: &Mount, at: PathBuf) -> Result<(), Failure> {
        fs::create_dir_all(&at)?;
        what.on(&at)?;
        self.mounted.push(at);
        Ok(())
    }

    fn system_partition(&self) -> Result<PathBuf, Failure> {
        match &self.system {
            Some(path) => Ok(path.clone()),
            None => failure("which partition holds the system is not known here; give it with --target"),
        }
    }
}

impl Drop for MountedState {
    fn drop(&mut self) {
        for directory in self.mounted.iter().rev() {
            if let Err(error) = sys::mount::unmount(directory) {
                eprintln!("reflash: {}", chain(&error));
            }
        }
    }
}
