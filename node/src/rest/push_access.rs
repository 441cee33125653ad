//! Credentials to push images with, for the CLI's `snapshot push`.

use atoll_api::rest::{ErrorBody, RegistryPushAccessDto, Timestamp};
use axum::Json;

use super::errors::ApiError;
use super::sandbox::answer;
use super::visitor::Visitor;
use crate::control::verb::{Verb, VerbAnswer};

/// The registry asks for the password only.
const USERNAME: &str = "atoll";
/// There is one, and every node is it.
const REGISTRY_ID: &str = "atoll";

/// What is pushed is there for every region, so `regionId` changes nothing.
#[utoipa::path(
    get, path = "/docker-registry/registry-push-access", operation_id = "getTransientPushAccess", tag = "docker-registry",
    security(("bearer" = [])),
    params(("regionId" = Option<String>, Query, description = "changes nothing: every region has what is pushed")),
    responses((status = 200, body = RegistryPushAccessDto), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn grant(visitor: Visitor) -> Result<Json<RegistryPushAccessDto>, ApiError> {
    let granted = visitor.ask(Verb::GrantPush).await?;
    let (secret, expires_at_ms) =
        answer!(granted, VerbAnswer::PushGrant { secret, expires_at_ms } => (secret, expires_at_ms))?;
    Ok(Json(RegistryPushAccessDto {
        username: USERNAME.to_owned(),
        secret,
        registry_url: visitor.door.registry().to_owned(),
        registry_id: REGISTRY_ID.to_owned(),
        project: visitor.caller.organization_id.to_string(),
        expires_at: Timestamp(expires_at_ms),
    }))
}
