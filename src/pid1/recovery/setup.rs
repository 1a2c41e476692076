//! The machine as far as it must be known before the network: drivers, disk, state, configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use super::{SHUTDOWN_GRACE, SetupError};
use crate::boot::decide::{Reason, Recoveries, System};
use crate::boot::slots::Slot;
use crate::chain::chain;
use crate::disk::Which;
use crate::disk::roles::Role;
use crate::fetch::{self, FetchError, FetchOptions, Mirrors, RetryPolicy, Source};
use crate::flash::target::{BlockTarget, CopyError, DeviceTarget, copy_blocks};
use crate::flash::verify::Verified;
use crate::jobs::keys::read_keys;
use crate::jobs::recovery::{self, Machine, RecoveryPartition, Renewal};
use crate::jobs::state::{InstalledRelease, StatePartition};
use crate::machine::clock::{self, ClockPolicy};
use crate::machine::config::{BootArgs, Config, Layer};
use crate::machine::identity::hardware_name;
use crate::pid1::recovery::boot_medium::{self, BootMedium};
use crate::pid1::recovery::inputs::read_if_there;
use crate::pid1::recovery::usb_release::UsbRelease;
use crate::pid1::watchdog;
use crate::record::blackbox::{AttemptOutcome, BlackBox, Recorder};
use crate::record::journal::{Journal, Phase};
use crate::record::report::{self, Poster};
use crate::release::manifest::TrustedKeys;
use crate::sys;

/// Where the recovery partition is mounted, read-only.
const RECOVERY: &str = "/recovery";
/// Where the state partition is mounted.
const STATE: &str = "/state";
/// Configuration and keys that travel in the initramfs, below those of the recovery partition.
pub(super) const BUILT_IN: &str = "/etc/reflash";
/// An empty state partition, for one that was destroyed.
const STATE_TEMPLATE: &str = "/recovery/templates/state.ext4.zst";
/// An empty data partition, for a factory reset.
pub(super) const DATA_TEMPLATE: &str = "/recovery/templates/data.ext4.zst";

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
    pub state: StatePartition,
    pub target: DeviceTarget,
    /// The recovery partition.
    pub recovery: RecoveryPartition,
    /// The data partition.
    pub data: PathBuf,
    /// The disk, for people.
    pub disk: String,
    /// A stick with a release, if one is plugged in.
    pub stick: Arc<UsbRelease>,
    pub hardware: String,
    /// Automatic recoveries before this one.
    pub recoveries: Recoveries,
    /// The black box, if it can be written.
    pub recorder: Option<Recorder>,
    /// Tells what goes on, from the network on.
    pub poster: OnceLock<Poster>,
    /// Keeps loading drivers for what is plugged in later.
    _coldplug: crate::machine::drivers::Coldplug,
}

