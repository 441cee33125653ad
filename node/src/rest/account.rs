//! Who is asking: the key, its user and its organization.

use atoll_api::access::Caller;
use atoll_api::rest::{ApiKeyList, ErrorBody, Organization, Timestamp, User};
use atoll_consensus::state::cluster::{ApiKeyRecord, OrganizationRecord};
use axum::Json;
use axum::extract::State;

use super::RestState;
use super::create::{CPU_MAX, DISK_GIB_MAX, MEMORY_GIB_MAX};
use super::errors::ApiError;
use super::input::Segments;
use super::visitor::Visitor;

/// What every key may do.
const PERMISSIONS: [&str; 6] = [
    "write:sandboxes",
    "delete:sandboxes",
    "write:snapshots",
    "delete:snapshots",
    "write:registries",
    "delete:registries",
];
/// What an administrator's may do besides.
const ADMINISTRATOR_PERMISSIONS: [&str; 3] = ["read:runners", "write:runners", "delete:runners"];

#[utoipa::path(
    get, path = "/api-keys/current", operation_id = "getCurrentApiKey", tag = "api-keys", security(("bearer" = [])),
    responses((status = 200, body = ApiKeyList), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn current_api_key(
    State(state): State<RestState>,
    visitor: Visitor,
) -> Result<Json<ApiKeyList>, ApiError> {
    let record = key_record(&state, &visitor)?;
    let more = if record.may_administer { &ADMINISTRATOR_PERMISSIONS[..] } else { &[] };
    Ok(Json(ApiKeyList {
        name: record.name,
        value: masked(visitor.key.reveal()),
        created_at: Timestamp(record.created_at_ms),
        permissions: PERMISSIONS.iter().chain(more).map(|name| (*name).to_owned()).collect(),
        last_used_at: None,
        expires_at: record.expires_at_ms.map(Timestamp),
        user_id: record.user_id,
        organization_id: record.organization_id,
    }))
}

#[utoipa::path(
    get, path = "/users/me", operation_id = "getAuthenticatedUser", tag = "users", security(("bearer" = [])),
    responses((status = 200, body = User), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn current_user(
    State(state): State<RestState>,
    visitor: Visitor,
) -> Result<Json<User>, ApiError> {
    let record = key_record(&state, &visitor)?;
    Ok(Json(User {
        id: record.user_id,
        // Users have no record of their own yet; their keys are named after them.
        name: record.name,
        email: String::new(),
        email_verified: false,
        public_keys: Vec::new(),
        created_at: Timestamp(record.created_at_ms),
    }))
}

/// The one organization that the key belongs to.
#[utoipa::path(
    get, path = "/organizations", operation_id = "listOrganizations", tag = "organizations", security(("bearer" = [])),
    responses((status = 200, body = [Organization]), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list_organizations(
    State(state): State<RestState>,
    visitor: Visitor,
) -> Result<Json<Vec<Organization>>, ApiError> {
    Ok(Json(vec![own_organization(&state, &visitor.caller)?]))
}

#[utoipa::path(
    get, path = "/organizations/{organizationId}", operation_id = "getOrganization", tag = "organizations", security(("bearer" = [])),
    params(("organizationId" = String, Path)),
    responses((status = 200, body = Organization), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn read_organization(
    State(state): State<RestState>,
    visitor: Visitor,
    path: Segments,
) -> Result<Json<Organization>, ApiError> {
    let named = path.text("organizationId")?;
    if !named.eq_ignore_ascii_case(&visitor.caller.organization_id.to_string()) {
        return Err(ApiError::Forbidden(
            "Invalid authentication context: the API key belongs to another organization",
        ));
    }
    Ok(Json(own_organization(&state, &visitor.caller)?))
}

/// The directory found the key a moment ago. Where it is gone from this replica, it has been deleted since.
fn key_record(state: &RestState, visitor: &Visitor) -> Result<ApiKeyRecord, ApiError> {
    let record = state.facts.api_key(visitor.key_hash());
    record.ok_or(ApiError::Unauthorized("the API key is not known"))
}

fn own_organization(state: &RestState, caller: &Caller) -> Result<Organization, ApiError> {
    let OrganizationRecord { name, created_by, created_at_ms } = state
        .facts
        .organization(caller.organization_id)
        .ok_or_else(|| ApiError::NotFound("organization not found".to_owned()))?;
    let never = Timestamp(0);
    Ok(Organization {
        id: caller.organization_id,
        name,
        created_by,
        // The CLI works in the personal organization; a key's only one is it.
        personal: true,
        created_at: Timestamp(created_at_ms),
        updated_at: Timestamp(created_at_ms),
        suspended: false,
        suspended_at: never,
        suspension_reason: String::new(),
        suspended_until: never,
        suspension_cleanup_grace_period_hours: 0,
        max_cpu_per_sandbox: CPU_MAX,
        max_memory_per_sandbox: MEMORY_GIB_MAX,
        max_disk_per_sandbox: DISK_GIB_MAX,
        secret_quota: 0,
        max_secrets_per_sandbox: 0,
        snapshot_deactivation_timeout_minutes: 0,
        default_queue_timeout: None,
        sandbox_limited_network_egress: false,
        preview_warning_enabled: false,
        sso_enabled: false,
        scim_enabled: false,
        default_region_id: None,
        authenticated_rate_limit: None,
        sandbox_create_rate_limit: None,
        sandbox_lifecycle_rate_limit: None,
        experimental_config: Default::default(),
        otel_config: None,
        authenticated_rate_limit_ttl_seconds: None,
        sandbox_create_rate_limit_ttl_seconds: None,
        sandbox_lifecycle_rate_limit_ttl_seconds: None,
    })
}

/// Enough to tell one's keys apart. A key is ASCII and 68 characters long.
fn masked(key: &str) -> String {
    format!("{}…{}", &key[..3], &key[key.len() - 3..])
}
