//! The seam between a build and what it stands on: the store of blobs, and whatever runs commands.

use std::fmt;
use std::fs::File;

use async_trait::async_trait;

use super::BuildError;
use super::log::BuildLog;
use super::plan::{RunStep, StageConfig};
use crate::image::{Digest, Image, Layer};
use crate::store::Credentials;

/// Whose build it is, as far as images go: the node answers for the organization that asked for it.
#[async_trait]
pub trait BaseAccess: fmt::Debug + Send + Sync + 'static {
    /// May this build begin with, or copy from, what the Dockerfile names so? An error is the reason, for whoever reads
    /// the build's log.
    async fn admit(&self, reference: &str) -> Result<Admitted, String>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// What the store is asked for: the name itself, or what it stands for in this organization.
    pub reference: String,
    /// Tried in turn while the registry denies it. None: as nobody in particular.
    pub identities: Vec<Credentials>,
}

/// Names mean what they say, and registries are asked without credentials.
#[derive(Debug, Clone, Copy)]
pub struct AnonymousAccess;

#[async_trait]
impl BaseAccess for AnonymousAccess {
    async fn admit(&self, reference: &str) -> Result<Admitted, String> {
        Ok(Admitted { reference: reference.to_owned(), identities: Vec::new() })
    }
}

/// An image to begin with.
#[derive(Debug, Clone)]
pub struct BaseImage {
    pub image: Image,
    /// All that its configuration says; `image.config` is part of it.
    pub config: StageConfig,
}

/// How a command ended, and what it left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    pub exit_code: i64,
    /// What differs from the image it ran on; absent when the command failed.
    pub layer: Option<Layer>,
}

/// What a step came to: a layer, or none because it changed nothing.
pub type Made = Option<Layer>;

#[async_trait]
pub trait BuildHost: Send + Sync + 'static {
    /// The image that FROM and `COPY --from` name. Fetches it, and says into `log` how far it has come.
    async fn base(
        &self,
        reference: &str,
        access: &dyn BaseAccess,
        log: &BuildLog,
    ) -> Result<BaseImage, BuildError>;
    /// A layer's blob, open at its beginning.
    async fn open(&self, layer: &Layer) -> Result<File, BuildError>;
    /// Takes an uncompressed OCI layer into the store.
    async fn add_layer(&self, tar: File) -> Result<Layer, BuildError>;
    /// Runs a command on `image` to its end, its output into `log`. Whatever it started is gone afterwards, also when
    /// the future is dropped.
    async fn run(&self, image: &Image, run: &RunStep, log: &BuildLog) -> Result<Ran, BuildError>;
    /// What a step with this key made before, as long as its layer is still there.
    async fn cached(&self, key: &Digest) -> Option<Made>;
    async fn remember(&self, key: &Digest, made: &Made);
    /// Takes an image into the store: its OCI configuration, and layers that the store has.
    async fn add_image(&self, config: Vec<u8>, layers: &[Layer]) -> Result<Image, BuildError>;
}
