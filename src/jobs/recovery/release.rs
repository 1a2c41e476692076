//! The release and its parts, fetched and checked.

use serde_json::json;

use super::{Machine, RecoveryError};
use crate::chain::chain;
use crate::fetch::{FetchErrorKind, Refusal, Source};
use crate::flash::plan::Blocks;
use crate::jobs::state::InstalledRelease;
use crate::record::progress::bytes;
use crate::release::digest::Digest;
use crate::release::index::{Index, Pack};
use crate::release::manifest::{self, Authentic, Manifest, ManifestError, Object, SYSTEM_IMAGE};
use crate::release::patches::{self, Patches};
use crate::release::weak_hashes::{self, WeakHashes};

/// A minisign signature is 4 lines, about 350 bytes.
const MAX_SIGNATURE_BYTES: u64 = 4096;

/// A manifest that is signed, fits this machine and does not go back.
#[derive(Debug)]
pub struct Release {
    pub(super) signed: Authentic,
    /// What it says.
    pub manifest: Manifest,
}

/// Downloads the manifest and checks signature, format, fit and serial.
///
/// # Errors
/// [`RecoveryError::Fetch`] or [`RecoveryError::Manifest`].
pub fn fetch_release(machine: &Machine<'_>) -> Result<Release, RecoveryError> {
    fetch_release_above(machine, None)
}

/// As [`fetch_release`], of a release whose serial is above `floor`.
///
/// # Errors
/// [`RecoveryError::Fetch`] or [`RecoveryError::Manifest`].
pub fn fetch_release_above(machine: &Machine<'_>, floor: Option<u64>) -> Result<Release, RecoveryError> {
    if machine.keys.is_empty() {
        // No copy of the release can be good: do not ask for one again and again.
        return Err(ManifestError::NoKeys.into());
    }
    let installed = machine.state.and_then(|state| state.installed_manifest(machine.keys));
    let installed = installed.filter(|_| !machine.allow_older).map(|(_, installed)| installed.serial);
    let path = manifest::manifest_path(&machine.channel);
    let signature_path = format!("{path}.minisig");
    let wanted = [(path.as_str(), manifest::MAX_SIZE_BYTES), (signature_path.as_str(), MAX_SIGNATURE_BYTES)];
    let (mut found, mut unsuitable) = (None, None);
    let check = |files: &[Vec<u8>]| {
        let signed = machine.keys.authenticate(files[0].clone(), &text(&files[1]));
        let signed = signed.map_err(|error| Refusal::Wrong(chain(&error)))?;
        match suitable(machine, &signed, installed, floor) {
            Ok(manifest) => found = Some(Release { signed, manifest }),
            Err(error) => {
                let refusal = Refusal::Unsuitable(chain(&error));
                unsuitable = Some(error);
                return Err(refusal);
            }
        }
        Ok(())
    };
    let answer = get_checked(machine.source, "manifest", &wanted, check);
    let release = match (answer, found, unsuitable) {
        (Ok(_), Some(release), _) => release,
        // Of no source was more to be had.
        (Err(RecoveryError::Fetch { source, .. }), _, Some(error)) if source.kind() == FetchErrorKind::Unsuitable => {
            return Err(error.into());
        }
        (Err(error), ..) => return Err(error),
        (Ok(_), None, _) => return Err(ManifestError::NoKeys.into()),
    };
    let Release { signed, manifest } = &release;
    machine.journal.data(
        &format!("release {} (serial {}), signed by {}", manifest.version, manifest.serial, signed.key_name()),
        json!({ "version": manifest.version, "serial": manifest.serial }),
    );
    Ok(release)
}

/// What an authentic manifest says, if it is for this machine and does not go back behind the `installed` serial. An old stick
/// or a mirror that lags behind must not hide what the next source has.
fn suitable(
    machine: &Machine<'_>,
    signed: &Authentic,
    installed: Option<u64>,
    floor: Option<u64>,
) -> Result<Manifest, ManifestError> {
    let manifest = Manifest::parse(signed)?;
    (machine.learn_time)(manifest.created_unix_s);
    end_trial(machine);
    manifest.check_fit(&machine.product, &machine.hardware, &machine.channel)?;
    manifest.check_serial(installed)?;
    if floor.is_some_and(|floor| manifest.serial <= floor) {
        return Err(ManifestError::NothingNew { version: manifest.version, offered: manifest.serial });
    }
    Ok(manifest)
}

/// Disk, network, clock and keys work: a renewed recovery needs to show no more than that. Whether the release fits is not
/// its business.
fn end_trial(machine: &Machine<'_>) {
    let (Some(state), Some(renewal)) = (machine.state, machine.renewal) else { return };
    let ended = renewal.booted.map_or(Ok(()), |booted| state.boot_env().end_trial(booted));
    if let Err(error) = ended {
        machine.journal.warn(&format!("this recovery stays on trial: {}", chain(&error)));
    }
}

