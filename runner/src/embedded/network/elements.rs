//! Changes of the rules' sets: as lines for `nft`, to go with a reload of the rules, and as one transaction over netlink,
//! which takes a fraction of a millisecond where starting `nft` takes some, on the way of a create or of a name's answer.

use std::net::Ipv4Addr;
use std::time::Duration;
use std::{fmt, io};

use ipnet::Ipv4Net;
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList, SetElementMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::layout::Layout;

/// Changes with the types of the sets: those of another version are made anew.
const VERSION: u32 = 1;
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// nft takes comments up to this length. The pin of a longer name does not survive the runner.
const COMMENT_BYTES_MAX: usize = 128;
/// nft's type for it among what it keeps with an element.
const COMMENT: u8 = 0;
const DATA_VALUE: u16 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    /// Who reaches only what the others hold for it.
    Restricted,
    /// Pairs of a sandbox and a network.
    Allowed,
    /// Pairs of a sandbox and an address that a name stands for, for a time.
    Pinned,
}

impl Set {
    pub(super) fn name(self) -> String {
        let name = match self {
            Set::Restricted => "restricted",
            Set::Allowed => "allowed",
            Set::Pinned => "pinned",
        };
        format!("{name}{VERSION}")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Element {
    Restricted(Ipv4Addr),
    Allowed(Ipv4Addr, Ipv4Net),
    Pinned { from: Ipv4Addr, to: Ipv4Addr, name: String, timeout_s: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// Fine if it is there, which it then stays as it is.
    Add(Element),
    /// Fine if it is not there.
    Delete(Element),
    Flush(Set),
}

impl Element {
    fn set(&self) -> Set {
        match self {
            Element::Restricted(_) => Set::Restricted,
            Element::Allowed(..) => Set::Allowed,
            Element::Pinned { .. } => Set::Pinned,
        }
    }

    /// What DNS calls a name may hold quotes and newlines too, which `nft` would make something of.
    fn comment(&self) -> Option<&str> {
        let Element::Pinned { name, .. } = self else { return None };
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        ((1..=COMMENT_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain)).then_some(name)
    }

    fn attributes(&self) -> Vec<SetElementAttribute> {
        let pair = |from: &Ipv4Addr, to: Ipv4Addr| [from.octets(), to.octets()].concat();
        let key = |bytes| SetElementAttribute::Key(DataAttribute::Value(bytes));
        match self {
            Element::Restricted(address) => vec![key(address.octets().to_vec())],
            Element::Allowed(from, to) => vec![
                key(pair(from, to.network())),
                SetElementAttribute::KeyEnd(vec![DefaultNla::new(DATA_VALUE, pair(from, to.broadcast()))]),
            ],
            Element::Pinned { from, to, timeout_s, .. } => {
                let timeout = SetElementAttribute::Timeout(u64::from(*timeout_s) * 1000);
                let mut attributes = vec![key(pair(from, *to)), timeout];
                if let Some(comment) = self.comment() {
                    // Its bound is below that of the byte.
                    let length = comment.len() as u8 + 1;
                    let bytes = [&[COMMENT, length], comment.as_bytes(), &[0]].concat();
                    attributes.push(SetElementAttribute::UserData(bytes));
                }
                attributes
            }
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Restricted(address) => write!(f, "{address}"),
            Element::Allowed(from, to) => write!(f, "{from} . {to}"),
            Element::Pinned { from, to, timeout_s, .. } => {
                write!(f, "{from} . {to} timeout {timeout_s}s")?;
                self.comment().map_or(Ok(()), |comment| write!(f, " comment \"{comment}\""))
            }
        }
    }
}

/// Lines for `nft`.
pub(super) fn script(layout: &Layout, changes: &[Change]) -> String {
    let named = |set: Set| format!("inet {} {}", layout.table(), set.name());
    let lines = changes.iter().map(|change| match change {
        Change::Add(element) => format!("add element {} {{ {element} }}\n", named(element.set())),
        Change::Delete(element) => {
            let set = named(element.set());
            format!("add element {set} {{ {element} }}\ndelete element {set} {{ {element} }}\n")
        }
        Change::Flush(set) => format!("flush set {}\n", named(*set)),
    });
    lines.collect()
}

/// All of it or nothing. Blocking.
pub(super) fn apply(layout: &Layout, changes: &[Change]) -> io::Result<()> {
    let (create, delete) = (NfTablesMessage::NewSetElement, NfTablesMessage::DeleteSetElement);
    let mut messages: Vec<(NetfilterMessageInner, u16)> = Vec::with_capacity(changes.len() * 2);
    for change in changes {
        match change {
            Change::Add(element) => messages.push((create(one(layout, element)).into(), NLM_F_CREATE)),
            Change::Delete(element) => {
                messages.push((create(one(layout, element)).into(), NLM_F_CREATE));
                messages.push((delete(one(layout, element)).into(), 0));
            }
            Change::Flush(set) => messages.push((delete(list(layout, *set)).into(), 0)),
        }
    }
    match messages.last_mut() {
        // Heard after the errors of those before it.
        Some((_, flags)) => *flags |= NLM_F_ACK,
        None => return Ok(()),
    }
    commit(messages)
}

fn list(layout: &Layout, set: Set) -> SetElementMessage {
    SetElementMessage {
        attributes: vec![SetElementList::Table(layout.table()), SetElementList::Set(set.name())],
    }
}

fn one(layout: &Layout, element: &Element) -> SetElementMessage {
    let mut message = list(layout, element.set());
    message.attributes.push(SetElementList::Elements(vec![ListAttribute::Element(element.attributes())]));
    message
}

fn commit(messages: Vec<(NetfilterMessageInner, u16)>) -> io::Result<()> {
    let begin = (ControlMessage::BatchBegin.into(), 0);
    let end = (ControlMessage::BatchEnd.into(), 0);
    let last = u32::try_from(messages.len()).map_err(io::Error::other)?;
    let (mut bytes, mut sequence) = (Vec::with_capacity(4096), 0);
    for (message, flags) in [begin].into_iter().chain(messages).chain([end]) {
        append(&mut bytes, message, flags, sequence);
        sequence += 1;
    }
    let socket = Socket::new(NETLINK_NETFILTER)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_DEADLINE))?;
    socket.set_cap_ack(true)?;
    socket.send(&bytes, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&answer)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        if let NetlinkPayload::Error(error) = answer.payload {
            match error.code {
                Some(_) => return Err(error.to_io()),
                None if answer.header.sequence_number == last => return Ok(()),
                None => {}
            }
        }
    }
}

