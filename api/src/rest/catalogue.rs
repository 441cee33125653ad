//! What sandboxes can be made from and where: snapshots, the registries of their images, regions.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{CreateBuildInfo, Timestamp};
use crate::ids::OrganizationId;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotDto {
    pub id: uuid::Uuid,
    /// Whose it is; absent when it is everybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub organization_id: Option<OrganizationId>,
    /// Whether every organization may use it.
    pub general: bool,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_name: Option<String>,
    pub state: SnapshotState,
    /// GiB, of its layers as they are stored; null: not known.
    #[schema(required = true)]
    pub size: Option<f64>,
    #[schema(required = true)]
    pub entrypoint: Option<Vec<String>>,
    pub cpu: u32,
    pub gpu: u32,
    /// GiB.
    pub mem: u32,
    /// GiB.
    pub disk: u32,
    #[schema(required = true)]
    pub error_reason: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Not more exact than an hour.
    #[schema(required = true)]
    pub last_used_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_info: Option<BuildInfo>,
    /// Absent: every region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region_ids: Option<Vec<String>>,
    /// The node that made it ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_runner_id: Option<String>,
    /// The image, by its digest. Absent until it is known.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    #[schema(required = true)]
    pub source_sandbox_id: Option<String>,
    pub sandbox_class: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    Pending,
    Pulling,
    Building,
    Snapshotting,
    Active,
    Inactive,
    Error,
    BuildFailed,
    Removing,
}

/// What an image is or was built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildInfo {
    pub dockerfile_content: String,
    pub context_hashes: Vec<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// The image, by its digest; empty until it is built.
    pub snapshot_ref: String,
}

/// Where a build's log is read, as text: with `?follow=true` to the end of the build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildLogsUrl {
    pub url: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaginatedSnapshots {
    pub items: Vec<SnapshotDto>,
    pub total: u64,
    /// From 1.
    pub page: u64,
    pub total_pages: u64,
}

/// With what, and to where, an image can be pushed for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistryPushAccessDto {
    pub username: String,
    pub secret: String,
    /// `host:port`, as an image's name begins.
    pub registry_url: String,
    pub registry_id: String,
    /// What stands between the registry and the image in the image's name.
    pub project: String,
    pub expires_at: Timestamp,
}

/// The wish for a snapshot: of an image, or of a Dockerfile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CreateSnapshot {
    #[schema(required = true)]
    pub name: String,
    /// With a tag that stays, or a digest: not `latest`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_name: Option<String>,
    /// The image's own when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
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
    /// GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<i64>,
    /// GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_info: Option<CreateBuildInfo>,
    /// Where it may be used; everywhere when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region_id: Option<String>,
    /// Only `container`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_class: Option<String>,
}

/// A registry that an organization's images come from. Its password is never shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DockerRegistry {
    pub id: uuid::Uuid,
    pub name: String,
    pub url: String,
    pub username: String,
    pub project: String,
    pub registry_type: RegistryType,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RegistryType {
    Organization,
}

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CreateDockerRegistry {
    #[schema(required = true)]
    pub name: String,
    #[schema(required = true)]
    pub url: String,
    #[schema(required = true)]
    pub username: String,
    #[schema(required = true)]
    pub password: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateDockerRegistry {
    #[schema(required = true)]
    pub name: String,
    #[schema(required = true)]
    pub url: String,
    #[schema(required = true)]
    pub username: String,
    /// The one that is known stays when this is left out, as long as the registry is the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Region {
    /// Its name, which is what `target` takes.
    pub id: String,
    pub name: String,
    pub region_type: RegionType,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RegionType {
    Shared,
}
