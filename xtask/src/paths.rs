//! Where things are: the checkout, what is shipped (`target/dist/`) and what is only kept for the next build.

use std::path::{Path, PathBuf};

/// The directories every command works in.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The checkout.
    pub root: PathBuf,
}

impl Paths {
    /// The checkout this xtask was built from.
    #[must_use]
    pub fn of_checkout() -> Self {
        let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self { root: xtask.parent().unwrap_or(xtask).to_owned() }
    }

    /// What users take away: `reflash`, `vmlinuz`, `initramfs.img`, `grub/`, `system.img`, `release/`, `disk.img`.
    #[must_use]
    pub fn dist(&self) -> PathBuf {
        self.root.join("target/dist")
    }

    /// Caches and scratch space; safe to delete, slow to rebuild.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.root.join("target/work")
    }
}
