//! What an undo would go back to, why there may be none, and how much room it takes. Pure.

use std::fmt;
use std::io;

use crate::record::progress::bytes;
use crate::release::digest::Digest;
use crate::release::index::IndexError;
use crate::release::manifest::ManifestError;

/// The release that an undo goes back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UndoTarget {
    /// Version of the release.
    pub version: String,
    /// Serial of the release.
    pub serial: u64,
    /// BLAKE3 of its signed manifest, which identifies the release beside its serial.
    pub manifest_digest: Digest,
    /// Identity of its system image, whatever packs it is in.
    pub image_id: Digest,
    /// Bytes of the partition that are used to keep it.
    pub kept_bytes: u64,
    /// Number of distinct chunks that are neither kept nor in their places: only a network may have them.
    pub missing_chunks: u32,
}

impl UndoTarget {
    /// Whether nothing is missing, so that no network is needed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing_chunks == 0
    }

    /// The reason for which no undo is possible without a network, if there is one.
    #[must_use]
    pub fn obstacle(&self) -> Option<UndoObstacle> {
        let Self { version, missing_chunks, .. } = self;
        let obstacle = || UndoObstacle::Incomplete { version: version.clone(), chunks: *missing_chunks };
        (!self.is_complete()).then(obstacle)
    }
}

/// The reason for which no undo is possible.
#[derive(Debug, thiserror::Error)]
pub enum UndoObstacle {
    /// Nothing was ever kept here, or what was kept is of no use any more.
    #[error("no release before this one is kept on the machine")]
    Nothing,
    /// The partition has too little room behind the image.
    #[error("there was no room to keep the release before this one: {0}")]
    NoRoom(UndoRoom),
    /// The disk did not take what was to be kept.
    #[error("the release before this one could not be kept: the disk failed there")]
    NotKept,
    /// The disk fails while something is written to be kept.
    #[error("what an undo needs could not be kept: the disk fails there")]
    Write(#[source] io::Error),
    /// A part of what is kept is not what was written there.
    #[error("what is kept of the release before this one is damaged: {what}")]
    Damaged {
        /// The damaged part, with its place.
        what: String,
    },
    /// Some chunks are neither in their places nor kept.
    #[error("{chunks} chunks of {version} are neither kept nor in their places, and only a network has them")]
    Incomplete {
        /// Version of the release that is kept.
        version: String,
        /// Number of chunks that are missing.
        chunks: u32,
    },
    /// The kept manifest is not signed with a key of today, or not for this machine.
    #[error("the release that is kept cannot be used")]
    Manifest(#[from] ManifestError),
    /// The kept chunk index is authentic and unusable.
    #[error("the chunk index that is kept cannot be used")]
    Index(#[from] IndexError),
    /// The device could not be read.
    #[error("what is kept of the release before this one cannot be read")]
    Read(#[source] io::Error),
}

/// Room that it takes to keep a release, against the room behind the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UndoRoom {
    /// Bytes that are needed, as estimated from the compressed sizes of the release.
    pub needed_bytes: u64,
    /// Bytes that are there.
    pub there_bytes: u64,
}

impl UndoRoom {
    /// Whether it fits.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.needed_bytes <= self.there_bytes
    }
}

impl fmt::Display for UndoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it takes {} behind the image, where {} are free", bytes(self.needed_bytes), bytes(self.there_bytes))
    }
}
