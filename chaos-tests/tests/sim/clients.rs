//! Clients that create, label, move and delete a few sandboxes through any node, and read them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_api::ids::{Generation, NodeId, OrganizationId, SandboxId};
use atoll_api::sandbox::{Desired, Placement, Resources, SandboxSpec};
use atoll_api::tokens::TokenHash;
use atoll_consensus::RegionGroup;
use atoll_consensus::simulation::Simulation;
use atoll_consensus::state::region::{Intervals, NewSandbox, RegionCommand};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::history::{Answered, Asked, Recorder};

pub const SANDBOXES: u64 = 24;
const THINK_MS: u64 = 60;

/// The region as each node that is up has it.
#[derive(Clone, Default)]
pub struct Doors(Arc<Mutex<BTreeMap<NodeId, RegionGroup>>>);

impl Doors {
    pub fn update(&self, simulation: &Simulation) {
        let region = Simulation::region();
        let open = simulation
            .up()
            .into_iter()
            .filter_map(|node| Some((node, simulation.node(node).region(&region)?)));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = open.collect();
    }

    fn at(&self, node: NodeId) -> Option<RegionGroup> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }
}

pub struct Client {
    pub number: u64,
    pub node: NodeId,
    pub nodes: u64,
    pub random: u64,
    pub doors: Doors,
    pub recorder: Recorder,
    pub until: Instant,
}

impl Client {
    pub async fn work(mut self) {
        while Instant::now() < self.until {
            sleep(Duration::from_millis(1 + self.below(THINK_MS))).await;
            let Some(region) = self.doors.at(self.node) else { continue };
            let sandbox = self.below(SANDBOXES);
            let asked = self.choose(&region, sandbox);
            let call = self.recorder.begin(self.number, self.node, sandbox_id(sandbox), asked.clone());
            let answered = match asked {
                Asked::Write(command) => region.propose(command).await.map(Answered::Wrote),
                Asked::Read => region.linearize().await.map(|()| {
                    Answered::Read(
                        region.read(|state| state.sandboxes.get(&sandbox_id(sandbox)).cloned().map(Box::new)),
                    )
                }),
            };
            self.recorder.end(call, answered.unwrap_or(Answered::Nothing));
        }
    }

    fn choose(&mut self, region: &RegionGroup, sandbox: u64) -> Asked {
        let seen = region.read(|state| state.sandboxes.get(&sandbox_id(sandbox)).cloned().map(Box::new));
        let (unique, node) = (self.next(), 1 + self.below(self.nodes));
        // A sandbox's name carries its creator's number, so that two creates of one id differ.
        let Some(seen) = seen else {
            return if self.below(3) == 0 {
                Asked::Read
            } else {
                Asked::Write(create(sandbox, node, unique))
            };
        };
        match self.below(20) {
            0..8 => Asked::Read,
            8..14 => Asked::Write(labels(sandbox, unique, unique)),
            14..18 => Asked::Write(place(sandbox, node, seen.placement.generation.next())),
            _ if seen.desired == Desired::Deleted => Asked::Write(deleted(sandbox, seen.placement)),
            _ => Asked::Write(delete(sandbox)),
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn next(&mut self) -> u64 {
        // Xorshift; the seed is never zero.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// What the simulated nodes offer the region.
pub fn everything_of(nodes: u64) -> Vec<RegionCommand> {
    let plenty = 1_000_000;
    let total = Resources { cpu: plenty, memory_gib: plenty, disk_gib: plenty };
    (1..=nodes)
        .map(|node| RegionCommand::OfferNode {
            node_id: NodeId(node),
            total,
            sandboxes_max: plenty,
            now_ms: 0,
        })
        .collect()
}

pub fn sandbox_id(sandbox: u64) -> SandboxId {
    let mut random = [0; 14];
    random[6..].copy_from_slice(&sandbox.to_be_bytes());
    SandboxId::new(Simulation::ordinal(), random)
}

pub fn create(sandbox: u64, node: u64, unique: u64) -> RegionCommand {
    let sandbox_spec = SandboxSpec {
        snapshot: "sim".to_owned(),
        image: "sim".to_owned(),
        user: "sim".to_owned(),
        env: BTreeMap::new(),
        entrypoint: Vec::new(),
        resources: Resources { cpu: 1, memory_gib: 1, disk_gib: 1 },
        egress: Default::default(),
        allow_sudo: false,
    };
    let new = NewSandbox {
        organization_id: OrganizationId(Uuid::nil()),
        name: format!("{sandbox}-{unique}"),
        spec: sandbox_spec,
        labels: BTreeMap::new(),
        public: false,
        intervals: Intervals {
            auto_stop_minutes: 0,
            auto_pause_minutes: 0,
            auto_archive_minutes: 0,
            auto_delete_minutes: -1,
        },
        preview_token_hash: TokenHash::of("sim"),
        node_id: NodeId(node),
    };
    RegionCommand::CreateSandbox { sandbox_id: sandbox_id(sandbox), sandbox: Box::new(new), now_ms: 0 }
}

pub fn labels(sandbox: u64, value: u64, now_ms: u64) -> RegionCommand {
    let labels = BTreeMap::from([("value".to_owned(), value.to_string())]);
    RegionCommand::SetLabels { sandbox_id: sandbox_id(sandbox), labels, now_ms: now_ms % 1_000 }
}

fn place(sandbox: u64, node: u64, generation: Generation) -> RegionCommand {
    let placement = Placement { node_id: NodeId(node), generation };
    RegionCommand::PlaceSandbox { sandbox_id: sandbox_id(sandbox), placement, now_ms: 0 }
}

fn delete(sandbox: u64) -> RegionCommand {
    RegionCommand::SetDesired { sandbox_id: sandbox_id(sandbox), desired: Desired::Deleted, now_ms: 0 }
}

fn deleted(sandbox: u64, placement: Placement) -> RegionCommand {
    RegionCommand::ReportDeleted { sandbox_id: sandbox_id(sandbox), placement }
}
