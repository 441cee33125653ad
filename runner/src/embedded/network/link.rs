//! One cable per sandbox: a veth pair whose one end is `eth0` in the sandbox's network namespace. Blocking, without
//! tokio and without memory, so that the zygote can call it.
//!
//! There is no bridge. The host routes to each sandbox over its own cable, so a sandbox shares no segment with anybody:
//! nothing to learn, flood or forge at the level of frames, no limit of 1023 ports, and where a packet comes from is a
//! question of routes, which the rules ask the kernel (`fib saddr . iif`). Both ends know each other's hardware address
//! for good, and the host hears no ARP from a sandbox, which could fill the host's table of neighbours with it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily as SocketFamily, SocketType, socket};

use super::layout::Layout;
use super::netlink::{Request, Rtnetlink};
use super::{carrier, inside};

/// Its own namespace is new, so nobody else has the number; `lo` is 1.
pub(super) const INSIDE_INDEX: u32 = 2;
/// Else one for each processor, and each is a folder in sysfs to be made and removed.
const QUEUES: u32 = 1;

/// A sandbox's place in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub slot: u16,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
    /// Of the address, as the sandbox sees it. 32: everybody else is behind the gateway.
    pub prefix_bits: u8,
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the network range {0} has no slot {1}: give the node a wider range")]
    NoSuchSlot(ipnet::Ipv4Net, u16),
    #[error("cannot {0}: {1}")]
    Kernel(&'static str, #[source] io::Error),
}

/// Names the step that failed.
pub(super) fn step<T, E: Into<io::Error>>(what: &'static str, result: Result<T, E>) -> Result<T, LinkError> {
    result.map_err(|error| LinkError::Kernel(what, error.into()))
}

/// Connects the network namespace `netns`, which must be new, and sets it up inside: address, route, `lo`, sysctls.
/// The calling thread must be in the host's network namespace; it enters `netns` and comes back. What a crash left in the
/// slot goes first.
///
/// # Panics
/// If the thread cannot come back, as nothing that it did from then on would be where it belongs.
pub fn attach(layout: &Layout, slot: u16, netns: BorrowedFd<'_>) -> Result<Lease, LinkError> {
    let address = layout.address(slot).ok_or_else(|| LinkError::NoSuchSlot(layout.range(), slot))?;
    let device = layout.device(slot);
    let mut host = step("open a netlink socket", Rtnetlink::open())?;
    if let Err(error) = host.perform(vec![cable(&device, address, netns)]) {
        if Errno::from_io_error(&error) != Some(Errno::EXIST) {
            return Err(LinkError::Kernel("make a veth pair", error));
        }
        step("remove an old veth pair", remove(&mut host, &device))?;
        step("make a veth pair", host.perform(vec![cable(&device, address, netns)]))?;
    }
    let done = connect(layout, &mut host, &device, address, netns);
    if done.is_err() {
        // The first error is the one to tell.
        let _ = remove(&mut host, &device);
    }
    done.map(|()| Lease { slot, address, gateway: layout.gateway(), prefix_bits: 32 })
}

/// Removes the slot's cable. Fine if there is none: it goes by itself when the sandbox's namespace does, a little later.
pub fn detach(layout: &Layout, slot: u16) -> Result<(), LinkError> {
    let mut host = step("open a netlink socket", Rtnetlink::open())?;
    step("remove a veth pair", remove(&mut host, &layout.device(slot)))
}

/// The slots that have a cable now.
pub fn attached(layout: &Layout) -> Result<Vec<u16>, LinkError> {
    let mut host = step("open a netlink socket", Rtnetlink::open())?;
    let names = step("list network devices", device_names(&mut host))?;
    Ok(names.iter().filter_map(|name| layout.slot_of_device(name)).collect())
}

pub(super) fn device_names(host: &mut Rtnetlink) -> io::Result<Vec<String>> {
    let found = host.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let links = found.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    Ok(links
        .flat_map(|link| link.attributes)
        .filter_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        })
        .collect())
}

fn connect(
    layout: &Layout,
    host: &mut Rtnetlink,
    device: &str,
    address: Ipv4Addr,
    netns: BorrowedFd<'_>,
) -> Result<(), LinkError> {
    let index = step("find a veth pair again", index_of(device))?;
    let requests = vec![
        up(index, LinkFlags::Up | LinkFlags::Noarp),
        neighbour(index, address, Layout::sandbox_mac(address)),
        route_to(index, address),
    ];
    step("bring up the host's end of a veth pair", host.perform(requests))?;
    inside::configure(layout, address, netns)?;
    // The other end, which came up second, sends already.
    match step("wait for a veth pair", carrier::settle(device))? {
        true => Ok(()),
        false => Err(LinkError::Kernel("connect a veth pair", io::ErrorKind::NotConnected.into())),
    }
}

fn cable(device: &str, address: Ipv4Addr, netns: BorrowedFd<'_>) -> Request {
    let mut peer = LinkMessage::default();
    peer.header.index = INSIDE_INDEX;
    peer.attributes = vec![
        LinkAttribute::IfName("eth0".into()),
        LinkAttribute::Address(Layout::sandbox_mac(address).to_vec()),
        LinkAttribute::NumTxQueues(QUEUES),
        LinkAttribute::NumRxQueues(QUEUES),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
    ];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(device.to_owned()),
        LinkAttribute::Address(Layout::host_mac(address).to_vec()),
        LinkAttribute::NumTxQueues(QUEUES),
        LinkAttribute::NumRxQueues(QUEUES),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    (RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
}

/// Also without an IPv6 address of its own: nobody speaks IPv6 over a cable.
pub(super) fn up(index: u32, flags: LinkFlags) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = flags;
    link.header.change_mask = flags;
    link.attributes =
        vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])])];
    (RouteNetlinkMessage::SetLink(link), 0)
}

pub(super) fn neighbour(index: u32, address: Ipv4Addr, mac: [u8; 6]) -> Request {
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = AddressFamily::Inet;
    neighbour.header.ifindex = index;
    neighbour.header.state = NeighbourState::Permanent;
    neighbour.header.kind = RouteType::Unicast;
    neighbour.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    (RouteNetlinkMessage::NewNeighbour(neighbour), NLM_F_CREATE | NLM_F_REPLACE)
}

fn route_to(index: u32, address: Ipv4Addr) -> Request {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.destination_prefix_length = 32;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Link;
    route.header.kind = RouteType::Unicast;
    route.attributes =
        vec![RouteAttribute::Destination(RouteAddress::Inet(address)), RouteAttribute::Oif(index)];
    (RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Fine if there is no such device.
pub(super) fn remove(host: &mut Rtnetlink, device: &str) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName(device.to_owned())];
    match host.perform(vec![(RouteNetlinkMessage::DelLink(link), 0)]) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(()),
        other => other,
    }
}

pub(super) fn index_of(device: &str) -> rustix::io::Result<u32> {
    let any = socket(SocketFamily::INET, SocketType::DGRAM, None)?;
    name_to_index(any.as_fd(), device)
}
