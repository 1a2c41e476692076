//! Comparison of the drivers of `initramfs/modules.toml` with those that a kernel offers for storage: a new kind of
//! disk must not be forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::modules::{Missing, Tables, normal};

/// Directories below `kernel/drivers` that hold drivers of disks and of what leads to them.
const DIRECTORIES: &[&str] = &[
    "ata",
    "block",
    "firewire",
    "hv",
    "memstick",
    "message",
    "misc/cardreader",
    "mmc",
    "nvdimm",
    "nvme",
    "pci/controller",
    "scsi",
    "thunderbolt",
    "ufs",
    "usb/host",
    "usb/storage",
    "virtio",
    "xen",
];

/// Buses by whose names an alias begins when a device asks for the driver. A driver without one serves others, or a
/// person who names it.
const BUSES: &[&str] = &[
    "acpi", "ieee1394", "mmc", "nd", "nvme", "of", "pci", "pcmcia", "platform", "pnp", "rtsx", "scsi", "sdio", "tbsvc",
    "usb", "virtio", "vmbus", "xen",
];

/// A group of `initramfs/left-out.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeftOut {
    why: String,
    modules: Vec<String>,
}

fn left_out() -> BTreeMap<String, LeftOut> {
    toml::from_str(include_str!("../../../initramfs/left-out.toml")).unwrap()
}

fn declared() -> Vec<String> {
    super::declared_modules().unwrap()
}

/// Names of the drivers of storage that a device asks for.
fn offered(tables: &Tables) -> BTreeSet<String> {
    let is_storage = |file: &str| {
        let within = file.trim_start_matches("kernel/drivers/");
        DIRECTORIES.iter().any(|directory| within.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/')))
    };
    let is_of_bus = |alias: &str| {
        let bus = |bus: &&str| alias.strip_prefix(*bus).is_some_and(|rest| rest.starts_with([':', '*']));
        BUSES.iter().any(bus)
    };
    let claims = |name: &str| tables.aliases.iter().any(|(alias, module)| module == name && is_of_bus(alias));
    let found = tables.files.iter().filter(|(name, (file, _))| is_storage(file) && claims(name));
    found.map(|(name, _)| name.clone()).collect()
}

/// The unpacked kernels of this checkout, each the directory of its modules.
fn kernels() -> Vec<PathBuf> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/work/kernel");
    let releases = std::fs::read_dir(base).into_iter().flatten().flatten();
    let modules = releases.map(|release| release.path().join("lib/modules").join(release.file_name()));
    modules.filter(|modules| modules.join("modules.dep").is_file()).collect()
}

/// Drivers that are neither in the initramfs nor left out with a reason.
fn forgotten(tables: &Tables, declared: &[String]) -> Vec<String> {
    let chosen = tables.resolve(declared, Missing::Allow).unwrap();
    let named: BTreeSet<String> =
        left_out().into_values().flat_map(|group| group.modules).map(|name| normal(&name)).collect();
    offered(tables).into_iter().filter(|name| !chosen.contains(name) && !named.contains(name)).collect()
}

#[test]
fn every_driver_of_storage_that_the_kernel_offers_is_there_or_left_out_with_a_reason() {
    let kernels = kernels();
    if kernels.is_empty() {
        eprintln!("skipped: no kernel is unpacked in target/work/kernel; cargo xtask initramfs does that");
    }
    for modules in kernels {
        let read = |name: &str| std::fs::read_to_string(modules.join(name)).unwrap();
        let builtin = read("modules.builtin");
        let tables = Tables::parse(&read("modules.dep"), &read("modules.softdep"), &read("modules.alias"), &builtin);
        let offered = offered(&tables);
        assert!(offered.len() > 100, "{}: {offered:?}", modules.display());
        let forgotten = forgotten(&tables, &declared());
        assert!(
            forgotten.is_empty(),
            "{} has drivers of storage that are neither in initramfs/modules.toml nor in left-out.toml: {forgotten:?}",
            modules.display()
        );
        // It notices what is missing.
        let without: Vec<String> = declared().into_iter().filter(|name| name != "vmd").collect();
        assert_eq!(self::forgotten(&tables, &without), ["vmd"]);
    }
}

#[test]
fn what_is_left_out_has_a_reason_and_is_not_declared() {
    let declared: BTreeSet<String> = declared().iter().map(|name| normal(name)).collect();
    let mut seen = BTreeSet::new();
    for (group, LeftOut { why, modules }) in left_out() {
        assert!(why.split_whitespace().count() > 4, "{group}: {why:?}");
        for name in modules.iter().map(|name| normal(name)) {
            assert!(!declared.contains(&name), "{name} is left out and declared");
            assert!(seen.insert(name.clone()), "{name} is left out twice");
        }
    }
}
