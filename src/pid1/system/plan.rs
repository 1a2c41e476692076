//! The steps to the system's root, and what takes the place of a step that cannot be taken. Pure.
//!
//! `/var` and `/etc` each have a list of forms, the best one first. A form is a list of steps; when one of them fails,
//! what the form mounted is taken away and the next form is tried. The last one has no step, so it cannot fail.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::boot::this_boot;
use crate::record::start::{DataUse, EtcFrom, VarFrom};

/// Directories that the first step works in. Tests have others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPlaces {
    /// Mount point of the system partition, which becomes `/`.
    pub root: PathBuf,
    /// Mount point of a writable data partition until its parts are in place.
    pub data: PathBuf,
    /// Directory of what the first step leaves for the running system.
    pub run: PathBuf,
}

impl Default for BootPlaces {
    fn default() -> Self {
        Self { root: "/sysroot".into(), data: "/data".into(), run: this_boot::DIRECTORY.into() }
    }
}

impl BootPlaces {
    /// Mount point of a data partition that can only be read. It stays mounted there.
    #[must_use]
    pub fn readable_data(&self) -> PathBuf {
        self.run.join("data")
    }

    /// Directory of the file systems in memory.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.run.join("memory")
    }

    /// Mount point of the data partition for this use of it.
    #[must_use]
    pub fn data_at(&self, data: DataUse) -> PathBuf {
        if data == DataUse::Writable { self.data.clone() } else { self.readable_data() }
    }
}

/// Sizes of the file systems in memory, bytes: what they hold at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySizes {
    /// Size of `/var`.
    pub var_bytes: u64,
    /// Size of the changes to `/etc`.
    pub etc_bytes: u64,
}

impl MemorySizes {
    /// Sizes for a machine with `total_bytes` of memory. A quarter for `/var`: services must be able to write, and a
    /// log that grows must not take the memory that the robot works with. `/tmp` and `/run` have limits of their own.
    #[must_use]
    pub fn of(total_bytes: u64) -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            var_bytes: (total_bytes / 4).clamp(32 * MIB, 16 * 1024 * MIB),
            etc_bytes: (total_bytes / 64).clamp(8 * MIB, 64 * MIB),
        }
    }
}

/// One step on the way to the system's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootStep {
    /// Mounts the system so that not one bit of it changes: without replaying a journal either.
    System {
        /// Device of the partition.
        device: PathBuf,
        /// Mount point of the system.
        at: PathBuf,
    },
    /// Turns the root of the partition into that of the deployment.
    Deployment {
        /// Mount point of the partition.
        at: PathBuf,
    },
    /// Makes a directory, unless it is there.
    Directory {
        /// Path of the directory.
        path: PathBuf,
        /// Permissions of a new one.
        mode: u32,
    },
    /// Refuses what is no directory on a file system: a link there may lead anywhere in the initramfs.
    OnFileSystem {
        /// Path of the directory.
        path: PathBuf,
        /// Mount point of the file system.
        of: PathBuf,
    },
    /// Makes a directory visible at another place.
    Bind {
        /// Directory that is made visible.
        from: PathBuf,
        /// Directory at which it is made visible.
        to: PathBuf,
    },
    /// Mounts a file system in memory.
    Memory {
        /// Mount point of the memory.
        at: PathBuf,
        /// Size that it can have at most, bytes.
        size_bytes: u64,
    },
    /// Hides a directory of the lower layers of an overlay, by what an overlay keeps of a deleted one.
    Hide {
        /// Path below the directory of the changes.
        path: PathBuf,
    },
    /// Puts changes over directories.
    Overlay {
        /// Place at which the result is visible.
        over: PathBuf,
        /// Directories that are only read, the uppermost first.
        lower: Vec<PathBuf>,
        /// Directory of the changes, and the work directory beside it.
        changes: Option<(PathBuf, PathBuf)>,
    },
}

