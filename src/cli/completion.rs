//! Completions for bash, zsh and fish, made of the rows of commands and options. Pure.

use std::fmt::Write as _;

use super::commands::{COMMANDS, CommandRow};
use super::options::{OptionRow, options_of};

/// The form of an option's value, by its name.
enum Value<'a> {
    /// The option takes no value.
    None,
    /// A file or a device.
    File,
    /// A directory.
    Directory,
    /// One of these words.
    Choice(Vec<&'a str>),
    /// A text that only the person at the keyboard knows.
    Text(&'a str),
}

fn value_of(option: &OptionRow) -> Value<'static> {
    match option.value {
        None => Value::None,
        Some("DEV" | "FILE") => Value::File,
        Some("DIR") => Value::Directory,
        // A name in capitals among the words of a choice stands for any text.
        Some(words) if words.contains('|') => {
            Value::Choice(words.split('|').filter(|word| !word.contains(char::is_uppercase)).collect())
        }
        Some(name) => Value::Text(name),
    }
}

/// The options of a command as they are typed, with those that take one letter.
fn typed(row: &CommandRow) -> Vec<String> {
    let long = options_of(row.name).map(|option| format!("--{}", option.long));
    let short = options_of(row.name).filter_map(|option| option.short.map(|short| format!("-{short}")));
    long.chain(short).chain(["--help".to_owned()]).collect()
}

fn words(row: &CommandRow) -> Vec<&'static str> {
    row.words.iter().map(|(word, _)| *word).collect()
}

/// The first sentence of an explanation, without its full stop, which is all that a menu has room for.
fn short(doc: &str) -> &str {
    let doc = doc.trim();
    doc.split_once(". ").map_or(doc, |(first, _)| first).trim_end_matches('.')
}

const HEAD: &str = "Made of the rows in src/cli/: UPDATE_DOCS=1 cargo test -p reflash --test command_line";

/// The completion for bash, `docs/completions/reflash.bash`.
#[must_use]
pub fn bash() -> String {
    let commands = COMMANDS.iter().map(|row| row.word).collect::<Vec<_>>().join(" ");
    let mut text = format!(
        "# {HEAD}\n_reflash() {{\n    local word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}\n    \
         COMPREPLY=()\n    if [ \"$COMP_CWORD\" -eq 1 ]; then\n        \
         mapfile -t COMPREPLY < <(compgen -W \"{commands} --help --version\" -- \"$word\")\n        return\n    fi\n    \
         case ${{COMP_WORDS[1]}} in\n"
    );
    for row in COMMANDS {
        let _ = writeln!(text, "    {})\n        case $previous in", row.word);
        for option in options_of(row.name) {
            let reply = match value_of(option) {
                Value::None => continue,
                Value::File => "mapfile -t COMPREPLY < <(compgen -f -- \"$word\")".to_owned(),
                Value::Directory => "mapfile -t COMPREPLY < <(compgen -d -- \"$word\")".to_owned(),
                Value::Choice(words) => {
                    format!("mapfile -t COMPREPLY < <(compgen -W \"{}\" -- \"$word\")", words.join(" "))
                }
                Value::Text(_) => "true".to_owned(),
            };
            let _ = writeln!(text, "        --{})\n            {reply}\n            return ;;", option.long);
        }
        let words = [words(row).join(" "), typed(row).join(" ")].join(" ");
        let _ = writeln!(
            text,
            "        esac\n        mapfile -t COMPREPLY < <(compgen -W \"{}\" -- \"$word\") ;;",
            words.trim_start()
        );
    }
    text + "    esac\n}\ncomplete -o filenames -F _reflash reflash\n"
}

