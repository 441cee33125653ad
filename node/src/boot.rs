//! Starts a node's components in order; stopping is the same list upwards. Listeners open last and close first.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use atoll_api::ids::NodeId;
use atoll_certs::identity::NodeIdentity;
use atoll_certs::public_tls::{PublicCertificates, PublicName, edge_server_config};
use atoll_certs::seal::ClusterSecret;
use atoll_certs::ssh_host_key::SshHostKeySeed;
use atoll_consensus::state::cluster::{ClusterCommand, ClusterOutcome, ClusterRejection, ClusterState};
use atoll_consensus::{ClusterGroup, Compaction, Consensus, ConsensusConfig, RegionGroup, Timings};
use atoll_edge::{CookieKey, Edge, EdgeConfig, EdgeLimits};
use atoll_mesh::endpoint::{MeshConfig, MeshEndpoint};
use atoll_mesh::link::Link;
use atoll_mesh::stream::GroupName;
use atoll_runner::store::Store;
use atoll_runner::{Runner, RunnerConfig, RunnerHandle};
use atoll_ssh::{SshConfig, SshServer};
use bytes::Bytes;
use rustix::process::{Resource, getrlimit};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::activity::Activity;
use crate::admission::{Admission, Membership};
use crate::blobs::{self, BlobServer, PeerStores, Reach};
use crate::build_logs::BuildLogs;
use crate::captures::Captures;
use crate::catalogue::{Builder, Catalogue, Puller};
use crate::claims::Claims;
use crate::config::{Config, Layout};
use crate::control::catalogue::CatalogueVerbs;
use crate::control::claim::Claiming;
use crate::control::cluster::ClusterVerbs;
use crate::control::forward::Forwarder;
use crate::control::plane::ControlPlane;
use crate::control::region::RegionVerbs;
use crate::copies::Copies;
use crate::credentials::RegistryPasswords;
use crate::dialer::Dialer;
use crate::directory::MeshDirectory;
use crate::duties::Duties;
use crate::events::{publish_sandboxes, publish_snapshots};
use crate::files::private_dir;
use crate::founding;
use crate::heartbeat::Heartbeats;
use crate::images::{self, ImageBuilds};
use crate::local::LocalSandboxes;
use crate::objects::{Contexts, Issuer, ObjectStorage};
use crate::owner::Owner;
use crate::peers::{Load, Peers};
use crate::refill::Refill;
use crate::registry::{self, Registry, Uploads};
use crate::rest::{self, Component, Readiness};
use crate::runner;
use crate::runtimes;
use crate::service_manager;
use crate::streams::{Services, Streams};
use crate::trust::{Renewal, cluster_ca, signing_secret};
use crate::unbuilt::Unbuilt;
use crate::upkeep::Upkeep;

/// How long a stopping node waits for requests in flight.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// Open files kept for the log, snapshots, the mesh and the runtime.
const FILES_RESERVED: u64 = 2048;
/// Reports of the runner that wait to be proposed.
const REPORTS_QUEUED_MAX: usize = 1024;
const REPLICA_POLL: Duration = Duration::from_millis(100);

