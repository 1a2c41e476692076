//! A release tree that can be listed and deleted from: a directory, or a place in a store.

use std::fs::File;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::publish::Store;
use crate::release;

/// The largest manifest or chunk index that is read, bytes: an index has 25,363,504 at most.
const MAX_READ_BYTES: u64 = 32 << 20;

/// One file of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Path below the root of the tree.
    pub path: String,
    /// Size of the file.
    pub size_bytes: u64,
    /// Seconds since it was written.
    pub age_s: u64,
}

/// A tree in any place.
pub trait Tree {
    /// Name of the place for people.
    fn name(&self) -> String;
    /// Every file of the tree.
    fn list(&self) -> Result<Vec<Stored>>;
    /// Content of a manifest or a chunk index.
    fn read(&self, path: &str) -> Result<Vec<u8>>;
    /// Deletes one file.
    fn remove(&self, path: &str) -> Result<()>;
    /// Keeps releases out until the file is dropped, where that can be done: they take over what lies there.
    fn lock(&self) -> Result<Option<File>> {
        Ok(None)
    }
}

/// A tree in a directory of this host.
pub struct TreeDirectory(pub PathBuf);

impl Tree for TreeDirectory {
    fn name(&self) -> String {
        self.0.display().to_string()
    }

    fn list(&self) -> Result<Vec<Stored>> {
        let mut found = Vec::new();
        for entry in walkdir::WalkDir::new(&self.0).sort_by_file_name() {
            let entry = entry.with_context(|| format!("list {}", self.0.display()))?;
            if !entry.file_type().is_file() {
                continue;
            }
            let meta = entry.metadata().with_context(|| format!("look at {}", entry.path().display()))?;
            let written = meta.modified().with_context(|| format!("look at {}", entry.path().display()))?;
            // A file from the future is young.
            let age_s = SystemTime::now().duration_since(written).map_or(0, |age| age.as_secs());
            let path = entry.path().strip_prefix(&self.0)?.to_string_lossy().into_owned();
            found.push(Stored { path, size_bytes: meta.len(), age_s });
        }
        Ok(found)
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let path = self.0.join(path);
        std::fs::read(&path).with_context(|| format!("read {}", path.display()))
    }

    fn remove(&self, path: &str) -> Result<()> {
        let path = self.0.join(path);
        std::fs::remove_file(&path).with_context(|| format!("delete {}", path.display()))
    }

    fn lock(&self) -> Result<Option<File>> {
        release::lock(&self.0).map(Some)
    }
}

impl Tree for Store {
    fn name(&self) -> String {
        self.describe()
    }

    fn list(&self) -> Result<Vec<Stored>> {
        let now = jiff::Timestamp::now();
        let listed = Store::list(self)?.into_iter().map(|object| {
            // A store that gives no date gives no reason to delete.
            let written = object.modified.as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
            let age_s = written.map_or(0, |written| now.duration_since(written).as_secs());
            Stored { path: object.path, size_bytes: object.size_bytes, age_s: u64::try_from(age_s).unwrap_or(0) }
        });
        Ok(listed.collect())
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.get_up_to(path, MAX_READ_BYTES)?.with_context(|| format!("{path} is not in {}", self.describe()))
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.delete(path)
    }
}
