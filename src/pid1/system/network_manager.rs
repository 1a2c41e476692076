//! Which program of the image configures the network, and how it is brought to take the recovery's settings in a safe
//! start.
//!
//! | the image | what it gets |
//! |---|---|
//! | starts systemd-networkd, also for netplan | the files that it reads (`safe_network`) |
//! | starts NetworkManager | connections in memory for cables; its own ones, as for Wi-Fi, stay |
//! | has systemd-networkd and starts neither, as with ifupdown | that is started beside what the image starts |
//! | has neither | its own settings alone, which is reported |

use std::fmt::Write;
use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

use crate::machine::config::{InterfaceSelector, InterfaceSettings, Network};

/// Directory in memory in which NetworkManager looks for connections (NetworkManager.conf(5)).
const CONNECTIONS: &str = "/run/NetworkManager/system-connections";
/// Directory in memory in which systemd finds what a target wants (systemd.unit(5)).
const WANTED: &str = "/run/systemd/system/multi-user.target.wants";
/// Directories of the image with the wishes of targets.
const WISHES: [&str; 2] = ["etc/systemd/system", "usr/lib/systemd/system"];
/// Directories of the image with units.
const UNITS: [&str; 2] = ["usr/lib/systemd/system", "lib/systemd/system"];

const NETWORKD: &str = "systemd-networkd.service";
const NETWORK_MANAGER: &str = "NetworkManager.service";

/// The program that takes the recovery's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Configurator {
    /// systemd-networkd, which the image starts.
    Networkd,
    /// systemd-networkd, which the image has and does not start.
    IdleNetworkd,
    /// NetworkManager.
    NetworkManager,
    /// None that is known here.
    Unknown,
}

impl Configurator {
    /// The one of the image at `root`.
    pub(super) fn of(root: &Path) -> Self {
        match (is_wanted(root, NETWORK_MANAGER), is_wanted(root, NETWORKD)) {
            (true, _) => Self::NetworkManager,
            (false, true) => Self::Networkd,
            (false, false) if unit(root, NETWORKD).is_some() => Self::IdleNetworkd,
            (false, false) => Self::Unknown,
        }
    }

    /// Has it take the settings beside the files for systemd-networkd, which are there already.
    ///
    /// # Errors
    /// The file system's, or that the image has no program that takes them.
    pub(super) fn prepare(self, root: &Path, network: &Network) -> io::Result<()> {
        match self {
            Self::Networkd => Ok(()),
            Self::IdleNetworkd => {
                fs::create_dir_all(WANTED)?;
                let unit = unit(root, NETWORKD).unwrap_or_default();
                symlink(unit, Path::new(WANTED).join(NETWORKD))
            }
            Self::NetworkManager => {
                fs::create_dir_all(CONNECTIONS)?;
                connections(network).iter().try_for_each(|(name, text)| {
                    // It takes only files that nobody else can read.
                    let path = Path::new(CONNECTIONS).join(name);
                    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
                    file.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
                })
            }
            Self::Unknown => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the image has neither systemd-networkd nor NetworkManager, which could take the recovery's",
            )),
        }
    }
}

/// Path of a unit in the running system, if the image has it.
fn unit(root: &Path, name: &str) -> Option<std::path::PathBuf> {
    let found = UNITS.iter().map(|directory| Path::new(directory).join(name));
    found.into_iter().find(|path| fs::symlink_metadata(root.join(path)).is_ok()).map(|path| Path::new("/").join(path))
}

/// Whether a target of the image wants the unit.
fn is_wanted(root: &Path, name: &str) -> bool {
    let has = |directory: fs::DirEntry| {
        directory.file_name().to_string_lossy().ends_with(".wants")
            && fs::symlink_metadata(directory.path().join(name)).is_ok()
    };
    WISHES.iter().any(|wishes| fs::read_dir(root.join(wishes)).into_iter().flatten().flatten().any(has))
}

/// Connections of NetworkManager by their names (nm-settings-keyfile(5)). Those of explicit settings come before the
/// image's; the default stands behind them.
fn connections(network: &Network) -> Vec<(String, String)> {
    let all = network.all_interfaces();
    all.iter()
        .enumerate()
        .map(|(number, settings)| {
            let name = format!("reflash-safe-{number}");
            let is_default =
                *settings == InterfaceSettings { dns: network.dns.clone(), ..InterfaceSettings::default() };
            let priority = if is_default { -900 } else { 900 };
            let kind = if settings.vlan.is_some() { "vlan" } else { "ethernet" };
            let mut text =
                format!("[connection]\nid={name}\ntype={kind}\nautoconnect=true\nautoconnect-priority={priority}\n");
            // One connection for every card that matches.
            text += if settings.vlan.is_some() { "" } else { "multi-connect=3\n" };
            match (&settings.interface, settings.vlan) {
                (Some(InterfaceSelector::Name(device)), None) => drop(writeln!(text, "interface-name={device}")),
                (Some(InterfaceSelector::Name(parent)), Some(id)) => {
                    let _ = write!(text, "interface-name=safe{number}.{id}\n\n[vlan]\nid={id}\nparent={parent}\n");
                }
                (mac, Some(id)) => {
                    let _ = write!(text, "interface-name=safe{number}.{id}\n\n[vlan]\nid={id}\n");
                    let _ = write!(text, "{}", ethernet(mac.as_ref()));
                }
                (mac, None) => text += &ethernet(mac.as_ref()),
            }
            for (section, is_v6) in [("ipv4", false), ("ipv6", true)] {
                text += &family(section, is_v6, settings);
            }
            (format!("{name}.nmconnection"), text)
        })
        .collect()
}

