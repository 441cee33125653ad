//! The one QUIC endpoint of a node: it dials members, admits members, and lets strangers do nothing but join.
//!
//! Connections are driven on the runtime that calls [`MeshEndpoint::bind`]; handlers run on the one that calls
//! [`MeshEndpoint::serve`]. So Raft's traffic can be kept apart from what busy sandboxes do to a runtime.
//!
//!   open(peer, header) ──▶ dialer: one connection per (peer, class), shared, redialed ──▶ admitted by the peer ──▶ stream
//!   accepted connection ──▶ certificate? member? ──▶ welcome ──▶ stream ──header──▶ handler, a task for each

mod accept;
mod dial;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::ids::NodeId;
use atoll_certs::identity::NodeIdentity;
use atoll_certs::tls::{self, TlsError};
use quinn::crypto::rustls::QuicServerConfig;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::accept::Accepted;
use self::dial::Dialer;
use crate::dial::ByteStream;
use crate::join::JoinHandler;
use crate::link::{Link, LinkError, StreamHandler};
use crate::memory;
use crate::quic::bytes::QuicStream;
use crate::quic::transport::{self, Role};
use crate::quic::{ALPN_BULK, ALPN_JOIN, ALPN_RAFT, CloseCode, link_error};
use crate::stream::{StreamClass, StreamHeader, write_header};

/// How many streams to this node itself may wait for [`MeshEndpoint::serve`] to take them.
const LOCAL_STREAMS_WAITING_MAX: usize = 64;
/// What a stream to this node itself holds unread, each way.
const LOCAL_STREAM_BYTES: usize = 256 * 1024;
/// How long a node that stops waits for its peers to hear of it.
const FAREWELL_DEADLINE: Duration = Duration::from_millis(500);

#[derive(Debug, Clone)]
pub struct MeshConfig {
    /// UDP. Port 0 takes any; see [`MeshEndpoint::local_address`].
    pub listen: SocketAddr,
    /// After this much silence a connection is dead and its streams break. Default 5 s.
    pub idle_timeout: Duration,
    /// Quiet connections say something this often; well below `idle_timeout`. Default 1 s.
    pub keep_alive_interval: Duration,
    /// How many streams a peer may have open on one of its connections. One more waits. Default 16,384.
    pub streams_per_connection_max: u32,
    /// Off for network cards and virtual machines that answer EIO to it. Default on.
    pub segmentation_offload: SegmentationOffload,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentationOffload {
    On,
    Off,
}

impl MeshConfig {
    pub fn listening_on(listen: SocketAddr) -> MeshConfig {
        MeshConfig {
            listen,
            idle_timeout: Duration::from_secs(5),
            keep_alive_interval: Duration::from_secs(1),
            streams_per_connection_max: 16_384,
            segmentation_offload: SegmentationOffload::On,
        }
    }
}

/// Who belongs to the cluster, as this node knows it now. Asked often; answers from memory, and asks the mesh nothing.
pub trait Members: Send + Sync + 'static {
    /// `host:port` of the peer's mesh endpoint.
    fn address(&self, peer: NodeId) -> Option<String>;
    /// Asked for every connection, when it is made and again on [`MeshEndpoint::recheck`].
    fn admits(&self, peer: NodeId) -> bool;
}

/// A live connection, for status pages and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConnection {
    pub peer: NodeId,
    pub class: StreamClass,
    pub direction: Direction,
    pub address: SocketAddr,
    pub round_trip: Duration,
}

/// Which side made the connection, and so opens its streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Dialed,
    Accepted,
}

