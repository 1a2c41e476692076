//! The recovery imager: makes `/system` equal to a signed release and leaves the data alone.
//!
//! The library has twelve rooms in six layers. A room may use the rooms in the rows below its own, never one above;
//! `tests/tidy.rs` reads this table and checks every import against it. Modules in the last column are pure: they do no
//! I/O, ask no clock, and are tested without root.
//!
//! | layer | room | what it holds | pure modules |
//! |---|---|---|---|
//! | entry | [`cli`] | the commands, one file each | `args`, `commands`, `etc::defaults`, `options`, `help`, `manual`, `completion` |
//! | entry | [`pid1`] | what PID 1 and its worker do: the recovery agent, and the first step of the system's boot | `link`, `boot_watch::policy`, `system::arguments`, `system::databases`, `system::patience`, `system::plan` |
//! | jobs | [`jobs`] | what is done to a machine: recovery, updates, provisioning, factory reset, drill, mending, health; and what it keeps: state, floor, site copy | `provision::select`, `provision::marker`, `provision::make_table`, `health::settle`, `health::units`, `update::map`, `floor::record`, `floor::seen`, `floor::verdict`, `shipped::plan` |
//! | engine | [`flash`] | plan, write, read back, verify: one partition becomes equal to an image, and what it loses is kept | `plan`, `undo::header`, `undo::directory`, `undo::need`, `undo::obstacle` |
//! | services | [`record`] | what is reported and kept: journal, progress, black box, reports | `event`, `progress`, `totals`, `wire` |
//! | services | [`boot`] | the contract with GRUB and the firmware | `grubenv`, `slots`, `systems`, `decide`, `worth`, `request`, `this_boot`, `direct`, `bios`, `efi` |
//! | services | [`disk`] | the disks of this machine, their partition tables and partition roles | `table`, `gpt_copies`, `gpt_growth`, `mbr_growth`, `lost_mbr`, `fat`, `filesystem`, `roles`, `second_system`, `identity` |
//! | services | [`fetch`] | release sources: HTTP mirrors and directories, with retry and resume | `backoff` |
//! | services | [`net`] | network cards, addresses, DHCP, IPv6, names | `choice`, `target`, `arp`, `card::lines`, `dhcp::client`, `dhcp::domains`, `ipv6::client`, `ipv6::message` |
//! | facts | [`machine`] | what this machine is: configuration, identity, host name, drivers | `config`, `hostname`, `placeholder`, `clock`, `media`, `drivers::glob`, `drivers::tables` |
//! | facts | [`release`] | the published format | all |
//! | system calls | [`sys`] | the only home of `nix`, `rustix` and `unsafe` | |
//!
//! [`mod@chain`], which formats an error and its causes on one line, [`mac`], which reads and writes hardware
//! addresses, [`order`], which sorts short lists, and [`utc`], which shows dates, stand below all of them.
//! `docs/architecture.md` is the page to read first.

pub mod boot;
pub mod chain;
pub mod cli;
pub mod disk;
pub mod fetch;
pub mod flash;
pub mod jobs;
pub mod mac;
pub mod machine;
pub mod net;
pub mod order;
pub mod pid1;
pub mod record;
pub mod release;
pub mod sys;
pub mod utc;
