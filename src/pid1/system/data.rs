//! The data partition: checked, mounted, and given up as little as possible.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::check::{Checked, check, repair};
use super::error::SysrootError;
use super::messages::{log, say};
use super::names;
use super::plan::{BootPlaces, etc_changes};
use super::take::answer_within;
use crate::chain::chain;
use crate::disk::filesystem::{self, FOREIGN_HEAD_BYTES, ext4_modules};
use crate::disk::{ext4_groups, reserve};
use crate::record::progress::bytes;
use crate::record::start::{DataUse, StartRecord};
use crate::sys::mount::{self, Mount};
use crate::sys::{block, ext4, files};

/// Time for a mount, with the replay of a journal, on a disk that has to repeat some reads.
const MOUNT_LIMIT: Duration = Duration::from_secs(300);
/// Time for a few files.
const FILES_LIMIT: Duration = Duration::from_secs(60);
/// Longest time that a start waits for the data file system to fill its partition, which goes on after it.
const GROW_LIMIT: Duration = Duration::from_secs(300);
/// File by which it is seen whether the partition can be written.
const PROBE: &str = ".reflash-probe";

/// A way to mount the data partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MountWay {
    /// For reading and writing.
    Writable,
    /// For reading, after its journal was replayed.
    ReadOnly,
    /// For reading what is there, whatever its journal says.
    WithoutJournal,
}

/// The ways to try, in order. What the check left damaged is not written: that would destroy more of it. A disk that
/// held the check is asked once more. A safe start leaves the partition as it is, bit for bit.
fn ways(checked: &Checked, safe: bool) -> &'static [MountWay] {
    match (safe, checked) {
        (true, _) | (_, Checked::Stuck(_)) => &[MountWay::WithoutJournal],
        (_, Checked::Sound | Checked::Repaired | Checked::NoOpinion(_)) => {
            &[MountWay::Writable, MountWay::ReadOnly, MountWay::WithoutJournal]
        }
        (_, Checked::Damaged(_)) => &[MountWay::ReadOnly, MountWay::WithoutJournal],
    }
}

/// Mounts the data partition in the best way that there is, and records what was given up.
pub(super) fn open(
    device: Option<&Path>,
    fsck: &Path,
    places: &BootPlaces,
    safe: bool,
    record: &mut StartRecord,
) -> DataUse {
    let Some(device) = device else { return DataUse::Lost };
    if let Some(why) = does_not_fit(device) {
        record.lose(why);
        return DataUse::Lost;
    }
    if let Some(name) = foreign(device) {
        record.lose(format!("the data partition has {name} in place of ext4: it stays as it is, and is not used"));
        return DataUse::Lost;
    }
    // A safe start says nothing about the soundness of data, and changes nothing.
    let mut checked = if safe { Checked::Sound } else { check(fsck, device) };
    let mut tried = try_ways(&checked, device, places, safe, record);
    if let Err(Some(why)) = &tried {
        checked = match repair(fsck, device, Checked::NoOpinion(why.clone())) {
            // Two opinions. What the kernel can read of it is used.
            Checked::Sound => Checked::NoOpinion(why.clone()),
            checked => checked,
        };
        tried = try_ways(&checked, device, places, safe, record);
    }
    if let Checked::NoOpinion(why) | Checked::Damaged(why) | Checked::Stuck(why) = &checked {
        record.lose(format!("the data partition was not repaired: {why}"));
    }
    match tried {
        Ok(DataUse::Writable) => {
            clear_the_way(places.data.clone(), record);
            put_names_back(places.data.clone(), checked == Checked::Repaired, record);
        }
        Ok(DataUse::ReadOnly) => {
            record.data_at = Some(places.readable_data().display().to_string());
            if !safe {
                record.lose("the data partition can only be read: nothing that is written is kept");
            }
        }
        Ok(DataUse::Lost) | Err(_) => {
            record.lose("the data partition cannot be read: the system runs without the data of this machine");
        }
    }
    tried.unwrap_or(DataUse::Lost)
}

