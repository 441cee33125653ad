//! The runtimes of this build, and the daemon that is put into each sandbox. Only the runner's process opens one.

use std::sync::Arc;

use anyhow::{Context, Result};
use atoll_api::ids::NodeId;
use atoll_runner::{DockerConfig, DockerRuntime, Runtime};

use crate::config::{Config, RuntimeConfig, RuntimeKind};

/// The in-sandbox daemon: a static binary, built by `build.rs`.
pub const DAEMON: &[u8] = include_bytes!(env!("ATOLL_DAEMON_BINARY"));

/// Talks to nobody yet.
pub fn open(config: &Config, node_id: NodeId) -> Result<Arc<dyn Runtime>> {
    open_kind(&config.runtime, node_id)
}

/// Without a node: for checks.
pub fn open_kind(config: &RuntimeConfig, node_id: NodeId) -> Result<Arc<dyn Runtime>> {
    match config.kind {
        RuntimeKind::Docker => {
            let images = vec![config.image.clone()];
            let config = DockerConfig { images, ..DockerConfig::for_node(node_id) };
            Ok(Arc::new(DockerRuntime::new(config).context("set up the docker runtime")?))
        }
    }
}
