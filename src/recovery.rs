//! Makes a target equal to the release: manifest, plan, write, verify, commit. The same for PID 1 and by hand.

mod error;
mod partition;
mod renew;

use std::convert::Infallible;
use std::ops::Range;
use std::sync::atomic::AtomicU64;

use serde_json::json;

use crate::arbiter::Recoveries;
use crate::boot::{self, Committed};
use crate::bootenv::Recovering;
use crate::chain::chain;
use crate::digest::Digest;
use crate::fetch::Source;
use crate::grubenv::names;
use crate::index::Index;
use crate::journal::{Journal, Phase};
use crate::manifest::{self, Authentic, Manifest, ManifestError, Object, SYSTEM_IMAGE, TrustedKeys};
use crate::plan::{Plan, Survey, Totals};
use crate::progress::bytes;
use crate::slots::Slot;
use crate::state::{Installed, State};
use crate::target::BlockTarget;
use crate::verify::{Reading, Verified};
use crate::write;
pub use error::RecoveryError;
pub use partition::Partition;
use renew::Reach;
pub use renew::{Medium, RenewError, Renewal};

/// How often frames that read back wrong are written again before the disk is called broken.
const REWRITES: u32 = 2;

/// A minisign signature is 4 lines, about 350 bytes.
const MAX_SIGNATURE_BYTES: u64 = 4096;

/// The machine a release is to fit, and what the recovery works with.
#[derive(Clone)]
pub struct Machine<'a> {
    /// Product the release must be for.
    pub product: String,
    /// Hardware name the release must list.
    pub hardware: String,
    /// Channel to follow.
    pub channel: String,
    /// Boots the new system may try.
    pub tries: u8,
    /// A person asked for it: an older release than the installed one is accepted.
    pub allow_older: bool,
    /// Somebody asked for it, so that it does not count as an automatic recovery.
    pub asked_for: bool,
    /// Automatic recoveries before this one.
    pub recoveries: Recoveries,
    /// Keys one of which must have signed.
    pub keys: &'a TrustedKeys,
    /// Where the release comes from.
    pub source: &'a dyn Source,
    /// The system partition.
    pub target: &'a dyn BlockTarget,
    /// The state partition, where there is one.
    pub state: Option<&'a State>,
    /// The recovery partition, where this is a machine whose recovery is to be renewed.
    pub renewal: Option<Renewal<'a>>,
    /// Where it is told.
    pub journal: &'a Journal,
    /// Takes the creation time of every authentic manifest, for a clock that may be behind.
    pub learn_time: &'a dyn Fn(u64),
}

/// What a finished recovery did.
#[derive(Debug)]
pub struct Report {
    /// Version now installed.
    pub version: String,
    /// Its serial.
    pub serial: u64,
    /// What the first plan held.
    pub totals: Totals,
    /// The proof.
    pub committed: Committed,
}

/// A manifest that is signed, fits this machine and does not go back.
#[derive(Debug)]
pub struct Release {
    signed: Authentic,
    /// What it says.
    pub manifest: Manifest,
}

/// Runs the phases from manifest to commit.
///
/// # Errors
/// [`RecoveryError`]; [`RecoveryError::is_retryable`] says whether to try again.
pub fn run(machine: &Machine<'_>) -> Result<Report, RecoveryError> {
    install(machine, || fetch_release(machine))
}

/// The same for the release that is recorded as installed, whatever is offered now: its objects may still be there.
///
/// # Errors
/// As [`run`].
pub fn repair(machine: &Machine<'_>, installed: Installed) -> Result<Report, RecoveryError> {
    let Installed { signed, manifest, .. } = installed;
    install(machine, || Ok(Release { signed, manifest }))
}

/// The same for a release that was fetched before.
///
/// # Errors
/// As [`run`].
pub fn install_release(machine: &Machine<'_>, release: Release) -> Result<Report, RecoveryError> {
    install(machine, || Ok(release))
}

/// Starts an intact system once more: a fresh environment for what is recorded as installed.
///
/// # Errors
/// The environment cannot be written.
pub fn start_again(machine: &Machine<'_>, proof: Verified, installed: &Installed) -> Result<Report, RecoveryError> {
    let manifest = &installed.manifest;
    let data = json!({ "version": manifest.version, "serial": manifest.serial });
    machine.journal.data(&format!("{} (serial {}) is intact", manifest.version, manifest.serial), data);
    commit(machine, proof, None, installed, Reach::Disk, Totals::nothing_to_do(&installed.index))
}

