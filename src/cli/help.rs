//! `--help`: the overview and the help of each command, made of their rows. Pure.

use super::answer::Exit;
use super::commands::{COMMANDS, CommandName, CommandRow};
use super::options::{EVERY, OptionRow, options_of};

/// Columns of the help: those of a serial console, where robots are often looked at.
const COLUMNS: usize = 80;
/// Column at which explanations begin, unless what they explain is longer.
const EXPLANATION: usize = 22;

/// Name and purpose of the program, as the overview and the manual page begin.
pub(super) const PURPOSE: &str = "makes the system partition equal to a signed release";

/// Explanation of the program's two ways of working.
pub(super) const ABOUT: &str = "As PID 1 of the recovery initramfs, reflash runs unattended. On a command line, it runs one of the \
     commands below.";

/// The overview, or the help of a command.
#[must_use]
pub fn help(command: Option<CommandName>) -> String {
    match command {
        None => overview(),
        Some(name) => COMMANDS.iter().filter(|row| row.name == name).map(of_command).collect(),
    }
}

fn overview() -> String {
    let mut text = format!("reflash - {PURPOSE}\n\n{}\nCommands:\n", wrapped(ABOUT, 0));
    let width = COMMANDS.iter().map(|row| row.word.len()).max().unwrap_or_default();
    for row in COMMANDS {
        text += &format!("  reflash {:width$}  {}\n", row.word, row.summary);
    }
    text += &format!("  reflash {:width$}  print the version\n", "--version");
    text += "\n`reflash COMMAND --help` shows the operands and options of a command.\n\nExit codes:\n";
    for exit in Exit::ALL {
        text += &format!("  {}  {}", exit.code(), wrapped(exit.meaning(), 5).trim_start());
    }
    text
}

fn of_command(row: &CommandRow) -> String {
    let mut text = format!("reflash {} - {}\n\nUsage: {}\n", row.word, row.summary, usage(row));
    for paragraph in row.about {
        text += &format!("\n{}", wrapped(paragraph, 0));
    }
    if !row.words.is_empty() {
        text += "\nOperands:\n";
        row.words.iter().for_each(|(word, doc)| text += &explained(word, doc));
    }
    let (every, own): (Vec<_>, Vec<_>) = options_of(row.name).partition(|option| option.commands == EVERY);
    if !own.is_empty() {
        text += "\nOptions:\n";
        own.iter().for_each(|option| text += &explained(&typed(option), option.doc));
    }
    text += "\nOptions of every command:\n";
    every.iter().for_each(|option| text += &explained(&typed(option), option.doc));
    text + &explained("--help, -h", "Print this text.")
}

/// The line that shows what is typed.
pub(super) fn usage(row: &CommandRow) -> String {
    let operands = if row.operands.is_empty() { String::new() } else { format!(" {}", row.operands) };
    format!("reflash {}{operands} [OPTIONS]", row.word)
}

/// The option as it is typed: `--verbose, -v` or `--target DEV`.
pub(super) fn typed(option: &OptionRow) -> String {
    let value = option.value.map_or(String::new(), |value| format!(" {value}"));
    let short = option.short.map_or(String::new(), |short| format!(", -{short}{value}"));
    format!("--{}{value}{short}", option.long)
}

/// A thing and its explanation beside it, or below it if the thing is long.
fn explained(thing: &str, doc: &str) -> String {
    let doc = wrapped(doc, EXPLANATION);
    if thing.len() + 4 > EXPLANATION {
        return format!("  {thing}\n{doc}");
    }
    let width = EXPLANATION - 2;
    format!("  {thing:width$}{}", doc.trim_start())
}

/// The text in lines of at most [`COLUMNS`], each indented, with a line feed at the end.
fn wrapped(text: &str, indent: usize) -> String {
    let (mut lines, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && indent + line.len() + 1 + word.len() > COLUMNS {
            lines += &format!("{:indent$}{line}\n", "");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    lines + &format!("{:indent$}{line}\n", "")
}

#[cfg(test)]
mod tests {
    use super::{COLUMNS, help, typed};
    use crate::cli::answer::Exit;
    use crate::cli::commands::COMMANDS;
    use crate::cli::options::options_of;

    #[test]
    fn the_help_of_a_command_has_every_option_it_takes_and_no_other() {
        for row in COMMANDS {
            let text = help(Some(row.name));
            assert!(text.starts_with(&format!("reflash {} - ", row.word)), "{text}");
            let listed = text.lines().filter(|line| line.starts_with("  --")).count();
            assert_eq!(listed, options_of(row.name).count() + 1, "{text}");
            for option in options_of(row.name) {
                assert!(text.lines().any(|line| line.trim_start().starts_with(&typed(option))), "{text}");
            }
            let on_one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(row.words.iter().all(|(word, doc)| on_one_line.contains(&format!("{word} {doc}"))), "{text}");
        }
    }

    #[test]
    fn the_overview_has_every_command_and_every_exit_code() {
        let text = help(None);
        for row in COMMANDS {
            assert!(text.contains(&format!("  reflash {} ", row.word)) && text.contains(row.summary), "{text}");
        }
        for exit in Exit::ALL {
            let line = text.lines().find(|line| line.starts_with(&format!("  {}  ", exit.code()))).unwrap();
            assert!(exit.meaning().starts_with(&line[5..]) && line.len() > 10, "{line}");
        }
    }

    #[test]
    fn no_line_is_wider_than_the_help() {
        for text in COMMANDS.iter().map(|row| help(Some(row.name))).chain([help(None)]) {
            assert!(text.lines().all(|line| line.chars().count() <= COLUMNS && line == line.trim_end()), "{text}");
            assert!(text.ends_with('\n') && !text.contains("\n\n\n"), "{text}");
        }
    }
}
