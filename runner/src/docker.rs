//! Sandboxes as Docker containers, through the engine's Unix socket. The only module that knows bollard.
//!
//! What keeps them apart is listed where it is decided: `docker/container.rs` (capabilities, limits, masks),
//! `docker/firewall.rs` (whom they can't reach), `docker/namespace.rs` (how we reach them).

mod commit;
mod container;
mod egress;
mod engine;
mod firewall;
mod host;
mod images;
pub(crate) mod namespace;

use std::collections::HashMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use atoll_api::ids::{Generation, NodeId};
use atoll_api::sandbox::{Egress, SandboxSpec};
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum, NetworkCreateRequest};
use bollard::query_parameters as query;
use futures_util::{StreamExt, stream};
use tokio::net::TcpStream;

use crate::docker::engine::{Engine, RequestError};
use crate::docker::firewall::Firewall;
use crate::docker::host::HostFacts;
use crate::docker::namespace::{Live, Namespaces};
use crate::image::{Digest, Image, Kept};
use crate::mount_dir::MountDir;
use crate::runtime::{Exit, Finding, Found, FoundState, Incarnation, LayerTar, Runtime, RuntimeError};

/// Containers that a teardown removes at once.
const TEARDOWN_CONCURRENCY: usize = 8;
/// For the engine to note that a process has ended, after the kernel has told us.
const EXIT_NOTICE_DEADLINE: Duration = Duration::from_secs(10);
/// For somebody else's removal of the same container to end.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(20);

/// How often images of the node's store that no container is made of are looked for in the engine, and how long each may be unused.
const COLLECT_EVERY: Duration = Duration::from_secs(30 * 60);
const KEEP_UNUSED: Duration = Duration::from_secs(24 * 3600);
const IMAGE_REMOVAL_DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const LABEL_NODE: &str = "atoll.node";
pub(crate) const LABEL_SANDBOX: &str = "atoll.sandbox";
pub(crate) const LABEL_GENERATION: &str = "atoll.generation";

#[derive(Debug, Clone)]
pub struct DockerConfig {
    pub node_id: NodeId,
    /// The engine's Unix socket.
    pub socket: PathBuf,
    /// Name of the node's own Docker network.
    pub network: String,
    /// The network's bridge on the host: begins with [`BRIDGE_PREFIX`], at most 15 characters.
    pub bridge: String,
    /// Nameservers of sandboxes; empty: the host's.
    pub nameservers: Vec<IpAddr>,
    /// Processes and threads of one sandbox. The kernel refuses to fork beyond.
    pub pids_max: u32,
    /// [`Runtime::check`] warns when the engine's disk has less room than this.
    pub disk_free_bytes_min: u64,
    /// Images that [`Runtime::check`] wants to see on the node.
    pub images: Vec<String>,
}

/// By this prefix sandboxes of all nodes of one host are kept apart.
pub const BRIDGE_PREFIX: &str = "atl-";
const BRIDGE_NAME_BYTES_MAX: usize = 15;

impl DockerConfig {
    /// Names derived from the node, so that several nodes can share a host.
    pub fn for_node(node_id: NodeId) -> DockerConfig {
        let node = node_id.to_string();
        DockerConfig {
            node_id,
            socket: PathBuf::from("/var/run/docker.sock"),
            network: format!("atoll-{node}"),
            bridge: format!("{BRIDGE_PREFIX}{}", &node[..11]),
            nameservers: Vec::new(),
            pids_max: 2048,
            disk_free_bytes_min: 2 << 30,
            images: Vec::new(),
        }
    }

    /// `atoll-<node, 8 digits>-<sandbox>-g<generation>`
    fn container_name(&self, incarnation: Incarnation) -> String {
        let node = self.node_id.to_string();
        format!("atoll-{}-{}-g{}", &node[..8], incarnation.sandbox_id, incarnation.generation)
    }
}

pub struct DockerRuntime {
    config: DockerConfig,
    engine: Engine,
    firewall: Firewall,
    namespaces: Namespaces,
    /// Processes and network namespaces of running sandboxes, opened once and then held.
    live: Mutex<HashMap<Incarnation, Arc<Live>>>,
    /// What the engine calls images of the node's store, and when that was last asked.
    names: Mutex<HashMap<Digest, (String, Instant)>>,
    /// One image at a time: each of those who want one finds it when the first has brought it.
    loading: tokio::sync::Mutex<()>,
    collected: Mutex<Instant>,
    facts: Mutex<Option<HostFacts>>,
    /// Network and rules are known to be in place. Nothing starts while they are not.
    walls_up: AtomicBool,
    /// One preparation at a time.
    preparing: tokio::sync::Mutex<()>,
}

