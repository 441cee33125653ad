//! The registry door: the node's images as an OCI Distribution registry (v2), below `/v2/` on the API's own port, for
//! `docker push`, `skopeo copy` and `crane` to any node. What one node has, every node gives out.
//!
//! **Who.** The user name is ignored, the password is an API key: `docker login -u atoll -p dtn_… <host:port>`. The key's
//! organization owns the repositories; there is no way to see those of another.
//!
//! **Where.** `<host:port>/<organization id>/<image>:<tag>`, or `<host:port>/<image>:<tag>`, which is the same. In the
//! store, and for snapshots, this is `atoll.internal/<organization id>/<image>:<tag>`.
//!
//! **What a push leaves.** The blobs on the node that was pushed to; others fetch them when they need them. A tag stands
//! until it is moved or removed; a manifest without a tag until disk is short. An upload lives on one node: a client that
//! is sent to another one in the midst of it is told so, and begins again.
//!
//! ```text
//! edge ── Unix socket ──▶ answer ─▶ access (whose) ─▶ path (what) ─▶ blobs · uploads · manifests · lists
//!                            └───────────── errors: status and body ◀──────────────┘
//! ```

mod access;
mod blobs;
mod errors;
mod lists;
mod manifests;
mod path;
mod pending;
mod range;
#[cfg(test)]
mod tests;
mod uploads;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::ids::RequestId;
use atoll_mesh::dial::Directory;
use atoll_runner::store::Store;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures_util::{FutureExt, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::blobs::{PeerStores, Reach};
use crate::copies::Copies;
use errors::RegistryError;
use path::Target;
pub use pending::Uploads;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// A refused upload is read to its end within these bounds, so that the client gets to read the answer.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
const DRAIN_BYTES_MAX: usize = 16 << 20;

/// Everything the handlers use.
pub struct Registry {
    pub directory: Arc<dyn Directory>,
    pub store: Store,
    pub peers: PeerStores,
    pub reach: Arc<Reach>,
    pub uploads: Uploads,
    /// What is pushed here gets one on another node.
    pub copies: Option<Copies>,
    /// Uploads in progress; they end with their clients' connections.
    pub tasks: TaskTracker,
}

/// What a request says beside its path.
struct Asked<'a> {
    method: &'a Method,
    headers: &'a HeaderMap,
    query: Vec<(String, String)>,
}

impl Asked<'_> {
    fn query(&self, name: &str) -> Option<&str> {
        let last = self.query.iter().rev().find(|(key, _)| key == name);
        last.map(|(_, value)| value.as_str())
    }
}

/// A request's body until somebody takes it; what nobody takes is drained.
struct Untaken(Option<Body>);

impl Untaken {
    fn take(&mut self) -> Body {
        self.0.take().unwrap_or_else(Body::empty)
    }
}

/// To be merged with the API's router. Has no deadline of its own: an upload takes its time, and every step is bounded.
pub fn router(registry: Arc<Registry>) -> Router {
    let served = any(answer);
    Router::new()
        .route("/v2", served.clone())
        .route("/v2/", served.clone())
        .route("/v2/{*rest}", served)
        .with_state(registry)
}

async fn answer(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let given = parts.headers.get(RequestId::HEADER).and_then(|id| id.to_str().ok()?.parse().ok());
    let request_id: RequestId = given.unwrap_or_else(|| RequestId::from_random(rand::random()));
    let span = tracing::info_span!("registry", %request_id, method = %parts.method, path = parts.uri.path());
    let mut body = Untaken(Some(body));
    let answered = registry.answer(&parts, &mut body).instrument(span.clone());
    let answered = AssertUnwindSafe(answered).catch_unwind().await;
    let answered = answered.unwrap_or_else(|_| Err(RegistryError::Bug("a handler panicked".to_owned())));
    let mut response = match answered {
        Ok(response) => response,
        Err(error) => {
            if let Some(body) = body.0 {
                let _ = tokio::time::timeout(DRAIN_TIMEOUT, drain(body)).await;
            }
            span.in_scope(|| error.into_response(&parts.method))
        }
    };
    let headers = response.headers_mut();
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    if let Ok(value) = HeaderValue::from_str(request_id.as_str()) {
        headers.insert(RequestId::HEADER, value);
    }
    response
}

impl Registry {
    async fn answer(
        self: &Arc<Self>,
        parts: &http::request::Parts,
        body: &mut Untaken,
    ) -> Result<Response, RegistryError> {
        let caller = access::caller(&*self.directory, &parts.headers).await?;
        let target = Target::parse(parts.uri.path(), caller.organization_id)?;
        let method = &parts.method;
        let query = path::query(parts.uri.query().unwrap_or_default())?;
        let asked = Asked { method, headers: &parts.headers, query };
        let owner = caller.organization_id;
        match (method.as_str(), &target) {
            ("GET" | "HEAD", Target::Base) => Ok(json(StatusCode::OK, b"{}".to_vec())),
            ("GET", Target::Catalog) => self.catalog(owner, &asked).await,
            ("GET", Target::Tags(repository)) => self.tags(repository, &asked).await,
            ("GET" | "HEAD", Target::Manifest(repository, version)) => {
                self.read_manifest(repository, version, &asked).await
            }
            ("PUT", Target::Manifest(repository, version)) => {
                self.put_manifest(repository, version, &asked, body).await
            }
            ("DELETE", Target::Manifest(repository, version)) => {
                self.delete_manifest(repository, version).await
            }
            ("GET" | "HEAD", Target::Blob(repository, digest)) => {
                self.read_blob(repository, *digest, &asked).await
            }
            ("POST", Target::Uploads(repository)) => self.begin_upload(repository, &asked, body).await,
            ("GET", Target::Upload(repository, id)) => self.upload_status(repository, id),
            ("PATCH", Target::Upload(repository, id)) => {
                self.continue_upload(repository, id, &asked, body).await
            }
            ("PUT", Target::Upload(repository, id)) => self.finish_upload(repository, id, &asked, body).await,
            ("DELETE", Target::Upload(repository, id)) => self.cancel_upload(repository, id),
            // Clients then look for the tag that the specification has for registries without this list.
            (_, Target::Referrers) => {
                Err(RegistryError::NoSuchPath("referrers are not listed here".to_owned()))
            }
            (method, _) => Err(RegistryError::Unsupported(format!("{method} is not served here"))),
        }
    }
}

async fn drain(body: Body) {
    let (mut body, mut bytes) = (body.into_data_stream(), 0);
    while bytes < DRAIN_BYTES_MAX
        && let Some(Ok(chunk)) = body.next().await
    {
        bytes += chunk.len();
    }
}

fn json(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(http::header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// A header's value that we made ourselves, of characters that a header may hold.
fn value(text: &str) -> Result<HeaderValue, RegistryError> {
    HeaderValue::from_str(text).map_err(|_| RegistryError::Bug(format!("{text:?} is no header")))
}
