//! The verbs by hand: in recovery, on the live system, or on a bench.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::boot::grubenv::names;
use crate::chain::chain;
use crate::cli::args::{Command, Common, EnvAction, Flash, RequestedAction, Verify};
use crate::cli::mounted::MountedState;
use crate::cli::{provision, status};
use crate::fetch::{self, FetchOptions, Mirrors, RetryPolicy};
use crate::flash::readback::Scan;
use crate::flash::target::{BlockTarget, DeviceTarget};
use crate::jobs::keys::read_keys;
use crate::jobs::recovery::{self, Identity, Policy, RecoveryJob, Resources};
use crate::machine::config::{Config, Layer};
use crate::machine::identity::hardware_name;
use crate::record::blackbox::{BlackBox, Marks};
use crate::record::journal::Journal;
use crate::record::progress::Bytes;
use crate::record::report::{self, Ending, Poster};
use crate::release::digest;
use crate::release::manifest::{SYSTEM_IMAGE, TrustedKeys};
use crate::sys::block::AlignedBuf;

/// Exit code: the command line could not be understood.
pub const USAGE: u8 = 2;
/// Exit code: the answer is no.
pub(super) const NO: u8 = 1;
/// Exit code: failed; trying again later can help.
pub(super) const LATER: u8 = 3;
/// Exit code: failed.
pub(super) const FAILED: u8 = 4;

/// Where configuration and keys of this system lie.
pub(super) const ETC: &str = "/etc/reflash";

/// Attempts of a transfer by hand; PID 1 tries for ever, a person can repeat the command.
const HAND_ROUNDS: u32 = 5;

/// What goes wrong by hand: any error, whose chain is printed once, and whether it can pass.
pub(super) struct Failure {
    pub(super) text: String,
    pub(super) code: u8,
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { text: chain(&error), code: FAILED }
    }
}

pub(super) fn failure<T>(text: impl Into<String>) -> Result<T, Failure> {
    Err(Failure { text: text.into(), code: FAILED })
}

