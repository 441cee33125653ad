//! A dialed stream as something Pingora can send a request to. One stream, one request: nothing is ever pooled.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::access::AuthorizedSandbox;
use atoll_mesh::dial::ByteStream;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Only what is truly idle is closed by this; sandbox streams are closed after their one request.
const API_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const API_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer never outlives its request, so nothing may be kept for it.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_millis(1);

/// Whether the request asks to become another protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    Plain,
    Upgrade,
}

/// A peer that is the given stream, once.
pub fn sandbox_peer(sandbox: &AuthorizedSandbox, stream: ByteStream, exchange: Exchange) -> HttpPeer {
    let mut peer = stream_peer(stream, exchange);
    peer.group_key = group_key(sandbox);
    peer
}

/// Pingora's pool key does not look at the connector, so two sandboxes must differ in this.
fn group_key(sandbox: &AuthorizedSandbox) -> u64 {
    let mut hasher = DefaultHasher::new();
    (sandbox.sandbox_id(), sandbox.target(), sandbox.generation()).hash(&mut hasher);
    // 0 is every other peer.
    hasher.finish().max(1)
}

/// The local API, with connections kept alive between requests.
///
/// # Errors
/// The path is longer than a Unix socket address can hold.
pub fn api_peer(socket: &Path) -> pingora::Result<HttpPeer> {
    let path = socket.to_str().ok_or_else(|| Error::explain(ErrorType::InternalError, "API socket path"))?;
    let mut peer = HttpPeer::new_uds(path, false, String::new())?;
    peer.options.connection_timeout = Some(API_CONNECT_TIMEOUT);
    peer.options.idle_timeout = Some(API_IDLE_TIMEOUT);
    Ok(peer)
}

/// A connection to the API of its own, for an upgrade.
pub fn api_upgrade_peer(stream: ByteStream) -> HttpPeer {
    stream_peer(stream, Exchange::Upgrade)
}

fn stream_peer(stream: ByteStream, exchange: Exchange) -> HttpPeer {
    // Never connected to: the connector below answers with the stream. Pingora wants an address for its pool key.
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let mut peer = HttpPeer::new(nowhere, false, String::new());
    peer.options.idle_timeout = Some(STREAM_IDLE_TIMEOUT);
    peer.options.custom_l4 = Some(Arc::new(Dialed(Mutex::new(Some(Virtual::new(stream, exchange))))));
    peer
}

/// Hands out the one stream that was dialed before Pingora asked for it.
#[derive(Debug)]
struct Dialed(Mutex<Option<Virtual>>);

#[async_trait]
impl Connect for Dialed {
    async fn connect(&self, _addr: &PeerAddr) -> pingora::Result<Stream> {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let stream = stream
            .ok_or_else(|| Error::explain(ErrorType::ConnectError, "a dialed stream serves one request"))?;
        Ok(VirtualSocketStream::new(Box::new(stream)).into())
    }
}

/// A [`ByteStream`] behind Pingora's socket trait.
struct Virtual {
    /// Never locked: Pingora wants `Sync`, and every use is through `&mut`.
    stream: Mutex<ByteStream>,
    gate: Gate,
}

/// Works around cloudflare/pingora#946: if the answer to an upgrade is read before Pingora has handled the end of the
/// (empty) request body, it takes that end for the end of the tunnel. So the first reads wait until the body's end has
/// been flushed, which is the second flush, the head's being the first.
#[derive(Debug, Clone, Copy)]
enum Gate {
    Open,
    Closed { flushes: u8, polls: u8 },
}

/// After as many polls the gate opens anyway: a late answer is better than none.
const GATE_POLLS_MAX: u8 = 64;
const GATE_FLUSHES: u8 = 2;

impl Gate {
    fn flushed(&mut self) {
        if let Gate::Closed { flushes, .. } = self {
            *flushes += 1;
            if *flushes >= GATE_FLUSHES {
                *self = Gate::Open;
            }
        }
    }

