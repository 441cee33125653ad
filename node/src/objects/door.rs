//! The handlers: who asks, what for, and the answer. Bodies stream; nothing larger than a chunk is held.

use std::collections::HashMap;
use std::io::SeekFrom;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use atoll_api::ids::{OrganizationId, RequestId};
use atoll_runner::image::Digest;
use atoll_runner::store::Artifact;
use axum::Router;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use futures_util::StreamExt;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, EXPECT, LAST_MODIFIED};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::time::timeout;
use tokio_util::io::ReaderStream;

use super::contexts::{CONTEXT_BYTES_MAX, Contexts};
use super::credentials::{CREDENTIALS_LIVE, Issued, Issuer, Known};
use super::errors::S3Error;
use super::operation::{Key, List, Operation, Query};
use super::payload::{Intake, Payload};
use super::signature::{Chain, Claim, Head};
use super::{BUCKET, REGION, xml};

/// Bodies that a node takes in at once.
const UPLOADS_MAX: usize = 64;
/// Of these, one organization's: an SDK sends four parts at once.
const UPLOADS_OF_ONE_MAX: usize = 16;
/// A body of which nothing comes for so long is given up.
const BODY_IDLE_MAX: Duration = Duration::from_secs(60);
/// A body that drips in is given up after this.
const BODY_TIME_MAX: Duration = CREDENTIALS_LIVE;
/// Kept free on the store's disk, besides what was announced.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// A refused body is read on for so long and so far, so that the client gets to read the answer.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(3);
const DRAIN_BYTES_MAX: usize = 16 << 20;
pub(super) const READ_BYTES: usize = 128 * 1024;

/// Contexts, and who may use them. Cheap to clone.
#[derive(Clone)]
pub struct ObjectStorage {
    pub(super) issuer: Issuer,
    pub(super) contexts: Contexts,
    uploads: Arc<Mutex<HashMap<OrganizationId, usize>>>,
}

/// Room for one body, until it is dropped.
pub(super) struct Room {
    uploads: Arc<Mutex<HashMap<OrganizationId, usize>>>,
    organization_id: OrganizationId,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = uploads.get_mut(&self.organization_id) {
            *count -= 1;
            if *count == 0 {
                uploads.remove(&self.organization_id);
            }
        }
    }
}

/// Everything below the bucket's path. It is no part of the REST door: its deadlines, ids and errors are S3's.
pub fn router(objects: ObjectStorage) -> Router {
    Router::new()
        .route(&format!("/{BUCKET}"), any(handle))
        .route(&format!("/{BUCKET}/"), any(handle))
        .route(&format!("/{BUCKET}/{{*key}}"), any(handle))
        .with_state(objects)
}

async fn handle(State(objects): State<ObjectStorage>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut body = Incoming(body.into_data_stream());
    let request_id = parts.headers.get(RequestId::HEADER).and_then(|id| id.to_str().ok()?.parse().ok());
    let request_id: RequestId = request_id.unwrap_or_else(|| RequestId::from_random(rand::random()));
    let mut response = match objects.answer(&parts, &mut body).await {
        Ok(response) => response,
        Err(error) => {
            // Who waits for our word before sending sends nothing now.
            if !parts.headers.contains_key(EXPECT) {
                let _ = timeout(DRAIN_TIME_MAX, body.drain()).await;
            }
            let path: String = parts.uri.path().chars().take(512).collect();
            error.into_response(&parts.method, &path, request_id.as_str())
        }
    };
    if let Ok(value) = HeaderValue::from_str(request_id.as_str()) {
        response.headers_mut().insert("x-amz-request-id", value);
    }
    response
}

pub(super) struct Incoming(BodyDataStream);

impl Incoming {
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, S3Error> {
        match timeout(BODY_IDLE_MAX, self.0.next()).await {
            Err(_) => Err(S3Error::RequestTimeout),
            Ok(None) => Ok(None),
            Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
            Ok(Some(Err(_))) => Err(S3Error::IncompleteBody),
        }
    }

