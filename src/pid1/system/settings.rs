//! What the recovery partition says about this machine, for the system that is being started.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::take::answer_within;
use crate::chain::chain;
use crate::disk::list::PartitionTable;
use crate::disk::roles::Role;
use crate::jobs::site_copy::{ASSET, CONFIG, SiteCopy};
use crate::jobs::state::StatePartition;
use crate::machine::config::Layer;
use crate::sys::files;
use crate::sys::mount::{self, Mount};

/// Mount point of the recovery partition, which is mounted only while it is read, and of the state partition where the
/// copy is needed.
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

/// Reads the settings, and leaves the configuration as it is in `run`, for the running system. It may have passwords.
/// Where the recovery partition cannot be read, or its configuration is none, the copy on the state partition counts.
/// Returns what went wrong beside them.
pub(super) fn read(layout: &PartitionTable, run: &Path) -> (Settings, Vec<String>) {
    let mut problems = Vec::new();
    let Some(device) = layout.device_of(Role::Recovery) else { return (Settings::default(), problems) };
    let mount = Mount::device(device, "ext4").read_only().no_load().data_only();
    let read = answer_within(LIMIT, "read the recovery partition", move || {
        mount.on(RECOVERY)?;
        let path = Path::new(RECOVERY).join(CONFIG);
        let text = files::read_text(&path, MAX_CONFIG_BYTES);
        // Written at provisioning; most machines have none.
        let asset = files::read_text(&Path::new(RECOVERY).join(ASSET), MAX_NAME_BYTES);
        mount::unmount(RECOVERY)?;
        Ok((text.map_err(|error| format!("{}: {error}", path.display())), asset))
    });
    let (text, asset) = read.unwrap_or_else(|error| {
        let why = format!("the recovery partition cannot be read: {}", chain(&error));
        (Err(why), Err(io::ErrorKind::Other.into()))
    });
    let parsed = text.and_then(|text| match Layer::parse_usable(CONFIG, &text) {
        Ok(usable) if usable.value == Layer::default() => Err(format!("{CONFIG} of the recovery partition is empty")),
        Ok(usable) => Ok((text, usable)),
        Err(error) => Err(chain(&error)),
    });
    let is_asset_lost = matches!(&asset, Err(error) if error.kind() != io::ErrorKind::NotFound);
    let copy = if parsed.is_err() || is_asset_lost { copy(layout) } else { SiteCopy::default() };
    let parsed = parsed.or_else(|why| {
        let copied = copy.get(CONFIG).map(str::to_owned);
        let usable = copied.and_then(|text| Layer::parse_usable(CONFIG, &text).ok().map(|usable| (text, usable)));
        let used = if usable.is_some() { "its copy on the state partition is used" } else { "the defaults count" };
        problems.push(format!("{why}; {used}"));
        usable.ok_or(())
    });
    let asset = asset.ok().or_else(|| copy.get(ASSET).filter(|_| is_asset_lost).map(str::to_owned));
    let asset = asset.map(|name| name.trim().to_owned());
    let Ok((text, usable)) = parsed else { return (Settings { asset, ..Settings::default() }, problems) };
    problems.extend(usable.problems.iter().map(|problem| chain(problem)));
    if let Err(error) = leave(&run.join(CONFIG), &text) {
        problems.push(format!("the configuration cannot be kept for the system: {error}"));
    }
    (Settings { layer: usable.value, asset }, problems)
}

/// The copy on the state partition; an empty one where that cannot be read.
fn copy(layout: &PartitionTable) -> SiteCopy {
    let Some(device) = layout.device_of(Role::State) else { return SiteCopy::default() };
    let mount = Mount::device(device, "ext4").read_only().no_load().data_only();
    let read = answer_within(LIMIT, "read the copy on the state partition", move || {
        mount.on(RECOVERY)?;
        let copy = SiteCopy::read(&StatePartition::new(Path::new(RECOVERY)));
        mount::unmount(RECOVERY)?;
        Ok(copy)
    });
    read.unwrap_or_default()
}

fn leave(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let _ = fs::remove_file(path);
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}
