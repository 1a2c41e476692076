//! The roll-out of the channel: its files, fetched and checked, and the release that is this robot's by them.

use super::error::RecoveryError;
use super::job::RecoveryJob;
use super::left_out::{LeftOut, id_of};
use super::release::{
    SURVEY_PATIENCE, authenticated, check_fit, check_order, end_trial, fetch_checked, manifest_paths, report_found,
    suitable, wanted as wanted_manifest,
};
use crate::chain::chain;
use crate::fetch::{FetchErrorKind, Refusal, SourceAnswer, Surveyed};
use crate::jobs::floor::{Floor, ReleaseId, SeenRollout};
use crate::jobs::state::{InstalledRecord, Release};
use crate::release::digest::Digest;
use crate::release::manifest::{self, Authentic, MAX_SIGNATURE_BYTES, Manifest, ManifestError, TrustedKeys};
use crate::release::rollout::{
    self, Halts, OwnRelease, Rollout, RolloutChoice, RolloutError, StagedRelease, choose, halt_keys, halts_path,
    release_path, rollout_path,
};

/// The two files of a channel's roll-out, authentic and for this machine.
pub(super) struct RolloutFiles {
    rollout: Rollout,
    halts: Halts,
}

impl RolloutFiles {
    /// Takes what another source has newer. Halts go with the halt key, which counts for itself.
    fn take_newer(&mut self, other: Self) {
        let same_key = self.rollout.halt_key == other.rollout.halt_key;
        if other.rollout.counter > self.rollout.counter {
            self.rollout = other.rollout;
            if !same_key {
                self.halts = other.halts;
                return;
            }
        }
        if same_key && other.halts.counter > self.halts.counter {
            self.halts = other.halts;
        }
    }
}

/// What a search for the roll-out of the channel found.
enum Sought {
    /// The newest roll-out that any source has.
    Found(Box<RolloutFiles>),
    /// A source that a person chose, as by plugging it in, and that has none.
    ChosenHasNone,
    /// No roll-out, in a channel that never had one.
    Nothing,
}

/// Fetches the roll-out of the channel, if it has one: the newest that any source has. What a person chose comes first,
/// as it always did: a release there that suits this machine is returned instead.
///
/// # Errors
/// [`RecoveryError::Fetch`], or [`RecoveryError::Rollout`]: the robot stays with what it has.
pub(super) fn fetch(job: &RecoveryJob<'_>, record: Option<&InstalledRecord>) -> Result<OfferedBy, RecoveryError> {
    let sought = match seek(job, true)? {
        Sought::ChosenHasNone => match chosen(job, record) {
            Some(release) => return Ok(OfferedBy::Chosen(Box::new(release))),
            None => seek(job, false)?,
        },
        sought => sought,
    };
    Ok(match sought {
        Sought::Found(files) => OfferedBy::ByRollout(files),
        Sought::ChosenHasNone | Sought::Nothing => OfferedBy::ByManifest,
    })
}

/// How the release of this robot is found.
pub(super) enum OfferedBy {
    /// By the roll-out of the channel.
    ByRollout(Box<RolloutFiles>),
    /// By what a person chose.
    Chosen(Box<Release>),
    /// By the one manifest of the channel.
    ByManifest,
}

