//! Provisioning of a disk by PID 1, started from a boot medium or over the network.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::boot_medium::BootMedium;
use super::configuration::{BUILT_IN, identity_of, report_identity};
use super::drivers::load_modules;
use super::ending::{NextState, START_OVER, rest};
use super::error::SetupError;
use super::inputs::read_if_there;
use super::online::{network_options, start_poster};
use super::provision_disk::{DiskChoice, LONGEST, SETTLED, is_only_late};
use super::setup::report_deaths;
use super::sources;
use crate::boot::efi;
use crate::boot::efivars::EfiVars;
use crate::chain::chain;
use crate::disk::Which;
use crate::disk::table;
use crate::fetch::CertificateClock;
use crate::flash::target::DeviceTarget;
use crate::jobs::floor::{Floor, FloorPlaces};
use crate::jobs::keys::key_files;
use crate::jobs::provision::{self, DiskCandidate, ErasePermission, Firmware, InstallError, Provisioned, Site};
use crate::jobs::recovery::{Identity, Policy, RecoveryJob, Resources};
use crate::machine::config::{BootArgs, Config, Layer};
use crate::machine::hostname;
use crate::machine::media;
use crate::machine::robot;
use crate::net::{self, RequestOutcomes};
use crate::pid1::link::{Handover, WorkPart};
use crate::pid1::worker;
use crate::record::journal::{Journal, Phase};
use crate::record::report::{Ending, ReportedMachine};
use crate::release::layout::Role;
use crate::release::manifest::TrustedKeys;
use crate::release::rollout::Facts;
use crate::sys::block::{Access, Caching, Device};

/// Directory of mount points for the new file systems, while they are filled.
const MOUNTS: &str = "/new";

/// Inputs from the boot medium and the initramfs.
struct SiteInputs {
    config: Config,
    keys: TrustedKeys,
    identity: Identity,
    site: Site,
    /// List of machine names; see [`hostname::asset`].
    assets: Option<String>,
}

/// Provisions a disk. Whatever goes wrong before the disk is armed has written nothing.
pub(super) fn run(
    args: &BootArgs,
    over: Layer,
    handover: &Handover,
    journal: &Arc<Journal>,
) -> Result<NextState, SetupError> {
    report_deaths(handover, journal);
    let sentence = format!("reflash {}, to provision this machine", env!("CARGO_PKG_VERSION"));
    let (_coldplug, medium) = journal.phase(Phase::Init, &sentence, || {
        let coldplug = load_modules(&["isofs", "loop"], handover, journal)?;
        let medium = args.media.map(|id| BootMedium::open(id, journal)).transpose()?;
        Ok::<_, SetupError>((coldplug, medium))
    })?;
    if let Some(warning) = secure_boot_warning() {
        journal.warn(warning);
    }
    let inputs = journal.phase(Phase::Config, "read configuration and keys", || collect(medium, over, journal))?;
    let config = &inputs.config;
    if let Some(limit) = config.stall {
        worker::ask_for_watchdog(limit);
    }
    let mut choice = DiskChoice::begin(journal, || {
        let medium = args.media.iter().flat_map(crate::disk::media).collect::<Vec<_>>();
        let disks = provision::survey(Which::Physical).map_err(SetupError::Disks)?;
        Ok(provision::choose(&config.disk, &disks, &medium)?)
    });
    let is_at_hand = sources::are_at_hand(config, journal);
    // Without a network nobody elsewhere sees what is waited for, but a release that is at hand needs none.
    let first_wait = if is_at_hand && !args.dry_run { LONGEST } else { SETTLED };
    let candidate = match choice.wait(first_wait) {
        Err(error) if is_only_late(&error) && !is_at_hand && !args.dry_run => {
            let why = chain(&error);
            journal.warn(&format!("no disk can be provisioned yet; it is waited for, once there is a network: {why}"));
            None
        }
        found => Some(found?),
    };
    // Reported before the network is there: a person who watches may already see that it is the wrong one.
    let report = |candidate: &DiskCandidate| journal.note(&format!("chosen: {}", candidate.disk));
    candidate.iter().for_each(report);
    let clock = sources::start_clock(None, journal);
    let candidate = match candidate {
        Some(candidate) if is_at_hand => {
            return write(&inputs, args, candidate, &clock, handover, &RequestOutcomes::default(), journal);
        }
        candidate => candidate,
    };
    let (reporter, outcomes) = (Arc::clone(journal), RequestOutcomes::default());
    let network = journal.phase(Phase::Network, "bring up the network", || {
        net::bring_up_with(&config.network, network_options(config, handover, &outcomes), move |text: &str| {
            reporter.note(text)
        })
    })?;
    let machine = || {
        let asset = inputs.asset().ok().flatten();
        ReportedMachine::this(&config.product, config.hostname.as_deref(), asset.as_deref())
    };
    let poster =
        (!handover.leaves_out(&WorkPart::Reports)).then(|| start_poster(config, &clock, machine, journal)).flatten();
    // With the network up, the station sees what is waited for.
    let chosen = candidate.map_or_else(|| choice.wait(LONGEST).inspect(report), Ok);
    let next = chosen.and_then(|candidate| {
        // Twenty machines are switched on together.
        sources::spread_out(config.spread, handover, journal);
        write(&inputs, args, candidate, &clock, handover, &outcomes, journal)
    });
    if let Some(poster) = poster {
        poster.close(if next.is_ok() { Ending::Provisioned } else { Ending::Failed });
    }
    drop(network);
    next
}

