//! The two signed files of a roll-out in a place: how they are read, signed and replaced.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use minisign::{PublicKey, SecretKey};
use reflash::release::manifest::TrustedKeys;
use reflash::release::rollout::{Halts, MAX_COUNTER, MAX_SIZE_BYTES, Rollout, halt_keys, halts_path, rollout_path};

use super::{ChannelPlace, RolloutState};
use crate::channel::{now, signature};
use crate::pair::Pair;

/// The highest number that is believed of a file that no key vouches for. Robots never go behind a number, so that one
/// which somebody made up near the end would leave none for what comes next.
const MAX_BELIEVED: u64 = 1_000_000;

/// Treatment of files that no trusted key has signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsigned {
    /// Unsigned files are refused, by name.
    Refused,
    /// Unsigned files are taken, because a person has looked at them: to be signed anew.
    Taken,
}

/// The error of a change that somebody else came before: to be made again on what is there now.
#[derive(Debug)]
pub struct Changed(String);

impl Changed {
    pub(super) fn of(place: &dyn ChannelPlace) -> Self {
        Self(place.name())
    }
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the roll-out in {} was changed meanwhile; look at it again", self.0)
    }
}

impl std::error::Error for Changed {}

/// Reads the roll-out that a place has, if there is one, as robots would take it.
///
/// # Errors
/// When a file is missing, contradicts itself or the other one, or is not signed with a key that robots would take it
/// from.
pub fn load(place: &dyn ChannelPlace, channel: &str, keys: &TrustedKeys) -> Result<Option<RolloutState>> {
    let Some(state) = load_to_change(place, channel, keys, Unsigned::Refused)? else { return Ok(None) };
    state.halts.check_against(&state.rollout).with_context(|| {
        format!(
            "robots take nothing by the roll-out in {}; any change with a release key mends that, as `rollout mend`",
            place.name()
        )
    })?;
    Ok(Some(state))
}

/// Reads the roll-out that a place has, to change it: roll-out and halts may not fit each other.
///
/// # Errors
/// As [`load`], but for that.
pub fn load_to_change(
    place: &dyn ChannelPlace,
    channel: &str,
    keys: &TrustedKeys,
    unsigned: Unsigned,
) -> Result<Option<RolloutState>> {
    let path = rollout_path(channel);
    let pair = Pair::read(place, &path)?;
    let Some(content) = pair.content.clone() else { return Ok(None) };
    let reading = || format!("read the roll-out in {}", place.name());
    let rollout = match keys.authenticate(content.clone(), &pair.signatures()) {
        Ok(signed) => Rollout::parse(&signed).with_context(reading)?,
        Err(_) if unsigned == Unsigned::Taken => {
            let rollout: Rollout = serde_json::from_slice(&content).with_context(reading)?;
            believe(&path, rollout.counter, rollout.check())?;
            rollout
        }
        Err(error) => return Err(error).with_context(|| not_signed(&path, place)),
    };
    let path = halts_path(channel);
    let pair = Pair::read(place, &path)?;
    let reading = || format!("read the halts in {}", place.name());
    let halts = match (pair.content.clone(), unsigned) {
        (Some(content), _) => match halt_keys(keys, &rollout)?.authenticate(content.clone(), &pair.signatures()) {
            Ok(signed) => Halts::parse(&signed).with_context(reading)?,
            Err(_) if unsigned == Unsigned::Taken => {
                let halts: Halts = serde_json::from_slice(&content).with_context(reading)?;
                believe(&path, halts.counter, halts.check())?;
                halts
            }
            Err(error) => return Err(error).with_context(|| not_signed(&path, place)),
        },
        // No halt can have been lifted that was not in a file before.
        (None, Unsigned::Taken) => {
            let lifted = rollout.releases.iter().map(|release| release.halts_lifted_through).max();
            Halts { counter: lifted.unwrap_or(0), ..RolloutState::no_halts(&rollout.product, &rollout.channel) }
        }
        (None, Unsigned::Refused) => {
            bail!("{path} is missing in {}; robots take no roll-out without it", place.name())
        }
    };
    Ok(Some(RolloutState { rollout, halts }))
}

fn not_signed(path: &str, place: &dyn ChannelPlace) -> String {
    format!(
        "check {path} in {}: robots take nothing by it. Look at what it says; with a release key, `rollout mend \
         --take-unsigned` then signs it anew",
        place.name()
    )
}

