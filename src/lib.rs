//! The recovery imager: makes `/system` equal to a signed release and never touches anything else.
//!
//! Modules, from the story down to the syscalls. A module may use those below it, never those above:
//!
//! | module | what it does | I/O |
//! |---|---|---|
//! | [`config`] | configuration file and kernel command line to a [`config::Config`] | none |
//! | [`sys`] | the only home of nix, rustix and `unsafe` | all |

pub mod config;
pub mod sys;
