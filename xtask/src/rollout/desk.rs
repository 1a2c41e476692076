//! The roll-out of a channel on the desk: the places it is in, and what is done to it.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reflash::boot::slots;
use reflash::release::manifest::{Manifest, TrustedKeys};

use super::publication;
use crate::invocation::program;
use crate::publish::{Store, StorePlace};
use crate::release::rollout::{
    Changed, ChannelPlace, RolloutState, RolloutTerms, TreePlace, Unsigned, copy, load, load_to_change, manifest_of,
    offer, renew, replace,
};
use crate::release::{SecretKey, check};
use crate::step::step;

/// Attempts of a change that somebody else comes before each time.
const ATTEMPTS: u32 = 8;

/// A roll-out, the places it is in, and the keys that robots trust.
pub struct Desk {
    /// Root of the tree.
    pub tree: PathBuf,
    /// Channel of the roll-out.
    pub channel: String,
    /// Store, if there is one.
    pub store: Option<Store>,
    /// Keys that robots trust.
    pub keys: TrustedKeys,
}

/// Change of the halt key that a roll-out names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum HaltKeyChange {
    /// The key stays as it is.
    #[default]
    Keep,
    /// A key takes the place of the one before.
    Name(String),
    /// The roll-out names no key any more.
    Remove,
}

/// Terms on which the first roll-out of a channel is begun.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FirstRollout {
    /// Whether it may begin on a release that does not renew the recovery.
    pub allow_no_recovery: bool,
    /// Number that its files begin above: that of files that are lost, and that robots have seen.
    pub above: u64,
}

impl HaltKeyChange {
    pub(super) fn apply(&self, state: &mut RolloutState) {
        match self {
            Self::Keep => (),
            Self::Name(line) => state.rollout.halt_key = Some(line.clone()),
            Self::Remove => state.rollout.halt_key = None,
        }
    }
}

impl Desk {
    /// The desk of a tree and, where there is one, a store.
    #[must_use]
    pub fn new(tree: PathBuf, channel: &str, store: Option<Store>, keys: TrustedKeys) -> Self {
        Self { tree, channel: channel.to_owned(), store, keys }
    }

    fn tree(&self) -> TreePlace {
        TreePlace(self.tree.clone())
    }

