//! Who is asking: the key, its user, its organization.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;
use crate::ids::{OrganizationId, UserId};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeyList {
    pub name: String,
    /// Its first and last characters only.
    pub value: String,
    pub created_at: Timestamp,
    pub permissions: Vec<String>,
    /// Not recorded.
    #[schema(required = true)]
    pub last_used_at: Option<Timestamp>,
    #[schema(required = true)]
    pub expires_at: Option<Timestamp>,
    #[schema(value_type = String)]
    pub user_id: UserId,
    #[schema(value_type = String)]
    pub organization_id: OrganizationId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct User {
    #[schema(value_type = String)]
    pub id: UserId,
    pub name: String,
    /// Empty: no address is known.
    pub email: String,
    pub email_verified: bool,
    pub public_keys: Vec<UserPublicKey>,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UserPublicKey {
    pub key: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Organization {
    #[schema(value_type = String)]
    pub id: OrganizationId,
    pub name: String,
    #[schema(value_type = String)]
    pub created_by: UserId,
    pub personal: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub suspended: bool,
    /// 1970 while it never was: clients' models don't admit null.
    pub suspended_at: Timestamp,
    pub suspension_reason: String,
    pub suspended_until: Timestamp,
    pub suspension_cleanup_grace_period_hours: u32,
    pub max_cpu_per_sandbox: u32,
    pub max_memory_per_sandbox: u32,
    pub max_disk_per_sandbox: u32,
    pub secret_quota: u32,
    pub max_secrets_per_sandbox: u32,
    pub snapshot_deactivation_timeout_minutes: u32,
    #[schema(required = true)]
    pub default_queue_timeout: Option<u32>,
    pub sandbox_limited_network_egress: bool,
    pub preview_warning_enabled: bool,
    pub sso_enabled: bool,
    pub scim_enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_region_id: Option<String>,
    #[schema(required = true)]
    pub authenticated_rate_limit: Option<u32>,
    #[schema(required = true)]
    pub sandbox_create_rate_limit: Option<u32>,
    #[schema(required = true)]
    pub sandbox_lifecycle_rate_limit: Option<u32>,
    #[schema(value_type = BTreeMap<String, Object>)]
    pub experimental_config: BTreeMap<String, serde_json::Value>,
    #[schema(required = true)]
    pub otel_config: Option<OtelConfig>,
    #[schema(required = true)]
    pub authenticated_rate_limit_ttl_seconds: Option<u32>,
    #[schema(required = true)]
    pub sandbox_create_rate_limit_ttl_seconds: Option<u32>,
    #[schema(required = true)]
    pub sandbox_lifecycle_rate_limit_ttl_seconds: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OtelConfig {
    pub endpoint: String,
}
