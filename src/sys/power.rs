//! Reboot, and a sync that cannot hang for ever.

use std::convert::Infallible;
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot as nix_reboot};

use super::mount;
use super::thread::background;

/// Time that the last sync may take. A disk that has died in the middle of a command answers after the kernel's own
/// time-outs, which are minutes: the machine is better off rebooting. Large caches of slow eMMC drain well within this
/// time.
const SYNC_LIMIT: Duration = Duration::from_secs(30);

/// Unmounts what can be unmounted, and syncs: GRUB does not replay journals, so file systems must be left clean.
pub fn release() {
    within(SYNC_LIMIT, || {
        // A disk that hangs keeps whoever unmounts it, too.
        mount::release_disks();
        sync();
    });
}

/// Unmounts what can be unmounted, syncs and restarts the machine.
///
/// Only an error is ever returned, which PID 1 can meet only if the kernel lacks the call.
///
/// # Errors
/// The caller lacks `CAP_SYS_BOOT`.
pub fn reboot() -> std::io::Result<Infallible> {
    // reboot(2) neither syncs nor unmounts. Only PID 1 may unmount: by hand on a live system, its service manager owns
    // the mounts.
    if super::process::is_pid1() {
        release();
    } else {
        sync_within(SYNC_LIMIT);
    }
    nix_reboot(RebootMode::RB_AUTOBOOT).map_err(Into::into)
}

/// Unmounts what can be unmounted, syncs and starts the kernel that [`kexec::load`](super::kexec::load) has loaded.
///
/// # Errors
/// No kernel is loaded, or the caller lacks `CAP_SYS_BOOT`.
pub fn start_loaded() -> std::io::Result<Infallible> {
    release();
    nix_reboot(RebootMode::RB_KEXEC).map_err(Into::into)
}

/// Writes every dirty page and the device caches. Blocks until done, for ever if a disk hangs.
pub fn sync() {
    rustix::fs::sync();
}

/// [`sync`] in another thread; `false` when it was not done within `limit`.
///
/// Needed wherever the machine must go on: `sync(2)` waits uninterruptibly for a disk that no longer answers.
pub fn sync_within(limit: Duration) -> bool {
    within(limit, sync)
}

/// Does `work` in another thread; `false` when it was not done within `limit`, and goes on there.
fn within(limit: Duration, work: fn()) -> bool {
    let (done, wait) = mpsc::channel();
    let spawned = background("sync", move || {
        work();
        // The receiver is gone when the limit has passed.
        let _ = done.send(());
    });
    match spawned {
        Ok(()) => wait.recv_timeout(limit).is_ok(),
        // Without memory for a thread, work that may hang is better than none.
        Err(_) => {
            work();
            true
        }
    }
}
