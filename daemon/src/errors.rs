//! What callers read when something is refused, and the extractors that refuse bad input. The only file that knows status codes
//! of failures.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// JSON bodies beyond this are refused; files travel by the upload routes, which have no such limit.
pub const JSON_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Who sends more after it was refused sees its connection break.
const DRAIN_BYTES_MAX: usize = 256 * 1024 * 1024;
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// A refusal: what the caller did, or what the sandbox can't do. Rendered by [`describe`], which knows the request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

/// Marks an answer as complete: [`describe`] leaves it alone whatever its status.
#[derive(Clone, Copy)]
pub struct Verbatim;

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $status:ident $code:literal;)*) => {
        impl ApiError {
            $($(#[$doc])* pub fn $name(message: impl Into<String>) -> ApiError {
                ApiError { status: StatusCode::$status, code: $code, message: message.into() }
            })*
        }
    };
}

refusals! {
    bad_request = BAD_REQUEST "BAD_REQUEST";
    invalid_body = BAD_REQUEST "INVALID_REQUEST_BODY";
    invalid_path = BAD_REQUEST "INVALID_FILE_PATH";
    not_found = NOT_FOUND "NOT_FOUND";
    method_not_allowed = METHOD_NOT_ALLOWED "BAD_REQUEST";
    conflict = CONFLICT "CONFLICT";
    gone = GONE "GONE";
    too_large = PAYLOAD_TOO_LARGE "BAD_REQUEST";
    request_timeout = REQUEST_TIMEOUT "REQUEST_TIMEOUT";
    file_not_found = NOT_FOUND "FILE_NOT_FOUND";
    file_access_denied = FORBIDDEN "FILE_ACCESS_DENIED";
    file_read_failed = INTERNAL_SERVER_ERROR "FILE_READ_FAILED";
    /// Also a full disk: the request was fine, the sandbox has no room for it.
    unprocessable = UNPROCESSABLE_ENTITY "UNPROCESSABLE_ENTITY";
    execution_timeout = REQUEST_TIMEOUT "PROCESS_EXECUTION_TIMEOUT";
    process_not_found = NOT_FOUND "PROCESS_NOT_FOUND";
    session_ended = GONE "SESSION_ENDED";
    command_completed = GONE "COMMAND_ALREADY_COMPLETED";
    forbidden = FORBIDDEN "FORBIDDEN";
    /// The remote wants credentials, or other ones.
    git_auth_failed = UNAUTHORIZED "GIT_AUTH_FAILED";
    /// A folder that is no repository, a remote that is none or that nobody configured.
    git_repo_not_found = NOT_FOUND "GIT_REPO_NOT_FOUND";
    /// Also a tag, commit or other revision.
    git_branch_not_found = NOT_FOUND "GIT_BRANCH_NOT_FOUND";
    git_branch_exists = CONFLICT "GIT_BRANCH_EXISTS";
    git_push_rejected = CONFLICT "GIT_PUSH_REJECTED";
    git_dirty_worktree = CONFLICT "GIT_DIRTY_WORKTREE";
    git_merge_conflict = CONFLICT "GIT_MERGE_CONFLICT";
    git_transport_failed = BAD_GATEWAY "GIT_TRANSPORT_FAILED";
    /// By its hooks, its rules or its size limits.
    git_remote_rejected = UNPROCESSABLE_ENTITY "GIT_REMOTE_REJECTED";
    lsp_not_initialized = BAD_REQUEST "LSP_SERVER_NOT_INITIALIZED";
    a11y_unavailable = SERVICE_UNAVAILABLE "A11Y_UNAVAILABLE";
    recording_still_active = CONFLICT "RECORDING_STILL_ACTIVE";
    recording_ffmpeg_not_found = SERVICE_UNAVAILABLE "RECORDING_FFMPEG_NOT_FOUND";
    /// The sandbox lacks programs that this needs, or they don't answer.
    unavailable = SERVICE_UNAVAILABLE "SERVICE_UNAVAILABLE";
    /// Nothing in the sandbox answers on the proxied port.
    bad_gateway = BAD_GATEWAY "BAD_GATEWAY";
    internal = INTERNAL_SERVER_ERROR "INTERNAL_SERVER_ERROR";
}