fn seek(job: &RecoveryJob<'_>, chosen_counts: bool) -> Result<Sought, RecoveryError> {
    let source = job.resources.source;
    let paths = paths(&job.identity.channel);
    let wanted = wanted(&paths);
    let seen = seen(job).of_channel(&job.identity.channel);
    let (mut sought, mut refusal) = (Sought::Nothing, None);
    let manifest_paths = manifest_paths(job);
    let [witness, _] = wanted_manifest(&manifest_paths);
    let fetched = source.get_if_there(&wanted, witness, &mut |found| {
        let content = match found {
            // A server may answer with whatever it likes for what is not there. A robot that never saw a roll-out loses
            // nothing by that.
            SourceAnswer::Files { content, .. } if seen == 0 && !are_signed(content) => None,
            SourceAnswer::Files { content, .. } => Some(content),
            SourceAnswer::Nothing { is_chosen: true, .. } if chosen_counts => {
                sought = Sought::ChosenHasNone;
                return Ok(());
            }
            SourceAnswer::Nothing { is_chosen: true, .. } => {
                return Err(Refusal::Unsuitable("it has no roll-out".to_owned()));
            }
            // It may have one: a server in trouble, or the login page of a network.
            SourceAnswer::Nothing { error, .. } if seen > 0 && error.is_retryable() => {
                return Err(Refusal::Wrong(chain(error)));
            }
            SourceAnswer::Nothing { .. } => None,
        };
        match content {
            Some(content) => {
                let files = read(job, content).map_err(|why| refuse(why, &mut refusal))?;
                sought = Sought::Found(Box::new(files));
                Ok(())
            }
            None if seen == 0 => Ok(()),
            None => Err(refuse(RolloutError::Gone { seen }.into(), &mut refusal)),
        }
    });
    if let Err(source) = fetched {
        return match (refusal, source.kind()) {
            (Some(refusal), FetchErrorKind::Unsuitable) => Err(refusal),
            // There is no other source than those that a person chose.
            (None, FetchErrorKind::Unsuitable) => Ok(Sought::Nothing),
            _ => Err(RecoveryError::Fetch { what: "roll-out", source }),
        };
    }
    let Sought::Found(files) = &mut sought else { return Ok(sought) };
    for Surveyed { source: name, result } in source.survey_others(&wanted, SURVEY_PATIENCE) {
        match result.map_err(|error| chain(&error)).and_then(|found| read(job, &found).map_err(|why| chain(&why))) {
            Ok(other) => files.take_newer(other),
            Err(why) => job.journal.note(&format!("{name} has no newer roll-out: {why}")),
        }
    }
    (job.resources.learn_rollout)(SeenRollout::of(&files.rollout, &files.halts));
    files.halts.check_against(&files.rollout)?;
    Ok(sought)
}

/// The release in the first source, if a person chose that and the release suits this machine. An authentic one shows
/// that this recovery works, whether it suits or not: the other sources may be asked for hours.
fn chosen(job: &RecoveryJob<'_>, record: Option<&InstalledRecord>) -> Option<Release> {
    let paths = manifest_paths(job);
    let mut release = None;
    let wanted = wanted_manifest(&paths);
    let asked = job.resources.source.get_if_there(&wanted, wanted[0], &mut |found| {
        if let SourceAnswer::Files { content, is_chosen: true } = found {
            if authenticated(job, content).is_ok() {
                end_trial(job);
            }
            // Whoever chose it sees why it is not taken, whatever the other sources say.
            let refused = |why: &String| {
                let what = "the release of the USB drive, or of the directory that comes first, is not taken";
                job.journal.note(&format!("{what}: {why}"));
            };
            release = suitable(job, record, content).inspect_err(refused).ok();
        }
        Ok(())
    });
    release.filter(|_| asked.is_ok())
}

