//! What a stream between nodes is for: the header that opens it, and length-prefixed messages on it.
//!
//! A header is `len: u16 big endian` and `len` bytes of [`atoll_api::wire`]; at most [`HEADER_BYTES_MAX`].
//! A message is `len: u32 big endian` and `len` bytes; the reader names the most it takes.

use atoll_api::access::Target;
use atoll_api::ids::{Generation, RegionName, RequestId, SandboxId};
use serde::{Deserialize, Serialize};

pub const HEADER_BYTES_MAX: usize = 1024;

/// Which Raft group. One `cluster`, one per region.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GroupName {
    Cluster,
    Region(RegionName),
}

/// Raft has a connection of its own, so that heartbeats and appends never queue behind data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamClass {
    Raft,
    Bulk,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamHeader {
    /// Raft RPCs of one group: request and answer messages, owned by `consensus`.
    Raft { group: GroupName },
    /// One snapshot of a group's state on its way to a replica that lags, owned by `consensus`.
    RaftSnapshot { group: GroupName },
    /// Proposals and read-index questions for a group's leader: request and answer messages, owned by `consensus`.
    Propose { group: GroupName },
    /// Bytes to and from a sandbox that the receiver owns. One answer message (`TunnelAnswer`), then raw bytes.
    Tunnel { sandbox_id: SandboxId, generation: Generation, target: Target, request_id: RequestId },
    /// A control verb to be carried out in the receiver's region, owned by `node`.
    Forward { request_id: RequestId },
    /// What the receiver's region knows of a sandbox or token, owned by `node`.
    Locate,
    /// Liveness and load, owned by `node`.
    Heartbeat,
}

impl StreamHeader {
    pub fn class(&self) -> StreamClass {
        match self {
            StreamHeader::Raft { .. } | StreamHeader::Propose { .. } | StreamHeader::Heartbeat => {
                StreamClass::Raft
            }
            StreamHeader::RaftSnapshot { .. }
            | StreamHeader::Tunnel { .. }
            | StreamHeader::Forward { .. }
            | StreamHeader::Locate => StreamClass::Bulk,
        }
    }
}
