//! What the machine was told: the configuration files and the kernel command line. Pure.
//!
//! Three layers, the later one wins key by key: `/etc/reflash/reflash.toml` of the initramfs, `reflash.toml` of
//! the recovery partition, and `reflash.KEY=VALUE` on the kernel command line. Each layer is first a [`Layer`] in
//! which every key is optional and an unknown key is refused by name; [`Config::resolve`] then checks the whole.

mod disk;
mod network;

use std::time::Duration;

use serde::Deserialize;

use crate::machine::media::MediaId;
pub use disk::DiskSelector;
pub use network::{InterfaceSelector, Network, NetworkLayer, StaticAddress};

/// One configuration file as written. Every key may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Layer {
    /// `[release]`
    pub release: ReleaseLayer,
    /// `[machine]`
    pub machine: MachineLayer,
    /// `[network]`
    pub network: NetworkLayer,
    /// `[boot]`
    pub boot: BootLayer,
    /// `[report]`
    pub report: ReportLayer,
    /// `[watchdog]`
    pub watchdog: WatchdogLayer,
    /// `[provision]`
    pub provision: ProvisionLayer,
}

/// `[release]`: where releases come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReleaseLayer {
    /// Base URLs of the same release tree, tried in order: `http://`, `https://` or `file:///`.
    pub urls: Option<Vec<String>>,
    /// The channel: the directory below the base URL that holds `manifest.json`.
    pub channel: Option<String>,
    /// Seconds over which a fleet spreads its first requests, each machine by its hardware ID, when recovery began by
    /// itself. Default 15; 0 to 3600.
    pub spread_s: Option<u64>,
}

/// `[machine]`: which releases fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineLayer {
    /// The product; a release made for another is refused.
    pub product: Option<String>,
    /// The hardware name compared with the manifest's list. Default: the DMI product name.
    pub hardware: Option<String>,
    /// Host name template, such as `robot-{serial}`.
    pub hostname: Option<String>,
}

/// `[boot]`: what happens after the write.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootLayer {
    /// Boots the new system may try before GRUB falls back to recovery, 1 to 9. Default 3.
    pub tries: Option<u8>,
    /// Automatic recoveries to one release without a good boot between them, before the agent gives that release up
    /// and waits for another, 1 to 9. Default 3.
    pub recoveries: Option<u32>,
    /// Seconds an intact system waits in recovery for a release that cannot be had, before it is started again, 1 to
    /// 86400. Default 600.
    pub offline_s: Option<u64>,
}

/// `[report]`: who is told how recoveries go and went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReportLayer {
    /// URL that takes, as JSON by POST, what the agent is doing and the record of its last attempts.
    pub url: Option<String>,
}

/// `[watchdog]`: when a machine on which nothing moves is reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchdogLayer {
    /// Seconds without progress (a phase, a byte, an answered poll) after which the hardware watchdog is no longer fed;
    /// it resets the machine a minute later. A network that never comes up is no progress either. 0 leaves the watchdog
    /// alone; else 30 to 86400. Default 900.
    pub stall_s: Option<u64>,
}

/// `[provision]`: how a disk becomes a robot's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProvisionLayer {
    /// Which disk. Default: the only one that is not removable, not in use and not the boot medium.
    pub disk: Option<DiskSelector>,
}

/// The checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where releases come from, in order; never empty.
    pub urls: Vec<String>,
    /// Directory below each URL.
    pub channel: String,
    /// Product that the manifest must name.
    pub product: String,
    /// Hardware name, when the configuration overrides DMI.
    pub hardware: Option<String>,
    /// Host name template.
    pub hostname: Option<String>,
    /// Network settings.
    pub network: Network,
    /// Boots the new system may try, 1 to 9.
    pub boot_tries: u8,
    /// Automatic recoveries to one release without a good boot between them, 1 to 9.
    pub recoveries: u32,
    /// How long an intact system waits for a release that cannot be had.
    pub offline: Duration,
    /// Over how long a fleet spreads its first requests.
    pub spread: Duration,
    /// Who is told how recoveries went.
    pub report_url: Option<String>,
    /// Which disk provisioning takes.
    pub disk: DiskSelector,
    /// Time without progress until the watchdog is no longer fed; `None` leaves it alone.
    pub stall: Option<Duration>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, a wrong type, or an unknown key; the TOML error has the line.
    #[error("{origin} is not a valid configuration")]
    Toml {
        /// File the layer came from.
        origin: String,
        /// Line, column and reason.
        source: Box<toml::de::Error>,
    },
    /// An unknown `reflash.` argument.
    #[error("kernel argument {argument:?} is not known; known are {KERNEL_KEYS}")]
    UnknownArgument {
        /// The whole argument.
        argument: String,
    },
    /// A value out of range or of the wrong form.
    #[error("{key} = {value:?} is not valid: expected {expected}")]
    Value {
        /// Dotted key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A key that has no default.
    #[error("{key} is not set; set it in reflash.toml on the recovery partition")]
    Missing {
        /// Dotted key.
        key: &'static str,
    },
}

