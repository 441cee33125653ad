//! Build contexts in the node's store: named tars that any node finds, and that go when nobody has used them for long.

use std::fmt;
use std::fs::File;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use atoll_api::ids::OrganizationId;
use atoll_runner::image::Digest;
use atoll_runner::store::{Artifact, BlobWriter, Reference, Store, StoreError};
use tokio_util::sync::CancellationToken;

use super::operation::{FILE, Key};

/// Of the whole tar.
pub(super) const CONTEXT_BYTES_MAX: u64 = 16 << 30;
/// A context that nobody has asked for since is removed.
const CONTEXT_KEPT: Duration = Duration::from_secs(14 * 24 * 3600);
/// A context that is only elsewhere is not spoken of in its last day: asking for it here is no use of it there, and the
/// client relies on it from now on.
const LAST_DAY: Duration = Duration::from_secs(24 * 3600);
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);
/// No such host can exist outside, and no image can be pushed under it.
const HOST: &str = "contexts.atoll.internal";
const MEDIA_TYPE: &str = "application/x-tar";

/// What the SDK computes of a context and names it by: nothing is derived from it here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextHash(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a context's hash is 32 to 64 digits of 0-9a-f")]
pub struct NotAHash;

impl FromStr for ContextHash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<ContextHash, NotAHash> {
        let digits_ok = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match (32..=64).contains(&text.len()) && digits_ok {
            true => Ok(ContextHash(text.to_owned())),
            false => Err(NotAHash),
        }
    }
}

impl fmt::Display for ContextHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A handle.
#[derive(Debug, Clone)]
pub struct Contexts {
    store: Store,
}

impl Contexts {
    pub fn new(store: Store) -> Contexts {
        Contexts { store }
    }

    /// The tar that was uploaded to whichever node, for a build.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] says to the client what to do: no node has it, or it has expired.
    pub async fn open(
        &self,
        organization_id: OrganizationId,
        hash: &ContextHash,
    ) -> Result<File, StoreError> {
        let key = Key { organization_id, hash: hash.clone() };
        let missing = || {
            StoreError::NotFound(format!(
                "the build context {hash} is on no node: it was never uploaded or has expired; build again with the local files"
            ))
        };
        let artifact = self.find(&key).await?.ok_or_else(missing)?;
        match self.read(&artifact).await {
            Err(StoreError::NotFound(_)) => Err(missing()),
            opened => opened,
        }
    }

    pub(super) async fn find(&self, key: &Key) -> Result<Option<Artifact>, StoreError> {
        let name = name(key)?;
        let found = self.store.find_artifact(&name).await?;
        Ok(found.filter(|artifact| {
            let set = SystemTime::UNIX_EPOCH + Duration::from_millis(artifact.set_ms);
            let age = SystemTime::now().duration_since(set).unwrap_or_default();
            self.store.open_here(&artifact.digest).is_some() || age < CONTEXT_KEPT - LAST_DAY
        }))
    }

    pub(super) async fn read(&self, artifact: &Artifact) -> Result<File, StoreError> {
        self.store.open_artifact(artifact).await
    }

    /// For a context or a part of one.
    pub(super) fn writer(&self) -> Result<BlobWriter, StoreError> {
        self.store.writer()
    }

    /// From this node or another one.
    pub(super) async fn part(&self, digest: Digest) -> Result<(File, u64), StoreError> {
        self.store.fetch_by_digest(digest).await
    }

    pub(super) async fn put(&self, key: &Key, digest: Digest, bytes: u64) -> Result<(), StoreError> {
        self.store.put_artifact(&name(key)?, MEDIA_TYPE, digest, bytes).await
    }

    pub(super) async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.store.retract_artifact(&name(key)?).await
    }

    /// Those of an organization that this node knows, by key.
    pub(super) async fn list_here(
        &self,
        organization_id: OrganizationId,
    ) -> Result<Vec<(Key, Artifact)>, StoreError> {
        let (store, prefix) = (self.store.clone(), format!("{HOST}/{organization_id}/"));
        let all = tokio::task::spawn_blocking(move || store.artifacts_here(&prefix)).await;
        let all = all.map_err(|error| StoreError::Io(std::io::Error::other(error)))??;
        let keyed = all.into_iter().filter_map(|artifact| {
            let reference: Reference = artifact.name.parse().ok()?;
            let hash = reference.repository.split_once('/')?.1.parse().ok()?;
            Some((Key { organization_id, hash }, artifact))
        });
        Ok(keyed.collect())
    }

    /// Where new blobs go.
    pub(super) fn free_bytes(&self) -> Result<u64, StoreError> {
        self.store.free_bytes()
    }

    /// Removes what has expired, now and then.
    pub async fn expire(self, cancel: CancellationToken) {
        loop {
            let store = self.store.clone();
            let expiring = tokio::task::spawn_blocking(move || {
                store.expire_artifacts(&format!("{HOST}/"), CONTEXT_KEPT)
            });
            match expiring.await {
                Ok(Ok(0)) => {}
                Ok(Ok(expired)) => tracing::info!(expired, "build contexts have expired"),
                Ok(Err(error)) => tracing::warn!(%error, "cannot look for expired build contexts"),
                Err(error) => tracing::error!(%error, "looking for expired build contexts broke off"),
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(EXPIRE_EVERY) => {}
            }
        }
    }
}

fn name(key: &Key) -> Result<Reference, StoreError> {
    format!("{HOST}/{}/{}:{FILE}", key.organization_id, key.hash).parse()
}
