//! Roll-outs of a channel: how they are begun, widened, stopped, signed and written.
//!
//! [`RolloutState`] is what a place has, checked as robots would. Each change is an edit of it in memory; [`replace`]
//! then writes what it changed. `docs/rollouts.md` has the format and the rules.

mod copy;
mod files;
mod terms;

use anyhow::{Context, Result, bail, ensure};
use reflash::release::digest::Digest;
use reflash::release::manifest::{Manifest, Object, TrustedKeys, manifest_path};
use reflash::release::rollout::{
    ALL_PPM, FORMAT, Halt, Halts, MAX_RELEASES, MAX_WHY_CHARS, RobotGroup, Rollout, StagedRelease, release_path,
};

use crate::channel::now;
pub use crate::place::{ChannelPlace, TreePlace};
pub use copy::{copy, offer};
pub use files::{Changed, Unsigned, load, load_to_change, renew, replace, sign_halts, sign_rollout};
pub use terms::RolloutTerms;

/// The roll-out of a channel, as robots would take it.
#[derive(Debug, Clone)]
pub struct RolloutState {
    /// The roll-out itself.
    pub rollout: Rollout,
    /// The halts beside it.
    pub halts: Halts,
}

impl RolloutState {
    /// The first roll-out of a channel: its releases so far are for every robot. The numbers of both files begin above
    /// `above`.
    #[must_use]
    pub fn first(manifest: &Manifest, signed_manifest: &[u8], above: u64) -> Self {
        let base = staged(manifest, signed_manifest, vec![RobotGroup { share_ppm: ALL_PPM, ..RobotGroup::default() }]);
        let (product, channel) = (manifest.product.clone(), manifest.channel.clone());
        let halts = Halts { counter: above, ..Self::no_halts(&product, &channel) };
        let rollout = Rollout {
            format: FORMAT,
            product,
            channel,
            counter: above,
            created_unix_s: 0,
            halt_key: None,
            releases: vec![base],
        };
        Self { rollout, halts }
    }

    fn no_halts(product: &str, channel: &str) -> Halts {
        let (product, channel) = (product.to_owned(), channel.to_owned());
        Halts { format: FORMAT, product, channel, counter: 0, created_unix_s: 0, halted: Vec::new() }
    }

    /// The newest release that every robot may take from now on, and that is not halted: the one before all others.
    #[must_use]
    pub fn base(&self) -> Option<&StagedRelease> {
        let signed = self.rollout.created_unix_s;
        let for_everybody = |it: &&StagedRelease| it.is_for_everybody(signed) && self.halts.of(it).is_none();
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
        // The file will be signed after these times, so that they bind no robot any more.
        let now = now()?;
        for release in &mut self.rollout.releases {
            release.not_before_unix_s = release.not_before_unix_s.filter(|from| *from > now);
        }
        if let Some(to) = terms.not_after_unix_s.filter(|to| *to <= now) {
            bail!("no robot may begin after {to} s (--not-after), which has passed: it is {now} s now");
        }
        let base = self.base().map(|base| base.serial);
        let base = base.context(
            "no release of the roll-out is for every robot, so that a robot outside of the new one would have none; \
             widen one to --share 100 first, without conditions",
        )?;
        self.rollout.releases.retain(|release| release.serial >= base);
        if self.rollout.releases.len() >= MAX_RELEASES {
            let has_robots = |release: &StagedRelease| release.who.iter().any(|group| group.share_ppm > 0);
            self.rollout.releases.retain(has_robots);
        }
        ensure!(
            self.rollout.releases.len() < MAX_RELEASES,
            "the roll-out has {MAX_RELEASES} releases, the most there may be, since {base} is the newest that every \
             robot may take; `rollout widen SERIAL --share 100`, with --no-not-before, --no-not-after and --no-fact \
             where it has such conditions, makes it a newer one, and what is older is left out then"
        );
        let mut release = staged(manifest, signed_manifest, Vec::new());
        terms::begin(&mut release, terms)?;
        self.rollout.releases.push(release);
        Ok(())
    }

