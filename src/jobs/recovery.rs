//! Makes a target equal to the release: manifest, plan, write, verify, commit. The same for PID 1 and by hand.

mod commit;
mod error;
mod partition;
mod release;
mod renew;

use std::convert::Infallible;
use std::ops::Range;

use serde_json::json;

use crate::boot::decide::Recoveries;
use crate::boot::env::WritePermit;
use crate::boot::slots::{ReadySlot, SlotState, Trial};
use crate::fetch::Source;
use crate::flash::plan::{Blocks, Comparison, FoundBlocks, Patched, Plan, Reuse};
use crate::flash::readback::Scan;
use crate::flash::target::BlockTarget;
use crate::flash::verify::{self, Verified};
use crate::flash::write::{self, Work, Written};
use crate::jobs::state::{InstalledRelease, StatePartition};
use crate::record::journal::{Journal, Phase};
use crate::record::progress::{Bytes, bytes};
use crate::record::totals::Totals;
use crate::release::index::Index;
use crate::release::manifest::{Manifest, SYSTEM_IMAGE, TrustedKeys};
pub use commit::Committed;
pub use error::RecoveryError;
pub use partition::RecoveryPartition;
pub use release::{Release, fetch_file, fetch_release, fetch_release_above};
use release::{fetch_index, fetch_patches, fetch_weak_hashes};
use renew::NetworkUse;
pub use renew::{RenewError, Renewal, SlotStorage};

/// How often chunks that read back wrong are written again before the disk is called broken.
const REWRITES: u32 = 2;

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
    pub requested: bool,
    /// Automatic recoveries before this one.
    pub recoveries: Recoveries,
    /// Keys one of which must have signed.
    pub keys: &'a TrustedKeys,
    /// Where the release comes from.
    pub source: &'a dyn Source,
    /// The system partition.
    pub target: &'a dyn BlockTarget,
    /// The state partition, where there is one.
    pub state: Option<&'a StatePartition>,
    /// The recovery partition, where this is a machine whose recovery is to be renewed.
    pub renewal: Option<Renewal<'a>>,
    /// Where it is told.
    pub journal: &'a Journal,
    /// Takes the creation time of every authentic manifest, for a clock that may be behind.
    pub learn_time: &'a dyn Fn(u64),
}

/// What a finished recovery did.
#[derive(Debug)]
pub struct RecoveryReport {
    /// Version now installed.
    pub version: String,
    /// Its serial.
    pub serial: u64,
    /// What the first plan held.
    pub totals: Totals,
    /// The proof.
    pub committed: Committed,
}

/// Runs the phases from manifest to commit.
///
/// # Errors
/// [`RecoveryError`]; [`RecoveryError::is_retryable`] says whether to try again.
pub fn run(machine: &Machine<'_>) -> Result<RecoveryReport, RecoveryError> {
    install(machine, None)
}

/// The same for the release that is recorded as installed, whatever is offered now: its objects may still be there.
///
/// # Errors
/// As [`run`].
pub fn repair(machine: &Machine<'_>, installed: InstalledRelease) -> Result<RecoveryReport, RecoveryError> {
    let InstalledRelease { signed, manifest, .. } = installed;
    install(machine, Some(Release { signed, manifest }))
}

/// The same for a release that was fetched before.
///
/// # Errors
/// As [`run`].
pub fn install_release(machine: &Machine<'_>, release: Release) -> Result<RecoveryReport, RecoveryError> {
    install(machine, Some(release))
}

/// Starts an intact system once more: a fresh environment for what is recorded as installed.
///
/// # Errors
/// The environment cannot be written.
pub fn start_again(
    machine: &Machine<'_>,
    proof: Verified,
    installed: &InstalledRelease,
) -> Result<RecoveryReport, RecoveryError> {
    let manifest = &installed.manifest;
    let data = json!({ "version": manifest.version, "serial": manifest.serial });
    machine.journal.data(&format!("{} (serial {}) is intact", manifest.version, manifest.serial), data);
    commit(machine, proof, None, installed, NetworkUse::Forbidden, Totals::nothing_to_do(installed.index.image_bytes()))
}

