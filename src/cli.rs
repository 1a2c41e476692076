//! The command line: arguments to a [`Command`]. Pure; [`crate::verbs`] carries the commands out.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::{Arg, Parser, ValueExt};

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Print this text.
    Help(&'static str),
    /// Print the version.
    Version,
    /// Make a target equal to a release.
    Flash(Flash),
    /// Make a robot's disk of a disk.
    Provision(Provision),
    /// Compare a target with what is installed.
    Verify(Verify),
    /// What is installed and how the last boots went.
    Status(Common),
    /// Tell the configured server how the last recoveries went.
    Report(Common),
    /// This boot is good.
    Good(Common),
    /// Recover at the next boot, or offer a factory reset there.
    Request(Common, Wish),
    /// Show or change the boot environment.
    Env(Common, EnvAction),
}

impl Command {
    /// The options that every verb has.
    #[must_use]
    pub fn common(&self) -> Option<&Common> {
        match self {
            Self::Help(_) | Self::Version => None,
            Self::Flash(flash) => Some(&flash.common),
            Self::Provision(provision) => Some(&provision.release.common),
            Self::Verify(verify) => Some(&verify.common),
            Self::Status(common)
            | Self::Report(common)
            | Self::Good(common)
            | Self::Request(common, _)
            | Self::Env(common, _) => Some(common),
        }
    }
}

/// Options of every verb.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Common {
    /// Print JSON.
    pub json: bool,
    /// Say on stderr what the libraries do.
    pub verbose: bool,
    /// A mounted state partition, instead of the one on this machine's disk.
    pub state: Option<PathBuf>,
    /// Configuration file.
    pub config: Option<PathBuf>,
    /// Directory of minisign public keys.
    pub keys: Option<PathBuf>,
}

/// `reflash flash`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flash {
    /// Options of every verb.
    pub common: Common,
    /// Block device or file to write.
    pub target: Option<PathBuf>,
    /// Base URLs; replace those of the configuration.
    pub urls: Vec<String>,
    /// Channel; replaces that of the configuration.
    pub channel: Option<String>,
    /// Product; replaces that of the configuration.
    pub product: Option<String>,
    /// Hardware name; replaces that of the configuration and DMI.
    pub hardware: Option<String>,
    /// Accept an older release than the installed one.
    pub allow_older: bool,
    /// Compare and say what would be done.
    pub dry_run: bool,
}

/// `reflash provision`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provision {
    /// Which release; its target is not used.
    pub release: Flash,
    /// Block device or file that becomes the disk.
    pub disk: Option<PathBuf>,
    /// `yes` or the serial number of a disk that is not blank.
    pub arm: Option<String>,
    /// The machine the disk is for is started by UEFI; default: as this one.
    pub uefi: Option<bool>,
    /// Logical block size that a file stands for, bytes.
    pub block_bytes: Option<u32>,
}

/// `reflash verify`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verify {
    /// Options of every verb.
    pub common: Common,
    /// Block device or file to read.
    pub target: Option<PathBuf>,
    /// Compute the SHA-256 of the whole image too.
    pub sha256: bool,
}

/// What `reflash request` wishes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Install the release again.
    Reflash,
    /// Delete the data, after somebody at the console confirmed it twice.
    FactoryReset,
}

/// What `reflash env` does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvAction {
    /// Print all variables.
    List,
    /// Set one.
    Set(String, String),
    /// Remove one.
    Unset(String),
}

/// Overview.
pub const HELP: &str = "\
reflash - makes the system partition equal to a signed release

As PID 1 of the recovery initramfs it does so by itself. By hand:

  reflash flash [--target DEV]    download, verify, write, read back
  reflash provision --disk DEV    make a robot's disk of a whole disk: table, boot code, system
  reflash verify [--target DEV]   compare the system with the installed release
  reflash status                  what is installed, how the last boots went
  reflash report                  tell report.url how the last recoveries went
  reflash good                    this boot is good: give the system its tries back
  reflash request                 recover at the next boot
  reflash request factory-reset   at the next boot ask at the console to delete all data
  reflash env [list|set NAME=VALUE|unset NAME]
                                  the GRUB environment on the state partition
  reflash --version

