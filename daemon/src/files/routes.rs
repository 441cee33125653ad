//! `/files…`: translates between HTTP and the file operations beside it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::download::Download;
use super::glob::Glob;
use super::info::FileInfo;
use super::multipart::{Framing, filename};
use super::search::Match;
use super::tree::{self, Recursive};
use super::upload::Upload;
use super::walk::Ended;
use super::{PATH_BYTES_MAX, base_name, edit, is_root, listing, parse_mode, parse_path, parse_tail, search};
use crate::errors::{ApiError, JsonBody, Params, Verbatim, drain};
use crate::routes::Daemon;

/// Of one bulk request.
const BULK_FILES_MAX: usize = 100_000;
/// Of one bulk upload's answer.
const BULK_ERRORS_MAX: usize = 1000;
/// Says that a search was cut by time or number.
const TRUNCATED: (&str, HeaderValue) = ("x-atoll-truncated", HeaderValue::from_static("true"));

type Reply<T> = Result<T, ApiError>;

#[derive(Deserialize)]
pub struct PathQuery {
    path: String,
}

#[derive(Deserialize)]
pub struct ListQuery {
    path: Option<String>,
    depth: Option<i64>,
}

pub async fn list(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<ListQuery>,
) -> Reply<Json<Vec<FileInfo>>> {
    let depth = match query.depth {
        None => 1,
        Some(depth) if depth >= 1 => usize::try_from(depth).unwrap_or(usize::MAX).min(listing::DEPTH_MAX),
        Some(_) => return Err(ApiError::bad_request("depth is at least 1")),
    };
    // The working directory when none is named.
    let path = query.path.filter(|path| !path.is_empty()).unwrap_or_else(|| ".".into());
    list_dir(&daemon, parse_path(&daemon, &path)?, depth).await.map(Json)
}

async fn list_dir(daemon: &Daemon, dir: PathBuf, depth: usize) -> Reply<Vec<FileInfo>> {
    let accounts = daemon.accounts();
    on_file(daemon, dir, move |dir| listing::list(dir, depth, &accounts)).await
}

pub async fn info(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<PathQuery>,
) -> Reply<Json<FileInfo>> {
    let accounts = daemon.accounts();
    let path = parse_path(&daemon, &query.path)?;
    let info =
        on_file(&daemon, path, move |path| Ok(FileInfo::new(path, &std::fs::metadata(path)?, &accounts)))
            .await?;
    Ok(Json(info))
}

#[derive(Deserialize)]
pub struct FolderQuery {
    path: String,
    mode: Option<String>,
}

pub async fn make_folder(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<FolderQuery>,
) -> Reply<StatusCode> {
    let mode = parse_mode(query.mode.as_deref().filter(|mode| !mode.is_empty()).unwrap_or("0755"))?;
    let path = parse_path(&daemon, &query.path)?;
    on_file(&daemon, path, move |path| tree::make_folder(path, mode)).await?;
    Ok(StatusCode::CREATED)
}

#[derive(Deserialize)]
pub struct DeleteQuery {
    path: String,
    recursive: Option<bool>,
}

pub async fn delete(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<DeleteQuery>,
) -> Reply<StatusCode> {
    let recursive = if query.recursive == Some(true) { Recursive::Yes } else { Recursive::No };
    remove(&daemon, parse_path(&daemon, &query.path)?, recursive).await
}

