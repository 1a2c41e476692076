//! What the first step leaves in memory for the rest of the boot: the terms of the boot watch, and in a safe start the
//! network settings of the recovery.

use std::fs;
use std::io;
use std::path::Path;

use super::safe_network;
use crate::chain::chain;
use crate::disk::list::PartitionTable;
use crate::disk::roles::Role;
use crate::machine::config::{Layer, Network};
use crate::pid1::boot_watch::terms::WrittenTerms;
use crate::sys::files;
use crate::sys::mount::{self, Mount};

/// Mount point of the recovery partition, which is mounted only while its configuration is read.
const RECOVERY: &str = "/recovery";
/// Size of the largest configuration file, bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Leaves them. `root` is the system's root, put together; `safe_start` is the number of a safe start. Returns what
/// went wrong: none of it keeps the system from starting.
pub(super) fn for_the_system(
    layout: &PartitionTable,
    root: &Path,
    command_line: &str,
    safe_start: Option<u32>,
) -> Vec<String> {
    let mut problems = Vec::new();
    let mut read = |origin: &str, text: io::Result<String>| {
        let text = match text {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Layer::default(),
            Err(error) => {
                problems.push(format!("left out: {origin}: {error}"));
                return Layer::default();
            }
        };
        Layer::parse(origin, &text).unwrap_or_else(|error| {
            problems.push(format!("left out: {}", chain(&error)));
            Layer::default()
        })
    };
    // /etc is the machine's own and may hold anything.
    let own = read(
        "/etc/reflash/reflash.toml",
        files::read_below(root, Path::new("etc/reflash/reflash.toml"), MAX_CONFIG_BYTES).and_then(text_of),
    );
    let recovery = read("reflash.toml of the recovery partition", of_recovery(layout));
    let network = recovery.network.clone();
    let mut layer = own.overridden_by(recovery);
    match Layer::from_kernel_command_line(command_line) {
        Ok((arguments, _)) => layer = layer.overridden_by(arguments),
        Err(error) => problems.push(format!("kernel arguments are left out: {}", chain(&error))),
    }
    let mut terms =
        WrittenTerms { state: layout.device_of(Role::State).map(Path::to_owned), ..WrittenTerms::default() };
    match layer.boot.good_within() {
        Ok(limit) => terms.good_within_s = limit.map_or(0, |limit| limit.as_secs()),
        Err(error) => problems.push(chain(&error)),
    }
    if let Err(error) = terms.write() {
        problems.push(format!("the boot watch goes by its defaults: {error}"));
    }
    if safe_start.is_some() {
        let written = Network::resolve(network)
            .map_err(|error| chain(&error))
            .and_then(|network| safe_network::write(&network).map_err(|error| error.to_string()));
        if let Err(error) = written {
            problems.push(format!("the network has the image's settings alone: {error}"));
        }
    }
    problems
}

fn text_of(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}

/// Reads the configuration of the recovery partition, which a fault may have taken.
fn of_recovery(layout: &PartitionTable) -> io::Result<String> {
    let Some(device) = layout.device_of(Role::Recovery) else { return Err(io::ErrorKind::NotFound.into()) };
    fs::create_dir_all(RECOVERY)?;
    Mount::device(device, "ext4").read_only().no_load().data_only().on(RECOVERY).map_err(io::Error::other)?;
    let text = files::read_text(&Path::new(RECOVERY).join("reflash.toml"), MAX_CONFIG_BYTES);
    let _ = mount::unmount(RECOVERY);
    text
}
