//! The door as its clients see it: three nodes on a simulated network, real stores, two organizations.

use std::sync::Arc;

use async_trait::async_trait;
use atoll_api::access::{Caller, PreviewGrant, SandboxFacts, SshGrant};
use atoll_api::ids::{NodeId, OrganizationId, SandboxId, UserId};
use atoll_api::tokens::{ApiKey, SignedPreviewToken, SshToken};
use atoll_mesh::dial::{ByteStream, Directory, DirectoryError};
use atoll_mesh::link::StreamHandler;
use atoll_mesh::sim::{SimNetwork, Weather};
use atoll_mesh::stream::StreamHeader;
use atoll_runner::image::{Digest, ImageSource};
use atoll_runner::store::{Registries, StoreConfig};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::blobs::BlobServer;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn organization(n: u8) -> OrganizationId {
    OrganizationId(uuid::Uuid::from_u128(n.into()))
}

fn key(n: u8) -> ApiKey {
    ApiKey::from_random([n; 32])
}

/// Knows the keys 1 and 2, each of the organization of its number; for key 9 it cannot ask.
struct Keys;

#[async_trait]
impl Directory for Keys {
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
        if *shown == key(9) {
            return Err(DirectoryError::Unreachable("eu".into()));
        }
        let n = [1, 2].into_iter().find(|n| *shown == key(*n)).ok_or(DirectoryError::NotFound)?;
        let user_id = UserId(uuid::Uuid::nil());
        Ok(Caller { organization_id: organization(n), user_id, key_name: "k".into() })
    }
    async fn ssh_token_ended(&self, _: &SshGrant) {
        std::future::pending().await
    }
    fn touch(&self, _: SandboxId) {}
}

struct Handler(BlobServer);

#[async_trait]
impl StreamHandler for Handler {
    async fn handle(&self, _peer: NodeId, _header: StreamHeader, stream: ByteStream) {
        let _ = self.0.serve(stream).await;
    }
}

struct World {
    network: SimNetwork,
    doors: Vec<Router>,
    stores: Vec<Store>,
    _dir: tempfile::TempDir,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    #[track_caller]
    fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.header("docker-distribution-api-version"), "registry/2.0");
        self
    }

    /// The status with the code of the specification's error body.
    #[track_caller]
    fn refused(&self) -> (u16, String) {
        let body: Value = serde_json::from_slice(&self.body).expect("a refusal has a body");
        let error = &body["errors"][0];
        assert!(error["message"].is_string() && error["detail"].is_object(), "{body}");
        (self.status, error["code"].as_str().unwrap().to_owned())
    }

    #[track_caller]
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let network = SimNetwork::new(5, Weather::fair());
        let ids = [NodeId(1), NodeId(2), NodeId(3)];
        let (mut doors, mut stores) = (Vec::new(), Vec::new());
        for node_id in ids {
            let (path, seeds, registries) =
                (dir.path().join(node_id.to_string()), vec![], Registries::default());
            let store = Store::open(StoreConfig { dir: path, seeds, registries }).unwrap();
            let peers = PeerStores::new(network.link(node_id), move || {
                ids.into_iter().filter(|other| *other != node_id).collect()
            });
            store.set_peers(Arc::new(peers.clone()));
            let reach = Arc::new(Reach::new(store.clone()));
            network.start(node_id, Arc::new(Handler(BlobServer::new(store.clone(), reach.clone()))));
            let (directory, uploads, tasks) = (Arc::new(Keys), Uploads::new(node_id), TaskTracker::new());
            let stored = store.clone();
            doors.push(router(Arc::new(Registry {
                directory,
                store,
                peers,
                reach,
                uploads,
                copies: None,
                tasks,
            })));
            stores.push(stored);
        }
        World { network, doors, stores, _dir: dir }
    }

    async fn send(&self, node: usize, request: http::request::Builder, body: Body) -> Answer {
        let response = self.doors[node].clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.map(Into::into).unwrap_or_default();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// As the first organization.
    async fn ask(&self, node: usize, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        self.send(node, request(1, method, path), body.into()).await
    }

    /// A whole blob in one request.
    async fn push(&self, node: usize, repository: &str, blob: &[u8]) -> Digest {
        let digest = Digest::of(blob);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let pushed = self.ask(node, "POST", &path, blob.to_vec()).await.expect(201);
        assert_eq!(pushed.header("docker-content-digest"), digest.to_string());
        assert_eq!(pushed.header("location"), format!("/v2/{repository}/blobs/{digest}"));
        digest
    }

    async fn tag(&self, node: usize, repository: &str, tag: &str, manifest: &Value) -> Answer {
        let media_type = manifest["mediaType"].as_str().unwrap();
        let path = format!("/v2/{repository}/manifests/{tag}");
        let put = request(1, "PUT", &path).header("content-type", media_type);
        self.send(node, put, manifest.to_string().into()).await
    }

    /// An image with one layer, under a tag. Gives the manifest and the layer.
    async fn image(&self, node: usize, repository: &str, tag: &str, layer: &[u8]) -> (Digest, Digest) {
        let config = self.push(node, repository, b"{}").await;
        let pushed = self.push(node, repository, layer).await;
        let manifest = manifest(config, &[(pushed, layer.len())]);
        let put = self.tag(node, repository, tag, &manifest).await.expect(201);
        let digest = Digest::of(manifest.to_string().as_bytes());
        assert_eq!(put.header("docker-content-digest"), digest.to_string());
        (digest, pushed)
    }
}

