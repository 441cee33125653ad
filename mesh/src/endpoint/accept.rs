//! Connections from peers: a certificate of ours, a member, then a welcome; after that, a task for each stream.
//! Who shows no certificate may only join.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_api::ids::NodeId;
use atoll_certs::tls;
use quinn::crypto::rustls::HandshakeData;
use rustls_pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, debug_span, info, warn};

use super::dial::WELCOME;
use super::{LocalStream, Shared, expel, lock};
use crate::join::{self, JoinHandler};
use crate::link::StreamHandler;
use crate::quic::bytes::QuicStream;
use crate::quic::{ALPN_BULK, ALPN_JOIN, ALPN_RAFT, CloseCode};
use crate::stream::{StreamClass, StreamError, read_header};

/// Handshakes in progress; one more is refused.
const HANDSHAKES_MAX: usize = 256;
/// With so many in progress, a stranger must first prove that its address is its own.
const HANDSHAKES_UNPROVEN_MAX: usize = 64;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// A stream's header must follow its first byte within this.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// Connections of one peer and class; a newer one closes the oldest. More than one, because a peer that lost its network
/// comes back before the old connection has died.
const CONNECTIONS_PER_PEER_MAX: usize = 4;
/// Nodes that join at the same moment; one more is told to come again.
const JOINS_AT_ONCE_MAX: usize = 16;
/// How long a handler may still run after the endpoint was told to stop.
const HANDLERS_STOP_DEADLINE: Duration = Duration::from_secs(2);

/// The connections that peers have made and that were admitted.
#[derive(Default)]
pub(super) struct Accepted {
    connections: Mutex<Vec<(NodeId, StreamClass, quinn::Connection)>>,
}

impl Accepted {
    pub(super) fn close_unless(&self, admits: impl Fn(NodeId) -> bool) {
        for (peer, _, connection) in lock(&self.connections).iter() {
            if !admits(*peer) {
                expel(connection, *peer);
            }
        }
    }

    pub(super) fn live(&self) -> Vec<(NodeId, StreamClass, quinn::Connection)> {
        lock(&self.connections).clone()
    }

    fn enter(&self, peer: NodeId, class: StreamClass, connection: &quinn::Connection) {
        let mut connections = lock(&self.connections);
        connections.push((peer, class, connection.clone()));
        let mut theirs = connections.iter().filter(|(p, c, _)| *p == peer && *c == class);
        if theirs.clone().count() > CONNECTIONS_PER_PEER_MAX
            && let Some((_, _, oldest)) = theirs.next()
        {
            oldest.close(CloseCode::Superseded.into(), b"newer connections have taken its place");
        }
    }

    fn leave(&self, connection: &quinn::Connection) {
        lock(&self.connections).retain(|(_, _, c)| c.stable_id() != connection.stable_id());
    }
}

/// What every accepted connection needs.
#[derive(Clone)]
struct Door {
    shared: Arc<Shared>,
    handler: Arc<dyn StreamHandler>,
    joins: Arc<dyn JoinHandler>,
    handshakes: Arc<Semaphore>,
    joining: Arc<Semaphore>,
    /// Every connection and every stream. They end with `cancel`.
    tasks: TaskTracker,
    cancel: CancellationToken,
}

pub(super) async fn serve(
    shared: &Arc<Shared>,
    mut local_streams: mpsc::Receiver<LocalStream>,
    handler: Arc<dyn StreamHandler>,
    joins: Arc<dyn JoinHandler>,
    cancel: CancellationToken,
) {
    let door = Door {
        shared: shared.clone(),
        handler,
        joins,
        handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
        joining: Arc::new(Semaphore::new(JOINS_AT_ONCE_MAX)),
        tasks: TaskTracker::new(),
        cancel,
    };
    loop {
        tokio::select! {
            () = door.cancel.cancelled() => break,
            incoming = shared.endpoint.accept() => match incoming {
                Some(incoming) => door.knock(incoming),
                None => break,
            },
            Some(local) = local_streams.recv() => door.here(local),
        }
    }
    door.cancel.cancel();
    door.tasks.close();
    if timeout(HANDLERS_STOP_DEADLINE, door.tasks.wait()).await.is_err() {
        warn!(left = door.tasks.len(), "streams did not end in time");
    }
}

