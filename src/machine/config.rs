//! The configuration of a machine: its files and the kernel command line. Pure.
//!
//! Three layers are merged, and the later one wins key by key: `/etc/reflash/reflash.toml` of the initramfs,
//! `reflash.toml` of the recovery partition, and `reflash.KEY=VALUE` on the kernel command line. Each is first a
//! [`Layer`], in which every key is optional and an unknown key is refused by name; [`Config::resolve`] then checks the
//! whole. A robot alone leaves out what it cannot use instead ([`Layer::parse_usable`], [`Config::resolve_usable`]).
//!
//! A key is defined by one row: those of `[network]`, `[[network.interfaces]]` and `[provision.disk]` in the modules of
//! that name, all others below. The `keys` module explains what a row says. `docs/configuration.md` and the JSON schema
//! beside it are made of the rows ([`reference`]).

mod boot_args;
mod data;
mod disk;
mod error;
mod health;
mod interface_kinds;
mod interfaces;
mod keys;
mod kinds;
mod network;
mod ports;
mod proxy_kinds;
pub mod reference;
mod update;
pub mod usable;

use std::time::Duration;

use serde::Deserialize;

pub use boot_args::{Action, BootArgs, BootArgument, SYSTEM_ARGUMENTS};
pub use data::OnLoss;
pub use disk::{DiskLayer, DiskSelector};
pub use error::{ConfigError, TomlProblem};
pub use interface_kinds::{InterfaceSelector, StaticAddress};
pub use interfaces::{InterfaceLayer, InterfaceSettings};
pub use keys::{ConfigKey, Presence, Section, Shape, ValueKind};
pub use kinds::is_path_segment;
pub use network::{Network, NetworkLayer};
pub use ports::has_usable_port;
pub use proxy_kinds::DirectHosts;
pub use update::{Automatic, RestartWindow};

use disk::DiskTable;
use health::UnitNames;
use kinds::{HttpUrl, KibPerSecond, Number, PathSegment, ReleaseUrls, Seconds, SecondsOrNever, Text};
use update::Windows;