/// Returns the release that is this robot's by the roll-out.
///
/// # Errors
/// As [`fetch`], and those of the manifest.
pub(super) fn release(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    files: &RolloutFiles,
) -> Result<Release, RecoveryError> {
    let own = own(job, record);
    let choice = choice(job, files, &own);
    let mut refusal = None;
    for offer in &choice.offers {
        let staged = offer.release;
        match fetch_offer(job, record, staged) {
            Ok(release) => {
                (job.resources.learn_time)(release.manifest.created_unix_s);
                end_trial(job);
                if let Some(why) = choice.why_nothing_above(staged.serial) {
                    job.journal.note(&why);
                }
                report_found(job, &release);
                return Ok(release);
            }
            // One that no source has, or has as it is signed, must not hide the next one.
            Err(why)
                if why.is_of_one_object() || matches!(&why, RecoveryError::Manifest(_) | RecoveryError::Rollout(_)) =>
            {
                // What is wrong with the newest release says most.
                refusal.get_or_insert(why);
            }
            Err(why) => return Err(why),
        }
    }
    end_trial(job);
    let installed = own.iter().map(|own| own.serial).max().unwrap_or_default();
    let is_only_old = |refusal: &RecoveryError| {
        use ManifestError::{BelowFloor, NothingNew, Older};
        matches!(refusal, RecoveryError::Manifest(NothingNew { .. } | Older { .. } | BelowFloor { .. }))
    };
    let left_out = LeftOut::of(&choice, installed);
    let why = left_out.why.clone();
    (job.resources.learn_left_out)(left_out);
    match (refusal, why) {
        (Some(refusal), None) => Err(refusal),
        (Some(refusal), Some(why)) if !is_only_old(&refusal) => {
            job.journal.note(&why);
            Err(refusal)
        }
        (_, why) => {
            let why = why.unwrap_or_else(|| "the roll-out has no release for this robot".to_owned());
            Err(RolloutError::NothingForThisRobot(why).into())
        }
    }
}

/// Fetches one release of the roll-out, if this robot may have it.
fn fetch_offer(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    staged: &StagedRelease,
) -> Result<Release, RecoveryError> {
    check_order(job, record, id_of(staged), &staged.version)?;
    let release = fetch_manifest(job, staged)?;
    check_fit(job, &release.manifest)?;
    Ok(release)
}

/// Asks once more, just before the first write, whether a release is still this robot's. What it has already may be
/// repaired at any time, and a channel without a roll-out has nothing to ask for.
///
/// # Errors
/// The release was halted, paused or replaced meanwhile, or no source answers: nothing is to be begun.
pub fn check_still_offered(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    release: ReleaseId,
) -> Result<(), RecoveryError> {
    let own = own(job, record);
    if seen(job).of_channel(&job.identity.channel) == 0 || own.contains(&release.into()) {
        return Ok(());
    }
    let files = match fetch(job, record)? {
        OfferedBy::ByRollout(files) => files,
        OfferedBy::Chosen(chosen) if chosen.id() != release => {
            let version = chosen.manifest.version;
            let why = format!("nothing was written: a source with {version} was plugged in meanwhile");
            return Err(RolloutError::NothingForThisRobot(why).into());
        }
        OfferedBy::Chosen(_) | OfferedBy::ByManifest => return Ok(()),
    };
    let choice = choice(job, &files, &own);
    if choice.offers.iter().any(|offer| id_of(offer.release) == release) {
        return Ok(());
    }
    let why = choice.why_nothing_above(release.serial.saturating_sub(1));
    let why = why.unwrap_or_else(|| format!("serial {} is no release of the roll-out any more", release.serial));
    Err(RolloutError::NothingForThisRobot(format!("nothing was written: {why}")).into())
}

fn choice<'f>(job: &RecoveryJob<'_>, files: &'f RolloutFiles, own: &[OwnRelease]) -> RolloutChoice<'f> {
    choose(&files.rollout, Some(&files.halts), &(job.resources.robot)(), own, job.policy.begun)
}

/// Releases that the robot has, by their record, or had as good ones, by the floor.
fn own(job: &RecoveryJob<'_>, record: Option<&InstalledRecord>) -> Vec<OwnRelease> {
    let good = job.resources.floor.and_then(|floor| floor.record().good).map(|good| good.release);
    record.map(InstalledRecord::id).into_iter().chain(good).map(OwnRelease::from).collect()
}

fn seen(job: &RecoveryJob<'_>) -> SeenRollout {
    job.resources.floor.map(Floor::record).unwrap_or_default().seen
}

/// Notes why files that a source has are of no use, for the error at the end, and refuses them.
fn refuse(why: RecoveryError, last: &mut Option<RecoveryError>) -> Refusal {
    let text = chain(&why);
    match why {
        RecoveryError::Rollout(_) => {
            *last = Some(why);
            Refusal::Unsuitable(text)
        }
        _ => Refusal::Wrong(text),
    }
}

