//! Blobs in: in one piece, in chunks, or by mounting what the organization has already.

use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_runner::image::Digest;
use atoll_runner::store::{BLOB_BYTES_MAX, Store, StoreError};
use axum::body::Body;
use axum::response::Response;
use futures_util::StreamExt;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, LOCATION, RANGE};
use http::{HeaderName, StatusCode};

use super::errors::RegistryError;
use super::path::{self, Repository};
use super::pending::Upload;
use super::range::{self, Part};
use super::{Asked, CONTENT_DIGEST, Registry, Untaken, value};

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
/// A client that sends nothing for so long has gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// What an upload leaves free on the disk, for the node's log.
const FREE_BYTES_MIN: u64 = 2 << 30;
/// The disk is looked at again after so many bytes.
const FREE_CHECKED_EVERY: u64 = 32 << 20;

impl Registry {
    /// `POST`: mounts, takes a whole blob, or begins what is to come in chunks.
    pub(super) async fn begin_upload(
        self: &Arc<Self>,
        repository: &Repository,
        asked: &Asked<'_>,
        body: &mut Untaken,
    ) -> Result<Response, RegistryError> {
        if let Some(mount) = asked.query("mount") {
            let digest = path::digest(mount)?;
            // Whatever repository of its own it is in.
            if self.reached(repository, digest).await?.is_ok() {
                self.reach.pushed(repository.organization_id, digest);
                return created(repository, digest);
            }
        }
        let whole = asked.query("digest").map(path::digest).transpose()?;
        room(&self.store)?;
        check_length(asked, 0)?;
        let upload = self.uploads.begin(repository, self.store.writer()?, Instant::now())?;
        match whole {
            Some(digest) => {
                let written = self.write(upload.clone(), 0, body.take(), Then::Finish(digest)).await;
                self.uploads.remove(&upload);
                written?;
                self.reach.pushed(repository.organization_id, digest);
                created(repository, digest)
            }
            None => progress(repository, &upload, StatusCode::ACCEPTED),
        }
    }

    /// `PATCH`.
    pub(super) async fn continue_upload(
        self: &Arc<Self>,
        repository: &Repository,
        id: &str,
        asked: &Asked<'_>,
        body: &mut Untaken,
    ) -> Result<Response, RegistryError> {
        let upload = self.uploads.find(repository, id)?;
        let from = self.check_chunk(repository, &upload, asked)?;
        self.write(upload.clone(), from, body.take(), Then::Wait).await?;
        progress(repository, &upload, StatusCode::ACCEPTED)
    }

    /// `PUT`, perhaps with the last chunk.
    pub(super) async fn finish_upload(
        self: &Arc<Self>,
        repository: &Repository,
        id: &str,
        asked: &Asked<'_>,
        body: &mut Untaken,
    ) -> Result<Response, RegistryError> {
        let upload = self.uploads.find(repository, id)?;
        let digest = asked.query("digest").ok_or_else(|| {
            RegistryError::DigestInvalid("an upload is finished with ?digest=sha256:…".to_owned())
        })?;
        let digest = path::digest(digest)?;
        let from = self.check_chunk(repository, &upload, asked)?;
        self.write(upload.clone(), from, body.take(), Then::Finish(digest)).await?;
        self.uploads.remove(&upload);
        self.reach.pushed(repository.organization_id, digest);
        created(repository, digest)
    }

    pub(super) fn upload_status(&self, repository: &Repository, id: &str) -> Result<Response, RegistryError> {
        progress(repository, &*self.uploads.find(repository, id)?, StatusCode::NO_CONTENT)
    }

    pub(super) fn cancel_upload(&self, repository: &Repository, id: &str) -> Result<Response, RegistryError> {
        let upload = self.uploads.find(repository, id)?;
        self.uploads.remove(&upload);
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        Ok(response)
    }

    /// Gives the byte that the chunk begins at.
    fn check_chunk(
        &self,
        repository: &Repository,
        upload: &Upload,
        asked: &Asked<'_>,
    ) -> Result<u64, RegistryError> {
        room(&self.store)?;
        let written = upload.written();
        check_length(asked, written)?;
        let Some(given) = asked.headers.get(CONTENT_RANGE) else { return Ok(written) };
        let part = given.to_str().ok().and_then(range::chunk).ok_or_else(|| {
            RegistryError::BlobUploadInvalid("Content-Range must be <first>-<last>".to_owned())
        })?;
        if part.first != written {
            let location = location(repository, upload);
            return Err(RegistryError::OutOfOrder { written, location });
        }
        match content_length(asked) {
            Some(length) if length != part.bytes() => Err(RegistryError::SizeInvalid(format!(
                "Content-Length is {length}, and Content-Range speaks of {} bytes",
                part.bytes()
            ))),
            _ => Ok(written),
        }
    }