impl BootStep {
    /// Mount point that the step occupies.
    #[must_use]
    pub fn mounts_on(&self) -> Option<&Path> {
        match self {
            Self::System { at, .. } | Self::Memory { at, .. } => Some(at),
            Self::Bind { to, .. } => Some(to),
            Self::Overlay { over, .. } => Some(over),
            Self::Deployment { .. } | Self::Directory { .. } | Self::OnFileSystem { .. } | Self::Hide { .. } => None,
        }
    }
}

impl fmt::Display for BootStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System { device, .. } => write!(f, "mount the system, {}, read-only", device.display()),
            Self::Deployment { .. } => f.write_str("enter the deployment"),
            Self::Directory { path, .. } => write!(f, "create {}", path.display()),
            Self::OnFileSystem { path, .. } => write!(f, "look at {}", path.display()),
            Self::Bind { from, to } => write!(f, "bind {} to {}", from.display(), to.display()),
            Self::Memory { at, size_bytes } => {
                write!(f, "mount {} MiB of memory on {}", size_bytes >> 20, at.display())
            }
            Self::Hide { path } => write!(f, "hide {}", path.display()),
            Self::Overlay { over, lower, changes } => {
                let uppermost = changes.as_ref().map(|(upper, _)| upper).or(lower.first());
                write!(f, "put {} over {}", uppermost.unwrap_or(over).display(), over.display())
            }
        }
    }
}

/// Steps to the root of the deployment, without which nothing starts.
#[must_use]
pub fn system_steps(places: &BootPlaces, device: &Path) -> Vec<BootStep> {
    let at = places.root.clone();
    vec![BootStep::System { device: device.to_owned(), at: at.clone() }, BootStep::Deployment { at }]
}

/// The forms of `/var`, the best one first. A safe start has nothing of the machine's own in it.
#[must_use]
pub fn forms_of_var(data: DataUse, safe: bool) -> &'static [VarFrom] {
    match (safe, data) {
        (true, _) | (_, DataUse::Lost) => &[VarFrom::Memory, VarFrom::Image],
        (_, DataUse::Writable) => &[VarFrom::Data, VarFrom::MemoryOverData, VarFrom::Memory, VarFrom::Image],
        (_, DataUse::ReadOnly) => &[VarFrom::MemoryOverData, VarFrom::Memory, VarFrom::Image],
    }
}

/// The forms of `/etc`, the best one first.
#[must_use]
pub fn forms_of_etc(data: DataUse, safe: bool) -> &'static [EtcFrom] {
    match (safe, data) {
        (true, _) | (_, DataUse::Lost) => &[EtcFrom::Memory, EtcFrom::Image],
        (_, DataUse::Writable) => {
            &[EtcFrom::Data, EtcFrom::MemoryOverData, EtcFrom::ReadOnly, EtcFrom::Memory, EtcFrom::Image]
        }
        (_, DataUse::ReadOnly) => &[EtcFrom::MemoryOverData, EtcFrom::ReadOnly, EtcFrom::Memory, EtcFrom::Image],
    }
}

/// Directory of the machine's changes to `/etc` on a data partition.
#[must_use]
pub fn etc_changes(data: &Path) -> PathBuf {
    data.join("etc-overlay/upper")
}

/// Steps to that form of `/var`.
#[must_use]
pub fn var_steps(places: &BootPlaces, data: DataUse, form: VarFrom, sizes: MemorySizes) -> Vec<BootStep> {
    let (of, to) = (places.data_at(data), places.root.join("var"));
    let var = of.join("var");
    let memory = Memory { at: places.memory().join("var"), size_bytes: sizes.var_bytes };
    match form {
        VarFrom::Data => {
            vec![directory(&var, 0o755), on_file_system(&var, &of), BootStep::Bind { from: var, to }]
        }
        VarFrom::MemoryOverData => {
            let mut steps = vec![on_file_system(&var, &of)];
            steps.extend(memory.steps());
            // The journal would be copied into memory whole, since journald goes on writing where it was. /run has a
            // journal then, or this memory has one that begins anew.
            steps.push(directory(&memory.upper().join("log"), 0o755));
            steps.push(BootStep::Hide { path: memory.upper().join("log/journal") });
            steps.push(BootStep::Overlay { over: to, lower: vec![var], changes: Some(memory.changes()) });
            steps
        }
        VarFrom::Memory => vec![BootStep::Memory { at: to, size_bytes: sizes.var_bytes }],
        VarFrom::Image => Vec::new(),
    }
}