impl DockerRuntime {
    /// Talks to nobody yet. Errors: [`RuntimeError::Host`] for impossible names.
    pub fn new(config: DockerConfig) -> Result<DockerRuntime, RuntimeError> {
        let fits = config.bridge.starts_with(BRIDGE_PREFIX) && config.bridge.len() <= BRIDGE_NAME_BYTES_MAX;
        let clean = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !fits || !clean(&config.bridge) || !clean(&config.network) {
            return Err(RuntimeError::Host(format!(
                "the bridge name {} must begin with {BRIDGE_PREFIX} and have at most {BRIDGE_NAME_BYTES_MAX} \
                 letters, digits and dashes, and so the network name {}",
                config.bridge, config.network
            )));
        }
        let namespaces = Namespaces::spawn()
            .map_err(|error| RuntimeError::Host(format!("cannot spawn the dialling threads: {error}")))?;
        Ok(DockerRuntime {
            engine: Engine::new(config.socket.clone()),
            firewall: Firewall::new(&config.network, &config.bridge),
            namespaces,
            live: Mutex::default(),
            names: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            collected: Mutex::new(Instant::now()),
            facts: Mutex::default(),
            walls_up: AtomicBool::new(false),
            preparing: tokio::sync::Mutex::new(()),
            config,
        })
    }

    async fn try_prepare(&self) -> Result<(), RuntimeError> {
        let facts = HostFacts::read(&self.engine).await?;
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = Some(facts);
        self.ensure_network().await?;
        host::require_bridge_filtering()?;
        self.firewall.ensure().await
    }

    async fn ensure_network(&self) -> Result<(), RuntimeError> {
        let name = &self.config.network;
        let inspected = self
            .engine
            .request(|docker| async move {
                docker.inspect_network(name, None::<query::InspectNetworkOptions>).await
            })
            .await;
        let options = HashMap::from([
            ("com.docker.network.bridge.name".to_owned(), self.config.bridge.clone()),
            ("com.docker.network.bridge.enable_icc".to_owned(), "false".to_owned()),
        ]);
        match inspected {
            Ok(network) => {
                let labels = network.labels.unwrap_or_default();
                let found = network.options.unwrap_or_default();
                let ours = labels.get(LABEL_NODE) == Some(&self.config.node_id.to_string())
                    && options.iter().all(|(key, value)| found.get(key) == Some(value))
                    && network.enable_ipv6 != Some(true);
                ours.then_some(()).ok_or_else(|| {
                    RuntimeError::Host(format!(
                        "a Docker network named {name} exists and is not this node's: remove it with \
                         `docker network rm {name}`"
                    ))
                })
            }
            Err(RequestError::NotFound(_)) => {
                let request = &NetworkCreateRequest {
                    name: name.clone(),
                    driver: Some("bridge".to_owned()),
                    // The rules that keep sandboxes in are IPv4 rules, so there is no other protocol.
                    enable_ipv6: Some(false),
                    options: Some(options),
                    labels: Some(HashMap::from([(LABEL_NODE.to_owned(), self.config.node_id.to_string())])),
                    ..NetworkCreateRequest::default()
                };
                self.engine
                    .request(|docker| async move { docker.create_network(request.clone()).await })
                    .await
                    .map_err(|error| error.on_host("make the network of this node's sandboxes"))?;
                Ok(())
            }
            Err(error) => Err(error.on_host("look for the network of this node's sandboxes")),
        }
    }

    /// The sandbox's process and namespace. Asks the engine once per run.
    async fn live(&self, incarnation: Incarnation) -> Result<Arc<Live>, RuntimeError> {
        if let Some(live) = self.live_map().get(&incarnation) {
            return Ok(live.clone());
        }
        let name = &self.config.container_name(incarnation);
        let inspected = self
            .engine
            .request(|docker| async move {
                docker.inspect_container(name, None::<query::InspectContainerOptions>).await
            })
            .await
            .map_err(|error| error.on_sandbox("inspect"))?;
        let state = inspected.state.unwrap_or_default();
        let pid = state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
        let (Some(true), Some(pid), Some(id)) = (state.running, pid, inspected.id) else {
            return Err(RuntimeError::NotRunning);
        };
        let live = Arc::new(Live::open(pid, &id)?);
        self.live_map().insert(incarnation, live.clone());
        Ok(live)
    }

