//! What of this host a tool gets to see. An image must not depend on who builds it, so a tool sees what it needs to
//! work here (where programs lie, how the network is reached), and nothing that could change what it writes: language,
//! time zone, its own variables for defaults (`TAR_OPTIONS`, `MKE2FS_CONFIG`, `XZ_OPT`, `PERL5OPT`, and each year a new
//! one). A list of what may pass was preferred to one of what may not, which is never complete.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::Mode;

/// Variables that every tool sees.
const PASSED: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TERM",
    "TMPDIR",
    "CI",
    "DISPLAY",
    "SSH_AUTH_SOCK",
    "SOURCE_DATE_EPOCH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    // Where this host's apt finds its archives and proxies.
    "APT_CONFIG",
    // Where skopeo finds the passwords of registries, and ostree the keys that sign.
    "REGISTRY_AUTH_FILE",
    "DOCKER_CONFIG",
    "GNUPGHOME",
];
/// Beginnings of variables that every tool sees: those of a playbook's author, of the toolchain that compiles the
/// agent, and those that let systemd-nspawn start in the container of a CI service.
const PASSED_PREFIXES: &[&str] = &["ANSIBLE_", "CARGO", "RUST", "XDG_", "SYSTEMD_", "REFLASH_"];
/// Variables in lower or upper case that say how the network is reached.
const PROXIES: &[&str] = &["http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"];
/// Programs that compile. They see everything, since where compilers and libraries lie is said in dozens of variables.
const COMPILE: &[&str] = &["cargo", "rustup", "rustc"];
/// Values that every tool gets, unless its caller gave another. Those of mtools win over `/etc/mtools.conf` and
/// `~/.mtoolsrc`.
const FIXED: &[(&str, &str)] = &[
    ("LC_ALL", "C.UTF-8"),
    ("TZ", "UTC"),
    ("MTOOLS_FAT_COMPATIBILITY", "0"),
    ("MTOOLS_LOWER_CASE", "0"),
    ("MTOOLS_NAME_NUMERIC_TAIL", "1"),
    ("MTOOLS_NO_VFAT", "0"),
];

/// Directories that Debian leaves out of an ordinary user's search path. mke2fs, depmod and sfdisk lie there, and need
/// no root for what the builder does with them.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Gives new files of this process, and of every tool that it starts, the permissions that a recipe expects. Must be
/// called before the first thread, since the mask belongs to all of them. A hardened host has 027 or 077, and
/// directories of the image would be closed to the users that need them.
pub fn pin_umask() {
    rustix::process::umask(Mode::from_raw_mode(0o022));
}

/// Replaces the environment that a tool inherits by what may pass, and keeps what its caller set.
pub fn pin(command: &mut Command) {
    let set: Vec<(OsString, Option<OsString>)> =
        command.get_envs().map(|(name, value)| (name.to_owned(), value.map(OsStr::to_owned))).collect();
    let program = Path::new(command.get_program()).file_name();
    if COMPILE.iter().any(|name| program == Some(OsStr::new(name))) {
        // What the compiler says is read here, so it must not be translated.
        command.env("LC_ALL", "C.UTF-8").env_remove("LANGUAGE");
        return;
    }
    command.env_clear();
    command.envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_passed)));
    command.env("PATH", with_sbin(&std::env::var_os("PATH").unwrap_or_default()));
    command.envs(FIXED.iter().copied());
    for (name, value) in set {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
}

/// The search path of a person, with what it lacks at its end.
fn with_sbin(path: &OsStr) -> OsString {
    let mut directories: Vec<PathBuf> = std::env::split_paths(path).collect();
    let missing = SBIN.iter().map(PathBuf::from).filter(|sbin| !directories.contains(sbin)).collect::<Vec<_>>();
    directories.extend(missing);
    // A directory with a colon in its name was never one of a search path.
    std::env::join_paths(directories).unwrap_or_else(|_| path.to_owned())
}

/// Whether a tool sees this variable of the host.
fn is_passed(name: &str) -> bool {
    PASSED.contains(&name)
        || PASSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || PROXIES.contains(&name.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::{is_passed, pin, with_sbin};
    use std::process::Command;

    #[test]
    fn a_user_without_sbin_in_the_search_path_finds_its_programs_too() {
        assert_eq!(with_sbin("/usr/bin:/bin".as_ref()), "/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin");
        assert_eq!(with_sbin("/sbin:/usr/bin".as_ref()), "/sbin:/usr/bin:/usr/local/sbin:/usr/sbin");
        let mut command = Command::new("sh");
        command.env_clear();
        pin(&mut command);
        let output = command.args(["-c", "echo $PATH"]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("/usr/sbin"), "{output:?}");
    }

    #[test]
    fn what_changes_the_result_of_a_tool_does_not_pass() {
        for name in
            ["LANG", "LC_TIME", "LANGUAGE", "TZ", "MKE2FS_CONFIG", "TAR_OPTIONS", "XZ_OPT", "PERL5OPT", "MTOOLSRC"]
        {
            assert!(!is_passed(name), "{name}");
        }
        for name in ["PATH", "https_proxy", "HTTPS_PROXY", "CARGO_HOME", "ANSIBLE_VAULT_PASSWORD_FILE"] {
            assert!(is_passed(name), "{name}");
        }
    }

    #[test]
    fn what_a_caller_set_stays() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $TZ $LC_ALL $OURS"]).env("OURS", "x").env("LC_ALL", "C");
        pin(&mut command);
        assert_eq!(command.output().unwrap().stdout, b"UTC C x\n");
    }
}
