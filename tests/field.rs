//! What the field has: networks, servers, clocks, media and releases that people reported against other projects, one
//! file a kind. Each case names the public report that it stems from.

mod boot_chain;
mod cards;
mod conflicts;
mod data;
mod data_damage;
mod data_places;
mod dhcp;
mod dhcpv6;
mod disks;
mod files;
mod ipv6;
mod lying_device;
mod media;
#[path = "fuzz/src/raw_index.rs"]
mod raw_index;
mod releases;
mod routers;
mod servers;
mod shipped;
mod site;
mod state;
mod time;
mod vlans;
