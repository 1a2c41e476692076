//! Makes a target equal to the release: manifest, plan, write, verify, commit. The same for PID 1 and by hand.

use std::ops::Range;
use std::sync::atomic::AtomicU64;

use serde_json::json;

use crate::boot::{self, CommitError, Committed};
use crate::bootenv::{BootEnvError, Recovering};
use crate::chain::chain;
use crate::digest::Digest;
use crate::fetch::{FetchError, Source};
use crate::index::{Index, IndexError};
use crate::journal::{Journal, Phase};
use crate::manifest::{self, Authentic, Manifest, ManifestError, Object, SYSTEM_IMAGE, TrustedKeys};
use crate::plan::{Plan, Survey, Totals};
use crate::progress::bytes;
use crate::state::State;
use crate::target::BlockTarget;
use crate::verify::{Reading, Verified};
use crate::write::{self, WriteError};

/// How often frames that read back wrong are written again before the disk is called broken.
const REWRITES: u32 = 2;

/// A minisign signature is 4 lines, about 350 bytes.
const MAX_SIGNATURE_BYTES: u64 = 4096;

/// The machine a release is to fit, and what the recovery works with.
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
    /// Keys one of which must have signed.
    pub keys: &'a TrustedKeys,
    /// Where the release comes from.
    pub source: &'a dyn Source,
    /// The system partition.
    pub target: &'a dyn BlockTarget,
    /// The state partition, where there is one.
    pub state: Option<&'a State>,
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

/// Why a recovery did not finish.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// A file of the release.
    #[error("cannot download the {what}")]
    Fetch {
        /// `manifest`, `signature` or `chunk index`.
        what: &'static str,
        /// Why.
        source: FetchError,
    },
    /// The manifest is refused.
    #[error("the release is refused")]
    Manifest(#[from] ManifestError),
    /// The index is authentic and unusable.
    #[error("the chunk index of the release is refused")]
    Index(#[from] IndexError),
    /// Index and manifest differ.
    #[error(
        "the chunk index describes {index_bytes} bytes and the manifest {manifest_bytes}: the release was built wrong"
    )]
    SizesDiffer {
        /// In the index.
        index_bytes: u64,
        /// In the manifest.
        manifest_bytes: u64,
    },
    /// Download or disk.
    #[error("the system could not be written")]
    Write(#[from] WriteError),
    /// The disk does not keep what is written.
    #[error("{target} reads back wrong after {REWRITES} rewrites at {ranges}; the disk is failing, replace it")]
    ReadBack {
        /// Device.
        target: String,
        /// Ranges, for people.
        ranges: String,
    },
    /// The boot environment before the write.
    #[error("nothing was written, since the boot environment could not be prepared")]
    Prepare(#[source] BootEnvError),
    /// The boot environment after it.
    #[error("the last step failed")]
    Commit(#[from] CommitError),
}

impl RecoveryError {
    /// Whether trying again later, with nobody doing anything here, can help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Fetch { source, .. } => source.is_retryable(),
            Self::Write(error) => error.is_retryable(),
            Self::Manifest(_)
            | Self::Index(_)
            | Self::SizesDiffer { .. }
            | Self::ReadBack { .. }
            | Self::Prepare(_)
            | Self::Commit(_) => false,
        }
    }
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
    let journal = machine.journal;
    let (release, index) = journal.phase(Phase::Manifest, &machine.source.describe(), || {
        let release = fetch_release(machine)?;
        let index = fetch_index(machine, &release)?;
        write::check_size(&index, machine.target)?;
        Ok::<_, RecoveryError>((release, index))
    })?;
    let mut survey =
        journal.phase(Phase::Plan, &format!("compare {} with the release", machine.target.name()), || {
            Ok::<_, RecoveryError>(read(machine, &index))
        })?;
    let mut totals = None;
    let mut permit = None;
    for _ in 0..=REWRITES {
        let known = match survey {
            Ok(proof) => {
                return commit(
                    machine,
                    proof,
                    permit,
                    &release,
                    &index,
                    totals.unwrap_or_else(|| Totals::nothing_to_do(&index)),
                );
            }
            Err(known) => known,
        };
        let plan = Plan::new(&index, &known);
        announce(journal, &plan.totals);
        totals.get_or_insert(plan.totals);
        let permit = match &permit {
            Some(permit) => permit,
            None => permit.insert(prepare(machine)?),
        };
        survey = write_and_read_back(machine, &index, known, &plan, permit)?;
    }
    match survey {
        Ok(proof) => {
            commit(machine, proof, permit, &release, &index, totals.unwrap_or_else(|| Totals::nothing_to_do(&index)))
        }
        Err(survey) => Err(RecoveryError::ReadBack {
            target: machine.target.name().to_owned(),
            ranges: ranges_for_people(&survey.damaged_ranges(&index)),
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
    write::check_size(&index, machine.target)?;
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

fn prepare(machine: &Machine<'_>) -> Result<Recovering, RecoveryError> {
    match machine.state {
        Some(state) => state.boot_env().begin_recovering().map_err(RecoveryError::Prepare),
        None => Ok(Recovering::without_environment()),
    }
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
    release: &Release,
    index: &Index,
    totals: Totals,
) -> Result<Report, RecoveryError> {
    let Manifest { version, serial, .. } = release.manifest.clone();
    let committed = machine.journal.phase(Phase::Commit, &format!("make {version} the system to boot"), || {
        let permit = permit.map_or_else(|| prepare(machine), Ok)?;
        boot::commit(proof, permit, machine.state, &release.signed, index, machine.tries).map_err(RecoveryError::from)
    })?;
    Ok(Report { version, serial, totals, committed })
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
