//! Loading of kernel modules without kmod: by name, by alias, for the hardware present, and for hardware that appears
//! later.
//!
//! The kernel cannot call modprobe in the recovery initramfs, so nothing is loaded on demand: file systems and
//! protocols are loaded by name before they are used, drivers by the `modalias` of their device.

mod coldplug;
pub mod glob;
pub mod tables;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::sys::module;
use tables::{LoadStep, ModuleTables, Resolution};

pub use coldplug::Coldplug;

/// Failure to load a module.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The module is neither in the tables nor built in.
    #[error(
        "kernel module {name} is neither built into the kernel nor listed in {}; \
         add it to the module list of the initramfs", .directory.display()
    )]
    Unknown {
        /// Name that was asked for.
        name: String,
        /// The directory of the tables.
        directory: PathBuf,
    },
    /// The tables or the module file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of reading it.
        source: io::Error,
    },
    /// The file is compressed.
    #[error("{} is compressed; the initramfs must carry modules as plain .ko files", .path.display())]
    Compressed {
        /// Path of the file.
        path: PathBuf,
    },
    /// The kernel refused it.
    #[error("the kernel refuses module {name} ({}); the kernel log has the reason", .path.display())]
    Refused {
        /// Name of the module.
        name: String,
        /// Path of its file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Result of a round of loading.
#[derive(Debug, Default)]
pub struct LoadedModules {
    /// Names of the modules loaded, in order.
    pub modules: Vec<String>,
    /// Failures of this round. One broken driver must not keep the others away, so these are for the log.
    pub failures: Vec<ModuleError>,
}

/// Loads modules of the running kernel. Threads may share it.
#[derive(Debug)]
pub struct Loader {
    directory: PathBuf,
    sysfs: PathBuf,
    tables: ModuleTables,
    /// Names done with: loaded, or refused for good.
    done: Mutex<HashSet<String>>,
    /// Aliases already looked up. A full table has 25,000 patterns, and hundreds of devices share few aliases.
    asked: Mutex<HashSet<String>>,
}

impl Loader {
    /// Reads the tables in `/lib/modules/<release of the running kernel>`.
    ///
    /// # Errors
    /// [`ModuleError::Read`] when `modules.dep` is missing: the initramfs was built for another kernel.
    pub fn for_running_kernel() -> Result<Self, ModuleError> {
        let path = Path::new("/proc/sys/kernel/osrelease");
        let release = fs::read_to_string(path).map_err(|source| ModuleError::Read { path: path.to_owned(), source })?;
        Self::open(&Path::new("/lib/modules").join(release.trim()), Path::new("/sys"))
    }

    /// Reads the tables in `directory`; devices are looked for below `sysfs`.
    ///
    /// # Errors
    /// [`ModuleError::Read`] when `modules.dep` is missing. The other tables may be.
    pub fn open(directory: &Path, sysfs: &Path) -> Result<Self, ModuleError> {
        let optional = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
        let path = directory.join("modules.dep");
        let dep = fs::read_to_string(&path).map_err(|source| ModuleError::Read { path, source })?;
        Ok(Self {
            tables: ModuleTables::parse(
                &dep,
                &optional("modules.alias"),
                &optional("modules.softdep"),
                &optional("modules.builtin"),
            ),
            directory: directory.to_owned(),
            sysfs: sysfs.to_owned(),
            done: Mutex::default(),
            asked: Mutex::default(),
        })
    }

    /// Loads a module with all that it needs, by its name or an alias such as `fs-ext4`. A module that is built in or
    /// loaded already is a success.
    ///
    /// # Errors
    /// [`ModuleError`] for the module itself or one that it needs; soft dependencies may fail.
    pub fn load(&self, name: &str) -> Result<(), ModuleError> {
        let mut loaded = LoadedModules::default();
        match self.tables.resolve(name) {
            Resolution::Builtin => Ok(()),
            Resolution::Load(steps) => self.run(&steps, &mut loaded),
            Resolution::Unknown => {
                Err(ModuleError::Unknown { name: name.to_owned(), directory: self.directory.clone() })
            }
        }
    }

    /// Loads every module that claims the device alias. There may be none: most devices need no driver here.
    pub fn load_for(&self, modalias: &str) -> LoadedModules {
        let mut loaded = LoadedModules::default();
        if !self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(modalias.to_owned()) {
            return loaded;
        }
        for name in self.tables.claimed_by(modalias) {
            let Resolution::Load(steps) = self.tables.resolve(name) else { continue };
            if let Err(error) = self.run(&steps, &mut loaded) {
                loaded.failures.push(error);
            }
        }
        loaded
    }

    /// Loads the drivers of every device in sysfs, again and again until no new device shows up: a driver of a bus
    /// brings its devices. Buses that take their time (USB) are left to [`Coldplug`].
    pub fn load_for_present_devices(&self) -> LoadedModules {
        let mut all = LoadedModules::default();
        loop {
            let mut aliases = Vec::new();
            collect_aliases(&self.sysfs.join("devices"), &mut aliases);
            let before = all.modules.len();
            for alias in aliases {
                let round = self.load_for(&alias);
                all.modules.extend(round.modules);
                all.failures.extend(round.failures);
            }
            if all.modules.len() == before {
                return all;
            }
        }
    }

    /// Has the kernel look again for a driver of every device that has none. A driver whose process was killed while it
    /// bound a device stays loaded and leaves the device alone for ever, since nothing asks it again.
    pub fn bind_present_devices(&self) {
        let mut devices = Vec::new();
        collect_devices(&self.sysfs.join("devices"), &mut devices);
        for device in devices.iter().filter(|device| !device.join("driver").exists()) {
            let Some(name) = device.file_name() else { continue };
            // Refused where no driver wants it, which most devices are used to.
            let _ = fs::write(device.join("subsystem/drivers_probe"), name.as_encoded_bytes());
        }
    }

    /// Looks once more for devices that should be there: has drivers take those that they left alone, and buses look
    /// for disks that did not answer in time, to which no event leads any more.
    pub fn look_again(&self) {
        self.load_for_present_devices();
        self.bind_present_devices();
        for host in fs::read_dir(self.sysfs.join("class/scsi_host")).into_iter().flatten().flatten() {
            // All channels, targets and units.
            let _ = fs::write(host.path().join("scan"), "- - -");
        }
    }

    fn run(&self, steps: &[LoadStep], loaded: &mut LoadedModules) -> Result<(), ModuleError> {
        for step in steps {
            if self.done.lock().unwrap_or_else(PoisonError::into_inner).contains(&step.name) {
                continue;
            }
            // No lock is held here: a driver may probe for seconds, and the kernel orders two loads of the same
            // module by itself.
            match self.insert(step) {
                Ok(new) => {
                    self.done.lock().unwrap_or_else(PoisonError::into_inner).insert(step.name.clone());
                    if new {
                        loaded.modules.push(step.name.clone());
                    }
                }
                Err(_) if !step.required => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Inserts one module; `false` when it was there.
    fn insert(&self, step: &LoadStep) -> Result<bool, ModuleError> {
        let path = self.directory.join(&step.file);
        if path.extension().is_some_and(|extension| extension != "ko") {
            return Err(ModuleError::Compressed { path });
        }
        let file = File::open(&path).map_err(|source| ModuleError::Read { path: path.clone(), source })?;
        module::insert(&file).map_err(|source| ModuleError::Refused { name: step.name.clone(), path, source })
    }
}

/// Collects every distinct `modalias` below `directory`.
fn collect_aliases(directory: &Path, aliases: &mut Vec<String>) {
    let mut devices = Vec::new();
    collect_devices(directory, &mut devices);
    for alias in devices.iter().filter_map(|device| fs::read_to_string(device.join("modalias")).ok()) {
        let alias = alias.trim().to_owned();
        if !alias.is_empty() && !aliases.contains(&alias) {
            aliases.push(alias);
        }
    }
}

/// Collects the directories below `directory` of devices that a driver may be for: they have a `modalias`. Symbolic
/// links are not followed: in sysfs they lead in circles.
fn collect_devices(directory: &Path, devices: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            collect_devices(&entry.path(), devices);
        } else if entry.file_name() == "modalias" {
            devices.push(directory.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Loader, ModuleError, collect_aliases};
    use std::fs;

    #[test]
    fn aliases_are_collected_once_without_following_links() {
        let sysfs = tempfile::tempdir().unwrap();
        let device = sysfs.path().join("devices/pci0000:00/0000:00:03.0");
        fs::create_dir_all(device.join("virtio0")).unwrap();
        fs::write(device.join("modalias"), "pci:v1\n").unwrap();
        fs::write(device.join("virtio0/modalias"), "virtio:d1\n").unwrap();
        fs::write(sysfs.path().join("devices/modalias"), "pci:v1\n").unwrap();
        std::os::unix::fs::symlink(sysfs.path(), device.join("subsystem")).unwrap();
        let mut aliases = Vec::new();
        collect_aliases(sysfs.path(), &mut aliases);
        aliases.sort();
        assert_eq!(aliases, ["pci:v1", "virtio:d1"]);
    }

    #[test]
    fn devices_without_a_driver_are_offered_again() {
        let sysfs = tempfile::tempdir().unwrap();
        let bus = sysfs.path().join("bus/virtio");
        fs::create_dir_all(&bus).unwrap();
        for (name, bound) in [("virtio0", true), ("virtio1", false)] {
            let device = sysfs.path().join("devices").join(name);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("modalias"), "virtio:d1\n").unwrap();
            std::os::unix::fs::symlink(&bus, device.join("subsystem")).unwrap();
            if bound {
                std::os::unix::fs::symlink(&bus, device.join("driver")).unwrap();
            }
        }
        let modules = tempfile::tempdir().unwrap();
        fs::write(modules.path().join("modules.dep"), "").unwrap();
        let host = sysfs.path().join("class/scsi_host/host0");
        fs::create_dir_all(&host).unwrap();
        Loader::open(modules.path(), sysfs.path()).unwrap().look_again();
        assert_eq!(fs::read_to_string(bus.join("drivers_probe")).unwrap(), "virtio1");
        assert_eq!(fs::read_to_string(host.join("scan")).unwrap(), "- - -");
    }

    #[test]
    fn errors_say_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(Loader::open(directory.path(), directory.path()), Err(ModuleError::Read { .. })));
        fs::write(directory.path().join("modules.dep"), "kernel/x.ko.xz:\nkernel/gone.ko:\n").unwrap();
        let loader = Loader::open(directory.path(), directory.path()).unwrap();
        assert!(loader.load("nonsense").unwrap_err().to_string().contains("module list"));
        assert!(loader.load("x").unwrap_err().to_string().contains("compressed"));
        assert!(loader.load("gone").unwrap_err().to_string().contains("kernel/gone.ko"));
    }
}
