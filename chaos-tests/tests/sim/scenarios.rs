//! What goes wrong while the clients work.

use std::time::Duration;

use atoll_api::ids::NodeId;
use atoll_api::wire;
use atoll_consensus::simulation::{Simulation, eventually};
use atoll_consensus::state::region::RegionCommand;
use atoll_mesh::sim::Weather;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::clients::{Client, Doors, SANDBOXES, sandbox_id};
use crate::history::{Answered, Asked, History, Recorder};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    LeaderCrash,
    FollowerCrash,
    MinorityPartition,
    BridgePartition,
    OneWayPaths,
    LossyLinks,
    PowerFailureOfAll,
}

const WORK_FOR: Duration = Duration::from_secs(15);
const CLIENTS_PER_NODE: u64 = 2;
/// Who reads everything once all is well again.
const AUDITOR: u64 = 999;

struct Stage {
    simulation: Simulation,
    doors: Doors,
    recorder: Recorder,
}

pub async fn play(scenario: Scenario, seed: u64) -> History {
    let size = match scenario {
        Scenario::MinorityPartition | Scenario::BridgePartition => 5,
        _ => 3,
    };
    let simulation = Simulation::cluster(seed, size).await;
    let mut stage = Stage { simulation, doors: Doors::default(), recorder: Recorder::new() };
    stage.open_doors();
    let mut clients = JoinSet::new();
    let until = Instant::now() + WORK_FOR;
    for number in 0..size * CLIENTS_PER_NODE {
        let client = Client {
            number,
            node: NodeId(1 + number % size),
            nodes: size,
            random: (seed << 16) + number * 2 + 1,
            doors: stage.doors.clone(),
            recorder: stage.recorder.clone(),
            until,
        };
        clients.spawn(client.work());
    }
    stage.go_wrong(scenario).await;
    stage.make_well().await;
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client does not panic");
    }
    stage.audit().await;
    stage.recorder.finish()
}

impl Stage {
    async fn go_wrong(&mut self, scenario: Scenario) {
        match scenario {
            Scenario::LeaderCrash => {
                for _ in 0..3 {
                    sleep(Duration::from_secs(2)).await;
                    let leader = self.simulation.region_leader().await;
                    self.crash(leader).await;
                    sleep(Duration::from_secs(2)).await;
                    self.start(leader).await;
                }
            }
            Scenario::FollowerCrash => {
                for round in 0..3 {
                    sleep(Duration::from_secs(2)).await;
                    let follower = self.others_than(self.simulation.region_leader().await)[round % 2];
                    self.crash(follower).await;
                    self.must_decide(self.simulation.region_leader().await).await;
                    sleep(Duration::from_secs(2)).await;
                    self.start(follower).await;
                }
            }
            Scenario::MinorityPartition => {
                sleep(Duration::from_secs(2)).await;
                let leader = self.simulation.region_leader().await;
                let others = self.others_than(leader);
                let (with_leader, majority) = others.split_at(1);
                self.note(&format!("{leader} and {with_leader:?} are cut off"));
                self.simulation.network.partition(&[&[leader], with_leader].concat(), majority);
                sleep(Duration::from_secs(4)).await;
                self.must_decide(majority[0]).await;
                self.must_not_decide(leader).await;
            }
            Scenario::BridgePartition => {
                sleep(Duration::from_secs(2)).await;
                let leader = self.simulation.region_leader().await;
                let others = self.others_than(leader);
                let (bridge, rest) = others.split_at(1);
                self.note(&format!("{leader} reaches only {bridge:?}"));
                self.simulation.network.partition(&[leader], rest);
                sleep(Duration::from_secs(8)).await;
                self.must_decide(rest[0]).await;
                self.must_decide(bridge[0]).await;
            }
            Scenario::OneWayPaths => {
                for round in 0..4 {
                    sleep(Duration::from_secs(1)).await;
                    let leader = self.simulation.region_leader().await;
                    self.note(&format!("round {round} of one-way paths around {leader}"));
                    for other in self.others_than(leader) {
                        match round % 2 {
                            0 => self.simulation.network.cut_one_way(leader, other),
                            _ => self.simulation.network.cut_one_way(other, leader),
                        }
                    }
                    sleep(Duration::from_millis(2_500)).await;
                    self.simulation.network.heal();
                }
            }
            Scenario::LossyLinks => {
                self.simulation.network.set_weather(Weather::lossy());
                sleep(Duration::from_secs(12)).await;
            }
            Scenario::PowerFailureOfAll => {
                for _ in 0..3 {
                    sleep(Duration::from_secs(2)).await;
                    for node in self.simulation.nodes() {
                        self.crash(node).await;
                    }
                    sleep(Duration::from_millis(500)).await;
                    for node in self.simulation.nodes() {
                        self.start(node).await;
                    }
                }
            }
        }
    }

    async fn make_well(&mut self) {
        self.note("all is made well");
        self.simulation.network.heal();
        self.simulation.network.set_weather(Weather::fair());
        for node in self.simulation.nodes() {
            if !self.simulation.is_up(node) {
                self.start(node).await;
            }
        }
    }

    /// Every node reads everything, and all come to the same state.
    async fn audit(&self) {
        let region = Simulation::region();
        let groups: Vec<_> =
            self.simulation.up().into_iter().map(|node| (node, self.simulation.node(node))).collect();
        for (node, consensus) in &groups {
            let group = consensus.region(&region).expect("every node hosts the region");
            self.must_decide(*node).await;
            for sandbox in (0..SANDBOXES).map(sandbox_id) {
                let call = self.recorder.begin(AUDITOR, *node, sandbox, Asked::Read);
                group.linearize().await.expect("all is well again");
                let seen = group.read(|state| state.sandboxes.get(&sandbox).cloned());
                self.recorder.end(call, Answered::Read(seen.map(Box::new)));
            }
        }
        let states = || -> Vec<Vec<u8>> {
            let group =
                |consensus: &atoll_consensus::Consensus| consensus.region(&region).expect("it is hosted");
            groups
                .iter()
                .map(|(_, consensus)| {
                    group(consensus).read(|state| wire::encode(state).expect("it can be encoded"))
                })
                .collect()
        };
        eventually(Duration::from_secs(10), "all replicas are equal, byte for byte", || {
            states().windows(2).all(|pair| pair[0] == pair[1])
        })
        .await;
    }

    async fn must_decide(&self, node: NodeId) {
        let began = Instant::now();
        while self.probe(node).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "{node} cannot have anything decided");
        }
    }

    async fn must_not_decide(&self, node: NodeId) {
        assert!(self.probe(node).await.is_err(), "{node} had something decided without a quorum");
    }

    async fn probe(&self, node: NodeId) -> Result<(), atoll_consensus::GroupError> {
        let group =
            self.simulation.node(node).region(&Simulation::region()).expect("every node hosts the region");
        group.propose(RegionCommand::ExpireTokens { now_ms: 0 }).await.map(|_| ())
    }

    fn others_than(&self, node: NodeId) -> Vec<NodeId> {
        self.simulation.nodes().into_iter().filter(|other| *other != node).collect()
    }

    async fn crash(&mut self, node: NodeId) {
        self.note(&format!("{node} crashes"));
        self.simulation.crash(node).await;
        self.open_doors();
    }

    async fn start(&mut self, node: NodeId) {
        self.note(&format!("{node} starts"));
        self.simulation.start(node).await;
        self.open_doors();
    }

    fn open_doors(&self) {
        self.doors.update(&self.simulation);
    }

    fn note(&self, what: &str) {
        self.recorder.note(what);
    }
}
