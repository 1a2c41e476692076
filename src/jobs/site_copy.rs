//! The robot's own copy of what its recovery partition has once: configuration, keys, name, local settings of the boot
//! script. One lost block of any of them would end every recovery in the same error.
//!
//! The copy is a file of the state partition, `site.json`, which recovery, `reflash good` and `reflash mend` keep true.
//! The original counts as long as it can be used. A copy is replaced only by an original that is as good as it, so that
//! a damaged file never reaches it. Beside the files it has the inode numbers of everything on the recovery partition,
//! by which e2fsck names what it finds without a directory.
//!
//! | file of the recovery partition | the copy is used |
//! |---|---|
//! | `reflash.toml` | where the original cannot be read, is no TOML, or lacks what has no default |
//! | `keys/*.pub` | where a file is no key, or the directory has none |
//! | `asset` | where the original cannot be read |
//! | `grub/local.cfg` | by `reflash mend` alone: GRUB reads no copy |

mod originals;
mod places;
mod trusted;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use originals::{ASSET, CONFIG, KEYS, LOCAL_SCRIPT, Original, Originals};
pub use places::{Kind, NotedPlace};
pub use trusted::read_usable_keys;

use crate::jobs::state::{StatePartition, make_directory, replace_durably};
use crate::release::digest::Digest;

/// Copy of the files of one recovery partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SiteCopy {
    /// Content of each file, by its path on the recovery partition.
    files: BTreeMap<String, String>,
    /// Place of everything on the recovery partition, by its path.
    places: BTreeMap<String, NotedPlace>,
}

impl SiteCopy {
    /// Reads the copy; an empty one where there is none, or it is damaged.
    #[must_use]
    pub fn read(state: &StatePartition) -> Self {
        state.site_copy().and_then(|bytes| Self::decode(&bytes)).unwrap_or_default()
    }

    /// The content that a file had.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.files.get(name).map(String::as_str)
    }

    /// The trusted keys, each with its path on the recovery partition.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter(|(name, _)| originals::is_key(name)).map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The place that everything had, parents before what is in them.
    pub fn places(&self) -> impl Iterator<Item = (&str, NotedPlace)> {
        self.places.iter().map(|(path, place)| (path.as_str(), *place))
    }

    /// The copy as it is to be now. Pure.
    fn updated(&self, originals: &Originals, places: BTreeMap<String, NotedPlace>) -> Self {
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        for (name, original) in originals.all() {
            let kept = self.get(name);
            let is_as_good = |text: &str| {
                originals::worth(name, text)
                    >= kept.map_or(originals::LEAST_TO_KEEP, |kept| originals::worth(name, kept))
            };
            match original {
                Original::Text(text) if is_as_good(text) => drop(files.insert(name.to_owned(), text.clone())),
                _ => drop(kept.map(|kept| files.insert(name.to_owned(), kept.to_owned()))),
            }
        }
        for (name, kept) in &self.files {
            if originals.get(name).is_none() && !originals.was_removed(name) {
                files.insert(name.clone(), kept.clone());
            }
        }
        Self { files, places }
    }

    fn replace(&self, state: &StatePartition, root: &Path, places: BTreeMap<String, NotedPlace>) -> io::Result<bool> {
        let updated = self.updated(&Originals::read(root), places);
        if updated == *self {
            return Ok(false);
        }
        state.keep_site_copy(&updated.encode()?)?;
        Ok(true)
    }

    /// Names of the files that are lost on the recovery partition, and of which there is a copy. What is missing was
    /// not removed by anybody where the file system `was_damaged`. Pure.
    #[must_use]
    pub fn lost(&self, originals: &Originals, was_damaged: bool) -> Vec<&str> {
        let is_lost = |name: &str, kept: &str| match originals.get(name) {
            None => was_damaged || !originals.was_removed(name),
            Some(Original::Unreadable(_)) => true,
            Some(Original::Text(text)) => originals::is_useless(name, text) && !originals::is_useless(name, kept),
        };
        let lost = self.files.iter().filter(|(name, kept)| is_lost(name, kept));
        lost.map(|(name, _)| name.as_str()).collect()
    }

    /// Writes a file of the copy to the recovery partition, which is mounted for writing at `root`, and reads it back.
    ///
    /// # Errors
    /// The file system's. The file is there as it was, or as it is in the copy.
    pub fn put_back(&self, name: &str, root: &Path) -> io::Result<()> {
        let content = self.get(name).ok_or(io::ErrorKind::NotFound)?;
        let path = root.join(name);
        if let Some(directory) = path.parent().filter(|directory| *directory != root) {
            make_directory(directory)?;
        }
        replace_durably(&path, content.as_bytes())?;
        match originals::read_text(root, name) {
            Ok(text) if text == content => Ok(()),
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "reads back wrong")),
            Err(error) => Err(error),
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (digest, content) = text.split_once('\n')?;
        (Digest::of(content.as_bytes()).to_string() == digest).then(|| serde_json::from_str(content).ok())?
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let content = serde_json::to_string(self)?;
        Ok(format!("{}\n{content}", Digest::of(content.as_bytes())).into_bytes())
    }
}

/// Whether a robot can work with this text in the place of the file of this name. Pure.
#[must_use]
pub fn is_usable(name: &str, text: &str) -> bool {
    !originals::is_useless(name, text)
}

