//! The recovery imager: makes `/system` equal to a signed release and never touches anything else.
//!
//! Modules, from the story down to the syscalls. A module may use those below it, never those above
//! (`tests/tidy.rs` checks it):
//!
//! | module | what it does | I/O |
//! |---|---|---|
//! | [`verbs`] | the command line, carried out | all of the below |
//! | [`agent`] | PID 1 of recovery: the whole story | all of the below |
//! | [`sysroot`] | PID 1 of the system: its file systems, then systemd | all of the below |
//! | [`cli`] | arguments to a command | none |
//! | [`watchdog`] | resets a machine on which nothing moves | the hardware's watchdog |
//! | [`provision`] | a disk gets table, boot code and partitions | disks |
//! | [`recovery`] | manifest, plan, write, verify, commit, in order | through the modules below |
//! | [`reset`] | the data of a new machine, after a person's word | data and state partition |
//! | [`boot`] | a verified system becomes the one to boot | state partition |
//! | [`verify`] | the proof that all was read back and is right | target |
//! | [`write`] | a plan is carried out: moved, fetched, decoded, checked, written | source, target |
//! | [`readback`] | what the medium holds, past the page cache, compared with an index | target |
//! | [`report`] | tells a server how recoveries go and went | network |
//! | [`state`] | the state partition: what is installed, event log | state partition |
//! | [`blackbox`] | the record of the last attempts | one file |
//! | [`bootenv`] | the GRUB environment on disk, changed in place | one file |
//! | [`fetch`] | sources: HTTP mirrors, directories; retry and resume | network |
//! | [`clock`] | what time it may be, for a machine with a dead RTC | none |
//! | [`target`] | what is written to | target |
//! | [`journal`] | tells people and programs what is going on | console, event log |
//! | [`plan`] | index x what is on the partition: what to move, to fetch, to zero | none |
//! | [`patches`] | frames as what changed since the release before | none |
//! | [`hints`] | short hashes of blocks, to find them on a partition | none |
//! | [`manifest`] | signature, format, fit of a release | none |
//! | [`index`] | the chunk index: encode, decode | none |
//! | [`slots`] | which slot of the recovery partition GRUB is to take, which may be written | none |
//! | [`layout`] | partition layout: sizes to places | none |
//! | [`arbiter`] | what recovery does first, and when it stops trying | none |
//! | [`grubenv`] | the block GRUB and we talk through | none |
//! | [`hostname`] | a template and the hardware to a host name | none |
//! | [`bootcode`] | GRUB's BIOS images fitted to a disk | none |
//! | [`efi`] | an entry for the boot list of UEFI firmware | none |
//! | [`progress`] | rate and time left | none |
//! | [`mod@chain`] | how an error is told | none |
//! | [`digest`] | what names and checks content | none |
//! | [`sys`] | the only home of nix and `unsafe` | all |
//! | [`placeholder`] | what vendors ship where an identity should be | none |
//! | [`config`] | configuration files and kernel command line | none |
//! | [`media`] | boot media: how one is told from another | none |
//! | [`filesystem`] | which file system a device holds | none |

pub mod agent;
pub mod arbiter;
pub mod blackbox;
pub mod boot;
pub mod bootcode;
pub mod bootenv;
pub mod chain;
pub mod cli;
pub mod clock;
pub mod config;
pub mod digest;
pub mod efi;
pub mod fetch;
pub mod filesystem;
pub mod grubenv;
pub mod hints;
pub mod hostname;
pub mod index;
pub mod journal;
pub mod layout;
pub mod manifest;
pub mod media;
pub mod patches;
pub mod placeholder;
pub mod plan;
pub mod progress;
pub mod provision;
pub mod readback;
pub mod recovery;
pub mod report;
pub mod reset;
pub mod slots;
pub mod state;
pub mod sys;
pub mod sysroot;
pub mod target;
pub mod verbs;
pub mod verify;
pub mod watchdog;
pub mod write;
