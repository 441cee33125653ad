//! The host's side of the network: the device that carries the gateway's address, forwarding, and what the host's
//! routes say. Blocking.
//!
//! The anchor is a bridge that never gets a port, only because every kernel that can do the rest has those. Its address
//! makes the gateway local, and its route to the whole range swallows what is sent to a slot without a sandbox.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::{fs, io};

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::layout::{DEVICE_PREFIX, Layout};
use super::link::{self, LinkError, index_of, step, up};
use super::netlink::{Request, Rtnetlink};

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: Ipv4Net,
    pub(super) device: String,
    /// It leads on, beyond the device's own network.
    pub(super) has_gateway: bool,
}

/// Finds the anchor or makes it.
pub(super) fn ensure(layout: &Layout) -> Result<(), LinkError> {
    let mut host = step("open a netlink socket", Rtnetlink::open())?;
    let name = layout.anchor();
    let index = match index_of(&name) {
        Ok(index) => index,
        Err(Errno::NODEV) => {
            step("make the sandboxes' gateway device", host.perform(vec![bridge(&name)]))?;
            step("find the sandboxes' gateway device", index_of(&name))?
        }
        Err(error) => return Err(LinkError::Kernel("find the sandboxes' gateway device", error.into())),
    };
    step(
        "set up the sandboxes' gateway device",
        host.perform(vec![with_address(index, layout), up(index, LinkFlags::Up)]),
    )?;
    forward()
}

/// Removes the anchor and every cable. Fine if there is none.
pub(super) fn remove(layout: &Layout) -> Result<(), LinkError> {
    let mut host = step("open a netlink socket", Rtnetlink::open())?;
    let names = step("list network devices", link::device_names(&mut host))?;
    for name in names {
        if name == layout.anchor() || layout.slot_of_device(&name).is_some() {
            step("remove a network device", link::remove(&mut host, &name))?;
        }
    }
    Ok(())
}

/// For every device, as packets come back over others than ours. It is not taken back: others may rely on it by then.
fn forward() -> Result<(), LinkError> {
    let now = step("read whether the host forwards", fs::read_to_string(FORWARDING))?;
    if now.trim() != "1" {
        step("let the host forward packets (sysctl net.ipv4.ip_forward)", fs::write(FORWARDING, "1"))?;
    }
    Ok(())
}

fn bridge(name: &str) -> Request {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    (RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
}

fn with_address(index: u32, layout: &Layout) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = layout.range().prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(layout.gateway())),
        AddressAttribute::Address(IpAddr::V4(layout.gateway())),
    ];
    (RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
}

pub(super) fn routes() -> io::Result<Vec<Route>> {
    let mut host = Rtnetlink::open()?;
    let mut names = BTreeMap::new();
    for message in host.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        if let RouteNetlinkMessage::NewLink(link) = message {
            let name = link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            });
            names.insert(link.header.index, name.unwrap_or_default());
        }
    }
    let mut question = RouteMessage::default();
    question.header.address_family = AddressFamily::Inet;
    let found = host.dump(RouteNetlinkMessage::GetRoute(question))?;
    let routes = found.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    Ok(routes.flat_map(|route| parse(&route, &names)).collect())
}

/// One for each of its next hops.
fn parse(route: &RouteMessage, names: &BTreeMap<u32, String>) -> Vec<Route> {
    if route.header.table != RouteHeader::RT_TABLE_MAIN || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let mut to = Ipv4Addr::UNSPECIFIED;
    let (mut has_gateway, mut hops) = (false, Vec::new());
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = *address,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => has_gateway = true,
            RouteAttribute::Oif(index) => hops.push(*index),
            RouteAttribute::MultiPath(paths) => {
                has_gateway = true;
                hops.extend(paths.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    let Ok(to) = Ipv4Net::new(to, route.header.destination_prefix_length) else { return Vec::new() };
    let devices = hops.into_iter().filter_map(|index| names.get(&index));
    devices.map(|device| Route { to, device: device.clone(), has_gateway }).collect()
}

/// The devices that lead beyond this host and its own virtual networks.
pub(super) fn uplinks(routes: &[Route]) -> BTreeSet<String> {
    let leading = routes.iter().filter(|route| route.has_gateway || route.to.prefix_len() == 0);
    leading.map(|route| route.device.clone()).filter(|device| !device.starts_with(DEVICE_PREFIX)).collect()
}

/// A network of somebody else that has addresses of our range.
pub(super) fn overlapping<'a>(layout: &Layout, routes: &'a [Route]) -> Option<&'a Route> {
    routes.iter().find(|route| {
        let ours = route.device.starts_with(&layout.anchor());
        let range = layout.range();
        !ours
            && route.to.prefix_len() > 0
            && (range.contains(&route.to) || route.to.contains(&range) && !route.has_gateway)
    })
}

#[cfg(test)]
mod tests {
    use atoll_api::ids::NodeId;

    use super::*;

    fn route(to: &str, device: &str, has_gateway: bool) -> Route {
        Route { to: to.parse().unwrap(), device: device.into(), has_gateway }
    }

    #[test]
    fn what_leads_on_is_an_uplink_and_a_container_bridge_is_not() {
        let routes = [
            route("0.0.0.0/0", "eth0", true),
            route("10.1.0.0/16", "br0", true),
            route("0.0.0.0/0", "ppp0", false),
            route("172.17.0.0/16", "docker0", false),
        ];

        assert_eq!(uplinks(&routes), ["br0", "eth0", "ppp0"].map(String::from).into());
    }

    #[test]
    fn another_network_with_our_addresses_is_found() {
        let layout = Layout::new(NodeId(1 << 32), "10.88.0.0/16".parse().unwrap()).unwrap();
        let fine = [
            route("0.0.0.0/0", "eth0", true),
            route("10.88.0.0/16", "atl00000001", false),
            route("10.88.0.2/32", "atl000000010000", false),
            // A company's network that we are a hole in.
            route("10.0.0.0/8", "eth0", true),
        ];
        assert_eq!(overlapping(&layout, &fine), None);
        for other in [
            route("10.88.0.0/16", "podman0", false),
            route("10.88.1.0/24", "eth0", true),
            route("10.0.0.0/8", "eth0", false),
            route("10.88.0.0/16", "atl00000002", false),
        ] {
            assert_eq!(overlapping(&layout, std::slice::from_ref(&other)), Some(&other));
        }
    }
}
