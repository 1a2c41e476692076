//! Builds everything reflash ships, and runs it in virtual machines.

pub mod agent;
pub mod bench;
pub mod demo;
pub mod deny;
pub mod disk;
pub mod filesystem;
pub mod grub;
pub mod host;
pub mod image;
pub mod initramfs;
pub mod kernel;
pub mod kit;
pub mod media;
pub mod notices;
pub mod oldest_rust;
pub mod paths;
pub mod powercut;
pub mod publish;
pub mod recipe;
pub mod serve;
pub mod station;
pub mod step;
pub mod test;
pub mod tiny;
pub mod tools;
pub mod vm;

pub use reflash_release::{self as release, keygen};
