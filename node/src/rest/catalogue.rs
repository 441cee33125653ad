//! What sandboxes can be made from, and where.

use atoll_api::rest::{ErrorBody, PaginatedSnapshots, Region, RegionType, SnapshotDto, Timestamp};
use axum::Json;
use axum::extract::State;

use super::RestState;
use super::errors::ApiError;
use super::input::{Queries, Segments};
use super::present;
use super::sandbox::answer;
use super::visitor::Visitor;
use crate::control::verb::{Verb, VerbAnswer};

const SNAPSHOTS_PAGE_DEFAULT: i64 = 100;
const SNAPSHOTS_PAGE_MAX: i64 = 200;
const PAGES_MAX: i64 = 1_000_000;

#[utoipa::path(
    get, path = "/snapshots", operation_id = "getAllSnapshots", tag = "snapshots", security(("bearer" = [])),
    params(
        ("page" = Option<u32>, Query, minimum = 1, description = "1 when left out"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200, description = "100 when left out"),
        ("name" = Option<String>, Query, description = "part of the name"),
    ),
    responses((status = 200, body = PaginatedSnapshots), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list_snapshots(
    visitor: Visitor,
    queries: Queries,
) -> Result<Json<PaginatedSnapshots>, ApiError> {
    queries.refuse(&["sourceSandboxId", "sort", "order"])?;
    let page = queries.number("page", 1..=PAGES_MAX)?.unwrap_or(1).unsigned_abs();
    let limit =
        queries.number("limit", 1..=SNAPSHOTS_PAGE_MAX)?.unwrap_or(SNAPSHOTS_PAGE_DEFAULT).unsigned_abs();
    let part = queries.text("name")?.unwrap_or_default().to_lowercase();

    let mut all = answer!(visitor.ask(Verb::ListSnapshots).await?, VerbAnswer::Snapshots(all) => all)?;
    all.retain(|(name, _)| name.to_lowercase().contains(&part));
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    let total = all.len() as u64;
    // Both are at most a million and two hundred: neither the product nor its use as an index can overflow.
    let before = (page - 1) * limit;
    let items = all
        .into_iter()
        .skip(before as usize)
        .take(limit as usize)
        .map(|(name, record)| present::snapshot(name, record))
        .collect();
    Ok(Json(PaginatedSnapshots { items, total, page, total_pages: total.div_ceil(limit) }))
}

/// One snapshot by id or name.
#[utoipa::path(
    get, path = "/snapshots/{id}", operation_id = "getSnapshot", tag = "snapshots", security(("bearer" = [])),
    params(("id" = String, Path, description = "id or name")),
    responses((status = 200, body = SnapshotDto), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn read_snapshot(visitor: Visitor, path: Segments) -> Result<Json<SnapshotDto>, ApiError> {
    let id_or_name = path.text("id")?.to_owned();
    let mut found =
        answer!(visitor.ask(Verb::GetSnapshot { id_or_name }).await?, VerbAnswer::Snapshots(found) => found)?;
    match found.pop() {
        Some((name, record)) => Ok(Json(present::snapshot(name, record))),
        None => Err(ApiError::NotFound("snapshot not found".to_owned())),
    }
}

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