/// Fetches the release, and writes the disk that starts with it.
fn write(
    inputs: &SiteInputs,
    args: &BootArgs,
    candidate: DiskCandidate,
    clock: &Arc<CertificateClock>,
    handover: &Handover,
    outcomes: &RequestOutcomes,
    journal: &Arc<Journal>,
) -> Result<NextState, SetupError> {
    let started = Instant::now();
    let learn_time = |created| clock.learn(created);
    let ring = inputs.config.ring.as_deref();
    let robot = || robot::this(ring, [0; 16], clock.known_time(), Facts::Unknown);
    let mirrors = sources::open_mirrors(&inputs.config, Vec::new(), clock, handover, outcomes, journal)?;
    let (path, disk) = (candidate.disk.path.clone(), candidate.disk.to_string());
    let target =
        if args.dry_run { DeviceTarget::open_read_only(&path)? } else { DeviceTarget::open(&path)? }.on_disk(&disk);
    // What the firmware kept of the disk before: the new one records it.
    let floor = Floor::open(FloorPlaces { firmware: EfiVars::open(), ..FloorPlaces::default() });
    let job = RecoveryJob {
        identity: inputs.identity.clone(),
        policy: Policy::requested(inputs.config.boot_tries, true),
        resources: Resources {
            learn_time: &learn_time,
            robot: &robot,
            floor: Some(&floor),
            ..Resources::new(&inputs.keys, &mirrors, &target)
        },
        journal,
    };
    let (release, preflight) = journal.phase(Phase::Manifest, "fetch the release and plan the new disk", || {
        provision::prepare(&job, candidate, Firmware::of_this_machine())
    })?;
    if args.dry_run {
        journal.note("dry run: nothing was written");
        rest(journal, START_OVER);
        return Ok(NextState::Reboot("restarting".to_owned()));
    }
    let medium = args.media.or(args.origin);
    let permission =
        ErasePermission { confirmation: args.arm.as_deref(), unattended_medium: medium.filter(|_| !args.again) };
    let armed = preflight.arm(permission).map_err(InstallError::from)?;
    let site = Site { asset: inputs.asset()?, medium, ..inputs.site.clone() };
    let (report, provisioned) = provision::install(armed, &job, release, &site, Path::new(MOUNTS))?;
    worker::done();
    if let Some(note) = put_first_in_firmware(&path, &provisioned) {
        journal.note(&note);
    }
    let seconds = started.elapsed().as_secs();
    Ok(NextState::Reboot(format!("provisioned with {} after {seconds} s: starting it", report.version)))
}

impl SiteInputs {
    /// Name of this machine in the list. Asked late: the driver of its network card, whose address may be in the list,
    /// is loaded in the background.
    fn asset(&self) -> Result<Option<String>, SetupError> {
        let Some(list) = &self.assets else { return Ok(None) };
        let machine = crate::machine::identity::identity();
        Ok(hostname::asset(list, |key| machine.value(key))?)
    }
}

/// Collects configuration and keys of the medium and of the initramfs. The first configuration that is found goes to
/// the new disk as it is, and so do all keys.
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
        for (path, text) in key_files(&directory.join(media::KEYS))? {
            keys.add(&path.display().to_string(), &text)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            place_key(&mut site.keys, name, text);
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
    let identity = identity_of(&config);
    report_identity(&identity, &keys, journal);
    Ok(SiteInputs { config, keys, identity, site, assets })
}

/// Adds a key for the new disk. Another key of the same name, as after a rotation, gets a name of its own.
fn place_key(keys: &mut Vec<(String, String)>, mut name: String, text: String) {
    if keys.iter().any(|(_, known)| *known == text) {
        return;
    }
    while keys.iter().any(|(known, _)| *known == name) {
        name.insert_str(0, "also-");
    }
    keys.push((name, text));
}

/// Why the firmware of this machine may not start the new disk, where it has Secure Boot.
fn secure_boot_warning() -> Option<&'static str> {
    let variables = EfiVars::open()?;
    efi::secure_boot_warning(variables.get("SecureBoot").as_deref(), variables.get("SetupMode").as_deref())
}

/// Puts the new disk first on the firmware's list of what to start, where there is such a list. Without it the fallback
/// path of the disk's EFI system partition is enough, so that every failure is only noted.
fn put_first_in_firmware(disk: &Path, provisioned: &Provisioned) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::place_key;

    #[test]
    fn keys_of_one_name_are_all_kept_and_each_once() {
        let mut keys = Vec::new();
        for (name, text) in [("a.pub", "old"), ("a.pub", "new"), ("b.pub", "old"), ("a.pub", "third")] {
            place_key(&mut keys, name.to_owned(), text.to_owned());
        }
        let kept: Vec<_> = keys.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(kept, [("a.pub", "old"), ("also-a.pub", "new"), ("also-also-a.pub", "third")]);
    }
}
