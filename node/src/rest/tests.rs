//! The door as clients see it: every route's answer, every refusal, the document, the socket, the events.

use std::collections::BTreeMap;
use std::os::linux::net::SocketAddrExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::access::{Caller, PreviewGrant, SandboxFacts, SshGrant};
use atoll_api::ids::{
    Generation, NodeId, OrganizationId, RegionOrdinal, RequestId, SandboxId, UserId, WarmPoolId,
};
use atoll_api::rest::{BuildProgress, SandboxState, Timestamp};
use atoll_api::sandbox::{Desired, Phase, Placement, Resources, SandboxSpec};
use atoll_api::tokens::{ApiKey, SignedPreviewToken, SshToken, TokenHash};
use atoll_consensus::state::cluster::{
    Activation, ApiKeyRecord, ClusterState, NodeAddresses, NodeCapacity, NodeRecord, OrganizationRecord,
    RegionRecord, RegistryRecord, SnapshotKey, SnapshotRecord, SnapshotSource,
    SnapshotState as SnapshotRecordState, WarmPoolRecord,
};
use atoll_consensus::state::region::{CapturePurpose, Checkpoint, Disk, NodeHealth, SandboxRecord};
use atoll_mesh::dial::{Directory, DirectoryError};
use atoll_runner::store::{Store, StoreConfig};
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Method, Request};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, broadcast};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::build_logs::Reading;
use crate::control::verb::*;
use crate::objects::{Contexts, Issuer};

const REFERENCE: &str = include_str!("tests/reference.json");
const NAME: &str = "box";
const NOW_MS: u64 = 1_700_000_000_000;

fn sandbox_id() -> SandboxId {
    SandboxId::new(RegionOrdinal::new(0).unwrap(), [7; 14])
}

fn organization_id() -> OrganizationId {
    OrganizationId(uuid::Uuid::from_u128(1))
}

fn key() -> ApiKey {
    ApiKey::from_random([1; 32])
}

/// A key whose organization's region cannot be asked.
fn unreachable_key() -> ApiKey {
    ApiKey::from_random([2; 32])
}

fn view() -> SandboxView {
    SandboxView {
        sandbox_id: sandbox_id(),
        region: "eu".parse().unwrap(),
        last_activity_at_ms: NOW_MS + 2,
        build: None,
        record: SandboxRecord {
            organization_id: organization_id(),
            name: NAME.into(),
            spec: SandboxSpec {
                snapshot: "base".into(),
                image: "atoll/base:1".into(),
                user: "daytona".into(),
                env: [("A".into(), "b".into())].into(),
                entrypoint: vec![],
                resources: Resources { cpu: 1, memory_gib: 2, disk_gib: 3 },
                egress: Default::default(),
                allow_sudo: true,
            },
            labels: [("code-toolbox-language".into(), "python".into())].into(),
            public: false,
            auto_stop_minutes: 15,
            auto_pause_minutes: 0,
            auto_archive_minutes: 10_080,
            auto_delete_minutes: -1,
            preview_token_hash: TokenHash::of("x"),
            desired: Desired::Running,
            phase: Phase::Running,
            placement: Placement { node_id: NodeId(5), generation: Generation::FIRST },
            created_at_ms: NOW_MS,
            updated_at_ms: NOW_MS + 1,
            desired_version: 1,
            disk: Disk::Image,
            parent: None,
            captures: BTreeMap::new(),
            captures_asked: 0,
            snapshot_taken: None,
            archive_failure: None,
            restored_version: 0,
            warm: None,
            signing_key_version: 0,
            build: None,
        },
    }
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        image: "atoll.internal/o/s@sha256:1".into(),
        bytes: 5,
        taken_at_ms: NOW_MS + 7,
        holders: [NodeId(5), NodeId(6)].into(),
    }
}

fn snapshot_record(n: u128) -> SnapshotRecord {
    SnapshotRecord {
        default_user: "daytona".into(),
        ..SnapshotRecord::given(
            uuid::Uuid::from_u128(n),
            "atoll/base:1".into(),
            Resources { cpu: 1, memory_gib: 1, disk_gib: 3 },
            NOW_MS,
        )
    }
}

/// Of the key's organization, built from a Dockerfile.
fn own_snapshot() -> (String, SnapshotRecord) {
    let source =
        SnapshotSource::Build { dockerfile: "FROM alpine:3\n".into(), context_hashes: vec!["abc".into()] };
    let record = SnapshotRecord {
        source,
        organization_id: Some(organization_id()),
        regions: vec!["eu".parse().unwrap()],
        size_bytes: Some(3 << 28),
        last_used_at_ms: Some(NOW_MS + 3),
        worker: Some(NodeId(5)),
        updated_at_ms: NOW_MS + 1,
        ..snapshot_record(7)
    };
    ("mine".into(), record)
}

fn registry() -> (uuid::Uuid, RegistryRecord) {
    let record = RegistryRecord {
        organization_id: organization_id(),
        name: "hub".into(),
        url: "https://index.docker.io/v1/".into(),
        host: "docker.io".into(),
        username: "me".into(),
        sealed_password: b"sealed".to_vec(),
        project: String::new(),
        created_at_ms: NOW_MS,
        updated_at_ms: NOW_MS + 1,
    };
    (uuid::Uuid::from_u128(8), record)
}

type Script = Box<dyn Fn(&Verb) -> Result<VerbAnswer, VerbError> + Send + Sync>;

/// Answers as told, and remembers what it was asked.
struct FakeControl {
    script: Mutex<Script>,
    asked: Mutex<Vec<(RequestId, Verb)>>,
    /// A start waits for it.
    gate: Notify,
}

#[async_trait]
impl Control for FakeControl {
    async fn perform(
        &self,
        caller: &Caller,
        request_id: &RequestId,
        verb: Verb,
    ) -> Result<VerbAnswer, VerbError> {
        assert_eq!(caller.organization_id, organization_id());
        self.asked.lock().unwrap().push((request_id.clone(), verb.clone()));
        if matches!(verb, Verb::Start { .. }) {
            self.gate.notified().await;
        }
        (self.script.lock().unwrap())(&verb)
    }
}

/// What a healthy system says.
fn healthy(verb: &Verb) -> Result<VerbAnswer, VerbError> {
    let sandbox = |change: &dyn Fn(&mut SandboxRecord)| {
        let mut view = view();
        change(&mut view.record);
        Ok(VerbAnswer::Sandbox(Box::new(view)))
    };
    match verb {
        Verb::Get { sandbox: SandboxReference::Name(name) } if name != NAME => {
            Err(VerbError::NotFound("sandbox not found".into()))
        }
        Verb::Stop { .. } => sandbox(&|record| {
            record.desired = Desired::Stopped;
            record.phase = Phase::Stopped;
        }),
        Verb::Delete { .. } => sandbox(&|record| record.desired = Desired::Deleted),
        Verb::Pause { .. } => sandbox(&|record| {
            record.desired = Desired::Paused;
            record.phase = Phase::Paused;
        }),
        Verb::SetLabels { labels, .. } => sandbox(&|record| record.labels = labels.clone()),
        Verb::SetPublic { public, .. } => sandbox(&|record| record.public = *public),
        Verb::Archive { .. } => sandbox(&|record| {
            (record.desired, record.phase) = (Desired::Archived, Phase::Archived);
            record.disk = Disk::Checkpoint(checkpoint());
        }),
        Verb::Fork { name, .. } => sandbox(&|record| {
            record.name = name.clone().unwrap_or_else(|| NAME.to_owned());
            record.parent = Some(sandbox_id());
        }),
        Verb::Snapshot { .. } => sandbox(&|record| {
            let purpose = CapturePurpose::Snapshot { id: uuid::Uuid::nil(), name: "s".into() };
            record.captures.insert(1, purpose);
        }),
        Verb::Forks { .. } | Verb::Ancestors { .. } => Ok(VerbAnswer::Sandboxes(vec![view()])),
        Verb::Create(_)
        | Verb::Get { .. }
        | Verb::Start { .. }
        | Verb::SetIntervals { .. }
        | Verb::SetEgress { .. }
        | Verb::RevokeSsh { .. } => sandbox(&|_| {}),
        Verb::List(_) => Ok(VerbAnswer::Page(SandboxPage {
            items: vec![view()],
            next_cursor: None,
            unreachable_regions: vec!["us".parse().unwrap(), "ap".parse().unwrap()],
        })),
        Verb::PreviewToken { port, .. } => {
            Ok(VerbAnswer::PreviewToken { sandbox_id: sandbox_id(), port: *port, token: "p".repeat(32) })
        }
        Verb::SignPreview { port, .. } => {
            Ok(VerbAnswer::SignedPreview { sandbox_id: sandbox_id(), port: *port, token: "s".repeat(16) })
        }
        Verb::SigningKey { .. } => Ok(VerbAnswer::SigningKey(Password("k".repeat(64)))),
        Verb::RotateSigningKey { .. } => Ok(VerbAnswer::SigningKey(Password("n".repeat(64)))),
        Verb::IssueSsh { .. } => Ok(VerbAnswer::SshAccess {
            id: uuid::Uuid::from_u128(9),
            sandbox_id: sandbox_id(),
            token: "t".repeat(32),
            created_at_ms: NOW_MS,
            expires_at_ms: NOW_MS + 60_000,
        }),
        Verb::ValidateSsh { token } => {
            Ok(VerbAnswer::SshValidity { sandbox_id: token.starts_with('t').then(sandbox_id) })
        }
        Verb::ListSnapshots => Ok(VerbAnswer::Snapshots(
            [("base", 1), ("Alpine", 2), ("debian", 3)]
                .map(|(name, n)| (name.to_owned(), snapshot_record(n)))
                .to_vec(),
        )),
        Verb::GetSnapshot { id_or_name } if id_or_name == "mine" => {
            Ok(VerbAnswer::Snapshots(vec![own_snapshot()]))
        }
        Verb::GetSnapshot { .. } => Ok(VerbAnswer::Snapshots(vec![("base".into(), snapshot_record(1))])),
        Verb::CreateSnapshot(_) | Verb::ActivateSnapshot { .. } => {
            Ok(VerbAnswer::Snapshots(vec![own_snapshot()]))
        }
        Verb::ListRegistries
        | Verb::GetRegistry { .. }
        | Verb::CreateRegistry(_)
        | Verb::UpdateRegistry { .. } => Ok(VerbAnswer::Registries(vec![registry()])),
        Verb::ClusterStatus => Ok(VerbAnswer::Cluster(cluster_view())),
        Verb::CreateJoinToken { .. } => {
            Ok(VerbAnswer::JoinToken { token: "join".into(), expires_at_ms: NOW_MS })
        }
        Verb::GrantPush => {
            Ok(VerbAnswer::PushGrant { secret: key().reveal().to_owned(), expires_at_ms: NOW_MS })
        }
        Verb::ListWarmPools => Ok(VerbAnswer::WarmPools {
            pools: vec![warm_pool_view(2)],
            unreachable_regions: vec!["us".parse().unwrap()],
        }),
        Verb::CreateWarmPool { size, .. } | Verb::ResizeWarmPool { size, .. } => {
            Ok(VerbAnswer::WarmPool(Box::new(warm_pool_view(*size))))
        }
        Verb::RemoveNode { .. }
        | Verb::Touch { .. }
        | Verb::ExpirePreview { .. }
        | Verb::DeleteWarmPool { .. }
        | Verb::DeleteSnapshot { .. }
        | Verb::DeleteRegistry { .. } => Ok(VerbAnswer::Done),
    }
}

