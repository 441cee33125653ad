//! Nodes that talk over real QUIC on the loopback interface: what works, who is refused, and what happens when they die.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use atoll_api::access::Target;
use atoll_api::ids::{Generation, NodeId, RegionOrdinal, RequestId, SandboxId};
use atoll_api::sandbox::Resources;
use atoll_certs::ca::{ClusterCa, NODE_SERVER_NAME};
use atoll_certs::identity::{NodeIdentity, NodeKey};
use atoll_certs::join_token::JoinToken;
use atoll_certs::seal::ClusterSecret;
use atoll_certs::tls;
use atoll_mesh::dial::ByteStream;
use atoll_mesh::endpoint::{Direction, Members, MeshConfig, MeshEndpoint};
use atoll_mesh::join::{
    JoinError, JoinHandler, JoinPeer, JoinRefusal, JoinRequest, JoinResponse, NodeAddresses, NodeCapacity,
    join,
};
use atoll_mesh::link::{Link, LinkError, StreamHandler};
use atoll_mesh::stream::{
    GroupName, StreamClass, StreamHeader, answer, call, encode_header, read_message, write_message,
};
use quinn::crypto::rustls::QuicClientConfig;
use ring::digest::{Context, SHA256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(5);

// ---- a small world -------------------------------------------------------------------------------------------------

/// Where everybody listens, and whom one node takes for a member.
#[derive(Clone, Default)]
struct View {
    addresses: Arc<Mutex<HashMap<NodeId, String>>>,
    expelled: Arc<Mutex<HashSet<NodeId>>>,
}

impl Members for View {
    fn address(&self, peer: NodeId) -> Option<String> {
        self.addresses.lock().unwrap().get(&peer).cloned()
    }

    fn admits(&self, peer: NodeId) -> bool {
        !self.expelled.lock().unwrap().contains(&peer)
    }
}

struct World {
    ca: Arc<ClusterCa>,
    addresses: Arc<Mutex<HashMap<NodeId, String>>>,
}

impl World {
    fn new() -> World {
        let ca = ClusterCa::generate(Uuid::from_u128(7), SystemTime::now());
        World { ca: Arc::new(ca), addresses: Arc::default() }
    }

    /// Another cluster that knows the same addresses.
    fn foreign(&self) -> World {
        World { addresses: self.addresses.clone(), ..World::new() }
    }

    fn identity(&self) -> NodeIdentity {
        identity(&self.ca)
    }

    fn node(&self) -> Node {
        self.node_at(self.identity(), "127.0.0.1:0".parse().unwrap(), |config| config)
    }

    fn node_at(
        &self,
        identity: NodeIdentity,
        listen: SocketAddr,
        tune: impl Fn(MeshConfig) -> MeshConfig,
    ) -> Node {
        let view = View { addresses: self.addresses.clone(), expelled: Arc::default() };
        let config = tune(MeshConfig::listening_on(listen));
        let mesh = MeshEndpoint::bind(config, identity.clone(), Arc::new(view.clone())).unwrap();
        let address = mesh.local_address().unwrap();
        self.addresses.lock().unwrap().insert(identity.node_id(), address.to_string());
        let cancel = CancellationToken::new();
        let handler = Arc::new(Handler::default());
        let serving = tokio::spawn({
            let (mesh, handler, cancel) = (mesh.clone(), handler.clone(), cancel.clone());
            let joins = Arc::new(Joins { ca: self.ca.clone() });
            async move { mesh.serve(handler, joins, cancel).await }
        });
        Node { id: identity.node_id(), identity, mesh, address, view, handler, cancel, serving }
    }
}

fn identity(ca: &ClusterCa) -> NodeIdentity {
    let key = NodeKey::generate();
    let chain = ca.sign_node(&key.csr(), key.node_id(), SystemTime::now()).unwrap();
    key.certify(&chain, SystemTime::now()).unwrap()
}

struct Node {
    id: NodeId,
    identity: NodeIdentity,
    mesh: MeshEndpoint,
    address: SocketAddr,
    view: View,
    handler: Arc<Handler>,
    cancel: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn open(&self, peer: NodeId, header: StreamHeader) -> Result<ByteStream, LinkError> {
        self.mesh.open(peer, header, SOON).await
    }

    async fn ask(&self, peer: NodeId, question: &str) -> Result<(NodeId, String), LinkError> {
        call(&self.mesh, peer, StreamHeader::Heartbeat, question, SOON).await
    }

    fn expel(&self, peer: NodeId) {
        self.view.expelled.lock().unwrap().insert(peer);
        self.mesh.recheck();
    }

    fn dialed(&self) -> Vec<StreamClass> {
        let dialed = self.mesh.connections().into_iter().filter(|c| c.direction == Direction::Dialed);
        dialed.map(|c| c.class).collect()
    }

    /// A connection that speaks QUIC and TLS rightly and may then misbehave.
    async fn raw(&self, peer: &Node, alpn: &[u8]) -> quinn::Connection {
        let tls = tls::mesh_client_config(&self.identity, peer.id, alpn).unwrap();
        raw(tls, peer.address).await
    }
}

async fn raw(tls: rustls::ClientConfig, address: SocketAddr) -> quinn::Connection {
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    endpoint.connect_with(config, address, NODE_SERVER_NAME).unwrap().await.unwrap()
}

const ECHO: StreamHeader = StreamHeader::Locate;
const DIGEST: StreamHeader = StreamHeader::RaftSnapshot { group: GroupName::Cluster };

/// Each header is a behaviour to test against.
#[derive(Default)]
struct Handler {
    /// What `Propose` streams were told after they had finished their own half.
    told: Mutex<Vec<String>>,
}

#[async_trait]
impl StreamHandler for Handler {
    async fn handle(&self, peer: NodeId, header: StreamHeader, mut stream: ByteStream) {
        match header {
            StreamHeader::Heartbeat => {
                let Ok(question) = read_message::<_, String>(&mut stream, 1000).await else { return };
                let _ = answer(&mut stream, &(peer, question)).await;
            }
            StreamHeader::Locate => {
                let (mut read, mut write) = tokio::io::split(stream);
                if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                    let _ = write.shutdown().await;
                }
            }
            StreamHeader::Propose { .. } => {
                stream.write_all(b"that is all").await.unwrap();
                stream.shutdown().await.unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).await.unwrap();
                self.told.lock().unwrap().push(text);
            }
            // Writes, and drops the stream without finishing it.
            StreamHeader::Forward { .. } => {
                let _ = stream.write_all(b"half an ans").await;
            }
            StreamHeader::RaftSnapshot { .. } => {
                let (mut bytes, mut digest, mut chunk) = (0u64, Context::new(&SHA256), vec![0; 64 * 1024]);
                loop {
                    match stream.read(&mut chunk).await.unwrap() {
                        0 => break,
                        n => {
                            bytes += n as u64;
                            digest.update(&chunk[..n]);
                        }
                    }
                }
                answer(&mut stream, &(bytes, digest.finish().as_ref())).await.unwrap();
            }
            // Never reads.
            StreamHeader::Tunnel { .. } => std::future::pending().await,
            _ => {}
        }
    }
}

