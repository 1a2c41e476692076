//! Takes the steps of the plan.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::SysrootError;
use super::messages::log;
use super::plan::BootStep;
use crate::sys::mount::{self, Mount};
use crate::sys::thread::Questions;
use crate::sys::{files, process};

/// OSTree's program in the image that goes from the partition's root to the deployment that `ostree=` names.
const PREPARE_ROOT: &str = "/usr/lib/ostree/ostree-prepare-root";
/// Name of a thread that a disk may hold.
const THREAD: &str = "data";

/// Takes all steps, in order. When one fails, what the others mounted is taken away again.
pub(super) fn take_all(steps: &[BootStep]) -> Result<(), SysrootError> {
    let mut mounted: Vec<&Path> = Vec::new();
    for step in steps {
        log(&step.to_string());
        if let Err(error) = take(step) {
            for target in mounted.iter().rev() {
                let _ = mount::detach(target);
            }
            return Err(error);
        }
        mounted.extend(step.mounts_on());
    }
    Ok(())
}

/// Does `work`, which a disk may hold for ever, and waits for it no longer than `limit`. The thread is left behind
/// then: nothing can interrupt it.
pub(super) fn answer_within<T: Send + 'static>(
    limit: Duration,
    action: &str,
    work: impl FnOnce() -> Result<T, SysrootError> + Send + 'static,
) -> Result<T, SysrootError> {
    let answer = Questions::default().ask(THREAD, (), limit, work);
    answer.unwrap_or_else(|| Err(SysrootError::NoAnswer { action: action.to_owned(), limit_s: limit.as_secs() }))
}

fn take(step: &BootStep) -> Result<(), SysrootError> {
    match step {
        BootStep::System { device, at } => Mount::device(device, "ext4").read_only().no_load().on(at)?,
        BootStep::Deployment { at } => {
            program(PREPARE_ROOT, &[&at.to_string_lossy()])?;
            // OSTree mounts /usr once more to make it read-only, as the whole file system is here. systemd runs from
            // there and cannot unmount it: each restart ended with an error that alarmed people.
            let _ = mount::detach(at.join("usr"));
        }
        BootStep::Directory { path, mode } => make_directory(path, *mode)?,
        BootStep::OnFileSystem { path, of } => {
            if !files::is_directory_on(path, of) {
                let action = format!("use {}: it leads out of {}", path.display(), of.display());
                return Err(SysrootError::File { action, source: ErrorKind::NotADirectory.into() });
            }
        }
        BootStep::Bind { from, to } => mount::bind(from, to)?,
        BootStep::Memory { at, size_bytes } => memory(*size_bytes).on(at)?,
        BootStep::Hide { path } => {
            files::make_whiteout(path).map_err(SysrootError::file(format!("hide {}", path.display())))?;
        }
        BootStep::Overlay { over, lower, changes } => {
            overlay(lower, changes.as_ref()).on(over)?;
            if changes.is_some() {
                assert_writable(over)?;
            }
        }
    }
    Ok(())
}

/// Takes an overlay away again that the kernel made read-only. It does so, with a line in its log, where the work
/// directory cannot be used: without a free inode, or with an immutable directory.
fn assert_writable(over: &Path) -> Result<(), SysrootError> {
    let writable = match mount::is_read_only(over) {
        Ok(false) => return Ok(()),
        Ok(true) => Err(ErrorKind::ReadOnlyFilesystem.into()),
        Err(error) => Err(error),
    };
    let _ = mount::detach(over);
    writable.map_err(SysrootError::file(format!("write to {}: its work directory cannot be used", over.display())))
}

fn memory(size_bytes: u64) -> Mount {
    Mount::virtual_fs("tmpfs").no_suid().no_dev().data("mode=0755").data(format!("size={size_bytes}"))
}

/// The lower directory changes with every release, which an overlay bears only without these features.
fn overlay(lower: &[PathBuf], changes: Option<&(PathBuf, PathBuf)>) -> Mount {
    // As the data partition, which most of it lies on.
    let plain = Mount::overlay(lower).no_suid().no_dev();
    let features = |mount: Mount| mount.data("redirect_dir=off").data("index=off").data("metacopy=off");
    match changes {
        Some((upper, work)) => features(plain.changes_in(upper, work)),
        None => features(plain.read_only()),
    }
}

pub(super) fn make_directory(path: &Path, mode: u32) -> Result<(), SysrootError> {
    if path.is_dir() {
        return Ok(());
    }
    let failed = |source| SysrootError::File { action: format!("create {}", path.display()), source };
    fs::DirBuilder::new().mode(mode).create(path).map_err(failed)?;
    // The umask may have taken permissions away.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

fn program(path: &str, arguments: &[&str]) -> Result<(), SysrootError> {
    let line = || format!("{path} {}", arguments.join(" "));
    let status = process::run_and_wait(Path::new(path), arguments)
        .map_err(|source| SysrootError::File { action: format!("start {}", line()), source })?;
    if status.success() {
        return Ok(());
    }
    Err(SysrootError::Program { program: line(), status: status.to_string() })
}

#[cfg(test)]
mod tests {
    use super::{answer_within, make_directory, program};
    use crate::pid1::system::error::SysrootError;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::{Duration, Instant};

    #[test]
    fn directories_get_their_mode_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        make_directory(&path, 0o711).unwrap();
        make_directory(&path, 0o700).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o711);
        assert!(make_directory(Path::new("/no/such/parent"), 0o700).is_err());
    }

    #[test]
    fn failing_programs_are_named() {
        assert!(program("/bin/true", &[]).is_ok());
        let error = program("/bin/sh", &["-c", "exit 8"]).unwrap_err().to_string();
        assert!(error.contains("/bin/sh") && error.contains('8'), "{error}");
    }

    #[test]
    fn what_a_disk_holds_is_waited_for_only_so_long() {
        let began = Instant::now();
        let slow = || {
            std::thread::sleep(Duration::from_secs(30));
            Ok(())
        };
        let error = answer_within(Duration::from_millis(50), "mount it", slow).unwrap_err();
        assert!(matches!(error, SysrootError::NoAnswer { .. }) && began.elapsed() < Duration::from_secs(10));
        assert_eq!(answer_within(Duration::from_secs(30), "ask", || Ok(7)).unwrap(), 7);
    }
}
