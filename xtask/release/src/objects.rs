//! Writing immutable objects under their digest.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use reflash::release::digest::Digest;
use reflash::release::index::{Builder, Pack, StoredChunkNo};
use reflash::release::manifest::{Object, object_path};

/// A pack is closed beyond this size: large enough that a cache holds few of them, small enough for one that keeps
/// only whole objects.
pub const PACK_BYTES: u64 = 64 * 1024 * 1024;

/// The object store of a release tree.
pub struct Objects {
    root: PathBuf,
}

impl Objects {
    /// Opens the tree `root`, making it where needed.
    pub fn open(root: &Path) -> Result<Self> {
        let directory = root.join("objects");
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        Ok(Self { root: root.to_owned() })
    }

    /// Reads an object that was stored.
    pub fn read(&self, blake3: &Digest) -> Result<Vec<u8>> {
        let path = self.root.join(object_path(blake3));
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Stores content under its digest. What is there already is left alone, and what is damaged is replaced: a length
    /// alone says nothing of a file whose blocks a disk has lost.
    pub fn put(&self, content: &[u8]) -> Result<Object> {
        let blake3 = Digest::of(content);
        let path = self.root.join(object_path(&blake3));
        let size_bytes = content.len() as u64;
        let is_whole = path.metadata().is_ok_and(|found| found.len() == size_bytes)
            && fs::read(&path).is_ok_and(|found| found == content);
        if !is_whole {
            write_whole(&path, content)?;
        }
        Ok(Object { blake3, size_bytes })
    }
}

/// Writes a file so that no reader ever sees half of it.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_added_extension("new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Collects compressed chunks to packs. One pack is held in memory, since its name is the digest of all of it.
pub struct PackWriter<'a> {
    objects: &'a Objects,
    content: Vec<u8>,
    first: StoredChunkNo,
    total_bytes: u64,
}

impl<'a> PackWriter<'a> {
    pub fn new(objects: &'a Objects) -> Self {
        Self { objects, content: Vec::new(), first: 0, total_bytes: 0 }
    }

    /// Appends the compressed content of `stored`; stored chunks come in ascending order without gaps.
    pub fn append(&mut self, stored: StoredChunkNo, compressed: &[u8], builder: &mut Builder) -> Result<()> {
        if self.content.len() as u64 + compressed.len() as u64 > PACK_BYTES {
            self.close(builder)?;
        }
        if self.content.is_empty() {
            self.first = stored;
        }
        self.content.extend_from_slice(compressed);
        Ok(())
    }

    /// Closes the last pack and returns the bytes of all.
    pub fn finish(mut self, builder: &mut Builder) -> Result<u64> {
        self.close(builder)?;
        Ok(self.total_bytes)
    }

    fn close(&mut self, builder: &mut Builder) -> Result<()> {
        if self.content.is_empty() {
            return Ok(());
        }
        let object = self.objects.put(&self.content)?;
        builder.push_extent(self.first, Pack { digest: object.blake3, size_bytes: object.size_bytes }, 0);
        self.total_bytes += object.size_bytes;
        self.content.clear();
        Ok(())
    }
}
