//! Manifests and indexes, by tag and by digest.

use std::time::Duration;

use atoll_runner::image::Digest;
use atoll_runner::store::{MANIFEST_BYTES_MAX, ManifestKind, Named, Origin, Parsed, StoreError, Version};
use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, LOCATION};
use http::{HeaderValue, Method, StatusCode};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::errors::RegistryError;
use super::path::Repository;
use super::{Asked, CONTENT_DIGEST, Registry, Untaken, value};
use crate::blobs::Silent;

/// For a manifest to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// For the blobs of an image that was pushed through several nodes to come together at this one.
const GATHER_DEADLINE: Duration = Duration::from_secs(600);
const BYTES_MAX: usize = MANIFEST_BYTES_MAX as usize;

impl Registry {
    pub(super) async fn read_manifest(
        &self,
        repository: &Repository,
        version: &Version,
        asked: &Asked<'_>,
    ) -> Result<Response, RegistryError> {
        let digest = match version {
            Version::Tag(_) => self.find_tag(repository, version).await?.digest,
            Version::Digest(digest) => {
                self.reached(repository, *digest).await?.map_err(|silent| unknown(version, silent))?;
                *digest
            }
        };
        let json = self.manifest_json(digest, version).await?;
        // Whatever is a blob is in the store, too, and no manifest for that.
        let parsed = Parsed::read(&json).map_err(|_| unknown(version, Silent::default()))?;
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, json.len().into());
        let media_type = HeaderValue::from_str(parsed.media_type());
        headers.insert(CONTENT_TYPE, media_type.unwrap_or(HeaderValue::from_static("application/json")));
        headers.insert(CONTENT_DIGEST, value(&digest.to_string())?);
        headers.insert(ETAG, value(&format!("\"{digest}\""))?);
        if *asked.method == Method::GET {
            *response.body_mut() = Body::from(json);
        }
        Ok(response)
    }

    pub(super) async fn put_manifest(
        &self,
        repository: &Repository,
        version: &Version,
        asked: &Asked<'_>,
        body: &mut Untaken,
    ) -> Result<Response, RegistryError> {
        let json = read_body(asked, body).await?;
        let digest = Digest::of(&json);
        if let Version::Digest(named) = version
            && *named != digest
        {
            return Err(RegistryError::DigestInvalid(format!("the manifest's digest is {digest}")));
        }
        let parsed =
            Parsed::read(&json).map_err(|error| RegistryError::ManifestInvalid(error.to_string()))?;
        check_type(asked, &parsed)?;
        timeout(GATHER_DEADLINE, self.gather(repository, &parsed)).await.map_err(|_| {
            RegistryError::Unavailable("the image's blobs are at other nodes, and do not arrive".to_owned())
        })??;
        self.store.put_manifest(&json).await.map_err(|error| match error {
            StoreError::NotFound(_) => {
                RegistryError::Unavailable("a blob of the image was removed in this moment".to_owned())
            }
            error => error.into(),
        })?;
        // By its digest it can be had for as long as there is room, even when the tag has moved on.
        let pinned = Version::Digest(digest);
        self.say(repository, &pinned, digest, Origin::Untagged).await?;
        if let Version::Tag(_) = version {
            self.say(repository, version, digest, Origin::Given).await?;
        }
        if let Some(copies) = &self.copies {
            let name = repository.reference(pinned)?.to_string();
            self.tasks.spawn(copies.clone().copy_in_turn(name));
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::CREATED;
        let headers = response.headers_mut();
        headers.insert(LOCATION, value(&repository.location(&format!("manifests/{digest}")))?);
        headers.insert(CONTENT_DIGEST, value(&digest.to_string())?);
        headers.insert(CONTENT_LENGTH, 0.into());
        Ok(response)
    }

    /// A tag goes alone; a digest takes its tags with it. Blobs go when nothing leads to them any more.
    pub(super) async fn delete_manifest(
        &self,
        repository: &Repository,
        version: &Version,
    ) -> Result<Response, RegistryError> {
        let leaving = match version {
            Version::Tag(_) => vec![self.find_tag(repository, version).await?],
            Version::Digest(digest) => {
                let (mut words, silent) = self.words_in(repository).await?;
                words.retain(|word| word.digest == *digest);
                if words.is_empty() {
                    return Err(unknown(version, silent));
                }
                words
            }
        };
        for named in leaving {
            let name = named.name.parse().map_err(|_| RegistryError::Bug(format!("{:?}", named.name)))?;
            let word = self.store.set_name_after(&name, named.digest, Origin::Removed, named.set_ms)?;
            self.reach.named(repository.organization_id);
            self.peers.announce(&word).await;
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::ACCEPTED;
        response.headers_mut().insert(CONTENT_LENGTH, 0.into());
        Ok(response)
    }

    /// What a tag stands for by the latest word of all nodes.
    async fn find_tag(&self, repository: &Repository, version: &Version) -> Result<Named, RegistryError> {
        let (latest, silent) = self.latest(repository, version).await?;
        latest.filter(|named| !named.is_removed()).ok_or_else(|| unknown(version, silent))
    }

    async fn latest(
        &self,
        repository: &Repository,
        version: &Version,
    ) -> Result<(Option<Named>, Silent), RegistryError> {
        let name = repository.reference(version.clone())?;
        let (words, silent) = self.peers.words_about(&name.to_string()).await;
        let words = words.into_iter().filter(|word| word.name == name.to_string());
        let latest = words.fold(self.store.word_here(&name), |latest, word| Named::later(latest, Some(word)));
        Ok((latest, silent))
    }

    /// From now on the version stands for the digest, on every node that can be told.
    async fn say(
        &self,
        repository: &Repository,
        version: &Version,
        digest: Digest,
        origin: Origin,
    ) -> Result<(), RegistryError> {
        let (latest, _) = self.latest(repository, version).await?;
        let name = repository.reference(version.clone())?;
        let after_ms = latest.map_or(0, |named| named.set_ms);
        let word = self.store.set_name_after(&name, digest, origin, after_ms)?;
        self.reach.named(repository.organization_id);
        self.peers.announce(&word).await;
        Ok(())
    }

    /// Brings here what the manifest speaks of, if it is the organization's.
    async fn gather(&self, repository: &Repository, parsed: &Parsed) -> Result<(), RegistryError> {
        for digest in parsed.references() {
            let unknown = |silent| RegistryError::ManifestBlobUnknown { what: digest.to_string(), silent };
            self.reached(repository, digest).await?.map_err(unknown)?;
            match self.store.fetch_by_digest(digest).await {
                Ok(_) => {}
                Err(StoreError::NotFound(_)) => return Err(unknown(Silent::default())),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn manifest_json(&self, digest: Digest, version: &Version) -> Result<Vec<u8>, RegistryError> {
        if self.store.open_here(&digest).is_none() {
            self.peers.find(digest).await.map_err(|silent| unknown(version, silent))?;
        }
        let (file, bytes) = self.store.fetch_by_digest(digest).await.map_err(|error| match error {
            StoreError::NotFound(_) => unknown(version, Silent::default()),
            error => error.into(),
        })?;
        if bytes > MANIFEST_BYTES_MAX {
            return Err(unknown(version, Silent::default()));
        }
        let mut json = Vec::new();
        tokio::fs::File::from_std(file).read_to_end(&mut json).await?;
        Ok(json)
    }
}

async fn read_body(asked: &Asked<'_>, body: &mut Untaken) -> Result<bytes::Bytes, RegistryError> {
    let too_large = RegistryError::TooLarge { bytes_max: MANIFEST_BYTES_MAX };
    let length =
        asked.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MANIFEST_BYTES_MAX) {
        return Err(too_large);
    }
    match timeout(BODY_DEADLINE, axum::body::to_bytes(body.take(), BYTES_MAX)).await {
        Ok(Ok(json)) => Ok(json),
        Ok(Err(error)) if crate::rest::is_too_long(&error) => Err(too_large),
        Ok(Err(_)) | Err(_) => Err(RegistryError::BodyBroken),
    }
}

/// What the client says it is must be what it is; otherwise other clients will read it as something else.
fn check_type(asked: &Asked<'_>, parsed: &Parsed) -> Result<(), RegistryError> {
    let Some(given) = asked.headers.get(CONTENT_TYPE) else { return Ok(()) };
    let given = given.to_str().unwrap_or_default();
    let given = given.split(';').next().unwrap_or_default().trim();
    let kind = match parsed.kind() {
        ManifestKind::Manifest => "manifest",
        ManifestKind::Index => "index",
    };
    match given == parsed.media_type() || given == "application/json" {
        true => Ok(()),
        false => Err(RegistryError::ManifestInvalid(format!(
            "Content-Type is {given:?}, and the {kind} is {}",
            parsed.media_type()
        ))),
    }
}

fn unknown(version: &Version, silent: Silent) -> RegistryError {
    let what = match version {
        Version::Tag(tag) => tag.clone(),
        Version::Digest(digest) => digest.to_string(),
    };
    RegistryError::ManifestUnknown { what, silent }
}
