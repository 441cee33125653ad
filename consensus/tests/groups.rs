//! Groups of several nodes: what was answered stays, wherever it was asked and whatever dies. On simulated time.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::ids::NodeId;
use atoll_api::ids::{OrganizationId, UserId};
use atoll_consensus::disk::Disk;
use atoll_consensus::simulation::{Simulation, eventually};
use atoll_consensus::state::cluster::{ClusterCommand, ClusterOutcome, OrganizationRecord};
use atoll_consensus::{Compaction, Consensus, ConsensusConfig, GroupError, Timings};
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::{Link, LinkError};
use atoll_mesh::stream::{GroupName, StreamHeader};
use tokio::time::Instant;
use uuid::Uuid;

const SEED: u64 = 1;
const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
const N3: NodeId = NodeId(3);
const N4: NodeId = NodeId(4);

fn put(number: u128) -> ClusterCommand {
    let organization =
        OrganizationRecord { name: number.to_string(), created_by: UserId(Uuid::nil()), created_at_ms: 0 };
    ClusterCommand::PutOrganization { organization_id: organization_id(number), organization }
}

fn organization_id(number: u128) -> OrganizationId {
    OrganizationId(Uuid::from_u128(number))
}

fn has(consensus: &Consensus, numbers: std::ops::Range<u128>) -> bool {
    consensus
        .cluster()
        .read(|state| numbers.clone().all(|n| state.organizations.contains_key(&organization_id(n))))
}

async fn put_all(simulation: &Simulation, at: NodeId, numbers: std::ops::Range<u128>) {
    for number in numbers {
        simulation.decide(at, put(number)).await;
    }
}

async fn until_all_have(simulation: &Simulation, numbers: std::ops::Range<u128>) {
    eventually(Duration::from_secs(20), "every node has everything", || {
        simulation.up().into_iter().all(|node| has(&simulation.node(node), numbers.clone()))
    })
    .await;
}

