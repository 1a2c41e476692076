//! The commands: names, and what they say of themselves.

use clap::Subcommand;

use super::{keygen, release};
use crate::{
    bench, disk, examples, fuzz, image, init, initramfs, install, media, ostree_repository, powercut, prune, publish,
    rollout, serve, test,
};

/// Command of the builder, with its options.
#[derive(Subcommand)]
pub enum BuilderCommand {
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
    /// Make a first project: project file, recipe, layout, configuration and keys (docs/building.md).
    Init(init::InitArgs),
    /// Check the project before long work: what would fail later, or only on a machine.
    Check,
    /// Write a recipe and partition layouts to begin with.
    Examples(examples::ExamplesArgs),
    /// Build the recovery kernel and initramfs around the agent.
    Initramfs(initramfs::InitramfsArgs),
    /// Build a system image from a recipe.
    Image(image::ImageArgs),
    /// Say what differs between two images: packages, files, accounts, units, rights, sizes, then blocks.
    Compare(image::compare::CompareArgs),
    /// Make GRUB's images.
    Grub,
    /// Make a key pair to sign releases with.
    Keygen(keygen::KeygenArgs),
    /// Sign an image as a release in a tree of static files; check, list or go back to one.
    Release(release::ReleaseArgs),
    /// Publish a channel of a release tree in an S3-compatible store (docs/publishing.md).
    Publish(publish::PublishArgs),
    /// Roll a release out to more and more robots, pause it, halt it, watch it (docs/rollouts.md).
    Rollout(rollout::RolloutArgs),
    /// Publish the commit of an image as an OSTree repository of static files (docs/publishing.md).
    PublishOstree(ostree_repository::PublishOstreeArgs),
    /// Delete what no kept release needs, from a release tree or a store.
    Prune(prune::PruneArgs),
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
    pub fn needs_checkout(&self) -> Option<&'static str> {
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
