//! What sandboxes can be made from and where: snapshots and regions.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotDto {
    pub id: uuid::Uuid,
    /// Whether every organization may use it.
    pub general: bool,
    pub name: String,
    pub image_name: String,
    pub state: SnapshotState,
    /// GiB; null: not known.
    #[schema(required = true)]
    pub size: Option<u32>,
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
    /// Not recorded.
    #[schema(required = true)]
    pub last_used_at: Option<Timestamp>,
    #[serde(rename = "ref")]
    pub reference: String,
    #[schema(required = true)]
    pub source_sandbox_id: Option<String>,
    pub sandbox_class: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    Active,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
