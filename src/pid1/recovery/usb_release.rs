//! A USB drive with a release, which may be plugged into a robot at any time: it is asked before the servers, and is
//! all that is needed where there is no network.
//!
//! A thread looks for it, since any look may take as long as a failing drive likes: a read of its first block, a mount,
//! a file that is looked for. The recovery asks only what the last look saw.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::chain::chain;
use crate::disk::filesystem;
use crate::disk::{Disk, Transport, Which, disks};
use crate::fetch::{Check, Directory, FetchError, Sink, Source};
use crate::machine::drivers::Loader;
use crate::machine::media;
use crate::pid1::background::background;
use crate::pid1::link::WorkPart;
use crate::pid1::worker;
use crate::record::journal::Journal;
use crate::release::manifest::manifest_path;
use crate::sys::files;
use crate::sys::mount::{self, Mount};
use crate::sys::thread::{Questions, lock};

/// Mount point of the USB drive.
const MOUNTED: &str = "/usb";
/// Pause between two looks whether a USB drive was plugged in or pulled out.
const LOOK: Duration = Duration::from_secs(2);
/// How long the first question waits for the first look. A drive that takes longer is noticed later.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// How long one device may take to say what lies on it, before the others are looked at. Its answer is taken when it
/// comes after all.
const ANSWER: Duration = Duration::from_secs(3);
/// Drivers for FAT, with the code pages that Debian's kernel asks for at mount: no program loads them for it here.
const FAT_DRIVERS: [&str; 3] = ["vfat", "nls_cp437", "nls_ascii"];

/// The USB drive that is plugged in, if one is.
pub(super) struct UsbRelease {
    /// Kernel name of the robot's own disk, which may be a USB drive too.
    robot: String,
    release: Directory,
    /// Path of the manifest on the drive.
    manifest: PathBuf,
    journal: Arc<Journal>,
    /// Whether a drive was there at the last look; `None` before the first.
    seen: Mutex<Option<bool>>,
    looked: Condvar,
}

/// State of the devices at the last look.
#[derive(Default)]
struct DriveState {
    mounted: Option<DrivePlace>,
    /// Devices that have no release, or cannot be read.
    others: BTreeSet<DrivePlace>,
    contents: Questions<DrivePlace, DriveContent>,
}

/// What lies on a device, by its first bytes.
#[derive(Debug, Default)]
struct DriveContent {
    /// Drivers for the file system that it may have, the likeliest first.
    kinds: Vec<&'static str>,
    /// Name of what it has if nothing here reads it.
    foreign: Option<&'static str>,
}

/// A device that may hold a release.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct DrivePlace {
    node: PathBuf,
    /// Number that the kernel gives each disk: a drive that is plugged in where another was gets the same node.
    sequence: Option<u64>,
}

impl UsbRelease {
    /// The USB drive with a release for `channel`, which is looked for from now on; `robot` is the kernel name of the
    /// machine's own disk. Without `wanted` no drive is looked into.
    pub(super) fn watch(robot: &str, channel: &str, wanted: bool, journal: &Arc<Journal>) -> Arc<Self> {
        let tree = Path::new(media::DIRECTORY).join(media::RELEASE);
        let this = Arc::new(Self {
            robot: robot.to_owned(),
            manifest: tree.join(manifest_path(channel)),
            release: Directory::on_medium(MOUNTED, tree),
            journal: Arc::clone(journal),
            seen: Mutex::new((!wanted).then_some(false)),
            looked: Condvar::new(),
        });
        if wanted {
            let watcher = Arc::clone(&this);
            background(journal, "usb-drive", move || watcher.look_for_ever());
        }
        this
    }

    fn look_for_ever(&self) {
        let mut state = DriveState::default();
        loop {
            worker::within(&WorkPart::UsbDrives, || self.look(&mut state));
            *lock(&self.seen) = Some(state.mounted.is_some());
            self.looked.notify_all();
            std::thread::sleep(LOOK);
        }
    }

    /// Whether the file system that is mounted has a manifest, which need not be a good one.
    fn has_manifest(&self) -> bool {
        files::open_below(Path::new(MOUNTED), &self.manifest).is_ok()
    }