fn request(key_number: u8, method: &str, path: &str) -> http::request::Builder {
    let basic = STANDARD.encode(format!("anybody:{}", key(key_number).reveal()));
    Request::builder().method(method).uri(path).header("authorization", format!("Basic {basic}"))
}

fn manifest(config: Digest, layers: &[(Digest, usize)]) -> Value {
    let layer = |(digest, size): &(Digest, usize)| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size});
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

#[tokio::test(start_paused = true)]
async fn what_is_pushed_to_one_node_is_pulled_from_every_other() {
    let world = World::new();
    let (digest, layer) = world.image(0, "team/app", "v1", b"0123456789").await;
    let own = format!("{}/team/app", organization(1));

    for node in 0..3 {
        for repository in ["team/app", &own] {
            for version in ["v1".to_owned(), digest.to_string()] {
                let path = format!("/v2/{repository}/manifests/{version}");
                let got = world.ask(node, "GET", &path, "").await.expect(200);
                assert_eq!((Digest::of(&got.body), got.header("content-type")), (digest, MANIFEST));
                let head = world.ask(node, "HEAD", &path, "").await.expect(200);
                assert_eq!(head.header("content-length"), got.body.len().to_string());
                assert_eq!(head.header("docker-content-digest"), digest.to_string());
                assert!(head.body.is_empty());
            }
            let path = format!("/v2/{repository}/blobs/{layer}");
            assert_eq!(world.ask(node, "GET", &path, "").await.expect(200).body, b"0123456789");
            let head = world.ask(node, "HEAD", &path, "").await.expect(200);
            assert_eq!((head.header("content-length"), head.body.len()), ("10", 0));
        }
    }
    assert!(world.stores[2].open_here(&layer).is_none(), "a blob is passed on and not kept");
}