fn never_reads() -> StreamHeader {
    StreamHeader::Tunnel {
        sandbox_id: SandboxId::new(RegionOrdinal::new(0).unwrap(), [1; 14]),
        generation: Generation(1),
        target: Target::Daemon,
        request_id: RequestId::from_random([0; 16]),
    }
}

/// Takes a node if its name is "welcome".
struct Joins {
    ca: Arc<ClusterCa>,
}

#[async_trait]
impl JoinHandler for Joins {
    async fn join(&self, request: JoinRequest) -> Result<JoinResponse, JoinRefusal> {
        if request.name != "welcome" {
            return Err(JoinRefusal::TokenUsedUp);
        }
        let node_id = atoll_certs::ca::node_id_of_request(&request.csr_der).unwrap();
        Ok(JoinResponse {
            node_chain_pem: self.ca.sign_node(&request.csr_der, node_id, SystemTime::now()).unwrap(),
            ca_pem: self.ca.certificate().to_pem(),
            cluster_secret: ClusterSecret::from_bytes([7; 32]),
            cluster_id: Uuid::from_u128(7),
            peers: vec![JoinPeer { node_id: NodeId(1), mesh: "127.0.0.1:1".into() }],
        })
    }
}

fn join_request(key: &NodeKey, token: &JoinToken, name: &str) -> JoinRequest {
    JoinRequest {
        token_secret: token.secret().clone(),
        csr_der: key.csr(),
        name: name.into(),
        region: "eu".parse().unwrap(),
        zone: String::new(),
        addresses: NodeAddresses {
            mesh: "127.0.0.1:1".into(),
            http: "127.0.0.1:2".into(),
            https: None,
            ssh: "127.0.0.1:3".into(),
        },
        capacity: NodeCapacity {
            total: Resources { cpu: 2, memory_gib: 4, disk_gib: 10 },
            sandboxes_max: 100,
        },
        command_version: 1,
        software_version: "test".into(),
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, holds).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn check_refused<T>(result: Result<T, LinkError>, words: &str) {
    match result {
        Err(LinkError::Refused { cause, .. }) if cause.contains(words) => {}
        Err(other) => panic!("{other:?} should be a refusal with {words:?}"),
        Ok(_) => panic!("should be refused with {words:?}"),
    }
}

// ---- talking -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn two_nodes_talk_and_know_who_speaks() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());

    assert_eq!(a.ask(b.id, "hello").await, Ok((a.id, "hello".into())));
    assert_eq!(b.ask(a.id, "hello").await, Ok((b.id, "hello".into())));
}