fn pool_id() -> WarmPoolId {
    WarmPoolId(uuid::Uuid::from_u128(3))
}

fn warm_pool_view(size: u32) -> WarmPoolView {
    WarmPoolView {
        pool_id: pool_id(),
        record: WarmPoolRecord {
            organization_id: organization_id(),
            snapshot: "base".into(),
            region: "eu".parse().unwrap(),
            size,
            error_reason: Some("no room".into()),
            created_at_ms: NOW_MS,
            updated_at_ms: NOW_MS + 1,
        },
        resources: Resources { cpu: 1, memory_gib: 2, disk_gib: 3 },
        user: "daytona".into(),
        current_size: 1,
    }
}

fn cluster_view() -> ClusterView {
    let record = NodeRecord {
        name: "n1".into(),
        region: "eu".parse().unwrap(),
        zone: None,
        addresses: NodeAddresses {
            mesh: "127.0.0.1:9103".into(),
            http: "http://127.0.0.1:9100".into(),
            https: None,
            ssh: "127.0.0.1:9102".into(),
        },
        capacity: NodeCapacity { total: Resources { cpu: 8, memory_gib: 8, disk_gib: 8 }, sandboxes_max: 8 },
        command_version: 1,
        joined_at_ms: NOW_MS,
    };
    ClusterView {
        cluster_id: uuid::Uuid::from_u128(4),
        nodes: vec![
            NodeView {
                node_id: NodeId(5),
                record: record.clone(),
                health: Some(NodeHealth::Ready),
                sandboxes: 3,
            },
            NodeView { node_id: NodeId(6), record, health: None, sandboxes: 0 },
        ],
        groups: vec![GroupStatusView {
            name: "region/eu".into(),
            leader: Some(NodeId(5)),
            term: 2,
            voters: vec![NodeId(5)],
            learners: vec![NodeId(6)],
            last_applied: Some(40),
        }],
    }
}

struct FakeDirectory;

#[async_trait]
impl Directory for FakeDirectory {
    async fn sandbox(&self, _: SandboxId) -> Result<SandboxFacts, DirectoryError> {
        Err(DirectoryError::NotFound)
    }
    async fn sandbox_now(&self, _: SandboxId) -> Result<SandboxFacts, DirectoryError> {
        Err(DirectoryError::NotFound)
    }
    async fn signed_preview(&self, _: &SignedPreviewToken) -> Result<PreviewGrant, DirectoryError> {
        Err(DirectoryError::NotFound)
    }
    async fn ssh_token(&self, _: &SshToken) -> Result<SshGrant, DirectoryError> {
        Err(DirectoryError::NotFound)
    }
    async fn api_key(&self, shown: &ApiKey) -> Result<Caller, DirectoryError> {
        if *shown == unreachable_key() {
            return Err(DirectoryError::Unreachable("eu".into()));
        }
        (*shown == key())
            .then(|| Caller {
                organization_id: organization_id(),
                user_id: UserId(uuid::Uuid::from_u128(2)),
                key_name: "k".into(),
            })
            .ok_or(DirectoryError::NotFound)
    }
    async fn ssh_token_ended(&self, _: &SshGrant) {
        std::future::pending().await
    }
    fn touch(&self, _: SandboxId) {}
}

fn cluster_state() -> ClusterState {
    let user_id = UserId(uuid::Uuid::from_u128(2));
    let mut state = ClusterState::default();
    let organization =
        OrganizationRecord { name: "default".into(), created_by: user_id, created_at_ms: NOW_MS };
    state.organizations.insert(organization_id(), organization);
    let record = ApiKeyRecord {
        name: "admin".into(),
        organization_id: organization_id(),
        user_id,
        hint: "dtn…101".into(),
        may_administer: true,
        created_at_ms: NOW_MS,
        expires_at_ms: None,
    };
    state.api_keys.insert(key().hash(), record);
    let region =
        RegionRecord { ordinal: RegionOrdinal::new(0).unwrap(), founder: NodeId(5), created_at_ms: NOW_MS };
    state.regions.insert("eu".parse().unwrap(), region);
    state
}

/// A log that says what was asked for. Followed, it never ends.
struct FakeLogs;

impl BuildLogSource for FakeLogs {
    fn read(&self, key: SnapshotKey, reading: Reading) -> BoxStream<'static, Bytes> {
        let line = stream::iter([Bytes::from(format!("{} {reading:?}\n", key.name))]);
        match reading {
            Reading::Now => line.boxed(),
            Reading::Follow => line.chain(stream::pending()).boxed(),
        }
    }
}

struct World {
    router: Router,
    control: Arc<FakeControl>,
    events: broadcast::Sender<Event>,
    closing: CancellationToken,
    down: Arc<Mutex<Option<String>>>,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl World {
    fn new() -> World {
        World::with_listeners(LISTENERS_MAX)
    }

    fn with_listeners(listeners_max: usize) -> World {
        let control = Arc::new(FakeControl {
            script: Mutex::new(Box::new(healthy)),
            asked: Mutex::default(),
            gate: Notify::new(),
        });
        let down = Arc::new(Mutex::new(None));
        let (events, _) = broadcast::channel(4);
        let closing = CancellationToken::new();
        let readiness = {
            let down = down.clone();
            Arc::new(move || Readiness {
                components: vec![
                    Component { name: "cluster".into(), down: None },
                    Component { name: "runner".into(), down: down.lock().unwrap().clone() },
                ],
            })
        };
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig { dir: dir.path().into(), ..StoreConfig::default() }).unwrap();
        let objects = ObjectStorage::new(Issuer::new([1; 32]), Contexts::new(store));
        let router = router(RestState {
            objects,
            build_logs: Arc::new(FakeLogs),
            control: control.clone(),
            directory: Arc::new(FakeDirectory),
            facts: Arc::new(cluster_state()),
            readiness,
            events: events.clone(),
            listeners: Arc::new(Semaphore::new(listeners_max)),
            closing: closing.clone(),
            settings: Arc::new(RestSettings {
                version: "0.1.0".into(),
                node_id: NodeId(5),
                http_base: "http://127.0.0.1:9100".parse().unwrap(),
                https_base: Some("https://127.0.0.1:9101".parse().unwrap()),
                preview_domain: "preview.localhost".into(),
                default_snapshot: "base".into(),
                ssh_host: "127.0.0.1".into(),
                ssh_port: 9102,
                ssh_host_keys: vec!["ssh-ed25519 AAAA".into()],
            }),
        });
        World { router, control, events, closing, down }
    }

    fn answering(
        self,
        script: impl Fn(&Verb) -> Result<VerbAnswer, VerbError> + Send + Sync + 'static,
    ) -> World {
        *self.control.script.lock().unwrap() = Box::new(script);
        self
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).expect("JSON") };
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> Answer {
        self.control.gate.notify_one();
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = with_key(method, path).header("content-type", "application/json");
        self.send(request.body(body).unwrap()).await
    }

    fn last_asked(&self) -> Option<Verb> {
        self.control.asked.lock().unwrap().last().map(|(_, verb)| verb.clone())
    }
}

fn with_key(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(path).header("authorization", format!("Bearer {}", key().reveal()))
}

fn refused(answer: &Answer, status: u16, code: &str) -> String {
    let Answer { status: got, body, .. } = answer;
    assert_eq!((*got, body["code"].as_str()), (status, Some(code)), "{body}");
    assert_eq!(body["statusCode"], status);
    assert_eq!(body["source"], "DAYTONA_API");
    for field in ["path", "timestamp", "error", "message"] {
        assert!(body[field].is_string(), "{field}: {body}");
    }
    body["message"].as_str().unwrap().to_owned()
}

fn named() -> SandboxReference {
    SandboxReference::Name(NAME.into())
}

