//! The boot medium the agent was started from: what it brings along, and which disk it was brought to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::drivers::look_again;
use super::error::SetupError;
use super::inputs::read_if_there;
use super::settle::{POLL, Settling};
use crate::chain::chain;
use crate::disk::identity::Agreement;
use crate::disk::roles::{MBR_ROLES, Role};
use crate::disk::{DiskSearch, Looked, Looks, Scheme, Transport};
use crate::machine::config::Layer;
use crate::machine::media::{self, MediaId};
use crate::record::journal::Journal;
use crate::sys;

/// Mount point of the medium.
const MOUNTED: &str = "/medium";
/// Time to wait for the medium: optical drives take up to 20 s to recognise a disc, USB drives a few seconds, and some
/// USB bridges minutes. GRUB has read the kernel from it.
const WAIT: Duration = Duration::from_secs(300);
/// Time after which only USB drives with a robot's disk on them are left to choose from.
const SETTLED: Duration = Duration::from_secs(30);
/// Interval at which a search that goes on says so.
const SAY: Duration = Duration::from_secs(60);
/// How long a look at one disk may take. A disk that is still waking up answers a later look.
const LOOK: Duration = Duration::from_secs(3);

/// The boot medium, mounted.
pub(super) struct BootMedium {
    directory: PathBuf,
}

impl BootMedium {
    /// Finds the medium by its ID and mounts it, read-only as its file system is.
    pub(super) fn open(id: MediaId, journal: &Journal) -> Result<Self, SetupError> {
        let waiting = || journal.note("waiting for the boot medium");
        let node = crate::disk::wait_for_medium(&id, WAIT, waiting).ok_or(SetupError::Medium { id })?;
        sys::mount::Mount::device(&node, "iso9660").read_only().data_only().on(MOUNTED)?;
        journal.note(&format!("started from the boot medium {id} in {}", node.display()));
        Ok(Self { directory: Path::new(MOUNTED).join(media::DIRECTORY) })
    }

    /// Adds what the medium brings. Its configuration counts before the disk's. Its release is used instead of those of
    /// servers, so that no network is needed. Its keys are trusted as those of the disk are.
    pub(super) fn contribute(
        &self,
        layer: &mut Layer,
        keys: &mut Vec<String>,
        journal: &Journal,
    ) -> Result<(), SetupError> {
        let path = self.directory.join(media::CONFIG);
        if let Some(text) = read_if_there(&path)? {
            let own = Layer::parse_usable(&path.display().to_string(), &text)?;
            own.problems.iter().for_each(|problem| journal.warn(&chain(problem)));
            *layer = std::mem::take(layer).overridden_by(own.value);
        }
        self.offer_release(layer);
        keys.push(self.directory.join(media::KEYS).display().to_string());
        Ok(())
    }

    /// Names the release on the medium, if there is one, as the only source.
    pub(super) fn offer_release(&self, layer: &mut Layer) {
        let release = self.directory.join(media::RELEASE);
        if release.is_dir() {
            layer.release.urls = Some(vec![format!("file://{}", release.display())]);
        }
    }

