//! Blobs out: from this node's disk, or from another node through this one.

use atoll_runner::image::Digest;
use axum::body::Body;
use axum::response::Response;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, RANGE};
use http::{HeaderValue, Method, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::errors::RegistryError;
use super::path::Repository;
use super::range::{self, Part, Wanted};
use super::{Asked, CONTENT_DIGEST, Registry, value};
use crate::blobs::Silent;

const CHUNK_BYTES: usize = 128 * 1024;

impl Registry {
    pub(super) async fn read_blob(
        &self,
        repository: &Repository,
        digest: Digest,
        asked: &Asked<'_>,
    ) -> Result<Response, RegistryError> {
        let unknown = |silent| RegistryError::BlobUnknown { what: digest.to_string(), silent };
        self.reached(repository, digest).await?.map_err(unknown)?;
        let here = self.store.open_here(&digest);
        let bytes = match &here {
            Some((_, bytes)) => *bytes,
            None => self.peers.find(digest).await.map_err(unknown)?.bytes,
        };
        let range = asked.headers.get(RANGE).and_then(|range| range.to_str().ok());
        let (status, part) = match range.map_or(Wanted::Whole, |range| range::wanted(range, bytes)) {
            Wanted::Whole => (StatusCode::OK, bytes.checked_sub(1).map(|last| Part { first: 0, last })),
            Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, Some(part)),
            Wanted::Impossible => return Err(RegistryError::RangeInvalid { bytes }),
        };
        let body = match (part, here) {
            (None, _) => Body::empty(),
            _ if *asked.method == Method::HEAD => Body::empty(),
            (Some(part), Some((file, _))) => {
                let mut file = tokio::fs::File::from_std(file);
                file.seek(std::io::SeekFrom::Start(part.first)).await?;
                body(file, part)
            }
            (Some(part), None) => body(self.peers.read(digest, part.first).await.map_err(unknown)?.1, part),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(CONTENT_LENGTH, part.map_or(0, Part::bytes).into());
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(CONTENT_DIGEST, value(&digest.to_string())?);
        headers.insert(ETAG, value(&format!("\"{digest}\""))?);
        if status == StatusCode::PARTIAL_CONTENT
            && let Some(Part { first, last }) = part
        {
            headers.insert(CONTENT_RANGE, value(&format!("bytes {first}-{last}/{bytes}"))?);
        }
        Ok(response)
    }

    /// Whether the repository's organization has the blob, at this node or another.
    pub(super) async fn reached(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<Result<(), Silent>, RegistryError> {
        Ok(self.reach.anywhere(&self.peers, repository.organization_id, digest).await?)
    }
}

fn body(from: impl AsyncRead + Send + 'static, part: Part) -> Body {
    Body::from_stream(ReaderStream::with_capacity(from.take(part.bytes()), CHUNK_BYTES))
}