    async fn drain(&mut self) {
        let mut bytes = 0;
        while let Ok(Some(chunk)) = self.next().await {
            bytes += chunk.len();
            if bytes > DRAIN_BYTES_MAX {
                return;
            }
        }
    }
}

/// A request that is what its signer sent.
pub(super) struct Signed<'a> {
    pub(super) head: Head<'a>,
    pub(super) known: Known,
    pub(super) payload: Payload,
    pub(super) chain: Chain,
}

impl ObjectStorage {
    pub fn new(issuer: Issuer, contexts: Contexts) -> ObjectStorage {
        ObjectStorage { issuer, contexts, uploads: Arc::default() }
    }

    /// Credentials for an organization's contexts.
    pub fn issue(&self, organization_id: OrganizationId) -> Issued {
        self.issuer.issue(organization_id, now_s(), rand::random())
    }

    async fn answer(&self, parts: &Parts, body: &mut Incoming) -> Result<Response, S3Error> {
        let head = Head { method: &parts.method, uri: &parts.uri, headers: &parts.headers };
        let query = Query::parse(parts.uri.query().unwrap_or_default())?;
        let claim = Claim::read(&head, &query, REGION)?;
        let now_s = now_s();
        let known = self.issuer.know(&claim.access_key, &claim.session_token, now_s)?;
        let payload = claim.payload.clone();
        let chain = claim.check(&head, &query, &known.secret, now_s)?;
        let signed = Signed { head, known, payload, chain };

        let operation = Operation::parse(&parts.method, &parts.uri, &query)?;
        if operation.organization_id().is_some_and(|owner| owner != signed.known.organization_id) {
            return Err(S3Error::AccessDenied("these credentials are for another organization's contexts"));
        }
        match operation {
            Operation::HeadBucket => Ok(empty(StatusCode::OK)),
            Operation::Location => Ok(document(xml::location())),
            Operation::List(list) => self.list(&list).await,
            Operation::Head(key) => self.read(&key, None, Wanted::Head).await,
            Operation::Get(key) => {
                let range = head.text("range").map(str::to_owned);
                self.read(&key, range.as_deref(), Wanted::Content).await
            }
            Operation::Put(key) => self.put(signed, &key, body).await,
            Operation::Delete(key) => {
                self.contexts.delete(&key).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            Operation::Begin(key) => Ok(document(xml::begun(&key, &self.begin(&key, now_s)))),
            Operation::PutPart { key, upload, number } => {
                self.upload(&key, &upload, now_s)?;
                let (digest, _) = self.receive(signed, body).await?;
                tagged(&self.part_tag(&upload, number, &digest))
            }
            Operation::Complete { key, upload } => {
                self.upload(&key, &upload, now_s)?;
                self.complete(signed, &key, &upload, body).await
            }
            // Its parts are blobs that nothing speaks of, and go with the next collection.
            Operation::Abort { key, upload } => {
                self.upload(&key, &upload, now_s)?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
        }
    }

    async fn put(&self, signed: Signed<'_>, key: &Key, body: &mut Incoming) -> Result<Response, S3Error> {
        refuse_conditions(signed.head.headers)?;
        let (digest, bytes) = self.receive(signed, body).await?;
        self.contexts.put(key, digest, bytes).await?;
        tagged(&digest.hex())
    }

    /// Takes a body into the store.
    async fn receive(&self, signed: Signed<'_>, body: &mut Incoming) -> Result<(Digest, u64), S3Error> {
        if signed.head.headers.contains_key("x-amz-copy-source") {
            return Err(S3Error::NotImplemented("nothing can be copied".to_owned()));
        }
        let mut intake = Intake::of_object(&signed.head, signed.payload, signed.chain, CONTEXT_BYTES_MAX)?;
        let _room = self.room(signed.known.organization_id)?;
        self.check_space(intake.length().unwrap_or(0))?;
        let mut writer = self.contexts.writer()?;
        let taking = async {
            while let Some(arrived) = body.next().await? {
                let mut arrived = &arrived[..];
                while let Some(piece) = intake.next(&mut arrived)? {
                    writer.write(piece).await?;
                }
            }
            Ok::<(), S3Error>(())
        };
        timeout(BODY_TIME_MAX, taking).await.unwrap_or(Err(S3Error::RequestTimeout))?;
        intake.finish()?;
        Ok(writer.finish(None).await?)
    }

    pub(super) fn room(&self, organization_id: OrganizationId) -> Result<Room, S3Error> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = uploads.values().sum();
        let own = uploads.get(&organization_id).copied().unwrap_or(0);
        if all >= UPLOADS_MAX || own >= UPLOADS_OF_ONE_MAX {
            return Err(S3Error::SlowDown);
        }
        uploads.insert(organization_id, own + 1);
        Ok(Room { uploads: self.uploads.clone(), organization_id })
    }

    pub(super) fn check_space(&self, bytes: u64) -> Result<(), S3Error> {
        match self.contexts.free_bytes()? >= bytes.saturating_add(FREE_BYTES_MIN) {
            true => Ok(()),
            false => Err(S3Error::ServiceUnavailable("this node's disk has no room for it".to_owned())),
        }
    }

    async fn read(&self, key: &Key, range: Option<&str>, wanted: Wanted) -> Result<Response, S3Error> {
        let artifact = self.contexts.find(key).await?.ok_or(S3Error::NoSuchKey)?;
        let (status, first, length) = match range.map(|range| part_of(range, artifact.bytes)) {
            None | Some(Ranged::Ignored) => (StatusCode::OK, 0, artifact.bytes),
            Some(Ranged::Part { first, length }) => (StatusCode::PARTIAL_CONTENT, first, length),
            Some(Ranged::Outside) => return Err(S3Error::InvalidRange),
        };
        let body = match wanted {
            Wanted::Head => Body::empty(),
            Wanted::Content => {
                let mut file = tokio::fs::File::from_std(self.contexts.read(&artifact).await?);
                let sought = file.seek(SeekFrom::Start(first)).await;
                sought.map_err(|error| S3Error::InternalError(error.to_string()))?;
                Body::from_stream(ReaderStream::with_capacity(file.take(length), READ_BYTES))
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(ETAG, tag(&artifact.digest.hex())?);
        headers.insert(LAST_MODIFIED, http_date(artifact.set_ms));
        if status == StatusCode::PARTIAL_CONTENT {
            let range = format!("bytes {first}-{}/{}", first + length - 1, artifact.bytes);
            let range =
                HeaderValue::from_str(&range).map_err(|error| S3Error::InternalError(error.to_string()))?;
            headers.insert(CONTENT_RANGE, range);
        }
        Ok(response)
    }

    /// What this node knows; other nodes are asked only about the one context that a prefix names.
    async fn list(&self, list: &List) -> Result<Response, S3Error> {
        let mut found: Vec<(Key, Artifact)> = match list.only() {
            Some(key) => {
                self.contexts.find(&key).await?.map(|artifact| (key, artifact)).into_iter().collect()
            }
            None => self.contexts.list_here(list.organization_id).await?,
        };
        found.retain(|(key, _)| key.to_string().starts_with(&list.prefix));
        found.sort_by_key(|(key, _)| key.to_string());
        let mut page = xml::Page {
            prefix: &list.prefix,
            keys_max: list.keys_max,
            contents: Vec::new(),
            common_prefixes: Vec::new(),
            next: None,
        };
        let mut last = String::new();
        for (key, artifact) in found {
            let text = key.to_string();
            let group = list.delimiter.as_deref().and_then(|delimiter| {
                let rest = text.get(list.prefix.len()..)?;
                let end = rest.find(delimiter)? + delimiter.len();
                Some(text[..list.prefix.len() + end].to_owned())
            });
            let shown = group.clone().unwrap_or(text);
            if shown <= list.after || page.common_prefixes.last() == Some(&shown) {
                continue;
            }
            if page.contents.len() + page.common_prefixes.len() == list.keys_max {
                // S3 has no next page after one that may hold nothing.
                page.next = (list.keys_max > 0).then_some(last);
                break;
            }
            last.clone_from(&shown);
            match group {
                Some(_) => page.common_prefixes.push(shown),
                None => page.contents.push(xml::Listed {
                    key,
                    tag: artifact.digest.hex(),
                    bytes: artifact.bytes,
                    set_ms: artifact.set_ms,
                }),
            }
        }
        Ok(document(xml::listed(&page)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Head,
    Content,
}

#[derive(Debug, PartialEq, Eq)]
enum Ranged {
    Part {
        first: u64,
        length: u64,
    },
    /// Malformed, or more than one: the whole is a right answer.
    Ignored,
    Outside,
}

fn part_of(range: &str, bytes: u64) -> Ranged {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ranged::Ignored;
    };
    let bounds = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => Some((first, last)),
        (Ok(first), Err(_)) if last.is_empty() => Some((first, u64::MAX)),
        (Err(_), Ok(0)) if first.is_empty() => return Ranged::Outside,
        (Err(_), Ok(count)) if first.is_empty() => Some((bytes.saturating_sub(count), u64::MAX)),
        _ => None,
    };
    match bounds {
        None => Ranged::Ignored,
        Some((first, _)) if first >= bytes => Ranged::Outside,
        Some((first, last)) => Ranged::Part { first, length: last.min(bytes - 1) - first + 1 },
    }
}

/// Asking for a condition and not getting it would be worse than a refusal.
pub(super) fn refuse_conditions(headers: &HeaderMap) -> Result<(), S3Error> {
    match ["if-match", "if-none-match"].into_iter().find(|name| headers.contains_key(*name)) {
        Some(name) => Err(S3Error::NotImplemented(format!("no upload has the condition {name}"))),
        None => Ok(()),
    }
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

pub(super) fn document(xml: String) -> Response {
    let mut response = Response::new(Body::from(xml));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(xml::CONTENT_TYPE));
    response
}

fn tagged(text: &str) -> Result<Response, S3Error> {
    let mut response = empty(StatusCode::OK);
    response.headers_mut().insert(ETAG, tag(text)?);
    Ok(response)
}

fn tag(hex: &str) -> Result<HeaderValue, S3Error> {
    HeaderValue::from_str(&format!("\"{hex}\"")).map_err(|error| S3Error::InternalError(error.to_string()))
}

/// `Fri, 31 Jan 2026 12:00:00 GMT`
fn http_date(ms: u64) -> HeaderValue {
    let moment = i64::try_from(ms / 1000).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    let moment = moment.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (weekday, month) = (moment.weekday().to_string(), moment.month().to_string());
    let text = format!(
        "{}, {:02} {} {:04} {:02}:{:02}:{:02} GMT",
        &weekday[..3],
        moment.day(),
        &month[..3],
        moment.year(),
        moment.hour(),
        moment.minute(),
        moment.second()
    );
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_what_the_rfc_says() {
        let part = |first, length| Ranged::Part { first, length };
        for (range, expected) in [
            ("bytes=0-9", part(0, 10)),
            ("bytes=90-200", part(90, 10)),
            ("bytes=99-", part(99, 1)),
            ("bytes=-5", part(95, 5)),
            ("bytes=-500", part(0, 100)),
            ("bytes=100-", Ranged::Outside),
            ("bytes=-0", Ranged::Outside),
            ("bytes=5-1", Ranged::Ignored),
            ("bytes=0-1,4-5", Ranged::Ignored),
            ("bytes=-", Ranged::Ignored),
            ("lines=1-2", Ranged::Ignored),
            ("bytes=99999999999999999999-", Ranged::Ignored),
        ] {
            assert_eq!(part_of(range, 100), expected, "{range}");
        }
        assert_eq!(part_of("bytes=0-", 0), Ranged::Outside);
    }

    #[test]
    fn dates_are_http_dates() {
        assert_eq!(http_date(1_369_353_600_000), "Fri, 24 May 2013 00:00:00 GMT");
    }
}
