//! Sandboxes that run before anybody has asked for them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;
use crate::ids::OrganizationId;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarmPool {
    pub id: uuid::Uuid,
    #[schema(value_type = String)]
    pub organization_id: OrganizationId,
    /// Its name.
    pub snapshot: String,
    /// The region.
    pub target: String,
    /// How many sandboxes are to be ready.
    pub pool: u32,
    /// How many are ready.
    pub current_size: u32,
    pub cpu: u32,
    /// GiB.
    pub mem: u32,
    /// GiB.
    pub disk: u32,
    pub os_user: String,
    pub env: BTreeMap<String, String>,
    /// Why there are fewer than there are to be; null: nothing is known to be wrong.
    pub error_reason: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Numbers may be written with a fraction of zero, as clients of the public API do.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct CreateWarmPool {
    /// Id or name. A pool serves creates from this snapshot with its own resources, whatever their environment, user, labels
    /// and name.
    pub snapshot: String,
    pub pool: f64,
    /// The region; left out: that of the node that is asked.
    pub target: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct UpdateWarmPool {
    /// 0 drains the pool.
    pub pool: f64,
}
