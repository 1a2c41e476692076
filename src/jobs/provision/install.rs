//! Installation on an armed disk: file systems with their content, the system, and the table last.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::preflight::{Armed, Firmware, NotArmed, Preflight, Refused};
use super::select::DiskCandidate;
use super::write::{ProvisionError, Provisioned, begin};
use crate::boot::disk_record;
use crate::chain::chain;
use crate::flash::target::Window;
use crate::jobs::floor;
use crate::jobs::mend::{self, pieces::BootPieces};
use crate::jobs::provision::bootstrap::BootstrapFiles;
use crate::jobs::recovery::{self, Keep, Policy, RecoveryError, RecoveryJob, RecoveryReport, Resources};
use crate::jobs::state::{Release, StatePartition};
use crate::machine::media::MediaId;
use crate::record::blackbox::{AttemptOutcome, Remembered};
use crate::release::bootstrap_names as names;
use crate::release::layout::{Layout, Placed, Role, Scheme};
use crate::sys;
use crate::sys::loopback::Loop;
use crate::sys::mount::{Mount, MountError};

/// Directory of the recovery partition that holds the IDs of the media it was provisioned from; `grub/media.cfg` looks
/// there.
const PROVISIONED: &str = "provisioned";

/// Reason in the black box of the new robot, beside the reasons that GRUB gives.
const REASON: &str = "provision";

/// Files that the site where the robot will work adds to the release: all of them go to the recovery partition.
#[derive(Debug, Clone, Default)]
pub struct Site {
    /// Content of `reflash.toml`.
    pub config: String,
    /// Public keys: file name and content.
    pub keys: Vec<(String, String)>,
    /// The name this machine has in the list on the medium.
    pub asset: Option<String>,
    /// The medium the machine was started from.
    pub medium: Option<MediaId>,
}