#[tokio::test]
async fn a_node_reaches_itself_without_the_network() {
    let world = World::new();
    let a = world.node();

    assert_eq!(a.ask(a.id, "hello").await, Ok((a.id, "hello".into())));

    assert!(a.mesh.connections().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_streams_at_once_share_one_connection() {
    const STREAMS: usize = 2_000;
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let all_open = Arc::new(tokio::sync::Barrier::new(STREAMS));

    let mut tasks = JoinSet::new();
    for n in 0..STREAMS {
        let (mesh, peer, all_open) = (a.mesh.clone(), b.id, all_open.clone());
        tasks.spawn(async move {
            let mut stream = mesh.open(peer, ECHO, Duration::from_secs(20)).await.unwrap();
            all_open.wait().await;
            let text = format!("stream {n}");
            stream.write_all(text.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut echo = String::new();
            stream.read_to_string(&mut echo).await.unwrap();
            assert_eq!(echo, text);
        });
    }
    tasks.join_all().await;

    assert_eq!(a.dialed(), [StreamClass::Bulk]);
    assert_eq!(b.mesh.connections().len(), 1);
}

#[tokio::test]
async fn raft_and_bulk_use_different_connections() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());

    a.ask(b.id, "raft").await.unwrap();
    a.open(b.id, ECHO).await.unwrap();

    let classes = a.dialed();
    assert_eq!(classes.len(), 2);
    assert_ne!(classes[0], classes[1]);
}

#[tokio::test]
async fn either_half_of_a_stream_may_end_first() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());

    // Here first: the echo comes after our end.
    let mut stream = a.open(b.id, ECHO).await.unwrap();
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "question");

    // There first: we go on writing after its end.
    let mut stream = a.open(b.id, StreamHeader::Propose { group: GroupName::Cluster }).await.unwrap();
    text.clear();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "that is all");
    stream.write_all(b"not for me").await.unwrap();
    stream.shutdown().await.unwrap();
    eventually("the handler has read to our end", || *b.handler.told.lock().unwrap() == ["not for me"]).await;
}

