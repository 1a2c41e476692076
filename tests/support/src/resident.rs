//! Memory of a program, as the kernel counts it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Runs to the end and returns the highest resident memory, KiB.
pub fn peak_resident_kib(command: &mut Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = Path::new("/proc").join(child.id().to_string()).join("status");
    let mut peak = 0;
    loop {
        peak = peak.max(peak_in(&status));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return peak;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Highest resident memory of this process so far, KiB.
pub fn own_peak_resident_kib() -> u64 {
    peak_in(Path::new("/proc/self/status"))
}

/// The peak in a file of proc_pid_status(5); 0 when the process is gone.
fn peak_in(status: &Path) -> u64 {
    let text = std::fs::read_to_string(status).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    line.split_whitespace().next().unwrap().parse().unwrap()
}
