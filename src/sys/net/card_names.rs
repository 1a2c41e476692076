//! The names that a network card has in the running system. Recovery has no udev, so that a card keeps the name that
//! the kernel gave it, while people know it by the one that `ip` shows them.

use std::fs;
use std::path::Path;

/// Names that udev gives to a card (systemd.net-naming-scheme(7)): by its MAC address, by the number that the board has
/// for it, by the number of its slot, and by its place on the PCI bus or at a USB port. `directory` is that of the card
/// in sysfs, `slots` that of the PCI slots.
///
/// Of two cards no more than one has a name, so all that may be used are returned: which one it is depends on the
/// version of systemd.
pub(super) fn names_by_udev(directory: &Path, slots: &Path, mac: [u8; 6]) -> Vec<String> {
    let text = |path: &Path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let device = fs::canonicalize(directory.join("device")).unwrap_or_default();
    let mut places = Vec::new();
    for file in ["acpi_index", "index"] {
        let number = text(&device.join(file));
        places.extend((!number.is_empty()).then(|| format!("eno{number}")));
    }
    let parts: Vec<&str> = device.iter().filter_map(|part| part.to_str()).collect();
    // A virtio card lies one step below its place, one on USB several.
    let own = parts.iter().rposition(|part| pci_place(part).is_some());
    if let Some((address, [domain, bus, slot, function])) = own.and_then(|at| Some((parts[at], pci_place(parts[at])?)))
    {
        let domain = if domain > 0 { format!("P{domain}") } else { String::new() };
        let usb = parts.last().and_then(|part| usb_place(part)).unwrap_or_default();
        let mut add = |place: String| {
            places.push(format!("en{domain}{place}f{function}{usb}"));
            // Whether the only function has its number is for the device to say.
            places.extend((function == 0).then(|| format!("en{domain}{place}{usb}")));
        };
        add(format!("p{bus}s{slot}"));
        for entry in fs::read_dir(slots).into_iter().flatten().flatten() {
            let place = text(&entry.path().join("address"));
            let is_own = !place.is_empty() && address.strip_prefix(&place).is_some_and(|rest| rest.starts_with('.'));
            if is_own && let Some(number) = entry.file_name().to_str() {
                add(format!("s{number}"));
            }
        }
    }
    // Cards with several ports: some drivers name the port, others number it.
    let port = match (text(&directory.join("phys_port_name")), text(&directory.join("dev_port"))) {
        (name, _) if !name.is_empty() => format!("n{name}"),
        (_, number) if !["", "0"].contains(&number.as_str()) => format!("d{number}"),
        _ => String::new(),
    };
    let by_mac = mac.map(|byte| format!("{byte:02x}")).concat();
    places.iter().map(|place| format!("{place}{port}")).chain([format!("enx{by_mac}")]).collect()
}

/// Domain, bus, slot and function of a PCI device by its name in sysfs, such as `0000:03:00.1`.
fn pci_place(name: &str) -> Option<[u32; 4]> {
    let (place, function) = name.split_once('.')?;
    let numbers = place.split(':').chain([function]).map(|number| u32::from_str_radix(number, 16));
    numbers.collect::<Result<Vec<_>, _>>().ok()?.try_into().ok()
}

/// The ports that lead to an interface of a USB device, by its name in sysfs, such as `1-2.3:1.0`: `u2u3`.
fn usb_place(name: &str) -> Option<String> {
    let (ports, interface) = name.split_once('-')?.1.split_once(':')?;
    let (configuration, number) = interface.split_once('.')?;
    let mut text: String = ports.split('.').map(|port| format!("u{port}")).collect();
    if configuration != "1" {
        text += &format!("c{configuration}");
    }
    if number != "0" {
        text += &format!("i{number}");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::{names_by_udev, pci_place, usb_place};

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0xab, 0x56];

    /// The names of a card at this place below `/sys/devices`, with these files of its own and of its device.
    fn names(device: &str, files: &[(&str, &str)], slots: &[(&str, &str)]) -> Vec<String> {
        let sys = tempfile::tempdir().unwrap();
        let (card, place) = (sys.path().join("eth0"), sys.path().join("devices").join(device));
        fs::create_dir_all(&place).unwrap();
        fs::create_dir_all(&card).unwrap();
        symlink(&place, card.join("device")).unwrap();
        for (file, text) in files {
            fs::write(card.join(file), format!("{text}\n")).unwrap();
        }
        for (number, address) in slots {
            fs::create_dir_all(sys.path().join("slots").join(number)).unwrap();
            fs::write(sys.path().join("slots").join(number).join("address"), format!("{address}\n")).unwrap();
        }
        names_by_udev(&card, &sys.path().join("slots"), MAC)
    }

    #[test]
    fn a_card_has_the_names_that_the_running_system_shows() {
        let by_mac = "enx52540012ab56";
        let soldered = names("pci0000:00/0000:00:1c.0/0000:01:00.0", &[("device/acpi_index", "2")], &[]);
        assert_eq!(soldered, ["eno2", "enp1s0f0", "enp1s0", by_mac]);
        let second = names("pci0000:00/0000:00:1f.6", &[("device/index", "1")], &[]);
        assert_eq!(second, ["eno1", "enp0s31f6", by_mac]);
        let virtio = names("pci0000:00/0000:00:03.0/virtio1", &[], &[("3", "0000:00:03"), ("4", "0000:00:04")]);
        assert_eq!(virtio, ["enp0s3f0", "enp0s3", "ens3f0", "ens3", by_mac]);
        let ports = names("pci10000:00/10000:e1:00.1", &[("phys_port_name", "p1"), ("dev_port", "1")], &[]);
        assert_eq!(ports, ["enP65536p225s0f1np1", by_mac]);
        let numbered = names("pci0000:00/0000:05:00.0", &[("phys_port_name", ""), ("dev_port", "1")], &[]);
        assert_eq!(numbered, ["enp5s0f0d1", "enp5s0d1", by_mac]);
        let usb = names("pci0000:00/0000:00:14.0/usb1/1-2/1-2.3/1-2.3:1.0", &[("dev_port", "0")], &[]);
        assert_eq!(usb, ["enp0s20f0u2u3", "enp0s20u2u3", by_mac]);
    }

    #[test]
    fn places_are_read_as_sysfs_names_them_and_nothing_else_is() {
        assert_eq!(pci_place("10000:e1:1f.7"), Some([0x10000, 0xe1, 0x1f, 7]));
        for other in ["virtio1", "pci0000:00", "0000:00:1f", "00:1f.2", "0000:00:1f.2.1", "1-2:1.0", ""] {
            assert_eq!(pci_place(other), None, "{other}");
        }
        assert_eq!(usb_place("2-1:2.1").as_deref(), Some("u1c2i1"));
        for other in ["1-2", "usb1", "0000:00:14.0", "virtio1", ""] {
            assert_eq!(usb_place(other), None, "{other}");
        }
    }
}
