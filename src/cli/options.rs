//! The options, one row each. Pure.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::{Parser, ValueExt};

use super::commands::CommandName;
use crate::jobs::provision::Firmware;

/// The row of an option.
#[derive(Debug)]
pub struct OptionRow {
    /// The name behind two dashes.
    pub long: &'static str,
    /// The letter behind one dash, if it has one.
    pub short: Option<char>,
    /// The name of its value, if it has one: `DEV`, `FILE` and `DIR` are paths, `a|b` is a choice.
    pub value: Option<&'static str>,
    /// The sentences that explain it.
    pub doc: &'static str,
    /// The commands that know it.
    pub commands: &'static [CommandName],
    /// Takes it, and its value from the parser, into the options.
    pub(super) take: fn(&mut Options, &mut Parser) -> Result<(), lexopt::Error>,
}

/// Makes [`Options`] and [`OPTIONS`] of rows: explanation, field, type, commands, `"long"`, and what it has of
/// `short 'letter'` and `value "NAME"`. The type says whether a value is taken, and whether a repetition adds or
/// replaces.
macro_rules! options {
    ($(
        $(#[doc = $doc:literal])+
        $field:ident: $type:ty = $commands:ident $long:literal $(short $short:literal)? $(value $value:literal)?;
    )+) => {
        /// The options of all commands; those that a command does not take stay as they are here.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Options {
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        /// Every option, in the order of the help.
        pub static OPTIONS: &[OptionRow] = &[$(
            OptionRow {
                long: $long,
                short: options!(@given $($short)?),
                value: options!(@given $($value)?),
                doc: concat!($($doc),+),
                commands: $commands,
                take: |options, parser| options.$field.take_from(parser),
            },
        )+];
    };
    (@given) => { None };
    (@given $value:literal) => { Some($value) };
}

const FLASH: &[CommandName] = &[CommandName::Flash];
const PROVISION: &[CommandName] = &[CommandName::Provision];
const REQUEST: &[CommandName] = &[CommandName::Request];
const VERIFY: &[CommandName] = &[CommandName::Verify];
const TARGET: &[CommandName] = &[CommandName::Flash, CommandName::Verify, CommandName::Drill, CommandName::Update];
const DRILL: &[CommandName] = &[CommandName::Drill];
const UPDATE: &[CommandName] = &[CommandName::Update];
const STATUS: &[CommandName] = &[CommandName::Status];
const RELEASE: &[CommandName] = &[CommandName::Flash, CommandName::Provision];
/// The commands of an option that every command takes.
pub const EVERY: &[CommandName] = &[
    CommandName::Flash,
    CommandName::Provision,
    CommandName::Verify,
    CommandName::Status,
    CommandName::Report,
    CommandName::Health,
    CommandName::Good,
    CommandName::AfterUndo,
    CommandName::Mend,
    CommandName::Request,
    CommandName::Drill,
    CommandName::Update,
    CommandName::Env,
];

options! {
    /// Block device or image file. Default: the system partition of this machine.
    target: Option<PathBuf> = TARGET "target" value "DEV";
    /// Whole disk, or a file that stands for one.
    disk: Option<PathBuf> = PROVISION "disk" value "DEV";
    /// Permission to erase a disk that is not blank: yes, or its serial number.
    arm: Option<String> = PROVISION "arm" value "yes|SERIAL";
    /// What will start the disk. Default: what started this machine.
    firmware: Option<Firmware> = PROVISION "firmware" value "bios|uefi";
    /// Logical block size that a file stands for. Default: 512 bytes.
    block_bytes: Option<u32> = PROVISION "block-bytes" value "512|4096";
    /// Base URL of the release tree, instead of those of the configuration. Repeat it for mirrors, which are tried in
    /// order.
    urls: Vec<String> = RELEASE "url" value "URL";
    /// Channel, instead of that of the configuration.
    channel: Option<String> = RELEASE "channel" value "NAME";
    /// Product, instead of that of the configuration.
    product: Option<String> = RELEASE "product" value "NAME";
    /// Hardware name, instead of that of the configuration or of DMI.
    hardware: Option<String> = RELEASE "hardware" value "NAME";
    /// Download at most so many KiB per second, all connections together.
    max_rate_kib_s: Option<u64> = RELEASE "max-rate" value "KIB";
    /// Accept an older release than the installed one.
    allow_older: bool = FLASH "allow-older";
    /// Report what would be downloaded, moved and written, and change nothing.
    dry_run: bool = RELEASE "dry-run";
    /// Do not read back what was written. Only with --target, for files and disks on a bench.
    no_read_back: bool = FLASH "no-read-back";
    /// Print the SHA-256 of the image on the target, to compare with the manifest.
    sha256: bool = VERIFY "sha256";
    /// Serial of the release that is asked for, also if it was refused or taken back before. Only for `request
    /// reflash`.
    serial: Option<u64> = REQUEST "serial" value "SERIAL";
    /// List what of /etc differs from the image, what hides a newer default, and what became stale.
    etc: bool = STATUS "etc";
    /// Restart the machine at once.
    restart: bool = DRILL "restart";
    /// Restart for the update now, whatever the time is, unless a program of the robot or a lock speaks against it.
    apply: bool = UPDATE "apply";
    /// Do what update.automatic says, as the timer of the system's image does. The exit code is then always 0.
    background: bool = UPDATE "background";
    /// Directory of what is fetched. Default: /var/lib/reflash/update.
    store: Option<PathBuf> = UPDATE "store" value "DIR";
    /// Print the answer as JSON.
    json: bool = EVERY "json";
    /// Write every request, and what the libraries log, to standard error.
    verbose: bool = EVERY "verbose" short 'v';
    /// A mounted state partition. Default: the one on this machine's disk.
    state: Option<PathBuf> = EVERY "state" value "DIR";
    /// Configuration file. Default: /etc/reflash/reflash.toml, and reflash.toml of the recovery partition over it. For
    /// `provision` it must be given, and is that of the new machine.
    config: Option<PathBuf> = EVERY "config" value "FILE";
    /// Directory of minisign public keys to trust. Default: /etc/reflash/keys, and keys of the recovery partition. The
    /// disk that `provision` makes gets them too.
    keys: Option<PathBuf> = EVERY "keys" value "DIR";
}

/// A field of [`Options`]: its type says how an option is taken.
trait OptionField {
    fn take_from(&mut self, parser: &mut Parser) -> Result<(), lexopt::Error>;
}

impl OptionField for bool {
    fn take_from(&mut self, _parser: &mut Parser) -> Result<(), lexopt::Error> {
        *self = true;
        Ok(())
    }
}

impl OptionField for Vec<String> {
    fn take_from(&mut self, parser: &mut Parser) -> Result<(), lexopt::Error> {
        self.push(parser.value()?.string()?);
        Ok(())
    }
}

impl<T: OptionText> OptionField for Option<T> {
    fn take_from(&mut self, parser: &mut Parser) -> Result<(), lexopt::Error> {
        *self = Some(T::read(parser.value()?)?);
        Ok(())
    }
}

/// A type that the value of an option is read as.
trait OptionText: Sized {
    fn read(value: OsString) -> Result<Self, lexopt::Error>;
}

impl OptionText for PathBuf {
    fn read(value: OsString) -> Result<Self, lexopt::Error> {
        Ok(value.into())
    }
}

impl OptionText for String {
    fn read(value: OsString) -> Result<Self, lexopt::Error> {
        value.string()
    }
}

impl OptionText for u32 {
    fn read(value: OsString) -> Result<Self, lexopt::Error> {
        value.parse()
    }
}

impl OptionText for u64 {
    fn read(value: OsString) -> Result<Self, lexopt::Error> {
        value.parse()
    }
}

impl OptionText for Firmware {
    fn read(value: OsString) -> Result<Self, lexopt::Error> {
        match value.string()?.as_str() {
            "bios" => Ok(Self::Bios),
            "uefi" => Ok(Self::Uefi),
            other => Err(format!("{other:?} is not a firmware: bios or uefi").into()),
        }
    }
}

/// The options that a command takes, its own before those of every command.
pub fn options_of(command: CommandName) -> impl Iterator<Item = &'static OptionRow> {
    OPTIONS.iter().filter(move |row| row.commands.contains(&command))
}
