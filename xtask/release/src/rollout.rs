//! Roll-outs of a channel: how they are begun, widened, stopped, signed and written.
//!
//! [`RolloutState`] is what a place has, checked as robots would. Each change is a pure edit of it; [`sign_rollout`]
//! and [`sign_halts`] then write one file with the next number. `docs/rollouts.md` has the format and the rules.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use minisign::SecretKey;
use reflash::release::digest::Digest;
use reflash::release::manifest::{Manifest, Object, TrustedKeys, manifest_path};
use reflash::release::rollout::{
    ALL_PPM, FORMAT, FactCondition, Halt, Halts, RobotGroup, Rollout, StagedRelease, halt_keys, halts_path,
    release_path, rollout_path,
};

use crate::channel::{now, signature};
use crate::objects::write_whole;

/// A place that has the small files of a channel: a tree, or a store.
pub trait ChannelPlace {
    /// Name of the place for people.
    fn name(&self) -> String;
    /// Content of a small file; `None` where it is not there.
    ///
    /// # Errors
    /// When the place cannot be read.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>>;
    /// Replaces a small file that changes.
    ///
    /// # Errors
    /// When the place cannot be written.
    fn write(&self, path: &str, content: &[u8]) -> Result<()>;
}

/// A release tree in a directory of this host.
pub struct TreePlace(pub PathBuf);

impl ChannelPlace for TreePlace {
    fn name(&self) -> String {
        self.0.display().to_string()
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let path = self.0.join(path);
        match std::fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    fn write(&self, path: &str, content: &[u8]) -> Result<()> {
        let path = self.0.join(path);
        let directory = path.parent().context("a file lies in a directory")?;
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        write_whole(&path, content)
    }
}

/// The roll-out of a channel, as robots would take it.
#[derive(Debug, Clone)]
pub struct RolloutState {
    /// The roll-out itself.
    pub rollout: Rollout,
    /// The halts beside it.
    pub halts: Halts,
}

/// Robots that `start` and `widen` name.
#[derive(Debug, Clone, Default)]
pub struct RolloutTerms {
    /// Groups of robots.
    pub groups: Vec<RobotGroup>,
    /// Time before which no robot begins.
    pub not_before_unix_s: Option<u64>,
    /// Time after which no robot begins.
    pub not_after_unix_s: Option<u64>,
    /// Conditions on facts.
    pub facts: Vec<FactCondition>,
}

/// Reads the roll-out that a place has, if there is one.
///
/// # Errors
/// When a file is missing, contradicts itself, or is not signed with a key that robots would take it from.
pub fn load(place: &dyn ChannelPlace, channel: &str, keys: &TrustedKeys) -> Result<Option<RolloutState>> {
    let signed = |path: &str, keys: &TrustedKeys| -> Result<_> {
        let Some(content) = place.read(path)? else { return Ok(None) };
        let signature = place.read(&format!("{path}.minisig"))?;
        let signature = signature.with_context(|| format!("{path}.minisig is missing in {}", place.name()))?;
        let signature = String::from_utf8_lossy(&signature);
        keys.authenticate(content, &signature).map(Some).with_context(|| format!("check {path} in {}", place.name()))
    };
    let Some(content) = signed(&rollout_path(channel), keys)? else { return Ok(None) };
    let rollout = Rollout::parse(&content).with_context(|| format!("read the roll-out in {}", place.name()))?;
    let halts = signed(&halts_path(channel), &halt_keys(keys, &rollout)?)?;
    let halts = halts.with_context(|| {
        format!("{} is missing in {}; robots take no roll-out without it", halts_path(channel), place.name())
    })?;
    let halts = Halts::parse(&halts).with_context(|| format!("read the halts in {}", place.name()))?;
    Ok(Some(RolloutState { rollout, halts }))
}

impl RolloutState {
    /// The first roll-out of a channel: its releases so far are for every robot.
    #[must_use]
    pub fn first(manifest: &Manifest, signed_manifest: &[u8]) -> Self {
        let base = staged(manifest, signed_manifest, vec![RobotGroup { share_ppm: ALL_PPM, ..RobotGroup::default() }]);
        let (product, channel) = (manifest.product.clone(), manifest.channel.clone());
        let halts = Halts {
            format: FORMAT,
            product: product.clone(),
            channel: channel.clone(),
            counter: 0,
            created_unix_s: 0,
            halted: Vec::new(),
        };
        let rollout = Rollout {
            format: FORMAT,
            product,
            channel,
            counter: 0,
            created_unix_s: 0,
            halt_key: None,
            releases: vec![base],
        };
        Self { rollout, halts }
    }

