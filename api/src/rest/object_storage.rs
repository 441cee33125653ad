//! Where build contexts are uploaded to, and with which credentials.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::OrganizationId;

/// Of S3, for the organization's own keys only and not for long.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageAccessDto {
    pub access_key: String,
    pub secret: String,
    pub session_token: String,
    /// Without a path.
    pub storage_url: String,
    /// First part of every key.
    #[schema(value_type = String)]
    pub organization_id: OrganizationId,
    pub bucket: String,
    pub region: String,
}
