//! `rollout`: begins, widens, pauses, halts and watches the roll-out of a release (docs/rollouts.md).
//!
//! The store, where there is one, has the roll-out that counts; the tree gets a copy of it. Without a store the tree is
//! the place.

mod desk;
mod failures;
mod publication;
mod reports;
mod status;
mod terms;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use reflash::release::rollout::{Rollout, halts_path, rollout_path};

use crate::paths::Paths;
use crate::project::needed;
use crate::publish::{Store, location};
use crate::release::rollout::{ChannelPlace, RolloutState, TreePlace, Unsigned};
use crate::release::{DEFAULT_CHANNEL, keygen};
use crate::trusted;
pub use desk::{Desk, FirstRollout, HaltKeyChange};

/// Highest number that `--above` takes: what is above was no count of changes.
const MAX_ABOVE: u64 = 1_000_000;
pub use failures::Failures;
pub use reports::Reports;
pub use terms::{LiftedArgs, TermsArgs};
pub use watch::{FailureLimits, Watch, WatchArgs};

/// Options of `rollout`.
#[derive(Debug, clap::Args)]
pub struct RolloutArgs {
    /// Action on the roll-out.
    #[command(subcommand)]
    pub action: RolloutAction,
    /// Options of all actions.
    #[command(flatten)]
    pub options: RolloutOptions,
}

/// Place of the roll-out, and its keys.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RolloutOptions {
    /// Root of the tree. Default: release, where everything built goes.
    #[arg(long, global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Channel of the roll-out. Default: stable.
    #[arg(long, global = true)]
    pub channel: Option<String>,
    /// Place in a store that robots read: s3://BUCKET/PREFIX. Without it, the tree is the place.
    #[arg(long, global = true, value_name = "s3://BUCKET/PREFIX")]
    pub to: Option<String>,
    /// URL of the store; default: that of AWS in the region.
    #[arg(long, global = true, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Region of the store. Default: us-east-1.
    #[arg(long, global = true)]
    pub region: Option<String>,
    /// Public key that the robots trust; repeat for several. Default: keys/reflash.pub.
    #[arg(long, global = true, value_name = "FILE.pub")]
    pub public: Vec<PathBuf>,
    /// Secret key to sign with: a release key; for `halt` and `watch` the halt key will do.
    #[arg(long, global = true, value_name = "FILE.key")]
    pub key: Option<PathBuf>,
}

/// Key that may halt.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct HaltKeyArgs {
    /// Public key that may halt releases, and nothing else, in place of the one before.
    #[arg(long, value_name = "FILE.pub", conflicts_with = "no_halt_key")]
    pub halt_key: Option<PathBuf>,
    /// Let no key halt but those of releases.
    #[arg(long)]
    pub no_halt_key: bool,
}

impl HaltKeyArgs {
    fn change(&self) -> Result<HaltKeyChange> {
        Ok(match &self.halt_key {
            Some(path) => HaltKeyChange::Name(publication::key_line(path)?),
            None if self.no_halt_key => HaltKeyChange::Remove,
            None => HaltKeyChange::Keep,
        })
    }
}

/// Action on a roll-out.
#[derive(Debug, clap::Subcommand)]
pub enum RolloutAction {
    /// Begin the roll-out of a release that was made with `release --for-rollout`.
    Start {
        /// Serial of the release.
        serial: u64,
        /// Key that may halt.
        #[command(flatten)]
        halt_key: HaltKeyArgs,
        /// Begin the first roll-out of a channel on a release without recovery files: robots whose agent knows no
        /// roll-outs stay at it for ever.
        #[arg(long)]
        allow_no_recovery: bool,
        /// Number that the files of the first roll-out of a channel begin above, where those before are lost: robots
        /// take none below the ones that they saw, and name that number.
        #[arg(long, value_name = "NUMBER", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=MAX_ABOVE))]
        above: u64,
        /// Robots, times and facts.
        #[command(flatten)]
        terms: TermsArgs,
    },
    /// Add robots to the roll-out of a release, or take conditions away.
    Widen {
        /// Serial of the release.
        serial: u64,
        /// Key that may halt.
        #[command(flatten)]
        halt_key: HaltKeyArgs,
        /// Robots, times and facts.
        #[command(flatten)]
        terms: TermsArgs,
        /// Conditions that are taken away.
        #[command(flatten)]
        lifted: LiftedArgs,
    },
    /// Let no further robot begin; those that have the release keep it.
    Pause {
        /// Serial of the release.
        serial: u64,
    },
    /// Go on with a release that was paused or halted.
    Resume {
        /// Serial of the release.
        serial: u64,
    },
    /// Stop a release before the next robot begins to write it. Takes nothing back.
    Halt {
        /// Serial of the release.
        serial: u64,
        /// Reason, which robots report.
        #[arg(long, default_value = "halted by hand")]
        why: String,
    },
    /// Offer another release to robots whose agent knows no roll-outs: one for every robot, that renews the recovery.
    Step {
        /// Serial of the release.
        serial: u64,
    },
    /// Sign roll-out and halts anew: after a change of keys, or where robots would not take what is there.
    Mend {
        /// Key that may halt.
        #[command(flatten)]
        halt_key: HaltKeyArgs,
        /// Sign what no trusted key has signed, too. Look at it first: with this the key vouches for it.
        #[arg(long)]
        take_unsigned: bool,
    },
    /// Say what is offered to whom.
    Status {
        /// Posts of robots: a file with one JSON post a line, or a directory of such files.
        #[arg(long, value_name = "PATH")]
        reports: Vec<PathBuf>,
    },
    /// Read what robots post, and halt a release by itself when it fails on too many of them.
    Watch(WatchArgs),
    /// Send the roll-out of the tree, and the releases that it names, to the store.
    Publish,
}