/// Compares the partition with a release.
///
/// # Errors
/// What differs; `machine.journal` has been told.
pub fn compare(machine: &Machine<'_>, installed: &InstalledRelease) -> Result<Verified, Comparison> {
    let version = &installed.manifest.version;
    let sentence = format!("compare {} with the installed release {version}", machine.target.name());
    let mut found = Err(Comparison::nothing_right(&installed.index));
    let _: Result<(), Infallible> = machine.journal.phase(Phase::Plan, &sentence, || {
        found = read(machine, &installed.index);
        if let Err(comparison) = &found {
            tell_damage(machine.journal, &installed.index, comparison);
        }
        Ok(())
    });
    found
}

fn install(machine: &Machine<'_>, release: Option<Release>) -> Result<RecoveryReport, RecoveryError> {
    let journal = machine.journal;
    let offered = obtain(machine, release)?;
    let index = &offered.index;
    let mut plan = match look(machine, &offered)? {
        Looked::Equal(proof) => {
            return commit(
                machine,
                proof,
                None,
                &offered,
                NetworkUse::Allowed,
                Totals::nothing_to_do(index.image_bytes()),
            );
        }
        Looked::Differs(comparison, plan) => (comparison, plan),
    };
    let totals = plan.1.totals;
    announce(journal, &totals);
    let permit = prepare(machine, offered.manifest.serial, NetworkUse::Allowed)?;
    for _ in 0..=REWRITES {
        let (comparison, todo) = &plan;
        match write_and_read_back(machine, index, comparison, todo, &permit)? {
            Ok(proof) => return commit(machine, proof, Some(permit), &offered, NetworkUse::Allowed, totals),
            Err(comparison) => {
                let again = Plan::new(index, &comparison, Reuse::default());
                plan = (comparison, Box::new(again));
            }
        }
    }
    Err(RecoveryError::ReadBack {
        target: machine.target.identity(),
        ranges: ranges_for_people(&plan.0.damaged_ranges(index)),
    })
}

/// Says what [`run`] would do, without changing anything.
///
/// # Errors
/// As [`run`], up to the plan.
pub fn estimate(machine: &Machine<'_>) -> Result<(Manifest, Totals), RecoveryError> {
    let offered = obtain(machine, None)?;
    let totals = match look(machine, &offered)? {
        Looked::Equal(_) => Totals::nothing_to_do(offered.index.image_bytes()),
        Looked::Differs(_, plan) => plan.totals,
    };
    Ok((offered.manifest, totals))
}

/// Writes the release without reading it back, so that nothing is proven and nothing made bootable: for image files and
/// disks on a bench.
///
/// # Errors
/// As [`run`].
pub fn write_only(machine: &Machine<'_>) -> Result<(Manifest, Totals), RecoveryError> {
    let offered = obtain(machine, None)?;
    let (comparison, plan) = match look(machine, &offered)? {
        Looked::Equal(_) => {
            let totals = Totals::nothing_to_do(offered.index.image_bytes());
            return Ok((offered.manifest, totals));
        }
        Looked::Differs(comparison, plan) => (comparison, plan),
    };
    announce(machine.journal, &plan.totals);
    write(machine, &offered.index, &comparison, &plan, &WritePermit::without_environment(), false)?;
    Ok((offered.manifest, plan.totals))
}

/// The release, by default the offered one, and its index, fit for this machine and this partition.
fn obtain(machine: &Machine<'_>, release: Option<Release>) -> Result<InstalledRelease, RecoveryError> {
    machine.journal.phase(Phase::Manifest, &machine.source.describe(), || {
        let release = release.map_or_else(|| fetch_release(machine), Ok)?;
        let (index, index_object) = fetch_index(machine, &release)?;
        write::check_size(index.image_bytes(), machine.target)?;
        let Release { signed, manifest } = release;
        Ok(InstalledRelease { signed, manifest, index, index_object })
    })
}