#[tokio::test]
async fn every_route_asks_its_verb_and_answers_in_the_documented_shape() {
    let id = sandbox_id();
    let by_id = || SandboxReference::Id(id);
    let token = "s".repeat(16);
    let interval = |change| Some(Verb::SetIntervals { sandbox: named(), change });
    let list = |change: fn(&mut ListSandboxes)| {
        let mut list = ListSandboxes { limit: 100, ..ListSandboxes::default() };
        change(&mut list);
        Some(Verb::List(list))
    };
    let organization = format!("/api/organizations/{}", organization_id());
    let registry_id = uuid::Uuid::from_u128(8);
    let wish = |password: Option<&str>, project: Option<&str>| RegistryWish {
        name: "hub".into(),
        url: "docker.io".into(),
        host: "docker.io".into(),
        username: "me".into(),
        password: password.map(|password| Password(password.into())),
        project: project.map(str::to_owned),
    };
    for (method, path, body, status, verb, model) in [
        ("POST", "/api/sandbox".to_owned(), json!({"labels": {"a": "b"}, "volumes": []}), 200,
            Some(Verb::Create(CreateSandbox { labels: [("a".into(), "b".into())].into(), ..Default::default() })), "Sandbox"),
        ("POST", "/api/sandbox".to_owned(), Value::Null, 200, Some(Verb::Create(CreateSandbox::default())), "Sandbox"),
        ("GET", "/api/sandbox".to_owned(), Value::Null, 200, list(|_| {}), "ListSandboxesResponse"),
        ("GET", "/api/sandbox?limit=7&cursor=abc&labels=%7B%22a%22%3A%20%22b%22%7D&states=started&states=archived&regionIds=eu&snapshots=base&id=0&name=b&includeErroredDeleted=true".to_owned(),
            Value::Null, 200,
            list(|list| {
                list.limit = 7;
                list.cursor = Some("abc".into());
                list.labels = [("a".into(), "b".into())].into();
                list.states = vec!["started".into(), "archived".into()];
                list.regions = vec!["eu".parse().unwrap()];
                list.snapshots = vec!["base".into()];
                list.id_prefix = Some("0".into());
                list.name_prefix = Some("b".into());
            }), "ListSandboxesResponse"),
        ("GET", format!("/api/sandbox/{NAME}"), Value::Null, 200, Some(Verb::Get { sandbox: named() }), "Sandbox"),
        ("GET", format!("/api/sandbox/{id}?verbose=true"), Value::Null, 200, Some(Verb::Get { sandbox: by_id() }), "Sandbox"),
        ("DELETE", format!("/api/sandbox/{id}"), Value::Null, 200, Some(Verb::Delete { sandbox: by_id() }), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/start"), Value::Null, 200, Some(Verb::Start { sandbox: named() }), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/stop"), Value::Null, 200, Some(Verb::Stop { sandbox: named(), force: false }), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/stop?force=true"), Value::Null, 200, Some(Verb::Stop { sandbox: named(), force: true }), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/pause"), Value::Null, 200, Some(Verb::Pause { sandbox: named() }), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/network-settings"), json!({"networkBlockAll": false, "networkAllowList": "10.0.0.0/8", "domainAllowList": null}), 200,
            Some(Verb::SetEgress { sandbox: named(), block_all: Some(false), networks: Some("10.0.0.0/8".into()), domains: None }), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/snapshot"), json!({"name": "s"}), 200,
            Some(Verb::Snapshot { sandbox: named(), name: "s".into() }), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/snapshot"), json!({"name": "s:1", "includeMemory": false}), 200,
            Some(Verb::Snapshot { sandbox: named(), name: "s:1".into() }), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/fork"), json!({"name": "f"}), 200, Some(Verb::Fork { sandbox: named(), name: Some("f".into()) }), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/fork"), json!({}), 200, Some(Verb::Fork { sandbox: named(), name: None }), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/fork"), Value::Null, 200, Some(Verb::Fork { sandbox: named(), name: None }), "Sandbox"),
        ("GET", format!("/api/sandbox/{NAME}/forks?includeDestroyed=true"), Value::Null, 200, Some(Verb::Forks { sandbox: named() }), "List[Sandbox]"),
        ("GET", format!("/api/sandbox/{NAME}/parent"), Value::Null, 200, Some(Verb::Ancestors { sandbox: named() }), "Sandbox"),
        ("GET", format!("/api/sandbox/{NAME}/ancestors"), Value::Null, 200, Some(Verb::Ancestors { sandbox: named() }), "List[Sandbox]"),
        ("POST", format!("/api/sandbox/{NAME}/archive"), Value::Null, 200, Some(Verb::Archive { sandbox: named() }), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/backup"), Value::Null, 200, Some(Verb::Get { sandbox: named() }), "Sandbox"),
        ("PUT", format!("/api/sandbox/{NAME}/labels"), json!({"labels": {"x": "y"}}), 200,
            Some(Verb::SetLabels { sandbox: named(), labels: [("x".into(), "y".into())].into() }), "SandboxLabels"),
        ("POST", format!("/api/sandbox/{NAME}/public/true"), Value::Null, 200, Some(Verb::SetPublic { sandbox: named(), public: true }), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/autostop/5"), Value::Null, 200, interval(IntervalChange::Stop(5)), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/autopause/5"), Value::Null, 200, interval(IntervalChange::Pause(5)), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/autoarchive/0"), Value::Null, 200, interval(IntervalChange::Archive(43_200)), "Sandbox"),
        ("POST", format!("/api/sandbox/{NAME}/autodelete/-9"), Value::Null, 200, interval(IntervalChange::Delete(-1)), "Sandbox"),
        ("POST", format!("/api/sandbox/{id}/last-activity"), json!({"lastActivityAt": "2026-01-01T00:00:00Z"}), 201, Some(Verb::Touch { sandbox: by_id() }), ""),
        ("GET", format!("/api/sandbox/{id}/toolbox-proxy-url"), Value::Null, 200, Some(Verb::Get { sandbox: by_id() }), "ToolboxProxyUrl"),
        ("GET", format!("/api/sandbox/{id}/signing-key"), Value::Null, 200, Some(Verb::SigningKey { sandbox: by_id() }), "str"),
        ("POST", format!("/api/sandbox/{id}/signing-key/rotate"), Value::Null, 200, Some(Verb::RotateSigningKey { sandbox: by_id() }), "str"),
        ("GET", format!("/api/sandbox/{NAME}/ports/3000/preview-url"), Value::Null, 200, Some(Verb::PreviewToken { sandbox: named(), port: 3000 }), "PortPreviewUrl"),
        ("GET", format!("/api/sandbox/{NAME}/ports/3000/signed-preview-url"), Value::Null, 200,
            Some(Verb::SignPreview { sandbox: named(), port: 3000, expires_in_s: 60 }), "SignedPortPreviewUrl"),
        ("GET", format!("/api/sandbox/{NAME}/ports/3000/signed-preview-url?expiresInSeconds=86400"), Value::Null, 200,
            Some(Verb::SignPreview { sandbox: named(), port: 3000, expires_in_s: 86_400 }), "SignedPortPreviewUrl"),
        ("POST", format!("/api/sandbox/{NAME}/ports/3000/signed-preview-url/{token}/expire"), Value::Null, 200,
            Some(Verb::ExpirePreview { sandbox: named(), port: 3000, token: token.clone() }), ""),
        ("POST", format!("/api/sandbox/{NAME}/ssh-access"), Value::Null, 200, Some(Verb::IssueSsh { sandbox: named(), expires_in_minutes: 60 }), "SshAccessDto"),
        ("POST", format!("/api/sandbox/{NAME}/ssh-access?expiresInMinutes=1440"), Value::Null, 200,
            Some(Verb::IssueSsh { sandbox: named(), expires_in_minutes: 1_440 }), "SshAccessDto"),
        ("DELETE", format!("/api/sandbox/{NAME}/ssh-access"), Value::Null, 200, Some(Verb::RevokeSsh { sandbox: named(), token: None }), "Sandbox"),
        ("DELETE", format!("/api/sandbox/{NAME}/ssh-access?token=abc"), Value::Null, 200, Some(Verb::RevokeSsh { sandbox: named(), token: Some("abc".into()) }), "Sandbox"),
        ("GET", "/api/sandbox/ssh-access/validate?token=ttt".to_owned(), Value::Null, 200, Some(Verb::ValidateSsh { token: "ttt".into() }), "SshAccessValidationDto"),
        ("GET", "/api/sandbox/ssh-access/validate?token=other".to_owned(), Value::Null, 200, Some(Verb::ValidateSsh { token: "other".into() }), "SshAccessValidationDto"),
        ("GET", "/api/config".to_owned(), Value::Null, 200, None, "DaytonaConfiguration"),
        ("GET", "/api/health".to_owned(), Value::Null, 200, None, ""),
        ("GET", "/api/health/ready".to_owned(), Value::Null, 200, None, ""),
        ("GET", "/api/cluster".to_owned(), Value::Null, 200, Some(Verb::ClusterStatus), ""),
        ("POST", "/api/cluster/tokens".to_owned(), json!({"ttlSeconds": 60, "uses": 3}), 201, Some(Verb::CreateJoinToken { ttl_s: 60, uses: 3 }), ""),
        ("DELETE", format!("/api/cluster/nodes/{}", NodeId(6)), Value::Null, 204, Some(Verb::RemoveNode { node_id: NodeId(6) }), ""),
        ("GET", "/api/snapshots".to_owned(), Value::Null, 200, Some(Verb::ListSnapshots), "PaginatedSnapshots"),
        ("GET", "/api/snapshots/base".to_owned(), Value::Null, 200, Some(Verb::GetSnapshot { id_or_name: "base".into() }), "SnapshotDto"),
        ("GET", "/api/docker-registry/registry-push-access?regionId=eu".to_owned(), Value::Null, 200, Some(Verb::GrantPush), "RegistryPushAccessDto"),
        ("GET", "/api/warm-pools".to_owned(), Value::Null, 200, Some(Verb::ListWarmPools), "List[WarmPool]"),
        ("POST", "/api/warm-pools".to_owned(), json!({"snapshot": "base", "pool": 3.0, "target": "us"}), 201,
            Some(Verb::CreateWarmPool { snapshot: "base".into(), size: 3, target: Some("us".parse().unwrap()) }), "WarmPool"),
        ("POST", "/api/warm-pools".to_owned(), json!({"snapshot": "base", "pool": 1, "target": null}), 201,
            Some(Verb::CreateWarmPool { snapshot: "base".into(), size: 1, target: None }), "WarmPool"),
        ("PATCH", format!("/api/warm-pools/{}", pool_id()), json!({"pool": 0}), 200,
            Some(Verb::ResizeWarmPool { pool_id: pool_id(), size: 0 }), "WarmPool"),
        ("DELETE", format!("/api/warm-pools/{}", pool_id()), Value::Null, 204, Some(Verb::DeleteWarmPool { pool_id: pool_id() }), ""),
        ("GET", "/api/snapshots/me%2Fbase:1".to_owned(), Value::Null, 200, Some(Verb::GetSnapshot { id_or_name: "me/base:1".into() }), "SnapshotDto"),
        ("POST", "/api/snapshots".to_owned(), json!({"name": "a", "imageName": "alpine:3"}), 200,
            Some(Verb::CreateSnapshot(CreateSnapshot {
                name: "a".into(), source: SnapshotSource::Image { name: "alpine:3".into() }, entrypoint: vec![],
                cpu: None, memory_gib: None, disk_gib: None, region: None,
            })), "SnapshotDto"),
        ("GET", "/api/snapshots/mine/build-logs-url".to_owned(), Value::Null, 200, Some(Verb::GetSnapshot { id_or_name: "mine".into() }), ""),
        ("POST", "/api/snapshots".to_owned(), json!({"name": "a", "buildInfo": {"dockerfileContent": "FROM b"}}), 200,
            Some(Verb::CreateSnapshot(CreateSnapshot {
                name: "a".into(), source: SnapshotSource::Build { dockerfile: "FROM b".into(), context_hashes: vec![] },
                entrypoint: vec![], cpu: None, memory_gib: None, disk_gib: None, region: None,
            })), "SnapshotDto"),
        ("DELETE", "/api/snapshots/mine".to_owned(), Value::Null, 200, Some(Verb::DeleteSnapshot { id_or_name: "mine".into() }), ""),
        ("POST", "/api/snapshots/mine/activate".to_owned(), Value::Null, 200,
            Some(Verb::ActivateSnapshot { id_or_name: "mine".into(), activation: Activation::Active }), "SnapshotDto"),
        ("POST", "/api/snapshots/mine/deactivate".to_owned(), Value::Null, 204,
            Some(Verb::ActivateSnapshot { id_or_name: "mine".into(), activation: Activation::Inactive }), ""),
        ("GET", "/api/docker-registry".to_owned(), Value::Null, 200, Some(Verb::ListRegistries), "List[DockerRegistry]"),
        ("POST", "/api/docker-registry".to_owned(), json!({"name": "hub", "url": "docker.io", "username": "me", "password": "p"}), 201,
            Some(Verb::CreateRegistry(wish(Some("p"), None))), "DockerRegistry"),
        ("GET", format!("/api/docker-registry/{registry_id}"), Value::Null, 200, Some(Verb::GetRegistry { registry_id }), "DockerRegistry"),
        ("PATCH", format!("/api/docker-registry/{registry_id}"), json!({"name": "hub", "url": "docker.io", "username": "me", "project": "x"}), 200,
            Some(Verb::UpdateRegistry { registry_id, registry: wish(None, Some("x")) }), "DockerRegistry"),
        ("DELETE", format!("/api/docker-registry/{registry_id}"), Value::Null, 204, Some(Verb::DeleteRegistry { registry_id }), ""),
        ("GET", "/api/regions".to_owned(), Value::Null, 200, None, "List[Region]"),
        ("GET", "/api/shared-regions".to_owned(), Value::Null, 200, None, "List[Region]"),
        ("GET", "/api/regions/eu".to_owned(), Value::Null, 200, None, "Region"),
        ("GET", "/api/api-keys/current".to_owned(), Value::Null, 200, None, "ApiKeyList"),
        ("GET", "/api/users/me".to_owned(), Value::Null, 200, None, "User"),
        ("GET", "/api/object-storage/push-access".to_owned(), Value::Null, 200, None, "StorageAccessDto"),
        ("GET", "/api/organizations".to_owned(), Value::Null, 200, None, "List[Organization]"),
        ("GET", organization, Value::Null, 200, None, "Organization"),
    ] {
        let world = World::new();

        let answer = world.ask(method, &path, body).await;

        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        assert_eq!(world.last_asked(), verb, "{method} {path}");
        if !model.is_empty() {
            Reference::ours().check(model, &answer.body, &path);
        }
    }
}

