//! Which addresses an image's name may lead this node to. Whoever may name an image could else have the node ask for things
//! that only the node can reach: what listens on its loopback, the cloud's metadata, machines of its own network.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Where registries, and whatever they redirect to, may be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Reach {
    #[default]
    Anywhere,
    /// At public addresses; these host names and addresses, without ports, wherever they are.
    PublicBut(BTreeSet<String>),
}

impl Reach {
    /// Whether a host as a URL has it may be asked, as far as that says by itself: a name says so when it is resolved.
    pub fn permits_host(&self, host: &str) -> bool {
        let name = without_port(host);
        let address: Option<IpAddr> = name.trim_start_matches('[').trim_end_matches(']').parse().ok();
        self.permits_name(name) || address.is_none_or(is_public)
    }

    fn permits_name(&self, name: &str) -> bool {
        match self {
            Reach::Anywhere => true,
            Reach::PublicBut(except) => except.contains(name),
        }
    }

    pub fn refusal(&self, host: &str) -> String {
        format!("{host} is not at a public address: the operator may list it in runtime.private_registries")
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() && !name.ends_with(':') => name,
        _ => host,
    }
}

/// Resolves like the system does, and leaves out what may not be reached.
pub(super) struct Resolver(pub(super) Arc<Reach>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if reach.permits_name(name.as_str()) {
                return Ok(Box::new(found.into_iter()) as Addrs);
            }
            let public: Vec<SocketAddr> =
                found.into_iter().filter(|address| is_public(address.ip())).collect();
            match public.is_empty() {
                true => Err(std::io::Error::other(reach.refusal(name.as_str())).into()),
                false => Ok(Box::new(public.into_iter()) as Addrs),
            }
        })
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    let is_shared = first == 100 && (64..128).contains(&second);
    let is_protocol = (first, second, third) == (192, 0, 0);
    let is_benchmark = first == 198 && (second == 18 || second == 19);
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || is_shared
        || is_protocol
        || is_benchmark
        || first == 0
        || first >= 240)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Addresses that stand for one of version 4.
    let embedded = match segments {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some((high, low)),
        [0x2002, high, low, ..] => Some((high, low)),
        _ => None,
    };
    if let Some((high, low)) = embedded {
        let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    // What is handed out is in 2000::/3; documentation is not for use.
    segments[0] & 0xe000 == 0x2000 && !(segments[0] == 0x2001 && segments[1] == 0xdb8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_public_is_only_reached_by_name_of_the_operator() {
        let reach = Reach::PublicBut(["10.0.0.5".to_owned(), "registry.lan".to_owned()].into());
        for refused in [
            "127.0.0.1:5000",
            "127.9.9.9",
            "10.0.0.6",
            "172.16.0.1:80",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0:1",
            "198.18.0.1",
            "192.0.0.192",
            "224.0.0.1",
            "255.255.255.255",
            "[::1]:5000",
            "[::]",
            "[fe80::1]",
            "[fd00::1]:443",
            "[::ffff:10.0.0.6]",
            "[64:ff9b::7f00:1]",
            "[2002:a00:1::]",
            "[2001:db8::1]",
        ] {
            assert!(!reach.permits_host(refused), "{refused}");
            assert!(Reach::Anywhere.permits_host(refused));
        }
        for permitted in
            ["10.0.0.5:5000", "8.8.8.8", "registry.example:5000", "[2606:4700::1]:443", "ghcr.io"]
        {
            assert!(reach.permits_host(permitted), "{permitted}");
        }
    }
}
