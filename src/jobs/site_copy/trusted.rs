//! The trusted keys as a recovery reads them: one damaged file does not keep it from the others.

use std::path::Path;

use super::SiteCopy;
use crate::jobs::keys::{MachineKeys, key_paths, text_of};

/// Reads the trusted keys of every directory that is there, as far as they can be read, for a recovery: one lost block
/// of a key must not end it. `directories` begins with that of the recovery partition, of which `copy` has what was
/// once read there: it is used for the files that are damaged, and for all of them where there is none. Without any key
/// nothing can be installed, and the system that is there is started all the same.
#[must_use]
pub fn read_usable_keys(directories: &[String], copy: &SiteCopy) -> MachineKeys {
    let mut read = MachineKeys::default();
    for (number, directory) in directories.iter().enumerate() {
        let directory = Path::new(directory);
        let paths = key_paths(directory).unwrap_or_else(|error| {
            read.left_out.push(error);
            Vec::new()
        });
        let before = read.keys.len();
        let mut damaged = Vec::new();
        for path in paths {
            let added = text_of(&path).and_then(|text| Ok(read.keys.add(&path.display().to_string(), &text)?));
            if let Err(error) = added {
                damaged.push(path);
                read.left_out.push(error);
            }
        }
        let has_none = read.keys.len() == before;
        for (name, text) in copy.keys().filter(|_| number == 0) {
            let is_lost = has_none || damaged.iter().any(|path| path.ends_with(name));
            if is_lost && read.keys.add(&format!("the copy of {name}"), text).is_ok() {
                read.copies.push(name.to_owned());
            }
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use super::read_usable_keys;
    use crate::jobs::keys::read_keys;
    use crate::jobs::site_copy::{SiteCopy, keep};
    use crate::jobs::state::StatePartition;
    use std::fs;

    const KEY: &str = "untrusted comment: a key\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";

    #[test]
    fn a_recovery_uses_the_keys_that_can_be_read_and_the_copies_of_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let (root, state) = (dir.path().join("recovery"), StatePartition::new(dir.path()));
        let keys = root.join("keys");
        fs::create_dir_all(&keys).unwrap();
        for name in ["a.pub", "b.pub"] {
            fs::write(keys.join(name), KEY).unwrap();
        }
        let directories = [keys.display().to_string(), dir.path().join("none").display().to_string()];
        let read = |copy: &SiteCopy| {
            let read = read_usable_keys(&directories, copy);
            (read.keys.len(), read.left_out.len(), read.copies)
        };
        let none = SiteCopy::default();
        keep(&state, &root).unwrap();
        let copy = SiteCopy::read(&state);
        assert_eq!(read(&copy), (2, 0, vec![]));
        fs::write(keys.join("b.pub"), "\0\0\0").unwrap();
        assert!(read_keys(&directories).is_err(), "a person's command refuses it");
        assert_eq!(read(&none), (1, 1, vec![]));
        assert_eq!(read(&copy), (2, 1, vec!["keys/b.pub".to_owned()]));
        fs::remove_file(keys.join("b.pub")).unwrap();
        assert_eq!(read(&copy), (1, 0, vec![]), "a key that was removed is not trusted any more");
        fs::remove_file(keys.join("a.pub")).unwrap();
        assert_eq!(read(&copy).0, 2, "a directory without any name lost its block");
        fs::write(keys.join("a.pub"), "\0").unwrap();
        assert_eq!(read(&none), (0, 1, vec![]), "a robot without any key starts what it has");
    }
}
