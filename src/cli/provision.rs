//! `reflash provision`: a disk on a bench, or a file, becomes the disk of a robot.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::answer::{Exit, Failure, failure, print};
use super::context::{Context, ETC, MAX_CONFIG_BYTES};
use super::mounted::MOUNTS;
use super::options::Options;
use crate::chain::chain;
use crate::disk::{Which, disks};
use crate::flash::target::DeviceTarget;
use crate::jobs::keys::key_files;
use crate::jobs::provision::{self, DiskCandidate, ErasePermission, Firmware, InstallError, Site};
use crate::machine::config::{Config, DiskSelector, Layer};
use crate::sys::files;

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    let Some(path) = &options.disk else { return failure("no disk: give --disk DEV") };
    let Some(config_path) = &options.config else {
        return failure("the new machine needs a configuration: give --config FILE");
    };
    let candidate = candidate(path, options.block_bytes)?;
    // A person named the disk, so it may be removable. In use it must not be.
    let named = DiskSelector { removable: true, ..DiskSelector::default() };
    let candidate = provision::choose(&named, &[candidate], &[])?;
    let site = Site { config: site_config(config_path)?, keys: site_keys(options)?, ..Site::default() };
    let firmware = options.firmware.unwrap_or_else(Firmware::of_this_machine);
    let disk = candidate.disk.to_string();
    let device = &candidate.disk.path;
    let target = if options.dry_run { DeviceTarget::open_read_only(device)? } else { DeviceTarget::open(device)? };
    let target = target.on_disk(&disk);
    let context = Context::open(options, None)?;
    let job = context.job(&target, true);
    let (offered, preflight) = provision::prepare(&job, candidate, firmware).map_err(failed)?;
    let version = offered.manifest.version.clone();
    if options.dry_run {
        let answer = json!({ "version": version, "disk": disk, "plan": preflight.to_string() });
        print(options, &answer, || format!("{version} would be put on {disk}; nothing was written"))?;
        return Ok(Exit::Done);
    }
    let armed = preflight.arm(ErasePermission { confirmation: options.arm.as_deref(), unattended_medium: None })?;
    // Several runs at a time on a bench must not be in each other's way.
    let mounts = Path::new(MOUNTS).join(format!("new-{}", std::process::id()));
    let installed = provision::install(armed, &job, offered, &site, &mounts).map_err(failed);
    let _ = std::fs::remove_dir_all(&mounts);
    let (report, _) = installed?;
    let answer = json!({ "version": report.version, "serial": report.serial, "disk": disk });
    print(options, &answer, || format!("{disk} is provisioned with {version}, verified"))?;
    Ok(Exit::Done)
}

/// The configuration of the new machine. A disk that could not recover by itself later is not worth making, whatever
/// the options add here, so that the file must be complete.
fn site_config(path: &Path) -> Result<String, Failure> {
    let bytes = files::read_named(path, MAX_CONFIG_BYTES).map_err(|error| unreadable(path, &error))?;
    let Ok(text) = String::from_utf8(bytes) else { return failure(format!("{} is not text", path.display())) };
    match Config::resolve(Layer::parse(&path.display().to_string(), &text)?) {
        Ok(_) => Ok(text),
        Err(error) => failure(format!("the configuration of the new machine is incomplete: {}", chain(&error))),
    }
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
    Failure { text: format!("cannot read {}: {error}", path.display()), exit: Exit::Failed }
}

/// The public keys that the new machine trusts: the ones that the release is checked with here.
fn site_keys(options: &Options) -> Result<Vec<(String, String)>, Failure> {
    let directory = options.keys.clone().unwrap_or_else(|| Path::new(ETC).join("keys"));
    let named =
        |(path, text): (PathBuf, String)| (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), text);
    Ok(key_files(&directory)?.into_iter().map(named).collect())
}

fn failed(error: InstallError) -> Failure {
    let retryable = matches!(&error, InstallError::Recovery(error) if error.is_retryable());
    Failure::of(&error, retryable)
}
