//! What the rest of a node may ask of a Raft group. Leaders, terms, retries and forwarding stay behind it.

use std::sync::Arc;

use atoll_api::ids::NodeId;
use atoll_api::wire;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::duties::Reign;
use crate::front::Front;
use crate::raft::Machine;
use crate::replicated::Replicated;
use crate::state::cluster::ClusterState;
use crate::state::region::RegionState;

pub type ClusterGroup = Group<ClusterState>;
pub type RegionGroup = Group<RegionState>;

/// A cheap handle to this node's replica of a group.
pub struct Group<S: Replicated> {
    machine: Machine<S>,
    front: Arc<Front>,
    reign: Reign,
}

impl<S: Replicated> Clone for Group<S> {
    fn clone(&self) -> Self {
        Group { machine: self.machine.clone(), front: Arc::clone(&self.front), reign: self.reign.clone() }
    }
}

impl<S: Replicated> Group<S> {
    pub(crate) fn new(machine: Machine<S>, front: Arc<Front>, reign: Reign) -> Group<S> {
        Group { machine, front, reign }
    }

    pub(crate) fn front(&self) -> &Arc<Front> {
        &self.front
    }

    /// Has the command decided by the group, wherever its leader is, and answers with what it did, which this node's
    /// [`Group::read`] shows from then on. It is retried over elections for [`crate::Timings::no_leader_after_ms`] and
    /// applied at most once.
    pub async fn propose(&self, command: S::Command) -> Result<S::Outcome, GroupError> {
        let command = wire::encode(&command).map_err(|error| self.not_understood(&error))?;
        let decided = self.front.propose(command).await?;
        let deadline = Instant::now() + self.front.answer_within();
        timeout_at(deadline, self.machine.until_applied(decided.index))
            .await
            .map_err(|_elapsed| self.front.no_leader())?;
        wire::decode(&decided.outcome.0).map_err(|error| self.not_understood(&error))
    }

    /// After this, [`Group::read`] sees every command that was answered anywhere before this call.
    pub async fn linearize(&self) -> Result<(), GroupError> {
        let deadline = Instant::now() + self.front.answer_within();
        let index = self.front.read_index().await?;
        timeout_at(deadline, self.machine.until_applied(index))
            .await
            .map_err(|_elapsed| self.front.no_leader())
    }

    /// Reads this node's replica as it is now, which may be behind. Must not block: applying waits for it.
    pub fn read<T>(&self, look: impl FnOnce(&S) -> T) -> T {
        self.machine.read(look)
    }

    /// Resolves at the next change of the local replica after the call.
    pub(crate) async fn changed(&self) {
        self.machine.changed().await;
    }

    /// The index of the last applied entry; changes after each change of the local replica.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.machine.changes()
    }

    pub fn status(&self) -> GroupStatus {
        let view = self.front.replica().view();
        GroupStatus {
            name: self.front.name().to_owned(),
            leader: view.leader,
            term: view.term,
            voters: view.voters.into_iter().collect(),
            learners: view.learners.into_iter().collect(),
            last_applied: view.last_applied,
        }
    }

    /// Whom this replica believes to lead; may be out of date.
    pub fn leader(&self) -> Option<NodeId> {
        self.front.replica().view().leader
    }

    pub fn is_leader(&self) -> bool {
        self.front.replica().view().leading
    }

    /// Since when this node has been leading without interruption.
    pub fn leader_since(&self) -> Option<Instant> {
        self.reign.since()
    }

    /// Outcomes are written by leaders of any version that this node may share a cluster with; not to understand one
    /// is an operator's mistake, and this node cannot go on.
    fn not_understood(&self, error: &wire::WireError) -> GroupError {
        GroupError::Stopped { group: self.front.name().to_owned(), cause: error.to_string() }
    }
}

/// Why a proposal or a linearizable read got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// No leader answered in time. Nothing is known of the proposal: it may have been applied.
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
