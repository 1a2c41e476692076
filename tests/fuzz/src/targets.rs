//! The targets. Each takes any bytes, and panics where something is not as it must be.

mod blackbox;
mod config;
mod dhcp;
mod differential;
mod disk_table;
mod dns;
mod floor;
mod grubenv;
mod hostile_index;
mod http;
mod index;
mod ipv6;
mod manifest;
mod memory;
mod names;
mod report;
mod rollout;
mod steps;
mod tables;
mod undo;
mod urls;
mod worker;
mod zstd_frame;

/// One target.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Share of the time of a short run: whole recoveries take a hundred times as long as a parser.
    pub share: u32,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "dhcp", run: dhcp::run, share: 1 },
    Target { name: "ipv6", run: ipv6::run, share: 1 },
    Target { name: "dns", run: dns::run, share: 1 },
    Target { name: "http", run: http::run, share: 1 },
    Target { name: "undo", run: undo::run, share: 2 },
    Target { name: "urls", run: urls::run, share: 1 },
    Target { name: "manifest", run: manifest::run, share: 1 },
    Target { name: "index", run: index::run, share: 1 },
    Target { name: "tables", run: tables::run, share: 1 },
    Target { name: "zstd_frame", run: zstd_frame::run, share: 1 },
    Target { name: "hostile_index", run: hostile_index::run, share: 4 },
    Target { name: "differential", run: differential::run, share: 4 },
    Target { name: "disk_table", run: disk_table::run, share: 1 },
    Target { name: "floor", run: floor::run, share: 1 },
    Target { name: "grubenv", run: grubenv::run, share: 1 },
    Target { name: "blackbox", run: blackbox::run, share: 1 },
    Target { name: "config", run: config::run, share: 1 },
    Target { name: "names", run: names::run, share: 1 },
    Target { name: "report", run: report::run, share: 1 },
    Target { name: "rollout", run: rollout::run, share: 1 },
    Target { name: "worker", run: worker::run, share: 1 },
];

/// Finds a target.
pub fn by_name(name: &str) -> Option<Target> {
    TARGETS.iter().find(|target| target.name == name).copied()
}
