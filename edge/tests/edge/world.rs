//! A small world: one edge, sandboxes whose programs run in this process, an API on a Unix socket.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::access::{AuthorizedSandbox, Caller, PreviewGrant, SandboxFacts, SshGrant, Target};
use atoll_api::file_link::SigningSecret;
use atoll_api::ids::{Generation, NodeId, OrganizationId, RegionOrdinal, RequestId, SandboxId, UserId};
use atoll_api::sandbox::{Phase, Placement};
use atoll_api::tokens::{ApiKey, SignedPreviewToken, SshToken, TokenHash};
use atoll_edge::{CookieKey, Edge, EdgeConfig, EdgeHandle, EdgeLimits};
use atoll_mesh::dial::{ByteStream, Dial, DialError, Directory, DirectoryError};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{any, get, post};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Notify;

pub const DOMAIN: &str = "preview.localhost";
pub const PREVIEW_TOKEN: &str = "right";
pub const SIGNED: &str = "00aaaaaaaaaaaaaa";
pub const SIGNED_EXPIRED: &str = "00bbbbbbbbbbbbbb";
/// A wait that only ever runs out when a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn sandbox_id(n: u8) -> SandboxId {
    SandboxId::new(RegionOrdinal::new(0).unwrap(), [n; 14])
}

pub fn key_of(organization: u8) -> ApiKey {
    ApiKey::from_random([organization; 32])
}

/// Private, of organization 1. [`PUBLIC`] is the same, but public.
pub const PRIVATE: u8 = 1;
pub const PUBLIC: u8 = 2;

pub struct World {
    pub edge: EdgeHandle,
    pub http: SocketAddr,
    pub https: Option<SocketAddr>,
    pub directory: Arc<FakeDirectory>,
    pub dial: Arc<FakeDial>,
    pub app: App,
    _api_dir: tempfile::TempDir,
}

impl World {
    pub async fn new() -> World {
        World::with(None, EdgeLimits::default()).await
    }

    pub async fn with(tls: Option<Arc<rustls::ServerConfig>>, limits: EdgeLimits) -> World {
        let app = App::default();
        let address = app.serve().await;
        let directory = Arc::new(FakeDirectory::default());
        let dial = Arc::new(FakeDial { fallback: Some(address), ..FakeDial::default() });
        let api_dir = tempfile::tempdir().unwrap();
        let api_socket = api_dir.path().join("api.sock");
        let api = UnixListener::bind(&api_socket).unwrap();
        let router = App { name: "api".into(), ..app.clone() }.router();
        tokio::spawn(async move { axum::serve(api, router).await.unwrap() });
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let config = EdgeConfig {
            http: any,
            https: tls.as_ref().map(|_| any),
            preview_domain: DOMAIN.into(),
            api_socket,
            cookie_key: CookieKey::new([5; 32]),
            signing_secret: signing_secret(),
            threads: Some(2),
            limits,
        };
        let edge = Edge::start(config, tls, directory.clone(), dial.clone()).unwrap();
        let addresses = edge.local_addrs();
        World { edge, http: addresses.http, https: addresses.https, directory, dial, app, _api_dir: api_dir }
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.http).await
    }

    /// One request on a connection of its own.
    pub async fn send(&self, request: http::request::Builder) -> Answer {
        self.client().await.send(request).await
    }
}

pub fn signing_secret() -> SigningSecret {
    SigningSecret::new([6; 32])
}

pub fn preview(port: u16, sandbox: u8) -> String {
    format!("{port}-{}.{DOMAIN}", sandbox_id(sandbox))
}

pub fn get_from(host: &str, target: &str) -> http::request::Builder {
    http::Request::builder().uri(target).header(header::HOST, host)
}

pub fn bearer(key: &ApiKey) -> String {
    format!("Bearer {}", key.reveal())
}

