//! This node's images: its store of blobs, what builds images into it, and what of it the runtime in use needs.

use std::sync::Arc;

use anyhow::{Context, Result};
use atoll_runner::build::{BuildLimits, Builds, SandboxBuildConfig, SandboxBuildHost};
use atoll_runner::store::{Reach, Registries, Store, StoreConfig};
use atoll_runner::{EngineImages, ImageSource, RunnerHandle, Runtime};
use bytes::Bytes;
use tracing::{info, warn};

use crate::config::{Config, RuntimeKind};
use crate::runtimes;

/// Blocks on the disk for a moment. As the node's user: whatever is in the store is the node's and never the runner's.
pub fn open_store(config: &Config) -> Result<Store> {
    let dir = config.layout().store_dir();
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let private = &config.runtime.private_registries;
    let reach = match private.contains("*") {
        true => Reach::Anywhere,
        false => Reach::PublicBut(private.clone()),
    };
    let registries = Registries { reach, ..Registries::default() };
    let store = StoreConfig { dir, seeds: config.runtime.seeds.clone(), registries };
    Store::open(store).context("open the store of images")
}

/// Unpacks the image of the default snapshot, so that the first create does not wait for it. Elsewhere than on this
/// machine it is not looked for: the node works without.
pub async fn unpack_base(config: &Config, store: &Store, runner: &RunnerHandle) {
    let image = &config.runtime.image;
    let is_here = image.parse().is_ok_and(|name| store.name_here(&name).is_some());
    if config.runtime.kind != RuntimeKind::Embedded || !is_here {
        return;
    }
    match runner.provide(image).await {
        Ok(()) => info!(%image, "the base image is unpacked"),
        Err(error) => warn!(%image, %error, "the base image is not unpacked, a create will try again"),
    }
}

/// Where the runner's images come from.
pub fn source(config: &Config, store: &Store) -> Arc<dyn ImageSource> {
    match config.runtime.kind {
        RuntimeKind::Embedded => Arc::new(store.clone()),
        RuntimeKind::Docker => Arc::new(EngineImages { store: Some(store.clone()) }),
    }
}

/// What builds images here. Stop [`Builds`] first.
#[derive(Clone)]
pub struct ImageBuilds {
    pub builds: Builds,
    pub host: SandboxBuildHost,
}

impl ImageBuilds {
    /// Removes what builds of an earlier process have left. `None` where sandboxes are made by an engine that has images of
    /// its own.
    pub async fn open(
        config: &Config,
        runtime: Arc<dyn Runtime>,
        store: &Store,
    ) -> Result<Option<ImageBuilds>> {
        if config.runtime.kind != RuntimeKind::Embedded {
            return Ok(None);
        }
        let layout = config.layout();
        let steps = SandboxBuildConfig::new(layout.build_steps_dir(), Bytes::from_static(runtimes::DAEMON));
        let host = SandboxBuildHost::open(runtime, store.clone(), steps).await.context("open the builds")?;
        let builds = Builds::open(Arc::new(host.clone()), layout.builds_dir(), BuildLimits::default());
        Ok(Some(ImageBuilds { builds: builds.context("open the builds' logs")?, host }))
    }

    /// Breaks off what is being built, and ends when nothing of it is left.
    pub async fn shutdown(&self) {
        self.builds.shutdown().await;
        self.host.close().await;
    }
}
