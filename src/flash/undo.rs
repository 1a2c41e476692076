//! Keeps what is needed to go back to a release, on the partition itself, in the room behind the image.
//!
//! Before an image is written, the chunks of the release to go back to that the writing would destroy are compressed
//! and appended here, read back, and only then counted as kept. So that release stays within reach through any number
//! of cut or failed writes after it, without a journal: each time, what the partition holds of it and is about to lose
//! is added. An undo is an ordinary write whose source is the partition itself.
//!
//! What is kept lies at the end of the partition and grows downwards, so that a larger image reaches it as late as
//! possible. The last two blocks of 4096 bytes (of as many whole blocks as the partition has) are headers. Each new one
//! replaces the older of the two, and is then written once more in place of the other: a cut leaves the old or the new
//! one, and the whole one with the higher number counts.
//! Everything else is only ever added below what is there, until another release is to be kept. All numbers are little
//! endian, and offsets count from the beginning of the partition.
//!
//! | header, bytes | what |
//! |---|---|
//! | 0 to 8 | `RFLASHUN` |
//! | 8 to 12 | u32 format 1. A later one counts as nothing that is kept |
//! | 12 to 16 | u32: 0 nothing is kept, 1 a release is kept, 2 there was no room, 3 the disk did not take it |
//! | 16 to 24 | u64 number of the header |
//! | 24 to 32 | u64 offset of the headers, which shows that they belong to this partition |
//! | 32 to 40 | u64 lowest offset in use |
//! | 40 to 56 | u64 bytes that were needed, u64 bytes that were there, where there was no room |
//! | 56 to 60 | u32 number of distinct chunks that are neither kept nor in their places |
//! | 64 to 256 | four parts, each u64 offset, u64 length and BLAKE3: signed manifest, signature, object of the index, directory |
//! | 256 to 288 | four u64: offset of the second copy of each part, 0 where there is none |
//! | 4064 to 4096 | BLAKE3 of the 4064 bytes before |
//!
//! The directory has an entry of 44 bytes for each kept chunk, in the order of the digests: BLAKE3 of the content, u64
//! offset and u32 length of a zstd frame. Nothing of all this is trusted: the manifest has a signature, the index the
//! digest that the manifest names, and each chunk the digest that the index names.

mod append;
mod area;
mod check;
mod directory;
mod fetch;
mod header;
mod keep;
mod kept;
mod need;
mod obstacle;
mod reader;
mod release_to_keep;
mod source;

pub(crate) use fetch::ChunkSource;
pub(crate) use keep::{Keeping, forget};
pub use kept::possible;
pub(crate) use kept::{Kept, KeptChunks, KeptManifest};
pub(crate) use need::Change;
pub use need::worst_case_bytes;
pub use obstacle::{UndoObstacle, UndoRoom, UndoTarget};
pub(crate) use release_to_keep::{KeptSoFar, ReadObject, ReleaseToKeep};
pub(crate) use source::{KeptSource, Nowhere};