keys::keys! {
    /// The checked configuration.
    #[derive(Debug, Clone, PartialEq, Eq)]
    checked Config {
        /// The checked network settings.
        network: NetworkLayer => Network;
    }

    /// Where releases come from.
    ["release"] release: ReleaseLayer {
        /// Base URLs of the same release tree, asked in order; the newest release of all of them counts. A kernel
        /// argument holds them comma separated.
        urls as urls: ReleaseUrls, required, argument "url";
        /// The channel: the directory below the base URL that holds `manifest.json`.
        channel as channel: PathSegment, default "stable", argument "channel";
        /// Seconds over which a fleet spreads its first requests, each machine by its hardware ID, when recovery began
        /// by itself.
        spread_s as spread: Seconds<0, 3600>, default "15";
        /// The robot's ring in roll-outs (`docs/rollouts.md`), such as `lab`. It counts on the recovery partition
        /// alone, so that recovery and the running system decide alike.
        ring as ring: PathSegment, optional "the robot is in no ring", newer_than "0.1.0";
    }

    /// Which releases fit, and what the machine is called.
    ["machine"] machine: MachineLayer {
        /// The product. A release made for another is refused.
        product as product: Text, required, argument "product";
        /// The hardware name that is compared with the manifest's list.
        hardware as hardware: Text, optional "the DMI product name", argument "hardware";
        /// Host name template, such as `robot-{serial}`.
        hostname as hostname: Text, optional "the name that the system's image gives";
    }

    /// What happens after the system was written, and how often recovery is tried.
    ["boot"] boot: BootLayer {
        /// Boots that the new system may try before GRUB falls back to recovery.
        tries as boot_tries: Number<u8, 1, 9>, default "3";
        /// Automatic recoveries to one release without a good boot between them, before the agent gives that release up
        /// and waits for another.
        recoveries as recoveries: Number<u32, 1, 9>, default "3";
        /// Seconds that an intact system waits in recovery for a release that cannot be had, before it is started
        /// again.
        offline_s as offline: Seconds<1, 86_400>, default "600";
        /// Seconds that a start of the system has for calling itself good, from when its data was checked. One that has
        /// not by then is restarted, and GRUB has counted the try. A person who is logged in holds that for an hour
        /// after each key. 0 switches it off. It is read also from `/etc/reflash/reflash.toml` of the system.
        good_within_s as good_within: GoodWithin, default "600", argument "good-within-s", newer_than "0.1.0";
        /// Seconds for which the services of the image have to stay up before a boot is called good, and four times as
        /// long for one that was restarted meanwhile. Services that nothing names count only until a boot of the
        /// release was good on this machine; 0 leaves them out. Like the two keys below it is read also from
        /// `/etc/reflash/reflash.toml` of the system.
        settle_s as settle: SecondsOrNever<5, 3600>, default "30", newer_than "0.1.0";
        /// Services without which no boot is called good: they have to run and stay up. `*` stands for any text.
        health_units as health_units: UnitNames, default "", newer_than "0.1.0";
        /// Services whose failures do not count, as that of a device which not every machine has.
        health_ignore as health_ignore: UnitNames, default "", newer_than "0.1.0";
        /// Seconds after which a drill (`reflash drill`) starts the system again, however far it has come.
        drill_s as drill: Seconds<60, 86_400>, default "600", newer_than "0.1.0";
    }

    /// Where the machine posts how its recoveries go and went.
    ["report"] report: ReportLayer {
        /// URL that takes, as JSON by POST, what the agent is doing and the record of its last attempts.
        url as report_url: HttpUrl, optional "nothing is posted", argument "report";
    }

    /// When a machine on which nothing moves is reset.
    ["watchdog"] watchdog: WatchdogLayer {
        /// Seconds without progress (a phase, a byte, an answered poll) after which the hardware watchdog is no longer
        /// fed; it resets the machine a minute later. Without one, PID 1 restarts the machine. A network that never
        /// comes up is no progress either. 0 leaves the watchdog alone, and the machine too.
        stall_s as stall: SecondsOrNever<30, 86_400>, default "900";
    }

    /// What becomes of a data partition that is lost. The first step of the system's boot reads it in `reflash.toml` of
    /// the recovery partition; a recovery from before this section refuses a file that has it.
    ["data"] data: DataLayer {
        /// What is done when the data partition cannot be written at three starts in a row: `keep` leaves it as it is,
        /// and the system works in memory; `renew` makes it anew, with what can be read of the old one and finds room
        /// on the state partition.
        on_loss as on_loss: OnLoss, default "keep", newer_than "0.1.0";
    }

    /// What the running system does about its next release by itself, and when it may restart for it. It is read in
    /// `/etc/reflash/reflash.toml` of the system, and in `reflash.toml` of the recovery partition over it.
    ["update"] update: UpdateLayer {
        /// How far the system goes by itself, each time that `reflash-update.timer` asks: `off` does nothing, `fetch`
        /// fetches the next release beside what the machine does, `apply` also restarts for it, at a moment that suits.
        automatic as update_automatic: Automatic, default "off", newer_than "0.1.0";
        /// Local times of the week in which the machine may restart for an update by itself. A window over midnight
        /// belongs to the day on which it opens. Without any, every time suits that nothing else speaks against.
        window as update_windows: Windows, default "", newer_than "0.1.0";
        /// Hours after which the servers are asked again whether there is a newer release.
        look_h as update_look_h: Number<u32, 1, 720>, default "6", newer_than "0.1.0";
        /// The most to download for an update while the system works, all connections together.
        max_rate_kib_s as update_max_bytes_per_s: KibPerSecond<16, 16_777_216>, optional "that of the network section",
            newer_than "0.1.0";
        /// Hours for which recovery applies what was fetched without asking a network again: the system asks just
        /// before it restarts. A machine that was off for longer asks first.
        permit_h as update_permit_h: Number<u32, 1, 720>, default "24", newer_than "0.1.0";
    }

    /// How a disk becomes that of a robot.
    ["provision"] provision: ProvisionLayer {
        /// The disk to provision, by what is known of it. There must be exactly one that fits, is not in use and is not
        /// the boot medium.
        disk as disk: DiskTable, default "removable=false", argument "disk";
    }
}

/// The kind of `boot.good_within_s`, which the first step of the system's boot reads alone.
type GoodWithin = SecondsOrNever<30, 86_400>;

impl BootLayer {
    /// Checks `boot.good_within_s` alone, for a caller to which the rest is of no use. `None`: nothing is watched.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for one that is out of range.
    pub fn good_within(&self) -> Result<Option<Duration>, ConfigError> {
        let written = self.good_within_s.map_or_else(|| keys::read::<GoodWithin>(GOOD_WITHIN, "600"), Ok)?;
        GoodWithin::check(GOOD_WITHIN, written)
    }
}

/// The kind of `boot.settle_s`.
type Settle = SecondsOrNever<5, 3600>;

impl BootLayer {
    /// Checks `boot.settle_s` alone, seconds, for a caller to which the rest is of no use.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for one that is out of range.
    pub fn checked_settle_s(&self) -> Result<Option<u64>, ConfigError> {
        self.settle_s
            .map(|written| Settle::check("boot.settle_s", written).map(|checked| checked.map_or(0, |it| it.as_secs())))
            .transpose()
    }
}

/// The key's name in errors.
const GOOD_WITHIN: &str = "boot.good_within_s";

impl DataLayer {
    /// Checks `data.on_loss` alone, for a caller to which the rest is of no use.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for another word than those that there are.
    pub fn checked_on_loss(&self) -> Result<OnLoss, ConfigError> {
        self.on_loss.clone().map_or(Ok(OnLoss::Keep), |written| OnLoss::check("data.on_loss", written))
    }
}

/// One configuration file as written. Every key may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Layer {
    /// The section `[release]`.
    pub release: ReleaseLayer,
    /// The section `[machine]`.
    pub machine: MachineLayer,
    /// The section `[network]`.
    pub network: NetworkLayer,
    /// The section `[boot]`.
    pub boot: BootLayer,
    /// The section `[report]`.
    pub report: ReportLayer,
    /// The section `[watchdog]`.
    pub watchdog: WatchdogLayer,
    /// The section `[data]`.
    pub data: DataLayer,
    /// The section `[update]`.
    pub update: UpdateLayer,
    /// The section `[provision]`.
    pub provision: ProvisionLayer,
}

