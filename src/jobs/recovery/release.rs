//! The release and its parts, fetched and checked.

use std::time::Duration;

use super::error::RecoveryError;
use super::job::RecoveryJob;
use crate::chain::chain;
use crate::fetch::{FetchError, FetchErrorKind, Refusal, Source, Surveyed};
use crate::flash::target::BlockTarget;
use crate::flash::write;
use crate::jobs::floor::{self, Floor, Offered, ReleaseId};
use crate::jobs::state::{IndexedRelease, InstalledRecord, Release};
use crate::record::event::Event;
use crate::release::digest::Digest;
use crate::release::manifest::{self, Authentic, MAX_SERIAL, Manifest, ManifestError, Object, SYSTEM_IMAGE};

/// Releases of no use that are looked at in one fetch: more than there are sources. A mirror that replays one old
/// release after the other must not keep the next source from being asked.
const MAX_LOOKED_AT: usize = 8;

/// How long the other sources are waited for once one has a release: enough for a lookup and two requests over a
/// satellite, and little beside the minutes that a recovery takes.
pub(super) const SURVEY_PATIENCE: Duration = Duration::from_secs(8);

/// Downloads the one manifest of the channel and checks its signature, format, fit and serial.
///
/// A manifest of no use here, as that of an old USB drive or of a mirror that lags behind, must not hide what the next
/// source has. Each is looked at once and without delay, since the other sources may be asked for hours: it shows that
/// this recovery works and, if it is meant for this machine, the least that the time can be. A source that comes with
/// it again is passed over.
///
/// # Errors
/// [`RecoveryError::Fetch`] or [`RecoveryError::Manifest`].
pub(super) fn by_manifest(job: &RecoveryJob<'_>, record: Option<&InstalledRecord>) -> Result<Release, RecoveryError> {
    let mut passed_over = PassedOver::default();
    loop {
        let Offer { release, refusal } = fetch_offer(job, record, &mut passed_over)?;
        // What is meant for another machine says nothing about the time here.
        if check_fit(job, &release.manifest).is_ok() {
            (job.resources.learn_time)(release.manifest.created_unix_s);
        }
        end_trial(job);
        let Some(refusal) = refusal else {
            let release = newest(job, record, release);
            report_found(job, &release);
            return Ok(release);
        };
        passed_over.looked_at.push(Digest::of(release.signed.bytes()));
        passed_over.last = Some(refusal);
    }
}

/// Reports which release was found.
pub(super) fn report_found(job: &RecoveryJob<'_>, release: &Release) {
    let Manifest { version, serial, .. } = &release.manifest;
    let signed_by = release.signed.key_name();
    job.journal.report(Event::ReleaseFound { version, serial: *serial, signed_by });
}

/// Returns the release with the highest serial that any source offers, of those that suit this machine; `first` is what
/// the first source that answered has. A mirror that lags behind must not hold back what another one has, and one that
/// is dead must not hold up what is there. What a person plugged in, or a directory that comes first, is taken whatever
/// the others have.
fn newest(job: &RecoveryJob<'_>, record: Option<&InstalledRecord>, first: Release) -> Release {
    let paths = manifest_paths(job);
    let others = job.resources.source.survey_others(&wanted(&paths), SURVEY_PATIENCE);
    let mut newer: Option<(String, Release)> = None;
    for Surveyed { source, result } in others {
        let best = newer.as_ref().map_or(&first, |(_, release)| release).manifest.serial;
        match result.map_err(|error| chain(&error)).and_then(|files| suitable(job, record, &files)) {
            Ok(release) if release.manifest.serial > best => newer = Some((source, release)),
            Ok(_) => (),
            Err(why) => job.journal.note(&format!("{source} has no newer release: {why}")),
        }
    }
    let Some((source, release)) = newer else { return first };
    let (lagging, newer) = (&first.manifest.version, &release.manifest.version);
    job.journal.note(&format!("{source} has {newer}, and not only {lagging}"));
    (job.resources.learn_time)(release.manifest.created_unix_s);
    release
}

/// The release in a manifest and its signature, if it suits this machine, or why not.
pub(super) fn suitable(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    files: &[Vec<u8>],
) -> Result<Release, String> {
    let signed = authenticated(job, files)?;
    let manifest = Manifest::parse(&signed).map_err(|error| chain(&error))?;
    let release = Release { signed, manifest };
    check_suitable(job, record, &release).map_err(|error| chain(&error))?;
    Ok(release)
}

