//! The machine as far as it must be known before the network: drivers, disk, state, configuration.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::{SHUTDOWN_GRACE, SetupError};
use crate::arbiter::{Reason, Recoveries, System};
use crate::blackbox::{BlackBox, Outcome, Recorder};
use crate::chain::chain;
use crate::clock::{self, ClockPolicy};
use crate::config::{BootArgs, Config, Layer};
use crate::digest::is_zero;
use crate::fetch::{self, FetchError, Mirrors, Options, Patience};
use crate::journal::{Journal, Phase};
use crate::manifest::{ManifestError, TrustedKeys};
use crate::recovery::{self, Machine};
use crate::state::{Installed, State};
use crate::sys::{self, block::AlignedBuf, block::Which};
use crate::target::{BlockTarget, DeviceTarget};
use crate::verify::Verified;
use crate::watchdog;

/// Where the recovery partition is mounted, read-only.
const RECOVERY: &str = "/recovery";
/// Where the state partition is mounted.
const STATE: &str = "/state";
/// Configuration and keys that travel in the initramfs, below those of the recovery partition.
const BUILT_IN: &str = "/etc/reflash";
/// An empty state partition, for one that was destroyed.
const STATE_TEMPLATE: &str = "/recovery/templates/state.ext4.zst";

/// USB disks take up to 20 s to spin up and answer; a disk that takes longer is not there.
const DISK_WAIT: Duration = Duration::from_secs(30);
/// A file system that does not mount is tried again once after this, in case its disk was still waking up.
const MOUNT_AGAIN: Duration = Duration::from_secs(2);

/// What the rest of the story works with.
pub(super) struct Setup {
    pub args: BootArgs,
    pub reason: Reason,
    pub config: Config,
    pub keys: TrustedKeys,
    pub state: State,
    pub target: DeviceTarget,
    pub hardware: String,
    /// Automatic recoveries before this one.
    pub recoveries: Recoveries,
    /// The black box, if it can be written.
    pub recorder: Option<Recorder>,
    /// Keeps loading drivers for what is plugged in later.
    _coldplug: sys::modules::Coldplug,
}

impl Setup {
    pub(super) fn new(journal: &Arc<Journal>) -> Result<Self, SetupError> {
        let command_line = read("/proc/cmdline")?;
        let (over, args) = Layer::from_kernel_command_line(&command_line)?;
        super::console::log_libraries(args.verbose);
        let reason = Reason::parse(args.reason.as_deref());
        let word = args.reason.clone().unwrap_or_else(|| "not given".to_owned());
        let sentence = format!("reflash {}, reason: {word} ({})", env!("CARGO_PKG_VERSION"), reason.sentence());
        let (coldplug, state, target, recorder) = journal.phase(Phase::Init, &sentence, || {
            let teller = Arc::clone(journal);
            let signals = sys::init::start_signal_thread(SHUTDOWN_GRACE, move |text| teller.warn(text));
            if let Err(error) = signals {
                journal.warn(&format!("ctrl-alt-del will not work: {error}"));
            }
            let coldplug = load_modules(journal)?;
            let (state, target) = open_disk(&args, journal)?;
            let recorder = open_records(&state, &word, reason, journal);
            Ok::<_, SetupError>((coldplug, state, target, recorder))
        })?;
        let (config, keys, hardware) = journal.phase(Phase::Config, "read configuration and keys", || {
            let config = Config::resolve(read_layers()?.overridden_by(over))?;
            let keys = read_keys(&[format!("{RECOVERY}/keys"), format!("{BUILT_IN}/keys")])?;
            let hardware = config.hardware.clone().or_else(hardware_name).unwrap_or_default();
            journal.note(&format!("product {}, hardware {hardware:?}, {} trusted keys", config.product, keys.len()));
            Ok::<_, SetupError>((config, keys, hardware))
        })?;
        if let Some(limit) = config.stall {
            watchdog::start(journal, limit);
        }
        let recoveries = count_recoveries(&state, recorder.as_ref());
        if reason.blames_environment()
            && let Err(error) = state.boot_env().renew()
        {
            // Also told when it matters: before the first write.
            journal.warn(&chain(&error));
        }
        Ok(Self { args, reason, config, keys, state, target, hardware, recoveries, recorder, _coldplug: coldplug })
    }
}

/// The system partition, compared with the record of what is installed.
pub(super) enum Compared {
    /// There is none, or nobody compared.
    NoRecord,
    /// Equal, with the proof.
    Intact(Verified, Box<Installed>),
    /// Not equal.
    Damaged,
}

impl Compared {
    pub(super) fn system(&self) -> System {
        match self {
            Self::NoRecord => System::Unknown,
            Self::Intact(..) => System::Intact,
            Self::Damaged => System::Damaged,
        }
    }
}

impl Setup {
    /// Sets a clock that cannot be right, and opens the sources. Nothing is connected yet.
    pub(super) fn open_mirrors(&self, journal: &Arc<Journal>) -> Result<Mirrors, FetchError> {
        let last_manifest = self.state.installed_manifest(&self.keys).map(|(_, manifest)| manifest.created_unix_s);
        let policy = ClockPolicy::new(clock::BUILD_TIME, last_manifest);
        if let clock::Start::SetTo(seconds) = policy.start(unix_now()) {
            let now = unix_now();
            journal.warn(&format!("the hardware clock says {now} s since 1970, which is past; set to {seconds}"));
            set_clock(seconds);
        }
        let clock = Arc::new(fetch::Clock::adjustable(policy, Box::new(set_clock)));
        let teller = Arc::clone(journal);
        let options = Options::new(&self.config.network, clock);
        let mirrors = fetch::open_all(&self.config.urls, &options, Patience::Forever)?;
        Ok(mirrors.on_retry(move |retry| teller.warn(&super::retry_sentence(retry))))
    }