/// Compares the partition with a release.
///
/// # Errors
/// What differs; `machine.journal` has been told.
pub fn compare(machine: &Machine<'_>, installed: &Installed) -> Result<Verified, Survey> {
    let version = &installed.manifest.version;
    let sentence = format!("compare {} with the installed release {version}", machine.target.name());
    let mut found = Err(Survey::nothing_right(&installed.index));
    let _: Result<(), Infallible> = machine.journal.phase(Phase::Plan, &sentence, || {
        found = read(machine, &installed.index);
        if let Err(survey) = &found {
            tell_damage(machine.journal, &installed.index, survey);
        }
        Ok(())
    });
    found
}

fn install(
    machine: &Machine<'_>,
    release: impl FnOnce() -> Result<Release, RecoveryError>,
) -> Result<Report, RecoveryError> {
    let journal = machine.journal;
    let (release, index) = journal.phase(Phase::Manifest, &machine.source.describe(), || {
        let release = release()?;
        let index = fetch_index(machine, &release)?;
        write::check_size(index.image_bytes(), machine.target)?;
        Ok::<_, RecoveryError>((release, index))
    })?;
    let Release { signed, manifest } = release;
    let offered = Installed { signed, manifest, index };
    let index = &offered.index;
    let mut survey =
        journal.phase(Phase::Plan, &format!("compare {} with the release", machine.target.name()), || {
            Ok::<_, RecoveryError>(read(machine, index))
        })?;
    let mut totals = None;
    let mut permit = None;
    let done = |totals: Option<Totals>| totals.unwrap_or_else(|| Totals::nothing_to_do(index));
    for _ in 0..=REWRITES {
        let known = match survey {
            Ok(proof) => return commit(machine, proof, permit, &offered, Reach::Source, done(totals)),
            Err(known) => known,
        };
        let plan = Plan::new(index, &known);
        announce(journal, &plan.totals);
        totals.get_or_insert(plan.totals);
        let permit = match &permit {
            Some(permit) => permit,
            None => permit.insert(prepare(machine, offered.manifest.serial)?),
        };
        survey = write_and_read_back(machine, index, known, &plan, permit)?;
    }
    match survey {
        Ok(proof) => commit(machine, proof, permit, &offered, Reach::Source, done(totals)),
        Err(survey) => Err(RecoveryError::ReadBack {
            target: machine.target.identity(),
            ranges: ranges_for_people(&survey.damaged_ranges(index)),
        }),
    }
}

/// Says what [`run`] would do, without changing anything.
///
/// # Errors
/// As [`run`], up to the plan.
pub fn estimate(machine: &Machine<'_>) -> Result<(Manifest, Totals), RecoveryError> {
    let release = fetch_release(machine)?;
    let index = fetch_index(machine, &release)?;
    write::check_size(index.image_bytes(), machine.target)?;
    let known = match read(machine, &index) {
        Ok(_) => return Ok((release.manifest, Totals::nothing_to_do(&index))),
        Err(known) => known,
    };
    Ok((release.manifest, Plan::new(&index, &known).totals))
}

