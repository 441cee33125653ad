//! Listening sockets: one per thread on the same port, and a clear error when the port is somebody else's.

use std::net::{SocketAddr, TcpListener};

use anyhow::Context;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

const BACKLOG: i32 = 1024;

/// `count` listeners on one address. The kernel spreads connections over them. Port 0 picks one port for all.
///
/// # Errors
/// The port is taken, by this user or another, or may not be bound.
pub fn listeners(address: SocketAddr, count: usize) -> anyhow::Result<Vec<TcpListener>> {
    // A socket that shares its port would bind beside another process of this user which does the same, and steal
    // half of its connections. So it is first bound unshared.
    let probe = bind(address, Sharing::Alone).with_context(|| format!("listen on {address}"))?;
    let address = probe.local_addr().context("read the listening address")?;
    drop(probe);
    (0..count)
        .map(|_| bind(address, Sharing::Shared).with_context(|| format!("listen on {address}")))
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Alone,
    Shared,
}

fn bind(address: SocketAddr, sharing: Sharing) -> anyhow::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // Connections of the last process may still be in TIME_WAIT.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, sharing == Sharing::Shared)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: &str = "127.0.0.1:0";

    #[test]
    fn every_listener_has_the_same_port() {
        let listeners = listeners(ANY.parse().unwrap(), 3).unwrap();

        let ports: std::collections::HashSet<u16> =
            listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
        assert_eq!((listeners.len(), ports.len()), (3, 1));
    }

    #[test]
    fn a_port_that_another_edge_shares_is_taken() {
        let first = listeners(ANY.parse().unwrap(), 2).unwrap();

        let error = listeners(first[0].local_addr().unwrap(), 2).unwrap_err();

        assert!(format!("{error:#}").contains("listen on 127.0.0.1:"), "{error:#}");
    }
}
