//! Network links, packet sockets and routes, as the kernel has them.

pub mod link;
pub mod packet;
pub mod rtnl;
