//! A store as a place of the small files of a channel.

use anyhow::Result;

use super::store::Store;
use crate::release::place::ChannelPlace;

/// Manifests, signatures and roll-outs change; caches ask whether they did.
const REVALIDATE: &str = "no-cache";

/// A store whose small files are read and replaced.
pub(crate) struct StorePlace<'a>(pub &'a Store);

impl ChannelPlace for StorePlace<'_> {
    fn name(&self) -> String {
        self.0.describe()
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        self.0.get(path)
    }

    fn write(&self, path: &str, content: &[u8]) -> Result<()> {
        self.0.put(path, content, kind(path), REVALIDATE)
    }

    fn replace(&self, path: &str, before: Option<&[u8]>, content: &[u8]) -> Result<bool> {
        self.0.replace(path, before, content, kind(path), REVALIDATE)
    }
}

fn kind(path: &str) -> &'static str {
    if path.ends_with(".json") { "application/json" } else { "text/plain; charset=utf-8" }
}
