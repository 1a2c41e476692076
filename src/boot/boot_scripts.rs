//! The boot scripts on a recovery partition, by which the agents know what GRUB understands.

use std::io::ErrorKind;
use std::path::Path;

use crate::boot::slots::{FILES, Slot};
use crate::sys::files;

/// Size of the largest boot script that is read, bytes: those of today have less than 16 KiB.
const MAX_BYTES: u64 = 256 * 1024;

/// Reads the boot script of each slot that has one. A script that cannot be read, or a slot that cannot be looked into,
/// counts as an empty script, of which nothing can be expected: GRUB may still read an older one there.
#[must_use]
pub fn read(recovery: &Path) -> Vec<(Slot, String)> {
    let [.., script] = FILES;
    let read = |slot: Slot| match files::read_text(&recovery.join(slot.folder()).join(script), MAX_BYTES) {
        Ok(text) => Some((slot, text)),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(_) => Some((slot, String::new())),
    };
    [Slot::A, Slot::B].into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::{MAX_BYTES, read};
    use crate::boot::slots::Slot;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_cannot_be_read_is_an_old_script_and_what_is_not_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), []);
        assert_eq!(read(&dir.path().join("nowhere")), []);
        let [a, b] = [Slot::A, Slot::B].map(|slot| dir.path().join(slot.folder()));
        fs::create_dir_all(&a).unwrap();
        fs::write(a.join("grub.cfg"), "set script=2\n").unwrap();
        let whole = (Slot::A, "set script=2\n".to_owned());
        assert_eq!(read(dir.path()), std::slice::from_ref(&whole));
        let with_b = |why: &str| {
            assert_eq!(read(dir.path()), [whole.clone(), (Slot::B, String::new())], "{why}");
        };
        // A directory that is none, as damage makes it.
        fs::write(&b, "").unwrap();
        with_b("a file in place of the slot");
        fs::remove_file(&b).unwrap();
        fs::create_dir(&b).unwrap();
        assert_eq!(read(dir.path()), std::slice::from_ref(&whole), "an empty slot has no script");
        let script = b.join("grub.cfg");
        symlink("nowhere", &script).unwrap();
        with_b("a link");
        fs::remove_file(&script).unwrap();
        fs::write(&script, [0xff; 9]).unwrap();
        with_b("no text");
        fs::write(&script, vec![b' '; usize::try_from(MAX_BYTES).unwrap() + 1]).unwrap();
        with_b("too long");
        fs::remove_file(&script).unwrap();
        fs::create_dir(&script).unwrap();
        with_b("a directory");
    }
}
