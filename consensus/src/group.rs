//! What the rest of a node may ask of a Raft group. Leaders, terms, retries and forwarding stay behind it.

use std::marker::PhantomData;

use atoll_api::ids::NodeId;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::replicated::Replicated;
use crate::state::cluster::ClusterState;
use crate::state::region::RegionState;

pub type ClusterGroup = Group<ClusterState>;
pub type RegionGroup = Group<RegionState>;

/// A cheap handle to this node's replica of a group.
pub struct Group<S: Replicated> {
    state: PhantomData<S>,
}

impl<S: Replicated> Clone for Group<S> {
    fn clone(&self) -> Self {
        todo!()
    }
}

impl<S: Replicated> Group<S> {
    /// Has the command decided by the group, wherever its leader is, exactly once, and answers with what it did.
    /// Retries over elections until the deadlines of [`crate::Timings`].
    pub async fn propose(&self, _command: S::Command) -> Result<S::Outcome, GroupError> {
        todo!()
    }

    /// After this, [`Group::read`] sees every command that was answered anywhere before this call.
    pub async fn linearize(&self) -> Result<(), GroupError> {
        todo!()
    }

    /// Reads this node's replica as it is now, which may be behind. Must not block: applying waits for it.
    pub fn read<T>(&self, _look: impl FnOnce(&S) -> T) -> T {
        todo!()
    }

    /// The index of the last applied entry; changes after each change of the local replica.
    pub fn changes(&self) -> watch::Receiver<u64> {
        todo!()
    }

    pub fn status(&self) -> GroupStatus {
        todo!()
    }

    pub fn leader(&self) -> Option<NodeId> {
        todo!()
    }

    pub fn is_leader(&self) -> bool {
        todo!()
    }

    /// Since when this node has been leading, without interruption.
    pub fn leader_since(&self) -> Option<Instant> {
        todo!()
    }
}

/// Why a proposal or a linearizable read got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// No leader could be reached in time. Nothing is known of the proposal: it may have been applied.
    #[error("no leader of {group} can be reached")]
    NoLeader { group: String },
    /// Too many proposals wait already; nothing was proposed.
    #[error("too many proposals wait for {group}")]
    Overloaded { group: String },
    /// The command is too big for the log; nothing was proposed.
    #[error("a command of {bytes} bytes is too big for {group}, which takes {bytes_max}")]
    TooLarge { group: String, bytes: usize, bytes_max: usize },
    /// This node's replica has stopped for good (storage failed): the process must end.
    #[error("the replica of {group} has stopped: {cause}")]
    Stopped { group: String, cause: String },
}

/// For `GET /api/cluster` and `atoll cluster status`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct GroupStatus {
    /// `cluster` or `region/<name>`.
    pub name: String,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    pub last_applied: Option<u64>,
}
