//! The shapes that openraft is told to replicate: batches of encoded commands, for every kind of group the same.

use serde::{Deserialize, Serialize};

use super::runtime::ConsensusRuntime;
use crate::disk::SnapshotFile;
use crate::sessions::{Bytes, ProposalId};

openraft::declare_raft_types!(
    /// One configuration for all groups: only the state machine differs.
    pub TypeConfig:
        D = Batch,
        R = Outcomes,
        NodeId = u64,
        Node = openraft::EmptyNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = SnapshotFile,
        AsyncRuntime = ConsensusRuntime,
);

pub type LogId = openraft::LogId<u64>;
pub type Vote = openraft::Vote<u64>;
pub type Entry = openraft::Entry<TypeConfig>;
pub type StorageError = openraft::StorageError<u64>;
pub type StoredMembership = openraft::StoredMembership<u64, openraft::EmptyNode>;
pub type SnapshotMeta = openraft::SnapshotMeta<u64, openraft::EmptyNode>;
pub type Snapshot = openraft::Snapshot<TypeConfig>;

/// One log entry: many commands, one sync.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub proposals: Vec<Proposal>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Version of the envelope, not of the command inside. A replica that does not know it stops.
    pub version: u32,
    pub id: ProposalId,
    /// [`atoll_api::wire`] of the group's command.
    pub command: Bytes,
}

impl Proposal {
    pub const VERSION: u32 = 1;
}

/// What came of each proposal of a batch, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes(pub Vec<Bytes>);
