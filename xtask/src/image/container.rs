//! Containers, which run programs inside the tree that becomes the system.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use crate::step;

/// Way to run programs inside a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// Container of systemd-nspawn: own mounts, processes and devices; the host's network.
    Nspawn,
    /// Change of root (chroot) in a mount and process namespace of its own, where nspawn cannot start (most containers
    /// of CI services).
    Chroot,
}

/// Host name that programs see, since some packages write it down.
pub(super) const NAME: &str = "reflash-build";

/// Script that names the chroot and mounts what it needs. The mounts live in a private namespace that ends with the
/// last process, so an interrupted build leaves none behind.
const CHROOT: &str = "set -e; umask 022; name=$1; tree=$2; limits=$3; shift 3
for limit in $limits; do
    # Without the privilege to raise an upper limit the lower one is set below it.
    prlimit --pid $$ --$limit 2>/dev/null || prlimit --pid $$ --${limit%:*}: 2>/dev/null ||
        echo \"the programs have a limit of this host: $limit\" >&2
done
hostname \"$name\" || echo \"the programs see the name of this host\" >&2
mount -t proc proc \"$tree/proc\"
mount -t sysfs -o ro sysfs \"$tree/sys\" || mount --rbind /sys \"$tree/sys\"
mount --rbind /dev \"$tree/dev\"
mount -t tmpfs tmpfs \"$tree/run\"
mount -t tmpfs tmpfs \"$tree/tmp\"
exec chroot \"$tree\" \"$@\"";

/// Limits of a process, as systemd gives them to services: a limit of the calling shell must not be one of what runs
/// here. Name, lower and upper limit; `unlimited` is the word of prlimit, `infinity` that of systemd-nspawn.
const LIMITS: &[(&str, &str, &str)] = &[
    ("as", "infinity", "infinity"),
    ("core", "0", "infinity"),
    ("cpu", "infinity", "infinity"),
    ("data", "infinity", "infinity"),
    ("fsize", "infinity", "infinity"),
    ("locks", "infinity", "infinity"),
    ("memlock", "8388608", "8388608"),
    ("msgqueue", "819200", "819200"),
    ("nice", "0", "0"),
    ("nofile", "1024", "524288"),
    ("nproc", "65536", "65536"),
    ("rss", "infinity", "infinity"),
    ("rtprio", "0", "0"),
    ("rttime", "infinity", "infinity"),
    ("sigpending", "65536", "65536"),
    ("stack", "8388608", "infinity"),
];

impl Container {
    /// Chooses nspawn if it can run `true` in this tree.
    pub fn probe(tree: &Path) -> Self {
        let mut trial = Self::Nspawn.command(tree, 0);
        match step::output(trial.arg("/bin/true")) {
            Ok(_) => Self::Nspawn,
            Err(error) => {
                eprintln!("  systemd-nspawn cannot start here, so chroot is used: {error:#}");
                Self::Chroot
            }
        }
    }

