//! The host name of the system that is being started.

use std::fs;
use std::io;
use std::path::Path;

use crate::disk::list::PartitionTable;
use crate::disk::roles::Role;
use crate::machine::config::{ConfigError, Layer};
use crate::machine::hostname::{self, HostnameError};
use crate::machine::identity;
use crate::sys::files;
use crate::sys::mount::{self, Mount, MountError};

/// Mount point of the recovery partition, which is mounted only while its configuration is read.
const RECOVERY: &str = "/recovery";
/// Size of the largest configuration file, bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Size of the longest name of a machine, bytes.
const MAX_NAME_BYTES: u64 = 4096;

/// Failure to give the machine its own name. It keeps that of the image.
#[derive(Debug, thiserror::Error)]
pub(super) enum NamingError {
    #[error("the recovery partition cannot be read")]
    Mount(#[from] MountError),
    #[error("the configuration cannot be used")]
    Config(#[from] ConfigError),
    #[error("the host name template cannot be used")]
    Template(#[from] HostnameError),
    #[error("cannot {action}")]
    File { action: String, source: io::Error },
}

/// Names the machine by the template of the configuration in the recovery partition, if it has one. systemd keeps the
/// name unless /etc/hostname has another.
pub(super) fn set(layout: &PartitionTable) -> Result<Option<String>, NamingError> {
    let Some(device) = layout.device_of(Role::Recovery) else { return Ok(None) };
    Mount::device(device, "ext4").read_only().no_load().data_only().on(RECOVERY)?;
    let path = Path::new(RECOVERY).join("reflash.toml");
    let configuration = files::read_text(&path, MAX_CONFIG_BYTES);
    // Written at provisioning; most machines have none.
    let asset = files::read_text(&Path::new(RECOVERY).join("asset"), MAX_NAME_BYTES);
    let asset = asset.ok().map(|name| name.trim().to_owned());
    mount::unmount(RECOVERY)?;
    let file = |action: String| move |source| NamingError::File { action, source };
    let configuration = configuration.map_err(file(format!("read {}", path.display())))?;
    let Some(template) = Layer::parse("reflash.toml", &configuration)?.machine.hostname else { return Ok(None) };
    let name = hostname_of(&template, &identity::identity(), asset)?;
    fs::write("/proc/sys/kernel/hostname", &name).map_err(file(format!("set the host name {name}")))?;
    Ok(Some(name))
}

fn hostname_of(
    template: &str,
    machine: &identity::HardwareIdentity,
    asset: Option<String>,
) -> Result<String, HostnameError> {
    hostname::expand(template, |key| if key == "asset" { asset.clone() } else { machine.value(key) })
}

#[cfg(test)]
mod tests {
    use super::hostname_of;
    use crate::machine::hostname::KEYS;
    use crate::machine::identity::HardwareIdentity;

    #[test]
    fn every_key_of_a_template_has_a_source() {
        let some = || Some("x1".to_owned());
        let machine = HardwareIdentity {
            vendor: some(),
            product_name: some(),
            product_serial: some(),
            product_uuid: Some("4c4c4544-0042-3510-8048-b4c04f4d3732".to_owned()),
            board_vendor: None,
            board_name: None,
            board_serial: some(),
            mac: Some("52:54:00:12:34:56".to_owned()),
        };
        for key in KEYS {
            let name = hostname_of(&format!("r-{{{key}}}"), &machine, some());
            assert!(name.as_ref().is_ok_and(|name| name.starts_with("r-") && name.len() > 3), "{key}: {name:?}");
        }
    }
}
