//! The host name of the system that is being started.

use std::fs;
use std::io;

use super::settings::Settings;
use crate::machine::hostname::{self, HostnameError};
use crate::machine::identity;

/// Failure to give the machine its own name. It keeps that of the image.
#[derive(Debug, thiserror::Error)]
pub(super) enum NamingError {
    #[error("the host name template cannot be used")]
    Template(#[from] HostnameError),
    #[error("cannot set the host name {name}")]
    Kernel { name: String, source: io::Error },
}

/// Names the machine by the template of the configuration, if it has one. systemd keeps the name unless /etc/hostname
/// has another.
pub(super) fn set(settings: &Settings) -> Result<Option<String>, NamingError> {
    let Some(template) = &settings.layer.machine.hostname else { return Ok(None) };
    let name = hostname_of(template, &identity::identity(), settings.asset.clone())?;
    match fs::write("/proc/sys/kernel/hostname", &name) {
        Ok(()) => Ok(Some(name)),
        Err(source) => Err(NamingError::Kernel { name, source }),
    }
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
