//! Several nodes' consensus in one process, for tests: a simulated network, disks that lose what was not synced, one seed.
//!
//! All nodes are in one region. Calls panic when something that must happen does not: this is for tests only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::ids::{NodeId, RegionName, RegionOrdinal};
use atoll_api::sandbox::Resources;
use atoll_api::tokens::TokenHash;
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::StreamHandler;
use atoll_mesh::sim::{SimNetwork, Weather};
use atoll_mesh::stream::{GroupName, StreamHeader};
use tokio::time::{Instant, sleep, timeout};

use crate::consensus::{Compaction, Consensus, ConsensusConfig, Timings};
use crate::disk::DiskWork;
use crate::disk::memory::MemoryDisk;
use crate::state::cluster::{
    ClusterCommand, ClusterIdentity, ClusterOutcome, NodeAddresses, NodeCapacity, NodeRecord,
};
use crate::state::region::{RegionCommand, RegionOutcome};

const DISK_LATENCY: Duration = Duration::from_millis(1);
const JOIN_TOKEN: &str = "sim";
const JOIN_TOKEN_USES: u32 = 1_000;
const CPUS_PER_NODE: u32 = 1_000_000;

pub struct Simulation {
    pub network: SimNetwork,
    pub timings: Timings,
    pub compaction: Compaction,
    started: Instant,
    nodes: BTreeMap<NodeId, SimNode>,
}

#[derive(Default)]
struct SimNode {
    disk: MemoryDisk,
    running: Option<Consensus>,
}

struct Serve(Consensus);

#[async_trait]
impl StreamHandler for Serve {
    async fn handle(&self, peer: NodeId, header: StreamHeader, stream: ByteStream) {
        self.0.serve(peer, header, stream).await;
    }
}

impl Simulation {
    /// Everything random on this thread comes from the seed from now on.
    pub fn new(seed: u64) -> Simulation {
        crate::seed_this_thread(seed);
        Simulation {
            network: SimNetwork::new(seed, Weather::fair()),
            timings: Timings::default(),
            compaction: Compaction::default(),
            started: Instant::now(),
            nodes: BTreeMap::new(),
        }
    }

    /// A cluster of nodes 1 to `size`, all members, with as many voters as it wants.
    pub async fn cluster(seed: u64, size: u64) -> Simulation {
        let mut simulation = Simulation::new(seed);
        simulation.found(NodeId(1)).await;
        simulation.join((2..=size).map(NodeId).collect()).await;
        let voters = crate::membership::voter_count(size as usize);
        simulation.until_voters(voters, Duration::from_secs(10)).await;
        simulation
    }

    pub fn region() -> RegionName {
        "sim".parse().expect("a region's name")
    }

    pub fn ordinal() -> RegionOrdinal {
        RegionOrdinal::new(0).expect("the first ordinal")
    }

    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub fn node(&self, node: NodeId) -> Consensus {
        self.nodes[&node].running.clone().expect("the node is up")
    }

