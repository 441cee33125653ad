//! One replica of one group: what the rest of the crate does with openraft.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use atoll_api::ids::NodeId;
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::Link;
use atoll_mesh::stream::{GroupName, StreamError};
use openraft::error::{CheckIsLeaderError, ClientWriteError, InitializeError, RaftError};
use openraft::{
    ChangeMembers, Config, EmptyNode, LogIdOptionExt, Raft, RaftMetrics, ServerState, SnapshotPolicy,
};
use tokio::sync::watch;

use super::log::LogStore;
use super::machine::Machine;
use super::network::{GroupNetwork, serve_rpcs, serve_snapshot};
use super::types::{Batch, TypeConfig};
use crate::consensus::{Compaction, Timings};
use crate::disk::{Disk, DiskWork};
use crate::replicated::Replicated;
use crate::sessions::Bytes;

const SNAPSHOT_WITHIN: Duration = Duration::from_secs(600);

pub struct ReplicaSetup {
    pub node_id: NodeId,
    pub group: GroupName,
    /// The group's space on the disk.
    pub space: String,
    pub timings: Timings,
    pub compaction: Compaction,
    pub disk: Arc<dyn Disk>,
    pub work: DiskWork,
    pub link: Arc<dyn Link>,
}

/// Clones are handles to the same replica.
#[derive(Clone)]
pub struct Replica {
    raft: Raft<TypeConfig>,
    network: GroupNetwork,
    node_id: NodeId,
    space: String,
    disk: Arc<dyn Disk>,
    work: DiskWork,
}

/// What the replica believes now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    pub leader: Option<NodeId>,
    pub leading: bool,
    pub term: u64,
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    /// The membership is between two sets of voters.
    pub changing: bool,
    pub last_log: Option<u64>,
    pub last_applied: Option<u64>,
    /// How far each member's log is known to equal the leader's. Empty unless leading.
    pub matched: BTreeMap<NodeId, Option<u64>>,
    /// Since when no quorum has answered the leader. `None` unless leading, or before the first answer.
    pub quorum_silent_for: Option<Duration>,
    /// Why the replica has ended.
    pub ended: Option<String>,
}

/// Why a replica could not decide something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotDecided {
    /// Ask there, or look again.
    NotLeader {
        leader: Option<NodeId>,
    },
    /// No quorum answered, or leadership was lost on the way.
    Unknown(String),
    Stopped(String),
}

impl Replica {
    /// Must be called on the runtime that is to run the replica.
    pub async fn open<S: Replicated>(setup: ReplicaSetup) -> anyhow::Result<(Replica, Machine<S>)> {
        let ReplicaSetup { node_id, group, space, timings, compaction, disk, work, link } = setup;
        let config = Config {
            cluster_name: space.clone(),
            heartbeat_interval: timings.heartbeat_ms,
            election_timeout_min: timings.election_min_ms,
            election_timeout_max: timings.election_max_ms,
            install_snapshot_timeout: u64::try_from(SNAPSHOT_WITHIN.as_millis()).unwrap_or(u64::MAX),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(compaction.snapshot_every_entries),
            max_in_snapshot_log_to_keep: compaction.entries_kept,
            replication_lag_threshold: compaction.snapshot_every_entries + compaction.entries_kept,
            ..Config::default()
        };
        let config = Arc::new(config.validate().context("the Raft timings contradict each other")?);
        let machine = {
            let (disk, space) = (Arc::clone(&disk), space.clone());
            work.run(move || Machine::open(disk, work, &space)).await.context("load the snapshot")?
        };
        let log = LogStore::new(Arc::clone(&disk), work, &space);
        let network = GroupNetwork::new(link, group, work, Duration::from_millis(timings.heartbeat_ms));
        let raft = Raft::new(node_id.0, config, network.clone(), log, machine.clone())
            .await
            .context("start Raft")?;
        Ok((Replica { raft, network, node_id, space, disk, work }, machine))
    }

