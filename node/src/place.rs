//! Which addresses and user ids sandboxes get where nobody has chosen any, so that several nodes and throwaway clusters
//! fit on one machine.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;

use crate::config::UID_BASE;

/// A place is the network of up to 16 nodes; each node's is `10.<x>.<16 × index>.0/20` of it.
const FIRST_OCTET: u8 = 10;
const PLACES: u8 = 32;
const FIRST_PLACE: u8 = 88;
const NETWORKS_PER_NODE: u8 = 16;
const NODES_PER_PLACE: u32 = 16;
const NODE_PREFIX: u8 = 20;
/// The ports of one node lie within so many.
const PORTS_APART: u16 = 10;
/// Ids for 1024 sandboxes at once.
const UIDS_PER_NODE: u32 = 1024 << 16;
/// So many nodes' ids fit between [`UID_BASE`] and the last one.
const UID_RANGES: u32 = (u32::MAX - UID_BASE) / UIDS_PER_NODE;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u8);

impl Place {
    /// One that no route of this host knows. Where the search begins follows from the ports, so that two clusters that
    /// start at the same moment don't meet.
    pub fn free(base_port: u16) -> Result<Place> {
        let routes = std::fs::read_to_string("/proc/net/route").context("read the host's routes")?;
        Place::among(&parse_routes(&routes), base_port).context(
            "every network that sandboxes are given (10.88.0.0/16 to 10.119.0.0/16) is in use on this host: name a free one \
             as runtime.network in the node's configuration",
        )
    }

    fn among(routes: &[Ipv4Net], base_port: u16) -> Option<Place> {
        let first = (base_port / PORTS_APART) % u16::from(PLACES);
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
    pub fn network_of(self, index: u8) -> Ipv4Net {
        let third = NETWORKS_PER_NODE * index;
        Ipv4Net::new_assert(Ipv4Addr::new(FIRST_OCTET, FIRST_PLACE + self.0, third, 0), NODE_PREFIX)
    }

    /// Where the ids of that node's sandboxes begin. Nodes of one place have different ones, and nearby places do.
    pub fn uid_base_of(self, index: u8) -> u32 {
        let number = u32::from(self.0) * NODES_PER_PLACE + u32::from(index);
        UID_BASE + number % UID_RANGES * UIDS_PER_NODE
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
                      atl 0010580A 00000000 0001 0 0 0 00F0FFFF 0 0 0\n";
        let routes = parse_routes(routes);

        assert_eq!(routes, ["10.88.16.0/20".parse::<Ipv4Net>().unwrap()]);
        // 3200 / 10 is a multiple of 32: the search begins at the first place.
        let place = Place::among(&routes, 3200).unwrap();
        assert_eq!(place.network_of(2).to_string(), "10.89.32.0/20");
        assert_eq!(Place::among(&["10.0.0.0/8".parse().unwrap()], 3200), None);
    }

    #[test]
    fn nodes_of_one_place_and_small_clusters_of_nearby_ones_share_no_ids() {
        let bases = |places: u8, nodes: u8| {
            let all = (0..places)
                .flat_map(move |place| (0..nodes).map(move |index| Place(place).uid_base_of(index)));
            all.collect::<std::collections::BTreeSet<u32>>()
        };

        assert_eq!(bases(1, 16).len(), 16);
        assert_eq!(bases(10, 4).len(), 40);
        let all = bases(PLACES, 16);
        assert!(all.iter().all(|base| base.checked_add(UIDS_PER_NODE).is_some()));
    }
}