fn ethernet(selector: Option<&InterfaceSelector>) -> String {
    let Some(InterfaceSelector::Mac(mac)) = selector else { return String::new() };
    let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02X}")).collect();
    format!("\n[ethernet]\nmac-address={}\n", mac.join(":"))
}

/// The section of one family of addresses.
fn family(section: &str, is_v6: bool, settings: &InterfaceSettings) -> String {
    let mut text = format!("\n[{section}]\n");
    let addresses: Vec<_> = settings.addresses.iter().filter(|one| one.address.is_ipv6() == is_v6).collect();
    let gateway = settings.gateways.iter().find(|gateway| gateway.is_ipv6() == is_v6);
    text += match (settings.addresses.is_empty(), addresses.is_empty(), is_v6) {
        (true, ..) => "method=auto\nmay-fail=true\n",
        (false, false, _) => "method=manual\n",
        // Routes and name servers of routers count beside addresses that are given.
        (false, true, true) => "method=auto\nmay-fail=true\n",
        (false, true, false) => "method=disabled\n",
    };
    for (number, one) in (1..).zip(&addresses) {
        let _ = writeln!(text, "address{number}={}/{}", one.address, one.prefix_len);
    }
    if let Some(gateway) = gateway.filter(|_| !addresses.is_empty()) {
        let _ = writeln!(text, "gateway={gateway}");
    }
    let servers: Vec<String> =
        settings.dns.iter().filter(|server| server.is_ipv6() == is_v6).map(ToString::to_string).collect();
    if !servers.is_empty() {
        let _ = writeln!(text, "dns={};", servers.join(";"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Configurator, NETWORK_MANAGER, NETWORKD, connections};
    use crate::machine::config::{Network, NetworkLayer};
    use std::fs;
    use std::path::Path;

    fn of(text: &str) -> Vec<(String, String)> {
        let layer: NetworkLayer = toml::from_str(text).unwrap();
        connections(&Network::resolve(layer).unwrap())
    }

    #[test]
    fn the_program_that_the_image_starts_takes_the_settings() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        let found = || Configurator::of(root.path());
        assert_eq!(found(), Configurator::Unknown);
        make(&format!("usr/lib/systemd/system/{NETWORKD}"));
        make("etc/systemd/system/multi-user.target.wants/networking.service");
        assert_eq!(found(), Configurator::IdleNetworkd);
        make(&format!("etc/systemd/system/multi-user.target.wants/{NETWORKD}"));
        assert_eq!(found(), Configurator::Networkd);
        make(&format!("etc/systemd/system/multi-user.target.wants/{NETWORK_MANAGER}"));
        assert_eq!(found(), Configurator::NetworkManager);
        let nothing = Network::resolve(NetworkLayer::default()).unwrap();
        let error = Configurator::Unknown.prepare(Path::new("/nonexistent"), &nothing).unwrap_err();
        assert!(error.to_string().contains("neither systemd-networkd nor NetworkManager"), "{error}");
    }

    #[test]
    fn connections_have_the_settings_of_the_recovery() {
        let default = of("");
        assert_eq!(default[0].0, "reflash-safe-0.nmconnection");
        assert!(default[0].1.contains("autoconnect-priority=-900\nmulti-connect=3\n"), "{}", default[0].1);
        assert!(default[0].1.contains("[ipv4]\nmethod=auto") && default[0].1.contains("[ipv6]\nmethod=auto"));
        let fixed = of(
            "interface = '52:54:00:12:34:56'\naddress = '192.0.2.7/24'\ngateway = '192.0.2.1'\ndns = ['192.0.2.53']",
        );
        for line in [
            "autoconnect-priority=900",
            "[ethernet]\nmac-address=52:54:00:12:34:56",
            "[ipv4]\nmethod=manual\naddress1=192.0.2.7/24\ngateway=192.0.2.1\ndns=192.0.2.53;\n",
            "[ipv6]\nmethod=auto",
        ] {
            assert!(fixed[0].1.contains(line), "{line}: {}", fixed[0].1);
        }
        let beside = of("dns = ['192.0.2.53']");
        assert!(beside[0].1.contains("dns=192.0.2.53;\n"), "{}", beside[0].1);
        assert!(!beside[0].1.contains("ignore-auto-dns"), "those of the network are asked too");
        let vlan = of("[[interfaces]]\ninterface = 'eth1'\nvlan = 42\n[[interfaces]]\naddresses = ['2001:db8::7/64']");
        assert!(vlan[0].1.contains("type=vlan") && vlan[0].1.contains("[vlan]\nid=42\nparent=eth1\n"), "{}", vlan[0].1);
        assert!(vlan[1].1.contains("[ipv4]\nmethod=disabled") && vlan[1].1.contains("address1=2001:db8::7/64"));
    }
}