    pub(super) fn machine<'a>(&'a self, mirrors: &'a Mirrors, journal: &'a Journal) -> Machine<'a> {
        Machine {
            product: self.config.product.clone(),
            hardware: self.hardware.clone(),
            channel: self.config.channel.clone(),
            tries: self.config.boot_tries,
            allow_older: self.args.force,
            asked_for: self.reason.is_asked_for(),
            recoveries: self.recoveries,
            keys: &self.keys,
            source: mirrors,
            target: &self.target,
            state: Some(&self.state),
            journal,
            learn_time: &learn_time,
        }
    }

    /// Compares the system with what is recorded as installed.
    pub(super) fn compare(&self, machine: &Machine<'_>) -> Compared {
        let Some(installed) = self.state.installed(&self.keys) else {
            machine.journal.note("no record of an installed release to compare with");
            return Compared::NoRecord;
        };
        match recovery::compare(machine, &installed) {
            Ok(proof) => Compared::Intact(proof, Box::new(installed)),
            Err(_) => Compared::Damaged,
        }
    }

    /// Tells the records how this attempt ends.
    pub(super) fn finish(&self, outcome: Outcome) {
        if let Some(recorder) = &self.recorder {
            recorder.finish(outcome);
        }
    }
}

fn unix_now() -> u64 {
    sys::clock::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn set_clock(unix_s: u64) {
    // A clock that cannot be set leaves certificates to fail with their own message.
    let _ = sys::clock::set(UNIX_EPOCH + Duration::from_secs(unix_s));
}

/// An authentic manifest was not made in the future.
fn learn_time(created_unix_s: u64) {
    if unix_now() < created_unix_s {
        set_clock(created_unix_s);
    }
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
    // Beside the story: the disk is waited for by itself, and a robot whose answer is cheap needs no more than that.
    let teller = Arc::clone(journal);
    std::thread::spawn(move || tell_modules(&teller, &loader.load_for_present_devices()));
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
    mount_state(&partition("state")?, journal)?;
    Ok((State::new(Path::new(STATE)), DeviceTarget::open(&partition("system")?)?.on_disk(&disk)))
}

/// Mounts the state partition; one that was destroyed is made anew. Nothing on it is a person's: what is installed is
/// found out again by comparison with the release, and an empty environment leads back here.
fn mount_state(partition: &Path, journal: &Journal) -> Result<(), SetupError> {
    if open_state(partition).is_ok() {
        return Ok(());
    }
    std::thread::sleep(MOUNT_AGAIN);
    let Err(error) = open_state(partition) else { return Ok(()) };
    journal.warn(&format!("the state partition is lost: {}", chain(&error)));
    make_state(partition).map_err(|source| SetupError::State { path: partition.to_owned(), source })?;
    journal.warn("the state partition was made anew; what is installed is not known any more");
    open_state(partition)
}

/// Mounts it, and asks for what the next boot depends on: a file system can mount whose inode of grubenv is lost, which
/// could be neither read nor replaced.
fn open_state(partition: &Path) -> Result<(), SetupError> {
    sys::mount::Mount::device(partition, "ext4").data_only().on(STATE)?;
    State::new(Path::new(STATE)).boot_env().load().map(drop).or_else(|error| {
        sys::mount::unmount(STATE)?;
        Err(error.into())
    })
}

fn make_state(partition: &Path) -> std::io::Result<()> {
    const STEP_BYTES: usize = 1024 * 1024;
    let target = DeviceTarget::open(partition).map_err(std::io::Error::other)?;
    let mut template = zstd::stream::read::Decoder::new(fs::File::open(STATE_TEMPLATE)?)?;
    let mut buffer = AlignedBuf::zeroed(STEP_BYTES);
    let mut offset = 0;
    loop {
        let mut len = 0;
        while len < STEP_BYTES {
            match template.read(&mut buffer[len..])? {
                0 => break,
                more => len += more,
            }
        }
        if len == 0 {
            return target.flush();
        }
        if is_zero(&buffer[..len]) {
            target.zero(offset..offset + len as u64)?;
        } else {
            target.write_at(offset, &buffer[..len])?;
        }
        offset += len as u64;
    }
}

/// Opens the event log and the black box. A machine without them recovers all the same.
fn open_records(state: &State, word: &str, reason: Reason, journal: &Journal) -> Option<Recorder> {
    match state.open_events() {
        Ok(events) => journal.open_events(Box::new(events)),
        Err(error) => journal.warn(&format!("no event log: {error}")),
    }
    match BlackBox::open(&state.blackbox_path()) {
        Ok(open) => {
            let recorder = Recorder::begin(open, word, reason.is_asked_for());
            let witness = recorder.clone();
            journal.also_tell(Box::new(move |told| witness.witness(told)));
            Some(recorder)
        }
        Err(error) => {
            journal.warn(&format!("no black box: {error}"));
            None
        }
    }
}

/// What the environment says, or the black box where that is lost. The higher count is believed: to wait for another
/// release does no harm that a person or that release cannot undo.
fn count_recoveries(state: &State, recorder: Option<&Recorder>) -> Recoveries {
    let environment = state.boot_env().recoveries().unwrap_or_default();
    let recorded = recorder.map(|recorder| recorder.with(|open| open.recoveries())).unwrap_or_default();
    if recorded.count > environment.count { recorded } else { environment }
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

/// The DMI product name, or the device tree's model.
pub(crate) fn hardware_name() -> Option<String> {
    sys::dmi::identity().product_name
}

fn read(path: &str) -> Result<String, SetupError> {
    fs::read_to_string(path).map_err(|source| SetupError::Read { path: path.to_owned(), source })
}
