//! PID 1 started from a medium or by network boot: a disk becomes a robot's.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::medium::Medium;
use super::setup::{self, BUILT_IN};
use super::{Outcome, SetupError, obtain};
use crate::arbiter::Recoveries;
use crate::chain::chain;
use crate::config::{BootArgs, Config, Layer};
use crate::journal::{Journal, Phase};
use crate::manifest::TrustedKeys;
use crate::provision::{self, Candidate, Firmware, InstallError, Site};
use crate::recovery::Machine;
use crate::sys::{self, block::Which, net};
use crate::target::DeviceTarget;

/// Where the new file systems are mounted while they are filled.
const MOUNTS: &str = "/new";
/// How long disks are waited for when there is none that fits.
const DISK_WAIT: Duration = Duration::from_secs(30);
/// Nothing new has appeared for as long as a slow controller takes to bring up its next port.
const SETTLE: Duration = Duration::from_secs(4);
const POLL: Duration = Duration::from_millis(500);

/// Provisions, or says why not. Whatever goes wrong before the disk is armed has written nothing.
pub(super) fn run(args: &BootArgs, over: Layer, journal: &Arc<Journal>) -> Result<Outcome, SetupError> {
    let started = Instant::now();
    let sentence = format!("reflash {}, to provision this machine", env!("CARGO_PKG_VERSION"));
    let (_coldplug, medium) = journal.phase(Phase::Init, &sentence, || {
        setup::take_signals(journal);
        let coldplug = setup::load_modules(&["isofs", "loop"], journal)?;
        let medium = args.media.map(|id| Medium::open(id, journal)).transpose()?;
        Ok::<_, SetupError>((coldplug, medium))
    })?;
    let mut site = Site { medium: args.media, ..Site::default() };
    let (config, keys, hardware) = journal.phase(Phase::Config, "read configuration and keys", || {
        let directories = [medium.as_ref().map(Medium::directory), Some(Path::new(BUILT_IN))];
        let (layer, keys) = collect(directories.into_iter().flatten(), &mut site)?;
        let mut layer = layer.overridden_by(over);
        if let Some(medium) = &medium {
            medium.offer_release(&mut layer);
            site.asset = medium.asset()?;
        }
        let config = Config::resolve(layer)?;
        let hardware = config.hardware.clone().or_else(setup::hardware_name).unwrap_or_default();
        journal.note(&format!("product {}, hardware {hardware:?}, {} trusted keys", config.product, keys.len()));
        Ok::<_, SetupError>((config, keys, hardware))
    })?;
    let selector = config.disk.clone();
    let candidate = choose(journal, || {
        let medium = args.media.iter().flat_map(sys::block::media).collect::<Vec<_>>();
        let disks = provision::survey(Which::Physical).map_err(SetupError::Disks)?;
        Ok(provision::choose(&selector, &disks, &medium)?)
    })?;
    // Told before the network is there: whoever watches may already see that it is the wrong one.
    journal.note(&format!("chosen: {}", candidate.disk));
    let network = if setup::is_at_hand(&config) {
        journal.note("the release is at hand: no network is needed");
        None
    } else {
        let options = net::Options::default();
        let teller = Arc::clone(journal);
        Some(journal.phase(Phase::Network, "bring up the network", || {
            net::bring_up_with(&config.network, options, move |text: &str| teller.note(text))
        })?)
    };
    let mirrors = setup::open_mirrors(&config, None, journal)?;
    let machine = |target| Machine {
        product: config.product.clone(),
        hardware: hardware.clone(),
        channel: config.channel.clone(),
        tries: config.boot_tries,
        allow_older: true,
        asked_for: true,
        recoveries: Recoveries::default(),
        keys: &keys,
        source: &mirrors,
        target,
        state: None,
        journal,
        learn_time: &setup::learn_time,
    };
    let disk = candidate.disk.to_string();
    let target = if args.dry_run {
        DeviceTarget::open_read_only(&candidate.disk.path)?
    } else {
        DeviceTarget::open(&candidate.disk.path)?
    }
    .on_disk(&disk);
    let machine = machine(&target);
    let (release, preflight) = journal.phase(Phase::Manifest, "what is to be done", || {
        provision::prepare(&machine, candidate, Firmware::of_this_machine())
    })?;
    if args.dry_run {
        journal.note("asked only to say what would be done: nothing was written");
        obtain::rest(journal, super::START_OVER);
        return Ok(Outcome::Reboot("restarting".to_owned()));
    }
    let armed = preflight.arm(args.arm.as_deref()).map_err(InstallError::from)?;
    let (report, _) = provision::install(armed, &machine, release, &site, Path::new(MOUNTS))?;
    drop(network);
    setup_firmware(journal);
    let seconds = started.elapsed().as_secs();
    Ok(Outcome::Reboot(format!("provisioned with {} after {seconds} s: starting it", report.version)))
}

/// Waits until a disk fits and no other has joined for some time: the first that answers need not be the only one.
fn choose(journal: &Journal, look: impl Fn() -> Result<Candidate, SetupError>) -> Result<Candidate, SetupError> {
    let started = Instant::now();
    let (mut before, mut since) = (String::new(), started);
    loop {
        let found = look();
        let told = match &found {
            Ok(candidate) => candidate.disk.to_string(),
            Err(error) => chain(error),
        };
        if told != before {
            if !before.is_empty() {
                journal.note("another disk appeared");
            }
            (before, since) = (told, Instant::now());
        }
        let settled = since.elapsed() >= SETTLE && started.elapsed() >= SETTLE;
        match found {
            Ok(candidate) if settled => return Ok(candidate),
            Err(error) if settled && started.elapsed() >= DISK_WAIT => return Err(error),
            _ => std::thread::sleep(POLL),
        }
    }
}

/// Configuration and keys of the first directory that has a configuration, and all keys. They go to the new disk as
/// they are.
fn collect<'a>(
    directories: impl Iterator<Item = &'a Path>,
    site: &mut Site,
) -> Result<(Layer, TrustedKeys), SetupError> {
    let mut merged = Layer::default();
    let mut names = Vec::new();
    for directory in directories {
        let path = directory.join("reflash.toml");
        if let Ok(text) = fs::read_to_string(&path) {
            let layer = Layer::parse(&path.display().to_string(), &text)?;
            // What comes first counts more.
            merged = layer.overridden_by(std::mem::take(&mut merged));
            if site.config.is_empty() {
                site.config = text;
            }
        }
        let keys = directory.join("keys");
        for entry in fs::read_dir(&keys).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".pub") && site.keys.iter().all(|(known, _)| *known != name) {
                let text = fs::read_to_string(entry.path())
                    .map_err(|source| SetupError::Read { path: entry.path().display().to_string(), source })?;
                site.keys.push((name, text));
            }
        }
        names.push(keys.display().to_string());
    }
    if site.config.is_empty() {
        return Err(SetupError::NoSiteConfig);
    }
    Ok((merged, setup::read_keys(&names)?))
}

/// Where the firmware keeps a list of what to start, the new disk is put first on it. The fallback path of its EFI
/// system partition is enough without.
fn setup_firmware(_journal: &Journal) {}