/// What GRUB tells the agent on the kernel command line, beside configuration overrides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootArgs {
    /// `reflash.reason=`: why GRUB chose recovery; see `grub/README.md`.
    pub reason: Option<String>,
    /// `reflash.recovery=PARTUUID`: the recovery partition GRUB booted from. It identifies the disk.
    pub recovery_partuuid: Option<String>,
    /// `reflash.slot=`: the slot of the recovery partition that kernel and initramfs were loaded from.
    pub slot: Option<String>,
    /// `reflash.force`: a person asked at the machine, so an older release is allowed.
    pub force: bool,
    /// `reflash.action=`: what to do, other than recover the disk GRUB started from.
    pub action: Option<Action>,
    /// `reflash.media=ID`: the boot medium the agent was started from.
    pub media: Option<MediaId>,
    /// `reflash.origin=ID`: the same for a network boot, where no medium is to be found.
    pub origin: Option<MediaId>,
    /// `reflash.arm=yes` or `=SERIAL`: a disk that is not blank may be erased; any that is chosen, or only this one.
    pub arm: Option<String>,
    /// `reflash.again`: also a disk that this medium made before. A person asked for it, now.
    pub again: bool,
    /// `reflash.dry-run`: say what provisioning would do, and write nothing.
    pub dry_run: bool,
    /// `reflash.` arguments that are not known, where they may be left out.
    pub unknown: Vec<String>,
    /// `reflash.verbose`: libraries may say everything in the kernel log.
    pub verbose: bool,
}

/// What a boot medium or a network boot asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Make a machine of a blank disk, or of one that may be erased: everything on it is new.
    Provision,
    /// Install the release again on the machine's disk; its data stays.
    Reflash,
    /// Delete the data of the machine, after a person confirmed it twice; its system stays.
    FactoryReset,
}

const KERNEL_KEYS: &str = "reflash.reason, reflash.recovery, reflash.slot, reflash.force, reflash.action, reflash.media, \
     reflash.origin, reflash.arm, reflash.again, reflash.dry-run, reflash.disk, reflash.verbose, reflash.url, reflash.channel, \
     reflash.product, reflash.hardware, reflash.interface, reflash.address, reflash.gateway, reflash.dns, \
     reflash.vlan, reflash.proxy, reflash.max-rate, reflash.report, reflash.system, reflash.data";

