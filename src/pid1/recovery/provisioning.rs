//! PID 1 started from a medium or by network boot: a disk becomes a robot's.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::settle::{POLL, Settling};
use super::setup::{self, BUILT_IN};
use super::{NextState, SetupError, install};
use crate::boot::decide::Recoveries;
use crate::boot::efi;
use crate::boot::efivars::EfiVars;
use crate::chain::chain;
use crate::disk::Which;
use crate::disk::table;
use crate::fetch;
use crate::flash::target::DeviceTarget;
use crate::jobs::keys::key_files;
use crate::jobs::provision::{self, DiskCandidate, ErasePermission, Firmware, InstallError, Provisioned, Site};
use crate::jobs::recovery::Machine;
use crate::machine::config::{BootArgs, Config, Layer};
use crate::machine::hostname;
use crate::machine::identity::hardware_name;
use crate::machine::media;
use crate::net;
use crate::pid1::recovery::boot_medium::BootMedium;
use crate::pid1::recovery::inputs::read_if_there;
use crate::pid1::watchdog;
use crate::record::journal::{Journal, Phase};
use crate::record::report::{self, Ending};
use crate::release::layout::Role;
use crate::release::manifest::TrustedKeys;
use crate::sys::block::{Access, Caching, Device};

/// Where the new file systems are mounted while they are filled.
const MOUNTS: &str = "/new";
/// How long disks are waited for when there is none that fits.
const DISK_WAIT: Duration = Duration::from_secs(30);

/// What the machine is told from outside the disk it will get.
struct SiteInputs {
    config: Config,
    keys: TrustedKeys,
    hardware: String,
    site: Site,
    /// Names of machines; see [`hostname::asset`].
    assets: Option<String>,
}

/// Provisions, or says why not. Whatever goes wrong before the disk is armed has written nothing.
pub(super) fn run(args: &BootArgs, over: Layer, journal: &Arc<Journal>) -> Result<NextState, SetupError> {
    let sentence = format!("reflash {}, to provision this machine", env!("CARGO_PKG_VERSION"));
    let (_coldplug, medium) = journal.phase(Phase::Init, &sentence, || {
        setup::take_signals(journal);
        // Without UEFI the kernel refuses it.
        let efi = (Firmware::of_this_machine() == Firmware::Uefi).then_some("efivarfs");
        let modules: Vec<&str> = ["isofs", "loop"].into_iter().chain(efi).collect();
        let coldplug = setup::load_modules(&modules, journal)?;
        let medium = args.media.map(|id| BootMedium::open(id, journal)).transpose()?;
        Ok::<_, SetupError>((coldplug, medium))
    })?;
    let told = journal.phase(Phase::Config, "read configuration and keys", || collect(medium, over, journal))?;
    let config = &told.config;
    if let Some(limit) = config.stall {
        watchdog::start(journal, limit);
    }
    let candidate = choose(journal, || {
        let medium = args.media.iter().flat_map(crate::disk::media).collect::<Vec<_>>();
        let disks = provision::survey(Which::Physical).map_err(SetupError::Disks)?;
        Ok(provision::choose(&config.disk, &disks, &medium)?)
    })?;
    // SiteInputs before the network is there: whoever watches may already see that it is the wrong one.
    journal.note(&format!("chosen: {}", candidate.disk));
    if setup::is_at_hand(config) {
        journal.note("the release is at hand: no network is needed");
        return write(&told, args, candidate, journal);
    }
    let teller = Arc::clone(journal);
    let network = journal.phase(Phase::Network, "bring up the network", || {
        net::bring_up_with(&config.network, net::NetworkOptions::default(), move |text: &str| teller.note(text))
    })?;
    let poster = config.report_url.as_ref().and_then(|url| {
        let asset = told.asset().ok().flatten();
        let who = report::ReportedMachine::this(&config.product, config.hostname.as_deref(), asset.as_deref());
        let options = fetch::FetchOptions::with_clock_as_it_is(&config.network);
        report::Poster::start(who, url, &options, journal).map_err(|error| journal.warn(&chain(&error))).ok()
    });
    // Twenty machines are switched on together.
    install::spread_out(config.spread, journal);
    let outcome = write(&told, args, candidate, journal);
    if let Some(poster) = poster {
        poster.close(if outcome.is_ok() { Ending::Provisioned } else { Ending::Failed });
    }
    drop(network);
    outcome
}

/// From the release to the disk that starts.
fn write(
    told: &SiteInputs,
    args: &BootArgs,
    candidate: DiskCandidate,
    journal: &Arc<Journal>,
) -> Result<NextState, SetupError> {
    let started = Instant::now();
    let mirrors = setup::open_mirrors(&told.config, None, None, journal)?;
    let (path, disk) = (candidate.disk.path.clone(), candidate.disk.to_string());
    let target =
        if args.dry_run { DeviceTarget::open_read_only(&path)? } else { DeviceTarget::open(&path)? }.on_disk(&disk);
    let machine = Machine {
        product: told.config.product.clone(),
        hardware: told.hardware.clone(),
        channel: told.config.channel.clone(),
        tries: told.config.boot_tries,
        allow_older: true,
        requested: true,
        recoveries: Recoveries::default(),
        keys: &told.keys,
        source: &mirrors,
        target: &target,
        state: None,
        journal,
        renewal: None,
        learn_time: &setup::learn_time,
    };
    let (release, preflight) = journal.phase(Phase::Manifest, "what is to be done", || {
        provision::prepare(&machine, candidate, Firmware::of_this_machine())
    })?;
    if args.dry_run {
        journal.note("asked only to say what would be done: nothing was written");
        install::rest(journal, super::START_OVER);
        return Ok(NextState::Reboot("restarting".to_owned()));
    }
    let medium = args.media.or(args.origin);
    let permission =
        ErasePermission { confirmation: args.arm.as_deref(), unattended_medium: medium.filter(|_| !args.again) };
    let armed = preflight.arm(permission).map_err(InstallError::from)?;
    let site = Site { asset: told.asset()?, medium, ..told.site.clone() };
    let (report, provisioned) = provision::install(armed, &machine, release, &site, Path::new(MOUNTS))?;
    if let Some(note) = tell_firmware(&path, &provisioned) {
        journal.note(&note);
    }
    let seconds = started.elapsed().as_secs();
    Ok(NextState::Reboot(format!("provisioned with {} after {seconds} s: starting it", report.version)))
}

