//! Runs a test in namespaces of its own: what it mounts, connects and starts is gone when it ends, however it ends.
#![allow(clippy::unwrap_used)] // clippy sees tests only in functions with #[test], not in their helpers.

use std::process::Command;

/// Set in the child to the name of the test, so that the same test body knows where it is.
const INSIDE: &str = "REFLASH_TEST_ISOLATED";

/// Runs `body` as root in fresh network, mount and process namespaces, by running this very test again inside. `name`
/// is the full name of the calling test.
///
/// `/sys` is mounted afresh because sysfs shows the network links of the namespace it was mounted in.
pub fn isolated(name: &str, body: fn()) {
    if std::env::var(INSIDE).as_deref() == Ok(name) {
        return body();
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"])
        .arg("mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /run && exec \"$0\" \"$@\"")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--include-ignored", "--nocapture"])
        .env(INSIDE, name)
        .status()
        .expect("unshare (util-linux) must be installed");
    assert!(status.success(), "{name} failed inside its namespaces");
}

/// Runs a command that must succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program} {arguments:?}: {status}");
}
