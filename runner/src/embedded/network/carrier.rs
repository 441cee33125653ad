//! Waiting until a device that has just been connected really sends.
//!
//! Of a veth pair the end that is brought up first learns of the other by a task of the kernel's, and until that has run
//! it drops what it is given. To ask for its link by `ETHTOOL_GLINK` does that task's work first, on every kernel.
#![allow(unsafe_code)]

use std::os::fd::AsFd;

use rustix::io::{Errno, Result};
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::net::{AddressFamily, SocketType, socket};

const SIOCETHTOOL: Opcode = 0x8946;
const ETHTOOL_GLINK: u32 = 0x0a;
const NAME_BYTES: usize = 16;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ifreq`, whose union has 24 bytes where pointers have 8, and 16 where they have 4.
#[repr(C)]
struct Request {
    name: [u8; NAME_BYTES],
    value: *mut Value,
    rest: [usize; 2],
}

/// Whether the device, of the thread's network namespace, has a carrier; if so, it sends from now on.
pub(super) fn settle(device: &str) -> Result<bool> {
    let mut name = [0; NAME_BYTES];
    // The last byte stays 0.
    let held = name[..NAME_BYTES - 1].get_mut(..device.len()).ok_or(Errno::NODEV)?;
    held.copy_from_slice(device.as_bytes());
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut value = Value { command: ETHTOOL_GLINK, data: 0 };
    let mut request = Request { name, value: &raw mut value, rest: [0; 2] };
    // SAFETY: SIOCETHTOOL takes an `ifreq`, which `Request` is laid out as and at least as long as; its pointer is to a
    // value that outlives the call and is what ETHTOOL_GLINK reads and writes.
    unsafe {
        let asked = Updater::<SIOCETHTOOL, Request>::new(&mut request);
        ioctl(any.as_fd(), asked)?;
    }
    Ok(value.data != 0)
}