/// Runs the node until `cancel`, or until something it cannot live without has died.
pub async fn run(config: Config, cancel: CancellationToken) -> Result<()> {
    let layout = config.layout();
    private_dir(&config.data_dir).context("make the data folder private")?;
    let _lock = lock(&layout)?;
    let files_max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    std::fs::write(layout.pid_file(), std::process::id().to_string()).context("write the pid file")?;

    // Trust.
    let identity = NodeIdentity::load(&layout.identity_dir())?.with_context(|| {
        format!(
            "{} holds no node; run `atoll cluster init` or `atoll node join` first",
            config.data_dir.display()
        )
    })?;
    let secret = ClusterSecret::load(&layout.cluster_secret()).context("load the cluster secret")?;
    let secret = Arc::new(secret.context("the cluster secret is missing beside the identity")?);
    let me = identity.node_id();

    // Sandboxes first in order, since nothing can be served without what runs them. It is another process.
    let runtime = runner::remote(&config);

    // Mesh.
    let membership = Arc::new(Membership { first_peers: first_peers(&layout)?, cluster: OnceLock::new() });
    let mesh = MeshEndpoint::bind(MeshConfig::listening_on(config.listen.mesh), identity, membership.clone())
        .with_context(|| format!("listen for the mesh on {} (UDP)", config.listen.mesh))?;
    let link: Arc<dyn Link> = Arc::new(mesh.clone());

    // Truth, on threads of its own.
    let raft_threads = RaftThreads::start()?;
    let consensus = Consensus::open(consensus_config(&config, me, raft_threads.handle()), link.clone())
        .await
        .context("open the replicas")?;
    let consensus = Arc::new(consensus);
    let region_name = GroupName::Region(config.region.clone());
    consensus.host(region_name).await.context("host the region's replica")?;
    let cluster = consensus.cluster();
    let region = consensus.region(&config.region).context("the region is hosted above")?;
    let _ = membership.cluster.set(cluster.clone());
    let peers = Arc::new(Peers::new(me));
    let streams =
        Arc::new(Streams { consensus: consensus.clone(), peers: peers.clone(), services: OnceLock::new() });
    let admission = Arc::new(Admission { cluster: cluster.clone(), secret: secret.clone() });
    let tasks = TaskTracker::new();
    let (serving, handler, stop) = (mesh.clone(), streams.clone(), cancel.clone());
    tasks.spawn(async move { serving.serve(handler, admission, stop).await });
    found_if_pending(&config, &consensus).await?;
    let (ca_fingerprint, ssh_host_key, public) = {
        let identity = replica_arrives(&cluster, &cancel).await?;
        let host_key = SshHostKeySeed::unseal(&secret, &identity.sealed_ssh_host_key)
            .context("unseal the SSH host key")?;
        let ca = cluster_ca(&identity, &secret)?;
        let certificate = ca.sign_server(&public_names(&config)?, SystemTime::now())?;
        (ca.fingerprint(), host_key, PublicCertificates::new(certificate)?)
    };

    // Sandboxes.
    let (reports_out, reports) = mpsc::channel(REPORTS_QUEUED_MAX);
    let store = images::open_store(&config)?;
    let passwords = RegistryPasswords { cluster: cluster.clone(), secret: secret.clone() };
    store.set_known_credentials(Arc::new(passwords.clone()));
    let builds = ImageBuilds::open(&config, runtime.clone(), &store).await?;
    let runner = Runner::start(runner_config(&layout), runtime, images::source(&config, &store), reports_out)
        .await
        .context("start the sandbox runtime (`atoll doctor` says what this machine lacks)")?;
    let peer_stores =
        PeerStores::new(link.clone(), blobs::others(cluster.clone(), config.region.clone(), me));
    store.set_peers(Arc::new(peer_stores.clone()));
    let reach = Arc::new(Reach::new(store.clone()));
    let (base, stop) = (unpack_base(&config, &store, &runner), cancel.clone());
    tasks.spawn(async move { stop.run_until_cancelled(base).await });
    let duties = Arc::new(Duties {
        me,
        home: config.region.clone(),
        consensus: consensus.clone(),
        cluster: cluster.clone(),
        region: region.clone(),
        peers: peers.clone(),
        addresses: config.addresses(),
        capacity: config.capacity(),
        node_down_after_ms: config.timing.node_down_after_ms,
    });
    let heartbeats = Heartbeats {
        home: config.region.clone(),
        cluster: cluster.clone(),
        peers: peers.clone(),
        link: link.clone(),
        every: Duration::from_millis(config.timing.node_heartbeat_ms),
        load: load_of(runner.clone()),
    };
    tasks.spawn(heartbeats.run(cancel.clone()));

    // Control and the services that peers ask for.
    let forwarder = Arc::new(Forwarder { cluster: cluster.clone(), link: link.clone() });
    let activity = Arc::new(Activity::default());
    let sandboxes = LocalSandboxes { runner: runner.clone(), activity: activity.clone() };
    let directory = Arc::new(MeshDirectory {
        home: config.region.clone(),
        cluster: cluster.clone(),
        region: region.clone(),
        forwarder: forwarder.clone(),
        activity: activity.clone(),
        remembered: Mutex::new(HashMap::new()),
    });
    let claims = Arc::new(Claims { region: region.clone(), runner: runner.clone(), link: link.clone() });
    let dial =
        Arc::new(Dialer { directory: directory.clone(), sandboxes: sandboxes.clone(), link: link.clone() });
    let draining = CancellationToken::new();
    let control = Arc::new(ControlPlane {
        home: config.region.clone(),
        cluster: cluster.clone(),
        cluster_verbs: ClusterVerbs {
            home: config.region.clone(),
            cluster: cluster.clone(),
            region: region.clone(),
            consensus: consensus.clone(),
            forwarder: forwarder.clone(),
            ca_fingerprint,
        },
        catalogue_verbs: CatalogueVerbs {
            home: config.region.clone(),
            cluster: cluster.clone(),
            secret: secret.clone(),
        },
        region_verbs: RegionVerbs {
            region: config.region.clone(),
            group: region.clone(),
            cluster: cluster.clone(),
            secret: secret.clone(),
            peers: peers.clone(),
            dial: dial.clone(),
            draining: draining.clone(),
            default_snapshot: config.default_snapshot.clone(),
            claims: claims.clone(),
            claiming: Claiming::default(),
        },
        forwarder,
    });
    let build_logs = BuildLogs {
        cluster: cluster.clone(),
        link: link.clone(),
        builds: builds.as_ref().map(|images| images.builds.clone()),
    };
    let blobs = BlobServer::new(store.clone(), reach.clone());
    let services = Services {
        control: control.clone(),
        directory: directory.clone(),
        sandboxes,
        claims,
        blobs,
        store: store.clone(),
        build_logs: build_logs.clone(),
    };
    if streams.services.set(services).is_err() {
        bail!("services are set once");
    }
    duties.settle_in(&cancel).await?;
    let copies = Copies::new(me, region.clone(), link);
    let owner = Arc::new(Owner {
        me,
        home: config.region.clone(),
        region: region.clone(),
        runner: runner.clone(),
        activity,
        captures: Captures::new(cluster.clone(), copies.clone()),
    });
    tasks.spawn(owner.clone().follow_placements(cancel.clone()));
    tasks.spawn(owner.clone().retire_idle(cancel.clone()));
    tasks.spawn(owner.propose_reports(reports, cancel.clone()));
    tasks.spawn(duties.judge(cancel.clone()));
    let refill = Arc::new(Refill {
        home: config.region.clone(),
        cluster: cluster.clone(),
        region: region.clone(),
        peers: peers.clone(),
        secret: secret.clone(),
    });
    tasks.spawn(refill.run(cancel.clone()));
    let contexts = Contexts::new(store.clone());
    let catalogue = Arc::new(Catalogue {
        me,
        home: config.region.clone(),
        cluster: cluster.clone(),
        region: region.clone(),
        puller: Puller { store: store.clone(), passwords: passwords.clone() },
        builder: Builder {
            builds: builds.as_ref().map(|images| images.builds.clone()),
            store: store.clone(),
            contexts: contexts.clone(),
            copies: copies.clone(),
            cluster: cluster.clone(),
            passwords,
        },
    });
    tasks.spawn(catalogue.run(cancel.clone()));
    let unbuilt = Unbuilt { me, cluster: cluster.clone(), region: region.clone() };
    tasks.spawn(unbuilt.run(cancel.clone()));
    let renewal = Renewal {
        cluster: cluster.clone(),
        secret: secret.clone(),
        layout: layout.clone(),
        mesh: mesh.clone(),
        public: public.clone(),
        public_names: public_names(&config)?,
    };
    tasks.spawn(renewal.run(cancel.clone()));
    tasks.spawn(watch_members(mesh.clone(), cluster.clone(), cancel.clone()));

    // Doors.
    let ssh_config = SshConfig::new(config.listen.ssh, *ssh_host_key.reveal());
    let ssh = SshServer::start(ssh_config, directory.clone(), dial.clone())
        .await
        .with_context(|| format!("listen for SSH on {}", config.listen.ssh))?;
    let (events, _) = broadcast::channel(rest::EVENTS_WAITING_MAX);
    let (home, sandboxes, builds_seen) = (config.region.clone(), region.clone(), cluster.clone());
    tasks.spawn(publish_sandboxes(home, sandboxes, builds_seen, events.clone(), cancel.clone()));
    tasks.spawn(publish_snapshots(cluster.clone(), events.clone(), cancel.clone()));
    let serving = Arc::new(AtomicBool::new(false));
    tasks.spawn(contexts.clone().expire(cancel.clone()));
    let state = rest::RestState {
        control,
        directory: directory.clone(),
        facts: Arc::new(cluster.clone()),
        build_logs: Arc::new(build_logs),
        objects: ObjectStorage::new(Issuer::new(secret.derive("object storage")), contexts),
        readiness: readiness(serving.clone(), cluster.clone(), region.clone(), runner.clone()),
        events,
        listeners: Arc::new(Semaphore::new(rest::LISTENERS_MAX)),
        closing: cancel.clone(),
        settings: Arc::new(rest_settings(&config, me, &ssh)?),
    };
    let registry = Arc::new(Registry {
        directory: directory.clone(),
        store: store.clone(),
        peers: peer_stores.clone(),
        reach,
        uploads: Uploads::new(me),
        copies: Some(copies),
        tasks: tasks.clone(),
    });
    let upkeep = Upkeep {
        store,
        peers: peer_stores,
        registry: registry.clone(),
        cluster: cluster.clone(),
        region: region.clone(),
        builds: builds.as_ref().map(|images| images.host.clone()),
        budget_bytes: config.store_budget_bytes(),
    };
    tasks.spawn(upkeep.run(cancel.clone()));
    let api = listen_privately(&layout.api_socket())?;
    let doors = rest::router(state).merge(registry::router(registry));
    tasks.spawn(rest::serve(api, doors, cancel.clone()));
    let edge_config = EdgeConfig {
        http: config.listen.http,
        https: config.listen.https,
        preview_domain: config.preview_domain.clone(),
        api_socket: layout.api_socket(),
        cookie_key: CookieKey::new(secret.derive("edge cookies")),
        signing_secret: signing_secret(&secret),
        threads: None,
        limits: edge_limits(files_max),
    };
    let edge_tls = config.listen.https.map(|_| Arc::new(edge_server_config(public.clone())));
    let edge = Edge::start(edge_config, edge_tls, directory, dial).context("open the edge")?;
    serving.store(true, Ordering::Release);
    service_manager::notify_ready();
    info!(http = %config.listen.http, ssh = %config.listen.ssh, mesh = %config.listen.mesh, "node serves");

    let died = tokio::select! {
        _ = cancel.cancelled() => None,
        cause = consensus.stopped() => Some(cause),
    };

    // The same list upwards.
    serving.store(false, Ordering::Release);
    // Whoever waits for a sandbox is answered with what it is by now, while there is still a door to answer through.
    draining.cancel();
    edge.shutdown(DRAIN_DEADLINE).await;
    ssh.shutdown(DRAIN_DEADLINE).await;
    cancel.cancel();
    if let Some(images) = &builds {
        images.shutdown().await;
    }
    runner.shutdown().await;
    tasks.close();
    let _ = tokio::time::timeout(DRAIN_DEADLINE, tasks.wait()).await;
    consensus.shutdown().await;
    mesh.close().await;
    let _ = std::fs::remove_file(layout.pid_file());
    raft_threads.stop();
    match died {
        Some(cause) => bail!("a replica has stopped for good: {cause}"),
        None => Ok(()),
    }
}

