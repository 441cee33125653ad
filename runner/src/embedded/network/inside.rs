//! The sandbox's end of its cable: what is set from inside its network namespace.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::{fs, io};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::layout::Layout;
use super::link::{INSIDE_INDEX, LinkError, neighbour, step, up};
use super::netlink::{Request, Rtnetlink};

const LOOPBACK_INDEX: u32 = 1;

/// `/proc/sys/net` shows the namespace of whoever looks.
const SYSCTLS: [(&str, &str); 4] = [
    // No address and no neighbours on eth0. `lo` came before, so programs that insist on ::1 have it.
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"),
    ("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1"),
    // Ping without a raw socket, and ports below 1024 for everybody: no user in there is the host's.
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
];

pub(super) fn configure(layout: &Layout, address: Ipv4Addr, netns: BorrowedFd<'_>) -> Result<(), LinkError> {
    let home = step(
        "open the host's network namespace",
        openat(CWD, "/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()),
    )?;
    step(
        "enter a sandbox's network namespace",
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network)),
    )?;
    let done = configure_here(layout, address);
    move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("a thread may return to the network namespace that it came from");
    done
}

fn configure_here(layout: &Layout, address: Ipv4Addr) -> Result<(), LinkError> {
    for (path, value) in SYSCTLS {
        match fs::write(path, value) {
            Ok(()) => {}
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.contains("/ipv6/") => {}
            Err(error) => return Err(LinkError::Kernel("write a sandbox's network settings", error)),
        }
    }
    let mut here = step("open a netlink socket in a sandbox", Rtnetlink::open())?;
    let requests = vec![
        up_loopback(),
        with_address(address),
        up(INSIDE_INDEX, LinkFlags::Up),
        neighbour(INSIDE_INDEX, layout.gateway(), Layout::host_mac(address)),
        route_everything(layout.gateway()),
    ];
    step("set up eth0 in a sandbox", here.perform(requests))
}

fn up_loopback() -> Request {
    let mut link = LinkMessage::default();
    link.header.index = LOOPBACK_INDEX;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    (RouteNetlinkMessage::SetLink(link), 0)
}

fn with_address(address: Ipv4Addr) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.scope = AddressScope::Universe;
    message.header.index = INSIDE_INDEX;
    message.attributes =
        vec![AddressAttribute::Local(IpAddr::V4(address)), AddressAttribute::Address(IpAddr::V4(address))];
    (RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// The gateway is not in the address's own network, which is the address alone, hence "onlink".
fn route_everything(gateway: Ipv4Addr) -> Request {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Unicast;
    route.header.flags = RouteFlags::Onlink;
    route.attributes =
        vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(INSIDE_INDEX)];
    (RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE)
}
