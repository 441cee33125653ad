//! The runtime that this build runs sandboxes with, and the daemon it puts into each.

use std::sync::Arc;

use anyhow::{Context, Result};
use atoll_api::ids::NodeId;
use atoll_runner::{DockerConfig, DockerRuntime};

/// The in-sandbox daemon: a static binary, built by `build.rs`.
pub const DAEMON: &[u8] = include_bytes!(env!("ATOLL_DAEMON_BINARY"));

/// Talks to nobody yet. `image` is what `doctor` and the start-up check want to see.
pub fn docker(node_id: NodeId, image: &str) -> Result<Arc<DockerRuntime>> {
    let config = DockerConfig { images: vec![image.to_owned()], ..DockerConfig::for_node(node_id) };
    Ok(Arc::new(DockerRuntime::new(config).context("set up the docker runtime")?))
}
