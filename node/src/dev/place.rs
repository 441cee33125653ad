//! Which addresses and user ids a throwaway cluster's sandboxes have, so that several clusters fit on one machine.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;

use super::PORTS_PER_NODE;
use crate::config::UID_BASE;

/// Networks of 16 nodes; of each node `10.<x>.<16 × index>.0/20`.
const FIRST_OCTET: u8 = 10;
const PLACES: u8 = 32;
const FIRST_PLACE: u8 = 88;
const NETWORKS_PER_NODE: u8 = 16;
const NODE_PREFIX: u8 = 20;
/// Ids for 1024 sandboxes at once.
const UIDS_PER_NODE: u32 = 1024 << 16;
/// So many nodes' ids fit between [`UID_BASE`] and the last one.
const UID_RANGES: u32 = (u32::MAX - UID_BASE) / UIDS_PER_NODE;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u8);

impl Place {
    /// One that no route of this host knows. Where the search begins follows from the ports, so that two clusters that
    /// start at the same moment don't meet.
    pub(super) fn free(base_port: u16) -> Result<Place> {
        let routes = std::fs::read_to_string("/proc/net/route").context("read the host's routes")?;
        Place::among(&parse_routes(&routes), base_port).context(
            "every network that `atoll dev` gives to sandboxes (10.88.0.0/16 to 10.119.0.0/16) is in use on this host",
        )
    }

    fn among(routes: &[Ipv4Net], base_port: u16) -> Option<Place> {
        let first = (base_port / PORTS_PER_NODE) % u16::from(PLACES);
        let from_there = (0..PLACES).map(|step| Place(((first + u16::from(step)) % u16::from(PLACES)) as u8));
        from_there.into_iter().find(|place| {
            let network = place.network();
            !routes.iter().any(|route| route.contains(&network) || network.contains(route))
        })
    }

    fn network(self) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(FIRST_OCTET, FIRST_PLACE + self.0, 0, 0), 16)
    }

    /// Of the sandboxes of one node.
    pub(super) fn network_of(self, index: u8) -> Ipv4Net {
        let third = NETWORKS_PER_NODE * index;
        Ipv4Net::new_assert(Ipv4Addr::new(FIRST_OCTET, FIRST_PLACE + self.0, third, 0), NODE_PREFIX)
    }

    /// Where the ids of one node of `nodes` begin.
    pub(super) fn uid_base_of(self, index: u8, nodes: usize) -> u32 {
        let range = usize::from(self.0) * nodes + usize::from(index);
        UID_BASE + range as u32 % UID_RANGES * UIDS_PER_NODE
    }
}

/// Of `/proc/net/route`: destination and mask in the machine's byte order, as hexadecimal. The default route is no
/// network of somebody's.
fn parse_routes(text: &str) -> Vec<Ipv4Net> {
    let address = |word: &str| Some(Ipv4Addr::from(u32::from_str_radix(word, 16).ok()?.to_ne_bytes()));
    let route = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        Ipv4Net::with_netmask(address(words.get(1)?)?, address(words.get(7)?)?).ok()
    };
    text.lines().filter_map(route).filter(|route| route.prefix_len() > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_the_host_knows_is_passed_over() {
        let routes = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                      eth0 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n\
                      atl 1000580A 00000000 0001 0 0 0 00F0FFFF 0 0 0\n";
        let routes = parse_routes(routes);

        assert_eq!(routes, ["10.88.16.0/20".parse::<Ipv4Net>().unwrap()]);
        // 3200 / 10 is a multiple of 32: the search begins at the first place.
        let place = Place::among(&routes, 3200).unwrap();
        assert_eq!(place.network_of(2).to_string(), "10.89.32.0/20");
        assert_eq!(Place::among(&["10.0.0.0/8".parse().unwrap()], 3200), None);
    }

    #[test]
    fn clusters_of_three_share_no_ids_for_a_long_while() {
        let all = (0..16u8).flat_map(|place| (0..3u8).map(move |index| Place(place).uid_base_of(index, 3)));
        let all: std::collections::BTreeSet<u32> = all.collect();

        assert_eq!(all.len(), 48);
        assert!(all.iter().all(|base| base.checked_add(UIDS_PER_NODE).is_some()));
    }
}
