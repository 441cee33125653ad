//! Whose the other end of a loopback connection is. The kernel lists both ends, with the uid that made each.

use std::net::{IpAddr, SocketAddr};

use crate::processes;

/// What the kernel shows for a uid that this user namespace has no number for.
const OVERFLOW: u32 = 65534;
const UID_FIELD: usize = 7;

/// The node's end is root's where the sandbox shares the host's ids, and of a uid without a number here where it has its own. That
/// looks like the sandbox's own `nobody`; so as long as a process runs as that, nobody comes in this way.
pub fn may_open(peer: SocketAddr, own: SocketAddr, user: u32) -> bool {
    let Some(uid) = uid_of(peer, own) else { return false };
    let has_outside = || {
        // All ids there are: nobody is without one.
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        map.split_ascii_whitespace().nth(2) != Some("4294967295")
    };
    uid == 0 || uid == user || (uid == OVERFLOW && has_outside() && !processes::has_process_of(OVERFLOW))
}

/// `None` when the connection has gone meanwhile.
fn uid_of(peer: SocketAddr, own: SocketAddr) -> Option<u32> {
    // A socket of IPv6 may speak with IPv4; it is in the other table.
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"].iter().find_map(|table| {
        let table = std::fs::read_to_string(table).ok()?;
        find(&table, peer, own)
    })
}

fn find(table: &str, peer: SocketAddr, own: SocketAddr) -> Option<u32> {
    let (peer, own) = (written(peer)?, written(own)?);
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_it = fields.get(1)?.ends_with(&peer) && fields.get(2)?.ends_with(&own);
        is_it.then(|| fields.get(UID_FIELD)?.parse().ok())?
    })
}

/// As the kernel writes it: the address as a number of the machine, the port as a number.
fn written(address: SocketAddr) -> Option<String> {
    match address.ip() {
        IpAddr::V4(ip) => Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port())),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_is_found_in_both_tables() {
        if cfg!(target_endian = "big") {
            return;
        }
        let (peer, own) = ("127.0.0.1:40000".parse().unwrap(), "127.0.0.1:22222".parse().unwrap());
        let ours = "   0: 0100007F:56CE 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 1 1\n";
        let theirs = "   1: 0100007F:9C40 0100007F:56CE 01 00000000:00000000 00:00000000 00000000  1000        0 2 1\n";
        let mapped = "   1: 0000000000000000FFFF00000100007F:9C40 0000000000000000FFFF00000100007F:56CE 01 00000000:00000000 00:00000000 00000000  1001        0 2 1\n";

        assert_eq!(find(&format!("head\n{ours}{theirs}"), peer, own), Some(1000));
        assert_eq!(find(&format!("head\n{mapped}"), peer, own), Some(1001));
        assert_eq!(find(&format!("head\n{ours}"), peer, own), None);
    }
}