    fn look(&self, state: &mut DriveState) {
        let there = self.places();
        if let Some(place) = state.mounted.take_if(|place| !there.contains(place) || !self.has_manifest()) {
            // A transfer that still reads from it gets errors, and asks the next source.
            let _ = mount::detach(MOUNTED);
            if there.contains(&place) {
                let node = place.node.display();
                self.journal.warn(&format!("the USB drive in {node} cannot be read any more: it is left out"));
                // Taken up again, it would come and go for as long as it is plugged in.
                state.others.insert(place);
            } else {
                self.journal.warn("the USB drive was pulled out");
            }
        }
        state.others.retain(|place| there.contains(place));
        if state.mounted.is_none() {
            let new = there.into_iter().filter(|place| !state.others.contains(place)).collect::<Vec<_>>();
            state.mounted = new.into_iter().find(|place| {
                let node = place.node.clone();
                // One that does not answer keeps no other from being looked at.
                let asked = state.contents.ask("look-at-usb", place.clone(), ANSWER, move || content_of(&node));
                let Some(content) = asked else { return false };
                let found = self.open(&place.node, &content);
                if !found {
                    state.others.insert(place.clone());
                }
                found
            });
        }
    }

    /// Lists the devices that may hold a release.
    fn places(&self) -> Vec<DrivePlace> {
        let disks = disks(Which::Physical).unwrap_or_default().into_iter().filter(|disk| self.may_be(disk));
        let places = disks.flat_map(|disk| {
            let sequence = disk.sequence();
            disk.nodes().into_iter().map(move |node| DrivePlace { node, sequence })
        });
        places.collect()
    }

    /// Whether the disk is removable; a robot's internal disks are never searched.
    fn may_be(&self, disk: &Disk) -> bool {
        disk.name != self.robot && (disk.removable || matches!(disk.transport, Transport::Usb | Transport::Mmc))
    }

    /// Mounts the device if it has a release, which need not be a good one. Returns whether it has.
    fn open(&self, node: &Path, content: &DriveContent) -> bool {
        let shown = node.display();
        if let Some(foreign) = content.foreign {
            // A large drive is sold with NTFS, and a person who copied a release to it waits for something to happen.
            self.journal.warn(&format!(
                "the USB drive in {shown} has {foreign}, which is not read here: format it as FAT32, exFAT or ext4"
            ));
        }
        let mut failed = None;
        for kind in &content.kinds {
            match Self::mount(node, kind) {
                Ok(()) if self.has_manifest() => {
                    self.journal.note(&format!("the USB drive in {shown} has a release: it is asked first"));
                    return true;
                }
                Ok(()) => {
                    let wanted = self.manifest.display();
                    self.journal.note(&format!("the USB drive in {shown} has no release, which would be in {wanted}"));
                    let _ = mount::detach(MOUNTED);
                    return false;
                }
                // What an earlier file system left is not worth a line.
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            self.journal.warn(&format!("the USB drive in {shown} cannot be looked into: {error}"));
        }
        false
    }

    /// Mounts the device as a file system of this kind.
    fn mount(node: &Path, kind: &str) -> Result<(), String> {
        let drivers = match kind {
            "iso9660" => &["isofs"][..],
            "vfat" => &FAT_DRIVERS,
            "exfat" => &["exfat"],
            _ => &[],
        };
        Loader::for_running_kernel()
            .and_then(|loader| drivers.iter().try_for_each(|name| loader.load(name)))
            .map_err(|error| chain(&error))
            .and_then(|()| {
                let device = Mount::device(node, kind).read_only().data_only();
                // Replaying a journal would write to it.
                let device = if kind == "ext4" { device.no_load() } else { device };
                device.on(MOUNTED).map_err(|error| chain(&error))
            })
    }
}

/// What lies on a device, as far as it can be read.
fn content_of(node: &Path) -> DriveContent {
    let mut head = vec![0; filesystem::HEAD_BYTES];
    let read = File::open(node).and_then(|file| file.read_exact_at(&mut head, 0));
    let Ok(()) = read else { return DriveContent::default() };
    DriveContent { kinds: filesystem::kinds(&head).collect(), foreign: filesystem::foreign(&head) }
}

impl Source for Arc<UsbRelease> {
    fn describe(&self) -> String {
        self.release.describe()
    }

    fn is_there(&self) -> bool {
        let seen = lock(&self.seen);
        let waited = self.looked.wait_timeout_while(seen, FIRST_LOOK, |seen| seen.is_none());
        let (mut seen, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *seen.get_or_insert(false)
    }

    fn is_chosen(&self) -> bool {
        true
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        self.release.get_checked(wanted, check)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        self.release.get_range(path, range, sink)
    }
}