/// Carries out a command and says how it went.
#[must_use]
pub fn run(command: Command) -> ExitCode {
    if command.common().is_some_and(|common| common.verbose) {
        // Fails only where a logger is set already, and nobody else sets one.
        let _ = simple_logger::SimpleLogger::new().with_level(log::LevelFilter::Debug).init();
    }
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
        Command::Provision(provision) => provision::run(&provision),
        Command::Verify(verify) => run_verify(&verify),
        Command::Status(common) => status::run(&common),
        Command::Report(common) => run_report(&common),
        Command::Good(common) => run_good(&common),
        Command::Request(common, wish) => run_request(&common, wish),
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

/// What a verb that takes a release works with, except the target.
pub(super) struct Bench {
    config: Config,
    keys: TrustedKeys,
    mirrors: Mirrors,
    journal: Arc<Journal>,
}

pub(super) fn bench(flash: &Flash) -> Result<Bench, Failure> {
    bench_of(flash, None)
}

pub(super) fn bench_of(flash: &Flash, mounted: Option<&MountedState>) -> Result<Bench, Failure> {
    let config = machine_config(&flash.common, mounted, flash_layer(flash))?;
    let keys = keys(&flash.common, mounted)?;
    let options = FetchOptions::with_clock_as_it_is(&config.network);
    let journal = Arc::new(Journal::on_stderr());
    let teller = Arc::clone(&journal);
    let mirrors = fetch::open_all(&config.urls, &options, RetryPolicy::Rounds(HAND_ROUNDS))?
        .on_retry(move |retry| teller.warn(&retry.to_string()));
    Ok(Bench { config, keys, mirrors, journal })
}

impl Bench {
    pub(super) fn job<'a>(&'a self, target: &'a dyn BlockTarget, allow_older: bool) -> RecoveryJob<'a> {
        RecoveryJob {
            identity: Identity {
                product: self.config.product.clone(),
                hardware: self.config.hardware.clone().or_else(hardware_name).unwrap_or_default(),
                channel: self.config.channel.clone(),
            },
            policy: Policy::requested(self.config.boot_tries, allow_older),
            resources: Resources::new(&self.keys, &self.mirrors, target),
            journal: &self.journal,
        }
    }
}

fn run_flash(flash: &Flash) -> Result<u8, Failure> {
    let machine_state = match (&flash.common.state, &flash.target) {
        // An image file or a disk on a bench has no state of this machine.
        (None, Some(_)) => None,
        _ => Some(MountedState::open(&flash.common)?),
    };
    let bench = bench_of(flash, machine_state.as_ref())?;
    let target_path = match (&flash.target, &machine_state) {
        (Some(path), _) => path.clone(),
        (None, Some(state)) => state.system_partition()?,
        (None, None) => return failure("no target: give --target DEV"),
    };
    let target =
        if flash.dry_run { DeviceTarget::open_read_only(&target_path)? } else { DeviceTarget::open(&target_path)? };
    let mut job = bench.job(&target, flash.allow_older);
    job.resources.state = machine_state.as_ref().map(|mounted| &mounted.state);
    let record = job.read_record();
    let failed = |error: recovery::RecoveryError| Failure {
        code: if error.is_retryable() { LATER } else { FAILED },
        text: chain(&error),
    };
    if flash.dry_run {
        let (release, totals) = recovery::estimate(&job, record.as_ref()).map_err(failed)?;
        let answer = json!({ "version": release.version, "serial": release.serial, "totals": totals });
        say(flash.common.json, &answer, || format!("{} on {}: {totals}", release.version, target.name()));
        return Ok(0);
    }
    if flash.no_read_back {
        let (release, totals) = recovery::write_only(&job, record.as_ref()).map_err(failed)?;
        let answer = json!({ "version": release.version, "serial": release.serial, "totals": totals });
        say(flash.common.json, &answer, || {
            format!("{} was written to {}, not read back", release.version, target.name())
        });
        return Ok(0);
    }
    let poster = machine_state.as_ref().and_then(|mounted| {
        let Bench { config, journal, .. } = &bench;
        let options = FetchOptions::with_clock_as_it_is(&config.network);
        Poster::start(this_machine(config, mounted), config.report_url.as_deref()?, &options, journal)
            .inspect_err(|error| journal.warn(&chain(error)))
            .ok()
    });
    let result = recovery::run(&job, record.as_ref());
    if let Some(poster) = poster {
        poster.close(match &result {
            Ok(_) => Ending::Installed,
            Err(error) if error.is_of_the_release() => Ending::Refused,
            Err(_) => Ending::Failed,
        });
    }
    let report = result.map_err(failed)?;
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
    let journal = Journal::on_stderr();
    let size_bytes = installed.index.image_bytes();
    let scan = journal.with_progress(Bytes::of_disk(size_bytes), |done| Scan::of(&installed.index, &target, done));
    let damaged: Vec<[u64; 2]> = scan.damaged_ranges().iter().map(|range| [range.start, range.end]).collect();
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

fn run_good(common: &Common) -> Result<u8, Failure> {
    let mounted = MountedState::open(common)?;
    let boot_env = mounted.state.boot_env();
    let env = boot_env.load_or_empty()?;
    let tries = env.get(names::MAX_TRIES).unwrap_or("3").to_owned();
    boot_env.update(&[(names::TRIES, Some(&tries)), (names::BOOT_OK, Some("1")), (names::RECOVERIES, None)])?;
    if let Ok(mut open) = BlackBox::open(&mounted.state.blackbox_path()) {
        let (marks, last) = (open.marks(), open.next_id() - 1);
        // Only after a recovery: a write at every boot would wear the disk for nothing.
        if marks.good_through != last {
            open.mark(Marks { good_through: last, ..marks })?;
        }
    }
    say(common.json, &json!({ "tries": tries }), || format!("this boot is good; {tries} tries before recovery"));
    Ok(0)
}

fn run_report(common: &Common) -> Result<u8, Failure> {
    let mounted = MountedState::open(common)?;
    let config = machine_config(common, Some(&mounted), Layer::default())?;
    let Some(url) = &config.report_url else {
        say(common.json, &json!({ "reported": false }), || "report.url is not configured; nobody is told".to_owned());
        return Ok(0);
    };
    let mut open = BlackBox::open(&mounted.state.blackbox_path())?;
    let who = this_machine(&config, &mounted);
    let Some(pending) = report::Pending::of(&open, &who) else {
        say(common.json, &json!({ "reported": false }), || "everything was reported before".to_owned());
        return Ok(0);
    };
    let options = FetchOptions::with_clock_as_it_is(&config.network);
    pending
        .post(url, &options)
        .map_err(|error| Failure { code: if error.is_retryable() { LATER } else { FAILED }, text: chain(&error) })?;
    pending.mark(&mut open);
    say(common.json, &json!({ "reported": true }), || format!("reported to {}", fetch::redacted(url)));
    Ok(0)
}

fn run_request(common: &Common, wish: RequestedAction) -> Result<u8, Failure> {
    let (entry, sentence) = match wish {
        RequestedAction::Reflash => ("recovery", "the next boot goes to recovery"),
        RequestedAction::FactoryReset => {
            ("factory-reset", "the next boot asks at the console whether to delete all data")
        }
    };
    let mounted = MountedState::open(common)?;
    mounted.state.boot_env().update(&[(names::NEXT_ENTRY, Some(entry))])?;
    say(common.json, &json!({ "next_entry": entry }), || sentence.to_owned());
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

pub(super) fn say(as_json: bool, answer: &Value, text: impl FnOnce() -> String) {
    if as_json { println!("{answer}") } else { println!("{}", text()) }
}

/// The options of `flash` as a layer over the machine's configuration.
fn flash_layer(flash: &Flash) -> Layer {
    let mut over = Layer::default();
    over.release.urls = Some(flash.urls.clone()).filter(|urls| !urls.is_empty());
    over.release.channel.clone_from(&flash.channel);
    over.network.max_rate_kib_s = flash.max_rate_kib_s;
    over.machine.product.clone_from(&flash.product);
    over.machine.hardware.clone_from(&flash.hardware);
    over
}

/// Configuration of the machine, with the command line over it.
fn machine_config(common: &Common, mounted: Option<&MountedState>, over: Layer) -> Result<Config, Failure> {
    let mut layer = Layer::default();
    let files = match &common.config {
        Some(path) => vec![path.clone()],
        None => directories(mounted).iter().map(|directory| directory.join("reflash.toml")).collect(),
    };
    for path in files {
        match fs::read_to_string(&path) {
            Ok(text) => layer = layer.overridden_by(Layer::parse(&path.display().to_string(), &text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && common.config.is_none() => {}
            Err(error) => return failure(format!("cannot read {}: {error}", path.display())),
        }
    }
    Ok(Config::resolve(layer.overridden_by(over))?)
}

/// Who is reported: a machine whose state is at hand. An image file or a disk on a bench is nobody yet.
fn this_machine(config: &Config, mounted: &MountedState) -> report::ReportedMachine {
    let asset = mounted.recovery.as_ref().and_then(|recovery| fs::read_to_string(recovery.join("asset")).ok());
    report::ReportedMachine::this(&config.product, config.hostname.as_deref(), asset.as_deref().map(str::trim))
}

pub(super) fn keys(common: &Common, mounted: Option<&MountedState>) -> Result<TrustedKeys, Failure> {
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