/// Which fields the public SDKs' models have.
struct Reference {
    required: BTreeMap<String, BTreeMap<String, String>>,
    optional: BTreeMap<String, BTreeMap<String, String>>,
}

impl Reference {
    fn ours() -> Reference {
        let all: Value = serde_json::from_str(REFERENCE).unwrap();
        let fields = |name: &str| serde_json::from_value(all[name].clone()).unwrap();
        Reference { required: fields("required"), optional: fields("optional") }
    }

    fn check(&self, kind: &str, value: &Value, at: &str) {
        let inside = |outer: &str| kind.strip_prefix(outer).and_then(|rest| rest.strip_suffix(']'));
        if let Some(inner) = inside("Optional[") {
            if !value.is_null() {
                self.check(inner, value, at);
            }
            return;
        }
        if let Some(inner) = inside("List[") {
            for item in value.as_array().unwrap_or_else(|| panic!("{at} is no list: {value}")) {
                self.check(inner, item, at);
            }
            return;
        }
        if let Some(required) = self.required.get(kind) {
            let object = value.as_object().unwrap_or_else(|| panic!("{at} is no object: {value}"));
            for (field, kind) in required {
                let value = object.get(field).unwrap_or_else(|| panic!("{at}: {field} is missing"));
                self.check(kind, value, &format!("{at} {field}"));
            }
            for (field, value) in object {
                if let Some(kind) = self.optional[kind].get(field) {
                    self.check(kind, value, &format!("{at} {field}"));
                }
            }
            return;
        }
        let texts = |value: &Value| value.as_object().is_some_and(|map| map.values().all(Value::is_string));
        let ok = match kind {
            "str" => value.is_string(),
            "bool" => value.is_boolean(),
            "int" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "datetime.datetime" => serde_json::from_value::<Timestamp>(value.clone()).is_ok(),
            "Dict[str, str]" => texts(value),
            _ if kind.starts_with("Dict[") => value.is_object(),
            _ if kind.ends_with("State") || kind.ends_with("Type") || kind == "SandboxClass" => {
                value.is_string()
            }
            _ => panic!("{at}: the reference has a type this test doesn't know: {kind}"),
        };
        assert!(ok, "{at} is not of type {kind}: {value}");
    }
}

#[test]
fn our_copy_of_the_reference_is_the_reference() {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/reference/daytona-api.surface.pypi-0.226.1.json");
    let Ok(text) = std::fs::read_to_string(path) else {
        eprintln!("SKIPPED: {path} is not there; our copy of its required fields is not compared with it");
        return;
    };
    let reference: Value = serde_json::from_str(&text).unwrap();
    let ours = Reference::ours();
    for (model, required) in &ours.required {
        let fields = reference["models"][model].as_object().expect(model);
        for (field, about) in fields {
            let copied =
                if about["required"] == true { required.get(field) } else { ours.optional[model].get(field) };
            assert_eq!(copied.map(String::as_str), about["type"].as_str(), "{model}.{field}");
        }
    }
}

#[tokio::test]
async fn the_document_lists_every_route_under_its_reference_name() {
    let world = World::new();
    let document = world.ask("GET", "/api/openapi.json", Value::Null).await.body;
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(document["servers"][0]["url"], "/api");
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));

    let mut documented = 0;
    for operation in reference["operations"].as_array().unwrap() {
        let [method, path, id] =
            ["method", "path", "operationId"].map(|key| operation[key].as_str().unwrap());
        let ours = &paths[path][method];
        assert_eq!(ours["operationId"], id, "{method} {path}");
        assert!(ours["responses"].get(operation["success"].to_string()).is_some(), "{method} {path}");
        documented += 1;
    }
    // Our own: the cluster.
    let all: usize = paths.values().map(|item| item.as_object().unwrap().len()).sum();
    assert_eq!(all, documented + 3);

    for (model, required) in Reference::ours().required {
        let schema = &document["components"]["schemas"][&model]["required"];
        let schema: Vec<&str> =
            schema.as_array().expect(&model).iter().map(|f| f.as_str().unwrap()).collect();
        for field in required.keys() {
            assert!(schema.contains(&field.as_str()), "{model}.{field} is not required in the document");
        }
    }
}

#[tokio::test]
async fn everything_in_the_document_is_served_and_closed_without_a_key() {
    let world = World::new();
    let document = world.ask("GET", "/api/openapi.json", Value::Null).await.body;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let path: String = format!("/api{path}").replace(['{', '}'], "");
            let request = Request::builder().method(method.to_uppercase().as_str()).uri(&path);

            let answer = world.send(request.body(Body::empty()).unwrap()).await;

            if operation["security"].is_array() {
                refused(&answer, 401, "UNAUTHORIZED");
            } else {
                assert_eq!(answer.status, 200, "{method} {path}");
            }
        }
    }
    assert_eq!(world.last_asked(), None);
}

