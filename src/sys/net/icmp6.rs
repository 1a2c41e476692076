//! A socket that hears the advertisements of IPv6 routers on one link, and asks for them.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recvfrom, sendto, setsockopt, socket,
    sockopt,
};

/// Type of a router's advertisement (RFC 4861, 4.2).
const ADVERTISEMENT: u8 = 134;
/// All routers on the link.
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// ICMPv6 on one link. The kernel checks the checksums. Unlike a packet socket, it costs nothing while other packets
/// come in.
#[derive(Debug)]
pub struct RouterSocket {
    socket: OwnedFd,
    index: u32,
}

impl RouterSocket {
    /// Opens the socket on one link. Needs `CAP_NET_RAW`.
    ///
    /// # Errors
    /// The kernel's refusal: the link may be gone, or the kernel has no IPv6.
    pub fn open(interface: &str, index: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6)?;
        setsockopt(&socket, sockopt::BindToDevice, &interface.into())?;
        // Routers take no solicitation that may have come through another router (RFC 4861, 6.1.1).
        setsockopt(&socket, sockopt::Ipv6MulticastHops, &255)?;
        Ok(Self { socket, index })
    }

    /// Asks the routers to advertise themselves. Nothing is sent while the link has no address of its own yet.
    ///
    /// # Errors
    /// The link is gone or switched off.
    pub fn solicit(&self) -> io::Result<()> {
        let routers = SockaddrIn6::from(SocketAddrV6::new(ALL_ROUTERS, 0, 0, self.index));
        // Type, code, checksum (which the kernel fills in), reserved.
        match sendto(self.socket.as_raw_fd(), &[133, 0, 0, 0, 0, 0, 0, 0], &routers, MsgFlags::empty()) {
            Ok(_)
            | Err(
                Errno::EADDRNOTAVAIL
                | Errno::EAGAIN
                | Errno::ENOBUFS
                | Errno::EINTR
                | Errno::ENETUNREACH
                | Errno::ENETDOWN,
            ) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a message here or for one at `other`, for at most `timeout`.
    pub fn wait_or(&self, other: Option<&impl AsFd>, timeout: Duration) {
        let timeout = PollTimeout::try_from(timeout + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
        let mut sockets = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        sockets.extend(other.map(|other| PollFd::new(other.as_fd(), PollFlags::POLLIN)));
        let _ = poll(&mut sockets, timeout);
    }

    /// Takes the next message into `buffer`, and returns its length and sender if it is an advertisement of a router on
    /// this link. The outer option is `None` when nothing is waiting.
    ///
    /// # Errors
    /// The link is gone or switched off.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Option<(usize, Ipv6Addr)>>> {
        match recvfrom::<SockaddrIn6>(self.socket.as_raw_fd(), buffer) {
            Ok((length, from)) => {
                let from = from.map(|from| from.ip()).filter(Ipv6Addr::is_unicast_link_local);
                // No router forwards what comes from such an address: its sender is on the link.
                Ok(Some(from.filter(|_| length > 0 && buffer[0] == ADVERTISEMENT).map(|from| (length, from))))
            }
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
