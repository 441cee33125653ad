//! A `region/<r>` group: the region's sandboxes, who owns each, and the health of its nodes.

use std::collections::BTreeMap;

use atoll_api::ids::{Generation, NodeId, OrganizationId, RegionOrdinal, SandboxId};
use atoll_api::sandbox::{Desired, Phase, Placement, Resources, SandboxSpec};
use atoll_api::tokens::TokenHash;
use serde::{Deserialize, Serialize};

/// A replica of one region's state. Same commands in the same order give equal values, byte for byte.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionState {
    /// Set by the first command; ids of other regions are rejected.
    pub ordinal: Option<RegionOrdinal>,
    pub nodes: BTreeMap<NodeId, RegionNode>,
    pub sandboxes: BTreeMap<SandboxId, SandboxRecord>,
    /// Names are unique within an organization.
    pub names: BTreeMap<OrganizationId, BTreeMap<String, SandboxId>>,
    pub ssh_tokens: BTreeMap<TokenHash, SshTokenRecord>,
    pub preview_tokens: BTreeMap<TokenHash, PreviewTokenRecord>,
}

/// What placement may count on. Volatile load is not here: it travels in heartbeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionNode {
    pub total: Resources,
    pub sandboxes_max: u32,
    pub health: NodeHealth,
    pub changed_at_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeHealth {
    Ready,
    /// Takes no new sandboxes.
    Cordoned,
    /// Judged dead by the region's leader: its sandboxes are Lost until it returns or they are placed again.
    Down,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub organization_id: OrganizationId,
    pub name: String,
    pub spec: SandboxSpec,
    pub labels: BTreeMap<String, String>,
    pub public: bool,
    pub auto_stop_minutes: u32,
    pub auto_archive_minutes: u32,
    /// −1 never, 0 at stop.
    pub auto_delete_minutes: i32,
    pub preview_token_hash: TokenHash,
    pub desired: Desired,
    pub phase: Phase,
    pub placement: Placement,
    pub created_at_ms: u64,
    pub updated_at_ms: u64,
    /// Counts changes of `desired`, so that a report of an earlier wish is told from one of the newest.
    #[serde(default)]
    pub desired_version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshTokenRecord {
    pub sandbox_id: SandboxId,
    pub expires_at_ms: u64,
    pub created_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewTokenRecord {
    pub sandbox_id: SandboxId,
    pub port: u16,
    pub expires_at_ms: u64,
}

/// Decisions about a region. Variants and fields are only ever added. Every one is idempotent: a proposer that
/// lost its leader's answer may say it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegionCommand {
    /// Once, by the founder.
    FoundRegion {
        ordinal: RegionOrdinal,
    },
    /// A node offers its room, or changes it. Makes an unknown node Ready; leaves the health of a known one.
    OfferNode {
        node_id: NodeId,
        total: Resources,
        sandboxes_max: u32,
        now_ms: u64,
    },
    JudgeNode {
        node_id: NodeId,
        health: NodeHealth,
        now_ms: u64,
    },
    WithdrawNode {
        node_id: NodeId,
    },
    CreateSandbox {
        sandbox_id: SandboxId,
        sandbox: Box<NewSandbox>,
        now_ms: u64,
    },
    /// Accepted only with the record's generation + 1, or for a Pending one that nobody has started.
    PlaceSandbox {
        sandbox_id: SandboxId,
        placement: Placement,
        now_ms: u64,
    },
    SetDesired {
        sandbox_id: SandboxId,
        desired: Desired,
        now_ms: u64,
    },
    /// The owner's report. Ignored (Rejected::StaleGeneration) unless node and generation are the record's own.
    ReportPhase {
        sandbox_id: SandboxId,
        placement: Placement,
        desired_version: u64,
        phase: Phase,
        now_ms: u64,
    },
    /// The owner has removed everything of a sandbox that is to be deleted: the record goes.
    ReportDeleted {
        sandbox_id: SandboxId,
        placement: Placement,
    },
    SetLabels {
        sandbox_id: SandboxId,
        labels: BTreeMap<String, String>,
        now_ms: u64,
    },
    SetPublic {
        sandbox_id: SandboxId,
        public: bool,
        now_ms: u64,
    },
    SetIntervals {
        sandbox_id: SandboxId,
        intervals: Intervals,
        now_ms: u64,
    },
    /// Replaces every earlier SSH token of the sandbox, as the public API says it does.
    IssueSshToken {
        token_hash: TokenHash,
        sandbox_id: SandboxId,
        expires_at_ms: u64,
        now_ms: u64,
    },
    /// `None` revokes all of the sandbox's.
    RevokeSshTokens {
        sandbox_id: SandboxId,
        token_hash: Option<TokenHash>,
    },
    IssuePreviewToken {
        token_hash: TokenHash,
        sandbox_id: SandboxId,
        port: u16,
        expires_at_ms: u64,
    },
    RevokePreviewToken {
        sandbox_id: SandboxId,
        port: u16,
        token_hash: TokenHash,
    },
    /// Drops tokens that expired before `now_ms`; proposed by the leader on its tick.
    ExpireTokens {
        now_ms: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSandbox {
    pub organization_id: OrganizationId,
    pub name: String,
    pub spec: SandboxSpec,
    pub labels: BTreeMap<String, String>,
    pub public: bool,
    pub intervals: Intervals,
    pub preview_token_hash: TokenHash,
    pub node_id: NodeId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intervals {
    pub auto_stop_minutes: u32,
    pub auto_archive_minutes: u32,
    pub auto_delete_minutes: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegionOutcome {
    Applied,
    Rejected(RegionRejection),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RegionRejection {
    #[error("the id belongs to another region")]
    WrongRegion,
    #[error("sandbox not found")]
    NotFound,
    #[error("a sandbox named {0} exists already")]
    NameTaken(String),
    /// Another sandbox has this id.
    #[error("the id is taken")]
    IdTaken,
    #[error("the node is not a member of the region")]
    NodeUnknown,
    #[error("the node takes no sandboxes now")]
    NodeNotReady,
    #[error("the node has no room")]
    NoRoom,
    #[error("generation is {current}, not the one named")]
    StaleGeneration { current: Generation },
    #[error("the report answers an earlier wish")]
    StaleReport,
    #[error("the sandbox is being deleted")]
    Deleting,
}
