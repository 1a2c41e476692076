//! A name server, and how its address is written.

use std::net::SocketAddr;

use crate::sys::net::bound::on_link;
use crate::sys::net::link::index as link_index;

/// Port of name servers.
pub(super) const PORT: u16 = 53;

/// Name server, and the interface that it is asked through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameServer {
    /// Address and port, with the index of the link where an IPv6 address is of one link only.
    pub address: SocketAddr,
    /// Only interface to ask through; `None` leaves it to the routes.
    pub interface: Option<String>,
}

/// Reads the address of a name server. One that is of a link only has the link's name or number behind it:
/// `fe80::1%eth0`.
pub(super) fn server_address(text: &str) -> Option<SocketAddr> {
    match text.split_once('%') {
        Some((address, link)) => {
            let index = link.parse().ok().or_else(|| link_index(link))?;
            Some(on_link(address.parse().ok()?, PORT, index))
        }
        None => Some(SocketAddr::new(text.parse().ok()?, PORT)),
    }
}
