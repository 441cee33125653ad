//! The service about itself: configuration for clients, health, the cluster.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;
use crate::ids::NodeId;

/// What a client may know before it has a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DaytonaConfiguration {
    pub version: String,
    pub oidc: OidcConfig,
    pub linked_accounts_enabled: bool,
    pub announcements: BTreeMap<String, Announcement>,
    /// With `{{PORT}}` and `{{sandboxId}}` to fill in.
    pub proxy_template_url: String,
    pub proxy_toolbox_url: String,
    pub default_snapshot: String,
    pub dashboard_url: String,
    /// Minutes.
    pub max_auto_archive_interval: u32,
    // The public API spells it so.
    #[serde(rename = "maintananceMode")]
    pub maintenance_mode: bool,
    pub environment: String,
    /// With `{{TOKEN}}` to fill in.
    pub ssh_gateway_command: String,
    pub ssh_gateway_host: String,
    pub ssh_gateway_port: u16,
    /// OpenSSH public key lines: type and base64.
    pub ssh_gateway_host_keys: Vec<String>,
    /// `SHA256:…`, in the same order.
    pub ssh_gateway_host_key_fingerprints: Vec<String>,
}

/// Empty: signing in through an identity provider is not served yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OidcConfig {
    pub issuer: String,
    pub client_id: String,
    pub audience: String,
    pub provider: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Announcement {
    pub text: String,
}

/// Health, with one entry per component in `details` and in either `info` (well) or `error` (unwell).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` or `error`.
    pub status: String,
    pub info: BTreeMap<String, HealthIndicator>,
    pub error: BTreeMap<String, HealthIndicator>,
    pub details: BTreeMap<String, HealthIndicator>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthIndicator {
    /// `up` or `down`.
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Every node and every Raft group that the asked node can see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    pub cluster_id: uuid::Uuid,
    pub nodes: Vec<ClusterNode>,
    pub groups: Vec<ClusterGroup>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNode {
    #[schema(value_type = String)]
    pub id: NodeId,
    pub name: String,
    pub region: String,
    #[schema(required = true)]
    pub zone: Option<String>,
    /// `ready`, `cordoned`, `down`, or `unknown` when its region cannot be asked.
    pub health: String,
    /// How many sandboxes are placed on it.
    pub sandboxes: u32,
    /// Base URLs as clients see them.
    pub http: String,
    #[schema(required = true)]
    pub https: Option<String>,
    /// `host:port`.
    pub ssh: String,
    /// `host:port`, UDP.
    pub mesh: String,
    /// Whether it is the node that answers.
    #[serde(rename = "self")]
    pub is_self: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterGroup {
    pub name: String,
    #[schema(required = true, value_type = Option<String>)]
    pub leader: Option<NodeId>,
    pub term: u64,
    #[schema(value_type = Vec<String>)]
    pub voters: Vec<NodeId>,
    #[schema(value_type = Vec<String>)]
    pub learners: Vec<NodeId>,
    #[schema(required = true)]
    pub last_applied: Option<u64>,
}

/// The wish for a token that admits nodes to the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CreateJoinToken {
    /// 1 to 604800; an hour when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<i64>,
    /// How many nodes it may admit: 1 to 1000; one when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JoinToken {
    pub token: String,
    pub expires_at: Timestamp,
}
