//! What a command works with: configuration, trusted keys, release sources and a journal on standard error.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use super::answer::{Failure, complain, failure};
use super::mounted::MountedState;
use super::options::Options;
use crate::boot::this_boot;
use crate::chain::chain;
use crate::fetch::{self, FetchOptions, Mirrors, RetryPolicy, Source};
use crate::flash::target::BlockTarget;
use crate::jobs::facts;
use crate::jobs::keys::{MachineKeys, read_keys};
use crate::jobs::recovery::{Identity, LeftOut, Policy, RecoveryJob, Resources};
use crate::machine::config::{Config, Layer};
use crate::machine::identity::hardware_name;
use crate::machine::robot;
use crate::record::journal::Journal;
use crate::record::report::ReportedMachine;
use crate::release::manifest::TrustedKeys;
use crate::release::rollout::{Facts, Robot};
use crate::sys::{clock, files};

/// Directory of this system's configuration and keys.
pub(super) const ETC: &str = "/etc/reflash";

/// Size of the largest configuration file, bytes.
pub(super) const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Size of the longest name of a machine, bytes.
const MAX_NAME_BYTES: u64 = 4096;

/// Attempts of a transfer by hand. PID 1 tries for ever, but a person can repeat the command.
const HAND_ROUNDS: u32 = 5;

/// All that a command which takes a release works with, except the target.
pub(super) struct Context {
    pub(super) config: Config,
    keys: TrustedKeys,
    mirrors: Mirrors,
    pub(super) journal: Arc<Journal>,
    /// What this machine knows of itself. A disk or an image on a bench is no robot of a roll-out.
    robot: Box<dyn Fn() -> Robot>,
    facts_fault: Rc<RefCell<Option<String>>>,
}

impl Context {
    /// Reads configuration and keys, and opens the release sources.
    pub(super) fn open(options: &Options, mounted: Option<&MountedState>) -> Result<Self, Failure> {
        Self::with(config(options, mounted)?, options, mounted)
    }

    /// The same with a configuration that was read before.
    pub(super) fn with(config: Config, options: &Options, mounted: Option<&MountedState>) -> Result<Self, Failure> {
        let keys = keys(options, mounted)?;
        let fetch_options = FetchOptions::with_clock_as_it_is(&config.network);
        let journal = Arc::new(Journal::on_stderr());
        let warnings = Arc::clone(&journal);
        let mirrors = Mirrors::new(usable(&config.urls, &fetch_options, &journal)?, RetryPolicy::Rounds(HAND_ROUNDS))
            .on_retry(move |retry| warnings.warn(&retry.to_string()));
        let facts_fault = Rc::default();
        let robot = robot_of(&config, mounted, Rc::clone(&facts_fault));
        Ok(Self { config, keys, mirrors, journal, robot, facts_fault })
    }

    /// A sentence of a roll-out, with what is wrong with the program for facts where a release waits for one.
    pub(super) fn with_facts_fault(&self, sentence: String, left_out: &LeftOut) -> String {
        match self.facts_fault.borrow().as_ref().filter(|_| left_out.by_fact) {
            Some(fault) => format!("{sentence}; {fault}"),
            None => sentence,
        }
    }

    /// A recovery of `target`, as a person asks for it.
    pub(super) fn job<'a>(&'a self, target: &'a dyn BlockTarget, allow_older: bool) -> RecoveryJob<'a> {
        RecoveryJob {
            identity: Identity {
                product: self.config.product.clone(),
                hardware: self.config.hardware.clone().or_else(hardware_name).unwrap_or_default(),
                channel: self.config.channel.clone(),
            },
            policy: Policy::requested(self.config.boot_tries, allow_older),
            resources: Resources { robot: &*self.robot, ..Resources::new(&self.keys, &self.mirrors, target) },
            journal: &self.journal,
        }
    }
}

/// What this machine knows of itself, its own program for facts asked, if its state is at hand.
fn robot_of(
    config: &Config,
    mounted: Option<&MountedState>,
    facts_fault: Rc<RefCell<Option<String>>>,
) -> Box<dyn Fn() -> Robot> {
    let Some(mounted) = mounted else { return Box::new(Robot::default) };
    let (disk, ring) = (mounted.floor().record().identity, config.ring.clone());
    Box::new(move || {
        let asked = facts::ask(&facts::PROGRAMS.map(Path::new), facts::LIMIT);
        facts_fault.replace(asked.as_ref().err().cloned());
        let facts = asked.unwrap_or(Facts::Answered(Vec::new()));
        let now = clock::now().duration_since(std::time::UNIX_EPOCH).ok();
        robot::this(ring.as_deref(), disk, now.and_then(|now| robot::believable(now.as_secs())), facts)
    })
}

/// Opens the sources that can be used, and warns of the others; at least one.
fn usable(urls: &[String], options: &FetchOptions, journal: &Journal) -> Result<Vec<Box<dyn Source>>, Failure> {
    let (sources, left_out) = fetch::open_usable(urls, options);
    for error in left_out {
        if sources.is_empty() {
            return Err(error.into());
        }
        journal.warn(&format!("left out: {}", chain(&error)));
    }
    Ok(sources)
}

