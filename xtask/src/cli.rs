//! The command line: every command, and which part of the builder carries it out.

mod commands;
mod defaults;
mod keygen;
mod release;
mod software;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{CommandFactory, FromArgMatches, Parser};

use commands::BuilderCommand;

use crate::explained::explained;
use crate::paths::{self, Paths, PlaceArgs};
use crate::project::{self, MissingValue, Project};
use crate::{
    agent, bench, check, demo, disk, examples, fuzz, grub, image, init, initramfs, install, invocation, media, notices,
    ostree_repository, powercut, prune, publish, rollout, serve, step, surroundings, test,
};

/// Builds everything reflash ships, from the agent to boot media, and runs it in virtual machines.
#[derive(Parser)]
#[command(name = "reflash-build", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: BuilderCommand,
    #[command(flatten)]
    places: PlaceArgs,
    /// Project file, from which commands take what their options do not give. Default: the nearest
    /// reflash-project.toml, from here upwards.
    #[arg(long, global = true, env = "REFLASH_PROJECT", value_name = "FILE", hide_env_values = true)]
    #[arg(help_heading = "Options of every command")]
    project: Option<PathBuf>,
    /// Ask nothing: install missing packages, and take what `init` offers (as with CI=true).
    #[arg(long, global = true, help_heading = "Options of every command")]
    yes: bool,
}

impl Cli {
    /// The project that the command belongs to, if there is one. `init` makes one, and what works on the sources of
    /// reflash has none.
    fn project(&self) -> Result<Option<Project>> {
        if self.command.needs_checkout().is_some() || matches!(self.command, BuilderCommand::Init(_)) {
            return Ok(None);
        }
        let here = std::env::current_dir().context("find the current directory")?;
        Project::find(self.project.as_deref(), &here, paths::checkout_around(&here).as_deref())
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
    let project = cli.project().map_err(|error| explained(error, &[]))?;
    let Cli { mut command, mut places, yes, .. } = cli;
    if let Some(project) = &project {
        defaults::take(&mut command, &mut places, project);
    }
    let paths = &Paths::find(places)?;
    if let Some(name) = command.needs_checkout() {
        paths.checkout(name)?;
    }
    step::log_below(paths);
    let done = match command {
        BuilderCommand::Demo => demo::run(paths, yes),
        BuilderCommand::Test(args) => test::run(paths, args, yes),
        BuilderCommand::Fuzz(args) => fuzz::run(paths, &args),
        BuilderCommand::PowerCut(args) => powercut::run(paths, &args, yes),
        BuilderCommand::Agent => notices::write_beside(&agent::build(paths, yes)?, paths),
        BuilderCommand::Install(args) => install::run(&args, paths, yes),
        BuilderCommand::Init(args) => init::run(&args, yes),
        BuilderCommand::Check => check::run(project.as_ref(), paths),
        BuilderCommand::Examples(args) => examples::run(&args),
        BuilderCommand::Initramfs(args) => initramfs::recovery(paths, &args.keys, yes).map(drop),
        BuilderCommand::Image(args) => image::run(&args, paths, yes),
        BuilderCommand::Compare(args) => image::compare::run(&args),
        BuilderCommand::Grub => grub::build(paths, yes).map(drop),
        BuilderCommand::Keygen(args) => keygen::run(&args),
        BuilderCommand::Release(args) => release::run(args, paths, yes),
        BuilderCommand::Publish(args) => publish::run(args, paths),
        BuilderCommand::Rollout(args) => rollout::run(args, paths),
        BuilderCommand::Prune(args) => prune::run(args, paths),
        BuilderCommand::PublishOstree(args) => ostree_repository::run(args, paths, yes),
        BuilderCommand::Serve(args) => serve::run(args, paths),
        BuilderCommand::Disk(args) => disk::run(args, paths, yes),
        BuilderCommand::Bench(args) => bench::run(paths, &args, yes),
        BuilderCommand::Media(args) => media::run(&args, paths, yes),
    };
    // Most often the person stands in another directory than they think.
    done.map_err(|error| match error.is::<MissingValue>() && project.is_none() {
        true => error.context(format!("there is no {} here or in a directory above", project::FILE)),
        false => explained(error, &[paths.dist(), paths.work()]),
    })
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