/// Mounts the data partition in the best way that there is. The error has a sentence where a file system that counts as
/// sound is a damaged one by what the kernel says: then it is to be repaired first.
fn try_ways(
    checked: &Checked,
    device: &Path,
    places: &BootPlaces,
    safe: bool,
    record: &mut StartRecord,
) -> Result<DataUse, Option<String>> {
    for way in ways(checked, safe) {
        let error = match mount_in(*way, device, places) {
            Ok(used) => return Ok(used),
            Err(error) => error,
        };
        say(&format!("data partition: {}", chain(&error)));
        if *way == MountWay::Writable {
            if *checked == Checked::Sound && error.is_damage() {
                return Err(Some(chain(&error)));
            }
            record.lose(format!("the data partition cannot be written: {}", chain(&error)));
        }
        if matches!(error, SysrootError::NoAnswer { .. }) {
            break;
        }
    }
    Err(None)
}

/// Says that a file system is larger than its partition. Neither the kernel nor e2fsck works with it then, and e2fsck
/// writes to it before it says so: it is whole, and what is wrong is the partition.
fn does_not_fit(device: &Path) -> Option<String> {
    let at = device.to_owned();
    let sizes = answer_within(FILES_LIMIT, "compare the data file system with its partition", move || {
        let needed = ext4_groups::size_bytes(&at).map_err(SysrootError::file("read the superblock"))?;
        let size = block::Device::open(&at, block::Access::Read, block::Caching::Buffered).map(|it| it.size_bytes());
        Ok(needed.zip(size.ok()))
    });
    let (needed, size) = sizes.ok().flatten().filter(|(needed, size)| needed > size)?;
    Some(format!(
        "the data file system has {}, and its partition only {}: the system runs without the data of this machine until \
         the partition is as large as it was",
        bytes(needed),
        bytes(size)
    ))
}

/// Name of what a person has put on the partition in place of ours. Nothing of it is ours to repair: e2fsck, when it is
/// told to mend everything, finds copies of the earlier superblock between its blocks, and writes over it.
pub(super) fn foreign(device: &Path) -> Option<&'static str> {
    filesystem::foreign(&head(device, FOREIGN_HEAD_BYTES).ok()?)
}

/// The modules that the kernel needs beside ext4 for this data partition.
pub(super) fn modules(device: &Path) -> &'static [&'static str] {
    // What cannot be read is no matter of a module, and told elsewhere.
    head(device, 4096).map_or(&[], |head| ext4_modules(&head))
}

fn head(device: &Path, length: usize) -> Result<Vec<u8>, SysrootError> {
    let at = device.to_owned();
    answer_within(FILES_LIMIT, "read the beginning of the data partition", move || {
        let mut head = vec![0; length];
        let read = fs::File::open(at).and_then(|file| file.read_exact_at(&mut head, 0));
        read.map(|()| head).map_err(SysrootError::file("read the beginning of the data partition"))
    })
}

/// Gives another name to what is in the place of a directory of ours and is none: a file, or a link. A link that leads
/// out of the partition leads to a directory of the initramfs here, and to none once the system runs.
fn clear_the_way(data: PathBuf, record: &mut StartRecord) {
    let cleared = answer_within(FILES_LIMIT, "look at the directories of the data partition", move || {
        let (overlay, changes) = (data.join("etc-overlay"), etc_changes(&data));
        let places = [data.join("var"), overlay.clone(), changes, overlay.join("work")];
        let is_in_the_way = |path: &&PathBuf| path.symlink_metadata().is_ok() && !files::is_directory_on(path, &data);
        let inside = |path: &Path| path.strip_prefix(&data).unwrap_or(path).display().to_string();
        let put_aside = |path: &PathBuf| {
            let what = format!("/{} of the data partition is no directory of it", inside(path));
            // A link or a pipe has no marks.
            let _ = files::make_changeable(path);
            // What cannot be moved is passed over, by the forms that do without it.
            match files::put_aside(path) {
                Ok(aside) => format!("{what}; it is /{} from now on, and a new one begins empty", inside(&aside)),
                Err(error) => format!("{what}, and cannot be put aside: {error}"),
            }
        };
        Ok(places.iter().filter(is_in_the_way).map(put_aside).collect::<Vec<_>>())
    });
    match cleared {
        Ok(sentences) => sentences.into_iter().for_each(|sentence| record.lose(sentence)),
        Err(error) => record.lose(chain(&error)),
    }
}