    /// The newest release that every robot may take at any time, and that is not halted: the one before all others.
    #[must_use]
    pub fn base(&self) -> Option<&StagedRelease> {
        let for_everybody = |it: &&StagedRelease| it.is_for_everybody() && self.halts.of(it).is_none();
        self.rollout.releases.iter().filter(for_everybody).max_by_key(|it| it.serial)
    }

    /// Adds a release, for the robots that `terms` name. Releases from before the one that every robot has are left
    /// out: no robot would take them any more.
    ///
    /// # Errors
    /// When it is not newer than all others, of another product or channel, or no release is for every robot.
    pub fn start(&mut self, manifest: &Manifest, signed_manifest: &[u8], terms: RolloutTerms) -> Result<()> {
        let Rollout { product, channel, releases, .. } = &self.rollout;
        ensure!(
            manifest.product == *product && manifest.channel == *channel,
            "the roll-out is of product {product:?} in channel {channel:?}, the release of {:?} in {:?}",
            manifest.product,
            manifest.channel
        );
        let newest = releases.iter().map(|release| release.serial).max().unwrap_or_default();
        ensure!(
            manifest.serial > newest,
            "serial {} is not above {newest}, which the roll-out has; widen that one, or make a new release",
            manifest.serial
        );
        let base = self.base().map(|base| base.serial);
        let base = base.context(
            "no release of the roll-out is for every robot, so that a robot outside of the new one \
                                 would have none; widen one to --share 100 first",
        )?;
        self.rollout.releases.retain(|release| release.serial >= base);
        let mut release = staged(manifest, signed_manifest, Vec::new());
        widen(&mut release, terms)?;
        self.rollout.releases.push(release);
        Ok(())
    }

    /// Adds robots to a release.
    ///
    /// # Errors
    /// When the roll-out has no such release, or a share would become smaller.
    pub fn widen(&mut self, serial: u64, terms: RolloutTerms) -> Result<()> {
        widen(self.release(serial)?, terms)
    }

    /// Pauses a release: no further robot begins.
    ///
    /// # Errors
    /// When the roll-out has no such release.
    pub fn pause(&mut self, serial: u64) -> Result<()> {
        self.release(serial)?.paused = true;
        Ok(())
    }

    /// Lets a release go on that was paused or halted. A later halt counts again.
    ///
    /// # Errors
    /// When the roll-out has no such release.
    pub fn resume(&mut self, serial: u64) -> Result<()> {
        let through = self.halts.counter;
        let release = self.release(serial)?;
        (release.paused, release.halts_lifted_through) = (false, through);
        Ok(())
    }

    /// Halts a release.
    ///
    /// # Errors
    /// When the roll-out has no such release.
    pub fn halt(&mut self, serial: u64, why: &str) -> Result<()> {
        let counter = self.halts.counter + 1;
        let manifest = self.release(serial)?.manifest.blake3;
        self.halts.halted.retain(|halt| halt.manifest != manifest);
        self.halts.halted.push(Halt { serial, manifest, counter, why: why.to_owned() });
        Ok(())
    }

    /// Leaves out halts of releases that the roll-out does not have any more. Returns whether there were any.
    pub fn forget_old_halts(&mut self) -> bool {
        let before = self.halts.halted.len();
        let rollout = &self.rollout;
        self.halts
            .halted
            .retain(|halt| rollout.release(halt.serial).is_some_and(|it| it.manifest.blake3 == halt.manifest));
        before != self.halts.halted.len()
    }

