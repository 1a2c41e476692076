//! Places in which an image has nothing, whatever a recipe, a package or a source puts there. Pure.
//!
//! One table for both sides: what is emptied or removed from the tree, and what a recipe cannot have a file in. A file
//! that vanished without a word would be missed on a robot.

use std::path::{Component, Path, PathBuf};

/// Directories that are emptied: what a running system has there, and caches and logs of the build. Index files of the
/// archive change without any package changing.
pub const EMPTIED: &[(&str, &str)] = &[
    ("dev", "the kernel makes its devices"),
    ("run", "it is empty at each start; a file in tmpfiles.d can make things there"),
    ("tmp", "it is empty at each start; a file in tmpfiles.d can make things there"),
    ("var/tmp", "it belongs to running programs; a file in tmpfiles.d can make things there"),
    ("var/log", "the logs are each machine's own"),
    (
        "var/cache",
        "programs fill their caches by themselves; what one needs from the start belongs in /usr or /var/lib",
    ),
    ("var/backups", "the backups are those of a running machine"),
    ("var/lib/apt/lists", "apt fetches its lists by itself"),
    ("var/lib/dpkg/updates", "dpkg keeps there what it is working on"),
    ("proc", "the kernel makes it"),
    ("sys", "the kernel makes it"),
];

/// Files that are removed: the build needed them or left them behind.
pub const REMOVED: &[(&str, &str)] = &[
    // These hold the configuration of the bootstrap: the host's proxy, no fsync.
    ("etc/apt/apt.conf.d/99mmdebstrap", "the builder has its own settings for apt there"),
    ("etc/dpkg/dpkg.cfg.d/99mmdebstrap", "the builder has its own settings for dpkg there"),
    // systemd-resolved moves there what the bootstrap copied.
    ("etc/.resolv.conf.systemd-resolved.bak", "it has the name servers of the host that built the image"),
    ("etc/passwd-", BACKUP),
    ("etc/group-", BACKUP),
    ("etc/shadow-", BACKUP),
    ("etc/gshadow-", BACKUP),
    ("etc/subuid-", BACKUP),
    ("etc/subgid-", BACKUP),
    ("var/lib/dpkg/status-old", BACKUP),
    ("var/lib/dpkg/diversions-old", BACKUP),
    ("var/lib/dpkg/statoverride-old", BACKUP),
    ("etc/.pwd.lock", LOCK),
    ("var/lib/dpkg/lock", LOCK),
    ("var/lib/dpkg/lock-frontend", LOCK),
    ("var/lib/dpkg/triggers/Lock", LOCK),
];
const BACKUP: &str = "it is the backup of the file beside it, as that was before the last package";
const LOCK: &str = "it is a lock of running programs, with the time of the build";

/// Places of the root directory that are made anew when the tree becomes one of OSTree.
const REPLACED: &[(&str, &str)] = &[
    ("boot", "OSTree fills it itself, with the kernel of /usr/lib/modules"),
    ("media", "disks are mounted there"),
    ("ostree", "OSTree has its repository there"),
    ("sysroot", "OSTree has the root of the partition there"),
    ("lost+found", "e2fsck makes it"),
    ("vmlinuz", "the kernel lies in /usr/lib/modules"),
    ("vmlinuz.old", "the kernel lies in /usr/lib/modules"),
    ("initrd.img", "the initramfs lies in /usr/lib/modules"),
    ("initrd.img.old", "the initramfs lies in /usr/lib/modules"),
    (".dockerenv", "it is the mark of a container"),
];

/// Something by which one machine differs from all others, and that a package makes while it is installed: in an image
/// the whole fleet would share it, and each build would have another.
#[derive(Debug)]
pub struct MachineIdentity {
    /// Path in the tree, without a slash before it; `*` matches any text in the last name.
    pub path: &'static str,
    /// Way in which a robot gets its own.
    pub made_by: Maker,
}

/// Way in which a robot gets what the image does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// Done by the program that needs it, or by a unit of the image.
    Itself,
    /// Done at the first boot by a command, where the image has the program: the program and the whole shell line.
    Command(&'static str, &'static str),
}

