//! QUIC as nodes speak it: protocol names, close codes, transport settings, and what its errors mean to a caller.

pub(crate) mod bytes;
pub(crate) mod transport;

use atoll_api::ids::NodeId;
use quinn::{ConnectionError, VarInt};

use crate::link::LinkError;
use crate::stream::StreamClass;

pub(crate) const ALPN_RAFT: &[u8] = b"atoll-raft/1";
pub(crate) const ALPN_BULK: &[u8] = b"atoll-bulk/1";
pub(crate) const ALPN_JOIN: &[u8] = b"atoll-join/1";

pub(crate) fn alpn(class: StreamClass) -> &'static [u8] {
    match class {
        StreamClass::Raft => ALPN_RAFT,
        StreamClass::Bulk => ALPN_BULK,
    }
}

/// Why one side closed a connection. A promise between versions: numbers are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseCode {
    /// Nothing is wrong: the conversation is over.
    Done = 0,
    /// The node at the other end is not, or no longer, a member.
    NotAMember = 1,
    /// This node is going down.
    Stopping = 2,
    /// A protocol or a certificate was missing.
    Unfit = 3,
    /// The peer has opened newer connections than this one.
    Superseded = 4,
    /// Too many of these at once: come again.
    Busy = 5,
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> VarInt {
        VarInt::from_u32(code as u32)
    }
}

/// What a stream is reset with: its side went away, or never understood what it was for.
pub(crate) const STREAM_DROPPED: VarInt = VarInt::from_u32(1);

/// What the end of a connection to `peer` means to whoever wanted a stream on it.
pub(crate) fn link_error(peer: NodeId, error: &ConnectionError) -> LinkError {
    let refused = |cause: String| LinkError::Refused { peer, cause };
    let unreachable = |cause: String| LinkError::Unreachable { peer, cause };
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = reason_text(&close.reason);
            let member_matter = [CloseCode::NotAMember, CloseCode::Unfit]
                .iter()
                .any(|code| close.error_code == VarInt::from(*code));
            if member_matter { refused(reason) } else { unreachable(reason) }
        }
        ConnectionError::TransportError(e) if is_tls_alert(e.code) => refused(e.reason.clone()),
        ConnectionError::ConnectionClosed(close) if is_tls_alert(close.error_code) => {
            refused(format!("it refused our certificate: {}", reason_text(&close.reason)))
        }
        ConnectionError::TimedOut => unreachable("no answer".into()),
        ConnectionError::Reset => unreachable("it has restarted".into()),
        other => unreachable(other.to_string()),
    }
}

pub(crate) fn is_tls_alert(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// The peer chose these bytes: short, and printable, before they reach a log.
pub(crate) fn reason_text(reason: &[u8]) -> String {
    const CHARS_MAX: usize = 300;
    let text = String::from_utf8_lossy(reason);
    text.chars().filter(|c| !c.is_control()).take(CHARS_MAX).collect()
}