/// Gives what has lost its name in a repair its name again, also one that a cut came after.
fn put_names_back(data: PathBuf, is_repaired: bool, record: &mut StartRecord) {
    let done = answer_within(FILES_LIMIT, "give lost files their names", move || Ok(names::put_back(&data)));
    match done {
        Ok(done) if is_repaired || done.back > 0 => record.lose(done.sentence()),
        Ok(_) => {}
        Err(error) => record.lose(chain(&error)),
    }
}

/// Notes the names of the files, for the next repair.
pub(super) fn keep_names(data: PathBuf) {
    let kept = answer_within(FILES_LIMIT, "note the names of files", move || {
        names::keep(&data).map_err(SysrootError::file("note the names of the files of the data partition"))
    });
    if let Err(error) = kept {
        log(&chain(&error));
    }
}

fn mount_in(way: MountWay, device: &Path, places: &BootPlaces) -> Result<DataUse, SysrootError> {
    // A superblock may ask for a panic at the first fault, which the next start would meet again.
    let plain = Mount::device(device, "ext4").no_suid().no_dev().data("errors=continue");
    let (mount, at, used) = match way {
        MountWay::Writable => (plain, places.data.clone(), DataUse::Writable),
        MountWay::ReadOnly => (plain.read_only(), places.readable_data(), DataUse::ReadOnly),
        MountWay::WithoutJournal => (plain.read_only().no_load(), places.readable_data(), DataUse::ReadOnly),
    };
    log(&format!("mount the data partition, {}: {way:?}", device.display()));
    let action = format!("mount {}", device.display());
    let target = at.clone();
    answer_within(MOUNT_LIMIT, &action, move || Ok(mount.on(target)?))?;
    let probed = match way {
        MountWay::Writable => {
            let probed = at.clone();
            answer_within(FILES_LIMIT, "write to the data partition", move || {
                look_into(&probed)?;
                probe(&probed)
            })
            .inspect(|()| {
                let (at, device) = (at.clone(), device.to_owned());
                // A slow disk may take minutes for it. It goes on while the file system is in use.
                let grown = answer_within(GROW_LIMIT, "let the data file system fill its partition", move || {
                    grow(&at, &device);
                    Ok(())
                });
                if let Err(error) = grown {
                    say(&chain(&error));
                }
            })
        }
        MountWay::ReadOnly | MountWay::WithoutJournal => {
            let at = at.clone();
            answer_within(FILES_LIMIT, "read the data partition", move || {
                fs::read_dir(&at).map(drop).map_err(SysrootError::file("read the data partition"))
            })
        }
    };
    if let Err(error) = probed {
        let _ = mount::detach(&at);
        return Err(error);
    }
    Ok(used)
}