    /// The release with this serial.
    ///
    /// # Errors
    /// When there is none.
    pub fn release(&mut self, serial: u64) -> Result<&mut StagedRelease> {
        let known: Vec<String> = self.rollout.releases.iter().map(|release| release.serial.to_string()).collect();
        let found = self.rollout.releases.iter_mut().find(|release| release.serial == serial);
        found.with_context(|| format!("the roll-out has no release {serial}; it has {}", known.join(", ")))
    }
}

fn staged(manifest: &Manifest, signed: &[u8], who: Vec<RobotGroup>) -> StagedRelease {
    let object = Object { blake3: Digest::of(signed), size_bytes: signed.len() as u64 };
    StagedRelease::new(manifest.serial, manifest.version.clone(), object, who)
}

/// Adds what is named to a release. A share only grows, so that no robot that began is outside again.
fn widen(release: &mut StagedRelease, terms: RolloutTerms) -> Result<()> {
    let RolloutTerms { groups, not_before_unix_s, not_after_unix_s, facts } = terms;
    for new in groups {
        // Named robots are one group, each ring and the rest of the fleet have their own.
        let is_same =
            |old: &&mut RobotGroup| old.rings == new.rings && old.serials.is_empty() == new.serials.is_empty();
        let Some(old) = release.who.iter_mut().find(is_same) else {
            release.who.push(new);
            continue;
        };
        ensure!(
            new.share_ppm >= old.share_ppm,
            "the share was {} % and would become {} %: robots that began would be outside again; halt the release \
             instead",
            f64::from(old.share_ppm) / 10_000.0,
            f64::from(new.share_ppm) / 10_000.0
        );
        old.share_ppm = new.share_ppm;
        let added = new.serials.into_iter().filter(|serial| !old.serials.contains(serial)).collect::<Vec<_>>();
        old.serials.extend(added);
    }
    release.not_before_unix_s = not_before_unix_s.or(release.not_before_unix_s);
    release.not_after_unix_s = not_after_unix_s.or(release.not_after_unix_s);
    for fact in facts {
        release.facts.retain(|known| known.name != fact.name);
        release.facts.push(fact);
    }
    Ok(())
}

/// Signs the roll-out with the next number and writes it: signature first, and read back.
///
/// # Errors
/// When it contradicts itself, the key is none that robots trust, or the place has changed meanwhile.
pub fn sign_rollout(
    place: &dyn ChannelPlace,
    state: &mut RolloutState,
    key: &SecretKey,
    keys: &TrustedKeys,
) -> Result<()> {
    let rollout = &mut state.rollout;
    let path = rollout_path(&rollout.channel);
    let there = load(place, &rollout.channel, keys)?.map_or(0, |there| there.rollout.counter);
    ensure!(there == rollout.counter, "the roll-out in {} was changed meanwhile; look at it again", place.name());
    (rollout.counter, rollout.created_unix_s) = (rollout.counter + 1, now()?);
    if let Err(what) = rollout.check() {
        bail!("the roll-out would contradict itself: {what}");
    }
    write_signed(place, &path, &serde_json::to_vec_pretty(rollout)?, rollout.counter, key, keys)
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
    let path = halts_path(&state.rollout.channel);
    let accepted = halt_keys(keys, &state.rollout)?;
    let halts = &mut state.halts;
    (halts.counter, halts.created_unix_s) = (halts.counter + 1, now()?);
    if let Err(what) = halts.check() {
        bail!("the halts would contradict themselves: {what}");
    }
    write_signed(place, &path, &serde_json::to_vec_pretty(halts)?, halts.counter, key, &accepted)
}

fn write_signed(
    place: &dyn ChannelPlace,
    path: &str,
    json: &[u8],
    counter: u64,
    key: &SecretKey,
    keys: &TrustedKeys,
) -> Result<()> {
    let mut json = json.to_vec();
    json.push(b'\n');
    let limit = reflash::release::rollout::MAX_SIZE_BYTES;
    ensure!(json.len() as u64 <= limit, "{path} would have {} bytes, and robots read at most {limit}", json.len());
    let signature = signature(&json, key, &format!("reflash {path} number {counter}"))?;
    keys.authenticate(json.clone(), &signature).with_context(|| {
        format!("robots would not take {path}: the key is neither one that they trust nor the halt key of the roll-out")
    })?;
    // A robot that asks between the two sees a signature that does not fit, and asks again.
    place.write(&format!("{path}.minisig"), signature.as_bytes())?;
    place.write(path, &json)?;
    let same = place.read(path)?.as_deref() == Some(&json[..]);
    ensure!(same, "{path} reads back differently from {}: is somebody else writing there?", place.name());
    Ok(())
}

/// Reads the manifest of a release of the channel, whose signature is checked, with its signed bytes.
///
/// # Errors
/// When there is none, or it is not signed with one of the keys.
pub fn manifest_of(
    place: &dyn ChannelPlace,
    channel: &str,
    serial: Option<u64>,
    keys: &TrustedKeys,
) -> Result<(Manifest, Vec<u8>)> {
    let path = serial.map_or_else(|| manifest_path(channel), |serial| release_path(channel, serial));
    let read = |path: &str| place.read(path)?.with_context(|| format!("{path} is not in {}", place.name()));
    let signature = read(&format!("{path}.minisig"))?;
    let signed = keys.authenticate(read(&path)?, &String::from_utf8_lossy(&signature));
    let signed = signed.with_context(|| format!("check {path} in {}", place.name()))?;
    let manifest = Manifest::parse(&signed)?;
    ensure!(
        serial.is_none_or(|serial| serial == manifest.serial),
        "{path} in {} is of serial {}",
        place.name(),
        manifest.serial
    );
    Ok((manifest, signed.bytes().to_vec()))
}

/// Serials that the roll-out of a channel names, without a look at signatures: what has to stay.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn named_serials(json: &[u8]) -> Result<Vec<u64>> {
    let rollout: Rollout = serde_json::from_slice(json)?;
    Ok(rollout.releases.iter().map(|release| release.serial).collect())
}

