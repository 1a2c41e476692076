//! The manual page `reflash(8)`, made of the rows of commands and options. Pure.

use std::fmt::Write as _;

use super::answer::Exit;
use super::commands::COMMANDS;
use super::help::{ABOUT, PURPOSE, usage};
use super::options::{EVERY, OPTIONS, OptionRow, options_of};

const TAIL: &str = r#".SH FILES
.TP
.I /etc/reflash/reflash.toml
Configuration of this machine.
.TP
.I reflash.toml
Configuration on the recovery partition; its keys override those above.
.TP
.IR /etc/reflash/keys/*.pub ", " keys/*.pub
Trusted minisign public keys, of this system and of the recovery partition.
.SH EXAMPLES
.TP
.B reflash verify \-\-json
Say whether the system is intact, for a program.
.TP
.B reflash request && reboot
Install the offered release again; the data stays.
.TP
.B reflash flash \-\-target disk.img \-\-url https://images.example.com/robots \-\-keys keys
Make a file equal to the release of a server.
.SH SEE ALSO
.BR grub\-editenv (1),
.BR minisign (1)
"#;

/// The page in roff, for `docs/man/reflash.8`.
#[must_use]
pub fn page() -> String {
    let mut page = format!(
        ".\\\" Made of the rows in src/cli/: UPDATE_DOCS=1 cargo test -p reflash --test command_line\n\
         .TH REFLASH 8 \"\" reflash \"System Administration\"\n\
         .ad l\n.nh\n.SH NAME\nreflash \\- {}\n.SH SYNOPSIS\n",
        escaped(PURPOSE)
    );
    for row in COMMANDS {
        let _ = write!(page, ".B {}\n.br\n", escaped(&usage(row)));
    }
    let _ = write!(page, ".B reflash \\-\\-version\n.SH DESCRIPTION\n{}\n.SH COMMANDS\n", escaped(ABOUT));
    for row in COMMANDS {
        let _ = write!(page, ".SS \"{}\"\n{}.\n", escaped(&usage(row)), escaped(&sentence(row.summary)));
        row.about.iter().for_each(|paragraph| page += &format!(".PP\n{}\n", escaped(paragraph)));
        for (word, doc) in row.words {
            let _ = write!(page, ".TP\n.B {}\n{}\n", escaped(word), escaped(doc));
        }
        options_of(row.name).filter(|option| option.commands != EVERY).for_each(|option| page += &option_entry(option));
    }
    page += ".SH OPTIONS\nEvery command takes these.\n";
    OPTIONS.iter().filter(|option| option.commands == EVERY).for_each(|option| page += &option_entry(option));
    page += ".TP\n.BR \\-\\-help \", \" \\-h\nPrint the help of the command.\n.SH \"EXIT STATUS\"\n";
    for exit in Exit::ALL {
        let _ = write!(page, ".TP\n.B {}\n{}\n", exit.code(), escaped(exit.meaning()));
    }
    page + TAIL
}

/// The phrase with a capital letter at its beginning.
fn sentence(phrase: &str) -> String {
    let mut letters = phrase.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

fn option_entry(option: &OptionRow) -> String {
    let value = option.value.map_or(String::new(), |value| format!(" \\fI{}\\fR", escaped(value)));
    let short = option.short.map_or(String::new(), |short| format!(", \\fB\\-{short}\\fR{value}"));
    format!(".TP\n\\fB\\-\\-{}\\fR{value}{short}\n{}\n", escaped(option.long), escaped(option.doc.trim()))
}

/// The text for roff: bold where it is code, and with an escape where roff would read it as its own, which are the
/// backslash, the dash, which it would make a hyphen, and a dot or quote that begins a line.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let begin = if text.starts_with(['.', '\'']) { "\\&" } else { "" };
    let parts = text.split('`').enumerate();
    let marked = parts.map(|(index, part)| if index % 2 == 1 { format!("\\fB{part}\\fR") } else { part.to_owned() });
    begin.to_owned() + &marked.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::{escaped, page};
    use crate::cli::commands::COMMANDS;
    use crate::cli::options::OPTIONS;

    #[test]
    fn the_page_has_every_command_and_every_option() {
        let page = page();
        for row in COMMANDS {
            assert!(page.contains(&format!(".SS \"reflash {}", escaped(row.word))), "{}", row.word);
        }
        for option in OPTIONS {
            let entry = format!(".TP\n\\fB\\-\\-{}\\fR", escaped(option.long));
            assert!(page.contains(&entry) && page.contains(&escaped(option.doc.trim())), "{}", option.long);
        }
    }

    #[test]
    fn text_is_no_request_of_roff() {
        assert_eq!(escaped(".so a\\b-c"), "\\&.so a\\eb\\-c");
        assert_eq!(escaped("use `reflash env`."), "use \\fBreflash env\\fR.");
    }
}
