//! Errors of the network room.

use std::io;
use std::path::PathBuf;

use crate::sys::net::rtnl::RtnlError;

/// Failure to bring the network up. A missing cable or server is not an error: it is waited for.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// [`Stop::stop`](super::Stop::stop) was called.
    #[error("stopped while waiting for the network")]
    Stopped,
    /// Network links that cannot be listed, since sysfs cannot be read.
    #[error("cannot list the network links")]
    List(#[source] io::Error),
    /// The kernel refused an address or a route.
    #[error("cannot configure the network")]
    Configure(#[from] RtnlError),
    /// The list of name servers cannot be written.
    #[error("cannot write the name servers to {}", .path.display())]
    Resolver {
        /// Path of `resolv.conf`.
        path: PathBuf,
        /// Error of writing it.
        source: io::Error,
    },
    /// The kernel refused another thread.
    #[error("cannot start a thread for the network")]
    Thread(#[source] io::Error),
}
