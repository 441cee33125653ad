//! The one place where the registry's refusals become status codes, and bodies as the specification has them.

use atoll_api::ids::NodeId;
use atoll_mesh::dial::DirectoryError;
use atoll_runner::store::StoreError;
use axum::response::{IntoResponse, Response};
use http::header::{HeaderValue, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use serde_json::json;

use super::json as json_response;
use crate::blobs::Silent;

const RETRY_AFTER_S: u32 = 2;

/// Named by what the client must know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error("{0}")]
    Unauthorized(&'static str),
    #[error("{0}")]
    Denied(String),
    #[error("{0}")]
    NoSuchPath(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    NameInvalid(String),
    #[error("{0}")]
    TagInvalid(String),
    #[error("{0}")]
    NumberInvalid(String),
    #[error("the repository has no images")]
    NameUnknown(Silent),
    #[error("the repository has no manifest {what}")]
    ManifestUnknown { what: String, silent: Silent },
    #[error("{0}")]
    ManifestInvalid(String),
    /// A push that is not complete.
    #[error("the manifest speaks of {what}, which was not pushed")]
    ManifestBlobUnknown { what: String, silent: Silent },
    #[error("the repository has no blob {what}")]
    BlobUnknown { what: String, silent: Silent },
    #[error("{0}")]
    BlobUploadUnknown(String),
    #[error("{0}")]
    BlobUploadInvalid(String),
    /// Another request writes to the same upload.
    #[error("another request is writing to this upload")]
    BlobUploadBusy,
    /// The chunk does not go on where the last one ended.
    #[error("the upload goes on at byte {written}")]
    OutOfOrder { written: u64, location: String },
    #[error("{0}")]
    DigestInvalid(String),
    #[error("{0}")]
    SizeInvalid(String),
    #[error("more than {bytes_max} bytes")]
    TooLarge { bytes_max: u64 },
    #[error("the blob has {bytes} bytes")]
    RangeInvalid { bytes: u64 },
    #[error("too many uploads at once: finish or cancel some, or wait")]
    TooManyUploads,
    #[error("the body broke off or did not arrive in time")]
    BodyBroken,
    #[error("this node's disk is nearly full: push to another node, or remove what is not needed")]
    Full,
    #[error("try again: {0}")]
    Unavailable(String),
    /// We are wrong, or this node's disk is. The text is for the log.
    #[error("internal error: {0}")]
    Bug(String),
}

impl RegistryError {
    fn refusal(&self, method: &Method) -> (StatusCode, &'static str) {
        use RegistryError::*;
        // Somebody who did not answer may have it; so it is not known to be nowhere. But whoever asks with HEAD wants to
        // know whether to push it, and can.
        let absent = |silent: &Silent, code| match silent.0.is_empty() || *method == Method::HEAD {
            true => (StatusCode::NOT_FOUND, code),
            false => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        };
        match self {
            Unauthorized(_) => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            Denied(_) => (StatusCode::FORBIDDEN, "DENIED"),
            NoSuchPath(_) => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
            Unsupported(_) => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            NameInvalid(_) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            TagInvalid(_) => (StatusCode::BAD_REQUEST, "TAG_INVALID"),
            NumberInvalid(_) => (StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID"),
            NameUnknown(silent) => absent(silent, "NAME_UNKNOWN"),
            ManifestUnknown { silent, .. } => absent(silent, "MANIFEST_UNKNOWN"),
            ManifestInvalid(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            ManifestBlobUnknown { silent, .. } => absent(silent, "MANIFEST_BLOB_UNKNOWN"),
            BlobUnknown { silent, .. } => absent(silent, "BLOB_UNKNOWN"),
            BlobUploadUnknown(_) => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            BlobUploadInvalid(_) => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            BlobUploadBusy => (StatusCode::CONFLICT, "BLOB_UPLOAD_INVALID"),
            OutOfOrder { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            DigestInvalid(_) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            SizeInvalid(_) => (StatusCode::BAD_REQUEST, "SIZE_INVALID"),
            TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            RangeInvalid { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID"),
            TooManyUploads => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            BodyBroken => (StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID"),
            Full => (StatusCode::INSUFFICIENT_STORAGE, "UNAVAILABLE"),
            Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
            Bug(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }

    #[cfg(test)]
    pub fn status(&self, method: &Method) -> StatusCode {
        self.refusal(method).0
    }

    fn silent(&self) -> &[NodeId] {
        match self {
            RegistryError::NameUnknown(silent)
            | RegistryError::ManifestUnknown { silent, .. }
            | RegistryError::ManifestBlobUnknown { silent, .. }
            | RegistryError::BlobUnknown { silent, .. } => &silent.0,
            _ => &[],
        }
    }

    fn outside(&self) -> String {
        match self {
            RegistryError::Bug(_) => {
                "internal error; the node's log has it under this request's X-Request-Id".to_owned()
            }
            told => told.to_string(),
        }
    }

    pub fn into_response(self, method: &Method) -> Response {
        let (status, code) = self.refusal(method);
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = %self, "registry request failed");
        } else if status.is_server_error() {
            tracing::warn!(error = %self, silent = ?self.silent(), "registry request not carried out");
        } else {
            tracing::debug!(error = %self, "registry request refused");
        }
        let nodes: Vec<String> = self.silent().iter().map(NodeId::to_string).collect();
        let detail = if nodes.is_empty() { json!({}) } else { json!({ "unreachableNodes": nodes }) };
        let error = json!({ "code": code, "message": self.outside(), "detail": detail });
        let body = json!({ "errors": [error] }).to_string();
        let mut response = json_response(status, body.into_bytes()).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(
                WWW_AUTHENTICATE,
                HeaderValue::from_static("Basic realm=\"Atoll\", charset=\"UTF-8\""),
            );
        }
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        match &self {
            RegistryError::OutOfOrder { written, location } => {
                headers.extend(HeaderValue::from_str(location).ok().map(|value| (LOCATION, value)));
                let range = format!("0-{}", written.saturating_sub(1));
                headers.extend(HeaderValue::from_str(&range).ok().map(|value| (RANGE, value)));
            }
            RegistryError::RangeInvalid { bytes } => {
                let range = HeaderValue::from_str(&format!("bytes */{bytes}")).ok();
                headers.extend(range.map(|value| (http::header::CONTENT_RANGE, value)));
            }
            _ => {}
        }
        response
    }
}

impl From<DirectoryError> for RegistryError {
    /// For a key that was looked up.
    fn from(error: DirectoryError) -> Self {
        match error {
            DirectoryError::NotFound => RegistryError::Unauthorized("the API key is not known"),
            DirectoryError::Unreachable(cause) => RegistryError::Unavailable(cause),
        }
    }
}

impl From<StoreError> for RegistryError {
    /// For what is no fault of the image: whoever may meet one looks at it first.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io(ref cause) if cause.kind() == std::io::ErrorKind::StorageFull => {
                RegistryError::Full
            }
            StoreError::Unreachable(cause) => RegistryError::Unavailable(cause),
            error => RegistryError::Bug(error.to_string()),
        }
    }
}

impl From<std::io::Error> for RegistryError {
    fn from(error: std::io::Error) -> Self {
        StoreError::from(error).into()
    }
}