async fn remove(daemon: &Daemon, path: PathBuf, recursive: Recursive) -> Reply<StatusCode> {
    if is_root(&path) {
        return Err(ApiError::invalid_path("the root folder can't be deleted"));
    }
    on_file(daemon, path, move |path| {
        tree::remove(path, recursive).map_err(|error| match error.kind() {
            io::ErrorKind::IsADirectory => {
                io::Error::new(error.kind(), "a folder is deleted with recursive=true")
            }
            _ => error,
        })
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
pub struct MoveQuery {
    source: String,
    destination: String,
}

pub async fn rename(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<MoveQuery>,
) -> Reply<StatusCode> {
    let source = parse_path(&daemon, &query.source)?;
    let destination = parse_path(&daemon, &query.destination)?;
    let target = destination.clone();
    let moved = daemon.workers.run(move || {
        // To tell which of the two is missing.
        std::fs::symlink_metadata(&source).map_err(|error| (error, source.clone()))?;
        tree::move_to(&source, &target).map_err(|error| (error, target.clone()))
    });
    moved.await.map_err(|(error, path)| ApiError::from_io(&error, &path.to_string_lossy()))?;
    Ok(StatusCode::OK)
}

#[derive(Deserialize)]
pub struct PermissionsQuery {
    path: String,
    mode: Option<String>,
    owner: Option<String>,
    group: Option<String>,
}

pub async fn set_permissions(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<PermissionsQuery>,
) -> Reply<StatusCode> {
    let accounts = daemon.accounts();
    let given = |value: Option<String>| value.filter(|value| !value.is_empty());
    let mode = given(query.mode).map(|mode| parse_mode(&mode)).transpose()?;
    let owner = given(query.owner)
        .map(|owner| {
            accounts.uid_of(&owner).ok_or_else(|| ApiError::bad_request(format!("no user {owner:?}")))
        })
        .transpose()?;
    let group = given(query.group)
        .map(|group| {
            accounts.gid_of(&group).ok_or_else(|| ApiError::bad_request(format!("no group {group:?}")))
        })
        .transpose()?;
    let path = parse_path(&daemon, &query.path)?;
    on_file(&daemon, path, move |path| {
        use std::os::unix::fs::{PermissionsExt, chown};
        std::fs::metadata(path)?;
        // Owner first: a change of owner takes set-id bits away.
        if owner.is_some() || group.is_some() {
            chown(path, owner, group)?;
        }
        match mode {
            Some(mode) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)),
            None => Ok(()),
        }
    })
    .await?;
    Ok(StatusCode::OK)
}

#[derive(Deserialize)]
pub struct SearchQuery {
    path: String,
    pattern: String,
}

pub async fn find(State(daemon): State<Arc<Daemon>>, Params(query): Params<SearchQuery>) -> Reply<Response> {
    if query.pattern.is_empty() {
        return Err(ApiError::bad_request("pattern is empty"));
    }
    let path = parse_path(&daemon, &query.path)?;
    let (matches, ended): (Vec<Match>, _) = on_file(&daemon, path, move |path| {
        std::fs::metadata(path)?;
        Ok(search::find_text(path, &query.pattern))
    })
    .await?;
    Ok(cut_or_not(Json(matches), ended))
}

pub async fn search(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<SearchQuery>,
) -> Reply<Response> {
    let glob = Glob::parse(&query.pattern).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let path = parse_path(&daemon, &query.path)?;
    let (files, ended) = on_file(&daemon, path, move |path| {
        std::fs::metadata(path)?;
        Ok(search::find_names(path, &glob))
    })
    .await?;
    Ok(cut_or_not(Json(BTreeMap::from([("files", files)])), ended))
}

fn cut_or_not(found: impl IntoResponse, ended: Ended) -> Response {
    let mut response = found.into_response();
    if ended == Ended::Cut {
        response.headers_mut().insert(TRUNCATED.0, TRUNCATED.1);
    }
    response
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplaceRequest {
    files: Vec<String>,
    pattern: String,
    new_value: String,
}

#[derive(Serialize)]
pub struct ReplaceResult {
    file: String,
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub async fn replace(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<ReplaceRequest>,
) -> Reply<Json<Vec<ReplaceResult>>> {
    if request.pattern.is_empty() {
        return Err(ApiError::bad_request("pattern is empty"));
    }
    if request.files.len() > BULK_FILES_MAX {
        return Err(ApiError::bad_request(format!("at most {BULK_FILES_MAX} files")));
    }
    let (pattern, new_value) = (Arc::<str>::from(request.pattern), Arc::<str>::from(request.new_value));
    let mut results = Vec::with_capacity(request.files.len());
    for file in request.files {
        let replaced = match parse_path(&daemon, &file) {
            Ok(path) => {
                let (pattern, new_value) = (pattern.clone(), new_value.clone());
                on_file(&daemon, path, move |path| edit::replace(path, &pattern, &new_value)).await
            }
            Err(error) => Err(error),
        };
        let error = replaced.err().map(|error| error.to_string());
        results.push(ReplaceResult { file, success: error.is_none(), error });
    }
    Ok(Json(results))
}

pub async fn download(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<PathQuery>,
) -> Reply<Response> {
    send(&daemon, parse_path(&daemon, &query.path)?).await
}

pub async fn send(daemon: &Daemon, path: PathBuf) -> Reply<Response> {
    let name = base_name(&path);
    let shown = path.to_string_lossy().into_owned();
    let download =
        Download::open(&daemon.workers, path).await.map_err(|error| ApiError::from_io(&error, &shown))?;
    let length = download.length;
    let mut response = Response::new(Body::from_stream(download.stream()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, length.into());
    if let Ok(disposition) = HeaderValue::from_bytes(format!("attachment; {}", filename(&name)).as_bytes()) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(response)
}

#[derive(Serialize)]
pub struct Uploaded {
    name: String,
    path: String,
    r#type: &'static str,
}

pub async fn upload(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<PathQuery>,
    request: Request,
) -> Reply<Json<Uploaded>> {
    let path = parse_path(&daemon, &query.path)?;
    receive(&daemon, path, request).await.map(Json)
}

/// Multipart with a field `file`, or the body as it is.
async fn receive(daemon: &Daemon, path: PathBuf, request: Request) -> Reply<Uploaded> {
    let shown = path.to_string_lossy().into_owned();
    if !is_multipart(request.headers()) {
        let chunks = request.into_body().into_data_stream().map_err(|_| unfinished_body());
        store(daemon, path, &shown, Box::pin(chunks)).await?;
    } else {
        let mut parts = multipart(request).await?;
        let field = loop {
            match parts.next_field().await.map_err(broken_multipart)? {
                Some(field) if field.name() == Some("file") => break field,
                // Dropping a field skips it.
                Some(_) => {}
                None => return Err(ApiError::bad_request("no field named file")),
            }
        };
        store(daemon, path, &shown, Box::pin(field.map_err(broken_multipart))).await?;
    }
    Ok(Uploaded {
        name: shown.rsplit('/').next().unwrap_or_default().to_owned(),
        path: shown,
        r#type: "file",
    })
}

async fn store(
    daemon: &Daemon,
    path: PathBuf,
    shown: &str,
    mut chunks: BoxStream<'_, Result<bytes::Bytes, ApiError>>,
) -> Reply<u64> {
    let stored = async {
        let mut upload = Upload::begin(&daemon.workers, path).await.map_err(Refusal::File)?;
        while let Some(chunk) = chunks.next().await {
            upload.write(&chunk.map_err(Refusal::Body)?).await.map_err(Refusal::File)?;
        }
        upload.commit().await.map_err(Refusal::File)
    };
    match stored.await {
        Ok(bytes) => Ok(bytes),
        Err(Refusal::Body(error)) => Err(error),
        Err(Refusal::File(error)) => {
            drain(&mut chunks).await;
            Err(ApiError::from_io(&error, shown))
        }
    }
}

enum Refusal {
    /// The sandbox can't take the file; the caller may still be sending it.
    File(io::Error),
    /// The caller stopped, or made no sense.
    Body(ApiError),
}

#[derive(Serialize)]
struct BulkUploaded {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<String>,
    files: Vec<BulkFile>,
}

#[derive(Serialize)]
struct BulkFile {
    path: String,
    bytes: u64,
}

/// Pairs of `files[N].path` and `files[N].file`. One that fails doesn't stop the others, and the whole body is read before the
/// answer: a client that is still sending would see a broken connection instead of it.
pub async fn bulk_upload(State(daemon): State<Arc<Daemon>>, request: Request) -> Reply<Response> {
    if !is_multipart(request.headers()) {
        return Err(ApiError::bad_request("the body is not multipart/form-data"));
    }
    let mut parts = multipart(request).await?;
    let mut paths: BTreeMap<usize, String> = BTreeMap::new();
    let mut done = BulkUploaded { errors: Vec::new(), files: Vec::new() };
    loop {
        let field = match parts.next_field().await {
            Ok(Some(field)) => field,
            Ok(None) => break,
            Err(error) => {
                done.errors.push(format!("malformed multipart body: {error}"));
                break;
            }
        };
        let received = match BulkField::parse(field.name().unwrap_or_default()) {
            Some(BulkField::Path(number)) => match read_path(field).await {
                Ok(_) if paths.len() >= BULK_FILES_MAX => Err(format!("at most {BULK_FILES_MAX} files")),
                Ok(path) => {
                    paths.insert(number, path);
                    continue;
                }
                Err(error) => Err(format!("files[{number}].path: {error}")),
            },
            Some(BulkField::File(number)) => match paths.remove(&number) {
                Some(path) => receive_one(&daemon, &path, field).await,
                None => Err(format!("files[{number}].file: its path must come before it")),
            },
            // Fields that are not ours are skipped.
            None => continue,
        };
        match received {
            Ok(file) => done.files.push(file),
            Err(error) if done.errors.len() < BULK_ERRORS_MAX => done.errors.push(error),
            Err(_) => {}
        }
    }
    done.errors
        .extend(paths.values().take(BULK_ERRORS_MAX).map(|path| format!("{path}: no file was sent for it")));
    if done.errors.is_empty() && done.files.is_empty() {
        return Err(ApiError::bad_request("no files[N].path and files[N].file in the body"));
    }
    let status = if done.errors.is_empty() { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    let mut response = (status, Json(done)).into_response();
    response.extensions_mut().insert(Verbatim);
    Ok(response)
}

enum BulkField {
    Path(usize),
    File(usize),
}

impl BulkField {
    fn parse(name: &str) -> Option<BulkField> {
        let (number, kind) = name.strip_prefix("files[")?.split_once("].")?;
        let number = number.parse().ok()?;
        match kind {
            "path" => Some(BulkField::Path(number)),
            "file" => Some(BulkField::File(number)),
            _ => None,
        }
    }
}

async fn read_path(mut field: Field<'_>) -> Result<String, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| error.to_string())? {
        if bytes.len() + chunk.len() > PATH_BYTES_MAX {
            return Err("too long".into());
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| "not UTF-8".into())
}

async fn receive_one(daemon: &Daemon, path: &str, field: Field<'_>) -> Result<BulkFile, String> {
    let chunks = Box::pin(field.map_err(broken_multipart));
    let stored = match parse_path(daemon, path) {
        Ok(target) => store(daemon, target, path, chunks).await,
        Err(error) => Err(error),
    };
    stored.map(|bytes| BulkFile { path: path.to_owned(), bytes }).map_err(|error| {
        let text = error.to_string();
        // What the file system said names the path already.
        if text.ends_with(path) { text } else { format!("{path}: {text}") }
    })
}

#[derive(Deserialize)]
pub struct BulkDownloadRequest {
    paths: Vec<String>,
}

pub async fn bulk_download(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<BulkDownloadRequest>,
) -> Reply<Response> {
    if request.paths.is_empty() || request.paths.len() > BULK_FILES_MAX {
        return Err(ApiError::bad_request(format!("1 to {BULK_FILES_MAX} paths")));
    }
    let framing = Arc::new(Framing::new());
    let content_type = HeaderValue::from_str(&framing.content_type()).expect("letters, digits and dashes");
    let end = stream::once(std::future::ready(Ok(framing.end().into())));
    // Each part is opened when its turn comes; a part that breaks ends the answer without the closing boundary.
    let parts =
        stream::iter(request.paths).then(move |path| part(daemon.clone(), framing.clone(), path)).flatten();
    let mut response = Response::new(Body::from_stream(parts.chain(end)));
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

async fn part(
    daemon: Arc<Daemon>,
    framing: Arc<Framing>,
    requested: String,
) -> BoxStream<'static, io::Result<bytes::Bytes>> {
    let opened = match parse_path(&daemon, &requested) {
        Ok(path) => {
            let opened = Download::open(&daemon.workers, path).await;
            opened.map_err(|error| ApiError::from_io(&error, &requested))
        }
        Err(error) => Err(error),
    };
    let piece = |text: String| stream::once(std::future::ready(Ok(text.into())));
    let end = piece(framing.part_end().to_owned());
    match opened {
        Ok(download) => {
            let head = framing.part("file", &requested, "application/octet-stream", download.length);
            piece(head).chain(download.stream()).chain(end).boxed()
        }
        Err(error) => {
            let body = serde_json::to_string(&error.body("POST", "/files/bulk-download"))
                .expect("a struct of strings is always JSON");
            let head = framing.part("error", &requested, "application/json", body.len() as u64);
            piece(head + &body).chain(end).boxed()
        }
    }
}

/// `GET /files/{path}`: a file's bytes, or a folder's list.
pub async fn get_tail(State(daemon): State<Arc<Daemon>>, Path(tail): Path<String>) -> Reply<Response> {
    let path = parse_tail(&daemon, &tail).await?;
    let dir = path.clone();
    if daemon.workers.run(move || dir.is_dir()).await {
        return Ok(Json(list_dir(&daemon, path, 1).await?).into_response());
    }
    send(&daemon, path).await
}

pub async fn put_tail(
    State(daemon): State<Arc<Daemon>>,
    Path(tail): Path<String>,
    request: Request,
) -> Reply<Json<Uploaded>> {
    let path = parse_tail(&daemon, &tail).await?;
    receive(&daemon, path, request).await.map(Json)
}

#[derive(Deserialize)]
pub struct RecursiveQuery {
    recursive: Option<bool>,
}

pub async fn delete_tail(
    State(daemon): State<Arc<Daemon>>,
    Path(tail): Path<String>,
    Params(query): Params<RecursiveQuery>,
) -> Reply<StatusCode> {
    let recursive = if query.recursive == Some(true) { Recursive::Yes } else { Recursive::No };
    remove(&daemon, parse_tail(&daemon, &tail).await?, recursive).await
}

/// Runs `work` as the user; its failure becomes what the caller reads.
async fn on_file<T: Send + 'static>(
    daemon: &Daemon,
    path: PathBuf,
    work: impl FnOnce(&std::path::Path) -> io::Result<T> + Send + 'static,
) -> Reply<T> {
    let done = daemon.workers.run(move || {
        let result = work(&path);
        result.map_err(|error| ApiError::from_io(&error, &path.to_string_lossy()))
    });
    done.await
}

fn is_multipart(headers: &HeaderMap) -> bool {
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.trim_start().to_ascii_lowercase().starts_with("multipart/form-data")
}

async fn multipart(request: Request) -> Reply<Multipart> {
    Multipart::from_request(request, &()).await.map_err(|error| ApiError::bad_request(error.body_text()))
}

fn broken_multipart(error: MultipartError) -> ApiError {
    ApiError::bad_request(format!("malformed multipart body: {error}"))
}

fn unfinished_body() -> ApiError {
    ApiError::bad_request("the body ended before its end")
}