#[cfg(test)]
mod tests {
    use super::{RolloutState, RolloutTerms, TreePlace, load, sign_halts, sign_rollout};
    use crate::keygen;
    use reflash::release::manifest::{FORMAT, Manifest, TrustedKeys};
    use reflash::release::rollout::{FactCondition, RobotGroup};

    fn manifest(serial: u64) -> Manifest {
        Manifest {
            format: FORMAT,
            product: "demo".into(),
            hardware: vec!["*".into()],
            channel: "stable".into(),
            version: format!("1.{serial}"),
            serial,
            created_unix_s: 1,
            minimum_agent: "0.1.0".into(),
            images: Vec::new(),
            layout: None,
            files: Vec::new(),
        }
    }

    fn share(percent: u32) -> RolloutTerms {
        RolloutTerms {
            groups: vec![RobotGroup { share_ppm: percent * 10_000, ..RobotGroup::default() }],
            ..RolloutTerms::default()
        }
    }

    fn serials(state: &RolloutState) -> Vec<u64> {
        state.rollout.releases.iter().map(|release| release.serial).collect()
    }

    #[test]
    fn a_roll_out_only_grows_and_the_release_before_stays() {
        let mut state = RolloutState::first(&manifest(7), b"seven");
        state.start(&manifest(8), b"eight", share(5)).unwrap();
        let wrong = |result: anyhow::Result<()>| format!("{:#}", result.unwrap_err());
        assert!(wrong(state.start(&manifest(8), b"eight", share(5))).contains("not above 8"));
        assert!(wrong(state.widen(8, share(4))).contains("would become 4 %"));
        assert!(wrong(state.widen(9, share(50))).contains("it has 7, 8"));
        let other = Manifest { product: "other".into(), ..manifest(9) };
        assert!(wrong(state.start(&other, b"", share(5))).contains("\"other\""));
        let named = |serials: &[&str]| RobotGroup {
            serials: serials.iter().map(|it| (*it).to_owned()).collect(),
            share_ppm: 1_000_000,
            ..RobotGroup::default()
        };
        let lab = RobotGroup { rings: vec!["lab".into()], share_ppm: 500_000, ..RobotGroup::default() };
        let fact = |least| FactCondition { name: "battery".into(), at_least: Some(least), is: None };
        state
            .widen(
                8,
                RolloutTerms {
                    groups: vec![named(&["A1"]), lab.clone()],
                    facts: vec![fact(50)],
                    ..RolloutTerms::default()
                },
            )
            .unwrap();
        state
            .widen(8, RolloutTerms { groups: vec![named(&["A1", "B*"])], facts: vec![fact(60)], ..share(25) })
            .unwrap();
        let release = state.release(8).unwrap();
        assert_eq!(release.who, [RobotGroup { share_ppm: 50_000, ..RobotGroup::default() }, named(&["A1", "B*"]), lab]);
        assert_eq!(release.facts, [fact(60)]);
        assert_eq!(state.base().unwrap().serial, 7);
        // For every robot, but under a condition: the one before is still what a robot outside has.
        state.widen(8, share(100)).unwrap();
        assert_eq!(state.base().unwrap().serial, 7);
        state.release(8).unwrap().facts.clear();
        assert_eq!(state.base().unwrap().serial, 8);
        // What is halted is nothing to fall back to.
        state.halt(8, "wheels").unwrap();
        assert_eq!(state.base().unwrap().serial, 7);
        state.halts.counter += 1;
        state.start(&manifest(9), b"nine", share(5)).unwrap();
        assert_eq!(serials(&state), [7, 8, 9]);
        state.resume(8).unwrap();
        assert_eq!((state.base().unwrap().serial, state.release(8).unwrap().halts_lifted_through), (8, 1));
        state.start(&manifest(10), b"ten", share(5)).unwrap();
        assert_eq!(serials(&state), [8, 9, 10]);
        assert!(!state.forget_old_halts());
        state.widen(9, share(100)).unwrap();
        state.start(&manifest(11), b"eleven", share(5)).unwrap();
        assert!(state.forget_old_halts() && state.halts.halted.is_empty());
        state.pause(11).unwrap();
        assert!(state.release(11).unwrap().paused);
        state.resume(11).unwrap();
        assert!(!state.release(11).unwrap().paused);
    }