fn believe(path: &str, number: u64, checked: Result<(), String>) -> Result<()> {
    if let Err(what) = checked {
        bail!("{path} contradicts itself: {what}");
    }
    ensure!(
        number <= MAX_BELIEVED,
        "{path} has number {number}, and no key vouches for it: above {MAX_BELIEVED} that is not believed"
    );
    Ok(())
}

/// Writes what a change made of `before`, so that robots find two files that fit each other at any moment, and after a
/// cut anywhere. With a release key, halts are mended that robots would not take by the new roll-out.
///
/// # Errors
/// When a file would contradict itself, the key is none that robots would take it from, or the place cannot be written.
/// [`Changed`] if somebody else came before.
pub fn replace(
    place: &dyn ChannelPlace,
    before: Option<&RolloutState>,
    after: &mut RolloutState,
    key: &SecretKey,
    keys: &TrustedKeys,
) -> Result<()> {
    let is_release_key = keys.authenticate(Vec::new(), &signature(&[], key, "a look at the key")?).is_ok();
    let known_halts = match before {
        Some(before) => before.halts.counter,
        None => {
            // They are left over from a first roll-out that was cut before there was one.
            let left_over = Pair::read(place, &halts_path(&after.rollout.channel))?.number();
            let left_over = left_over.filter(|number| *number <= MAX_BELIEVED).unwrap_or_default();
            after.halts.counter = after.halts.counter.max(left_over);
            left_over
        }
    };
    if is_release_key {
        if let Some(before) = before {
            retire(place, before, after, key, keys)?;
        }
        after.forget_old_halts();
        renumber(before, after);
    }
    let is_changed = before.is_none_or(|before| before.halts.halted != after.halts.halted);
    if is_changed || is_release_key && !are_halts_signed_for(place, after, key)? {
        write_halts(place, after, known_halts, key, keys)?;
    }
    let is_same = |before: &RolloutState| {
        before.rollout.releases == after.rollout.releases && before.rollout.halt_key == after.rollout.halt_key
    };
    if !before.is_some_and(is_same) {
        sign_rollout(place, after, key, keys)?;
    }
    Ok(())
}

/// Signs the roll-out anew if it is not signed with this very key, which takes the place of another one.
///
/// # Errors
/// As [`replace`].
pub fn renew(place: &dyn ChannelPlace, state: &mut RolloutState, key: &SecretKey, keys: &TrustedKeys) -> Result<()> {
    let pair = Pair::read(place, &rollout_path(&state.rollout.channel))?;
    if pair.is_signed(&only(key)?) { Ok(()) } else { sign_rollout(place, state, key, keys) }
}

/// Takes every robot out of the halted releases that the new roll-out does not have. Without their halts they would be
/// offered again, and halts without them robots take for those of another roll-out.
fn retire(
    place: &dyn ChannelPlace,
    before: &RolloutState,
    after: &mut RolloutState,
    key: &SecretKey,
    keys: &TrustedKeys,
) -> Result<()> {
    let mut between = before.clone();
    let mut is_needed = false;
    for release in &mut between.rollout.releases {
        let is_left_out = after.rollout.release(release.serial).is_none() && before.halts.of(release).is_some();
        if is_left_out && !(release.paused && release.who.is_empty()) {
            (release.paused, is_needed) = (true, true);
            release.who.clear();
        }
    }
    if is_needed {
        sign_rollout(place, &mut between, key, keys)?;
        after.rollout.counter = between.rollout.counter;
    }
    Ok(())
}

/// Begins the numbers of the halts anew where another halt key is named and the one before has used them up, as
/// somebody who stole it would. What is lifted ahead of all numbers is lifted no more: it says nothing.
fn renumber(before: Option<&RolloutState>, after: &mut RolloutState) {
    let RolloutState { rollout, halts } = after;
    let is_other_key = before.is_some_and(|before| before.rollout.halt_key != rollout.halt_key);
    let is_used_up = is_other_key && halts.counter > MAX_COUNTER / 2;
    if is_used_up {
        let lifted = |serial| rollout.release(serial).map_or(0, |release| release.halts_lifted_through);
        halts.halted.retain(|halt| halt.counter > lifted(halt.serial));
        halts.halted.iter_mut().for_each(|halt| halt.counter = 1);
        halts.counter = 0;
    }
    if is_used_up || rollout.releases.iter().any(|release| release.halts_lifted_through > halts.counter) {
        rollout.releases.iter_mut().for_each(|release| release.halts_lifted_through = 0);
    }
}

