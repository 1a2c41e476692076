//! The recovery agent: PID 1 of the recovery initramfs. The only file that knows the whole story: what is set up, what
//! is decided first, what is fetched, and what follows from how it ended.

mod boot_medium;
mod console;
mod inputs;
mod install;

mod provisioning;
mod reset;
mod settle;
mod setup;
mod trial;
mod usb_release;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::boot::decide::{self, BootDecision, Situation};
use crate::boot::env::BootEnvError;
use crate::chain::chain;
use crate::disk::roles::Role;
use crate::fetch::{FetchError, RetryPolicy};
use crate::jobs::factory_reset::ResetError;
use crate::jobs::provision::{ChooseError, InstallError};
use crate::jobs::recovery::{self, RecoveryError};
use crate::machine::config::{Action, BootArgs, ConfigError, Layer};
use crate::machine::hostname::HostnameError;
use crate::record::blackbox::AttemptOutcome;
use crate::record::journal::Journal;
use crate::release::manifest::ManifestError;
use crate::sys;
use setup::{Compared, Setup};

/// Time a person has to read a panic or a final message before the machine restarts.
const READING_TIME: Duration = Duration::from_secs(20);
/// How long the main thread has to end by itself after ctrl-alt-del. Nothing here needs it: a cut is always safe.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Time until a machine that cannot go on is restarted: long enough to read, short enough at night.
const START_OVER: Duration = Duration::from_secs(600);

/// How often every server is asked for another recovery in vain: the next one comes with the next release. A transfer
/// that comes forward begins to count anew.
const RENEWAL_ROUNDS: u32 = 3;

/// How the story ends. A value, not an error: `run` turns it into the machine's next state.
enum NextState {
    /// Start what GRUB now starts.
    Reboot(String),
    /// Something basic failed. It may be back after a restart, and a person may have mended it.
    StartOver(String),
}

/// Everything that keeps the agent from even trying a recovery.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error("the machine could not be set up")]
    Mount(#[from] sys::mount::MountError),
    #[error("the kernel modules could not be used")]
    Modules(#[from] crate::machine::drivers::ModuleError),
    #[error("the disk to recover was not found")]
    Disk(#[from] crate::disk::FindError),
    #[error("the system partition cannot be opened")]
    Open(#[from] sys::block::BlockError),
    #[error("the disk {disk} has no partition named {:?}", .role.name())]
    Partition { disk: String, role: Role },
    #[error("the boot environment cannot be used")]
    Environment(#[from] BootEnvError),
    #[error("the state partition {} cannot be made anew from the recovery partition", .path.display())]
    State { path: PathBuf, source: std::io::Error },
    #[error("the boot medium {id} is not found; is it still plugged in?")]
    Medium { id: crate::machine::media::MediaId },
    #[error(
        "{} disks of this machine have the partitions of a robot, so it is not clear which one is meant{}",
        .found, crate::disk::find::listed("Disks present", .disks)
    )]
    Robot { found: usize, disks: Vec<String> },
    #[error("the disks cannot be listed")]
    Disks(#[source] std::io::Error),
    #[error("which disk to provision is not clear")]
    Choose(#[from] ChooseError),
    #[error("this machine is not provisioned")]
    Install(#[from] InstallError),
    #[error("the reflash.toml that the new disk would get is not complete; nothing was written")]
    SiteConfig(#[source] ConfigError),
    #[error("the factory reset is not done")]
    Reset(#[from] ResetError),
    #[error("the list of names on the boot medium cannot be used")]
    Asset(#[from] HostnameError),
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
    Network(#[from] crate::net::NetError),
    #[error("the intact system could not be given a new boot environment")]
    StartAgain(#[from] RecoveryError),
}

/// Runs the agent as PID 1. Never returns: the machine reboots.
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
        Ok(NextState::Reboot(why)) => {
            journal.note(&why);
            restart(&journal)
        }
        Ok(NextState::StartOver(why)) => start_over(&journal, &why),
        Err(error) => start_over(&journal, &chain(&error)),
    }
}

fn recover(journal: &Arc<Journal>) -> Result<NextState, SetupError> {
    let command_line = inputs::read("/proc/cmdline")?;
    let (over, args) = Layer::from_kernel_command_line(&command_line)?;
    console::log_libraries(args.verbose);
    for argument in &args.unknown {
        journal.warn(&format!("kernel argument {argument:?} is not known to this agent and is left out"));
    }
    match args.action {
        Some(Action::Provision) => provisioning::run(&args, over, journal),
        Some(Action::FactoryReset) => reset::run(&Setup::new(args, over, journal)?, journal),
        Some(Action::Reflash) | None => reflash(args, over, journal),
    }
}

fn reflash(args: BootArgs, over: Layer, journal: &Arc<Journal>) -> Result<NextState, SetupError> {
    let setup = Setup::new(args, over, journal)?;
    if let Some(confirmed) = crate::jobs::factory_reset::pending(&setup.state.boot_env())? {
        return reset::renew(&setup, confirmed, journal);
    }
    trial::watch(&setup, journal);
    let mirrors = setup.open_mirrors(journal)?;
    let bounded_mirrors = mirrors.clone().with_retry_policy(RetryPolicy::Rounds(RENEWAL_ROUNDS));
    let machine = setup.machine(&mirrors, &bounded_mirrors, journal);
    // Somebody who asks for a release waits for nothing but that.
    let compared = if setup.reason.is_requested() { Compared::NoRecord } else { setup.compare(&machine) };
    let situation = Situation {
        reason: setup.reason,
        system: compared.system(),
        recoveries: setup.recoveries,
        budget: setup.config.recoveries,
    };
    match (decide::decide(&situation), compared) {
        (BootDecision::Start, Compared::Intact(proof, installed)) => {
            let report = recovery::start_again(&machine, proof, &installed)?;
            setup.finish(AttemptOutcome::Started);
            Ok(NextState::Reboot(format!("{} is intact: starting it", report.version)))
        }
        (first, _) => install::run(&setup, &mirrors, &machine, journal, first),
    }
}

/// Something basic is missing: a disk that did not answer, a damaged file system, a configuration.
fn start_over(journal: &Journal, why: &str) -> ! {
    journal.warn(&format!("recovery cannot go on: {why}"));
    journal.note(&format!("restarting in {} minutes; ctrl-alt-del restarts at once", START_OVER.as_secs() / 60));
    install::rest(journal, START_OVER);
    restart(journal)
}

fn restart(journal: &Journal) -> ! {
    loop {
        let Err(error) = sys::power::reboot();
        journal.warn(&format!("the kernel refuses to reboot: {error}"));
        std::thread::sleep(READING_TIME);
    }
}
