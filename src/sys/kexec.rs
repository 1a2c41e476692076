//! Start of another kernel without the firmware and its boot loader (kexec).
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

/// Loads a kernel with its initramfs and command line, to be started by
/// [`power::start_loaded`](super::power::start_loaded).
///
/// # Errors
/// The kernel that runs was built without kexec, or refuses this one; its log has the reason.
pub fn load(kernel: &File, initramfs: &File, arguments: &CStr) -> io::Result<()> {
    let length = arguments.to_bytes_with_nul().len();
    // SAFETY: both fds are open for the whole call, and the kernel reads `length` bytes from the address of
    // `arguments`, which are there up to the last, the zero that ends them (kexec_file_load(2)). It writes to no memory
    // of ours.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initramfs.as_raw_fd(),
            length,
            arguments.as_ptr(),
            0_u64,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
