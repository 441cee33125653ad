//! A sandbox as the public API shows it, and the one table from our phases to its states.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{BuildInfo, Timestamp};
use crate::ids::{OrganizationId, SandboxId};
use crate::sandbox::{Desired, Phase};

/// A sandbox, as every answer about a single one shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    #[schema(value_type = String)]
    pub id: SandboxId,
    #[schema(value_type = String)]
    pub organization_id: OrganizationId,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// The account that commands run as.
    pub user: String,
    pub env: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// Whether previews need no credential.
    pub public: bool,
    pub network_block_all: bool,
    /// Comma separated; absent: no list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_allow_list: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_allow_list: Option<String>,
    pub kvm: bool,
    /// The region.
    pub target: String,
    /// Whole CPUs.
    pub cpu: u32,
    pub gpu: u32,
    /// GiB.
    pub memory: u32,
    /// GiB.
    pub disk: u32,
    pub state: SandboxState,
    pub desired_state: SandboxDesiredState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recoverable: Option<bool>,
    /// The warm pool that it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_pool_id: Option<uuid::Uuid>,
    /// `None`, `InProgress` while it is being archived, `Completed` when it is.
    pub backup_state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_created_at: Option<Timestamp>,
    /// Of an archived sandbox: how many nodes hold its disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_copies: Option<u32>,
    /// The sandbox that it is a fork of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub parent_id: Option<SandboxId>,
    /// What its image was made from, if it was made for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_info: Option<BuildInfo>,
    /// Minutes; 0: never.
    pub auto_stop_interval: u32,
    /// Minutes; 0: never.
    pub auto_pause_interval: u32,
    /// Minutes.
    pub auto_archive_interval: u32,
    /// Minutes; −1: never, 0: as soon as it stops.
    pub auto_delete_interval: i32,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub last_activity_at: Timestamp,
    pub sandbox_class: String,
    /// The node that owns it.
    pub runner_id: String,
    /// Toolbox requests go to `{toolboxProxyUrl}/{id}/…`.
    pub toolbox_proxy_url: String,
}

/// A sandbox in a list: without its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxListItem {
    #[schema(value_type = String)]
    pub id: SandboxId,
    #[schema(value_type = String)]
    pub organization_id: OrganizationId,
    pub name: String,
    pub target: String,
    pub runner_id: String,
    pub sandbox_class: String,
    pub state: SandboxState,
    pub desired_state: SandboxDesiredState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    pub user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recoverable: Option<bool>,
    /// The warm pool that it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_pool_id: Option<uuid::Uuid>,
    pub public: bool,
    pub network_block_all: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_allow_list: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_allow_list: Option<String>,
    pub cpu: u32,
    pub gpu: u32,
    pub memory: u32,
    pub disk: u32,
    pub labels: BTreeMap<String, String>,
    pub backup_state: String,
    pub auto_stop_interval: u32,
    pub auto_pause_interval: u32,
    pub auto_archive_interval: u32,
    pub auto_delete_interval: i32,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub last_activity_at: Timestamp,
    pub toolbox_proxy_url: String,
}

