//! What a sandbox's root file system is made of: an OCI image, named by its content.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::str::FromStr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::runtime::{LayerTar, RuntimeError};
use crate::store::{BlobWriter, Reference, Store};

/// A SHA-256 as OCI writes it: `sha256:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is sha256: and 64 digits of 0-9a-f")]
pub struct NotADigest;

impl Digest {
    pub const fn new(sha256: [u8; 32]) -> Digest {
        Digest(sha256)
    }

    /// That of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest::finish_of({
            let mut sha256 = ring::digest::Context::new(&ring::digest::SHA256);
            sha256.update(bytes);
            sha256
        })
    }

    /// What a SHA-256 that was fed piece by piece has come to.
    pub fn finish_of(sha256: ring::digest::Context) -> Digest {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(sha256.finish().as_ref());
        Digest(bytes)
    }

    /// 64 digits, fit for a file name.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Digest, NotADigest> {
        let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64).ok_or(NotADigest)?;
        if digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(NotADigest);
        }
        let mut sha256 = [0; 32];
        hex::decode_to_slice(digits, &mut sha256).map_err(|_| NotADigest)?;
        Ok(Digest(sha256))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An image as a runtime needs it. Two with the same `id` are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// As the specification names it; for docker an image that its engine may have already.
    pub reference: String,
    /// Digest of the OCI image configuration, which covers every layer. `None` for an image that only the runtime's
    /// own engine knows.
    pub id: Option<Digest>,
    /// Lowest first.
    pub layers: Vec<Layer>,
    pub config: ImageConfig,
}

impl Image {
    /// One that only the runtime's own engine knows, by its name.
    pub fn named(reference: &str) -> Image {
        Image {
            reference: reference.to_owned(),
            id: None,
            layers: Vec::new(),
            config: ImageConfig::default(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Digest and length of the blob as it is stored.
    pub blob: Digest,
    pub blob_bytes: u64,
    pub compression: Compression,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// The part of an OCI image configuration that says how to run it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `NAME=value`.
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub work_dir: Option<String>,
    pub user: Option<String>,
    pub labels: BTreeMap<String, String>,
}

/// Where the images of this node come from: the node's store, which fetches from peers and registries what it lacks.
#[async_trait]
pub trait ImageSource: Send + Sync + 'static {
    /// What a specification's `image` stands for.
    async fn resolve(&self, reference: &str) -> Result<Image, RuntimeError>;
    /// A blob for reading from its beginning; its content was checked against the digest.
    async fn open(&self, blob: &Digest) -> Result<File, RuntimeError>;
    /// Reads a layer to its end. Nothing is kept before [`ImageSource::keep`].
    async fn read_layer(&self, layer: LayerTar) -> Result<BlobWriter, RuntimeError>;
    /// Keeps the layer, and an image of it on top of `base`, which `name` leads to.
    async fn keep(&self, base: &Image, layer: BlobWriter, name: &str) -> Result<Kept, RuntimeError>;
}

/// An image that was made here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Pinned by its digest.
    pub reference: String,
    /// Of its topmost layer.
    pub bytes: u64,
}

/// For a runtime with an engine that has images of its own, beside those of the node's store if there is one.
#[derive(Clone, Default)]
pub struct EngineImages {
    pub store: Option<Store>,
}

#[async_trait]
impl ImageSource for EngineImages {
    /// A bare digest is an image of the engine's. A name is the store's if that knows it or it is pinned: then it is the same
    /// everywhere.
    async fn resolve(&self, reference: &str) -> Result<Image, RuntimeError> {
        let is_stored = |store: &&Store| match reference.parse::<Reference>() {
            Ok(_) if reference.parse::<Digest>().is_ok() => false,
            Ok(name) => name.digest().is_some() || store.name_here(&name).is_some(),
            Err(_) => false,
        };
        match self.store.as_ref().filter(is_stored) {
            Some(store) => Ok(store.resolve(reference).await?),
            None => Ok(Image::named(reference)),
        }
    }

    async fn open(&self, blob: &Digest) -> Result<File, RuntimeError> {
        match &self.store {
            Some(store) => ImageSource::open(store, blob).await,
            None => Err(RuntimeError::Host(format!("the blob {blob} is not on this node"))),
        }
    }

    async fn read_layer(&self, _layer: LayerTar) -> Result<BlobWriter, RuntimeError> {
        Err(no_store())
    }

    async fn keep(&self, _base: &Image, _layer: BlobWriter, _name: &str) -> Result<Kept, RuntimeError> {
        Err(no_store())
    }
}

fn no_store() -> RuntimeError {
    RuntimeError::Spec("the engine of this node keeps the disks of its sandboxes itself".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written_and_nothing_else_is() {
        let text = format!("sha256:{}", "0a".repeat(32));

        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        for wrong in ["", "sha256:", &text[7..], &text.to_uppercase(), &format!("{text}00"), "sha512:00"] {
            assert_eq!(wrong.parse::<Digest>(), Err(NotADigest), "{wrong}");
        }
    }
}
