//! The boot chain is brought up to date with the release, and mended, once the system is verified.
//!
//! Nothing in here can fail a recovery. Boot code is fetched only when the robot's own copy is of an older release and
//! differs; without a network the copy is enough to mend with.

use crate::chain::chain;
use crate::jobs::mend::{self, pieces::BootPieces};
use crate::jobs::recovery::job::RecoveryJob;
use crate::jobs::recovery::release::fetch_file;
use crate::jobs::recovery::renew::NetworkUse;
use crate::jobs::state::{Release, StatePartition};

/// Mends the boot chain with the boot code of the release, as far as that is possible. What goes wrong is a warning.
pub(super) fn mend(job: &RecoveryJob<'_>, release: &Release, network_use: NetworkUse) {
    let Some(boot_chain) = job.resources.boot_chain else { return };
    (boot_chain.within)(&mut || {
        let names = mend::boot_code::file_names_of(boot_chain.disk, boot_chain.table);
        let pieces = pieces(job, &names, release, network_use);
        mend::mend(boot_chain.disk, Some(boot_chain.table), pieces.as_ref(), job.journal);
    });
}

/// The boot code that the disk is to have: that of the release, unless the robot's own copy is as new.
fn pieces(job: &RecoveryJob<'_>, names: &[&str], release: &Release, network_use: NetworkUse) -> Option<BootPieces> {
    let own = job.resources.state.and_then(BootPieces::read);
    let manifest = &release.manifest;
    // An older release that is installed again does not bring older boot code back.
    let is_current = own.as_ref().is_some_and(|own| own.serial >= manifest.serial);
    let offered = mend::pieces::offered(manifest, names);
    if is_current || network_use == NetworkUse::Forbidden || offered.is_empty() {
        return own;
    }
    if own.as_ref().is_some_and(|own| own.equals(manifest, names)) {
        let newer = own.map(|own| own.of_release(manifest.serial));
        keep(job, newer.as_ref());
        return newer;
    }
    let source = job.resources.renewal.map_or(job.resources.source, |renewal| renewal.source);
    let job_of_boot_code = job.with_source(source);
    let fetched: Result<Vec<_>, _> = offered
        .iter()
        .map(|file| fetch_file(&job_of_boot_code, release, &file.name).map(|content| (file.name.clone(), content)))
        .collect();
    match fetched {
        Ok(files) => {
            let pieces = Some(BootPieces::new(manifest.serial, files));
            keep(job, pieces.as_ref());
            pieces
        }
        Err(error) => {
            job.journal.warn(&format!("the boot code of {} is left for later: {}", manifest.version, chain(&error)));
            own
        }
    }
}

fn keep(job: &RecoveryJob<'_>, pieces: Option<&BootPieces>) {
    let Some((state, pieces)): Option<(&StatePartition, _)> = job.resources.state.zip(pieces) else { return };
    if let Err(error) = pieces.keep(state) {
        job.journal.warn(&format!("no copy of the boot code can be kept: {error}"));
    }
}