    /// Makes a command to which the program inside and its arguments are still to be added. The environment is the same
    /// on every host: the result must not depend on the machine that builds.
    pub fn command(self, tree: &Path, timestamp: u64) -> Command {
        let words = self.prefix(tree, timestamp);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    /// Returns the words of [`Container::command`], for callers that start it themselves.
    pub fn prefix(self, tree: &Path, timestamp: u64) -> Vec<OsString> {
        let mut words: Vec<OsString> = match self {
            Self::Nspawn => {
                // --register=no and --keep-unit let it work without systemd on the host, too. The name of the container
                // becomes its host name, and with it a part of what some packages generate.
                let options = "systemd-nspawn --quiet --register=no --keep-unit --settings=no --as-pid2 --console=pipe \
                    --resolv-conf=off --timezone=off --link-journal=no --machine=";
                let options = format!("{options}{NAME} --directory");
                let limit = |(name, lower, upper): &(&str, &str, &str)| {
                    OsString::from(format!("--rlimit={}={lower}:{upper}", name.to_uppercase()))
                };
                let (mut words, directory): (Vec<_>, _) = (Vec::new(), [tree.into(), "--".into()]);
                words.extend(options.split_ascii_whitespace().map(OsString::from));
                // The directory follows its option.
                words.splice(1..1, LIMITS.iter().map(limit));
                words.extend(directory);
                words
            }
            Self::Chroot => {
                let options = "unshare --mount --pid --fork --kill-child --propagation private --uts sh -c";
                let options = options.split_ascii_whitespace().map(OsString::from);
                let limit = |(name, lower, upper): &(&str, &str, &str)| {
                    format!("{name}={lower}:{upper}").replace("infinity", "unlimited")
                };
                let limits: Vec<String> = LIMITS.iter().map(limit).collect();
                let own = [CHROOT.into(), "sh".into(), NAME.into(), tree.into(), limits.join(" ").into()];
                options.chain(own).collect()
            }
        };
        words.extend(["/usr/bin/env", "-i"].map(OsString::from));
        words.extend(environment(timestamp).into_iter().map(OsString::from));
        words
    }
}

fn environment(timestamp: u64) -> Vec<String> {
    let mut variables: Vec<String> = [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "LC_ALL=C.UTF-8",
        "DEBIAN_FRONTEND=noninteractive",
        // With this initramfs-tools builds nothing: the system's initramfs is ours.
        "INITRD=No",
        // Bytecode would carry the time of this build.
        "PYTHONDONTWRITEBYTECODE=1",
    ]
    .map(str::to_owned)
    .into();
    variables.push(format!("SOURCE_DATE_EPOCH={timestamp}"));
    for name in ["http_proxy", "https_proxy", "no_proxy"] {
        variables.extend(std::env::var(name).ok().map(|value| format!("{name}={value}")));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::Container;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;
    use std::process::Command;

    /// What `ulimit -f` of a shell allows is no matter of an image.
    #[test]
    fn programs_have_limits_of_their_own_in_both_containers() {
        let words = |container: Container| -> Vec<String> {
            let words = container.prefix(Path::new("/tree"), 1).into_iter();
            words.map(|word| word.into_string().unwrap()).collect()
        };
        let nspawn = words(Container::Nspawn);
        assert!(nspawn.contains(&"--rlimit=FSIZE=infinity:infinity".to_owned()), "{nspawn:?}");
        let tree = nspawn.iter().position(|word| word == "/tree").unwrap();
        assert_eq!((nspawn[tree - 1].as_str(), nspawn[tree + 1].as_str()), ("--directory", "--"));
        assert!(words(Container::Chroot).iter().any(|word| word.contains(" fsize=unlimited:unlimited ")));
    }

    /// <https://github.com/LibreELEC/LibreELEC.tv/issues/8549>, <https://github.com/systemd/mkosi/pull/4443>
    #[test]
    #[ignore = "needs root: to mount and to change the root; cargo xtask test --tier root"]
    fn commands_in_a_chroot_get_neither_the_mask_and_limits_nor_the_name_of_the_host() {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        for directory in ["bin", "usr/bin", "proc", "sys", "dev", "run", "tmp"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        fs::copy("/bin/busybox", at("bin/busybox")).unwrap();
        symlink("/bin/busybox", at("bin/sh")).unwrap();
        symlink("/bin/busybox", at("usr/bin/env")).unwrap();
        let script = "mkdir /made; echo x > /file; /bin/busybox hostname > /name; ulimit -n > /limit";
        let mut command = Command::new("sh");
        command
            .args(["-c", "umask 077; ulimit -Sn 333; exec \"$@\"", "sh"])
            .args(Container::Chroot.prefix(tree.path(), 1));
        let output = command.args(["/bin/sh", "-ec", &script.replace("mkdir", "busybox mkdir")]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mode = |path: &str| at(path).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("made"), mode("file")), (0o755, 0o644));
        assert_eq!(fs::read_to_string(at("name")).unwrap(), "reflash-build\n");
        assert_eq!(fs::read_to_string(at("limit")).unwrap(), "1024\n");
    }
}