    #[test]
    fn only_the_right_keys_sign_and_two_people_do_not_overwrite_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let pair = |name: &str| keygen::generate(&dir.path().join(name), None).unwrap();
        let (release, halt, stranger) = (pair("release"), pair("halt"), pair("stranger"));
        let secret = |files: &keygen::KeyFiles| keygen::load_secret(&files.secret).unwrap();
        let mut keys = TrustedKeys::default();
        keys.add("k", &keygen::load_public(&release.public).unwrap()).unwrap();
        let place = TreePlace(dir.path().join("tree"));
        let mut state = RolloutState::first(&manifest(7), b"seven");
        state.rollout.halt_key = Some(keygen::load_public(&halt.public).unwrap().lines().nth(1).unwrap().to_owned());
        state.start(&manifest(8), b"eight", share(5)).unwrap();
        assert!(load(&place, "stable", &keys).unwrap().is_none());
        // Robots take no roll-out without halts, so those come first.
        sign_halts(&place, &mut state, &secret(&release), &keys).unwrap();
        for wrong in [&halt, &stranger] {
            let error = sign_rollout(&place, &mut state.clone(), &secret(wrong), &keys).unwrap_err();
            assert!(format!("{error:#}").contains("robots would not take stable/rollout.json"), "{error:#}");
        }
        sign_rollout(&place, &mut state, &secret(&release), &keys).unwrap();
        let mut stale = state.clone();
        sign_rollout(&place, &mut state, &secret(&release), &keys).unwrap();
        let error = sign_rollout(&place, &mut stale, &secret(&release), &keys).unwrap_err();
        assert!(error.to_string().contains("changed meanwhile"), "{error:#}");
        let mut read = load(&place, "stable", &keys).unwrap().unwrap();
        assert_eq!((read.rollout.counter, read.halts.counter), (2, 1));
        read.halt(8, "wheels").unwrap();
        assert!(sign_halts(&place, &mut read.clone(), &secret(&stranger), &keys).is_err());
        sign_halts(&place, &mut read, &secret(&halt), &keys).unwrap();
        let read = load(&place, "stable", &keys).unwrap().unwrap();
        assert_eq!((read.halts.counter, read.halts.halted[0].serial), (2, 8));
        // What nobody signed is not gone on from.
        std::fs::write(dir.path().join("tree/stable/halt.json"), "{}").unwrap();
        assert!(load(&place, "stable", &keys).is_err());
    }
}
