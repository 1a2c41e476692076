//! The targets. Each takes any bytes, and panics where something is not as it must be.

mod blackbox;
mod config;
mod dhcp;
mod differential;
mod disk_table;
mod dns;
mod grubenv;
mod hostile_index;
mod http;
mod index;
mod manifest;
mod memory;
mod names;
mod report;
mod tables;
mod urls;
mod worker;
mod zstd_frame;

/// One target.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

/// Every target. DHCPv6 and router advertisements get theirs beside `dhcp`, once there is a client for them.
pub const TARGETS: &[Target] = &[
    Target { name: "dhcp", run: dhcp::run },
    Target { name: "dns", run: dns::run },
    Target { name: "http", run: http::run },
    Target { name: "urls", run: urls::run },
    Target { name: "manifest", run: manifest::run },
    Target { name: "index", run: index::run },
    Target { name: "tables", run: tables::run },
    Target { name: "zstd_frame", run: zstd_frame::run },
    Target { name: "hostile_index", run: hostile_index::run },
    Target { name: "differential", run: differential::run },
    Target { name: "disk_table", run: disk_table::run },
    Target { name: "grubenv", run: grubenv::run },
    Target { name: "blackbox", run: blackbox::run },
    Target { name: "config", run: config::run },
    Target { name: "names", run: names::run },
    Target { name: "report", run: report::run },
    Target { name: "worker", run: worker::run },
];

/// Finds a target.
pub fn by_name(name: &str) -> Option<Target> {
    TARGETS.iter().find(|target| target.name == name).copied()
}