    /// Directory of all that the medium brings.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// PARTUUID of the recovery partition of the only disk that has all partitions of a robot.
///
/// Waits until there is one, and until no other has joined it for some time: of several it is not clear which is meant.
/// Disks with the same PARTUUID are copies of one, which the search for it tells apart.
///
/// Where GRUB `started_from` one of them without a medium, and could not say from which, it is the one whose first copy
/// of the table is damaged, or else the one that the robot remembers.
pub(super) fn robot_partuuid(
    search: DiskSearch,
    started_from: StartedFrom,
    limit: Duration,
    journal: &Journal,
) -> Result<String, SetupError> {
    let started = Instant::now();
    let mut say_at = SETTLED;
    let mut settling = Settling::new();
    let mut looks = Looks::default();
    loop {
        let (mut own, mut removable, mut seen) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        let (mut damaged, mut remembered) = (BTreeSet::new(), BTreeSet::new());
        let disks = looks.at_all(search, LOOK).map_err(SetupError::Disks)?;
        for (disk, looked) in disks {
            let partuuid = looked.as_ref().and_then(recovery_partuuid);
            seen.push(if partuuid.is_some() { format!("{disk}: a robot's") } else { disk.to_string() });
            // USB drives with a robot's disk on them exist: they are copies, unless there is nothing else.
            if let (Some(partuuid), Some(looked)) = (&partuuid, &looked) {
                damaged.extend(has_damaged_table(looked).then(|| partuuid.clone()));
                let agreement = looked.record.identity.map(|identity| disk.identity().agreement(&identity));
                remembered.extend((agreement == Some(Agreement::Same)).then(|| partuuid.clone()));
            }
            let is_copy = disk.transport == Transport::Usb && disk.removable;
            if is_copy { &mut removable } else { &mut own }.extend(partuuid);
        }
        settling.update(seen.clone());
        let waited = started.elapsed();
        let found = if own.is_empty() && waited >= SETTLED { removable } else { own };
        let found = match started_from {
            StartedFrom::Medium => found,
            StartedFrom::Disk => narrowed(found, [damaged, remembered]),
        };
        match (found.len(), found.into_iter().next()) {
            (1, Some(partuuid)) if settling.is_over() => return Ok(partuuid),
            (0, _) if waited >= limit => return Err(SetupError::NoRobot { disks: seen }),
            (found @ 2.., _) => return Err(SetupError::Robots { found, disks: seen }),
            (0, _) if waited >= say_at => {
                let why = SetupError::NoRobot { disks: seen };
                journal.note(&format!("still waiting for the robot's disk, after {} s: {why}", waited.as_secs()));
                look_again(journal);
                say_at = waited + SAY;
            }
            _ => {}
        }
        // A wait on purpose, which a reset would only repeat.
        journal.progressed();
        std::thread::sleep(POLL);
    }
}

/// What GRUB started from, where it does not name a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartedFrom {
    /// A boot medium, for a robot whose disk need not start.
    Medium,
    /// The disk of the robot.
    Disk,
}

/// The one of several that a trait distinguishes; all of them where none does.
fn narrowed(found: BTreeSet<String>, traits: [BTreeSet<String>; 2]) -> BTreeSet<String> {
    let narrow =
        |distinguished: &BTreeSet<String>| -> BTreeSet<String> { found.intersection(distinguished).cloned().collect() };
    traits.iter().map(narrow).find(|left| left.len() == 1).unwrap_or(found)
}

fn has_damaged_table(looked: &Looked) -> bool {
    matches!(&looked.layout, Ok(Some(table)) if table.damaged_primary)
}

/// PARTUUID of the recovery partition of a disk that has all partitions that a robot starts from.
fn recovery_partuuid(looked: &Looked) -> Option<String> {
    let layout = looked.layout.as_ref().ok()?.as_ref()?;
    // An owner may have made data anew, without its name. By number it has to be there.
    let needed = |role: &&Role| layout.scheme == Scheme::Mbr || **role != Role::Data;
    let whole = MBR_ROLES.iter().filter(needed).all(|role| layout.of_role(*role).is_some());
    // An MBR has no names, and four primaries alone are not a robot's. One of the file systems may be damaged.
    let ours = whole && (layout.scheme == Scheme::Gpt || looked.labels.len() >= 2);
    layout.of_role(Role::Recovery).filter(|_| ours).map(|recovery| recovery.entry.partuuid.clone())
}

#[cfg(test)]
mod tests {
    use super::narrowed;
    use std::collections::BTreeSet;

    #[test]
    fn of_several_robots_disks_the_one_that_stands_out_is_meant() {
        let set = |text: &str| text.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
        for (found, damaged, remembered, expected) in [
            ("a b", "a", "a b", "a"),
            ("a b", "", "b", "b"),
            ("a b", "a b", "b", "b"),
            ("a b", "a b", "a b", "a b"),
            ("a b", "c", "", "a b"),
            ("a", "", "", "a"),
            ("", "c", "c", ""),
        ] {
            assert_eq!(narrowed(set(found), [set(damaged), set(remembered)]), set(expected), "{found}");
        }
    }
}
