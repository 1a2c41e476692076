//! Makes an entry for the boot list of UEFI firmware. Pure: works on bytes.
//!
//! Formats: UEFI specification 2.10, 3.1.3 (load options), 10.3.5.1 (hard drive), 10.3.5.4 (file path).

use uuid::fmt::Hyphenated;

/// Description of our entry: people see it in the firmware's menu, and we recognise our entry by it.
pub const DESCRIPTION: &str = "reflash";
/// Path of GRUB on the EFI system partition. Firmware tries this path without an entry too.
const LOADER: &str = r"\EFI\BOOT\BOOTX64.EFI";
/// The attribute `LOAD_OPTION_ACTIVE`.
const ACTIVE: u32 = 1;
/// The node that ends a device path.
const END: [u8; 4] = [0x7f, 0xff, 4, 0];

/// The place of an EFI system partition on its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EfiBootPartition {
    /// Number of the partition in the table, from 1.
    pub number: u32,
    /// First block of the partition, in logical blocks of the disk.
    pub first_lba: u64,
    /// Size of the partition, in logical blocks of the disk.
    pub blocks: u64,
    /// PARTUUID of the partition, as text.
    pub partuuid: String,
}

/// Makes the content of a `Boot####` variable that starts GRUB on this partition; `None` when the PARTUUID is not a
/// GUID.
#[must_use]
pub fn load_option(partition: &EfiBootPartition) -> Option<Vec<u8>> {
    let mut drive = vec![4, 1, 42, 0];
    drive.extend(partition.number.to_le_bytes());
    drive.extend(partition.first_lba.to_le_bytes());
    drive.extend(partition.blocks.to_le_bytes());
    // The first three fields of a GUID are little-endian.
    drive.extend(partition.partuuid.parse::<Hyphenated>().ok()?.into_uuid().to_bytes_le());
    // The table is a GPT, and the signature of the partition is a GUID.
    drive.extend([2, 2]);
    let name = utf16(LOADER);
    let mut path = vec![4, 4];
    path.extend(u16::try_from(name.len() + 4).ok()?.to_le_bytes());
    path.extend(name);
    let list = [&drive[..], &path, &END].concat();
    let mut option = ACTIVE.to_le_bytes().to_vec();
    option.extend(u16::try_from(list.len()).ok()?.to_le_bytes());
    option.extend(utf16(DESCRIPTION));
    option.extend(list);
    Some(option)
}

/// Whether the content of a `Boot####` variable is our entry.
#[must_use]
pub fn is_ours(option: &[u8]) -> bool {
    option.get(6..).is_some_and(|rest| rest.starts_with(&utf16(DESCRIPTION)))
}

/// Returns the content of `BootOrder` with this entry first.
#[must_use]
pub fn first_in(order: &[u8], entry: u16) -> Vec<u8> {
    let others = order.chunks_exact(2).filter(|other| *other != entry.to_le_bytes()).flatten();
    entry.to_le_bytes().into_iter().chain(others.copied()).collect()
}

/// Returns why firmware with this content of `SecureBoot` and `SetupMode` may not start the disk, now or one day. Our
/// boot code is signed by no key that a firmware has.
#[must_use]
pub fn secure_boot_warning(secure_boot: Option<&[u8]>, setup_mode: Option<&[u8]>) -> Option<&'static str> {
    let is = |variable: Option<&[u8]>, value: u8| variable.is_some_and(|content| content.first() == Some(&value));
    if is(secure_boot, 1) {
        Some("Secure Boot is on: the firmware will not start this disk until it is switched off")
    } else if is(setup_mode, 0) {
        Some(
            "the firmware has keys for Secure Boot: with its settings lost, as by an empty battery, it may switch it on \
             and no longer start this disk; clear the keys (Setup Mode)",
        )
    } else {
        None
    }
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::{EfiBootPartition, first_in, is_ours, load_option, secure_boot_warning};

    #[test]
    fn an_entry_is_laid_out_as_efibootmgr_does() {
        let partuuid = "00112233-4455-6677-8899-aabbccddeeff".to_owned();
        let esp = EfiBootPartition { number: 2, first_lba: 4096, blocks: 131_072, partuuid };
        let option = load_option(&esp).unwrap();
        // Attributes, length of the path list, "reflash" and its end.
        assert_eq!(option[..6], [1, 0, 0, 0, 42 + 48 + 4, 0]);
        assert!(is_ours(&option) && option[6..22] == *b"r\0e\0f\0l\0a\0s\0h\0\0\0");
        let drive = &option[22..64];
        assert_eq!(drive[..4], [4, 1, 42, 0]);
        assert_eq!((&drive[4..8], &drive[8..16]), (&[2, 0, 0, 0][..], &4096_u64.to_le_bytes()[..]));
        assert_eq!(drive[16..24], 131_072_u64.to_le_bytes());
        assert_eq!(drive[24..32], [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66]);
        assert_eq!(drive[32..], [0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 2, 2]);
        assert_eq!(option[64..68], [4, 4, 48, 0]);
        assert!(option.ends_with(&[0, 0, 0x7f, 0xff, 4, 0]));
        for wrong in ["", "00112233-01", "00112233-4455-6677-8899-aabbccddeefg", "00112233-4455-6677-8899-ääbbccddee"]
        {
            assert_eq!(load_option(&EfiBootPartition { partuuid: wrong.to_owned(), ..esp.clone() }), None, "{wrong}");
        }
        assert!(!is_ours(b"") && !is_ours(&[0; 40]));
    }

    /// <https://github.com/canonical/ubuntu-core-desktop/issues/91>: "Access Denied" of a firmware that fell back.
    #[test]
    fn secure_boot_is_warned_of_while_it_is_on_and_while_it_may_come_back() {
        for (secure_boot, setup_mode, expected) in [
            (Some(&[1][..]), Some(&[0][..]), Some("Secure Boot is on")),
            (Some(&[0]), Some(&[0]), Some("may switch it on")),
            (Some(&[0]), Some(&[1]), None),
            (None, None, None),
            (Some(&[]), Some(&[]), None),
        ] {
            let warning = secure_boot_warning(secure_boot, setup_mode);
            assert_eq!(warning.is_some(), expected.is_some(), "{secure_boot:?} {setup_mode:?}");
            assert!(warning.zip(expected).is_none_or(|(warning, expected)| warning.contains(expected)));
        }
    }

    #[test]
    fn the_entry_comes_first_and_is_there_once() {
        assert_eq!(first_in(&[1, 0, 2, 0, 3, 0], 2), [2, 0, 1, 0, 3, 0]);
        assert_eq!(first_in(&[], 7), [7, 0]);
    }
}