#[tokio::test]
async fn a_dropped_stream_is_never_taken_for_a_finished_one() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());

    for peer in [a.id, b.id] {
        let mut stream = a
            .open(peer, StreamHeader::Forward { request_id: RequestId::from_random([0; 16]) })
            .await
            .unwrap();

        let cut = timeout(SOON, stream.read_to_end(&mut Vec::new())).await.unwrap();

        assert_eq!(cut.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_arrive_intact() {
    const CHUNKS: u64 = 1024;
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let mut stream = a.open(b.id, DIGEST).await.unwrap();

    let mut sent = Context::new(&SHA256);
    for n in 0..CHUNKS {
        let chunk: Vec<u8> = (0..8192u64).flat_map(|i| (n << 20 | i).to_le_bytes()).collect();
        sent.update(&chunk);
        stream.write_all(&chunk).await.unwrap();
    }
    stream.shutdown().await.unwrap();

    let (bytes, digest): (u64, Vec<u8>) = read_message(&mut stream, 1000).await.unwrap();
    assert_eq!(bytes, 64 << 20);
    assert_eq!(digest, sent.finish().as_ref());
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_its_writer_back_and_nobody_else() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let mut stuck = a.open(b.id, never_reads()).await.unwrap();

    let mut written = 0usize;
    let chunk = [0; 64 * 1024];
    while let Ok(sent) = timeout(Duration::from_millis(300), stuck.write(&chunk)).await {
        written += sent.unwrap();
        assert!(written <= 8 * 1024 * 1024, "{written} bytes went to a reader that reads nothing");
    }

    assert!(written >= 1024 * 1024);
    let mut other = a.open(b.id, ECHO).await.unwrap();
    other.write_all(b"through").await.unwrap();
    let mut echo = [0; 7];
    timeout(SOON, other.read_exact(&mut echo)).await.unwrap().unwrap();
}

#[tokio::test]
async fn one_stream_more_than_allowed_waits_for_its_deadline_or_a_place() {
    let world = World::new();
    let a = world.node();
    let b = world.node_at(world.identity(), "127.0.0.1:0".parse().unwrap(), |config| MeshConfig {
        streams_per_connection_max: 2,
        ..config
    });
    let first = a.open(b.id, ECHO).await.unwrap();
    let _second = a.open(b.id, ECHO).await.unwrap();

    let third = a.mesh.open(b.id, ECHO, Duration::from_millis(200)).await;
    assert_eq!(third.err(), Some(LinkError::TimedOut(b.id)));
    drop(first);

    a.open(b.id, ECHO).await.unwrap();
}

// ---- who is refused --------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_by_both_sides() {
    let world = World::new();
    let (ours, theirs) = (world.node(), world.foreign().node());

    check_refused(ours.ask(theirs.id, "hello").await, "invalid peer certificate");
    check_refused(theirs.ask(ours.id, "hello").await, "invalid peer certificate");
}

#[tokio::test]
async fn our_certificate_refused_by_the_peer_is_said_clearly() {
    let world = World::new();
    let b = world.node();
    let stranger = identity(&world.foreign().ca);
    // A stranger that believes our CA: only the server is left to refuse.
    let mut roots = rustls::RootCertStore::empty();
    roots.add(world.ca.certificate().der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let believes_us = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    let mut tls = tls::mesh_client_config(&stranger, b.id, b"atoll-bulk/1").unwrap();
    tls.dangerous().set_certificate_verifier(believes_us);

    let connection = raw(tls, b.address).await;

    let closed = timeout(SOON, connection.closed()).await.unwrap().to_string();
    assert!(closed.contains("invalid peer certificate"), "{closed}");
}

#[tokio::test]
async fn another_member_at_the_dialed_address_is_refused() {
    let world = World::new();
    let (a, b, c) = (world.node(), world.node(), world.node());
    world.addresses.lock().unwrap().insert(b.id, c.address.to_string());

    let refused = a.ask(b.id, "hello").await;

    check_refused(refused, &format!("the peer is node {}, not node {}", c.id, b.id));
}

#[tokio::test]
async fn a_removed_node_is_cut_off_at_once_and_refused_when_it_returns() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let mut stream = a.open(b.id, ECHO).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0]).await.unwrap();

    b.expel(a.id);

    let cut = timeout(Duration::from_secs(1), stream.read(&mut [0])).await.expect("cut at once");
    assert!(cut.unwrap_err().to_string().contains("not a member"));
    // A resumed session would get past the certificate; asking again and again must not help.
    for _ in 0..3 {
        check_refused(a.ask(b.id, "hello").await, &format!("node {} is not a member of this cluster", a.id));
    }
    assert!(b.mesh.connections().is_empty());
}

