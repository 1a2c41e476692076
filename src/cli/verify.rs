//! `reflash verify`: a target is compared with the release that is recorded as installed.

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::answer::{Exit, Failure, failure, print};
use super::context::keys;
use super::mounted::MountedState;
use super::options::Options;
use crate::flash::readback::Scan;
use crate::flash::target::{BlockTarget, DeviceTarget};
use crate::record::journal::Journal;
use crate::record::progress::Bytes;
use crate::release::digest;
use crate::release::manifest::SYSTEM_IMAGE;
use crate::sys::block::AlignedBuf;

/// Bytes read at a time for the SHA-256 of a whole image.
const READ_BYTES: usize = 1024 * 1024;

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    let mounted = MountedState::open(options)?;
    let keys = keys(options, Some(&mounted))?;
    let Some(installed) = mounted.state.installed(&keys) else {
        return failure("no intact record of an installed release to compare with; reflash the machine");
    };
    let path = match &options.target {
        Some(path) => path.clone(),
        None => mounted.system_partition()?,
    };
    let target = DeviceTarget::open_read_only(&path)?;
    let size_bytes = installed.index.image_bytes();
    let scan = Journal::on_stderr()
        .with_progress(Bytes::of_disk(size_bytes), |done| Scan::of(&installed.index, &target, done));
    let damaged: Vec<[u64; 2]> = scan.damaged_ranges().iter().map(|range| [range.start, range.end]).collect();
    let sha256 = if options.sha256 { Some(sha256_of(&target, size_bytes)?) } else { None };
    let version = &installed.manifest.version;
    let named = installed.manifest.image(SYSTEM_IMAGE)?.sha256.clone();
    let answer = json!({
        "intact": damaged.is_empty(), "version": version, "serial": installed.manifest.serial,
        "damaged_byte_ranges": damaged, "sha256": sha256, "manifest_sha256": named,
    });
    print(options, &answer, || {
        let mut text = if damaged.is_empty() {
            format!("{} equals release {version}", target.name())
        } else {
            let ranges: Vec<_> = damaged.iter().map(|[start, end]| format!("  bytes {start} to {end}")).collect();
            format!("{} differs from release {version}:\n{}", target.name(), ranges.join("\n"))
        };
        if let Some(sha256) = &sha256 {
            text += &format!("\nSHA-256 {sha256} (manifest: {named})");
        }
        text
    })?;
    Ok(if damaged.is_empty() { Exit::Done } else { Exit::No })
}

fn sha256_of(target: &dyn BlockTarget, size_bytes: u64) -> Result<String, Failure> {
    let mut sha256 = Sha256::new();
    let mut buffer = AlignedBuf::zeroed(READ_BYTES);
    let mut offset = 0;
    while offset < size_bytes {
        let len = usize::try_from(size_bytes - offset).unwrap_or(usize::MAX).min(buffer.len());
        target.read_at(offset, &mut buffer[..len])?;
        sha256.update(&buffer[..len]);
        offset += len as u64;
    }
    Ok(digest::hex(&sha256.finalize()))
}