impl SiteInputs {
    /// What this machine is called in the list. Asked late: the driver of its network card, whose address may be in the
    /// list, is loaded beside the story.
    fn asset(&self) -> Result<Option<String>, SetupError> {
        let Some(list) = &self.assets else { return Ok(None) };
        let machine = crate::machine::identity::identity();
        Ok(hostname::asset(list, |key| machine.value(key))?)
    }
}

/// Waits until a disk fits and no other has joined for some time: the first that answers need not be the only one.
fn choose(
    journal: &Journal,
    look: impl Fn() -> Result<DiskCandidate, SetupError>,
) -> Result<DiskCandidate, SetupError> {
    let started = Instant::now();
    let mut settling = Settling::new();
    loop {
        let found = look();
        let told = match &found {
            Ok(candidate) => candidate.disk.to_string(),
            Err(error) => chain(error),
        };
        if settling.look(vec![told]) {
            journal.note("another disk appeared");
        }
        match found {
            Ok(candidate) if settling.is_over() => return Ok(candidate),
            Err(error) if settling.is_over() && started.elapsed() >= DISK_WAIT => return Err(error),
            _ => std::thread::sleep(POLL),
        }
    }
}

/// Configuration and keys of the medium and of the initramfs. What is found first goes to the new disk as it is, and all
/// keys do.
fn collect(medium: Option<BootMedium>, over: Layer, journal: &Journal) -> Result<SiteInputs, SetupError> {
    let mut site = Site::default();
    let mut assets = None;
    let mut merged = Layer::default();
    let mut keys = TrustedKeys::default();
    let directories = [medium.as_ref().map(BootMedium::directory), Some(Path::new(BUILT_IN))];
    for directory in directories.into_iter().flatten() {
        let path = directory.join(media::CONFIG);
        if let Some(text) = read_if_there(&path)? {
            let layer = Layer::parse(&path.display().to_string(), &text)?;
            merged = layer.overridden_by(merged);
            if site.config.is_empty() {
                site.config = text;
            }
        }
        if assets.is_none() {
            assets = read_if_there(&directory.join(media::ASSETS))?;
        }
        for (path, text) in key_files(&directory.join(media::KEYS)) {
            keys.add(&path.display().to_string(), &text)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if site.keys.iter().all(|(known, _)| *known != name) {
                site.keys.push((name, text));
            }
        }
    }
    // A disk that could not recover by itself later is not worth making.
    Config::resolve(Layer::parse("the configuration for the new disk", &site.config)?)
        .map_err(SetupError::SiteConfig)?;
    let mut layer = merged.overridden_by(over);
    if let Some(medium) = &medium {
        medium.offer_release(&mut layer);
    }
    let config = Config::resolve(layer)?;
    let hardware = config.hardware.clone().or_else(hardware_name).unwrap_or_default();
    journal.note(&format!("product {}, hardware {hardware:?}, {} trusted keys", config.product, keys.len()));
    Ok(SiteInputs { config, keys, hardware, site, assets })
}

/// Where the firmware keeps a list of what to start, the new disk is put first on it. The fallback path of its EFI
/// system partition is enough without, so that every failure is only noted.
fn tell_firmware(disk: &Path, provisioned: &Provisioned) -> Option<String> {
    let variables = EfiVars::open()?;
    let esp = provisioned.partitions.iter().find(|place| place.partition.role == Role::Esp)?;
    let device = Device::open(disk, Access::Read, Caching::Buffered).ok()?;
    let block_bytes = u64::from(device.logical_block_size());
    let table = table::read(&mut device.as_file(), device.logical_block_size()).ok()??;
    let entry = table.partitions.into_iter().find(|entry| entry.number == esp.number)?;
    let option = efi::load_option(&efi::EfiBootPartition {
        number: entry.number,
        first_lba: entry.first_lba,
        blocks: entry.size_bytes / block_bytes,
        partuuid: entry.partuuid,
    })?;
    let name = |number: u16| format!("Boot{number:04X}");
    // The entry of an earlier provisioning is taken over: the firmware's memory is small.
    let number = (0..u16::MAX).find(|number| variables.get(&name(*number)).is_none_or(|old| efi::is_ours(&old)))?;
    let order = variables.get("BootOrder").unwrap_or_default();
    let set =
        variables.set(&name(number), &option).and_then(|()| variables.set("BootOrder", &efi::first_in(&order, number)));
    Some(match set {
        Ok(()) => format!("the firmware starts this disk first ({})", name(number)),
        Err(error) => format!("the firmware's boot list stays as it is ({error}); it finds the disk by the usual path"),
    })
}
