//! Joining: a machine with a token, and no certificate yet, asks any node to sign its key.
//!
//! One connection of its own protocol, one stream, one message each way. The token's CA fingerprint says whom to believe.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use atoll_api::ids::{NodeId, RegionName};
use atoll_api::sandbox::Resources;
use atoll_certs::ca::{CaCertificate, CaFingerprint, NODE_SERVER_NAME};
use atoll_certs::identity::{IdentityError, NodeIdentity, NodeKey};
use atoll_certs::join_token::{JoinSecret, JoinToken};
use atoll_certs::seal::ClusterSecret;
use atoll_certs::tls::{self, WrongPeer};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, VarInt};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::{debug, info};
use uuid::Uuid;

use crate::endpoint::MeshConfig;
use crate::quic::bytes::QuicStream;
use crate::quic::transport::{Role, transport};
use crate::quic::{ALPN_JOIN, CloseCode, reason_text};
use crate::stream::{StreamError, answer, read_message};

const REQUEST_BYTES_MAX: usize = 64 * 1024;
const RESPONSE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// One address must answer a handshake within this.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// A joining node must have sent its request within this.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// The cluster must have decided within this…
const DECISION_DEADLINE: Duration = Duration::from_secs(20);
/// … and the answer must be here within this.
const ANSWER_DEADLINE: Duration = Duration::from_secs(25);
/// How long a side waits for the other to hear the end of the conversation.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    pub token_secret: JoinSecret,
    /// PKCS#10, DER. The node's id is derived from its key.
    pub csr_der: Vec<u8>,
    pub name: String,
    pub region: RegionName,
    /// Failure domain inside the region; empty if there is none.
    pub zone: String,
    pub addresses: NodeAddresses,
    pub capacity: NodeCapacity,
    /// The newest kind of state command this node knows.
    pub command_version: u32,
    pub software_version: String,
}