/// Identities that packages of Debian and Ubuntu are known to make.
pub const IDENTITIES: &[MachineIdentity] = &[
    // The agent's own unit makes them at the first boot.
    MachineIdentity { path: "etc/ssh/ssh_host_*", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/dbus/machine-id", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/systemd/random-seed", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/systemd/credential.secret", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/NetworkManager/secret_key", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/NetworkManager/*.lease", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/dhcp/*.leases", made_by: Maker::Itself },
    // Two machines with one number of DHCPv6 get one address.
    MachineIdentity { path: "etc/dhcpcd.duid", made_by: Maker::Itself },
    MachineIdentity { path: "etc/dhcpcd.secret", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/dhcpcd/duid", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/dhcpcd/secret", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/dhcpcd/*.lease*", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/dhcpcd5/duid", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/dhcpcd5/secret", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/dhcpv6/dhcp6c_duid", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/urandom/random-seed", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/seedrng/seed.*", made_by: Maker::Itself },
    // Without a file nvme takes the number that the firmware gives the machine.
    MachineIdentity { path: "etc/nvme/hostid", made_by: Maker::Itself },
    MachineIdentity { path: "etc/nvme/hostnqn", made_by: Maker::Itself },
    MachineIdentity {
        path: "etc/iscsi/initiatorname.iscsi",
        made_by: Maker::Command(
            "usr/sbin/iscsi-iname",
            "umask 077; echo \"InitiatorName=$$(iscsi-iname)\" > /etc/iscsi/initiatorname.iscsi",
        ),
    },
    MachineIdentity {
        path: "etc/dropbear/dropbear_rsa_host_key",
        made_by: Maker::Command("usr/bin/dropbearkey", "dropbearkey -t rsa -f /etc/dropbear/dropbear_rsa_host_key"),
    },
    MachineIdentity {
        path: "etc/dropbear/dropbear_ecdsa_host_key",
        made_by: Maker::Command("usr/bin/dropbearkey", "dropbearkey -t ecdsa -f /etc/dropbear/dropbear_ecdsa_host_key"),
    },
    MachineIdentity {
        path: "etc/dropbear/dropbear_ed25519_host_key",
        made_by: Maker::Command(
            "usr/bin/dropbearkey",
            "dropbearkey -t ed25519 -f /etc/dropbear/dropbear_ed25519_host_key",
        ),
    },
    MachineIdentity { path: "etc/dropbear/dropbear_dss_host_key", made_by: Maker::Itself },
    MachineIdentity {
        path: "etc/ssl/private/ssl-cert-snakeoil.key",
        made_by: Maker::Command("usr/sbin/make-ssl-cert", "make-ssl-cert generate-default-snakeoil --force-overwrite"),
    },
    // The line before makes both.
    MachineIdentity { path: "etc/ssl/certs/ssl-cert-snakeoil.pem", made_by: Maker::Itself },
    MachineIdentity {
        path: "etc/xrdp/rsakeys.ini",
        made_by: Maker::Command(
            "usr/bin/xrdp-keygen",
            "umask 077; xrdp-keygen xrdp auto; chown xrdp /etc/xrdp/rsakeys.ini",
        ),
    },
    MachineIdentity {
        path: "etc/bind/rndc.key",
        made_by: Maker::Command("usr/sbin/rndc-confgen", "rndc-confgen -a -u bind -c /etc/bind/rndc.key"),
    },
    MachineIdentity { path: "etc/cockpit/ws-certs.d/0-self-signed*", made_by: Maker::Itself },
    MachineIdentity { path: "etc/docker/key.json", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/tailscale/tailscaled.state", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/zerotier-one/identity.*", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/docker/engine-id", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/husarnet/id", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/mysql/auto.cnf", made_by: Maker::Itself },
    MachineIdentity { path: "var/lib/tor/keys/*", made_by: Maker::Itself },
    MachineIdentity { path: "etc/openvswitch/system-id.conf", made_by: Maker::Itself },
    MachineIdentity { path: "etc/salt/minion_id", made_by: Maker::Itself },
    MachineIdentity { path: "etc/salt/pki/minion/minion.pem", made_by: Maker::Itself },
    MachineIdentity { path: "etc/salt/pki/minion/minion.pub", made_by: Maker::Itself },
    MachineIdentity { path: "etc/rancher/node/password", made_by: Maker::Itself },
];

/// Links in the root directory of an image. /opt belongs to the image, unlike in OSTree's own examples: large
/// frameworks of robots live there and would otherwise be copied to the data partition, where no update reaches them.
pub const LINKS: &[(&str, &str)] = &[
    ("home", "var/home"),
    ("root", "var/roothome"),
    ("srv", "var/srv"),
    ("mnt", "var/mnt"),
    ("opt", "usr/opt"),
    ("media", "run/media"),
    ("ostree", "sysroot/ostree"),
];

/// Links that every system has: a path through one of them is the other path.
const ALIASES: &[(&str, &str)] = &[
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("lib32", "usr/lib32"),
    ("lib64", "usr/lib64"),
    ("libx32", "usr/libx32"),
    ("var/run", "run"),
    ("var/lock", "run/lock"),
];

/// Returns the one name of a path that several lead to, without a slash before it.
#[must_use]
pub fn one_name(path: &Path) -> PathBuf {
    let below: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let alias = ALIASES.iter().find_map(|(name, target)| Some(Path::new(target).join(below.strip_prefix(name).ok()?)));
    // Without a slash at the end, which a join with nothing leaves.
    alias.map_or(below, |path| path.components().collect())
}

/// Returns why an image cannot have a file of the recipe at this path.
#[must_use]
pub fn reason_against(path: &Path) -> Option<String> {
    let below = one_name(path);
    let whole = EMPTIED.iter().chain(REPLACED).find(|(directory, _)| below.starts_with(directory));
    if let Some((directory, because)) = whole {
        return Some(format!("no image has anything in /{directory}: {because}"));
    }
    if let Some((_, because)) = REMOVED.iter().find(|(removed, _)| below == Path::new(removed)) {
        return Some(format!("no image has this file: {because}"));
    }
    if below == Path::new("etc/hostname") {
        return Some("every robot would have that name; set `hostname` of the recipe, or machine.hostname".to_owned());
    }
    if below == Path::new("etc/machine-id") || IDENTITIES.iter().any(|identity| identity.is_at(&below)) {
        return Some("it is each machine's own, and no image has it: the whole fleet would share it".to_owned());
    }
    let own = LINKS.iter().chain(&[("etc", "usr/etc")]);
    own.filter(|(_, target)| !target.starts_with("run/")).find_map(|(name, target)| {
        let rest = below.strip_prefix(target).ok()?;
        Some(format!(
            "an image is made from /{name}, which becomes /{target}; write {}",
            Path::new("/").join(name).join(rest).display()
        ))
    })
}

impl MachineIdentity {
    /// Whether a path, without a slash before it, is the one of this identity.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        let own = Path::new(self.path);
        let (Some(pattern), Some(name)) = (own.file_name(), path.file_name()) else { return false };
        let (pattern, name) = (pattern.to_string_lossy(), name.to_string_lossy());
        let is_named = match pattern.split_once('*') {
            None => pattern == name,
            Some((start, end)) => {
                name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
            }
        };
        is_named && own.parent() == path.parent()
    }
}

#[cfg(test)]
mod tests {
    use super::{IDENTITIES, one_name, reason_against};
    use std::path::Path;

    #[test]
    fn places_that_no_image_has_are_given_with_the_reason() {
        for (path, said) in [
            ("/run/app/x", "/run: it is empty at each start"),
            ("/var/run/app/x", "/run: it is empty"),
            ("/var/lock/x", "/run: it is empty"),
            ("/tmp/x", "tmpfiles.d"),
            ("/dev/x", "devices"),
            ("/proc/x", "kernel"),
            ("/var/cache/app/x", "/usr or /var/lib"),
            ("/var/log/app/x", "logs"),
            ("/var/tmp/y", "running programs"),
            ("/boot/x", "OSTree"),
            ("/media/x", "mounted"),
            ("/ostree/foo", "repository"),
            ("/sysroot/foo", "root of the partition"),
            ("/etc/machine-id", "each machine's own"),
            ("/etc/hostname", "machine.hostname"),
            ("/etc/ssh/ssh_host_rsa_key", "each machine's own"),
            ("/var/lib/dpkg/lock", "lock"),
            ("/etc/passwd-", "backup"),
            ("/var/home/pilot/.config/x", "write /home/pilot/.config/x"),
            ("/var/roothome/x", "write /root/x"),
            ("/usr/etc/foo", "write /etc/foo"),
            ("/usr/opt/app", "write /opt/app"),
        ] {
            let reason = reason_against(Path::new(path)).unwrap_or_default();
            assert!(reason.contains(said), "{path}: {reason}");
        }
        for path in
            ["/etc/foo", "/home/pilot/x", "/var/lib/app/x", "/runner", "/opt/x", "/var/homes/x", "/etc/ssh/sshd_config"]
        {
            assert_eq!(reason_against(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn a_path_has_one_name() {
        for (path, name) in [
            ("/bin/x", "usr/bin/x"),
            ("/lib", "usr/lib"),
            ("/binary", "binary"),
            ("/var/run/x", "run/x"),
            ("//a/./b/", "a/b"),
        ] {
            assert_eq!(one_name(Path::new(path)), Path::new(name), "{path}");
        }
    }

    #[test]
    fn identities_are_found_by_their_names() {
        let is_one = |path: &str| IDENTITIES.iter().any(|identity| identity.is_at(Path::new(path)));
        assert!(
            is_one("etc/ssh/ssh_host_ed25519_key.pub") && is_one("etc/nvme/hostnqn") && is_one("var/lib/dhcp/a.leases")
        );
        assert!(!is_one("etc/ssh/sshd_config") && !is_one("opt/etc/ssh/ssh_host_rsa_key") && !is_one("etc/ssh"));
    }
}
