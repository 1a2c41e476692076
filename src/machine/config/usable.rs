//! Reading of a configuration by a program that must go on whatever the file says: the recovery, and the first step of
//! the system's boot. Pure.
//!
//! A person's command and the builder refuse a file with a key that they do not know, since it is a typing error or
//! meant for a newer program, and somebody is there who can correct it ([`Layer::parse`]). A robot alone has nobody:
//! there a key that is not known, or a value that is not right, is left out and named, and everything else counts.

use serde::Deserialize;
use toml::{Table, Value};

use super::error::{ConfigError, TomlProblem, name_or_nothing, without_values};
use super::keys::{Shape, ValueKind};
use super::kinds::ReleaseUrls;
use super::{BootArgs, Config, Layer, Network};

/// A configuration as far as it can be used, with what was left out of it.
#[derive(Debug, Default)]
pub struct Usable<T> {
    /// Value as far as it can be used.
    pub value: T,
    /// Keys that were left out, each with the reason.
    pub problems: Vec<ConfigError>,
}

/// Stands for the sources where none is configured, while the other keys are checked.
const NO_SOURCE: &str = "file:///none";

impl Layer {
    /// Parses one configuration file as far as it can be used; `origin` names it in errors.
    ///
    /// # Errors
    /// [`ConfigError::Toml`] when the text is not TOML at all: nothing of it can be used.
    pub fn parse_usable(origin: &str, text: &str) -> Result<Usable<Self>, ConfigError> {
        if let Ok(layer) = Self::parse(origin, text) {
            let mut usable = Usable { value: layer, problems: Vec::new() };
            usable.value.drop_wrong(&mut usable.problems);
            return Ok(usable);
        }
        let table: Table = toml::from_str(text)
            .map_err(|error| ConfigError::Toml { origin: origin.to_owned(), source: TomlProblem::of(text, &error) })?;
        let mut reader = Reader { origin, usable: Usable::default() };
        for (section, content) in table {
            match content {
                Value::Table(keys) => keys.into_iter().for_each(|(key, value)| reader.take(&section, &key, value)),
                other => reader.take_alone(&section, Table::from_iter([(section.clone(), other)])),
            }
        }
        reader.usable.value.drop_wrong(&mut reader.usable.problems);
        Ok(reader.usable)
    }

    /// Reads a kernel command line as [`from_kernel_command_line`](Self::from_kernel_command_line), for a recovery:
    /// a configuration key whose value is not right is left out. Beside an action that deletes data it is refused.
    ///
    /// # Errors
    /// As there, but for the values of configuration keys beside an action that deletes nothing.
    pub fn usable_kernel_arguments(line: &str) -> Result<(Usable<Self>, BootArgs), ConfigError> {
        let (mut value, mut problems, boot) = Self::read_kernel_command_line(line)?;
        value.drop_wrong(&mut problems);
        if boot.deletes_data() && !problems.is_empty() {
            return Err(problems.swap_remove(0));
        }
        Ok((Usable { value, problems }, boot))
    }

    /// Removes every key whose value is not right, by itself.
    pub(super) fn drop_wrong(&mut self, problems: &mut Vec<ConfigError>) {
        self.release.drop_wrong(problems);
        self.machine.drop_wrong(problems);
        self.network.drop_wrong(problems);
        self.boot.drop_wrong(problems);
        self.report.drop_wrong(problems);
        self.watchdog.drop_wrong(problems);
        self.data.drop_wrong(problems);
        self.update.drop_wrong(problems);
        self.provision.drop_wrong(problems);
    }

    /// Whether it names a source and a product: all that has no default.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.machine.product.is_some() && !self.has_no_source()
    }

    fn has_no_source(&self) -> bool {
        self.release.urls.as_ref().is_none_or(ReleaseUrls::is_absent)
    }
}

impl Config {
    /// Checks the merged layers as far as they can be used. Without a configured source, a USB drive and what the robot
    /// keeps are all that there is, and that is enough to go on.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] without a product: no release can be told from that of another.
    pub fn resolve_usable(mut layer: Layer) -> Result<Usable<Self>, ConfigError> {
        let mut problems = Vec::new();
        layer.drop_wrong(&mut problems);
        // What is right by itself may lack what it needs beside it.
        if let Err(error) = Network::resolve(layer.network.clone()) {
            problems.push(error);
            layer.network.gateway = None;
        }
        let has_no_source = layer.has_no_source();
        if has_no_source {
            layer.release.urls = Some(vec![NO_SOURCE.to_owned()]);
            problems.push(ConfigError::Missing { key: "release.urls" });
        }
        let mut config = Self::resolve(layer)?;
        if has_no_source {
            config.urls.clear();
        }
        Ok(Usable { value: config, problems })
    }
}