/// Steps to that form of `/etc`.
#[must_use]
pub fn etc_steps(places: &BootPlaces, data: DataUse, form: EtcFrom, sizes: MemorySizes) -> Vec<BootStep> {
    let (data_at, over) = (places.data_at(data), places.root.join("etc"));
    let (overlay, own) = (data_at.join("etc-overlay"), etc_changes(&data_at));
    let memory = Memory { at: places.memory().join("etc"), size_bytes: sizes.etc_bytes };
    let from_memory = |mut steps: Vec<BootStep>, lower: Vec<PathBuf>| {
        steps.extend(memory.steps());
        steps.push(BootStep::Overlay { over: over.clone(), lower, changes: Some(memory.changes()) });
        steps
    };
    match form {
        EtcFrom::Data => {
            let work = overlay.join("work");
            vec![
                directory(&overlay, 0o700),
                // The overlay takes the permissions of its root, /etc, from here.
                directory(&own, 0o755),
                directory(&work, 0o700),
                on_file_system(&own, &data_at),
                on_file_system(&work, &data_at),
                BootStep::Overlay { over: over.clone(), lower: vec![over], changes: Some((own, work)) },
            ]
        }
        EtcFrom::MemoryOverData => from_memory(vec![on_file_system(&own, &data_at)], vec![own, over.clone()]),
        EtcFrom::ReadOnly => vec![
            on_file_system(&own, &data_at),
            BootStep::Overlay { over: over.clone(), lower: vec![own, over], changes: None },
        ],
        EtcFrom::Memory => from_memory(Vec::new(), vec![over.clone()]),
        EtcFrom::Image => Vec::new(),
    }
}

fn directory(path: &Path, mode: u32) -> BootStep {
    BootStep::Directory { path: path.to_owned(), mode }
}

fn on_file_system(path: &Path, of: &Path) -> BootStep {
    BootStep::OnFileSystem { path: path.to_owned(), of: of.to_owned() }
}

/// A file system in memory for the changes of an overlay.
struct Memory {
    at: PathBuf,
    size_bytes: u64,
}

impl Memory {
    fn upper(&self) -> PathBuf {
        self.at.join("upper")
    }

    fn changes(&self) -> (PathBuf, PathBuf) {
        (self.upper(), self.at.join("work"))
    }

