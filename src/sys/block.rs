//! Block devices: opening, reading and writing them, and finding out whether something else uses them.

pub mod aligned;
pub mod device;
mod ioctl;
pub mod usage;

pub use aligned::AlignedBuf;
pub use device::{Access, BlockError, Caching, Device};
pub use usage::in_use;
