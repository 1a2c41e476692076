//! The published format of a release, enough to read and to make one. Pure: `docs/release-format.md` describes it for
//! other implementations.

pub mod digest;
pub mod index;
pub mod layout;
pub mod manifest;
pub mod patches;
pub mod weak_hashes;