impl Layer {
    /// Parses one configuration file; `origin` names it in errors.
    ///
    /// # Errors
    /// [`ConfigError::Toml`] with line and key when the text is not a configuration.
    pub fn parse(origin: &str, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|source| ConfigError::Toml { origin: origin.to_owned(), source: Box::new(source) })
    }

    /// Takes every key that `later` sets.
    #[must_use]
    pub fn overridden_by(self, later: Self) -> Self {
        Self {
            release: ReleaseLayer {
                urls: later.release.urls.or(self.release.urls),
                channel: later.release.channel.or(self.release.channel),
                spread_s: later.release.spread_s.or(self.release.spread_s),
            },
            machine: MachineLayer {
                product: later.machine.product.or(self.machine.product),
                hardware: later.machine.hardware.or(self.machine.hardware),
                hostname: later.machine.hostname.or(self.machine.hostname),
            },
            network: self.network.overridden_by(later.network),
            boot: BootLayer {
                tries: later.boot.tries.or(self.boot.tries),
                recoveries: later.boot.recoveries.or(self.boot.recoveries),
                offline_s: later.boot.offline_s.or(self.boot.offline_s),
            },
            report: ReportLayer { url: later.report.url.or(self.report.url) },
            watchdog: WatchdogLayer { stall_s: later.watchdog.stall_s.or(self.watchdog.stall_s) },
            provision: ProvisionLayer { disk: later.provision.disk.or(self.provision.disk) },
        }
    }

    /// Reads the `reflash.` arguments of a kernel command line. Other arguments belong to the kernel and are ignored.
    ///
    /// Recovery must come up whatever a newer GRUB script adds, so that what it does not know is only listed in
    /// [`BootArgs::unknown`]. What deletes data is refused instead: the argument may have been meant to restrict it.
    ///
    /// # Errors
    /// [`ConfigError::UnknownArgument`] for a `reflash.` argument that is not known beside an action that deletes data,
    /// [`ConfigError::Value`] for one whose value cannot be read.
    pub fn from_kernel_command_line(line: &str) -> Result<(Self, BootArgs), ConfigError> {
        let mut layer = Self::default();
        let mut boot = BootArgs::default();
        for argument in line.split_ascii_whitespace() {
            let Some(setting) = argument.strip_prefix("reflash.") else { continue };
            let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
            let text = || value.to_owned();
            match key {
                "reason" => boot.reason = Some(text()),
                "recovery" => boot.recovery_partuuid = Some(value.to_ascii_lowercase()),
                "slot" => boot.slot = Some(text()),
                "force" => boot.force = true,
                "verbose" => boot.verbose = true,
                "action" => {
                    let action = match value {
                        "provision" => Action::Provision,
                        "reflash" => Action::Reflash,
                        "factory-reset" => Action::FactoryReset,
                        _ => return Err(value_error("reflash.action", value, "provision, reflash or factory-reset")),
                    };
                    boot.action = Some(action);
                }
                "media" => boot.media = Some(parsed("reflash.media", value, "the ID of a boot medium")?),
                "origin" => boot.origin = Some(parsed("reflash.origin", value, "the ID of a boot medium")?),
                "arm" if value.is_empty() => {
                    return Err(value_error("reflash.arm", value, "yes, or the serial number of a disk"));
                }
                "arm" => boot.arm = Some(text()),
                "again" => boot.again = true,
                "dry-run" => boot.dry_run = true,
                "disk" => layer.provision.disk = Some(DiskSelector::parse(value)?),
                // For the system's own initramfs; here they only must not be refused.
                "system" | "data" => {}
                "url" => layer.release.urls = Some(value.split(',').map(str::to_owned).collect()),
                "channel" => layer.release.channel = Some(text()),
                "product" => layer.machine.product = Some(text()),
                "hardware" => layer.machine.hardware = Some(text()),
                "interface" => layer.network.interface = Some(text()),
                "address" => layer.network.address = Some(text()),
                "gateway" => {
                    layer.network.gateway = Some(parsed("reflash.gateway", value, "an IPv4 address")?);
                }
                "dns" => {
                    let servers: Result<_, _> = value
                        .split(',')
                        .map(|one| parsed("reflash.dns", one, "IP addresses, comma separated"))
                        .collect();
                    layer.network.dns = Some(servers?);
                }
                "vlan" => layer.network.vlan = Some(parsed("reflash.vlan", value, "a VLAN ID from 1 to 4094")?),
                "proxy" => layer.network.proxy = Some(text()),
                "max-rate" => layer.network.max_rate_kib_s = Some(parsed("reflash.max-rate", value, "KiB per second")?),
                "report" => layer.report.url = Some(text()),
                _ => boot.unknown.push(argument.to_owned()),
            }
        }
        if matches!(boot.action, Some(Action::Provision | Action::FactoryReset))
            && let Some(argument) = boot.unknown.pop()
        {
            return Err(ConfigError::UnknownArgument { argument });
        }
        Ok((layer, boot))
    }
}

