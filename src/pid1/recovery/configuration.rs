//! What this machine is set to: configuration, trusted keys, and the record of what is installed.
//!
//! The recovery partition has the configuration once. Where it cannot be used, the copy on the state partition stands
//! in for it, then what the initramfs and the kernel command line say, then the record of the installed release for
//! what has no default. None of it is made up, and each step is a warning, which the black box and the report have.

use std::path::Path;

use super::boot_medium::BootMedium;
use super::error::SetupError;
use super::inputs::read_if_there;
use super::robot_disk::RECOVERY;
use crate::chain::chain;
use crate::jobs::recovery::Identity;
use crate::jobs::site_copy::{self, CONFIG, SiteCopy};
use crate::jobs::state::{InstalledRecord, StatePartition};
use crate::machine::config::usable::Usable;
use crate::machine::config::{Config, ConfigError, Layer};
use crate::machine::identity::hardware_name;
use crate::pid1::link::WorkPart;
use crate::pid1::worker;
use crate::record::journal::Journal;
use crate::release::manifest::TrustedKeys;

/// Directory of the configuration and keys that travel in the initramfs. Those of the recovery partition count before
/// them.
pub(super) const BUILT_IN: &str = "/etc/reflash";

/// Settings of this machine.
pub(super) struct MachineSettings {
    pub config: Config,
    pub keys: TrustedKeys,
    /// Product, hardware and channel that a release must fit.
    pub identity: Identity,
    /// Record of the installed release, whose signature is checked here and not again.
    pub record: Option<InstalledRecord>,
}

/// Reads the settings, and brings the copy of the recovery partition's files up to date.
///
/// # Errors
/// No product is known.
pub(super) fn read(
    medium: Option<&BootMedium>,
    over: Layer,
    state: &StatePartition,
    journal: &Journal,
) -> Result<MachineSettings, SetupError> {
    let copy = worker::within(&WorkPart::State, || SiteCopy::read(state));
    let mut of_medium = Layer::default();
    let mut directories = vec![format!("{RECOVERY}/keys"), format!("{BUILT_IN}/keys")];
    if let Some(medium) = medium {
        medium.contribute(&mut of_medium, &mut directories, journal)?;
    }
    let keys = read_keys(&directories, &copy, journal);
    let record = worker::within(&WorkPart::State, || state.read_record(&keys)).unwrap_or_else(|error| {
        journal.warn(&format!("going on without a record of the installed release: {}", chain(&error)));
        None
    });
    let path = format!("{RECOVERY}/{CONFIG}");
    let later = of_medium.overridden_by(over);
    let original = read_if_there(Path::new(&path)).map_err(|error| chain(&error));
    let Chosen { layer, warnings, is_lost } = choose(&path, built_in(journal), original, copy.get(CONFIG), later);
    warnings.iter().for_each(|warning| journal.warn(warning));
    let layer = if is_lost { completed(layer, record.as_ref(), journal) } else { layer };
    let Usable { value: config, problems } = Config::resolve_usable(layer)?;
    problems.iter().for_each(|problem| journal.warn(&chain(problem)));
    let identity = identity_of(&config);
    report_identity(&identity, &keys, journal);
    let kept = worker::within(&WorkPart::State, || site_copy::keep(state, Path::new(RECOVERY)));
    if let Err(error) = kept {
        journal.warn(&format!("no copy of the configuration can be kept on the state partition: {error}"));
    }
    Ok(MachineSettings { config, keys, identity, record })
}

fn read_keys(directories: &[String], copy: &SiteCopy, journal: &Journal) -> TrustedKeys {
    let read = site_copy::read_usable_keys(directories, copy);
    read.left_out.iter().for_each(|error| journal.warn(&format!("going on with the other keys: {}", chain(error))));
    if !read.copies.is_empty() {
        let names = read.copies.join(", ");
        journal.warn(&format!("damaged on the recovery partition, and used from the state partition's copy: {names}"));
    }
    read.keys
}

/// Product, hardware and channel that a release must fit. The hardware has the name that the firmware gives it, unless
/// the configuration gives another.
pub(super) fn identity_of(config: &Config) -> Identity {
    Identity {
        product: config.product.clone(),
        hardware: config.hardware.clone().or_else(hardware_name).unwrap_or_default(),
        channel: config.channel.clone(),
    }
}

/// Reports what a release must fit, and how many keys are trusted.
pub(super) fn report_identity(identity: &Identity, keys: &TrustedKeys, journal: &Journal) {
    let Identity { product, hardware, .. } = identity;
    journal.note(&format!("product {product}, hardware {hardware:?}, {} trusted keys", keys.len()));
}

/// The configuration in the initramfs, as far as it can be used.
fn built_in(journal: &Journal) -> Layer {
    let path = format!("{BUILT_IN}/{CONFIG}");
    let read = read_if_there(Path::new(&path)).map_err(|error| chain(&error)).and_then(|text| {
        let text = text.unwrap_or_default();
        Layer::parse_usable(&path, &text).map_err(|error| chain(&error))
    });
    let Usable { value, problems } = read.unwrap_or_else(|why| {
        journal.warn(&format!("left out: {why}"));
        Usable::default()
    });
    problems.iter().for_each(|problem| journal.warn(&chain(problem)));
    value
}

/// The merged layers, with what is to be said about them.
#[derive(Debug)]
struct Chosen {
    layer: Layer,
    warnings: Vec<String>,
    /// Whether neither the configuration of the recovery partition nor its copy is all that it should be.
    is_lost: bool,
}