async fn cluster_leader(simulation: &Simulation) -> NodeId {
    let leader = || simulation.up().into_iter().find(|node| simulation.node(*node).cluster().is_leader());
    eventually(Duration::from_secs(20), "the cluster group has a leader", || leader().is_some()).await;
    leader().unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_any_node_answered_every_node_reads() {
    let simulation = Simulation::cluster(SEED, 3).await;

    for (number, writer) in [N1, N2, N3].into_iter().enumerate() {
        let number = number as u128;
        simulation.decide(writer, put(number)).await;
        for reader in [N1, N2, N3] {
            let reader = simulation.node(reader);
            reader.cluster().linearize().await.unwrap();
            assert!(has(&reader, 0..number + 1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_proposals_at_once_are_all_decided_on_leader_and_followers() {
    let simulation = Simulation::cluster(SEED, 3).await;

    let proposals = (0..600u128).map(|number| {
        let cluster = simulation.node(NodeId(1 + (number % 3) as u64)).cluster();
        async move { cluster.propose(put(number)).await }
    });
    let outcomes = futures_util::future::join_all(proposals).await;

    assert!(outcomes.iter().all(|outcome| *outcome == Ok(ClusterOutcome::Applied)));
    until_all_have(&simulation, 0..600).await;
}

#[tokio::test(start_paused = true)]
async fn writes_go_on_soon_after_the_leader_is_killed() {
    for seed in 0..10 {
        let mut simulation = Simulation::cluster(seed, 3).await;
        put_all(&simulation, N2, 0..5).await;

        let leader = cluster_leader(&simulation).await;
        simulation.crash(leader).await;
        let killed = Instant::now();
        let survivor = simulation.up()[0];
        simulation.decide(survivor, put(5)).await;

        assert!(killed.elapsed() < Duration::from_millis(2_500), "seed {seed}: {:?}", killed.elapsed());
        until_all_have(&simulation, 0..6).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_all_nodes_keeps_what_was_answered() {
    let mut simulation = Simulation::cluster(SEED, 3).await;
    put_all(&simulation, N3, 0..20).await;

    for node in [N1, N2, N3] {
        simulation.crash(node).await;
    }
    for node in [N1, N2, N3] {
        simulation.start(node).await;
    }
    simulation.decide(N2, put(20)).await;

    until_all_have(&simulation, 0..21).await;
}

#[tokio::test(start_paused = true)]
async fn a_wiped_node_catches_up_by_snapshot_when_the_log_is_purged() {
    let mut simulation = Simulation::new(SEED);
    simulation.compaction = Compaction { snapshot_every_entries: 50, entries_kept: 10 };
    simulation.found(N1).await;
    simulation.join(vec![N2, N3]).await;
    simulation.until_voters(3, Duration::from_secs(10)).await;
    put_all(&simulation, N1, 0..200).await;

    let leader = cluster_leader(&simulation).await;
    let first = simulation.disk(leader).scan("cluster", b"log/".to_vec()..b"log0".to_vec(), 1).unwrap();
    assert_ne!(first[0].0, [&b"log/"[..], &0u64.to_be_bytes()].concat(), "nothing was purged");
    let follower = [N1, N2, N3].into_iter().find(|node| *node != leader).unwrap();
    simulation.wipe(follower).await;
    simulation.start(follower).await;

    until_all_have(&simulation, 0..200).await;
    assert!(simulation.disk(follower).snapshot("cluster").unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_purged_log_does_not_keep_nodes_from_starting() {
    let mut simulation = Simulation::new(SEED);
    simulation.compaction = Compaction { snapshot_every_entries: 20, entries_kept: 0 };
    simulation.found(N1).await;
    simulation.join(vec![N2, N3]).await;
    simulation.until_voters(3, Duration::from_secs(10)).await;

    for round in 0..4u128 {
        put_all(&simulation, N2, round * 30..(round + 1) * 30).await;
        for node in [N1, N2, N3] {
            simulation.crash(node).await;
        }
        for node in [N1, N2, N3] {
            simulation.start(node).await;
        }
    }

    until_all_have(&simulation, 0..120).await;
}

#[tokio::test(start_paused = true)]
async fn three_nodes_that_join_at_once_vote_within_three_seconds() {
    let mut simulation = Simulation::new(SEED);
    simulation.found(N1).await;

    let began = Instant::now();
    simulation.join(vec![N2, N3, N4]).await;
    simulation.until_voters(3, Duration::from_secs(3)).await;
    for node in [N2, N3, N4] {
        simulation.node(node).cluster().linearize().await.unwrap();
    }

    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_removed_node_leaves_every_group() {
    let simulation = Simulation::cluster(SEED, 4).await;
    let leader = cluster_leader(&simulation).await;

    simulation.decide(N1, ClusterCommand::RemoveNode { node_id: leader, now_ms: simulation.now_ms() }).await;

    let rest: Vec<NodeId> = [N1, N2, N3, N4].into_iter().filter(|node| *node != leader).collect();
    eventually(Duration::from_secs(20), "the removed node is out", || {
        rest.iter().flat_map(|node| simulation.node(*node).statuses()).all(|group| {
            group.voters.len() == 3 && !group.voters.contains(&leader) && !group.learners.contains(&leader)
        })
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_the_answer_is_no_leader_in_bounded_time() {
    let mut simulation = Simulation::cluster(SEED, 3).await;
    simulation.crash(N2).await;
    simulation.crash(N3).await;
    let cluster = simulation.node(N1).cluster();

    let began = Instant::now();
    let proposed = cluster.propose(put(1)).await;
    let read = cluster.linearize().await;

    let expected = GroupError::NoLeader { group: "cluster".to_owned() };
    assert_eq!((proposed, read), (Err(expected.clone()), Err(expected)));
    assert!(began.elapsed() < Duration::from_millis(2 * simulation.timings.no_leader_after_ms + 500));
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_disk_fails_says_that_it_has_stopped() {
    let simulation = Simulation::cluster(SEED, 3).await;
    let node = simulation.node(N2);

    simulation.disk(N2).lose_power(0);
    simulation.decide(N1, put(1)).await;
    let cause = tokio::time::timeout(Duration::from_secs(10), node.stopped()).await.unwrap();

    assert!(cause.contains("has lost its power"), "{cause}");
}

#[tokio::test(start_paused = true)]
async fn a_command_too_big_for_the_log_is_refused() {
    let simulation = Simulation::cluster(SEED, 1).await;
    let organization =
        OrganizationRecord { name: "x".repeat(1_000_000), created_by: UserId(Uuid::nil()), created_at_ms: 0 };
    let command = ClusterCommand::PutOrganization { organization_id: organization_id(1), organization };

    let refused = simulation.node(N1).cluster().propose(command).await;

    assert!(matches!(refused, Err(GroupError::TooLarge { .. })), "{refused:?}");
}

/// One node has no peers.
struct NoLink;

#[async_trait]
impl Link for NoLink {
    fn local_node(&self) -> NodeId {
        N1
    }

    async fn open(&self, peer: NodeId, _: StreamHeader, _: Duration) -> Result<ByteStream, LinkError> {
        Err(LinkError::UnknownPeer(peer))
    }
}

fn on_files(dir: &std::path::Path) -> ConsensusConfig {
    ConsensusConfig {
        node_id: N1,
        data_dir: dir.to_owned(),
        timings: Timings::default(),
        compaction: Compaction { snapshot_every_entries: 20, entries_kept: 5 },
        runtime: tokio::runtime::Handle::current(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_finds_on_its_files_what_it_answered() {
    let dir = tempfile::tempdir().unwrap();

    for life in 0..3u128 {
        let consensus = Consensus::open(on_files(dir.path()), Arc::new(NoLink)).await.unwrap();
        consensus.found(GroupName::Cluster).await.unwrap();
        for number in life * 30..(life + 1) * 30 {
            consensus.cluster().propose(put(number)).await.unwrap();
        }
        assert!(has(&consensus, 0..(life + 1) * 30));
        consensus.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_belongs_to_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Consensus::open(on_files(dir.path()), Arc::new(NoLink)).await.unwrap();

    let second = Consensus::open(on_files(dir.path()), Arc::new(NoLink)).await.err().unwrap();

    assert!(format!("{second:#}").contains("is in use"), "{second:#}");
}
