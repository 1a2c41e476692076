//! The command line: arguments to an [`Invocation`]. Pure.
//!
//! Every command and every option is one row, in the modules [`commands`] and [`options`]. Parsing, `--help`, the
//! manual page and the completions of shells all follow from the rows, so that a new option is one row and nothing
//! else.
//!
//! [`commands`]: super::commands
//! [`options`]: super::options

use std::ffi::OsString;

use lexopt::{Arg, Parser, ValueExt};

use super::commands::{COMMANDS, Command, CommandName, CommandRow, RequestedAction, not_expected};
use super::options::{Options, options_of};

/// Request of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// Print the overview, or the help of a command.
    Help(Option<CommandName>),
    /// Print the version.
    Version,
    /// Carry a command out.
    Command(Command, Box<Options>),
}

/// Reads the arguments after the program's name.
///
/// # Errors
/// A sentence that names the argument that is wrong.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, lexopt::Error> {
    let mut parser = Parser::from_args(args);
    let word = match parser.next()? {
        None | Some(Arg::Short('h') | Arg::Long("help")) => return Ok(Invocation::Help(None)),
        Some(Arg::Short('V') | Arg::Long("version")) => return Ok(Invocation::Version),
        Some(Arg::Value(word)) => word.string()?,
        Some(other) => return Err(other.unexpected()),
    };
    if word == "help" {
        return Ok(Invocation::Help(None));
    }
    match COMMANDS.iter().find(|row| row.word == word) {
        Some(row) => parse_command(row, parser),
        None => Err(format!("{word:?} is not a command; see reflash --help").into()),
    }
}

fn parse_command(row: &CommandRow, mut parser: Parser) -> Result<Invocation, lexopt::Error> {
    let mut options = Options::default();
    let mut operands = Vec::new();
    while let Some(arg) = parser.next()? {
        let (typed, option) = match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Invocation::Help(Some(row.name))),
            Arg::Value(operand) => {
                operands.push(operand.string()?);
                continue;
            }
            Arg::Long(long) => (format!("--{long}"), options_of(row.name).find(|option| option.long == long)),
            Arg::Short(short) => (format!("-{short}"), options_of(row.name).find(|option| option.short == Some(short))),
        };
        match option {
            Some(option) => (option.take)(&mut options, &mut parser).map_err(|error| match error {
                // The library names the option where the value is missing, and here the value alone.
                lexopt::Error::ParsingFailed { value, error } => {
                    format!("{value:?} is no value for --{}: {error}", option.long).into()
                }
                other => other,
            })?,
            None => return Err(usage(row, &not_expected(&typed))),
        }
    }
    let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
    let command = (row.read)(&operands).map_err(|wrong| usage(row, &wrong))?;
    check(&command, &options)?;
    Ok(Invocation::Command(command, Box::new(options)))
}

fn usage(row: &CommandRow, wrong: &str) -> lexopt::Error {
    format!("{wrong}; see reflash {} --help", row.word).into()
}