/// Raft's own threads: busy proxies and sandboxes must not delay its ticks.
struct RaftThreads(Option<tokio::runtime::Runtime>);

impl RaftThreads {
    fn start() -> Result<RaftThreads> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("raft")
            .enable_all()
            .build()
            .context("start Raft's threads")?;
        Ok(RaftThreads(Some(runtime)))
    }

    fn handle(&self) -> tokio::runtime::Handle {
        self.0.as_ref().expect("present until stopped").handle().clone()
    }

    fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for RaftThreads {
    /// A runtime may not be dropped in place within another one, as an early return would do.
    fn drop(&mut self) {
        self.end();
    }
}

/// One process at a time: a second one would corrupt the log.
fn lock(layout: &Layout) -> Result<std::fs::File> {
    let path = layout.lock_file();
    let file = std::fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    rustix::fs::flock(file.as_fd(), rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("{} is in use by another node process", path.display()))?;
    Ok(file)
}

/// A visitor costs up to four descriptors: its own connection, both ends of one to the API, one into a sandbox.
fn edge_limits(files_max: u64) -> EdgeLimits {
    let limits = EdgeLimits::default();
    let affordable = usize::try_from(files_max.saturating_sub(FILES_RESERVED) / 4).unwrap_or(usize::MAX);
    EdgeLimits { connections_max: limits.connections_max.min(affordable.max(64)), ..limits }
}