/// Lists the keys that a configuration file sets and that a published version does not know, each with the last such
/// version: a recovery of that version refuses the whole file. A text that is no configuration has none.
#[must_use]
pub fn newer_keys(text: &str) -> Vec<(String, &'static str)> {
    let table: Table = toml::from_str(text).unwrap_or_default();
    let is_set = |section: &str, key: &str| table.get(section).and_then(|keys| keys.get(key)).is_some();
    let keys = super::sections().flat_map(|section| section.keys.iter().map(|key| (section.path, key)));
    keys.filter(|(section, key)| is_set(section, key.name))
        .filter_map(|(section, key)| Some((format!("{section}.{}", key.name), key.newer_than?)))
        .collect()
}

/// Takes one key after the other.
struct Reader<'a> {
    origin: &'a str,
    usable: Usable<Layer>,
}

impl Reader<'_> {
    /// Takes a key of a section. Of a section within it, each key is taken by itself.
    fn take(&mut self, section: &str, key: &str, value: Value) {
        let wrapped = |value| Table::from_iter([(section.to_owned(), Value::Table(wrapped_in(key, value)))]);
        let known = super::sections().find(|known| known.path == section);
        let shape = known.and_then(|known| known.keys.iter().find(|known| known.name == key)).map(|key| key.shape);
        let value = match (shape, value) {
            (Some(Shape::Table(_)), Value::Table(table)) => {
                let fits = |table| Layer::deserialize(Value::Table(wrapped(Value::Table(table)))).map(drop);
                Value::Table(self.without_misfits(section, key, table, &fits))
            }
            (Some(Shape::Tables(_)), Value::Array(list)) => {
                let fits = |table| {
                    Layer::deserialize(Value::Table(wrapped(Value::Array(vec![Value::Table(table)])))).map(drop)
                };
                Value::Array(
                    list.into_iter()
                        .map(|one| match one {
                            Value::Table(table) => Value::Table(self.without_misfits(section, key, table, &fits)),
                            other => other,
                        })
                        .collect(),
                )
            }
            (_, value) => value,
        };
        let path = format!("{}.{}", name_or_nothing(section), name_or_nothing(key));
        self.take_alone(&path, wrapped(value));
    }

    /// Takes what the table has, all or nothing.
    fn take_alone(&mut self, key: &str, table: Table) {
        match Layer::deserialize(Value::Table(table)) {
            Ok(layer) => self.usable.value = std::mem::take(&mut self.usable.value).overridden_by(layer),
            Err(error) => self.leave_out(name_or_nothing(key).to_owned(), &error),
        }
    }

    fn without_misfits(
        &mut self,
        section: &str,
        key: &str,
        table: Table,
        fits: &dyn Fn(Table) -> Result<(), toml::de::Error>,
    ) -> Table {
        let mut kept = Table::new();
        for (name, value) in table {
            match fits(wrapped_in(&name, value.clone())) {
                Ok(()) => drop(kept.insert(name, value)),
                Err(error) => self.leave_out(format!("{section}.{key}.{}", name_or_nothing(&name)), &error),
            }
        }
        kept
    }

    fn leave_out(&mut self, key: String, error: &toml::de::Error) {
        let problem = without_values(error.message());
        self.usable.problems.push(ConfigError::LeftOut { origin: self.origin.to_owned(), key, problem });
    }
}

fn wrapped_in(key: &str, value: Value) -> Table {
    Table::from_iter([(key.to_owned(), value)])
}

#[cfg(test)]
mod tests {
    use super::{Usable, newer_keys};
    use crate::machine::config::{Config, ConfigError, Layer};

    fn read(text: &str) -> Result<Usable<Layer>, ConfigError> {
        Layer::parse_usable("reflash.toml", text)
    }

    const MINIMAL: &str = "[release]\nurls = ['http://a.example/r']\n[machine]\nproduct = 'demo'\n";

    #[test]
    fn a_file_for_a_newer_program_counts_but_for_what_is_not_known() {
        let text = "[data]\non_loss = 'renew'\nkeep_days = 3\n[boot]\ntries = 5\nnews = { a = 1 }\n[telemetry]\n\
                    level = 'all'\n[network]\nvlan = 42\n[[network.interfaces]]\ninterface = 'eth0'\nvlan = 7\n\
                    speed = 'auto'\n[[network.interfaces]]\ninterface = 'eth1'\n";
        let text = format!("news = 1\n{MINIMAL}{text}");
        assert!(Layer::parse("reflash.toml", &text).is_err(), "a person's command refuses it");
        let Usable { value, problems } = read(&text).unwrap();
        let shown: Vec<_> = problems.iter().map(ToString::to_string).collect();
        for key in ["news", "data.keep_days", "boot.news", "telemetry.level", "network.interfaces.speed"] {
            assert!(shown.iter().any(|one| one.contains(&format!(" {key} "))), "{key}: {shown:?}");
        }
        assert_eq!(shown.len(), 5, "{shown:?}");
        assert_eq!((value.data.on_loss.as_deref(), value.boot.tries), (Some("renew"), Some(5)));
        let interfaces = value.network.interfaces.clone().unwrap();
        assert_eq!((interfaces.len(), interfaces[0].vlan), (2, Some(7)));
        assert!(value.is_complete());
        let Usable { value: config, problems } = Config::resolve_usable(value).unwrap();
        assert_eq!((config.boot_tries, problems.len()), (5, 0));
    }