`reflash VERB --help` shows the options of a verb.

Exit codes: 0 done; 1 the answer is no (verify: damaged; status: nothing installed);
2 wrong usage; 3 failed, trying again later can help; 4 failed.
";

const COMMON: &str = "\
  --json          print the answer as JSON
  --verbose, -v   tell on stderr every request and what the libraries say
  --state DIR     a mounted state partition (default: the one on this machine's disk)
  --config FILE   configuration (default /etc/reflash/reflash.toml)
  --keys DIR      minisign public keys (default /etc/reflash/keys)
";

const FLASH: &str = "\
reflash flash - make a target equal to the release of the configured channel

Only what differs is downloaded and written. The target must not be mounted; to reflash the
system that is running, use `reflash request` and reboot.

  --target DEV    block device or image file (default: the system partition)
  --url URL       base URL of the release tree; repeat for mirrors, tried in order
  --channel NAME  --product NAME  --hardware NAME
                  instead of the configuration's (hardware: instead of DMI's)
  --allow-older   accept an older release than the installed one
  --dry-run       compare, say what would be downloaded and written, change nothing
";

const PROVISION: &str = "\
reflash provision - make a robot's disk of a whole disk

Table, boot code and file systems as the release says, then its system. The disk starts only
once everything on it was verified; what ends early may be repeated. Needs root.

  --disk DEV      whole disk, or a file that stands for one
  --config FILE   reflash.toml of the new machine; --keys DIR: its trusted keys
  --arm WORD      erase a disk that is not blank: yes, or its serial number
  --firmware bios|uefi    what will start it (default: what started this machine)
  --block-bytes N logical block size that a file stands for: 512 or 4096
  --url URL  --channel NAME  --product NAME  --hardware NAME
                  as for flash
  --dry-run       say what would be done, write nothing
";

const VERIFY: &str = "\
reflash verify - compare a target with the release recorded as installed

Works on the running system too. Exit code 0: every byte is right; 1: it is damaged.

  --target DEV    block device or image file (default: the system partition)
  --sha256        print the SHA-256 of the image on it, to compare with the manifest
";

const STATUS: &str = "\
reflash status - what is installed and how the last recoveries went

Shows the black box: reason, outcome, quantities and errors of the last recoveries.

";
const REPORT: &str = "\
reflash report - post what the black box holds to report.url, as JSON

Only recoveries that were not reported before. The system's image runs it once it has a network.

";
const GOOD: &str = "\
reflash good - call this boot good

Gives the system its full number of tries back. The system's image runs it once it is up.

";
const REQUEST: &str = "\
reflash request [reflash|factory-reset] - start recovery, once, at the next boot

reflash        install the offered release again; the data stays (the default)
factory-reset  ask twice at the console, then make the data partition anew; the system stays

To erase everything, start the machine from a boot medium (cargo xtask media) or use
`reflash provision`: from its own disk a machine cannot do that and survive a power cut.

";
const ENV: &str = "\
reflash env - the GRUB environment on the state partition

  reflash env list | set NAME=VALUE | unset NAME

Changes are made in place and flushed. grub/README.md documents the variables.

";

/// A verb's own text and the common options, joined at compile time.
macro_rules! help {
    ($own:ident) => {{
        const BYTES: [u8; $own.len() + COMMON.len()] = join($own, COMMON);
        match std::str::from_utf8(&BYTES) {
            Ok(text) => text,
            Err(_) => HELP,
        }
    }};
}

const fn join<const N: usize>(first: &str, second: &str) -> [u8; N] {
    let mut out = [0; N];
    let mut position = 0;
    while position < N {
        out[position] =
            if position < first.len() { first.as_bytes()[position] } else { second.as_bytes()[position - first.len()] };
        position += 1;
    }
    out
}

