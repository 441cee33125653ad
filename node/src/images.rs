//! This node's images: its store of blobs, and what of it the runtime in use needs.

use std::sync::Arc;

use anyhow::{Context, Result};
use atoll_runner::store::{Registries, Store, StoreConfig};
use atoll_runner::{EngineImages, ImageSource, RunnerHandle};
use tracing::{info, warn};

use crate::config::{Config, RuntimeKind};

/// Blocks on the disk for a moment. As the node's user: whatever is in the store is the node's and never the runner's.
pub fn open_store(config: &Config) -> Result<Store> {
    let dir = config.layout().store_dir();
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let store = StoreConfig { dir, seeds: config.runtime.seeds.clone(), registries: Registries::default() };
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
        RuntimeKind::Docker => Arc::new(EngineImages),
    }
}

/// Where snapshots' images are pulled into. Docker's engine would not look there.
pub fn pulled_into(config: &Config, store: &Store) -> Option<Store> {
    match config.runtime.kind {
        RuntimeKind::Embedded => Some(store.clone()),
        RuntimeKind::Docker => None,
    }
}