impl Config {
    /// Checks the merged layers and fills in the defaults.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] or [`ConfigError::Value`] with the key at fault.
    pub fn resolve(layer: Layer) -> Result<Self, ConfigError> {
        let urls = layer.release.urls.unwrap_or_default();
        if urls.is_empty() {
            return Err(ConfigError::Missing { key: "release.urls" });
        }
        let urls = urls.into_iter().map(checked_url).collect::<Result<_, _>>()?;
        let channel = layer.release.channel.unwrap_or_else(|| "stable".to_owned());
        if !is_path_segment(&channel) {
            return Err(value_error("release.channel", &channel, "letters, digits, '-', '_' and '.'"));
        }
        let boot_tries = layer.boot.tries.unwrap_or(3);
        if !(1..=9).contains(&boot_tries) {
            return Err(value_error("boot.tries", &boot_tries.to_string(), "a number from 1 to 9"));
        }
        let recoveries = layer.boot.recoveries.unwrap_or(3);
        if !(1..=9).contains(&recoveries) {
            return Err(value_error("boot.recoveries", &recoveries.to_string(), "a number from 1 to 9"));
        }
        let offline_s = layer.boot.offline_s.unwrap_or(600);
        if !(1..=86_400).contains(&offline_s) {
            return Err(value_error("boot.offline_s", &offline_s.to_string(), "seconds from 1 to 86400"));
        }
        let spread_s = layer.release.spread_s.unwrap_or(15);
        if spread_s > 3600 {
            return Err(value_error("release.spread_s", &spread_s.to_string(), "seconds from 0 to 3600"));
        }
        let stall_s = layer.watchdog.stall_s.unwrap_or(900);
        if stall_s != 0 && !(30..=86_400).contains(&stall_s) {
            return Err(value_error("watchdog.stall_s", &stall_s.to_string(), "0, or seconds from 30 to 86400"));
        }
        Ok(Self {
            urls,
            channel,
            product: layer.machine.product.ok_or(ConfigError::Missing { key: "machine.product" })?,
            hardware: layer.machine.hardware,
            hostname: layer.machine.hostname,
            network: Network::resolve(layer.network)?,
            boot_tries,
            recoveries,
            offline: Duration::from_secs(offline_s),
            spread: Duration::from_secs(spread_s),
            stall: (stall_s > 0).then(|| Duration::from_secs(stall_s)),
            disk: layer.provision.disk.unwrap_or_default(),
            report_url: layer.report.url.map(checked_report_url).transpose()?,
        })
    }
}

fn value_error(key: &'static str, value: &str, expected: &'static str) -> ConfigError {
    ConfigError::Value { key, value: value.to_owned(), expected }
}

fn parsed<T: std::str::FromStr>(key: &'static str, value: &str, expected: &'static str) -> Result<T, ConfigError> {
    value.parse().map_err(|_| value_error(key, value, expected))
}

fn seconds(key: &'static str, value: Option<u64>, default: u64) -> Result<Duration, ConfigError> {
    let value = value.unwrap_or(default);
    if !(1..=3600).contains(&value) {
        return Err(value_error(key, &value.to_string(), "seconds from 1 to 3600"));
    }
    Ok(Duration::from_secs(value))
}

