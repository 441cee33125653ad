//! The runtimes of this build, and the daemon that is put into each sandbox. Only the runner's process opens one.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use atoll_api::ids::NodeId;
use atoll_runner::embedded::network::NetworkConfig;
use atoll_runner::embedded::{EmbeddedConfig, EmbeddedRuntime};
use atoll_runner::{DockerConfig, DockerRuntime, Runtime};
use bytes::Bytes;

use crate::config::{Config, RuntimeKind};

/// The in-sandbox daemon: a static binary, built by `build.rs`.
pub const DAEMON: &[u8] = include_bytes!(env!("ATOLL_DAEMON_BINARY"));
/// How this program is told to be the embedded runtime's zygote.
pub const ZYGOTE: &str = "zygote";

/// Blocks for some milliseconds. Makes nothing that others could see but the runtime's own folder and control groups.
pub fn open(config: &Config, node_id: NodeId) -> Result<Arc<dyn Runtime>> {
    let state_dir = config.state_dir().join("embedded");
    open_in(state_dir, config.layers_dir(), config, node_id)
}

/// As [`open`], with folders of the caller's.
pub fn open_in(
    state_dir: PathBuf,
    layers_dir: PathBuf,
    config: &Config,
    node_id: NodeId,
) -> Result<Arc<dyn Runtime>> {
    let runtime = &config.runtime;
    match runtime.kind {
        RuntimeKind::Docker => {
            let config = DockerConfig {
                images: vec![runtime.image.clone()],
                pids_max: runtime.pids_max,
                ..DockerConfig::for_node(node_id)
            };
            Ok(Arc::new(DockerRuntime::new(config).context("set up the docker runtime")?))
        }
        RuntimeKind::Embedded => {
            let program = std::env::current_exe().context("find this program")?;
            let range = config.sandbox_network()?;
            let embedded = EmbeddedConfig {
                node_id,
                state_dir,
                layers_dir,
                zygote: vec![program.into_os_string(), OsString::from(ZYGOTE)],
                daemon_binary: Bytes::from_static(DAEMON),
                uid_base: runtime.uid_base,
                network: NetworkConfig { range, ..NetworkConfig::new(node_id) },
                slots_max: config.slots_max(),
                pids_max: runtime.pids_max,
                attach_layers: false,
                parked: runtime.parked,
                layers_budget_bytes: u64::from(runtime.layers_budget_gib) << 30,
            };
            Ok(Arc::new(EmbeddedRuntime::open(embedded)?))
        }
    }
}