/// `host:port` each, as other machines reach them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddresses {
    pub mesh: String,
    pub http: String,
    pub https: Option<String>,
    pub ssh: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCapacity {
    pub total: Resources,
    pub sandboxes_max: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinResponse {
    /// The node's certificate, then the CA's.
    pub node_chain_pem: String,
    pub ca_pem: String,
    pub cluster_secret: ClusterSecret,
    pub cluster_id: Uuid,
    /// Members at the moment of joining: whom to dial first.
    pub peers: Vec<JoinPeer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinPeer {
    pub node_id: NodeId,
    /// `host:port` of its mesh endpoint.
    pub mesh: String,
}

impl JoinResponse {
    /// The joined node. The response came over a connection that the token's pin vouches for.
    pub fn identity(&self, key: NodeKey, now: SystemTime) -> Result<NodeIdentity, IdentityError> {
        let identity = key.certify(&self.node_chain_pem, now)?;
        let same_ca = CaCertificate::from_pem(&self.ca_pem).is_ok_and(|ca| ca == *identity.ca());
        if same_ca { Ok(identity) } else { Err(IdentityError::BadChain("it ends in another CA".into())) }
    }
}

/// Why a cluster did not take a node. The operator of the joining machine reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum JoinRefusal {
    #[error("the cluster does not know this join token")]
    TokenUnknown,
    #[error("the join token has expired; make a new one with `atoll cluster token create`")]
    TokenExpired,
    #[error("the join token has been used up; make a new one with `atoll cluster token create`")]
    TokenUsedUp,
    /// The request itself: a name that is taken, an unknown region, an unacceptable key.
    #[error("the node cannot join: {0}")]
    Unacceptable(String),
    /// Nothing is wrong with the request: the same one may succeed later.
    #[error("the cluster cannot take a node now: {0}")]
    NotNow(String),
}

/// Decides about a node that wants to join, and admits it before it answers.
#[async_trait]
pub trait JoinHandler: Send + Sync + 'static {
    async fn join(&self, request: JoinRequest) -> Result<JoinResponse, JoinRefusal>;
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The operator: a wrong address, or a node that is down or behind a firewall.
    #[error("{peer} cannot be reached over QUIC (UDP): {cause}")]
    Unreachable { peer: String, cause: String },
    /// The operator: an address of another cluster, a stale token, or somebody in between.
    #[error("{peer} does not belong to the cluster of this join token (CA fingerprint {pinned})")]
    PinMismatch { peer: String, pinned: CaFingerprint },
    #[error(transparent)]
    Refused(#[from] JoinRefusal),
    /// The cluster took too long. It may have admitted the node: joining again with the same key is safe.
    #[error("{peer} did not answer in time")]
    TimedOut { peer: String },
    /// A bug, or versions too far apart.
    #[error("{peer} answered something unexpected: {cause}")]
    Protocol { peer: String, cause: String },
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Joined(Box<JoinResponse>),
    Refused(JoinRefusal),
}

/// Asks the node at `peer` (`host:port`) to take this one into its cluster.
pub async fn join(peer: &str, token: &JoinToken, request: &JoinRequest) -> Result<JoinResponse, JoinError> {
    let unreachable = |cause: String| JoinError::Unreachable { peer: peer.into(), cause };
    let addresses = tokio::net::lookup_host(peer).await.map_err(|e| unreachable(e.to_string()))?;
    let mut last = unreachable("the name has no address".into());
    for address in addresses {
        let (endpoint, connection) = match connect(peer, address, token.ca_fingerprint()).await {
            Ok(connected) => connected,
            // Another address of the same name may be up.
            Err(error @ JoinError::Unreachable { .. }) => {
                last = error;
                continue;
            }
            Err(error) => return Err(error),
        };
        let response = match timeout(ANSWER_DEADLINE, ask(peer, &connection, request)).await {
            Ok(response) => response,
            Err(_) => Err(JoinError::TimedOut { peer: peer.into() }),
        };
        connection.close(CloseCode::Done.into(), b"");
        let _ = timeout(FAREWELL_DEADLINE, endpoint.wait_idle()).await;
        return pinned(peer, token, response?);
    }
    Err(last)
}

/// A node of the right cluster would not name another CA; a confused one must not lead us astray.
fn pinned(peer: &str, token: &JoinToken, response: JoinResponse) -> Result<JoinResponse, JoinError> {
    let ca = CaCertificate::from_pem(&response.ca_pem)
        .map_err(|e| JoinError::Protocol { peer: peer.into(), cause: e.to_string() })?;
    if ca.fingerprint() != token.ca_fingerprint() {
        return Err(JoinError::PinMismatch { peer: peer.into(), pinned: token.ca_fingerprint() });
    }
    Ok(response)
}

async fn connect(
    peer: &str,
    address: SocketAddr,
    pin: CaFingerprint,
) -> Result<(quinn::Endpoint, quinn::Connection), JoinError> {
    let unreachable = |cause: String| JoinError::Unreachable { peer: peer.into(), cause };
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = quinn::Endpoint::client(any).map_err(|e| unreachable(e.to_string()))?;
    let crypto = QuicClientConfig::try_from(tls::join_client_config(pin, ALPN_JOIN))
        .map_err(|e| unreachable(e.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport(&MeshConfig::listening_on(any), Role::Dialing));
    let connecting =
        endpoint.connect_with(config, address, NODE_SERVER_NAME).map_err(|e| unreachable(e.to_string()))?;
    match timeout(CONNECT_DEADLINE, connecting).await {
        Ok(Ok(connection)) => Ok((endpoint, connection)),
        Ok(Err(error)) => Err(connect_error(peer, pin, &error)),
        Err(_) => Err(unreachable("no answer".into())),
    }
}

fn connect_error(peer: &str, pin: CaFingerprint, error: &ConnectionError) -> JoinError {
    let other_cluster = WrongPeer::OtherCluster(pin).to_string();
    match error {
        ConnectionError::TransportError(e) if e.reason.contains(&other_cluster) => {
            JoinError::PinMismatch { peer: peer.into(), pinned: pin }
        }
        other => JoinError::Unreachable { peer: peer.into(), cause: other.to_string() },
    }
}

async fn ask(
    peer: &str,
    connection: &quinn::Connection,
    request: &JoinRequest,
) -> Result<JoinResponse, JoinError> {
    let broken = |e: StreamError| match (connection.close_reason(), e) {
        (Some(ConnectionError::ApplicationClosed(close)), _)
            if close.error_code == VarInt::from(CloseCode::Busy) =>
        {
            JoinError::Refused(JoinRefusal::NotNow(reason_text(&close.reason)))
        }
        (Some(closed), _) => JoinError::Unreachable { peer: peer.into(), cause: closed.to_string() },
        (None, e) => JoinError::Protocol { peer: peer.into(), cause: e.to_string() },
    };
    let (send, recv) = connection.open_bi().await.map_err(|e| broken(StreamError::Io(e.into())))?;
    let mut stream = QuicStream::new(send, recv);
    answer(&mut stream, request).await.map_err(broken)?;
    match read_message(&mut stream, RESPONSE_BYTES_MAX).await.map_err(broken)? {
        Answer::Joined(response) => Ok(*response),
        Answer::Refused(refusal) => Err(JoinError::Refused(refusal)),
    }
}

/// The other end of [`ask`]: one stream, one request, one answer, and the connection is over.
pub(crate) async fn serve(connection: quinn::Connection, handler: &dyn JoinHandler) {
    let from = connection.remote_address();
    let request = async {
        let (send, recv) = connection.accept_bi().await.map_err(|e| e.to_string())?;
        let mut stream = QuicStream::new(send, recv);
        let request = read_message(&mut stream, REQUEST_BYTES_MAX).await.map_err(|e| e.to_string())?;
        Ok::<_, String>((stream, request))
    };
    let (mut stream, request) = match timeout(REQUEST_DEADLINE, request).await {
        Ok(Ok(received)) => received,
        Ok(Err(cause)) => {
            debug!(%from, %cause, "no join request came");
            return connection.close(CloseCode::Unfit.into(), b"the join request was not understood");
        }
        Err(_) => return connection.close(CloseCode::Unfit.into(), b"no join request came in time"),
    };
    let decision = match timeout(DECISION_DEADLINE, handler.join(request)).await {
        Ok(Ok(response)) => Answer::Joined(Box::new(response)),
        Ok(Err(refusal)) => Answer::Refused(refusal),
        Err(_) => Answer::Refused(JoinRefusal::NotNow("the cluster did not decide in time".into())),
    };
    match &decision {
        Answer::Joined(_) => info!(%from, "a node joined"),
        Answer::Refused(refusal) => info!(%from, %refusal, "a node was not taken"),
    }
    if let Err(error) = answer(&mut stream, &decision).await {
        debug!(%from, %error, "the joining node left before its answer");
    }
    // The joining node closes when it has read the answer.
    let _ = timeout(FAREWELL_DEADLINE, connection.closed()).await;
    connection.close(CloseCode::Done.into(), b"");
}
