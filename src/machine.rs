//! What this machine is: how it is configured, what its hardware calls it, which drivers it needs, what time it may be.

pub mod clock;
pub mod config;
pub mod drivers;
pub mod hostname;
pub mod identity;
pub mod media;
pub mod placeholder;
pub mod robot;