/// Brings the copy up to date with the recovery partition that is mounted at `root`. Returns whether it was written.
///
/// # Errors
/// The file system's; the copy is as it was.
pub fn keep(state: &StatePartition, root: &Path) -> io::Result<bool> {
    let before = SiteCopy::read(state);
    let places = places::merged(&before.places, places::find(root));
    before.replace(state, root, places)
}

/// Brings the copy up to date with a recovery partition that was just mended: what is not there now is not lost, but
/// gone.
///
/// # Errors
/// As [`keep`].
pub fn keep_as_found(state: &StatePartition, root: &Path) -> io::Result<bool> {
    SiteCopy::read(state).replace(state, root, places::find(root))
}

#[cfg(test)]
mod tests {
    use super::{CONFIG, Original, Originals, SiteCopy, keep};
    use crate::jobs::state::StatePartition;
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    const RIGHT: &str = "[release]\nurls = ['http://a.example/r']\n[machine]\nproduct = 'demo'\n";
    const KEY: &str = "untrusted comment: a key\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";

    fn copy_of(files: &[(&str, &str)]) -> SiteCopy {
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        SiteCopy { files, ..SiteCopy::default() }
    }

    fn originals(files: &[(&str, Option<&str>)]) -> Originals {
        files
            .iter()
            .map(|(name, text)| {
                let original = text
                    .map_or_else(|| Original::Unreadable("gone".to_owned()), |text| Original::Text(text.to_owned()));
                ((*name).to_owned(), original)
            })
            .collect()
    }

    fn after(before: &SiteCopy, found: &[(&str, Option<&str>)]) -> SiteCopy {
        before.updated(&originals(found), BTreeMap::new())
    }

    #[test]
    fn a_copy_is_replaced_only_by_what_is_as_good() {
        let with_news = format!("{RIGHT}[news]\na = 1\n");
        let changed = RIGHT.replace("a.example", "b.example");
        let kept = copy_of(&[(CONFIG, RIGHT)]);
        for (original, expected) in [
            (Some(RIGHT), RIGHT),
            (Some(&*changed), &*changed),
            (None, RIGHT),
            (Some(""), RIGHT),
            (Some("\0\0\0\0"), RIGHT),
            (Some("[release]\nurls = ['http://a.example/r']\n"), RIGHT),
            // By what this program knows, it is no better; a newer program takes it.
            (Some(&*with_news), RIGHT),
        ] {
            assert_eq!(after(&kept, &[(CONFIG, original)]).get(CONFIG), Some(expected), "{original:?}");
        }
        assert_eq!(after(&kept, &[]).get(CONFIG), Some(RIGHT), "a lost name");
        // Better than none.
        assert_eq!(after(&SiteCopy::default(), &[(CONFIG, Some(&*with_news))]).get(CONFIG), Some(&*with_news));
        assert_eq!(after(&SiteCopy::default(), &[(CONFIG, Some("\0"))]).get(CONFIG), None);
    }

    #[test]
    fn a_key_that_was_removed_is_forgotten_and_one_that_is_lost_is_not() {
        let (a, b) = ("keys/a.pub", "keys/b.pub");
        let both = copy_of(&[(a, KEY), (b, KEY)]);
        let keys = |copy: &SiteCopy| copy.keys().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(keys(&after(&both, &[(a, Some(KEY))])), [a], "the other one was removed");
        assert_eq!(keys(&after(&both, &[(a, Some(KEY)), (b, None)])), [a, b]);
        assert_eq!(keys(&after(&both, &[(a, Some("\0\0")), (b, Some(KEY))])), [a, b]);
        assert_eq!(keys(&after(&both, &[])), [a, b], "a directory without any name lost its block");
        assert_eq!(both.lost(&originals(&[(a, Some(KEY))]), false), [] as [&str; 0]);
        assert_eq!(both.lost(&originals(&[(a, Some(KEY)), (b, None)]), false), [b]);
        assert_eq!(both.lost(&originals(&[]), false), [a, b]);
        assert_eq!(both.lost(&originals(&[(a, Some(KEY))]), true), [b]);
    }

    #[test]
    fn the_copy_survives_the_disk_and_a_damaged_one_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let (root, state) = (dir.path().join("recovery"), StatePartition::new(dir.path()));
        fs::create_dir_all(root.join("keys")).unwrap();
        fs::create_dir_all(root.join("grub")).unwrap();
        for (name, text) in
            [(CONFIG, RIGHT), ("keys/a.pub", KEY), ("asset", "robot-7\n"), ("grub/local.cfg", "set serial_input=no\n")]
        {
            fs::write(root.join(name), text).unwrap();
        }
        assert!(keep(&state, &root).unwrap() && !keep(&state, &root).unwrap(), "written once");
        let copy = SiteCopy::read(&state);
        assert_eq!(copy.get("asset"), Some("robot-7\n"));
        assert!(copy.places().any(|(path, _)| path == "keys/a.pub"));
        fs::write(root.join(CONFIG), "\0\0").unwrap();
        fs::remove_file(root.join("asset")).unwrap();
        assert_eq!(copy.lost(&Originals::read(&root), false), ["asset", CONFIG]);
        for name in ["asset", CONFIG] {
            copy.put_back(name, &root).unwrap();
        }
        assert_eq!(fs::read_to_string(root.join(CONFIG)).unwrap(), RIGHT);
        assert_eq!(copy.lost(&Originals::read(&root), false), [] as [&str; 0]);
        let path = dir.path().join("site.json");
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 9;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(SiteCopy::read(&state), SiteCopy::default());
        assert_eq!(SiteCopy::read(&StatePartition::new(Path::new("/nowhere"))), SiteCopy::default());
    }
}
