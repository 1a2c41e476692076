//! Manual pages of the builder, one for the program and one for each command.

use clap::CommandFactory;
use clap_mangen::Man;
use xtask::cli::Cli;

use super::checkout;

/// The pages by their names, made of the definitions that the command line is parsed by.
fn pages() -> Vec<(String, Vec<u8>)> {
    let mut program = Cli::command();
    program.build();
    let name = program.get_name().to_owned();
    let commands = program.get_subcommands().filter(|command| command.get_name() != "help" && !command.is_hide_set());
    let all = std::iter::once((name.clone(), program.clone()))
        .chain(commands.map(|command| (format!("{name}-{}", command.get_name()), command.clone())));
    let page = |(name, command): (String, clap::Command)| {
        let typed = command.get_bin_name().unwrap_or(&name).to_owned();
        // Without a version, which would change every page with each release.
        let command = command.display_name(name.clone()).bin_name(typed).version(None).disable_help_subcommand(true);
        let mut text = Vec::new();
        let man = Man::new(command).title(name.to_uppercase()).section("8").source("reflash");
        man.manual("System Administration").render(&mut text).unwrap();
        (format!("{name}.8"), text)
    };
    all.map(page).collect()
}

/// Set `UPDATE_DOCS=1` to write the pages anew.
#[test]
fn the_manual_pages_of_the_builder_are_those_of_its_commands() {
    let directory = checkout().join("docs/man");
    let pages = pages();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        for (name, text) in &pages {
            std::fs::write(directory.join(name), text).unwrap();
        }
    }
    for (name, text) in &pages {
        let checked_in = std::fs::read(directory.join(name)).unwrap_or_default();
        assert!(
            checked_in == *text,
            "docs/man/{name} is not current: UPDATE_DOCS=1 cargo test -p xtask --test builder manual_pages"
        );
    }
    for entry in std::fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "reflash.8" || pages.iter().any(|(page, _)| *page == name), "docs/man/{name} is of no command");
    }
}
