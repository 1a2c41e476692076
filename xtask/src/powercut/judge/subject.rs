//! What a state is judged against.

use reflash::boot::slots::FILES;
use reflash::release::digest::Digest;
use reflash::release::index::Index;

/// Release as the judge knows it.
pub struct ReleaseUnderTest {
    /// Serial of the release.
    pub serial: u64,
    /// Chunk index of the release.
    pub index: Index,
    /// Image of the release.
    pub image: Vec<u8>,
}

/// Digests of a recovery's files, in the order of [`FILES`].
pub type SlotFiles = [Digest; FILES.len()];
