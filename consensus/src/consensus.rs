//! A node's part in every Raft group it belongs to: opens replicas, serves peers, tells when one has died.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use atoll_api::ids::{NodeId, RegionName};
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::Link;
use atoll_mesh::stream::{GroupName, StreamHeader};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::calls::Caller;
use crate::disk::sled::SledDisk;
use crate::disk::{Disk, DiskWork};
use crate::duties::{Leadership, Reign, WantedMembers, keep_membership, watch_replica};
use crate::front::{Front, FrontSetup};
use crate::group::{ClusterGroup, Group, GroupStatus, RegionGroup};
use crate::membership::Member;
use crate::raft::{Replica, ReplicaSetup, decodes};
use crate::replicated::Replicated;
use crate::state::cluster::ClusterState;

const CLUSTER_SPACE: &str = "cluster";
const REGION_SPACE_PREFIX: &str = "region/";

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
    /// How long a proposal or a linearizable read is tried, over elections, before `NoLeader`.
    pub no_leader_after_ms: u64,
}

impl Default for Timings {
    fn default() -> Timings {
        Timings { heartbeat_ms: 100, election_min_ms: 300, election_max_ms: 600, no_leader_after_ms: 3_000 }
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
pub struct Consensus {
    node: Arc<Node>,
}

struct Node {
    host: Host,
    cluster: ClusterGroup,
    regions: RwLock<BTreeMap<RegionName, RegionGroup>>,
    hosting: tokio::sync::Mutex<()>,
}

/// What opening one more replica takes.
struct Host {
    node_id: NodeId,
    timings: Timings,
    compaction: Compaction,
    runtime: tokio::runtime::Handle,
    link: Arc<dyn Link>,
    disk: Arc<dyn Disk>,
    work: DiskWork,
    ended: watch::Sender<Option<String>>,
    cancelled: CancellationToken,
    tasks: TaskTracker,
}

impl Consensus {
    /// Opens the storage (one process at a time) and the local replicas that exist. `cluster` is always hosted.
    pub async fn open(config: ConsensusConfig, link: Arc<dyn Link>) -> anyhow::Result<Consensus> {
        let data_dir = config.data_dir.clone();
        let opened = config.runtime.spawn_blocking(move || SledDisk::open(&data_dir)).await;
        let disk = opened.context("open the storage")??;
        Consensus::open_on(config, link, Arc::new(disk), DiskWork::Threads).await
    }

    /// As [`Consensus::open`], on a disk of the caller's choice; `data_dir` is not used.
    pub async fn open_on(
        config: ConsensusConfig,
        link: Arc<dyn Link>,
        disk: Arc<dyn Disk>,
        work: DiskWork,
    ) -> anyhow::Result<Consensus> {
        let ConsensusConfig { node_id, data_dir: _, timings, compaction, runtime } = config;
        let spaces = {
            let disk = Arc::clone(&disk);
            work.run(move || disk.spaces()).await.context("read the storage")?
        };
        let host = Host {
            node_id,
            timings,
            compaction,
            runtime,
            link,
            disk,
            work,
            ended: watch::Sender::new(None),
            cancelled: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let cluster = host.open_group::<ClusterState>(&GroupName::Cluster).await?;
        host.keep_membership(&cluster, ClusterNodes(cluster.clone()));
        let node = Node { host, cluster, regions: RwLock::default(), hosting: tokio::sync::Mutex::default() };
        let consensus = Consensus { node: Arc::new(node) };
        for region in spaces.iter().filter_map(|space| space.strip_prefix(REGION_SPACE_PREFIX)) {
            let region = region.parse().with_context(|| format!("the storage names a region {region:?}"))?;
            consensus.host(GroupName::Region(region)).await?;
        }
        Ok(consensus)
    }

    /// Opens or creates this node's replica of the group. A new one stays silent until a leader adds it, or `found`.
    pub async fn host(&self, group: GroupName) -> anyhow::Result<()> {
        let GroupName::Region(region) = &group else { return Ok(()) };
        let _one_at_a_time = self.node.hosting.lock().await;
        if self.region(region).is_some() {
            return Ok(());
        }
        let opened = self.node.host.open_group(&group).await?;
        let wanted = RegionNodes { cluster: self.cluster(), region: region.clone() };
        self.node.host.keep_membership(&opened, wanted);
        self.node.regions.write().unwrap_or_else(PoisonError::into_inner).insert(region.clone(), opened);
        Ok(())
    }

    /// Makes this node the sole voter of a group that nobody has founded. Does nothing if the replica has any history.
    pub async fn found(&self, group: GroupName) -> anyhow::Result<()> {
        self.host(group.clone()).await?;
        let front = self.front(&group).context("the group was hosted just now")?;
        front.replica().found().await
    }

    pub fn cluster(&self) -> ClusterGroup {
        self.node.cluster.clone()
    }

    /// `None` unless this node hosts the region.
    pub fn region(&self, region: &RegionName) -> Option<RegionGroup> {
        self.node.regions.read().unwrap_or_else(PoisonError::into_inner).get(region).cloned()
    }

    /// Serves a stream that a peer opened with a `Raft`, `RaftSnapshot` or `Propose` header, to its end.
    pub async fn serve(&self, peer: NodeId, header: StreamHeader, stream: ByteStream) {
        let (StreamHeader::Raft { group }
        | StreamHeader::RaftSnapshot { group }
        | StreamHeader::Propose { group }) = &header
        else {
            tracing::warn!(%peer, ?header, "a stream for somebody else");
            return;
        };
        let Some(front) = self.front(group) else {
            tracing::debug!(%peer, ?group, "a stream for a group that is not hosted here");
            return;
        };
        let cancelled = self.node.host.cancelled.clone();
        let served = async move {
            let served = async {
                match header {
                    StreamHeader::Raft { .. } => front.replica().serve_rpcs(stream).await,
                    StreamHeader::RaftSnapshot { .. } => front.replica().serve_snapshot(stream).await,
                    _ => front.serve(stream).await,
                }
            };
            if let Some(Err(error)) = cancelled.run_until_cancelled(served).await {
                tracing::debug!(%peer, %error, "a peer's stream broke");
            }
        };
        // On Raft's runtime, whoever has accepted the stream.
        let served = AbortOnDropHandle::new(self.node.host.tasks.spawn_on(served, &self.node.host.runtime));
        if let Err(error) = served.await {
            tracing::error!(%peer, %error, "serving a peer's stream failed");
        }
    }

    pub fn statuses(&self) -> Vec<GroupStatus> {
        let regions = self.node.regions.read().unwrap_or_else(PoisonError::into_inner);
        std::iter::once(self.node.cluster.status()).chain(regions.values().map(Group::status)).collect()
    }

    /// Resolves, with the cause, when a replica has died: the process must end then.
    pub async fn stopped(&self) -> String {
        let mut ended = self.node.host.ended.subscribe();
        match ended.wait_for(Option::is_some).await.map(|cause| cause.clone()) {
            Ok(Some(cause)) => cause,
            // `self` holds the sender, and the condition says there is a cause.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Ends all replicas. Proposals in flight are lost or not, as in a crash.
    pub async fn shutdown(&self) {
        let host = &self.node.host;
        host.cancelled.cancel();
        let regions: Vec<RegionGroup> =
            self.node.regions.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for region in regions {
            region.front().replica().shutdown().await;
        }
        self.node.cluster.front().replica().shutdown().await;
        host.tasks.close();
        host.tasks.wait().await;
    }

    fn front(&self, group: &GroupName) -> Option<Arc<Front>> {
        match group {
            GroupName::Cluster => Some(Arc::clone(self.node.cluster.front())),
            GroupName::Region(region) => self.region(region).map(|group| Arc::clone(group.front())),
        }
    }
}

impl Host {
    async fn open_group<S: Replicated>(&self, group: &GroupName) -> anyhow::Result<Group<S>> {
        let space = space(group);
        let setup = ReplicaSetup {
            node_id: self.node_id,
            group: group.clone(),
            space: space.clone(),
            timings: self.timings,
            compaction: self.compaction,
            disk: Arc::clone(&self.disk),
            work: self.work,
            link: Arc::clone(&self.link),
        };
        // openraft spawns where it is started.
        let opening = AbortOnDropHandle::new(self.runtime.spawn(Replica::open::<S>(setup)));
        let opened = opening.await.context("open the replica")?;
        let (replica, machine) = opened.with_context(|| format!("open the replica of {space}"))?;
        let leadership = Arc::<Leadership>::default();
        let (front, queues) = Front::new(FrontSetup {
            name: space.clone(),
            replica: replica.clone(),
            leadership: Arc::clone(&leadership),
            caller: Caller::new(Arc::clone(&self.link), StreamHeader::Propose { group: group.clone() }),
            answer_within: Duration::from_millis(self.timings.no_leader_after_ms),
            is_command: decodes::<S>,
        });
        let (front, reign) = (Arc::new(front), Reign::default());
        self.spawn(Arc::clone(&front).carry_all(queues));
        self.spawn(watch_replica(
            space,
            replica,
            reign.clone(),
            leadership,
            self.timings,
            self.ended.clone(),
        ));
        Ok(Group::new(machine, front, reign))
    }

    fn keep_membership<S: Replicated>(&self, group: &Group<S>, wanted: impl WantedMembers) {
        let front = group.front();
        self.spawn(keep_membership(front.name().to_owned(), front.replica().clone(), wanted));
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cancelled = self.cancelled.clone();
        let task = async move {
            cancelled.run_until_cancelled(task).await;
        };
        self.tasks.spawn_on(task, &self.runtime);
    }
}

struct ClusterNodes(ClusterGroup);

impl WantedMembers for ClusterNodes {
    fn members(&self) -> BTreeMap<NodeId, Member> {
        self.0
            .read(|state| state.nodes.iter().map(|(node_id, node)| (*node_id, Member::from(node))).collect())
    }

    async fn changed(&self) {
        self.0.changed().await;
    }
}

struct RegionNodes {
    cluster: ClusterGroup,
    region: RegionName,
}

impl WantedMembers for RegionNodes {
    fn members(&self) -> BTreeMap<NodeId, Member> {
        self.cluster.read(|state| {
            let nodes = state.nodes.iter().filter(|(_, node)| node.region == self.region);
            nodes.map(|(node_id, node)| (*node_id, Member::from(node))).collect()
        })
    }

    async fn changed(&self) {
        self.cluster.changed().await;
    }
}

fn space(group: &GroupName) -> String {
    match group {
        GroupName::Cluster => CLUSTER_SPACE.to_owned(),
        GroupName::Region(region) => format!("{REGION_SPACE_PREFIX}{region}"),
    }
}
