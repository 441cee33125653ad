//! The cluster: what operators see and change.

use atoll_api::ids::NodeId;
use atoll_api::rest::{Cluster, ClusterGroup, ClusterNode, CreateJoinToken, ErrorBody, JoinToken, Timestamp};
use atoll_consensus::state::region::NodeHealth;
use axum::Json;
use axum::extract::State;
use http::StatusCode;

use super::RestState;
use super::errors::ApiError;
use super::input::{Body, Segments, within};
use super::sandbox::answer;
use super::visitor::Visitor;
use crate::control::verb::{GroupStatusView, NodeView, Verb, VerbAnswer};

const TOKEN_TTL_S_DEFAULT: i64 = 3_600;
const TOKEN_TTL_S_MAX: i64 = 604_800;
const TOKEN_USES_MAX: i64 = 1_000;

/// The nodes and the Raft groups.
#[utoipa::path(
    get, path = "/cluster", operation_id = "getCluster", tag = "cluster", security(("bearer" = [])),
    responses((status = 200, body = Cluster), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn status(
    State(state): State<RestState>,
    visitor: Visitor,
) -> Result<Json<Cluster>, ApiError> {
    let view = answer!(visitor.ask(Verb::ClusterStatus).await?, VerbAnswer::Cluster(view) => view)?;
    let own = state.settings.node_id;
    Ok(Json(Cluster {
        cluster_id: view.cluster_id,
        nodes: view.nodes.into_iter().map(|view| node(view, own)).collect(),
        groups: view.groups.into_iter().map(group).collect(),
    }))
}

fn node(view: NodeView, own: NodeId) -> ClusterNode {
    let NodeView { node_id, record, health, sandboxes } = view;
    let health = match health {
        Some(NodeHealth::Ready) => "ready",
        Some(NodeHealth::Cordoned) => "cordoned",
        Some(NodeHealth::Down) => "down",
        None => "unknown",
    };
    ClusterNode {
        id: node_id,
        name: record.name,
        region: record.region.to_string(),
        zone: record.zone,
        health: health.to_owned(),
        sandboxes,
        http: record.addresses.http,
        https: record.addresses.https,
        ssh: record.addresses.ssh,
        mesh: record.addresses.mesh,
        is_self: node_id == own,
    }
}

fn group(view: GroupStatusView) -> ClusterGroup {
    let GroupStatusView { name, leader, term, voters, learners, last_applied } = view;
    ClusterGroup { name, leader, term, voters, learners, last_applied }
}

/// Makes a token that admits nodes. For administrators.
#[utoipa::path(
    post, path = "/cluster/tokens", operation_id = "createJoinToken", tag = "cluster", security(("bearer" = [])),
    request_body = CreateJoinToken,
    responses((status = 201, body = JoinToken), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn create_token(
    visitor: Visitor,
    Body(asked): Body<CreateJoinToken>,
) -> Result<(StatusCode, Json<JoinToken>), ApiError> {
    let ttl_s = within("ttlSeconds", asked.ttl_seconds.unwrap_or(TOKEN_TTL_S_DEFAULT), 1..=TOKEN_TTL_S_MAX)?;
    let uses = within("uses", asked.uses.unwrap_or(1), 1..=TOKEN_USES_MAX)?;
    let verb = Verb::CreateJoinToken {
        ttl_s: ttl_s.unsigned_abs(),
        uses: u32::try_from(uses).expect("the range is small"),
    };
    answer!(visitor.ask(verb).await?, VerbAnswer::JoinToken { token, expires_at_ms } => (
        StatusCode::CREATED,
        Json(JoinToken { token, expires_at: Timestamp(expires_at_ms) }),
    ))
}

/// Removes a node for ever: its certificate is refused from now on. For administrators.
#[utoipa::path(
    delete, path = "/cluster/nodes/{id}", operation_id = "removeNode", tag = "cluster", security(("bearer" = [])),
    params(("id" = String, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn remove_node(visitor: Visitor, path: Segments) -> Result<StatusCode, ApiError> {
    let node_id = path.text("id")?.parse::<NodeId>();
    let node_id = node_id.map_err(|error| ApiError::Invalid(error.to_string()))?;
    answer!(visitor.ask(Verb::RemoveNode { node_id }).await?, VerbAnswer::Done => StatusCode::NO_CONTENT)
}
