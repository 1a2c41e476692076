//! Stories that need more than one module, one file each. Those that need root or a virtual machine are ignored by
//! plain `cargo test` and run by `cargo xtask test`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod bench;
mod block;
mod environment;
mod fetch;
mod hostile;
mod image;
mod installed;
mod isolated;
mod net;
mod provision;
mod publish;
mod recovery;
mod release;
mod reset;
mod slots;
mod sources;
mod station;
mod support;
mod update;
mod vm;