/// Downloads the manifest and checks signature, format, fit and serial.
///
/// # Errors
/// [`RecoveryError::Fetch`] or [`RecoveryError::Manifest`].
pub fn fetch_release(machine: &Machine<'_>) -> Result<Release, RecoveryError> {
    if machine.keys.is_empty() {
        // No copy of the release can be good: do not ask for one again and again.
        return Err(ManifestError::NoKeys.into());
    }
    let path = manifest::manifest_path(&machine.channel);
    let signature_path = format!("{path}.minisig");
    let wanted = [(path.as_str(), manifest::MAX_SIZE_BYTES), (signature_path.as_str(), MAX_SIGNATURE_BYTES)];
    let mut signed = None;
    let authenticate = |files: &[Vec<u8>]| match machine.keys.authenticate(files[0].clone(), &text(&files[1])) {
        Ok(authentic) => {
            signed = Some(authentic);
            Ok(())
        }
        Err(error) => Err(chain(&error)),
    };
    let signed = get_checked(machine.source, "manifest", &wanted, authenticate).map(|_| signed)?;
    let signed = signed.ok_or(ManifestError::NoKeys)?;
    let manifest = Manifest::parse(&signed)?;
    (machine.learn_time)(manifest.created_unix_s);
    manifest.check_fit(&machine.product, &machine.hardware, &machine.channel)?;
    let installed = machine.state.and_then(|state| state.installed_manifest(machine.keys));
    if !machine.allow_older {
        manifest.check_serial(installed.map(|(_, installed)| installed.serial))?;
    }
    machine.journal.data(
        &format!("release {} (serial {}), signed by {}", manifest.version, manifest.serial, signed.key_name()),
        json!({ "version": manifest.version, "serial": manifest.serial }),
    );
    Ok(Release { signed, manifest })
}

fn fetch_index(machine: &Machine<'_>, release: &Release) -> Result<Index, RecoveryError> {
    let image = release.manifest.image(SYSTEM_IMAGE)?;
    let installed = machine.state.and_then(|state| state.installed(machine.keys));
    let same = installed
        .filter(|installed| installed.manifest.image(SYSTEM_IMAGE).is_ok_and(|known| known.index == image.index));
    let index = match same {
        Some(installed) => installed.index,
        None => Index::decode(&fetch_object(machine.source, "chunk index", &image.index)?)?,
    };
    if index.image_bytes() != image.size_bytes {
        return Err(RecoveryError::SizesDiffer { index_bytes: index.image_bytes(), manifest_bytes: image.size_bytes });
    }
    Ok(index)
}

/// A file of the release, whole and checked: they are few and small.
///
/// # Errors
/// [`RecoveryError::Fetch`], or [`RecoveryError::Manifest`] when the release has no such file.
pub fn fetch_file(machine: &Machine<'_>, release: &Release, name: &str) -> Result<Vec<u8>, RecoveryError> {
    fetch_object(machine.source, "file of the release", &release.manifest.file(name)?.object)
}

/// Whether the system image fits a partition, before anything else is done.
///
/// # Errors
/// It does not, or the release has none.
pub fn check_room(release: &Release, target: &dyn BlockTarget) -> Result<(), RecoveryError> {
    Ok(write::check_size(release.manifest.image(SYSTEM_IMAGE)?.size_bytes, target)?)
}

fn fetch_object(source: &dyn Source, what: &'static str, object: &Object) -> Result<Vec<u8>, RecoveryError> {
    let path = manifest::object_path(&object.blake3);
    let check = |files: &[Vec<u8>]| {
        let (found, len) = (Digest::of(&files[0]), files[0].len());
        if found == object.blake3 {
            return Ok(());
        }
        Err(format!("{len} bytes with digest {found}, expected {} bytes with {}", object.size_bytes, object.blake3))
    };
    get_checked(source, what, &[(&path, object.size_bytes)], check).map(|mut files| files.remove(0))
}

