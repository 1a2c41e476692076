//! The roll-out of a channel on the desk: the places it is in, and what is done to it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use reflash::release::manifest::TrustedKeys;
use reflash::release::rollout::{halts_path, rollout_path};

use super::publication;
use crate::invocation::program;
use crate::publish::Store;
use crate::release::rollout::{
    ChannelPlace, RolloutState, RolloutTerms, TreePlace, load, manifest_of, sign_halts, sign_rollout,
};
use crate::release::{SecretKey, check};
use crate::step::step;

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
            Some(store) => Box::new(publication::StorePlace(store)),
            None => Box::new(self.tree()),
        }
    }

    /// The roll-out that robots read.
    ///
    /// # Errors
    /// When there is none, or robots would not take it.
    pub fn state(&self) -> Result<RolloutState> {
        let place = self.place();
        load(&*place, &self.channel, &self.keys)?.with_context(|| {
            format!(
                "channel {} in {} has no roll-out; `{} rollout start SERIAL` begins one",
                self.channel,
                place.name(),
                program()
            )
        })
    }

    /// Begins the roll-out of a release of the tree.
    ///
    /// # Errors
    /// When the release is not whole, or cannot be added.
    pub fn start(&self, serial: u64, halt_key: Option<String>, terms: RolloutTerms, key: &SecretKey) -> Result<()> {
        let (manifest, signed) = manifest_of(&self.tree(), &self.channel, Some(serial), &self.keys)?;
        step(&format!("check every object of release {serial}"), || check::check_objects(&self.tree, &manifest))?;
        let place = self.place();
        let before = load(&*place, &self.channel, &self.keys)?;
        let is_first = before.is_none();
        let mut state = match before {
            Some(state) => state,
            None => {
                let (offered, signed) = manifest_of(&self.tree(), &self.channel, None, &self.keys)
                    .context("look for the release that robots have before the first roll-out")?;
                publication::send(self.store.as_ref(), &self.tree, &offered)?;
                RolloutState::first(&offered, &signed)
            }
        };
        state.start(&manifest, &signed, terms)?;
        state.rollout.halt_key = halt_key.or(state.rollout.halt_key);
        publication::send(self.store.as_ref(), &self.tree, &manifest)?;
        // Robots take no roll-out without halts, and no halt of a release that the roll-out does not have.
        if is_first {
            sign_halts(&*place, &mut state, key, &self.keys)?;
        }
        sign_rollout(&*place, &mut state, key, &self.keys)?;
        if state.forget_old_halts() {
            sign_halts(&*place, &mut state, key, &self.keys)?;
        }
        self.copy_to_tree()
    }

    /// Changes the roll-out, and signs it.
    ///
    /// # Errors
    /// Those of the change, and of the key.
    pub fn change(&self, key: &SecretKey, change: impl FnOnce(&mut RolloutState) -> Result<()>) -> Result<()> {
        let mut state = self.state()?;
        change(&mut state)?;
        sign_rollout(&*self.place(), &mut state, key, &self.keys)?;
        self.copy_to_tree()
    }

    /// Halts a release.
    ///
    /// # Errors
    /// When the roll-out does not have it, or the key may not halt.
    pub fn halt(&self, serial: u64, why: &str, key: &SecretKey) -> Result<()> {
        let mut state = self.state()?;
        state.halt(serial, why)?;
        sign_halts(&*self.place(), &mut state, key, &self.keys)?;
        self.copy_to_tree()
    }

    /// Copies what the store has into the tree, where there are both.
    fn copy_to_tree(&self) -> Result<()> {
        if self.store.is_none() || !self.tree.is_dir() {
            return Ok(());
        }
        let (from, to) = (self.place(), self.tree());
        for path in [halts_path(&self.channel), rollout_path(&self.channel)] {
            for path in [format!("{path}.minisig"), path] {
                if let Some(content) = from.read(&path)? {
                    to.write(&path, &content)?;
                }
            }
        }
        Ok(())
    }
}