    fn live_map(&self) -> std::sync::MutexGuard<'_, HashMap<Incarnation, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Images that nobody has asked for lately.
    async fn collect_images(&self) {
        {
            let mut collected = self.collected.lock().unwrap_or_else(PoisonError::into_inner);
            if collected.elapsed() < COLLECT_EVERY {
                return;
            }
            *collected = Instant::now();
        }
        self.names().retain(|_, (_, asked)| asked.elapsed() < KEEP_UNUSED);
        let wanted = self.names().values().map(|(name, _)| name.clone()).collect();
        images::collect(&self.engine, &wanted).await;
    }

    fn names(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, (String, Instant)>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, incarnation: Incarnation) {
        self.live_map().remove(&incarnation);
    }

    /// How a container that runs no more has ended.
    async fn exit(&self, incarnation: Incarnation) -> Result<Exit, RuntimeError> {
        let name = &self.config.container_name(incarnation);
        // Answers at once when the engine knows already; it may be a moment behind the kernel.
        let options = query::WaitContainerOptionsBuilder::default().condition("not-running").build();
        let waited = async {
            let docker = self.engine.client().await?;
            let answer = docker.wait_container(name, Some(options)).next().await;
            Ok::<_, RuntimeError>(answer)
        };
        tokio::time::timeout(EXIT_NOTICE_DEADLINE, waited).await.map_err(|_| {
            RuntimeError::TimedOut("the engine does not notice that a sandbox ended".into())
        })??;
        let inspected = self
            .engine
            .request(|docker| async move {
                docker.inspect_container(name, None::<query::InspectContainerOptions>).await
            })
            .await
            .map_err(|error| error.on_sandbox("inspect"))?;
        let state = inspected.state.unwrap_or_default();
        // The engine's flag is set when any process of the sandbox was killed for memory, also long ago.
        let killed = state.exit_code == Some(137);
        Ok(Exit { code: state.exit_code, out_of_memory: killed && state.oom_killed == Some(true) })
    }

    async fn list_ours(&self) -> Result<Vec<ContainerSummary>, RuntimeError> {
        let label = format!("{LABEL_NODE}={}", self.config.node_id);
        let options = &query::ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&HashMap::from([("label", vec![label.as_str()])]))
            .build();
        self.engine
            .request(|docker| async move { docker.list_containers(Some(options.clone())).await })
            .await
            .map_err(|error| error.on_host("list containers"))
    }

    async fn remove_by_name(&self, name: &str) -> Result<(), RuntimeError> {
        let options = &query::RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let removed = self
            .engine
            .request(|docker| async move { docker.remove_container(name, Some(options.clone())).await })
            .await;
        match removed {
            Ok(()) | Err(RequestError::NotFound(_)) => Ok(()),
            Err(RequestError::Conflict(_)) => self.await_removal(name).await,
            Err(error) => Err(error.on_sandbox("remove")),
        }
    }

    /// Somebody removes it already.
    async fn await_removal(&self, name: &str) -> Result<(), RuntimeError> {
        let docker = self.engine.client().await?;
        let options = query::WaitContainerOptionsBuilder::default().condition("removed").build();
        let gone = async {
            // Its items do not matter, nor that it answers "no such container": it ends when the container is gone.
            docker.wait_container(name, Some(options)).for_each(async |_| ()).await;
        };
        tokio::time::timeout(REMOVAL_DEADLINE, gone)
            .await
            .map_err(|_| RuntimeError::TimedOut(format!("the removal of container {name}")))
    }

    async fn remove_network(&self) -> Result<(), RuntimeError> {
        let name = &self.config.network;
        match self.engine.request(|docker| async move { docker.remove_network(name).await }).await {
            Ok(()) | Err(RequestError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.on_host("remove the network of this node's sandboxes")),
        }
    }
}

#[async_trait]
impl Runtime for DockerRuntime {
    async fn prepare(&self) -> Result<(), RuntimeError> {
        let _one = self.preparing.lock().await;
        let prepared = self.try_prepare().await;
        self.walls_up.store(prepared.is_ok(), Ordering::SeqCst);
        if prepared.is_ok() {
            self.collect_images().await;
        }
        prepared
    }