/// Looks into the directories without which nothing of the machine is found: a damaged one says so when it is read.
/// What else it may be, a file or a link, is passed over later.
fn look_into(data: &Path) -> Result<(), SysrootError> {
    let places = [data.to_owned(), data.join("var"), data.join("etc-overlay"), etc_changes(data)];
    for place in places {
        let looked = fs::read_dir(&place).and_then(|mut entries| entries.next().transpose());
        if let Err(error) = looked.map_err(SysrootError::file(format!("read {}", place.display())))
            && error.is_damage()
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Sees whether what is written reaches the disk. A full file system can be written: that it is full is another matter.
fn probe(data: &Path) -> Result<(), SysrootError> {
    let path = data.join(PROBE);
    // Whatever else has this name, or cannot be changed: it says nothing about the disk.
    let _ = files::make_changeable(&path);
    if path.symlink_metadata().is_ok_and(|found| !found.is_file()) {
        let _ = files::put_aside(&path);
    }
    let write = || -> io::Result<()> {
        let _ = fs::remove_file(&path);
        let mut file = fs::File::create_new(&path)?;
        file.write_all(b"reflash\n")?;
        file.sync_all()
    };
    let written = write();
    // Its removal must reach the disk too, or the journal has no more room.
    let removed = files::removed_or_gone(fs::remove_file(&path));
    match written.and(removed) {
        // A disk that has no room behind a file system that has some, as a thin one, fails all the same.
        Err(error) if !is_full(&error) || ext4::free(data).is_ok_and(|free| !reserve::is_needed(free)) => {
            Err(SysrootError::file("write to the data partition")(error))
        }
        _ => Ok(()),
    }
}

/// Whether the error says that a file system has no room.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Lets the data file system fill its partition: provisioning writes a small one into a partition of any size. Where it
/// cannot grow, the machine works with less room.
fn grow(data: &Path, device: &Path) {
    let size = block::Device::open(device, block::Access::Read, block::Caching::Buffered).map(|it| it.size_bytes());
    let grown = size.map_err(io::Error::other).and_then(|size| ext4::grow(data, size));
    if let Err(error) = grown {
        say(&format!("the data file system keeps its size: {error}"));
    }
}

/// Frees the reserve of a full data partition, so that the overlay of `/etc` can be mounted.
pub(super) fn make_room(data: PathBuf, record: &mut StartRecord) {
    let released = answer_within(FILES_LIMIT, "free the reserve", move || {
        reserve::release_if_full(&data).map_err(SysrootError::file("free the reserve of the data partition"))
    });
    match released {
        Ok(Some(free)) => {
            let left = format!("{} inodes and {} KiB were free", free.inodes, free.bytes / 1024);
            record.lose(format!("the data partition is full: {left}; delete something"));
        }
        Ok(None) => {}
        Err(error) => say(&chain(&error)),
    }
}

/// Makes the reserve again, as far as there is room.
pub(super) fn restore_reserve(data: PathBuf) {
    let restored = answer_within(FILES_LIMIT, "make the reserve", move || {
        reserve::restore(&data).map_err(SysrootError::file("make the reserve of the data partition"))
    });
    if let Err(error) = restored {
        log(&chain(&error));
    }
}

#[cfg(test)]
mod tests {
    use super::{MountWay, is_full, probe, ways};
    use crate::pid1::system::check::Checked;
    use std::io;

    #[test]
    fn what_is_damaged_is_not_written_and_a_safe_start_writes_nothing() {
        let why = || "x".to_owned();
        assert_eq!(ways(&Checked::Sound, false)[0], MountWay::Writable);
        assert_eq!(ways(&Checked::NoOpinion(why()), false)[0], MountWay::Writable);
        assert_eq!(ways(&Checked::Damaged(why()), false)[0], MountWay::ReadOnly);
        for checked in [Checked::Sound, Checked::Damaged(why()), Checked::Stuck(why()), Checked::NoOpinion(why())] {
            assert_eq!(ways(&checked, true), [MountWay::WithoutJournal]);
            assert_eq!(ways(&checked, false).last(), Some(&MountWay::WithoutJournal));
        }
    }

    #[test]
    fn a_full_file_system_is_no_broken_one() {
        let dir = tempfile::tempdir().unwrap();
        probe(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(probe(&dir.path().join("missing")).is_err());
        let full = |errno| is_full(&io::Error::from_raw_os_error(errno));
        // ENOSPC, EDQUOT; EIO, EROFS.
        assert!(full(28) && full(122) && !full(5) && !full(30));
    }
}
