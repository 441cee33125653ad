//! A node's part in every Raft group it belongs to: opens replicas, serves peers, tells when one has died.

use std::path::PathBuf;
use std::sync::Arc;

use atoll_api::ids::{NodeId, RegionName};
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::Link;
use atoll_mesh::stream::{GroupName, StreamHeader};

use crate::group::{ClusterGroup, GroupStatus, RegionGroup};

pub struct ConsensusConfig {
    pub node_id: NodeId,
    /// Logs and snapshots live below it; nothing else may.
    pub data_dir: PathBuf,
    pub timings: Timings,
    pub compaction: Compaction,
    /// Everything of Raft runs here, so that busy proxies cause no elections.
    pub runtime: tokio::runtime::Handle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// Also the deadline of each append: above the slowest sync plus a round trip.
    pub heartbeat_ms: u64,
    pub election_min_ms: u64,
    /// Followers trust a silent leader this long, then wait `election_min_ms..election_max_ms` more.
    pub election_max_ms: u64,
    /// How long a proposal or a linearizable read waits for any leader.
    pub no_leader_after_ms: u64,
    /// How long a proposal is tried over and over when leaders come and go.
    pub propose_within_ms: u64,
}

impl Default for Timings {
    fn default() -> Timings {
        Timings {
            heartbeat_ms: 100,
            election_min_ms: 300,
            election_max_ms: 600,
            no_leader_after_ms: 3_000,
            propose_within_ms: 5_000,
        }
    }
}

/// When a replica's log is folded into a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    pub snapshot_every_entries: u64,
    /// Entries that stay in the log behind a snapshot, for followers that lag a little.
    pub entries_kept: u64,
}

impl Default for Compaction {
    fn default() -> Compaction {
        Compaction { snapshot_every_entries: 5_000, entries_kept: 1_000 }
    }
}

/// A cheap handle; all clones are the same node.
#[derive(Clone)]
pub struct Consensus {}

impl Consensus {
    /// Opens the storage (one process at a time) and the local replicas that exist. The `cluster` group is always hosted.
    pub async fn open(_config: ConsensusConfig, _link: Arc<dyn Link>) -> anyhow::Result<Consensus> {
        todo!()
    }

    /// Opens or creates this node's replica of the group. A new one stays silent until a leader adds it, or `found`.
    pub async fn host(&self, _group: GroupName) -> anyhow::Result<()> {
        todo!()
    }

    /// Makes this node the sole voter of a group that nobody has founded. Does nothing if the replica has any history.
    pub async fn found(&self, _group: GroupName) -> anyhow::Result<()> {
        todo!()
    }

    pub fn cluster(&self) -> ClusterGroup {
        todo!()
    }

    /// `None` unless this node hosts the region.
    pub fn region(&self, _region: &RegionName) -> Option<RegionGroup> {
        todo!()
    }

    /// Serves a stream that a peer opened with a `Raft`, `RaftSnapshot` or `Propose` header, to its end.
    pub async fn serve(&self, _peer: NodeId, _header: StreamHeader, _stream: ByteStream) {
        todo!()
    }

    pub fn statuses(&self) -> Vec<GroupStatus> {
        todo!()
    }

    /// Resolves, with the cause, when a replica has died: the process must end then.
    pub async fn stopped(&self) -> String {
        todo!()
    }

    /// Ends all replicas. Proposals in flight are lost or not, as in a crash.
    pub async fn shutdown(&self) {
        todo!()
    }
}
