//! The files of a recovery slot, as the running system looks at them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::boot::slots::{FILES, Slot, generation};
use crate::jobs::state::make_directory;
use crate::release::digest::Digest;
use crate::sys::files;

/// Size of the longest boot script, bytes.
const MAX_SCRIPT_BYTES: u64 = 1 << 20;
/// The boot script, the last of the files.
const SCRIPT: &str = FILES[2];

/// Thoroughness of a look at the files of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thoroughness {
    /// Names and sizes are looked at, and the boot script: enough to see a lost directory at every start.
    Names,
    /// Every byte is read, and compared with what was noted of it where something was.
    Content,
}

/// Checks that a slot of the recovery partition at `root` has all its files. `known` has the digests that they had.
///
/// # Errors
/// The reason for which the slot is not whole.
pub(super) fn check(
    root: &Path,
    slot: Slot,
    known: Option<&[Digest]>,
    thoroughness: Thoroughness,
) -> Result<(), String> {
    let known = known.filter(|known| known.len() == FILES.len());
    for (number, file) in FILES.into_iter().enumerate() {
        let path = Path::new(&slot.folder()).join(file);
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let opened = files::open_below(root, &path).map_err(|error| failed(&error))?;
        if opened.metadata().map_err(|error| failed(&error))?.len() == 0 {
            return Err(failed(&"it is empty"));
        }
        if thoroughness == Thoroughness::Content {
            let found = Digest::of_reader(opened).map_err(|error| failed(&error))?;
            if known.is_some_and(|known| known[number] != found) {
                return Err(failed(&"its content is not what it was"));
            }
        }
    }
    let script = Path::new(&slot.folder()).join(SCRIPT);
    if is_script(root, &script) { Ok(()) } else { Err(format!("{}: it is no whole boot script", script.display())) }
}

/// Whether a file is a boot script of any generation.
pub(super) fn is_script(root: &Path, path: &Path) -> bool {
    let text = files::read_below(root, path, MAX_SCRIPT_BYTES).ok().and_then(|text| String::from_utf8(text).ok());
    text.is_some_and(|text| !text.contains('\0') && generation(&text) > 0)
}

/// Copies all files of a slot to another one, which nothing starts from. The boot script comes last, without which GRUB
/// passes a slot over.
///
/// # Errors
/// The file system's.
pub(super) fn copy(root: &Path, from: Slot, to: Slot) -> io::Result<()> {
    fill(root, to, |number| {
        Ok(Box::new(files::open_below(root, &Path::new(&from.folder()).join(FILES[number]))?) as Box<dyn Read>)
    })
}

/// Writes all files of a slot, in the order of [`FILES`], as [`copy`] does.
///
/// # Errors
/// The file system's, or there are not as many contents as files.
pub(super) fn write(root: &Path, slot: Slot, contents: &[Vec<u8>]) -> io::Result<()> {
    fill(root, slot, |number| {
        let content = contents.get(number).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Box::new(content.as_slice()) as Box<dyn Read + '_>)
    })
}

fn fill<'a>(root: &Path, to: Slot, source: impl Fn(usize) -> io::Result<Box<dyn Read + 'a>>) -> io::Result<()> {
    let folder = root.join(to.folder());
    for directory in [root.join("slots"), folder.clone()] {
        make_directory(&directory)?;
    }
    for file in FILES.iter().rev() {
        files::removed_or_gone(fs::remove_file(folder.join(file)))?;
    }
    for (number, file) in FILES.into_iter().enumerate() {
        let mut source = source(number)?;
        let mut target = File::create_new(folder.join(file))?;
        io::copy(&mut source, &mut target)?;
        target.sync_all()?;
        File::open(&folder)?.sync_all()?;
    }
    Ok(())
}
