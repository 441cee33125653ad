//! Files in the store that are no images: an OCI artifact each, one layer below a name of a host of its own.
//!
//! The name leads to a manifest that says the file's digest and length, so that a node which has neither can answer for
//! both as soon as another node knows the name.

use std::fs::File;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::fetch::Store;
use super::layout::read_small;
use super::manifest::{OCI_MANIFEST, Parsed};
use super::names::{Named, Origin};
use super::{MANIFEST_BYTES_MAX, Reference, StoreError};
use crate::image::Digest;

/// What OCI has for a configuration where there is none.
const EMPTY_JSON: &[u8] = b"{}";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// Other nodes are asked for a later word even when this one knows the name, but not for longer.
const LATER_WORD_MAX: Duration = Duration::from_secs(1);

/// A file by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    pub name: String,
    /// Of the file itself.
    pub digest: Digest,
    pub bytes: u64,
    /// Since 1970.
    pub set_ms: u64,
}

impl Store {
    /// From now on `name` stands for the blob `digest`, which is here.
    pub async fn put_artifact(
        &self,
        name: &Reference,
        media_type: &str,
        digest: Digest,
        bytes: u64,
    ) -> Result<(), StoreError> {
        let empty = self.put_bytes(EMPTY_JSON).await?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": media_type,
            "config": { "mediaType": EMPTY_TYPE, "digest": empty, "size": EMPTY_JSON.len() },
            "layers": [{ "mediaType": media_type, "digest": digest, "size": bytes }],
        });
        let (manifest, _) = self.put_manifest(manifest.to_string().as_bytes()).await?;
        self.set_name(name, manifest, Origin::Given).map(drop)
    }

    /// From now on `name` stands for nothing: a later word than any before, so that no other node's counts either.
    pub async fn retract_artifact(&self, name: &Reference) -> Result<(), StoreError> {
        let nothing = self.put_bytes(&[]).await?;
        self.set_name(name, nothing, Origin::Given).map(drop)
    }

    /// Here or with another node, by the latest word. Registries are not asked. Counts as use.
    pub async fn find_artifact(&self, name: &Reference) -> Result<Option<Artifact>, StoreError> {
        let here = self.name_here(name);
        let elsewhere = match (&here, self.peers()) {
            (_, None) => None,
            (None, Some(peers)) => peers.name(&name.to_string()).await,
            (Some(_), Some(peers)) => {
                tokio::time::timeout(LATER_WORD_MAX, peers.name(&name.to_string())).await.ok().flatten()
            }
        };
        let Some(latest) = here.into_iter().chain(elsewhere).max_by_key(|named| named.set_ms) else {
            return Ok(None);
        };
        if is_retracted(&latest) {
            return Ok(None);
        }
        let json = match self.fetch_by_digest(latest.digest).await {
            Ok((file, _)) => read_small(file, &latest.digest, MANIFEST_BYTES_MAX)?,
            Err(StoreError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let artifact = artifact(latest, &json)?;
        // Only to note the use.
        let _ = self.open_here(&artifact.digest);
        Ok(Some(artifact))
    }

    /// What it holds, fetched from another node if need be.
    pub async fn open_artifact(&self, artifact: &Artifact) -> Result<File, StoreError> {
        let (file, bytes) = self.fetch_by_digest(artifact.digest).await?;
        match bytes == artifact.bytes {
            true => Ok(file),
            false => Err(StoreError::Bad(format!(
                "{} should have {} bytes and has {bytes}",
                artifact.name, artifact.bytes
            ))),
        }
    }

    /// Those of this node whose names begin with `prefix`, by name. Blocks on the disk.
    pub fn artifacts_here(&self, prefix: &str) -> Result<Vec<Artifact>, StoreError> {
        let mut found = Vec::new();
        for named in self.names_here()? {
            if !named.name.starts_with(prefix) || is_retracted(&named) {
                continue;
            }
            // Opened past the store, as this is no use.
            let Ok(file) = File::open(self.blobs().path(&named.digest)) else { continue };
            let json = read_small(file, &named.digest, MANIFEST_BYTES_MAX)?;
            found.push(artifact(named, &json)?);
        }
        Ok(found)
    }

    /// Forgets the names that begin with `prefix` and were neither set nor used for so long; the blobs go with the next
    /// collection. Blocks on the disk.
    pub fn expire_artifacts(&self, prefix: &str, unused_for: Duration) -> Result<u64, StoreError> {
        let now = SystemTime::now();
        let mut expired = 0;
        for named in self.names_here()?.into_iter().filter(|named| named.name.starts_with(prefix)) {
            let set = SystemTime::UNIX_EPOCH + Duration::from_millis(named.set_ms);
            // A retraction must outlive what it retracts, also where that was in use until then.
            let (used, kept) = match is_retracted(&named) {
                true => (set, unused_for * 2),
                false => (self.artifact_used(&named).max(set), unused_for),
            };
            if now.duration_since(used).is_ok_and(|ago| ago > kept) {
                expired += u64::from(self.names().remove(&named.name)?);
            }
        }
        Ok(expired)
    }

    fn artifact_used(&self, named: &Named) -> SystemTime {
        let read = || {
            let file = File::open(self.blobs().path(&named.digest)).ok()?;
            let json = read_small(file, &named.digest, MANIFEST_BYTES_MAX).ok()?;
            artifact(named.clone(), &json).ok()
        };
        read().map_or(SystemTime::UNIX_EPOCH, |artifact| self.last_use(&artifact.digest))
    }
}

fn is_retracted(named: &Named) -> bool {
    named.digest == Digest::of(&[])
}

fn artifact(named: Named, manifest: &[u8]) -> Result<Artifact, StoreError> {
    let layers = match Parsed::read(manifest)? {
        Parsed::Manifest(manifest) => manifest.layers,
        Parsed::Index(_) => Vec::new(),
    };
    match layers.as_slice() {
        [layer] => {
            Ok(Artifact { name: named.name, digest: layer.digest, bytes: layer.size, set_ms: named.set_ms })
        }
        _ => Err(StoreError::Bad(format!("{} is not one file", named.name))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read;
    use std::sync::Arc;

    use async_trait::async_trait;

    use super::*;
    use crate::store::{PeerBlob, Peers, StoreConfig};

    const TYPE: &str = "application/x-tar";
    const PREFIX: &str = "files.atoll.internal/";
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig { dir: dir.path().into(), ..StoreConfig::default() }).unwrap();
        (dir, store)
    }

    fn name() -> Reference {
        "files.atoll.internal/o/1a:context.tar".parse().unwrap()
    }

    async fn put(store: &Store, content: &[u8]) -> Digest {
        let digest = store.put_bytes(content).await.unwrap();
        store.put_artifact(&name(), TYPE, digest, content.len() as u64).await.unwrap();
        digest
    }

    async fn read(store: &Store) -> Option<String> {
        let artifact = store.find_artifact(&name()).await.unwrap()?;
        let mut text = String::new();
        store.open_artifact(&artifact).await.unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text.len() as u64, artifact.bytes);
        Some(text)
    }

    /// Another node's store, without the mesh between.
    struct Other(Store);

    #[async_trait]
    impl Peers for Other {
        async fn blob(&self, digest: &Digest, _from: u64) -> Option<PeerBlob> {
            let (file, bytes) = self.0.open_here(digest)?;
            Some(PeerBlob { bytes, from: 0, content: Box::new(tokio::fs::File::from_std(file)) })
        }
        async fn name(&self, name: &str) -> Option<Named> {
            self.0.name_here(&name.parse().ok()?)
        }
    }

    #[tokio::test]
    async fn a_file_is_found_by_its_name_and_kept_by_it() {
        let (_dir, store) = store();
        assert_eq!(read(&store).await, None);

        put(&store, b"one").await;
        put(&store, b"two").await;
        store.collect_with(&BTreeSet::new(), 0, Duration::ZERO).unwrap();

        assert_eq!(read(&store).await.as_deref(), Some("two"));
        assert_eq!(store.artifacts_here(PREFIX).unwrap().len(), 1);
        assert_eq!(store.artifacts_here("other").unwrap(), []);
    }

    #[tokio::test]
    async fn another_nodes_file_is_found_and_fetched() {
        let ((_a, one), (_b, two)) = (store(), store());
        two.set_peers(Arc::new(Other(one.clone())));

        put(&one, b"content").await;

        assert_eq!(read(&two).await.as_deref(), Some("content"));
    }

    #[tokio::test]
    async fn the_latest_word_counts_whichever_node_said_it() {
        let ((_a, one), (_b, two)) = (store(), store());
        one.set_peers(Arc::new(Other(two.clone())));
        two.set_peers(Arc::new(Other(one.clone())));
        let later = || tokio::time::sleep(Duration::from_millis(2));

        put(&one, b"first").await;
        later().await;
        put(&two, b"second").await;
        assert_eq!(read(&one).await.as_deref(), Some("second"));

        later().await;
        two.retract_artifact(&name()).await.unwrap();
        assert_eq!((read(&one).await, read(&two).await), (None, None));
        assert_eq!(two.artifacts_here(PREFIX).unwrap(), []);

        later().await;
        put(&one, b"third").await;
        assert_eq!(read(&two).await.as_deref(), Some("third"));
    }

    #[tokio::test]
    async fn what_nobody_uses_expires_and_a_use_keeps_it() {
        let (_dir, store) = store();
        let digest = put(&store, b"content").await;
        let long_ago = SystemTime::now() - 3 * DAY;
        let age = |name: &Reference| {
            let mut named = store.name_here(name).unwrap();
            named.set_ms -= 3 * 24 * 3_600_000;
            store.names().set(&named).unwrap();
            File::open(store.blobs().path(&digest)).unwrap().set_modified(long_ago).unwrap();
        };

        age(&name());
        assert_eq!(store.expire_artifacts(PREFIX, 4 * DAY).unwrap(), 0);
        assert!(read(&store).await.is_some());
        assert_eq!(store.expire_artifacts(PREFIX, 2 * DAY).unwrap(), 0);

        age(&name());
        assert_eq!(store.expire_artifacts("other", 2 * DAY).unwrap(), 0);
        assert_eq!(store.expire_artifacts(PREFIX, 2 * DAY).unwrap(), 1);
        assert_eq!(read(&store).await, None);
    }
}
