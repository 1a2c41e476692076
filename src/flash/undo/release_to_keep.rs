//! The release that an update keeps, and where its parts are read from.

use std::io;

use super::kept::Kept;
use crate::release::index::Index;
use crate::release::manifest::Authentic;

/// The release that stays within reach.
#[derive(Clone, Copy)]
pub(crate) struct ReleaseToKeep<'a> {
    /// The signed bytes of its manifest.
    pub(crate) signed: &'a Authentic,
    /// Chunk index of its system image.
    pub(crate) index: &'a Index,
    /// What is kept of it already.
    pub(crate) so_far: KeptSoFar<'a>,
}

/// What is kept of the release to keep before anything is added. The object of its index is read where it is needed: it
/// may have 10 MB, and is written as it is, since its digest is in the manifest.
#[derive(Clone, Copy)]
pub(crate) enum KeptSoFar<'a> {
    /// The release is kept already, as far as this says.
    Release(&'a Kept),
    /// Nothing of the release is kept, and this reads the object of its index.
    Nothing(&'a dyn ReadObject),
}

/// A reader of one object.
pub(crate) trait ReadObject {
    /// Size of the object, bytes.
    fn size_bytes(&self) -> u64;

    /// Reads the object.
    ///
    /// # Errors
    /// It cannot be read, or is another one.
    fn read(&self) -> io::Result<Vec<u8>>;
}

impl<'a> KeptSoFar<'a> {
    /// What is kept of that very release already.
    pub(super) fn kept(self) -> Option<&'a Kept> {
        match self {
            Self::Release(kept) => Some(kept),
            Self::Nothing(_) => None,
        }
    }
}
