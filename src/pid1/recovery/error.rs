//! Errors that keep the agent from even trying a recovery.

use std::io;
use std::path::PathBuf;

use crate::boot::env::BootEnvError;
use crate::disk::FindError;
use crate::disk::find::listed;
use crate::disk::roles::Role;
use crate::fetch::FetchError;
use crate::jobs::factory_reset::ResetError;
use crate::jobs::keys::KeysError;
use crate::jobs::mend::MendError;
use crate::jobs::provision::{ChooseError, InstallError};
use crate::machine::config::ConfigError;
use crate::machine::drivers::ModuleError;
use crate::machine::hostname::HostnameError;
use crate::machine::media::MediaId;
use crate::net::NetError;
use crate::release::manifest::ManifestError;
use crate::sys::block::BlockError;
use crate::sys::mount::MountError;

/// Error that ends the agent's work. The machine is restarted after a pause: it may have passed by then.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("the kernel modules could not be used")]
    Modules(#[from] ModuleError),
    #[error("there is no disk to recover")]
    Disk(#[from] FindError),
    #[error(transparent)]
    Device(#[from] BlockError),
    #[error("the system partition cannot be opened")]
    System(#[source] BlockError),
    #[error("the disk {disk} has no partition named {:?}, or several", .role.name())]
    Partition { disk: String, role: Role },
    #[error("the boot environment cannot be used")]
    Environment(#[from] BootEnvError),
    #[error("the state partition {} cannot be made anew from the recovery partition", .path.display())]
    State { path: PathBuf, source: io::Error },
    #[error("the boot medium {id} is not found; is it still plugged in?")]
    Medium { id: MediaId },
    #[error("no disk of this machine has the partitions of a robot; is its disk plugged in?{}", listed("Disks present", .disks))]
    NoRobot { disks: Vec<String> },
    #[error(
        "{} disks of this machine have the partitions of a robot: detach all but the one that is meant{}",
        .found, listed("Disks present", .disks)
    )]
    Robots { found: usize, disks: Vec<String> },
    #[error("the disks cannot be listed")]
    Disks(#[source] io::Error),
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
    #[error(transparent)]
    Mend(MendError),
    #[error("the configuration cannot be used")]
    Config(#[from] ConfigError),
    #[error("cannot read {path}")]
    Read { path: String, source: io::Error },
    #[error("cannot give the file system on {} an identity of its own", .path.display())]
    Identity { path: PathBuf, source: io::Error },
    #[error("a trusted key cannot be used")]
    Key(#[from] ManifestError),
    #[error("no release can be checked")]
    Keys(#[from] KeysError),
    #[error("the release servers cannot be used")]
    Sources(#[from] FetchError),
    #[error("the network could not be brought up")]
    Network(#[from] NetError),
}
