//! A `region/<r>` group: the region's sandboxes, who owns each, and the health of its nodes.

use std::collections::BTreeMap;

use atoll_api::ids::{ClaimId, Generation, NodeId, OrganizationId, RegionOrdinal, SandboxId, WarmPoolId};
use atoll_api::sandbox::{Desired, Egress, Phase, Placement, Resources, SandboxSpec};
use atoll_api::tokens::TokenHash;
use serde::{Deserialize, Serialize};

mod apply;
mod build;
mod capture;
mod index;
mod invariants;
mod query;

#[cfg(test)]
pub(crate) mod tests;

pub use apply::{PREVIEW_TOKENS_PER_SANDBOX_MAX, REPEAT_WINDOW_MS};
pub use build::BuildOutcome;
pub use capture::{CAPTURES_MAX, CaptureOutcome, CapturePurpose, Checkpoint, Disk, SnapshotTaken};
pub use index::NodeUsage;
pub use query::{Cursor, Page, SandboxFilter, is_claimable_as};

/// A replica of one region's state. Same commands in the same order give equal values, byte for byte.
/// Only [`RegionState::apply`] changes it; the fields are public to be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredRegion")]
pub struct RegionState {
    /// Set by the first command; ids of other regions are rejected.
    pub ordinal: Option<RegionOrdinal>,
    pub nodes: BTreeMap<NodeId, RegionNode>,
    pub sandboxes: BTreeMap<SandboxId, SandboxRecord>,
    /// Names are unique within an organization.
    pub names: BTreeMap<OrganizationId, BTreeMap<String, SandboxId>>,
    pub ssh_tokens: BTreeMap<TokenHash, SshTokenRecord>,
    pub preview_tokens: BTreeMap<TokenHash, PreviewTokenRecord>,
    /// Sandboxes that are gone but young enough that a repeated `CreateSandbox` could bring them back: when each may
    /// be forgotten (milliseconds since the epoch).
    pub tombstones: BTreeMap<SandboxId, u64>,
    /// Follows from the fields above, so it is never stored.
    #[serde(skip_serializing)]
    index: index::Index,
}

/// [`RegionState`] as it is stored: without what can be computed.
#[derive(Deserialize)]
struct StoredRegion {
    ordinal: Option<RegionOrdinal>,
    nodes: BTreeMap<NodeId, RegionNode>,
    sandboxes: BTreeMap<SandboxId, SandboxRecord>,
    names: BTreeMap<OrganizationId, BTreeMap<String, SandboxId>>,
    ssh_tokens: BTreeMap<TokenHash, SshTokenRecord>,
    preview_tokens: BTreeMap<TokenHash, PreviewTokenRecord>,
    #[serde(default)]
    tombstones: BTreeMap<SandboxId, u64>,
}

impl From<StoredRegion> for RegionState {
    fn from(stored: StoredRegion) -> Self {
        let StoredRegion { ordinal, nodes, sandboxes, names, ssh_tokens, preview_tokens, tombstones } =
            stored;
        let index = index::Index::default();
        let mut state =
            RegionState { ordinal, nodes, sandboxes, names, ssh_tokens, preview_tokens, tombstones, index };
        state.index = index::Index::of(&state);
        state
    }
}

/// What placement may count on. Volatile load is not here: it travels in heartbeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionNode {
    pub total: Resources,
    pub sandboxes_max: u32,
    pub health: NodeHealth,
    /// When `health` last changed.
    pub changed_at_ms: u64,
    /// An operator wants no new sandboxes here. Outlives `Down`: on its return the node is Cordoned, not Ready.
    #[serde(default)]
    pub cordoned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeHealth {
    Ready,
    /// Takes no new sandboxes.
    Cordoned,
    /// Judged dead by the region's leader: its sandboxes are Lost until their owner reports again or they are placed
    /// again. Pending ones stay Pending (nobody has started them) and Failed ones keep their reason.
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
    /// 0 never.
    #[serde(default)]
    pub auto_pause_minutes: u32,
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
    #[serde(default)]
    pub disk: Disk,
    /// It is a fork of this one, which may be gone by now.
    #[serde(default)]
    pub parent: Option<SandboxId>,
    /// Its image was, or is to be, built for it: as this snapshot of the catalogue, which may be gone by now.
    #[serde(default)]
    pub build: Option<uuid::Uuid>,
    /// What its disk is still to be taken for, by the number of the capture.
    #[serde(default)]
    pub captures: BTreeMap<u64, CapturePurpose>,
    /// Captures that were asked for, ever.
    #[serde(default)]
    pub captures_asked: u64,
    /// The last snapshot that was to be made of it, once that has ended.
    #[serde(default)]
    pub snapshot_taken: Option<SnapshotTaken>,
    /// Why it was not archived when that was last wished.
    #[serde(default)]
    pub archive_failure: Option<String>,
    /// The wish by which its disk was last made again from a checkpoint; 0: never.
    #[serde(default)]
    pub restored_version: u64,
    /// `None`: it was made for whoever asked for it.
    #[serde(default)]
    pub warm: Option<Warm>,
    /// Counts the keys that links to its files were signed with; see [`atoll_api::file_link`].
    #[serde(default)]
    pub signing_key_version: u32,
}

