//! What the recovery partition says about this machine, for the system that is being started.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::error::SysrootError;
use super::take::answer_within;
use crate::disk::list::PartitionTable;
use crate::disk::roles::Role;
use crate::machine::config::{ConfigError, Layer};
use crate::sys::files;
use crate::sys::mount::{self, Mount};

/// Mount point of the recovery partition, which is mounted only while it is read.
pub(super) const RECOVERY: &str = "/recovery";
/// Size of the largest configuration file, bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Size of the longest name of a machine, bytes.
const MAX_NAME_BYTES: u64 = 4096;
/// Time for a disk to give a few small files.
const LIMIT: Duration = Duration::from_secs(60);

/// The settings of this machine.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// The configuration of the recovery partition.
    pub layer: Layer,
    /// Name that a person gave at provisioning.
    pub asset: Option<String>,
}

/// Failure to read the settings. The system starts with the image's own.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettingsError {
    #[error("the recovery partition cannot be read")]
    Read(#[from] SysrootError),
    #[error("the configuration of the recovery partition cannot be used")]
    Config(#[from] ConfigError),
}

/// Reads the settings, and leaves the configuration as it is in `run`, for the running system. It may have passwords.
pub(super) fn read(layout: &PartitionTable, run: &Path) -> Result<Settings, SettingsError> {
    let Some(device) = layout.device_of(Role::Recovery) else { return Ok(Settings::default()) };
    let mount = Mount::device(device, "ext4").read_only().no_load().data_only();
    let (text, asset) = answer_within(LIMIT, "read the recovery partition", move || {
        mount.on(RECOVERY)?;
        let path = Path::new(RECOVERY).join("reflash.toml");
        let text = files::read_text(&path, MAX_CONFIG_BYTES);
        // Written at provisioning; most machines have none.
        let asset = files::read_text(&Path::new(RECOVERY).join("asset"), MAX_NAME_BYTES);
        mount::unmount(RECOVERY)?;
        let text = text.map_err(SysrootError::file(format!("read {}", path.display())))?;
        Ok((text, asset.ok().map(|name| name.trim().to_owned())))
    })?;
    leave(&run.join("reflash.toml"), &text).map_err(SysrootError::file("keep the configuration for the system"))?;
    Ok(Settings { layer: Layer::parse("reflash.toml", &text)?, asset })
}

fn leave(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let _ = fs::remove_file(path);
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}