impl Setup {
    pub(super) fn new(args: BootArgs, over: Layer, journal: &Arc<Journal>) -> Result<Self, SetupError> {
        // Only a person starts a machine from a medium.
        let given = args.reason.clone().or_else(|| args.media.map(|_| "menu".to_owned()));
        let reason = Reason::parse(given.as_deref());
        let word = given.unwrap_or_else(|| "not given".to_owned());
        let sentence = format!("reflash {}, reason: {word} ({})", env!("CARGO_PKG_VERSION"), reason.description());
        let (coldplug, medium, robot, recorder) = journal.phase(Phase::Init, &sentence, || {
            take_signals(journal);
            let coldplug = load_modules(if args.media.is_some() { &["isofs"] } else { &[] }, journal)?;
            let medium = args.media.map(|id| BootMedium::open(id, journal)).transpose()?;
            let robot = open_disk(&args, medium.as_ref(), journal)?;
            let recorder = open_records(&robot.state, &word, reason, journal);
            Ok::<_, SetupError>((coldplug, medium, robot, recorder))
        })?;
        let OpenDisk { recovery, state, target, data, disk, disk_name } = robot;
        let (config, keys, hardware) = journal.phase(Phase::Config, "read configuration and keys", || {
            let mut layer = read_layers()?;
            let mut directories = vec![format!("{RECOVERY}/keys"), format!("{BUILT_IN}/keys")];
            if let Some(medium) = &medium {
                medium.contribute(&mut layer, &mut directories)?;
            }
            let config = Config::resolve(layer.overridden_by(over))?;
            let keys = read_keys(&directories)?;
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
        let poster = OnceLock::new();
        let stick = Arc::new(UsbRelease::new(&disk_name, &config.channel, journal));
        Ok(Self {
            args,
            reason,
            config,
            keys,
            state,
            target,
            recovery,
            data,
            disk,
            stick,
            hardware,
            recoveries,
            recorder,
            poster,
            _coldplug: coldplug,
        })
    }
}

/// The system partition, compared with the record of what is installed.
pub(super) enum Compared {
    /// There is none, or nobody compared.
    NoRecord,
    /// Equal, with the proof.
    Intact(Verified, Box<InstalledRelease>),
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
    /// As [`open_mirrors`], with what is known of this machine, and with the stick that is or will be plugged in before
    /// the rest.
    pub(super) fn open_mirrors(&self, journal: &Arc<Journal>) -> Result<Mirrors, FetchError> {
        let last_manifest = self.state.installed_manifest(&self.keys).map(|(_, manifest)| manifest.created_unix_s);
        open_mirrors(&self.config, Some(Box::new(Arc::clone(&self.stick))), last_manifest, journal)
    }

    /// `bounded_mirrors` gives up by itself: for what may be had later.
    pub(super) fn machine<'a>(
        &'a self,
        mirrors: &'a Mirrors,
        bounded_mirrors: &'a Mirrors,
        journal: &'a Journal,
    ) -> Machine<'a> {
        let booted = Slot::parse(self.args.slot.as_deref());
        Machine {
            product: self.config.product.clone(),
            hardware: self.hardware.clone(),
            channel: self.config.channel.clone(),
            tries: self.config.boot_tries,
            allow_older: self.args.force,
            requested: self.reason.is_requested(),
            recoveries: self.recoveries,
            keys: &self.keys,
            source: mirrors,
            target: &self.target,
            state: Some(&self.state),
            renewal: Some(Renewal { medium: &self.recovery, source: bounded_mirrors, booted }),
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

    /// Who this machine is, for whoever is told. Not known before the network is up: the driver of the card that is part
    /// of it is loaded beside the story.
    pub(super) fn who(&self) -> report::ReportedMachine {
        // Written at provisioning; most machines have none.
        let asset = fs::read_to_string(format!("{RECOVERY}/asset")).ok();
        let template = self.config.hostname.as_deref();
        report::ReportedMachine::this(&self.config.product, template, asset.as_deref().map(str::trim))
    }

    /// Tells the records, and whoever listens, how this attempt ends.
    pub(super) fn finish(&self, outcome: AttemptOutcome) {
        if let Some(poster) = self.poster.get() {
            poster.settle(outcome.into());
        }
        if let Some(recorder) = &self.recorder {
            recorder.finish(outcome);
        }
    }
}

/// Sets a clock that cannot be right, by what is known (`last_manifest` in seconds since 1970), and opens the sources:
/// `first`, and the configured ones. Nothing is connected yet.
pub(super) fn open_mirrors(
    config: &Config,
    first: Option<Box<dyn Source>>,
    last_manifest: Option<u64>,
    journal: &Arc<Journal>,
) -> Result<Mirrors, FetchError> {
    let policy = ClockPolicy::new(clock::BUILD_TIME, last_manifest);
    if let clock::Start::SetTo(seconds) = policy.start(unix_now()) {
        let now = unix_now();
        journal.warn(&format!("the hardware clock says {now} s since 1970, which is past; set to {seconds}"));
        set_clock(seconds);
    }
    let clock = Arc::new(fetch::CertificateClock::adjustable(policy, Box::new(set_clock)));
    let teller = Arc::clone(journal);
    let options = FetchOptions::new(&config.network, clock);
    let configured = config.urls.iter().map(|url| fetch::open(url, &options));
    let sources = first.into_iter().map(Ok).chain(configured).collect::<Result<_, _>>()?;
    let mirrors = Mirrors::new(sources, RetryPolicy::Forever);
    Ok(mirrors.on_retry(move |retry| teller.warn(&retry.to_string())))
}

/// Whether no server is needed.
pub(super) fn is_at_hand(config: &Config) -> bool {
    config.urls.iter().all(|url| url.starts_with("file:"))
}

fn unix_now() -> u64 {
    sys::clock::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn set_clock(unix_s: u64) {
    // A clock that cannot be set leaves certificates to fail with their own message.
    let _ = sys::clock::set(UNIX_EPOCH + Duration::from_secs(unix_s));
}

/// An authentic manifest was not made in the future.
pub(super) fn learn_time(created_unix_s: u64) {
    if unix_now() < created_unix_s {
        set_clock(created_unix_s);
    }
}

/// Ctrl-alt-del and a program's wish to end shut down in order.
pub(super) fn take_signals(journal: &Arc<Journal>) {
    let teller = Arc::clone(journal);
    let signals = sys::init::start_signal_thread(SHUTDOWN_GRACE, move |text| teller.warn(text));
    if let Err(error) = signals {
        journal.warn(&format!("ctrl-alt-del will not work: {error}"));
    }
}

/// Loads what no device asks for (`more` beside what is always needed) and what the devices do.
pub(super) fn load_modules(
    more: &[&str],
    journal: &Arc<Journal>,
) -> Result<crate::machine::drivers::Coldplug, SetupError> {
    let loader = Arc::new(crate::machine::drivers::Loader::for_running_kernel()?);
    // Named by no device: file systems, and raw sockets for DHCP.
    for name in ["ext4", "af_packet"].iter().chain(more) {
        loader.load(name)?;
    }
    // Started before the walk, so that a device which appears meanwhile is not missed.
    let teller = Arc::clone(journal);
    let coldplug =
        crate::machine::drivers::Coldplug::start(Arc::clone(&loader), move |loaded| tell_modules(&teller, loaded))
            .map_err(|source| SetupError::Read { path: "kernel device events".to_owned(), source })?;
    // Beside the story: the disk is waited for by itself, and a robot whose answer is cheap needs no more than that.
    let teller = Arc::clone(journal);
    std::thread::spawn(move || tell_modules(&teller, &loader.load_for_present_devices()));
    Ok(coldplug)
}

fn tell_modules(journal: &Journal, loaded: &crate::machine::drivers::LoadedModules) {
    if !loaded.modules.is_empty() {
        journal.note(&format!("drivers: {}", loaded.modules.join(" ")));
    }
    for failure in &loaded.failures {
        journal.warn(&chain(failure));
    }
}

/// A robot's disk, ready to be recovered.
struct OpenDisk {
    recovery: RecoveryPartition,
    state: StatePartition,
    target: DeviceTarget,
    data: PathBuf,
    disk: String,
    disk_name: String,
}

/// Finds the disk GRUB started from, or the one robot's disk when that was a medium; mounts its recovery and state
/// partitions, and opens its system partition.
fn open_disk(args: &BootArgs, medium: Option<&BootMedium>, journal: &Journal) -> Result<OpenDisk, SetupError> {
    let partuuid = match (&args.recovery_partuuid, medium) {
        (Some(partuuid), _) => partuuid.clone(),
        (None, Some(_)) => boot_medium::robot_partuuid(DISK_WAIT)?,
        (None, None) => return Err(SetupError::NoRecoveryPartition),
    };
    let found = crate::disk::wait_for_disk_by_partuuid(&partuuid, Which::Physical, DISK_WAIT, || {
        journal.note("waiting for the disk");
    })?;
    let disk = found.disk.to_string();
    let partition = |role: Role| {
        let node = found.layout.device_of(role).map(Path::to_owned);
        node.ok_or_else(|| SetupError::Partition { disk: disk.clone(), role })
    };
    let slot = args.slot.as_ref().map(|slot| format!(", recovery slot {slot}"));
    journal.note(&format!("disk {disk}{}", slot.unwrap_or_default()));
    let recovery = partition(Role::Recovery)?;
    match sys::mount::Mount::device(&recovery, "ext4").read_only().on(RECOVERY) {
        // The medium has all that is needed.
        Err(error) if medium.is_some() => journal.warn(&format!("goes on without it: {}", chain(&error))),
        result => result?,
    }
    mount_state(&partition(Role::State)?, journal)?;
    Ok(OpenDisk {
        recovery: RecoveryPartition::mounted(&recovery, Path::new(RECOVERY)),
        state: StatePartition::new(Path::new(STATE)),
        target: DeviceTarget::open(&partition(Role::System)?)?.on_disk(&disk),
        data: partition(Role::Data)?,
        disk,
        disk_name: found.disk.name,
    })
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
    StatePartition::new(Path::new(STATE)).boot_env().load().map(drop).or_else(|error| {
        sys::mount::unmount(STATE)?;
        Err(error.into())
    })
}

fn make_state(partition: &Path) -> std::io::Result<()> {
    let target = DeviceTarget::open(partition).map_err(std::io::Error::other)?;
    let template = zstd::stream::read::Decoder::new(fs::File::open(STATE_TEMPLATE)?)?;
    copy_blocks(template, &target, 0).map_err(|(CopyError::Read(source) | CopyError::Write(source))| source)?;
    target.flush()
}

/// Opens the event log and the black box. A machine without them recovers all the same.
fn open_records(state: &StatePartition, word: &str, reason: Reason, journal: &Journal) -> Option<Recorder> {
    match state.open_events() {
        Ok(events) => journal.open_events(Box::new(events)),
        Err(error) => journal.warn(&format!("no event log: {error}")),
    }
    match BlackBox::open(&state.blackbox_path()) {
        Ok(open) => {
            let recorder = Recorder::begin(open, word, reason.is_requested());
            let witness = recorder.clone();
            journal.subscribe(Box::new(move |told| witness.witness(told)));
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
fn count_recoveries(state: &StatePartition, recorder: Option<&Recorder>) -> Recoveries {
    let environment = state.boot_env().recoveries().unwrap_or_default();
    let recorded = recorder.map(|recorder| recorder.with(|open| open.recoveries())).unwrap_or_default();
    if recorded.count > environment.count { recorded } else { environment }
}

fn read_layers() -> Result<Layer, SetupError> {
    let mut merged = Layer::default();
    for path in [format!("{BUILT_IN}/reflash.toml"), format!("{RECOVERY}/reflash.toml")] {
        if let Some(text) = read_if_there(Path::new(&path))? {
            merged = merged.overridden_by(Layer::parse(&path, &text)?);
        }
    }
    Ok(merged)
}
