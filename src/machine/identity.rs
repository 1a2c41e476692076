//! Identity of this machine: DMI, or the device tree on boards without it, and the first network card.

use std::fs;
use std::path::Path;

use crate::machine::placeholder::{is_placeholder, is_placeholder_address, is_placeholder_uuid};

/// Identity of the machine as its firmware states it. Texts that vendors forget to fill in count as missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HardwareIdentity {
    /// Maker of the product.
    pub vendor: Option<String>,
    /// Product name; a board's `model` from the device tree.
    pub product_name: Option<String>,
    /// Serial number of the product.
    pub product_serial: Option<String>,
    /// UUID of the product, lower case.
    pub product_uuid: Option<String>,
    /// Maker of the board.
    pub board_vendor: Option<String>,
    /// Name of the board.
    pub board_name: Option<String>,
    /// Serial number of the board.
    pub board_serial: Option<String>,
    /// Hardware address of the first built-in network card, as `aa:bb:cc:dd:ee:ff`.
    pub mac: Option<String>,
}

impl HardwareIdentity {
    /// Returns the value of a key of a host name template (`crate::machine::hostname::KEYS`), if the hardware has it.
    pub fn value(&self, key: &str) -> Option<String> {
        match key {
            "serial" => &self.product_serial,
            "board-serial" => &self.board_serial,
            "uuid" => &self.product_uuid,
            "mac" => &self.mac,
            "product" => &self.product_name,
            "vendor" => &self.vendor,
            _ => &None,
        }
        .clone()
    }
}

/// Reads the identity of this machine. Serial numbers and the UUID are only visible to root.
pub fn identity() -> HardwareIdentity {
    identity_below(Path::new("/"))
}

fn identity_below(root: &Path) -> HardwareIdentity {
    let dmi = |name: &str| filled_in(&root.join("sys/class/dmi/id").join(name));
    let tree = |name: &str| filled_in(&root.join("proc/device-tree").join(name));
    HardwareIdentity {
        vendor: dmi("sys_vendor"),
        product_name: dmi("product_name").or_else(|| tree("model")),
        product_serial: dmi("product_serial").or_else(|| tree("serial-number")),
        product_uuid: dmi("product_uuid")
            .map(|uuid| uuid.to_ascii_lowercase())
            .filter(|uuid| !is_placeholder_uuid(uuid)),
        board_vendor: dmi("board_vendor"),
        board_name: dmi("board_name"),
        board_serial: dmi("board_serial"),
        mac: first_mac(&root.join("sys/class/net")),
    }
}

fn filled_in(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    // Device tree texts end with a zero.
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!is_placeholder(text)).then(|| text.to_owned())
}

/// Returns the address of the network card that the kernel found first, and of one on USB only if there is no other:
/// USB adapters are passed from robot to robot.
fn first_mac(class: &Path) -> Option<String> {
    let mut cards = Vec::new();
    for entry in fs::read_dir(class).ok()?.flatten() {
        let Ok(device) = entry.path().join("device").canonicalize() else { continue };
        let on_usb = device.to_string_lossy().contains("/usb");
        let index: u32 = fs::read_to_string(entry.path().join("ifindex")).ok()?.trim().parse().ok()?;
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default().trim().to_owned();
        let mac = read("address");
        // The value of NET_ADDR_PERM in Linux is 0. With any other, the address was made up at this boot, or set by a
        // program.
        let permanent = matches!(read("addr_assign_type").as_str(), "" | "0");
        if permanent && !is_placeholder_address(&mac) {
            cards.push((on_usb, index, mac));
        }
    }
    cards.into_iter().min().map(|(_, _, mac)| mac)
}

/// Returns the hardware's name for its model: the DMI product name, or the device tree's model.
#[must_use]
pub fn hardware_name() -> Option<String> {
    identity().product_name
}

#[cfg(test)]
mod tests {
    use super::{HardwareIdentity, identity_below};
    use std::fs;
    use std::path::Path;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn dmi_without_the_placeholders() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "sys/class/dmi/id/product_name", "UP-CHT01\n");
        put(root.path(), "sys/class/dmi/id/product_serial", "To be filled by O.E.M.\n");
        put(root.path(), "sys/class/dmi/id/product_uuid", "4C4C4544-0042-3510-8048-B4C04F4D3732\n");
        put(root.path(), "sys/class/dmi/id/board_serial", "0000000\n");
        let expected = HardwareIdentity {
            product_name: Some("UP-CHT01".into()),
            product_uuid: Some("4c4c4544-0042-3510-8048-b4c04f4d3732".into()),
            ..HardwareIdentity::default()
        };
        assert_eq!(identity_below(root.path()), expected);
    }

    #[test]
    fn the_device_tree_stands_in() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0");
        put(root.path(), "proc/device-tree/serial-number", "10000000abcdef01\0");
        let identity = identity_below(root.path());
        assert_eq!(identity.product_name.as_deref(), Some("Raspberry Pi 4 Model B Rev 1.4"));
        assert_eq!(identity.product_serial.as_deref(), Some("10000000abcdef01"));
    }

    #[test]
    fn the_first_card_that_is_not_usb_gives_the_mac() {
        let root = tempfile::tempdir().unwrap();
        for (name, index, mac, device) in [
            // A card without an address of its own gets another at every boot.
            ("eth2", "0", "52:54:00:00:00:09", "sys/devices/pci/09"),
            ("eth1", "3", "52:54:00:00:00:03", "sys/devices/pci/03"),
            ("eth0", "2", "52:54:00:00:00:02", "sys/devices/pci/02"),
            ("usb0", "1", "52:54:00:00:00:01", "sys/devices/pci/usb1/1-1"),
        ] {
            put(root.path(), &format!("sys/class/net/{name}/ifindex"), index);
            put(root.path(), &format!("sys/class/net/{name}/address"), mac);
            fs::create_dir_all(root.path().join(device)).unwrap();
            let link = root.path().join(format!("sys/class/net/{name}/device"));
            std::os::unix::fs::symlink(root.path().join(device), link).unwrap();
        }
        put(root.path(), "sys/class/net/eth2/addr_assign_type", "1");
        put(root.path(), "sys/class/net/lo/ifindex", "1");
        assert_eq!(identity_below(root.path()).mac.as_deref(), Some("52:54:00:00:00:02"));
    }
}