/// Reads the arguments after the program's name.
///
/// # Errors
/// What is wrong with them, for people.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
    let mut parser = Parser::from_args(args);
    let verb = match parser.next()? {
        None | Some(Arg::Short('h') | Arg::Long("help")) => return Ok(Command::Help(HELP)),
        Some(Arg::Short('V') | Arg::Long("version")) => return Ok(Command::Version),
        Some(Arg::Value(verb)) => verb.string()?,
        Some(other) => return Err(other.unexpected()),
    };
    match verb.as_str() {
        "flash" => parse_flash(parser),
        "provision" => parse_provision(parser),
        "verify" => parse_verify(parser),
        "status" => parse_plain(parser, help!(STATUS), Command::Status),
        "report" => parse_plain(parser, help!(REPORT), Command::Report),
        "good" => parse_plain(parser, help!(GOOD), Command::Good),
        "request" => parse_request(parser),
        "env" => parse_env(parser),
        "help" => Ok(Command::Help(HELP)),
        other => Err(format!("{other:?} is not a verb; see reflash --help").into()),
    }
}

/// The argument as it was typed, free of its borrow of the parser, which the value is then taken from.
fn owned(arg: Option<Arg<'_>>) -> Option<String> {
    arg.map(|arg| match arg {
        Arg::Long(name) => format!("--{name}"),
        Arg::Short(name) => format!("-{name}"),
        Arg::Value(value) => value.to_string_lossy().into_owned(),
    })
}

/// Takes an option that every verb has.
fn common_option(common: &mut Common, parser: &mut Parser, name: &str) -> Result<(), lexopt::Error> {
    match name {
        "--json" => common.json = true,
        "--verbose" | "-v" => common.verbose = true,
        "--state" => common.state = Some(parser.value()?.into()),
        "--config" => common.config = Some(parser.value()?.into()),
        "--keys" => common.keys = Some(parser.value()?.into()),
        other => return Err(format!("{other:?} is not expected here; see --help").into()),
    }
    Ok(())
}

fn parse_flash(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut flash = Flash::default();
    while let Some(arg) = owned(parser.next()?) {
        match arg.as_str() {
            "--help" | "-h" => return Ok(Command::Help(help!(FLASH))),
            "--target" => flash.target = Some(parser.value()?.into()),
            "--allow-older" => flash.allow_older = true,
            other => release_option(&mut flash, &mut parser, other)?,
        }
    }
    Ok(Command::Flash(flash))
}

/// Takes an option that says which release, or what every verb has.
fn release_option(flash: &mut Flash, parser: &mut Parser, name: &str) -> Result<(), lexopt::Error> {
    match name {
        "--url" => flash.urls.push(parser.value()?.string()?),
        "--channel" => flash.channel = Some(parser.value()?.string()?),
        "--product" => flash.product = Some(parser.value()?.string()?),
        "--hardware" => flash.hardware = Some(parser.value()?.string()?),
        "--dry-run" => flash.dry_run = true,
        other => common_option(&mut flash.common, parser, other)?,
    }
    Ok(())
}

fn parse_provision(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut provision = Provision::default();
    while let Some(arg) = owned(parser.next()?) {
        match arg.as_str() {
            "--help" | "-h" => return Ok(Command::Help(help!(PROVISION))),
            "--disk" => provision.disk = Some(parser.value()?.into()),
            "--arm" => provision.arm = Some(parser.value()?.string()?),
            "--firmware" => {
                provision.uefi = Some(match parser.value()?.string()?.as_str() {
                    "bios" => false,
                    "uefi" => true,
                    other => return Err(format!("{other:?} is not a firmware: bios or uefi").into()),
                });
            }
            "--block-bytes" => provision.block_bytes = Some(parser.value()?.parse()?),
            other => release_option(&mut provision.release, &mut parser, other)?,
        }
    }
    if provision.disk.is_none() {
        return Err("--disk is missing".into());
    }
    Ok(Command::Provision(provision))
}