/// A sandbox that was made for a warm pool. Until somebody claims it, it is a member of the pool: its organization's, but in
/// no list, under no name, and nobody's to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warm {
    pub pool_id: WarmPoolId,
    /// The create that it was given to.
    #[serde(default)]
    pub claim_id: Option<ClaimId>,
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
    /// `Down` turns the phases of the node's sandboxes to Lost, their `desired` stays. `Ready` and `Cordoned` leave them
    /// Lost: what is true of them only their owner can say, by `ReportPhase`.
    JudgeNode {
        node_id: NodeId,
        health: NodeHealth,
        now_ms: u64,
    },
    /// The node goes for good. Rejected while sandboxes are placed there; those that are to be deleted go with a node
    /// that is Down, as nobody is left to remove them.
    WithdrawNode {
        node_id: NodeId,
    },
    /// Applied again (whatever has become of it since, and wherever it was placed) when the id exists with the same
    /// organization, name, preview token and spec (egress aside, which may have been changed since).
    CreateSandbox {
        sandbox_id: SandboxId,
        sandbox: Box<NewSandbox>,
        now_ms: u64,
    },
    /// Accepted only with the record's generation + 1, and only when its owner is Down or nobody has started it
    /// (Pending). The phase becomes Pending.
    PlaceSandbox {
        sandbox_id: SandboxId,
        placement: Placement,
        now_ms: u64,
    },
    /// A new wish is under way at once: the phase becomes Starting or Stopping, unless nobody has started the sandbox
    /// (Pending) or nobody knows of it (Lost). The same wish again is a new one only when the last came to nothing
    /// (`Running` of what has failed or stopped by itself). `Deleted` is final: it frees the name and revokes the tokens
    /// at once, and the record of an archived sandbox goes at once, as nobody owns it. `Stopped` of an ephemeral sandbox
    /// (`auto_delete_minutes` 0) is `Deleted`. `Paused` is only for what runs, `Archived` only for what has stopped and is
    /// not ephemeral. What is archived comes back by `RestoreSandbox` and not by a wish.
    /// A proposer that repeats a delete reads `NotFound` as done.
    SetDesired {
        sandbox_id: SandboxId,
        desired: Desired,
        now_ms: u64,
    },
    /// The owner's report. Ignored (Rejected::StaleGeneration) unless node and generation are the record's own, and
    /// (Rejected::StaleReport) unless it answers the newest wish: the owner sees that wish and reports again.
    /// An owner says `Starting` when it takes a sandbox up, so Pending means that nobody has been heard to start it. One that
    /// was cut off may have started it unheard: its generation is stale once the sandbox is placed again, and it removes it.
    /// `Stopped` of an ephemeral sandbox deletes it.
    ReportPhase {
        sandbox_id: SandboxId,
        placement: Placement,
        desired_version: u64,
        phase: Phase,
        now_ms: u64,
    },
    /// What the sandbox may reach from now on.
    SetEgress {
        sandbox_id: SandboxId,
        egress: Egress,
        now_ms: u64,
    },
    /// The owner has removed everything of a sandbox that is to be deleted: the record goes. Applied when it is gone.
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
    /// Links to the sandbox's files that were signed before end. `version` is the record's + 1; the record's own is taken as said
    /// again.
    RotateSigningKey {
        sandbox_id: SandboxId,
        version: u32,
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
    /// A new sandbox whose disk is that of another one at this moment. It stays Pending, and nobody makes it, until the
    /// other one's owner has taken the disk. Applied again as `CreateSandbox` is.
    ForkSandbox {
        parent: SandboxId,
        sandbox_id: SandboxId,
        sandbox: Box<NewSandbox>,
        now_ms: u64,
    },
    /// A new sandbox whose image is still being built, as the snapshot `snapshot_id` of the catalogue. It stays Pending, and
    /// nobody makes it, until `ReportBuild`. Applied again as `CreateSandbox` is.
    CreateUnbuilt {
        sandbox_id: SandboxId,
        snapshot_id: uuid::Uuid,
        sandbox: Box<NewSandbox>,
        now_ms: u64,
    },
    /// What has become of the build that a sandbox waits for; anybody who sees it in the catalogue may say so. The first
    /// word counts.
    ReportBuild {
        sandbox_id: SandboxId,
        snapshot_id: uuid::Uuid,
        outcome: BuildOutcome,
        now_ms: u64,
    },
    /// The owner shall take the disk for a snapshot. Only of a sandbox that is at rest in its wish: Running, Paused or
    /// Stopped. Applied again while the snapshot `id` is under way or was the last one.
    SnapshotSandbox {
        sandbox_id: SandboxId,
        id: uuid::Uuid,
        name: String,
        now_ms: u64,
    },
    /// The owner has taken the disk, or cannot: this answers all captures up to `number`. A fork gets its disk or fails;
    /// an archive gets its checkpoint, or the sandbox is wished Stopped again, as it was.
    ReportCapture {
        sandbox_id: SandboxId,
        placement: Placement,
        number: u64,
        outcome: CaptureOutcome,
        /// Snapshots that were not made although the disk was taken, and why.
        #[serde(default)]
        refused: BTreeMap<uuid::Uuid, String>,
        now_ms: u64,
    },
    /// An archived sandbox is made again from its checkpoint, on any node with room. Accepted only with the record's
    /// generation + 1. The wish becomes Running and the phase Pending.
    RestoreSandbox {
        sandbox_id: SandboxId,
        placement: Placement,
        now_ms: u64,
    },
    /// Drops tokens and tombstones that expired before `now_ms`; proposed by the leader on its tick.
    ExpireTokens {
        now_ms: u64,
    },
    /// A new member of a warm pool. Its name counts for nothing. Applied again like `CreateSandbox`.
    CreateWarm {
        sandbox_id: SandboxId,
        pool_id: WarmPoolId,
        sandbox: Box<NewSandbox>,
        now_ms: u64,
    },
    /// Makes a member of a warm pool what was asked for, under the caller's name, as if it were made now. Accepted only of one
    /// that runs for this organization on the node named, that is Ready, and that differs from what is asked for in nothing
    /// but user, environment and egress: its owner changes those while it runs. Counts as a new wish. Applied again for the
    /// same claim.
    ClaimWarm {
        sandbox_id: SandboxId,
        claim_id: ClaimId,
        sandbox: Box<NewSandbox>,
        now_ms: u64,
    },
    /// A member is to be deleted. Rejected once somebody has it. Until then it runs and nothing else is wished of it.
    RetireWarm {
        sandbox_id: SandboxId,
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
    #[serde(default)]
    pub auto_pause_minutes: u32,
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
    #[error("the signing key has version {current}")]
    StaleSigningKey { current: u32 },
    #[error("the sandbox is being deleted")]
    Deleting,
    /// Its owner is not Down and may have started it.
    #[error("the sandbox has a live owner")]
    OwnerAlive,
    /// `Pending` and `Lost` are decided here, never reported.
    #[error("an owner does not report this phase")]
    NotReportable,
    #[error("{sandboxes} sandboxes are placed on the node")]
    NodeInUse { sandboxes: u64 },
    /// Only what runs can be paused.
    #[error("the sandbox is not running")]
    NotRunning,
    /// It is on its way from one phase to another.
    #[error("sandbox state change in progress")]
    InTransition,
    /// Only what has stopped can be archived.
    #[error("the sandbox must be stopped first")]
    NotStopped,
    /// It lives until it stops, so there is nothing to archive.
    #[error("an ephemeral sandbox cannot be archived")]
    Ephemeral,
    #[error("the sandbox is archived")]
    Archived,
    #[error("the sandbox is not archived")]
    NotArchived,
    /// It failed before there was one, or its owner is Down.
    #[error("the sandbox has no disk that could be copied now")]
    NoDisk,
    #[error("the sandbox's image was not built: create the sandbox anew")]
    NotBuilt,
    #[error("the sandbox is not made from this build")]
    OtherBuild,
    #[error("the sandbox's disk is being copied for {0} others already")]
    TooManyCaptures(u64),
    /// Another sandbox or port has this token.
    #[error("the token is taken")]
    TokenTaken,
    #[error("the sandbox has {0} preview links already")]
    TooManyTokens(u64),
    /// It is no running member of a warm pool that is like what was asked for.
    #[error("the sandbox cannot be claimed")]
    NotClaimable,
    /// Another create was faster.
    #[error("the sandbox was claimed already")]
    Claimed,
    /// A member of a warm pool runs, and is nobody's.
    #[error("nobody has claimed the sandbox yet")]
    Unclaimed,
}
