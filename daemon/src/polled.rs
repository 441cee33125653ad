//! Descriptors that tokio has no type for, made awaitable. Unsafe only because tokio can't know that they stay what they are.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::signalfd::SignalFd;
use tokio::io::unix::AsyncFd;

pub fn terminal(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, and `AsyncFd`, which owns it from here on,
    // deregisters first.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

pub fn signals(fd: SignalFd) -> io::Result<AsyncFd<SignalFd>> {
    // SAFETY: a `SignalFd` is an `OwnedFd` that it never gives away; then as above.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}