fn get_checked(
    source: &dyn Source,
    what: &'static str,
    wanted: &[(&str, u64)],
    mut check: impl FnMut(&[Vec<u8>]) -> Result<(), String>,
) -> Result<Vec<Vec<u8>>, RecoveryError> {
    source.get_checked(wanted, &mut check).map_err(|source| RecoveryError::Fetch { what, source })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn read(machine: &Machine<'_>, index: &Index) -> Result<Verified, Survey> {
    let reading = machine.journal.with_progress(index.image_bytes(), |done| Reading::of(index, machine.target, done));
    report_read_errors(machine, &reading);
    reading.into_verified()
}

fn announce(journal: &Journal, totals: &Totals) {
    journal.data(
        &format!(
            "{} are right already; to download {}, to write {}, to zero {}",
            bytes(totals.right_bytes),
            bytes(totals.download_bytes),
            bytes(totals.write_bytes),
            bytes(totals.zero_bytes)
        ),
        json!(totals),
    );
}

fn prepare(machine: &Machine<'_>, serial: u64) -> Result<Recovering, RecoveryError> {
    let Some(state) = machine.state else { return Ok(Recovering::without_environment()) };
    let begun = machine.recoveries.towards(serial, machine.asked_for);
    let then = if machine.asked_for { begun } else { begun.one_more() };
    let booted = machine.renewal.and_then(|renewal| renewal.booted);
    let permit =
        state.boot_env().begin_recovering(begun, then, booted.map(Slot::name)).map_err(RecoveryError::Prepare)?;
    if !permit.dropped.is_empty() {
        let dropped = permit.dropped.join(", ");
        machine.journal.warn(&format!("the boot environment is full; removed from it, as not ours: {dropped}"));
    }
    Ok(permit)
}

fn write_and_read_back(
    machine: &Machine<'_>,
    index: &Index,
    known: Survey,
    plan: &Plan,
    permit: &Recovering,
) -> Result<Result<Verified, Survey>, RecoveryError> {
    let journal = machine.journal;
    let target = machine.target;
    let to_write = plan.totals.write_bytes + plan.totals.zero_bytes;
    let written = journal.phase(Phase::Write, &format!("write {} to {}", bytes(to_write), target.name()), || {
        journal.with_progress(to_write, |done: &AtomicU64| {
            write::apply(index, known, plan, machine.source, target, permit, done)
        })
    })?;
    journal.phase(Phase::Verify, &format!("read {} back", target.name()), || {
        let reading = journal.with_progress(written.bytes, |done| Reading::back(written, target, done));
        report_read_errors(machine, &reading);
        let ranges = reading.damaged_ranges();
        if !ranges.is_empty() {
            journal.warn(&format!("read back wrong: {}", ranges_for_people(&ranges)));
        }
        Ok(reading.into_verified())
    })
}

fn report_read_errors(machine: &Machine<'_>, reading: &Reading<'_>) {
    for (range, error) in reading.read_errors.iter().take(10) {
        let name = machine.target.name();
        machine.journal.warn(&format!("cannot read bytes {} to {} of {name}: {error}", range.start, range.end));
    }
}

fn commit(
    machine: &Machine<'_>,
    proof: Verified,
    permit: Option<Recovering>,
    installed: &Installed,
    reach: Reach,
    totals: Totals,
) -> Result<Report, RecoveryError> {
    let Installed { signed, manifest, index } = installed;
    let Manifest { version, serial, .. } = manifest;
    let committed = machine.journal.phase(Phase::Commit, &format!("make {version} the system to boot"), || {
        let permit = permit.map_or_else(|| prepare(machine, *serial), Ok)?;
        let renew = || renew(machine, manifest, reach);
        let committed = boot::commit(proof, permit, machine.state, signed, index, machine.tries, renew)?;
        if let Some(error) = &committed.unrecorded {
            machine.journal.warn(&format!("{version} starts, but cannot be recorded as installed: {error}"));
        }
        Ok::<_, RecoveryError>(committed)
    })?;
    Ok(Report { version: version.clone(), serial: *serial, totals, committed })
}

/// Brings the recovery up to date; what the pointer is to name afterwards.
fn renew(machine: &Machine<'_>, manifest: &Manifest, reach: Reach) -> Option<Slot> {
    let (renewal, state) = (machine.renewal?, machine.state?);
    let named = state.boot_env().load_or_empty().ok()?;
    renew::renew(renewal, manifest, Slot::parse(named.get(names::SLOT)), reach, machine.journal)
}

fn tell_damage(journal: &Journal, index: &Index, survey: &Survey) {
    let ranges = survey.damaged_ranges(index);
    let named: Vec<[u64; 2]> = ranges.iter().map(|range| [range.start, range.end]).collect();
    journal.data(
        &format!("it differs from the installed release at {}", ranges_for_people(&ranges)),
        json!({ "damaged_byte_ranges": named }),
    );
}

/// At most five ranges as sectors of 512 bytes, the unit of kernel messages and disk tools.
fn ranges_for_people(ranges: &[Range<u64>]) -> String {
    let mut text: Vec<String> = ranges
        .iter()
        .take(5)
        .map(|range| format!("sectors {} to {}", range.start / 512, range.end / 512 - 1))
        .collect();
    if ranges.len() > 5 {
        text.push(format!("{} more ranges", ranges.len() - 5));
    }
    text.join(", ")
}