fn first_peers(layout: &Layout) -> Result<BTreeMap<NodeId, String>> {
    match std::fs::read(layout.first_peers()) {
        Ok(bytes) => serde_json::from_slice(&bytes).context("read the first peers"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).context("read the first peers"),
    }
}

fn consensus_config(config: &Config, node_id: NodeId, runtime: tokio::runtime::Handle) -> ConsensusConfig {
    let timing = &config.timing;
    ConsensusConfig {
        node_id,
        data_dir: config.layout().consensus_dir(),
        timings: Timings {
            heartbeat_ms: timing.raft_heartbeat_ms,
            election_min_ms: timing.election_min_ms,
            election_max_ms: timing.election_max_ms,
            no_leader_after_ms: timing.no_leader_ms,
        },
        compaction: Compaction::default(),
        runtime,
    }
}

async fn found_if_pending(config: &Config, consensus: &Consensus) -> Result<()> {
    let Some(commands) = founding::pending(config)? else { return Ok(()) };
    consensus.found(GroupName::Cluster).await.context("found the cluster's group")?;
    for command in commands {
        match consensus.cluster().propose(command.clone()).await.context("propose the founding commands")? {
            ClusterOutcome::Applied => {}
            // A crash between the proposal and the removal of the file: it was said before.
            ClusterOutcome::Rejected(ClusterRejection::AlreadyFounded)
                if matches!(command, ClusterCommand::Found { .. }) => {}
            ClusterOutcome::Rejected(rejection) => bail!("founding was refused: {rejection}"),
        }
    }
    founding::done(config)
}