    /// On a task of its own: when the client goes away a request is dropped wherever it is, and what was half written
    /// could not go on.
    async fn write(
        self: &Arc<Self>,
        upload: Arc<Upload>,
        from: u64,
        body: Body,
        then: Then,
    ) -> Result<(), RegistryError> {
        let registry = self.clone();
        let written = self.tasks.spawn(async move {
            let result = registry.write_alone(&upload, from, body, then).await;
            // Nothing can be added to a file that is in an unknown state.
            if !matches!(result, Ok(()) | Err(RegistryError::BodyBroken | RegistryError::BlobUploadBusy)) {
                registry.uploads.remove(&upload);
            }
            result
        });
        written.await.map_err(|error| RegistryError::Bug(error.to_string()))?
    }

    async fn write_alone(
        &self,
        upload: &Upload,
        from: u64,
        body: Body,
        then: Then,
    ) -> Result<(), RegistryError> {
        let mut slot = upload.writer.try_lock().map_err(|_| RegistryError::BlobUploadBusy)?;
        let ended = || RegistryError::BlobUploadUnknown("the upload has ended".to_owned());
        let writer = slot.as_mut().ok_or_else(ended)?;
        // Another request was in between.
        if writer.written() != from {
            return Err(RegistryError::BlobUploadBusy);
        }
        let mut body = body.into_data_stream();
        let mut unchecked_bytes = 0;
        loop {
            let chunk = match tokio::time::timeout(SILENCE_MAX, body.next()).await {
                Ok(None) => break,
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(_))) | Err(_) => return Err(RegistryError::BodyBroken),
            };
            unchecked_bytes += chunk.len() as u64;
            if unchecked_bytes > FREE_CHECKED_EVERY {
                room(&self.store)?;
                unchecked_bytes = 0;
            }
            writer.write(&chunk).await.map_err(too_large)?;
            upload.note(writer.written());
        }
        if let Then::Finish(digest) = then {
            let writer = slot.take().ok_or_else(ended)?;
            writer.finish(Some(&digest)).await.map_err(|error| match error {
                StoreError::Bad(text) => RegistryError::DigestInvalid(text),
                error => error.into(),
            })?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
enum Then {
    /// For more.
    Wait,
    Finish(Digest),
}

fn room(store: &Store) -> Result<(), RegistryError> {
    if store.free_bytes()? < FREE_BYTES_MIN { Err(RegistryError::Full) } else { Ok(()) }
}

fn too_large(error: StoreError) -> RegistryError {
    match error {
        StoreError::Bad(_) => RegistryError::TooLarge { bytes_max: BLOB_BYTES_MAX },
        error => error.into(),
    }
}

fn content_length(asked: &Asked<'_>) -> Option<u64> {
    asked.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What is announced to be too large is not taken in first.
fn check_length(asked: &Asked<'_>, written: u64) -> Result<(), RegistryError> {
    match content_length(asked) {
        Some(length) if written.saturating_add(length) > BLOB_BYTES_MAX => {
            Err(RegistryError::TooLarge { bytes_max: BLOB_BYTES_MAX })
        }
        _ => Ok(()),
    }
}

fn location(repository: &Repository, upload: &Upload) -> String {
    repository.location(&format!("blobs/uploads/{}", upload.id))
}

/// How far it is, and where it goes on.
fn progress(repository: &Repository, upload: &Upload, status: StatusCode) -> Result<Response, RegistryError> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(LOCATION, value(&location(repository, upload))?);
    let Part { first, last } = Part { first: 0, last: upload.written().saturating_sub(1) };
    headers.insert(RANGE, value(&format!("{first}-{last}"))?);
    headers.insert(UPLOAD_ID, value(&upload.id.to_string())?);
    if status == StatusCode::ACCEPTED {
        headers.insert(CONTENT_LENGTH, 0.into());
    }
    Ok(response)
}

fn created(repository: &Repository, digest: Digest) -> Result<Response, RegistryError> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(LOCATION, value(&repository.location(&format!("blobs/{digest}")))?);
    headers.insert(CONTENT_DIGEST, value(&digest.to_string())?);
    headers.insert(CONTENT_LENGTH, 0.into());
    Ok(response)
}