/// Chooses between the configuration of the recovery partition at `path` and its copy: the original, unless with it a
/// source or a product is missing and with the copy neither is. Pure.
fn choose(
    path: &str,
    earlier: Layer,
    original: Result<Option<String>, String>,
    copy: Option<&str>,
    later: Layer,
) -> Chosen {
    let merged = |layer: Layer| earlier.clone().overridden_by(layer).overridden_by(later.clone());
    let shown = |problems: &[ConfigError]| problems.iter().map(|problem| chain(problem)).collect::<Vec<_>>();
    let parsed = |origin: &str, text: &str| Layer::parse_usable(origin, text).map_err(|error| chain(&error));
    let (used, why) = match original {
        Ok(Some(text)) => match parsed(path, &text) {
            Ok(usable) => (Some(usable), format!("{path} names no release server or no product")),
            Err(why) => (None, why),
        },
        Ok(None) => (None, format!("{path} is missing")),
        Err(why) => (None, why),
    };
    let original = used.map(|usable| (merged(usable.value), shown(&usable.problems)));
    if let Some((layer, warnings)) = &original
        && layer.is_complete()
    {
        return Chosen { layer: layer.clone(), warnings: warnings.clone(), is_lost: false };
    }
    let from_copy = copy.and_then(|text| parsed("its copy on the state partition", text).ok());
    if let Some(usable) = from_copy {
        let layer = merged(usable.value);
        if layer.is_complete() {
            let used = format!("{why}; its copy on the state partition is used");
            let warnings = std::iter::once(used).chain(shown(&usable.problems)).collect();
            return Chosen { layer, warnings, is_lost: false };
        }
    }
    let (layer, mut warnings) = original.unwrap_or_else(|| (merged(Layer::default()), Vec::new()));
    let is_lost = !layer.is_complete();
    // A machine may have all of its configuration elsewhere.
    if is_lost || !why.ends_with(" is missing") {
        warnings.push(format!("{why}, and there is no copy of use; going on with what else is configured"));
    }
    Chosen { layer, warnings, is_lost }
}

/// Fills in what the signed manifest of the installed release says: product and channel.
fn completed(mut layer: Layer, record: Option<&InstalledRecord>, journal: &Journal) -> Layer {
    let Some(manifest) = record.map(InstalledRecord::manifest) else { return layer };
    if layer.machine.product.is_none() {
        journal.warn(&format!("the product is that of the installed release, {}", manifest.product));
        layer.machine.product = Some(manifest.product.clone());
    }
    if layer.release.channel.is_none() {
        layer.release.channel = Some(manifest.channel.clone());
    }
    layer
}

#[cfg(test)]
mod tests {
    use super::{Chosen, choose};
    use crate::machine::config::Layer;

    const RIGHT: &str = "[release]\nurls = ['http://original.example']\n[machine]\nproduct = 'demo'\n";

    fn layer(text: &str) -> Layer {
        Layer::parse("test", text).unwrap()
    }

    fn chosen(original: Result<Option<&str>, &str>, copy: Option<&str>) -> (Option<String>, usize, bool) {
        let original = original.map(|text| text.map(str::to_owned)).map_err(str::to_owned);
        let Chosen { layer, warnings, is_lost } = choose("f", Layer::default(), original, copy, Layer::default());
        (layer.release.urls.map(|urls| urls.concat()), warnings.len(), is_lost)
    }

    #[test]
    fn the_copy_stands_in_only_for_an_original_that_cannot_be_used() {
        let copy = RIGHT.replace("original", "copy");
        let (of_original, of_copy) =
            (Some("http://original.example".to_owned()), Some("http://copy.example".to_owned()));
        for (original, expected, warnings) in [
            (Ok(Some(RIGHT)), &of_original, 0),
            (Ok(Some("\0\0\0")), &of_copy, 1),
            (Ok(Some("")), &of_copy, 1),
            (Ok(Some("[machine]\nproduct = 'demo'\n")), &of_copy, 1),
            (Ok(None), &of_copy, 1),
            (Err("input/output error"), &of_copy, 1),
        ] {
            assert_eq!(chosen(original, Some(&copy)), (expected.clone(), warnings, false), "{original:?}");
        }
        // A file for a newer program is still the one that counts.
        let newer = format!("{RIGHT}[news]\na = 1\n");
        assert_eq!(chosen(Ok(Some(&newer)), Some(&copy)), (of_original, 1, false));
        // Neither: what is left counts, and it is said.
        assert_eq!(chosen(Err("input/output error"), Some("\0")), (None, 1, true));
        assert_eq!(chosen(Err("input/output error"), None), (None, 1, true));
    }

    #[test]
    fn a_machine_that_is_configured_elsewhere_needs_no_file() {
        let chosen = choose("f", layer(RIGHT), Ok(None), None, Layer::default());
        assert!(chosen.warnings.is_empty() && !chosen.is_lost, "{chosen:?}");
        let chosen = choose("f", layer(RIGHT), Err("input/output error".into()), None, Layer::default());
        assert!(chosen.warnings.len() == 1 && !chosen.is_lost, "{chosen:?}");
        let over = layer("[release]\nurls = ['http://argument.example']\n");
        let chosen = choose("f", Layer::default(), Ok(Some(RIGHT.to_owned())), None, over);
        assert_eq!(chosen.layer.release.urls.unwrap(), ["http://argument.example"]);
    }
}