    pub fn is_up(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.running.is_some())
    }

    pub fn disk(&self, node: NodeId) -> MemoryDisk {
        self.nodes[&node].disk.powered()
    }

    pub fn nodes(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub fn up(&self) -> Vec<NodeId> {
        self.nodes().into_iter().filter(|node| self.is_up(*node)).collect()
    }

    pub async fn start(&mut self, node: NodeId) -> Consensus {
        let sim_node = self.nodes.entry(node).or_default();
        let disk = sim_node.disk.powered();
        let config = ConsensusConfig {
            node_id: node,
            data_dir: Default::default(),
            timings: self.timings,
            compaction: self.compaction,
            runtime: tokio::runtime::Handle::current(),
        };
        let work = DiskWork::Simulated { latency: DISK_LATENCY };
        let opened = Consensus::open_on(config, self.network.link(node), Arc::new(disk), work).await;
        let consensus = opened.expect("a node starts on what it has synced");
        consensus.host(GroupName::Region(Simulation::region())).await.expect("a node can host its region");
        self.network.start(node, Arc::new(Serve(consensus.clone())));
        sim_node.running = Some(consensus.clone());
        consensus
    }

    /// Kills the node and its power: a random part of what was not synced is lost.
    pub async fn crash(&mut self, node: NodeId) {
        self.network.crash(node);
        let sim_node = self.nodes.get_mut(&node).expect("the node was started");
        let unsynced = sim_node.disk.unsynced_writes() as u64;
        sim_node.disk.lose_power(self.network.random_below(unsynced + 1) as usize);
        if let Some(running) = sim_node.running.take() {
            running.shutdown().await;
        }
    }

    /// A crash after which the node comes back on an empty disk.
    pub async fn wipe(&mut self, node: NodeId) {
        self.crash(node).await;
        self.nodes[&node].disk.wipe();
    }

    pub async fn found(&mut self, node: NodeId) {
        let consensus = self.start(node).await;
        consensus.found(GroupName::Cluster).await.expect("a new cluster can be founded");
        let identity = ClusterIdentity {
            cluster_id: uuid::Uuid::nil(),
            ca_certificate_pem: String::new(),
            sealed_ca_key: Vec::new(),
            sealed_ssh_host_key: Vec::new(),
            created_at_ms: 0,
        };
        self.decide(node, ClusterCommand::Found { identity }).await;
        self.decide(node, self.admission(node, None)).await;
        let token = ClusterCommand::CreateJoinToken {
            token_hash: TokenHash::of(JOIN_TOKEN),
            uses: JOIN_TOKEN_USES,
            expires_at_ms: u64::MAX,
            now_ms: self.now_ms(),
        };
        self.decide(node, token).await;
        let region = Simulation::region();
        consensus.found(GroupName::Region(region.clone())).await.expect("a new region can be founded");
        let region = consensus.region(&region).expect("the node hosts it");
        for command in [RegionCommand::FoundRegion { ordinal: Simulation::ordinal() }, self.offer(node)] {
            assert_eq!(region.propose(command).await, Ok(RegionOutcome::Applied));
        }
    }

    /// All of them at the same moment.
    pub async fn join(&mut self, nodes: Vec<NodeId>) {
        for node in &nodes {
            self.start(*node).await;
        }
        let member = self.up()[0];
        let region = self.node(member).region(&Simulation::region()).expect("the node hosts it");
        for node in nodes {
            self.decide(member, self.admission(node, Some(TokenHash::of(JOIN_TOKEN)))).await;
            assert_eq!(region.propose(self.offer(node)).await, Ok(RegionOutcome::Applied));
        }
    }

    /// Has the cluster group decide, asked on this node.
    pub async fn decide(&self, node: NodeId, command: ClusterCommand) {
        let outcome = self.node(node).cluster().propose(command).await;
        assert_eq!(outcome, Ok(ClusterOutcome::Applied));
    }

    /// Until both groups have this many voters on every node that is up, and a leader.
    pub async fn until_voters(&self, voters: usize, within: Duration) {
        eventually(within, &format!("both groups have {voters} voters"), || {
            self.up().into_iter().all(|node| {
                let statuses = self.node(node).statuses();
                statuses.iter().all(|group| group.voters.len() == voters && group.leader.is_some())
            })
        })
        .await;
    }

    /// Who leads the region, as one that is up and in touch with it sees it.
    pub async fn region_leader(&self) -> NodeId {
        let leader = || self.up().into_iter().find(|node| self.leads_region(*node));
        eventually(Duration::from_secs(20), "the region has a leader", || leader().is_some()).await;
        leader().expect("there was one just now")
    }

    fn leads_region(&self, node: NodeId) -> bool {
        self.node(node).region(&Simulation::region()).is_some_and(|region| region.is_leader())
    }

    fn admission(&self, node: NodeId, token_hash: Option<TokenHash>) -> ClusterCommand {
        let total = Resources { cpu: CPUS_PER_NODE, memory_gib: CPUS_PER_NODE, disk_gib: CPUS_PER_NODE };
        let record = NodeRecord {
            name: format!("n{}", node.0),
            region: Simulation::region(),
            zone: None,
            addresses: NodeAddresses {
                mesh: String::new(),
                http: String::new(),
                https: None,
                ssh: String::new(),
            },
            capacity: NodeCapacity { total, sandboxes_max: CPUS_PER_NODE },
            command_version: 1,
            joined_at_ms: self.now_ms(),
        };
        ClusterCommand::AdmitNode { token_hash, node_id: node, node: record, now_ms: self.now_ms() }
    }

    fn offer(&self, node: NodeId) -> RegionCommand {
        let total = Resources { cpu: CPUS_PER_NODE, memory_gib: CPUS_PER_NODE, disk_gib: CPUS_PER_NODE };
        RegionCommand::OfferNode { node_id: node, total, sandboxes_max: CPUS_PER_NODE, now_ms: self.now_ms() }
    }
}

/// Waits for the condition, and panics with `what` if it does not come about in time.
pub async fn eventually(within: Duration, what: &str, condition: impl Fn() -> bool) {
    let met = timeout(within, async {
        while !condition() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(met.await.is_ok(), "not within {within:?}: {what}");
}
