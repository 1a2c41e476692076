//! Signed files of a channel, taken as they are from one place to another.

use anyhow::{Context, Result, ensure};
use reflash::release::manifest::{TrustedKeys, manifest_path};
use reflash::release::rollout::{Halts, halt_keys, halts_path, release_path, rollout_path};

use super::{Changed, ChannelPlace, RolloutState, Unsigned, load, load_to_change};
use crate::pair::Pair;

/// Copies the roll-out of a channel, in an order in which robots go on to find files that fit each other, where there
/// is such a one. Where there is none they find for a moment what they take nothing by.
///
/// # Errors
/// When robots would not take it, the place has a newer one, or it cannot be written.
pub fn copy(from: &dyn ChannelPlace, to: &dyn ChannelPlace, channel: &str, keys: &TrustedKeys) -> Result<()> {
    let own = load(from, channel, keys)?.with_context(|| format!("{} has no roll-out", from.name()))?;
    // What no key vouches for is replaced: robots take nothing by it.
    let there = load_to_change(to, channel, keys, Unsigned::Refused).unwrap_or_else(|error| {
        eprintln!("  warning: {error:#}; it is replaced");
        None
    });
    if let Some(there) = &there {
        let (rollout, halts) = (there.rollout.counter, there.halts.counter);
        let is_other_key = there.rollout.halt_key != own.rollout.halt_key;
        ensure!(
            own.rollout.counter >= rollout && (own.halts.counter >= halts || is_other_key),
            "{} has newer files (roll-out {rollout}, halts {halts}) than {} ({}, {})",
            to.name(),
            from.name(),
            own.rollout.counter,
            own.halts.counter
        );
    }
    let (rollout, halts) = (rollout_path(channel), halts_path(channel));
    let are_halts_first = match &there {
        Some(there) => {
            Pair::read(from, &halts)?.is_signed(&halt_keys(keys, &there.rollout)?) && stops_as_much(&own.halts, there)
        }
        None => true,
    };
    for path in if are_halts_first { [halts, rollout] } else { [rollout, halts] } {
        copy_pair(from, &path, to, &path)?;
    }
    Ok(())
}

/// Whether robots take these halts by the roll-out that is there, and no release goes on by that.
fn stops_as_much(halts: &Halts, there: &RolloutState) -> bool {
    let mut releases = there.rollout.releases.iter();
    halts.check_against(&there.rollout).is_ok()
        && releases.all(|release| halts.of(release).is_some() || there.halts.of(release).is_none())
}

/// Offers a release of the channel's history to agents that know no roll-outs: its manifest becomes the channel's.
///
/// # Errors
/// When the release is not there, or the place cannot be written.
pub fn offer(from: &dyn ChannelPlace, to: &dyn ChannelPlace, channel: &str, serial: u64) -> Result<()> {
    copy_pair(from, &release_path(channel, serial), to, &manifest_path(channel))
}

fn copy_pair(from: &dyn ChannelPlace, path: &str, to: &dyn ChannelPlace, to_path: &str) -> Result<()> {
    let own = Pair::read(from, path)?;
    let content = own.content.as_deref().with_context(|| format!("{path} is not in {}", from.name()))?;
    let there = Pair::read(to, to_path)?;
    let signatures = own.signatures();
    if there.content.as_deref() == Some(content) && there.signatures() == signatures {
        return Ok(());
    }
    ensure!(there.make_way(to, to_path, &signatures, content)?, Changed::of(to));
    Ok(())
}