#[tokio::test]
async fn a_credential_that_opens_nothing_is_refused_with_the_reason() {
    let jwt = "Bearer a.b.c";
    let unknown = format!("Bearer {}", ApiKey::from_random([3; 32]).reveal());
    let unreachable = format!("Bearer {}", unreachable_key().reveal());
    for (value, status, code, word) in [
        ("", 401, "UNAUTHORIZED", "Bearer"),
        ("Basic eDp5", 401, "UNAUTHORIZED", "Bearer"),
        ("Bearer", 401, "UNAUTHORIZED", "Bearer"),
        ("Bearer dtn_short", 401, "UNAUTHORIZED", "malformed"),
        (jwt, 401, "UNAUTHORIZED", "JWT"),
        (&unknown, 401, "UNAUTHORIZED", "not known"),
        (&unreachable, 503, "UNAVAILABLE", "eu"),
    ] {
        let request = Request::get("/api/sandbox").header("authorization", value);

        let answer = World::new().send(request.body(Body::empty()).unwrap()).await;

        assert!(refused(&answer, status, code).contains(word), "{value}: {}", answer.body);
        assert_eq!(answer.headers.contains_key("www-authenticate"), status == 401);
        assert_eq!(answer.headers.contains_key("retry-after"), status == 503);
    }
}

#[tokio::test]
async fn the_organization_is_the_keys_whatever_a_header_names() {
    let world = World::new();
    let other = uuid::Uuid::from_u128(77);
    for named in [organization_id().to_string(), other.to_string(), "not an organization".to_owned()] {
        let request = with_key("GET", "/api/sandbox").header("x-daytona-organization-id", named);
        assert_eq!(world.send(request.body(Body::empty()).unwrap()).await.status, 200);
    }

    let path = format!("/api/organizations/{other}");
    refused(&world.ask("GET", &path, Value::Null).await, 403, "FORBIDDEN");
}

#[tokio::test]
async fn every_refusal_of_control_reaches_the_client_as_its_status() {
    for (error, status, code, retry) in [
        (VerbError::BadRequest("m".into()), 400, "BAD_REQUEST", None),
        (VerbError::Forbidden("m".into()), 403, "FORBIDDEN", None),
        (VerbError::NotFound("m".into()), 404, "NOT_FOUND", None),
        (VerbError::Conflict("m".into()), 409, "CONFLICT", None),
        (VerbError::NoRoom("m".into()), 503, "NO_ROOM", Some("5")),
        (VerbError::Unavailable { message: "m".into(), retry_after_s: 2 }, 503, "UNAVAILABLE", Some("2")),
        (VerbError::TimedOut("m".into()), 504, "TIMEOUT", None),
        (VerbError::Internal("inside".into()), 500, "INTERNAL", None),
    ] {
        let world = World::new().answering(move |_| Err(error.clone()));

        let answer = world.ask("GET", "/api/sandbox/box?x=y", Value::Null).await;

        let message = refused(&answer, status, code);
        assert!(message == "m" || (status == 500 && !message.contains("inside")), "{message}");
        assert_eq!(answer.body["path"], "/api/sandbox/box");
        assert_eq!(answer.headers.get("retry-after").map(|v| v.to_str().unwrap()), retry);
    }
}

#[tokio::test]
async fn a_bug_inside_is_an_answer_and_not_a_broken_connection() {
    let wrong_answer = World::new().answering(|_| Ok(VerbAnswer::Done));
    refused(&wrong_answer.ask("GET", "/api/sandbox/box", Value::Null).await, 500, "INTERNAL");

    let panicking = World::new().answering(|_| panic!("as the test wants"));
    refused(&panicking.ask("GET", "/api/sandbox/box", Value::Null).await, 500, "INTERNAL");
}