/// The operator: the endpoint can't be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on udp {listen}: {source}")]
    Socket { listen: SocketAddr, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A cheap handle; clones are the same endpoint.
#[derive(Clone)]
pub struct MeshEndpoint {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    config: MeshConfig,
    endpoint: quinn::Endpoint,
    local: NodeId,
    identity: RwLock<NodeIdentity>,
    members: Arc<dyn Members>,
    /// The runtime that drives connections.
    drivers: Handle,
    dialer: Dialer,
    accepted: Accepted,
    /// As many streams to this node itself as a peer may have on one connection.
    local_places: Arc<Semaphore>,
    local_streams: mpsc::Sender<LocalStream>,
    local_streams_inbox: Mutex<Option<mpsc::Receiver<LocalStream>>>,
}

struct LocalStream {
    header: StreamHeader,
    stream: ByteStream,
    /// Given back when the handler is done.
    place: OwnedSemaphorePermit,
}

impl MeshEndpoint {
    /// Call it on the runtime that shall drive the connections.
    pub fn bind(
        config: MeshConfig,
        identity: NodeIdentity,
        members: Arc<dyn Members>,
    ) -> Result<MeshEndpoint, BindError> {
        assert!(
            config.keep_alive_interval * 2 < config.idle_timeout,
            "a lost keep-alive must not kill a connection"
        );
        let in_use = |source| BindError::Socket { listen: config.listen, source };
        let socket = transport::socket(config.listen).map_err(in_use)?;
        let endpoint = quinn::Endpoint::new(
            transport::endpoint_config(&identity),
            Some(server_config(&config, &identity)?),
            socket,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(in_use)?;
        let (local_streams, inbox) = mpsc::channel(LOCAL_STREAMS_WAITING_MAX);
        let shared = Shared {
            endpoint,
            local: identity.node_id(),
            identity: RwLock::new(identity),
            members,
            drivers: Handle::current(),
            dialer: Dialer::default(),
            accepted: Accepted::default(),
            local_places: Arc::new(Semaphore::new(config.streams_per_connection_max as usize)),
            local_streams,
            local_streams_inbox: Mutex::new(Some(inbox)),
            config,
        };
        Ok(MeshEndpoint { shared: Arc::new(shared) })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// Serves peers, this node itself, and those who want to join, until `cancel`; then closes every connection.
    /// Call it once.
    pub async fn serve(
        &self,
        handler: Arc<dyn StreamHandler>,
        joins: Arc<dyn JoinHandler>,
        cancel: CancellationToken,
    ) {
        let inbox = lock(&self.shared.local_streams_inbox).take();
        let inbox = inbox.expect("an endpoint is served once");
        accept::serve(&self.shared, inbox, handler, joins, cancel).await;
        self.close().await;
    }

    /// Closes every connection and waits, briefly, until the peers have been told. Opening fails from here on.
    pub async fn close(&self) {
        self.shared.dialer.stop();
        self.shared.endpoint.close(CloseCode::Stopping.into(), b"the node is stopping");
        let _ = timeout(FAREWELL_DEADLINE, self.shared.endpoint.wait_idle()).await;
    }

    /// Membership has changed: closes the connections of those who are no longer members, and lets the others be dialed
    /// at once, whatever came of it before.
    pub fn recheck(&self) {
        let admits = |peer| self.shared.members.admits(peer);
        self.shared.accepted.close_unless(admits);
        self.shared.dialer.recheck(admits);
    }

    /// The connections of now, dialed ones first.
    pub fn connections(&self) -> Vec<PeerConnection> {
        let connection = |direction| {
            move |(peer, class, c): (NodeId, StreamClass, quinn::Connection)| PeerConnection {
                peer,
                class,
                direction,
                address: c.remote_address(),
                round_trip: c.rtt(),
            }
        };
        let dialed = self.shared.dialer.live().into_iter().map(connection(Direction::Dialed));
        dialed.chain(self.shared.accepted.live().into_iter().map(connection(Direction::Accepted))).collect()
    }

    /// A renewed certificate of the same key holds for every connection made from here on.
    pub fn renew(&self, identity: NodeIdentity) -> Result<(), TlsError> {
        assert_eq!(
            identity.node_id(),
            self.shared.local,
            "a node keeps its key when it renews its certificate"
        );
        self.shared.endpoint.set_server_config(Some(server_config(&self.shared.config, &identity)?));
        *self.shared.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
        Ok(())
    }
}

#[async_trait]
impl Link for MeshEndpoint {
    fn local_node(&self) -> NodeId {
        self.shared.local
    }

    async fn open(
        &self,
        peer: NodeId,
        header: StreamHeader,
        deadline: Duration,
    ) -> Result<ByteStream, LinkError> {
        let opened = async {
            if peer == self.shared.local {
                self.open_here(header).await
            } else {
                self.open_there(peer, header).await
            }
        };
        timeout(deadline, opened).await.unwrap_or(Err(LinkError::TimedOut(peer)))
    }
}

impl MeshEndpoint {
    async fn open_here(&self, header: StreamHeader) -> Result<ByteStream, LinkError> {
        let place = self.shared.local_places.clone().acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        let (here, stream) = memory::pair(LOCAL_STREAM_BYTES);
        self.shared.local_streams.send(LocalStream { header, stream, place }).await.map_err(|_| {
            LinkError::Unreachable { peer: self.shared.local, cause: "this node is stopping".into() }
        })?;
        Ok(here)
    }

    async fn open_there(&self, peer: NodeId, header: StreamHeader) -> Result<ByteStream, LinkError> {
        let connection = Dialer::connection(&self.shared, peer, header.class()).await?;
        match open_on(&connection, peer, &header).await {
            // It died since it was last used; the peer may be back already. Once more, on a new one.
            Err(_) if connection.close_reason().is_some() => {
                let connection = Dialer::connection(&self.shared, peer, header.class()).await?;
                open_on(&connection, peer, &header).await
            }
            opened => opened,
        }
    }
}

async fn open_on(
    connection: &quinn::Connection,
    peer: NodeId,
    header: &StreamHeader,
) -> Result<ByteStream, LinkError> {
    let (send, recv) = connection.open_bi().await.map_err(|e| link_error(peer, &e))?;
    let mut stream = QuicStream::new(send, recv);
    write_header(&mut stream, header).await.map_err(|e| match connection.close_reason() {
        Some(closed) => link_error(peer, &closed),
        None => LinkError::Broken { peer, cause: e.to_string() },
    })?;
    Ok(Box::new(stream))
}

fn server_config(config: &MeshConfig, identity: &NodeIdentity) -> Result<quinn::ServerConfig, TlsError> {
    let tls = tls::mesh_server_config(identity, &[ALPN_RAFT, ALPN_BULK, ALPN_JOIN])?;
    let crypto = QuicServerConfig::try_from(tls).map_err(|e| TlsError::Certificate(e.to_string()))?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(transport::transport(config, Role::Accepting));
    Ok(server)
}

fn not_a_member(node: NodeId) -> String {
    format!("node {node} is not a member of this cluster")
}

/// Closes a connection because `node`, at one of its ends, is not a member.
fn expel(connection: &quinn::Connection, node: NodeId) {
    info!(node_id = %node, "closed the connection of a node that is not a member");
    connection.close(CloseCode::NotAMember.into(), not_a_member(node).as_bytes());
}

/// Locks survive a panic of their holder: what they guard is a table that is right after each statement.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn warn_unusable_identity(error: &TlsError) {
    warn!(%error, "this node's own certificate cannot be used");
}
