//! What the rest of a node may ask of a Raft group. Leaders, terms, retries and forwarding stay behind it.

use atoll_api::ids::NodeId;

/// Why a proposal or a linearizable read got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// No leader could be reached in time. Nothing is known of the proposal: it may have been applied.
    #[error("no leader of {group} can be reached")]
    NoLeader { group: String },
    /// Too many proposals wait already; nothing was proposed.
    #[error("too many proposals wait for {group}")]
    Overloaded { group: String },
    /// This node's replica has stopped for good (storage failed): the process must end.
    #[error("the replica of {group} has stopped: {cause}")]
    Stopped { group: String, cause: String },
}

/// For `GET /api/cluster` and `atoll cluster status`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct GroupStatus {
    pub name: String,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    pub last_applied: Option<u64>,
}