/// One HTTP/1.1 connection to the edge.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Client {
        let tcp = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Client { sender }
    }

    pub async fn send(&mut self, request: http::request::Builder) -> Answer {
        self.send_body(request, Bytes::new()).await
    }

    pub async fn send_body(&mut self, request: http::request::Builder, body: Bytes) -> Answer {
        Answer::read(self.open(request, body).await).await
    }

    /// The answer's head, while the body is still to come.
    pub async fn open(&mut self, request: http::request::Builder, body: Bytes) -> http::Response<Incoming> {
        let request = request.body(Full::new(body)).unwrap();
        self.sender.ready().await.expect("the edge keeps the connection");
        tokio::time::timeout(PATIENCE, self.sender.send_request(request)).await.unwrap().unwrap()
    }

    /// Resolves when the server has closed the connection.
    pub async fn closed(&mut self) {
        let closed = async { while self.sender.ready().await.is_ok() {} };
        tokio::time::timeout(PATIENCE, closed).await.expect("the connection is closed");
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub async fn read(response: http::Response<Incoming>) -> Answer {
        let (head, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// What the program behind the edge saw of a header.
    pub fn saw(&self, name: &str) -> Option<String> {
        self.json()["headers"][name].as_str().map(str::to_owned)
    }
}

/// Sends bytes as they are and reads until the server closes.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "the connection stays open after {:?}", String::from_utf8_lossy(&answer));
    String::from_utf8_lossy(&answer).into_owned()
}

#[derive(Default)]
pub struct FakeDirectory {
    pub touches: AtomicUsize,
    pub region_down: AtomicBool,
    pub signed_links_ended: AtomicBool,
    pub signing_key_version: AtomicU32,
    /// What a replica that has not heard of the newest still says.
    pub stale_signing_key_version: AtomicU32,
}

#[async_trait]
impl Directory for FakeDirectory {
    async fn sandbox(&self, id: SandboxId) -> Result<SandboxFacts, DirectoryError> {
        if self.region_down.load(Ordering::SeqCst) {
            return Err(DirectoryError::Unreachable("eu".into()));
        }
        let n = (1..=20).find(|n| sandbox_id(*n) == id).ok_or(DirectoryError::NotFound)?;
        Ok(SandboxFacts {
            sandbox_id: id,
            organization_id: OrganizationId(uuid::Uuid::from_u128(1)),
            public: n != PRIVATE,
            preview_token_hash: TokenHash::of(PREVIEW_TOKEN),
            phase: Phase::Running,
            placement: Placement { node_id: NodeId(1), generation: Generation(1) },
            signing_key_version: self.stale_signing_key_version.load(Ordering::SeqCst),
        })
    }

    async fn sandbox_now(&self, id: SandboxId) -> Result<SandboxFacts, DirectoryError> {
        let facts = self.sandbox(id).await?;
        Ok(SandboxFacts { signing_key_version: self.signing_key_version.load(Ordering::SeqCst), ..facts })
    }

    async fn signed_preview(&self, token: &SignedPreviewToken) -> Result<PreviewGrant, DirectoryError> {
        let grant =
            |expires_at_ms| PreviewGrant { sandbox_id: sandbox_id(PRIVATE), port: 3000, expires_at_ms };
        match token.reveal() {
            SIGNED if !self.signed_links_ended.load(Ordering::SeqCst) => Ok(grant(u64::MAX)),
            SIGNED_EXPIRED => Ok(grant(1)),
            _ => Err(DirectoryError::NotFound),
        }
    }

    async fn ssh_token(&self, _token: &SshToken) -> Result<SshGrant, DirectoryError> {
        Err(DirectoryError::NotFound)
    }

    async fn api_key(&self, key: &ApiKey) -> Result<Caller, DirectoryError> {
        let n = (1..=2u8).find(|n| key_of(*n) == *key).ok_or(DirectoryError::NotFound)?;
        Ok(Caller {
            organization_id: OrganizationId(uuid::Uuid::from_u128(n.into())),
            user_id: UserId(uuid::Uuid::nil()),
            key_name: "k".into(),
        })
    }

    async fn ssh_token_ended(&self, _grant: &SshGrant) {
        std::future::pending().await
    }

    fn touch(&self, _sandbox_id: SandboxId) {
        self.touches.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
pub struct FakeDial {
    pub fallback: Option<SocketAddr>,
    pub programs: Mutex<HashMap<(SandboxId, Target), Result<SocketAddr, DialError>>>,
    pub dialed: Mutex<Vec<(SandboxId, Target)>>,
}

impl FakeDial {
    pub fn set(&self, sandbox: u8, port: u16, result: Result<SocketAddr, DialError>) {
        self.programs.lock().unwrap().insert((sandbox_id(sandbox), Target::port(port)), result);
    }
}

#[async_trait]
impl Dial for FakeDial {
    async fn dial(
        &self,
        sandbox: &AuthorizedSandbox,
        _request_id: &RequestId,
    ) -> Result<ByteStream, DialError> {
        let to = (sandbox.sandbox_id(), sandbox.target());
        self.dialed.lock().unwrap().push(to);
        let program = self.programs.lock().unwrap().get(&to).cloned();
        let address = program.unwrap_or(self.fallback.ok_or(DialError::NotFound))?;
        let tcp =
            TcpStream::connect(address).await.map_err(|error| DialError::Unreachable(error.to_string()))?;
        tcp.set_nodelay(true).unwrap();
        Ok(Box::new(tcp))
    }
}

/// A program that listens.
#[derive(Clone, Default)]
pub struct App {
    pub name: String,
    /// Lets a held answer go on.
    pub go_on: Arc<Notify>,
    /// Requests that arrived at a held answer.
    pub held: Arc<Notify>,
    pub connections: Arc<AtomicUsize>,
    /// What `/flood` has been asked for.
    pub flooded_bytes: Arc<AtomicUsize>,
}

impl App {
    pub fn named(name: &str) -> App {
        App { name: name.into(), ..App::default() }
    }

    pub async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = self.clone();
        let counted = axum::serve::ListenerExt::tap_io(listener, move |tcp: &mut TcpStream| {
            app.connections.fetch_add(1, Ordering::SeqCst);
            tcp.set_nodelay(true).unwrap();
        });
        let router = self.router();
        tokio::spawn(async move { axum::serve(counted, router).await.unwrap() });
        address
    }

    pub fn router(&self) -> Router {
        Router::new()
            .route("/sse", get(sse))
            .route("/held", get(held))
            .route("/upload", post(upload))
            .route("/download/{bytes}", get(download))
            .route("/flood", get(flood))
            .route("/ws", any(ws))
            .route("/redirect", get(|| async { Redirect::temporary("/elsewhere?x=1") }))
            .fallback(mirror)
            .with_state(self.clone())
    }
}

/// Says what it was asked.
async fn mirror(State(app): State<App>, request: Request) -> Response {
    let headers: serde_json::Map<String, Value> = request
        .headers()
        .keys()
        .map(|name| {
            let values: Vec<_> = request
                .headers()
                .get_all(name)
                .iter()
                .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
                .collect();
            (name.to_string(), json!(values.join(" | ")))
        })
        .collect();
    let told = json!({
        "app": app.name,
        "method": request.method().as_str(),
        "target": request.uri().to_string(),
        "headers": headers,
    });
    ([("x-app", "1")], axum::Json(told)).into_response()
}

async fn sse(State(app): State<App>) -> Response {
    let first = futures_util::stream::once(async { Ok::<_, std::io::Error>(Bytes::from("data: first\n\n")) });
    let second = futures_util::stream::once(async move {
        app.go_on.notified().await;
        Ok(Bytes::from("data: second\n\n"))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(first.chain(second))).into_response()
}

async fn held(State(app): State<App>) -> String {
    app.held.notify_one();
    app.go_on.notified().await;
    "done".into()
}

async fn upload(body: Body) -> Result<String, StatusCode> {
    let mut stream = body.into_data_stream();
    let (mut bytes, mut sum) = (0usize, 0u64);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| StatusCode::BAD_REQUEST)?;
        bytes += chunk.len();
        sum = chunk.iter().fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    }
    Ok(format!("{bytes} {sum}"))
}

async fn download(Path(bytes): Path<usize>) -> Body {
    const CHUNK: usize = 64 * 1024;
    let chunks = futures_util::stream::iter((0..bytes.div_ceil(CHUNK)).map(move |i| {
        Ok::<_, std::io::Error>(Bytes::from(vec![(i % 251) as u8; CHUNK.min(bytes - i * CHUNK)]))
    }));
    Body::from_stream(chunks)
}

/// Never ends.
async fn flood(State(app): State<App>) -> Body {
    let chunk = Bytes::from(vec![0; 64 * 1024]);
    Body::from_stream(futures_util::stream::repeat_with(move || {
        app.flooded_bytes.fetch_add(chunk.len(), Ordering::SeqCst);
        Ok::<_, std::io::Error>(chunk.clone())
    }))
}

async fn ws(upgrade: WebSocketUpgrade, headers: HeaderMap) -> Response {
    let seen = headers.contains_key(header::AUTHORIZATION);
    upgrade.on_upgrade(move |mut socket| async move {
        while let Some(Ok(message)) = socket.next().await {
            use axum::extract::ws::Message;
            let answer = match message {
                Message::Text(text) if text.as_str() == "authorization?" => Message::text(seen.to_string()),
                message @ (Message::Text(_) | Message::Binary(_)) => message,
                _ => continue,
            };
            if socket.send(answer).await.is_err() {
                return;
            }
        }
    })
}
