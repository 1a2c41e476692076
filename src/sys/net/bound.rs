//! Sockets that use one link only, whatever the routes say, or small packets only.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt, socket, sockopt,
};

/// Flags of a socket that connects within a time.
const CONNECTING: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// Opens a UDP socket of the kind that `peer` needs. With an interface, it sends and hears through that one only,
/// which needs `CAP_NET_RAW`.
///
/// # Errors
/// The kernel's refusal; the link may be gone.
pub fn udp(interface: Option<&str>, peer: SocketAddr) -> io::Result<UdpSocket> {
    let local: IpAddr = if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    udp_at(interface, SocketAddr::new(local, 0))
}

/// Opens a UDP socket on a port of its own, of one interface only.
///
/// # Errors
/// The kernel's refusal, such as a port that is in use.
pub fn udp_at(interface: Option<&str>, local: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(interface, local, SockType::Datagram, SockFlag::SOCK_CLOEXEC)?;
    if local.is_ipv6() {
        // Otherwise it would take the port of IPv4 as well.
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(local))?;
    Ok(socket.into())
}

/// Opens a TCP connection, through one interface only where one is given.
///
/// # Errors
/// The refusal of the kernel or of the peer, or [`io::ErrorKind::TimedOut`].
pub fn tcp(interface: Option<&str>, peer: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let Some(interface) = interface else { return TcpStream::connect_timeout(&peer, timeout) };
    connected(open(Some(interface), peer, SockType::Stream, CONNECTING)?, peer, timeout)
}

/// Opens a TCP connection whose packets carry at most so many bytes in either direction.
///
/// # Errors
/// Those of [`tcp`].
pub fn tcp_in_segments(most_bytes: u32, peer: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = open(None, peer, SockType::Stream, CONNECTING)?;
    // The peer hears of it with the first packet.
    setsockopt(&socket, sockopt::TcpMaxSeg, &most_bytes)?;
    connected(socket, peer, timeout)
}

fn connected(socket: OwnedFd, peer: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    // Not beyond the range of the clock: a caller without a limit waits for a day.
    let until = Instant::now() + timeout.min(Duration::from_secs(86_400));
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(peer)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => wait_until_connected(&socket, until)?,
        Err(error) => return Err(error.into()),
    }
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn open(interface: Option<&str>, kind_of: SocketAddr, kind: SockType, flags: SockFlag) -> io::Result<OwnedFd> {
    let family = if kind_of.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, flags, None)?;
    if let Some(interface) = interface {
        setsockopt(&socket, sockopt::BindToDevice, &interface.into())?;
    }
    Ok(socket)
}

fn wait_until_connected(socket: &OwnedFd, until: Instant) -> io::Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => {
                return match getsockopt(socket, sockopt::SocketError)? {
                    0 => Ok(()),
                    code => Err(io::Error::from_raw_os_error(code)),
                };
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns the address of a peer on a link, with the link's index where the address needs it.
#[must_use]
pub fn on_link(address: Ipv6Addr, port: u16, index: u32) -> SocketAddr {
    SocketAddrV6::new(address, port, 0, index).into()
}