    /// The place that robots read.
    #[must_use]
    pub fn place(&self) -> Box<dyn ChannelPlace + '_> {
        match &self.store {
            Some(store) => Box::new(StorePlace(store)),
            None => Box::new(self.tree()),
        }
    }

    /// The roll-out that robots read.
    ///
    /// # Errors
    /// When there is none, or robots would not take it.
    pub fn state(&self) -> Result<RolloutState> {
        load(&*self.place(), &self.channel, &self.keys)?.with_context(|| self.no_rollout())
    }

    fn no_rollout(&self) -> String {
        let (channel, place, program) = (&self.channel, self.place().name(), program());
        format!("channel {channel} in {place} has no roll-out; `{program} rollout start SERIAL` begins one")
    }

    /// Begins the roll-out of a release of the tree. The first one of a channel needs a release before it that renews
    /// the recovery of today's robots, unless `begin` allows to do without.
    ///
    /// # Errors
    /// When the release is not whole, or cannot be added.
    pub fn start(
        &self,
        serial: u64,
        terms: &RolloutTerms,
        halt_key: &HaltKeyChange,
        begin: FirstRollout,
        key: &SecretKey,
    ) -> Result<()> {
        let (manifest, signed) = manifest_of(&self.tree(), &self.channel, Some(serial), &self.keys)?;
        self.refuse_offered(serial)?;
        step(&format!("check every object of release {serial}"), || check::check_objects(&self.tree, &manifest))?;
        let first = match load_to_change(&*self.place(), &self.channel, &self.keys, Unsigned::Refused)? {
            Some(there) => {
                ensure!(
                    begin.above == 0,
                    "--above is for the first roll-out of a channel, and there is one, with number {}",
                    there.rollout.counter
                );
                None
            }
            None => Some(self.first(begin)?),
        };
        publication::send(self.store.as_ref(), &self.tree, &manifest)?;
        self.edit(key, Unsigned::Refused, |before| {
            let mut state = before.cloned().or_else(|| first.clone()).with_context(|| self.no_rollout())?;
            state.start(&manifest, &signed, terms.clone())?;
            halt_key.apply(&mut state);
            Ok(state)
        })?;
        // A `prune` of another computer may have deleted old objects that no roll-out named until now.
        publication::send(self.store.as_ref(), &self.tree, &manifest)
    }

    /// Refuses to begin the first roll-out of a channel with what every robot is offered: there is none to be widened.
    fn refuse_offered(&self, serial: u64) -> Result<()> {
        if load_to_change(&*self.place(), &self.channel, &self.keys, Unsigned::Refused)?.is_some() {
            return Ok(());
        }
        // Without a release the first roll-out is refused with its own reason.
        let Ok((offered, _)) = manifest_of(&self.tree(), &self.channel, None, &self.keys) else { return Ok(()) };
        ensure!(
            serial > offered.serial,
            "every robot is offered release {} already, so that a roll-out can only begin with a newer one: \
             `{} release --for-rollout` makes it",
            offered.serial,
            program()
        );
        Ok(())
    }

    /// The roll-out with nothing but the release that every robot has.
    fn first(&self, begin: FirstRollout) -> Result<RolloutState> {
        let (offered, signed) = manifest_of(&self.tree(), &self.channel, None, &self.keys)
            .context("look for the release that robots have before the first roll-out")?;
        ensure!(
            begin.allow_no_recovery || renews_recovery(&offered),
            "release {} has no recovery files. Robots whose agent knows no roll-outs would stay at it for ever, since \
             manifest.json stays there; offer one to every robot first that was made with --recovery, or name \
             --allow-no-recovery where every robot knows roll-outs",
            offered.serial
        );
        publication::send(self.store.as_ref(), &self.tree, &offered)?;
        Ok(RolloutState::first(&offered, &signed, begin.above))
    }

    /// Changes the roll-out, and signs it. The change may be made several times, each on what is there by then.
    ///
    /// # Errors
    /// Those of the change, and of the key.
    pub fn change(&self, key: &SecretKey, change: impl Fn(&mut RolloutState) -> Result<()>) -> Result<()> {
        self.edit(key, Unsigned::Refused, |before| {
            let mut state = before.cloned().with_context(|| self.no_rollout())?;
            change(&mut state)?;
            Ok(state)
        })
    }

    /// Halts a release.
    ///
    /// # Errors
    /// When the roll-out does not have it, or the key may not halt.
    pub fn halt(&self, serial: u64, why: &str, key: &SecretKey) -> Result<()> {
        self.change(key, |state| state.halt(serial, why))
    }

    /// Signs anew, with a release key, what robots would not take or what another key signed.
    ///
    /// # Errors
    /// When a file is signed by no key that is trusted and `unsigned` refuses those, or it cannot be written.
    pub fn mend(&self, halt_key: &HaltKeyChange, unsigned: Unsigned, key: &SecretKey) -> Result<()> {
        self.edit(key, unsigned, |before| {
            let mut state = before.cloned().with_context(|| self.no_rollout())?;
            halt_key.apply(&mut state);
            Ok(state)
        })?;
        let _alone = self.lock()?;
        let mut state =
            load_to_change(&*self.place(), &self.channel, &self.keys, unsigned)?.with_context(|| self.no_rollout())?;
        renew(&*self.place(), &mut state, key, &self.keys)?;
        self.copy_to_tree()
    }

    /// Offers a release of the roll-out to agents that know none, in place of the one they are offered.
    ///
    /// # Errors
    /// When the release is not for every robot, has no recovery files, or is older than the one that is offered.
    pub fn step_to(&self, serial: u64) -> Result<()> {
        let state = self.state()?;
        let (manifest, _) = manifest_of(&self.tree(), &self.channel, Some(serial), &self.keys)?;
        let staged = state.rollout.release(serial).with_context(|| format!("the roll-out has no release {serial}"))?;
        ensure!(
            staged.is_for_everybody(state.rollout.created_unix_s) && state.halts.of(staged).is_none(),
            "release {serial} is not for every robot: {}",
            super::status::offer(&state, staged)
        );
        ensure!(renews_recovery(&manifest), "release {serial} has no recovery files: make one with --recovery");
        step(&format!("check every object of release {serial}"), || check::check_objects(&self.tree, &manifest))?;
        publication::send(self.store.as_ref(), &self.tree, &manifest)?;
        let _alone = self.lock()?;
        let place = self.place();
        let (offered, _) = manifest_of(&*place, &self.channel, None, &self.keys)?;
        ensure!(offered.serial <= serial, "release {} is offered, which is newer", offered.serial);
        offer(&self.tree(), &*place, &self.channel, serial)?;
        if self.store.is_some() {
            offer(&self.tree(), &self.tree(), &self.channel, serial)?;
        }
        Ok(())
    }

    /// Makes a change on what is there, again where somebody else came before.
    fn edit(
        &self,
        key: &SecretKey,
        unsigned: Unsigned,
        change: impl Fn(Option<&RolloutState>) -> Result<RolloutState>,
    ) -> Result<()> {
        let _alone = self.lock()?;
        let place = self.place();
        let mut attempt = 1;
        loop {
            let before = load_to_change(&*place, &self.channel, &self.keys, unsigned)?;
            let mut after = change(before.as_ref())?;
            match replace(&*place, before.as_ref(), &mut after, key, &self.keys) {
                Ok(()) => break,
                Err(error) if error.is::<Changed>() && attempt < ATTEMPTS => {
                    // Two that began together do not go on together.
                    let own = u64::from(std::process::id() % 13);
                    std::thread::sleep(Duration::from_millis((100 + 50 * own) * u64::from(attempt)));
                }
                Err(error) => return Err(error),
            }
            attempt += 1;
        }
        self.copy_to_tree()
    }

    /// Keeps other commands of this machine out. Those of other machines are seen by what they write into the store.
    fn lock(&self) -> Result<Option<File>> {
        let lock = || self.tree().lock(&self.channel);
        match &self.store {
            None => lock().map(Some),
            // A tree that can only be read is no reason to halt nothing.
            Some(_) => Ok(self.tree.is_dir().then(lock).and_then(Result::ok)),
        }
    }

    /// Copies what the store has into the tree, where there are both.
    fn copy_to_tree(&self) -> Result<()> {
        if self.store.is_none() || !self.tree.is_dir() {
            return Ok(());
        }
        // What robots read is changed by now, whatever becomes of the copy.
        if let Err(error) = copy(&*self.place(), &self.tree(), &self.channel, &self.keys) {
            eprintln!("  warning: the copy in {} stays as it is: {error:#}", self.tree.display());
        }
        Ok(())
    }
}

/// Whether robots that install the release get its recovery, too.
fn renews_recovery(manifest: &Manifest) -> bool {
    let has = |name: &&str| manifest.files.iter().any(|file| file.name == format!("{}/{name}", slots::RELEASE_FOLDER));
    slots::FILES.iter().all(has)
}
