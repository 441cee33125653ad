//! Who has which address and which name, from nothing but the node's id and its range. Plain arithmetic: any process of
//! the node comes to the same answer, so nothing of it has to be remembered.

use std::net::Ipv4Addr;

use atoll_api::ids::NodeId;
use ipnet::Ipv4Net;

/// Every network device of every Atoll node begins so, also the bridges of the docker runtime.
pub(crate) const DEVICE_PREFIX: &str = "atl";
const PREFIX_BITS_MIN: u8 = 8;
const PREFIX_BITS_MAX: u8 = 24;
/// Locally administered, so no card has them. The address follows.
const HOST_MAC: [u8; 2] = [0x02, 0xa7];
const SANDBOX_MAC: [u8; 2] = [0x06, 0xa7];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("the network range {0} must have a prefix of 8 to 24 bits, such as 10.88.0.0/16")]
    Size(Ipv4Net),
    #[error(
        "the network range {0} is not free for use: take a part of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"
    )]
    Reserved(Ipv4Net),
}

/// A node's part of the address space and the names of what it makes. A slot is a place for one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    node_id: NodeId,
    range: Ipv4Net,
}

impl Layout {
    /// Host bits of the range are taken away.
    pub fn new(node_id: NodeId, range: Ipv4Net) -> Result<Layout, LayoutError> {
        let range = range.trunc();
        if !(PREFIX_BITS_MIN..=PREFIX_BITS_MAX).contains(&range.prefix_len()) {
            return Err(LayoutError::Size(range));
        }
        let first = range.network();
        if first.octets()[0] == 0 || first.is_loopback() || first.is_link_local() || first.octets()[0] >= 224
        {
            return Err(LayoutError::Reserved(range));
        }
        Ok(Layout { node_id, range })
    }

    pub fn range(&self) -> Ipv4Net {
        self.range
    }

    /// How many slots there are; they are numbered from 0.
    pub fn slots(&self) -> u16 {
        // All addresses but the network's own, the gateway and the broadcast address.
        let addresses = (1u32 << (32 - u32::from(self.range.prefix_len()))) - 3;
        u16::try_from(addresses).unwrap_or(u16::MAX)
    }

    /// The host, as its sandboxes see it.
    pub fn gateway(&self) -> Ipv4Addr {
        self.nth(1)
    }

    /// `None` for a slot that the range has no room for.
    pub fn address(&self, slot: u16) -> Option<Ipv4Addr> {
        (slot < self.slots()).then(|| self.nth(2 + u32::from(slot)))
    }

    pub fn slot(&self, address: Ipv4Addr) -> Option<u16> {
        let number = address.to_bits().checked_sub(self.nth(2).to_bits())?;
        u16::try_from(number).ok().filter(|slot| *slot < self.slots())
    }

    fn nth(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.range.network().to_bits() + number)
    }

    /// What the node's devices have in common: the anchor's whole name.
    pub fn anchor(&self) -> String {
        // Eight of sixteen digits: with a slot's four they just fit into a device's name.
        format!("{DEVICE_PREFIX}{:08x}", self.node_id.0 >> 32)
    }

    /// The host's end of a slot's cable.
    pub fn device(&self, slot: u16) -> String {
        format!("{}{slot:04x}", self.anchor())
    }

    /// The slot whose host end has this name.
    pub fn slot_of_device(&self, name: &str) -> Option<u16> {
        let digits = name.strip_prefix(&self.anchor())?;
        let slot = u16::from_str_radix(digits, 16).ok()?;
        (self.device(slot) == name).then_some(slot)
    }

    /// The nftables table.
    pub fn table(&self) -> String {
        format!("atoll_{}", self.node_id)
    }

    /// The comment on each iptables rule.
    pub fn comment(&self) -> String {
        format!("atoll-{}", self.node_id)
    }

    pub(crate) fn host_mac(address: Ipv4Addr) -> [u8; 6] {
        mac(HOST_MAC, address)
    }

    pub(crate) fn sandbox_mac(address: Ipv4Addr) -> [u8; 6] {
        mac(SANDBOX_MAC, address)
    }
}

fn mac([first, second]: [u8; 2], address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [first, second, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(range: &str) -> Result<Layout, LayoutError> {
        Layout::new(NodeId(0x0123_4567_89ab_cdef), range.parse().unwrap())
    }

    #[test]
    fn every_slot_has_an_address_of_its_own_inside_the_range() {
        let small = layout("10.9.8.7/24").unwrap();
        assert_eq!(small.gateway(), Ipv4Addr::new(10, 9, 8, 1));
        assert_eq!(small.slots(), 253);
        assert_eq!(small.address(0), Some(Ipv4Addr::new(10, 9, 8, 2)));
        assert_eq!(small.address(252), Some(Ipv4Addr::new(10, 9, 8, 254)));
        assert_eq!(small.address(253), None);
        for range in ["10.9.8.0/24", "10.88.0.0/16", "10.0.0.0/8"] {
            let layout = layout(range).unwrap();
            for slot in [0, 1, 200, layout.slots() - 1] {
                assert_eq!(layout.slot(layout.address(slot).unwrap()), Some(slot), "{range}");
            }
            assert_eq!(layout.slot(layout.gateway()), None);
            assert_eq!(layout.slot(Ipv4Addr::new(11, 0, 0, 1)), None);
        }
    }

    #[test]
    fn names_fit_a_device_and_are_found_again() {
        let layout = layout("10.88.0.0/16").unwrap();

        assert_eq!(layout.anchor(), "atl01234567");
        assert_eq!(layout.device(0xbeef), "atl01234567beef");
        assert_eq!(layout.slot_of_device("atl01234567beef"), Some(0xbeef));
        for other in ["atl01234567", "atl01234567+eef", "atl01234568beef", "atl01234567BEEF", "eth0"] {
            assert_eq!(layout.slot_of_device(other), None, "{other}");
        }
    }

    #[test]
    fn a_range_that_cannot_be_used_is_refused() {
        for range in ["10.0.0.0/25", "0.0.0.0/0", "10.0.0.0/7"] {
            assert!(matches!(layout(range), Err(LayoutError::Size(_))), "{range}");
        }
        for range in ["127.0.0.0/16", "169.254.0.0/16", "224.0.0.0/8", "0.0.0.0/8", "255.255.255.0/24"] {
            assert!(matches!(layout(range), Err(LayoutError::Reserved(_))), "{range}");
        }
    }
}
