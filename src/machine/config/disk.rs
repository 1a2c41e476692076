//! `[provision.disk]`: which disk becomes the machine's.

use serde::Deserialize;

use super::{ConfigError, value_error};

/// Which disk to provision: everything that is given must fit. Texts may hold `*` and `?`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskSelector {
    /// Serial number.
    pub serial: Option<String>,
    /// Model.
    pub model: Option<String>,
    /// At least this large, in units of 10^9 bytes, as on the label of a disk.
    pub min_gb: Option<u64>,
    /// At most this large, in units of 10^9 bytes.
    pub max_gb: Option<u64>,
    /// Where it is attached, as sysfs names it: `*/0000:00:17.0/ata1/*`.
    pub path: Option<String>,
    /// How it is attached: `nvme`, `usb`, `mmc`, `virtio`, `ata`, `loop`, `other`.
    pub transport: Option<String>,
    /// Removable disks count too.
    pub removable: bool,
}

impl DiskSelector {
    /// Reads `KEY=VALUE,KEY=VALUE`, with the keys of the configuration; `removable` needs no value.
    ///
    /// # Errors
    /// An unknown key, or a size that is no number.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong =
            || value_error("reflash.disk", text, "serial=, model=, min_gb=, max_gb=, path=, transport=, removable");
        let mut this = Self::default();
        for setting in text.split(',') {
            let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
            let number = || value.parse().map(Some).map_err(|_| wrong());
            match key {
                "serial" => this.serial = Some(value.to_owned()),
                "model" => this.model = Some(value.to_owned()),
                "min_gb" => this.min_gb = number()?,
                "max_gb" => this.max_gb = number()?,
                "path" => this.path = Some(value.to_owned()),
                "transport" => this.transport = Some(value.to_owned()),
                "removable" if value.is_empty() => this.removable = true,
                _ => return Err(wrong()),
            }
        }
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::DiskSelector;

    #[test]
    fn a_selector_reads_the_same_from_a_file_and_from_an_argument() {
        let file: DiskSelector = toml::from_str("serial = 'S*'\nmin_gb = 100\nremovable = true").unwrap();
        assert_eq!(DiskSelector::parse("serial=S*,min_gb=100,removable").unwrap(), file);
        for wrong in ["", "seriel=x", "min_gb=many", "removable=no"] {
            assert!(DiskSelector::parse(wrong).is_err(), "{wrong}");
        }
        assert!(toml::from_str::<DiskSelector>("seriel = 'x'").is_err());
    }
}
