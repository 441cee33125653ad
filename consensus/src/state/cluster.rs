//! The `cluster` group: who belongs to the cluster and what all regions share.

use std::collections::BTreeMap;

use atoll_api::ids::{NodeId, OrganizationId, RegionName, RegionOrdinal, UserId, WarmPoolId};
use atoll_api::sandbox::Resources;
use atoll_api::tokens::TokenHash;
use serde::{Deserialize, Serialize};

mod apply;
mod query;
mod registries;
mod snapshots;
mod warm_pools;

#[cfg(test)]
mod tests;

pub use apply::JOIN_TOKEN_REMEMBERED_MS;
use apply::Judged;
pub use registries::{REGISTRIES_PER_ORGANIZATION_MAX, RegistryRecord};
pub use snapshots::{
    Activation, Listing, OwnSnapshots, SNAPSHOTS_PER_ORGANIZATION_MAX, SnapshotKey, SnapshotRecord,
    SnapshotReport, SnapshotSource, SnapshotState, UNLISTED_PER_ORGANIZATION_MAX, USE_RESOLUTION_MS,
};
pub use warm_pools::{WARM_PER_ORGANIZATION_MAX, WARM_PER_POOL_MAX, WARM_PER_REGION_MAX, WarmPoolRecord};

/// A replica of the cluster's state. Same commands in the same order give equal values, byte for byte.
/// Only [`ClusterState::apply`] changes it; the fields are public to be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    pub identity: Option<ClusterIdentity>,
    pub regions: BTreeMap<RegionName, RegionRecord>,
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Nodes that were removed: their certificates are refused for ever.
    pub removed_nodes: BTreeMap<NodeId, u64>,
    pub join_tokens: BTreeMap<TokenHash, JoinTokenRecord>,
    pub organizations: BTreeMap<OrganizationId, OrganizationRecord>,
    pub api_keys: BTreeMap<TokenHash, ApiKeyRecord>,
    /// Everybody's, by name.
    pub snapshots: BTreeMap<String, SnapshotRecord>,
    #[serde(default)]
    pub warm_pools: BTreeMap<WarmPoolId, WarmPoolRecord>,
    /// Those of organizations.
    #[serde(default)]
    pub own_snapshots: BTreeMap<OrganizationId, OwnSnapshots>,
    #[serde(default)]
    pub registries: BTreeMap<uuid::Uuid, RegistryRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdentity {
    pub cluster_id: uuid::Uuid,
    pub ca_certificate_pem: String,
    /// Sealed with the cluster secret, which is in no log.
    pub sealed_ca_key: Vec<u8>,
    pub sealed_ssh_host_key: Vec<u8>,
    pub created_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionRecord {
    pub ordinal: RegionOrdinal,
    /// The one node that may initialize the region's Raft group.
    pub founder: NodeId,
    pub created_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub name: String,
    pub region: RegionName,
    #[serde(default)]
    pub zone: Option<String>,
    pub addresses: NodeAddresses,
    pub capacity: NodeCapacity,
    /// Newest command version that this node understands.
    pub command_version: u32,
    pub joined_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddresses {
    /// `host:port`, UDP.
    pub mesh: String,
    /// Base URLs as clients see them.
    pub http: String,
    #[serde(default)]
    pub https: Option<String>,
    /// `host:port`.
    pub ssh: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCapacity {
    /// What may be promised to sandboxes, already multiplied by the node's overcommit.
    pub total: Resources,
    pub sandboxes_max: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenRecord {
    pub uses_left: u32,
    pub expires_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrganizationRecord {
    pub name: String,
    pub created_by: UserId,
    pub created_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKeyRecord {
    pub name: String,
    pub organization_id: OrganizationId,
    pub user_id: UserId,
    /// First and last three characters, for display.
    pub hint: String,
    pub may_administer: bool,
    pub created_at_ms: u64,
    #[serde(default)]
    pub expires_at_ms: Option<u64>,
}

/// Decisions about the cluster. Variants and fields are only ever added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterCommand {
    /// Once, on the first node. Rejected when the identity is set to another value.
    Found {
        identity: ClusterIdentity,
    },
    /// Said again, it does not give used uses back. Forgets tokens that expired long ago.
    CreateJoinToken {
        token_hash: TokenHash,
        uses: u32,
        expires_at_ms: u64,
        now_ms: u64,
    },
    /// Takes one use of the token (`None` only for the founding node, so only while there is no node) and admits the
    /// node. Idempotent by node id: a member takes no second use, and its record stays (see `UpdateNode`).
    /// A region that does not exist yet is created, founded by this node.
    AdmitNode {
        token_hash: Option<TokenHash>,
        node_id: NodeId,
        node: NodeRecord,
        now_ms: u64,
    },
    /// A node says where it is now and what it can hold (at every start).
    UpdateNode {
        node_id: NodeId,
        addresses: NodeAddresses,
        capacity: NodeCapacity,
        command_version: u32,
    },
    RemoveNode {
        node_id: NodeId,
        now_ms: u64,
    },
    PutOrganization {
        organization_id: OrganizationId,
        organization: OrganizationRecord,
    },
    /// Rejected (NotFound) unless the organization is there. Forgets keys that expired before this one was made.
    PutApiKey {
        key_hash: TokenHash,
        key: ApiKeyRecord,
    },
    /// Applied also when there is none.
    DeleteApiKey {
        key_hash: TokenHash,
    },
    /// One that is everybody's. Replaces the one with this name.
    PutSnapshot {
        name: String,
        snapshot: SnapshotRecord,
    },
    /// Everybody's. Applied also when there is none.
    DeleteSnapshot {
        name: String,
    },
    /// Rejected when the organization has one for this snapshot and region, and when together they would be too many.
    /// Applied again when it is there as it was asked for.
    CreateWarmPool {
        pool_id: WarmPoolId,
        pool: WarmPoolRecord,
    },
    /// 0 drains it.
    ResizeWarmPool {
        pool_id: WarmPoolId,
        size: u32,
        now_ms: u64,
    },
    /// Applied also when there is none.
    DeleteWarmPool {
        pool_id: WarmPoolId,
    },
    /// What keeps the pool from being full, as its region's leader sees it. Applied also when there is no such pool.
    NoteWarmPool {
        pool_id: WarmPoolId,
        error_reason: Option<String>,
    },
    /// One of an organization, mostly still to be made ready. Rejected when the name is taken by another one.
    CreateSnapshot {
        name: String,
        snapshot: Box<SnapshotRecord>,
    },
    /// A node begins to make it ready. Only the next attempt, and only of one that is not ready.
    ClaimSnapshot {
        key: SnapshotKey,
        attempt: u64,
        node_id: NodeId,
        now_ms: u64,
    },
    /// The end of the newest attempt; of any other it is rejected.
    ReportSnapshot {
        key: SnapshotKey,
        attempt: u64,
        report: SnapshotReport,
        now_ms: u64,
    },
    /// One whose attempt failed is to be tried again.
    RetrySnapshot {
        key: SnapshotKey,
        attempt: u64,
        now_ms: u64,
    },
    /// Only of one that is ready.
    ActivateSnapshot {
        key: SnapshotKey,
        activation: Activation,
        now_ms: u64,
    },
    /// It was used.
    TouchSnapshot {
        key: SnapshotKey,
        now_ms: u64,
    },
    /// Applied also when there is none. Sandboxes that were made of it stay.
    RemoveSnapshot {
        key: SnapshotKey,
    },
    PutRegistry {
        registry_id: uuid::Uuid,
        registry: RegistryRecord,
    },
    DeleteRegistry {
        registry_id: uuid::Uuid,
        organization_id: OrganizationId,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterOutcome {
    Applied,
    Rejected(ClusterRejection),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ClusterRejection {
    #[error("the cluster has been founded already")]
    AlreadyFounded,
    #[error("the join token is unknown")]
    JoinTokenUnknown,
    #[error("the join token has been used up")]
    JoinTokenUsedUp,
    #[error("the join token has expired")]
    JoinTokenExpired,
    #[error("the node was removed from the cluster")]
    NodeRemoved,
    #[error("the node is not a member")]
    NodeUnknown,
    #[error("a node named {0} exists already")]
    NodeNameTaken(String),
    #[error("the cluster has all {0} regions that ids can name")]
    TooManyRegions(u16),
    #[error("not found")]
    NotFound,
    /// A node that is a member asks to join another region: it must leave first.
    #[error("the node is a member in region {0}")]
    NodeInRegion(RegionName),
    #[error("there is no region {0}")]
    RegionUnknown(RegionName),
    /// The one that there is can be given another size.
    #[error("a warm pool of this snapshot exists already in this region: {0}")]
    WarmPoolExists(WarmPoolId),
    #[error("{0}")]
    TooManyWarm(String),
    #[error("a snapshot named {0} exists already")]
    SnapshotNameTaken(String),
    /// Not a state in which that can be done.
    #[error("the snapshot is {0}")]
    SnapshotIs(String),
    #[error("attempt {current} is the newest")]
    StaleAttempt { current: u64 },
    #[error("the organization has {0} snapshots already: delete some first")]
    TooManySnapshots(u64),
    #[error("the organization has {0} registries already: delete some first")]
    TooManyRegistries(u64),
}
