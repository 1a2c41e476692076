//! The command line: every command, and which part of the builder carries it out.

mod keygen;
mod release;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::paths::{Paths, PlaceArgs};
use crate::{
    agent, bench, demo, disk, examples, fuzz, grub, image, initramfs, install, invocation, media, notices, powercut,
    publish, serve, step, surroundings, test,
};

/// Builds everything reflash ships, from the agent to boot media, and runs it in virtual machines.
#[derive(Parser)]
#[command(name = "reflash-build", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: BuilderCommand,
    #[command(flatten)]
    places: PlaceArgs,
    /// Install missing packages without asking (as with CI=true).
    #[arg(long, global = true, help_heading = "Options of every command")]
    yes: bool,
}

#[derive(Subcommand)]
enum BuilderCommand {
    /// Build everything and show a virtual robot reflash itself, from GRUB to the login prompt.
    Demo,
    /// Run the tests: style, unit tests, tests with root, and boots in virtual machines.
    Test(test::TestArgs),
    /// Feed made-up and mutated input to every parser that faces the outside, for as long as wanted.
    Fuzz(fuzz::FuzzArgs),
    /// Put together every state that a power cut during a recovery can leave, and show that each ends well.
    PowerCut(powercut::PowerCutArgs),
    /// Build the agent: one static binary.
    Agent,
    /// Install this builder as the program reflash-build, with the agent inside (docs/building.md).
    Install(install::InstallArgs),
    /// Write a recipe and partition layouts to begin with.
    Examples(examples::ExamplesArgs),
    /// Build the recovery kernel and initramfs around the agent.
    Initramfs(initramfs::InitramfsArgs),
    /// Build a system image from a recipe.
    Image(image::ImageArgs),
    /// Say which blocks differ between two images, what they belong to, and how many of them are new.
    Compare(image::compare::CompareArgs),
    /// Make GRUB's images.
    Grub,
    /// Make a key pair to sign releases with.
    Keygen(keygen::KeygenArgs),
    /// Sign and publish an image as a release tree of static files, or check one.
    Release(release::ReleaseArgs),
    /// Publish a channel of a release tree in an S3-compatible store (docs/publishing.md).
    Publish(publish::PublishArgs),
    /// Serve a release tree over HTTP.
    Serve(serve::ServeArgs),
    /// Assemble a bootable disk image with an empty system partition.
    Disk(disk::DiskArgs),
    /// Measure first flashes and updates against this machine's limits and against other tools.
    Bench(bench::BenchArgs),
    /// Make a boot medium for USB and optical drives, BIOS and UEFI: provisions machines, or repairs them.
    Media(media::MediaArgs),
}

impl BuilderCommand {
    /// The name of a command that makes sense only in a checkout, whose sources it builds or tests.
    fn needs_checkout(&self) -> Option<&'static str> {
        match self {
            Self::Demo => Some("demo"),
            Self::Test(_) => Some("test"),
            Self::Fuzz(_) => Some("fuzz"),
            Self::PowerCut(_) => Some("power-cut"),
            Self::Agent => Some("agent"),
            Self::Install(_) => Some("install"),
            Self::Bench(_) => Some("bench"),
            _ => None,
        }
    }
}

/// Reads the command line. Wrong options end the program with a usage text.
#[must_use]
pub fn parse() -> Cli {
    let matches = Cli::command().bin_name(invocation::program()).get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Carries out the command.
///
/// # Errors
/// The first thing that fails.
pub fn run(cli: Cli) -> Result<()> {
    surroundings::pin_umask();
    let Cli { command, places, yes } = cli;
    let paths = &Paths::find(places)?;
    if let Some(name) = command.needs_checkout() {
        paths.checkout(name)?;
    }
    step::log_below(paths);
    match command {
        BuilderCommand::Demo => demo::run(paths, yes),
        BuilderCommand::Test(args) => test::run(paths, args, yes),
        BuilderCommand::Fuzz(args) => fuzz::run(paths, &args),
        BuilderCommand::PowerCut(args) => powercut::run(paths, &args, yes),
        BuilderCommand::Agent => notices::write_beside(&agent::build(paths, yes)?, paths),
        BuilderCommand::Install(args) => install::run(&args, paths, yes),
        BuilderCommand::Examples(args) => examples::run(&args),
        BuilderCommand::Initramfs(args) => initramfs::recovery(paths, &args.keys, yes).map(drop),
        BuilderCommand::Image(args) => image::run(&args, paths, yes),
        BuilderCommand::Compare(args) => image::compare::run(&args),
        BuilderCommand::Grub => grub::build(paths, yes).map(drop),
        BuilderCommand::Keygen(args) => keygen::run(&args),
        BuilderCommand::Release(args) => release::run(args, paths, yes),
        BuilderCommand::Publish(args) => publish::run(args, paths),
        BuilderCommand::Serve(args) => serve::run(args, paths),
        BuilderCommand::Disk(args) => disk::run(args, paths, yes),
        BuilderCommand::Bench(args) => bench::run(paths, &args, yes),
        BuilderCommand::Media(args) => media::run(&args, paths, yes),
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_options_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_of_a_checkout_are_named_as_they_are_typed() {
        for name in ["demo", "test", "fuzz", "power-cut", "agent", "install", "bench"] {
            assert_eq!(Cli::try_parse_from(["x", name]).unwrap().command.needs_checkout(), Some(name));
        }
        for line in [&["x", "grub"][..], &["x", "keygen", "--out", "k"], &["x", "image", "r.toml"]] {
            assert_eq!(Cli::try_parse_from(line).unwrap().command.needs_checkout(), None);
        }
    }
}