/// Checks that a release which is at hand suits this machine, as if it were offered. It shows the time as any manifest
/// does.
///
/// # Errors
/// The reason for which it cannot be installed here.
pub fn accept(job: &RecoveryJob<'_>, record: Option<&InstalledRecord>, release: &Release) -> Result<(), ManifestError> {
    check_suitable(job, record, release)?;
    (job.resources.learn_time)(release.manifest.created_unix_s);
    report_found(job, release);
    Ok(())
}

pub(super) fn authenticated(job: &RecoveryJob<'_>, files: &[Vec<u8>]) -> Result<Authentic, String> {
    let [content, signature] = files else { return Err("a file is missing".to_owned()) };
    let signed = job.resources.keys.authenticate(content.clone(), &String::from_utf8_lossy(signature));
    signed.map_err(|error| chain(&error))
}

/// The paths of the manifest and its signature.
pub(super) fn manifest_paths(job: &RecoveryJob<'_>) -> [String; 2] {
    let path = manifest::manifest_path(&job.identity.channel);
    let signature_path = format!("{path}.minisig");
    [path, signature_path]
}

/// The manifest and its signature, each with the most bytes that it may have.
pub(super) fn wanted([path, signature_path]: &[String; 2]) -> [(&str, u64); 2] {
    [(path, manifest::MAX_SIZE_BYTES), (signature_path, manifest::MAX_SIGNATURE_BYTES)]
}

/// An authentic release, with the reason for which it is of no use here, if there is one.
struct Offer {
    release: Release,
    refusal: Option<ManifestError>,
}

/// Releases of no use that this fetch has met.
#[derive(Default)]
struct PassedOver {
    /// Digests of the manifests that were looked at, at most [`MAX_LOOKED_AT`].
    looked_at: Vec<Digest>,
    /// Refusal of the last one that was looked at, or cannot be read.
    last: Option<ManifestError>,
}

impl PassedOver {
    /// Whether a manifest of no use need not be looked at.
    fn is_known(&self, signed: &Authentic) -> bool {
        self.looked_at.len() >= MAX_LOOKED_AT || self.looked_at.contains(&Digest::of(signed.bytes()))
    }
}

/// Downloads a manifest that a trusted key signed: a suitable one, or one that was not looked at yet. Where no source
/// has either, the error is the last refusal.
fn fetch_offer(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    passed_over: &mut PassedOver,
) -> Result<Offer, RecoveryError> {
    let paths = manifest_paths(job);
    let offer = fetch_checked(job.resources.source, &wanted(&paths), |files| {
        let signed = authenticated(job, files).map_err(Refusal::Wrong)?;
        let unreadable = |refusal| Refusal::Unsuitable(chain(passed_over.last.insert(refusal)));
        let manifest = Manifest::parse(&signed).map_err(unreadable)?;
        let release = Release { signed, manifest };
        match check_suitable(job, record, &release).err() {
            Some(refusal) if passed_over.is_known(&release.signed) => Err(Refusal::Unsuitable(chain(&refusal))),
            refusal => Ok(Offer { release, refusal }),
        }
    });
    offer.map_err(|source| match passed_over.last.take().filter(|_| source.kind() == FetchErrorKind::Unsuitable) {
        Some(refusal) => refusal.into(),
        None => RecoveryError::Fetch { what: "manifest", source },
    })
}

/// Fetches small files, all of them from one source, and returns what `check` makes of them.
pub(super) fn fetch_checked<T>(
    source: &dyn Source,
    wanted: &[(&str, u64)],
    mut check: impl FnMut(&[Vec<u8>]) -> Result<T, Refusal>,
) -> Result<T, FetchError> {
    let mut value = None;
    source.get_checked(wanted, &mut |files| check(files).map(|checked| value = Some(checked)))?;
    let path = wanted.first().map_or("", |(path, _)| path);
    value.ok_or_else(|| FetchError::new(FetchErrorKind::Local, path, "the source returned files that were not checked"))
}

/// Refuses a release that is not for this machine, goes back behind the floor or the installed one, or did not come up
/// before.
fn check_suitable(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    release: &Release,
) -> Result<(), ManifestError> {
    check_fit(job, &release.manifest)?;
    check_order(job, record, release.id(), &release.manifest.version)
}