/// The configuration of the machine, with the options of the command line over it.
pub(super) fn config(options: &Options, mounted: Option<&MountedState>) -> Result<Config, Failure> {
    let layer = match &options.config {
        Some(path) => parsed(path)?,
        None => of_files(directories(mounted).iter().map(|directory| directory.join("reflash.toml")))?,
    };
    Ok(Config::resolve(layer.overridden_by(layer_of(options)))?)
}

/// The files of this system and of the recovery partition, as far as they are there, the latter over the former.
///
/// What says which release is this robot's counts on the recovery partition alone, if there is one: recovery sees no
/// file of the system, and would refuse what the system chose by it.
fn of_files(files: impl Iterator<Item = PathBuf>) -> Result<Layer, Failure> {
    let mut layer = Layer::default();
    for path in files {
        (layer.release.ring, layer.release.channel, layer.machine.hardware) = (None, None, None);
        match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => layer = layer.overridden_by(parsed(&path)?),
        }
    }
    Ok(layer)
}

fn parsed(path: &Path) -> Result<Layer, Failure> {
    let text = files::read_named(path, MAX_CONFIG_BYTES).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
    });
    match text {
        Ok(text) => Ok(Layer::parse(&path.display().to_string(), &text)?),
        Err(error) => failure(format!("cannot read {}: {error}", path.display())),
    }
}

/// The options that stand for configuration keys. A command that does not take them leaves them unset.
fn layer_of(options: &Options) -> Layer {
    let mut layer = Layer::default();
    layer.release.urls = Some(options.urls.clone()).filter(|urls| !urls.is_empty());
    layer.release.channel.clone_from(&options.channel);
    layer.network.max_rate_kib_s = options.max_rate_kib_s;
    layer.machine.product.clone_from(&options.product);
    layer.machine.hardware.clone_from(&options.hardware);
    layer
}

/// The machine that a report is about: one whose state is at hand. An image file or a disk on a bench is no machine
/// yet.
pub(super) fn this_machine(config: &Config, mounted: &MountedState) -> ReportedMachine {
    let name = |recovery: &PathBuf| files::read_text(&recovery.join("asset"), MAX_NAME_BYTES).ok();
    let asset = mounted.recovery.as_ref().and_then(name);
    ReportedMachine::this(&config.product, config.hostname.as_deref(), asset.as_deref().map(str::trim))
}

/// Number of the safe start that this system is in; `None` in a normal one.
pub(super) fn safe_start() -> Option<u32> {
    this_boot::safe_start(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
}

/// The keys that this machine trusts; at least one.
pub(super) fn keys(options: &Options, mounted: Option<&MountedState>) -> Result<TrustedKeys, Failure> {
    let looked: Vec<PathBuf> = match &options.keys {
        Some(directory) => vec![directory.clone()],
        None => directories(mounted).iter().map(|directory| directory.join("keys")).collect(),
    };
    let looked: Vec<String> = looked.iter().map(|directory| directory.display().to_string()).collect();
    let MachineKeys { keys, left_out, .. } = read_keys(&looked)?;
    left_out.iter().for_each(|error| complain(&format!("going on with the other keys: {}", chain(error))));
    if keys.is_empty() {
        let looked = looked.join(" and ");
        return failure(format!("no trusted key in {looked}; give the directory of *.pub files with --keys"));
    }
    Ok(keys)
}

/// The directories of configuration and keys, later ones over earlier ones: this system's, then the recovery
/// partition's.
fn directories(mounted: Option<&MountedState>) -> Vec<PathBuf> {
    let recovery = mounted.and_then(|mounted| mounted.recovery.clone());
    std::iter::once(PathBuf::from(ETC)).chain(recovery).collect()
}

#[cfg(test)]
mod tests {
    use super::of_files;

    #[test]
    fn what_says_which_release_is_this_robots_counts_on_the_recovery_partition_alone() {
        let dir = tempfile::tempdir().unwrap();
        let [system, recovery] = ["system.toml", "recovery.toml"].map(|name| dir.path().join(name));
        let own = "[release]\nchannel = 'own'\nring = 'own'\nurls = ['file:/own']\n[machine]\nhardware = 'own'\n";
        std::fs::write(&system, own).unwrap();
        let read = |files: &[&std::path::PathBuf]| of_files(files.iter().map(|path| (*path).clone())).ok().unwrap();
        // Not a robot, or one whose recovery partition cannot be read.
        let layer = read(&[&system]);
        assert_eq!((layer.release.channel.as_deref(), layer.machine.hardware.as_deref()), (Some("own"), Some("own")));
        for (text, channel) in [(None, None), (Some("[boot]\ntries = 2\n"), None)]
            .into_iter()
            .chain([(Some("[release]\nchannel = 'site'\n"), Some("site"))])
        {
            text.into_iter().for_each(|text| std::fs::write(&recovery, text).unwrap());
            let layer = read(&[&system, &recovery]);
            assert_eq!(layer.release.channel.as_deref(), channel, "{text:?}");
            assert_eq!((layer.release.ring, layer.machine.hardware), (None, None), "{text:?}");
            assert_eq!(layer.release.urls.unwrap(), ["file:/own"]);
        }
    }
}