/// What the partition is, compared with a release.
enum Looked {
    Equal(Verified),
    Differs(Comparison, Box<Plan>),
}

fn look(machine: &Machine<'_>, offered: &InstalledRelease) -> Result<Looked, RecoveryError> {
    let Machine { journal, target, .. } = machine;
    let index = &offered.index;
    journal.phase(Phase::Plan, &format!("compare {} with the release", target.name()), || {
        // What an older and larger image left behind it may be of use.
        let installed = machine.state.and_then(|state| state.installed_manifest(machine.keys));
        let before = installed.and_then(|(_, manifest)| Some(manifest.image(SYSTEM_IMAGE).ok()?.size_bytes));
        let search_bytes = index.image_bytes().max(before.unwrap_or_default());
        let (scan, blocks) = journal
            .with_progress(Bytes::of_disk(search_bytes), |done| Scan::searching(index, search_bytes, *target, done));
        report_read_errors(machine, &scan);
        match Verified::from_scan(scan) {
            Ok(proof) => Ok(Looked::Equal(proof)),
            Err(comparison) => {
                let plan = plan(machine, offered, &comparison, blocks)?;
                Ok(Looked::Differs(comparison, Box::new(plan)))
            }
        }
    })
}

/// The plan, with patches and moves where the partition holds anything.
fn plan(
    machine: &Machine<'_>,
    offered: &InstalledRelease,
    comparison: &Comparison,
    blocks: Blocks,
) -> Result<Plan, RecoveryError> {
    let index = &offered.index;
    let patched =
        fetch_patches(machine, offered, &blocks)?.map(|patches| Patched::new(&patches, index, comparison, &blocks));
    if patched.as_ref().is_some_and(|patched| patched.is_enough(comparison)) {
        return Ok(Plan::new(index, comparison, Reuse { found: None, patched }));
    }
    let Some(weak_hashes) = fetch_weak_hashes(machine, offered, &blocks)? else {
        return Ok(Plan::new(index, comparison, Reuse { found: None, patched }));
    };
    let blocks = blocks.completed(index, &weak_hashes, comparison);
    let found = Some(FoundBlocks { weak_hashes: &weak_hashes, blocks: &blocks });
    Ok(Plan::new(index, comparison, Reuse { found, patched }))
}

/// Whether the system image fits a partition, before anything else is done.
///
/// # Errors
/// It does not, or the release has none.
pub fn check_room(release: &Release, target: &dyn BlockTarget) -> Result<(), RecoveryError> {
    Ok(write::check_size(release.manifest.image(SYSTEM_IMAGE)?.size_bytes, target)?)
}

fn read(machine: &Machine<'_>, index: &Index) -> Result<Verified, Comparison> {
    let total = Bytes::of_disk(index.image_bytes());
    let scan = machine.journal.with_progress(total, |done| Scan::of(index, machine.target, done));
    report_read_errors(machine, &scan);
    Verified::from_scan(scan)
}

fn announce(journal: &Journal, totals: &Totals) {
    journal.data(&totals.to_string(), json!(totals));
}

fn prepare(machine: &Machine<'_>, serial: u64, network_use: NetworkUse) -> Result<WritePermit, RecoveryError> {
    let Some(state) = machine.state else { return Ok(WritePermit::without_environment()) };
    let begun = machine.recoveries.towards(serial, machine.requested);
    let then = if machine.requested { begun } else { begun.one_more() };
    let booted = machine.renewal.and_then(|renewal| renewal.booted).filter(|_| network_use == NetworkUse::Allowed);
    let permit = state.boot_env().begin_recovering(begun, then, booted).map_err(RecoveryError::Prepare)?;
    if !permit.dropped.is_empty() {
        let dropped = permit.dropped.join(", ");
        machine.journal.warn(&format!("the boot environment is full; removed from it, as not ours: {dropped}"));
    }
    Ok(permit)
}

