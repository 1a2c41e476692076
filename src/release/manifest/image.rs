//! What a manifest says of a partition image, and of objects.

use serde::{Deserialize, Serialize};

use crate::release::digest::Digest;
use crate::release::index;

/// One partition image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Name of the partition that the image belongs on.
    pub name: String,
    /// Size of the image, bytes; a multiple of 4096.
    pub size_bytes: u64,
    /// SHA-256 of the whole image in hex, for people and other tools.
    pub sha256: String,
    /// Object with the chunk index of the image.
    pub index: Object,
    /// Object with the weak hashes, which show where the content may be found on an old partition. Nothing is moved
    /// without it.
    #[serde(rename = "hints", default, skip_serializing_if = "Option::is_none")]
    pub weak_hashes: Option<Object>,
    /// The parts that the index can be put together from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<IndexParts>,
    /// Deltas from releases before, for robots that have one of them; the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deltas: Vec<DeltaObjects>,
    /// Object that lists the groups ([`crate::release::groups`]), for robots that lack most of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Object>,
    /// Digests of the chunks as they are compressed one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<FrameObjects>,
    /// OSTree commit that the image was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ostree_commit: Option<String>,
    /// OSTree branch of that commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ostree_ref: Option<String>,
}

impl Image {
    /// Identity of the content: the same for the same bytes in whatever chunks and packs.
    #[must_use]
    pub fn content_id(&self) -> Digest {
        if self.sha256.is_empty() { self.index.blake3 } else { Digest::of(self.sha256.as_bytes()) }
    }
}

impl Image {
    /// The objects of the image, each with its name for people and the most bytes that it may have. What may be done
    /// without is measured where it is used.
    pub(super) fn objects(&self) -> Vec<(String, Object, u64)> {
        let name = |what: &str| format!("{what} of image {:?}", self.name);
        let mut objects = vec![(name("chunk index"), self.index, index::MAX_OBJECT_BYTES)];
        objects.extend(self.weak_hashes.map(|object| (name("weak hashes"), object, u64::MAX)));
        if let Some(IndexParts { outline, digests, .. }) = &self.parts {
            objects.push((name("outline of the chunk index"), *outline, index::MAX_OBJECT_BYTES));
            objects.push((name("digests of the chunk index"), *digests, index::MAX_OBJECT_BYTES));
        }
        objects.extend(self.groups.map(|object| (name("table of groups"), object, u64::MAX)));
        if let Some(FrameObjects { sums, digests }) = self.frames {
            objects.push((name("sums of digests of frames"), sums, u64::MAX));
            objects.push((name("digests of frames"), digests, u64::MAX));
        }
        for DeltaObjects { table, pack, digests, .. } in &self.deltas {
            objects.extend(digests.map(|digests| (name("changed digests"), digests, index::MAX_OBJECT_BYTES)));
            objects.push((name("table of deltas"), *table, u64::MAX));
            objects.push((name("pack of deltas"), *pack, u64::MAX));
        }
        objects
    }
}

/// The objects of [`crate::release::index::outline`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexParts {
    /// Size of a chunk, bytes.
    pub chunk_bytes: u32,
    /// BLAKE3 of the BLAKE3 of all chunks, one after the other: what is equal to the image has the same.
    pub content: Digest,
    /// Object with the index without its digests.
    pub outline: Object,
    /// Object with the digests of all stored chunks, one after the other.
    pub digests: Object,
}

/// The objects of [`crate::release::frames`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameObjects {
    /// Object with the sums of pages of digests.
    pub sums: Object,
    /// Object with the digests of all frames, read by pages.
    pub digests: Object,
}

/// The objects of [`crate::release::deltas`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaObjects {
    /// SHA-256 of the image that the deltas are applied to, in hex.
    pub from: String,
    /// Object with the digests of the index that are not those of the same chunks of that image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digests: Option<Object>,
    /// Object that lists the deltas.
    pub table: Object,
    /// Object with the deltas themselves.
    pub pack: Object,
}

/// A reference to immutable content, which is stored under its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// BLAKE3 of the content.
    pub blake3: Digest,
    /// Size of the content, bytes.
    pub size_bytes: u64,
}
