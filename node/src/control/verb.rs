//! The verbs: everything the API can ask, as values, so that one node can ask another to carry one out.
//! A door parses into a [`Verb`], calls [`Control::perform`] once, and maps the [`VerbAnswer`].

use std::collections::BTreeMap;

use async_trait::async_trait;
use atoll_api::access::Caller;
use atoll_api::ids::{NodeId, RegionName, RequestId, SandboxId, WarmPoolId};
use atoll_api::rest::BuildProgress;
use atoll_api::sandbox::{Egress, Resources};
use atoll_consensus::group::GroupStatus;
use atoll_consensus::state::cluster::{
    Activation, NodeRecord, RegistryRecord, SnapshotRecord, SnapshotSource, WarmPoolRecord,
};
use atoll_consensus::state::region::{NodeHealth, SandboxRecord};
use serde::{Deserialize, Serialize};

#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Bounded: answers within [`VERB_DEADLINE_MS`], whatever happens to other nodes.
    async fn perform(
        &self,
        caller: &Caller,
        request_id: &RequestId,
        verb: Verb,
    ) -> Result<VerbAnswer, VerbError>;
}

/// Longer than a cold create may take (30 s, as the public API has it), shorter than SDK time-outs (60 s).
pub const VERB_DEADLINE_MS: u64 = 40_000;

/// How a path names a sandbox. Something that parses as one of our ids is an id; all else is a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxReference {
    Id(SandboxId),
    Name(String),
}

