//! Network links, sockets of one link, and addresses and routes, as the kernel has them.

pub mod bound;
mod card_names;
pub mod icmp6;
pub mod items;
pub mod link;
pub mod packet;
pub mod rtnl;
