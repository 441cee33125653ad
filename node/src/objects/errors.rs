//! The one place where the S3 door's refusals become status codes and XML.

use atoll_runner::store::StoreError;
use axum::body::Body;
use axum::response::Response;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, StatusCode};

use super::xml;

/// Named as S3 names them; SDKs decide by these names.
#[derive(Debug, thiserror::Error)]
pub(super) enum S3Error {
    #[error("{0}")]
    AccessDenied(&'static str),
    #[error("the access key is not the one that the session token was given with")]
    InvalidAccessKeyId,
    #[error(
        "the session token is none of this cluster: ask GET /api/object-storage/push-access for new credentials"
    )]
    InvalidToken,
    #[error("the session token has expired: ask GET /api/object-storage/push-access for new credentials")]
    ExpiredToken,
    #[error(
        "the signature is not that of this request: check the secret, and that no proxy changes Host or the path"
    )]
    SignatureDoesNotMatch,
    #[error("the request's time differs too much from this node's clock")]
    RequestTimeTooSkewed,
    #[error("{0}")]
    AuthorizationHeaderMalformed(&'static str),
    #[error("{0}")]
    InvalidArgument(String),
    #[error("{0}")]
    InvalidRequest(&'static str),
    #[error("there is no such bucket here: the only one is {}", super::BUCKET)]
    NoSuchBucket,
    #[error("there is no such context")]
    NoSuchKey,
    #[error("there is no such upload, or it was begun too long ago: begin another one")]
    NoSuchUpload,
    #[error("part {0} was not uploaded for this upload with this tag, or is gone: upload it again")]
    InvalidPart(u32),
    #[error("the parts must be listed in ascending order")]
    InvalidPartOrder,
    #[error("the object is larger than {} bytes", super::contexts::CONTEXT_BYTES_MAX)]
    EntityTooLarge,
    #[error("the body ended early or went on after its end")]
    IncompleteBody,
    #[error("the checksum is not that of the body")]
    BadDigest,
    #[error("x-amz-content-sha256 is not that of the body")]
    XAmzContentSHA256Mismatch,
    #[error("x-amz-decoded-content-length is required with a body in chunks")]
    MissingContentLength,
    #[error("the body is not the XML that it should be")]
    MalformedXML,
    #[error("the range is not within the object")]
    InvalidRange,
    #[error("{0} is not served here")]
    MethodNotAllowed(Method),
    #[error("{0}: this bucket holds build contexts only")]
    NotImplemented(String),
    #[error("the body did not arrive in time")]
    RequestTimeout,
    #[error("too many uploads at once: try again")]
    SlowDown,
    #[error("{0}")]
    ServiceUnavailable(String),
    /// The text is for the log.
    #[error("internal error: {0}")]
    InternalError(String),
}

const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

impl S3Error {
    fn refusal(&self) -> (StatusCode, &'static str) {
        use S3Error::*;
        match self {
            AccessDenied(_) => (StatusCode::FORBIDDEN, "AccessDenied"),
            InvalidAccessKeyId => (StatusCode::FORBIDDEN, "InvalidAccessKeyId"),
            InvalidToken => (StatusCode::BAD_REQUEST, "InvalidToken"),
            ExpiredToken => (StatusCode::BAD_REQUEST, "ExpiredToken"),
            SignatureDoesNotMatch => (StatusCode::FORBIDDEN, "SignatureDoesNotMatch"),
            RequestTimeTooSkewed => (StatusCode::FORBIDDEN, "RequestTimeTooSkewed"),
            AuthorizationHeaderMalformed(_) => (StatusCode::BAD_REQUEST, "AuthorizationHeaderMalformed"),
            InvalidArgument(_) => (StatusCode::BAD_REQUEST, "InvalidArgument"),
            InvalidRequest(_) => (StatusCode::BAD_REQUEST, "InvalidRequest"),
            NoSuchBucket => (StatusCode::NOT_FOUND, "NoSuchBucket"),
            NoSuchKey => (StatusCode::NOT_FOUND, "NoSuchKey"),
            NoSuchUpload => (StatusCode::NOT_FOUND, "NoSuchUpload"),
            InvalidPart(_) => (StatusCode::BAD_REQUEST, "InvalidPart"),
            InvalidPartOrder => (StatusCode::BAD_REQUEST, "InvalidPartOrder"),
            EntityTooLarge => (StatusCode::BAD_REQUEST, "EntityTooLarge"),
            IncompleteBody => (StatusCode::BAD_REQUEST, "IncompleteBody"),
            BadDigest => (StatusCode::BAD_REQUEST, "BadDigest"),
            XAmzContentSHA256Mismatch => (StatusCode::BAD_REQUEST, "XAmzContentSHA256Mismatch"),
            MissingContentLength => (StatusCode::LENGTH_REQUIRED, "MissingContentLength"),
            MalformedXML => (StatusCode::BAD_REQUEST, "MalformedXML"),
            InvalidRange => (StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange"),
            MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            NotImplemented(_) => (StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
            RequestTimeout => (StatusCode::BAD_REQUEST, "RequestTimeout"),
            SlowDown => (StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
            ServiceUnavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            InternalError(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        }
    }

    pub(super) fn into_response(self, method: &Method, path: &str, request_id: &str) -> Response {
        let (status, code) = self.refusal();
        match status.is_server_error() {
            true => tracing::warn!(path, request_id, error = %self, "S3 request not carried out"),
            false => tracing::debug!(path, request_id, error = %self, code, "S3 request refused"),
        }
        let message = match &self {
            S3Error::InternalError(_) => {
                "internal error; the node's log has it under this request's id".to_owned()
            }
            told => told.to_string(),
        };
        let body = match *method == Method::HEAD {
            true => Body::empty(),
            false => Body::from(xml::error(code, &message, path, request_id)),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(xml::CONTENT_TYPE));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, RETRY_AFTER_S);
        }
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, PUT, POST, DELETE"));
        }
        response
    }
}

impl From<StoreError> for S3Error {
    fn from(error: StoreError) -> S3Error {
        match error {
            StoreError::NotFound(_) => S3Error::NoSuchKey,
            StoreError::Unreachable(text) => S3Error::ServiceUnavailable(text),
            StoreError::Io(cause) if cause.kind() == std::io::ErrorKind::StorageFull => {
                S3Error::ServiceUnavailable("this node's disk is full".to_owned())
            }
            StoreError::Bad(text) | StoreError::Denied(text) => S3Error::InternalError(text),
            StoreError::Io(error) => S3Error::InternalError(error.to_string()),
        }
    }
}
