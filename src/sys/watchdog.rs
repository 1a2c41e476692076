//! The hardware watchdog (Linux' Documentation/watchdog/watchdog-api.rst): a timer that resets the machine unless it is
//! fed in time.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::libc::c_int;

/// `struct watchdog_info` of `linux/watchdog.h`.
#[repr(C)]
#[derive(Default)]
struct Info {
    options: u32,
    firmware_version: u32,
    identity: [u8; 32],
}

mod raw {
    use super::{Info, c_int};
    use nix::{ioctl_read, ioctl_readwrite};
    ioctl_read!(getsupport, b'W', 0, Info);
    ioctl_read!(getbootstatus, b'W', 2, c_int);
    ioctl_read!(keepalive, b'W', 5, c_int);
    ioctl_readwrite!(settimeout, b'W', 6, c_int);
}

/// `WDIOF_CARDRESET` of `linux/watchdog.h`: the last reset was the watchdog's.
const CARD_RESET: c_int = 0x20;

/// An armed watchdog. It stays armed when this is dropped, and when the machine restarts: a hang on the way down, in
/// the firmware or in the next kernel is then covered too.
#[derive(Debug)]
pub struct Watchdog {
    device: File,
    /// Driver, for people.
    pub identity: String,
    /// Time without feeding after which the watchdog resets the machine, as the hardware rounded it.
    pub timeout: Duration,
    /// The machine was last reset by it.
    pub caused_last_reset: bool,
}

impl Watchdog {
    /// Opens and thereby arms the machine's watchdog, with a timeout as near to `wish` as the hardware can.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when the machine has none (yet), [`io::ErrorKind::ResourceBusy`] when another
    /// program feeds it.
    pub fn arm(wish: Duration) -> io::Result<Self> {
        let device = open("/dev/watchdog0").or_else(|_| open("/dev/watchdog"))?;
        let mut info = Info::default();
        // SAFETY: the fd is open for the whole call, and the kernel writes one `struct watchdog_info`, of which `Info`
        // has the layout.
        unsafe { raw::getsupport(device.as_raw_fd(), &raw mut info) }?;
        let mut seconds = c_int::try_from(wish.as_secs()).unwrap_or(c_int::MAX);
        // SAFETY: the kernel reads and writes exactly one int at the address of `seconds`. A driver whose timeout is
        // fixed refuses and keeps it; the driver then does not say what it is, so the requested value stands in for it.
        let _ = unsafe { raw::settimeout(device.as_raw_fd(), &raw mut seconds) };
        let mut status: c_int = 0;
        // SAFETY: the kernel writes exactly one int to the address of `status`.
        let _ = unsafe { raw::getbootstatus(device.as_raw_fd(), &raw mut status) };
        let name = info.identity.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Self {
            device,
            identity: String::from_utf8_lossy(name).trim().to_owned(),
            timeout: Duration::from_secs(seconds.unsigned_abs().into()),
            caused_last_reset: status & CARD_RESET != 0,
        })
    }

    /// Gives the machine another [`timeout`](Self::timeout).
    ///
    /// # Errors
    /// The driver's error.
    pub fn feed(&self) -> io::Result<()> {
        let mut unused: c_int = 0;
        // SAFETY: the kernel takes no argument here; the declared int is never touched.
        unsafe { raw::keepalive(self.device.as_raw_fd(), &raw mut unused) }?;
        Ok(())
    }
}

fn open(path: impl AsRef<Path>) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}
