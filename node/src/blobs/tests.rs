//! Blobs and words over the simulated network: real stores, and nodes that crash.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::ids::{NodeId, OrganizationId};
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::StreamHandler;
use atoll_mesh::sim::{SimNetwork, Weather};
use atoll_mesh::stream::{StreamHeader, read_message, write_message};
use atoll_runner::image::Digest;
use atoll_runner::store::{Origin, Reference, Registries, Store, StoreConfig};
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::*;

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
const THREE: NodeId = NodeId(3);
const BIG_BYTES: usize = 6_000_000;

struct Handler(BlobServer);

#[async_trait]
impl StreamHandler for Handler {
    async fn handle(&self, _peer: NodeId, header: StreamHeader, stream: ByteStream) {
        assert_eq!(header, StreamHeader::Blob);
        let _ = self.0.serve(stream).await;
    }
}

/// A cluster of stores.
struct World {
    network: SimNetwork,
    nodes: Vec<(NodeId, Store, PeerStores)>,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let network = SimNetwork::new(11, Weather::fair());
        let ids = [ONE, TWO, THREE];
        let nodes = ids.map(|node_id| {
            let store = store_at(&dir.path().join(node_id.to_string()));
            let others = ids.into_iter().filter(|other| *other != node_id).collect::<Vec<_>>();
            let peers = PeerStores::new(network.link(node_id), move || others.clone());
            store.set_peers(Arc::new(peers.clone()));
            (node_id, store, peers)
        });
        let world = World { network, nodes: nodes.into(), _dir: dir };
        for (node_id, ..) in &world.nodes {
            world.start(*node_id);
        }
        world
    }

    fn start(&self, node_id: NodeId) {
        let store = self.store(node_id).clone();
        let server = BlobServer::new(store.clone(), Arc::new(Reach::new(store)));
        self.network.start(node_id, Arc::new(Handler(server)));
    }

    fn store(&self, node_id: NodeId) -> &Store {
        &self.nodes.iter().find(|(id, ..)| *id == node_id).unwrap().1
    }

    fn peers(&self, node_id: NodeId) -> &PeerStores {
        &self.nodes.iter().find(|(id, ..)| *id == node_id).unwrap().2
    }
}

fn store_at(dir: &Path) -> Store {
    let (dir, seeds, registries) = (dir.to_owned(), vec![], Registries::default());
    Store::open(StoreConfig { dir, seeds, registries }).unwrap()
}

fn big() -> Vec<u8> {
    (0..BIG_BYTES).map(|n| (n * 31 % 251) as u8).collect()
}

fn organization(n: u128) -> OrganizationId {
    OrganizationId(uuid::Uuid::from_u128(n))
}

fn name(organization_id: OrganizationId, tag: &str) -> Reference {
    Reference::local(&organization_id.to_string(), "app", tag.parse().unwrap()).unwrap()
}

/// A manifest with one layer, in a store.
async fn image(store: &Store, layer: &[u8]) -> (Digest, Digest) {
    let layer = (store.put_bytes(layer).await.unwrap(), layer.len());
    let config = (store.put_bytes(b"{}").await.unwrap(), 2);
    let part = |(digest, size): (Digest, usize)| json!({"mediaType": "x", "digest": digest, "size": size});
    let manifest = json!({"schemaVersion": 2, "config": part(config), "layers": [part(layer)]});
    (store.put_manifest(manifest.to_string().as_bytes()).await.unwrap().0, layer.0)
}

