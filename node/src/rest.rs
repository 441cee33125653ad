//! The REST door: the Daytona API under `/api`, on top of the verbs. Each handler parses, asks one verb, presents.
//!
//!   edge ── Unix socket ──▶ serve ─▶ frame (request id, door, deadline) ─▶ Visitor ─▶ handler ─▶ Control
//!                                      └──────────── errors: status and body ◀────────┘

mod account;
mod build_logs;
mod cluster;
mod create;
mod disk;
mod door;
mod errors;
mod events;
mod facts;
mod frame;
mod input;
mod object_storage;
mod present;
mod push_access;
mod regions;
mod registries;
mod sandbox;
mod serve;
mod service;
mod snapshots;
#[cfg(test)]
mod tests;
mod visitor;
mod warm_pools;

use std::sync::Arc;

use atoll_api::ids::NodeId;
use atoll_mesh::dial::Directory;
use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::build_logs::BuildLogSource;
use crate::control::verb::Control;
use crate::objects::{self, ObjectStorage};

pub use door::Door;
pub use events::{Event, SandboxEvent, SnapshotEvent};
pub use facts::ClusterFacts;
pub(crate) use input::is_too_long;
pub use present::{public_state, snapshot_state, state_of};
pub use serve::serve;

/// Everything the handlers use. Cheap to clone.
#[derive(Clone)]
pub struct RestState {
    pub control: Arc<dyn Control>,
    pub directory: Arc<dyn Directory>,
    pub facts: Arc<dyn ClusterFacts>,
    pub objects: ObjectStorage,
    pub build_logs: Arc<dyn BuildLogSource>,
    /// What `/api/health/ready` answers. Called for each request: must not block.
    pub readiness: Arc<dyn Fn() -> Readiness + Send + Sync>,
    /// What listening SDKs are told. A listener that lags behind the channel's capacity is disconnected.
    pub events: broadcast::Sender<Event>,
    /// One permit for each listening SDK, [`LISTENERS_MAX`] in all.
    pub listeners: Arc<Semaphore>,
    /// Ends every listener. Give [`serve`] the same.
    pub closing: CancellationToken,
    pub settings: Arc<RestSettings>,
}

/// How many SDKs may listen for events on one node.
/// Each costs three file descriptors and some 90 KB, and is counted before it has shown a key.
pub const LISTENERS_MAX: usize = 1_024;
/// How many events a listener may lag behind.
pub const EVENTS_WAITING_MAX: usize = 1_024;

/// What the door says about itself and builds its links from.
#[derive(Debug, Clone)]
pub struct RestSettings {
    pub version: String,
    pub node_id: NodeId,
    /// Where clients reach this node when the edge doesn't say which way they came: parsed from a base URL.
    pub http_base: Door,
    /// Where they reach it with TLS, if it listens for that.
    pub https_base: Option<Door>,
    /// Without a port.
    pub preview_domain: String,
    /// Name of the snapshot that a create without one uses.
    pub default_snapshot: String,
    pub ssh_host: String,
    pub ssh_port: u16,
    /// OpenSSH public key lines.
    pub ssh_host_keys: Vec<String>,
}

/// One entry for each component; the node is ready when none is down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    pub components: Vec<Component>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    pub name: String,
    /// Why it is down.
    pub down: Option<String>,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Atoll", description = "Sandboxes for AI-generated code, in the words of the Daytona API."),
    servers((url = "/api")),
)]
struct Document;

/// The whole door, for [`serve`] or for calling in process.
pub fn router(state: RestState) -> Router {
    let (routes, document) = api(&state.settings.version);
    let document: Arc<str> = document.to_json().expect("the document has no keys that are not text").into();
    let document = get(move || async move {
        ([(http::header::CONTENT_TYPE, "application/json")], document.to_string()).into_response()
    });
    let api = routes
        .route("/openapi.json", document)
        .route("/socket.io/", get(events::listen))
        .method_not_allowed_fallback(errors::no_such_method)
        .fallback(errors::no_such_path);
    let s3 = objects::router(state.objects.clone());
    Router::new()
        .route("/", get(service::welcome))
        .nest("/api", api)
        .method_not_allowed_fallback(errors::no_such_method)
        .fallback(errors::no_such_path)
        .layer(axum::middleware::from_fn_with_state(state.settings.clone(), frame::frame))
        .with_state(state)
        // Beside the frame: an upload takes longer than a verb, and its refusals are S3's.
        .merge(s3)
}

/// Every documented route. What is not here is not in the document, and what is in the document is served.
fn api(version: &str) -> (Router<RestState>, utoipa::openapi::OpenApi) {
    let mut document = Document::openapi();
    document.info.version = version.to_owned();
    document.components.get_or_insert_default().add_security_scheme(
        "bearer",
        SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()),
    );
    OpenApiRouter::with_openapi(document)
        .routes(routes!(sandbox::create, sandbox::list))
        .routes(routes!(sandbox::validate_ssh))
        .routes(routes!(sandbox::read, sandbox::delete))
        .routes(routes!(sandbox::start))
        .routes(routes!(sandbox::stop))
        .routes(routes!(sandbox::pause))
        .routes(routes!(disk::snapshot))
        .routes(routes!(disk::fork))
        .routes(routes!(disk::list_forks))
        .routes(routes!(disk::read_parent))
        .routes(routes!(disk::list_ancestors))
        .routes(routes!(disk::archive))
        .routes(routes!(disk::back_up))
        .routes(routes!(build_logs::url_of_sandbox))
        .routes(routes!(build_logs::of_sandbox))
        .routes(routes!(build_logs::url_of_snapshot))
        .routes(routes!(build_logs::of_snapshot))
        .routes(routes!(sandbox::update_network_settings))
        .routes(routes!(sandbox::replace_labels))
        .routes(routes!(sandbox::set_public))
        .routes(routes!(sandbox::set_auto_stop))
        .routes(routes!(sandbox::set_auto_pause))
        .routes(routes!(sandbox::set_auto_archive))
        .routes(routes!(sandbox::set_auto_delete))
        .routes(routes!(sandbox::touch))
        .routes(routes!(sandbox::toolbox_proxy_url))
        .routes(routes!(sandbox::signing_key))
        .routes(routes!(sandbox::rotate_signing_key))
        .routes(routes!(sandbox::preview_url))
        .routes(routes!(sandbox::signed_preview_url))
        .routes(routes!(sandbox::expire_signed_preview_url))
        .routes(routes!(sandbox::issue_ssh, sandbox::revoke_ssh))
        .routes(routes!(snapshots::create, snapshots::list))
        .routes(routes!(snapshots::read, snapshots::remove))
        .routes(routes!(snapshots::activate))
        .routes(routes!(snapshots::deactivate))
        .routes(routes!(registries::create, registries::list))
        .routes(routes!(registries::read, registries::update, registries::remove))
        .routes(routes!(regions::list_regions))
        .routes(routes!(regions::list_shared_regions))
        .routes(routes!(regions::read_region))
        .routes(routes!(push_access::grant))
        .routes(routes!(warm_pools::list, warm_pools::create))
        .routes(routes!(warm_pools::resize, warm_pools::delete))
        .routes(routes!(account::current_api_key))
        .routes(routes!(account::current_user))
        .routes(routes!(account::list_organizations))
        .routes(routes!(account::read_organization))
        .routes(routes!(object_storage::push_access))
        .routes(routes!(cluster::status))
        .routes(routes!(cluster::create_token))
        .routes(routes!(cluster::remove_node))
        .routes(routes!(service::config))
        .routes(routes!(service::alive))
        .routes(routes!(service::ready))
        .split_for_parts()
}