    fn polled(&mut self) {
        if let Gate::Closed { polls, .. } = self {
            *polls += 1;
            if *polls >= GATE_POLLS_MAX {
                *self = Gate::Open;
            }
        }
    }
}

impl Virtual {
    fn new(stream: ByteStream, exchange: Exchange) -> Virtual {
        let gate = match exchange {
            Exchange::Plain => Gate::Open,
            Exchange::Upgrade => Gate::Closed { flushes: 0, polls: 0 },
        };
        Virtual { stream: Mutex::new(stream), gate }
    }

    fn stream(&mut self) -> Pin<&mut ByteStream> {
        Pin::new(self.stream.get_mut().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Virtual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Virtual(…)")
    }
}

impl VirtualSocket for Virtual {
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Virtual {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Gate::Closed { .. } = self.gate {
            self.gate.polled();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for Virtual {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.stream().poll_flush(cx);
        if flushed.is_ready() {
            self.gate.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_api::access::{Credential, SandboxFacts, Target, authorize};
    use atoll_api::ids::{Generation, NodeId, OrganizationId, RegionOrdinal, SandboxId};
    use atoll_api::sandbox::{Phase, Placement};
    use atoll_api::tokens::TokenHash;
    use futures_util::FutureExt;
    use pingora::upstreams::peer::Peer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn authorized(sandbox: u8, generation: u64, port: u16) -> AuthorizedSandbox {
        let facts = SandboxFacts {
            sandbox_id: SandboxId::new(RegionOrdinal::new(0).unwrap(), [sandbox; 14]),
            organization_id: OrganizationId(uuid::Uuid::nil()),
            public: true,
            preview_token_hash: TokenHash::of("t"),
            phase: Phase::Running,
            placement: Placement { node_id: NodeId(1), generation: Generation(generation) },
            signing_key_version: 0,
        };
        authorize(&Credential::Nothing, &facts, Target::port(port), 0).unwrap()
    }

    fn pool_key(sandbox: &AuthorizedSandbox) -> u64 {
        let (near, _far) = tokio::io::duplex(16);
        sandbox_peer(sandbox, Box::new(near), Exchange::Plain).reuse_hash()
    }

    #[test]
    fn no_two_sandboxes_ports_or_generations_share_a_pool_key() {
        let key = pool_key(&authorized(1, 1, 80));

        assert_eq!(key, pool_key(&authorized(1, 1, 80)));
        for other in [authorized(2, 1, 80), authorized(1, 2, 80), authorized(1, 1, 81)] {
            assert_ne!(key, pool_key(&other), "{other:?}");
        }
    }

    #[tokio::test]
    async fn a_dialed_stream_is_handed_out_once() {
        let (near, _far) = tokio::io::duplex(16);
        let peer = sandbox_peer(&authorized(1, 1, 80), Box::new(near), Exchange::Plain);
        let connector = peer.options.custom_l4.clone().unwrap();

        assert!(connector.connect(peer.address()).await.is_ok());
        assert!(connector.connect(peer.address()).await.is_err());
    }

    #[tokio::test]
    async fn an_upgrades_answer_waits_for_the_end_of_the_request() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut stream = Virtual::new(Box::new(near), Exchange::Upgrade);
        far.write_all(b"101").await.unwrap();
        let mut buffer = [0; 3];

        stream.flush().await.unwrap();
        let early = stream.read(&mut buffer).now_or_never();
        assert!(early.is_none(), "read before the body's end was flushed");

        stream.flush().await.unwrap();
        stream.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"101");
    }

    #[tokio::test]
    async fn an_answer_is_never_held_for_good() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut stream = Virtual::new(Box::new(near), Exchange::Upgrade);
        far.write_all(b"101").await.unwrap();

        let mut buffer = [0; 3];
        stream.read_exact(&mut buffer).await.unwrap();

        assert_eq!(&buffer, b"101");
    }
}