#[tokio::test]
async fn a_node_that_removed_another_does_not_dial_it() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let mut stream = a.open(b.id, ECHO).await.unwrap();

    a.expel(b.id);

    let cut = timeout(Duration::from_secs(1), stream.read(&mut [0])).await.expect("cut at once");
    assert!(cut.is_err());
    check_refused(a.ask(b.id, "hello").await, &format!("node {} is not a member of this cluster", b.id));
}

#[tokio::test]
async fn without_a_certificate_nothing_but_joining_is_possible() {
    let world = World::new();
    let b = world.node();

    let connection = raw(tls::join_client_config(world.ca.fingerprint(), b"atoll-raft/1"), b.address).await;

    let closed = timeout(SOON, connection.closed()).await.unwrap().to_string();
    assert!(closed.contains("a node must show its certificate"), "{closed}");
}

#[tokio::test]
async fn a_malformed_header_ends_its_stream_and_no_other() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let connection = a.raw(&b, b"atoll-bulk/1").await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&encode_header(&ECHO).unwrap()).await.unwrap();
    send.write_all(b"x").await.unwrap();
    recv.read_exact(&mut [0]).await.unwrap();

    let oversized = [0xff; 4096].to_vec();
    let garbage = [&[0, 5][..], b"\xc1\xc1\xc1\xc1\xc1"].concat();
    let other_class = encode_header(&StreamHeader::Heartbeat).unwrap();
    for bytes in [oversized, garbage, other_class] {
        let (mut bad_send, mut bad_recv) = connection.open_bi().await.unwrap();
        bad_send.write_all(&bytes).await.unwrap();
        let end = timeout(SOON, bad_recv.read(&mut [0])).await.unwrap();
        assert!(matches!(end, Err(quinn::ReadError::Reset(_))), "{end:?}");
    }

    send.write_all(b"y").await.unwrap();
    recv.read_exact(&mut [0]).await.unwrap();
}

// ---- who is gone ---------------------------------------------------------------------------------------------------------

/// A node in a runtime of its own, which can be taken away without a word, as by kill -9.
struct Mortal {
    runtime: Option<tokio::runtime::Runtime>,
    node: Option<Node>,
}

impl Mortal {
    fn born(world: &World, identity: NodeIdentity, listen: SocketAddr) -> Mortal {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let node = {
            let _inside = runtime.enter();
            world.node_at(identity, listen, |config| config)
        };
        Mortal { runtime: Some(runtime), node: Some(node) }
    }

    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    /// The runtime goes first, so that nothing is left that could say goodbye.
    fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
        self.node.take();
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn impatient(config: MeshConfig) -> MeshConfig {
    MeshConfig {
        idle_timeout: Duration::from_millis(1000),
        keep_alive_interval: Duration::from_millis(200),
        ..config
    }
}

#[tokio::test]
async fn a_killed_peer_is_noticed_and_then_unreachable() {
    let world = World::new();
    let a = world.node_at(world.identity(), "127.0.0.1:0".parse().unwrap(), impatient);
    let mut b = Mortal::born(&world, world.identity(), "127.0.0.1:0".parse().unwrap());
    let peer = b.node().id;
    let mut stream = a.open(peer, ECHO).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0]).await.unwrap();

    b.kill();

    let end = timeout(Duration::from_secs(3), stream.read(&mut [0])).await.expect("silence is noticed");
    assert!(end.is_err());
    let asked = Instant::now();
    assert!(matches!(a.ask(peer, "hello").await, Err(LinkError::Unreachable { .. })));
    assert!(asked.elapsed() < Duration::from_millis(1500), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_peer_that_was_restarted_is_found_again_before_its_silence_is_noticed() {
    let world = World::new();
    let a = world.node();
    let identity = world.identity();
    let mut b = Mortal::born(&world, identity.clone(), "127.0.0.1:0".parse().unwrap());
    let (peer, address) = (b.node().id, b.node().address);
    let mut stream = a.open(peer, ECHO).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0]).await.unwrap();
    b.kill();
    eventually("the port is free", || std::net::UdpSocket::bind(address).is_ok()).await;

    let _again = Mortal::born(&world, identity, address);

    // Well below the idle timeout of 5 s: the new process has told us, in answer to a keep-alive, that it knows nothing.
    let end =
        timeout(Duration::from_millis(2500), stream.read(&mut [0])).await.expect("told by a stateless reset");
    assert!(end.is_err());
    assert_eq!(a.ask(peer, "hello").await, Ok((a.id, "hello".into())));
}