#[tokio::test]
async fn malformed_input_is_refused_before_control_hears_of_it() {
    let long = "a".repeat(300);
    for (method, path, body, word) in [
        ("POST", "/api/sandbox", "{", "JSON"),
        ("POST", "/api/sandbox", "[]", "object"),
        ("POST", "/api/sandbox", "null", "null"),
        ("POST", "/api/sandbox", r#"{"cpu":"2"}"#, "cpu"),
        ("POST", "/api/sandbox", r#"{"cpu":1.5}"#, "cpu"),
        ("POST", "/api/sandbox", r#"{"cpu":99999999999999999999}"#, "cpu"),
        ("POST", "/api/sandbox", r#"{"cpu":-1}"#, "cpu"),
        ("POST", "/api/sandbox", r#"{"labels":{"a":5}}"#, "labels"),
        ("POST", "/api/sandbox", r#"{"env":["A"]}"#, "env"),
        ("POST", "/api/sandbox", r#"{"public":"yes"}"#, "public"),
        ("POST", "/api/sandbox", r#"{"kvm":true}"#, "kvm"),
        ("POST", "/api/sandbox", "{\"name\":\"\u{0}\"}", "JSON"),
        ("POST", "/api/sandbox/box/snapshot", "{}", "name"),
        ("POST", "/api/sandbox/box/snapshot", r#"{"name":"a b"}"#, "name"),
        ("POST", "/api/sandbox/box/snapshot", r#"{"name":"s","includeMemory":true}"#, "includeMemory"),
        ("POST", "/api/sandbox/box/fork", r#"{"name":"a/b"}"#, "name"),
        ("PUT", "/api/sandbox/box/labels", "{}", "labels"),
        ("PUT", "/api/sandbox/box/labels", r#"{"labels":{"":"x"}}"#, "labels"),
        ("GET", "/api/sandbox?limit=0", "", "limit"),
        ("GET", "/api/sandbox?limit=201", "", "limit"),
        ("GET", "/api/sandbox?limit=ten", "", "limit"),
        ("GET", "/api/sandbox?limit=99999999999999999999", "", "limit"),
        ("GET", "/api/sandbox?labels=x", "", "labels"),
        ("GET", "/api/sandbox?labels=%7B%22a%22%3A1%7D", "", "labels"),
        ("GET", "/api/sandbox?states=sleeping", "", "states"),
        ("GET", "/api/sandbox?regionIds=EU", "", "regionIds"),
        ("GET", "/api/sandbox?cursor=a%20b", "", "cursor"),
        ("GET", "/api/sandbox?minCpu=2", "", "minCpu"),
        ("GET", "/api/sandbox?name=%00", "", "name"),
        ("GET", "/api/snapshots?page=0", "", "page"),
        ("GET", "/api/snapshots?limit=-1", "", "limit"),
        ("GET", "/api/snapshots?sort=size", "", "sort"),
        ("GET", "/api/snapshots?order=up", "", "order"),
        ("POST", "/api/snapshots", "{}", "imageName"),
        ("POST", "/api/snapshots", r#"{"imageName":"a:1"}"#, "name"),
        ("POST", "/api/snapshots", r#"{"name":"a","imageName":"a:1","cpu":0}"#, "cpu"),
        ("POST", "/api/docker-registry", "{}", "url"),
        ("POST", "/api/docker-registry", r#"{"url":"ghcr.io","name":"a","username":"u"}"#, "password"),
        (
            "PATCH",
            "/api/docker-registry/00000000-0000-0000-0000-000000000008",
            r#"{"url":"ghcr.io","name":"a"}"#,
            "username",
        ),
        ("GET", "/api/sandbox/box/ports/0/preview-url", "", "port"),
        ("GET", "/api/sandbox/box/ports/65536/preview-url", "", "port"),
        ("GET", "/api/sandbox/box/ports/http/preview-url", "", "port"),
        ("GET", "/api/sandbox/box/ports/80/signed-preview-url?expiresInSeconds=0", "", "expiresInSeconds"),
        (
            "GET",
            "/api/sandbox/box/ports/80/signed-preview-url?expiresInSeconds=86401",
            "",
            "expiresInSeconds",
        ),
        ("POST", "/api/sandbox/box/ssh-access?expiresInMinutes=0", "", "expiresInMinutes"),
        ("GET", "/api/sandbox/ssh-access/validate", "", "token"),
        ("POST", "/api/sandbox/box/public/maybe", "", "isPublic"),
        ("POST", "/api/sandbox/box/stop?force=1", "", "force"),
        ("POST", "/api/sandbox/box/autostop/-1", "", "autoStopInterval"),
        ("POST", "/api/sandbox/box/autostop/soon", "", "interval"),
        ("POST", "/api/sandbox/box/autoarchive/43201", "", "autoArchiveInterval"),
        ("POST", "/api/sandbox/box/autodelete/525601", "", "autoDeleteInterval"),
        ("POST", "/api/cluster/tokens", r#"{"uses":0}"#, "uses"),
        ("POST", "/api/cluster/tokens", r#"{"ttlSeconds":604801}"#, "ttlSeconds"),
        ("DELETE", "/api/cluster/nodes/x", "", "node id"),
        ("GET", "/api/sandbox/%ff", "", "UTF-8"),
        ("GET", &format!("/api/sandbox?name={long}"), "", "name"),
    ] {
        let world = World::new();
        let request = with_key(method, path).header("content-type", "application/json; charset=utf-8");

        let answer = world.send(request.body(Body::from(body.to_owned())).unwrap()).await;

        let code = answer.body["code"].as_str().unwrap_or_default().to_owned();
        assert!(
            matches!(code.as_str(), "BAD_REQUEST" | "NOT_SUPPORTED"),
            "{method} {path} {body}: {}",
            answer.body
        );
        let message = refused(&answer, 400, &code);
        assert!(message.contains(word), "{method} {path} {body}: {message}");
        assert_eq!(world.last_asked(), None, "{method} {path}");
    }
}

#[tokio::test]
async fn a_name_that_cannot_exist_is_not_found() {
    let world = World::new();
    let long = format!("/api/sandbox/{}", "a".repeat(5_000));

    refused(&world.ask("GET", &long, Value::Null).await, 404, "NOT_FOUND");
    refused(&world.ask("GET", "/api/sandbox/missing", Value::Null).await, 404, "NOT_FOUND");
    refused(&world.ask("GET", "/api/regions/moon", Value::Null).await, 404, "NOT_FOUND");
    let expire = "/api/sandbox/box/ports/80/signed-preview-url/NOPE/expire";
    refused(&world.ask("POST", expire, Value::Null).await, 404, "NOT_FOUND");
}

#[tokio::test]
async fn a_body_is_bounded_and_its_type_matters_only_when_there_is_one() {
    let world = World::new();
    let post = |content_type: &str, body: Vec<u8>| {
        with_key("POST", "/api/sandbox").header("content-type", content_type).body(Body::from(body)).unwrap()
    };

    let padded = |bytes: usize| format!("{{}}{}", " ".repeat(bytes - 2)).into_bytes();
    let at_the_limit = padded(input::BODY_BYTES_MAX);
    assert_eq!(world.send(post("application/json", at_the_limit)).await.status, 200);
    let above = padded(input::BODY_BYTES_MAX + 1);
    refused(&world.send(post("application/json", above)).await, 413, "PAYLOAD_TOO_LARGE");
    assert_eq!(world.send(post("application/x-www-form-urlencoded", vec![])).await.status, 200);
    let form = world.send(post("application/x-www-form-urlencoded", b"a=b".to_vec())).await;
    assert!(refused(&form, 400, "BAD_REQUEST").contains("application/json"));
}

#[tokio::test]
async fn links_lead_through_the_door_the_client_used() {
    let world = World::new();
    let ask = async |path: &str| {
        let request = with_key("GET", path)
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-host", "atoll.example:8443");
        world.send(request.body(Body::empty()).unwrap()).await.body
    };
    let id = sandbox_id();

    assert_eq!(ask("/api/sandbox/box").await["toolboxProxyUrl"], "https://atoll.example:8443/toolbox");
    assert_eq!(
        ask("/api/sandbox/box/ports/3000/preview-url").await["url"],
        format!("https://3000-{id}.preview.localhost:8443")
    );
    assert_eq!(
        ask("/api/sandbox/box/ports/3000/signed-preview-url").await["url"],
        "https://3000-ssssssssssssssss.preview.localhost:8443"
    );
    let config = ask("/api/config").await;
    assert_eq!(config["proxyTemplateUrl"], "https://{{PORT}}-{{sandboxId}}.preview.localhost:8443");
    assert_eq!(config["sshGatewayCommand"], "ssh -p 9102 {{TOKEN}}@127.0.0.1");
    let straight = world.ask("GET", "/api/sandbox/box", Value::Null).await.body;
    assert_eq!(straight["toolboxProxyUrl"], "http://127.0.0.1:9100/toolbox");
    let ssh = world.ask("POST", "/api/sandbox/box/ssh-access", Value::Null).await.body;
    assert_eq!(ssh["sshCommand"], format!("ssh -p 9102 {}@127.0.0.1", "t".repeat(32)));
}

#[tokio::test]
async fn a_sandbox_says_why_it_is_in_error() {
    for (phase, recoverable, word) in [
        (Phase::Lost, true, "cannot be reached"),
        (Phase::Failed { reason: "no image".into() }, false, "no image"),
    ] {
        let world = World::new().answering(move |_| {
            let mut view = view();
            view.record.phase = phase.clone();
            Ok(VerbAnswer::Sandbox(Box::new(view)))
        });

        let body = world.ask("GET", "/api/sandbox/box", Value::Null).await.body;

        assert_eq!((&body["state"], &body["recoverable"]), (&json!("error"), &json!(recoverable)));
        assert!(body["errorReason"].as_str().unwrap().contains(word));
    }
}

#[tokio::test]
async fn a_sandbox_is_shown_as_it_is() {
    let body = World::new().ask("GET", "/api/sandbox/box", Value::Null).await.body;

    let expected = json!({
        "id": sandbox_id(), "organizationId": organization_id(), "name": "box", "snapshot": "base", "user": "daytona",
        "env": {"A": "b"}, "labels": {"code-toolbox-language": "python"}, "public": false, "networkBlockAll": false,
        "kvm": false, "target": "eu", "cpu": 1, "gpu": 0, "memory": 2, "disk": 3, "state": "started",
        "desiredState": "started", "backupState": "None", "autoStopInterval": 15, "autoPauseInterval": 0, "autoArchiveInterval": 10080,
        "autoDeleteInterval": -1, "createdAt": "2023-11-14T22:13:20.000Z", "updatedAt": "2023-11-14T22:13:20.001Z",
        "lastActivityAt": "2023-11-14T22:13:20.002Z", "sandboxClass": "container", "runnerId": "0000000000000005",
        "toolboxProxyUrl": "http://127.0.0.1:9100/toolbox",
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn a_sandbox_without_a_parent_has_none_to_show() {
    let world = World::new().answering(|_| Ok(VerbAnswer::Sandboxes(vec![])));

    refused(&world.ask("GET", "/api/sandbox/box/parent", Value::Null).await, 404, "NOT_FOUND");
    assert_eq!(world.ask("GET", "/api/sandbox/box/forks", Value::Null).await.body, json!([]));
}

#[tokio::test]
async fn an_archive_says_how_many_nodes_hold_it() {
    let body = World::new().ask("POST", "/api/sandbox/box/archive", Value::Null).await.body;

    assert_eq!((&body["state"], &body["desiredState"]), (&json!("archived"), &json!("archived")));
    assert_eq!((&body["backupState"], &body["backupCopies"]), (&json!("Completed"), &json!(2)));
    assert_eq!(body["backupCreatedAt"], "2023-11-14T22:13:20.007Z");
}

#[test]
fn what_happens_to_a_disk_shows_in_the_state() {
    let state = |change: &dyn Fn(&mut SandboxRecord)| {
        let mut record = view().record;
        change(&mut record);
        public_state(&record, BuildProgress::Waiting)
    };
    let snapshot = || CapturePurpose::Snapshot { id: uuid::Uuid::nil(), name: "s".into() };
    let asked = |record: &mut SandboxRecord| drop(record.captures.insert(1, snapshot()));

    assert_eq!(state(&asked), SandboxState::Snapshotting);
    let stopping = |record: &mut SandboxRecord| {
        asked(record);
        (record.desired, record.phase) = (Desired::Stopped, Phase::Stopping);
    };
    assert_eq!(state(&stopping), SandboxState::Stopping, "what the user waits for comes first");
    let fork = |record: &mut SandboxRecord| (record.disk, record.phase) = (Disk::Awaited, Phase::Pending);
    assert_eq!(state(&fork), SandboxState::Forking);
    let restored = |record: &mut SandboxRecord| {
        record.phase = Phase::Starting;
        (record.desired_version, record.restored_version) = (5, 5);
    };
    assert_eq!(state(&restored), SandboxState::Restoring);
    let again = |record: &mut SandboxRecord| {
        restored(record);
        record.desired_version = 7;
    };
    assert_eq!(state(&again), SandboxState::Starting);
}

#[test]
fn a_sandbox_is_created_once_and_started_ever_after() {
    let state = |desired_version: u64, generation: u64| {
        let mut record = view().record;
        record.phase = Phase::Starting;
        record.desired_version = desired_version;
        record.placement.generation = Generation(generation);
        public_state(&record, BuildProgress::Waiting)
    };

    assert_eq!(state(1, 1), SandboxState::Creating);
    assert_eq!(state(3, 1), SandboxState::Starting, "stopped and started again");
    assert_eq!(state(1, 2), SandboxState::Starting, "moved to another node");
}

#[tokio::test]
async fn a_list_names_the_regions_that_are_missing_from_it() {
    let answer = World::new().ask("GET", "/api/sandbox", Value::Null).await;

    assert_eq!(answer.headers["x-atoll-unreachable-regions"], "us,ap");
    assert_eq!(answer.body["nextCursor"], Value::Null);
    assert!(answer.body["items"][0].get("env").is_none());
}

#[tokio::test]
async fn a_warm_pool_shows_what_it_has_and_names_regions_that_cannot_be_asked() {
    let answer = World::new().ask("GET", "/api/warm-pools", Value::Null).await;

    assert_eq!(answer.headers["x-atoll-unreachable-regions"], "us");
    let expected = json!([{
        "id": pool_id(), "organizationId": organization_id(), "snapshot": "base", "target": "eu", "pool": 2, "currentSize": 1,
        "cpu": 1, "mem": 2, "disk": 3, "osUser": "daytona", "env": {}, "errorReason": "no room",
        "createdAt": "2023-11-14T22:13:20.000Z", "updatedAt": "2023-11-14T22:13:20.001Z",
    }]);
    assert_eq!(answer.body, expected);
}

#[tokio::test]
async fn a_warm_pool_that_cannot_be_is_refused_by_name() {
    let world = World::new();
    for (body, word) in [
        (json!({"snapshot": "base", "pool": 0}), "pool"),
        (json!({"snapshot": "base", "pool": 101}), "pool"),
        (json!({"snapshot": "base", "pool": 1.5}), "pool"),
        (json!({"snapshot": "base", "pool": -1}), "pool"),
        (json!({"snapshot": "base", "pool": "many"}), "pool"),
        (json!({"snapshot": "base"}), "pool"),
        (json!({"pool": 1}), "snapshot"),
        (json!({"snapshot": "", "pool": 1}), "snapshot"),
        (json!({"snapshot": "base", "pool": 1, "target": "EU"}), "target"),
    ] {
        let answer = world.ask("POST", "/api/warm-pools", body.clone()).await;
        let message = refused(&answer, 400, "BAD_REQUEST");
        assert!(message.contains(word), "{body}: {message}");
    }
    let path = format!("/api/warm-pools/{}", pool_id());
    for body in [json!({"pool": -1}), json!({"pool": 101}), json!({})] {
        refused(&world.ask("PATCH", &path, body).await, 400, "BAD_REQUEST");
    }
    for method in ["PATCH", "DELETE"] {
        refused(&world.ask(method, "/api/warm-pools/nonsense", json!({"pool": 1})).await, 404, "NOT_FOUND");
    }
    assert_eq!(world.last_asked(), None);
}

#[tokio::test]
async fn snapshots_come_in_pages() {
    let world = World::new();
    let page = async |query: &str| {
        let body = world.ask("GET", &format!("/api/snapshots?{query}"), Value::Null).await.body;
        let names: Vec<String> = body["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect();
        (names.join(" "), body["total"].as_u64().unwrap(), body["totalPages"].as_u64().unwrap())
    };

    assert_eq!(page("sort=name&order=asc&limit=2").await, ("Alpine base".into(), 3, 2));
    assert_eq!(page("sort=name&order=asc&limit=2&page=2").await, ("debian".into(), 3, 2));
    assert_eq!(page("sort=name").await, ("debian base Alpine".into(), 3, 1));
    // As last used, then as made: the last one first.
    assert_eq!(page("").await, ("debian base Alpine".into(), 3, 1));
    assert_eq!(page("sourceSandboxId=x").await, ("".into(), 0, 0));
    assert_eq!(page("page=1000000&limit=200").await, ("".into(), 3, 1));
    assert_eq!(page("name=BASE").await, ("base".into(), 1, 1));
    assert_eq!(page("name=none").await, ("".into(), 0, 0));
}

#[tokio::test]
async fn a_snapshot_is_shown_as_it_is() {
    let world = World::new();
    let body = world.ask("POST", "/api/snapshots/mine/activate", Value::Null).await.body;

    let (at, changed) = ("2023-11-14T22:13:20.000Z", "2023-11-14T22:13:20.001Z");
    let expected = json!({
        "id": uuid::Uuid::from_u128(7), "organizationId": organization_id(), "general": false, "name": "mine",
        "state": "active", "size": 0.75, "entrypoint": null, "cpu": 1, "gpu": 0, "mem": 1, "disk": 3,
        "errorReason": null, "createdAt": at, "updatedAt": changed, "lastUsedAt": "2023-11-14T22:13:20.003Z",
        "buildInfo": {"dockerfileContent": "FROM alpine:3\n", "contextHashes": ["abc"], "createdAt": at,
            "updatedAt": changed, "snapshotRef": "atoll/base:1"},
        "regionIds": ["eu"], "initialRunnerId": "0000000000000005", "ref": "atoll/base:1", "sourceSandboxId": null,
        "sandboxClass": "container",
    });
    assert_eq!(body, expected);
    let failed = World::new().answering(|_| {
        let state = SnapshotRecordState::Error { reason: "no such host".into() };
        Ok(VerbAnswer::Snapshots(vec![("mine".into(), SnapshotRecord { state, ..own_snapshot().1 })]))
    });
    let body = failed.ask("GET", "/api/snapshots/mine", Value::Null).await.body;
    assert_eq!((&body["state"], &body["errorReason"]), (&json!("error"), &json!("no such host")));
}

/// A sandbox that waits for its image.
fn unbuilt(phase: Phase, progress: BuildProgress) -> SandboxView {
    let mut view = view();
    let snapshot_id = uuid::Uuid::from_u128(9);
    view.record.spec.snapshot = "@build/abc".into();
    (view.record.build, view.record.disk, view.record.phase) = (Some(snapshot_id), Disk::Awaited, phase);
    view.build = Some(BuildView {
        snapshot_id,
        dockerfile: "FROM alpine:3".into(),
        context_hashes: vec!["abc".into()],
        created_at_ms: NOW_MS,
        updated_at_ms: NOW_MS,
        image: String::new(),
        progress,
    });
    view
}

#[tokio::test]
async fn a_sandbox_that_waits_for_its_image_says_how_far_that_is() {
    let failed = || Phase::Failed { reason: "line 3".into() };
    for (phase, progress, state, reason) in [
        (Phase::Pending, BuildProgress::Waiting, "pending_build", Value::Null),
        (Phase::Pending, BuildProgress::Building, "building_snapshot", Value::Null),
        (failed(), BuildProgress::Building, "build_failed", json!("line 3")),
    ] {
        let view = unbuilt(phase, progress);
        let world = World::new().answering(move |_| Ok(VerbAnswer::Sandbox(Box::new(view.clone()))));

        let body = world.ask("GET", &format!("/api/sandbox/{NAME}"), Value::Null).await.body;

        assert_eq!((&body["state"], &body["errorReason"]), (&json!(state), &reason), "{body}");
        assert_eq!(body["buildInfo"]["dockerfileContent"], "FROM alpine:3");
        assert_eq!(body.get("snapshot"), None, "the name of a build is nobody's business");
        Reference::ours().check("Sandbox", &body, state);
    }
}

#[tokio::test]
async fn the_log_of_a_build_is_read_as_far_as_it_is_or_followed() {
    let build = || VerbAnswer::Sandbox(Box::new(unbuilt(Phase::Pending, BuildProgress::Building)));
    let world = World::new().answering(move |verb| match verb {
        Verb::Get { .. } => Ok(build()),
        verb => healthy(verb),
    });
    let url = world.ask("GET", &format!("/api/sandbox/{NAME}/build-logs-url"), Value::Null).await.body;
    assert_eq!(url, json!({"url": format!("http://127.0.0.1:9100/api/sandbox/{}/build-logs", sandbox_id())}));
    let read = async |path: &str| {
        let request = with_key("GET", path).body(Body::empty()).unwrap();
        let response = world.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
        response.into_body().into_data_stream()
    };
    let mut now = read(&format!("/api/sandbox/{NAME}/build-logs")).await;
    assert_eq!(now.next().await.unwrap().unwrap(), "@build/abc Now\n");
    assert!(now.next().await.is_none());

    let mut followed = read("/api/snapshots/mine/build-logs?follow=true").await;
    assert_eq!(followed.next().await.unwrap().unwrap(), "mine Follow\n");
    world.closing.cancel();
    assert!(followed.next().await.is_none(), "a node that stops holds nobody");
}

#[tokio::test]
async fn what_was_never_built_has_no_log() {
    let world = World::new();
    for path in [format!("/api/sandbox/{NAME}/build-logs"), "/api/snapshots/base/build-logs-url".to_owned()] {
        let message = refused(&world.ask("GET", &path, Value::Null).await, 404, "NOT_FOUND");
        assert!(message.contains("Dockerfile"), "{message}");
    }
}

#[tokio::test]
async fn a_registrys_password_is_never_shown() {
    let world = World::new();
    let wish = json!({"name": "hub", "url": "docker.io", "username": "me", "password": "hush"});
    for (method, path, body) in [
        ("POST", "/api/docker-registry".to_owned(), wish.clone()),
        ("GET", "/api/docker-registry".to_owned(), Value::Null),
        ("GET", format!("/api/docker-registry/{}", uuid::Uuid::from_u128(8)), Value::Null),
        ("PATCH", format!("/api/docker-registry/{}", uuid::Uuid::from_u128(8)), wish),
    ] {
        let answer = world.ask(method, &path, body).await;
        assert!(answer.status < 300, "{path}: {}", answer.body);
        let said = answer.body.to_string();
        assert!(!said.contains("hush") && !said.to_lowercase().contains("password"), "{said}");
    }
    assert!(!format!("{:?}", world.control.asked.lock().unwrap()).contains("hush"), "nor logged");
}

#[tokio::test]
async fn the_cluster_is_shown_with_the_node_that_answers() {
    let body = World::new().ask("GET", "/api/cluster", Value::Null).await.body;

    let node = |id: &str, health: &str, sandboxes: u32, is_self: bool| {
        json!({"id": id, "name": "n1", "region": "eu", "zone": null, "health": health, "sandboxes": sandboxes,
            "http": "http://127.0.0.1:9100", "https": null, "ssh": "127.0.0.1:9102", "mesh": "127.0.0.1:9103", "self": is_self})
    };
    let expected = json!({
        "clusterId": uuid::Uuid::from_u128(4),
        "nodes": [node("0000000000000005", "ready", 3, true), node("0000000000000006", "unknown", 0, false)],
        "groups": [{"name": "region/eu", "leader": "0000000000000005", "term": 2, "voters": ["0000000000000005"],
            "learners": ["0000000000000006"], "lastApplied": 40}],
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn a_key_shows_only_its_ends() {
    let body = World::new().ask("GET", "/api/api-keys/current", Value::Null).await.body;

    assert_eq!(body["value"], "dtn…101");
    assert!(!body.to_string().contains(key().reveal()));
}

#[tokio::test]
async fn a_node_that_is_not_ready_says_what_is_down() {
    let world = World::new();
    *world.down.lock().unwrap() = Some("no docker".into());

    let answer = world.ask("GET", "/api/health/ready", Value::Null).await;

    assert_eq!(answer.status, 503);
    assert_eq!(answer.body["status"], "error");
    assert_eq!(answer.body["error"], json!({"runner": {"status": "down", "message": "no docker"}}));
    assert_eq!(answer.body["info"], json!({"cluster": {"status": "up"}}));
    assert_eq!(world.ask("GET", "/api/health", Value::Null).await.status, 200);
}

#[tokio::test]
async fn what_is_not_served_says_so() {
    let world = World::new();
    for path in ["/api/volumes", "/api/volumes/by-name/v", "/api/", "/nowhere", "/api/sandbox/box/fork/x"] {
        refused(&world.ask("GET", path, Value::Null).await, 404, "NOT_SERVED");
    }
    for (method, path) in [("PATCH", "/api/sandbox"), ("POST", "/api/config"), ("DELETE", "/")] {
        let answer = world.ask(method, path, Value::Null).await;
        assert!(refused(&answer, 405, "METHOD_NOT_ALLOWED").contains(method));
    }
    assert_eq!(world.ask("GET", "/", Value::Null).await.body["openapi"], "/api/openapi.json");
}

#[tokio::test]
async fn a_request_keeps_its_id_and_gets_one_if_it_has_none() {
    let world = World::new();
    let request = with_key("GET", "/api/sandbox/box").header("x-request-id", "abc-1");

    let answer = world.send(request.body(Body::empty()).unwrap()).await;

    assert_eq!(answer.headers["x-request-id"], "abc-1");
    assert_eq!(world.control.asked.lock().unwrap()[0].0.as_str(), "abc-1");
    for bad in ["", "a b", &"a".repeat(65)] {
        let request = with_key("GET", "/api/sandbox/missing").header("x-request-id", bad);
        let made = world.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(made.headers["x-request-id"].len(), 32, "{bad}");
    }
}

#[tokio::test]
async fn browsers_of_any_origin_may_ask() {
    let world = World::new();
    let preflight = Request::builder()
        .method(Method::OPTIONS)
        .uri("/api/sandbox")
        .header("origin", "https://a.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,x-daytona-source");

    let answer = world.send(preflight.body(Body::empty()).unwrap()).await;

    assert_eq!(answer.status, 204);
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    assert_eq!(answer.headers["access-control-allow-headers"], "authorization,x-daytona-source");
    let refused = world.ask("GET", "/api/sandbox/missing", Value::Null).await;
    assert_eq!(refused.headers["access-control-allow-origin"], "*");
}

/// A door on a real socket. The name is abstract: nothing is left in the file system.
struct Served {
    world: World,
    name: String,
    cancel: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Served {
    fn new(world: World) -> Served {
        let name = format!("atoll-rest-test-{}", uuid::Uuid::new_v4());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let cancel = world.closing.clone();
        let serving = tokio::spawn(serve(
            UnixListener::from_std(listener).unwrap(),
            world.router.clone(),
            cancel.clone(),
        ));
        Served { world, name, cancel, serving }
    }

    fn connect(&self) -> UnixStream {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&self.name).unwrap();
        let stream = std::os::unix::net::UnixStream::connect_addr(&address).unwrap();
        stream.set_nonblocking(true).unwrap();
        UnixStream::from_std(stream).unwrap()
    }

    async fn listen(&self, query: &str) -> Result<Socket, tokio_tungstenite::tungstenite::Error> {
        let url = format!("ws://localhost/api/socket.io/?{query}");
        tokio_tungstenite::client_async(url, self.connect()).await.map(|(socket, _)| Socket(socket))
    }
}

struct Socket(tokio_tungstenite::WebSocketStream<UnixStream>);

impl Socket {
    async fn say(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    /// `None` once the server has hung up.
    async fn hear(&mut self) -> Option<String> {
        let heard =
            tokio::time::timeout(Duration::from_secs(10), self.0.next()).await.expect("heard in time");
        match heard {
            Some(Ok(Message::Text(text))) => Some(text.to_string()),
            _ => None,
        }
    }

    async fn connected(served: &Served) -> Socket {
        let mut socket = served.listen(EIO).await.unwrap();
        assert!(socket.hear().await.unwrap().starts_with("0{"));
        socket.say(&format!(r#"40{{"token":"{}"}}"#, key().reveal())).await;
        assert!(socket.hear().await.unwrap().starts_with(r#"40{"sid":"#));
        socket
    }
}

const EIO: &str = "source=sdk-python&sdkVersion=0.226.1&transport=websocket&EIO=4&t=abc";

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), what).await.expect("done in time")
}

#[tokio::test]
async fn a_request_in_flight_is_finished_when_the_door_closes() {
    let served = Served::new(World::new());
    let mut stream = served.connect();
    let request = format!(
        "POST /api/sandbox/box/start HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 0\r\n\r\n",
        key().reveal()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    within(async {
        while served.world.last_asked().is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;

    served.cancel.cancel();
    served.world.control.gate.notify_one();

    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("\"started\""), "{answer}");
    within(served.serving).await.unwrap();
}

#[tokio::test]
async fn a_listener_hears_of_its_organizations_sandboxes_only() {
    let served = Served::new(World::new());
    let mut socket = Socket::connected(&served).await;
    let mut foreign = view();
    foreign.record.organization_id = OrganizationId(uuid::Uuid::from_u128(99));

    served.world.events.send(Event::Sandbox(SandboxEvent::Created(Arc::new(foreign)))).unwrap();
    served.world.events.send(Event::Sandbox(SandboxEvent::Created(Arc::new(view())))).unwrap();
    let changed = SandboxEvent::StateChanged { old: SandboxState::Stopped, sandbox: Arc::new(view()) };
    served.world.events.send(Event::Sandbox(changed)).unwrap();

    let event = |text: String| -> Value { serde_json::from_str(text.strip_prefix("42").unwrap()).unwrap() };
    let created = event(socket.hear().await.unwrap());
    assert_eq!(created[0], "sandbox.created");
    Reference::ours().check("Sandbox", &created[1], "sandbox.created");
    let updated = event(socket.hear().await.unwrap());
    assert_eq!(updated[0], "sandbox.state.updated");
    assert_eq!((&updated[1]["oldState"], &updated[1]["newState"]), (&json!("stopped"), &json!("started")));
    Reference::ours().check("Sandbox", &updated[1]["sandbox"], "sandbox.state.updated");
}

#[tokio::test]
async fn a_listener_hears_of_its_organizations_snapshots_and_of_everybodys() {
    let served = Served::new(World::new());
    let mut socket = Socket::connected(&served).await;
    let snapshot =
        |organization_id| Arc::new(("s".to_owned(), SnapshotRecord { organization_id, ..own_snapshot().1 }));
    let say = |event| served.world.events.send(Event::Snapshot(event)).unwrap();

    say(SnapshotEvent::Created(snapshot(Some(OrganizationId(uuid::Uuid::from_u128(99))))));
    say(SnapshotEvent::Created(snapshot(None)));
    let mut hear = async || -> Value {
        serde_json::from_str(socket.hear().await.unwrap().strip_prefix("42").unwrap()).unwrap()
    };
    let created = hear().await;
    assert_eq!((&created[0], &created[1]["general"]), (&json!("snapshot.created"), &json!(true)));
    Reference::ours().check("SnapshotDto", &created[1], "snapshot.created");

    let old = atoll_api::rest::SnapshotState::Pulling;
    say(SnapshotEvent::StateChanged { old, snapshot: snapshot(Some(organization_id())) });
    let changed = hear().await;
    assert_eq!(changed[0], "snapshot.state.updated");
    assert_eq!((&changed[1]["oldState"], &changed[1]["newState"]), (&json!("pulling"), &json!("active")));
    Reference::ours().check("SnapshotDto", &changed[1]["snapshot"], "snapshot.state.updated");

    say(SnapshotEvent::Removed(snapshot(Some(organization_id()))));
    assert_eq!(hear().await[0], "snapshot.removed");
}

#[tokio::test]
async fn a_listener_without_a_valid_key_is_told_so_and_let_go() {
    let served = Served::new(World::new());
    let unknown = ApiKey::from_random([3; 32]);
    for (said, word) in [
        ("40".to_owned(), "malformed"),
        (format!(r#"40{{"token":"{}"}}"#, unknown.reveal()), "not known"),
        (r#"40{"token":"a.b.c"}"#.to_owned(), "JWT"),
        ("40/admin,".to_owned(), "namespace"),
    ] {
        let mut socket = served.listen(EIO).await.unwrap();
        socket.hear().await;

        socket.say(&said).await;

        let refusal = socket.hear().await.unwrap();
        assert!(refusal.starts_with("44") && refusal.contains(word), "{said}: {refusal}");
        assert_eq!(socket.hear().await, None);
    }
}

#[tokio::test]
async fn listeners_are_bounded_and_a_place_is_free_again_when_one_leaves() {
    let served = Served::new(World::with_listeners(1));
    let mut first = Socket::connected(&served).await;

    assert!(served.listen(EIO).await.is_err());
    first.say("41").await;
    assert_eq!(first.hear().await, None);

    within(async {
        while served.listen(EIO).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_listener_that_lags_is_let_go_and_closing_ends_the_rest() {
    let served = Served::new(World::new());
    let mut socket = Socket::connected(&served).await;
    // More than the channel holds, in one go: the listener's task has no chance to read between them.
    for _ in 0..64 {
        served.world.events.send(Event::Sandbox(SandboxEvent::Created(Arc::new(view())))).unwrap();
    }
    within(async { while socket.hear().await.is_some() {} }).await;

    let mut patient = Socket::connected(&served).await;
    served.cancel.cancel();
    assert_eq!(patient.hear().await, None);
    within(served.serving).await.unwrap();
}

#[tokio::test]
async fn only_websockets_of_engine_io_4_may_listen() {
    let world = World::new();
    for (query, word) in [
        ("EIO=3&transport=websocket", "EIO=4"),
        ("EIO=4&transport=polling", "WebSocket"),
        ("EIO=4&transport=websocket", "Connection"),
    ] {
        let answer = world.ask("GET", &format!("/api/socket.io/?{query}"), Value::Null).await;
        assert!(refused(&answer, 400, "BAD_REQUEST").contains(word), "{}", answer.body);
    }
}

#[tokio::test]
async fn push_access_names_the_door_with_tls_and_the_bucket_is_there() {
    let world = World::new();

    let access = world.ask("GET", "/api/object-storage/push-access", Value::Null).await.body;

    assert_eq!(access["storageUrl"], "https://127.0.0.1:9101");
    assert_eq!(access["organizationId"], organization_id().to_string());
    let path = format!("/{}/{}/x", access["bucket"].as_str().unwrap(), organization_id());
    let unsigned = Request::get(path).body(Body::empty()).unwrap();
    let response = world.router.clone().oneshot(unsigned).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (403, &"application/xml".parse().unwrap())
    );
}