pub(super) fn fetch_index(machine: &Machine<'_>, release: &Release) -> Result<(Index, Vec<u8>), RecoveryError> {
    let image = release.manifest.image(SYSTEM_IMAGE)?;
    let installed = machine.state.and_then(|state| state.installed(machine.keys));
    let same = installed
        .filter(|installed| installed.manifest.image(SYSTEM_IMAGE).is_ok_and(|known| known.index == image.index));
    let (index, object) = match same {
        Some(installed) => (installed.index, installed.index_object),
        None => {
            let object = fetch_object(machine.source, "chunk index", &image.index)?;
            (Index::from_object(&object)?, object)
        }
    };
    if index.image_bytes() != image.size_bytes {
        return Err(RecoveryError::SizesDiffer { index_bytes: index.image_bytes(), manifest_bytes: image.size_bytes });
    }
    Ok((index, object))
}

/// A file of the release, whole and checked: they are few and small.
///
/// # Errors
/// [`RecoveryError::Fetch`], or [`RecoveryError::Manifest`] when the release has no such file.
pub fn fetch_file(machine: &Machine<'_>, release: &Release, name: &str) -> Result<Vec<u8>, RecoveryError> {
    fetch_object(machine.source, "file of the release", &release.manifest.file(name)?.object)
}

/// The table of the release's patches, if it has any, and there is something to patch. Without it more is downloaded,
/// which is no reason to fail.
pub(super) fn fetch_patches(
    machine: &Machine<'_>,
    offered: &InstalledRelease,
    blocks: &Blocks,
) -> Result<Option<Patches>, RecoveryError> {
    let Some(patches) = offered.manifest.image(SYSTEM_IMAGE)?.patches.filter(|_| !blocks.is_blank()) else {
        return Ok(None);
    };
    let without = |why: &(dyn std::error::Error + 'static)| {
        machine.journal.warn(&format!("nothing can be patched, more is downloaded: {}", chain(why)));
        Ok(None)
    };
    let manifest::PatchObjects { table, pack } = patches;
    if table.size_bytes > patches::MAX_TABLE_BYTES {
        machine.journal.warn(&format!("a table of patches of {} is more than fits", bytes(table.size_bytes)));
        return Ok(None);
    }
    let pack = Pack { digest: pack.blake3, size_bytes: pack.size_bytes };
    match fetch_object(machine.source, "table of patches", &table) {
        Ok(bytes) => Patches::from_object(&bytes, pack, &offered.index).map(Some).or_else(|error| without(&error)),
        Err(error) if error.is_retryable() => Err(error),
        Err(error) => without(&error),
    }
}

/// The weak hashes of the release, if they are of use. Without them more is downloaded, which is no reason to fail.
pub(super) fn fetch_weak_hashes(
    machine: &Machine<'_>,
    offered: &InstalledRelease,
    blocks: &Blocks,
) -> Result<Option<WeakHashes>, RecoveryError> {
    let Some(object) = offered.manifest.image(SYSTEM_IMAGE)?.weak_hashes.as_ref().filter(|_| !blocks.is_blank()) else {
        return Ok(None);
    };
    let without = |why: &(dyn std::error::Error + 'static)| {
        machine.journal.warn(&format!("nothing can be moved, more is downloaded: {}", chain(why)));
        Ok(None)
    };
    if object.size_bytes > weak_hashes::MAX_SIZE_BYTES {
        machine
            .journal
            .warn(&format!("weak block hashes of {} are more than fit into memory", bytes(object.size_bytes)));
        return Ok(None);
    }
    match fetch_object(machine.source, "weak block hashes", object) {
        Ok(bytes) => WeakHashes::decode(bytes, &offered.index).map(Some).or_else(|error| without(&error)),
        Err(error) if error.is_retryable() => Err(error),
        Err(error) => without(&error),
    }
}

pub(super) fn fetch_object(source: &dyn Source, what: &'static str, object: &Object) -> Result<Vec<u8>, RecoveryError> {
    let path = manifest::object_path(&object.blake3);
    let check = |files: &[Vec<u8>]| {
        let (found, len) = (Digest::of(&files[0]), files[0].len());
        if found == object.blake3 {
            return Ok(());
        }
        let expected = format!("expected {} bytes with {}", object.size_bytes, object.blake3);
        Err(Refusal::Wrong(format!("{len} bytes with digest {found}, {expected}")))
    };
    get_checked(source, what, &[(&path, object.size_bytes)], check).map(|mut files| files.remove(0))
}

fn get_checked(
    source: &dyn Source,
    what: &'static str,
    wanted: &[(&str, u64)],
    mut check: impl FnMut(&[Vec<u8>]) -> Result<(), Refusal>,
) -> Result<Vec<Vec<u8>>, RecoveryError> {
    source.get_checked(wanted, &mut check).map_err(|source| RecoveryError::Fetch { what, source })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
