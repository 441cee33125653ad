//! Where sandboxes can be made.

use atoll_api::rest::{ErrorBody, Region, RegionType, Timestamp};
use axum::Json;
use axum::extract::State;

use super::RestState;
use super::errors::ApiError;
use super::input::Segments;
use super::visitor::Visitor;

#[utoipa::path(
    get, path = "/regions", operation_id = "listAvailableRegions", tag = "organizations", security(("bearer" = [])),
    responses((status = 200, body = [Region]), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list_regions(State(state): State<RestState>, _: Visitor) -> Json<Vec<Region>> {
    Json(regions(&state))
}

#[utoipa::path(
    get, path = "/shared-regions", operation_id = "listSharedRegions", tag = "regions", security(("bearer" = [])),
    responses((status = 200, body = [Region]), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list_shared_regions(State(state): State<RestState>, _: Visitor) -> Json<Vec<Region>> {
    Json(regions(&state))
}

#[utoipa::path(
    get, path = "/regions/{id}", operation_id = "getRegionById", tag = "organizations", security(("bearer" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = Region), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn read_region(
    State(state): State<RestState>,
    _: Visitor,
    path: Segments,
) -> Result<Json<Region>, ApiError> {
    let id = path.text("id")?;
    let found = regions(&state).into_iter().find(|region| region.id == id);
    found.map(Json).ok_or_else(|| ApiError::NotFound("region not found".to_owned()))
}

/// Every region is everybody's.
fn regions(state: &RestState) -> Vec<Region> {
    let present =
        |(name, record): (atoll_api::ids::RegionName, atoll_consensus::state::cluster::RegionRecord)| {
            Region {
                id: name.to_string(),
                name: name.to_string(),
                region_type: RegionType::Shared,
                created_at: Timestamp(record.created_at_ms),
                updated_at: Timestamp(record.created_at_ms),
            }
        };
    state.facts.regions().into_iter().map(present).collect()
}
