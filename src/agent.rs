//! The recovery agent: PID 1 of the recovery initramfs. The only file that knows the whole story:
//! init, config, network, then [`crate::recovery`] from manifest to commit, and what follows from how it ended.

mod console;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::boot;
use crate::bootenv::BootEnvError;
use crate::chain::chain;
use crate::clock::{self, ClockPolicy};
use crate::config::{BootArgs, Config, ConfigError, Layer};
use crate::fetch::{self, FetchError, Mirrors, Options, Patience};
use crate::journal::{Journal, Phase};
use crate::manifest::{ManifestError, TrustedKeys};
use crate::recovery::{self, Machine, RecoveryError};
use crate::state::State;
use crate::sys::{self, block::Which};
use crate::target::DeviceTarget;
use crate::verify::Reading;

/// File in the initramfs that says which job PID 1 has.
const ROLE_FILE: &str = "/etc/reflash/role";
/// Where the recovery partition is mounted, read-only.
const RECOVERY: &str = "/recovery";
/// Where the state partition is mounted.
const STATE: &str = "/state";
/// Configuration and keys that travel in the initramfs, below those of the recovery partition.
const BUILT_IN: &str = "/etc/reflash";

/// USB disks take up to 20 s to spin up and answer; a disk that takes longer is not there.
const DISK_WAIT: Duration = Duration::from_secs(30);
/// Time a person has to read a panic or a final message before the machine restarts.
const READING_TIME: Duration = Duration::from_secs(20);
/// How long the main thread has to end by itself after ctrl-alt-del. Nothing here needs it: a cut is always safe.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Time until a machine that could not even be set up is restarted: long enough to read, short enough at night.
const START_OVER: Duration = Duration::from_secs(600);
/// A parked agent looks for another release this often.
const PARK_POLL: Duration = Duration::from_secs(120);

/// What PID 1 is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Recovery agent.
    Recovery,
    /// First step of the system's own boot.
    System,
}

/// How the story ends. A value, not an error: `run` turns it into the machine's next state.
enum Outcome {
    /// Start what GRUB now starts.
    Reboot(String),
    /// Nothing more can be done here; say why and stay.
    Park(String),
}

