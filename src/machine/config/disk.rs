//! `[provision.disk]`: which disk becomes the machine's. Pure.

use super::error::ConfigError;
use super::keys::{ConfigKey, Shape, ValueKind, keys};
use super::kinds::{Flag, Gigabytes, Text};

keys! {
    /// The choice of the disk to provision: everything that is given must fit. Texts may hold `*` and `?`.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    checked DiskSelector

    /// The disk to provision, by what is known of it. Everything that is given must fit, and texts may hold `*` and
    /// `?`; without any key, every disk fits that is not removable. A later layer that has this section replaces it as
    /// a whole. The kernel argument holds the same keys, comma separated: `reflash.disk=serial=S1*,min_gb=100`.
    ["provision.disk"] disk: DiskLayer {
        /// Serial number of the disk.
        serial as serial: Text, optional "any serial number", argument "serial";
        /// Model of the disk.
        model as model: Text, optional "any model", argument "model";
        /// The least size of the disk, as on its label.
        min_gb as min_gb: Gigabytes, optional "no limit", argument "min_gb";
        /// The greatest size of the disk, as on its label.
        max_gb as max_gb: Gigabytes, optional "no limit", argument "max_gb";
        /// Where the disk is attached, as sysfs names it: `*/0000:00:17.0/ata1/*`.
        path as path: Text, optional "any path", argument "path";
        /// How the disk is attached: `nvme`, `usb`, `mmc`, `virtio`, `ata`, `loop`, `other`.
        transport as transport: Text, optional "any transport", argument "transport";
        /// Whether removable disks count too.
        removable as removable: Flag, default "false", argument "removable";
    }
}

impl DiskSelector {
    /// Checks the section alone.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the key at fault.
    pub fn resolve(layer: DiskLayer) -> Result<Self, ConfigError> {
        Self::checked(layer)
    }
}

/// A selector of a disk: a section in a file, `KEY=VALUE,KEY=VALUE` in a kernel argument.
#[derive(Debug)]
pub struct DiskTable;

impl ValueKind for DiskTable {
    type Written = DiskLayer;
    type Checked = DiskSelector;
    const SHAPE: Shape = Shape::Table(&DiskSelector::SECTIONS[0]);

    fn expected() -> String {
        let form = |key: &ConfigKey| match key.shape {
            Shape::Flag => key.name.to_owned(),
            _ => format!("{}=", key.name),
        };
        DiskSelector::SECTIONS[0].keys.iter().map(form).collect::<Vec<_>>().join(", ")
    }

    fn example() -> String {
        "serial=S1*,min_gb=100,removable".to_owned()
    }

    fn from_text(text: &str) -> Option<DiskLayer> {
        let mut layer = DiskLayer::default();
        for setting in text.split(',') {
            let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
            layer.set(key, value).ok().filter(|known| *known)?;
        }
        Some(layer)
    }

    fn usable(_key: &'static str, mut written: DiskLayer, problems: &mut Vec<ConfigError>) -> Option<DiskLayer> {
        written.drop_wrong(problems);
        Some(written)
    }

    fn check(_key: &'static str, written: DiskLayer) -> Result<DiskSelector, ConfigError> {
        DiskSelector::resolve(written)
    }
}

#[cfg(test)]
mod tests {
    use super::{DiskLayer, DiskSelector, DiskTable, ValueKind};

    #[test]
    fn a_selector_reads_the_same_from_a_file_and_from_an_argument() {
        let file: DiskLayer = toml::from_str("serial = 'S*'\nmin_gb = 100\nremovable = true").unwrap();
        assert_eq!(DiskTable::from_text("serial=S*,min_gb=100,removable").unwrap(), file);
        let selector = DiskSelector::resolve(file).unwrap();
        assert_eq!((selector.serial.as_deref(), selector.min_gb, selector.removable), (Some("S*"), Some(100), true));
        assert_eq!(DiskSelector::resolve(DiskLayer::default()).unwrap(), DiskSelector::default());
        for wrong in ["", "seriel=x", "min_gb=many", "removable=no"] {
            assert!(DiskTable::from_text(wrong).is_none(), "{wrong}");
        }
        assert!(toml::from_str::<DiskLayer>("seriel = 'x'").is_err());
    }
}