    fn steps(&self) -> Vec<BootStep> {
        let (upper, work) = self.changes();
        vec![
            BootStep::Memory { at: self.at.clone(), size_bytes: self.size_bytes },
            directory(&upper, 0o755),
            directory(&work, 0o700),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::{
        BootPlaces, BootStep, DataUse, EtcFrom, MemorySizes, VarFrom, etc_steps, forms_of_etc, forms_of_var,
        system_steps, var_steps,
    };
    use std::path::{Path, PathBuf};

    const SIZES: MemorySizes = MemorySizes { var_bytes: 64 << 20, etc_bytes: 8 << 20 };
    const USES: [DataUse; 3] = [DataUse::Writable, DataUse::ReadOnly, DataUse::Lost];

    #[test]
    fn the_deployment_is_entered_once_the_system_is_mounted() {
        let steps = system_steps(&BootPlaces::default(), Path::new("/dev/vda5"));
        let device = PathBuf::from("/dev/vda5");
        let at = PathBuf::from("/sysroot");
        assert_eq!(steps, [BootStep::System { device, at: at.clone() }, BootStep::Deployment { at }]);
    }

    #[test]
    fn every_list_of_forms_ends_with_one_that_cannot_fail() {
        let places = BootPlaces::default();
        for data in USES {
            for safe in [false, true] {
                let (var, etc) = (*forms_of_var(data, safe).last().unwrap(), *forms_of_etc(data, safe).last().unwrap());
                assert!(var_steps(&places, data, var, SIZES).is_empty(), "{data:?} {safe}");
                assert!(etc_steps(&places, data, etc, SIZES).is_empty(), "{data:?} {safe}");
            }
        }
    }

    #[test]
    fn a_start_as_it_should_be_uses_data_alone() {
        let places = BootPlaces::default();
        let var = var_steps(&places, DataUse::Writable, forms_of_var(DataUse::Writable, false)[0], SIZES);
        assert!(
            matches!(&var[..], [BootStep::Directory { .. }, BootStep::OnFileSystem { .. }, BootStep::Bind { from, to }]
            if from == Path::new("/data/var") && to == Path::new("/sysroot/var"))
        );
        let etc = etc_steps(&places, DataUse::Writable, forms_of_etc(DataUse::Writable, false)[0], SIZES);
        let BootStep::Overlay { over, lower, changes: Some((upper, work)) } = etc.last().unwrap() else { panic!() };
        assert_eq!((over.as_path(), lower.as_slice()), (Path::new("/sysroot/etc"), &["/sysroot/etc".into()][..]));
        // An overlay wants its two directories on one file system, and both there.
        for directory in [upper, work] {
            assert!(directory.starts_with("/data/etc-overlay"));
            assert!(etc.iter().any(|step| matches!(step, BootStep::Directory { path, .. } if path == directory)));
        }
    }

    #[test]
    fn nothing_of_the_machine_is_in_a_safe_start_and_nothing_is_written_to_data_that_is_not_writable() {
        let places = BootPlaces::default();
        for data in USES {
            for safe in [false, true] {
                let vars = forms_of_var(data, safe).iter().map(|form| var_steps(&places, data, *form, SIZES));
                let etcs = forms_of_etc(data, safe).iter().map(|form| etc_steps(&places, data, *form, SIZES));
                for step in vars.chain(etcs).flatten() {
                    let text = format!("{step:?}");
                    let (own, writable) = (text.contains("reflash/data"), text.contains("\"/data"));
                    assert!(!safe || !(own || writable), "{data:?}: {text}");
                    assert!(data == DataUse::Writable || !writable, "{data:?}: {text}");
                    assert!(data != DataUse::Lost || !own, "{text}");
                    if let BootStep::Directory { path, .. } | BootStep::Hide { path } = &step {
                        assert!(!path.starts_with("/run/reflash/data"), "{text}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_best_form_that_is_left_keeps_what_the_machine_owns() {
        assert_eq!(forms_of_var(DataUse::ReadOnly, false)[0], VarFrom::MemoryOverData);
        assert_eq!(forms_of_etc(DataUse::Writable, false)[1], EtcFrom::MemoryOverData);
        // Without memory the overlay needs neither inode nor block.
        let steps = etc_steps(&BootPlaces::default(), DataUse::ReadOnly, EtcFrom::ReadOnly, SIZES);
        let [BootStep::OnFileSystem { path, of }, BootStep::Overlay { lower, changes: None, .. }] = &steps[..] else {
            panic!("{steps:?}")
        };
        assert!(lower.len() == 2 && path == &lower[0] && path.starts_with(of));
    }

    #[test]
    fn memory_is_bounded_by_that_of_the_machine() {
        let mib = |total: u64| {
            let sizes = MemorySizes::of(total << 20);
            (sizes.var_bytes >> 20, sizes.etc_bytes >> 20)
        };
        assert_eq!(mib(64), (32, 8));
        assert_eq!(mib(1024), (256, 16));
        assert_eq!(mib(1 << 20), (16 * 1024, 64));
    }
}