/// Whether the halts of a place are signed with this key, or the halt key that the new roll-out names: any other key
/// may be one that is retired.
fn are_halts_signed_for(place: &dyn ChannelPlace, state: &RolloutState, key: &SecretKey) -> Result<bool> {
    let pair = Pair::read(place, &halts_path(&state.rollout.channel))?;
    Ok(pair.is_signed(&halt_keys(&only(key)?, &state.rollout)?))
}

/// The public key of a secret one, as the only one that is trusted.
fn only(key: &SecretKey) -> Result<TrustedKeys> {
    let mut keys = TrustedKeys::default();
    keys.add("the key to sign with", &PublicKey::from_secret_key(key)?.to_base64())?;
    Ok(keys)
}

/// Signs the roll-out with the next number and writes it: signature first, and read back.
///
/// # Errors
/// When it contradicts itself, the key is none that robots trust, or the place has changed meanwhile ([`Changed`]).
pub fn sign_rollout(
    place: &dyn ChannelPlace,
    state: &mut RolloutState,
    key: &SecretKey,
    keys: &TrustedKeys,
) -> Result<()> {
    let rollout = &mut state.rollout;
    let path = rollout_path(&rollout.channel);
    let before = rollout.counter;
    (rollout.counter, rollout.created_unix_s) = (before + 1, now()?);
    if let Err(what) = rollout.check() {
        bail!("the roll-out would contradict itself: {what}");
    }
    let new = NewFile { path: &path, json: serde_json::to_vec_pretty(rollout)?, number: rollout.counter };
    new.write(place, before, key, keys)
}

/// Signs the halts with the next number and writes them, with a release key or the halt key.
///
/// # Errors
/// As [`sign_rollout`].
pub fn sign_halts(
    place: &dyn ChannelPlace,
    state: &mut RolloutState,
    key: &SecretKey,
    keys: &TrustedKeys,
) -> Result<()> {
    let known = state.halts.counter;
    write_halts(place, state, known, key, keys)
}

fn write_halts(
    place: &dyn ChannelPlace,
    state: &mut RolloutState,
    known: u64,
    key: &SecretKey,
    keys: &TrustedKeys,
) -> Result<()> {
    let path = halts_path(&state.rollout.channel);
    let accepted = halt_keys(keys, &state.rollout)?;
    let halts = &mut state.halts;
    ensure!(
        halts.counter < MAX_COUNTER,
        "the numbers of {path} are used up; another --halt-key, or --no-halt-key, begins them anew"
    );
    (halts.counter, halts.created_unix_s) = (halts.counter + 1, now()?);
    if let Err(what) = halts.check() {
        bail!("the halts would contradict themselves: {what}");
    }
    let new = NewFile { path: &path, json: serde_json::to_vec_pretty(halts)?, number: halts.counter };
    new.write(place, known, key, &accepted)
}

/// The next content of a file.
struct NewFile<'a> {
    path: &'a str,
    json: Vec<u8>,
    number: u64,
}

impl NewFile<'_> {
    /// Signs the content and puts it in the place of that with number `before`.
    fn write(mut self, place: &dyn ChannelPlace, before: u64, key: &SecretKey, keys: &TrustedKeys) -> Result<()> {
        let path = self.path;
        self.json.push(b'\n');
        let size = self.json.len() as u64;
        ensure!(size <= MAX_SIZE_BYTES, "{path} would have {size} bytes, and robots read at most {MAX_SIZE_BYTES}");
        let signature = signature(&self.json, key, &format!("reflash {path} number {}", self.number))?;
        keys.authenticate(self.json.clone(), &signature).with_context(|| {
            format!(
                "robots would not take {path}: the key is neither one that they trust nor the halt key of the roll-out"
            )
        })?;
        let there = Pair::read(place, path)?;
        let is_same = there.number().is_none_or(|number| number == before);
        let is_written = is_same && there.make_way(place, path, &signature, &self.json)?;
        let read_back = Pair::read(place, path)?;
        let is_there = read_back.content.as_ref() == Some(&self.json) && read_back.is_signed(keys);
        if is_written && is_there { Ok(()) } else { Err(Changed::of(place).into()) }
    }
}