async fn replica_arrives(
    cluster: &ClusterGroup,
    cancel: &CancellationToken,
) -> Result<atoll_consensus::state::cluster::ClusterIdentity> {
    let mut changes = cluster.changes();
    loop {
        changes.borrow_and_update();
        if let Some(identity) = cluster.read(|state| state.identity.clone()) {
            return Ok(identity);
        }
        tokio::select! {
            _ = cancel.cancelled() => bail!("stopped while waiting for the cluster's state"),
            _ = tokio::time::timeout(REPLICA_POLL, changes.changed()) => {}
        }
    }
}

/// A removed node's live connections end at once, not when they happen to break; a node that has moved is dialled anew.
async fn watch_members(mesh: MeshEndpoint, cluster: ClusterGroup, cancel: CancellationToken) {
    let members = |state: &ClusterState| -> (BTreeMap<NodeId, String>, usize) {
        let addresses = state.nodes.iter().map(|(node_id, node)| (*node_id, node.addresses.mesh.clone()));
        (addresses.collect(), state.removed_nodes.len())
    };
    let mut changes = cluster.changes();
    let mut known = cluster.read(members);
    loop {
        changes.borrow_and_update();
        let now = cluster.read(members);
        if now != known {
            info!(nodes = now.0.len(), removed = now.1, "members have changed, looking over the connections");
            known = now;
            mesh.recheck();
        }
        tokio::select! {
            _ = cancel.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

fn public_names(config: &Config) -> Result<Vec<PublicName>> {
    let host = |url: &str| -> Option<String> {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        Some(rest.split('/').next()?.rsplit_once(':').map_or(rest, |(host, _)| host).to_owned())
    };
    let addresses = config.addresses();
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        config.preview_domain.clone(),
        format!("*.{}", config.preview_domain),
    ];
    names.extend(host(&addresses.http));
    names.extend(addresses.https.as_deref().and_then(host));
    names.sort();
    names.dedup();
    names.iter().map(|name| Ok(name.parse()?)).collect()
}

fn runner_config(layout: &Layout) -> RunnerConfig {
    RunnerConfig::new(layout.runner_dir(), Bytes::from_static(runtimes::DAEMON))
}

fn unpack_base(
    config: &Config,
    store: &Store,
    runner: &RunnerHandle,
) -> impl Future<Output = ()> + Send + 'static {
    let (config, store, runner) = (config.clone(), store.clone(), runner.clone());
    async move { images::unpack_base(&config, &store, &runner).await }
}

fn load_of(runner: RunnerHandle) -> Box<dyn Fn() -> Load + Send + Sync> {
    Box::new(move || {
        let counts = runner.status().counts;
        Load {
            creates_in_flight: counts.operations_waiting as u32 + counts.operations_running as u32,
            cpu_busy_permille: 0,
        }
    })
}

fn rest_settings(config: &Config, node_id: NodeId, ssh: &atoll_ssh::SshHandle) -> Result<rest::RestSettings> {
    let addresses = config.addresses();
    let (ssh_host, ssh_port) =
        addresses.ssh.rsplit_once(':').map_or((addresses.ssh.as_str(), 22), |(host, port)| {
            (host, port.parse().unwrap_or(config.listen.ssh.port()))
        });
    Ok(rest::RestSettings {
        node_id,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        preview_domain: config.preview_domain.clone(),
        default_snapshot: config.default_snapshot.clone(),
        http_base: addresses.http.parse().context("advertise.http")?,
        https_base: addresses.https.as_deref().map(str::parse).transpose().context("advertise.https")?,
        ssh_host: ssh_host.to_owned(),
        ssh_port,
        ssh_host_keys: vec![ssh.host_key_openssh()],
    })
}

/// Only this node's own edge may come this way: what it says of the client is believed.
fn listen_privately(path: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the old {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .context("make the API socket private")?;
    Ok(listener)
}

fn readiness(
    serving: Arc<AtomicBool>,
    cluster: ClusterGroup,
    region: RegionGroup,
    runner: RunnerHandle,
) -> Arc<dyn Fn() -> Readiness + Send + Sync> {
    let down = |name: &str, down: Option<String>| Component { name: name.to_owned(), down };
    Arc::new(move || {
        let no_leader = |leader: Option<NodeId>| leader.is_none().then(|| "no leader is known".to_owned());
        let starting = (!serving.load(Ordering::Acquire)).then(|| "starting or stopping".to_owned());
        Readiness {
            components: vec![
                down("node", starting),
                down("cluster", no_leader(cluster.leader())),
                down("region", no_leader(region.leader())),
                down("runtime", runner.status().host_problem),
            ],
        }
    })
}
