//! The one place where the REST door's refusals become status codes and bodies.

use std::time::{SystemTime, UNIX_EPOCH};

use atoll_api::ids::RequestId;
use atoll_api::rest::{ErrorBody, ErrorSource, Health, Timestamp};
use atoll_mesh::dial::DirectoryError;
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, StatusCode, Uri};

use crate::control::verb::VerbError;

/// How long a client should wait when nothing better is known. Longer than most elections.
const RETRY_AFTER_S: u32 = 1;
/// Room appears when somebody stops something, which is rarely at once.
const RETRY_WITHOUT_ROOM_S: u32 = 5;

/// Why the door refuses, named by who must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    /// The client must change its request.
    #[error("{0}")]
    Invalid(String),
    /// The client asks for a feature that is not there yet.
    #[error("{0} is not supported yet")]
    Unsupported(String),
    #[error("{0}")]
    Unauthorized(&'static str),
    #[error("{0}")]
    Forbidden(&'static str),
    #[error("{0}")]
    NotFound(String),
    #[error("{method} {path} is not served by this version of Atoll; /api/openapi.json lists what is")]
    NoSuchPath { method: Method, path: String },
    #[error("{method} is not served at {path}; /api/openapi.json lists what is")]
    NoSuchMethod { method: Method, path: String },
    #[error("the body is larger than {bytes_max} bytes")]
    BodyTooLarge { bytes_max: usize },
    #[error("the body did not arrive in time")]
    BodyTooSlow,
    #[error("{0}")]
    Verb(#[from] VerbError),
    /// Whoever would know cannot be asked now.
    #[error("try again: {0}")]
    Unavailable(String),
    #[error("no answer within {0} s")]
    TimedOut(u64),
    /// We are wrong. The text is for the log.
    #[error("internal error: {0}")]
    Bug(String),
}

struct Refusal {
    status: StatusCode,
    code: &'static str,
    retry_after_s: Option<u32>,
}

impl ApiError {
    fn refusal(&self) -> Refusal {
        let refuse = |status, code| Refusal { status, code, retry_after_s: None };
        let later = |code, retry_after_s| Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code,
            retry_after_s: Some(retry_after_s),
        };
        match self {
            ApiError::Invalid(_) | ApiError::Verb(VerbError::BadRequest(_)) => {
                refuse(StatusCode::BAD_REQUEST, "BAD_REQUEST")
            }
            ApiError::Unsupported(_) => refuse(StatusCode::BAD_REQUEST, "NOT_SUPPORTED"),
            ApiError::Unauthorized(_) => refuse(StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            ApiError::Forbidden(_) | ApiError::Verb(VerbError::Forbidden(_)) => {
                refuse(StatusCode::FORBIDDEN, "FORBIDDEN")
            }
            ApiError::NotFound(_) | ApiError::Verb(VerbError::NotFound(_)) => {
                refuse(StatusCode::NOT_FOUND, "NOT_FOUND")
            }
            ApiError::NoSuchPath { .. } => refuse(StatusCode::NOT_FOUND, "NOT_SERVED"),
            ApiError::NoSuchMethod { .. } => refuse(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED"),
            ApiError::BodyTooLarge { .. } => refuse(StatusCode::PAYLOAD_TOO_LARGE, "PAYLOAD_TOO_LARGE"),
            ApiError::BodyTooSlow => refuse(StatusCode::REQUEST_TIMEOUT, "REQUEST_TIMEOUT"),
            ApiError::Verb(VerbError::Conflict(_)) => refuse(StatusCode::CONFLICT, "CONFLICT"),
            ApiError::Verb(VerbError::NoRoom(_)) => later("NO_ROOM", RETRY_WITHOUT_ROOM_S),
            ApiError::Verb(VerbError::Unavailable { retry_after_s, .. }) => {
                later("UNAVAILABLE", (*retry_after_s).max(1))
            }
            ApiError::Unavailable(_) => later("UNAVAILABLE", RETRY_AFTER_S),
            ApiError::TimedOut(_) | ApiError::Verb(VerbError::TimedOut(_)) => {
                refuse(StatusCode::GATEWAY_TIMEOUT, "TIMEOUT")
            }
            ApiError::Bug(_) | ApiError::Verb(VerbError::Internal(_)) => {
                refuse(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL")
            }
        }
    }

    /// What the client reads. The inside of an internal error is for the log only.
    fn outside(&self) -> String {
        match self {
            ApiError::Bug(_) | ApiError::Verb(VerbError::Internal(_)) => {
                "internal error; the node's log has it under this request's X-Request-Id".to_owned()
            }
            told => told.to_string(),
        }
    }
}

impl From<DirectoryError> for ApiError {
    /// For a credential that was looked up.
    fn from(error: DirectoryError) -> Self {
        match error {
            DirectoryError::NotFound => ApiError::Unauthorized("the API key is not known"),
            DirectoryError::Unreachable(region) => {
                ApiError::Unavailable(format!("region unreachable: {region}"))
            }
        }
    }
}

impl IntoResponse for ApiError {
    /// The body is written by [`finish`], which knows the path.
    fn into_response(self) -> Response {
        let Refusal { status, retry_after_s, .. } = self.refusal();
        let mut response = status.into_response();
        if let Some(seconds) = retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives a refusal its body, and the log its line.
pub(super) fn finish(response: Response, path: &str, request_id: &RequestId) -> Response {
    let (mut parts, body) = response.into_parts();
    let Some(error) = parts.extensions.remove::<ApiError>() else {
        return Response::from_parts(parts, body);
    };
    let Refusal { status, code, .. } = error.refusal();
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(%request_id, path, %error, "request failed");
    } else if status.is_server_error() {
        tracing::warn!(%request_id, path, %error, "request not carried out");
    } else {
        tracing::debug!(%request_id, path, %error, "request refused");
    }
    let body = ErrorBody {
        path: path.to_owned(),
        timestamp: Timestamp(now_ms()),
        status_code: status.as_u16(),
        error: status.canonical_reason().unwrap_or("Error").to_owned(),
        message: error.outside(),
        code: code.to_owned(),
        source: ErrorSource::DaytonaApi,
    };
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Whoever refused had no body, or none that fits ours.
    parts.headers.remove(http::header::CONTENT_LENGTH);
    (parts, Json(body)).into_response()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(super) async fn no_such_path(method: Method, uri: axum::extract::OriginalUri) -> ApiError {
    ApiError::NoSuchPath { method, path: path_of(&uri) }
}

pub(super) async fn no_such_method(method: Method, uri: axum::extract::OriginalUri) -> ApiError {
    ApiError::NoSuchMethod { method, path: path_of(&uri) }
}

/// The one refusal with a body of its own: its readers want to know what is down.
pub(super) fn not_ready(health: Health) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(health)).into_response()
}

/// Long paths are nobody's mistake worth repeating in full.
pub(super) fn path_of(uri: &Uri) -> String {
    const PATH_CHARS_MAX: usize = 512;
    uri.path().chars().take(PATH_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_status_and_says_when_to_try_again() {
        let verb = ApiError::Verb;
        let text = || "x".to_owned();
        for (error, status, retry_after) in [
            (ApiError::Invalid(text()), 400, None),
            (ApiError::Unsupported(text()), 400, None),
            (ApiError::Unauthorized("x"), 401, None),
            (ApiError::Forbidden("x"), 403, None),
            (ApiError::NotFound(text()), 404, None),
            (ApiError::NoSuchPath { method: Method::GET, path: text() }, 404, None),
            (ApiError::NoSuchMethod { method: Method::GET, path: text() }, 405, None),
            (ApiError::BodyTooLarge { bytes_max: 1 }, 413, None),
            (ApiError::BodyTooSlow, 408, None),
            (ApiError::Unavailable(text()), 503, Some("1")),
            (ApiError::TimedOut(1), 504, None),
            (ApiError::Bug(text()), 500, None),
            (verb(VerbError::BadRequest(text())), 400, None),
            (verb(VerbError::Forbidden(text())), 403, None),
            (verb(VerbError::NotFound(text())), 404, None),
            (verb(VerbError::Conflict(text())), 409, None),
            (verb(VerbError::NoRoom(text())), 503, Some("5")),
            (verb(VerbError::Unavailable { message: text(), retry_after_s: 3 }), 503, Some("3")),
            (verb(VerbError::Unavailable { message: text(), retry_after_s: 0 }), 503, Some("1")),
            (verb(VerbError::TimedOut(text())), 504, None),
            (verb(VerbError::Internal(text())), 500, None),
            (DirectoryError::NotFound.into(), 401, None),
            (DirectoryError::Unreachable(text()).into(), 503, Some("1")),
        ] {
            let said = format!("{error:?}");
            let response = error.into_response();
            assert_eq!(response.status(), status, "{said}");
            assert_eq!(
                response.headers().get(RETRY_AFTER).map(|v| v.to_str().unwrap()),
                retry_after,
                "{said}"
            );
        }
    }

    #[test]
    fn the_inside_of_an_internal_error_stays_inside() {
        for error in [ApiError::Bug("secret".into()), ApiError::Verb(VerbError::Internal("secret".into()))] {
            assert!(!error.outside().contains("secret"));
        }
    }
}