/// Refuses a release by its identity alone: one that goes back behind the floor or the installed one, did not come up
/// before, or is not above the serial that is wanted.
pub(super) fn check_order(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    release: ReleaseId,
    version: &str,
) -> Result<(), ManifestError> {
    let floor = job.resources.floor.map(Floor::record).unwrap_or_default();
    let (installed, by_person) = (record.map(InstalledRecord::id), job.policy.allow_older);
    floor::check(&floor, Offered { release, version, installed, by_person })?;
    if job.policy.incomplete == Some(release) {
        return Err(ManifestError::Incomplete { version: version.to_owned(), offered: release.serial });
    }
    // A serial that no release can have leaves none above it: it was damaged, and waiting for one would be for ever.
    let above = job.policy.above.filter(|above| *above <= MAX_SERIAL);
    if above.is_some_and(|above| release.serial <= above) {
        return Err(ManifestError::NothingNew { version: version.to_owned(), offered: release.serial });
    }
    Ok(())
}

/// Records that a person chose this release, before it is written: after a power cut it is installed to its end
/// although it may be below the floor, and its refusal is lifted.
pub(super) fn note_choice(job: &RecoveryJob<'_>, release: &IndexedRelease) {
    let Some(floor) = job.resources.floor.filter(|_| job.policy.allow_older) else { return };
    let (Manifest { version, serial, .. }, highest) = (&release.manifest, floor.record().serial);
    if *serial < highest {
        job.journal.note(&format!("{version} is below serial {highest}, which was good here; a person allows it"));
    }
    floor.allow(release.id()).failed.iter().for_each(|error| job.journal.warn(&chain(error)));
}

/// Refuses a release that is made for another product, hardware or channel, or for a later agent.
pub(super) fn check_fit(job: &RecoveryJob<'_>, manifest: &Manifest) -> Result<(), ManifestError> {
    manifest.check_fit(&job.identity.product, &job.identity.hardware, &job.identity.channel)
}

/// Ends the trial of a renewed recovery: its disk, network, clock and keys work, which is all that it has to show.
/// Whether the release fits says nothing about the recovery.
pub(super) fn end_trial(job: &RecoveryJob<'_>) {
    let (Some(state), Some(renewal)) = (job.resources.state, job.resources.renewal) else { return };
    let ended = renewal.booted.map_or(Ok(()), |booted| state.boot_env().end_trial(booted));
    if let Err(error) = ended {
        job.journal.warn(&format!("this recovery stays on trial: {}", chain(&error)));
    }
}

/// Checks that the system image fits a partition, before anything else is done.
///
/// # Errors
/// The image is too large, or the release has none.
pub fn check_room(release: &Release, target: &dyn BlockTarget) -> Result<(), RecoveryError> {
    Ok(write::check_size(release.manifest.image(SYSTEM_IMAGE)?.size_bytes, target)?)
}

/// Downloads a file of the release as a whole and checks it: these files are few and small.
///
/// # Errors
/// [`RecoveryError::Fetch`], or [`RecoveryError::Manifest`] when the release has no such file.
pub fn fetch_file(job: &RecoveryJob<'_>, release: &Release, name: &str) -> Result<Vec<u8>, RecoveryError> {
    fetch_object(job.resources.source, "file of the release", &release.manifest.file(name)?.object)
}

/// Downloads an object and checks its digest.
pub(super) fn fetch_object(source: &dyn Source, what: &'static str, object: &Object) -> Result<Vec<u8>, RecoveryError> {
    let path = manifest::object_path(&object.blake3);
    let mut check = |files: &[Vec<u8>]| {
        let (found, len) = files.first().map_or((Digest::of(b""), 0), |file| (Digest::of(file), file.len()));
        if found == object.blake3 {
            return Ok(());
        }
        let expected = format!("expected {} bytes with {}", object.size_bytes, object.blake3);
        Err(Refusal::Wrong(format!("{len} bytes with digest {found}, {expected}")))
    };
    // What the source returns is taken, not a copy of what was checked: an index or weak hashes may have many MiB.
    let files = source.get_checked(&[(&path, object.size_bytes)], &mut check);
    files.map(|mut files| files.pop().unwrap_or_default()).map_err(|source| RecoveryError::Fetch { what, source })
}