/// Failure of a provisioning. Run it again: it begins from the start, and downloads only what is not there yet.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The release does not say how to lay out a disk. Nothing was written.
    #[error(
        "release {version} has no partition layout: publish it with `reflash-build release --layout`; nothing was written"
    )]
    NoLayout {
        /// Version of the release.
        version: String,
    },
    /// The layout with two systems cannot be read.
    #[error(
        "release {version} has a layout with two systems that cannot be read: it was built wrong; nothing was written"
    )]
    Layout {
        /// Version of the release.
        version: String,
        /// Error of the parser.
        source: serde_json::Error,
    },
    /// The layout and the disk do not go together.
    #[error("nothing was written")]
    Refused(#[from] Refused),
    /// The disk is not blank, and erasing it was not permitted.
    #[error("nothing was written")]
    NotArmed(#[from] NotArmed),
    /// Release that could not be fetched, or system that could not be written.
    #[error("the system could not be installed on the new disk")]
    Recovery(#[from] RecoveryError),
    /// Write to the disk that failed.
    #[error("the disk could not be provisioned")]
    Provision(#[from] ProvisionError),
    /// Loop device that could not be made.
    #[error("the {role} partition cannot be used through a loop device; is the module loop there?")]
    Loop {
        /// Role of the partition.
        role: Role,
        /// Error of the system call.
        source: io::Error,
    },
    /// Mount that the kernel refused.
    #[error("a new file system cannot be mounted")]
    Mount(#[from] MountError),
    /// File that could not be written to a new file system.
    #[error("cannot write {}", .path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system call.
        source: io::Error,
    },
}

/// Finds out what would be done to this disk with the release that is offered. Nothing is written.
///
/// # Errors
/// [`InstallError`].
pub fn prepare(
    job: &RecoveryJob<'_>,
    candidate: DiskCandidate,
    firmware: Firmware,
) -> Result<(Release, Preflight), InstallError> {
    let release = recovery::fetch_release(job, None)?;
    let Some(layout) = layout(job, &release)? else {
        return Err(InstallError::NoLayout { version: release.manifest.version });
    };
    let preflight = Preflight::new(candidate, &layout, firmware)?;
    preflight.to_string().lines().for_each(|line| job.journal.note(line));
    Ok((release, preflight))
}

/// Does all of it. The target of `job` is the disk as a whole; `mounts` is a directory for the time being.
///
/// # Errors
/// [`InstallError`]. The disk is then unclaimed, and the next run needs no permission.
pub fn install(
    armed: Armed,
    job: &RecoveryJob<'_>,
    release: Release,
    site: &Site,
    mounts: &Path,
) -> Result<(RecoveryReport, Provisioned), InstallError> {
    let (disk, journal) = (job.resources.target, job.journal);
    let attempt = Remembered::begin(REASON, &release.manifest.version, release.manifest.serial, journal);
    let plan = armed.plan();
    let (path, block_size) = (plan.candidate().disk.path.clone(), plan.candidate().disk.logical_block_size);
    let (table, disk_bytes) = (plan.table, plan.candidate().disk.size_bytes);
    // By hand, the disk may be on a bench: its port is not the one that the robot will have.
    let identity = site.medium.is_some().then(|| plan.candidate().disk.identity());
    let bootstrap_files = BootstrapFiles::get(plan, |name| recovery::fetch_file(job, &release, name))?;
    let pieces = boot_pieces(plan, job, &release, &bootstrap_files)?;
    let window = |place: &Placed| Window {
        target: disk,
        range: place.offset_bytes..place.offset_bytes + place.size_bytes,
        name: place.partition.role.to_string(),
    };
    let place = |partitions: &[Placed], role| partitions.iter().find(|place| place.partition.role == role).cloned();
    if let Some(system) = place(plan.partitions(), Role::System) {
        recovery::check_room(&release, &window(&system))?;
    }

    // The one who armed this sets the floor anew.
    let floor_file = floor::file_of_new_disk(release.id(), job.resources.floor);
    let unfinished = begin(armed, disk, &bootstrap_files.parts, journal)?;
    let mounted = |role: Role| {
        let place = place(unfinished.partitions(), role);
        let one = place.map(|place| MountedPartition::new(&path, &place, block_size, mounts)).transpose()?;
        // Nothing is ever found by this UUID, but it distinguishes two disks in one machine.
        if let Some(Err(error)) = one.as_ref().map(|one| sys::ext4::new_uuid(&one.directory)) {
            journal.note(&format!("the {role} file system keeps the identity of its template: {error}"));
        }
        Ok::<_, InstallError>(one)
    };
    // Nothing goes into it.
    drop(mounted(Role::Data)?);
    if let Some(recovery) = mounted(Role::Recovery)? {
        fill_recovery(&recovery.directory, &bootstrap_files, site)?;
        write(&recovery.directory.join(floor::FILE), &floor_file)?;
    }
    let state_mount = mounted(Role::State)?;
    if let Some(mounted) = &state_mount {
        write(&mounted.directory.join(floor::FILE), &floor_file)?;
    }
    let state = state_mount.as_ref().map(|mounted| StatePartition::new(&mounted.directory));
    if let Some(Err(error)) = state.as_ref().map(|state| pieces.keep(state)) {
        journal.warn(&format!("no copy of the boot code can be kept: {error}"));
    }
    let system = place(unfinished.partitions(), Role::System).unwrap_or_else(|| unreachable!("a checked layout"));
    let system = window(&system);
    let resources = Resources { target: &system, state: state.as_ref(), floor: None, ..job.resources };
    // Whatever an earlier life of the disk kept for an undo is of no use to this one.
    let policy = Policy { keep: Keep::Nothing, ..job.policy };
    // The new state partition has no record of an installed release.
    let report = recovery::install(&RecoveryJob { resources, policy, ..job.clone() }, None, release)?;
    let remembered = state.as_ref().zip(identity).map(|(state, disk)| disk_record::remember(&state.boot_env(), disk));
    if let Some(Err(error)) = remembered {
        journal.warn(&format!("this disk cannot be remembered: {}", chain(&error)));
    }
    // A GPT says itself for which size it was made.
    let of_mbr = state.as_ref().filter(|_| table == Scheme::Mbr);
    if let Some(Err(error)) = of_mbr.map(|state| disk_record::remember_size(&state.boot_env(), disk_bytes)) {
        journal.warn(&format!("the size of this disk cannot be remembered: {}", chain(&error)));
    }
    if let Some(Err(error)) =
        state.as_ref().map(|state| attempt.write(&state.blackbox_path(), AttemptOutcome::Installed))
    {
        journal.warn(&format!("no black box: {error}"));
    }
    // Unmounted before the table says that it is there.
    drop(state_mount);
    disk.flush().map_err(|source| ProvisionError::Disk {
        action: "flush the file systems".to_owned(),
        disk: disk.identity(),
        source,
    })?;
    let provisioned = unfinished.finish(disk, site.medium, &report.committed, journal)?;
    Ok((report, provisioned))
}

/// Returns the layout of the release: with two systems where it has such a one.
fn layout(job: &RecoveryJob<'_>, release: &Release) -> Result<Option<Layout>, InstallError> {
    if release.manifest.file(names::TWO_SYSTEMS).is_err() {
        return Ok(release.manifest.layout.clone());
    }
    let content = recovery::fetch_file(job, release, names::TWO_SYSTEMS)?;
    let version = &release.manifest.version;
    serde_json::from_slice(&content)
        .map(Some)
        .map_err(|source| InstallError::Layout { version: version.clone(), source })
}

/// The robot's own copy of its boot code, with which it mends what of that is lost before it has ever recovered.
fn boot_pieces(
    plan: &Preflight,
    job: &RecoveryJob<'_>,
    release: &Release,
    bootstrap_files: &BootstrapFiles,
) -> Result<BootPieces, RecoveryError> {
    let has = |role| plan.placed.iter().any(|place| place.partition.role == role);
    let names = mend::boot_code::file_names(plan.table, plan.candidate().disk.logical_block_size, has);
    let files: Result<Vec<_>, RecoveryError> = mend::pieces::offered(&release.manifest, &names)
        .into_iter()
        .map(|file| {
            let known = bootstrap_files.boot_code(&file.name).map(<[u8]>::to_vec);
            let content = known.map_or_else(|| recovery::fetch_file(job, release, &file.name), Ok)?;
            Ok((file.name.clone(), content))
        })
        .collect();
    Ok(BootPieces::new(release.manifest.serial, files?))
}

fn fill_recovery(root: &Path, bootstrap_files: &BootstrapFiles, site: &Site) -> Result<(), InstallError> {
    for (path, content) in &bootstrap_files.recovery {
        write(&root.join(path), content)?;
    }
    write(&root.join("reflash.toml"), site.config.as_bytes())?;
    for (name, content) in &site.keys {
        write(&root.join("keys").join(name), content.as_bytes())?;
    }
    if let Some(asset) = &site.asset {
        write(&root.join("asset"), format!("{asset}\n").as_bytes())?;
    }
    if let Some(id) = &site.medium {
        write(&root.join(PROVISIONED).join(id.to_string()), b"")?;
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> Result<(), InstallError> {
    let result = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, content));
    result.map_err(|source| InstallError::File { path: path.to_owned(), source })
}

/// A partition of an unfinished disk, mounted.
struct MountedPartition {
    directory: PathBuf,
    _device: Loop,
}

impl MountedPartition {
    fn new(disk: &Path, place: &Placed, block_size: u32, mounts: &Path) -> Result<Self, InstallError> {
        let role = place.partition.role;
        let range = place.offset_bytes..place.offset_bytes + place.size_bytes;
        let device = Loop::of(disk, range, block_size).map_err(|source| InstallError::Loop { role, source })?;
        let directory = mounts.join(role.to_string());
        fs::create_dir_all(&directory).map_err(|source| InstallError::File { path: directory.clone(), source })?;
        Mount::device(device.path(), "ext4").data_only().on(&directory)?;
        Ok(Self { directory, _device: device })
    }
}

impl Drop for MountedPartition {
    fn drop(&mut self) {
        // Only a bug could keep the file system busy; the loop device then stays until the restart.
        let _ = sys::mount::unmount(&self.directory);
    }
}
