//! The boot watch as a process, in a namespace whose PID 1 stands for systemd: there, a restart ends that namespace
//! alone. The kernel's own restart, which it would use last, is out of reach.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// Runs `script` as PID 1 with the watch beside it, as on a start with this command line and limit.
fn start(command_line: &str, good_within_s: u32, script: &str) -> (ExitStatus, Duration) {
    let prepare = format!(
        "mount -t tmpfs tmpfs /run && mkdir /run/reflash || exit 90
         [ ! -e /proc/sysrq-trigger ] || mount --bind /dev/null /proc/sysrq-trigger || exit 93
         mount -t tmpfs tmpfs /sys/class || exit 91
         echo '{command_line}' >/run/cmdline && mount --bind /run/cmdline /proc/cmdline || exit 92
         echo '{{\"good_within_s\": {good_within_s}}}' >/run/reflash/boot-watch.json
         (exec -a @reflash-watch \"$AGENT\" </dev/null >/dev/null 2>&1) &
         watch=$!
         {script}"
    );
    let began = Instant::now();
    let status = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", &prepare])
        .env("AGENT", env!("CARGO_BIN_EXE_reflash"))
        .status()
        .expect("unshare (util-linux) must be installed");
    (status, began.elapsed())
}

#[test]
#[ignore = "needs root: makes namespaces"]
fn the_watch_ends_once_the_boot_is_good_or_is_not_watched() {
    let (status, _) =
        start("quiet", 600, "sleep 7; kill -0 $watch || exit 1; touch /run/reflash/good; wait $watch; exit $?");
    assert_eq!(status.code(), Some(0));
    let (status, took) = start("quiet", 0, "wait $watch; exit $?");
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// A state partition that cannot be found, read or written: the boot is good all the same, and nothing is mended by a
/// restart every ten minutes.
#[test]
#[ignore = "needs root: makes namespaces"]
fn a_good_boot_ends_the_watch_also_where_nothing_can_be_stored() {
    let line = "quiet reflash.system=5f3c1d52-0f0e-4c86-9d3a-7b1c5be1a9d4";
    let script = "sleep 6; kill -0 $watch || exit 1
         \"$AGENT\" good && exit 2
         [ -e /run/reflash/good ] || exit 3
         wait $watch || exit 4
         grep -q 'this boot is good, which could not be recorded' /run/reflash/boot.json || exit 5
         exit 77";
    let (status, _) = start(line, 600, script);
    assert_eq!(status.code(), Some(77));
}

#[test]
#[ignore = "takes long: a restart is announced a minute before, and systemd has two and a half to carry it out"]
fn full_a_boot_that_is_not_good_is_restarted_in_order_and_at_once_by_a_pid_1_that_has_frozen() {
    // 39 is glibc's SIGRTMIN+5, by which systemd restarts in order.
    let (status, took) = start("quiet", 62, "trap 'exit 77' 39; while :; do sleep 1; done");
    assert_eq!(status.code(), Some(77), "after {took:?}");
    assert!(took > Duration::from_secs(60) && took < Duration::from_secs(90), "{took:?}");
    let (status, took) = start("quiet", 30, "while :; do sleep 1; done");
    // The kernel ends the namespace's PID 1 so when a process in it calls reboot(2).
    assert_eq!(status.signal(), Some(1), "{status} after {took:?}");
    assert!(took > Duration::from_secs(200) && took < Duration::from_secs(300), "{took:?}");
}