fn append(bytes: &mut Vec<u8>, inner: NetfilterMessageInner, flags: u16, sequence: u32) {
    let (family, resource) = match inner {
        NetfilterMessageInner::None(_) => {
            (NetfilterProtoFamily::Unspec, u16::from(u8::from(NetfilterSubsystem::NfTables)))
        }
        _ => (NetfilterProtoFamily::Inet, 0),
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, resource), inner);
    let mut packet = NetlinkMessage::new(header, message.into());
    packet.finalize();
    let (from, length) = (bytes.len(), packet.buffer_len());
    bytes.resize(from + length.next_multiple_of(4), 0);
    packet.serialize(&mut bytes[from..from + length]);
}

#[cfg(test)]
mod tests {
    use atoll_api::ids::NodeId;

    use super::*;

    const SANDBOX: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 5);

    fn pin(name: &str) -> Element {
        Element::Pinned { from: SANDBOX, to: Ipv4Addr::new(192, 0, 2, 7), name: name.into(), timeout_s: 60 }
    }

    #[test]
    fn a_change_is_written_as_nft_reads_it() {
        let layout = Layout::new(NodeId(1), "10.88.0.0/16".parse().unwrap()).unwrap();
        let network = "192.0.2.0/24".parse().unwrap();

        let script = script(
            &layout,
            &[
                Change::Add(Element::Allowed(SANDBOX, network)),
                Change::Delete(pin("a.org")),
                Change::Flush(Set::Pinned),
            ],
        );

        let pinned = "inet atoll_0000000000000001 pinned1";
        let element = "{ 10.88.0.5 . 192.0.2.7 timeout 60s comment \"a.org\" }";
        assert_eq!(
            script.lines().collect::<Vec<_>>(),
            [
                "add element inet atoll_0000000000000001 allowed1 { 10.88.0.5 . 192.0.2.0/24 }",
                &format!("add element {pinned} {element}"),
                &format!("delete element {pinned} {element}"),
                &format!("flush set {pinned}"),
            ]
        );
    }

    #[test]
    fn a_name_that_nft_would_read_as_something_else_is_left_out() {
        for name in ["a\" }; flush ruleset", "a\nb", "\\", &"a".repeat(129)] {
            assert_eq!(pin(name).to_string(), "10.88.0.5 . 192.0.2.7 timeout 60s");
        }
    }
}