/// Reads the files that one source has.
fn read(job: &RecoveryJob<'_>, files: &[Vec<u8>]) -> Result<RolloutFiles, RecoveryError> {
    let [rollout, rollout_signature, halts, halts_signature] = files else { return Err(ManifestError::NoKeys.into()) };
    let keys = job.resources.keys;
    let rollout = Rollout::parse(&signed(keys, rollout, rollout_signature)?)?;
    check_for_this(job, "roll-out", &rollout.product, &rollout.channel)?;
    let halts = Halts::parse(&signed(&halt_keys(keys, &rollout)?, halts, halts_signature)?)?;
    check_for_this(job, "halt", &halts.product, &halts.channel)?;
    let (seen_rollout, seen_halts) = seen(job).about(&SeenRollout::of(&rollout, &halts));
    for (file, found, seen) in [("roll-out", rollout.counter, seen_rollout), ("halt", halts.counter, seen_halts)] {
        if found < seen {
            return Err(RolloutError::Older { file, found, seen }.into());
        }
    }
    Ok(RolloutFiles { rollout, halts })
}

fn signed(keys: &TrustedKeys, content: &[u8], signature: &[u8]) -> Result<Authentic, ManifestError> {
    keys.authenticate(content.to_vec(), &String::from_utf8_lossy(signature))
}

/// Whether the second of each two files may be a signature at all.
fn are_signed(files: &[Vec<u8>]) -> bool {
    files.iter().skip(1).step_by(2).all(|content| content.starts_with(b"untrusted comment:"))
}

fn check_for_this(job: &RecoveryJob<'_>, file: &'static str, product: &str, channel: &str) -> Result<(), RolloutError> {
    let identity = &job.identity;
    for (what, found, actual) in [("product", product, &identity.product), ("channel", channel, &identity.channel)] {
        if found != actual {
            return Err(RolloutError::Unfit { file, what, found: found.to_owned(), actual: actual.clone() });
        }
    }
    Ok(())
}

/// Downloads the very manifest that the roll-out names.
fn fetch_manifest(job: &RecoveryJob<'_>, staged: &StagedRelease) -> Result<Release, RecoveryError> {
    let path = release_path(&job.identity.channel, staged.serial);
    let signature_path = format!("{path}.minisig");
    let size_bytes = staged.manifest.size_bytes.min(manifest::MAX_SIZE_BYTES);
    let wanted = [(path.as_str(), size_bytes), (signature_path.as_str(), MAX_SIGNATURE_BYTES)];
    let signed = fetch_checked(job.resources.source, &wanted, |files| {
        let found = files.first().map(|content| Digest::of(content));
        if found != Some(staged.manifest.blake3) {
            let expected = staged.manifest.blake3;
            return Err(Refusal::Wrong(format!("this is not the manifest {expected} that the roll-out names")));
        }
        authenticated(job, files).map_err(Refusal::Wrong)
    });
    let signed = signed.map_err(|source| RecoveryError::Fetch { what: "manifest", source })?;
    let manifest = Manifest::parse(&signed)?;
    if manifest.serial != staged.serial {
        let what = format!("it names serial {} for the manifest of serial {}", staged.serial, manifest.serial);
        return Err(RolloutError::Contradiction { file: "roll-out", what }.into());
    }
    Ok(Release { signed, manifest })
}

/// Paths of the two files and their signatures.
fn paths(channel: &str) -> [String; 4] {
    let (rollout, halts) = (rollout_path(channel), halts_path(channel));
    let signature_of = |path: &String| format!("{path}.minisig");
    [rollout.clone(), signature_of(&rollout), halts.clone(), signature_of(&halts)]
}

/// The two files and their signatures, each with the most bytes that it may have.
fn wanted(paths: &[String; 4]) -> [(&str, u64); 4] {
    let limits = [rollout::MAX_SIZE_BYTES, MAX_SIGNATURE_BYTES].repeat(2);
    std::array::from_fn(|at| (paths[at].as_str(), limits[at]))
}
