//! What GRUB passes to the agent on the kernel command line, beside configuration keys. Pure.

use std::str::FromStr;

use super::error::ConfigError;
use crate::machine::media::MediaId;

/// A kernel argument that is no configuration key, as the documentation and the tests see it.
#[derive(Debug, Clone, Copy)]
pub struct BootArgument {
    /// The name without the prefix `reflash.`.
    pub name: &'static str,
    /// The name of its value; empty when it has none.
    pub value: &'static str,
    /// The sentences that explain it.
    pub doc: &'static str,
}

/// Makes [`BootArgs`] of rows: field, type, `"name" "VALUE"`, and how the value is read.
macro_rules! boot_arguments {
    ($($(#[doc = $doc:literal])+ $field:ident: $type:ty = $name:literal $value:literal, $read:expr;)+) => {
        /// What GRUB passes to the agent on the kernel command line, beside configuration keys.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct BootArgs {
            $($(#[doc = $doc])+ pub $field: $type,)+
            /// Names of the `reflash.` arguments that this agent does not know, where they may be left out.
            pub unknown: Vec<String>,
        }

        impl BootArgs {
            /// Every argument that sets a field.
            pub const ARGUMENTS: &[BootArgument] = &[
                $(BootArgument { name: $name, value: $value, doc: concat!($($doc),+) },)+
            ];

            /// Takes an argument, if it is one of these. Whether it is.
            pub(super) fn set(&mut self, argument: &str, text: &str) -> Result<bool, ConfigError> {
                match argument {
                    $($name => {
                        let read: fn(&str) -> Result<$type, ConfigError> = $read;
                        self.$field = read(text)?;
                    })+
                    _ => return Ok(false),
                }
                Ok(true)
            }
        }
    };
}

boot_arguments! {
    /// Why GRUB chose recovery; see `grub/README.md`.
    reason: Option<String> = "reason" "WHY", |text| Ok(Some(text.to_owned()));
    /// The recovery partition that GRUB booted from. It identifies the disk.
    recovery_partuuid: Option<String> = "recovery" "PARTUUID", |text| {
        // GRUB's first script has none to give where the table is damaged and the disk has no map.
        Ok(Some(text.to_ascii_lowercase()).filter(|text| !text.is_empty()))
    };
    /// The slot of the recovery partition that kernel and initramfs were loaded from.
    slot: Option<String> = "slot" "a|b", |text| Ok(Some(text.to_owned()));
    /// A person asked at the machine, so that an older release is allowed.
    force: bool = "force" "", |_| Ok(true);
    /// What to do, other than recover the disk that GRUB started from.
    action: Option<Action> = "action" "provision|reflash|factory-reset", |text| {
        value("reflash.action", text, "provision, reflash or factory-reset")
    };
    /// The ID of the boot medium that the agent was started from.
    media: Option<MediaId> = "media" "ID", |text| value("reflash.media", text, "the ID of a boot medium");
    /// The ID of the files of a network boot that the agent was started from, where there is no medium to find.
    origin: Option<MediaId> = "origin" "ID", |text| value("reflash.origin", text, "the ID of a boot medium");
    /// Permission to erase a disk that is not blank: `yes` for any that is chosen, or the serial number of the only
    /// one.
    arm: Option<String> = "arm" "yes|SERIAL", |text| match text {
        "" => Err(wrong("reflash.arm", text, "yes, or the serial number of a disk")),
        _ => Ok(Some(text.to_owned())),
    };
    /// Permission to erase also a disk that this medium made before, since a person asked for it now.
    again: bool = "again" "", |_| Ok(true);
    /// Report what provisioning would do, and write nothing.
    dry_run: bool = "dry-run" "", |_| Ok(true);
    /// Libraries may write debug messages to the kernel log.
    verbose: bool = "verbose" "", |_| Ok(true);
}

/// Arguments of the initramfs of the installed system, which [`crate::pid1::system`] reads. The recovery agent only
/// must not refuse them.
pub const SYSTEM_ARGUMENTS: &[BootArgument] = &[
    BootArgument { name: "system", value: "PARTUUID", doc: " The system partition to mount and start." },
    BootArgument {
        name: "data",
        value: "PARTUUID",
        doc: " The data partition, with `/var` and the changes to `/etc`.",
    },
    BootArgument {
        name: "safe",
        value: "NUMBER",
        doc: " A safe start, the one of this number in a row: without the machine's own settings.",
    },
    BootArgument {
        name: "disk-wait-s",
        value: "SECONDS",
        doc: " How long the start of the system waits for its disk before it restarts the machine; 180 by default. \
              The recipe's `kernel_arguments` may set it, and `consoles` in `/grub/local.cfg`. Recovery waits for as \
              long as it takes.",
    },
];

/// Action that a boot medium or a network boot asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Make a machine of a blank disk, or of one that may be erased: everything on it is new.
    Provision,
    /// Install the release again on the machine's disk; its data stays.
    Reflash,
    /// Delete the data of the machine, after a person confirmed it twice; its system stays.
    FactoryReset,
}

impl BootArgs {
    /// Whether the action deletes data of this machine.
    pub(super) fn deletes_data(&self) -> bool {
        matches!(self.action, Some(Action::Provision | Action::FactoryReset))
    }
}

impl FromStr for Action {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "provision" => Ok(Self::Provision),
            "reflash" => Ok(Self::Reflash),
            "factory-reset" => Ok(Self::FactoryReset),
            _ => Err(()),
        }
    }
}

fn value<T: FromStr>(key: &'static str, text: &str, expected: &str) -> Result<Option<T>, ConfigError> {
    text.parse().map(Some).map_err(|_| wrong(key, text, expected))
}

fn wrong(key: &'static str, text: &str, expected: &str) -> ConfigError {
    ConfigError::value(key, text, expected)
}