/// Every section of a configuration file with its keys, in the order of the documentation.
pub fn sections() -> impl Iterator<Item = &'static Section> {
    let (first, rest) = Config::SECTIONS.split_at(2);
    first.iter().chain(Network::SECTIONS).chain(InterfaceSettings::SECTIONS).chain(rest).chain(DiskSelector::SECTIONS)
}

/// Every kernel argument that the agent takes.
#[must_use]
pub fn known_arguments() -> Vec<String> {
    let boot = BootArgs::ARGUMENTS.iter().chain(SYSTEM_ARGUMENTS).map(|argument| argument.name);
    // The keys of a disk are no arguments by themselves: they are written into that of the disk.
    let keys = Config::SECTIONS.iter().chain(Network::SECTIONS).flat_map(|section| section.keys);
    boot.chain(keys.filter_map(|key| key.argument)).map(|name| format!("reflash.{name}")).collect()
}

impl Layer {
    /// Parses one configuration file; `origin` names it in errors.
    ///
    /// # Errors
    /// [`ConfigError::Toml`] with line and key when the text is not a configuration.
    pub fn parse(origin: &str, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text)
            .map_err(|error| ConfigError::Toml { origin: origin.to_owned(), source: TomlProblem::of(text, &error) })
    }

    /// Takes every key that `later` sets.
    #[must_use]
    pub fn overridden_by(self, later: Self) -> Self {
        Self {
            release: self.release.overridden_by(later.release),
            machine: self.machine.overridden_by(later.machine),
            network: self.network.overridden_by(later.network),
            boot: self.boot.overridden_by(later.boot),
            report: self.report.overridden_by(later.report),
            watchdog: self.watchdog.overridden_by(later.watchdog),
            data: self.data.overridden_by(later.data),
            update: self.update.overridden_by(later.update),
            provision: self.provision.overridden_by(later.provision),
        }
    }

    /// Sets the key that has this kernel argument, if there is one. Whether there is.
    fn set(&mut self, argument: &str, text: &str) -> Result<bool, ConfigError> {
        Ok(self.release.set(argument, text)?
            || self.machine.set(argument, text)?
            || self.network.set(argument, text)?
            || self.boot.set(argument, text)?
            || self.report.set(argument, text)?
            || self.watchdog.set(argument, text)?
            || self.data.set(argument, text)?
            || self.update.set(argument, text)?
            || self.provision.set(argument, text)?)
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
        let (layer, mut problems, boot) = Self::read_kernel_command_line(line)?;
        if problems.is_empty() { Ok((layer, boot)) } else { Err(problems.swap_remove(0)) }
    }

    /// Reads a kernel command line; the values of configuration keys that cannot be read join the problems.
    fn read_kernel_command_line(line: &str) -> Result<(Self, Vec<ConfigError>, BootArgs), ConfigError> {
        let (mut layer, mut problems) = (Self::default(), Vec::new());
        let mut boot = BootArgs::default();
        for argument in line.split_ascii_whitespace() {
            let Some(setting) = argument.strip_prefix("reflash.") else { continue };
            let (name, text) = setting.split_once('=').unwrap_or((setting, ""));
            let of_system = SYSTEM_ARGUMENTS.iter().any(|known| known.name == name);
            if of_system || boot.set(name, text)? {
                continue;
            }
            match layer.set(name, text) {
                Ok(true) => {}
                // The name alone: the value may be a URL with a password.
                Ok(false) => boot.unknown.push(format!("reflash.{name}")),
                Err(error) => problems.push(error),
            }
        }
        if boot.deletes_data()
            && let Some(argument) = boot.unknown.pop()
        {
            return Err(ConfigError::UnknownArgument { argument, known: known_arguments().join(", ") });
        }
        Ok((layer, problems, boot))
    }
}

impl Config {
    /// Checks the merged layers and fills in the defaults.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] or [`ConfigError::Value`] with the key at fault.
    pub fn resolve(layer: Layer) -> Result<Self, ConfigError> {
        let Layer { release, machine, network, boot, report, watchdog, data, update, provision } = layer;
        Self::checked(release, machine, boot, report, watchdog, data, update, provision, network)
    }
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
        assert_eq!((address.prefix_len, config.network.gateway), (24, Some(std::net::IpAddr::from([192, 0, 2, 1]))));
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
                assert!(error.contains("\"reflash.urll\"") && error.contains("known are"), "{error}");
            }
            for recovers in [line.replace("ACTION", "reflash"), line.replace("reflash.action=ACTION", "")] {
                let (_, boot) = Layer::from_kernel_command_line(&recovers).unwrap();
                assert_eq!((boot.unknown, boot.slot.as_deref()), (vec!["reflash.urll".to_owned()], Some("b")));
            }
        }
        assert!(Layer::from_kernel_command_line("reflash.action=wipe").is_err(), "a known one with a wrong value");
    }
}