    /// Adds robots to a release.
    ///
    /// # Errors
    /// When the roll-out has no such release, or robots that are in would be outside again.
    pub fn widen(&mut self, serial: u64, terms: RolloutTerms) -> Result<()> {
        terms::widen(self.release(serial)?, terms)
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
        let (through, now) = (self.halts.counter, now()?);
        let release = self.release(serial)?;
        (release.paused, release.halts_lifted_through, release.resumed_unix_s) = (false, through, Some(now));
        Ok(())
    }

    /// Halts a release.
    ///
    /// # Errors
    /// When the roll-out has no such release, or the reason cannot be shown on a console.
    pub fn halt(&mut self, serial: u64, why: &str) -> Result<()> {
        ensure!(!why.contains(char::is_control), "the reason {why:?} has line feeds or other control characters");
        let length = why.chars().count();
        ensure!(length <= MAX_WHY_CHARS, "the reason has {length} characters, and robots take {MAX_WHY_CHARS}");
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
    if place.read(&path)?.is_none() {
        let place = place.name();
        match serial {
            Some(serial) => bail!(
                "channel {channel} in {place} has no release {serial}: `release --list` names those of the tree, and \
                 `release` makes one"
            ),
            None => bail!("channel {channel} in {place} offers no release yet"),
        }
    }
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
mod cuts;

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
        let mut state = RolloutState::first(&manifest(7), b"seven", 0);
        let fact = |least| FactCondition { name: "battery".into(), at_least: Some(least), is: None };
        state.start(&manifest(8), b"eight", RolloutTerms { facts: vec![fact(60)], ..share(5) }).unwrap();
        let wrong = |result: anyhow::Result<()>| format!("{:#}", result.unwrap_err());
        assert!(wrong(state.start(&manifest(8), b"eight", share(5))).contains("not above 8"));
        assert!(wrong(state.widen(8, share(4))).contains("would become 4 %"));
        assert!(wrong(state.widen(9, share(50))).contains("it has 7, 8"));
        let over = RolloutTerms { not_after_unix_s: Some(1_600_000_000), ..share(5) };
        assert!(wrong(state.start(&manifest(9), b"nine", over)).contains("has passed"));
        let other = Manifest { product: "other".into(), ..manifest(9) };
        assert!(wrong(state.start(&other, b"", share(5))).contains("\"other\""));
        let named = |serials: &[&str]| RobotGroup {
            serials: serials.iter().map(|it| (*it).to_owned()).collect(),
            share_ppm: 1_000_000,
            ..RobotGroup::default()
        };
        let lab = RobotGroup { rings: vec!["lab".into()], share_ppm: 500_000, ..RobotGroup::default() };
        let wider = RolloutTerms { groups: vec![named(&["A1"]), lab.clone()], ..RolloutTerms::default() };
        state.widen(8, wider).unwrap();
        let wider = RolloutTerms { groups: vec![named(&["A1", "B*"])], facts: vec![fact(50)], ..share(25) };
        state.widen(8, wider).unwrap();
        let release = state.release(8).unwrap();
        assert_eq!(release.who, [RobotGroup { share_ppm: 50_000, ..RobotGroup::default() }, named(&["A1", "B*"]), lab]);
        assert_eq!(release.facts, [fact(50)]);
        assert_eq!(state.base().unwrap().serial, 7);
        // For every robot, but under a condition: the one before is still what a robot outside has.
        state.widen(8, share(100)).unwrap();
        assert_eq!(state.base().unwrap().serial, 7);
        state.widen(8, RolloutTerms { no_facts: vec!["battery".into()], ..RolloutTerms::default() }).unwrap();
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
        let mut state = RolloutState::first(&manifest(7), b"seven", 0);
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