impl SandboxReference {
    pub fn parse(text: &str) -> SandboxReference {
        text.parse().map(SandboxReference::Id).unwrap_or_else(|_| SandboxReference::Name(text.to_owned()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verb {
    /// Answers `Sandbox`, running or failed (with the reason), never half made; or still to be built.
    Create(CreateSandbox),
    /// Answers `Sandbox`.
    Get {
        sandbox: SandboxReference,
    },
    /// Answers `Page`.
    List(ListSandboxes),
    /// Each answers `Sandbox` as it is afterwards.
    Start {
        sandbox: SandboxReference,
    },
    Stop {
        sandbox: SandboxReference,
        force: bool,
    },
    Delete {
        sandbox: SandboxReference,
    },
    /// Only of one that runs. `Start` resumes it.
    Pause {
        sandbox: SandboxReference,
    },
    /// What it may reach; `None` leaves as it is. See [`atoll_api::egress::Change`].
    SetEgress {
        sandbox: SandboxReference,
        block_all: Option<bool>,
        networks: Option<String>,
        domains: Option<String>,
    },
    SetLabels {
        sandbox: SandboxReference,
        labels: BTreeMap<String, String>,
    },
    SetPublic {
        sandbox: SandboxReference,
        public: bool,
    },
    SetIntervals {
        sandbox: SandboxReference,
        change: IntervalChange,
    },
    /// Answers `PreviewToken`.
    PreviewToken {
        sandbox: SandboxReference,
        port: u16,
    },
    /// Answers `SignedPreview`.
    SignPreview {
        sandbox: SandboxReference,
        port: u16,
        expires_in_s: u64,
    },
    /// Answers `Done`.
    ExpirePreview {
        sandbox: SandboxReference,
        port: u16,
        token: String,
    },
    /// Each answers `SigningKey`: the newest.
    SigningKey {
        sandbox: SandboxReference,
    },
    RotateSigningKey {
        sandbox: SandboxReference,
    },
    /// Answers `SshAccess`. Revokes earlier ones.
    IssueSsh {
        sandbox: SandboxReference,
        expires_in_minutes: u64,
    },
    /// Answers `Sandbox`. No token: all of them.
    RevokeSsh {
        sandbox: SandboxReference,
        token: Option<String>,
    },
    /// Answers `SshValidity`.
    ValidateSsh {
        token: String,
    },
    /// Answers `Snapshots`: all that the caller's lists show.
    ListSnapshots,
    /// Each answers `Snapshots`: the one, as it is afterwards.
    GetSnapshot {
        id_or_name: String,
    },
    /// Answers `PushGrant`: a key of the caller's organization that ends soon, to push images with.
    GrantPush,
    CreateSnapshot(CreateSnapshot),
    ActivateSnapshot {
        id_or_name: String,
        activation: Activation,
    },
    /// Answers `Done`.
    DeleteSnapshot {
        id_or_name: String,
    },
    /// Answers `Registries`: all of the caller's.
    ListRegistries,
    /// Each answers `Registries`: the one, as it is afterwards.
    GetRegistry {
        registry_id: uuid::Uuid,
    },
    CreateRegistry(RegistryWish),
    UpdateRegistry {
        registry_id: uuid::Uuid,
        registry: RegistryWish,
    },
    /// Answers `Done`.
    DeleteRegistry {
        registry_id: uuid::Uuid,
    },
    /// Answers `Cluster`.
    ClusterStatus,
    /// Answers `JoinToken`. For administrators.
    CreateJoinToken {
        ttl_s: u64,
        uses: u32,
    },
    /// Answers `Done`. For administrators.
    RemoveNode {
        node_id: NodeId,
    },
    /// Answers `Done`: the sandbox was used.
    Touch {
        sandbox: SandboxReference,
    },
    /// Its disk becomes a snapshot in the catalogue. Answers `Sandbox`, as it is by then.
    Snapshot {
        sandbox: SandboxReference,
        name: String,
    },
    /// A new sandbox with its disk. Answers the new `Sandbox`, running or failed, or still to get its disk.
    Fork {
        sandbox: SandboxReference,
        name: Option<String>,
    },
    /// Each answers `Sandboxes`: those that were forked from it; the one that it was forked from and that one's own, nearest
    /// first.
    Forks {
        sandbox: SandboxReference,
    },
    Ancestors {
        sandbox: SandboxReference,
    },
    /// Answers `Sandbox`. Only of one that is stopped. `Start` brings it back.
    Archive {
        sandbox: SandboxReference,
    },
    /// Answers `WarmPools`: the organization's.
    ListWarmPools,
    /// Answers `WarmPool`. The snapshot is named by id or name.
    CreateWarmPool {
        snapshot: String,
        size: u32,
        /// Region's name; `None`: the region of the node that was asked.
        target: Option<RegionName>,
    },
    /// Answers `WarmPool`.
    ResizeWarmPool {
        pool_id: WarmPoolId,
        size: u32,
    },
    /// Answers `Done`.
    DeleteWarmPool {
        pool_id: WarmPoolId,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSandbox {
    pub name: Option<String>,
    /// `None`: the default snapshot.
    pub snapshot: Option<String>,
    /// Instead of a snapshot.
    #[serde(default)]
    pub build: Option<BuildWish>,
    pub user: Option<String>,
    pub env: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    pub public: bool,
    #[serde(default)]
    pub egress: Egress,
    /// Region's name; `None`: the region of the node that was asked.
    pub target: Option<RegionName>,
    pub cpu: Option<u32>,
    pub memory_gib: Option<u32>,
    pub disk_gib: Option<u32>,
    pub auto_stop_minutes: Option<u32>,
    #[serde(default)]
    pub auto_pause_minutes: Option<u32>,
    pub auto_archive_minutes: Option<u32>,
    pub auto_delete_minutes: Option<i32>,
}

/// An image to be built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildWish {
    pub dockerfile: String,
    /// Of what was uploaded for it, as the SDK names it.
    pub context_hashes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSnapshot {
    pub name: String,
    pub source: SnapshotSource,
    /// Empty: the image's own.
    pub entrypoint: Vec<String>,
    pub cpu: Option<u32>,
    pub memory_gib: Option<u32>,
    pub disk_gib: Option<u32>,
    /// `None`: everywhere.
    pub region: Option<RegionName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryWish {
    pub name: String,
    pub url: String,
    /// As images name it.
    pub host: String,
    pub username: String,
    /// `None`: stays as it is.
    pub password: Option<Password>,
    /// `None`: stays as it is.
    pub project: Option<String>,
}

/// Never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Password(pub String);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(…)")
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSandboxes {
    /// Opaque, as an earlier answer gave it.
    pub cursor: Option<String>,
    /// 1 to 200.
    pub limit: u32,
    /// Prefix of the id / of the name.
    pub id_prefix: Option<String>,
    pub name_prefix: Option<String>,
    /// Every pair must be there.
    pub labels: BTreeMap<String, String>,
    /// Public state names (`started`, `stopped`, …); empty: all but destroyed.
    pub states: Vec<String>,
    pub snapshots: Vec<String>,
    /// Empty: every region.
    pub regions: Vec<RegionName>,
}

/// In minutes: how long a sandbox is idle before it is stopped or paused, stopped before it is archived or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IntervalChange {
    Stop(u32),
    Pause(u32),
    Archive(u32),
    Delete(i32),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VerbAnswer {
    Sandbox(Box<SandboxView>),
    Sandboxes(Vec<SandboxView>),
    Page(SandboxPage),
    PreviewToken { sandbox_id: SandboxId, port: u16, token: String },
    SignedPreview { sandbox_id: SandboxId, port: u16, token: String },
    SigningKey(Password),
    SshAccess { id: uuid::Uuid, sandbox_id: SandboxId, token: String, created_at_ms: u64, expires_at_ms: u64 },
    SshValidity { sandbox_id: Option<SandboxId> },
    Snapshots(Vec<(String, SnapshotRecord)>),
    Registries(Vec<(uuid::Uuid, RegistryRecord)>),
    Cluster(ClusterView),
    JoinToken { token: String, expires_at_ms: u64 },
    PushGrant { secret: String, expires_at_ms: u64 },
    WarmPools { pools: Vec<WarmPoolView>, unreachable_regions: Vec<RegionName> },
    WarmPool(Box<WarmPoolView>),
    Done,
}

/// A warm pool, with what its members are like and how many are ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmPoolView {
    pub pool_id: WarmPoolId,
    pub record: WarmPoolRecord,
    /// All 0, and no user, when the snapshot is gone.
    pub resources: Resources,
    pub user: String,
    pub current_size: u32,
}

/// A sandbox as its region knows it. After a delete, `record.desired` is `Deleted`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxView {
    pub sandbox_id: SandboxId,
    pub region: RegionName,
    pub record: SandboxRecord,
    pub last_activity_at_ms: u64,
    /// Of one that was made from a Dockerfile.
    #[serde(default)]
    pub build: Option<BuildView>,
}

/// A build, as the catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildView {
    pub snapshot_id: uuid::Uuid,
    pub dockerfile: String,
    pub context_hashes: Vec<String>,
    pub created_at_ms: u64,
    pub updated_at_ms: u64,
    /// Empty until it is built.
    pub image: String,
    pub progress: BuildProgress,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxPage {
    pub items: Vec<SandboxView>,
    pub next_cursor: Option<String>,
    /// Regions that could not be asked; the door names them in a header.
    pub unreachable_regions: Vec<RegionName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    pub cluster_id: uuid::Uuid,
    pub nodes: Vec<NodeView>,
    pub groups: Vec<GroupStatusView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    pub node_id: NodeId,
    pub record: NodeRecord,
    /// As the node's region judges it; `None` when that region cannot be asked.
    pub health: Option<NodeHealth>,
    pub sandboxes: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatusView {
    pub name: String,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    pub last_applied: Option<u64>,
}

impl From<GroupStatus> for GroupStatusView {
    fn from(status: GroupStatus) -> Self {
        let GroupStatus { name, leader, term, voters, learners, last_applied } = status;
        GroupStatusView { name, leader, term, voters, learners, last_applied }
    }
}

/// Named by who must act. The doors turn each into a status in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum VerbError {
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    /// No node can take it now; the message says why each was passed over.
    #[error("{0}")]
    NoRoom(String),
    /// Try again: no leader, region unreachable, too many proposals.
    #[error("{message}")]
    Unavailable { message: String, retry_after_s: u32 },
    #[error("{0}")]
    TimedOut(String),
    #[error("internal error: {0}")]
    Internal(String),
}
