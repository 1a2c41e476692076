//! The published format of a release, enough to read one and to make one. Pure: `docs/release-format.md` describes it
//! for other implementations.
//!
//! A release is one signed [`manifest`] and immutable objects named by their [`digest`]. The [`index`] says which
//! chunks an image consists of and where each is stored. [`weak_hashes`], [`deltas`] and [`groups`] save downloads,
//! [`frames`] says what compressed chunks are before they are decompressed, and a release is complete without them;
//! [`add_copy`] is what a delta consists of. [`layout`] is the partition layout of a disk, and [`rollout`] says which
//! release of a channel is whose. [`fields`] reads numbers of blocks, those of other formats too. [`zstd_frame`] bounds
//! what is compressed. [`shipped`] lists what the image of a release brings to the machine's own directories.

pub mod add_copy;
pub mod bootstrap_names;
mod cursor;
pub mod deltas;
pub mod digest;
pub mod fields;
pub mod frames;
pub mod groups;
pub mod index;
pub mod layout;
pub mod manifest;
pub mod rollout;
pub mod shipped;
pub mod weak_hashes;
pub mod zstd_frame;
