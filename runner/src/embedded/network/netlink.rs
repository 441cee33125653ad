//! A conversation with the kernel about devices, addresses and routes: blocking, without tokio, so that a process of
//! one thread can use it too.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// The kernel answers within the call; more than this means that something holds its lock.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Bound for ever to the network namespace that the thread was in when it was opened.
pub(crate) struct Rtnetlink {
    socket: Socket,
    sequence: u32,
}

/// A message and its flags beyond REQUEST and ACK.
pub(crate) type Request = (RouteNetlinkMessage, u16);

impl Rtnetlink {
    pub(crate) fn open() -> io::Result<Rtnetlink> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_DEADLINE))?;
        // Without a copy of the question in an answer of "no".
        socket.set_cap_ack(true)?;
        Ok(Rtnetlink { socket, sequence: 0 })
    }

    /// All in one system call, in order; a failed one does not stop those behind it. Tells of the first that failed.
    pub(crate) fn perform(&mut self, requests: Vec<Request>) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(1024);
        let first = self.sequence.wrapping_add(1);
        for (message, flags) in requests {
            self.append(&mut bytes, message, NLM_F_ACK | flags);
        }
        let last = self.sequence;
        self.socket.send(&bytes, 0)?;
        let mut outcome = Ok(());
        let mut awaited = last.wrapping_sub(first).wrapping_add(1);
        while awaited > 0 {
            self.receive(|sequence, payload| {
                if sequence.wrapping_sub(first) > last.wrapping_sub(first) {
                    return; // Of a call that gave up waiting.
                }
                if let NetlinkPayload::Error(error) = payload {
                    awaited = awaited.saturating_sub(1);
                    if error.code.is_some() && outcome.is_ok() {
                        outcome = Err(error.to_io());
                    }
                }
            })?;
        }
        outcome
    }

    pub(crate) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, message, NLM_F_DUMP);
        let asked = self.sequence;
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        let mut end = None;
        while end.is_none() {
            self.receive(|sequence, payload| match payload {
                _ if sequence != asked => {}
                NetlinkPayload::InnerMessage(message) => found.push(message),
                NetlinkPayload::Done(_) => end = Some(Ok(())),
                NetlinkPayload::Error(error) => end = Some(Err(error.to_io())),
                _ => {}
            })?;
        }
        end.unwrap_or(Ok(())).map(|()| found)
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.sequence_number = self.sequence;
        header.flags = NLM_F_REQUEST | flags;
        let mut packet = NetlinkMessage::new(header, message.into());
        packet.finalize();
        let (from, length) = (bytes.len(), packet.buffer_len());
        bytes.resize(from + length.next_multiple_of(4), 0);
        packet.serialize(&mut bytes[from..from + length]);
    }

    fn receive(&self, mut take: impl FnMut(u32, NetlinkPayload<RouteNetlinkMessage>)) -> io::Result<()> {
        let (bytes, _) = self.socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            let length = (message.header.length as usize).next_multiple_of(4).min(rest.len());
            if length == 0 {
                break;
            }
            take(message.header.sequence_number, message.payload);
            rest = &rest[length..];
        }
        Ok(())
    }
}
