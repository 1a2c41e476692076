//! Confinement of a process that reads what comes from outside: fewer rights, less memory, mounts of its own.

use std::fs;
use std::io;

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};

/// Rights that a recovery needs: disks and mounts, drivers, network cards and port 68, the clock, files of any owner
/// and with any mark. Without the others, among them `CAP_SYS_BOOT`, `CAP_SYS_RAWIO` and `CAP_SYS_PTRACE`, only PID 1
/// restarts the machine and nothing reaches into PID 1's memory.
const NEEDED: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_MODULE)
    .union(CapabilitySet::SYS_TIME)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::LINUX_IMMUTABLE);

/// The kernel's score for whom to end when memory runs out: ahead of everything else (proc(5), from -1000 to 1000).
const FIRST_TO_END: &str = "1000";

/// Gives up what the process does not need, for this thread and those that it starts. To be called before there are
/// others. The result lists what could not be given up: a recovery goes on all the same.
pub fn confine() -> Vec<String> {
    let mut problems = Vec::new();
    let mut step = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            problems.push(format!("{what}: {error}"));
        }
    };
    // What it mounts is unmounted by the kernel when it ends, however it ends.
    step("no mounts of its own", unshare(CloneFlags::CLONE_NEWNS).map_err(Into::into));
    step("no limit for memory", limit_memory());
    step("not the first to end without memory", fs::write("/proc/self/oom_score_adj", FIRST_TO_END));
    step("no limit for core dumps", setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(Into::into));
    step("may gain rights", set_no_new_privs(true).map_err(Into::into));
    step("keeps all rights", keep_needed_rights());
    problems
}

/// Gives up every right but those that are needed. One that was never there, as in a container, is not asked for: the
/// kernel would then refuse to take any.
fn keep_needed_rights() -> io::Result<()> {
    let kept = capabilities(None)?.permitted.intersection(NEEDED);
    let kept = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, kept).map_err(Into::into)
}

/// Bounds what this process allocates to three quarters of the machine's memory: an allocation beyond fails here, with
/// a message, and not as the kernel's choice of what to end.
fn limit_memory() -> io::Result<()> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let total_bytes = memory_bytes(&text).ok_or_else(|| io::Error::other("no MemTotal in /proc/meminfo"))?;
    let limit = total_bytes / 4 * 3;
    setrlimit(Resource::RLIMIT_DATA, limit, limit).map_err(Into::into)
}

/// The machine's memory, of proc_meminfo(5).
fn memory_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::memory_bytes;

    #[test]
    fn the_memory_of_a_machine_is_read() {
        assert_eq!(memory_bytes("MemFree: 1 kB\nMemTotal:         497 kB\n"), Some(497 * 1024));
        assert_eq!(memory_bytes("MemTotal: many"), None);
        assert!(memory_bytes(&std::fs::read_to_string("/proc/meminfo").unwrap()).unwrap() > 1 << 20);
    }
}
