//! `reflash provision`: a disk on a bench, or a file, becomes a robot's disk.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::chain::chain;
use crate::cli::args::{Common, Provision};
use crate::cli::mounted::MOUNTS;
use crate::cli::run::{FAILED, Failure, LATER, bench, failure, say};
use crate::disk::{Which, disks};
use crate::flash::target::DeviceTarget;
use crate::jobs::keys::key_files;
use crate::jobs::provision::{self, DiskCandidate, ErasePermission, Firmware, InstallError, Site};
use crate::machine::config::{Config, DiskSelector, Layer};

pub(super) fn run(provision: &Provision) -> Result<u8, Failure> {
    let Some(path) = &provision.disk else { return failure("no disk: give --disk DEV") };
    let release = &provision.release;
    let Some(config_path) = &release.common.config else {
        return failure("the new machine needs a configuration: give --config FILE");
    };
    let candidate = candidate(path, provision.block_bytes)?;
    // By hand it was named, so it may be removable. In use it must not be.
    let named = DiskSelector { removable: true, ..DiskSelector::default() };
    let candidate = provision::choose(&named, &[candidate], &[])?;
    let config = std::fs::read_to_string(config_path).map_err(|error| unreadable(config_path, &error))?;
    // A disk that could not recover by itself later is not worth making, whatever the options add here.
    Config::resolve(Layer::parse(&config_path.display().to_string(), &config)?)
        .map_err(|error| Failure { text: format!("the new machine needs more: {}", chain(&error)), code: FAILED })?;
    let site = Site { config, keys: keys(&release.common), ..Site::default() };
    let firmware = match provision.uefi {
        Some(true) => Firmware::Uefi,
        Some(false) => Firmware::Bios,
        None => Firmware::of_this_machine(),
    };
    let disk = candidate.disk.to_string();
    let target = if release.dry_run {
        DeviceTarget::open_read_only(&candidate.disk.path)?
    } else {
        DeviceTarget::open(&candidate.disk.path)?
    }
    .on_disk(&disk);
    let bench = bench(release)?;
    let job = bench.job(&target, true);
    let (offered, preflight) = provision::prepare(&job, candidate, firmware).map_err(failed)?;
    let version = offered.manifest.version.clone();
    if release.dry_run {
        let answer = json!({ "version": version, "disk": disk, "plan": preflight.to_string() });
        say(release.common.json, &answer, || format!("{version} would be put on {disk}; nothing was written"));
        return Ok(0);
    }
    let armed = preflight.arm(ErasePermission { confirmation: provision.arm.as_deref(), unattended_medium: None })?;
    // One run on a bench must not be in the way of another.
    let mounts = Path::new(MOUNTS).join(format!("new-{}", std::process::id()));
    let installed = provision::install(armed, &job, offered, &site, &mounts).map_err(failed);
    let _ = std::fs::remove_dir_all(&mounts);
    let (report, _) = installed?;
    let answer = json!({ "version": report.version, "serial": report.serial, "disk": disk });
    say(release.common.json, &answer, || format!("{disk} is a robot's, with {version}, verified"));
    Ok(0)
}

fn candidate(path: &Path, block_bytes: Option<u32>) -> Result<DiskCandidate, Failure> {
    let path = path.canonicalize().map_err(|error| unreadable(path, &error))?;
    if path.is_file() {
        return Ok(DiskCandidate::of_file(&path, block_bytes.unwrap_or(512))?);
    }
    match disks(Which::WithLoop)?.into_iter().find(|disk| disk.path == path) {
        Some(disk) => Ok(DiskCandidate::of_disk(disk)),
        None => failure(format!("{} is not a whole disk", path.display())),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure { text: format!("cannot read {}: {error}", path.display()), code: FAILED }
}

/// The public keys that the new machine trusts: those that are checked with here.
fn keys(common: &Common) -> Vec<(String, String)> {
    let directory = common.keys.clone().unwrap_or_else(|| Path::new(crate::cli::run::ETC).join("keys"));
    let named =
        |(path, text): (PathBuf, String)| (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), text);
    key_files(&directory).into_iter().map(named).collect()
}

fn failed(error: InstallError) -> Failure {
    let code = match &error {
        InstallError::Recovery(error) if error.is_retryable() => LATER,
        _ => FAILED,
    };
    Failure { text: chain(&error), code }
}