/// Returns whom the roll-out of a tree offers each of its releases to, by serial; `None` where the channel has none. It
/// is for people: signatures are not looked at.
///
/// # Errors
/// When the files of the roll-out cannot be read.
pub fn offers(tree: &Path, channel: &str) -> Result<Option<BTreeMap<u64, String>>> {
    let tree = TreePlace(tree.to_owned());
    let Some(rollout) = tree.read(&rollout_path(channel))? else { return Ok(None) };
    let rollout: Rollout = serde_json::from_slice(&rollout).context("read the roll-out of the tree")?;
    let path = halts_path(channel);
    let halts = tree.read(&path)?.with_context(|| format!("{path} is missing beside the roll-out of the tree"))?;
    let state = RolloutState { rollout, halts: serde_json::from_slice(&halts).context("read the halts of the tree")? };
    let offers = state.rollout.releases.iter().map(|release| (release.serial, status::offer(&state, release)));
    Ok(Some(offers.collect()))
}

fn open(options: &RolloutOptions, paths: &Paths) -> Result<Desk> {
    let RolloutOptions { dir, channel, to, endpoint, region, public, .. } = options.clone();
    let public = if public.is_empty() { vec![PathBuf::from("keys/reflash.pub")] } else { public };
    let keys = trusted::of(&public).context("give the key that robots trust with --public")?;
    let store = match to {
        Some(to) => Some(Store::with_credentials_of_environment(location(Some(to), endpoint, region)?)?),
        None => None,
    };
    let tree = dir.unwrap_or_else(|| paths.dist().join("release"));
    Ok(Desk::new(tree, &channel.unwrap_or_else(|| DEFAULT_CHANNEL.to_owned()), store, keys))
}

/// Carries out an action as the command line says.
///
/// # Errors
/// Those of the action.
pub fn run(args: RolloutArgs, paths: &Paths) -> Result<()> {
    let RolloutArgs { action, options } = args;
    let desk = open(&options, paths)?;
    let key = || keygen::load_secret(needed(options.key.as_deref(), "--key", "keys.secret")?);
    match action {
        RolloutAction::Start { serial, halt_key, allow_no_recovery, above, terms } => {
            let begin = FirstRollout { allow_no_recovery, above };
            desk.start(serial, &terms.parse()?, &halt_key.change()?, begin, &key()?)?;
        }
        RolloutAction::Widen { serial, halt_key, terms, lifted } => {
            let (terms, halt_key) = (lifted.of(terms.parse()?), halt_key.change()?);
            desk.change(&key()?, |state| {
                halt_key.apply(state);
                state.widen(serial, terms.clone())
            })?;
        }
        RolloutAction::Pause { serial } => desk.change(&key()?, |state| state.pause(serial))?,
        RolloutAction::Resume { serial } => desk.change(&key()?, |state| state.resume(serial))?,
        RolloutAction::Halt { serial, why } => desk.halt(serial, &why, &key()?)?,
        RolloutAction::Step { serial } => desk.step_to(serial)?,
        RolloutAction::Mend { halt_key, take_unsigned } => {
            let unsigned = if take_unsigned { Unsigned::Taken } else { Unsigned::Refused };
            desk.mend(&halt_key.change()?, unsigned, &key()?)?;
        }
        RolloutAction::Publish => {
            let store = needed(desk.store.as_ref(), "--to", "publish.to")?;
            publication::publish(&desk.tree, &desk.channel, &desk.keys, store)?;
        }
        RolloutAction::Status { reports } => {
            let state = desk.state()?;
            let mut read = Reports::new(reports).of_product(&state.rollout.product);
            let missing: Vec<String> = read.missing().iter().map(|path| path.display().to_string()).collect();
            ensure!(
                missing.is_empty(),
                "there is no {}, so that no post of a robot is read there",
                missing.join(" and no ")
            );
            // Twice: the end of a file that nobody writes to meanwhile is a line, too.
            (0..2).for_each(|_| read.read_new());
            return status::print(&state, read.failures());
        }
        RolloutAction::Watch(args) => return watch::run(&desk, args, &key()?),
    }
    status::print(&desk.state()?, &Failures::default())
}