#[tokio::test(start_paused = true)]
async fn a_blob_comes_from_whichever_node_has_it() {
    let world = World::new();
    let digest = world.store(THREE).put_bytes(&big()).await.unwrap();

    let (mut file, bytes) = world.store(ONE).fetch_by_digest(digest).await.unwrap();

    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut content).unwrap();
    assert_eq!((content, bytes), (big(), BIG_BYTES as u64));
    assert!(world.store(TWO).open_here(&digest).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_part_of_a_blob_can_be_asked_for() {
    let world = World::new();
    let digest = world.store(TWO).put_bytes(b"0123456789").await.unwrap();

    for (from, rest) in [(0, "0123456789"), (7, "789"), (10, ""), (11, "")] {
        let (bytes, mut reader) = world.peers(ONE).read(digest, from).await.unwrap();
        let mut content = String::new();
        reader.read_to_string(&mut content).await.unwrap();
        assert_eq!((bytes, content.as_str()), (10, rest), "{from}");
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_sending_node_dies_another_one_goes_on() {
    let world = World::new();
    let digest = world.store(TWO).put_bytes(&big()).await.unwrap();
    world.store(THREE).put_bytes(&big()).await.unwrap();
    let (_, mut reader) = world.peers(ONE).read(digest, 0).await.unwrap();
    let mut content = vec![0; 1_000_000];
    reader.read_exact(&mut content).await.unwrap();

    // Whoever of the two it was.
    let offer = world.peers(ONE).find(digest).await.unwrap();
    world.network.crash(offer.peer);
    reader.read_to_end(&mut content).await.unwrap();

    assert!(content == big(), "{} bytes", content.len());
}

#[tokio::test(start_paused = true)]
async fn when_the_only_node_that_has_it_dies_there_is_an_end_and_it_is_named() {
    let world = World::new();
    let digest = world.store(TWO).put_bytes(&big()).await.unwrap();
    let (_, mut reader) = world.peers(ONE).read(digest, 0).await.unwrap();
    let mut content = vec![0; 1_000_000];
    reader.read_exact(&mut content).await.unwrap();
    world.network.crash(TWO);
    let deadline = Duration::from_secs(60);

    let rest = tokio::time::timeout(deadline, reader.read_to_end(&mut content)).await.expect("in time");
    let found = tokio::time::timeout(deadline, world.peers(ONE).find(digest)).await.expect("in time");

    assert!(rest.is_err());
    assert_eq!(found.err(), Some(Silent(vec![TWO])));
    let brought = world.store(ONE).fetch_by_digest(digest).await;
    assert!(matches!(brought, Err(atoll_runner::store::StoreError::NotFound(_))), "{brought:?}");

    world.start(TWO);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(world.store(ONE).fetch_by_digest(digest).await.is_ok(), "it is back");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_sends_too_much_already_is_asked_again() {
    let world = World::new();
    let digest = world.store(TWO).put_bytes(&big()).await.unwrap();
    // Offers that nobody takes for a while.
    let mut kept = Vec::new();
    for _ in 0..24 {
        kept.push(world.peers(THREE).find(digest).await.unwrap());
    }

    let (mut file, _) = world.store(ONE).fetch_by_digest(digest).await.unwrap();

    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut content).unwrap();
    assert!(content == big());
}

#[tokio::test(start_paused = true)]
async fn names_mean_what_was_said_last_on_any_node() {
    let world = World::new();
    let name = name(organization(1), "v1");
    let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
    let first = world.store(TWO).set_name(&name, old, Origin::Given).unwrap();
    let means = async |node: NodeId| world.store(node).latest_name(&name).await.map(|named| named.digest);

    assert_eq!([means(ONE).await, means(TWO).await, means(THREE).await], [Some(old); 3]);
    let second = world.store(THREE).set_name_after(&name, new, Origin::Given, first.set_ms).unwrap();
    assert_eq!([means(ONE).await, means(TWO).await, means(THREE).await], [Some(new); 3]);

    world.peers(THREE).announce(&second).await;
    assert_eq!(world.store(TWO).name_here(&name).unwrap().digest, new, "who has it hears of it");
    assert!(world.store(ONE).name_here(&name).is_none(), "who has not does not keep it");

    let gone = world.store(ONE).set_name_after(&name, new, Origin::Removed, second.set_ms).unwrap();
    assert_eq!([means(ONE).await, means(TWO).await, means(THREE).await], [None; 3]);
    world.peers(ONE).announce(&gone).await;
    world.network.crash(ONE);
    assert_eq!([means(TWO).await, means(THREE).await], [None; 2], "whoever had it knows that it is gone");
}

#[tokio::test(start_paused = true)]
async fn an_organization_reaches_what_its_own_images_lead_to() {
    let world = World::new();
    let (manifest, layer) = image(world.store(TWO), b"a layer").await;
    let (ours, theirs) = (organization(1), organization(2));
    world.store(TWO).set_name(&name(ours, "v1"), manifest, Origin::Given).unwrap();

    for digest in [manifest, layer] {
        assert_eq!(world.peers(ONE).reach(ours, digest).await, Ok(()));
        assert_eq!(world.peers(ONE).reach(theirs, digest).await, Err(Silent::default()));
    }
    assert_eq!(world.peers(ONE).reach(ours, Digest::of(b"other")).await, Err(Silent::default()));
}

#[tokio::test]
async fn a_push_is_reached_before_its_manifest_and_a_removed_image_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_at(dir.path());
    let reach = Reach::new(store.clone());
    let (ours, theirs) = (organization(1), organization(2));
    let (manifest, layer) = image(&store, b"a layer").await;
    let pushed = store.put_bytes(b"pushed").await.unwrap();
    reach.pushed(ours, pushed);

    assert!(reach.here(ours, pushed).await.unwrap());
    assert!(!reach.here(theirs, pushed).await.unwrap());
    assert!(!reach.here(ours, layer).await.unwrap());
    store.set_name(&name(ours, "v1"), manifest, Origin::Given).unwrap();
    reach.named(ours);
    assert!(reach.here(ours, layer).await.unwrap());
    store.set_name(&name(ours, "v1"), manifest, Origin::Removed).unwrap();
    reach.named(ours);
    assert!(!reach.here(ours, layer).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn nonsense_from_a_peer_ends_its_stream_and_nothing_else() {
    let world = World::new();
    let digest = world.store(TWO).put_bytes(b"a blob").await.unwrap();
    let open = || world.network.link(ONE);
    let mut stream = open().open(TWO, StreamHeader::Blob, Duration::from_secs(1)).await.unwrap();
    write_message(&mut stream, "no question").await.unwrap();
    assert!(read_message::<_, Answer>(&mut stream, 1000).await.is_err());
    let mut stream = open().open(TWO, StreamHeader::Blob, Duration::from_secs(1)).await.unwrap();
    write_message(&mut stream, &Question::Word { name: "../..".to_owned() }).await.unwrap();
    assert!(read_message::<_, Answer>(&mut stream, 1000).await.is_err());
    // Says nothing at all.
    let mut stream = open().open(TWO, StreamHeader::Blob, Duration::from_secs(1)).await.unwrap();
    assert!(read_message::<_, Answer>(&mut stream, 1000).await.is_err());

    assert_eq!(world.peers(ONE).find(digest).await.unwrap().bytes, 6);
}
