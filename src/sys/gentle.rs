//! Work beside what the machine is for: the lowest priorities, room that is reserved, a cache that is not filled, and
//! the local time that a person means.
#![allow(unsafe_code)] // priorities and localtime_r, in one place each

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::Path;

use nix::libc;
use rustix::fs::{Advice, FallocateFlags};

/// Class and level of the I/O priority below all others (Linux' include/uapi/linux/ioprio.h: `IOPRIO_CLASS_IDLE`,
/// shifted by `IOPRIO_CLASS_SHIFT`), and "this process" beside it.
const IO_IDLE: libc::c_long = 3 << 13;
const IO_OF_PROCESS: libc::c_long = 1;
/// The lowest priority that a process of the usual class can have.
const LOWEST: libc::c_int = 19;

/// Takes the lowest priorities for processor and disk, for this thread and all that it starts from now on. What the
/// kernel does not grant is left as it is.
pub fn yield_to_all() {
    let parameters = no_priority();
    // SAFETY: setpriority takes three numbers. sched_setscheduler reads a structure that outlives the call; it is asked
    // of the kernel, since musl's function of that name does nothing. ioprio_set has no function and takes three
    // numbers.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST);
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_IDLE, std::ptr::from_ref(&parameters));
        libc::syscall(libc::SYS_ioprio_set, IO_OF_PROCESS, 0, IO_IDLE);
    }
}

/// Takes the usual priorities again, as far as the kernel grants it: for a program that has to answer in time. Between
/// fork and exec it may be called: it makes three system calls and takes no memory.
///
/// # Errors
/// None: it has the form of what is called there.
pub fn be_usual() -> io::Result<()> {
    let parameters = no_priority();
    // SAFETY: as in `yield_to_all`.
    unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_OTHER, std::ptr::from_ref(&parameters));
        libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        libc::syscall(libc::SYS_ioprio_set, IO_OF_PROCESS, 0, 0 as libc::c_long);
    }
    Ok(())
}

/// Priority 0, the only one of these classes. The reserved fields of the structure differ between C libraries.
fn no_priority() -> libc::sched_param {
    // SAFETY: the structure consists of numbers alone, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// Reserves room for a part of a file, which then reads as zeros and may lie beyond its end. Where the file system
/// cannot reserve, the file only becomes as long.
///
/// # Errors
/// There is no room, the file system is read-only, or its quota is used up.
pub fn reserve(file: &File, range: Range<u64>) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), range.start, range.end - range.start) {
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(file.metadata()?.len().max(range.end)),
        done => Ok(done?),
    }
}

/// Gives the room of a part of a file back; it then reads as zeros. Where the file system cannot, it stays.
pub fn give_back(file: &File, range: Range<u64>) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let _ = rustix::fs::fallocate(file, flags, range.start, range.end - range.start);
}

/// Has the kernel forget what it caches of a file: what is written once and read much later must not push out what the
/// machine works with. What is not on the medium yet stays.
pub fn forget_cached(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
}

/// A time of day as a clock on the wall shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallTime {
    /// Day of the week, counted from Monday as 0.
    pub weekday: u8,
    /// Minutes since midnight.
    pub minute: u16,
}

/// Returns the local time, by the machine's time zone (`/etc/localtime`, or `TZ`); `None` for a time that no calendar
/// has.
#[must_use]
pub fn wall_time(unix_s: u64) -> Option<WallTime> {
    let seconds = libc::time_t::try_from(unix_s).ok()?;
    // SAFETY: the structure consists of numbers and a pointer that only localtime_r sets. Both arguments outlive the
    // call. The environment, which it reads, is changed by no thread of this program.
    let (found, broken_down) = unsafe {
        let mut broken_down: libc::tm = std::mem::zeroed();
        (!libc::localtime_r(&raw const seconds, &raw mut broken_down).is_null(), broken_down)
    };
    let weekday = u8::try_from((broken_down.tm_wday + 6) % 7).ok()?;
    let minute = u16::try_from(broken_down.tm_hour * 60 + broken_down.tm_min).ok()?;
    found.then_some(WallTime { weekday, minute })
}

/// Names of zones that are UTC, as the C library takes for a zone that it does not find.
const ZONES_OF_UTC: [&str; 6] = ["UTC", "UCT", "GMT", "Zulu", "Universal", "Greenwich"];

/// Returns the time zone that the link `localtime` leads to, where that is not there: the C library takes UTC then,
/// without a word.
#[must_use]
pub fn lost_time_zone(localtime: &Path) -> Option<String> {
    let zone = fs::read_link(localtime).ok().filter(|_| !localtime.exists())?;
    let is_utc = zone.file_name().is_some_and(|name| ZONES_OF_UTC.iter().any(|utc| *utc == name));
    (!is_utc).then(|| zone.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::{give_back, lost_time_zone, reserve, wall_time, yield_to_all};

    #[test]
    fn room_is_reserved_and_given_back() {
        let mut file = tempfile::tempfile().unwrap();
        reserve(&file, 0..1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        file.write_all(&[7; 8192]).unwrap();
        give_back(&file, 0..4096);
        let mut content = vec![1; 8192];
        file.rewind().unwrap();
        file.read_exact(&mut content).unwrap();
        assert_eq!(content[8191], 7);
        assert!(content[..4096] == [0; 4096] || content[0] == 7, "given back, or a file system that cannot");
        assert!(reserve(&file, 0..1 << 60).is_err());
    }

    #[test]
    fn the_day_of_the_week_counts_from_monday() {
        // 1970-01-01 was a Thursday; whatever the time zone, two days later it is two days later.
        let (first, later) = (wall_time(86_400).unwrap(), wall_time(86_400 * 3).unwrap());
        assert_eq!((first.weekday + 2) % 7, later.weekday);
        assert_eq!(first.minute, later.minute);
        assert_eq!(wall_time(u64::MAX), None);
    }

    #[test]
    fn a_time_zone_that_is_not_there_is_named_unless_it_is_utc() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("localtime");
        assert_eq!(lost_time_zone(&path), None, "UTC is meant");
        std::fs::write(dir.path().join("Vienna"), "TZif2").unwrap();
        let (there, gone) = (dir.path().join("Vienna"), dir.path().join("US/Pacific"));
        for (zone, lost) in [(&there, false), (&gone, true), (&dir.path().join("zoneinfo/Etc/UTC"), false)] {
            std::os::unix::fs::symlink(zone, &path).unwrap();
            assert_eq!(lost_time_zone(&path), lost.then(|| zone.display().to_string()));
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn the_lowest_priorities_are_taken_and_inherited() {
        std::thread::spawn(|| {
            yield_to_all();
            let of_child = std::thread::spawn(|| std::fs::read_to_string("/proc/thread-self/stat").unwrap());
            let stat = of_child.join().unwrap();
            let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
            // proc(5): nice value is field 19, policy field 41, counted from 1 with two before the name's end.
            assert_eq!((fields[16], fields[38]), ("19", "5"), "{stat}");
        })
        .join()
        .unwrap();
    }
}
