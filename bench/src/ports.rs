//! Free TCP ports of the loopback for the references.

use std::net::TcpListener;

use anyhow::{Context, Result};

/// Different ones, free a moment ago.
pub fn free<const COUNT: usize>() -> Result<[u16; COUNT]> {
    let held: Vec<TcpListener> = (0..COUNT)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)).context("find a free port"))
        .collect::<Result<_>>()?;
    let mut ports = [0; COUNT];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr().context("read a port")?.port();
    }
    Ok(ports)
}