fn parse_verify(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut verify = Verify::default();
    while let Some(arg) = owned(parser.next()?) {
        match arg.as_str() {
            "--help" | "-h" => return Ok(Command::Help(help!(VERIFY))),
            "--target" => verify.target = Some(parser.value()?.into()),
            "--sha256" => verify.sha256 = true,
            other => common_option(&mut verify.common, &mut parser, other)?,
        }
    }
    Ok(Command::Verify(verify))
}

fn parse_plain(
    mut parser: Parser,
    help: &'static str,
    command: impl FnOnce(Common) -> Command,
) -> Result<Command, lexopt::Error> {
    let mut common = Common::default();
    while let Some(arg) = owned(parser.next()?) {
        match arg.as_str() {
            "--help" | "-h" => return Ok(Command::Help(help)),
            other => common_option(&mut common, &mut parser, other)?,
        }
    }
    Ok(command(common))
}

fn parse_request(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut common = Common::default();
    let mut wish = Wish::Reflash;
    while let Some(arg) = owned(parser.next()?) {
        match arg.as_str() {
            "--help" | "-h" => return Ok(Command::Help(help!(REQUEST))),
            "reflash" => wish = Wish::Reflash,
            "factory-reset" => wish = Wish::FactoryReset,
            other => common_option(&mut common, &mut parser, other)?,
        }
    }
    Ok(Command::Request(common, wish))
}

fn parse_env(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut common = Common::default();
    let mut words = Vec::new();
    while let Some(arg) = owned(parser.next()?) {
        match arg.as_str() {
            "--help" | "-h" => return Ok(Command::Help(help!(ENV))),
            other if other.starts_with('-') => common_option(&mut common, &mut parser, other)?,
            word => words.push(word.to_owned()),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let action = match words[..] {
        [] | ["list"] => EnvAction::List,
        ["set", pair] => match pair.split_once('=') {
            Some((name, value)) => EnvAction::Set(name.to_owned(), value.to_owned()),
            None => return Err(format!("{pair:?} is not NAME=VALUE").into()),
        },
        ["unset", name] => EnvAction::Unset(name.to_owned()),
        _ => return Err("expected: reflash env list, set NAME=VALUE or unset NAME".into()),
    };
    Ok(Command::Env(common, action))
}

#[cfg(test)]
mod tests {
    use super::{Command, EnvAction, parse};

    fn of(line: &str) -> Result<Command, lexopt::Error> {
        parse(line.split_whitespace().map(Into::into))
    }

    #[test]
    fn verbs_and_their_options() {
        let Command::Flash(flash) =
            of("flash --target /dev/x --url=http://a --url http://b --allow-older --json").unwrap()
        else {
            panic!("not flash")
        };
        assert_eq!((flash.urls.len(), flash.allow_older, flash.common.json, flash.dry_run), (2, true, true, false));
        assert!(matches!(of("verify --sha256").unwrap(), Command::Verify(v) if v.sha256));
        assert!(of("status -v").unwrap().common().unwrap().verbose);
        assert!(matches!(of("good --state /s").unwrap(), Command::Good(c) if c.state == Some("/s".into())));
        assert!(
            matches!(of("env set a=b=c").unwrap(), Command::Env(_, EnvAction::Set(n, v)) if n == "a" && v == "b=c")
        );
        assert!(matches!(of("env").unwrap(), Command::Env(_, EnvAction::List)));
    }

    #[test]
    fn every_verb_has_help_with_the_common_options() {
        for verb in ["flash", "verify", "status", "report", "good", "request", "env"] {
            let Command::Help(text) = of(&format!("{verb} --help")).unwrap() else { panic!("{verb}") };
            assert!(text.starts_with(&format!("reflash {verb} - ")) && text.contains("--state DIR"), "{text}");
        }
        assert!(matches!(of("").unwrap(), Command::Help(_)));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (line, named) in [("flsh", "flsh"), ("flash --targt x", "--targt"), ("good now", "now"), ("env set a", "a")]
        {
            let text = of(line).unwrap_err().to_string();
            assert!(text.contains(named), "{line}: {text}");
        }
        assert!(of("flash --target").is_err());
    }
}
