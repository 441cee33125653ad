//! The door as S3 clients see it, with a signer of our own. Real clients try it in `tests/sdk`.

use std::io::Read;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use atoll_api::ids::OrganizationId;
use atoll_runner::image::Digest;
use atoll_runner::store::{Named, PeerBlob, Peers, Store, StoreConfig, StoreError};
use axum::Router;
use axum::body::{Body, Bytes};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Request};
use ring::{digest, hmac};
use tower::ServiceExt;

use super::signature::escaped;
use super::*;

const HASH: &str = "0123456789abcdef0123456789abcdef";
const HOST: &str = "127.0.0.1:9101";

fn organization(number: u128) -> OrganizationId {
    OrganizationId(uuid::Uuid::from_u128(number))
}

fn path() -> String {
    format!("/{BUCKET}/{}/{HASH}/context.tar", organization(1))
}

/// One node.
struct Node {
    router: Router,
    objects: ObjectStorage,
    store: Store,
    _dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig { dir: dir.path().into(), ..StoreConfig::default() }).unwrap();
        let objects = ObjectStorage::new(Issuer::new([3; 32]), Contexts::new(store.clone()));
        Node { router: router(objects.clone()), objects, store, _dir: dir }
    }

    fn pair() -> (Node, Node) {
        let (one, two) = (Node::new(), Node::new());
        one.store.set_peers(Arc::new(Other(two.store.clone())));
        two.store.set_peers(Arc::new(Other(one.store.clone())));
        (one, two)
    }

    async fn send(&self, request: Signer) -> Answer {
        self.send_raw(request.request(&self.objects.issue(organization(1)))).await
    }

    async fn send_raw(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn content(&self) -> Option<String> {
        match self.objects_contexts().open(organization(1), &HASH.parse().unwrap()).await {
            Ok(mut file) => {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                Some(text)
            }
            Err(StoreError::NotFound(text)) => {
                assert!(text.contains(HASH) && text.contains("build again"), "{text}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn objects_contexts(&self) -> Contexts {
        Contexts::new(self.store.clone())
    }
}

/// Another node's store, without the mesh between.
struct Other(Store);

#[async_trait]
impl Peers for Other {
    async fn blob(&self, digest: &Digest, _from: u64) -> Option<PeerBlob> {
        let (file, bytes) = self.0.open_here(digest)?;
        Some(PeerBlob { bytes, from: 0, content: Box::new(tokio::fs::File::from_std(file)) })
    }
    async fn name(&self, name: &str) -> Option<Named> {
        self.0.name_here(&name.parse().ok()?)
    }
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {}", self.text())).to_str().unwrap()
    }

    #[track_caller]
    fn ok(self) -> Answer {
        assert!((200..300).contains(&self.status), "{} {}", self.status, self.text());
        self
    }

    #[track_caller]
    fn refused(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        assert!(self.text().contains(&format!("<Code>{code}</Code>")), "{}", self.text());
    }

    fn element(&self, name: &str) -> &str {
        let (_, rest) = self.text().split_once(&format!("<{name}>")).expect(name);
        rest.split_once('<').unwrap().0
    }
}

/// A request, signed as an SDK does it; not the code that checks.
struct Signer {
    method: &'static str,
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    payload: Option<String>,
    body: Vec<u8>,
    age_s: i64,
}

fn signer(method: &'static str, path: impl Into<String>) -> Signer {
    Signer {
        method,
        path: path.into(),
        query: Vec::new(),
        headers: Vec::new(),
        payload: None,
        body: Vec::new(),
        age_s: 0,
    }
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

fn sign(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

impl Signer {
    fn query(mut self, name: &str, value: &str) -> Signer {
        self.query.push((name.to_owned(), value.to_owned()));
        self
    }

    fn header(mut self, name: &str, value: &str) -> Signer {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn payload(mut self, payload: &str) -> Signer {
        self.payload = Some(payload.to_owned());
        self
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Signer {
        self.body = body.into();
        self
    }

    fn aged(mut self, age_s: i64) -> Signer {
        self.age_s = age_s;
        self
    }

    fn request(self, issued: &Issued) -> Request<Body> {
        self.chunked_request(issued, |_, _, body| body)
    }

    /// `frame` gets the signing key, what each chunk's text begins with and the head's signature, and the body.
    fn chunked_request(
        mut self,
        issued: &Issued,
        frame: impl FnOnce(&[u8], (&str, &str), Vec<u8>) -> Vec<u8>,
    ) -> Request<Body> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        let at = time::OffsetDateTime::from_unix_timestamp(now - self.age_s).unwrap();
        let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
        let (hour, minute, second) = (at.hour(), at.minute(), at.second());
        let date = format!("{year:04}{month:02}{day:02}");
        let amz_date = format!("{date}T{hour:02}{minute:02}{second:02}Z");
        let payload = self.payload.clone().unwrap_or_else(|| sha256_hex(&self.body));
        for (name, value) in [
            ("host", HOST),
            ("x-amz-content-sha256", &payload),
            ("x-amz-date", &amz_date),
            ("x-amz-security-token", &issued.session_token),
        ] {
            self.headers.push((name.to_owned(), value.to_owned()));
        }
        self.headers.sort();
        self.query.sort();
        let query = self.query.iter().map(|(name, value)| format!("{name}={}", escaped(value.as_bytes())));
        let query = query.collect::<Vec<_>>().join("&");
        let lines: String = self.headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let names = self.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
        let canonical = format!("{}\n{}\n{query}\n{lines}\n{names}\n{payload}", self.method, self.path);
        let scope = format!("{date}/{REGION}/s3/aws4_request");
        let text = format!("AWS4-HMAC-SHA256\n{amz_date}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
        let key = scope
            .split('/')
            .fold(format!("AWS4{}", issued.secret).into_bytes(), |key, part| sign(&key, part));
        let signature = hex::encode(sign(&key, &text));
        let body = frame(&key, (&format!("{amz_date}\n{scope}"), &signature), self.body);
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            issued.access_key
        );
        let mut request = Request::builder()
            .method(self.method)
            .uri(if query.is_empty() { self.path } else { format!("{}?{query}", self.path) })
            .header("authorization", authorization)
            .header("content-length", body.len());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        // In pieces that fit no chunk.
        let pieces: Vec<_> =
            body.chunks(7).map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece))).collect();
        request.body(Body::from_stream(futures_util::stream::iter(pieces))).unwrap()
    }
}

async fn begin(node: &Node) -> String {
    let begun = node.send(signer("POST", path()).query("uploads", "")).await.ok();
    begun.element("UploadId").to_owned()
}

fn part(upload: &str, number: u32, content: &str) -> Signer {
    signer("PUT", path()).query("partNumber", &number.to_string()).query("uploadId", upload).body(content)
}

fn completion(upload: &str, parts: &[(u32, &str)]) -> Signer {
    let parts: String = parts
        .iter()
        .map(|(number, tag)| format!("<Part><ETag>{tag}</ETag><PartNumber>{number}</PartNumber></Part>"))
        .collect();
    let xml = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
    signer("POST", path()).query("uploadId", upload).body(xml)
}

#[tokio::test]
async fn a_context_is_put_read_listed_and_deleted() {
    let node = Node::new();
    assert_eq!(node.send(signer("HEAD", path())).await.status, 404);
    node.send(signer("GET", path())).await.refused(404, "NoSuchKey");
    assert_eq!(node.content().await, None);

    let put = node.send(signer("PUT", path()).body("content")).await.ok();

    let head = node.send(signer("HEAD", path())).await.ok();
    assert_eq!((head.header("content-length"), head.header("etag")), ("7", put.header("etag")));
    assert!(head.header("last-modified").ends_with(" GMT"));
    assert_eq!(node.send(signer("GET", path())).await.ok().text(), "content");
    let range = node.send(signer("GET", path()).header("range", "bytes=1-3")).await.ok();
    assert_eq!((range.status, range.text(), range.header("content-range")), (206, "ont", "bytes 1-3/7"));
    node.send(signer("GET", path()).header("range", "bytes=7-")).await.refused(416, "InvalidRange");
    assert_eq!(node.content().await.as_deref(), Some("content"));

    let prefix = format!("{}/", organization(1));
    let list =
        |prefix: &str| signer("GET", format!("/{BUCKET}/")).query("list-type", "2").query("prefix", prefix);
    let listed = node.send(list(&format!("{prefix}{HASH}/")).query("max-keys", "1")).await.ok();
    assert_eq!((listed.element("KeyCount"), listed.element("Size")), ("1", "7"));
    assert_eq!(format!("/{BUCKET}/{}", listed.element("Key")), path());
    assert_eq!(node.send(list(&prefix)).await.ok().element("KeyCount"), "1");
    let grouped = node.send(list(&prefix).query("delimiter", "/")).await.ok();
    assert!(grouped.text().contains(&format!("<CommonPrefixes><Prefix>{prefix}{HASH}/</Prefix>")));
    assert_eq!(node.send(list(&format!("{prefix}ff"))).await.ok().element("KeyCount"), "0");

    node.send(signer("DELETE", path())).await.ok();
    node.send(signer("GET", path())).await.refused(404, "NoSuchKey");
    assert_eq!(node.send(list(&prefix)).await.ok().element("KeyCount"), "0");
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let node = Node::new();
    let keys: Vec<String> = (0..5).map(|n| format!("{}/{:032x}/context.tar", organization(1), n)).collect();
    for key in &keys {
        node.send(signer("PUT", format!("/{BUCKET}/{key}")).body("x")).await.ok();
    }

    let mut seen = Vec::new();
    let mut token = None::<String>;
    loop {
        let mut list = signer("GET", format!("/{BUCKET}"))
            .query("list-type", "2")
            .query("prefix", &organization(1).to_string())
            .query("max-keys", "2");
        if let Some(token) = &token {
            list = list.query("continuation-token", token);
        }
        let page = node.send(list).await.ok();
        seen.extend(
            page.text().split("<Key>").skip(1).map(|rest| rest.split_once('<').unwrap().0.to_owned()),
        );
        match page.element("IsTruncated") {
            "true" => token = Some(page.element("NextContinuationToken").to_owned()),
            _ => break,
        }
    }
    assert_eq!(seen, keys);
}

#[tokio::test]
async fn an_upload_in_parts_may_come_to_any_node() {
    let (one, two) = Node::pair();
    let upload = begin(&one).await;

    let first = two.send(part(&upload, 1, "first ")).await.ok();
    let second = one.send(part(&upload, 2, "second ")).await.ok();
    let third = two.send(part(&upload, 7, "third")).await.ok();
    let tags = [(1, first.header("etag")), (2, second.header("etag")), (7, third.header("etag"))];
    let done = one.send(completion(&upload, &tags)).await.ok();

    assert!(done.text().contains("<CompleteMultipartUploadResult"), "{}", done.text());
    for node in [&one, &two] {
        assert_eq!(node.content().await.as_deref(), Some("first second third"));
        assert_eq!(node.send(signer("HEAD", path())).await.ok().header("content-length"), "18");
    }
    // A client that did not hear the answer says it again.
    one.send(completion(&upload, &tags)).await.ok();
    two.send(signer("DELETE", path())).await.ok();
    assert_eq!(one.content().await, None);
}

#[tokio::test]
async fn one_part_is_the_context_itself() {
    let node = Node::new();
    let upload = begin(&node).await;
    let tag = node.send(part(&upload, 1, "alone")).await.ok();

    let done = node.send(completion(&upload, &[(1, tag.header("etag"))])).await.ok();

    assert_eq!(node.content().await.as_deref(), Some("alone"));
    assert!(done.text().contains(&sha256_hex(b"alone")));
}

#[tokio::test]
async fn parts_are_only_what_was_uploaded_as_them() {
    let node = Node::new();
    let upload = begin(&node).await;
    let tag = node.send(part(&upload, 1, "mine")).await.ok();
    let tag = tag.header("etag").trim_matches('"');
    let other_upload = begin(&node).await;
    // Somebody else's blob, whose digest is known.
    let secret = node.store.put_bytes(b"secret").await.unwrap();
    let forged = format!("{}{}", secret.hex(), &tag[64..]);

    for (upload, parts) in [
        (&upload, vec![(1, forged.as_str())]),
        (&upload, vec![(1, &tag[..64])]),
        (&upload, vec![(2, tag)]),
        (&other_upload, vec![(1, tag)]),
        (&upload, vec![(1, "é")]),
    ] {
        node.send(completion(upload, &parts)).await.refused(400, "InvalidPart");
    }
    node.send(completion(&upload, &[(2, tag), (1, tag)])).await.refused(400, "InvalidPartOrder");
    node.send(completion(&upload, &[])).await.refused(400, "MalformedXML");
    node.send(completion("AAAA", &[(1, tag)])).await.refused(404, "NoSuchUpload");
    let other_key = path().replace(HASH, &"f".repeat(32));
    let moved = signer("PUT", other_key).query("partNumber", "1").query("uploadId", &upload).body("x");
    node.send(moved).await.refused(404, "NoSuchUpload");
    assert_eq!(node.content().await, None);
    node.send(signer("DELETE", path()).query("uploadId", &upload)).await.ok();
}

#[tokio::test]
async fn a_body_must_be_what_was_said_of_it() {
    let node = Node::new();
    let put = || signer("PUT", path()).body("content");

    node.send(put().payload(&sha256_hex(b"other"))).await.refused(400, "XAmzContentSHA256Mismatch");
    node.send(put().payload("nonsense")).await.refused(400, "InvalidArgument");
    for name in ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"] {
        let header = format!("x-amz-checksum-{name}");
        node.send(put().header(&header, "AAAAAA==")).await.refused(400, "BadDigest");
    }
    let mut request = put().payload("UNSIGNED-PAYLOAD").request(&node.objects.issue(organization(1)));
    request.headers_mut().insert("content-length", "8".parse().unwrap());
    node.send_raw(request).await.refused(400, "IncompleteBody");
    node.send(put().header("if-none-match", "*")).await.refused(501, "NotImplemented");
    node.send(put().header("x-amz-copy-source", "/x")).await.refused(501, "NotImplemented");
    let mut request = put().payload("UNSIGNED-PAYLOAD").request(&node.objects.issue(organization(1)));
    request.headers_mut().insert("content-length", (contexts::CONTEXT_BYTES_MAX + 1).into());
    node.send_raw(request).await.refused(400, "EntityTooLarge");
    assert_eq!(node.content().await, None);

    let crc32 = STANDARD.encode(crc32fast::hash(b"content").to_be_bytes());
    node.send(put().payload("UNSIGNED-PAYLOAD").header("x-amz-checksum-crc32", &crc32)).await.ok();
    assert_eq!(node.content().await.as_deref(), Some("content"));
}

fn streaming(payload: &str, content: &str) -> Signer {
    signer("PUT", path())
        .payload(payload)
        .header("x-amz-decoded-content-length", &content.len().to_string())
        .body(content)
}

#[tokio::test]
async fn a_body_in_unsigned_chunks_has_its_checksum_at_the_end() {
    let node = Node::new();
    let send = |trailer: String| {
        let request = streaming("STREAMING-UNSIGNED-PAYLOAD-TRAILER", "content")
            .header("x-amz-trailer", "x-amz-checksum-crc32")
            .chunked_request(&node.objects.issue(organization(1)), |_, _, body| {
                let (a, b) = body.split_at(3);
                [b"3\r\n", a, b"\r\n4\r\n", b, b"\r\n0\r\n", trailer.as_bytes(), b"\r\n"].concat()
            });
        node.send_raw(request)
    };
    let crc32 = STANDARD.encode(crc32fast::hash(b"content").to_be_bytes());

    send("x-amz-checksum-crc32:AAAAAA==\r\n".into()).await.refused(400, "BadDigest");
    send(String::new()).await.refused(400, "IncompleteBody");
    assert_eq!(node.content().await, None);
    send(format!("x-amz-checksum-crc32:{crc32}\r\n")).await.ok();
    assert_eq!(node.content().await.as_deref(), Some("content"));
}

#[tokio::test]
async fn each_signed_chunk_is_checked() {
    let node = Node::new();
    let send = |break_at: Option<usize>| {
        let request = streaming("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "content").chunked_request(
            &node.objects.issue(organization(1)),
            |key, (begin, seed), body| {
                let mut framed = Vec::new();
                let mut previous = seed.to_owned();
                for (at, chunk) in [&body[..3], &body[3..], &[]].into_iter().enumerate() {
                    let text = format!(
                        "AWS4-HMAC-SHA256-PAYLOAD\n{begin}\n{previous}\n{}\n{}",
                        sha256_hex(b""),
                        sha256_hex(chunk)
                    );
                    previous = hex::encode(sign(key, &text));
                    let shown = if break_at == Some(at) { "0".repeat(64) } else { previous.clone() };
                    framed.extend(format!("{:x};chunk-signature={shown}\r\n", chunk.len()).into_bytes());
                    framed.extend([chunk, b"\r\n"].concat());
                }
                framed
            },
        );
        node.send_raw(request)
    };

    for at in 0..3 {
        send(Some(at)).await.refused(403, "SignatureDoesNotMatch");
    }
    assert_eq!(node.content().await, None);
    send(None).await.ok();
    assert_eq!(node.content().await.as_deref(), Some("content"));
}

#[tokio::test]
async fn who_may_not_is_told_why() {
    let node = Node::new();
    let issued = node.objects.issue(organization(1));
    let get = |path: &str| signer("GET", path.to_owned());

    let unsigned = Request::get(path()).header("host", HOST).body(Body::empty()).unwrap();
    node.send_raw(unsigned).await.refused(403, "AccessDenied");
    let wrong = Issued { secret: "x".into(), ..issued.clone() };
    node.send_raw(get(&path()).request(&wrong)).await.refused(403, "SignatureDoesNotMatch");
    let wrong = Issued { access_key: "ATOLL00".into(), ..issued.clone() };
    node.send_raw(get(&path()).request(&wrong)).await.refused(403, "InvalidAccessKeyId");
    let foreign = Issuer::new([4; 32]).issue(organization(1), 4_000_000_000, [0; 8]);
    node.send_raw(get(&path()).request(&foreign)).await.refused(400, "InvalidToken");
    let ended = Issuer::new([3; 32]).issue(organization(1), 1_000_000_000, [0; 8]);
    node.send_raw(get(&path()).request(&ended)).await.refused(400, "ExpiredToken");
    node.send(get(&path()).aged(16 * 60)).await.refused(403, "RequestTimeTooSkewed");
    let others = path().replace(&organization(1).to_string(), &organization(2).to_string());
    for method in ["GET", "PUT", "DELETE"] {
        node.send(signer(method, others.clone())).await.refused(403, "AccessDenied");
    }
    node.send(
        signer("GET", format!("/{BUCKET}"))
            .query("list-type", "2")
            .query("prefix", &organization(2).to_string()),
    )
    .await
    .refused(403, "AccessDenied");
    let mut replayed = get(&path()).request(&issued);
    *replayed.uri_mut() = others.parse().unwrap();
    node.send_raw(replayed).await.refused(403, "SignatureDoesNotMatch");
}

#[tokio::test]
async fn what_clients_ask_of_a_bucket_is_answered() {
    let node = Node::new();

    assert_eq!(node.send(signer("HEAD", format!("/{BUCKET}"))).await.status, 200);
    let location = node.send(signer("GET", format!("/{BUCKET}/")).query("location", "")).await.ok();
    assert!(location.text().contains("<LocationConstraint"));
    node.send(signer("PUT", format!("/{BUCKET}"))).await.refused(405, "MethodNotAllowed");
    node.send(signer("GET", format!("/{BUCKET}")).query("versions", "")).await.refused(501, "NotImplemented");
    node.send(signer("PUT", format!("/{BUCKET}/x")).body("x")).await.refused(400, "InvalidArgument");
}