    /// Does nothing if the replica has any history.
    pub async fn found(&self) -> anyhow::Result<()> {
        match self.raft.initialize(BTreeMap::from([(self.node_id.0, EmptyNode {})])).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(error).context("found the group"),
        }
    }

    /// Has a batch decided. Only the leader can; the outcomes are in the order of the proposals. With them comes the
    /// index of the entry that holds them.
    pub async fn write(&self, batch: Batch) -> Result<(Vec<Bytes>, u64), NotDecided> {
        match self.raft.client_write(batch).await {
            Ok(written) => Ok((written.data.0, written.log_id.index)),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                Err(NotDecided::NotLeader { leader: to.leader_id.map(NodeId) })
            }
            Err(RaftError::APIError(error @ ClientWriteError::ChangeMembershipError(_))) => {
                Err(NotDecided::Unknown(error.to_string()))
            }
            Err(RaftError::Fatal(fatal)) => Err(NotDecided::Stopped(fatal.to_string())),
        }
    }

    /// An index up to which a replica must have applied to see all that was answered before this call. Leader only.
    pub async fn read_index(&self) -> Result<u64, NotDecided> {
        match self.raft.get_read_log_id().await {
            Ok((read_log_id, _applied)) => Ok(read_log_id.index().unwrap_or(0)),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => {
                Err(NotDecided::NotLeader { leader: to.leader_id.map(NodeId) })
            }
            Err(RaftError::APIError(error @ CheckIsLeaderError::QuorumNotEnough(_))) => {
                Err(NotDecided::Unknown(error.to_string()))
            }
            Err(RaftError::Fatal(fatal)) => Err(NotDecided::Stopped(fatal.to_string())),
        }
    }

    pub fn view(&self) -> View {
        View::from(&*self.raft.metrics().borrow())
    }

    pub fn watch(&self) -> ViewWatch {
        ViewWatch(self.raft.metrics())
    }

    /// Leader only.
    pub async fn add_learners(&self, nodes: &BTreeSet<NodeId>) -> Result<(), String> {
        let nodes = nodes.iter().map(|node| (node.0, EmptyNode {})).collect();
        self.change(ChangeMembers::AddNodes(nodes), Demoted::StayLearners).await
    }

    /// Leader only; all must be members. Voters that are not among them stay as learners.
    pub async fn set_voters(&self, voters: &BTreeSet<NodeId>) -> Result<(), String> {
        let voters = voters.iter().map(|node| node.0).collect();
        self.change(ChangeMembers::ReplaceAllVoters(voters), Demoted::StayLearners).await
    }

    /// Leader only; none may be a voter.
    pub async fn drop_learners(&self, nodes: &BTreeSet<NodeId>) -> Result<(), String> {
        let nodes = nodes.iter().map(|node| node.0).collect();
        self.change(ChangeMembers::RemoveNodes(nodes), Demoted::Leave).await
    }

    async fn change(&self, changes: ChangeMembers<u64, EmptyNode>, demoted: Demoted) -> Result<(), String> {
        let retain = matches!(demoted, Demoted::StayLearners);
        self.raft.change_membership(changes, retain).await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// As leader of the term, says nothing to any peer until [`Replica::speak`], so that they elect another.
    pub fn silence(&self, term: u64) {
        self.network.silence(term);
    }

    pub fn speak(&self) {
        self.network.speak();
    }

    pub async fn serve_rpcs(&self, stream: ByteStream) -> Result<(), StreamError> {
        serve_rpcs(&self.raft, stream).await
    }

    pub async fn serve_snapshot(&self, stream: ByteStream) -> Result<(), StreamError> {
        serve_snapshot(&self.raft, Arc::clone(&self.disk), self.work, self.space.clone(), stream).await
    }

    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "the replica ended badly");
        }
    }
}

enum Demoted {
    StayLearners,
    Leave,
}

pub struct ViewWatch(watch::Receiver<RaftMetrics<u64, EmptyNode>>);

impl ViewWatch {
    /// Waits until something may have changed. An ended replica changes no more.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl From<&RaftMetrics<u64, EmptyNode>> for View {
    fn from(metrics: &RaftMetrics<u64, EmptyNode>) -> View {
        let membership = metrics.membership_config.membership();
        let nodes = |ids: &mut dyn Iterator<Item = u64>| ids.map(NodeId).collect();
        let matched = metrics.replication.iter().flatten();
        View {
            leader: metrics.current_leader.map(NodeId),
            leading: metrics.state == ServerState::Leader,
            term: metrics.current_term,
            voters: nodes(&mut membership.voter_ids()),
            learners: nodes(&mut membership.learner_ids()),
            changing: membership.get_joint_config().len() > 1,
            last_log: metrics.last_log_index,
            last_applied: metrics.last_applied.index(),
            matched: matched.map(|(node, matched)| (NodeId(*node), matched.index())).collect(),
            quorum_silent_for: metrics.millis_since_quorum_ack.map(Duration::from_millis),
            ended: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }
}