impl ApiError {
    /// What the file system said about `path`, in words for the one who named it.
    pub fn from_io(error: &std::io::Error, path: &str) -> ApiError {
        use std::io::ErrorKind::*;
        match error.kind() {
            NotFound => ApiError::file_not_found(format!("no such file or directory: {path}")),
            PermissionDenied | ReadOnlyFilesystem => ApiError::file_access_denied(format!("{error}: {path}")),
            AlreadyExists => ApiError::conflict(format!("already exists: {path}")),
            NotADirectory | IsADirectory | InvalidInput | InvalidFilename | InvalidData
            | DirectoryNotEmpty | Unsupported => ApiError::invalid_path(format!("{error}: {path}")),
            StorageFull | QuotaExceeded | FileTooLarge => ApiError::unprocessable(format!("{error}: {path}")),
            _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                ApiError::invalid_path(format!("{error}: {path}"))
            }
            _ => ApiError::file_read_failed(format!("{error}: {path}")),
        }
    }

    /// The same, in the words for a caller who wanted to know what programs show.
    pub fn into_a11y_unavailable(self) -> ApiError {
        ApiError::a11y_unavailable(self.message)
    }

    /// The documented error object.
    pub fn body(&self, method: &str, path: &str) -> ErrorBody {
        ErrorBody {
            status_code: self.status.as_u16(),
            message: self.message.clone(),
            code: self.code,
            source: "DAYTONA_DAEMON",
            timestamp: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            path: path.to_owned(),
            method: method.to_owned(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    status_code: u16,
    message: String,
    code: &'static str,
    source: &'static str,
    timestamp: String,
    path: String,
    method: String,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives every refusal its documented body. Failures that arise below our handlers get a plain one of the same shape.
pub async fn describe(request: Request, next: Next) -> Response {
    let method = request.method().to_string();
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let status = response.status();
    let is_failure = status.is_client_error() || status.is_server_error();
    if !is_failure || response.extensions().get::<Verbatim>().is_some() {
        return response;
    }
    let error = response.extensions().get::<ApiError>().cloned().unwrap_or_else(|| ApiError {
        status,
        code: if status.is_server_error() { "INTERNAL_SERVER_ERROR" } else { "BAD_REQUEST" },
        message: status.canonical_reason().unwrap_or("refused").to_lowercase(),
    });
    let body = serde_json::to_vec(&error.body(&method, &path)).expect("a struct of strings is always JSON");
    let mut described = Response::new(body.into());
    *described.status_mut() = status;
    described.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    described
}

pub async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    let path = uri.path();
    ApiError::not_found(format!("{method} {path} is not served by this version of Atoll's toolbox"))
}

pub async fn unknown_method() -> ApiError {
    ApiError::method_not_allowed("this route has no such method")
}

/// A JSON body of at most [`JSON_BYTES_MAX`], whatever its content type says.
pub struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let mut chunks = request.into_body().into_data_stream();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| ApiError::bad_request("the body ended before its end"))?;
            if bytes.len() + chunk.len() > JSON_BYTES_MAX {
                drain(&mut chunks).await;
                return Err(ApiError::too_large(format!(
                    "a JSON body may have at most {JSON_BYTES_MAX} bytes"
                )));
            }
            bytes.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&bytes)
            .map(JsonBody)
            .map_err(|error| ApiError::invalid_body(error.to_string()))
    }
}

/// Reads what a refused caller is still sending: a connection closed before that is reset, and the refusal lost with it.
pub async fn drain<T, E>(chunks: &mut (impl Stream<Item = Result<T, E>> + Unpin))
where
    T: AsRef<[u8]>,
{
    let mut left = DRAIN_BYTES_MAX;
    let _ = tokio::time::timeout(DRAIN_DEADLINE, async {
        while let Some(Ok(chunk)) = chunks.next().await {
            match left.checked_sub(chunk.as_ref().len()) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    })
    .await;
}

/// The query string, parsed.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(params)| Params(params))
            .map_err(|error| ApiError::bad_request(error.body_text()))
    }
}