/// The completion for zsh, `docs/completions/_reflash`.
#[must_use]
pub fn zsh() -> String {
    // In single quotes; brackets and colons would end an explanation.
    let quoted = |text: &str| text.replace('\'', "'\\''").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:");
    let mut text = format!("#compdef reflash\n# {HEAD}\n_reflash() {{\n    local -a commands=(\n");
    for row in COMMANDS {
        let _ = writeln!(text, "        '{}:{}'", row.word, quoted(row.summary));
    }
    text += "    )\n    if (( CURRENT == 2 )); then\n        _describe command commands\n        return\n    fi\n    \
             local command=$words[2]\n    shift words\n    (( CURRENT-- ))\n    case $command in\n";
    for row in COMMANDS {
        let _ = writeln!(text, "    {})\n        _arguments \\", row.word);
        for option in options_of(row.name) {
            let action = match value_of(option) {
                Value::None => String::new(),
                Value::File => format!(":{}:_files", option.long),
                Value::Directory => format!(":{}:_files -/", option.long),
                Value::Choice(words) => format!(":{}:({})", option.long, words.join(" ")),
                Value::Text(name) => format!(":{name}:"),
            };
            let again = if option.long == "url" { "*" } else { "" };
            let doc = quoted(short(option.doc));
            let _ = writeln!(text, "            '{again}--{}[{doc}]{action}' \\", option.long);
            if let Some(letter) = option.short {
                let _ = writeln!(text, "            '-{letter}[{doc}]{action}' \\");
            }
        }
        if !row.words.is_empty() {
            let _ = writeln!(text, "            '1:operand:({})' \\", words(row).join(" "));
        }
        text += "            '--help[Print the help of the command]' ;;\n";
    }
    text + "    esac\n}\n_reflash \"$@\"\n"
}

/// The completion for fish, `docs/completions/reflash.fish`.
#[must_use]
pub fn fish() -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    let mut text = format!("# {HEAD}\ncomplete -c reflash -f\n");
    for row in COMMANDS {
        let (word, doc) = (row.word, quoted(row.summary));
        let _ = writeln!(text, "complete -c reflash -n __fish_use_subcommand -a {word} -d '{doc}'");
    }
    text += "complete -c reflash -n __fish_use_subcommand -l version -d 'Print the version'\n";
    text += "complete -c reflash -l help -d 'Print the help'\n";
    for row in COMMANDS {
        let seen = format!("complete -c reflash -n '__fish_seen_subcommand_from {}'", row.word);
        for (word, doc) in row.words {
            let _ = writeln!(text, "{seen} -a {word} -d '{}'", quoted(doc));
        }
        for option in options_of(row.name) {
            let value = match value_of(option) {
                Value::None => String::new(),
                Value::File => " -r -F".to_owned(),
                Value::Directory => " -x -a '(__fish_complete_directories)'".to_owned(),
                Value::Choice(words) => format!(" -x -a '{}'", words.join(" ")),
                Value::Text(_) => " -x".to_owned(),
            };
            let letter = option.short.map_or(String::new(), |short| format!(" -s {short}"));
            let _ = writeln!(text, "{seen} -l {}{letter}{value} -d '{}'", option.long, quoted(short(option.doc)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{bash, fish, zsh};
    use crate::cli::commands::COMMANDS;
    use crate::cli::options::options_of;

    #[test]
    fn every_command_option_and_operand_is_completed_in_every_shell() {
        let (bash, zsh, fish) = (bash(), zsh(), fish());
        for row in COMMANDS {
            // The part of each text that is about this command.
            let in_bash = bash.split_once(&format!("    {})\n        case $previous", row.word)).unwrap().1;
            let in_bash = in_bash.split_once("esac").unwrap().1.lines().nth(1).unwrap();
            let in_zsh = zsh.split_once(&format!("    {})\n        _arguments", row.word)).unwrap().1;
            let in_zsh = in_zsh.split_once(";;").unwrap().0;
            let in_fish: String =
                fish.split_inclusive('\n').filter(|line| line.contains(&format!("from {}'", row.word))).collect();
            for option in options_of(row.name) {
                assert!(in_bash.contains(&format!("--{} ", option.long)), "{} {}: {in_bash}", row.word, option.long);
                assert!(in_zsh.contains(&format!("--{}[", option.long)), "{} {}: {in_zsh}", row.word, option.long);
                assert!(in_fish.contains(&format!(" -l {} ", option.long)), "{} {}: {in_fish}", row.word, option.long);
            }
            for (word, _) in row.words {
                assert!(in_bash.contains(word) && in_zsh.contains(word) && in_fish.contains(word), "{word}");
            }
        }
    }
}