    #[test]
    fn a_wrong_value_is_its_default_and_the_others_count() {
        let text = format!(
            "{MINIMAL}[boot]\ntries = 0\nrecoveries = 'many'\noffline_s = 30\ngood_within_s = 5\ndrill_s = 99999999\n\
             [network]\nvlan = 4095\ndns = ['192.0.2.53', 'here']\ngateway = '192.0.2.1'\n[watchdog]\nstall_s = -1\n\
             [data]\non_loss = 'maybe'\n[[network.interfaces]]\nvlan = 5000\ninterface = 'eth0'\n\
             [provision.disk]\nmin_gb = 'big'\nserial = 'S*'\n"
        );
        let Usable { value, problems } = read(&text).unwrap();
        let Usable { value: config, problems: more } = Config::resolve_usable(value.clone()).unwrap();
        assert_eq!((config.boot_tries, config.recoveries, config.offline.as_secs()), (3, 3, 30));
        assert_eq!((config.good_within.map(|limit| limit.as_secs()), config.drill.as_secs()), (Some(600), 600));
        assert_eq!((config.network.vlan, config.network.gateway), (None, None));
        assert_eq!(config.network.interfaces[0].vlan, None);
        assert!(config.network.interfaces[0].interface.is_some());
        assert_eq!((config.stall.map(|limit| limit.as_secs()), config.disk.serial.as_deref()), (Some(900), Some("S*")));
        let shown: Vec<_> = problems.iter().chain(&more).map(ToString::to_string).collect();
        for key in ["boot.tries", "boot.recoveries", "network.vlan", "network.gateway", "data.on_loss", "min_gb"] {
            assert!(shown.iter().any(|one| one.contains(key)), "{key}: {shown:?}");
        }
    }

    #[test]
    fn of_several_sources_those_count_that_can_be_used() {
        let text = "[release]\nurls = ['htp://a', 'http://b.example']\n[machine]\nproduct = 'x'\n";
        let Usable { value, problems } = read(text).unwrap();
        assert_eq!((value.release.urls, problems.len()), (Some(vec!["http://b.example".to_owned()]), 1));
        // Without any, a USB drive and what is kept are left.
        let layer = read("[release]\nurls = ['htp://a']\n[machine]\nproduct = 'x'\n").unwrap().value;
        assert!(!layer.is_complete());
        let Usable { value: config, problems } = Config::resolve_usable(layer).unwrap();
        assert!(config.urls.is_empty() && problems[0].to_string().contains("release.urls"), "{problems:?}");
        assert!(matches!(Config::resolve_usable(Layer::default()), Err(ConfigError::Missing { .. })));
    }

    #[test]
    fn keys_that_an_older_recovery_refuses_are_known_by_name() {
        let text = format!("{MINIMAL}[boot]\ntries = 5\ndrill_s = 90\n[[network.interfaces]]\nvlan = 7\n");
        let newer = newer_keys(&text).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(newer, ["network.interfaces", "boot.drill_s"]);
        assert!(newer_keys(MINIMAL).is_empty() && newer_keys("\0").is_empty());
    }

    #[test]
    fn what_is_no_text_of_a_configuration_gives_nothing() {
        for text in ["\0\0\0", "[release", "urls = [", "[a]\n[a]\n"] {
            assert!(matches!(read(text), Err(ConfigError::Toml { .. })), "{text:?}");
        }
        assert!(read("").unwrap().problems.is_empty());
    }

    #[test]
    fn kernel_arguments_that_cannot_be_used_never_stop_a_recovery() {
        let line = "reflash.tries=5 reflash.vlan=9999 reflash.dns=here reflash.channel=testing reflash.news=1";
        let (Usable { value, problems }, args) = Layer::usable_kernel_arguments(line).unwrap();
        assert_eq!((value.release.channel.as_deref(), value.network.vlan), (Some("testing"), None));
        assert_eq!((problems.len(), args.unknown.len()), (2, 2), "{problems:?} {:?}", args.unknown);
        for action in ["provision", "factory-reset"] {
            assert!(Layer::usable_kernel_arguments(&format!("{line} reflash.action={action}")).is_err());
            let line = format!("reflash.vlan=9999 reflash.action={action}");
            assert!(Layer::usable_kernel_arguments(&line).is_err(), "it may have been meant to restrict it");
        }
    }
}