fn write_and_read_back(
    machine: &Machine<'_>,
    index: &Index,
    comparison: &Comparison,
    plan: &Plan,
    permit: &WritePermit,
) -> Result<Result<Verified, Comparison>, RecoveryError> {
    let Machine { journal, target, .. } = machine;
    let written = write(machine, index, comparison, plan, permit, true)?;
    journal.phase(Phase::Verify, &format!("read {} back", target.name()), || {
        let pending = Bytes::of_disk(written.read_back.pending_bytes());
        let scan = journal.with_progress(pending, |done| verify::read_back(written, *target, done));
        report_read_errors(machine, &scan);
        let ranges = scan.damaged_ranges();
        if !ranges.is_empty() {
            journal.warn(&format!("read back wrong: {}", ranges_for_people(&ranges)));
        }
        Ok(Verified::from_scan(scan))
    })
}

fn write<'i>(
    machine: &Machine<'_>,
    index: &'i Index,
    comparison: &Comparison,
    plan: &Plan,
    permit: &WritePermit,
    read_behind: bool,
) -> Result<Written<'i>, RecoveryError> {
    let Machine { journal, target, source, .. } = *machine;
    let sentence = format!("write {} to {}", bytes(plan.totals.changed_bytes()), target.name());
    journal.phase(Phase::Write, &sentence, || {
        journal.with_progress(write::expected_work(plan, read_behind), |done| {
            let work = Work { plan, source, target, done, read_behind };
            Ok(write::apply(index, comparison, work, permit)?)
        })
    })
}

fn report_read_errors(machine: &Machine<'_>, scan: &Scan<'_>) {
    for (range, error) in scan.read_errors.iter().take(10) {
        let name = machine.target.name();
        machine.journal.warn(&format!("cannot read bytes {} to {} of {name}: {error}", range.start, range.end));
    }
}

fn commit(
    machine: &Machine<'_>,
    proof: Verified,
    permit: Option<WritePermit>,
    installed: &InstalledRelease,
    network_use: NetworkUse,
    totals: Totals,
) -> Result<RecoveryReport, RecoveryError> {
    let InstalledRelease { signed, manifest, index_object, .. } = installed;
    let Manifest { version, serial, .. } = manifest;
    let committed = machine.journal.phase(Phase::Commit, &format!("make {version} the system to boot"), || {
        let permit = permit.map_or_else(|| prepare(machine, *serial, network_use), Ok)?;
        let renew = || renew(machine, manifest, network_use);
        let committed = commit::commit(proof, permit, machine.state, signed, index_object, machine.tries, renew)?;
        if let Some(error) = &committed.unrecorded {
            machine.journal.warn(&format!("{version} starts, but cannot be recorded as installed: {error}"));
        }
        Ok::<_, RecoveryError>(committed)
    })?;
    Ok(RecoveryReport { version: version.clone(), serial: *serial, totals, committed })
}

/// Brings the recovery up to date; what GRUB is to be told of the slots afterwards.
fn renew(machine: &Machine<'_>, manifest: &Manifest, network_use: NetworkUse) -> Option<SlotState> {
    let (renewal, state) = (machine.renewal?, machine.state?);
    let slots = state.boot_env().slots().ok()?;
    let ready = renew::renew(renewal, manifest, slots.active, network_use, machine.journal)?;
    let (ReadySlot::Found(slot) | ReadySlot::Written(slot)) = ready;
    let then = slots.leading_to(ready, renewal.booted);
    match then.trial {
        Some(Trial::Due(_)) => machine.journal.note(&format!("the next recovery tries slot {slot}")),
        Some(Trial::Tried(tried)) if tried == slot => machine.journal.warn(&format!(
            "the recovery of {} in slot {slot} did not come up when it was tried: the one before it stays",
            manifest.version
        )),
        _ => {}
    }
    Some(then)
}

fn tell_damage(journal: &Journal, index: &Index, comparison: &Comparison) {
    let ranges = comparison.damaged_ranges(index);
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
