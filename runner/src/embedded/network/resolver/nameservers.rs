//! Who answers for the host: the nameservers of its `resolv.conf`, or those behind a stub of systemd's.

use std::fs;
use std::net::{IpAddr, SocketAddr};

const OF_THE_HOST: &str = "/etc/resolv.conf";
const BEHIND_SYSTEMD: &str = "/run/systemd/resolve/resolv.conf";
const PORT: u16 = 53;
/// As everybody has it.
const COUNT_MAX: usize = 3;

pub(crate) fn of_this_host() -> Vec<SocketAddr> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    chosen(&read(OF_THE_HOST), &read(BEHIND_SYSTEMD))
}

/// A stub on loopback only if there is nothing behind it that we know: it works too, as the resolver is on the host.
fn chosen(of_the_host: &str, behind_systemd: &str) -> Vec<SocketAddr> {
    let of_the_host = listed(of_the_host);
    if of_the_host.iter().all(|server| server.ip().is_loopback()) {
        let behind = listed(behind_systemd);
        if !behind.is_empty() {
            return behind;
        }
    }
    of_the_host
}

fn listed(resolv_conf: &str) -> Vec<SocketAddr> {
    let servers = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        // A link-local one needs its device, which only the host's own resolver makes sense of.
        address.parse::<IpAddr>().ok()
    });
    servers.take(COUNT_MAX).map(|address| SocketAddr::new(address, PORT)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_is_passed_over_for_what_is_behind_it() {
        let real = "# by hand\nnameserver 192.0.2.1\nnameserver\t2001:db8::1 # second\nsearch example.org\n";
        let stub = "nameserver 127.0.0.53\noptions edns0\n";
        let texts = |servers: Vec<SocketAddr>| servers.iter().map(ToString::to_string).collect::<Vec<_>>();

        assert_eq!(texts(chosen(real, "")), ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(texts(chosen(stub, real)), ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(texts(chosen(stub, "")), ["127.0.0.53:53"]);
        assert_eq!(texts(chosen("nameserver fe80::1%eth0\nnameserverx 1.1.1.1\n", "")), [""; 0]);
    }
}
