//! Places of the small files of a channel.

use std::fs::{File, TryLockError};
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::objects::write_whole;

/// A place that has the small files of a channel: a tree, or a store.
pub trait ChannelPlace {
    /// Name of the place for people.
    fn name(&self) -> String;
    /// Content of a small file; `None` where it is not there.
    ///
    /// # Errors
    /// When the place cannot be read.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>>;
    /// Replaces a small file that changes.
    ///
    /// # Errors
    /// When the place cannot be written.
    fn write(&self, path: &str, content: &[u8]) -> Result<()>;
    /// Replaces a small file that has the content `before`, or is not there. Returns false, and writes nothing, if that
    /// has changed meanwhile.
    ///
    /// # Errors
    /// When the place cannot be read or written.
    fn replace(&self, path: &str, before: Option<&[u8]>, content: &[u8]) -> Result<bool> {
        if self.read(path)?.as_deref() != before {
            return Ok(false);
        }
        self.write(path, content).map(|()| true)
    }
}

/// A release tree in a directory of this host.
pub struct TreePlace(pub PathBuf);

impl ChannelPlace for TreePlace {
    fn name(&self) -> String {
        self.0.display().to_string()
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let path = self.0.join(path);
        match std::fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    fn write(&self, path: &str, content: &[u8]) -> Result<()> {
        let path = self.0.join(path);
        let directory = path.parent().context("a file lies in a directory")?;
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        write_whole(&path, content)
    }
}

impl TreePlace {
    /// Keeps other changes of a channel's roll-out out of the tree until the file is dropped: of two at once each would
    /// sign what the other one does not know. A release that is being made in the tree is not waited for.
    ///
    /// # Errors
    /// When the directory of the channel can be neither made nor opened.
    pub fn lock(&self, channel: &str) -> Result<File> {
        let directory = self.0.join(channel);
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let file = File::open(&directory).with_context(|| format!("open {}", directory.display()))?;
        // A file system that knows no locks keeps nothing out, and is no reason to halt nothing.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            eprintln!("  waiting for another change of the roll-out in {}", directory.display());
            file.lock().with_context(|| format!("lock {}", directory.display()))?;
        }
        Ok(file)
    }
}
