//! The kernel's events about devices that appear, change and go (Linux' lib/kobject_uevent.c).

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};

/// The kernel's own multicast group; group 2 is udev's, which does not run here.
const KERNEL_EVENTS: u32 = 1;

/// Room for a burst, such as a hub with all its devices; an event has a few hundred bytes.
const RECEIVE_BUFFER_BYTES: u32 = 1024 * 1024;

/// A socket that hears every event from its opening on.
pub struct Uevents(Socket);

impl std::fmt::Debug for Uevents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Uevents")
    }
}

impl Uevents {
    /// Starts to listen.
    ///
    /// # Errors
    /// The kernel refused the socket.
    pub fn listen() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_KOBJECT_UEVENT)?;
        // A small buffer only means more events lost, which the caller makes up for: a refusal is no reason to go
        // without.
        let _ = socket.set_rx_buf_sz(RECEIVE_BUFFER_BYTES);
        socket.bind(&SocketAddr::new(0, KERNEL_EVENTS))?;
        Ok(Self(socket))
    }

    /// Waits for the next event of the kernel: `add@/devices/...`, then `KEY=value` lines, each ended by a zero.
    ///
    /// # Errors
    /// `ENOBUFS` when events were lost.
    pub fn next(&self) -> io::Result<Vec<u8>> {
        loop {
            let (message, from) = self.0.recv_from_full()?;
            // Port 0 is the kernel; any process may send to the group.
            if from.port_number() == 0 {
                return Ok(message);
            }
        }
    }
}