#[tokio::test]
async fn nobody_at_an_address_fails_fast_and_is_found_when_it_appears() {
    let world = World::new();
    let a = world.node();
    let late = world.identity();
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.addresses.lock().unwrap().insert(late.node_id(), free.to_string());

    for _ in 0..3 {
        let asked = Instant::now();
        let failed = a.ask(late.node_id(), "hello").await;
        assert!(matches!(failed, Err(LinkError::Unreachable { .. })), "{failed:?}");
        assert!(asked.elapsed() < Duration::from_millis(1500), "{:?}", asked.elapsed());
    }

    let late = world.node_at(late, free, |config| config);
    let found = async {
        while a.ask(late.id, "hello").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, found).await.expect("found once it is there");
}

#[tokio::test]
async fn a_deadline_shorter_than_the_handshake_does_not_hinder_the_connection() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());

    let first = a.mesh.open(b.id, ECHO, Duration::from_micros(1)).await;

    assert_eq!(first.err(), Some(LinkError::TimedOut(b.id)));
    eventually("the attempt went on", || a.dialed() == [StreamClass::Bulk]).await;
}

#[tokio::test]
async fn an_unknown_node_has_no_address() {
    let world = World::new();
    let a = world.node();

    assert_eq!(a.ask(NodeId(5), "hello").await, Err(LinkError::UnknownPeer(NodeId(5))));
}

#[tokio::test]
async fn a_node_that_stops_says_so() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let mut stream = a.open(b.id, ECHO).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0]).await.unwrap();

    b.cancel.cancel();

    timeout(SOON, b.serving).await.expect("it stops").unwrap();
    let end = timeout(Duration::from_secs(1), stream.read(&mut [0])).await.expect("told at once");
    assert!(end.is_err());
    assert!(matches!(b.mesh.open(a.id, ECHO, SOON).await, Err(LinkError::Unreachable { .. })));
    assert!(matches!(b.mesh.open(b.id, ECHO, SOON).await, Err(LinkError::Unreachable { .. })));
}

#[tokio::test]
async fn a_renewed_certificate_holds_for_new_connections() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let chain = world.ca.sign_node(&b.identity.key().csr(), b.id, SystemTime::now()).unwrap();
    let renewed = b.identity.key().clone().certify(&chain, SystemTime::now()).unwrap();

    b.mesh.renew(renewed.clone()).unwrap();

    let connection = a.raw(&b, b"atoll-bulk/1").await;
    let shown = connection.peer_identity().unwrap();
    let shown = shown.downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>().unwrap();
    assert_eq!(shown[0], renewed.chain()[0]);
    assert_eq!(b.ask(a.id, "hello").await, Ok((b.id, "hello".into())));
}

// ---- joining -----------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_machine_with_a_token_becomes_a_member() {
    let world = World::new();
    let b = world.node();
    let (key, token) = (NodeKey::generate(), JoinToken::generate(world.ca.fingerprint()));

    let response =
        join(&b.address.to_string(), &token, &join_request(&key, &token, "welcome")).await.unwrap();

    assert_eq!(response.cluster_secret, ClusterSecret::from_bytes([7; 32]));
    let identity = response.identity(key, SystemTime::now()).unwrap();
    let joined = world.node_at(identity, "127.0.0.1:0".parse().unwrap(), |config| config);
    assert_eq!(joined.ask(b.id, "hello").await, Ok((joined.id, "hello".into())));
}