#[tokio::test(start_paused = true)]
async fn what_is_pushed_to_one_node_is_an_image_for_sandboxes_of_every_other() {
    let world = World::new();
    let layer = world.push(0, "app", b"a layer").await;
    let config =
        json!({"os": "linux", "config": {"Env": ["A=1"]}, "rootfs": {"type": "layers", "diff_ids": [layer]}});
    let config = world.push(0, "app", config.to_string().as_bytes()).await;
    world.tag(0, "app", "v1", &manifest(config, &[(layer, 7)])).await.expect(201);

    for store in &world.stores {
        let image = store.resolve(&format!("atoll.internal/{}/app:v1", organization(1))).await.unwrap();
        assert_eq!((image.config.env, image.layers[0].blob), (vec!["A=1".to_owned()], layer));
        let mut content = String::new();
        let mut blob = ImageSource::open(store, &layer).await.unwrap();
        std::io::Read::read_to_string(&mut blob, &mut content).unwrap();
        assert_eq!(content, "a layer");
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_of_a_blob_is_given_by_whichever_node() {
    let world = World::new();
    let (_, layer) = world.image(0, "app", "v1", b"0123456789").await;
    let path = format!("/v2/app/blobs/{layer}");

    for node in 0..3 {
        for (range, content, body) in [
            ("bytes=2-4", "bytes 2-4/10", "234"),
            ("bytes=7-", "bytes 7-9/10", "789"),
            ("bytes=-1", "bytes 9-9/10", "9"),
        ] {
            let got = world.send(node, request(1, "GET", &path).header("range", range), Body::empty()).await;
            let got = got.expect(206);
            assert_eq!(
                (got.header("content-range"), &*got.body),
                (content, body.as_bytes()),
                "{node} {range}"
            );
            assert_eq!(got.header("content-length"), body.len().to_string());
        }
        let beyond =
            world.send(node, request(1, "GET", &path).header("range", "bytes=10-"), Body::empty()).await;
        assert_eq!(beyond.refused(), (416, "RANGE_INVALID".to_owned()));
        assert_eq!(beyond.header("content-range"), "bytes */10");
    }
}

#[tokio::test(start_paused = true)]
async fn who_shows_no_key_gets_nothing_and_is_asked_for_one() {
    let world = World::new();
    let anonymous = || Request::builder().method("GET").uri("/v2/");
    for (request, status, code) in [
        (anonymous(), 401, "UNAUTHORIZED"),
        (anonymous().header("authorization", "Basic eDp5"), 401, "UNAUTHORIZED"),
        (request(7, "GET", "/v2/"), 401, "UNAUTHORIZED"),
        (request(7, "GET", "/v2/no/such/path"), 401, "UNAUTHORIZED"),
        (request(7, "PUT", "/v2/app/manifests/v1"), 401, "UNAUTHORIZED"),
        (request(9, "GET", "/v2/"), 503, "UNAVAILABLE"),
    ] {
        let answer = world.send(0, request, Body::empty()).await;
        assert_eq!(answer.refused(), (status, code.to_owned()));
        if status == 401 {
            assert!(answer.header("www-authenticate").starts_with("Basic realm="));
        }
    }
    for path in ["/v2", "/v2/"] {
        world.ask(0, "GET", path, "").await.expect(200);
    }
    let bearer = anonymous().header("authorization", format!("Bearer {}", key(1).reveal()));
    world.send(0, bearer, Body::empty()).await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn one_organization_never_reads_or_reuses_what_is_anothers() {
    let world = World::new();
    let (digest, layer) = world.image(0, "app", "v1", b"a secret").await;
    let as_other = |method: &str, path: String| request(2, method, &path);
    let first = organization(1);

    for node in 0..2 {
        for (method, path, status, code) in [
            ("GET", format!("/v2/{first}/app/manifests/v1"), 403, "DENIED"),
            ("GET", format!("/v2/{first}/app/blobs/{layer}"), 403, "DENIED"),
            ("GET", format!("/v2/{first}/app/tags/list"), 403, "DENIED"),
            ("POST", format!("/v2/{first}/app/blobs/uploads/"), 403, "DENIED"),
            ("GET", "/v2/app/manifests/v1".to_owned(), 404, "MANIFEST_UNKNOWN"),
            ("GET", format!("/v2/app/manifests/{digest}"), 404, "MANIFEST_UNKNOWN"),
            ("GET", format!("/v2/app/blobs/{layer}"), 404, "BLOB_UNKNOWN"),
            ("GET", "/v2/app/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
            ("DELETE", "/v2/app/manifests/v1".to_owned(), 404, "MANIFEST_UNKNOWN"),
            ("DELETE", format!("/v2/app/manifests/{digest}"), 404, "MANIFEST_UNKNOWN"),
        ] {
            let answer = world.send(node, as_other(method, path.clone()), Body::empty()).await;
            assert_eq!(answer.refused(), (status, code.to_owned()), "{node} {method} {path}");
        }
        let mount = as_other("POST", format!("/v2/mine/blobs/uploads/?mount={layer}&from={first}/app"));
        world.send(node, mount, Body::empty()).await.expect(202);
        let catalog = world.send(node, as_other("GET", "/v2/_catalog".to_owned()), Body::empty()).await;
        assert_eq!(catalog.expect(200).json(), json!({"repositories": []}));
        // Its blobs are on this node, and still none of the other's.
        let claim = manifest(Digest::of(b"{}"), &[(layer, 8)]).to_string();
        let claim = world.send(node, as_other("PUT", "/v2/mine/manifests/v1".to_owned()), claim.into()).await;
        assert_eq!(claim.refused(), (404, "MANIFEST_BLOB_UNKNOWN".to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_in_chunks_goes_on_only_where_it_ended() {
    let world = World::new();
    let begun = world.ask(0, "POST", "/v2/app/blobs/uploads/", "").await.expect(202);
    let at = begun.header("location").to_owned();
    assert!(begun.header("docker-upload-uuid").len() > 16 && begun.header("range") == "0-0");
    let chunk = |range: &str| request(1, "PATCH", &at).header("content-range", range.to_owned());

    let first = world.send(0, chunk("0-3"), "0123".into()).await.expect(202);
    assert_eq!((first.header("range"), first.header("location")), ("0-3", at.as_str()));
    for wrong in ["0-3", "5-8", "3-4"] {
        let answer = world.send(0, chunk(wrong), "xxxx".into()).await;
        assert_eq!(answer.refused(), (416, "BLOB_UPLOAD_INVALID".to_owned()), "{wrong}");
        assert_eq!((answer.header("range"), answer.header("location")), ("0-3", at.as_str()));
    }
    let nonsense = world.send(0, chunk("what"), "xxxx".into()).await;
    assert_eq!(nonsense.refused(), (400, "BLOB_UPLOAD_INVALID".to_owned()));
    let longer = world.send(0, chunk("4-9").header("content-length", "3"), "xxx".into()).await;
    assert_eq!(longer.refused(), (400, "SIZE_INVALID".to_owned()));
    let status = world.ask(0, "GET", &at, "").await.expect(204);
    assert_eq!(status.header("range"), "0-3");
    // Docker streams without saying where.
    world.ask(0, "PATCH", &at, "45").await.expect(202);
    let digest = Digest::of(b"0123456789");
    let done = request(1, "PUT", &format!("{at}?digest={digest}")).header("content-range", "6-9");
    let done = world.send(0, done, "6789".into()).await.expect(201);

    assert_eq!(done.header("docker-content-digest"), digest.to_string());
    let got = world.ask(2, "GET", &format!("/v2/app/blobs/{digest}"), "").await.expect(200);
    assert_eq!(got.body, b"0123456789");
    let again = world.ask(0, "GET", &at, "").await;
    assert_eq!(again.refused(), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn uploads_that_cannot_be_finished_say_why() {
    let world = World::new();
    let digest = Digest::of(b"a blob");
    let begin = async || {
        let begun = world.ask(0, "POST", "/v2/app/blobs/uploads/", "").await.expect(202);
        begun.header("location").to_owned()
    };
    let whole = |query: &str| format!("/v2/app/blobs/uploads/?digest={query}");
    let at = begin().await;

    for (node, method, path, status, code) in [
        (0, "PUT", at.clone(), 400, "DIGEST_INVALID"),
        (0, "PUT", format!("{at}?digest=sha512:00"), 400, "DIGEST_INVALID"),
        (0, "PUT", format!("{at}?digest=%"), 400, "NAME_INVALID"),
        (1, "PATCH", at.clone(), 404, "BLOB_UPLOAD_UNKNOWN"),
        (1, "PUT", format!("{at}?digest={digest}"), 404, "BLOB_UPLOAD_UNKNOWN"),
        (0, "PATCH", at.replace("/app/", "/other/"), 404, "BLOB_UPLOAD_UNKNOWN"),
        (0, "GET", "/v2/app/blobs/uploads/1".to_owned(), 404, "BLOB_UPLOAD_UNKNOWN"),
        (0, "PUT", format!("{at}?digest={digest}"), 400, "DIGEST_INVALID"),
        (0, "GET", at.clone(), 404, "BLOB_UPLOAD_UNKNOWN"),
        (0, "POST", whole(&digest.to_string()), 400, "DIGEST_INVALID"),
        (0, "POST", whole("latest"), 400, "DIGEST_INVALID"),
        (0, "POST", "/v2/app/blobs/uploads/?mount=latest".to_owned(), 400, "DIGEST_INVALID"),
        (0, "PUT", "/v2/app/blobs/uploads/".to_owned(), 405, "UNSUPPORTED"),
        (0, "DELETE", format!("/v2/app/blobs/{digest}"), 405, "UNSUPPORTED"),
        (0, "GET", format!("/v2/app/referrers/{digest}"), 404, "UNSUPPORTED"),
    ] {
        let answer = world.ask(node, method, &path, "something else").await;
        assert_eq!(answer.refused(), (status, code.to_owned()), "{method} {path}");
    }
    let at = begin().await;
    let huge = request(1, "PATCH", &at).header("content-length", (65u64 << 30).to_string());
    assert_eq!(world.send(0, huge, Body::empty()).await.refused(), (413, "SIZE_INVALID".to_owned()));
    world.ask(0, "DELETE", &at, "").await.expect(204);
    assert_eq!(world.ask(0, "GET", &at, "").await.refused().0, 404);
    let there = world.ask(0, "HEAD", &format!("/v2/app/blobs/{digest}"), "").await;
    assert_eq!(there.status, 404);
}

#[tokio::test(start_paused = true)]
async fn an_upload_whose_client_breaks_off_goes_on_from_what_arrived() {
    let world = World::new();
    let begun = world.ask(0, "POST", "/v2/app/blobs/uploads/", "").await.expect(202);
    let at = begun.header("location").to_owned();
    let broken = futures_util::stream::iter([Ok("01234"), Err(std::io::Error::other("gone"))]);

    let answer = world.ask(0, "PATCH", &at, Body::from_stream(broken)).await;
    assert_eq!(answer.refused(), (408, "BLOB_UPLOAD_INVALID".to_owned()));
    let silent = futures_util::stream::once(async { Ok::<_, std::io::Error>("56") });
    let silent = silent.chain(futures_util::stream::pending());
    let answer = world.ask(0, "PATCH", &at, Body::from_stream(silent)).await;
    assert_eq!(answer.status, 408, "whoever falls silent is not waited for for ever");

    assert_eq!(world.ask(0, "GET", &at, "").await.expect(204).header("range"), "0-6");
    let digest = Digest::of(b"0123456789");
    world.ask(0, "PUT", &format!("{at}?digest={digest}"), "789").await.expect(201);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_must_be_one_and_complete() {
    let world = World::new();
    let config = world.push(0, "app", b"{}").await;
    let layer = world.push(0, "app", b"layer").await;
    let missing = Digest::of(b"never pushed");
    let good = manifest(config, &[(layer, 5)]).to_string();
    let put = |version: &str| request(1, "PUT", &format!("/v2/app/manifests/{version}"));
    let typed = |media_type: &str| put("v1").header("content-type", media_type.to_owned());
    let other_digest = missing.to_string();

    for (request, body, status, code) in [
        (put("v1"), String::new(), 400, "MANIFEST_INVALID"),
        (put("v1"), "[]".to_owned(), 400, "MANIFEST_INVALID"),
        (put("v1"), json!({"schemaVersion": 1}).to_string(), 400, "MANIFEST_INVALID"),
        (put("v1"), good.replace("sha256:", "sha1:"), 400, "MANIFEST_INVALID"),
        (typed(INDEX), good.clone(), 400, "MANIFEST_INVALID"),
        (typed("text/plain"), good.clone(), 400, "MANIFEST_INVALID"),
        (put(&other_digest), good.clone(), 400, "DIGEST_INVALID"),
        (put("v1"), manifest(config, &[(missing, 5)]).to_string(), 404, "MANIFEST_BLOB_UNKNOWN"),
        (put("v1"), "x".repeat(5 << 20), 413, "SIZE_INVALID"),
        (put("v1").header("content-length", "5000000"), String::new(), 413, "SIZE_INVALID"),
        (put("-v1"), good.clone(), 400, "TAG_INVALID"),
    ] {
        let answer = world.send(0, request, body.into()).await;
        assert_eq!(answer.refused(), (status, code.to_owned()));
    }
    assert_eq!(world.ask(0, "GET", "/v2/app/manifests/v1", "").await.refused().0, 404);
    // A blob is no manifest, and no tag a blob.
    let blob = world.ask(0, "GET", &format!("/v2/app/manifests/{layer}"), "").await;
    assert_eq!(blob.refused(), (404, "MANIFEST_UNKNOWN".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_image_pushed_through_several_nodes_comes_together() {
    let world = World::new();
    let config = world.push(0, "app", b"{}").await;
    let layer = world.push(1, "app", b"layer").await;
    // Whoever is asked says that it need not be pushed again.
    for (node, digest) in [(1, config), (2, layer)] {
        world.ask(node, "HEAD", &format!("/v2/app/blobs/{digest}"), "").await.expect(200);
        let mount = format!("/v2/other/blobs/uploads/?mount={digest}&from=app");
        world.ask(node, "POST", &mount, "").await.expect(201);
    }
    let image = manifest(config, &[(layer, 5)]);
    world.tag(2, "app", "v1", &image).await.expect(201);
    let digest = Digest::of(image.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": MANIFEST, "digest": digest, "size": image.to_string().len()}]});
    world.tag(0, "app", "all", &index).await.expect(201);

    world.network.crash(NodeId(2));
    for version in ["v1", "all"] {
        let path = format!("/v2/app/manifests/{version}");
        assert_eq!(
            world.ask(0, "GET", &path, "").await.expect(200).header("content-type"),
            match version {
                "all" => INDEX,
                _ => MANIFEST,
            }
        );
    }
    let got = world.ask(0, "GET", &format!("/v2/app/blobs/{layer}"), "").await.expect(200);
    assert_eq!(got.body, b"layer", "the node that took the manifest has all of it");
}

#[tokio::test(start_paused = true)]
async fn a_tag_is_what_it_was_set_to_last_on_any_node_until_it_is_removed_on_any() {
    let world = World::new();
    let (one, _) = world.image(0, "app", "v1", b"one").await;
    let (two, _) = world.image(1, "app", "v1", b"two").await;
    let means = async |node: usize, version: &str| {
        let got = world.ask(node, "GET", &format!("/v2/app/manifests/{version}"), "").await;
        (got.status == 200).then(|| Digest::of(&got.body))
    };

    for node in 0..3 {
        assert_eq!(means(node, "v1").await, Some(two), "{node}");
        assert_eq!(means(node, &one.to_string()).await, Some(one), "by its digest it is still there");
    }
    world.ask(2, "DELETE", "/v2/app/manifests/v1", "").await.expect(202);
    for node in 0..3 {
        assert_eq!(means(node, "v1").await, None, "{node}");
        assert_eq!(means(node, &two.to_string()).await, Some(two), "only the tag is gone");
    }
    world.tag(2, "app", "again", &manifest(Digest::of(b"{}"), &[(Digest::of(b"two"), 3)])).await.expect(201);
    world.ask(0, "DELETE", &format!("/v2/app/manifests/{two}"), "").await.expect(202);
    let gone = world.ask(1, "DELETE", &format!("/v2/app/manifests/{two}"), "").await;
    assert_eq!(gone.refused(), (404, "MANIFEST_UNKNOWN".to_owned()));
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    for node in 0..3 {
        assert_eq!(means(node, "again").await, None, "{node}");
        assert_eq!(means(node, &one.to_string()).await, Some(one), "{node}");
    }
}

#[tokio::test(start_paused = true)]
async fn lists_are_of_all_nodes_and_come_in_pages() {
    let world = World::new();
    world.image(0, "app", "v1", b"one").await;
    world.image(1, "app", "v2", b"two").await;
    world.image(2, "app", "v3", b"three").await;
    world.image(0, "apple", "x", b"one").await;
    world.image(1, "app/part", "y", b"one").await;
    let own = organization(1);

    for node in 0..3 {
        let tags = world.ask(node, "GET", "/v2/app/tags/list", "").await.expect(200);
        assert_eq!(tags.json(), json!({"name": "app", "tags": ["v1", "v2", "v3"]}));
        assert!(
            !tags.headers.contains_key("link") && !tags.headers.contains_key("x-atoll-unreachable-nodes")
        );
        let page = world.ask(node, "GET", "/v2/app/tags/list?n=2", "").await.expect(200);
        assert_eq!(page.json()["tags"], json!(["v1", "v2"]));
        assert_eq!(page.header("link"), "</v2/app/tags/list?n=2&last=v2>; rel=\"next\"");
        let rest = world.ask(node, "GET", "/v2/app/tags/list?n=2&last=v2", "").await.expect(200);
        assert_eq!(rest.json()["tags"], json!(["v3"]));
        assert!(!rest.headers.contains_key("link"));
        let catalog = world.ask(node, "GET", "/v2/_catalog?n=2", "").await.expect(200);
        assert_eq!(
            catalog.json(),
            json!({"repositories": [format!("{own}/app"), format!("{own}/app/part")]})
        );
        assert!(catalog.header("link").starts_with("</v2/_catalog?n=2&last="));
    }
    assert_eq!(world.ask(0, "GET", "/v2/app/tags/list?n=0", "").await.expect(200).json()["tags"], json!([]));
    for n in ["-1", "x", "1.5"] {
        let answer = world.ask(0, "GET", &format!("/v2/app/tags/list?n={n}"), "").await;
        assert_eq!(answer.refused(), (400, "PAGINATION_NUMBER_INVALID".to_owned()), "{n}");
    }
    let nobody = world.ask(0, "GET", "/v2/ap/tags/list", "").await;
    assert_eq!(nobody.refused(), (404, "NAME_UNKNOWN".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_only_a_dead_node_has_is_unavailable_and_may_be_pushed_again() {
    let world = World::new();
    let (digest, layer) = world.image(1, "app", "v1", b"layer").await;
    world.image(0, "app", "here", b"here").await;
    world.network.crash(NodeId(2));

    for path in [
        "/v2/app/manifests/v1".to_owned(),
        format!("/v2/app/manifests/{digest}"),
        format!("/v2/app/blobs/{layer}"),
        "/v2/gone/tags/list".to_owned(),
    ] {
        let answer = world.ask(0, "GET", &path, "").await;
        assert_eq!(answer.refused(), (503, "UNAVAILABLE".to_owned()), "{path}");
        assert_eq!(answer.json()["errors"][0]["detail"]["unreachableNodes"], json!(["0000000000000002"]));
        assert!(answer.headers.contains_key("retry-after"));
    }
    for path in ["/v2/app/manifests/v1".to_owned(), format!("/v2/app/blobs/{layer}")] {
        assert_eq!(world.ask(0, "HEAD", &path, "").await.status, 404, "{path}");
    }
    let tags = world.ask(0, "GET", "/v2/app/tags/list", "").await.expect(200);
    assert_eq!(tags.json()["tags"], json!(["here"]));
    assert_eq!(tags.header("x-atoll-unreachable-nodes"), "0000000000000002");
    world.image(0, "app", "v1", b"layer").await;
    world.ask(2, "GET", "/v2/app/manifests/v1", "").await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn no_request_makes_a_handler_panic() {
    let world = World::new();
    world.image(0, "app", "v1", b"one").await;
    let digest = Digest::of(b"one");
    let paths = [
        "/v2/".to_owned(),
        "/v2/_catalog?n=1&last=%ff".to_owned(),
        "/v2/app/tags/list?last=zzz".to_owned(),
        "/v2/app/manifests/v1".to_owned(),
        format!("/v2/app/blobs/{digest}"),
        format!("/v2/app/blobs/uploads/?mount={digest}&digest={digest}"),
        format!("/v2/app/blobs/uploads/0000000000000001-{}", "0".repeat(32)),
        "/v2/%".to_owned(),
        "/v2/app/".to_owned(),
        "/v2//".to_owned(),
    ];
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEIRD"] {
        for path in &paths {
            for (name, value) in
                [("range", "bytes=1-0"), ("content-range", "9-1"), ("content-length", "99"), ("accept", "x")]
            {
                let request = request(1, method, path).header(name, value);
                let answer = world.send(0, request, Body::from("body")).await;
                assert_ne!(answer.status, 500, "{method} {path} {name}");
            }
        }
    }
}