    async fn missing_blobs(&self, image: &Image) -> Result<Vec<Digest>, RuntimeError> {
        let found = images::find(&self.engine, image).await?;
        let Some(id) = image.id else { return Ok(Vec::new()) };
        Ok(match found {
            Some(name) => {
                self.names().insert(id, (name, Instant::now()));
                Vec::new()
            }
            None => {
                self.names().remove(&id);
                images::blobs(image)
            }
        })
    }

    async fn import(&self, image: &Image, blobs: Vec<(Digest, File)>) -> Result<(), RuntimeError> {
        let _one = self.loading.lock().await;
        if images::find(&self.engine, image).await?.is_some() {
            return Ok(());
        }
        images::load(&self.engine, image, blobs).await
    }

    async fn create(
        &self,
        incarnation: Incarnation,
        spec: &SandboxSpec,
        image: &Image,
        mount_dir: &MountDir,
    ) -> Result<(), RuntimeError> {
        egress::refuse_lists(&spec.egress)?;
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let facts = facts.ok_or_else(|| RuntimeError::Host("the Docker engine was not prepared".into()))?;
        let known = image.id.and_then(|id| Some(self.names().get(&id)?.0.clone()));
        let image = known.unwrap_or_else(|| image.reference.clone());
        let body = &container::create_body(&self.config, &facts, incarnation, spec, image, mount_dir.path());
        let name = &self.config.container_name(incarnation);
        let options = &query::CreateContainerOptionsBuilder::default().name(name).build();
        let created = self
            .engine
            .request(
                |docker| async move { docker.create_container(Some(options.clone()), body.clone()).await },
            )
            .await;
        match created {
            Ok(_) => Ok(()),
            // The name says node, sandbox and generation: it is an earlier try of ours.
            Err(RequestError::Conflict(_)) => Ok(()),
            Err(RequestError::NotFound(message)) if message.to_lowercase().contains("image") => {
                Err(RuntimeError::Host(format!(
                    "the image {} is not on this node: build or load it there (`docker load`, \
                     or deploy/base/build.sh while Docker runs)",
                    spec.image
                )))
            }
            // The engine found something in the specification that it cannot do.
            Err(RequestError::Bad(message)) => Err(RuntimeError::Spec(message)),
            Err(error) => Err(error.on_sandbox("create")),
        }
    }

    async fn start(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        if !self.walls_up.load(Ordering::SeqCst) {
            self.prepare().await?;
        }
        self.forget(incarnation);
        let name = &self.config.container_name(incarnation);
        self.engine
            .request(|docker| async move {
                docker.start_container(name, None::<query::StartContainerOptions>).await
            })
            .await
            .map_err(|error| error.on_sandbox("start"))
    }

    async fn pause(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        let name = &self.config.container_name(incarnation);
        match self.engine.request(|docker| async move { docker.pause_container(name).await }).await {
            Ok(()) => Ok(()),
            Err(RequestError::Conflict(message)) if message.contains("already paused") => Ok(()),
            Err(error) => Err(error.on_sandbox("pause")),
        }
    }

    async fn resume(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        let name = &self.config.container_name(incarnation);
        match self.engine.request(|docker| async move { docker.unpause_container(name).await }).await {
            Ok(()) => Ok(()),
            Err(RequestError::Conflict(message)) if message.contains("not paused") => Ok(()),
            Err(error) => Err(error.on_sandbox("resume")),
        }
    }

    async fn commit(&self, _incarnation: Incarnation) -> Result<LayerTar, RuntimeError> {
        Err(RuntimeError::Spec("the engine keeps its images itself".into()))
    }

    async fn base(&self, _incarnation: Incarnation) -> Result<Image, RuntimeError> {
        Err(RuntimeError::Spec("the engine keeps its images itself".into()))
    }

    async fn commit_image(&self, incarnation: Incarnation, name: &str) -> Result<Option<Kept>, RuntimeError> {
        commit::commit(&self.engine, &self.config.container_name(incarnation), name).await.map(Some)
    }

    async fn set_egress(&self, incarnation: Incarnation, egress: &Egress) -> Result<(), RuntimeError> {
        let name = self.config.container_name(incarnation);
        egress::set(&self.engine, &self.config.network, &name, egress).await
    }

