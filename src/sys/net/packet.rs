//! Packet sockets that hear DHCP answers only, or ARP only.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, recv, send, socket};

/// Length of an Ethernet frame without jumbo, bytes; a DHCP client asks for no more than this.
pub const MAX_FRAME_BYTES: usize = 1514;

/// The socket, bound to one link.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens a socket on one link for frames with UDP to the port of DHCP clients. Needs `CAP_NET_RAW`.
    ///
    /// # Errors
    /// The kernel's refusal; the link may be gone.
    pub fn for_dhcp(index: u32) -> io::Result<Self> {
        let socket = deaf()?;
        attach(&socket, &mut dhcp_answers())?;
        bind(socket.as_raw_fd(), &link_address(index, libc::ETH_P_IP)?)?;
        Ok(Self(socket))
    }

    /// Opens a socket on one link for frames of ARP. Needs `CAP_NET_RAW`.
    ///
    /// # Errors
    /// The kernel's refusal; the link may be gone.
    pub fn for_arp(index: u32) -> io::Result<Self> {
        let socket = deaf()?;
        bind(socket.as_raw_fd(), &link_address(index, libc::ETH_P_ARP)?)?;
        Ok(Self(socket))
    }

    /// Waits for a frame, for at most `timeout`. Signals and errors of the link end it early; the next receive meets
    /// them.
    pub fn wait(&self, timeout: Duration) {
        // Rounded up: a wait of less than a millisecond must not become a busy loop.
        let timeout = PollTimeout::try_from(timeout + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
        let _ = poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout);
    }

    /// Takes the next frame into `frame` and returns its length; a longer frame is cut. `None` when no frame is
    /// waiting.
    ///
    /// # Errors
    /// The link is gone or switched off.
    pub fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(self.0.as_raw_fd(), frame, MsgFlags::empty()) {
            Ok(length) => Ok(Some(length)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a frame. A full queue loses it, as a cable may.
    ///
    /// # Errors
    /// The link is gone or switched off.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        match send(self.0.as_raw_fd(), frame, MsgFlags::empty()) {
            Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A socket that hears nothing until bind() names a protocol: a filter is in place before the first frame.
fn deaf() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Packet, SockType::Raw, flags, None)?)
}

fn link_address(index: u32, protocol: libc::c_int) -> io::Result<LinkAddr> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        // Not ETH_P_ALL: that also hears what we send, and frames of VLANs whose tag has been taken off.
        sll_protocol: u16::try_from(protocol).map_err(io::Error::other)?.to_be(),
        sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).ok();
    // SAFETY: the pointer is to a whole sockaddr_ll that lives across the call, which copies it; the length is that of
    // the structure, and the family in it says that it is one.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), length) }
        .ok_or_else(|| io::Error::other("the address of the link is not one of a packet socket"))
}

/// Classic BPF: IPv4 (given by the protocol of the socket), UDP, first fragment, destination port 68.
fn dhcp_answers() -> [libc::sock_filter; 9] {
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_HALF_INDEXED: u16 = 0x48;
    const LOAD_IP_HEADER_LENGTH: u16 = 0xb1;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const JUMP_IF_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        op(LOAD_BYTE, 0, 0, 14 + 9),
        op(JUMP_IF_EQUAL, 0, 6, 17),
        op(LOAD_HALF, 0, 0, 14 + 6),
        op(JUMP_IF_SET, 4, 0, 0x1fff),
        op(LOAD_IP_HEADER_LENGTH, 0, 0, 14),
        op(LOAD_HALF_INDEXED, 0, 0, 14 + 2),
        op(JUMP_IF_EQUAL, 0, 1, 68),
        op(RETURN, 0, 0, 0xffff),
        op(RETURN, 0, 0, 0),
    ]
}

fn attach(socket: &OwnedFd, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    let size = libc::socklen_t::try_from(size_of_val(&filter)).map_err(io::Error::other)?;
    // SAFETY: `filter` and the `len` instructions it points to live across the call; the kernel copies and checks them
    // and writes to neither. The fd is open because `socket` is borrowed.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, (&raw const filter).cast(), size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
