//! The recovery imager: makes `/system` equal to a signed release and never touches anything else.
//!
//! Modules, from the story down to the syscalls. A module may use those below it, never those above:
//!
//! | module | what it does | I/O |
//! |---|---|---|
//! | [`config`] | configuration files and kernel command line to a [`config::Config`] | none |
//! | [`manifest`] | signature, format, fit of a release | none |
//! | [`plan`] | index x what is on the partition: what to fetch, to zero | none |
//! | [`index`] | the chunk index: encode, decode | none |
//! | [`layout`] | partition layout: sizes to places | none |
//! | [`grubenv`] | the block GRUB and we talk through | none |
//! | [`digest`] | what names and checks content | none |
//! | [`sys`] | the only home of nix, rustix and `unsafe` | all |

pub mod config;
pub mod digest;
pub mod grubenv;
pub mod index;
pub mod layout;
pub mod manifest;
pub mod plan;
pub mod sys;
