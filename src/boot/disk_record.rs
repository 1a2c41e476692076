//! The identity of its disk that a robot keeps in the boot environment. A copied disk carries it too, and is recognised
//! because it does not match.

use std::path::Path;

use crate::boot::env::{BootEnv, BootEnvError, LoadedEnv};
use crate::boot::grubenv::{GrubEnv, names};
use crate::disk::{DiskIdentity, RobotRecord};
use crate::sys::mount::{self, Mount};

/// The variable that holds the [`DiskIdentity`]. It is only good to have, and is dropped like those of other programs
/// when the block is full.
pub const DISK: &str = "reflash_disk";

/// The variable that holds the size of the disk in MiB, where its table is an MBR, which does not say it. Provisioning
/// and a recovery write it, never the running system: it says for which disk the end of the data partition was chosen
/// or last looked at.
pub const DISK_MIB: &str = "reflash_disk_mib";

/// Directory below which state partitions are mounted for a look.
const MOUNTS: &str = "/run/reflash/look";

/// Reads what a robot has written on this state partition, without changing it. Whatever goes wrong, nothing is
/// remembered.
#[must_use]
pub fn read(state: &Path, disk: &str) -> RobotRecord {
    let Some(env) = environment(state, disk) else { return RobotRecord::default() };
    RobotRecord {
        identity: env.get(DISK).and_then(|text| text.parse().ok()),
        is_starting: env.get(names::BOOT_OK) == Some("0"),
    }
}

/// Reads the size of the disk that the table was made for, MiB, off this state partition in the same way; `None` where
/// it is not remembered.
#[must_use]
pub fn read_disk_mib(state: &Path, disk: &str) -> Option<u64> {
    environment(state, disk)?.get(DISK_MIB)?.parse().ok()
}

fn environment(state: &Path, disk: &str) -> Option<GrubEnv> {
    let directory = Path::new(MOUNTS).join(disk);
    Mount::device(state, "ext4").read_only().no_load().data_only().on_shared(&directory).ok()?;
    let loaded = BootEnv::new(&directory.join("grubenv")).load();
    let _ = mount::unmount(&directory).or_else(|_| mount::detach(&directory));
    match loaded {
        Ok(LoadedEnv::Good(env)) => Some(env),
        Ok(LoadedEnv::Lost(_)) | Err(_) => None,
    }
}

/// Remembers the disk, unless it is remembered already or there is no environment to do so.
///
/// # Errors
/// The environment cannot be written. Nothing depends on it.
pub fn remember(env: &BootEnv, disk: DiskIdentity) -> Result<(), BootEnvError> {
    note(env, DISK, &disk.to_string())
}

/// Remembers the size of the disk in whole MiB in the same way. The end of the data partition is settled for this disk.
///
/// # Errors
/// The environment cannot be written. Nothing depends on it.
pub fn remember_size(env: &BootEnv, disk_bytes: u64) -> Result<(), BootEnvError> {
    note(env, DISK_MIB, &(disk_bytes >> 20).to_string())
}

fn note(env: &BootEnv, name: &str, value: &str) -> Result<(), BootEnvError> {
    match env.load()? {
        LoadedEnv::Good(found) if found.get(name) != Some(value) => env.update(&[(name, Some(value))]),
        LoadedEnv::Good(_) | LoadedEnv::Lost(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{DISK, remember};
    use crate::boot::env::{BootEnv, LoadedEnv};
    use crate::disk::DiskIdentity;

    #[test]
    fn a_disk_is_remembered_where_there_is_an_environment() {
        let dir = tempfile::tempdir().unwrap();
        let env = BootEnv::new(&dir.path().join("grubenv"));
        let (one, other) = (DiskIdentity::of(Some("1"), None), DiskIdentity::of(Some("2"), Some("/sys/x/sda")));
        remember(&env, one).unwrap();
        // A lost environment has its meaning, which a fresh one would take away.
        assert!(matches!(env.load().unwrap(), LoadedEnv::Lost(_)));
        env.update(&[("kept", Some("1"))]).unwrap();
        for disk in [one, other] {
            remember(&env, disk).unwrap();
            let read = env.load_or_empty().unwrap();
            assert_eq!((read.get("kept"), read.get(DISK)), (Some("1"), Some(&*disk.to_string())));
        }
        env.update(&[(DISK, None), ("mine", Some(&"x".repeat(460)))]).unwrap();
        assert!(remember(&env, one).is_err());
        assert_eq!(env.load_or_empty().unwrap().get("kept"), Some("1"));
    }
}
