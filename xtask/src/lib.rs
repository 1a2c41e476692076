//! Builds everything reflash ships, and runs it in virtual machines.

pub mod paths;
pub mod step;
