//! Descriptors that whoever started the daemon has left open for it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Each may be taken once, and none of the standard ones. Closed on exec from now on.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asks about a number and changes the flag of it; fails when it is not open.
    let marked = unsafe { nix::libc::fcntl(number, nix::libc::F_SETFD, nix::libc::FD_CLOEXEC) };
    if marked < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, as was just seen; it was left to us by number, and by its contract nobody else takes it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
