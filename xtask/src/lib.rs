//! Everything that reflash ships is built here, and run in virtual machines.
//!
//! The library is one program with a command per file: `reflash-build`, which `cargo xtask` runs in a checkout.

pub mod agent;
pub mod bench;
pub mod boot_script;
pub mod bootstrap_files;
pub mod cargo;
pub mod check;
pub mod cli;
pub mod contents;
pub mod demo;
pub mod deny;
pub mod disk;
pub mod embedded;
pub mod examples;
pub mod filesystem;
mod fresh;
pub mod fuzz;
pub mod grub;
pub mod grub_emulator;
pub mod host_packages;
pub mod image;
pub mod init;
pub mod initramfs;
pub mod install;
pub mod invocation;
pub mod kernel;
pub mod layout_room;
pub mod media;
pub mod mirror;
pub mod notices;
pub mod offered;
pub mod oldest_rust;
pub mod ostree_repository;
pub mod paths;
pub mod powercut;
pub mod project;
pub mod prune;
pub mod publish;
pub mod recipe;
pub mod rollout;
pub mod room;
pub mod serve;
pub mod site;
pub mod size;
pub mod station;
pub mod step;
pub mod surroundings;
pub mod templates;
pub mod test;
pub mod test_system;
pub mod test_tools;
pub mod toml_text;
pub mod trusted;
pub mod vm;

pub use reflash_release::{self as release, keygen};
