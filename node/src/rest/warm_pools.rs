//! Warm pools: how many sandboxes of a snapshot run in a region before anybody asks for them.

use atoll_api::ids::{RegionName, WarmPoolId};
use atoll_api::rest::{CreateWarmPool, ErrorBody, UpdateWarmPool, WarmPool};
use atoll_consensus::state::cluster::WARM_PER_POOL_MAX;
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::create::snapshot_name;
use super::errors::ApiError;
use super::input::{Body, Segments, within};
use super::present;
use super::sandbox::answer;
use super::visitor::Visitor;
use crate::control::verb::{Verb, VerbAnswer};

/// The organization's. Regions that cannot be asked are named in the header `X-Atoll-Unreachable-Regions`, and their pools
/// shown as empty.
#[utoipa::path(
    get, path = "/warm-pools", operation_id = "listWarmPools", tag = "warm-pools", security(("bearer" = [])),
    responses((status = 200, body = [WarmPool]), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list(visitor: Visitor) -> Result<Response, ApiError> {
    let (pools, unreachable) = answer!(
        visitor.ask(Verb::ListWarmPools).await?,
        VerbAnswer::WarmPools { pools, unreachable_regions } => (pools, unreachable_regions)
    )?;
    let pools: Vec<WarmPool> = pools.into_iter().map(present::warm_pool).collect();
    let mut response = Json(pools).into_response();
    if let Some(regions) = present::unreachable_regions(&unreachable) {
        response.headers_mut().insert(present::UNREACHABLE_REGIONS_HEADER, regions);
    }
    Ok(response)
}

/// One for a snapshot in a region.
#[utoipa::path(
    post, path = "/warm-pools", operation_id = "createWarmPool", tag = "warm-pools", security(("bearer" = [])),
    request_body = CreateWarmPool,
    responses((status = 201, body = WarmPool), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn create(
    visitor: Visitor,
    Body(asked): Body<CreateWarmPool>,
) -> Result<(StatusCode, Json<WarmPool>), ApiError> {
    if asked.snapshot.is_empty() {
        return Err(ApiError::Invalid("snapshot is required: an id or a name".to_owned()));
    }
    let verb = Verb::CreateWarmPool {
        snapshot: snapshot_name(asked.snapshot)?,
        size: size(asked.pool, 1)?,
        target: asked.target.filter(|target| !target.is_empty()).map(region).transpose()?,
    };
    Ok((StatusCode::CREATED, Json(one(&visitor, verb).await?)))
}

/// Another size; 0 drains it.
#[utoipa::path(
    patch, path = "/warm-pools/{id}", operation_id = "updateWarmPool", tag = "warm-pools", security(("bearer" = [])),
    params(("id" = String, Path)), request_body = UpdateWarmPool,
    responses((status = 200, body = WarmPool), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn resize(
    visitor: Visitor,
    path: Segments,
    Body(asked): Body<UpdateWarmPool>,
) -> Result<Json<WarmPool>, ApiError> {
    let verb = Verb::ResizeWarmPool { pool_id: pool_id(&path)?, size: size(asked.pool, 0)? };
    Ok(Json(one(&visitor, verb).await?))
}

/// Its sandboxes go, but for those that somebody has.
#[utoipa::path(
    delete, path = "/warm-pools/{id}", operation_id = "deleteWarmPool", tag = "warm-pools", security(("bearer" = [])),
    params(("id" = String, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn delete(visitor: Visitor, path: Segments) -> Result<StatusCode, ApiError> {
    let verb = Verb::DeleteWarmPool { pool_id: pool_id(&path)? };
    answer!(visitor.ask(verb).await?, VerbAnswer::Done => StatusCode::NO_CONTENT)
}

async fn one(visitor: &Visitor, verb: Verb) -> Result<WarmPool, ApiError> {
    answer!(visitor.ask(verb).await?, VerbAnswer::WarmPool(view) => present::warm_pool(*view))
}

/// What is no id of ours is no pool of ours.
fn pool_id(path: &Segments) -> Result<WarmPoolId, ApiError> {
    let parsed = path.text("id")?.parse().map(WarmPoolId);
    parsed.map_err(|_| ApiError::NotFound("Warm pool not found".to_owned()))
}

fn size(asked: f64, min: u32) -> Result<u32, ApiError> {
    if asked.fract() != 0.0 {
        return Err(ApiError::Invalid("pool must be a whole number".to_owned()));
    }
    let size = within("pool", asked, f64::from(min)..=f64::from(WARM_PER_POOL_MAX))?;
    Ok(size as u32)
}

fn region(target: String) -> Result<RegionName, ApiError> {
    target.parse().map_err(|error| ApiError::Invalid(format!("target: {error}")))
}