impl Door {
    /// The only way a task starts here: owned by `tasks`, ended by `cancel`.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            cancel.run_until_cancelled(work).await;
        });
    }

    fn here(&self, local: LocalStream) {
        let (handler, node) = (self.handler.clone(), self.shared.local);
        self.spawn(async move {
            handler.handle(node, local.header, local.stream).await;
            drop(local.place);
        });
    }

    fn knock(&self, incoming: quinn::Incoming) {
        let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
            debug!(from = %incoming.remote_address(), "too many handshakes: refused");
            incoming.refuse();
            return;
        };
        let in_progress = HANDSHAKES_MAX - self.handshakes.available_permits();
        if in_progress > HANDSHAKES_UNPROVEN_MAX && incoming.may_retry() {
            // Fails only where `may_retry` is false.
            let _ = incoming.retry();
            return;
        }
        let from = incoming.remote_address();
        let door = self.clone();
        self.spawn(
            async move { door.enter(incoming, permit).await }.instrument(debug_span!("accepted", %from)),
        );
    }

    async fn enter(&self, incoming: quinn::Incoming, permit: OwnedSemaphorePermit) {
        let connecting = {
            // The connection's driver is spawned here, and belongs on the drivers' runtime.
            let _drivers = self.shared.drivers.enter();
            incoming.accept()
        };
        let connection = match connecting {
            Ok(connecting) => match timeout(HANDSHAKE_DEADLINE, connecting).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => return debug!(%error, "handshake failed"),
                Err(_) => return debug!("handshake took too long"),
            },
            Err(error) => return debug!(%error, "handshake failed"),
        };
        drop(permit);
        match protocol(&connection).as_deref() {
            Some(ALPN_RAFT) => self.peer(connection, StreamClass::Raft).await,
            Some(ALPN_BULK) => self.peer(connection, StreamClass::Bulk).await,
            Some(ALPN_JOIN) => self.join(connection).await,
            _ => connection.close(CloseCode::Unfit.into(), b"unknown protocol"),
        }
    }

    async fn join(&self, connection: quinn::Connection) {
        match self.joining.try_acquire() {
            Ok(_permit) => join::serve(connection, &*self.joins).await,
            Err(_) => {
                connection
                    .close(CloseCode::Busy.into(), b"too many nodes are joining at this moment; try again");
            }
        }
    }

    async fn peer(&self, connection: quinn::Connection, class: StreamClass) {
        let peer = match peer_of(&connection) {
            Ok(peer) => peer,
            Err(cause) => return connection.close(CloseCode::Unfit.into(), cause.as_bytes()),
        };
        // Entered first and judged then: a `recheck` in between would have missed it.
        self.shared.accepted.enter(peer, class, &connection);
        let _leave = Leave { accepted: &self.shared.accepted, connection: &connection };
        if !self.shared.members.admits(peer) {
            return expel(&connection, peer);
        }
        if let Err(error) = welcome(&connection).await {
            return debug!(%peer, %error, "left before it was welcomed");
        }
        info!(%peer, ?class, "peer connected");
        self.shared.dialer.forgive(peer);
        let reason = self.streams(&connection, peer, class).await;
        info!(%peer, ?class, %reason, "peer disconnected");
    }

    async fn streams(
        &self,
        connection: &quinn::Connection,
        peer: NodeId,
        class: StreamClass,
    ) -> quinn::ConnectionError {
        // QUIC counts a stream until both sides have finished it; a handler may go on after that.
        let handlers = Arc::new(Semaphore::new(self.shared.config.streams_per_connection_max as usize));
        loop {
            let permit = tokio::select! {
                permit = handlers.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
                reason = connection.closed() => return reason,
            };
            let (send, recv) = match connection.accept_bi().await {
                Ok(halves) => halves,
                Err(reason) => return reason,
            };
            let handler = self.handler.clone();
            self.spawn(async move {
                let _permit = permit;
                stream(QuicStream::new(send, recv), peer, class, &*handler).await;
            });
        }
    }
}

struct Leave<'a> {
    accepted: &'a Accepted,
    connection: &'a quinn::Connection,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.accepted.leave(self.connection);
    }
}

/// A header that is late, malformed or of the other class ends its stream and nothing else.
async fn stream(mut stream: QuicStream, peer: NodeId, class: StreamClass, handler: &dyn StreamHandler) {
    match timeout(HEADER_DEADLINE, read_header(&mut stream)).await {
        Ok(Ok(header)) if header.class() == class => handler.handle(peer, header, Box::new(stream)).await,
        Ok(Ok(header)) => warn!(%peer, ?header, ?class, "stream on a connection of the other class: dropped"),
        // A peer that gave up a question before it was asked.
        Ok(Err(error @ (StreamError::Io(_) | StreamError::Ended))) => {
            debug!(%peer, %error, "stream broken off")
        }
        Ok(Err(error)) => warn!(%peer, %error, "stream with a malformed header: dropped"),
        Err(_) => debug!(%peer, "stream without a header: dropped"),
    }
}

async fn welcome(connection: &quinn::Connection) -> Result<(), String> {
    let mut stream = connection.open_uni().await.map_err(|e| e.to_string())?;
    stream.write_all(WELCOME).await.map_err(|e| e.to_string())?;
    stream.finish().map_err(|e| e.to_string())
}

fn protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

fn peer_of(connection: &quinn::Connection) -> Result<NodeId, String> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or("a node must show its certificate")?;
    tls::peer_node(&chain).map_err(|e| e.to_string())
}