/// Everything that keeps the agent from even trying a recovery.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error("the machine could not be set up")]
    Mount(#[from] sys::mount::MountError),
    #[error("the kernel modules could not be used")]
    Modules(#[from] sys::modules::ModuleError),
    #[error("the disk to recover was not found")]
    Disk(#[from] sys::block::FindError),
    #[error("the system partition cannot be opened")]
    Open(#[from] sys::block::BlockError),
    #[error("the disk {disk} has no partition named {name:?}")]
    Partition { disk: String, name: &'static str },
    #[error("GRUB did not say which recovery partition it started from (reflash.recovery= is missing)")]
    NoRecoveryPartition,
    #[error("the configuration cannot be used")]
    Config(#[from] ConfigError),
    #[error("cannot read {path}")]
    Read { path: String, source: std::io::Error },
    #[error("a trusted key cannot be used")]
    Key(#[from] ManifestError),
    #[error("the release servers cannot be used")]
    Sources(#[from] FetchError),
    #[error("the network could not be brought up")]
    Network(#[from] sys::net::NetError),
    #[error("the boot environment could not be read")]
    Environment(#[from] BootEnvError),
}

/// Which job the initramfs gives PID 1. A missing file means recovery: the initramfs is then an old one of ours.
#[must_use]
pub fn role() -> Role {
    match fs::read_to_string(ROLE_FILE) {
        Ok(role) if role.trim() == "system" => Role::System,
        _ => Role::Recovery,
    }
}

/// Runs the agent as PID 1. Never returns: the machine reboots, or stays parked.
pub fn run() -> ! {
    sys::init::install_panic_hook(READING_TIME);
    let brought_up = sys::init::bring_up();
    let journal = Arc::new(console::open_journal());
    let outcome = match brought_up {
        Ok(notes) => {
            notes.iter().for_each(|note| journal.warn(note));
            recover(&journal)
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(Outcome::Reboot(why)) => {
            journal.note(&why);
            restart(&journal)
        }
        Ok(Outcome::Park(why)) => park(&journal, &why),
        Err(error) => start_over(&journal, &chain(&error)),
    }
}

/// The machine as far as it must be known before the network: disk, state, configuration.
struct Setup {
    args: BootArgs,
    config: Config,
    keys: TrustedKeys,
    state: State,
    target: DeviceTarget,
    hardware: String,
    /// Keeps loading drivers for what is plugged in later.
    _coldplug: sys::modules::Coldplug,
}

fn recover(journal: &Arc<Journal>) -> Result<Outcome, SetupError> {
    let setup = set_up(journal)?;
    if let Some(outcome) = cheap_answer(&setup, journal)? {
        return Ok(outcome);
    }
    let policy = start_clock(&setup, journal);
    let _network = journal.phase(Phase::Network, "bring up the network", || {
        let teller = Arc::clone(journal);
        sys::net::bring_up(&setup.config.network, move |text: &str| teller.note(text))
    })?;
    let mirrors = open_mirrors(&setup.config, policy, journal)?;
    Ok(recover_until_done(&setup, &mirrors, journal))
}

fn set_up(journal: &Arc<Journal>) -> Result<Setup, SetupError> {
    let command_line = read("/proc/cmdline")?;
    let (over, args) = Layer::from_kernel_command_line(&command_line)?;
    let reason = args.reason.as_deref().unwrap_or("not given");
    let sentence = format!("reflash {}, reason: {reason}", env!("CARGO_PKG_VERSION"));
    let (coldplug, state, target) = journal.phase(Phase::Init, &sentence, || {
        let teller = Arc::clone(journal);
        let signals = sys::init::start_signal_thread(SHUTDOWN_GRACE, move |text| teller.warn(text));
        if let Err(error) = signals {
            journal.warn(&format!("ctrl-alt-del will not work: {error}"));
        }
        let coldplug = load_modules(journal)?;
        let (state, target) = open_disk(&args, journal)?;
        Ok::<_, SetupError>((coldplug, state, target))
    })?;
    let (config, keys, hardware) = journal.phase(Phase::Config, "read configuration and keys", || {
        let config = Config::resolve(read_layers()?.overridden_by(over))?;
        let keys = read_keys(&[format!("{RECOVERY}/keys"), format!("{BUILT_IN}/keys")])?;
        let hardware = config.hardware.clone().or_else(hardware_name).unwrap_or_default();
        journal.note(&format!("product {}, hardware {hardware:?}, {} trusted keys", config.product, keys.len()));
        Ok::<_, SetupError>((config, keys, hardware))
    })?;
    Ok(Setup { args, config, keys, state, target, hardware, _coldplug: coldplug })
}

fn load_modules(journal: &Arc<Journal>) -> Result<sys::modules::Coldplug, SetupError> {
    let loader = Arc::new(sys::modules::Loader::for_running_kernel()?);
    // Named by no device: file systems, and raw sockets for DHCP.
    for name in ["ext4", "af_packet"] {
        loader.load(name)?;
    }
    // Started before the walk, so that a device which appears meanwhile is not missed.
    let teller = Arc::clone(journal);
    let coldplug = sys::modules::Coldplug::start(Arc::clone(&loader), move |loaded| tell_modules(&teller, loaded))
        .map_err(|source| SetupError::Read { path: "kernel device events".to_owned(), source })?;
    tell_modules(journal, &loader.load_for_present_devices());
    Ok(coldplug)
}

fn tell_modules(journal: &Journal, loaded: &sys::modules::Loaded) {
    if !loaded.modules.is_empty() {
        journal.note(&format!("drivers: {}", loaded.modules.join(" ")));
    }
    for failure in &loaded.failures {
        journal.warn(&chain(failure));
    }
}

/// Finds the disk GRUB started from, mounts its recovery and state partitions, and opens its system partition.
fn open_disk(args: &BootArgs, journal: &Journal) -> Result<(State, DeviceTarget), SetupError> {
    let partuuid = args.recovery_partuuid.as_deref().ok_or(SetupError::NoRecoveryPartition)?;
    let found = sys::block::wait_for_disk_by_partuuid(partuuid, Which::Physical, DISK_WAIT, || {
        journal.note("waiting for the disk");
    })?;
    let disk = found.disk.to_string();
    let partition = |name: &'static str| {
        let node = found.layout.named(name).and_then(|partition| partition.node.clone());
        node.ok_or_else(|| SetupError::Partition { disk: disk.clone(), name })
    };
    journal.note(&format!("disk {disk}"));
    sys::mount::Mount::device(partition("recovery")?, "ext4").read_only().on(RECOVERY)?;
    sys::mount::Mount::device(partition("state")?, "ext4").data_only().on(STATE)?;
    let state = State::new(Path::new(STATE));
    match state.open_events() {
        Ok(events) => journal.open_events(Box::new(events)),
        Err(error) => journal.warn(&format!("no event log: {error}")),
    }
    Ok((state, DeviceTarget::open(&partition("system")?)?))
}

fn read_layers() -> Result<Layer, SetupError> {
    let mut merged = Layer::default();
    for path in [format!("{BUILT_IN}/reflash.toml"), format!("{RECOVERY}/reflash.toml")] {
        match fs::read_to_string(&path) {
            Ok(text) => merged = merged.overridden_by(Layer::parse(&path, &text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(SetupError::Read { path, source }),
        }
    }
    Ok(merged)
}

/// Reads `*.pub` of every directory that is there. One unreadable key is refused rather than skipped: a robot that
/// trusts fewer keys than its maker believes is found out when it is too late.
pub(crate) fn read_keys(directories: &[String]) -> Result<TrustedKeys, ManifestError> {
    let mut keys = TrustedKeys::default();
    for directory in directories {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        let mut paths: Vec<_> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "pub")) {
            let name = path.display().to_string();
            keys.add(&name, &fs::read_to_string(path).unwrap_or_default())?;
        }
    }
    Ok(keys)
}

/// Without any network: a system that is intact and only lost its boot environment is simply started.
fn cheap_answer(setup: &Setup, journal: &Journal) -> Result<Option<Outcome>, SetupError> {
    let only_env_lost = setup.args.reason.as_deref() == Some("env-lost");
    if !only_env_lost {
        return Ok(None);
    }
    let Some(installed) = setup.state.installed(&setup.keys) else { return Ok(None) };
    let version = &installed.manifest.version;
    let reading = journal.phase(Phase::Plan, &format!("compare with the installed release {version}"), || {
        let index = &installed.index;
        Ok::<_, BootEnvError>(
            journal.with_progress(index.image_bytes(), |done| Reading::of(index, &setup.target, done)),
        )
    })?;
    let Ok(proof) = reading.into_verified() else {
        journal.warn("the system differs from the installed release");
        return Ok(None);
    };
    let permit = setup.state.boot_env().begin_recovering()?;
    let tries = setup.config.boot_tries;
    match boot::commit(proof, permit, Some(&setup.state), &installed.signed, &installed.index, tries) {
        Ok(_) => {
            Ok(Some(Outcome::Reboot(format!("the boot environment was lost and {version} is intact: starting it"))))
        }
        Err(error) => Ok(Some(Outcome::Park(chain(&error)))),
    }
}

/// Sets a clock that cannot be right, see [`crate::clock`].
fn start_clock(setup: &Setup, journal: &Journal) -> ClockPolicy {
    let last_manifest = setup.state.installed_manifest(&setup.keys).map(|(_, manifest)| manifest.created_unix_s);
    let policy = ClockPolicy::new(clock::BUILD_TIME, last_manifest);
    let now = sys::clock::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if let clock::Start::SetTo(seconds) = policy.start(now) {
        journal.warn(&format!("the hardware clock says {now} s since 1970, which is past; set to {seconds}"));
        set_clock(seconds);
    }
    policy
}

fn set_clock(unix_s: u64) {
    // A clock that cannot be set leaves certificates to fail with their own message.
    let _ = sys::clock::set(std::time::UNIX_EPOCH + Duration::from_secs(unix_s));
}

fn open_mirrors(config: &Config, policy: ClockPolicy, journal: &Arc<Journal>) -> Result<Mirrors, FetchError> {
    let clock = Arc::new(fetch::Clock::adjustable(policy, Box::new(set_clock)));
    let teller = Arc::clone(journal);
    let mirrors = fetch::open_all(&config.urls, &Options::new(&config.network, clock), Patience::Forever)?;
    Ok(mirrors.on_retry(move |retry| teller.warn(&retry_sentence(retry))))
}

/// What is said about a transfer that is repeated.
pub(crate) fn retry_sentence(retry: &fetch::Retry<'_>) -> String {
    let wait = retry.wait.as_secs();
    if wait == 0 {
        return format!("{}; asking {}", chain(retry.error), retry.next);
    }
    format!("{}; asking {} in {wait} s", chain(retry.error), retry.next)
}

/// Tries until it is done or nothing changes by trying again; then waits for another release.
fn recover_until_done(setup: &Setup, mirrors: &Mirrors, journal: &Journal) -> Outcome {
    let learn_time = |created: u64| {
        if sys::clock::now() < std::time::UNIX_EPOCH + Duration::from_secs(created) {
            set_clock(created);
        }
    };
    let machine = Machine {
        product: setup.config.product.clone(),
        hardware: setup.hardware.clone(),
        channel: setup.config.channel.clone(),
        tries: setup.config.boot_tries,
        allow_older: setup.args.force,
        keys: &setup.keys,
        source: mirrors,
        target: &setup.target,
        state: Some(&setup.state),
        journal,
        learn_time: &learn_time,
    };
    let started = Instant::now();
    let mut attempt = 1;
    loop {
        let error = match recovery::run(&machine) {
            Ok(report) => {
                let seconds = started.elapsed().as_secs();
                return Outcome::Reboot(format!("{} is installed after {seconds} s: starting it", report.version));
            }
            Err(error) => error,
        };
        journal.warn(&chain(&error));
        let wait = match &error {
            error if error.is_retryable() => fetch::backoff(attempt, jitter_seed()),
            error if can_be_cured_by_another_release(error) => PARK_POLL,
            error => return Outcome::Park(chain(error)),
        };
        journal.note(&format!("trying again in {} s", wait.as_secs()));
        std::thread::sleep(wait);
        attempt = attempt.saturating_add(1);
    }
}

/// A release that is refused, or cannot be used, may be replaced by one that can.
fn can_be_cured_by_another_release(error: &RecoveryError) -> bool {
    use crate::write::WriteError;
    matches!(
        error,
        RecoveryError::Fetch { .. }
            | RecoveryError::Manifest(_)
            | RecoveryError::Index(_)
            | RecoveryError::SizesDiffer { .. }
            | RecoveryError::Write(WriteError::TooLarge { .. } | WriteError::Fetch { .. })
    )
}

/// The DMI product name, or the device tree's model.
pub(crate) fn hardware_name() -> Option<String> {
    sys::dmi::identity().product_name
}

/// Differs between machines and starts, so that a fleet does not ask in step.
fn jitter_seed() -> u64 {
    let now = sys::clock::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    let identity = sys::dmi::identity();
    crate::digest::block_hash(format!("{now} {:?}", identity.product_serial).as_bytes())
}

/// Nothing was written yet and something basic is missing: a disk that did not answer, a damaged file system. It may
/// be back after a restart, and a person may have mended the configuration.
fn start_over(journal: &Journal, why: &str) -> ! {
    journal.warn(&format!("recovery cannot go on: {why}"));
    journal.note(&format!("restarting in {} minutes; ctrl-alt-del restarts at once", START_OVER.as_secs() / 60));
    std::thread::sleep(START_OVER);
    restart(journal)
}

/// Says why, and stays: a person reads it on the screen, and the disk is not written over and over. Ctrl-alt-del
/// restarts.
fn park(journal: &Journal, why: &str) -> ! {
    journal.warn(&format!("recovery cannot go on: {why}"));
    journal.note("parked; ctrl-alt-del restarts the machine");
    loop {
        std::thread::park();
    }
}

fn restart(journal: &Journal) -> ! {
    loop {
        let Err(error) = sys::power::reboot();
        journal.warn(&format!("the kernel refuses to reboot: {error}"));
        std::thread::sleep(READING_TIME);
    }
}

fn read(path: &str) -> Result<String, SetupError> {
    fs::read_to_string(path).map_err(|source| SetupError::Read { path: path.to_owned(), source })
}