impl From<Sandbox> for SandboxListItem {
    fn from(sandbox: Sandbox) -> Self {
        let Sandbox {
            id,
            organization_id,
            name,
            snapshot,
            user,
            env: _,
            labels,
            public,
            network_block_all,
            network_allow_list,
            domain_allow_list,
            kvm: _,
            target,
            cpu,
            gpu,
            memory,
            disk,
            state,
            desired_state,
            error_reason,
            recoverable,
            warm_pool_id,
            backup_state,
            backup_created_at: _,
            backup_copies: _,
            parent_id: _,
            build_info: _,
            auto_stop_interval,
            auto_pause_interval,
            auto_archive_interval,
            auto_delete_interval,
            created_at,
            updated_at,
            last_activity_at,
            sandbox_class,
            runner_id,
            toolbox_proxy_url,
        } = sandbox;
        SandboxListItem {
            id,
            organization_id,
            name,
            target,
            runner_id,
            sandbox_class,
            state,
            desired_state,
            snapshot,
            user,
            error_reason,
            recoverable,
            warm_pool_id,
            public,
            network_block_all,
            network_allow_list,
            domain_allow_list,
            cpu,
            gpu,
            memory,
            disk,
            labels,
            backup_state,
            auto_stop_interval,
            auto_pause_interval,
            auto_archive_interval,
            auto_delete_interval,
            created_at,
            updated_at,
            last_activity_at,
            toolbox_proxy_url,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListSandboxesResponse {
    pub items: Vec<SandboxListItem>,
    /// Null on the last page.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}

/// The states that the public API names and that this system produces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    Creating,
    Starting,
    Started,
    Stopping,
    Stopped,
    Error,
    Destroying,
    Destroyed,
    Pausing,
    Paused,
    Resuming,
    Snapshotting,
    Forking,
    Archiving,
    Archived,
    Restoring,
    PendingBuild,
    BuildingSnapshot,
    BuildFailed,
}

/// Whether a sandbox has run before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    First,
    Again,
    /// Its disk is still that of another sandbox.
    OfFork,
    /// Its image is still to be built.
    OfBuild(BuildProgress),
    /// After it was archived.
    FromArchive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BuildProgress {
    Waiting,
    Building,
}

impl SandboxState {
    /// What the user wants and what the owner reported, in the public API's words. A wish that is not yet carried
    /// out shows as the state on the way there, so that a client that waits never takes the old state for the new.
    pub fn of(desired: Desired, phase: &Phase, start: Start) -> SandboxState {
        use SandboxState::*;
        let on_the_way_up = match start {
            Start::First => Creating,
            Start::Again => Starting,
            Start::OfFork => Forking,
            Start::OfBuild(BuildProgress::Waiting) => PendingBuild,
            Start::OfBuild(BuildProgress::Building) => BuildingSnapshot,
            Start::FromArchive => Restoring,
        };
        match (desired, phase) {
            (Desired::Deleted, Phase::Stopped | Phase::Archived) => Destroyed,
            (Desired::Deleted, _) => Destroying,
            (_, Phase::Failed { .. }) if matches!(start, Start::OfBuild(_)) => BuildFailed,
            (_, Phase::Failed { .. } | Phase::Lost) => Error,
            (Desired::Running | Desired::Stopped, Phase::Stopping) => Stopping,
            (Desired::Running, Phase::Pending | Phase::Starting) => on_the_way_up,
            (Desired::Running, Phase::Running) => Started,
            (Desired::Running, Phase::Stopped) => Starting,
            (Desired::Running, Phase::Pausing | Phase::Paused | Phase::Resuming) => Resuming,
            (Desired::Archived, Phase::Archived) => Archived,
            (Desired::Archived, _) => Archiving,
            (Desired::Running, Phase::Archiving | Phase::Archived) => Restoring,
            (Desired::Stopped, Phase::Stopped) => Stopped,
            (
                Desired::Stopped,
                Phase::Pending
                | Phase::Starting
                | Phase::Running
                | Phase::Pausing
                | Phase::Paused
                | Phase::Resuming
                | Phase::Archiving
                | Phase::Archived,
            ) => Stopping,
            (Desired::Paused, Phase::Paused) => Paused,
            // What is not running any more has nothing left to pause; its owner is about to say so.
            (
                Desired::Paused,
                Phase::Pending
                | Phase::Starting
                | Phase::Running
                | Phase::Pausing
                | Phase::Resuming
                | Phase::Stopping
                | Phase::Stopped
                | Phase::Archiving
                | Phase::Archived,
            ) => Pausing,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            SandboxState::Creating => "creating",
            SandboxState::Starting => "starting",
            SandboxState::Started => "started",
            SandboxState::Stopping => "stopping",
            SandboxState::Stopped => "stopped",
            SandboxState::Error => "error",
            SandboxState::Destroying => "destroying",
            SandboxState::Destroyed => "destroyed",
            SandboxState::Pausing => "pausing",
            SandboxState::Paused => "paused",
            SandboxState::Resuming => "resuming",
            SandboxState::Snapshotting => "snapshotting",
            SandboxState::Forking => "forking",
            SandboxState::Archiving => "archiving",
            SandboxState::Archived => "archived",
            SandboxState::Restoring => "restoring",
            SandboxState::PendingBuild => "pending_build",
            SandboxState::BuildingSnapshot => "building_snapshot",
            SandboxState::BuildFailed => "build_failed",
        }
    }

    /// Every state the public API names, also those that no sandbox of ours is ever in: a filter may ask for them.
    pub const NAMES: [&'static str; 22] = [
        "creating",
        "restoring",
        "destroyed",
        "destroying",
        "started",
        "stopped",
        "starting",
        "stopping",
        "error",
        "build_failed",
        "pending_build",
        "building_snapshot",
        "unknown",
        "pulling_snapshot",
        "archived",
        "archiving",
        "resizing",
        "snapshotting",
        "forking",
        "pausing",
        "paused",
        "resuming",
    ];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxDesiredState {
    Started,
    Stopped,
    Destroyed,
    Paused,
    Archived,
}

impl From<Desired> for SandboxDesiredState {
    fn from(desired: Desired) -> Self {
        match desired {
            Desired::Running => SandboxDesiredState::Started,
            Desired::Stopped => SandboxDesiredState::Stopped,
            Desired::Deleted => SandboxDesiredState::Destroyed,
            Desired::Paused => SandboxDesiredState::Paused,
            Desired::Archived => SandboxDesiredState::Archived,
        }
    }
}

/// The body of a create. Numbers are wide and fields are optional so that the door can say itself what is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CreateSandbox {
    /// Unique within the organization; the sandbox's id when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Name or id of the snapshot; the default snapshot when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_block_all: Option<bool>,
    /// IPv4 networks, comma separated, ten at the most; empty allows none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_allow_list: Option<String>,
    /// Host names, `*.` before one for all below it, comma separated, ten at the most; empty allows none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_allow_list: Option<String>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound_proxy_url: Option<String>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otel_endpoint_override: Option<String>,
    /// The region; that of the node asked when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvm: Option<bool>,
    /// Whole CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<i64>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<i64>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub gpu_type: Option<serde_json::Value>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spot: Option<bool>,
    /// GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<i64>,
    /// GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<i64>,
    /// Minutes; 0: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_stop_interval: Option<i64>,
    /// Minutes; 0: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_pause_interval: Option<i64>,
    /// Minutes; 0: the longest there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_archive_interval: Option<i64>,
    /// Minutes; negative: never, 0: as soon as it stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_delete_interval: Option<i64>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_minutes: Option<i64>,
    /// Accepted: creates here never wait in a queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_timeout: Option<i64>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<SandboxVolume>>,
    /// Instead of a snapshot: an image that is built for it, unless it was built before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_info: Option<CreateBuildInfo>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linked_sandbox: Option<String>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Vec<BTreeMap<String, String>>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SandboxVolume {
    pub volume_id: String,
    pub mount_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subpath: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CreateBuildInfo {
    pub dockerfile_content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_hashes: Option<Vec<String>>,
}

/// What a sandbox may reach from now on. A field that is left out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateSandboxNetworkSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_block_all: Option<bool>,
    /// As in a create.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_allow_list: Option<String>,
    /// As in a create.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_allow_list: Option<String>,
}

/// The disk of a sandbox becomes a snapshot of this name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CreateSandboxSnapshot {
    pub name: String,
    /// Not supported: a snapshot holds files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_memory: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ForkSandbox {
    /// Unique within the organization; the fork's id when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Both the body and the answer of a change of labels: the whole set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxLabels {
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortPreviewUrl {
    #[schema(value_type = String)]
    pub sandbox_id: SandboxId,
    pub url: String,
    /// For the header `X-Daytona-Preview-Token`.
    pub token: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignedPortPreviewUrl {
    #[schema(value_type = String)]
    pub sandbox_id: SandboxId,
    pub port: u16,
    pub token: String,
    /// Opens the port for whoever has it, until it expires.
    pub url: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SshAccessDto {
    pub id: uuid::Uuid,
    #[schema(value_type = String)]
    pub sandbox_id: SandboxId,
    pub token: String,
    pub expires_at: Timestamp,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Complete: clients split it at spaces and run it.
    pub ssh_command: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SshAccessValidationDto {
    pub valid: bool,
    /// Empty when the token is not valid.
    pub sandbox_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ToolboxProxyUrl {
    pub url: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wish_and_phase_has_a_public_state() {
        use SandboxState::*;
        let failed = Phase::Failed { reason: "x".into() };
        // phase, then desired Running (first start, again), Stopped, Paused, Archived, Deleted.
        for (phase, first, again, stopped, paused, archived, deleted) in [
            (Phase::Pending, Creating, Starting, Stopping, Pausing, Archiving, Destroying),
            (Phase::Starting, Creating, Starting, Stopping, Pausing, Archiving, Destroying),
            (Phase::Running, Started, Started, Stopping, Pausing, Archiving, Destroying),
            (Phase::Stopping, Stopping, Stopping, Stopping, Pausing, Archiving, Destroying),
            (Phase::Stopped, Starting, Starting, Stopped, Pausing, Archiving, Destroyed),
            (failed, Error, Error, Error, Error, Error, Destroying),
            (Phase::Lost, Error, Error, Error, Error, Error, Destroying),
            (Phase::Pausing, Resuming, Resuming, Stopping, Pausing, Archiving, Destroying),
            (Phase::Paused, Resuming, Resuming, Stopping, Paused, Archiving, Destroying),
            (Phase::Resuming, Resuming, Resuming, Stopping, Pausing, Archiving, Destroying),
            (Phase::Archiving, Restoring, Restoring, Stopping, Pausing, Archiving, Destroying),
            (Phase::Archived, Restoring, Restoring, Stopping, Pausing, Archived, Destroyed),
        ] {
            let of = |desired, start| SandboxState::of(desired, &phase, start);
            assert_eq!(of(Desired::Running, Start::First), first, "{phase:?}");
            assert_eq!(of(Desired::Running, Start::Again), again, "{phase:?}");
            for start in [Start::First, Start::Again] {
                assert_eq!(of(Desired::Stopped, start), stopped, "{phase:?}");
                assert_eq!(of(Desired::Paused, start), paused, "{phase:?}");
                assert_eq!(of(Desired::Archived, start), archived, "{phase:?}");
                assert_eq!(of(Desired::Deleted, start), deleted, "{phase:?}");
            }
        }
    }

    #[test]
    fn a_start_from_another_disk_says_which() {
        for phase in [Phase::Pending, Phase::Starting] {
            let of = |start| SandboxState::of(Desired::Running, &phase, start);
            assert_eq!(of(Start::OfFork), SandboxState::Forking);
            assert_eq!(of(Start::FromArchive), SandboxState::Restoring);
            assert_eq!(of(Start::OfBuild(BuildProgress::Waiting)), SandboxState::PendingBuild);
            assert_eq!(of(Start::OfBuild(BuildProgress::Building)), SandboxState::BuildingSnapshot);
        }
        let failed = Phase::Failed { reason: "x".into() };
        let start = Start::OfBuild(BuildProgress::Building);
        assert_eq!(SandboxState::of(Desired::Running, &failed, start), SandboxState::BuildFailed);
    }

    #[test]
    fn a_state_is_written_by_its_public_name() {
        use SandboxState::*;
        for state in [
            Creating,
            Starting,
            Started,
            Stopping,
            Stopped,
            Error,
            Destroying,
            Destroyed,
            Pausing,
            Paused,
            Resuming,
            Snapshotting,
            Forking,
            Archiving,
            Archived,
            Restoring,
            PendingBuild,
            BuildingSnapshot,
            BuildFailed,
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
            assert!(SandboxState::NAMES.contains(&state.name()));
        }
    }
}