    async fn stop(&self, incarnation: Incarnation, grace_ms: u64) -> Result<(), RuntimeError> {
        let name = &self.config.container_name(incarnation);
        let grace_s = i32::try_from(grace_ms.div_ceil(1000)).unwrap_or(i32::MAX);
        let options = &query::StopContainerOptionsBuilder::default().t(grace_s).build();
        let stopped = self
            .engine
            .request(|docker| async move { docker.stop_container(name, Some(options.clone())).await })
            .await
            .map_err(|error| error.on_sandbox("stop"));
        if stopped.is_ok() {
            self.forget(incarnation);
        }
        stopped
    }

    async fn remove(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        self.forget(incarnation);
        self.remove_by_name(&self.config.container_name(incarnation)).await
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        Ok(self.list_ours().await?.iter().filter_map(found).collect())
    }

    async fn wait(&self, incarnation: Incarnation) -> Result<Exit, RuntimeError> {
        match self.live(incarnation).await {
            Ok(live) => {
                live.ended().await?;
                let mut map = self.live_map();
                // A later run of it may be there already.
                if map.get(&incarnation).is_some_and(|current| Arc::ptr_eq(current, &live)) {
                    map.remove(&incarnation);
                }
            }
            Err(RuntimeError::NotRunning) => {}
            Err(error) => return Err(error),
        }
        self.exit(incarnation).await
    }

    async fn dial(&self, incarnation: Incarnation, port: u16) -> Result<TcpStream, RuntimeError> {
        let live = self.live(incarnation).await?;
        self.namespaces.connect(&live, port).await
    }

    async fn check(&self) -> Result<Vec<Finding>, RuntimeError> {
        host::check(&self.config, &self.engine, &self.firewall).await
    }

    async fn teardown(&self) -> Result<(), RuntimeError> {
        self.walls_up.store(false, Ordering::SeqCst);
        let containers = async {
            let names = self.list_ours().await?.into_iter().filter_map(|container| container.id);
            let removals: Vec<_> = stream::iter(names)
                .map(|id| async move { self.remove_by_name(&id).await })
                .buffer_unordered(TEARDOWN_CONCURRENCY)
                .collect()
                .await;
            removals.into_iter().collect::<Result<(), _>>()?;
            self.remove_network().await
        };
        let removed = containers.await;
        self.live_map().clear();
        // While a sandbox is left, so are its walls.
        removed?;
        self.firewall.remove().await?;
        let node_id = self.config.node_id.to_string();
        let images = images::remove_ours(&self.engine, &node_id);
        if tokio::time::timeout(IMAGE_REMOVAL_DEADLINE, images).await.is_err() {
            tracing::warn!("images stay in Docker's engine: it takes too long to remove them");
        }
        Ok(())
    }
}

fn found(container: &ContainerSummary) -> Option<Found> {
    let labels = container.labels.as_ref()?;
    let sandbox_id = labels.get(LABEL_SANDBOX)?.parse().ok()?;
    let generation = Generation(labels.get(LABEL_GENERATION)?.parse().ok()?);
    use ContainerSummaryStateEnum as State;
    let state = match container.state? {
        State::RUNNING | State::RESTARTING => FoundState::Running,
        State::PAUSED => FoundState::Paused,
        _ => FoundState::Stopped { exit_code: exit_code(container.status.as_deref()?) },
    };
    Some(Found { incarnation: Incarnation { sandbox_id, generation }, state })
}

/// From `Exited (137) 2 minutes ago`.
fn exit_code(status: &str) -> Option<i64> {
    status.strip_prefix("Exited (")?.split_once(')')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_read_from_the_status_line() {
        assert_eq!(exit_code("Exited (137) 2 minutes ago"), Some(137));
        assert_eq!(exit_code("Created"), None);
        assert_eq!(exit_code("Exited (x"), None);
    }

    #[test]
    fn names_of_a_node_fit_the_kernels_limit() {
        let config = DockerConfig::for_node(NodeId(u64::MAX));

        assert_eq!(config.bridge.len(), BRIDGE_NAME_BYTES_MAX);
        assert!(DockerRuntime::new(config).is_ok());
    }

    #[test]
    fn a_bridge_that_other_nodes_rules_would_not_know_is_refused() {
        let config = DockerConfig { bridge: "br0".into(), ..DockerConfig::for_node(NodeId(1)) };

        assert!(matches!(DockerRuntime::new(config), Err(RuntimeError::Host(_))));
    }
}
