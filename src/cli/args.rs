//! The command line: arguments to a [`Command`]. Pure; [`crate::cli::run`] carries the commands out.

use std::ffi::OsString;
use std::path::PathBuf;

use super::help;
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
    Request(Common, RequestedAction),
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
    /// The most to download, KiB per second.
    pub max_rate_kib_s: Option<u64>,
    /// Leave out the read-back; only for a target that is not this machine's system.
    pub no_read_back: bool,
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
pub enum RequestedAction {
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

/// Reads the arguments after the program's name.
///
/// # Errors
/// What is wrong with them, for people.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
    let mut parser = Parser::from_args(args);
    let verb = match parser.next()? {
        None | Some(Arg::Short('h') | Arg::Long("help")) => return Ok(Command::Help(help::HELP)),
        Some(Arg::Short('V') | Arg::Long("version")) => return Ok(Command::Version),
        Some(Arg::Value(verb)) => verb.string()?,
        Some(other) => return Err(other.unexpected()),
    };
    match verb.as_str() {
        "flash" => parse_flash(parser),
        "provision" => parse_provision(parser),
        "verify" => parse_verify(parser),
        "status" => parse_plain(parser, help::STATUS_HELP, Command::Status),
        "report" => parse_plain(parser, help::REPORT_HELP, Command::Report),
        "good" => parse_plain(parser, help::GOOD_HELP, Command::Good),
        "request" => parse_request(parser),
        "env" => parse_env(parser),
        "help" => Ok(Command::Help(help::HELP)),
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
            "--help" | "-h" => return Ok(Command::Help(help::FLASH_HELP)),
            "--target" => flash.target = Some(parser.value()?.into()),
            "--allow-older" => flash.allow_older = true,
            "--no-read-back" => flash.no_read_back = true,
            other => release_option(&mut flash, &mut parser, other)?,
        }
    }
    if flash.no_read_back && (flash.target.is_none() || flash.common.state.is_some()) {
        return Err("--no-read-back is for a --target of its own: a robot starts nothing that was not read back".into());
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
        "--max-rate" => flash.max_rate_kib_s = Some(parser.value()?.parse()?),
        other => common_option(&mut flash.common, parser, other)?,
    }
    Ok(())
}

fn parse_provision(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut provision = Provision::default();
    while let Some(arg) = owned(parser.next()?) {
        match arg.as_str() {
            "--help" | "-h" => return Ok(Command::Help(help::PROVISION_HELP)),
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
            "--help" | "-h" => return Ok(Command::Help(help::VERIFY_HELP)),
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
    let mut wish = RequestedAction::Reflash;
    while let Some(arg) = owned(parser.next()?) {
        match arg.as_str() {
            "--help" | "-h" => return Ok(Command::Help(help::REQUEST_HELP)),
            "reflash" => wish = RequestedAction::Reflash,
            "factory-reset" => wish = RequestedAction::FactoryReset,
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
            "--help" | "-h" => return Ok(Command::Help(help::ENV_HELP)),
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
        assert!(of("flash --no-read-back").is_err() && of("flash --no-read-back --target /dev/x").is_ok());
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
        for verb in ["flash", "provision", "verify", "status", "report", "good", "request", "env"] {
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