fn checked_url(url: String) -> Result<String, ConfigError> {
    let known =
        ["http://", "https://", "file:///"].iter().any(|scheme| url.starts_with(scheme) && url.len() > scheme.len());
    if !known {
        return Err(value_error("release.urls", &url, "http://…, https://… or file:///…"));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

fn checked_report_url(url: String) -> Result<String, ConfigError> {
    if url.starts_with("http://") || url.starts_with("https://") {
        return Ok(url);
    }
    Err(value_error("report.url", &url, "http://… or https://…"))
}

/// Whether the text can be one directory name of a URL without escaping.
pub fn is_path_segment(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('.')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use super::{Action, BootArgs, Config, InterfaceSelector, Layer};

    const MINIMAL: &str = "[release]\nurls = ['http://a.example/r/']\n[machine]\nproduct = 'demo'\n";

    fn chain(error: &dyn std::error::Error) -> String {
        std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }

    #[test]
    fn what_a_medium_asks_for_is_read_and_nothing_is_guessed() {
        let of = |line: &str| Layer::from_kernel_command_line(line).map(|(_, boot)| boot);
        let id = crate::machine::media::MediaId::new([7; 16]);
        let boot = of(&format!(
            "quiet reflash.action=provision reflash.media={id} reflash.arm=S1 reflash.again reflash.dry-run"
        ))
        .unwrap();
        assert_eq!((boot.action, boot.media), (Some(Action::Provision), Some(id)));
        assert_eq!((boot.arm.as_deref(), boot.dry_run), (Some("S1"), true));
        assert!(boot.again && boot.origin.is_none());
        let reset = of("reflash.action=factory-reset").unwrap();
        assert_eq!((reset.action, reset.arm, reset.dry_run), (Some(Action::FactoryReset), None, false));
        assert_eq!(of("").unwrap().action, None);
        for wrong in ["reflash.action=wipe", "reflash.action=", "reflash.media=REFLASH", "reflash.arm", "reflash.arm="]
        {
            let error = of(wrong).unwrap_err().to_string();
            assert!(error.contains("expected"), "{wrong}: {error}");
        }
    }

    #[test]
    fn defaults_are_filled_in() {
        let config = Config::resolve(Layer::parse("test", MINIMAL).unwrap()).unwrap();
        assert_eq!(config.urls, ["http://a.example/r"]);
        assert_eq!((config.channel.as_str(), config.boot_tries), ("stable", 3));
        assert_eq!(config.network.stall_timeout.as_secs(), 30);
    }

    #[test]
    fn an_unknown_key_is_refused_with_name_and_line() {
        let error = Layer::parse("reflash.toml", "[network]\nvlam = 3\n").unwrap_err();
        let text = chain(&error);
        assert!(text.contains("reflash.toml") && text.contains("vlam") && text.contains("line 2"), "{text}");
    }

    #[test]
    fn the_command_line_overrides_the_file() {
        let line = "quiet root=x reflash.url=https://b.example,https://c.example reflash.reason=tries \
                    reflash.recovery=ABCD reflash.interface=52:54:00:12:34:56 reflash.address=192.0.2.7/24 \
                    reflash.gateway=192.0.2.1 reflash.slot=b reflash.verbose";
        let (over, boot) = Layer::from_kernel_command_line(line).unwrap();
        let config = Config::resolve(Layer::parse("test", MINIMAL).unwrap().overridden_by(over)).unwrap();
        assert_eq!(config.urls, ["https://b.example", "https://c.example"]);
        assert_eq!(config.product, "demo");
        assert_eq!(config.network.interface, Some(InterfaceSelector::Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])));
        let address = config.network.address.unwrap();
        assert_eq!((address.prefix_len, address.gateway), (24, Some([192, 0, 2, 1].into())));
        assert_eq!(
            boot,
            BootArgs {
                reason: Some("tries".into()),
                recovery_partuuid: Some("abcd".into()),
                slot: Some("b".into()),
                verbose: true,
                ..BootArgs::default()
            }
        );
    }

    #[test]
    fn wrong_values_name_the_key() {
        for (text, key) in [
            ("[machine]\nproduct='x'", "release.urls"),
            ("[release]\nurls=['http://a']", "machine.product"),
            ("[release]\nurls=['ftp://a']\n[machine]\nproduct='x'", "release.urls"),
            ("[release]\nurls=['http://a']\nchannel='../x'\n[machine]\nproduct='x'", "release.channel"),
            ("[release]\nurls=['http://a']\n[machine]\nproduct='x'\n[boot]\ntries=0", "boot.tries"),
            ("[release]\nurls=['http://a']\n[machine]\nproduct='x'\n[boot]\nrecoveries=0", "boot.recoveries"),
            ("[release]\nurls=['http://a']\n[machine]\nproduct='x'\n[boot]\noffline_s=0", "boot.offline_s"),
            ("[release]\nurls=['http://a']\nspread_s=9999\n[machine]\nproduct='x'", "release.spread_s"),
            ("[release]\nurls=['http://a']\n[machine]\nproduct='x'\n[watchdog]\nstall_s=5", "watchdog.stall_s"),
            ("[release]\nurls=['http://a']\n[machine]\nproduct='x'\n[report]\nurl='mailto:a'", "report.url"),
            ("[release]\nurls=['http://a']\n[machine]\nproduct='x'\n[network]\nvlan=4095", "network.vlan"),
            (
                "[release]\nurls=['http://a']\n[machine]\nproduct='x'\n[network]\nmax_rate_kib_s=15",
                "network.max_rate_kib_s",
            ),
            ("[release]\nurls=['http://a']\n[machine]\nproduct='x'\n[network]\naddress='192.0.2.1'", "network.address"),
            ("[release]\nurls=['http://a']\n[machine]\nproduct='x'\n[network]\ngateway='192.0.2.1'", "network.gateway"),
        ] {
            let error = Config::resolve(Layer::parse("test", text).unwrap()).unwrap_err();
            assert!(error.to_string().contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn an_unknown_argument_stops_what_deletes_data_but_never_a_recovery() {
        // Before the action and behind it: the order of a command line means nothing.
        for line in [
            "reflash.urll=x reflash.slot=b reflash.action=ACTION",
            "reflash.action=ACTION reflash.slot=b reflash.urll=x",
        ] {
            for deletes in ["provision", "factory-reset"] {
                let error = Layer::from_kernel_command_line(&line.replace("ACTION", deletes)).unwrap_err().to_string();
                assert!(error.contains("\"reflash.urll=x\"") && error.contains("known are"), "{error}");
            }
            for recovers in [line.replace("ACTION", "reflash"), line.replace("reflash.action=ACTION", "")] {
                let (_, boot) = Layer::from_kernel_command_line(&recovers).unwrap();
                assert_eq!((boot.unknown, boot.slot.as_deref()), (vec!["reflash.urll=x".to_owned()], Some("b")));
            }
        }
        assert!(Layer::from_kernel_command_line("reflash.action=wipe").is_err(), "a known one with a wrong value");
    }
}