#[tokio::test]
async fn a_token_of_another_cluster_is_noticed_before_its_secret_is_sent() {
    let world = World::new();
    let b = world.node();
    let (key, token) = (NodeKey::generate(), JoinToken::generate(world.foreign().ca.fingerprint()));

    let refused = join(&b.address.to_string(), &token, &join_request(&key, &token, "welcome")).await;

    let peer = b.address.to_string();
    assert_eq!(refused, Err(JoinError::PinMismatch { peer, pinned: token.ca_fingerprint() }));
}

#[tokio::test]
async fn a_used_up_token_is_refused_in_words() {
    let world = World::new();
    let b = world.node();
    let (key, token) = (NodeKey::generate(), JoinToken::generate(world.ca.fingerprint()));

    let refused = join(&b.address.to_string(), &token, &join_request(&key, &token, "anything")).await;

    assert_eq!(refused, Err(JoinError::Refused(JoinRefusal::TokenUsedUp)));
    assert!(refused.unwrap_err().to_string().contains("used up"));
}

#[tokio::test]
async fn a_peer_that_is_not_there_is_unreachable() {
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (key, token) = (NodeKey::generate(), JoinToken::generate(World::new().ca.fingerprint()));
    let request = join_request(&key, &token, "welcome");

    for peer in [free.as_str(), "no-port", "localhost:notaport"] {
        let refused = join(peer, &token, &request).await;
        assert!(matches!(refused, Err(JoinError::Unreachable { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn an_oversized_or_malformed_join_request_is_refused() {
    let world = World::new();
    let b = world.node();

    for bytes in [u32::MAX.to_be_bytes().to_vec(), [&4u32.to_be_bytes()[..], b"\xc1\xc1\xc1\xc1"].concat()] {
        let connection =
            raw(tls::join_client_config(world.ca.fingerprint(), b"atoll-join/1"), b.address).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        let closed = timeout(SOON, connection.closed()).await.unwrap().to_string();
        assert!(closed.contains("not understood"), "{closed}");
    }
}

#[tokio::test]
async fn several_machines_join_at_the_same_moment() {
    let world = World::new();
    let b = world.node();
    let token = JoinToken::generate(world.ca.fingerprint());

    let mut joins = JoinSet::new();
    for _ in 0..8 {
        let (token, address) = (token.clone(), b.address.to_string());
        joins.spawn(async move {
            let key = NodeKey::generate();
            join(&address, &token, &join_request(&key, &token, "welcome")).await
        });
    }

    assert!(joins.join_all().await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_conversation_may_have_many_messages() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let mut stream = a.open(b.id, ECHO).await.unwrap();

    for n in 0..100u32 {
        write_message(&mut stream, &n).await.unwrap();
        assert_eq!(read_message::<_, u32>(&mut stream, 100).await.unwrap(), n);
    }
}

#[tokio::test]
async fn a_peer_that_refused_us_is_dialed_again_as_soon_as_it_has_dialed_us() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    b.view.expelled.lock().unwrap().insert(a.id);
    // Long enough for the back-off to have grown: 50, 100, 200, 400, 800 ms.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1000) {
        check_refused(a.ask(b.id, "hello").await, "not a member");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    b.view.expelled.lock().unwrap().clear();

    b.ask(a.id, "you are in").await.unwrap();

    assert_eq!(a.ask(b.id, "hello").await, Ok((a.id, "hello".into())));
}

#[tokio::test]
async fn an_address_that_becomes_known_is_used_at_once() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let address = world.addresses.lock().unwrap().remove(&b.id).unwrap();
    for _ in 0..10 {
        assert_eq!(a.ask(b.id, "hello").await, Err(LinkError::UnknownPeer(b.id)));
    }

    world.addresses.lock().unwrap().insert(b.id, address);

    assert_eq!(a.ask(b.id, "hello").await, Ok((a.id, "hello".into())));
}
