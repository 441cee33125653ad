//! The logs of builds, of a snapshot or of the sandbox that waits for it: text, as far as it is there or to its end.

use std::convert::Infallible;

use atoll_api::rest::{BuildLogsUrl, ErrorBody};
use atoll_consensus::state::cluster::{SnapshotKey, SnapshotSource};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};

use super::RestState;
use super::errors::ApiError;
use super::input::{Queries, Segments};
use super::sandbox::answer;
use super::snapshots::reference;
use super::visitor::Visitor;
use crate::build_logs::Reading;
use crate::control::verb::{Verb, VerbAnswer};

/// Where the log of the build is read that the sandbox waits for, or was made from.
#[utoipa::path(
    get, path = "/sandbox/{sandboxIdOrName}/build-logs-url", operation_id = "getBuildLogsUrl", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path)),
    responses((status = 200, body = BuildLogsUrl), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn url_of_sandbox(visitor: Visitor, path: Segments) -> Result<Json<BuildLogsUrl>, ApiError> {
    let (id, _) = build_of_sandbox(&visitor, &path).await?;
    Ok(Json(BuildLogsUrl { url: format!("{}/api/sandbox/{id}/build-logs", visitor.door.base()) }))
}

#[utoipa::path(
    get, path = "/sandbox/{sandboxIdOrName}/build-logs", operation_id = "getBuildLogs", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path), ("follow" = Option<bool>, Query, description = "to the end of the build")),
    responses((status = 200, content_type = "text/plain", body = String), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn of_sandbox(
    State(state): State<RestState>,
    visitor: Visitor,
    path: Segments,
    queries: Queries,
) -> Result<Response, ApiError> {
    let (_, key) = build_of_sandbox(&visitor, &path).await?;
    stream(&state, key, &queries)
}

#[utoipa::path(
    get, path = "/snapshots/{id}/build-logs-url", operation_id = "getSnapshotBuildLogsUrl", tag = "snapshots", security(("bearer" = [])),
    params(("id" = String, Path, description = "id or name")),
    responses((status = 200, body = BuildLogsUrl), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn url_of_snapshot(
    visitor: Visitor,
    path: Segments,
) -> Result<Json<BuildLogsUrl>, ApiError> {
    let key = build_of_snapshot(&visitor, &path).await?;
    Ok(Json(BuildLogsUrl { url: format!("{}/api/snapshots/{}/build-logs", visitor.door.base(), key.id) }))
}

#[utoipa::path(
    get, path = "/snapshots/{id}/build-logs", operation_id = "getSnapshotBuildLogs", tag = "snapshots", security(("bearer" = [])),
    params(("id" = String, Path, description = "id or name"), ("follow" = Option<bool>, Query, description = "to the end of the build")),
    responses((status = 200, content_type = "text/plain", body = String), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn of_snapshot(
    State(state): State<RestState>,
    visitor: Visitor,
    path: Segments,
    queries: Queries,
) -> Result<Response, ApiError> {
    let key = build_of_snapshot(&visitor, &path).await?;
    stream(&state, key, &queries)
}

async fn build_of_sandbox(visitor: &Visitor, path: &Segments) -> Result<(String, SnapshotKey), ApiError> {
    let verb = Verb::Get { sandbox: path.sandbox()? };
    let view = answer!(visitor.ask(verb).await?, VerbAnswer::Sandbox(view) => view)?;
    let id = view.sandbox_id.to_string();
    let Some(build) = view.build else {
        return Err(ApiError::NotFound(format!(
            "sandbox {id} was not made from a Dockerfile, so it has no build"
        )));
    };
    let organization_id = Some(view.record.organization_id);
    Ok((id, SnapshotKey { organization_id, name: view.record.spec.snapshot, id: build.snapshot_id }))
}

async fn build_of_snapshot(visitor: &Visitor, path: &Segments) -> Result<SnapshotKey, ApiError> {
    let verb = Verb::GetSnapshot { id_or_name: reference(path)? };
    let mut found = answer!(visitor.ask(verb).await?, VerbAnswer::Snapshots(found) => found)?;
    match found.pop() {
        Some((name, record)) if matches!(record.source, SnapshotSource::Build { .. }) => {
            Ok(record.key(&name))
        }
        Some((name, _)) => Err(ApiError::NotFound(format!(
            "snapshot {name} was not made from a Dockerfile, so it has no build"
        ))),
        None => Err(ApiError::NotFound("snapshot not found".to_owned())),
    }
}

fn stream(state: &RestState, key: SnapshotKey, queries: &Queries) -> Result<Response, ApiError> {
    let reading = match queries.flag("follow")? {
        Some(true) => Reading::Follow,
        Some(false) | None => Reading::Now,
    };
    let closing = state.closing.clone();
    let chunks = state.build_logs.read(key, reading).map(Ok::<_, Infallible>);
    let body = Body::from_stream(chunks.take_until(closing.cancelled_owned()));
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8"), (CACHE_CONTROL, "no-cache")];
    Ok((headers, body).into_response())
}