/// Refuses options that contradict each other, and the lack of one that a command cannot do without.
fn check(command: &Command, options: &Options) -> Result<(), lexopt::Error> {
    if options.no_read_back && (options.target.is_none() || options.state.is_some()) {
        return Err(
            "--no-read-back needs --target and excludes --state: a robot never starts a system that was not read back"
                .into(),
        );
    }
    if options.apply && options.background {
        return Err("--apply and --background exclude each other: a timer waits for the moment that suits".into());
    }
    if *command == Command::Provision && options.disk.is_none() {
        return Err("--disk is missing".into());
    }
    if options.serial.is_some() && *command != Command::Request(RequestedAction::Reflash) {
        return Err("--serial is for `reflash request reflash` only".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Invocation, parse};
    use crate::cli::commands::{COMMANDS, Command, EnvAction, RequestedAction};
    use crate::cli::options::{EVERY, OPTIONS, Options, options_of};
    use crate::jobs::provision::Firmware;

    fn of(line: &str) -> Result<Invocation, lexopt::Error> {
        parse(line.split_whitespace().map(Into::into))
    }

    fn command(line: &str) -> (Command, Options) {
        match of(line).unwrap() {
            Invocation::Command(command, options) => (command, *options),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn commands_and_their_options() {
        let (flash, options) = command("flash --target /dev/x --url=http://a --url http://b --allow-older --json");
        assert_eq!(flash, Command::Flash);
        assert_eq!((options.urls.len(), options.allow_older, options.json, options.dry_run), (2, true, true, false));
        assert!(of("flash --no-read-back").is_err() && of("flash --no-read-back --target /dev/x").is_ok());
        assert!(of("flash --no-read-back --target /dev/x --state /s").is_err());
        assert!(command("verify --sha256").1.sha256 && command("status -v").1.verbose);
        assert_eq!(command("good --state /s").1.state.as_deref(), Some(Path::new("/s")));
        let (_, options) = command("provision --disk d --firmware uefi --block-bytes 4096 --max-rate 20");
        assert_eq!((options.firmware, options.block_bytes), (Some(Firmware::Uefi), Some(4096)));
        assert_eq!(options.max_rate_kib_s, Some(20));
        assert_eq!(command("env set a=b=c").0, Command::Env(EnvAction::Set("a".into(), "b=c".into())));
        assert_eq!(command("env").0, Command::Env(EnvAction::List));
        assert_eq!(command("request").0, Command::Request(RequestedAction::Reflash));
        assert_eq!(command("request factory-reset").0, Command::Request(RequestedAction::FactoryReset));
        assert_eq!(command("request undo").0, Command::Request(RequestedAction::Undo));
        assert_eq!(command("request newer").0, Command::Request(RequestedAction::Newer));
        assert_eq!(command("request --serial 7").1.serial, Some(7));
        assert!(of("request undo --serial 7").is_err() && of("request --serial x").is_err());
        assert_eq!((of("").unwrap(), of("--version").unwrap()), (Invocation::Help(None), Invocation::Version));
    }

    #[test]
    fn every_command_takes_its_options_and_no_other() {
        for row in COMMANDS {
            assert!(EVERY.contains(&row.name), "{} does not take the options of every command", row.word);
            assert_eq!(of(&format!("{} --help", row.word)).unwrap(), Invocation::Help(Some(row.name)));
            // What provisioning and a write without reading back need beside.
            let needed = |long: &str| match row.word {
                "provision" if long != "disk" => " --disk d",
                "flash" if long == "no-read-back" => " --target t",
                _ => "",
            };
            for option in OPTIONS {
                let value = option.value.map_or(String::new(), |value| match value.split('|').next() {
                    Some("KIB") => " 16".to_owned(),
                    Some("SERIAL") => " 7".to_owned(),
                    first => format!(" {}", first.unwrap_or_default()),
                });
                let line = format!("{} --{}{value}{}", row.word, option.long, needed(option.long));
                let taken = of(&line);
                if options_of(row.name).any(|own| own.long == option.long) {
                    let plain = of(&format!("{}{}", row.word, needed(option.long)));
                    assert!(plain.is_err() || plain.unwrap() != taken.unwrap(), "{line} changes nothing");
                } else {
                    let error = taken.unwrap_err().to_string();
                    assert!(error.contains(option.long) && error.contains(row.word), "{line}: {error}");
                }
                if let Some(short) = option.short {
                    let line_with_short = format!("{} -{short}{value}{}", row.word, needed(option.long));
                    assert_eq!(of(&line_with_short).unwrap(), of(&line).unwrap());
                }
            }
        }
        assert_eq!(COMMANDS.len(), EVERY.len());
    }

    #[test]
    fn an_argument_that_is_not_known_is_refused_by_name() {
        for (line, named) in [
            ("flsh", "flsh"),
            ("flash --targt x", "--targt"),
            ("flash -x", "-x"),
            ("flash --firmware bios", "--firmware"),
            ("good now", "now"),
            ("env set a", "\"a\" is not NAME=VALUE"),
            ("env frob", "expected: reflash env list"),
            ("request again", "again"),
            ("provision --disk d --firmware grub", "grub"),
            ("provision", "--disk"),
            ("flash --max-rate much", "\"much\" is no value for --max-rate: invalid digit"),
            ("request reflash --serial -1", "--serial"),
        ] {
            let text = of(line).unwrap_err().to_string();
            assert!(text.contains(named), "{line}: {text}");
        }
        assert!(of("flash --target").is_err() && of("good --json=x").is_err());
    }
}
